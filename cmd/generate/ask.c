#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "cmd/generate/generate.h"
#include "cmd/memory.h"
#include "ref/diffusion/seed.h"

enum { LEAST_SIDE = 64, MOST_SIDE = 8192 };

/* ---- Prompts ---- */

/* Prompts from the texts inside the pictures, one each. */
static int prompts_of_pictures(struct work *w, struct err *err)
{
    size_t cap = 0;

    for (size_t i = 0; i < w->sources.count; i++) {
        const struct source *s = &w->sources.item[i];

        if (!s->prompt)
            return err_usage(err, "'%s' has no prompt inside; give one with --prompt or --from_file", s->path);
        if (mem_grow(&w->prompts.line, &cap, w->prompts.count, sizeof *w->prompts.line, "prompts", err))
            return -1;
        if (prompt_line_parse(&w->prompts.line[w->prompts.count], s->prompt, strlen(s->prompt), NULL, 0, err))
            return err_prefix(err, "'%s': ", s->path);
        w->prompts.count++;
    }
    w->prompts_of_pictures = true;
    return 0;
}

int ask_prompts(struct work *w, struct err *err)
{
    const struct generate_options *o = w->o;

    if (o->mask_path && !o->image_path)
        return err_usage(err, "--mask_path says what to repaint of a picture; give the picture with --image_path");
    if (o->image_path && option_given(w->run->values, &o->highres_fix_scale))
        return err_usage(err, "--highres_fix_scale begins with a picture of its own; leave out --image_path");
    if (o->image_path && sources_open(&w->sources, o->image_path, "--image_path", err))
        return -1;
    if (o->mask_path && sources_open(&w->masks, o->mask_path, "--mask_path", err))
        return -1;
    if (o->from_file)
        return prompt_file_read(&w->prompts, o->from_file, err);
    if (o->prompt) {
        w->prompts.line = mem_zero(1, sizeof *w->prompts.line, "a prompt", err);
        if (!w->prompts.line || prompt_line_parse(w->prompts.line, o->prompt, strlen(o->prompt), NULL, 0, err))
            return -1;
        w->prompts.count = 1;
        return 0;
    }
    if (o->interactive)
        return 0;
    if (w->sources.count)
        return prompts_of_pictures(w, err);
    return err_usage(err, "nothing to draw; give --prompt TEXT, --from_file FILE or --interactive");
}

/* ---- Seeds ---- */

/* A seed in 0 .. 2^31 - 1 that nobody can foresee. */
static int any_seed(uint64_t *seed, struct err *err)
{
    uint32_t x;

    if (getrandom(&x, sizeof x, 0) != (ssize_t)sizeof x)
        return err_set(err, "cannot get a random seed from the system; give one with --seed");
    *seed = x >> 1;
    return 0;
}

int ask_pass(struct work *w, struct err *err)
{
    return any_seed(&w->iter_seed, err);
}

int ask_seeds(struct work *w, struct err *err)
{
    const struct generate_options *o = w->o;
    size_t n;

    if (ask_pass(w, err))
        return -1;
    if (!option_given(w->run->values, &o->seed) || !w->prompts.count)
        return 0;
    if (!mem_mul(o->n_iter, w->prompts.count, &n) || !mem_mul(n, o->images_per_prompt, &n))
        return err_memory(err, ~0ull, "seeds");
    w->seed = mem_zero(n, sizeof *w->seed, "seeds", err);
    if (!w->seed)
        return -1;
    seed_pictures((uint64_t)o->seed, n, o->images_per_prompt, w->seed);
    w->seeds = n;
    return 0;
}

/* The seed of picture i of a prompt. Typed prompts go on from --seed by one each. */
static int next_seed(struct work *w, const struct prompt_line *p, size_t i, uint64_t *seed, struct err *err)
{
    if (p->seeds)
        *seed = p->seed[i % p->seeds];
    else if (w->next_seed < w->seeds)
        *seed = w->seed[w->next_seed++];
    else if (option_given(w->run->values, &w->o->seed))
        *seed = (uint64_t)w->o->seed + w->next_seed++;
    else if (w->o->iter_same_seed)
        *seed = w->iter_seed;
    else
        return any_seed(seed, err);
    return 0;
}

/* ---- Sizes ---- */

static const struct source *source_at(const struct work *w, const struct sources *s, size_t step)
{
    if (!s->count)
        return NULL;
    return &s->item[(w->prompts_of_pictures ? step / w->o->images_per_prompt : step) % s->count];
}

/* What was asked for: by the prompt, by --W and --H, by the picture to begin with; one side alone keeps that picture's shape.
 */
static void wanted_size(const struct work *w, const struct prompt_line *p, const struct source *s, size_t *width,
                        size_t *height)
{
    *width = p->given & PROMPT_WIDTH ? p->width : w->has_w ? w->o->W : 0;
    *height = p->given & PROMPT_HEIGHT ? p->height : w->has_h ? w->o->H : 0;
    if (!s) {
        *width = *width ? *width : w->o->W;
        *height = *height ? *height : w->o->H;
    } else if (!*width && !*height) {
        *width = s->width;
        *height = s->height;
    } else if (!*width) {
        *width = (size_t)rint((double)s->width * (double)*height / (double)s->height);
    } else if (!*height) {
        *height = (size_t)rint((double)s->height * (double)*width / (double)s->width);
    }
}

static int set_size(const struct work *w, const struct prompt_line *p, struct shot *s, struct err *err)
{
    size_t f = w->pipe.factor;

    wanted_size(w, p, s->source, &s->width, &s->height);
    s->width = s->width / f * f;
    s->height = s->height / f * f;
    if (s->width < LEAST_SIDE || s->height < LEAST_SIDE || s->width > MOST_SIDE || s->height > MOST_SIDE)
        return err_usage(err, "prompt '%s': cannot draw %zu x %zu pixels; sides of %d to %d are possible", p->text, s->width,
                         s->height, LEAST_SIDE, MOST_SIDE);
    return 0;
}

/* A mask of another size is scaled; one of another shape would not lie where it was drawn. */
static int check_mask(const struct shot *s, struct err *err)
{
    double a, b;

    if (!s->mask)
        return 0;
    a = (double)s->mask->width * (double)s->source->height;
    b = (double)s->mask->height * (double)s->source->width;
    if (fabs(a - b) > 0.02 * b)
        return err_usage(err, "the mask '%s' is %zu x %zu, the picture '%s' %zu x %zu; give a mask of the picture's shape",
                         s->mask->path, s->mask->width, s->mask->height, s->source->path, s->source->width, s->source->height);
    return 0;
}

/* ---- Shots ---- */

/* Rows of the U-Net: prompt; negative prompt when there is guidance; the empty prompt for a negative scale. */
static size_t rows_of(const struct shot *s)
{
    return s->scale <= 1 ? 1 : isnan(s->negative_scale) ? 2 : 3;
}

int ask_shot(struct work *w, const struct prompt_line *p, struct shot *out, struct err *err)
{
    const struct generate_options *o = w->o;
    const char *text[2] = {p->text, p->negative};
    bool truncated;

    if (p->clip)
        return err_usage(err, "prompt '%s': --c asks for CLIP guidance, which is not part of this program; leave it out",
                         p->text);
    *out = (struct shot){.prompt = p, .source = source_at(w, &w->sources, w->step), .mask = source_at(w, &w->masks, w->step)};
    out->steps = p->given & PROMPT_STEPS ? p->steps : o->steps;
    out->scale = p->given & PROMPT_SCALE ? p->scale : o->scale;
    out->negative_scale = p->negative_scale_none             ? NAN
                          : p->given & PROMPT_NEGATIVE_SCALE ? p->negative_scale
                          : w->has_negative_scale            ? o->negative_scale
                                                             : NAN;
    if (out->scale <= 1)
        out->negative_scale = NAN;
    out->strength = p->given & PROMPT_STRENGTH                                          ? p->strength
                    : w->pipe.inpainting && !option_given(w->run->values, &o->strength) ? 1
                                                                                        : o->strength;
    out->rows = rows_of(out);
    if (set_size(w, p, out, err) || check_mask(out, err) ||
        generate_pipe_chunks(&w->pipe, text, out->rows > 1 ? 2 : 1, &out->chunks, &truncated, err))
        return -1;
    if (truncated && w->step % o->images_per_prompt == 0)
        command_warn(w->run, "prompt '%.60s' is longer than %zu tokens and was cut; raise --max_embeddings_multiples", p->text,
                     w->pipe.most_chunks * (size_t)PROMPT_CHUNK);
    return 0;
}

int ask_next(struct work *w, const struct prompt_line *p, struct shot *shot, size_t i, struct err *err)
{
    if (ask_shot(w, p, shot, err) || next_seed(w, p, i, &shot->seed, err))
        return -1;
    w->step++;
    return 0;
}

/* ---- Before the first step ---- */

static size_t evaluations(const struct work *w, size_t steps, bool from_picture, double strength)
{
    struct sampler_config c = {
        .kind = w->kind, .schedule = &w->pipe.schedule, .prediction = w->pipe.prediction, .steps = steps};
    struct sampler *s;
    struct err err = {0};
    size_t n;

    c.first = from_picture ? sampler_first_step(steps, strength) : 0;
    if (sampler_begin(&s, &c, 1, &err))
        return steps; /* the error comes again, where it can be told */
    n = sampler_evaluations(s);
    sampler_end(s);
    return n;
}

size_t ask_evaluations(const struct work *w, const struct shot *s)
{
    bool highres = option_given(w->run->values, &w->o->highres_fix_scale);

    return evaluations(w, s->steps, s->source || highres, s->strength) +
           (highres ? evaluations(w, w->o->highres_fix_steps, false, 0) : 0);
}

void ask_first_stage(const struct work *w, const struct shot *s, size_t *width, size_t *height)
{
    *width = (size_t)((double)s->width * w->o->highres_fix_scale + 0.5) / 32 * 32;
    *height = (size_t)((double)s->height * w->o->highres_fix_scale + 0.5) / 32 * 32;
}

static int check_first_stage(const struct work *w, const struct shot *s, struct err *err)
{
    size_t width, height;

    if (!option_given(w->run->values, &w->o->highres_fix_scale))
        return 0;
    ask_first_stage(w, s, &width, &height);
    if (width < 32 || height < 32)
        return err_usage(err,
                         "--highres_fix_scale %g makes a first picture of %zu x %zu out of %zu x %zu; 32 is the least side",
                         w->o->highres_fix_scale, width, height, s->width, s->height);
    return 0;
}

struct need {
    size_t cost; /* of the most costly picture so far */
    struct generate_need bytes;
};

static int forecast(struct work *w, const struct shot *s, struct need *need, struct err *err)
{
    size_t cost = s->width * s->height * s->rows * (1 + s->chunks), bytes;
    bool encode = s->source || option_given(w->run->values, &w->o->highres_fix_scale), tiled;
    bool again = w->prompts.count * w->o->images_per_prompt * w->o->n_iter > w->o->batch_size;

    if (cost <= need->cost)
        return 0;
    need->cost = cost;
    if (generate_pipe_forecast(&w->pipe, s->width, s->height, w->o->batch_size, s->rows, s->chunks, encode, again, &need->bytes,
                               err) ||
        latents_forecast(w->pipe.latents, false, s->height, s->width, &bytes, &tiled, err))
        return -1;
    need->bytes.own += loras_bytes(w->loras);
    need->bytes.device += loras_bytes(w->loras);
    if (tiled && !w->o->vae_tile)
        command_note(w->run, "memory is short for a whole picture of %zu x %zu: the VAE works in tiles", s->width, s->height);
    return 0;
}

static int check_shot(struct work *w, const struct shot *s, struct need *need, struct err *err)
{
    size_t width, height;

    wanted_size(w, s->prompt, s->source, &width, &height);
    if (width != s->width || height != s->height)
        command_note(w->run, "sides are multiples of %zu: %zu x %zu becomes %zu x %zu", w->pipe.factor, width, height, s->width,
                     s->height);
    if (loras_check(w, s->prompt, err) || check_first_stage(w, s, err))
        return -1;
    return forecast(w, s, need, err);
}

/* What is mapped is the system's to drop; a device with memory of its own must hold it, too. */
static int check_memory(struct work *w, const struct need *need, struct err *err)
{
    struct memory_need host = {.bytes = need->bytes.own, .mapped = need->bytes.mapped};
    char a[32], b[32];

    if (!w->offload.info.memory)
        return memory_check(w->run, &host, "use a smaller --W, --H or --batch_size, or close other programs", err);
    command_bytes(need->bytes.device, a, sizeof a);
    command_bytes(w->limit, b, sizeof b);
    if (need->bytes.device > w->limit)
        return err_set(err,
                       "not enough memory on the device: this needs %s, %s are free; use a smaller --W, --H or --batch_size, "
                       "or --device cpu",
                       a, b);
    command_note(w->run, "memory: at most %s of the device", a);
    return 0;
}

int ask_check(struct work *w, size_t *total, struct err *err)
{
    struct need need = {0};
    size_t pass = 0;

    latents_limit(w->pipe.latents, w->limit / 2);

    for (size_t i = 0; i < w->prompts.count; i++)
        for (size_t k = 0; k < w->o->images_per_prompt; k++) {
            struct shot s;

            if (ask_shot(w, &w->prompts.line[i], &s, err) || check_shot(w, &s, &need, err))
                return -1;
            pass += ask_evaluations(w, &s);
            w->step++;
        }
    w->step = 0;
    *total = pass * w->o->n_iter;
    return need.cost ? check_memory(w, &need, err) : 0;
}
