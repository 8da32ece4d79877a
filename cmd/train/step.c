/* One optimizer step: batches through the graph, gradients summed, cut and handed to the optimizer. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cmd/train/train.h"
#include "ref/base/rng.h"

/* ---- Graphs ---- */

static bool same_shape(const struct train_graph *g, const struct train_shape *s, enum train_graph_kind kind)
{
    return g->shape.n == s->n && g->shape.h == s->h && g->shape.w == s->w && g->shape.chunks == s->chunks &&
           g->kind == kind;
}

/* Graphs never run at the same time, so all of them work in the memory of the first, which is that of the largest batch. */
static int open_run(struct trainer *t, struct train_graph *g, struct err *err)
{
    struct run *owner = t->graph[0]->run;
    const struct ops_param *params;
    size_t n;

    if (g->run)
        return 0;
    if (owner ? run_new_beside(&g->run, g->g, &t->device.ops, owner, err) : run_new(&g->run, g->g, &t->device.ops, err))
        return -1;
    params = optim_params(t->optim, &n);
    if (params && run_share_params(g->run, params, n, err))
        return -1;
    return weights_load(t->w, err);
}

static int add_graph(struct trainer *t, const struct train_shape *shape, enum train_graph_kind kind, struct train_graph **out,
                     struct err *err)
{
    struct train_graph *g;

    if (mem_grow(&t->graph, &t->graph_cap, t->graph_count, sizeof(struct train_graph *), "graphs", err))
        return -1;
    g = mem_zero(1, sizeof *g, "a graph", err);
    if (!g)
        return -1;
    t->graph[t->graph_count++] = *out = g;
    return train_graph_build(g, &t->setup, shape, kind, err) ? -1 : open_run(t, g, err);
}

int train_get_graph(struct trainer *t, const struct train_shape *shape, enum train_graph_kind kind, struct train_graph **out,
                    struct err *err)
{
    if (t->graph_count == 0 && add_graph(t, &t->largest, TRAIN_STEP, out, err))
        return -1;
    for (size_t i = 0; i < t->graph_count; i++)
        if (same_shape(t->graph[i], shape, kind)) {
            *out = t->graph[i];
            return 0;
        }
    return add_graph(t, shape, kind, out, err);
}

void train_drop_graphs(struct trainer *t)
{
    while (t->graph_count > 0) {
        train_graph_free(t->graph[--t->graph_count]);
        free(t->graph[t->graph_count]);
    }
}

/* ---- Inputs ---- */

/* x0 of all samples: cached latents, or pixels through the VAE, a new sample of its distribution each time. */
static int make_latents(struct trainer *t, const struct dataset_batch *b, uint64_t seed, struct err *err)
{
    size_t per = b->height / t->factor * (b->width / t->factor) * t->channels, n = b->n * per;

    if (b->latents) {
        for (size_t i = 0; i < n; i++)
            t->x0[i] = b->latents[i] * TRAIN_LATENT_SCALE;
        return 0;
    }
    if (latents_moments(t->vae, b->pixels, b->n, b->height, b->width, t->moments, err))
        return -1;
    for (size_t i = 0; i < b->n; i++) {
        struct rng r;

        rng_seed(&r, train_seed(seed, STREAM_VAE, 0, 0, i));
        rng_normal(&r, t->noise + i * per, per);
    }
    latents_sample(t->vae, t->moments, t->noise, t->x0, n / t->channels);
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
        t->noise[i] = sqrtf(mask[i / t->channels]);
    if (dtype_size(arithmetic) == 2) {
        dtype_convert(t->moments, arithmetic, t->noise, DT_F32, n);
        dtype_convert(t->noise, DT_F32, t->moments, arithmetic, n);
    }
    for (size_t i = 0; i < n; i++)
        t->target[i] *= t->noise[i];
    return run_write(g->run, g->loss_mask, t->noise, err);
}

/* What t->x0, t->noisy, t->target and t->sample hold. */
static int write_samples(struct trainer *t, struct train_graph *g, const struct dataset_batch *b, float loss_gradient, struct err *err)
{
    size_t n = b->n;
    float *row = t->row;

    if (g->loss_mask != GRAPH_NONE && write_loss_mask(t, g, b->mask, n * g->shape.h * g->shape.w, err))
        return -1;
    for (size_t i = 0; i < n; i++)
        row[i] = (float)t->sample[i].timestep;
    if (run_write(g->run, g->timestep, row, err))
        return -1;
    for (size_t i = 0; i < n; i++)
        row[i] = t->sample[i].weight;
    if (run_write(g->run, g->weight, row, err))
        return -1;
    for (size_t i = 0; i < n; i++)
        row[i] = t->sample[i].delta;
    if (g->delta != GRAPH_NONE && run_write(g->run, g->delta, row, err))
        return -1;
    if (g->seed != GRAPH_NONE && run_write(g->run, g->seed, &loss_gradient, err))
        return -1;
    return run_write(g->run, g->latents, t->noisy, err) || run_write(g->run, g->target, t->target, err) ? -1 : 0;
}

static void draw_samples(struct trainer *t, const struct dataset_batch *b, size_t micro, bool validation)
{
    size_t h = b->height / t->factor, w = b->width / t->factor, per = h * w * t->channels;
    size_t first = t->o->min_timestep, range = t->o->max_timestep - first;

    for (size_t i = 0; i < b->n; i++) {
        struct train_sample *s = &t->sample[i];
        uint64_t place = validation ? t->o->data.validation_seed : t->now.step;
        enum train_stream stream = validation ? STREAM_VALIDATION : STREAM_NOISE;

        if (validation) /* evenly spread over the timesteps by the golden ratio */
            s->timestep = first + (size_t)(fmod(((double)b->picture[i] + 0.5) * 0.6180339887498949, 1) * (double)range);
        else
            s->timestep = train_draw_timestep(t, train_seed(t->seed, STREAM_TIMESTEP, t->now.step, micro, i));
        train_draw(t, t->x0 + i * per, h, w, train_seed(t->seed, stream, place, validation ? 0 : micro, validation ? b->picture[i] : i),
                   validation, b->weight[i], t->noise + i * per, t->noisy + i * per, t->target + i * per, s);
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
    struct train_shape shape = {0, b->height / t->factor, b->width / t->factor, t->chunks};
    struct train_graph *g;

    for (size_t i = 0; i < b->n; i++)
        if (b->reg[i]) {
            t->pick[n] = i;
            t->row[n] = (float)t->sample[i].timestep;
            memcpy(t->noise + n++ * per, t->noisy + i * per, per * sizeof *t->noise); /* the noise itself is not needed any more */
        }
    shape.n = n;
    if (n == 0)
        return 0;
    if (train_get_graph(t, &shape, TRAIN_PRIOR, &g, err) || run_write(g->run, g->timestep, t->row, err) ||
        run_write(g->run, g->latents, t->noise, err) || write_text(t, g, b, n, err) || run_graph(g->run, NULL, err) ||
        run_read(g->run, g->out, t->noise, err))
        return -1;
    for (size_t i = 0; i < n; i++)
        memcpy(t->target + t->pick[i] * per, t->noise + i * per, per * sizeof *t->target);
    return 0;
}

int train_write_batch(struct trainer *t, struct train_graph *g, const struct dataset_batch *b, size_t micro, double loss_gradient,
                      struct err *err)
{
    uint64_t seed = train_seed(t->seed, STREAM_MASK, t->now.step, micro, 0);

    if (make_latents(t, b, seed, err))
        return -1;
    draw_samples(t, b, micro, false);
    if (t->o->prior_loss_target == PRIOR_MODEL && set_prior(t, b, err))
        return -1;
    pick_all(t, b->n);
    return write_samples(t, g, b, (float)loss_gradient, err) || write_text(t, g, b, b->n, err) || write_masks(t, g, seed, err) ? -1
                                                                                                                                  : 0;
}

int train_write_validation(struct trainer *t, struct train_graph *g, const struct dataset_batch *b, size_t index, struct err *err)
{
    if (make_latents(t, b, train_seed(t->seed, STREAM_VALIDATION, index, 0, 1), err))
        return -1;
    draw_samples(t, b, 0, true);
    pick_all(t, b->n);
    return write_samples(t, g, b, 0, err) || write_text(t, g, b, b->n, err) ? -1 : 0;
}

/* ---- The step ---- */

/* The batch once more, looking at every value: the message names the first layer. */
static int find_layer(struct trainer *t, struct train_graph *g, const struct dataset_batch *b, size_t micro, struct err *err)
{
    struct run_options search = {.check_nan = true};
    const struct network_module *m;

    t->diverged = true;
    if (optim_fetch(t->optim, false, err))
        return -1;
    m = network_find_nonfinite(t->net);
    if (m)
        err_set(err, "the LoRA of layer '%s' is not finite", m->spec.path);
    else if (train_write_batch(t, g, b, micro, t->now.loss_scale, err) == 0 && run_graph(g->run, &search, err) == 0)
        err_set(err, "the gradient norm overflows");
    return err_prefix(err, "step %zu: loss or gradients were not finite for %zu steps in a row; lower --learning_rate, or raise "
                           "--lr_warmup_steps; ", t->now.step, t->now.skipped_in_row);
}

/* fp16's loss scale: halved when something overflowed, doubled after 2000 good steps, as torch's GradScaler does. */
static void adapt_scale(struct trainer *t, bool good)
{
    if (t->o->mixed_precision != PRECISION_FP16)
        return;
    if (!good) {
        t->now.loss_scale = fmax(t->now.loss_scale / 2, 1);
        t->now.good_steps = 0;
    } else if (++t->now.good_steps == 2000) {
        t->now.loss_scale *= 2;
        t->now.good_steps = 0;
    }
}

int train_update(struct trainer *t, double norm, struct err *err)
{
    double factor = lr_factor(&t->lr, (size_t)((int64_t)t->now.step - t->now.lr_from)), mean, largest;
    size_t scaled;

    for (size_t i = 0; i < t->groups; i++)
        t->step_lr[i] = t->group[i].lr * factor;
    if (optim_step(t->optim, t->grads, optim_clip(norm, t->o->max_grad_norm) / t->now.loss_scale, t->step_lr, err))
        return -1;
    if (t->o->scale_weight_norms > 0)
        return network_limit_norms(t->net, t->o->scale_weight_norms, &scaled, &mean, &largest, err);
    return 0;
}

/* One batch: its loss is added to *loss, its gradients to the network's. */
static int run_batch(struct trainer *t, struct train_graph *g, const struct dataset_batch *b, size_t micro, double *loss,
                     struct err *err)
{
    float one;

    if (train_write_batch(t, g, b, micro, t->now.loss_scale / (double)t->o->gradient_accumulation_steps, err) ||
        run_graph(g->run, NULL, err))
        return -1;
    if (t->on_device ? train_graph_gather(g, t->net, t->optim, micro == 0, err)
                     : train_graph_gradients(g, t->net, micro == 0, t->scratch, err))
        return -1;
    if (run_read(g->run, g->loss, &one, err))
        return -1;
    *loss += (double)one;
    return 0;
}

int train_step(struct trainer *t, struct dataset_prefetch *data, struct err *err)
{
    const struct dataset_batch *b;
    struct train_graph *g;
    size_t micro = 0;
    double loss = 0, norm;
    bool good;

    for (;;) {
        struct train_shape shape;

        if (dataset_prefetch_next(data, &b, err))
            return -1;
        shape = (struct train_shape){b->n, b->height / t->factor, b->width / t->factor, t->chunks};
        if (train_get_graph(t, &shape, TRAIN_STEP, &g, err) || run_batch(t, g, b, micro, &loss, err))
            return -1;
        t->now.batch++;
        if (++micro == t->o->gradient_accumulation_steps || t->now.batch == t->batches)
            break;
    }
    if (optim_norm(t->optim, t->grads, &norm, err))
        return -1;
    norm /= t->now.loss_scale;
    t->step_loss = loss / (double)micro;
    t->step_norm = norm;
    good = isfinite(norm) && isfinite(loss);
    if (good && train_update(t, norm, err))
        return -1;
    t->now.skipped_in_row = good ? 0 : t->now.skipped_in_row + 1;
    t->now.skipped += !good;
    if (t->now.skipped_in_row == t->o->max_skipped_steps)
        return find_layer(t, g, b, micro - 1, err);
    adapt_scale(t, good);
    if (good) {
        t->now.loss_sum += t->step_loss;
        t->now.loss_count++;
    }
    t->now.step++;
    return good ? 0 : 1;
}
