/* Pictures against what Pillow and OpenCV see in them (golden/make_pictures.py). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "formats/picture.h"
#include "tests/lib/scratch.h"

#define DIR_PICTURES "golden/pictures"

static uint8_t *load(const char *path, size_t *n)
{
    FILE *f = fopen(path, "rb");
    uint8_t *data;
    long size;

    if (!f)
        return NULL;
    fseek(f, 0, SEEK_END);
    size = ftell(f);
    rewind(f);
    data = malloc((size_t)size + 1);
    assert_non_null(data);
    *n = fread(data, 1, (size_t)size, f);
    assert_int_equal(*n, size);
    fclose(f);
    return data;
}

static bool is_webp(const char *name)
{
    return strstr(name, ".webp") != NULL;
}

static bool have_webp(void)
{
#ifdef HAVE_WEBP
    return true;
#else
    return false;
#endif
}

static void same_pixels(const char *path, const struct picture *p, const char *ending)
{
    char other[512];
    size_t n, size = p->width * p->height * p->channels;
    uint8_t *want;

    snprintf(other, sizeof other, "%s%s", path, ending);
    want = load(other, &n);
    if (!want)
        fail_msg("%s: there is no %s", path, other);
    if (n != size)
        fail_msg("%s: %zu bytes of pixels, should be %zu", path, size, n);
    for (size_t i = 0; i < n; i++)
        if (p->data[i] != want[i])
            fail_msg("%s: sample %zu is %u, should be %u", path, i, p->data[i], want[i]);
    free(want);
}

static void test_pixels(void **state)
{
    DIR *dir = opendir(DIR_PICTURES);
    struct dirent *entry;
    size_t count = 0;

    (void)state;
    assert_non_null(dir);
    while ((entry = readdir(dir)) != NULL) {
        const char *dot = strrchr(entry->d_name, '.');
        char path[512];
        struct picture p;
        struct err err;
        size_t size[2];
        int orientation;

        if (!dot || (strcmp(dot, ".png") && strcmp(dot, ".jpg") && strcmp(dot, ".webp") && strcmp(dot, ".bmp")) ||
            (is_webp(entry->d_name) && !have_webp()))
            continue;
        snprintf(path, sizeof path, DIR_PICTURES "/%s", entry->d_name);
        if (picture_read(&p, path, &err))
            fail_msg("%s", err.msg);
        assert_int_equal(p.width, 19);
        assert_int_equal(p.height, 13);
        same_pixels(path, &p, p.channels == 4 ? ".rgba" : ".rgb");
        assert_int_equal(picture_read_size(path, size, &orientation, &err), 0);
        assert_int_equal(orientation, p.orientation);
        assert_int_equal(size[0], orientation < 5 ? 19 : 13);
        assert_int_equal(size[1], orientation < 5 ? 13 : 19);
        picture_free(&p);
        count++;
    }
    closedir(dir);
    assert_true(count > 45);
}

static void test_orientation(void **state)
{
    (void)state;
    for (int turn = 2; turn <= 8; turn++) {
        char path[512];
        struct picture p;
        struct err err;

        snprintf(path, sizeof path, DIR_PICTURES "/turn%d.jpg", turn);
        assert_int_equal(picture_read(&p, path, &err), 0);
        assert_int_equal(p.orientation, turn);
        assert_int_equal(picture_upright(&p, &err), 0);
        assert_int_equal(p.orientation, 1);
        assert_int_equal(p.width, turn < 5 ? 19 : 13);
        same_pixels(path, &p, ".upright");
        picture_free(&p);
    }
    for (int webp = 0; webp <= have_webp(); webp++) {
        struct picture p;
        struct err err;

        assert_int_equal(picture_read(&p, webp ? DIR_PICTURES "/turn6.webp" : DIR_PICTURES "/turn6.png", &err), 0);
        assert_int_equal(p.orientation, 6);
        picture_free(&p);
    }
}

static void test_texts(void **state)
{
    struct picture p;
    struct err err;

    (void)state;
    assert_int_equal(picture_read(&p, DIR_PICTURES "/rgb.png", &err), 0);
    assert_int_equal(p.texts, 6);
    assert_string_equal(picture_find_text(&p, "prompt"), "a red fox");
    assert_string_equal(picture_find_text(&p, "steps"), "20");
    assert_string_equal(picture_find_text(&p, "comment"), "latin");
    assert_string_equal(picture_find_text(&p, "parameters"), "a\nSteps: 20, Seed: 1");
    assert_string_equal(picture_find_text(&p, "wide"), "\xe6\x97\xa5\xe6\x9c\xac \xf0\x9f\xa6\x8a");
    assert_int_equal(strlen(picture_find_text(&p, "packed")), 2000);
    assert_null(picture_find_text(&p, "seed"));
    picture_free(&p);
}

static void test_bad(void **state)
{
    static const char *const bad[][2] = {
        {"cmyk.jpg", "its colours are CMYK, which is for printing; convert it to RGB"},
        {"short_rgb.png", "it ends in the middle of the picture; get it again"},
        {"short_rgb.jpg", "it ends in the middle of the picture; get it again"},
        {"short_progressive.jpg", "it ends in the middle of the picture; get it again"},
        {"short_rgb.webp", "it ends in the middle of the picture; get it again"},
        {"short_rgb.bmp", "it ends in the middle of the picture; get it again"},
        {"crc.png", "the file is damaged, get it again" /* after libpng's words */},
        {"huge.png", "60000 x 60000 pixels are too many; the most are 65535 a side and 134217728 in all"},
        {"huge.bmp", "60000 x 60000 pixels are too many; the most are 65535 a side and 134217728 in all"},
        {"packed.bmp", "its pixels are packed (run lengths); convert it to PNG"},
        {"animation.webp", "it is an animation; give single pictures"},
        {"text.png", "it is no PNG, JPEG, WebP or BMP picture; convert it to one of them"},
        {"empty.png", "it is no PNG, JPEG, WebP or BMP picture; convert it to one of them"},
        {"missing.png", "No such file or directory"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        char path[512], want[1024];
        struct picture p;
        struct err err = {0};
        size_t size[2];
        int orientation;

        if (is_webp(bad[i][0]) && !have_webp())
            continue;
        snprintf(path, sizeof path, DIR_PICTURES "/bad/%s", bad[i][0]);
        snprintf(want, sizeof want, "cannot read '%s': ", path);
        assert_int_equal(picture_read(&p, path, &err), -1);
        if (strncmp(err.msg, want, strlen(want)) != 0 || !strstr(err.msg, bad[i][1]))
            fail_msg("%s", err.msg);
        assert_null(p.data);
        /* only pixels that do not match their checksum stay unnoticed when just the header is read */
        assert_int_equal(picture_read_size(path, size, &orientation, &err), strcmp(bad[i][0], "crc.png") == 0 ? 0 : -1);
    }
}

/* Every prefix of a file is an error or, when only what follows the pixels is missing, the whole picture. */
static void test_truncated(void **state)
{
    static const char *const names[] = {"rgb.png", "palette_alpha.png", "rgb.jpg",   "progressive.jpg",
                                        "rgb.bmp", "lossless.webp",     "turn6.webp"};

    (void)state;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        char path[512];
        size_t n;
        uint8_t *data;
        struct picture whole, p;
        struct err err;

        if (is_webp(names[i]) && !have_webp())
            continue;
        snprintf(path, sizeof path, DIR_PICTURES "/%s", names[i]);
        data = load(path, &n);
        assert_int_equal(picture_decode(&whole, data, n, names[i], &err), 0);
        for (size_t k = 0; k < n; k++) {
            uint8_t *prefix = malloc(k ? k : 1); /* its own block: reading past it shows under ASan */

            memcpy(prefix, data, k);
            if (!picture_decode(&p, prefix, k, names[i], &err)) {
                assert_int_equal(p.width, whole.width);
                if (memcmp(p.data, whole.data, whole.width * whole.height * whole.channels) != 0)
                    fail_msg("%s: %zu of %zu bytes give another picture", names[i], k, n);
                picture_free(&p);
            }
            free(prefix);
        }
        picture_free(&whole);
        free(data);
    }
}

static void test_alpha(void **state)
{
    static const uint8_t four[8] = {10, 20, 30, 0, 100, 200, 250, 128};
    struct picture p;
    struct err err;

    (void)state;
    for (int over = 0; over < 2; over++) {
        assert_int_equal(picture_new(&p, 2, 1, 4, &err), 0);
        memcpy(p.data, four, 8);
        if (over)
            picture_lay_over(&p, 255, 0, 7);
        else
            picture_drop_alpha(&p);
        assert_int_equal(p.channels, 3);
        if (over) /* (100 * 128 + 255 * 127) / 255 = 177.2; 100.4; (250 * 128 + 7 * 127) / 255 = 129.0 */
            assert_memory_equal(p.data, ((const uint8_t[]){255, 0, 7, 177, 100, 129}), 6);
        else
            assert_memory_equal(p.data, ((const uint8_t[]){10, 20, 30, 100, 200, 250}), 6);
        picture_drop_alpha(&p); /* nothing left to do */
        picture_free(&p);
    }
}

static void test_write(void **state)
{
    static const char *const names[] = {"a.png", "b.PNG", "c.webp"};
    const struct picture_text text[] = {{(char *)(uintptr_t) "prompt", (char *)(uintptr_t) "fox"},
                                        {(char *)(uintptr_t) "parameters", (char *)(uintptr_t) "\xe7\x8b\x90\nSteps: 3"}};
    const char *dir = scratch_new();
    char path[512];
    struct picture p, back;
    struct err err;

    (void)state;
    for (size_t i = 0; i < 3; i++)
        for (int alpha = 0; alpha < 2; alpha++) {
            if (is_webp(names[i]) && !have_webp())
                continue;
            assert_int_equal(picture_read(&p, alpha ? DIR_PICTURES "/rgba.png" : DIR_PICTURES "/deep_rgb.png", &err), 0);
            snprintf(path, sizeof path, "%s/%s", dir, names[i]);
            if (is_webp(names[i]) && alpha)
                for (size_t k = 3; k < p.width * p.height * 4; k += 4)
                    p.data[k] |= 1; /* lossless WebP forgets colours under alpha 0 */
            if (picture_write(path, &p, text, 2, (struct picture_format){101}, &err))
                fail_msg("%s", err.msg);
            assert_int_equal(picture_read(&back, path, &err), 0);
            assert_int_equal(back.channels, p.channels);
            assert_memory_equal(back.data, p.data, p.width * p.height * p.channels);
            if (!is_webp(names[i])) {
                assert_string_equal(picture_find_text(&back, "prompt"), "fox");
                assert_string_equal(picture_find_text(&back, "parameters"), text[1].value);
            }
            picture_free(&p);
            picture_free(&back);
        }
    scratch_remove(dir);
}

/* Quality 100 without a chroma of its own: JPEG's rounding of a smooth grey stays within 2 (its quantisation step is 1, an
 * 8x8 inverse transform of half-unit errors stays below that). */
static void test_write_lossy(void **state)
{
    const char *dir = scratch_new();
    char path[512];
    struct picture p, back;
    struct err err;
    const struct picture_text text = {(char *)(uintptr_t) "parameters", (char *)(uintptr_t) "fox\nSteps: 3"};
    uint8_t *bytes;
    size_t n;

    (void)state;
    assert_int_equal(picture_new(&p, 40, 24, 3, &err), 0);
    for (size_t i = 0; i < 40 * 24 * 3; i++)
        p.data[i] = (uint8_t)(i / 3 % 40 * 3 + i / 120);
    snprintf(path, sizeof path, "%s/a.jpeg", dir);
    assert_int_equal(picture_write(path, &p, &text, 1, (struct picture_format){100}, &err), 0);
    assert_int_equal(picture_read(&back, path, &err), 0);
    for (size_t i = 0; i < 40 * 24 * 3; i++)
        assert_true(abs(p.data[i] - back.data[i]) <= 2);
    bytes = load(path, &n);
    assert_non_null(memmem(bytes, n, "fox\nSteps: 3", 12));
    free(bytes);
    picture_free(&back);
    picture_free(&p);
    scratch_remove(dir);
}

/* Grey pictures (masks) are read back with three equal channels. */
static void test_write_grey(void **state)
{
    const char *dir = scratch_new(), *const names[] = {"a.png", "a.jpg"};
    struct picture p, back;
    struct err err;

    (void)state;
    assert_int_equal(picture_new(&p, 16, 16, 1, &err), 0);
    for (size_t i = 0; i < 256; i++)
        p.data[i] = (uint8_t)(i % 16 * 10);
    for (size_t k = 0; k < 2; k++) {
        assert_int_equal(picture_write(scratch_path(dir, names[k]), &p, NULL, 0, (struct picture_format){100}, &err), 0);
        assert_int_equal(picture_read(&back, scratch_path(dir, names[k]), &err), 0);
        assert_int_equal(back.channels, 3);
        for (size_t i = 0; i < 768; i++)
            assert_true(abs(back.data[i] - p.data[i / 3]) <= (k ? 2 : 0)); /* JPEG: see test_write_lossy */
        picture_free(&back);
    }
    assert_int_equal(picture_write(scratch_path(dir, "a.webp"), &p, NULL, 0, (struct picture_format){90}, &err), -1);
    picture_free(&p);
    scratch_remove(dir);
}

static void test_write_errors(void **state)
{
    struct picture p;
    struct err err;

    (void)state;
    assert_int_equal(picture_new(&p, 4, 4, 4, &err), 0);
    assert_int_equal(picture_write("x.jpg", &p, NULL, 0, (struct picture_format){90}, &err), -1);
    assert_string_equal(err.msg, "cannot write 'x.jpg': JPEG has no transparency; write a .png");
    assert_int_equal(picture_write("x.gif", &p, NULL, 0, (struct picture_format){90}, &err), -1);
    assert_string_equal(err.msg, "cannot write 'x.gif': pictures are .png, .jpg or .webp; give one of these endings");
    assert_int_equal(access("x.jpg", F_OK), -1);
    picture_free(&p);
    assert_int_equal(picture_new(&p, 70000, 1, 3, &err), -1);
    assert_int_equal(picture_new(&p, 0, 5, 3, &err), -1);
    assert_string_equal(err.msg, "cannot make a picture: it is 0 pixels wide and 5 high");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pixels),       cmocka_unit_test(test_orientation), cmocka_unit_test(test_texts),
        cmocka_unit_test(test_bad),          cmocka_unit_test(test_truncated),   cmocka_unit_test(test_alpha),
        cmocka_unit_test(test_write),        cmocka_unit_test(test_write_lossy), cmocka_unit_test(test_write_grey),
        cmocka_unit_test(test_write_errors),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
