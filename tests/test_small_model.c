/* The model that ships with the project, end to end, against diffusers in float64 (golden/small_model/reference.safetensors):
 * tokens, text encoder, first prediction of the U-Net, 20 steps of DDIM with guidance from torch's noise, VAE both ways. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cmd/model_weights.h"
#include "formats/tokenizer.h"
#include "ref/base/rng.h"
#include "ref/base/thread.h"
#include "ref/diffusion/guidance.h"
#include "ref/diffusion/sampler.h"
#include "ref/graph/run.h"
#include "ref/model/clip.h"
#include "ref/model/unet.h"
#include "ref/model/vae.h"
#include "tests/lib/golden.h"

enum { PROMPTS = 2, SIDE = 16, LATENTS = SIDE * SIDE * 4, CONTEXT = TOKEN_CHUNK * 64 };

static struct tensor_file *file;
static json_t *meta;
static struct model *model;
static struct model_weights *door;
static struct weights *weights;

#define MUST(call)                       \
    do {                                 \
        if ((call) != 0)                 \
            fail_msg("%s", err.msg);     \
    } while (0)

/* The limit of tests/test_models.c: torch's own f32 run is one sample of what rounding does, of which the largest of many
 * elements varies by a small factor only: 6 times it, and 16 roundings of the largest value. */
static void compare(const char *key, const float *got, size_t got_count)
{
    double single = json_number_value(json_object_get(json_object_get(meta, "error"), key)), size = 0, worst, limit;
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

/* One part of the model as a graph of its own, planned and ready. */
struct part {
    struct graph *g;
    struct layers layers;
    struct run *run;
    struct ops ops;
};

static void part_new(struct part *p, enum model_part part)
{
    struct err err = {0};

    memset(p, 0, sizeof *p);
    p->g = graph_new(&err);
    assert_non_null(p->g);
    p->layers = (struct layers){.g = p->g, .w = weights, .part = part};
    ops_ref(&p->ops);
}

static void part_ready(struct part *p)
{
    struct err err = {0};

    MUST(graph_fuse(p->g, FUSE_ALL, &err));
    MUST(weights_load(weights, &err));
    MUST(run_new(&p->run, p->g, &p->ops, &err));
}

static void part_run(struct part *p)
{
    struct run_options options = {.check_nan = true};
    struct err err = {0};

    MUST(run_graph(p->run, &options, &err));
}

static void part_free(struct part *p)
{
    run_free(p->run);
    graph_free(p->g);
}

/* ids [3, 77]: the prompts and the empty one, padded with the end marker. */
static void tokens(int32_t *ids)
{
    struct tokenizer *t;
    struct token_list list = {0};
    struct err err = {0};

    MUST(tokenizer_open(&t, &err));
    for (size_t i = 0; i <= PROMPTS; i++, ids += TOKEN_CHUNK) {
        const char *text = i < PROMPTS ? json_string_value(json_array_get(json_object_get(meta, "prompts"), i)) : "";

        list.count = 0;
        MUST(tokenizer_encode(t, text, strlen(text), &list, &err));
        for (size_t j = 0; j < TOKEN_CHUNK; j++)
            ids[j] = j == 0 ? TOKEN_BEGIN : j <= list.count ? list.id[j - 1] : TOKEN_END;
    }
    free(list.id);
    tokenizer_close(t);
}

/* out [3, 77, 64] */
static void contexts(float *out)
{
    struct part p;
    struct clip clip;
    struct err err = {0};

    part_new(&p, MODEL_TEXT_ENCODER);
    MUST(clip_build(&p.layers, NULL, PROMPTS + 1, TOKEN_CHUNK, &clip, &err));
    part_ready(&p);
    tokens(run_data(p.run, clip.ids));
    part_run(&p);
    memcpy(out, run_data(p.run, clip.out), (PROMPTS + 1) * CONTEXT * sizeof *out);
    part_free(&p);
}

static void test_text(void **state)
{
    int32_t ids[(PROMPTS + 1) * TOKEN_CHUNK], *want = golden_i32(file, "ids", NULL);
    float *context = calloc((PROMPTS + 1) * CONTEXT, sizeof *context);

    (void)state;
    tokens(ids);
    assert_memory_equal(ids, want, sizeof ids);
    contexts(context);
    compare("context", context, (PROMPTS + 1) * CONTEXT);
    free(want);
    free(context);
}

/* torch.randn(2, 4, 16, 16) of the seed, channels last. torch's logarithm and cosine may be a unit or two off ours, on values
 * up to 4: 4 units of 4 * 2^-24. */
static void first_noise(float *x)
{
    float plane[PROMPTS * LATENTS], *want = golden_f32(file, "noise", NULL);
    struct rng rng;

    rng_seed(&rng, (uint64_t)json_integer_value(json_object_get(meta, "seed")));
    rng_normal(&rng, plane, PROMPTS * LATENTS);
    for (size_t i = 0; i < PROMPTS; i++)
        for (size_t c = 0; c < 4; c++)
            for (size_t k = 0; k < SIDE * SIDE; k++)
                x[(i * SIDE * SIDE + k) * 4 + c] = plane[(i * 4 + c) * SIDE * SIDE + k];
    golden_close("noise", x, want, PROMPTS * LATENTS, 4 * 4 * 0x1p-24, 0);
    free(want);
}

/* The U-Net over [prompts, empty ones]: predictions [4, 16, 16, 4] for x [2, 16, 16, 4] at timestep t. */
static const float *predict(struct part *p, const struct unet *unet, const float *x, double t, const float *context)
{
    float *latents = run_data(p->run, unet->latents), *times = run_data(p->run, unet->timestep);
    float *seen = run_data(p->run, unet->context);

    for (size_t i = 0; i < 2 * PROMPTS; i++) {
        memcpy(latents + i * LATENTS, x + i % PROMPTS * LATENTS, LATENTS * sizeof *x);
        memcpy(seen + i * CONTEXT, context + (i < PROMPTS ? i : PROMPTS) * CONTEXT, CONTEXT * sizeof *x);
        times[i] = (float)t;
    }
    part_run(p);
    return run_data(p->run, unet->out);
}

static void sample(float *x, const float *context)
{
    struct part p;
    struct unet unet;
    struct schedule schedule;
    struct sampler *s;
    struct sampler_config config = {.kind = sampler_find("ddim"), .schedule = &schedule, .prediction = PREDICT_EPS};
    float scale = (float)json_number_value(json_object_get(meta, "guidance")), *eps = calloc(PROMPTS * LATENTS, sizeof *eps);
    struct err err = {0};

    config.steps = (size_t)json_integer_value(json_object_get(meta, "steps"));
    schedule_init(&schedule);
    MUST(sampler_begin(&s, &config, PROMPTS * LATENTS, &err));
    part_new(&p, MODEL_UNET);
    MUST(unet_build(&p.layers, NULL, 2 * PROMPTS, SIDE, SIDE, GRAPH_NONE, TOKEN_CHUNK, &unet, &err));
    part_ready(&p);
    for (bool first = true; !sampler_done(s); first = false) {
        const float *both = predict(&p, &unet, x, sampler_timestep(s), context);

        if (first)
            compare("eps", both, 2 * PROMPTS * LATENTS);
        guidance(eps, both, both + PROMPTS * LATENTS, scale, PROMPTS * LATENTS);
        MUST(sampler_step(s, x, eps, NULL, &err));
    }
    sampler_end(s);
    part_free(&p);
    free(eps);
}

static void test_pictures(void **state)
{
    float *context = calloc((PROMPTS + 1) * CONTEXT, sizeof *context), *x = calloc(PROMPTS * LATENTS, sizeof *x), *in;
    struct part p;
    struct vae vae;
    struct err err = {0};

    (void)state;
    contexts(context);
    first_noise(x);
    sample(x, context);
    compare("latents", x, PROMPTS * LATENTS);
    part_new(&p, MODEL_VAE);
    MUST(vae_build_decoder(&p.layers, PROMPTS, SIDE, SIDE, &vae, &err));
    part_ready(&p);
    in = run_data(p.run, vae.in);
    for (size_t i = 0; i < PROMPTS * LATENTS; i++)
        in[i] = x[i] / 0.18215f;
    part_run(&p);
    compare("pictures", run_data(p.run, vae.out), PROMPTS * 8 * SIDE * 8 * SIDE * 3);
    part_free(&p);
    free(context);
    free(x);
}

static void test_encoder(void **state)
{
    float *pictures = golden_f32(file, "pictures", NULL);
    struct part p;
    struct vae vae;
    struct err err = {0};

    (void)state;
    part_new(&p, MODEL_VAE);
    MUST(vae_build_encoder(&p.layers, 1, 8 * SIDE, 8 * SIDE, &vae, &err));
    part_ready(&p);
    memcpy(run_data(p.run, vae.in), pictures, 64 * SIDE * SIDE * 3 * sizeof *pictures);
    part_run(&p);
    compare("moments", run_data(p.run, vae.out), SIDE * SIDE * 8);
    part_free(&p);
    free(pictures);
}

static int open_all(void **state)
{
    struct err err = {0};

    (void)state;
    file = golden_open("small_model/reference.safetensors");
    meta = json_loads(tensor_file_metadata(file, "reference"), 0, NULL);
    assert_non_null(meta);
    MUST(model_open(&model, "golden/small_model/small.safetensors", &err));
    MUST(model_weights_open(&door, model, true, &err));
    MUST(weights_new(&weights, model_weights_source(door), &err));
    return 0;
}

static int close_all(void **state)
{
    (void)state;
    weights_free(weights);
    model_weights_close(door);
    model_close(model);
    json_decref(meta);
    tensor_file_close(file);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_text),
        cmocka_unit_test(test_pictures),
        cmocka_unit_test(test_encoder),
    };

    thread_init(2);
    return cmocka_run_group_tests(tests, open_all, close_all);
}
