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
#include <sys/stat.h>

#include "cmd/train/dataset_inside.h"
#include "cmd/train/dataset_options.h"
#include "formats/hash.h"
#include "formats/npz.h"
#include "formats/output.h"
#include "tests/lib/scratch.h"

static struct command_run quiet = {.quiet = true};

struct holder {
    struct dataset_options data;
};
static const struct option_row rows[] = {DATASET_OPTION_ROWS(struct holder, data), {0}};

struct opened {
    struct holder o;
    struct option_values v;
    struct dataset *d;
    struct err err;
    uint64_t seed;
    size_t factor, channels, max_steps;
};

/* Parses a line of words, '|' between them, and opens. */
static int try_open(struct opened *x, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static int try_open(struct opened *x, const char *fmt, ...)
{
    static char line[8192];
    struct dataset_setup setup = {.run = &quiet,
                                  .seed = x->seed,
                                  .factor = x->factor ? x->factor : 8,
                                  .channels = 4,
                                  .max_tokens = 75,
                                  .max_steps = x->max_steps};
    char *argv[64], *at;
    int argc = 0;
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(line, sizeof line, fmt, ap);
    va_end(ap);
    for (at = strtok(line, "|"); at; at = strtok(NULL, "|"))
        argv[argc++] = at;
    x->d = NULL;
    assert_int_equal(option_values_init(&x->v, rows, &x->o, &x->err), 0);
    if (option_parse(&x->v, 1, "lora test", argc, argv, &x->err))
        return -1;
    return dataset_open(&x->d, &x->o.data, &setup, &x->err);
}

#define open_ok(x, ...)                                                                                                        \
    do {                                                                                                                       \
        if (try_open(x, __VA_ARGS__))                                                                                          \
            fail_msg("%s", (x)->err.msg);                                                                                      \
    } while (0)

static void close_data(struct opened *x)
{
    dataset_close(x->d);
    option_values_free(&x->v);
}

/* ---- Folders */

static const char *folder;

static const char *in(const char *name)
{
    return scratch_path(folder, name);
}

static void make_dir(const char *name)
{
    char path[4096];

    snprintf(path, sizeof path, "%s", in(name));
    for (char *s = path + strlen(folder) + 1; *s; s++)
        if (*s == '/') {
            *s = 0;
            mkdir(path, 0777);
            *s = '/';
        }
    mkdir(path, 0777);
}

static void make_text(const char *name, const char *text)
{
    scratch_write(in(name), text, strlen(text));
}

/* A picture whose pixels tell its number and place. */
static void make_picture(const char *name, size_t w, size_t h, unsigned number)
{
    struct picture p;
    struct err err;

    assert_int_equal(picture_new(&p, w, h, 3, &err), 0);
    for (size_t i = 0; i < w * h; i++) {
        p.data[3 * i] = (uint8_t)(number * 9);
        p.data[3 * i + 1] = (uint8_t)(i % w);
        p.data[3 * i + 2] = (uint8_t)(i / w);
    }
    if (picture_write(in(name), &p, NULL, 0, (struct picture_format){0}, &err))
        fail_msg("%s", err.msg);
    picture_free(&p);
}

static int setup(void **state)
{
    (void)state;
    folder = scratch_new();
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    scratch_remove(folder);
    return 0;
}

/* Two folders: 3 pictures 2 times, 2 pictures once; all 64 x 64 but one. */
static void make_small(void)
{
    make_dir("train/2_red cat");
    make_dir("train/1_dog");
    make_picture("train/2_red cat/a.png", 64, 64, 1);
    make_picture("train/2_red cat/b.png", 64, 64, 2);
    make_picture("train/2_red cat/c.png", 128, 64, 3);
    make_picture("train/1_dog/d.png", 64, 64, 4);
    make_picture("train/1_dog/e.png", 64, 64, 5);
    make_text("train/2_red cat/a.txt", "one, two, three\nsecond line\n");
    make_text("train/2_red cat/b.txt", "\xef\xbb\xbf  b1 , b2,b3,b4 \r\n");
}

static const char *caption(struct opened *x, size_t epoch)
{
    const char *text;

    assert_int_equal(dataset_caption(x->d, 0, epoch, 0, &text, &x->err), 0);
    return text;
}

static void test_plain_folder(void **state)
{
    struct opened x = {0};

    (void)state;
    make_small();
    open_ok(&x, "--train_data_dir|%s|--resolution|64", in("train/2_red cat"));
    assert_int_equal(dataset_train_samples(x.d), 6);
    assert_string_equal(caption(&x, 0), "red cat");
    close_data(&x);
    make_dir("loose");
    make_picture("loose/a.png", 64, 64, 1);
    make_text("loose/a.txt", "words");
    open_ok(&x, "--train_data_dir|%s/|--resolution|64|--caption_extension|.txt", in("loose"));
    assert_int_equal(dataset_train_samples(x.d), 1);
    assert_string_equal(caption(&x, 0), "words");
    close_data(&x);
}

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

static void copy_file(const char *from, const char *to)
{
    size_t n;
    unsigned char *data = scratch_read(from, &n);

    scratch_write(in(to), data, n);
    free(data);
}

/* What the trainer sees, bit for bit: floats are turned back into the bytes that they came from. */
static void test_pixels(void **state)
{
    json_t *one;
    size_t i;

    (void)state;
    make_dir("train/1_x");
    json_array_foreach(golden("pixels"), i, one)
    {
        const char *path = json_string_value(json_object_get(one, "path"));
        json_t *resolution = json_object_get(one, "resolution"), *size = json_object_get(one, "size");
        struct opened x = {0};
        struct dataset_batch b = {0};
        struct sha256 h;
        char hash[SHA256_TEXT];

        copy_file(path, "train/1_x/picture.png");
        open_ok(&x, "--train_data_dir|%s|--resolution|%zu,%zu%s", in("train"), number(resolution, 0), number(resolution, 1),
                json_is_true(json_object_get(one, "buckets")) ? "|--enable_bucket|--min_bucket_reso|64|--max_bucket_reso|256"
                                                              : "");
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
        close_data(&x);
    }
}

/* ---- Order */

/* Counts how often each picture comes in an epoch; the sum of all pixels identifies the data. */
static double count_epoch(struct opened *x, size_t epoch, size_t *count, char *order, size_t size)
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
    struct opened x = {.seed = 7}, y = {.seed = 7}, z = {.seed = 8};
    size_t count[16];
    char first[4096], second[4096], again[4096];
    double sum;

    (void)state;
    make_small();
    open_ok(&x, line, in("train"));
    open_ok(&y, line, in("train"));
    open_ok(&z, line, in("train"));
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
    close_data(&x);
    close_data(&y);
    close_data(&z);
}

/* Loading ahead gives the same batches, from any place on, over the end of an epoch. */
static void test_prefetch(void **state)
{
    static const char line[] =
        "--train_data_dir|%s|--resolution|64|--caption_extension|.txt|--shuffle_caption|--flip_aug|--color_aug";
    struct opened x = {.seed = 3}, y = {.seed = 3};
    struct dataset_prefetch *p;
    struct dataset_batch b = {0};
    size_t batches;

    (void)state;
    make_small();
    open_ok(&x, line, in("train"));
    open_ok(&y, line, in("train"));
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
    close_data(&x);
    close_data(&y);
}

/* A picture that vanishes while training is an error with its name, and loading ahead hands it on. */
static void test_vanished(void **state)
{
    struct opened x = {0};
    struct dataset_prefetch *p;
    const struct dataset_batch *b;
    int rc = 0;

    (void)state;
    make_small();
    open_ok(&x, "--train_data_dir|%s|--resolution|64|--caption_extension|.txt", in("train"));
    assert_int_equal(remove(in("train/1_dog/e.png")), 0);
    assert_int_equal(dataset_prefetch_open(&p, x.d, 0, 0, &x.err), 0);
    for (size_t i = 0; i < dataset_batches(x.d) && !rc; i++)
        rc = dataset_prefetch_next(p, &b, &x.err);
    assert_int_equal(rc, -1);
    assert_non_null(strstr(x.err.msg, "1_dog/e.png"));
    dataset_prefetch_close(p);
    close_data(&x);
}

/* ---- Captions */

static void test_captions(void **state)
{
    struct opened x = {0};

    (void)state;
    make_dir("train/1_some words");
    make_picture("train/1_some words/a.png", 64, 64, 1);
    open_ok(&x, "--train_data_dir|%s|--resolution|64", in("train"));
    assert_string_equal(caption(&x, 0), "some words");
    assert_true(dataset_fixed_captions(x.d));
    close_data(&x);
    make_text("train/1_some words/a.caption", "  a, b,c , d, e\r\nf");
    open_ok(&x, "--train_data_dir|%s|--resolution|64", in("train"));
    assert_string_equal(caption(&x, 0), "a, b,c , d, e");
    close_data(&x);
    open_ok(&x, "--train_data_dir|%s|--resolution|64|--caption_prefix|pre|--caption_suffix|post|--secondary_separator| , ",
            in("train"));
    assert_string_equal(caption(&x, 0), "pre a, b,c,d, e post");
    close_data(&x);
    open_ok(&x, "--train_data_dir|%s|--resolution|64|--shuffle_caption|--keep_tokens|2", in("train"));
    assert_false(dataset_fixed_captions(x.d));
    for (size_t e = 0; e < 20; e++) {
        char text[64];

        snprintf(text, sizeof text, "%s", caption(&x, e));
        assert_true(!strncmp(text, "a, b, ", 6) && strlen(text) == strlen("a, b, c, d, e"));
        assert_string_equal(text, caption(&x, e));
        assert_true(strchr(text, 'c') && strchr(text, 'd') && strchr(text, 'e'));
    }
    close_data(&x);
    make_text("train/1_some words/a.caption", "x, y ||| a, b, c ||| z");
    open_ok(&x, "--train_data_dir|%s|--resolution|64|--shuffle_caption|--keep_tokens_separator|///", in("train"));
    assert_int_equal(strlen(caption(&x, 0)), strlen("x, y ||| a, b, c ||| z"));
    close_data(&x);
    make_text("train/1_some words/a.caption", "x, y /// a, b, c /// z");
    open_ok(&x, "--train_data_dir|%s|--resolution|64|--shuffle_caption|--keep_tokens_separator|///", in("train"));
    for (size_t e = 0; e < 10; e++) {
        assert_true(!strncmp(caption(&x, e), "x, y, ", 6));
        assert_string_equal(strrchr(caption(&x, e), ','), ", z");
    }
    close_data(&x);
}

/* Shares of dropped captions and parts: binomial, so within five standard deviations of the rate. */
static void test_dropout(void **state)
{
    struct opened x = {0};
    size_t none = 0, parts = 0;

    (void)state;
    make_dir("train/1_a, b, c, d");
    make_picture("train/1_a, b, c, d/a.png", 64, 64, 1);
    open_ok(&x, "--train_data_dir|%s|--resolution|64|--caption_dropout_rate|0.3", in("train"));
    for (size_t e = 0; e < 2000; e++)
        none += !*caption(&x, e);
    assert_true(fabs((double)none - 600) < 5 * sqrt(2000 * 0.3 * 0.7));
    close_data(&x);
    open_ok(&x, "--train_data_dir|%s|--resolution|64|--caption_tag_dropout_rate|0.25|--keep_tokens|1", in("train"));
    for (size_t e = 0; e < 1000; e++) {
        const char *text = caption(&x, e);

        assert_int_equal(text[0], 'a');
        for (; *text; text++)
            parts += *text == ',';
    }
    assert_true(fabs((double)parts - 2250) < 5 * sqrt(3000 * 0.25 * 0.75));
    close_data(&x);
    open_ok(&x, "--train_data_dir|%s|--resolution|64|--caption_dropout_every_n_epochs|3", in("train"));
    for (size_t e = 0; e < 9; e++)
        assert_int_equal(!*caption(&x, e), e % 3 == 2);
    close_data(&x);
    open_ok(&x, "--train_data_dir|%s|--resolution|64|--token_warmup_step|8|--token_warmup_min|1", in("train"));
    assert_string_equal(caption(&x, 0), "a");
    assert_string_equal(caption(&x, 3), "a, b");
    assert_string_equal(caption(&x, 8), "a, b, c, d");
    close_data(&x);
}

static void test_wildcards(void **state)
{
    struct opened x = {0};
    size_t seen[3] = {0};

    (void)state;
    make_dir("train/1_x");
    make_picture("train/1_x/a.png", 64, 64, 1);
    make_text("train/1_x/a.caption", "a {red|green} {{cat}}\n\n {}dog|s\n");
    open_ok(&x, "--train_data_dir|%s|--resolution|64|--enable_wildcard", in("train"));
    for (size_t e = 0; e < 300; e++) {
        const char *text = caption(&x, e);
        size_t k = !strcmp(text, "a red {cat}") ? 0 : !strcmp(text, "a green {cat}") ? 1 : 2;

        seen[k]++;
        if (k == 2)
            assert_string_equal(text, "{}dog|s");
    }
    assert_true(seen[0] > 40 && seen[1] > 40 && seen[2] > 100);
    close_data(&x);
}

/* ---- Regularisation, validation */

static void test_regularisation(void **state)
{
    struct opened x = {0};
    struct dataset_batch b = {0};
    size_t reg = 0;

    (void)state;
    make_small();
    make_dir("reg/1_cat");
    make_picture("reg/1_cat/r0.png", 64, 64, 1);
    make_picture("reg/1_cat/r1.png", 64, 64, 2);
    make_picture("reg/1_cat/r2.png", 64, 64, 3);
    open_ok(&x, "--train_data_dir|%s|--resolution|64|--caption_extension|.txt|--prior_loss_weight|0.5|--reg_data_dir|%s",
            in("train"), in("reg"));
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
    close_data(&x);
    make_dir("reg/20_more");
    make_picture("reg/20_more/r3.png", 64, 64, 3);
    make_picture("reg/20_more/r4.png", 64, 64, 3);
    open_ok(&x, "--train_data_dir|%s|--resolution|64|--reg_data_dir|%s", in("train"), in("reg"));
    assert_int_equal(dataset_reg_samples(x.d), 23); /* the last one is not needed any more */
    assert_int_equal(dataset_pictures(x.d), 5 + 4);
    close_data(&x);
}

static void test_validation(void **state)
{
    struct opened x = {0};
    struct dataset *v;
    struct dataset_batch b = {0};

    (void)state;
    make_dir("train/3_x");
    for (unsigned i = 0; i < 10; i++) {
        char name[64];

        snprintf(name, sizeof name, "train/3_x/%u.png", i);
        make_picture(name, 64, 64, i);
    }
    open_ok(&x, "--train_data_dir|%s|--resolution|64|--validation_split|0.2|--flip_aug|--shuffle_caption|--color_aug",
            in("train"));
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
    close_data(&x);
}

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

static float first_latent(struct opened *x, const char *name, size_t epoch, bool *flipped)
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

static float cache(struct opened *x, const char *vae, size_t *calls, const char *options)
{
    bool flipped;

    *calls = 0;
    open_ok(x, "--train_data_dir|%s|--resolution|64|--caption_extension|.txt%s", in("train"), options);
    assert_true(dataset_wants_cache(x->d));
    assert_false(dataset_has_latents(x->d));
    if (dataset_cache(x->d, &quiet, fake_encode, calls, vae, &x->err))
        fail_msg("%s", x->err.msg);
    assert_true(dataset_has_latents(x->d));
    return first_latent(x, "a.png", 0, &flipped);
}

static void test_cache(void **state)
{
    struct opened x = {0};
    size_t calls;
    float plain, v;
    bool flipped, both[2] = {false};

    (void)state;
    make_small();
    plain = cache(&x, "vae one", &calls, "|--cache_latents");
    assert_int_equal(calls, 5);
    close_data(&x);
    assert_true(plain ==
                cache(&x, "another vae", &calls, "|--cache_latents|--vae_batch_size|3")); /* its noise is the picture's */
    close_data(&x);
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
    close_data(&x);
}

static void test_cache_on_disk(void **state)
{
    struct opened x = {0};
    size_t calls, files;
    float plain, v;

    (void)state;
    make_small();
    plain = cache(&x, "vae one", &calls, "|--cache_latents_to_disk");
    assert_int_equal(calls, 5);
    close_data(&x);
    files = scratch_count(in("train/2_red cat"));
    assert_int_equal(files, 5 + 3);
    assert_true(plain == cache(&x, "vae one", &calls, "|--cache_latents_to_disk"));
    assert_int_equal(calls, 0);
    close_data(&x);
    cache(&x, "another vae", &calls, "|--cache_latents_to_disk");
    assert_int_equal(calls, 5);
    close_data(&x);
    cache(&x, "vae one", &calls, "|--cache_latents_to_disk|--flip_aug"); /* the mirrored ones are missing */
    assert_int_equal(calls, 10);
    close_data(&x);
    make_picture("train/2_red cat/a.png", 64, 64, 9); /* another picture under the old name */
    v = cache(&x, "vae one", &calls, "|--cache_latents_to_disk|--flip_aug");
    assert_int_equal(calls, 2);
    assert_true(v != plain);
    close_data(&x);
    scratch_write(in("train/1_dog/d.png.64x64.00000000.npz"), "", 0);
    cache(&x, "vae one", &calls, "|--cache_latents_to_disk|--flip_aug");
    assert_int_equal(calls, 0);
    close_data(&x);
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
    struct opened x = {0};
    size_t calls = 0;

    (void)state;
    make_small();
    open_ok(&x, "--train_data_dir|%s|--resolution|64|--cache_latents", in("train"));
    assert_int_equal(dataset_cache(x.d, &quiet, broken_encode, &calls, "v", &x.err), -1);
    assert_non_null(strstr(x.err.msg, "not finite"));
    close_data(&x);
    /* a picture whose pixels are damaged, which its header does not show */
    {
        size_t n;
        unsigned char *data = scratch_read(in("train/1_dog/d.png"), &n);

        data[n / 2] ^= 0xff;
        scratch_write(in("train/1_dog/d.png"), data, n);
        free(data);
    }
    open_ok(&x, "--train_data_dir|%s|--resolution|64|--cache_latents", in("train"));
    assert_int_equal(dataset_cache(x.d, &quiet, fake_encode, &calls, "v", &x.err), -1);
    assert_non_null(strstr(x.err.msg, "1_dog/d.png"));
    close_data(&x);
    open_ok(&x, "--train_data_dir|%s|--resolution|64|--cache_latents|--skip_bad_pictures", in("train"));
    assert_int_equal(dataset_cache(x.d, &quiet, fake_encode, &calls, "v", &x.err), 0);
    assert_int_equal(dataset_pictures(x.d), 4);
    assert_int_equal(dataset_batches(x.d), 7);
    close_data(&x);
}

/* ---- The caption method */

static void write_npz(const char *name, size_t h, size_t w, float first)
{
    float *x = calloc(4 * h * w, sizeof *x);
    struct npz_array a = {"arr_0", DT_F32, {3, {4, h, w}}, x};
    struct err err;

    for (size_t i = 0; i < 4 * h * w; i++)
        x[i] = first + (float)i;
    assert_int_equal(npz_write(in(name), &a, 1, &err), 0);
    free(x);
}

static void test_metadata_file(void **state)
{
    size_t calls;
    struct opened x = {0};
    struct dataset_batch b = {0};
    char text[8192];

    (void)state;
    make_dir("pictures");
    make_picture("pictures/a.png", 64, 128, 1);
    make_picture("pictures/b.png", 128, 64, 2);
    snprintf(text, sizeof text, "{\"a\": {\"caption\": \"c\", \"tags\": \"t1, t2\"}, \"%s\": {\"tags\": \"only tags\"}}",
             in("pictures/b.png"));
    make_text("meta.json", text);
    open_ok(&x, "--train_data_dir|%s|--in_json|%s|--resolution|64|--dataset_repeats|3", in("pictures"), in("meta.json"));
    assert_int_equal(dataset_train_samples(x.d), 6);
    assert_false(dataset_wants_cache(x.d));
    assert_string_equal(caption(&x, 0), "c, t1, t2");
    close_data(&x);
    /* sizes and latents ready: pictures are not even needed */
    make_text("meta.json", "{\"a\": {\"caption\": \"c\", \"train_resolution\": [64, 128]}, "
                           "\"b\": {\"caption\": \"d\", \"train_resolution\": [128, 64]}}");
    write_npz("pictures/a.npz", 16, 8, 100);
    write_npz("pictures/b.npz", 8, 16, 200);
    open_ok(&x, "--train_data_dir|%s|--in_json|%s", in("pictures"), in("meta.json"));
    assert_true(dataset_wants_cache(x.d));
    assert_int_equal(dataset_cache(x.d, &quiet, fake_encode, NULL, "", &x.err), 0);
    for (size_t i = 0; i < 2; i++) {
        assert_int_equal(dataset_batch(x.d, 0, i, &b, &x.err), 0);
        assert_int_equal(b.width * 1000 + b.height, b.picture[0] ? 128064 : 64128);
        for (size_t k = 0; k < 4; k++) /* channels come last */
            assert_true(b.latents[4 + k] == (b.picture[0] ? 200.0f : 100.0f) + (float)(128 * k + 1));
    }
    dataset_batch_free(&b);
    close_data(&x);
    open_ok(&x, "--train_data_dir|%s|--in_json|%s|--flip_aug", in("pictures"), in("meta.json")); /* no mirrored latents */
    assert_false(dataset_wants_cache(x.d));
    assert_int_equal(x.d->findings, 2);
    close_data(&x);
    assert_int_equal(remove(in("pictures/a.png")), 0); /* latents alone will do, but cannot be shown */
    open_ok(&x, "--train_data_dir|%s|--in_json|%s", in("pictures"), in("meta.json"));
    assert_int_equal(dataset_sheet(x.d, 0, 9, folder, &x.err), -1);
    assert_non_null(strstr(x.err.msg, "only its latents are"));
    close_data(&x);
    make_picture("pictures/a.png", 64, 128, 1);
    make_dir("train/2_x");
    make_picture("train/2_x/p.png", 64, 64, 3);
    snprintf(text, sizeof text, "[[datasets]]\nresolution = 64\n[[datasets.subsets]]\nimage_dir = '%s'\nmetadata_file = '%s'\n",
             in("pictures"), in("meta.json"));
    snprintf(text + strlen(text), sizeof text - strlen(text),
             "[[datasets]]\nresolution = 64\n[[datasets.subsets]]\nimage_dir = '%s'\n", in("train/2_x"));
    make_text("two.toml", text);
    open_ok(&x, "--dataset_config|%s", in("two.toml"));
    assert_false(dataset_wants_cache(x.d)); /* a batch is of one kind */
    close_data(&x);
    open_ok(&x, "--dataset_config|%s|--cache_latents", in("two.toml"));
    calls = 0;
    assert_int_equal(dataset_cache(x.d, &quiet, fake_encode, &calls, "", &x.err), 0);
    assert_int_equal(calls, 1);
    close_data(&x);
    write_npz("pictures/a.npz", 8, 8, 100);
    open_ok(&x, "--train_data_dir|%s|--in_json|%s", in("pictures"), in("meta.json"));
    assert_int_equal(dataset_cache(x.d, &quiet, fake_encode, NULL, "", &x.err), -1);
    assert_non_null(strstr(x.err.msg, "pictures/a.npz': its latents have another size"));
    close_data(&x);
}

/* ---- Faces, crops, colours */

static void test_crops(void **state)
{
    struct opened x = {0};
    struct dataset_batch b = {0};
    bool moved = false;
    float first = 0;

    (void)state;
    make_dir("train/1_x");
    make_picture("train/1_x/p_200_60_20_20.png", 256, 128, 1);
    make_text("train/1_x/p.caption", "face");
    open_ok(&x, "--train_data_dir|%s|--resolution|64|--face_crop_aug_range|3.2,3.2", in("train"));
    assert_string_equal(caption(&x, 0), "face");
    assert_int_equal(dataset_batch(x.d, 0, 0, &b, &x.err), 0);
    /* face 20 pixels, 3.2 times: 64 of the file's pixels, so no scaling; the crop begins at 200 - 32, 60 - 32 */
    assert_int_equal(lrintf((b.pixels[1] + 1) * 127.5f), 168);
    assert_int_equal(lrintf((b.pixels[2] + 1) * 127.5f), 28);
    close_data(&x);
    open_ok(&x, "--train_data_dir|%s|--resolution|64|--random_crop", in("train"));
    for (size_t e = 0; e < 8; e++) {
        assert_int_equal(dataset_batch(x.d, e, 0, &b, &x.err), 0);
        moved |= e > 0 && b.pixels[1] != first;
        first = b.pixels[1];
        assert_true(fabsf(b.pixels[4] - b.pixels[1] - 2 / 255.0f) < 1e-6f); /* the file's own scale */
    }
    assert_true(moved);
    close_data(&x);
    dataset_batch_free(&b);
}

/* A third of the samples has other colours, in half of them only the gamma. */
static void test_colours(void **state)
{
    struct opened x = {0};
    size_t changed = 0;

    (void)state;
    make_dir("train/1_x");
    make_picture("train/1_x/p.png", 64, 64, 12);
    open_ok(&x, "--train_data_dir|%s|--resolution|64|--color_aug", in("train"));
    for (size_t e = 0; e < 400; e++) {
        struct picture p;
        bool flipped;
        size_t differ = 0;

        assert_int_equal(dataset_load(x.d, 0, e, 0, true, &p, &flipped, &x.err), 0);
        for (size_t i = 0; i < 64 * 64; i++)
            differ += p.data[3 * i] != 108 || p.data[3 * i + 1] != i % 64;
        changed += differ > 0;
        picture_free(&p);
    }
    assert_true(fabs((double)changed - 132) < 5 * sqrt(400 * 0.33 * 0.67));
    close_data(&x);
}

/* ---- dataset_config */

static void test_config(void **state)
{
    struct opened x = {0};
    json_t *meta = json_object(), *sets;
    char text[4096], dir[2][512];

    (void)state;
    make_small();
    snprintf(dir[0], sizeof dir[0], "%s", in("train/2_red cat"));
    snprintf(dir[1], sizeof dir[1], "%s", in("train/1_dog"));
    snprintf(
        text, sizeof text,
        "[general]\nshuffle_caption = true\nenable_bucket = true\nmin_bucket_reso = 64\nmax_bucket_reso = 128\n"
        "[[datasets]]\nresolution = [128, 64]\nbatch_size = 3\nkeep_tokens = 1\n"
        "  [[datasets.subsets]]\n  image_dir = '%s'\n  num_repeats = 4\n  class_tokens = 'w'\n  caption_extension = '.txt'\n"
        "  [[datasets.subsets]]\n  image_dir = '%s'\n  is_reg = true\n  class_tokens = 'r'\n"
        "[[datasets]]\nresolution = [128, 64]\nenable_bucket = false\n"
        "  [[datasets.subsets]]\n  image_dir = '%s'\n  class_tokens = 'z'\n",
        dir[0], dir[1], dir[1]);
    make_text("data.toml", text);
    open_ok(&x, "--dataset_config|%s|--train_batch_size|7", in("data.toml"));
    assert_int_equal(dataset_train_samples(x.d), 12 + 2);
    assert_int_equal(dataset_reg_samples(x.d), 12);
    assert_int_equal(dataset_max_batch(x.d), 7);
    assert_int_equal(dataset_batches(x.d), 7 + 2 + 1); /* 20 of 64 x 64 by 3, 4 of 128 x 64 by 3, 2 by 7 */
    assert_int_equal(dataset_metadata(x.d, meta, &x.err), 0);
    sets = json_loads(json_string_value(json_object_get(meta, "ss_datasets")), 0, NULL);
    assert_int_equal(json_array_size(sets), 2);
    json_decref(sets);
    json_decref(meta);
    close_data(&x);
}

/* ---- Metadata, table, contact sheet */

static void test_metadata(void **state)
{
    static const struct {
        const char *key, *value;
    } want[] = {
        {"ss_num_train_images", "8"},
        {"ss_num_reg_images", "0"},
        {"ss_num_batches_per_epoch", "8"},
        {"ss_resolution", "(64, 64)"},
        {"ss_color_aug", "False"},
        {"ss_flip_aug", "True"},
        {"ss_random_crop", "False"},
        {"ss_shuffle_caption", "False"},
        {"ss_cache_latents", "True"},
        {"ss_enable_bucket", "True"},
        {"ss_min_bucket_reso", "64"},
        {"ss_max_bucket_reso", "128"},
        {"ss_face_crop_aug_range", "None"},
        {"ss_caption_dropout_rate", "0.0"},
        {"ss_dataset_dirs",
         "{\"1_dog\": {\"n_repeats\": 1, \"img_count\": 2}, \"2_red cat\": {\"n_repeats\": 2, \"img_count\": 3}}"},
        {"ss_reg_dataset_dirs", "{}"},
        {"ss_tag_frequency",
         "{\"1_dog\": {\"dog\": 2}, \"2_red cat\": {\"one\": 1, \"two\": 1, \"three\": 1, \"b1\": 1, \"b2\": 1, "
         "\"b3\": 1, \"b4\": 1, \"red cat\": 1}}"},
    };
    struct opened x = {0};
    json_t *meta = json_object();
    char *table;

    (void)state;
    make_small();
    open_ok(&x,
            "--train_data_dir|%s|--resolution|64|--caption_extension|.txt|--flip_aug|--cache_latents|--enable_bucket"
            "|--min_bucket_reso|64|--max_bucket_reso|128",
            in("train"));
    assert_int_equal(dataset_metadata(x.d, meta, &x.err), 0);
    for (size_t i = 0; i < sizeof want / sizeof want[0]; i++)
        assert_string_equal(json_string_value(json_object_get(meta, want[i].key)), want[i].value);
    assert_null(strstr(json_string_value(json_object_get(meta, "ss_bucket_info")), folder));
    table = dataset_table(x.d, &x.err);
    assert_non_null(strstr(table, "2_red cat      3 pictures ->      6 samples an epoch\n"));
    assert_non_null(strstr(table, "8 batches an epoch\n"));
    free(table);
    json_decref(meta);
    close_data(&x);
}

static void test_sheet(void **state)
{
    struct opened x = {0};
    struct picture p;
    unsigned char *page;
    size_t n, figures = 0;

    (void)state;
    make_small();
    make_text("train/2_red cat/a.txt", "a <b> & \"c\"");
    open_ok(&x, "--train_data_dir|%s|--resolution|64|--caption_extension|.txt|--flip_aug", in("train"));
    make_dir("out");
    assert_int_equal(dataset_sheet(x.d, 0, 100, in("out"), &x.err), 0);
    assert_int_equal(picture_read(&p, in("out/dataset.png"), &x.err), 0);
    assert_int_equal(p.height, 8 + 2 * (96 + 41 + 8));
    assert_int_equal(p.data[0], 48);
    picture_free(&p);
    page = scratch_read(in("out/dataset.html"), &n);
    for (char *s = (char *)page; (s = strstr(s, "<figure>")); s++)
        figures++;
    assert_int_equal(figures, 8);
    assert_non_null(strstr((char *)page, "a &lt;b&gt; &amp; &quot;c&quot;"));
    free(page);
    close_data(&x);
}

/* ---- Bad input */

struct refusal {
    const char *line, *message;
};

static void test_refusals(void **state)
{
    static const struct refusal cases[] = {
        {"", "name their folder with --train_data_dir"},
        {"--train_data_dir|DIR/none|--resolution|64", "cannot read the folder 'DIR/none': No such file"},
        {"--train_data_dir|DIR/empty|--resolution|64", "no folders to train on in 'DIR/empty'"},
        {"--train_data_dir|DIR/numberless|--resolution|64", "whose name is REPEATS_words, as in '10_sks dog'"},
        {"--train_data_dir|DIR/hollow|--resolution|64", "no pictures in 'DIR/hollow/3_x'"},
        {"--train_data_dir|DIR/train", "--resolution is needed"},
        {"--train_data_dir|DIR/train|--resolution|x", "neither a size nor width,height"},
        {"--train_data_dir|DIR/train|--resolution|64,", "neither a size nor width,height"},
        {"--train_data_dir|DIR/train|--resolution|0", "out of range"},
        {"--train_data_dir|DIR/train|--resolution|-64", "out of range"},
        {"--train_data_dir|DIR/train|--resolution|100", "sides have to be multiples of 8; take 96,96"},
        {"--train_data_dir|DIR/train|--resolution|500,500|--enable_bucket",
         "sides have to be multiples of 64 where there are buckets (see --bucket_reso_steps); take 448,448"},
        {"--train_data_dir|DIR/train|--resolution|512|--enable_bucket|--bucket_reso_steps|20", "no multiple of 8"},
        {"--train_data_dir|DIR/train|--resolution|512|--enable_bucket|--min_bucket_reso|576", "larger than the resolution"},
        {"--train_data_dir|DIR/train|--resolution|512|--enable_bucket|--max_bucket_reso|448", "smaller than the resolution"},
        {"--train_data_dir|DIR/train|--resolution|512|--enable_bucket|--max_bucket_reso|1000", "multiples of 64"},
        {"--train_data_dir|DIR/train|--resolution|64|--color_aug|--cache_latents", "leave one of them out"},
        {"--train_data_dir|DIR/train|--resolution|64|--face_crop_aug_range|2", "no pair low,high"},
        {"--train_data_dir|DIR/train|--resolution|64|--face_crop_aug_range|4,2", "no pair low,high"},
        {"--train_data_dir|DIR/train|--resolution|64|--dataset_config|DIR/a.toml", "or the other way round"},
        {"--train_data_dir|DIR/train|--in_json|DIR/none.json",
         "there is no such file; 'lora prepare FOLDER --out DIR/none.json' makes one"},
        {"--train_data_dir|DIR/train|--in_json|DIR/broken.json", "'DIR/broken.json': line 2: "},
        {"--train_data_dir|DIR/train|--in_json|DIR/list.json", "no metadata file"},
        {"--train_data_dir|DIR/train|--in_json|DIR/number.json", "'caption' of picture 'a' is no text"},
        {"--train_data_dir|DIR/train|--in_json|DIR/gone.json|--resolution|64",
         "no picture can be used; the first is 'gone': not found"},
        {"--train_data_dir|DIR/train|--in_json|DIR/odd.json", "sides have to be multiples of 8"},
        {"--train_data_dir|DIR/train|--in_json|DIR/pair.json", "no pair of numbers"},
        {"--dataset_config|DIR/none.toml", "no such file"},
        {"--dataset_config|DIR/unknown.toml",
         "'shufle_caption' in [[datasets]] is no key known here; did you mean 'shuffle_caption'?"},
        {"--dataset_config|DIR/place.toml", "'batch_size' in [[datasets.subsets]] belongs to [[datasets]]"},
        {"--dataset_config|DIR/type.toml", "'num_repeats' in [[datasets.subsets]] has to be a whole number"},
        {"--dataset_config|DIR/mask.toml", "'alpha_mask' in [general] has to be false"},
        {"--dataset_config|DIR/nodir.toml", "neither 'image_dir' nor 'metadata_file'"},
        {"--dataset_config|DIR/nosets.toml", "there is no [[datasets]]"},
        {"--dataset_config|DIR/nosubsets.toml", "has no [[datasets.subsets]]"},
    };

    (void)state;
    make_small();
    make_dir("empty");
    make_dir("numberless/cats");
    make_dir("hollow/3_x");
    make_text("broken.json", "{\n\"a\": {\"caption\": }}");
    make_text("list.json", "[1]");
    make_text("number.json", "{\"a\": {\"caption\": 3}}");
    make_text("gone.json", "{\"gone\": {\"caption\": \"c\"}}");
    make_text("odd.json", "{\"2_red cat/a\": {\"caption\": \"c\", \"train_resolution\": [63, 64]}}");
    make_text("pair.json", "{\"2_red cat/a\": {\"caption\": \"c\", \"train_resolution\": [64]}}");
    make_text("unknown.toml", "[[datasets]]\nshufle_caption = true\n");
    make_text("place.toml", "[[datasets]]\n[[datasets.subsets]]\nbatch_size = 2\n");
    make_text("type.toml", "[[datasets]]\n[[datasets.subsets]]\nnum_repeats = 'x'\n");
    make_text("mask.toml", "[general]\ncache_info = true\nalpha_mask = true\n");
    make_text("nodir.toml", "[[datasets]]\n[[datasets.subsets]]\nnum_repeats = 2\n");
    make_text("nosets.toml", "[general]\nnum_repeats = 2\n");
    make_text("nosubsets.toml", "[[datasets]]\nnum_repeats = 2\n");
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char line[4096] = "", message[4096] = "";
        struct opened x = {0};
        const char *from[] = {cases[i].line, cases[i].message};
        char *to[] = {line, message};

        for (int k = 0; k < 2; k++)
            for (const char *s = from[k]; *s;)
                if (!strncmp(s, "DIR", 3)) {
                    strcat(to[k], folder);
                    s += 3;
                } else {
                    strncat(to[k], s++, 1);
                }
        assert_int_equal(try_open(&x, "%s", line), -1);
        if (!strstr(x.err.msg, message))
            fail_msg("%s\nsays: %s\nnot:  %s", line, x.err.msg, message);
        close_data(&x);
    }
}

static bool found(const struct opened *x, enum finding_kind kind, const char *name)
{
    for (size_t i = 0; i < x->d->findings; i++)
        if (x->d->finding[i].kind == kind && strstr(x->d->finding[i].name, name))
            return true;
    return false;
}

static void test_findings(void **state)
{
    struct opened x = {0};
    size_t n;
    unsigned char *data;
    char text[2048] = "";

    (void)state;
    make_small();
    data = scratch_read(in("train/1_dog/d.png"), &n);
    scratch_write(in("train/1_dog/cut.png"), data, n - 20);
    free(data);
    make_text("train/1_dog/text.jpg", "this is no picture");
    make_picture("train/1_dog/tiny.png", 16, 16, 1);
    make_picture("train/1_dog/latin.png", 64, 64, 1);
    make_text("train/1_dog/latin.txt", "caf\xe9");
    make_picture("train/1_dog/wide.png", 64, 64, 1);
    scratch_write(in("train/1_dog/wide.txt"),
                  "\xff\xfe"
                  "a\0",
                  4);
    make_picture("train/1_dog/void.png", 64, 64, 1);
    make_text("train/1_dog/void.txt", "");
    make_picture("train/1_dog/long.png", 64, 64, 1);
    for (int i = 0; i < 80; i++)
        strcat(text, "word, ");
    make_text("train/1_dog/long.txt", text);
    make_dir("train/nonumber");
    open_ok(&x, "--train_data_dir|%s|--resolution|64|--caption_extension|.txt", in("train"));
    assert_true(found(&x, FINDING_UNREADABLE, "cut.png"));
    assert_true(found(&x, FINDING_UNREADABLE, "text.jpg"));
    assert_true(found(&x, FINDING_TINY, "tiny.png"));
    assert_true(found(&x, FINDING_CAPTION_BAD, "latin.txt"));
    assert_true(found(&x, FINDING_CAPTION_BAD, "wide.txt"));
    assert_true(found(&x, FINDING_CAPTION_EMPTY, "void.txt"));
    assert_true(found(&x, FINDING_CAPTION_LONG, "long.png"));
    assert_true(found(&x, FINDING_FOLDER, "nonumber"));
    assert_true(found(&x, FINDING_CAPTION_WORDS, "d.png"));
    assert_int_equal(dataset_pictures(x.d), 8);
    assert_int_equal(dataset_print_findings(x.d, &quiet, &x.err), -1);
    assert_non_null(strstr(x.err.msg, "4 files of the training data cannot be used"));
    close_data(&x);
    open_ok(&x, "--train_data_dir|%s|--resolution|64|--caption_extension|.txt|--skip_bad_pictures", in("train"));
    assert_int_equal(dataset_pictures(x.d), 8);
    assert_int_equal(dataset_print_findings(x.d, &quiet, &x.err), 0);
    close_data(&x);
    open_ok(&x, "--train_data_dir|%s|--resolution|64|--skip_bad_pictures", in("train"));
    assert_true(found(&x, FINDING_CAPTION_WORDS, "a.png"));
    for (size_t i = 0; i < x.d->findings; i++)
        if (strstr(x.d->finding[i].name, "a.png"))
            assert_string_equal(x.d->finding[i].detail, "but there is 'a.txt'; to use it, give --caption_extension .txt");
    close_data(&x);
    open_ok(&x, "--train_data_dir|%s|--resolution|64|--skip_bad_pictures|--caption_extension|txt", in("train"));
    assert_false(found(&x, FINDING_CAPTION_WORDS, "a.png"));
    close_data(&x);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_bucket_lists),  TEST(test_bucket_choices), TEST(test_buckets_without_growing),
        TEST(test_pixels),        TEST(test_order),          TEST(test_prefetch),
        TEST(test_vanished),      TEST(test_captions),       TEST(test_dropout),
        TEST(test_wildcards),     TEST(test_regularisation), TEST(test_validation),
        TEST(test_cache),         TEST(test_cache_on_disk),  TEST(test_cache_errors),
        TEST(test_metadata_file), TEST(test_crops),          TEST(test_colours),
        TEST(test_config),        TEST(test_metadata),       TEST(test_plain_folder),
        TEST(test_sheet),         TEST(test_refusals),       TEST(test_findings),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
