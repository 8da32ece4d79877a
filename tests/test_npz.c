/* .npz both ways with NumPy (golden/make_npz.py). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "formats/npz.h"
#include "formats/zip.h"
#include "tests/lib/scratch.h"

static void read_ok(struct npz *n, const char *path)
{
    struct err err = {0};

    if (npz_read(n, path, &err))
        fail_msg("%s", err.msg);
}

static void test_read(void **state)
{
    struct npz a, b;
    const struct npz_array *x, *y;

    (void)state;
    read_ok(&a, "golden/npz/latents.npz");
    read_ok(&b, "golden/npz/packed.npz");
    assert_int_equal(a.count, 1);
    x = npz_find(&a, "arr_0");
    assert_non_null(x);
    assert_int_equal(x->dtype, DT_F32);
    assert_int_equal(x->shape.ndim, 3);
    assert_int_equal(x->shape.dim[0] * 10000 + x->shape.dim[1] * 100 + x->shape.dim[2], 40608);
    assert_int_equal(b.count, 3);
    y = npz_find(&b, "latents");
    assert_memory_equal(x->data, y->data, 4 * 6 * 8 * sizeof(float));
    y = npz_find(&b, "latents_flipped");
    for (size_t i = 0; i < 4 * 6; i++)
        for (size_t j = 0; j < 8; j++)
            assert_true(((float *)x->data)[i * 8 + j] == ((float *)y->data)[i * 8 + 7 - j]);
    assert_null(npz_find(&b, "arr_0"));
    npz_free(&a);
    npz_free(&b);
}

static void test_types(void **state)
{
    struct npz n;
    const struct npz_array *a;

    (void)state;
    read_ok(&n, "golden/npz/types.npz");
    assert_int_equal(n.count, 12);
    for (size_t i = 0; i < 5; i++) {
        assert_int_equal(((int32_t *)npz_find(&n, "i4")->data)[i], i);
        assert_int_equal(((int16_t *)npz_find(&n, "i2")->data)[i], i);
    }
    assert_int_equal(((int64_t *)npz_find(&n, "i8")->data)[0], -3);
    assert_int_equal(((int8_t *)npz_find(&n, "i1")->data)[0], -2);
    assert_int_equal(((uint64_t *)npz_find(&n, "u8")->data)[2], 2);
    assert_int_equal(((uint8_t *)npz_find(&n, "b")->data)[0], 1);
    a = npz_find(&n, "scalar");
    assert_int_equal(a->shape.ndim, 0);
    assert_true(*(float *)a->data == 1.5f);
    a = npz_find(&n, "none");
    assert_int_equal(a->shape.dim[0], 0);
    npz_free(&n);
}

static void read_entry(const char *path, const char *name, unsigned char *data, size_t size, size_t *n)
{
    struct tensor_file f = {.path = path};
    size_t file_size;
    unsigned char *all = scratch_read(path, &file_size);
    FILE *open = fopen(path, "rb");
    struct zip z;
    struct err err = {0};
    const struct zip_entry *e;

    free(all);
    assert_non_null(open);
    f.fd = fileno(open);
    f.file_size = file_size;
    assert_int_equal(zip_open(&z, &f, &err), 0);
    e = zip_find(&z, name);
    assert_non_null(e);
    assert_true(e->size <= size);
    assert_int_equal(zip_read(&f, e, data, &err), 0);
    *n = (size_t)e->size;
    fclose(open);
    arena_free(&f.arena);
}

/* An array has the very bytes that NumPy writes, its description included; the archive around it is read back. */
static void test_write(void **state)
{
    static const char *const files[] = {"golden/npz/latents.npz", "golden/npz/types.npz"};
    const char *folder = scratch_new(), *out = getenv("NPZ_OUT") ? getenv("NPZ_OUT") : scratch_path(folder, "x.npz");
    char path[4096];
    struct err err = {0};

    (void)state;
    snprintf(path, sizeof path, "%s", out);
    for (size_t i = 0; i < 2; i++) {
        struct npz n, again;

        read_ok(&n, files[i]);
        if (npz_write(path, n.array, n.count, &err))
            fail_msg("%s", err.msg);
        read_ok(&again, path);
        assert_int_equal(n.count, again.count);
        for (size_t k = 0; k < n.count; k++) {
            unsigned char want[2048], have[2048];
            char name[64];
            size_t n_want, n_have;

            snprintf(name, sizeof name, "%s.npy", n.array[k].name);
            read_entry(files[i], name, want, sizeof want, &n_want);
            read_entry(path, name, have, sizeof have, &n_have);
            assert_int_equal(n_want, n_have);
            assert_memory_equal(want, have, n_want);
        }
        npz_free(&n);
        npz_free(&again);
    }
    scratch_remove(folder);
}

static void test_bad(void **state)
{
    static const struct {
        const char *name, *part;
    } cases[] = {
        {"fortran", "Fortran order; save it with np.ascontiguousarray()"},
        {"big_endian", "type '>f4'"},
        {"object", "type '|O'"},
        {"short", "size that its shape says"},
        {"long", "size that its shape says"},
        {"no_magic", "is no .npy array"},
        {"no_shape", "has no description"},
        {"huge", "shape that is not understood"},
        {"empty", "the file is empty"},
        {"text", "no directory at the end"},
        {"missing", "No such file"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char path[128];
        struct npz n;
        struct err err = {0};

        snprintf(path, sizeof path, "golden/npz/bad/%s.npz", cases[i].name);
        assert_int_equal(npz_read(&n, path, &err), -1);
        if (!strstr(err.msg, cases[i].part) || !strstr(err.msg, path))
            fail_msg("%s: '%s'", path, err.msg);
    }
}

static void test_write_errors(void **state)
{
    float x = 0;
    struct npz_array a = {"x", DT_BF16, {0}, &x};
    struct err err = {0};

    (void)state;
    assert_int_equal(npz_write("/nowhere/x.npz", &a, 1, &err), -1);
    assert_non_null(strstr(err.msg, "NumPy has no type"));
    a.dtype = DT_F32;
    assert_int_equal(npz_write("/proc/x.npz", &a, 1, &err), -1);
    assert_non_null(strstr(err.msg, "/proc/x.npz"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_read), cmocka_unit_test(test_types),        cmocka_unit_test(test_write),
        cmocka_unit_test(test_bad),  cmocka_unit_test(test_write_errors),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
