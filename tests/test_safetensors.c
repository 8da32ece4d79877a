/* formats/safetensors.c: against files that the reference package wrote, and against every broken rule */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "formats/tensor_writer.h"
#include "tests/lib/scratch.h"

static const char *folder;

static const char *const golden[] = {"types", "names", "sizes", "metadata", "none", "only_metadata", "lora"};
enum { GOLDEN = sizeof golden / sizeof golden[0] };

static const char *golden_path(const char *name, const char *suffix)
{
    static char path[2][256];
    static int next;

    snprintf(path[next ^= 1], sizeof path[0], "golden/safetensors/%s%s", name, suffix);
    return path[next];
}

/* Turns hex (or "-" for nothing) into bytes, in place; returns how many. */
static size_t unhex(char *s)
{
    size_t n = 0;
    unsigned v;

    for (char *p = s; *p && *p != '-'; p += 2) {
        assert_int_equal(sscanf(p, "%2x", &v), 1);
        s[n++] = (char)v;
    }
    s[n] = 0;
    return n;
}

/* One line of golden/safetensors/NAME.txt beside the reader's entry e. */
static void check_tensor(const struct tensor_file *f, const struct tensor_entry *e, char *name, const char *type, char *shape,
                         char *data)
{
    struct err err = {0};
    size_t n = unhex(data);
    unsigned char *got = malloc(n + 1);
    int dims = 0;

    unhex(name);
    assert_string_equal(e->name, name);
    assert_string_equal(dtype_name(e->dtype), type);
    for (char *p = strtok(shape, "x-"); p; p = strtok(NULL, "x-"), dims++)
        assert_int_equal(e->shape.dim[dims], atoi(p));
    assert_int_equal(e->shape.ndim, dims);
    assert_int_equal(e->nbytes, n);
    assert_true(e->plain);
    assert_int_equal(tensor_file_read(f, e, got, &err), 0);
    assert_memory_equal(got, data, n);
    for (size_t i = 0; i < n; i++) {
        unsigned char one = 0;

        assert_int_equal(tensor_file_read_part(f, e, i, 1, &one, &err), 0);
        assert_int_equal(one, (unsigned char)data[i]);
    }
    assert_int_equal(tensor_file_read_part(f, e, n, 1, got, &err), -1);
    assert_int_equal(tensor_file_read_part(f, e, 1, SIZE_MAX, got, &err), -1);
    assert_ptr_equal(tensor_file_find(f, name), e);
    free(got);
}

static void test_golden_read(void **state)
{
    (void)state;
    for (int g = 0; g < GOLDEN; g++) {
        static char field[4][8192];
        struct tensor_file *f;
        struct err err = {0};
        size_t tensors = 0, items = 0;
        FILE *text = fopen(golden_path(golden[g], ".txt"), "r");

        assert_non_null(text);
        assert_int_equal(tensor_file_open(&f, golden_path(golden[g], ".safetensors"), &err), 0);
        assert_string_equal(f->format->name, "safetensors");
        while (fscanf(text, "%8191s %8191s %8191s", field[0], field[1], field[2]) == 3) {
            if (strcmp(field[0], "meta") == 0) {
                unhex(field[1]), unhex(field[2]);
                assert_true(items < f->metadata_count);
                assert_string_equal(f->metadata[items].key, field[1]);
                assert_string_equal(f->metadata[items++].value, field[2]);
                assert_string_equal(tensor_file_metadata(f, field[1]), field[2]);
                continue;
            }
            assert_int_equal(fscanf(text, "%8191s", field[3]), 1);
            assert_true(tensors < f->count);
            check_tensor(f, &f->entries[tensors++], field[0], field[1], field[2], field[3]);
        }
        assert_int_equal(tensors, f->count);
        assert_int_equal(items, f->metadata_count);
        assert_null(tensor_file_find(f, "no such name"));
        assert_null(tensor_file_metadata(f, "no such key"));
        tensor_file_close(f);
        fclose(text);
    }
}

enum how { WHOLE, PARTS, COPY };

/* Writes all of f again to path, from specs in reverse order. */
static void rewrite(const struct tensor_file *f, const char *path, enum how how)
{
    struct tensor_spec *specs = calloc(f->count + 1, sizeof *specs);
    struct metadata_item *metadata = calloc(f->metadata_count + 1, sizeof *metadata);
    struct tensor_writer *w;
    struct err err = {0};

    for (size_t i = 0; i < f->metadata_count; i++)
        metadata[i] = f->metadata[f->metadata_count - 1 - i];
    for (size_t i = 0; i < f->count; i++) {
        const struct tensor_entry *e = &f->entries[f->count - 1 - i];

        specs[i] = (struct tensor_spec){e->name, e->dtype, e->shape};
    }
    assert_int_equal(tensor_writer_open(&w, path, NULL, specs, f->count, metadata, f->metadata_count, &err), 0);
    free(specs);
    free(metadata);
    for (size_t i = 0; i < f->count; i++) {
        const struct tensor_entry *e = &f->entries[f->count - 1 - i];
        unsigned char *data = malloc(e->nbytes + 1);

        assert_int_equal(tensor_writer_order(w, i), f->count - 1 - i);
        assert_int_equal(tensor_file_read(f, e, data, &err), 0);
        if (how == COPY)
            assert_int_equal(tensor_writer_copy(w, i, f, e, &err), 0);
        else if (how == WHOLE)
            assert_int_equal(tensor_writer_put(w, i, data, &err), 0);
        for (size_t at = 0, n; how == PARTS && at < e->nbytes; at += n) {
            n = e->nbytes - at < 7 ? e->nbytes - at : 7;
            assert_int_equal(tensor_writer_put_part(w, i, at, n, data + at, &err), 0);
        }
        free(data);
        tensor_writer_flush(w);
    }
    assert_int_equal(tensor_writer_commit(w, &err), 0);
}

static void test_golden_write(void **state)
{
    (void)state;
    for (int g = 0; g < GOLDEN; g++)
        for (enum how how = WHOLE; how <= COPY; how++) {
            const char *path = scratch_path(folder, "out.safetensors");
            struct tensor_file *f;
            struct err err = {0};
            unsigned char *want, *got;
            size_t n, m;

            assert_int_equal(tensor_file_open(&f, golden_path(golden[g], ".safetensors"), &err), 0);
            rewrite(f, path, how);
            tensor_file_close(f);
            want = scratch_read(golden_path(golden[g], ".safetensors"), &n);
            got = scratch_read(path, &m);
            assert_int_equal(n, m);
            assert_memory_equal(want, got, n);
            assert_int_equal(scratch_count(folder), 1); /* no temporary file is left */
            remove(path);
            free(want);
            free(got);
        }
}

/* Writes a file with this header and `data` zero bytes after it, opens it, and expects a message with `part` in it. */
static void refuse(const char *header, size_t n, size_t data, const char *part)
{
    const char *path = scratch_path(folder, "bad.safetensors");
    unsigned char *file = calloc(8 + n + data, 1);
    struct tensor_file *f;
    struct err err = {0};

    for (int i = 0; i < 8; i++)
        file[i] = (unsigned char)(n >> (8 * i));
    memcpy(file + 8, header, n);
    scratch_write(path, file, 8 + n + data);
    free(file);
    if (!part) {
        assert_int_equal(tensor_file_open(&f, path, &err), 0);
        tensor_file_close(f);
        return;
    }
    assert_int_equal(tensor_file_open(&f, path, &err), -1);
    assert_null(f);
    if (!strstr(err.msg, part) || !strstr(err.msg, "bad.safetensors") || !strchr(err.msg, ';'))
        fail_msg("header %.200s: message '%s' lacks '%s'", header, err.msg, part);
}

#define T(dtype, shape, from, to) "{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" #from "," #to "]}"

static void test_broken_rules(void **state)
{
    static const struct {
        const char *header;
        size_t data;
        const char *part; /* of the message; NULL: the file is sound */
    } cases[] = {
        {"{}", 0, NULL},
        {"{}    ", 0, NULL},
        {"{\"a\":" T("F16", "[2]", 0, 4) "}", 4, NULL},
        {"{\"a\":" T("F16", "[]", 0, 2) "}", 2, NULL},
        {"{\"a\":" T("F16", "[2]", 4, 8) ",\"b\":" T("F16", "[2]", 0, 4) "}", 8, NULL},
        {"{\"a\":" T("F16", "[0]", 0, 0) "}", 0, NULL},
        {"{\"a\":" T("F16", "[1,1,1,1,1,1,1,1]", 0, 2) "}", 2, NULL},
        {"", 0, "does not begin with '{'"},
        {" {}", 0, "does not begin with '{'"},
        {"[]", 0, "does not begin with '{'"},
        {"{", 0, "byte 1 of its header"},
        {"{}x", 0, "of its header"},
        {"{\"a\":1}", 0, "does not describe it"},
        {"{\"a\":[]}", 0, "does not describe it"},
        {"{\"a\":{}}", 0, "no type"},
        {"{\"a\":{\"dtype\":3,\"shape\":[2],\"data_offsets\":[0,4]}}", 4, "no type"},
        {"{\"a\":{\"dtype\":\"F16\",\"data_offsets\":[0,4]}}", 4, "no shape"},
        {"{\"a\":{\"dtype\":\"F16\",\"shape\":2,\"data_offsets\":[0,4]}}", 4, "no shape"},
        {"{\"a\":{\"dtype\":\"F16\",\"shape\":[2]}}", 4, "where its data begins"},
        {"{\"a\":{\"dtype\":\"F16\",\"shape\":[2],\"data_offsets\":[0]}}", 4, "where its data begins"},
        {"{\"a\":{\"dtype\":\"F16\",\"shape\":[2],\"data_offsets\":[0,4,4]}}", 4, "where its data begins"},
        {"{\"a\":{\"dtype\":\"F16\",\"shape\":[2],\"data_offsets\":[0,4.0]}}", 4, "where its data begins"},
        {"{\"a\":{\"dtype\":\"F16\",\"shape\":[2],\"data_offsets\":{\"0\":0}}}", 4, "where its data begins"},
        {"{\"a\":" T("F99", "[2]", 0, 4) "}", 4, "has the type 'F99'"},
        {"{\"a\":" T("f16", "[2]", 0, 4) "}", 4, "has the type 'f16'"},
        {"{\"a\":" T("F16", "[-2]", 0, 4) "}", 4, "not a count"},
        {"{\"a\":" T("F16", "[2.0]", 0, 4) "}", 4, "not a count"},
        {"{\"a\":" T("F16", "[true]", 0, 2) "}", 2, "not a count"},
        {"{\"a\":" T("F16", "[\"2\"]", 0, 4) "}", 4, "not a count"},
        {"{\"a\":" T("F16", "[1,1,1,1,1,1,1,1,1]", 0, 2) "}", 2, "has 9 dimensions"},
        {"{\"a\":" T("F16", "[3]", 0, 4) "}", 4, "need 6 bytes, the header gives it 4"},
        {"{\"a\":" T("F16", "[2]", 0, 5) "}", 5, "need 4 bytes, the header gives it 5"},
        {"{\"a\":" T("F16", "[2]", 4, 0) "}", 4, "ends before it begins"},
        {"{\"a\":" T("F16", "[2]", -4, 0) "}", 4, "ends before it begins"},
        {"{\"a\":" T("F64", "[4294967296,4294967296]", 0, 0) "}", 0, "larger than any memory"},
        {"{\"a\":" T("F64", "[2305843009213693952]", 0, 0) "}", 0, "larger than any memory"},
        {"{\"a\":" T("U8", "[9223372036854775807]", 0, 9223372036854775807) "}", 0, "9223372036854775807 bytes are missing"},
        {"{\"a\":" T("U8", "[9223372036854775808]", 0, 9223372036854775808) "}", 0, "too big integer"},
        {"{\"a\":" T("F16", "[2]", 0, 4) ",\"b\":" T("F16", "[2]", 2, 6) "}", 6, "overlaps that of tensor 'a'"},
        {"{\"a\":" T("F16", "[2]", 0, 4) ",\"b\":" T("F16", "[2]", 0, 4) "}", 4, "overlaps that of tensor 'a'"},
        {"{\"a\":" T("F16", "[0]", 2, 2) ",\"b\":" T("F16", "[2]", 0, 4) "}", 4, "overlaps that of tensor 'b'"},
        {"{\"a\":" T("F16", "[2]", 0, 4) ",\"b\":" T("F16", "[2]", 6, 10) "}", 10, "2 bytes before its data"},
        {"{\"a\":" T("F16", "[2]", 2, 6) "}", 6, "2 bytes before its data"},
        {"{\"a\":" T("F16", "[2]", 0, 4) "}", 5, "1 bytes follow its last tensor"},
        {"{}", 3, "3 bytes follow its last tensor"},
        {"{\"a\":" T("F16", "[2]", 0, 4) "}", 1, "3 bytes are missing"},
        {"{\"a\":" T("F16", "[2]", 0, 4) ",\"a\":" T("F16", "[2]", 4, 8) "}", 8, "duplicate"},
        {"{\"a\":{\"dtype\":\"F16\",\"dtype\":\"F16\",\"shape\":[2],\"data_offsets\":[0,4]}}", 4, "duplicate"},
        {"{\"__metadata__\":{\"k\":\"1\",\"k\":\"2\"}}", 0, "duplicate"},
        {"{\"__metadata__\":{},\"__metadata__\":{}}", 0, "duplicate"},
        {"{\"__metadata__\":{\"k\":1}}", 0, "metadata of 'k' is not text"},
        {"{\"__metadata__\":\"k\"}", 0, "not a list of keys"},
        {"{\"a\\u0000b\":" T("F16", "[2]", 0, 4) "}", 4, "\\u0000"},
        {"{\"a\xff\":" T("F16", "[2]", 0, 4) "}", 4, "unable to decode byte 0xff"},
        {"{\"a\\ud800\":" T("F16", "[2]", 0, 4) "}", 4, "of its header"},
    };
    static char deep[100001];
    static const char nul[] = "{\"a\0b\":1}";

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        refuse(cases[i].header, strlen(cases[i].header), cases[i].data, cases[i].part);
    refuse(nul, sizeof nul - 1, 0, "of its header");
    memset(deep, '[', 100000);
    memcpy(deep, "{\"a\":", 5);
    refuse(deep, 100000, 0, "of its header");
    memset(deep, 'n', 50000);
    memcpy(deep, "{\"", 2);
    memcpy(deep + 50000, "\":1}", 5);
    refuse(deep, 50004, 0, "nnn': the header does not describe it"); /* the cause is not pushed out by the name */
}

static void refuse_bytes(const char *name, const char *bytes, size_t n, const char *part)
{
    const char *path = scratch_path(folder, name);
    struct tensor_file *f;
    struct err err = {0};

    scratch_write(path, bytes, n);
    assert_int_equal(tensor_file_open(&f, path, &err), -1);
    if (!strstr(err.msg, part) || !strstr(err.msg, name) || !strchr(err.msg, ';'))
        fail_msg("%s: message '%s' lacks '%s'", name, err.msg, part);
    remove(path);
}

static void test_not_safetensors(void **state)
{
    struct tensor_file *f;
    struct err err = {0};

    (void)state;
    refuse_bytes("a.safetensors", "\0\0\0\0\0\0\0\x80{}", 10, "9223372036854775808 bytes, at most 100000000");
    refuse_bytes("a.safetensors", "\0\0\0\0\0\0\0\x80", 8, "9223372036854775808 bytes, at most 100000000");
    refuse_bytes("a.safetensors", "\x01\xe1\xf5\x05\0\0\0\0{}", 10, "100000001 bytes, at most 100000000");
    refuse_bytes("a.safetensors", "\0\xe1\xf5\x05\0\0\0\0{}", 10, "99999998 bytes of its header are missing");
    refuse_bytes("a.safetensors", "abc", 3, "it has 3 bytes");
    refuse_bytes("a.safetensors", "", 0, "the file is empty");
    refuse_bytes("a.safetensors", "version https://git-lfs.github.com/spec/v1\n", 43, "git lfs pull");
    refuse_bytes("a.safetensors", "<!doctype HTML>", 15, "web page");
    refuse_bytes("a.safetensors", "\x89PNG\r\n\x1a\n", 8, "picture");
    refuse_bytes("a.ckpt", "abcdefghijkl", 12, "");
    refuse_bytes("a.txt", "abcdefghijkl", 12, "no format known here");
    assert_int_equal(tensor_file_open(&f, folder, &err), -1);
    assert_non_null(strstr(err.msg, "it is a folder"));
    assert_int_equal(tensor_file_open(&f, scratch_path(folder, "none"), &err), -1);
    assert_non_null(strstr(err.msg, "no such file"));
    assert_int_equal(tensor_file_open(&f, "/dev/null", &err), -1);
    assert_non_null(strstr(err.msg, "device or a pipe"));
    assert_int_equal(mkfifo(scratch_path(folder, "fifo"), 0600), 0);
    assert_int_equal(tensor_file_open(&f, scratch_path(folder, "fifo"), &err), -1);
    assert_non_null(strstr(err.msg, "device or a pipe"));
    remove(scratch_path(folder, "fifo"));
}

/* Every length that the file can be cut to is refused, and the message counts the missing bytes. */
static void test_truncated(void **state)
{
    unsigned char *whole;
    size_t n, header;

    (void)state;
    whole = scratch_read(golden_path("types", ".safetensors"), &n);
    header = whole[0] + 256u * whole[1];
    for (size_t cut = 0; cut < n; cut++) {
        const char *path = scratch_path(folder, "cut.safetensors");
        struct tensor_file *f;
        struct err err = {0};
        char part[64];

        scratch_write(path, whole, cut);
        assert_int_equal(tensor_file_open(&f, path, &err), -1);
        if (cut == 0)
            snprintf(part, sizeof part, "the file is empty");
        else if (cut < 8)
            snprintf(part, sizeof part, "it has %zu bytes", cut);
        else if (cut < 8 + header)
            snprintf(part, sizeof part, "%zu bytes of its header are missing", 8 + header - cut);
        else
            snprintf(part, sizeof part, "cut short: %zu bytes are missing", n - cut);
        if (!strstr(err.msg, part))
            fail_msg("cut to %zu: message '%s' lacks '%s'", cut, err.msg, part);
    }
    free(whole);
    remove(scratch_path(folder, "cut.safetensors"));
}

static int set_up(void **state)
{
    (void)state;
    folder = scratch_new();
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    scratch_remove(folder);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden_read),    cmocka_unit_test(test_golden_write),    cmocka_unit_test(test_broken_rules),
        cmocka_unit_test(test_not_safetensors), cmocka_unit_test(test_truncated),
    };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}
