/* Training data as latents: made once, kept on the disk, read from .npz files. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "formats/npz.h"
#include "tests/lib/data.h"

/* ---- Latents */

/* Every latent is the picture's mean plus the seed's last digits, so that a test can tell what it is looking at. */
static int fake_encode(void *ctx, const float *pixels, size_t n, size_t h, size_t w, const uint64_t *seed, float *latents,
                       struct err *err)
{
    size_t each = h / 8 * (w / 8) * 4;

    (void)err;
    *(size_t *)ctx += n;
    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < each; k++)
            latents[i * each + k] = pixels[i * h * w * 3 + 1] + (float)k + (float)(seed[i] % 1000);
    return 0;
}

static float first_latent(struct data *x, const char *name, size_t epoch, bool *flipped)
{
    struct dataset_batch b = {0};
    float v = NAN;

    for (size_t i = 0; i < dataset_batches(x->d); i++) {
        assert_int_equal(dataset_batch(x->d, epoch, i, &b, &x->err), 0);
        assert_non_null(b.latents);
        assert_null(b.pixels);
        for (size_t k = 0; k < b.n; k++)
            if (strstr(dataset_picture_name(x->d, b.picture[k]), name)) {
                v = b.latents[k * b.width / 8 * b.height / 8 * 4];
                *flipped = b.flipped[k];
            }
    }
    dataset_batch_free(&b);
    return v;
}

static float cache(struct data *x, const char *vae, size_t *calls, const char *options)
{
    bool flipped;

    *calls = 0;
    data_open(x, "--train_data_dir|%s|--resolution|64|--caption_extension|.txt%s", data_path("train"), options);
    assert_true(dataset_wants_cache(x->d));
    assert_false(dataset_has_latents(x->d));
    if (dataset_cache(x->d, &data_quiet, fake_encode, calls, vae, &x->err))
        fail_msg("%s", x->err.msg);
    assert_true(dataset_has_latents(x->d));
    return first_latent(x, "a.png", 0, &flipped);
}

static void test_cache(void **state)
{
    struct data x = {0};
    size_t calls;
    float plain, v;
    bool flipped, both[2] = {false};

    (void)state;
    data_small();
    plain = cache(&x, "vae one", &calls, "|--cache_latents");
    assert_int_equal(calls, 5);
    data_close(&x);
    assert_true(plain ==
                cache(&x, "another vae", &calls, "|--cache_latents|--vae_batch_size|3")); /* its noise is the picture's */
    data_close(&x);
    cache(&x, "vae one", &calls, "|--cache_latents|--flip_aug");
    assert_int_equal(calls, 10);
    for (size_t e = 0; e < 8; e++) {
        v = first_latent(&x, "a.png", e, &flipped);
        both[flipped] = true;
        if (!flipped)
            assert_true(v == plain);
        else
            assert_true(v != plain);
    }
    assert_true(both[0] && both[1]);
    data_close(&x);
}

static void test_cache_on_disk(void **state)
{
    struct data x = {0};
    size_t calls, files;
    float plain, v;

    (void)state;
    data_small();
    plain = cache(&x, "vae one", &calls, "|--cache_latents_to_disk");
    assert_int_equal(calls, 5);
    data_close(&x);
    files = scratch_count(data_path("train/2_red cat"));
    assert_int_equal(files, 5 + 3);
    assert_true(plain == cache(&x, "vae one", &calls, "|--cache_latents_to_disk"));
    assert_int_equal(calls, 0);
    data_close(&x);
    cache(&x, "another vae", &calls, "|--cache_latents_to_disk");
    assert_int_equal(calls, 5);
    data_close(&x);
    cache(&x, "vae one", &calls, "|--cache_latents_to_disk|--flip_aug"); /* the mirrored ones are missing */
    assert_int_equal(calls, 10);
    data_close(&x);
    data_picture("train/2_red cat/a.png", 64, 64, 9); /* another picture under the old name */
    v = cache(&x, "vae one", &calls, "|--cache_latents_to_disk|--flip_aug");
    assert_int_equal(calls, 2);
    assert_true(v != plain);
    data_close(&x);
    scratch_write(data_path("train/1_dog/d.png.64x64.00000000.npz"), "", 0);
    cache(&x, "vae one", &calls, "|--cache_latents_to_disk|--flip_aug");
    assert_int_equal(calls, 0);
    data_close(&x);
}

static int broken_encode(void *ctx, const float *pixels, size_t n, size_t h, size_t w, const uint64_t *seed, float *latents,
                         struct err *err)
{
    fake_encode(ctx, pixels, n, h, w, seed, latents, err);
    latents[3] = NAN;
    return 0;
}

static void test_cache_errors(void **state)
{
    struct data x = {0};
    size_t calls = 0;

    (void)state;
    data_small();
    data_open(&x, "--train_data_dir|%s|--resolution|64|--cache_latents", data_path("train"));
    assert_int_equal(dataset_cache(x.d, &data_quiet, broken_encode, &calls, "v", &x.err), -1);
    assert_non_null(strstr(x.err.msg, "not finite"));
    data_close(&x);
    /* a picture whose pixels are damaged, which its header does not show */
    {
        size_t n;
        unsigned char *data = scratch_read(data_path("train/1_dog/d.png"), &n);

        data[n / 2] ^= 0xff;
        scratch_write(data_path("train/1_dog/d.png"), data, n);
        free(data);
    }
    data_open(&x, "--train_data_dir|%s|--resolution|64|--cache_latents", data_path("train"));
    assert_int_equal(dataset_cache(x.d, &data_quiet, fake_encode, &calls, "v", &x.err), -1);
    assert_non_null(strstr(x.err.msg, "1_dog/d.png"));
    data_close(&x);
    data_open(&x, "--train_data_dir|%s|--resolution|64|--cache_latents|--skip_bad_pictures", data_path("train"));
    assert_int_equal(dataset_cache(x.d, &data_quiet, fake_encode, &calls, "v", &x.err), 0);
    assert_int_equal(dataset_pictures(x.d), 4);
    assert_int_equal(dataset_batches(x.d), 7);
    data_close(&x);
}

/* ---- The caption method */

static void write_npz(const char *name, size_t h, size_t w, float first)
{
    float *x = calloc(4 * h * w, sizeof *x);
    struct npz_array a = {"arr_0", DT_F32, {3, {4, h, w}}, x};
    struct err err;

    for (size_t i = 0; i < 4 * h * w; i++)
        x[i] = first + (float)i;
    assert_int_equal(npz_write(data_path(name), &a, 1, &err), 0);
    free(x);
}

static void test_metadata_file(void **state)
{
    size_t calls;
    struct data x = {0};
    struct dataset_batch b = {0};
    char text[8192];

    (void)state;
    data_dir("pictures");
    data_picture("pictures/a.png", 64, 128, 1);
    data_picture("pictures/b.png", 128, 64, 2);
    snprintf(text, sizeof text, "{\"a\": {\"caption\": \"c\", \"tags\": \"t1, t2\"}, \"%s\": {\"tags\": \"only tags\"}}",
             data_path("pictures/b.png"));
    data_text("meta.json", text);
    data_open(&x, "--train_data_dir|%s|--in_json|%s|--resolution|64|--dataset_repeats|3", data_path("pictures"),
              data_path("meta.json"));
    assert_int_equal(dataset_train_samples(x.d), 6);
    assert_false(dataset_wants_cache(x.d));
    assert_string_equal(data_caption(&x, 0), "c, t1, t2");
    data_close(&x);
    /* sizes and latents ready: pictures are not even needed */
    data_text("meta.json", "{\"a\": {\"caption\": \"c\", \"train_resolution\": [64, 128]}, "
                           "\"b\": {\"caption\": \"d\", \"train_resolution\": [128, 64]}}");
    write_npz("pictures/a.npz", 16, 8, 100);
    write_npz("pictures/b.npz", 8, 16, 200);
    data_open(&x, "--train_data_dir|%s|--in_json|%s", data_path("pictures"), data_path("meta.json"));
    assert_true(dataset_wants_cache(x.d));
    assert_int_equal(dataset_cache(x.d, &data_quiet, fake_encode, NULL, "", &x.err), 0);
    for (size_t i = 0; i < 2; i++) {
        assert_int_equal(dataset_batch(x.d, 0, i, &b, &x.err), 0);
        assert_int_equal(b.width * 1000 + b.height, b.picture[0] ? 128064 : 64128);
        for (size_t k = 0; k < 4; k++) /* channels come last */
            assert_true(b.latents[4 + k] == (b.picture[0] ? 200.0f : 100.0f) + (float)(128 * k + 1));
    }
    dataset_batch_free(&b);
    data_close(&x);
    data_open(&x, "--train_data_dir|%s|--in_json|%s|--flip_aug", data_path("pictures"),
              data_path("meta.json")); /* no mirrored latents */
    assert_false(dataset_wants_cache(x.d));
    assert_int_equal(x.d->findings, 2);
    data_close(&x);
    assert_int_equal(remove(data_path("pictures/a.png")), 0); /* latents alone will do, but cannot be shown */
    data_open(&x, "--train_data_dir|%s|--in_json|%s", data_path("pictures"), data_path("meta.json"));
    assert_int_equal(dataset_sheet(x.d, 0, 9, data_folder, &x.err), -1);
    assert_non_null(strstr(x.err.msg, "only its latents are"));
    data_close(&x);
    data_picture("pictures/a.png", 64, 128, 1);
    data_dir("train/2_x");
    data_picture("train/2_x/p.png", 64, 64, 3);
    snprintf(text, sizeof text, "[[datasets]]\nresolution = 64\n[[datasets.subsets]]\nimage_dir = '%s'\nmetadata_file = '%s'\n",
             data_path("pictures"), data_path("meta.json"));
    snprintf(text + strlen(text), sizeof text - strlen(text),
             "[[datasets]]\nresolution = 64\n[[datasets.subsets]]\nimage_dir = '%s'\n", data_path("train/2_x"));
    data_text("two.toml", text);
    data_open(&x, "--dataset_config|%s", data_path("two.toml"));
    assert_false(dataset_wants_cache(x.d)); /* a batch is of one kind */
    data_close(&x);
    data_open(&x, "--dataset_config|%s|--cache_latents", data_path("two.toml"));
    calls = 0;
    assert_int_equal(dataset_cache(x.d, &data_quiet, fake_encode, &calls, "", &x.err), 0);
    assert_int_equal(calls, 1);
    data_close(&x);
    write_npz("pictures/a.npz", 8, 8, 100);
    data_open(&x, "--train_data_dir|%s|--in_json|%s", data_path("pictures"), data_path("meta.json"));
    assert_int_equal(dataset_cache(x.d, &data_quiet, fake_encode, NULL, "", &x.err), -1);
    assert_non_null(strstr(x.err.msg, "pictures/a.npz': its latents have another size"));
    data_close(&x);
}

/* ---- Masks of the loss */

/* 128 x 128, of blocks of 16 x 16, each of which becomes one pixel of the latents at 64 x 64. */
static unsigned block(size_t x, size_t y)
{
    return (unsigned)(17 * ((x / 16 + 3 * (y / 16)) % 16));
}

static void write_blocks(const char *name, size_t w, size_t h, unsigned channels, int alpha, int red)
{
    struct picture p;
    struct err err;

    assert_int_equal(picture_new(&p, w, h, channels, &err), 0);
    for (size_t i = 0; i < w * h; i++) {
        size_t x = i % w * 128 / w, y = i / w * 128 / h;

        for (unsigned k = 0; k < channels; k++)
            p.data[i * channels + k] = (uint8_t)((int)k == alpha || (int)k == red ? block(x, y) : 40 * k + x);
    }
    assert_int_equal(picture_write(data_path(name), &p, NULL, 0, (struct picture_format){0}, &err), 0);
    picture_free(&p);
}

/* All batches of some epochs have the blocks as masks, mirrored where the picture is; b.pixels are those that `like` has. */
static void check_masks(struct data *x, struct data *like)
{
    struct dataset_batch b = {0}, c = {0};
    size_t flipped = 0, n = 0;

    for (size_t e = 0; e < 20; e++)
        for (size_t i = 0; i < dataset_batches(x->d); i++) {
            assert_int_equal(dataset_batch(x->d, e, i, &b, &x->err), 0);
            assert_non_null(b.mask);
            for (size_t k = 0; k < b.n * 64; k++) {
                size_t at = k % 8, row = k / 8 % 8;

                if (b.flipped[k / 64])
                    at = 7 - at;
                assert_true(b.mask[k] == (float)block(16 * at, 16 * row) / 255);
            }
            flipped += b.flipped[0];
            n++;
            if (!like)
                continue;
            assert_int_equal(dataset_batch(like->d, e, i, &c, &like->err), 0);
            assert_null(c.mask);
            assert_memory_equal(b.pixels, c.pixels, b.n * 64 * 64 * 3 * sizeof(float));
        }
    assert_true(flipped > 0 && flipped < n);
    dataset_batch_free(&b);
    dataset_batch_free(&c);
}

static void test_alpha_mask(void **state)
{
    struct data x = {0}, like = {0};
    struct dataset_batch b = {0};
    size_t calls = 0;

    (void)state;
    data_dir("train/1_x");
    write_blocks("train/1_x/p.png", 128, 128, 4, 3, -1);
    data_open(&like, "--train_data_dir|%s|--resolution|64|--flip_aug|--color_aug", data_path("train"));
    data_open(&x, "--train_data_dir|%s|--resolution|64|--flip_aug|--color_aug|--alpha_mask", data_path("train"));
    check_masks(&x, &like);
    data_close(&like);
    data_close(&x);
    data_open(&x, "--train_data_dir|%s|--resolution|64|--flip_aug|--alpha_mask|--cache_latents", data_path("train"));
    assert_int_equal(dataset_cache(x.d, &data_quiet, fake_encode, &calls, "v", &x.err), 0);
    check_masks(&x, NULL);
    data_close(&x);
    data_picture("train/1_x/p.png", 128, 128, 1); /* without transparency */
    data_open(&x, "--train_data_dir|%s|--resolution|64|--alpha_mask", data_path("train"));
    assert_int_equal(dataset_batch(x.d, 0, 0, &b, &x.err), 0);
    for (size_t k = 0; k < 64; k++)
        assert_true(b.mask[k] == 1);
    dataset_batch_free(&b);
    data_close(&x);
}

/* Masks in a folder: the red of a picture of the same name, also of a smaller one; not of another shape. Regularisation pictures
 * have none. */
static void test_mask_folder(void **state)
{
    struct data x = {0};
    const char *bad[3];
    size_t n = 0;

    (void)state;
    data_dir("train/1_x");
    data_dir("masks");
    data_picture("train/1_x/p.png", 128, 128, 1);
    write_blocks("masks/p.png", 64, 64, 3, -1, 0);
    for (const char **name = (const char *[]){"masks/o.png", "masks/p-1.png", "masks/p.1.png", "masks/pp.png", "masks/q0.png", NULL};
         *name; name++)
        data_picture(*name, 128, 128, 9); /* others' names around it */
    data_open(&x, "--train_data_dir|%s|--resolution|64|--flip_aug|--masked_loss|--conditioning_data_dir|%s", data_path("train"),
              data_path("masks"));
    check_masks(&x, NULL);
    data_close(&x);
    data_picture("train/1_x/q.png", 64, 64, 2);
    data_picture("train/1_x/r.png", 64, 64, 3);
    data_picture("masks/r.png", 64, 32, 3);
    data_open(&x, "--train_data_dir|%s|--resolution|64|--flip_aug|--masked_loss|--conditioning_data_dir|%s|--skip_bad_pictures",
              data_path("train"), data_path("masks"));
    for (size_t i = 0; i < x.d->findings; i++)
        if (x.d->finding[i].kind == FINDING_MASK_BAD)
            bad[n++ % 3] = x.d->finding[i].detail;
    assert_int_equal(n, 2);
    assert_non_null(strstr(bad[0], "no picture of that name"));
    assert_non_null(strstr(bad[1], "64 x 32, the picture 64 x 64"));
    check_masks(&x, NULL);
    data_close(&x);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_alpha_mask, data_setup, data_teardown),
        cmocka_unit_test_setup_teardown(test_mask_folder, data_setup, data_teardown),
        cmocka_unit_test_setup_teardown(test_cache, data_setup, data_teardown),
        cmocka_unit_test_setup_teardown(test_cache_on_disk, data_setup, data_teardown),
        cmocka_unit_test_setup_teardown(test_cache_errors, data_setup, data_teardown),
        cmocka_unit_test_setup_teardown(test_metadata_file, data_setup, data_teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
