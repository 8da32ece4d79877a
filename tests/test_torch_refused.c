/* torch's files that must be refused: archives and pickles made by hand, golden files cut and changed */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include <zlib.h>

#include "formats/tensor_file.h"
#include "tests/lib/scratch.h"

static const char *folder;

/* ---- Archives made by hand */

struct maker {
    unsigned char *data;
    size_t n;
    unsigned char rows[4096];
    size_t n_rows, count;
};

static void put(struct maker *m, const void *data, size_t n)
{
    m->data = realloc(m->data, m->n + n + 1);
    assert_non_null(m->data);
    memcpy(m->data + m->n, data, n);
    m->n += n;
}

static void le(unsigned char *p, uint64_t v, size_t n)
{
    for (size_t i = 0; i < n; i++)
        p[i] = (unsigned char)(v >> (8 * i));
}

/* Adds an entry of n stored (or packed: method 8) bytes that claims to be of `size`. */
static void add(struct maker *m, const char *name, const void *data, size_t n, unsigned method, uint64_t size)
{
    unsigned char local[30] = "PK\3\4", row[46] = "PK\1\2";
    size_t n_name = strlen(name);

    le(local + 8, method, 2);
    le(local + 26, n_name, 2);
    le(row + 10, method, 2);
    le(row + 16, crc32_z(0, data, n), 4);
    le(row + 20, n, 4);
    le(row + 24, size, 4);
    le(row + 28, n_name, 2);
    le(row + 42, m->n, 4);
    put(m, local, 30);
    put(m, name, n_name);
    put(m, data, n);
    memcpy(m->rows + m->n_rows, row, 46);
    memcpy(m->rows + m->n_rows + 46, name, n_name);
    m->n_rows += 46 + n_name;
    m->count++;
}

static void end(struct maker *m)
{
    unsigned char tail[22] = "PK\5\6";

    le(tail + 8, m->count, 2);
    le(tail + 10, m->count, 2);
    le(tail + 12, m->n_rows, 4);
    le(tail + 16, m->n, 4);
    put(m, m->rows, m->n_rows);
    put(m, tail, 22);
}

/* Writes m and opens it: it must be refused with these words (NULL: accepted). Frees m. */
static void expect(struct maker *m, const char *words)
{
    const char *path = scratch_path(folder, "made.ckpt");
    struct tensor_file *f = NULL;
    struct err err = {0};
    int status;

    scratch_write(path, m->data, m->n);
    status = tensor_file_open(&f, path, &err);
    if (words && status == 0)
        fail_msg("accepted, expected: %s", words);
    if (words && !strstr(err.msg, words))
        fail_msg("expected '%s' in: %s", words, err.msg);
    if (words && (!strstr(err.msg, "made.ckpt") || !strstr(err.msg, "; ")))
        fail_msg("names no file or no next step: %s", err.msg);
    if (!words && status != 0)
        fail_msg("%s", err.msg);
    tensor_file_close(f);
    free(m->data);
    *m = (struct maker){0};
}

/* {'w': tensor} with these words of pickle for class, elements, offset, size and stride */
static size_t tensor_pickle(char *p, const char *class, const char *numel, const char *offset, const char *size,
                            const char *stride)
{
    return (size_t)sprintf(
        p,
        "\x80\x02}X%c%c%c%cwctorch._utils\n_rebuild_tensor_v2\n((X%c%c%c%cstoragec%s\nX%c%c%c%c0X%c%c%c%ccpu%stQ"
        "%s%s%s\x89"
        "ccollections\nOrderedDict\n)RtRs.",
        1, 0, 0, 0, 7, 0, 0, 0, class, 1, 0, 0, 0, 3, 0, 0, 0, numel, offset, size, stride);
}

static void expect_tensor(const char *class, const char *numel, const char *offset, const char *size, const char *stride,
                          const char *words)
{
    static const unsigned char storage[16];
    struct maker m = {0};
    char p[512];
    size_t n = tensor_pickle(p, class, numel, offset, size, stride);

    add(&m, "a/data.pkl", p, n, 0, n);
    add(&m, "a/data/0", storage, 16, 0, 16);
    end(&m);
    expect(&m, words);
}

/* 4 floats in the storage */
static void test_views_refused(void **state)
{
    const char *f = "torch\nFloatStorage";

    (void)state;
    expect_tensor(f, "I4\n", "I0\n", "(I2\nI2\nt", "(I2\nI1\nt", NULL);
    expect_tensor(f, "I4\n", "I2\n", "(I2\nt", "(I1\nt", NULL);
    expect_tensor(f, "I4\n", "I4\n", "(I0\nt", "(I1\nt", NULL);
    expect_tensor(f, "I4\n", "I3\n", "(I2\nt", "(I1\nt", "tensor 'w': it reaches beyond its storage");
    expect_tensor(f, "I4\n", "I0\n", "(I5\nt", "(I1\nt", "tensor 'w': it reaches beyond its storage");
    expect_tensor(f, "I4\n", "I0\n", "(I2\nI2\nt", "(I3\nI1\nt", "tensor 'w': it reaches beyond its storage");
    expect_tensor(f, "I4\n", "I-1\n", "(I2\nt", "(I1\nt", "tensor 'w': its size, stride or offset is impossible");
    expect_tensor(f, "I4\n", "I3\n", "(I2\nt", "(I-1\nt", "tensor 'w': its size, stride or offset is impossible");
    expect_tensor(f, "I4\n", "I0\n", "(I-2\nt", "(I1\nt", "tensor 'w': its size, stride or offset is impossible");
    expect_tensor(f, "I4\n", "I0\n", "(I2\nt", "(I1\nI1\nt", "tensor 'w': its size, stride or offset is impossible");
    expect_tensor(f, "I4\n", "I0\n", "(I1\nI1\nI1\nI1\nI1\nI1\nI1\nI1\nI1\nt", "(I1\nI1\nI1\nI1\nI1\nI1\nI1\nI1\nI1\nt",
                  "impossible");
    expect_tensor(f, "I4\n", "I0\n", "(I9223372036854775807\nI4\nt", "(I0\nI0\nt", "larger than any memory");
    expect_tensor(f, "I4\n", "I0\n", "(I2\nI2\nt", "(I9223372036854775807\nI1\nt", "reaches beyond its storage");
    expect_tensor(f, "I4\n", "I9223372036854775807\n", "(I1\nt", "(I1\nt", "reaches beyond its storage");
    expect_tensor(f, "I4\n", "I0\n", "(I1000000\nI1000\nt", "(I0\nI0\nt", "strides of 0 make it larger than the whole file");
    expect_tensor(f, "I5\n", "I0\n", "(I2\nt", "(I1\nt", "its storage has 16 of the 20 bytes");
    expect_tensor(f, "I9223372036854775807\n", "I0\n", "(I2\nt", "(I1\nt", "its storage is not described");
    expect_tensor(f, "I-4\n", "I0\n", "(I2\nt", "(I1\nt", "its storage is not described");
    expect_tensor("torch\nQInt8Storage", "I4\n", "I0\n", "(I2\nt", "(I1\nt",
                  "tensor 'w': its elements are of a type that is not known");
    expect_tensor("torch\nWeirdStorage", "I4\n", "I0\n", "(I2\nt", "(I1\nt", "its storage is not described");
    expect_tensor("os\nsystem", "I4\n", "I0\n", "(I2\nt", "(I1\nt", "its storage is not described");
}

/* An archive whose data.pkl is head, `op` many times, and tail */
static void expect_pickle(const char *head, const char *op, size_t times, const char *tail, const char *words)
{
    size_t n = strlen(head) + strlen(op) * times + strlen(tail);
    char *pickle = malloc(n + 1), *p = stpcpy(pickle, head);
    struct maker m = {0};

    for (size_t i = 0; i < times; i++)
        p = stpcpy(p, op);
    stpcpy(p, tail);
    add(&m, "data.pkl", pickle, n, 0, n);
    add(&m, "data/0", "0123456789abcdef", 16, 0, 16);
    end(&m);
    expect(&m, words);
    free(pickle);
}

/* State dicts that no model has: names, nesting, and parts that hold themselves */
static void test_states_refused(void **state)
{
#define TENSOR "ctorch._utils\n_rebuild_tensor_v2\n((Vstorage\nctorch\nFloatStorage\nV0\nVcpu\nI4\ntQI0\n(I4\nt(I1\nt\x89)tR"
    (void)state;
    expect_pickle("}Vw\n" TENSOR "s.", "", 0, "", NULL);
    expect_pickle("]", TENSOR "a", 1, ".", NULL);
    expect_pickle("}Vw\n" TENSOR "sVw\n" TENSOR "s.", "", 0, "", "two tensors have the name 'w'");
    expect_pickle("}V\n" TENSOR "s.", "", 0, "", "a tensor without a name");
    expect_pickle("}V", "x", 1000, "\n" TENSOR "s.", NULL);
    expect_pickle("}V", "x", 1001, "\n" TENSOR "s.", "too long");
    expect_pickle("}Vw\n" TENSOR "sV", "x", 5000,
                  "\n]K\x01"
                  "as.",
                  NULL); /* a long name above no tensor */
    expect_pickle("}Vw\n" TENSOR "sV\n}s.", "", 0, "", NULL);
    expect_pickle(TENSOR, "\x85", 60, ".", NULL);
    expect_pickle(TENSOR, "\x85", 100, ".", "deeper than 64 levels");
    expect_pickle("]q\x01",
                  "h\x01"
                  "a",
                  1, TENSOR "a.", "deeper than 64 levels"); /* a list in itself */
    expect_pickle("]q\x01",
                  "h\x01"
                  "a",
                  3, TENSOR "a.", "deeper than 64 levels");
    /* lists of two times the list before: 2^30 paths to a tensor, or to nothing */
    expect_pickle("]" TENSOR "a",
                  "q\x01"
                  "0](h\x01h\x01"
                  "e",
                  30, ".", "repeated too often");
    expect_pickle("]",
                  "q\x01"
                  "0](h\x01h\x01"
                  "e",
                  30, ".", "repeated too often");
    expect_pickle("}Voptimizer\n](" TENSOR TENSOR "esVw\n" TENSOR "s.", "", 0, "", NULL);
    expect_pickle("}Voptimizer\n](" TENSOR TENSOR "es.", "", 0, "", "holds no tensors");
#undef TENSOR
}

/* One archive with a harmless pickle, changed at one place */
static struct maker archive(const char *pickle, size_t n)
{
    struct maker m = {0};

    add(&m, "a/data.pkl", pickle, n, 0, n);
    add(&m, "a/data/0", "0123456789abcdef", 16, 0, 16);
    return m;
}

static void test_archives_refused(void **state)
{
    static const char evil[] = "cos\nsystem\nX\x04\0\0\0true\x85R.";
    char p[512];
    size_t n = tensor_pickle(p, "torch\nFloatStorage", "I4\n", "I0\n", "(I4\nt", "(I1\nt");
    struct maker m = archive(p, n);

    (void)state;
    end(&m);
    expect(&m, NULL);
    m = archive(evil, sizeof evil - 1);
    end(&m);
    expect(&m, "pickle wants to call 'os.system'; this is not a plain checkpoint and nothing of it was executed");
    m = archive(p, n);
    add(&m, "a/data/0", "x", 1, 0, 1);
    end(&m);
    expect(&m, "'a/data/0' is there twice");
    m = archive(p, n);
    add(&m, "b/data.pkl", p, n, 0, n);
    end(&m);
    expect(&m, "several data.pkl");
    m = archive(p, n);
    add(&m, "a/constants.pkl", p, n, 0, n);
    end(&m);
    expect(&m, "TorchScript program");
    m = archive(p, n);
    add(&m, "a/byteorder", "middle", 6, 0, 6);
    end(&m);
    expect(&m, "neither 'little' nor 'big'");
    m = archive(p, n);
    add(&m, "a/x\ny", "", 0, 0, 0);
    end(&m);
    expect(&m, "control characters");
    add(&m, "a/notes.txt", p, n, 0, n);
    end(&m);
    expect(&m, "there is no data.pkl");
    add(&m, "a/data.pkl", p, n, 0, n);
    end(&m);
    expect(&m, "tensor 'w': its storage '0' is not in the archive");
    add(&m, "data.pkl", "N.", 2, 0, 2);
    end(&m);
    expect(&m, "holds no tensors");
    add(&m, "a/data.pkl", p, n - 1, 0, n - 1);
    end(&m);
    expect(&m, "ends in its middle");
}

static void test_directories_refused(void **state)
{
    static const unsigned char packed[] = {0x63, 0x60, 0x60, 0x60, 0x00, 0x00}; /* deflate of four zero bytes */
    char p[512];
    size_t n = tensor_pickle(p, "torch\nFloatStorage", "I4\n", "I0\n", "(I4\nt", "(I1\nt");
    struct maker m;

    (void)state;
    m = archive(p, n);
    m.rows[8] = 1;
    end(&m);
    expect(&m, "encrypted");
    m = archive(p, n);
    le(m.rows + 10, 12, 2);
    end(&m);
    expect(&m, "packed with method 12");
    m = archive(p, n);
    le(m.rows + 16, 1, 4);
    end(&m);
    expect(&m, "does not match its checksum");
    m = archive(p, n);
    le(m.rows + 20, 1 << 20, 4);
    le(m.rows + 24, 1 << 20, 4);
    end(&m);
    expect(&m, "ends past the end of the archive");
    m = archive(p, n);
    le(m.rows + 20, n + 20, 4);
    le(m.rows + 24, n + 20, 4);
    end(&m);
    expect(&m, "shares bytes with another");
    m = archive(p, n);
    m.data[30] = 'b';
    end(&m);
    expect(&m, "differs from its row");
    m = archive(p, n);
    le(m.rows + 42, 1 << 30, 4);
    end(&m);
    expect(&m, "outside of the archive");
    add(&m, "a/data.pkl", packed, sizeof packed, 8, 1 << 30);
    end(&m);
    expect(&m, "impossible size"); /* a bomb */
    add(&m, "a/data.pkl", packed, sizeof packed, 8, 6000);
    end(&m);
    expect(&m, "cannot be inflated");
    add(&m, "a/data.pkl", packed, sizeof packed, 8, 3);
    end(&m);
    expect(&m, "cannot be inflated");
    add(&m, "a/data.pkl", packed, sizeof packed, 8, 4);
    end(&m);
    expect(&m, "does not match its checksum");
    m = archive(p, n);
    end(&m);
    le(m.data + m.n - 6, m.n, 4);
    expect(&m, "outside of the file");
    m = archive(p, n);
    end(&m);
    le(m.data + m.n - 12, 3, 2);
    expect(&m, "spans several disks");
    m = archive(p, n);
    end(&m);
    put(&m, "x", 1);
    expect(&m, "cut short");
}

/* Opens data [n] as a file in memory: thousands of files on a disk take too long. *path gets its name. */
static int open_bytes(struct tensor_file **f, const char **path, const void *data, size_t n, struct err *err)
{
    static int fd = -1;
    static char name[64];

    if (fd < 0) {
        fd = memfd_create("test", 0);
        snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    }
    assert_true(fd >= 0 && ftruncate(fd, 0) == 0 && pwrite(fd, data, n, 0) == (ssize_t)n);
    *path = name;
    return tensor_file_open(f, name, err);
}

/* Golden files of both kinds, cut at every byte: an error that names the file and a next step. */
static void test_truncated(void **state)
{
    static const char *const files[] = {"golden/torch/bare.pt", "golden/torch/deflated.ckpt", "golden/torch/legacy_views.bin",
                                        "golden/torch/legacy_lightning.ckpt"};
    const char *path;

    (void)state;
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        size_t n;
        unsigned char *data = scratch_read(files[i], &n);

        for (size_t cut = 0; cut < n; cut++) {
            struct tensor_file *f = NULL;
            struct err err = {0};

            assert_int_equal(open_bytes(&f, &path, data, cut, &err), -1);
            if (!strstr(err.msg, path) || !strstr(err.msg, "; "))
                fail_msg("cut at %zu: %s", cut, err.msg);
            tensor_file_close(f);
        }
        free(data);
    }
}

/* Every byte of small files changed: whatever opens can also be read. */
static void test_flipped(void **state)
{
    static const char *const files[] = {"golden/torch/bare.pt", "golden/torch/deflated.ckpt", "golden/torch/legacy_views.bin"};
    const char *path;

    (void)state;
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        size_t n;
        unsigned char *data = scratch_read(files[i], &n);

        for (size_t at = 0; at < n; at++) {
            struct tensor_file *f = NULL;
            struct err err = {0};
            int status;

            data[at] ^= (unsigned char)(1 + at % 255);
            status = open_bytes(&f, &path, data, n, &err);
            data[at] ^= (unsigned char)(1 + at % 255);
            if (status != 0) {
                assert_int_equal(err.kind, ERR_FAILED);
                continue;
            }
            for (size_t k = 0; k < f->count; k++) {
                void *dst = malloc(f->entries[k].nbytes + 1);

                (void)tensor_file_read(f, &f->entries[k], dst, &err); /* a checksum may be wrong */
                free(dst);
            }
            tensor_file_close(f);
        }
        free(data);
    }
}

static void expect_file(const char *name, const void *data, size_t n, const char *words)
{
    const char *path = scratch_path(folder, name);
    struct tensor_file *f = NULL;
    struct err err = {0};

    scratch_write(path, data, n);
    assert_int_equal(tensor_file_open(&f, path, &err), -1);
    if (!strstr(err.msg, words) || !strstr(err.msg, name))
        fail_msg("expected '%s' in: %s", words, err.msg);
}

static void test_legacy_refused(void **state)
{
    static const char plain[] = "\x80\x04}.", evil[] = "\x80\x02"
                                                       "cos\nsystem\nX\x04\0\0\0true\x85R.";
    static const char magic[] = "\x80\x02\x8a\x0al\xfc\x9c"
                                "F\xf9 j\xa8P\x19.";
    char tar[600] = "storages", data[512];
    size_t n = sizeof magic - 1;
    struct err err = {0};
    struct tensor_file *f;

    (void)state;
    expect_file("plain.pkl", plain, sizeof plain - 1, "not one that torch.save() wrote");
    expect_file("evil.pt", evil, sizeof evil - 1, "call 'os.system'");
    expect_file("words.ckpt", "these are some words\n", 21, "neither a zip archive nor a pickle of torch");
    expect_file("old.tar", tar, sizeof tar, "tar archive of torch before 0.2");
    memcpy(data, magic, n);
    memcpy(data + n, "\x80\x02M\xea\x03.", 6);
    expect_file("version.pt", data, n + 6, "unknown version");
    memcpy(data + n, "\x80\x02M\xe9\x03.}.", 8);
    memcpy(data + n + 8, evil, sizeof evil - 1);
    expect_file("legacy_evil.pt", data, n + 8 + sizeof evil - 1, "call 'os.system'");
    assert_int_equal(tensor_file_open(&f, "golden/torch/complex.pt", &err), -1);
    assert_non_null(strstr(err.msg, "tensor 'z': its elements are of a type that is not known here"));
}

/* A legacy file of one tensor 'w' of 4 floats, with `padding` bytes of text in its pickle, a list of keys, and the storage's
 * element count and data */
static struct maker legacy(size_t padding, const char *keys, size_t n_keys, uint64_t numel, size_t n_data)
{
    static const char front[] = "\x80\x02\x8a\x0al\xfc\x9c"
                                "F\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.}.";
    static const float data[4] = {1, 2, 3, 4};
    unsigned char head[7] = "\x80\x02X", count[8];
    char pickle[512], *text = calloc(padding + 1, 1);
    size_t n = tensor_pickle(pickle, "torch\nFloatStorage", "I4\n", "I0\n", "(I4\nt", "(I1\nt");
    struct maker m = {0};

    assert_non_null(text);
    le(head + 3, padding, 4);
    le(count, numel, 8);
    put(&m, front, sizeof front - 1);
    put(&m, head, 7);
    put(&m, text, padding);
    put(&m, "0", 1); /* POP */
    put(&m, pickle + 2, n - 2);
    put(&m, keys, n_keys);
    put(&m, count, 8);
    put(&m, data, n_data);
    free(text);
    return m;
}

static void test_legacy_by_hand(void **state)
{
    static const char one[] = "]X\x01\0\0\0"
                              "0a.",
                      other[] = "]X\x01\0\0\0"
                                "1a.",
                      none[] = "].", number[] = "K\x01.";
    static const char twice[] = "](X\x01\0\0\0"
                                "0X\x01\0\0\0"
                                "0e.";
    static const size_t paddings[] = {0, 1000, (1 << 20) - 100, 1 << 20, 9 << 20}; /* around the window and its growth */
    struct maker m;

    (void)state;
    for (size_t i = 0; i < sizeof paddings / sizeof paddings[0]; i++) {
        m = legacy(paddings[i], one, sizeof one - 1, 4, 16);
        expect(&m, NULL);
    }
    m = legacy(70 << 20, one, sizeof one - 1, 4, 16);
    expect(&m, "ends in its middle"); /* past PICKLE_MAX_BYTES */
    m = legacy(0, one, sizeof one - 1, 5, 16);
    expect(&m, "another size than the pickle says");
    m = legacy(0, one, sizeof one - 1, 4, 12);
    expect(&m, "storage 1 of 1 ends past the end of the file, 4 bytes are missing");
    m = legacy(0, other, sizeof other - 1, 4, 16);
    expect(&m, "names one that is not there");
    m = legacy(0, twice, sizeof twice - 1, 4, 16);
    expect(&m, "names one that is not there, or is there twice");
    m = legacy(0, none, sizeof none - 1, 4, 16);
    expect(&m, "tensor 'w': its storage '0' is not in the file");
    m = legacy(0, number, sizeof number - 1, 4, 16);
    expect(&m, "is no list");
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
        cmocka_unit_test(test_views_refused),    cmocka_unit_test(test_states_refused),
        cmocka_unit_test(test_archives_refused), cmocka_unit_test(test_directories_refused),
        cmocka_unit_test(test_truncated),        cmocka_unit_test(test_flipped),
        cmocka_unit_test(test_legacy_refused),   cmocka_unit_test(test_legacy_by_hand),
    };

    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
