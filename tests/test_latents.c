/* cmd/latents.h with the small model's VAE against diffusers in float64 (golden/make_latents.py): both directions, whole and in
 * tiles. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cmd/latents.h"
#include "ref/base/thread.h"
#include "tests/lib/golden.h"

enum { H = 9, W = 15, COUNT = H * W, PIXELS = COUNT * 64 * 3 };

static struct tensor_file *file;
static json_t *error;
static struct ops ops;

#define MUST(call)                                                                                                             \
    do {                                                                                                                       \
        if ((call) != 0)                                                                                                       \
            fail_msg("%s", err.msg);                                                                                           \
    } while (0)

/* As in test_small_model.c: torch's own f32 run is one sample of what rounding does: 6 times it, and 16 roundings of the
 * largest value. */
static void compare(const char *key, const float *got, size_t got_count)
{
    double single = json_number_value(json_object_get(error, key)), size = 0, worst, limit;
    size_t n;
    float *want = golden_f32(file, key, &n);

    assert_true(single > 0);
    assert_int_equal(n, got_count);
    for (size_t i = 0; i < n; i++)
        size = fmax(size, fabs((double)want[i]));
    limit = 6 * single + 16 * 0x1p-24 * size;
    worst = golden_max_diff(got, want, n);
    if (!(worst <= limit))
        fail_msg("%s: off by %g, limit %g, largest %g", key, worst, limit, size);
    free(want);
}

static struct latents *open_small(void)
{
    struct latents *l;
    struct err err = {0};

    MUST(latents_open(&l, "golden/small_model/small.safetensors", &ops, &err));
    assert_int_equal(latents_factor(l), 8);
    assert_int_equal(latents_channels(l), 4);
    return l;
}

static void both_directions(struct latents *l, const char *moments_key, const char *decoded_key)
{
    float *picture = golden_f32(file, "picture", NULL), *latents = golden_f32(file, "latents", NULL);
    float *moments = calloc(COUNT * 8, sizeof *moments), *pixels = calloc(PIXELS, sizeof *pixels);
    struct err err = {0};

    MUST(latents_moments(l, picture, 1, H * 8, W * 8, moments, &err));
    compare(moments_key, moments, COUNT * 8);
    MUST(latents_decode(l, latents, 1, H, W, pixels, &err));
    compare(decoded_key, pixels, PIXELS);
    free(picture);
    free(latents);
    free(moments);
    free(pixels);
}

static void test_whole(void **state)
{
    struct latents *l = open_small();

    (void)state;
    both_directions(l, "moments", "decoded");
    latents_release(l);
    both_directions(l, "moments", "decoded");
    latents_close(l);
}

static void test_tiles(void **state)
{
    struct latents *l = open_small();

    (void)state;
    latents_tile(l, 64);
    both_directions(l, "tiled_moments", "tiled_decoded");
    latents_tile(l, 0);
    both_directions(l, "moments", "decoded");
    latents_close(l);
}

/* Two pictures at once are the same bytes as each alone. */
static void test_samples(void **state)
{
    struct latents *l = open_small();
    float *picture = golden_f32(file, "picture", NULL), *noise = golden_f32(file, "noise", NULL);
    float *two = calloc(2 * PIXELS, sizeof *two), *noises = calloc(2 * COUNT * 4, sizeof *noises);
    float *latents = calloc(2 * COUNT * 4, sizeof *latents);
    struct err err = {0};

    (void)state;
    for (int i = 0; i < 2; i++) {
        memcpy(two + i * PIXELS, picture, PIXELS * sizeof *two);
        memcpy(noises + i * COUNT * 4, noise, COUNT * 4 * sizeof *noises);
    }
    MUST(latents_encode(l, two, 2, H * 8, W * 8, noises, latents, &err));
    compare("sample", latents, COUNT * 4);
    assert_memory_equal(latents, latents + COUNT * 4, COUNT * 4 * sizeof *latents);
    MUST(latents_encode(l, picture, 1, H * 8, W * 8, NULL, latents, &err));
    compare("mean", latents, COUNT * 4);
    assert_int_equal(latents_encode(l, picture, 1, H * 8, W * 8 - 4, NULL, latents, &err), -1);
    assert_string_equal(err.msg, "cannot encode 116 x 72 pixels; sides are multiples of 8");
    latents_close(l);
    free(picture);
    free(noise);
    free(two);
    free(noises);
    free(latents);
}

/* The largest difference between neighbours in a picture [side, side, 3]. */
static double steepest(const float *x, size_t side)
{
    double most = 0;

    for (size_t i = 0; i < side; i++)
        for (size_t j = 0; j < side; j++)
            for (size_t k = 0; k < 3; k++) {
                const float *at = x + (i * side + j) * 3 + k;

                most = j + 1 < side ? fmax(most, fabs((double)at[3] - (double)at[0])) : most;
                most = i + 1 < side ? fmax(most, fabs((double)at[side * 3] - (double)at[0])) : most;
            }
    return most;
}

/* With little memory a large picture is cut, and needs less. A seam would be a step between neighbours that the whole picture
 * does not have: there is no steeper one. */
static void test_limit(void **state)
{
    enum { SIDE = 40, N = SIDE * SIDE };
    struct latents *l = open_small();
    float *latents = calloc(N * 4, sizeof *latents), *whole = calloc(N * 192, sizeof *whole),
          *cut = calloc(N * 192, sizeof *cut);
    size_t all, less;
    bool tiled;
    struct err err = {0};

    (void)state;
    for (size_t i = 0; i < N * 4; i++)
        latents[i] = sinf((float)(i / 4 % SIDE) / 9) * cosf((float)(i / 4 / SIDE) / 7);
    MUST(latents_forecast(l, false, SIDE * 8, SIDE * 8, &all, &tiled, &err));
    assert_false(tiled);
    MUST(latents_decode(l, latents, 1, SIDE, SIDE, whole, &err));
    latents_limit(l, all * 3 / 4);
    MUST(latents_forecast(l, false, SIDE * 8, SIDE * 8, &less, &tiled, &err));
    assert_true(tiled);
    assert_true(less < all);
    MUST(latents_decode(l, latents, 1, SIDE, SIDE, cut, &err));
    assert_true(steepest(cut, SIDE * 8) <= steepest(whole, SIDE * 8));
    latents_close(l);
    free(latents);
    free(whole);
    free(cut);
}

/* Every level of a picture comes back. */
static void test_levels(void **state)
{
    struct picture p, q;
    float pixels[256 * 3];
    struct err err = {0};

    (void)state;
    MUST(picture_new(&p, 16, 16, 3, &err));
    for (size_t i = 0; i < sizeof pixels / sizeof *pixels; i++)
        p.data[i] = (uint8_t)(i / 3);
    latents_from_picture(&p, pixels);
    assert_true(pixels[0] == -1 && pixels[255 * 3] == 1);
    pixels[0] = -1.5f;
    pixels[255 * 3] = 3;
    MUST(latents_to_picture(pixels, 16, 16, &q, &err));
    assert_memory_equal(p.data, q.data, sizeof pixels / sizeof *pixels);
    picture_free(&p);
    picture_free(&q);
}

static void test_errors(void **state)
{
    struct latents *l;
    struct err err = {0};

    (void)state;
    assert_int_equal(latents_open(&l, "golden/generate/lora.safetensors", &ops, &err), -1);
    assert_null(l);
    assert_int_equal(latents_open(&l, "/nowhere/vae.safetensors", &ops, &err), -1);
}

static int open_all(void **state)
{
    (void)state;
    ops_ref(&ops);
    file = golden_open("latents.safetensors");
    error = json_loads(tensor_file_metadata(file, "error"), 0, NULL);
    return error ? 0 : -1;
}

static int close_all(void **state)
{
    (void)state;
    json_decref(error);
    tensor_file_close(file);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_whole), cmocka_unit_test(test_tiles),  cmocka_unit_test(test_samples),
        cmocka_unit_test(test_limit), cmocka_unit_test(test_levels), cmocka_unit_test(test_errors),
    };

    thread_init(2);
    return cmocka_run_group_tests(tests, open_all, close_all);
}
