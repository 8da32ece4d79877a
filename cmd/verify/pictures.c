/* The model that comes with the sources, end to end, against diffusers in float64 (golden/small_model/reference.safetensors):
 * tokens, text encoder, first prediction of the U-Net, 20 steps of DDIM with guidance from torch's noise, VAE both ways. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cmd/model_weights.h"
#include "cmd/verify/verify.h"
#include "formats/tokenizer.h"
#include "ref/base/rng.h"
#include "ref/diffusion/guidance.h"
#include "ref/diffusion/sampler.h"
#include "ref/graph/run.h"
#include "ref/model/clip.h"
#include "ref/model/unet.h"
#include "ref/model/vae.h"

enum { PROMPTS = 2, SIDE = 16, LATENTS = SIDE * SIDE * 4, CONTEXT = TOKEN_CHUNK * 64, TEXTS = PROMPTS + 1 };
enum { PICTURE = 64 * SIDE * SIDE * 3 };

struct pictures {
    struct verify *v;
    struct verify_file f;
    json_t *meta;
    struct model *model;
    struct model_weights *door;
    struct weights *weights;
    int32_t *ids;                 /* [3, 77]: the prompts and the empty one, padded with the end marker */
    float *context, *x;           /* [3, 77, 64], [2, 16, 16, 4] */
};

/* One part of the model as a graph of its own, planned and ready. */
struct part {
    struct graph *g;
    struct layers layers;
    struct run *run;
};

static int part_new(struct part *p, struct pictures *s, enum model_part part, struct err *err)
{
    *p = (struct part){.g = graph_new(err)};
    p->layers = (struct layers){.g = p->g, .w = s->weights, .part = part};
    return p->g ? 0 : -1;
}

static int part_ready(struct part *p, struct pictures *s, struct err *err)
{
    return graph_fuse(p->g, FUSE_ALL, err) || weights_load(s->weights, err) || run_new(&p->run, p->g, s->v->ops, err) ? -1 : 0;
}

static void part_free(struct part *p)
{
    run_free(p->run);
    graph_free(p->g);
}

static int open_all(struct pictures *s, struct err *err)
{
    char path[4096];

    snprintf(path, sizeof path, "%s/small_model/small.safetensors", s->v->golden);
    if (verify_file_open(&s->f, s->v, "small_model/reference.safetensors", err) ||
        !(s->meta = verify_json(&s->f, "reference", err)) || model_open(&s->model, path, err) ||
        model_weights_open(&s->door, s->model, true, err) || weights_new(&s->weights, model_weights_source(s->door), err))
        return -1;
    s->ids = arena_alloc(&s->f.arena, TEXTS * TOKEN_CHUNK * sizeof *s->ids, err);
    s->context = arena_alloc(&s->f.arena, TEXTS * CONTEXT * sizeof *s->context, err);
    s->x = arena_alloc(&s->f.arena, PROMPTS * LATENTS * sizeof *s->x, err);
    return s->ids && s->context && s->x ? 0 : -1;
}

static void close_all(struct pictures *s)
{
    weights_free(s->weights);
    model_weights_close(s->door);
    model_close(s->model);
    json_decref(s->meta);
    verify_file_close(&s->f);
}

static int compare(struct pictures *s, const char *key, const float *got, size_t n, struct err *err)
{
    const json_t *samples = json_object_get(json_object_get(s->meta, "error"), key);
    double size = 0;
    size_t count;
    float *want = verify_f32(&s->f, key, &count, err);

    if (!want)
        return -1;
    for (size_t i = 0; i < count; i++)
        size = fmax(size, fabs((double)want[i]));
    return verify_close(s->v, &s->f, &(struct verify_row){.group = "pictures", .what = "the small model"}, key, got, n,
                        verify_limit_layer(s->v->arithmetic, samples, size), 0, err);
}

static int tokens(struct pictures *s, struct err *err)
{
    struct verify_row row = {.group = "pictures", .what = "the small model", .name = "ids", .dtype = DT_I32,
                             .shape = {2, {TEXTS, TOKEN_CHUNK}}};
    struct token_list list = {0};
    struct tokenizer *t = NULL;
    size_t count;
    int32_t *want = verify_i32(&s->f, "ids", &count, err);
    int rc = want ? tokenizer_open(&t, err) : -1;

    for (size_t i = 0; i < TEXTS && rc == 0; i++) {
        const char *text = i < PROMPTS ? json_string_value(json_array_get(json_object_get(s->meta, "prompts"), i)) : "";
        int32_t *ids = s->ids + i * TOKEN_CHUNK;

        list.count = 0;
        rc = text ? tokenizer_encode(t, text, strlen(text), &list, err) : err_set(err, "the reference has no prompts");
        for (size_t j = 0; j < TOKEN_CHUNK && rc == 0; j++)
            ids[j] = j == 0 ? TOKEN_BEGIN : j <= list.count ? list.id[j - 1] : TOKEN_END;
    }
    if (rc == 0) {
        row.worst = count == TEXTS * TOKEN_CHUNK ? 0 : INFINITY;
        for (size_t i = 0; i < count && i < TEXTS * TOKEN_CHUNK; i++)
            row.worst += s->ids[i] != want[i];
        verify_row_add(s->v, &row);
    }
    free(list.id);
    tokenizer_close(t);
    return rc;
}

static int contexts(struct pictures *s, struct err *err)
{
    struct part p;
    struct clip clip;
    int rc = -1;

    if (part_new(&p, s, MODEL_TEXT_ENCODER, err) == 0 && clip_build(&p.layers, NULL, TEXTS, TOKEN_CHUNK, &clip, err) == 0 &&
        part_ready(&p, s, err) == 0 && run_write(p.run, clip.ids, s->ids, err) == 0 && run_graph(p.run, NULL, err) == 0 &&
        run_read(p.run, clip.out, s->context, err) == 0)
        rc = compare(s, "context", s->context, TEXTS * CONTEXT, err);
    part_free(&p);
    return rc;
}

/* torch.randn(2, 4, 16, 16) of the seed, channels last. torch's logarithm and cosine may be a unit or two off ours, on values
 * up to 4: 4 units of 4 * 2^-24. */
static int first_noise(struct pictures *s, struct err *err)
{
    float plane[PROMPTS * LATENTS];
    struct rng rng;

    rng_seed(&rng, (uint64_t)json_integer_value(json_object_get(s->meta, "seed")));
    rng_normal(&rng, plane, PROMPTS * LATENTS);
    for (size_t i = 0; i < PROMPTS; i++)
        for (size_t c = 0; c < 4; c++)
            for (size_t k = 0; k < SIDE * SIDE; k++)
                s->x[(i * SIDE * SIDE + k) * 4 + c] = plane[(i * 4 + c) * SIDE * SIDE + k];
    return verify_close(s->v, &s->f, &(struct verify_row){.group = "pictures", .what = "the small model"}, "noise", s->x,
                        PROMPTS * LATENTS, 4 * 4 * 0x1p-24, 0, err);
}

/* The U-Net over [prompts, empty ones]: out [4, 16, 16, 4] for x [2, 16, 16, 4] at timestep t. */
static int predict(struct pictures *s, struct part *p, const struct unet *unet, double t, float *out, struct err *err)
{
    float latents[2 * PROMPTS * LATENTS], times[2 * PROMPTS], *seen = mem_new(2 * PROMPTS * CONTEXT * sizeof *seen, "contexts", err);
    int rc;

    if (!seen)
        return -1;
    for (size_t i = 0; i < 2 * PROMPTS; i++) {
        memcpy(latents + i * LATENTS, s->x + i % PROMPTS * LATENTS, LATENTS * sizeof *latents);
        memcpy(seen + i * CONTEXT, s->context + (i < PROMPTS ? i : PROMPTS) * CONTEXT, CONTEXT * sizeof *seen);
        times[i] = (float)t;
    }
    rc = run_write(p->run, unet->latents, latents, err) || run_write(p->run, unet->timestep, times, err) ||
         run_write(p->run, unet->context, seen, err) || run_graph(p->run, NULL, err) || run_read(p->run, unet->out, out, err);
    free(seen);
    return rc ? -1 : 0;
}

static int steps(struct pictures *s, struct part *p, const struct unet *unet, struct sampler *sampler, struct err *err)
{
    float scale = (float)json_number_value(json_object_get(s->meta, "guidance"));
    float both[2 * PROMPTS * LATENTS], eps[PROMPTS * LATENTS];

    for (bool first = true; !sampler_done(sampler); first = false) {
        if (predict(s, p, unet, sampler_timestep(sampler), both, err) ||
            (first && compare(s, "eps", both, 2 * PROMPTS * LATENTS, err)))
            return -1;
        guidance(eps, both, both + PROMPTS * LATENTS, scale, PROMPTS * LATENTS);
        if (sampler_step(sampler, s->x, eps, NULL, err))
            return -1;
    }
    return compare(s, "latents", s->x, PROMPTS * LATENTS, err);
}

static int sample(struct pictures *s, struct err *err)
{
    struct schedule schedule;
    struct sampler_config config = {.kind = sampler_find("ddim"), .schedule = &schedule, .prediction = PREDICT_EPS,
                                    .steps = (size_t)json_integer_value(json_object_get(s->meta, "steps"))};
    struct sampler *sampler = NULL;
    struct part p = {0};
    struct unet unet;
    int rc = -1;

    schedule_init(&schedule);
    if (sampler_begin(&sampler, &config, PROMPTS * LATENTS, err) == 0 && part_new(&p, s, MODEL_UNET, err) == 0 &&
        unet_build(&p.layers, NULL, 2 * PROMPTS, SIDE, SIDE, GRAPH_NONE, TOKEN_CHUNK, &unet, err) == 0 &&
        part_ready(&p, s, err) == 0)
        rc = steps(s, &p, &unet, sampler, err);
    sampler_end(sampler);
    part_free(&p);
    return rc;
}

/* A half of the VAE on in [n elements], compared under `key`. */
static int vae_half(struct pictures *s, bool encoder, const float *in, size_t out_count, const char *key, struct err *err)
{
    float *out = arena_alloc(&s->f.arena, out_count * sizeof *out, err);
    struct part p = {0};
    struct vae vae;
    int rc = -1;

    if (out && part_new(&p, s, MODEL_VAE, err) == 0 &&
        (encoder ? vae_build_encoder(&p.layers, 1, 8 * SIDE, 8 * SIDE, &vae, err)
                 : vae_build_decoder(&p.layers, PROMPTS, SIDE, SIDE, &vae, err)) == 0 &&
        part_ready(&p, s, err) == 0 && run_write(p.run, vae.in, in, err) == 0 && run_graph(p.run, NULL, err) == 0 &&
        run_read(p.run, vae.out, out, err) == 0)
        rc = compare(s, key, out, out_count, err);
    part_free(&p);
    return rc;
}

static int decode(struct pictures *s, struct err *err)
{
    for (size_t i = 0; i < PROMPTS * LATENTS; i++)
        s->x[i] /= 0.18215f;
    return vae_half(s, false, s->x, PROMPTS * PICTURE, "pictures", err);
}

static int encode(struct pictures *s, struct err *err)
{
    const float *pictures = verify_f32(&s->f, "pictures", NULL, err);

    return pictures ? vae_half(s, true, pictures, SIDE * SIDE * 8, "moments", err) : -1;
}

int verify_pictures(struct verify *v, struct err *err)
{
    struct pictures s = {.v = v};
    int rc = -1;

    if (open_all(&s, err) == 0 && tokens(&s, err) == 0 && contexts(&s, err) == 0 && first_noise(&s, err) == 0 &&
        sample(&s, err) == 0 && decode(&s, err) == 0 && encode(&s, err) == 0)
        rc = 0;
    close_all(&s);
    return rc;
}
