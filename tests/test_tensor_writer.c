/* formats/tensor_writer.c: threads, misuse, an output that is its input, a source cut short */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>

#include "formats/tensor_writer.h"
#include "ref/base/thread.h"
#include "tests/lib/scratch.h"

static const char *folder;

static void expect_error(const struct err *err, const char *part)
{
    if (err->kind != ERR_FAILED || !strstr(err->msg, part))
        fail_msg("message '%s' lacks '%s'", err->msg, part);
}

struct many {
    struct tensor_writer *w;
    size_t n;
};

static size_t many_size(size_t i)
{
    return i * 37 % 5000;
}

static int put_one(void *ctx, size_t k, struct err *err)
{
    const struct many *m = ctx;
    size_t i = tensor_writer_order(m->w, k), n = many_size(i);
    unsigned char data[5000];
    int status;

    memset(data, (int)(i & 0xff), n);
    status = tensor_writer_put_part(m->w, i, 0, n / 2, data, err);
    return status != 0 ? status : tensor_writer_put_part(m->w, i, n / 2, n - n / 2, data, err);
}

static void test_threads(void **state)
{
    enum { N = 500 };
    static char name[N][16];
    static struct tensor_spec specs[N];
    const char *path = scratch_path(folder, "many.safetensors");
    unsigned char *first = NULL, *again;
    size_t size = 0, n;

    (void)state;
    for (size_t i = 0; i < N; i++) {
        snprintf(name[i], sizeof name[i], "t%zu", i * 7919 % N);
        specs[i] = (struct tensor_spec){name[i], i % 2 ? DT_U8 : DT_I8, shape_of(1, (int)many_size(i))};
    }
    for (int threads = 1; threads <= 4; threads++) {
        struct many m = {.n = N};
        struct err err = {0};
        struct tensor_file *f;

        thread_init(threads);
        assert_int_equal(tensor_writer_open(&m.w, path, NULL, specs, N, NULL, 0, &err), 0);
        assert_int_equal(thread_for(N, put_one, &m, &err), 0);
        assert_int_equal(tensor_writer_commit(m.w, &err), 0);
        assert_int_equal(tensor_file_open(&f, path, &err), 0);
        assert_int_equal(f->count, N);
        for (size_t i = 0; i < N; i++) {
            const struct tensor_entry *e = tensor_file_find(f, name[i]);
            unsigned char data[5000];

            assert_non_null(e);
            assert_int_equal(e->nbytes, many_size(i));
            assert_int_equal(tensor_file_read(f, e, data, &err), 0);
            for (size_t j = 0; j < e->nbytes; j++)
                assert_int_equal(data[j], i & 0xff);
        }
        tensor_file_close(f);
        if (!first)
            first = scratch_read(path, &size);
        again = scratch_read(path, &n);
        assert_int_equal(n, size);
        assert_memory_equal(again, first, size);
        free(again);
    }
    free(first);
    thread_init(0);
}

static void test_writer_refuses(void **state)
{
    struct tensor_spec twice[2] = {{"a", DT_F32, shape_of(1, 1)}, {"a", DT_F16, shape_of(1, 1)}},
                       reserved = {"__metadata__", DT_F32, shape_of(1, 1)}, latin1 = {"\xe9", DT_F32, shape_of(1, 1)},
                       one = {"a", DT_F32, shape_of(1, 2)}, huge = {"a", DT_F32, {2, {SIZE_MAX, 2}}};
    struct metadata_item items[2] = {{"k", "1"}, {"k", "2"}}, bad = {"k", "\xff"};
    const char *path = scratch_path(folder, "x.safetensors");
    struct tensor_writer *w;
    struct err err = {0};

    (void)state;
    assert_int_equal(tensor_writer_open(&w, path, NULL, twice, 2, NULL, 0, &err), -1);
    expect_error(&err, "two tensors have the name 'a'");
    assert_int_equal(tensor_writer_open(&w, path, NULL, &reserved, 1, NULL, 0, &err), -1);
    expect_error(&err, "no tensor may have the name");
    assert_int_equal(tensor_writer_open(&w, path, NULL, &latin1, 1, NULL, 0, &err), -1);
    expect_error(&err, "not valid UTF-8");
    assert_int_equal(tensor_writer_open(&w, path, NULL, &huge, 1, NULL, 0, &err), -1);
    expect_error(&err, "larger than any memory");
    assert_int_equal(tensor_writer_open(&w, path, NULL, &one, 1, items, 2, &err), -1);
    expect_error(&err, "key 'k' twice");
    assert_int_equal(tensor_writer_open(&w, path, NULL, &one, 1, &bad, 1, &err), -1);
    expect_error(&err, "not valid UTF-8");
    assert_int_equal(tensor_writer_open(&w, scratch_path(folder, "x.foo"), NULL, &one, 1, NULL, 0, &err), -1);
    assert_int_equal(err.kind, ERR_USAGE);
    assert_non_null(strstr(err.msg, ".safetensors"));
    assert_int_equal(tensor_writer_open(&w, path, NULL, &one, 1, NULL, 0, &err), 0);
    assert_int_equal(tensor_writer_put_part(w, 0, 4, 4, "12345678", &err), -1); /* out of order */
    assert_int_equal(tensor_writer_put_part(w, 0, 0, 9, "123456789", &err), -1);
    assert_int_equal(tensor_writer_put_part(w, 0, 0, 4, "1234", &err), 0);
    assert_int_equal(tensor_writer_put(w, 0, "12345678", &err), -1);
    assert_int_equal(tensor_writer_commit(w, &err), -1);
    expect_error(&err, "has 4 of its 8 bytes");
    assert_int_equal(scratch_count(folder), 0);
}

/* The output may be one of the inputs. */
static void test_output_is_input(void **state)
{
    const char *path = scratch_path(folder, "same.safetensors");
    struct tensor_spec spec = {"a", DT_U8, shape_of(1, 4)};
    struct tensor_writer *w;
    struct tensor_file *f;
    struct err err = {0};

    (void)state;
    assert_int_equal(tensor_writer_open(&w, path, NULL, &spec, 1, NULL, 0, &err), 0);
    assert_int_equal(tensor_writer_put(w, 0, "1234", &err), 0);
    assert_int_equal(tensor_writer_commit(w, &err), 0);
    assert_int_equal(tensor_file_open(&f, path, &err), 0);
    spec.name = "b";
    assert_int_equal(tensor_writer_open(&w, path, NULL, &spec, 1, NULL, 0, &err), 0);
    assert_int_equal(tensor_writer_copy(w, 0, f, &f->entries[0], &err), 0);
    assert_int_equal(tensor_writer_commit(w, &err), 0);
    tensor_file_close(f);
    assert_int_equal(tensor_file_open(&f, path, &err), 0);
    assert_string_equal(f->entries[0].name, "b");
    tensor_file_close(f);
}

/* A file cut short by someone else while it is open. */
static void test_cut_while_open(void **state)
{
    const char *path = scratch_path(folder, "cut.safetensors"), *out = scratch_path(folder, "out.safetensors");
    struct tensor_spec spec = {"a", DT_U8, shape_of(1, 10000)};
    static unsigned char data[10000];
    struct tensor_writer *w;
    struct tensor_file *f;
    struct err err = {0};

    (void)state;
    assert_int_equal(tensor_writer_open(&w, path, NULL, &spec, 1, NULL, 0, &err), 0);
    assert_int_equal(tensor_writer_put(w, 0, data, &err), 0);
    assert_int_equal(tensor_writer_commit(w, &err), 0);
    assert_int_equal(tensor_file_open(&f, path, &err), 0);
    assert_int_equal(truncate(path, (off_t)f->entries[0].offset + 4000), 0);
    assert_int_equal(tensor_file_read(f, &f->entries[0], data, &err), -1);
    expect_error(&err, "cut short while being read, 6000 bytes of tensor 'a' are missing");
    assert_int_equal(tensor_writer_open(&w, out, NULL, &spec, 1, NULL, 0, &err), 0);
    assert_int_equal(tensor_writer_copy(w, 0, f, &f->entries[0], &err), -1);
    expect_error(&err, "cut short while being read, 6000 bytes are missing");
    tensor_writer_abort(w);
    tensor_file_close(f);
    assert_int_equal(scratch_count(folder), 1);
}

/* ---- A format of the test's own: tensors in reverse, then the CRC-32 of each. */

static int closed, fail_layout, fail_finish;

static int crc_layout(struct tensor_writer *w, struct err *err)
{
    w->total = 3;
    for (size_t k = 0; k < w->n; k++) {
        w->order[k] = w->n - 1 - k;
        w->slot[w->order[k]].offset = w->total;
        w->total += w->slot[w->order[k]].nbytes;
    }
    w->total += 4 * w->n;
    return fail_layout ? err_set(err, "no layout; wait") : 0;
}

static int crc_finish(struct tensor_writer *w, struct err *err)
{
    for (size_t i = 0; i < w->n; i++)
        if (output_write_at(w->out, w->total - 4 * (w->n - i), &w->slot[i].crc, 4, err) != 0)
            return -1;
    return fail_finish ? err_set(err, "no finish; wait") : output_write_at(w->out, 0, "crc", 3, err);
}

static void crc_close(struct tensor_writer *w)
{
    (void)w;
    closed++;
}

static const struct tensor_writer_ops crc_ops = {true, crc_layout, crc_finish, crc_close};
static const struct tensor_format crc_format = {.name = "crc", .writer = &crc_ops};

static int write_crc(const char *path, const unsigned char *data, size_t n, const struct tensor_file *from, struct err *err)
{
    struct tensor_spec specs[3] = {
        {"a", DT_U8, shape_of(1, (int)n)}, {"b", DT_U8, shape_of(1, (int)n)}, {"c", DT_U8, shape_of(1, (int)n)}};
    struct tensor_writer *w;

    if (tensor_writer_open(&w, path, &crc_format, specs, 3, NULL, 0, err) != 0)
        return -1;
    if (tensor_writer_put(w, 0, data, err) != 0 || tensor_writer_copy(w, 1, from, &from->entries[0], err) != 0 ||
        tensor_writer_put_part(w, 2, 0, 1, data, err) != 0 || tensor_writer_put_part(w, 2, 1, n - 1, data + 1, err) != 0) {
        tensor_writer_abort(w);
        return -1;
    }
    return tensor_writer_commit(w, err);
}

static void test_crc(void **state)
{
    enum { N = 1500000 };
    const char *path = scratch_path(folder, "x.crc"), *source = scratch_path(folder, "x.safetensors");
    struct tensor_spec spec = {"a", DT_U8, shape_of(1, N)};
    unsigned char *data = malloc(N), *got;
    struct tensor_writer *w;
    struct tensor_file *from;
    struct err err = {0};
    uint32_t crc[3], want;
    size_t n;

    (void)state;
    for (size_t i = 0; i < N; i++)
        data[i] = (unsigned char)(i * 2654435761u >> 11);
    want = (uint32_t)crc32_z(0, data, N);
    assert_int_equal(tensor_writer_open(&w, source, NULL, &spec, 1, NULL, 0, &err), 0);
    assert_int_equal(tensor_writer_put(w, 0, data, &err), 0);
    assert_int_equal(tensor_writer_commit(w, &err), 0);
    assert_int_equal(tensor_file_open(&from, source, &err), 0);
    assert_int_equal(write_crc(path, data, N, from, &err), 0);
    assert_int_equal(closed, 1);
    got = scratch_read(path, &n);
    assert_int_equal(n, 3 + 3 * N + 12);
    assert_memory_equal(got, "crc", 3);
    for (size_t i = 0; i < 3; i++)
        assert_memory_equal(got + 3 + i * N, data, N);
    memcpy(crc, got + 3 + 3 * N, 12);
    for (size_t i = 0; i < 3; i++)
        assert_int_equal(crc[i], want);
    fail_layout = 1;
    assert_int_equal(write_crc(path, data, N, from, &err), -1);
    expect_error(&err, "no layout");
    fail_layout = 0;
    fail_finish = 1;
    assert_int_equal(write_crc(path, data, N, from, &err), -1);
    expect_error(&err, "no finish");
    fail_finish = 0;
    assert_int_equal(closed, 3);
    assert_int_equal(scratch_count(folder), 2); /* the source and the first result, whole */
    tensor_file_close(from);
    free(got);
    free(data);
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

#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_threads),
        TEST(test_writer_refuses),
        TEST(test_output_is_input),
        TEST(test_cut_while_open),
        TEST(test_crc),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
