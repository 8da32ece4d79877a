/* The training step against PyTorch (golden/train.safetensors): loss of each step, every gradient, factors after ten steps, with
 * and without checkpointing, on one and on several threads; dropout masks, long captions, clip_skip, v, min-SNR, huber. And the
 * factors that a training starts with. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cmd/train/text.h"
#include "cmd/train/train_graph.h"
#include "cmd/verify/golden_model.h"
#include "ref/base/thread.h"
#include "ref/diffusion/schedule.h"
#include "ref/lora/target.h"
#include "ref/model/clip.h"
#include "ref/optim/optim.h"
#include "tests/lib/golden.h"


enum { STEPS = 10 };

static const struct tensor_file *file;
static json_t *cases, *errors, *tensors;

#define MUST(call)                   \
    do {                             \
        if ((call) != 0)             \
            fail_msg("%s", err.msg); \
    } while (0)

struct subject {
    const char *name;
    json_t *o;
    struct golden_model source;
    struct weight_source door;
    struct weights *w;
    struct network *net;
    struct ops ops;
    struct train_setup setup;
    struct train_graph t;
    struct schedule schedule;
    struct optim *optim;
    const float **grads; /* [2 modules in use], as the optimizer has them */
    float *scratch;
    size_t n, h, wd, per; /* samples, size, floats of a sample */
};

static double number(const struct subject *s, const char *key)
{
    return json_number_value(json_object_get(s->o, key));
}

/* ---- The network ---- */

static void add_specs(struct network_spec *spec, size_t *count, enum model_part part, double dim, double alpha, double conv_dim,
                      double conv_alpha)
{
    const char *name;
    json_t *dims;

    json_object_foreach(json_object_get(tensors, golden_model_part(part)), name, dims)
    {
        struct shape s = {.ndim = (int)json_array_size(dims)};
        struct network_spec *n = &spec[*count];
        struct target t;
        bool window;

        for (int i = 0; i < s.ndim; i++)
            s.dim[i] = (size_t)json_integer_value(json_array_get(dims, (size_t)i));
        if (target_of(part, name, &s, &t) == TARGET_NONE || ((t.class == TARGET_CONV || t.class == TARGET_CONV1) && conv_dim == 0))
            continue;
        window = t.kh * t.kw > 1;
        *n = (struct network_spec){.part = part, .path = strndup(name, t.path_length), .out = t.out, .in = t.in, .kh = t.kh,
                                   .kw = t.kw, .conv = t.conv, .rank = (size_t)(window ? conv_dim : dim),
                                   .alpha = window ? conv_alpha : alpha, .group = part == MODEL_TEXT_ENCODER ? 0 : 1};
        ++*count;
    }
}

static struct network *make_network(bool text, double dim, double alpha, double conv_dim, double conv_alpha)
{
    struct network_spec spec[400];
    struct network *net;
    struct err err = {0};
    size_t count = 0;

    if (text)
        add_specs(spec, &count, MODEL_TEXT_ENCODER, dim, alpha, 0, 0);
    add_specs(spec, &count, MODEL_UNET, dim, alpha, conv_dim, conv_alpha);
    MUST(network_new(&net, spec, count, &err));
    for (size_t i = 0; i < count; i++)
        free((char *)(uintptr_t)spec[i].path);
    return net;
}

static void fill_factor(struct tensor *t, const char *name, const char *path, const char *leaf, float by)
{
    char full[300];
    float *x = t->data;
    size_t n = 0;

    snprintf(full, sizeof full, "%s/%s.%s", name, path, leaf);
    shape_numel(&t->shape, &n);
    golden_model_fill(x, full, &t->shape, n);
    for (size_t i = 0; i < n; i++)
        x[i] *= by;
}

static void start_factors(struct subject *s)
{
    for (size_t i = 0; i < s->net->count; i++) {
        struct network_module *m = &s->net->module[i];

        fill_factor(&m->down, s->name, m->spec.path, "down", 0.5f);
        fill_factor(&m->up, s->name, m->spec.path, "up", 0.0625f);
    }
}

static void make_optimizer(struct subject *s, const char *kind)
{
    struct optim_tensor *list = calloc(2 * s->net->count, sizeof *list);
    struct optim_options options = {.groups = 2};
    struct err err = {0};
    size_t n = 0;

    s->grads = calloc(2 * s->net->count, sizeof *s->grads);
    for (size_t i = 0; i < s->net->count; i++) {
        const struct network_module *m = &s->net->module[i];

        if (!train_graph_has(&s->setup, m))
            continue;
        s->grads[n] = m->ddown;
        list[n++] = (struct optim_tensor){m->down.data, m->down.shape, m->spec.group};
        s->grads[n] = m->dup;
        list[n++] = (struct optim_tensor){m->up.data, m->up.shape, m->spec.group};
    }
    MUST(optim_new(&s->optim, kind, NULL, 0, &options, list, n, &err));
    free(list);
}

static void open_subject(struct subject *s, const char *name, bool checkpoint)
{
    struct train_shape shape;
    const struct shape *x;
    struct err err = {0};
    char key[100];

    memset(s, 0, sizeof *s);
    s->name = name;
    s->o = json_object_get(cases, name);
    assert_non_null(s->o);
    s->source = (struct golden_model){"train", tensors, DT_F16};
    s->door = (struct weight_source){"golden model", &s->source, golden_model_find, golden_model_read};
    MUST(weights_new(&s->w, &s->door, &err));
    ops_ref(&s->ops);
    schedule_init(&s->schedule);
    s->net = make_network(json_is_true(json_object_get(s->o, "te")), number(s, "dim"), number(s, "alpha"), number(s, "conv_dim"),
                          number(s, "conv_alpha"));
    start_factors(s);
    s->setup = (struct train_setup){.w = s->w, .ops = &s->ops, .net = s->net,
                                    .text_trained = json_is_true(json_object_get(s->o, "te")), .text_layers = 3,
                                    .clip_skip = (size_t)number(s, "clip_skip"), .checkpoint = checkpoint,
                                    .huber = json_is_true(json_object_get(s->o, "huber")),
                                    .dropout = number(s, "rank_dropout") > 0 ? DROP_SAMPLE : DROP_NONE};
    snprintf(key, sizeof key, "%s/latents", name);
    x = &golden_entry(file, key)->shape;
    s->n = x->dim[0];
    s->h = x->dim[1];
    s->wd = x->dim[2];
    s->per = x->dim[1] * x->dim[2] * x->dim[3];
    shape = (struct train_shape){s->n, s->h, s->wd, (size_t)number(s, "chunks")};
    MUST(train_graph_build(&s->t, &s->setup, &shape, TRAIN_STEP, &err));
    MUST(run_new(&s->t.run, s->t.g, &s->ops, &err));
    MUST(weights_load(s->w, &err));
    s->scratch = calloc(s->net->size, sizeof *s->scratch);
    make_optimizer(s, "AdamW");
}

static void close_subject(struct subject *s)
{
    optim_free(s->optim);
    free(s->grads);
    free(s->scratch);
    train_graph_free(&s->t);
    network_free(s->net);
    weights_free(s->w);
}

/* ---- One step ---- */

static float *stored(const struct subject *s, const char *key)
{
    char name[400];

    snprintf(name, sizeof name, "%s/%s", s->name, key);
    return golden_f32(file, name, NULL);
}

static int32_t *stored_i32(const struct subject *s, const char *key, size_t *n)
{
    char name[400];

    snprintf(name, sizeof name, "%s/%s", s->name, key);
    return golden_i32(file, name, n);
}

static void write_text(struct subject *s, size_t step)
{
    size_t chunks = (size_t)number(s, "chunks"), tokens = train_tokens(chunks), all;
    int32_t *ids = stored_i32(s, "ids", &all), *mine = ids + step * (all / STEPS), *rows = malloc(s->n * tokens * sizeof *rows);
    struct err err = {0};

    assert_non_null(rows);
    text_rows(chunks, s->n, rows);
    if (s->t.rows != GRAPH_NONE)
        MUST(run_write(s->t.run, s->t.rows, rows, &err));
    if (s->t.ids != GRAPH_NONE) {
        MUST(run_write(s->t.run, s->t.ids, mine, &err));
    } else { /* the text encoder by itself, one caption after the other */
        struct layers l = {.w = s->w, .part = MODEL_TEXT_ENCODER};
        struct clip clip;
        struct run *run;

        l.g = graph_new(&err);
        MUST(clip_build(&l, NULL, s->n, 77, &clip, &err));
        MUST(run_new(&run, l.g, &s->ops, &err));
        MUST(weights_load(s->w, &err));
        MUST(run_write(run, clip.ids, mine, &err));
        MUST(run_graph(run, NULL, &err));
        MUST(run_write(s->t.run, s->t.context, run_data(run, clip.out), &err));
        run_free(run);
        graph_free(l.g);
    }
    free(rows);
    free(ids);
}

static void write_masks(struct subject *s)
{
    struct err err = {0};

    for (size_t i = 0; i < s->net->count; i++) {
        char key[300];
        float *mask;

        if (s->t.mask[i] == GRAPH_NONE)
            continue;
        snprintf(key, sizeof key, "mask/%s", s->net->module[i].spec.path);
        mask = stored(s, key);
        MUST(run_write(s->t.run, s->t.mask[i], mask, &err));
        free(mask);
    }
}

static void write_latents(struct subject *s, size_t step)
{
    float *x0 = stored(s, "latents"), *noise = stored(s, "noise") + 0, *mine = noise + step * s->n * s->per;
    float *noisy = malloc(s->n * s->per * sizeof *noisy), *target = malloc(s->n * s->per * sizeof *target), t[8];
    int32_t *timesteps = stored_i32(s, "timesteps", NULL);
    struct err err = {0};

    assert_true(noisy && target);
    for (size_t i = 0; i < s->n; i++) {
        size_t at = i * s->per, k = (size_t)timesteps[step * s->n + i];

        t[i] = (float)k;
        schedule_add_noise(&s->schedule, k, x0 + at, mine + at, noisy + at, s->per);
        memcpy(target + at, mine + at, s->per * sizeof *target);
        if (json_is_true(json_object_get(s->o, "v")))
            schedule_velocity(&s->schedule, k, x0 + at, mine + at, target + at, s->per);
    }
    MUST(run_write(s->t.run, s->t.latents, noisy, &err));
    MUST(run_write(s->t.run, s->t.timestep, t, &err));
    MUST(run_write(s->t.run, s->t.target, target, &err));
    free(x0);
    free(noise);
    free(noisy);
    free(target);
    free(timesteps);
}

static void write_loss(struct subject *s, size_t step)
{
    float *weight = stored(s, "weight"), *mine = weight + step * s->n, one = 1;
    struct err err = {0};

    if (s->t.delta != GRAPH_NONE) {
        float *delta = stored(s, "delta");

        MUST(run_write(s->t.run, s->t.delta, delta + step * s->n, &err));
        for (size_t i = 0; i < s->n; i++)
            mine[i] *= 2 * delta[step * s->n + i]; /* the loss is 2 c (sqrt(x^2 + c^2) - c) */
        free(delta);
    }
    MUST(run_write(s->t.run, s->t.weight, mine, &err));
    MUST(run_write(s->t.run, s->t.seed, &one, &err));
    free(weight);
}

static float one_step(struct subject *s, size_t step)
{
    struct err err = {0};
    float loss;

    write_text(s, step);
    write_masks(s);
    write_latents(s, step);
    write_loss(s, step);
    MUST(run_graph(s->t.run, NULL, &err));
    MUST(run_read(s->t.run, s->t.loss, &loss, &err));
    MUST(train_graph_gradients(&s->t, s->net, true, s->scratch, &err));
    return loss;
}

/* ---- Comparisons ---- */

/* How far torch's f32 is off: for this tensor, or for all of a kind. */
static double single_error(const char *name)
{
    const char *last = strstr(name, "/last/"), *key;
    double most = json_number_value(json_object_get(errors, name));
    json_t *e;

    json_object_foreach(errors, key, e)
        if (last && strncmp(key, name, (size_t)(last - name) + 6) == 0)
            most = fmax(most, json_number_value(e));
    return most;
}

/* Two f32 computations differ by the order of their sums; torch's own f32 run against its f64 run, stored beside each tensor,
 * is one sample of such a difference. 6 times it, and 16 roundings of the largest value where that one was lucky (as in
 * test_models.c). AdamW divides a gradient by its own size, so what a factor is off by after ten steps is lr times the relative
 * error of its gradient, and the worst ones belong to gradients that happen to be near zero, wherever they are: for those
 * factors the sample is the largest of all tensors of the case. Where the exact gradient is 0
 * (group norm with one channel a group takes away what the time embedding adds), what cancels are terms of the size of other
 * gradients, 0.003 at most. */
static void compare(const struct subject *s, const char *key, const float *got, size_t got_count)
{
    double single, size = 0, worst, limit;
    char name[400];
    float *want;
    size_t n;

    snprintf(name, sizeof name, "%s/%s", s->name, key);
    single = single_error(name);
    want = golden_f32(file, name, &n);
    assert_int_equal(n, got_count);
    for (size_t i = 0; i < n; i++)
        size = fmax(size, fabs((double)want[i]));
    if (size < 1e-12)
        size = 0.003;
    limit = 6 * single + 16 * 0x1p-24 * size;
    worst = golden_max_diff(got, want, n);
    if (getenv("TRAIN_VERBOSE"))
        printf("%-70s %.2e of %.2e\n", name, worst, limit);
    if (!(worst <= limit))
        fail_msg("%s: off by %g, limit %g, largest %g", name, worst, limit, size);
    free(want);
}

static bool has(const struct subject *s, const char *key)
{
    char name[400];

    snprintf(name, sizeof name, "%s/%s", s->name, key);
    return tensor_file_find(file, name) != NULL;
}

/* All that are stored of a kind ("grad", "last"). Returns how many. */
static size_t compare_factors(const struct subject *s, const char *kind)
{
    size_t count = 0;

    for (size_t i = 0; i < s->net->count; i++)
        for (int side = 0; side < 2; side++) {
            const struct network_module *m = &s->net->module[i];
            const struct tensor *t = side ? &m->up : &m->down;
            const float *x = kind[0] == 'g' ? (side ? m->dup : m->ddown) : t->data;
            char key[300];
            size_t n = 0;

            snprintf(key, sizeof key, "%s/%s.%s", kind, m->spec.path, side ? "up" : "down");
            if (!has(s, key))
                continue;
            shape_numel(&t->shape, &n);
            compare(s, key, x, n);
            count++;
        }
    return count;
}

/* ---- Tests ---- */

static void train(const char *name, bool checkpoint, size_t steps, size_t factors)
{
    const double lr[2] = {5e-4, 1e-3};
    struct subject s;
    struct err err = {0};
    float losses[STEPS], *want;
    size_t n;

    open_subject(&s, name, checkpoint);
    for (size_t i = 0; i < steps; i++) {
        losses[i] = one_step(&s, i);
        if (i == 0 && has(&s, "grad/down_blocks.0.attentions.0.proj_in.up"))
            assert_int_equal(compare_factors(&s, "grad"), factors);
        MUST(optim_step(s.optim, s.grads, optim_clip(optim_norm(s.optim, s.grads), number(&s, "max_grad_norm")), lr, &err));
    }
    want = stored(&s, "losses");
    for (size_t i = 0; i < steps; i++) {
        char key[32] = "losses";
        double single, limit;

        snprintf(key, sizeof key, "%s/losses", name);
        single = json_number_value(json_object_get(errors, key));
        limit = 6 * single + 16 * 0x1p-24 * fabs((double)want[i]);
        if (!(fabs((double)losses[i] - (double)want[i]) <= limit))
            fail_msg("%s: loss %zu is %g, not %g", name, i, (double)losses[i], (double)want[i]);
    }
    free(want);
    n = steps == STEPS ? compare_factors(&s, "last") : 0;
    if (steps == STEPS && has(&s, "last/down_blocks.0.attentions.0.proj_in.up"))
        assert_int_equal(n, factors);
    close_subject(&s);
}

static void test_eps(void **state)
{
    (void)state;
    train("eps", false, STEPS, 132);
    train("eps", true, STEPS, 132);
}

static void test_v(void **state)
{
    (void)state;
    train("v", true, STEPS, 120);
}

static void test_unet_huber_conv(void **state)
{
    (void)state;
    train("unet", false, STEPS, 156);
}

static void test_dropout(void **state)
{
    (void)state;
    train("drop", true, STEPS, 132);
}

/* How much of a golden factor's elements lies further off than f32's roundings let AdamW's: 16 roundings of the largest, and 1e-3
 * of a step, ten times. Whatever happens, no element is further than two whole ways of ten steps of that rate. */
static double share_off(const struct subject *s, const char *key, const float *got, size_t got_count, double lr)
{
    char name[400];
    size_t n, off = 0;
    float *want;
    double size = 0;

    snprintf(name, sizeof name, "%s/%s", s->name, key);
    want = golden_f32(file, name, &n);
    assert_int_equal(n, got_count);
    for (size_t i = 0; i < n; i++)
        size = fmax(size, fabs((double)want[i]));
    for (size_t i = 0; i < n; i++) {
        double d = fabs((double)got[i] - (double)want[i]);

        if (d > 2 * 10 * lr)
            fail_msg("%s: element %zu is off by %g", name, i, d);
        off += d > 16 * 0x1p-24 * size + 10 * 1e-3 * lr;
    }
    free(want);
    return (double)off / (double)n;
}

/* Ten steps with the named optimizer against bitsandbytes' AdamW8bit: the largest share of a factor's elements that is off, and of
 * the losses the largest relative difference. */
static void train8(const char *kind, double *share, double *loss)
{
    const double lr[2] = {5e-4, 1e-3};
    struct subject s;
    struct err err = {0};
    float *want;
    size_t compared = 0;

    open_subject(&s, "adam8", false);
    optim_free(s.optim);
    free(s.grads);
    make_optimizer(&s, kind);
    *share = *loss = 0;
    want = stored(&s, "losses");
    for (size_t i = 0; i < STEPS; i++) {
        *loss = fmax(*loss, fabs((double)one_step(&s, i) / (double)want[i] - 1));
        MUST(optim_step(s.optim, s.grads, optim_clip(optim_norm(s.optim, s.grads), 1), lr, &err));
    }
    for (size_t i = 0; i < 2 * s.net->count; i++) {
        const struct network_module *m = &s.net->module[i / 2];
        const struct tensor *t = i % 2 ? &m->up : &m->down;
        char key[300];
        size_t n = 0;

        snprintf(key, sizeof key, "last/%s.%s", m->spec.path, i % 2 ? "up" : "down");
        shape_numel(&t->shape, &n);
        if (has(&s, key)) {
            *share = fmax(*share, share_off(&s, key, t->data, n, lr[m->spec.group]));
            compared++;
        }
    }
    assert_int_equal(compared, 8);
    free(want);
    close_subject(&s);
}

static void load(const char *name)
{
    file = golden_open(name);
    cases = json_loads(tensor_file_metadata(file, "cases"), 0, NULL);
    tensors = json_loads(tensor_file_metadata(file, "tensors"), 0, NULL);
    assert_true(cases && tensors);
}

/* A gradient that is off by a few 1e-6 of its size, as f32 leaves it, puts a mean on the other side of the middle of two codes once
 * in about 1e4 times, since a code covers 1e-2 of its number; then that element is off by some 1e-2 of a step. 2 means, 10 steps:
 * about 1 in 500. Gradients that are sums of larger terms are off by ten times as much: 1 in 50. AdamW with 32 bits is off nearly
 * everywhere, and so would be other codes or blocks. The losses differ by what moved: a few f32 roundings of a sum of 100 layers. */
static void test_adamw8bit(void **state)
{
    const struct tensor_file *before = file;
    json_t *kept[] = {cases, tensors};
    double share, loss;

    (void)state;
    load("train8.safetensors");
    train8("AdamW8bit", &share, &loss);
    assert_true(share < 0.02);
    assert_true(loss < 100 * 0x1p-24);
    train8("AdamW", &share, &loss);
    assert_true(share > 0.5);
    json_decref(cases);
    json_decref(tensors);
    tensor_file_close((struct tensor_file *)(uintptr_t)file);
    file = before;
    cases = kept[0];
    tensors = kept[1];
}

/* The same bytes for any number of threads, with and without checkpointing. */
static void test_same_bytes(void **state)
{
    float *first = NULL;

    (void)state;
    for (int run = 0; run < 4; run++) {
        struct subject s;

        thread_init(run == 0 ? 1 : run + 1);
        open_subject(&s, "eps", run & 1);
        one_step(&s, 0);
        if (!first) {
            first = malloc(s.net->size * sizeof *first);
            assert_non_null(first);
            memcpy(first, s.net->grads, s.net->size * sizeof *first);
        }
        assert_memory_equal(first, s.net->grads, s.net->size * sizeof *first);
        close_subject(&s);
    }
    free(first);
    thread_init(0);
}

/* The last eight numbers of each module, in torch's layout; uniform numbers are exact, the bound is rounded once. */
static void test_init(void **state)
{
    struct network *net = make_network(true, 4, 1, 2, 1);

    (void)state;
    network_init(net, 42);
    for (size_t i = 0; i < net->count; i++) {
        const struct network_module *m = &net->module[i];
        size_t pixels = m->spec.kh * m->spec.kw, in = m->spec.in;
        const float *down = m->down.data, *up = m->up.data;
        float mine[8], *want;
        char name[400];

        snprintf(name, sizeof name, "init/%s", m->spec.path);
        want = golden_f32(file, name, NULL);
        for (size_t k = 0; k < 8; k++) {
            size_t p = pixels - 1 - (7 - k) / in, c = in - 1 - (7 - k) % in;

            mine[k] = down[((m->spec.rank - 1) * pixels + p) * in + c];
        }
        golden_close(m->spec.path, mine, want, 8, 0x1p-24, 0);
        for (size_t k = 0; k < m->spec.out * m->spec.rank; k++)
            assert_true(up[k] == 0);
        free(want);
    }
    network_free(net);
}

static void test_limit_norms(void **state)
{
    struct network *net = make_network(false, 4, 4, 0, 0);
    struct err err = {0};
    double mean, largest, norm = 0;
    size_t scaled;
    float *down, *up;

    (void)state;
    network_init(net, 1);
    down = net->module[0].down.data;
    up = net->module[0].up.data;
    for (size_t i = 0; i < net->module[0].spec.out * 4; i++)
        up[i] = 1 + (float)(i % 7);
    MUST(network_limit_norms(net, 0.5, &scaled, &mean, &largest, &err));
    for (size_t o = 0; o < net->module[0].spec.out; o++)
        for (size_t k = 0; k < net->module[0].spec.in; k++) {
            double sum = 0;

            for (size_t r = 0; r < 4; r++)
                sum += (double)up[o * 4 + r] * (double)down[r * net->module[0].spec.in + k];
            norm += sum * sum;
        }
    assert_int_equal(scaled, 1);
    assert_true(fabs(sqrt(norm) - 0.5) < 1e-6); /* factors are rounded to 2^-24 each */
    assert_true(largest == 0.5 && fabs(mean * (double)net->count - 0.5) < 1e-12);
    up[3] = NAN;
    assert_ptr_equal(network_find_nonfinite(net), &net->module[0]);
    network_free(net);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_init),
        cmocka_unit_test(test_limit_norms),
        cmocka_unit_test(test_eps),
        cmocka_unit_test(test_v),
        cmocka_unit_test(test_unet_huber_conv),
        cmocka_unit_test(test_dropout),
        cmocka_unit_test(test_adamw8bit),
        cmocka_unit_test(test_same_bytes),
    };
    struct tensor_file *f = golden_open("train.safetensors");
    int failed;

    thread_init(0);
    file = f;
    cases = json_loads(tensor_file_metadata(f, "cases"), 0, NULL);
    errors = json_loads(tensor_file_metadata(f, "error"), 0, NULL);
    tensors = json_loads(tensor_file_metadata(f, "tensors"), 0, NULL);
    failed = cmocka_run_group_tests(tests, NULL, NULL);
    json_decref(cases);
    json_decref(errors);
    json_decref(tensors);
    tensor_file_close(f);
    return failed;
}
