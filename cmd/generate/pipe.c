#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cmd/generate/generate.h"
#include "formats/prompt.h"
#include "ref/base/thread.h"
#include "ref/diffusion/guidance.h"
#include "ref/diffusion/weigh.h"
#include "ref/model/clip.h"
#include "ref/model/unet.h"
#include "ref/model/vae.h"

#define LATENT_SCALE 0.18215f /* what SD1 and SD2 multiply the VAE's latents with (Rombach et al. 2022, D.1) */

static int open_model(struct model **m, struct model_weights **source, struct weights **w, const char *path, struct err *err)
{
    if (model_open(m, path, err) || model_weights_open(source, *m, true, err))
        return -1;
    return weights_new(w, model_weights_source(*source), err);
}

int generate_pipe_open(struct generate_pipe *p, const char *ckpt, const char *vae, struct err *err)
{
    struct unet_config config;

    if (open_model(&p->model, &p->source, &p->w, ckpt, err) || model_need(p->model, MODEL_UNET, err) ||
        model_need(p->model, MODEL_TEXT_ENCODER, err))
        return -1;
    if (vae ? open_model(&p->vae_model, &p->vae_source, &p->vae_w, vae, err) || model_need(p->vae_model, MODEL_VAE, err)
            : model_need(p->model, MODEL_VAE, err))
        return -1;
    if (unet_config(p->w, &config, err) || vae_config(vae ? p->vae_w : p->w, &p->factor, &p->channels, err))
        return -1;
    if (config.in_channels != p->channels || config.out_channels != p->channels)
        return err_set(err, "cannot generate with '%s': its U-Net takes %zu channels and gives %zu, the VAE has %zu; text to image "
                            "needs a model whose U-Net takes plain latents (not one for inpainting or depth)",
                       ckpt, config.in_channels, config.out_channels, p->channels);
    ops_ref(&p->ops);
    schedule_init(&p->schedule);
    p->most_chunks = 1;
    return tokenizer_open(&p->tokenizer, err);
}

static void drop_stage(struct generate_pipe *p)
{
    run_free(p->run);
    graph_free(p->g);
    free(p->used);
    p->run = NULL;
    p->g = NULL;
    p->used = NULL;
    p->stage = STAGE_NONE;
}

void generate_pipe_close(struct generate_pipe *p)
{
    drop_stage(p);
    tokenizer_close(p->tokenizer);
    weights_free(p->w);
    weights_free(p->vae_w);
    model_weights_close(p->source);
    model_weights_close(p->vae_source);
    model_close(p->model);
    model_close(p->vae_model);
    memset(p, 0, sizeof *p);
}

void generate_pipe_loras(struct generate_pipe *p, const struct generate_loras *loras)
{
    drop_stage(p);
    p->loras = loras;
}

/* LoRA modules of text encoder layers that clip_skip leaves out have no effect and no layer: they are not handed on. */
static int use_loras(struct generate_pipe *p, struct layers *l, struct err *err)
{
    size_t skip = p->clip_skip > 1 ? p->clip_skip - 1 : 0;

    if (!p->loras || !p->loras->count)
        return 0;
    p->used = mem_zero(p->loras->count, sizeof *p->used, "LoRA modules", err);
    if (!p->used)
        return -1;
    for (size_t i = 0; i < p->loras->count; i++) {
        const struct layers_lora *a = &p->loras->item[i];
        const char *layer = strstr(a->path, "layers.");

        if (a->part == MODEL_TEXT_ENCODER && layer && strtoul(layer + 7, NULL, 10) + skip >= p->model->text_layers)
            continue;
        p->used[l->lora_count++] = *a;
    }
    l->loras = p->used;
    return 0;
}

/* Builds the graph of a stage, without memory for it. h and wd: of the latents; tokens: of the context. */
static int build_stage(struct generate_pipe *p, enum generate_stage stage, size_t n, size_t h, size_t wd, size_t tokens,
                       struct err *err)
{
    static const enum model_part part[] = {MODEL_OTHER, MODEL_TEXT_ENCODER, MODEL_UNET, MODEL_VAE};
    struct clip_options options = {.clip_skip = p->clip_skip};
    struct unet_options heads = {0};
    struct layers l = {.w = stage == STAGE_DECODE && p->vae_w ? p->vae_w : p->w, .part = part[stage]};
    struct clip clip = {0};
    struct unet unet = {0};
    struct vae vae = {0};
    int rc;

    drop_stage(p);
    p->g = l.g = graph_new(err);
    if (!p->g || use_loras(p, &l, err))
        return -1;
    if (stage == STAGE_TEXT) {
        rc = clip_build(&l, &options, n, tokens, &clip, err);
        p->in[0] = clip.ids;
        p->out = clip.out;
    } else if (stage == STAGE_UNET) {
        rc = unet_build(&l, &heads, n, h, wd, GRAPH_NONE, tokens, &unet, err);
        p->in[0] = unet.latents;
        p->in[1] = unet.timestep;
        p->in[2] = unet.context;
        p->out = unet.out;
    } else {
        rc = vae_build_decoder(&l, n, h, wd, &vae, err);
        p->in[0] = vae.in;
        p->out = vae.out;
    }
    return rc ? rc : graph_fuse(p->g, FUSE_ALL, err);
}

/* Makes a stage ready to run, unless it is. */
static int enter(struct generate_pipe *p, enum generate_stage stage, size_t n, size_t h, size_t wd, size_t tokens,
                 struct err *err)
{
    struct weights *w = stage == STAGE_DECODE && p->vae_w ? p->vae_w : p->w;

    if (p->stage == stage && p->n == n && p->h == h && p->wd == wd && p->tokens == tokens)
        return 0;
    if (build_stage(p, stage, n, h, wd, tokens, err) || run_new(&p->run, p->g, &p->ops, err) || weights_load(w, err)) {
        drop_stage(p);
        return -1;
    }
    p->stage = stage;
    p->n = n;
    p->h = h;
    p->wd = wd;
    p->tokens = tokens;
    return 0;
}

int generate_pipe_forecast(struct generate_pipe *p, size_t width, size_t height, size_t n, size_t *bytes, struct err *err)
{
    size_t h = height / p->factor, w = width / p->factor, most = 0, owned, mapped, more = 0;

    for (enum generate_stage s = STAGE_TEXT; s <= STAGE_DECODE; s++) {
        struct plan *plan;

        if (build_stage(p, s, s == STAGE_DECODE ? 1 : n, h, w, TOKEN_CHUNK, err) ||
            plan_new(&plan, p->g, &p->ops, thread_count(), err))
            return -1;
        most = plan->arena > most ? plan->arena : most;
        plan_free(plan);
    }
    drop_stage(p);
    weights_bytes(p->w, &owned, &mapped);
    if (p->vae_w)
        weights_bytes(p->vae_w, &more, &mapped);
    if (!mem_add(owned, more, bytes) || !mem_add(*bytes, most, bytes))
        return err_memory(err, ~0ull, "a picture of this size");
    return 0;
}

static bool all_finite(const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!isfinite(x[i]))
            return false;
    return true;
}

/* ---- Text ---- */

static int encode_tokens(struct generate_pipe *p, const struct prompt_tokens *t, size_t n, size_t chunks, float **context,
                         struct err *err)
{
    size_t tokens = chunks * TOKEN_CHUNK, width, bytes;
    int32_t pad = p->model->arch == MODEL_SD2 ? TOKEN_PAD_SD2 : TOKEN_END;
    float *weight;

    if (enter(p, STAGE_TEXT, n * chunks, 0, 0, TOKEN_CHUNK, err))
        return -1;
    width = graph_shape(p->g, p->out).dim[2];
    bytes = n * tokens * width * sizeof(float);
    weight = mem_new(n * tokens * sizeof *weight, "weights of a prompt", err);
    *context = weight ? mem_new(bytes, "a prompt", err) : NULL;
    if (!*context) {
        free(weight);
        return -1;
    }
    for (size_t i = 0; i < n; i++)
        prompt_fill(&t[i], chunks, pad, (int32_t *)run_data(p->run, p->in[0]) + i * tokens, weight + i * tokens);
    if (run_graph(p->run, NULL, err)) {
        free(weight);
        free(*context);
        *context = NULL;
        return -1;
    }
    memcpy(*context, run_data(p->run, p->out), bytes);
    for (size_t i = 0; i < n; i++)
        weigh(*context + i * tokens * width, weight + i * tokens, tokens, width);
    free(weight);
    return 0;
}

int generate_pipe_encode(struct generate_pipe *p, const char *const *text, size_t n, float **context, size_t *tokens,
                         bool *truncated, struct err *err)
{
    struct prompt_tokens t[3];
    size_t done = 0, longest = 0, chunks;
    int rc = -1;

    *context = NULL;
    *truncated = false;
    for (; done < n; done++) {
        if (prompt_tokenize(&t[done], p->tokenizer, text[done], strlen(text[done]), p->most_chunks * PROMPT_CHUNK, err))
            goto out;
        longest = t[done].count > longest ? t[done].count : longest;
        *truncated |= t[done].truncated;
    }
    chunks = prompt_chunks(longest, p->most_chunks);
    *tokens = chunks * TOKEN_CHUNK;
    rc = encode_tokens(p, t, n, chunks, context, err);
out:
    while (done > 0)
        prompt_tokens_free(&t[--done]);
    return rc;
}

/* ---- Latents ---- */

static void write_inputs(struct generate_pipe *p, const struct generate_job *job, const struct sampler *s, const float *x,
                         size_t n)
{
    float *latents = run_data(p->run, p->in[0]), *timestep = run_data(p->run, p->in[1]);
    size_t width = graph_shape(p->g, p->in[2]).dim[2];

    for (size_t i = 0; i < job->rows; i++) {
        sampler_input(s, x, latents + i * n);
        timestep[i] = (float)sampler_timestep(s);
    }
    memcpy(run_data(p->run, p->in[2]), job->context, job->rows * job->tokens * width * sizeof(float));
}

/* prediction [n] = what the U-Net says of x [n], with guidance. A number that is not finite is an error: the graph runs once
 * more to find the layer. */
static int predict(struct generate_pipe *p, const struct generate_job *job, const struct sampler *s, const float *x,
                   float *prediction, size_t n, struct err *err)
{
    struct run_options search = {.check_nan = true};
    const float *out;

    write_inputs(p, job, s, x, n);
    if (run_graph(p->run, NULL, err))
        return -1;
    out = run_data(p->run, p->out);
    if (!all_finite(out, job->rows * n)) {
        write_inputs(p, job, s, x, n);
        if (run_graph(p->run, &search, err) == 0)
            err_set(err, "the U-Net's output is not finite");
        return err_prefix(err, "step %zu of %zu: ", sampler_done_evaluations(s) + 1, sampler_evaluations(s));
    }
    if (job->rows == 1)
        memcpy(prediction, out, n * sizeof *prediction);
    else if (job->rows == 2)
        guidance(prediction, out, out + n, (float)job->scale, n);
    else
        guidance_negative(prediction, out, out + n, out + 2 * n, (float)job->scale, (float)job->negative_scale, n);
    return 0;
}

/* noise [n] is that of this evaluation: every evaluation has its own, used or not. */
static int take_steps(struct generate_pipe *p, const struct generate_job *job, struct sampler *s, struct noise *source,
                      float *x, float *prediction, float *noise, size_t n, struct err *err)
{
    while (!sampler_done(s)) {
        if (predict(p, job, s, x, prediction, n, err))
            return -1;
        if (sampler_wants_noise(s)) {
            noise_seek(source, 1 + sampler_done_evaluations(s));
            noise_next(source, noise);
        }
        if (sampler_step(s, x, prediction, noise, err))
            return -1;
        if (job->step)
            job->step(job->ctx);
    }
    return 0;
}

int generate_pipe_sample(struct generate_pipe *p, const struct generate_job *job, float **latents, struct err *err)
{
    size_t h = job->height / p->factor, w = job->width / p->factor, n;
    struct sampler_config config = {.kind = job->kind, .schedule = &p->schedule, .prediction = p->prediction, .steps = job->steps};
    struct sampler *s = NULL;
    struct noise source = {0};
    float *x = NULL;
    int rc = -1;

    *latents = NULL;
    if (enter(p, STAGE_UNET, job->rows, h, w, job->tokens, err))
        return -1;
    n = h * w * p->channels; /* the graph's shapes were checked for overflow */
    if (sampler_begin(&s, &config, n, err) || noise_begin(&source, p->device, job->seed, p->channels, h, w, err) ||
        !(x = mem_zero(3 * n, sizeof *x, "latents", err)))
        goto out;
    noise_next(&source, x);
    for (size_t i = 0; i < n; i++)
        x[i] = (float)(sampler_init_scale(s) * (double)x[i]);
    rc = take_steps(p, job, s, &source, x, x + n, x + 2 * n, n, err);
    if (rc == 0) {
        *latents = x;
        x = NULL;
    }
out:
    free(x);
    noise_end(&source);
    sampler_end(s);
    return rc;
}

/* ---- Pictures ---- */

int generate_pipe_decode(struct generate_pipe *p, const float *latents, size_t width, size_t height, struct picture *out,
                         struct err *err)
{
    size_t h = height / p->factor, w = width / p->factor, n = h * w * p->channels;
    const float *y;
    float *x;

    if (enter(p, STAGE_DECODE, 1, h, w, 0, err))
        return -1;
    x = run_data(p->run, p->in[0]);
    for (size_t i = 0; i < n; i++)
        x[i] = latents[i] / LATENT_SCALE;
    if (run_graph(p->run, NULL, err))
        return -1;
    y = run_data(p->run, p->out);
    if (!all_finite(y, width * height * 3))
        return err_set(err, "the VAE's output is not finite; try another one with --vae");
    if (picture_new(out, width, height, 3, err))
        return -1;
    for (size_t i = 0; i < width * height * 3; i++) {
        float v = y[i] / 2 + 0.5f;

        v = v < 0 ? 0 : v > 1 ? 1 : v;
        out->data[i] = (uint8_t)rintf(v * 255);
    }
    return 0;
}
