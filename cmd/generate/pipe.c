#include "cmd/generate/pipe_inside.h"

#include <stdlib.h>
#include <string.h>

#include "ref/base/thread.h"
#include "ref/diffusion/weigh.h"
#include "ref/model/clip.h"
#include "ref/model/unet.h"

/* ---- Opening ---- */

static int begin(struct generate_pipe *p, const char *vae, const struct ops *ops, struct err *err)
{
    struct unet_config config;

    if (model_need(p->model, MODEL_UNET, err) || model_need(p->model, MODEL_TEXT_ENCODER, err) ||
        latents_open(&p->latents, vae ? vae : p->model->path, ops, err) || unet_config(p->w, &config, err))
        return -1;
    p->factor = latents_factor(p->latents);
    p->channels = latents_channels(p->latents);
    p->inpainting = config.in_channels == 2 * p->channels + 1;
    if ((config.in_channels != p->channels && !p->inpainting) || config.out_channels != p->channels)
        return err_set(
            err,
            "cannot generate with '%s': its U-Net takes %zu channels and gives %zu, the VAE has %zu; plain models and "
            "those for inpainting can be used (not those for depth, upscaling or editing)",
            p->model->path, config.in_channels, config.out_channels, p->channels);
    p->ops = ops;
    schedule_init(&p->schedule);
    p->most_chunks = 1;
    p->prediction = p->model->prediction == MODEL_V ? PREDICT_V : PREDICT_EPS;
    return tokenizer_open(&p->tokenizer, err);
}

int generate_pipe_open(struct generate_pipe *p, const char *ckpt, const char *vae, const struct ops *ops, struct err *err)
{
    if (model_open(&p->model, ckpt, err) || model_weights_open(&p->source, p->model, true, err) ||
        weights_new(&p->w, model_weights_source(p->source), err))
        return -1;
    return begin(p, vae, ops, err);
}

int generate_pipe_borrow(struct generate_pipe *p, struct model *model, struct weights *w, const char *vae,
                         const struct ops *ops, struct err *err)
{
    p->borrowed = true;
    p->model = model;
    p->w = w;
    return begin(p, vae, ops, err);
}

void generate_pipe_rest(struct generate_pipe *p)
{
    if (p->times)
        profile_print(p->times, stderr, 0, 12);
    profile_free(p->times);
    p->times = NULL;
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
    generate_pipe_rest(p);
    tokenizer_close(p->tokenizer);
    latents_close(p->latents);
    if (!p->borrowed) {
        weights_free(p->w);
        model_weights_close(p->source);
        model_close(p->model);
    }
    memset(p, 0, sizeof *p);
}

void generate_pipe_loras(struct generate_pipe *p, const struct generate_loras *loras)
{
    generate_pipe_rest(p);
    p->loras = loras;
}

/* ---- Graphs ---- */

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
    struct clip_options options = {.clip_skip = p->clip_skip};
    struct unet_options heads = {.heads = p->model->head_dim_hint > 0 ? (size_t)p->model->head_dim_hint : 0};
    struct layers l = {.w = p->w, .part = stage == STAGE_TEXT ? MODEL_TEXT_ENCODER : MODEL_UNET};
    struct clip clip = {0};
    struct unet unet = {0};
    int rc;

    generate_pipe_rest(p);
    p->g = l.g = graph_new(err);
    if (!p->g || use_loras(p, &l, err))
        return -1;
    if (stage == STAGE_TEXT) {
        rc = clip_build(&l, &options, n, tokens, &clip, err);
        p->in[0] = clip.ids;
        p->out = clip.out;
    } else {
        rc = unet_build(&l, &heads, n, h, wd, GRAPH_NONE, tokens, &unet, err);
        p->in[0] = unet.latents;
        p->in[1] = unet.timestep;
        p->in[2] = unet.context;
        p->out = unet.out;
    }
    return rc ? rc : graph_fuse(p->g, FUSE_ALL, err);
}

int generate_pipe_enter(struct generate_pipe *p, enum generate_stage stage, size_t n, size_t h, size_t wd, size_t tokens,
                        struct err *err)
{
    if (p->stage == stage && p->n == n && p->h == h && p->wd == wd && p->tokens == tokens)
        return 0;
    latents_rest(p->latents);
    if (build_stage(p, stage, n, h, wd, tokens, err) || run_new(&p->run, p->g, p->ops, err) || weights_load(p->w, err)) {
        generate_pipe_rest(p);
        return -1;
    }
    if (p->profile && stage == STAGE_UNET && profile_new(&p->times, p->g, p->run, err)) {
        generate_pipe_rest(p);
        return -1;
    }
    p->stage = stage;
    p->n = n;
    p->h = h;
    p->wd = wd;
    p->tokens = tokens;
    return 0;
}

int generate_pipe_run(struct generate_pipe *p, struct err *err)
{
    struct run_options o = {.check_nan = p->check_nan, .after = p->times ? profile_after : NULL, .ctx = p->times};

    if (run_graph(p->run, &o, err))
        return -1;
    return p->source ? model_weights_check(p->source, err) : 0;
}

static int stage_arena(struct generate_pipe *p, enum generate_stage stage, size_t n, size_t h, size_t w, size_t tokens,
                       size_t *most, struct err *err)
{
    struct plan *plan;

    if (build_stage(p, stage, n, h, w, tokens, err) || plan_new(&plan, p->g, p->ops, thread_count(), err))
        return -1;
    *most = plan->arena > *most ? plan->arena : *most;
    plan_free(plan);
    return 0;
}

/* The larger arena of the VAE's two sides; weights not counted. */
static int vae_arena(struct generate_pipe *p, size_t width, size_t height, bool encode, size_t *arena, size_t *owned,
                     size_t *mapped, struct err *err)
{
    size_t bytes[2] = {0};

    for (int side = 0; side <= (encode ? 1 : 0); side++) {
        if (latents_forecast(p->latents, side == 1, height, width, &bytes[side], NULL, err))
            return -1;
        latents_bytes(p->latents, owned, mapped);
        bytes[side] -= *owned + *mapped;
    }
    *arena = bytes[0] > bytes[1] ? bytes[0] : bytes[1];
    return 0;
}

/* While the VAE works, no page of the checkpoint's other parts is mapped (make_room()). */
int generate_pipe_forecast(struct generate_pipe *p, size_t width, size_t height, size_t count, size_t rows, size_t chunks,
                           bool encode, bool again, struct generate_need *need, struct err *err)
{
    size_t h = height / p->factor, w = width / p->factor, most = 0, owned, mapped, arena, vae_owned, vae_mapped, unet, vae;
    int rc = stage_arena(p, STAGE_TEXT, chunks, 0, 0, TOKEN_CHUNK, &most, err);

    if (rc == 0)
        rc = stage_arena(p, STAGE_UNET, count * rows, h, w, chunks * TOKEN_CHUNK, &most, err);
    generate_pipe_rest(p);
    if (rc || vae_arena(p, width, height, encode, &arena, &vae_owned, &vae_mapped, err))
        return -1;
    weights_bytes(p->w, &owned, &mapped);
    unet = owned + (encode || again ? vae_owned : 0) + mapped + most;
    vae = owned + vae_owned + vae_mapped + arena;
    need->mapped = unet > vae ? mapped : vae_mapped;
    need->own = (unet > vae ? unet : vae) - need->mapped;
    need->device = owned + mapped + vae_owned + vae_mapped + (most > arena ? most : arena);
    return 0;
}

/* ---- Text ---- */

int generate_pipe_chunks(struct generate_pipe *p, const char *const *text, size_t n, size_t *chunks, bool *truncated,
                         struct err *err)
{
    size_t longest = 0;

    *truncated = false;
    for (size_t i = 0; i < n; i++) {
        struct prompt_tokens t;

        if (prompt_tokenize(&t, p->tokenizer, text[i], strlen(text[i]), p->most_chunks * PROMPT_CHUNK, err))
            return -1;
        longest = t.count > longest ? t.count : longest;
        *truncated |= t.truncated;
        prompt_tokens_free(&t);
    }
    *chunks = prompt_chunks(longest, p->most_chunks);
    return 0;
}

/* Runs the text encoder for ids [n * chunks, 77] and weighs its output with weight [n, chunks * 77]. */
static int encode_ids(struct generate_pipe *p, const int32_t *ids, const float *weight, size_t n, size_t chunks,
                      float **context, struct err *err)
{
    size_t tokens = chunks * TOKEN_CHUNK, width;

    if (generate_pipe_enter(p, STAGE_TEXT, n * chunks, 0, 0, TOKEN_CHUNK, err))
        return -1;
    width = graph_shape(p->g, p->out).dim[2];
    *context = mem_new(n * tokens * width * sizeof **context, "a prompt", err);
    if (!*context)
        return -1;
    if (run_write(p->run, p->in[0], ids, err) || generate_pipe_run(p, err) || run_read(p->run, p->out, *context, err))
        return -1;
    if (dtype_find_nonfinite(*context, DT_F32, n * tokens * width) < n * tokens * width) {
        struct run_options search = {.check_nan = true};

        if (run_write(p->run, p->in[0], ids, err) == 0 && run_graph(p->run, &search, err) == 0)
            err_set(err, "its output is not finite");
        return err_prefix(err, "the text encoder of '%s' fails: ", p->model->path);
    }
    for (size_t i = 0; i < n; i++)
        weigh(*context + i * tokens * width, weight + i * tokens, tokens, width);
    return 0;
}

/* The different ones among text [n]: first [count] are their places; of [n]: which one each is. */
static size_t distinct(const char *const *text, size_t n, size_t *first, size_t *of)
{
    size_t count = 0;

    for (size_t i = 0; i < n; i++) {
        size_t k = 0;

        while (k < count && strcmp(text[first[k]], text[i]) != 0)
            k++;
        if (k == count)
            first[count++] = i;
        of[i] = k;
    }
    return count;
}

static int tokenize(struct generate_pipe *p, const char *text, size_t chunks, int32_t *ids, float *weight, struct err *err)
{
    int32_t pad = p->model->arch == MODEL_SD2 ? TOKEN_PAD_SD2 : TOKEN_END;
    struct prompt_tokens t;

    if (prompt_tokenize(&t, p->tokenizer, text, strlen(text), p->most_chunks * PROMPT_CHUNK, err))
        return -1;
    prompt_fill(&t, chunks, pad, ids, weight);
    prompt_tokens_free(&t);
    return 0;
}

int generate_pipe_encode(struct generate_pipe *p, const char *const *text, size_t n, size_t chunks, float **context,
                         struct err *err)
{
    size_t tokens = chunks * TOKEN_CHUNK, count, row;
    size_t *first = mem_zero(2 * n, sizeof *first, "prompts", err), *of = first ? first + n : NULL;
    int32_t *ids = mem_zero(n * tokens, sizeof *ids, "tokens", err);
    float *weight = mem_zero(n * tokens, sizeof *weight, "weights of a prompt", err), *each = NULL;
    int rc = first && ids && weight ? 0 : -1;

    *context = NULL;
    count = rc == 0 ? distinct(text, n, first, of) : 0;
    for (size_t i = 0; rc == 0 && i < count; i++)
        rc = tokenize(p, text[first[i]], chunks, ids + i * tokens, weight + i * tokens, err);
    if (rc == 0)
        rc = encode_ids(p, ids, weight, count, chunks, &each, err);
    row = rc == 0 ? tokens * graph_shape(p->g, p->out).dim[2] : 0;
    if (rc == 0 && !(*context = mem_new(n * row * sizeof **context, "prompts", err)))
        rc = -1;
    for (size_t i = 0; rc == 0 && i < n; i++)
        memcpy(*context + i * row, each + of[i] * row, row * sizeof **context);
    free(each);
    free(first);
    free(ids);
    free(weight);
    return rc;
}

/* ---- Pictures ---- */

/* The U-Net's graph and its mapped pages make room for the VAE's. */
static void make_room(struct generate_pipe *p)
{
    generate_pipe_rest(p);
    if (p->source)
        model_weights_rest(p->source);
}

int generate_pipe_decode(struct generate_pipe *p, const float *latents, size_t width, size_t height, struct picture *out,
                         struct err *err)
{
    float *pixels = mem_new(width * height * 3 * sizeof *pixels, "a picture", err);
    int rc = pixels ? 0 : -1;

    make_room(p);
    if (rc == 0)
        rc = latents_decode(p->latents, latents, 1, height / p->factor, width / p->factor, pixels, err);
    if (rc == 0)
        rc = latents_to_picture(pixels, height, width, out, err);
    free(pixels);
    return rc;
}

int generate_pipe_picture(struct generate_pipe *p, const struct picture *picture, const struct sampler_kind *kind, size_t steps,
                          uint64_t seed, float *latents, struct err *err)
{
    size_t h = picture->height / p->factor, w = picture->width / p->factor;
    float *pixels = mem_new(picture->width * picture->height * 3 * sizeof *pixels, "a picture", err);
    float *noise = mem_new(h * w * p->channels * sizeof *noise, "a picture's noise", err);
    struct noise source = {0};
    int rc = pixels && noise ? noise_begin(&source, p->device, seed, p->channels, h, w, err) : -1;

    make_room(p);
    if (rc == 0) {
        noise_seek(&source, steps * kind->noises + 2);
        noise_next(&source, noise);
        latents_from_picture(picture, pixels);
        rc = latents_encode(p->latents, pixels, 1, picture->height, picture->width, noise, latents, err);
    }
    noise_end(&source);
    free(pixels);
    free(noise);
    return rc;
}
