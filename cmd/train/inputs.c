/* What goes into a step's graph: a batch's noised latents and targets, captions, masks; and the next batch's, drawn while a device is
 * at work. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cmd/train/train.h"
#include "ref/base/rng.h"

/* x0 of all samples: cached latents, or pixels through the VAE, a new sample of its distribution each time. */
static int make_latents(struct trainer *t, struct train_inputs *in, const struct dataset_batch *b, uint64_t seed, struct err *err)
{
    size_t per = b->height / t->factor * (b->width / t->factor) * t->channels, n = b->n * per;

    if (b->latents) {
        for (size_t i = 0; i < n; i++)
            in->x0[i] = b->latents[i] * TRAIN_LATENT_SCALE;
        return 0;
    }
    if (latents_moments(t->vae, b->pixels, b->n, b->height, b->width, t->moments, err))
        return -1;
    for (size_t i = 0; i < b->n; i++) {
        struct rng r;

        rng_seed(&r, train_seed(seed, STREAM_VAE, 0, 0, i));
        rng_normal(&r, in->noise + i * per, per);
    }
    latents_sample(t->vae, t->moments, in->noise, in->x0, n / t->channels);
    return 0;
}

static int write_emphasis(struct trainer *t, struct train_graph *g, const struct dataset_batch *b, size_t n, struct err *err)
{
    struct shape s = graph_shape(g->g, g->emphasis);

    for (size_t i = 0; i < n; i++)
        if (text_weights(t->text, b->caption[t->pick[i]], t->emphasis + i * s.dim[1] * s.dim[2], s.dim[2], err))
            return -1;
    return run_write(g->run, g->emphasis, t->emphasis, err);
}

/* Captions of the samples t->pick [n] of a batch. */
static int write_text(struct trainer *t, struct train_graph *g, const struct dataset_batch *b, size_t n, struct err *err)
{
    if (g->ids == GRAPH_NONE) {
        for (size_t i = 0; i < n; i++)
            if (text_embed(t->text, b->caption[t->pick[i]], t->context + i * text_size(t->text), err))
                return -1;
        return run_write(g->run, g->context, t->context, err);
    }
    for (size_t i = 0; i < n; i++)
        if (text_ids(t->text, b->caption[t->pick[i]], t->ids + i * t->chunks * TOKEN_CHUNK, err))
            return -1;
    if (run_write(g->run, g->ids, t->ids, err) || (g->emphasis != GRAPH_NONE && write_emphasis(t, g, b, n, err)))
        return -1;
    if (g->rows == GRAPH_NONE)
        return 0;
    text_rows(t->chunks, n, t->rows);
    return run_write(g->run, g->rows, t->rows, err);
}

static int write_masks(struct trainer *t, struct train_graph *g, uint64_t seed, struct err *err)
{
    for (size_t i = 0; i < t->net->count; i++) {
        struct shape s;
        size_t rank, rows = 1;

        if (g->mask[i] == GRAPH_NONE)
            continue;
        s = graph_shape(g->g, g->mask[i]);
        rank = s.dim[s.ndim - 1];
        for (int k = 0; k + 1 < s.ndim; k++)
            rows *= s.dim[k];
        train_draw_mask(&t->args, t->o->network_dropout, train_seed(seed, STREAM_MASK, 0, 0, i), t->mask, rows, rank,
                        rows / s.dim[0]);
        if (run_write(g->run, g->mask[i], t->mask, err))
            return -1;
    }
    return 0;
}

/* mask (pred - target)^2 is the square of the difference of both times sqrt(mask). The mask spread over channels takes the place of
 * the noise, which is done with. A device may keep it in 16 bits: then the target gets just those roots, too. */
static int write_loss_mask(struct trainer *t, struct train_graph *g, const float *mask, size_t cells, struct err *err)
{
    enum dtype arithmetic = t->device.info.arithmetic;
    size_t n = cells * t->channels;

    for (size_t i = 0; i < n; i++)
        t->in.noise[i] = sqrtf(mask[i / t->channels]);
    if (dtype_size(arithmetic) == 2) {
        dtype_convert(t->moments, arithmetic, t->in.noise, DT_F32, n);
        dtype_convert(t->in.noise, DT_F32, t->moments, arithmetic, n);
    }
    for (size_t i = 0; i < n; i++)
        t->in.target[i] *= t->in.noise[i];
    return run_write(g->run, g->loss_mask, t->in.noise, err);
}

/* What t->in holds. */
static int write_samples(struct trainer *t, struct train_graph *g, const struct dataset_batch *b, float loss_gradient, struct err *err)
{
    size_t n = b->n;
    float *row = t->row;

    if (g->loss_mask != GRAPH_NONE && write_loss_mask(t, g, b->mask, n * g->shape.h * g->shape.w, err))
        return -1;
    for (size_t i = 0; i < n; i++)
        row[i] = (float)t->in.sample[i].timestep;
    if (run_write(g->run, g->timestep, row, err))
        return -1;
    for (size_t i = 0; i < n; i++)
        row[i] = t->in.sample[i].weight;
    if (run_write(g->run, g->weight, row, err))
        return -1;
    for (size_t i = 0; i < n; i++)
        row[i] = t->in.sample[i].delta;
    if (g->delta != GRAPH_NONE && run_write(g->run, g->delta, row, err))
        return -1;
    if (g->seed != GRAPH_NONE && run_write(g->run, g->seed, &loss_gradient, err))
        return -1;
    return run_write(g->run, g->latents, t->in.noisy, err) || run_write(g->run, g->target, t->in.target, err) ? -1 : 0;
}

static void draw_samples(const struct trainer *t, struct train_inputs *in, const struct dataset_batch *b, size_t step, size_t micro,
                         bool validation)
{
    size_t h = b->height / t->factor, w = b->width / t->factor, per = h * w * t->channels;
    size_t first = t->o->min_timestep, range = t->o->max_timestep - first;

    for (size_t i = 0; i < b->n; i++) {
        struct train_sample *s = &in->sample[i];
        uint64_t place = validation ? t->o->data.validation_seed : step;
        enum train_stream stream = validation ? STREAM_VALIDATION : STREAM_NOISE;

        if (validation) /* evenly spread over the timesteps by the golden ratio */
            s->timestep = first + (size_t)(fmod(((double)b->picture[i] + 0.5) * 0.6180339887498949, 1) * (double)range);
        else
            s->timestep = train_draw_timestep(t, train_seed(t->seed, STREAM_TIMESTEP, step, micro, i));
        train_draw(t, in->x0 + i * per, h, w, train_seed(t->seed, stream, place, validation ? 0 : micro, validation ? b->picture[i] : i),
                   validation, b->weight[i], in->noise + i * per, in->noisy + i * per, in->target + i * per, s);
    }
}

static void pick_all(struct trainer *t, size_t n)
{
    for (size_t i = 0; i < n; i++)
        t->pick[i] = i;
}

/* Prior preservation against the model instead of the picture: the target of a regularisation sample becomes what the model
 * predicts without the LoRA. At the start its loss is 0 then, and so is its gradient: it pulls at what the LoRA has changed, and
 * adds no noise of its own. All graphs share one memory, so this comes before anything is written for the step itself. */
static int set_prior(struct trainer *t, const struct dataset_batch *b, struct err *err)
{
    size_t per = b->height / t->factor * (b->width / t->factor) * t->channels, n = 0;
    struct train_inputs *in = &t->in;
    struct train_shape shape = {0, b->height / t->factor, b->width / t->factor, t->chunks};
    struct train_graph *g;

    for (size_t i = 0; i < b->n; i++)
        if (b->reg[i]) {
            t->pick[n] = i;
            t->row[n] = (float)in->sample[i].timestep;
            memcpy(in->noise + n++ * per, in->noisy + i * per, per * sizeof *in->noise); /* the noise itself is not needed any more */
        }
    shape.n = n;
    if (n == 0)
        return 0;
    if (train_get_graph(t, &shape, TRAIN_PRIOR, &g, err) || run_write(g->run, g->timestep, t->row, err) ||
        run_write(g->run, g->latents, in->noise, err) || write_text(t, g, b, n, err) || run_graph(g->run, NULL, err) ||
        run_read(g->run, g->out, in->noise, err))
        return -1;
    for (size_t i = 0; i < n; i++)
        memcpy(in->target + t->pick[i] * per, in->noise + i * per, per * sizeof *in->target);
    return 0;
}

static uint64_t masks_seed(const struct trainer *t, size_t step, size_t micro)
{
    return train_seed(t->seed, STREAM_MASK, step, micro, 0);
}

static int draw(struct trainer *t, struct train_inputs *in, const struct dataset_batch *b, size_t step, size_t micro, struct err *err)
{
    if (make_latents(t, in, b, masks_seed(t, step, micro), err))
        return -1;
    draw_samples(t, in, b, step, micro, false);
    return 0;
}

/* t->in, drawn for this place. */
static int write_drawn(struct trainer *t, struct train_graph *g, const struct dataset_batch *b, size_t micro, double loss_gradient,
                       struct err *err)
{
    if (t->o->prior_loss_target == PRIOR_MODEL && set_prior(t, b, err))
        return -1;
    pick_all(t, b->n);
    return write_samples(t, g, b, (float)loss_gradient, err) || write_text(t, g, b, b->n, err) ||
                   write_masks(t, g, masks_seed(t, t->now.step, micro), err)
               ? -1
               : 0;
}

int train_write_batch(struct trainer *t, struct train_graph *g, const struct dataset_batch *b, size_t micro, double loss_gradient,
                      struct err *err)
{
    return draw(t, &t->in, b, t->now.step, micro, err) || write_drawn(t, g, b, micro, loss_gradient, err) ? -1 : 0;
}

int train_write_next(struct trainer *t, struct train_graph *g, size_t micro, double loss_gradient, struct err *err)
{
    if (!t->in.drawn && draw(t, &t->in, t->in.b, t->now.step, micro, err))
        return -1;
    return write_drawn(t, g, t->in.b, micro, loss_gradient, err);
}

/* Pixels have to go through the VAE, which works where the step does: then only the batch is taken. */
void train_look_ahead(struct trainer *t, struct dataset_prefetch *data, size_t step, size_t micro)
{
    struct train_inputs *in = &t->ahead;

    in->rc = dataset_prefetch_next(data, &in->b, &in->err);
    in->drawn = in->rc == 0 && in->b->latents && draw(t, in, in->b, step, micro, &in->err) == 0;
}

int train_next_batch(struct trainer *t, struct dataset_prefetch *data, size_t micro, const struct dataset_batch **b, struct err *err)
{
    struct train_inputs next;

    if (!t->ahead.b)
        train_look_ahead(t, data, t->now.step, micro);
    next = t->ahead;
    t->ahead = t->in;
    t->ahead.b = NULL;
    t->in = next;
    if (next.rc)
        *err = next.err;
    *b = next.b;
    return next.rc;
}

int train_write_validation(struct trainer *t, struct train_graph *g, const struct dataset_batch *b, size_t index, struct err *err)
{
    if (make_latents(t, &t->in, b, train_seed(t->seed, STREAM_VALIDATION, index, 0, 1), err))
        return -1;
    draw_samples(t, &t->in, b, 0, 0, true);
    pick_all(t, b->n);
    return write_samples(t, g, b, 0, err) || write_text(t, g, b, b->n, err) ? -1 : 0;
}
