/* torch's files: against what torch itself wrote (test_torch_refused.c: what must be refused) */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "formats/tensor_writer.h"
#include "formats/torch_state.h"
#include "ref/base/thread.h"
#include "tests/lib/scratch.h"

static const char *folder;

static struct tensor_file *open_golden(const char *name, const char *suffix)
{
    struct err err = {0};
    struct tensor_file *f;
    char path[256];

    snprintf(path, sizeof path, "golden/torch/%.*s%s", (int)strcspn(name, "."), name, suffix ? suffix : strchr(name, '.'));
    if (tensor_file_open(&f, path, &err) != 0)
        fail_msg("%s", err.msg);
    return f;
}

/* Entry e of f has type, shape and bytes of the oracle's, read whole and in parts of 7 bytes. */
static void same_tensor(const struct tensor_file *f, const struct tensor_entry *e, const struct tensor_file *oracle,
                        const struct tensor_entry *want)
{
    unsigned char *a = malloc(e->nbytes + 1), *b = malloc(e->nbytes + 1), *c = malloc(e->nbytes + 1);
    struct err err = {0};

    assert_non_null(want);
    assert_int_equal(e->dtype, want->dtype);
    assert_true(shape_equal(&e->shape, &want->shape));
    assert_int_equal(e->nbytes, want->nbytes);
    assert_int_equal(tensor_file_read(oracle, want, b, &err), 0);
    if (tensor_file_read(f, e, a, &err) != 0)
        fail_msg("%s", err.msg);
    assert_memory_equal(a, b, e->nbytes);
    for (size_t at = 0, n; at < e->nbytes; at += n) {
        n = e->nbytes - at < 7 ? e->nbytes - at : 7;
        if (tensor_file_read_part(f, e, at, n, c + at, &err) != 0)
            fail_msg("%s", err.msg);
    }
    assert_memory_equal(c, b, e->nbytes);
    free(a);
    free(b);
    free(c);
}

static void test_golden(void **state)
{
    static const char *const files[] = {
        "types.pt",         "legacy_types.pt", "protocol3.pt",   "protocol4.pt",          "protocol5.pt", "views.pt",
        "legacy_views.bin", "list.pt",         "lightning.ckpt", "legacy_lightning.ckpt", "nested.pt",    "wrapped.pth",
        "bare.pt",          "no_crc.pt",       "big_endian.pt",  "deflated.ckpt",         "prefixed.ckpt"};

    (void)state;
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        struct tensor_file *f = open_golden(files[i], NULL), *oracle = open_golden(files[i], ".safetensors");

        assert_string_equal(f->format->name, strncmp(files[i], "legacy", 6) == 0 ? "torch legacy" : "torch zip");
        if (f->count != oracle->count)
            fail_msg("%s: %zu tensors, expected %zu", files[i], f->count, oracle->count);
        for (size_t k = 0; k < f->count; k++) {
            same_tensor(f, &f->entries[k], oracle, tensor_file_find(oracle, f->entries[k].name));
            if (k > 0 && f->entries[k].plain && f->entries[k - 1].plain)
                assert_true(f->entries[k].offset >= f->entries[k - 1].offset);
        }
        tensor_file_close(f);
        tensor_file_close(oracle);
    }
}

static void test_plain(void **state)
{
    static const struct {
        const char *file, *name;
        bool plain;
    } cases[] = {
        {"views.pt", "whole", true},         {"views.pt", "rows", true},
        {"views.pt", "one", true},           {"views.pt", "ones", true},
        {"views.pt", "none", true},          {"views.pt", "columns", false},
        {"views.pt", "transposed", false},   {"views.pt", "expanded", false},
        {"legacy_views.bin", "rows", true},  {"legacy_views.bin", "permuted", false},
        {"deflated.ckpt", "whole", false},   {"big_endian.pt", "float32", false},
        {"big_endian.pt", "uint8", true},    {"big_endian.pt", "bool", true},
        {"prefixed.ckpt", "0.weight", true},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct tensor_file *f = open_golden(cases[i].file, NULL);
        const struct tensor_entry *e = tensor_file_find(f, cases[i].name);

        assert_non_null(e);
        if (e->plain != cases[i].plain)
            fail_msg("%s: %s: plain is %d", cases[i].file, cases[i].name, e->plain);
        tensor_file_close(f);
    }
}

static void test_metadata(void **state)
{
    struct tensor_file *f = open_golden("lightning.ckpt", NULL);

    (void)state;
    assert_string_equal(tensor_file_metadata(f, TORCH_META_ROOT), "state_dict");
    assert_string_equal(tensor_file_metadata(f, TORCH_META_EPOCH), "7");
    assert_string_equal(tensor_file_metadata(f, TORCH_META_STEP), "470000");
    tensor_file_close(f);
    f = open_golden("types.pt", NULL);
    assert_null(tensor_file_metadata(f, TORCH_META_ROOT));
    assert_int_equal(f->metadata_count, 0);
    tensor_file_close(f);
}

/* ---- The writer, against torch's pickles */

/* Writes all of a golden safetensors file to path; the tensors from the last to the first, in parts. */
static void write_like(const struct tensor_file *from, const char *path, const struct metadata_item *metadata, size_t n)
{
    struct tensor_spec *specs = calloc(from->count, sizeof *specs);
    struct tensor_writer *w;
    struct err err = {0};

    for (size_t i = 0; i < from->count; i++)
        specs[i] = (struct tensor_spec){from->entries[i].name, from->entries[i].dtype, from->entries[i].shape};
    if (tensor_writer_open(&w, path, NULL, specs, from->count, metadata, n, &err) != 0)
        fail_msg("%s", err.msg);
    for (size_t i = from->count; i-- > 0;)
        if (tensor_writer_copy(w, i, from, &from->entries[i], &err) != 0)
            fail_msg("%s", err.msg);
    if (tensor_writer_commit(w, &err) != 0)
        fail_msg("%s", err.msg);
    free(specs);
}

static void check_written(const char *source, const struct metadata_item *metadata, size_t n, const char *pickle)
{
    struct tensor_file *oracle = open_golden(source, ".safetensors"), *f;
    const char *path = scratch_path(folder, "out.ckpt"), *again = scratch_path(folder, "again.ckpt");
    struct err err = {0};
    unsigned char *got, *want, *second;
    char golden[128];
    size_t n_got, n_want, n_second;

    write_like(oracle, path, metadata, n);
    write_like(oracle, again, metadata, n);
    got = scratch_read(path, &n_got);
    second = scratch_read(again, &n_second);
    assert_int_equal(n_got, n_second);
    assert_memory_equal(got, second, n_got);
    snprintf(golden, sizeof golden, "golden/torch/%s", pickle);
    want = scratch_read(golden, &n_want);
    assert_true(n_got > 64 + n_want);
    assert_memory_equal(got + 64, want, n_want); /* data.pkl is the first entry; its data begins at 64 */
    if (tensor_file_open(&f, path, &err) != 0)
        fail_msg("%s", err.msg);
    assert_int_equal(f->count, oracle->count);
    for (size_t i = 0; i < f->count; i++) {
        assert_true(f->entries[i].plain);
        assert_int_equal(f->entries[i].offset % 64, 0);
        assert_string_equal(f->entries[i].name, oracle->entries[i].name);
        same_tensor(f, &f->entries[i], oracle, &oracle->entries[i]);
    }
    tensor_file_close(f);
    tensor_file_close(oracle);
    free(got);
    free(want);
    free(second);
}

static void test_writer(void **state)
{
    static const struct metadata_item root[] = {
        {"ss_unused", "x"}, {TORCH_META_STEP, "470000"}, {TORCH_META_ROOT, "state_dict"}, {TORCH_META_EPOCH, "3"}};
    static const struct metadata_item model[] = {{TORCH_META_ROOT, "model"}};

    (void)state;
    check_written("writer", NULL, 0, "writer_flat.pkl");
    check_written("writer", root, 4, "writer_root.pkl");
    check_written("writer_one", NULL, 0, "writer_one.pkl");
    check_written("writer_one", model, 1, "writer_root_one.pkl");
}

/* ---- Reading from many threads, and archives over 4 GiB */

static int read_some(void *ctx, size_t index, struct err *err)
{
    const struct tensor_file *f = ctx;
    const struct tensor_entry *e = &f->entries[index % f->count];
    unsigned char whole[512], part[512];
    size_t first = index % (e->nbytes + 1);

    if (tensor_file_read(f, e, whole, err) != 0 || tensor_file_read_part(f, e, first, e->nbytes - first, part, err) != 0)
        return -1;
    return memcmp(whole + first, part, e->nbytes - first) == 0 ? 0 : err_set(err, "tensor '%s' differs", e->name);
}

static void test_threads(void **state)
{
    struct tensor_file *f = open_golden("deflated.ckpt", NULL);
    struct err err = {0};

    (void)state;
    thread_init(4);
    if (thread_for(500, read_some, f, &err) != 0)
        fail_msg("%s", err.msg);
    tensor_file_close(f);
}

static int no_fallocate(int fd, int mode, off_t at, off_t n)
{
    (void)fd, (void)mode, (void)at, (void)n;
    errno = EOPNOTSUPP;
    return -1;
}

/* A tensor of 4.5 GB and one after it: every zip64 field is in use. The file has a hole in place of the first. */
static void test_zip64(void **state)
{
    static const float small[3] = {1, 2, 3};
    const struct tensor_spec specs[] = {{"before", DT_F32, shape_of(1, 3)},
                                        {"large", DT_U8, {.ndim = 2, .dim = {4500000, 1000}}},
                                        {"after", DT_F32, shape_of(1, 3)}};
    const char *path = scratch_path(folder, "large.ckpt");
    struct output_sys saved = output_sys;
    struct tensor_writer *w;
    struct tensor_file *f;
    struct err err = {0};
    float got[3] = {0};

    (void)state;
    output_sys.fallocate = no_fallocate;
    if (tensor_writer_open(&w, path, NULL, specs, 3, NULL, 0, &err) != 0)
        fail_msg("%s", err.msg);
    output_sys = saved;
    assert_int_equal(tensor_writer_put(w, 2, small, &err), 0);
    assert_int_equal(tensor_writer_put(w, 0, small, &err), 0);
    w->slot[1].written = w->slot[1].nbytes;
    if (tensor_writer_commit(w, &err) != 0 || tensor_file_open(&f, path, &err) != 0)
        fail_msg("%s", err.msg);
    assert_int_equal(f->count, 3);
    assert_int_equal(f->entries[1].nbytes, 4500000000);
    assert_true(f->entries[2].plain && f->entries[2].offset > 4500000000);
    assert_int_equal(tensor_file_read(f, &f->entries[2], got, &err), 0);
    assert_memory_equal(got, small, sizeof got);
    tensor_file_close(f);
    if (getenv("KEEP_ZIP64")) /* for a look at it with another reader: KEEP_ZIP64=PATH */
        assert_int_equal(rename(path, getenv("KEEP_ZIP64")), 0);
    else
        assert_int_equal(remove(path), 0);
}

static int make_folder(void **state)
{
    (void)state;
    folder = scratch_new();
    return 0;
}

static int remove_folder(void **state)
{
    (void)state;
    scratch_remove(folder);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden),
        cmocka_unit_test(test_plain),
        cmocka_unit_test(test_metadata),
        cmocka_unit_test(test_writer),
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_zip64),
    };

    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
