/* Texts about how a picture was made; numbers against Python's repr (golden/make_numbers.py). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "formats/picture_info.h"
#include "tests/lib/scratch.h"

static void test_numbers(void **state)
{
    FILE *f = fopen("golden/numbers.txt", "r");
    char hex[64], want[64], buf[32];
    size_t count = 0;

    (void)state;
    assert_non_null(f);
    while (fscanf(f, "%63s %63s", hex, want) == 2) {
        assert_string_equal(picture_info_number(strtod(hex, NULL), buf), want);
        count++;
    }
    fclose(f);
    assert_int_equal(count, 400);
}

static void want_texts(const struct picture_info *info, const char *const (*want)[2], size_t count)
{
    struct picture_texts t;
    struct err err;

    assert_int_equal(picture_info_texts(&t, info, &err), 0);
    assert_int_equal(t.count, count);
    for (size_t i = 0; i < count; i++) {
        assert_string_equal(t.text[i].key, want[i][0]);
        assert_string_equal(t.text[i].value, want[i][1]);
    }
    picture_texts_free(&t);
}

/* Keys, their order and Python's str() of the values: gen_img_diffusers.py, lines 2277-2288; "parameters": as web UIs. */
static void test_texts(void **state)
{
    const struct picture_info plain = {.prompt = "a (fox:1.2)",
                                       .negative = "",
                                       .sampler = "euler_a",
                                       .sampler_title = "Euler a",
                                       .seed = 4294967296,
                                       .steps = 20,
                                       .width = 512,
                                       .height = 768,
                                       .scale = 7};
    const char *const want_plain[][2] = {
        {"prompt", "a (fox:1.2)"},
        {"seed", "4294967296"},
        {"sampler", "euler_a"},
        {"steps", "20"},
        {"scale", "7.0"},
        {"negative-prompt", ""},
        {"parameters", "a (fox:1.2)\nSteps: 20, Sampler: Euler a, CFG scale: 7.0, Seed: 4294967296, Size: 512x768"}};
    struct picture_info full = plain;
    const char *const want_full[][2] = {{"prompt", "a (fox:1.2)"},
                                        {"seed", "4294967296"},
                                        {"sampler", "euler_a"},
                                        {"steps", "20"},
                                        {"scale", "7.0"},
                                        {"negative-prompt", "bad, ugly"},
                                        {"negative-scale", "1.5"},
                                        {"clip-prompt", "fur"},
                                        {"parameters",
                                         "a (fox:1.2)\nNegative prompt: bad, ugly\nSteps: 20, Sampler: Euler a, CFG scale: "
                                         "7.0, Seed: 4294967296, Size: 512x768, "
                                         "Model hash: 0123456789, Model: small, Denoising strength: 0.6, Clip skip: 2"}};

    (void)state;
    want_texts(&plain, want_plain, 7);
    full.negative = "bad, ugly";
    full.clip_prompt = "fur";
    full.model = "small";
    full.model_hash = "0123456789";
    full.has_negative_scale = full.has_strength = true;
    full.negative_scale = 1.5;
    full.strength = 0.6;
    full.clip_skip = 2;
    want_texts(&full, want_full, 9);
}

/* Written and read back */
static void test_in_a_file(void **state)
{
    const struct picture_info info = {.prompt = "\xe7\x8b\x90", .negative = "", .sampler = "ddim", .sampler_title = "DDIM"};
    const char *dir = scratch_new();
    struct picture_texts t;
    struct picture p;
    struct err err;

    (void)state;
    assert_int_equal(picture_info_texts(&t, &info, &err), 0);
    assert_int_equal(picture_new(&p, 3, 2, 3, &err), 0);
    assert_int_equal(picture_write(scratch_path(dir, "a.png"), &p, t.text, t.count, (struct picture_format){0}, &err), 0);
    picture_free(&p);
    assert_int_equal(picture_read(&p, scratch_path(dir, "a.png"), &err), 0);
    assert_int_equal(p.texts, t.count);
    for (size_t i = 0; i < t.count; i++)
        assert_string_equal(picture_find_text(&p, t.text[i].key), t.text[i].value);
    picture_free(&p);
    picture_texts_free(&t);
    scratch_remove(dir);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_texts),
        cmocka_unit_test(test_in_a_file),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
