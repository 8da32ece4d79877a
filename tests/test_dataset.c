/* Training data: against golden/dataset.json (make_dataset.py), and what must hold whatever the data. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "formats/hash.h"
#include "tests/lib/data.h"

/* ---- Against the oracle */

static json_t *golden(const char *part)
{
    static json_t *all;
    json_error_t e;

    if (!all)
        all = json_load_file("golden/dataset.json", 0, &e);
    if (!all)
        fail_msg("golden/dataset.json: %s", e.text);
    return json_object_get(all, part);
}

static size_t number(const json_t *array, size_t i)
{
    return (size_t)json_integer_value(json_array_get(array, i));
}

static void test_bucket_lists(void **state)
{
    json_t *one;
    size_t i, all = 0;

    (void)state;
    json_array_foreach(golden("lists"), i, one)
    {
        json_t *c = json_object_get(one, "case"), *want = json_object_get(one, "sizes");
        size_t(*size)[2];
        struct err err;
        size_t n = dataset_bucket_sizes(number(c, 0), number(c, 1), number(c, 2), number(c, 3), number(c, 4), &size, &err);

        assert_int_equal(n, json_array_size(want));
        for (size_t k = 0; k < n; k++, all++) {
            assert_int_equal(size[k][0], number(json_array_get(want, k), 0));
            assert_int_equal(size[k][1], number(json_array_get(want, k), 1));
        }
        free(size);
    }
    assert_true(all > 200);
}

static void test_bucket_choices(void **state)
{
    json_t *c;
    size_t i;

    (void)state;
    json_array_foreach(golden("choices"), i, c)
    {
        struct group g = {.buckets = true, .width = number(c, 0), .height = number(c, 1), .steps = number(c, 4)};
        size_t(*size)[2], fit[2], k, w = number(c, 5), h = number(c, 6);
        struct err err;
        size_t n = dataset_bucket_sizes(g.width, g.height, number(c, 2), number(c, 3), g.steps, &size, &err);

        k = dataset_nearest_size(size, n, w, h);
        assert_int_equal(size[k][0], number(c, 7));
        assert_int_equal(size[k][1], number(c, 8));
        dataset_fit(&g, w, h, size[k], fit);
        assert_int_equal(fit[0], number(c, 9));
        assert_int_equal(fit[1], number(c, 10));
        free(size);
    }
}

/* bucket_no_upscale, through the whole of dataset_open(): only the header of a picture is read, so it may be large. */
static void test_buckets_without_growing(void **state)
{
    json_t *c;
    size_t i;

    (void)state;
    json_array_foreach(golden("shrinking"), i, c)
    {
        struct group g = {
            .buckets = true, .no_upscale = true, .width = number(c, 0), .height = number(c, 0), .steps = number(c, 1)};
        size_t to[2] = {number(c, 4), number(c, 5)}, fit[2];

        dataset_fit(&g, number(c, 2), number(c, 3), to, fit);
        assert_int_equal(fit[0], number(c, 6));
        assert_int_equal(fit[1], number(c, 7));
    }
}

/* What the trainer sees, bit for bit: floats are turned back into the bytes that they came from. */
static void test_pixels(void **state)
{
    json_t *one;
    size_t i;

    (void)state;
    data_dir("train/1_x");
    json_array_foreach(golden("pixels"), i, one)
    {
        const char *path = json_string_value(json_object_get(one, "path"));
        json_t *resolution = json_object_get(one, "resolution"), *size = json_object_get(one, "size");
        struct data x = {0};
        struct dataset_batch b = {0};
        struct sha256 h;
        char hash[SHA256_TEXT];

        data_copy(path, "train/1_x/picture.png");
        data_open(
            &x, "--train_data_dir|%s|--resolution|%zu,%zu%s", data_path("train"), number(resolution, 0), number(resolution, 1),
            json_is_true(json_object_get(one, "buckets")) ? "|--enable_bucket|--min_bucket_reso|64|--max_bucket_reso|256" : "");
        assert_int_equal(dataset_batch(x.d, 0, 0, &b, &x.err), 0);
        assert_int_equal(b.width, number(size, 0));
        assert_int_equal(b.height, number(size, 1));
        assert_null(b.latents);
        sha256_start(&h);
        for (size_t k = 0; k < b.width * b.height * 3; k++) {
            uint8_t v = (uint8_t)lrintf((b.pixels[k] + 1) * 127.5f);

            assert_true(fabsf((float)v / 127.5f - 1 - b.pixels[k]) < 1e-6f);
            sha256_add(&h, &v, 1);
        }
        sha256_text(&h, hash);
        if (strcmp(hash, json_string_value(json_object_get(one, "sha256"))) != 0)
            fail_msg("%s, %zux%zu: other pixels than OpenCV's", path, b.width, b.height);
        dataset_batch_free(&b);
        data_close(&x);
    }
}

/* ---- Order */

/* Counts how often each picture comes in an epoch; the sum of all pixels identifies the data. */
static double count_epoch(struct data *x, size_t epoch, size_t *count, char *order, size_t size)
{
    struct dataset_batch b = {0};
    double sum = 0;

    memset(count, 0, 16 * sizeof *count);
    order[0] = 0;
    for (size_t i = 0; i < dataset_batches(x->d); i++) {
        if (dataset_batch(x->d, epoch, i, &b, &x->err))
            fail_msg("%s", x->err.msg);
        for (size_t k = 0; k < b.n; k++) {
            count[b.picture[k]]++;
            snprintf(order + strlen(order), size - strlen(order), "%zu:%zu,%s;", b.picture[k], b.repeat[k], b.caption[k]);
        }
        for (size_t k = 0; k < b.n * b.width * b.height * 3; k++)
            sum += (double)b.pixels[k] * (double)(k % 97 + 1) * (double)(i + 1);
    }
    dataset_batch_free(&b);
    return sum;
}

static void test_order(void **state)
{
    static const char line[] =
        "--train_data_dir|%s|--resolution|128,64|--caption_extension|.txt|--train_batch_size|2|--shuffle_caption"
        "|--flip_aug|--color_aug|--random_crop|--enable_bucket|--min_bucket_reso|64|--max_bucket_reso|128";
    struct data x = {.seed = 7}, y = {.seed = 7}, z = {.seed = 8};
    size_t count[16];
    char first[4096], second[4096], again[4096];
    double sum;

    (void)state;
    data_small();
    data_open(&x, line, data_path("train"));
    data_open(&y, line, data_path("train"));
    data_open(&z, line, data_path("train"));
    assert_int_equal(dataset_train_samples(x.d), 8);
    assert_int_equal(dataset_batches(x.d), 4); /* 6 samples of 64 x 64, and 2 of c, all with two in a batch */
    for (size_t epoch = 0; epoch < 5; epoch++) {
        count_epoch(&x, epoch, count, first, sizeof first);
        for (size_t i = 0; i < 5; i++)
            assert_int_equal(count[i], strstr(dataset_picture_name(x.d, i), "2_red") ? 2 : 1);
    }
    sum = count_epoch(&x, 3, count, first, sizeof first); /* going back is allowed */
    assert_true(sum == count_epoch(&y, 3, count, again, sizeof again));
    assert_string_equal(first, again);
    count_epoch(&x, 4, count, second, sizeof second);
    assert_string_not_equal(first, second);
    assert_true(sum != count_epoch(&z, 3, count, again, sizeof again));
    data_close(&x);
    data_close(&y);
    data_close(&z);
}

/* Loading ahead gives the same batches, from any place on, over the end of an epoch. */
static void test_prefetch(void **state)
{
    static const char line[] =
        "--train_data_dir|%s|--resolution|64|--caption_extension|.txt|--shuffle_caption|--flip_aug|--color_aug";
    struct data x = {.seed = 3}, y = {.seed = 3};
    struct dataset_prefetch *p;
    struct dataset_batch b = {0};
    size_t batches;

    (void)state;
    data_small();
    data_open(&x, line, data_path("train"));
    data_open(&y, line, data_path("train"));
    batches = dataset_batches(x.d);
    assert_int_equal(dataset_prefetch_open(&p, y.d, 0, 5, &x.err), 0);
    for (size_t i = 5; i < 3 * batches; i++) {
        const struct dataset_batch *ahead;

        assert_int_equal(dataset_batch(x.d, i / batches, i % batches, &b, &x.err), 0);
        assert_int_equal(dataset_prefetch_next(p, &ahead, &x.err), 0);
        assert_int_equal(b.n, ahead->n);
        assert_int_equal(b.picture[0], ahead->picture[0]);
        assert_string_equal(b.caption[0], ahead->caption[0]);
        assert_memory_equal(b.pixels, ahead->pixels, b.width * b.height * 3 * sizeof(float));
    }
    dataset_prefetch_close(p);
    dataset_prefetch_close(NULL);
    dataset_batch_free(&b);
    data_close(&x);
    data_close(&y);
}

/* A picture that vanishes while training is an error with its name, and loading ahead hands it on. */
static void test_vanished(void **state)
{
    struct data x = {0};
    struct dataset_prefetch *p;
    const struct dataset_batch *b;
    int rc = 0;

    (void)state;
    data_small();
    data_open(&x, "--train_data_dir|%s|--resolution|64|--caption_extension|.txt", data_path("train"));
    assert_int_equal(remove(data_path("train/1_dog/e.png")), 0);
    assert_int_equal(dataset_prefetch_open(&p, x.d, 0, 0, &x.err), 0);
    for (size_t i = 0; i < dataset_batches(x.d) && !rc; i++)
        rc = dataset_prefetch_next(p, &b, &x.err);
    assert_int_equal(rc, -1);
    assert_non_null(strstr(x.err.msg, "1_dog/e.png"));
    dataset_prefetch_close(p);
    data_close(&x);
}

/* ---- Captions */

static void test_captions(void **state)
{
    struct data x = {0};

    (void)state;
    data_dir("train/1_some words");
    data_picture("train/1_some words/a.png", 64, 64, 1);
    data_open(&x, "--train_data_dir|%s|--resolution|64", data_path("train"));
    assert_string_equal(data_caption(&x, 0), "some words");
    assert_true(dataset_fixed_captions(x.d));
    data_close(&x);
    data_text("train/1_some words/a.caption", "  a, b,c , d, e\r\nf");
    data_open(&x, "--train_data_dir|%s|--resolution|64", data_path("train"));
    assert_string_equal(data_caption(&x, 0), "a, b,c , d, e");
    data_close(&x);
    data_open(&x, "--train_data_dir|%s|--resolution|64|--caption_prefix|pre|--caption_suffix|post|--secondary_separator| , ",
              data_path("train"));
    assert_string_equal(data_caption(&x, 0), "pre a, b,c,d, e post");
    data_close(&x);
    data_open(&x, "--train_data_dir|%s|--resolution|64|--shuffle_caption|--keep_tokens|2", data_path("train"));
    assert_false(dataset_fixed_captions(x.d));
    for (size_t e = 0; e < 20; e++) {
        char text[64];

        snprintf(text, sizeof text, "%s", data_caption(&x, e));
        assert_true(!strncmp(text, "a, b, ", 6) && strlen(text) == strlen("a, b, c, d, e"));
        assert_string_equal(text, data_caption(&x, e));
        assert_true(strchr(text, 'c') && strchr(text, 'd') && strchr(text, 'e'));
    }
    data_close(&x);
    data_text("train/1_some words/a.caption", "x, y ||| a, b, c ||| z");
    data_open(&x, "--train_data_dir|%s|--resolution|64|--shuffle_caption|--keep_tokens_separator|///", data_path("train"));
    assert_int_equal(strlen(data_caption(&x, 0)), strlen("x, y ||| a, b, c ||| z"));
    data_close(&x);
    data_text("train/1_some words/a.caption", "x, y /// a, b, c /// z");
    data_open(&x, "--train_data_dir|%s|--resolution|64|--shuffle_caption|--keep_tokens_separator|///", data_path("train"));
    for (size_t e = 0; e < 10; e++) {
        assert_true(!strncmp(data_caption(&x, e), "x, y, ", 6));
        assert_string_equal(strrchr(data_caption(&x, e), ','), ", z");
    }
    data_close(&x);
}

/* Shares of dropped captions and parts: binomial, so within five standard deviations of the rate. */
static void test_dropout(void **state)
{
    struct data x = {0};
    size_t none = 0, parts = 0;

    (void)state;
    data_dir("train/1_a, b, c, d");
    data_picture("train/1_a, b, c, d/a.png", 64, 64, 1);
    data_open(&x, "--train_data_dir|%s|--resolution|64|--caption_dropout_rate|0.3", data_path("train"));
    for (size_t e = 0; e < 2000; e++)
        none += !*data_caption(&x, e);
    assert_true(fabs((double)none - 600) < 5 * sqrt(2000 * 0.3 * 0.7));
    data_close(&x);
    data_open(&x, "--train_data_dir|%s|--resolution|64|--caption_tag_dropout_rate|0.25|--keep_tokens|1", data_path("train"));
    for (size_t e = 0; e < 1000; e++) {
        const char *text = data_caption(&x, e);

        assert_int_equal(text[0], 'a');
        for (; *text; text++)
            parts += *text == ',';
    }
    assert_true(fabs((double)parts - 2250) < 5 * sqrt(3000 * 0.25 * 0.75));
    data_close(&x);
    data_open(&x, "--train_data_dir|%s|--resolution|64|--caption_dropout_every_n_epochs|3", data_path("train"));
    for (size_t e = 0; e < 9; e++)
        assert_int_equal(!*data_caption(&x, e), e % 3 == 2);
    data_close(&x);
    data_open(&x, "--train_data_dir|%s|--resolution|64|--token_warmup_step|8|--token_warmup_min|1", data_path("train"));
    assert_string_equal(data_caption(&x, 0), "a");
    assert_string_equal(data_caption(&x, 3), "a, b");
    assert_string_equal(data_caption(&x, 8), "a, b, c, d");
    data_close(&x);
}

static void test_wildcards(void **state)
{
    struct data x = {0};
    size_t seen[3] = {0};

    (void)state;
    data_dir("train/1_x");
    data_picture("train/1_x/a.png", 64, 64, 1);
    data_text("train/1_x/a.caption", "a {red|green} {{cat}}\n\n {}dog|s\n");
    data_open(&x, "--train_data_dir|%s|--resolution|64|--enable_wildcard", data_path("train"));
    for (size_t e = 0; e < 300; e++) {
        const char *text = data_caption(&x, e);
        size_t k = !strcmp(text, "a red {cat}") ? 0 : !strcmp(text, "a green {cat}") ? 1 : 2;

        seen[k]++;
        if (k == 2)
            assert_string_equal(text, "{}dog|s");
    }
    assert_true(seen[0] > 40 && seen[1] > 40 && seen[2] > 100);
    data_close(&x);
}

/* ---- Regularisation, validation */

static void test_regularisation(void **state)
{
    struct data x = {0};
    struct dataset_batch b = {0};
    size_t reg = 0;

    (void)state;
    data_small();
    data_dir("reg/1_cat");
    data_picture("reg/1_cat/r0.png", 64, 64, 1);
    data_picture("reg/1_cat/r1.png", 64, 64, 2);
    data_picture("reg/1_cat/r2.png", 64, 64, 3);
    data_open(&x, "--train_data_dir|%s|--resolution|64|--caption_extension|.txt|--prior_loss_weight|0.5|--reg_data_dir|%s",
              data_path("train"), data_path("reg"));
    assert_int_equal(dataset_reg_samples(x.d), 8); /* 3, 3 and 2 times: as many as there are to learn */
    for (size_t i = 0; i < dataset_batches(x.d); i++) {
        bool is_reg;

        assert_int_equal(dataset_batch(x.d, 0, i, &b, &x.err), 0);
        is_reg = strstr(dataset_picture_name(x.d, b.picture[0]), "/reg/") != NULL;
        reg += is_reg;
        assert_true(b.weight[0] == (is_reg ? 0.5f : 1.0f));
    }
    assert_int_equal(reg, 8);
    dataset_batch_free(&b);
    data_close(&x);
    data_dir("reg/20_more");
    data_picture("reg/20_more/r3.png", 64, 64, 3);
    data_picture("reg/20_more/r4.png", 64, 64, 3);
    data_open(&x, "--train_data_dir|%s|--resolution|64|--reg_data_dir|%s", data_path("train"), data_path("reg"));
    assert_int_equal(dataset_reg_samples(x.d), 23); /* the last one is not needed any more */
    assert_int_equal(dataset_pictures(x.d), 5 + 4);
    data_close(&x);
}

static void test_validation(void **state)
{
    struct data x = {0};
    struct dataset *v;
    struct dataset_batch b = {0};

    (void)state;
    data_dir("train/3_x");
    for (unsigned i = 0; i < 10; i++) {
        char name[64];

        snprintf(name, sizeof name, "train/3_x/%u.png", i);
        data_picture(name, 64, 64, i);
    }
    data_open(&x, "--train_data_dir|%s|--resolution|64|--validation_split|0.2|--flip_aug|--shuffle_caption|--color_aug",
              data_path("train"));
    v = dataset_validation(x.d);
    assert_non_null(v);
    assert_int_equal(dataset_train_samples(v), 2);
    assert_int_equal(dataset_train_samples(x.d), 24);
    for (size_t i = 0; i < 8; i++)
        for (size_t k = 0; k < 2; k++)
            assert_string_not_equal(dataset_picture_name(x.d, i), dataset_picture_name(v, k));
    for (size_t epoch = 0; epoch < 3; epoch++) {
        assert_int_equal(dataset_batch(v, epoch, 1, &b, &x.err), 0);
        assert_false(b.flipped[0]);
        assert_int_equal(b.picture[0], 1);
    }
    dataset_batch_free(&b);
    data_close(&x);
}

/* ---- Faces, crops, colours */

static void test_crops(void **state)
{
    struct data x = {0};
    struct dataset_batch b = {0};
    bool moved = false;
    float first = 0;

    (void)state;
    data_dir("train/1_x");
    data_picture("train/1_x/p_200_60_20_20.png", 256, 128, 1);
    data_text("train/1_x/p.caption", "face");
    data_open(&x, "--train_data_dir|%s|--resolution|64|--face_crop_aug_range|3.2,3.2", data_path("train"));
    assert_string_equal(data_caption(&x, 0), "face");
    assert_int_equal(dataset_batch(x.d, 0, 0, &b, &x.err), 0);
    /* face 20 pixels, 3.2 times: 64 of the file's pixels, so no scaling; the crop begins at 200 - 32, 60 - 32 */
    assert_int_equal(lrintf((b.pixels[1] + 1) * 127.5f), 168);
    assert_int_equal(lrintf((b.pixels[2] + 1) * 127.5f), 28);
    data_close(&x);
    data_open(&x, "--train_data_dir|%s|--resolution|64|--random_crop", data_path("train"));
    for (size_t e = 0; e < 8; e++) {
        assert_int_equal(dataset_batch(x.d, e, 0, &b, &x.err), 0);
        moved |= e > 0 && b.pixels[1] != first;
        first = b.pixels[1];
        assert_true(fabsf(b.pixels[4] - b.pixels[1] - 2 / 255.0f) < 1e-6f); /* the file's own scale */
    }
    assert_true(moved);
    data_close(&x);
    dataset_batch_free(&b);
}

/* A third of the samples has other colours, in half of them only the gamma. */
static void test_colours(void **state)
{
    struct data x = {0};
    size_t changed = 0;

    (void)state;
    data_dir("train/1_x");
    data_picture("train/1_x/p.png", 64, 64, 12);
    data_open(&x, "--train_data_dir|%s|--resolution|64|--color_aug", data_path("train"));
    for (size_t e = 0; e < 400; e++) {
        struct picture p;
        bool flipped;
        size_t differ = 0;

        assert_int_equal(dataset_load(x.d, 0, e, 0, true, &p, NULL, &flipped, &x.err), 0);
        for (size_t i = 0; i < 64 * 64; i++)
            differ += p.data[3 * i] != 108 || p.data[3 * i + 1] != i % 64;
        changed += differ > 0;
        picture_free(&p);
    }
    assert_true(fabs((double)changed - 132) < 5 * sqrt(400 * 0.33 * 0.67));
    data_close(&x);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_bucket_lists, data_setup, data_teardown),
        cmocka_unit_test_setup_teardown(test_bucket_choices, data_setup, data_teardown),
        cmocka_unit_test_setup_teardown(test_buckets_without_growing, data_setup, data_teardown),
        cmocka_unit_test_setup_teardown(test_pixels, data_setup, data_teardown),
        cmocka_unit_test_setup_teardown(test_order, data_setup, data_teardown),
        cmocka_unit_test_setup_teardown(test_prefetch, data_setup, data_teardown),
        cmocka_unit_test_setup_teardown(test_vanished, data_setup, data_teardown),
        cmocka_unit_test_setup_teardown(test_captions, data_setup, data_teardown),
        cmocka_unit_test_setup_teardown(test_dropout, data_setup, data_teardown),
        cmocka_unit_test_setup_teardown(test_wildcards, data_setup, data_teardown),
        cmocka_unit_test_setup_teardown(test_regularisation, data_setup, data_teardown),
        cmocka_unit_test_setup_teardown(test_validation, data_setup, data_teardown),
        cmocka_unit_test_setup_teardown(test_crops, data_setup, data_teardown),
        cmocka_unit_test_setup_teardown(test_colours, data_setup, data_teardown),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
