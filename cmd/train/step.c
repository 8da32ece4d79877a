/* One optimizer step: batches through the graph, gradients summed, cut and handed to the optimizer. */
#include <math.h>
#include <stdlib.h>

#include "cmd/train/train.h"

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

/* Whether the batch is the last one of its step. */
static bool ends_step(const struct trainer *t, size_t micro)
{
    return micro + 1 == t->o->gradient_accumulation_steps || t->now.batch + 1 == t->batches;
}

/* The batch in t->in: its loss is added to *loss, its gradients to the network's. The next batch is made ready before the loss is
 * read, which waits for a device. */
static int run_batch(struct trainer *t, struct train_graph *g, struct dataset_prefetch *data, size_t micro, double *loss, struct err *err)
{
    size_t next = t->now.step + ends_step(t, micro);
    float one;

    if (train_write_next(t, g, micro, t->now.loss_scale / (double)t->o->gradient_accumulation_steps, err) || run_graph(g->run, NULL, err))
        return -1;
    if (t->on_device ? train_graph_gather(g, t->net, t->optim, micro == 0, err)
                     : train_graph_gradients(g, t->net, micro == 0, t->scratch, err))
        return -1;
    if (next < t->steps)
        train_look_ahead(t, data, next, ends_step(t, micro) ? 0 : micro + 1);
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
        bool last = ends_step(t, micro);

        if (train_next_batch(t, data, micro, &b, err))
            return -1;
        shape = (struct train_shape){b->n, b->height / t->factor, b->width / t->factor, t->chunks};
        if (train_get_graph(t, &shape, TRAIN_STEP, &g, err) || run_batch(t, g, data, micro, &loss, err))
            return -1;
        t->now.batch++;
        micro++;
        if (last)
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
