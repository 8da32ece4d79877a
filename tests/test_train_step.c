/* A whole training in small: steps allocate nothing, the state holds all that a step depends on, broken numbers are skipped and then
 * end the training with the layer's name. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cmd/train/check.h"
#include "cmd/train/train.h"
#include "ref/base/thread.h"
#include "tests/lib/scratch.h"

#define MUST(call)                   \
    do {                             \
        if ((call) < 0)              \
            fail_msg("%s", err.msg); \
    } while (0)

/* ---- What this thread allocates: glibc's functions under the usual names. The sanitizer has its own. ---- */

static _Thread_local size_t allocations;

#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__)
#define COUNTS true
void *__libc_malloc(size_t n);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *p, size_t n);
void *__libc_memalign(size_t align, size_t n);

void *malloc(size_t n)
{
    allocations++;
    return __libc_malloc(n);
}

void *calloc(size_t n, size_t size)
{
    allocations++;
    return __libc_calloc(n, size);
}

void *realloc(void *p, size_t n)
{
    allocations++;
    return __libc_realloc(p, n);
}

void *aligned_alloc(size_t align, size_t n)
{
    allocations++;
    return __libc_memalign(align, n);
}

int posix_memalign(void **p, size_t align, size_t n)
{
    allocations++;
    *p = __libc_memalign(align, n);
    return *p ? 0 : ENOMEM;
}
#else
#define COUNTS false
#endif

/* ---- A trainer on the small model and four of its pictures ---- */

static const char *folder, *reg;

struct subject {
    struct train_options o;
    struct option_values values;
    struct command_run run;
    struct trainer t;
    struct dataset_prefetch *data;
};

static void set(struct subject *s, const char *name, const char *value)
{
    struct err err = {0};
    size_t i = option_find(&s->values, name);

    assert_true(i != SIZE_MAX);
    MUST(option_set(&s->values, i, &value, value ? 1 : 0, OPTION_FROM_LINE, &err));
}

static void begin(struct subject *s)
{
    struct err err = {0};

    memset(s, 0, sizeof *s);
    MUST(option_values_init(&s->values, train_option_rows, &s->o, &err));
    s->run = (struct command_run){.values = &s->values, .quiet = true};
    set(s, "pretrained_model_name_or_path", "golden/small_model/small.safetensors");
    set(s, "train_data_dir", folder);
    set(s, "output_dir", folder);
    set(s, "caption_extension", ".txt");
    set(s, "resolution", "64");
    set(s, "train_batch_size", "2");
    set(s, "network_dim", "2");
    set(s, "seed", "5");
    set(s, "device", "cpu");
    set(s, "cache_latents", NULL);
    set(s, "max_train_steps", "40");
}

static void open_trainer(struct subject *s)
{
    struct err err = {0};

    MUST(train_open(&s->t, &s->run, &s->o, &err));
    MUST(dataset_prefetch_open(&s->data, s->t.data, s->t.now.epoch, s->t.now.batch, &err));
}

static void end(struct subject *s)
{
    dataset_prefetch_close(s->data);
    train_close(&s->t);
    option_values_free(&s->values);
}

/* As the loop counts. */
static int step(struct subject *s, struct err *err)
{
    int rc = train_step(&s->t, s->data, err);

    if (s->t.now.batch == s->t.batches) {
        s->t.now.batch = 0;
        s->t.now.epoch++;
    }
    return rc;
}

/* ---- Tests ---- */

static void count_steps(struct subject *s)
{
    struct err err = {0};

    open_trainer(s);
    for (int i = 0; i < 6; i++) /* every shape of batch has been seen */
        MUST(step(s, &err));
    allocations = 0;
    for (int i = 0; i < 6; i++)
        MUST(step(s, &err));
    assert_int_equal(allocations, 0);
    end(s);
}

/* One thread, so that all of a step's work is this thread's. */
static void test_no_allocation(void **state)
{
    struct subject s;

    (void)state;
    if (!COUNTS)
        skip();
    thread_init(1);
    begin(&s);
    set(&s, "network_dropout", "0.1");
    set(&s, "gradient_accumulation_steps", "2");
    set(&s, "max_token_length", "150");
    set(&s, "scale_weight_norms", "1");
    count_steps(&s);
    begin(&s);
    set(&s, "network_train_unet_only", NULL);
    set(&s, "weighted_captions", NULL);
    set(&s, "optimizer_type", "AdamW8bit");
    set(&s, "loss_type", "huber");
    set(&s, "multires_noise_iterations", "3");
    count_steps(&s);
    thread_init(0);
}

/* Numbers that are not finite: skipped, counted, the factors as they were; too many in a row: the layer's name, no file. */
static void test_not_finite(void **state)
{
    struct subject s;
    struct err err = {0};
    float *before, *up;
    char path[600];

    (void)state;
    begin(&s);
    set(&s, "max_skipped_steps", "2");
    set(&s, "mixed_precision", "fp16");
    open_trainer(&s);
    MUST(step(&s, &err));
    assert_int_equal(s.t.now.skipped, 0);
    up = s.t.net->module[30].up.data;
    up[0] = NAN;
    before = malloc(s.t.net->size * sizeof *before);
    assert_non_null(before);
    memcpy(before, s.t.net->params, s.t.net->size * sizeof *before);
    assert_int_equal(step(&s, &err), 1);
    assert_memory_equal(before, s.t.net->params, s.t.net->size * sizeof *before);
    assert_true(s.t.now.skipped == 1 && s.t.now.loss_scale == 32768 && s.t.now.step == 2);
    assert_int_equal(train_save_lora(&s.t, "broken", &err), -1);
    assert_non_null(strstr(err.msg, s.t.net->module[30].spec.path));
    snprintf(path, sizeof path, "%s/broken.safetensors", folder);
    assert_int_not_equal(access(path, F_OK), 0);
    err = (struct err){0};
    assert_int_equal(step(&s, &err), -1);
    assert_non_null(strstr(err.msg, "were not finite for 2 steps in a row"));
    assert_non_null(strstr(err.msg, s.t.net->module[30].spec.path));
    free(before);
    end(&s);
}

/* A state that is read back gives the same step, in memory as in a file. */
static void test_state(void **state)
{
    struct subject a, b;
    struct err err = {0};
    char path[600];

    (void)state;
    begin(&a);
    open_trainer(&a);
    for (int i = 0; i < 3; i++)
        MUST(step(&a, &err));
    MUST(train_state_write(&a.t, "three", &err));
    snprintf(path, sizeof path, "%s/three.state", folder);
    begin(&b);
    set(&b, "resume", path);
    open_trainer(&b);
    assert_int_equal(b.t.now.step, 3);
    for (int i = 0; i < 2; i++) {
        MUST(step(&a, &err));
        MUST(step(&b, &err));
    }
    assert_memory_equal(a.t.net->params, b.t.net->params, a.t.net->size * sizeof(float));
    assert_true(a.t.step_loss == b.t.step_loss);
    end(&a);
    end(&b);
}

/* A state of a program that lacked an option goes on where that is not given; where it is, it differs. */
static void test_older_state(void **state)
{
    static const char known[] = "\\\"huber_scale\\\":1.0,";
    struct subject a, b;
    struct err err = {0};
    char path[600], *at;
    unsigned char *text;
    size_t n;

    (void)state;
    begin(&a);
    open_trainer(&a);
    MUST(step(&a, &err));
    MUST(train_state_write(&a.t, "older", &err));
    end(&a);
    snprintf(path, sizeof path, "%s/older.state", folder);
    text = scratch_read(path, &n);
    at = memmem(text, n, known, sizeof known - 1);
    assert_non_null(at);
    memset(at, ' ', sizeof known - 1);
    scratch_write(path, text, n);
    free(text);
    for (int given = 0; given < 2; given++) {
        begin(&b);
        set(&b, "resume", path);
        if (given)
            set(&b, "huber_scale", "1");
        assert_int_equal(train_open(&b.t, &b.run, &b.o, &err), given ? -1 : 0);
        end(&b);
    }
    assert_non_null(strstr(err.msg, "--huber_scale not given then, 1.0 now"));
}

/* ---- Losses of single steps, to compare ---- */

/* Of the first n steps with the options given as name, value pairs, NULL at the end; what = a step's losses. */
static void losses(double *what, size_t n, const char *const *option)
{
    struct subject s;
    struct err err = {0};

    begin(&s);
    for (; *option; option += 2)
        set(&s, option[0], option[1]);
    open_trainer(&s);
    for (size_t i = 0; i < n; i++) {
        MUST(step(&s, &err));
        what[i] = s.t.step_loss;
    }
    end(&s);
}

/* Two ways to the same number through some 100 layers, each of which rounds its result to 2^-24. */
static bool same(double a, double b)
{
    return fabs(a - b) <= 100 * 0x1p-24 * fabs(b);
}

/* A LoRA in the base model acts as the same one in training does, whether folded into weights or a branch, and whether the text
 * encoder is in the graph or not. */
static void test_base_weights(void **state)
{
    struct subject s;
    struct err err = {0};
    double plain, want, got;
    char path[600];

    (void)state;
    begin(&s);
    set(&s, "learning_rate", "1e-2");
    open_trainer(&s);
    for (int i = 0; i < 4; i++)
        MUST(step(&s, &err));
    MUST(train_save_lora(&s.t, "base", &err));
    end(&s);
    snprintf(path, sizeof path, "%s/base.safetensors", folder);
    losses(&plain, 1, (const char *[]){NULL});
    losses(&want, 1, (const char *[]){"network_weights", path, NULL});
    assert_true(fabs(want - plain) > 1e-3 * plain); /* the LoRA matters */
    losses(&got, 1, (const char *[]){"base_weights", path, NULL});
    assert_true(same(got, want));
    losses(&got, 1, (const char *[]){"base_weights", path, "network_train_unet_only", NULL, NULL});
    assert_true(same(got, want));
    losses(&got, 1, (const char *[]){"base_weights", path, "base_weights_multiplier", "0", NULL});
    assert_true(same(got, plain));
}

/* The gradients that come through a folded LoRA, and through half of it folded and half a branch. */
static void test_base_gradients(void **state)
{
    struct subject s;
    struct err err = {0};
    char path[600];
    const char *twice[] = {path, path}, *half[] = {"0.5", "0.5"};
    double norm[2];

    (void)state;
    snprintf(path, sizeof path, "%s/base.safetensors", folder);
    for (int i = 0; i < 2; i++) {
        begin(&s);
        MUST(option_set(&s.values, option_find(&s.values, "base_weights"), twice, (size_t)i + 1, OPTION_FROM_LINE, &err));
        if (i)
            MUST(option_set(&s.values, option_find(&s.values, "base_weights_multiplier"), half, 2, OPTION_FROM_LINE, &err));
        open_trainer(&s);
        MUST(step(&s, &err));
        norm[i] = s.t.step_norm;
        end(&s);
    }
    assert_true(same(norm[0], norm[1]));
}

/* Regularisation against the model: no loss and no pull while the LoRA is 0, then both; the other samples as ever. */
static void test_prior(void **state)
{
    enum { N = 8 };
    double picture[N], model[N], learning[N];
    size_t zeros = 0;

    (void)state;
    losses(picture, N, (const char *[]){"reg_data_dir", reg, "train_batch_size", "1", "learning_rate", "0", NULL});
    losses(model, N, (const char *[]){"reg_data_dir", reg, "train_batch_size", "1", "learning_rate", "0", "prior_loss_target",
                                      "model", NULL});
    losses(learning, N, (const char *[]){"reg_data_dir", reg, "train_batch_size", "1", "learning_rate", "1e-2",
                                         "prior_loss_target", "model", NULL});
    for (size_t i = 0; i < N; i++) {
        bool held = model[i] < 1e-9; /* errors of 100 roundings of 2^-24, squared, of values around 1: below 4e-11 */

        zeros += held;
        assert_true(held ? picture[i] > 1e-4 : model[i] == picture[i]);
        assert_true(i == 0 || !held || learning[i] > 1e-7);
    }
    assert_true(zeros > 0 && zeros < N);
    losses(picture, N, (const char *[]){"reg_data_dir", reg, "train_batch_size", "3", "learning_rate", "0", "prior_loss_weight", "0",
                                        NULL});
    losses(model, N, (const char *[]){"reg_data_dir", reg, "train_batch_size", "3", "learning_rate", "0", "prior_loss_target",
                                      "model", NULL});
    for (size_t i = 0; i < N; i++)
        assert_true(fabs(picture[i] - model[i]) < 1e-9);
}

/* --initial_step: steps that are skipped are as if they had been, the rate begins anew; without skipping only epochs are left
 * out. An epoch has 5 batches here. */
static void test_initial_step(void **state)
{
    struct subject s;
    struct err err = {0};
    double whole[8], part[3];
    char path[600];

    (void)state;
    losses(whole, 8, (const char *[]){"learning_rate", "0", NULL});
    losses(part, 3, (const char *[]){"learning_rate", "0", "initial_step", "4", "skip_until_initial_step", NULL, NULL});
    assert_memory_equal(part, whole + 4, sizeof part);
    losses(part, 3, (const char *[]){"learning_rate", "0", "initial_epoch", "2", "skip_until_initial_step", NULL, NULL});
    assert_memory_equal(part, whole + 5, sizeof part);
    begin(&s);
    set(&s, "lr_scheduler", "linear");
    set(&s, "initial_step", "12");
    open_trainer(&s);
    assert_true(s.t.now.epoch == 2 && s.t.now.step == 0 && s.t.steps == 30);
    MUST(step(&s, &err));
    assert_true(s.t.step_lr[0] == 1e-4);
    end(&s);

    /* from a state at step 3: on at step 20, the rate's fourth value next; and that goes into its own states */
    begin(&s);
    set(&s, "lr_scheduler", "linear");
    open_trainer(&s);
    for (int i = 0; i < 3; i++)
        MUST(step(&s, &err));
    MUST(train_state_write(&s.t, "initial", &err));
    end(&s);
    snprintf(path, sizeof path, "%s/initial.state", folder);
    for (int i = 0; i < 2; i++) {
        begin(&s);
        set(&s, "lr_scheduler", "linear");
        set(&s, "resume", path);
        set(&s, "initial_step", "20");
        set(&s, "skip_until_initial_step", NULL);
        open_trainer(&s);
        assert_int_equal(s.t.now.step, 20 + i);
        MUST(step(&s, &err));
        assert_true(fabs(s.t.step_lr[0] - 1e-4 * (37 - i) / 40) < 1e-12);
        MUST(train_state_write(&s.t, "initial", &err));
        end(&s);
    }
}

/* --weighted_captions: weights by token, the figures of sd-scripts' description; the text encoder in the graph and beside it do the
 * same; a weight of 1 changes nothing. */
static void test_weighted_captions(void **state)
{
    static const float want[] = {1, 1, 1.573f, 1, 1.1f, 0.55f, 1, 1};
    struct subject s;
    struct err err = {0};
    float weight[77 * 2];
    double plain[2], one[2], two[2], frozen[2];

    (void)state;
    begin(&s);
    set(&s, "weighted_captions", NULL);
    open_trainer(&s);
    MUST(text_weights(s.t.text, "a (((house:1.3)) [on] a (hill:0.5)", weight, 2, &err));
    for (size_t i = 0; i < 8; i++) /* products of three numbers, in double, then rounded */
        assert_true(fabsf(weight[2 * i] - want[i]) < 1e-6f && weight[2 * i + 1] == weight[2 * i]);
    assert_int_equal(text_weights(s.t.text, "a (cat:1.2.3)", weight, 2, &err), -1);
    assert_non_null(strstr(err.msg, "a (cat:1.2.3)"));
    end(&s);
    losses(plain, 2, (const char *[]){"caption_prefix", "red", "max_token_length", "150", NULL});
    losses(one, 2, (const char *[]){"caption_prefix", "(red:1.0)", "max_token_length", "150", "weighted_captions", NULL, NULL});
    assert_memory_equal(one, plain, sizeof one);
    losses(two, 2, (const char *[]){"caption_prefix", "(red:2)", "max_token_length", "150", "weighted_captions", NULL, "learning_rate",
                                    "0", NULL});
    assert_true(fabs(two[0] - plain[0]) > 1e-5 * plain[0]);
    losses(frozen, 2, (const char *[]){"caption_prefix", "(red:2)", "max_token_length", "150", "weighted_captions", NULL,
                                       "learning_rate", "0", "network_train_unet_only", NULL, NULL});
    assert_true(same(frozen[0], two[0]) && same(frozen[1], two[1]));
}

/* Ten masks in a new folder; left, right: of the picture's halves. */
static const char *make_masks(uint8_t left, uint8_t right)
{
    const char *masks = scratch_new();
    struct picture p;
    struct err err = {0};
    char path[600];

    MUST(picture_new(&p, 32, 32, 3, &err));
    for (size_t i = 0; i < 32 * 32; i++)
        p.data[3 * i] = i % 32 < 16 ? left : right;
    for (int i = 0; i < 10; i++) {
        snprintf(path, sizeof path, "%s/rocket0%d.png", masks, i);
        MUST(picture_write(path, &p, NULL, 0, (struct picture_format){0}, &err));
    }
    picture_free(&p);
    return masks;
}

static double masked(uint8_t left, uint8_t right)
{
    const char *masks = make_masks(left, right);
    double loss;

    losses(&loss, 1, (const char *[]){"masked_loss", NULL, "conditioning_data_dir", masks, NULL});
    scratch_remove(masks);
    return loss;
}

/* The loss is multiplied by the mask: white changes nothing, grey scales it, black leaves nothing, halves add up. */
static void test_masked_loss(void **state)
{
    double plain, loss;

    (void)state;
    losses(&plain, 1, (const char *[]){NULL});
    losses(&loss, 1, (const char *[]){"alpha_mask", NULL, NULL});
    assert_true(loss == plain); /* the pictures are opaque */
    assert_true(masked(255, 255) == plain && masked(0, 0) == 0);
    assert_true(same(masked(51, 51), plain / 5));
    loss = masked(255, 0);
    assert_true(loss > 0 && loss < plain && same(loss + masked(0, 255), plain));
}

/* Weights of the loss: figures of the papers' formulas, by hand. */
static void test_loss_weights(void **state)
{
    struct trainer t = {0};
    struct train_options o = {.min_snr_gamma = 5};
    struct train_sample s = {.timestep = 0};
    float x0[4] = {0.5f, -1, 2, 0}, noise[4], noisy[4], target[4];
    double snr;

    (void)state;
    t.o = &o;
    t.channels = 4;
    schedule_init(&t.schedule);
    snr = (double)t.schedule.bar[0] / (1 - (double)t.schedule.bar[0]);
    train_draw(&t, x0, 1, 1, 7, false, 2, noise, noisy, target, &s);
    assert_true(fabs((double)s.weight - 2 * 5 / snr) < 1e-6);
    o.min_snr_gamma = 0;
    o.debiased_estimation_loss = true;
    s.timestep = 500;
    train_draw(&t, x0, 1, 1, 7, false, 1, noise, noisy, target, &s);
    snr = (double)t.schedule.bar[500] / (1 - (double)t.schedule.bar[500]);
    assert_true(fabs((double)s.weight - 1 / sqrt(snr)) < 1e-6);
    for (int i = 0; i < 4; i++) { /* noisy = sqrt(bar) x0 + sqrt(1 - bar) noise, each term rounded to 2^-24 */
        double want = sqrt((double)t.schedule.bar[500]) * (double)x0[i] + sqrt(1 - (double)t.schedule.bar[500]) * (double)target[i];

        assert_true(fabs((double)noisy[i] - want) < 1e-6);
    }
}

/* Shares of zeros and the scale of what stays; one draw a sample with ranks alone. */
static void test_masks(void **state)
{
    struct train_network_args a = {.rank_dropout = 0.25};
    float mask[64 * 40];
    size_t zeros = 0;

    (void)state;
    train_draw_mask(&a, 0, 3, mask, 40, 64, 1);
    for (size_t i = 0; i < 64 * 40; i++) {
        zeros += mask[i] == 0;
        assert_true(mask[i] == 0 || fabs((double)mask[i] - 1 / 0.75) < 1e-6);
    }
    assert_true(zeros > 640 - 100 && zeros < 640 + 100); /* 2560 draws of 1/4: deviation 22 */
    train_draw_mask(&a, 0, 3, mask, 40, 64, 20);
    for (size_t i = 1; i < 20; i++)
        assert_memory_equal(mask, mask + i * 64, 64 * sizeof *mask);
    assert_memory_not_equal(mask, mask + 20 * 64, 64 * sizeof *mask);
    a = (struct train_network_args){.module_dropout = 0.5};
    zeros = 0;
    for (size_t i = 0; i < 400; i++) {
        train_draw_mask(&a, 0, train_seed(1, STREAM_MASK, i, 0, 0), mask, 2, 3, 1);
        for (int k = 1; k < 6; k++)
            assert_true(mask[k] == mask[0]);
        zeros += mask[0] == 0;
    }
    assert_true(zeros > 150 && zeros < 250); /* deviation 10 */
}

static bool all_zero(const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (x[i] != 0)
            return false;
    return true;
}

/* module_dropout: what the draw of this step leaves out gets no gradient at all, everything else does. */
static void test_module_dropout(void **state)
{
    struct subject s;
    struct err err = {0};
    size_t dropped = 0;

    (void)state;
    begin(&s);
    set(&s, "network_args", "module_dropout=0.5");
    set(&s, "learning_rate", "1e-2");
    open_trainer(&s);
    for (int i = 0; i < 3; i++) /* from the second step on, up is not 0 and down has gradients */
        MUST(step(&s, &err));
    for (size_t i = 0; i < s.t.net->count; i++) {
        const struct network_module *m = &s.t.net->module[i];
        uint64_t seed = train_seed(train_seed(s.t.seed, STREAM_MASK, 2, 0, 0), STREAM_MASK, 0, 0, i);
        float mask;
        bool down = all_zero(m->ddown, m->spec.rank * m->spec.in * m->spec.kh * m->spec.kw), up = all_zero(m->dup, m->spec.out * m->spec.rank);

        train_draw_mask(&s.t.args, 0, seed, &mask, 1, 1, 1);
        dropped += mask == 0;
        if (up != (mask == 0) || (mask == 0 && !down))
            fail_msg("module '%s': drawn %g, gradients of down %s, of up %s", m->spec.path, (double)mask, down ? "0" : "not 0",
                     up ? "0" : "not 0");
    }
    assert_in_range(dropped, s.t.net->count / 4, s.t.net->count * 3 / 4); /* some 200 draws of 1/2: deviation 7 */
    end(&s);
}

static void test_network_args(void **state)
{
    static const char *const items[] = {"conv_dim=4", "down_lr_weight=sine+0.5", "mid_lr_weight=0", "loraplus_lr_ratio=16"};
    struct train_options o = {.network_dim = 8, .network_alpha = 4, .network_args = {items, 4}};
    struct train_network_args a;
    struct err err = {0};

    (void)state;
    MUST(train_network_args(&a, &o, &err));
    assert_true(a.conv_dim == 4 && a.conv_alpha == 4 && a.plus_unet == 16 && a.plus_text == 16);
    assert_true(a.block_lr[0] == 0.5 && fabs(a.block_lr[11] - 1.5) < 1e-12 && a.block_lr[12] == 0 && a.block_lr[24] == 1);
    assert_true(a.block_dim[3] == 8 && a.block_alpha[3] == 4 && a.conv_block_dim[3] == 4);
}

static void make_data(void)
{
    char path[600], from[PATH_MAX];

    folder = scratch_new();
    snprintf(path, sizeof path, "%s/1_sks rocket", folder);
    assert_non_null(realpath("golden/small_model/concept", from));
    assert_int_equal(symlink(from, path), 0);
    reg = scratch_new();
    snprintf(path, sizeof path, "%s/1_rocket", reg);
    assert_int_equal(symlink(from, path), 0);
}

/* ---- --check ---- */

static struct ops right;
static int calls;

static void spoil(struct tensor *t)
{
    float *x = t->data;

    x[0] += 0.01f;
}

static int wrong_geglu(const struct op_call *c, struct err *err)
{
    int rc = right.forward[OP_geglu](c, err);

    if (++calls == 3) /* in the third layer that has it */
        spoil(c->out[0]);
    return rc;
}

static int wrong_attention(const struct op_call *c, struct err *err)
{
    int rc = right.backward[OP_attention](c, err);

    spoil(c->din[0]);
    return rc;
}

static int check(struct subject *s, size_t steps, struct err *err)
{
    int rc;

    *err = (struct err){0};
    calls = 0;
    s->run.quiet = true;
    rc = train_check(&s->t, steps, err);
    dataset_prefetch_close(s->data);
    s->data = NULL;
    return rc;
}

/* The plain code agrees with itself; one wrong number in one layer is named, forward and backward; nothing is written. */
static void test_check(void **state)
{
    struct subject s;
    struct err err;

    (void)state;
    begin(&s);
    set(&s, "mixed_precision", "no");
    open_trainer(&s);
    right = s.t.device.ops;
    if (check(&s, 2, &err))
        fail_msg("%s", err.msg);
    s.t.device.ops.forward[OP_geglu] = wrong_geglu;
    assert_int_equal(check(&s, 1, &err), -1);
    if (!strstr(err.msg, "step 3: output of layer 'down_blocks.") || !strstr(err.msg, "(geglu)"))
        fail_msg("%s", err.msg);
    s.t.device.ops.forward[OP_geglu] = right.forward[OP_geglu];
    s.t.device.ops.backward[OP_attention] = wrong_attention;
    assert_int_equal(check(&s, 1, &err), -1);
    if (!strstr(err.msg, "gradient of layer"))
        fail_msg("%s", err.msg);
    end(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_network_args), cmocka_unit_test(test_masks), cmocka_unit_test(test_loss_weights),
        cmocka_unit_test(test_no_allocation), cmocka_unit_test(test_check), cmocka_unit_test(test_not_finite),
        cmocka_unit_test(test_state), cmocka_unit_test(test_older_state),
        cmocka_unit_test(test_base_weights), cmocka_unit_test(test_base_gradients), cmocka_unit_test(test_prior),
        cmocka_unit_test(test_initial_step), cmocka_unit_test(test_weighted_captions),
        cmocka_unit_test(test_masked_loss), cmocka_unit_test(test_module_dropout),
    };
    int failed;

    thread_init(0);
    make_data();
    failed = cmocka_run_group_tests(tests, NULL, NULL);
    scratch_remove(folder);
    scratch_remove(reg);
    return failed;
}
