/* Scaling against Pillow (golden/make_resize.py) and OpenCV (golden/make_area.py): every sample is equal. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "formats/picture_colour.h"
#include "formats/picture_resize.h"
#include "tests/lib/golden.h"

static struct tensor_file *golden, *golden_cv;

static void open_picture(struct picture *p)
{
    struct err err;
    float *x = golden_f32(golden, "picture", NULL);

    assert_int_equal(picture_new(p, 53, 37, 3, &err), 0);
    for (size_t i = 0; i < 53 * 37 * 3; i++)
        p->data[i] = (uint8_t)x[i];
    free(x);
}

static void same(const struct picture *p, const char *name)
{
    size_t n;
    float *want = golden_f32(golden, name, &n);

    assert_int_equal(n, p->width * p->height * p->channels);
    for (size_t i = 0; i < n; i++)
        if ((float)p->data[i] != want[i])
            fail_msg("%s: sample %zu is %u, Pillow has %g", name, i, p->data[i], (double)want[i]);
    free(want);
}

static void test_filters(void **state)
{
    static const char *const names[] = {"bilinear", "bicubic", "lanczos"};
    static const size_t sizes[][2] = {{32, 32}, {60, 50}, {53, 20}, {64, 37}, {1, 1}, {7, 90}, {5, 3}, {53, 37}};

    (void)state;
    for (int f = 0; f < 3; f++)
        for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
            char name[64];
            struct picture p;
            struct err err;

            open_picture(&p);
            snprintf(name, sizeof name, "%s.%zux%zu", names[f], sizes[i][0], sizes[i][1]);
            assert_int_equal(picture_resize(&p, sizes[i][0], sizes[i][1], (enum picture_filter)f, &err), 0);
            assert_int_equal(p.width, sizes[i][0]);
            assert_int_equal(p.height, sizes[i][1]);
            same(&p, name);
            picture_free(&p);
        }
}

static void open_golden(struct picture *p, const char *name)
{
    const struct tensor_entry *e = golden_entry(golden_cv, name);
    struct err err;
    float *x = golden_f32(golden_cv, name, NULL);

    assert_int_equal(picture_new(p, e->shape.dim[1], e->shape.dim[0], 3, &err), 0);
    for (size_t i = 0; i < p->width * p->height * 3; i++)
        p->data[i] = (uint8_t)x[i];
    free(x);
}

static void same_cv(const struct picture *p, const char *name)
{
    size_t n;
    float *want = golden_f32(golden_cv, name, &n);

    assert_int_equal(n, p->width * p->height * p->channels);
    for (size_t i = 0; i < n; i++)
        if ((float)p->data[i] != want[i])
            fail_msg("%s: sample %zu is %u, OpenCV has %g", name, i, p->data[i], (double)want[i]);
    free(want);
}

static void test_area(void **state)
{
    size_t done = 0;

    (void)state;
    for (size_t i = 0; i < golden_cv->count; i++) {
        const char *name = golden_cv->entries[i].name, *to = strrchr(name, '.');
        char source[32];
        size_t w, h;
        struct picture p;
        struct err err;

        if (strncmp(name, "area.", 5) != 0)
            continue;
        assert_int_equal(sscanf(to + 1, "%zux%zu", &w, &h), 2);
        snprintf(source, sizeof source, "%.*s", (int)(to - name) - 5, name + 5);
        open_golden(&p, source);
        assert_int_equal(picture_resize_area(&p, w, h, &err), 0);
        same_cv(&p, name);
        picture_free(&p);
        done++;
    }
    assert_int_equal(done, 18);
}

static void test_colour(void **state)
{
    size_t done = 0;

    (void)state;
    for (size_t i = 0; i < golden_cv->count; i++) {
        const char *name = golden_cv->entries[i].name;
        bool hue = !strncmp(name, "hue.", 4), gamma = !strncmp(name, "gamma.", 6);
        struct picture p;

        if (!hue && !gamma)
            continue;
        open_golden(&p, "colours");
        if (hue)
            picture_shift_hue(&p, atof(name + 4));
        else
            picture_change_gamma(&p, atof(name + 6));
        same_cv(&p, name);
        picture_free(&p);
        done++;
    }
    assert_int_equal(done, 9);
}

static void test_grey(void **state)
{
    struct picture p;
    struct err err;

    (void)state;
    open_picture(&p);
    picture_make_grey(&p);
    same(&p, "grey");
    assert_int_equal(picture_resize(&p, 8, 4, PICTURE_LANCZOS, &err), 0);
    same(&p, "grey.8x4");
    picture_free(&p);
}

static void test_impossible(void **state)
{
    static const size_t sizes[][2] = {{0, 5}, {5, 0}, {65536, 1}, {65535, 65535}};
    struct picture p;
    struct err err;

    (void)state;
    open_picture(&p);
    for (size_t i = 0; i < 4; i++)
        assert_int_equal(picture_resize(&p, sizes[i][0], sizes[i][1], PICTURE_LANCZOS, &err), -1);
    same(&p, "picture");
    picture_free(&p);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_filters), cmocka_unit_test(test_area),       cmocka_unit_test(test_colour),
        cmocka_unit_test(test_grey),    cmocka_unit_test(test_impossible),
    };
    int failed;

    golden = golden_open("resize.safetensors");
    golden_cv = golden_open("area.safetensors");
    failed = cmocka_run_group_tests(tests, NULL, NULL);
    tensor_file_close(golden);
    tensor_file_close(golden_cv);
    return failed;
}
