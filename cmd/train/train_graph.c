#include "cmd/train/train_graph.h"

#include <stdlib.h>
#include <string.h>

#include "formats/prompt.h"
#include "formats/tokenizer.h"
#include "ref/model/clip.h"
#include "ref/model/unet.h"

bool train_graph_keeps(size_t text_layers, size_t clip_skip, const char *path)
{
    const char *layer = strstr(path, "layers.");
    size_t skip = clip_skip > 1 ? clip_skip - 1 : 0;

    return layer && strtoul(layer + 7, NULL, 10) + skip < text_layers;
}

bool train_graph_has(const struct train_setup *s, const struct network_module *m)
{
    return m->spec.part != MODEL_TEXT_ENCODER || (s->text_trained && train_graph_keeps(s->text_layers, s->clip_skip, m->spec.path));
}

size_t train_tokens(size_t chunks)
{
    return chunks * PROMPT_CHUNK + 2;
}

/* What belongs to the model, and the network's modules, in the form the models are built with. */
static int attach(struct train_graph *t, const struct train_setup *s, struct err *err)
{
    size_t n = s->net->count;

    t->loras = mem_zero(n + s->base_count, sizeof *t->loras, "the LoRA", err);
    t->ddown = mem_new(n * sizeof(int), "the LoRA", err);
    t->dup = mem_new(n * sizeof(int), "the LoRA", err);
    t->mask = mem_new(n * sizeof(int), "the LoRA", err);
    t->values = mem_new(2 * n * sizeof(int), "the LoRA", err);
    t->to = mem_new(2 * n * sizeof(void *), "the LoRA", err);
    t->from = mem_new(2 * n * sizeof(void *), "the LoRA", err);
    if (!t->loras || !t->ddown || !t->dup || !t->mask || !t->values || !t->to || !t->from)
        return -1;
    for (size_t i = 0; i < s->base_count; i++)
        t->loras[t->lora_count++] = s->base[i];
    for (size_t i = 0; i < n; i++) {
        const struct network_module *m = &s->net->module[i];

        t->ddown[i] = t->dup[i] = t->mask[i] = GRAPH_NONE;
        if (t->kind == TRAIN_PRIOR || !train_graph_has(s, m))
            continue;
        t->loras[t->lora_count++] = (struct layers_lora){
            .part = m->spec.part, .path = m->spec.path, .down = &m->down, .up = &m->up,
            .scale = (float)(m->spec.alpha / (double)m->spec.rank), .train = true, .mask_value = &t->mask[i],
            .mask = t->kind != TRAIN_STEP || s->dropout == DROP_NONE ? LAYERS_NO_MASK
                    : s->dropout == DROP_EACH                        ? LAYERS_MASK_EACH
                                                                     : LAYERS_MASK_SAMPLE};
    }
    return 0;
}

static int add(struct graph *g, enum op_id op, int a, int b, int c, int d, const char *name)
{
    int in[OP_MAX_IN] = {a, b, c, d, GRAPH_NONE, GRAPH_NONE};

    return graph_add_node(g, op, NULL, in, name);
}

/* The text encoder with its chunks joined. */
static int build_text(struct train_graph *t, const struct train_setup *s, struct layers *l, int *context, struct err *err)
{
    struct clip_options options = {.clip_skip = s->clip_skip};
    struct shape rows = {2, {t->shape.n, train_tokens(t->shape.chunks)}};
    struct clip clip;

    l->part = MODEL_TEXT_ENCODER;
    if (clip_build(l, &options, t->shape.n * t->shape.chunks, TOKEN_CHUNK, &clip, err))
        return -1;
    t->ids = clip.ids;
    *context = clip.out;
    if (t->shape.chunks > 1) {
        t->rows = graph_input(t->g, "rows", DT_I32, &rows);
        *context = graph_binary(t->g, OP_gather, clip.out, t->rows, "context");
    }
    if (s->weighted) {
        struct shape context_shape = graph_shape(t->g, *context);

        t->emphasis = graph_input(t->g, "emphasis", DT_F32, &context_shape);
        *context = graph_binary(t->g, OP_mul, *context, t->emphasis, "weighted context");
    }
    return graph_check(t->g, err);
}

static void build_loss(struct train_graph *t, const struct train_setup *s)
{
    struct shape per_sample = {1, {t->shape.n}}, out = graph_shape(t->g, t->out);
    int pred = t->out;

    t->target = graph_input(t->g, "target", DT_F32, &out);
    t->weight = graph_input(t->g, "weight", DT_F32, &per_sample);
    if (s->masked) {
        t->loss_mask = graph_input(t->g, "loss mask", DT_F32, &out);
        pred = graph_binary(t->g, OP_mul, pred, t->loss_mask, "masked prediction");
    }
    if (s->huber) {
        t->delta = graph_input(t->g, "delta", DT_F32, &per_sample);
        t->loss = add(t->g, OP_huber, pred, t->target, t->delta, t->weight, "loss");
    } else {
        t->loss = add(t->g, OP_mse, pred, t->target, t->weight, GRAPH_NONE, "loss");
    }
    graph_keep(t->g, t->loss);
}

static int build_forward(struct train_graph *t, const struct train_setup *s, struct err *err)
{
    struct layers l = {.g = t->g, .w = s->w};
    struct unet unet;
    int context = GRAPH_NONE;

    if (attach(t, s, err))
        return -1;
    l.loras = t->loras;
    l.lora_count = t->lora_count;
    if (s->text_trained && build_text(t, s, &l, &context, err))
        return -1;
    l.part = MODEL_UNET;
    if (unet_build(&l, NULL, t->shape.n, t->shape.h, t->shape.w, context, train_tokens(t->shape.chunks), &unet, err))
        return -1;
    t->latents = unet.latents;
    t->timestep = unet.timestep;
    t->context = s->text_trained ? GRAPH_NONE : unet.context;
    t->out = unet.out;
    if (t->kind == TRAIN_PRIOR)
        graph_keep(t->g, t->out);
    else if (t->g->err.kind == ERR_NONE)
        build_loss(t, s);
    return graph_check(t->g, err);
}

static int differentiate(struct train_graph *t, const struct train_setup *s, struct err *err)
{
    size_t values;
    int *grads, rc;

    if (graph_fuse(t->g, FUSE_NORM_SILU | FUSE_RESIDUAL, err))
        return -1;
    values = t->g->value_count;
    grads = mem_new(values * sizeof *grads, "gradients", err);
    if (!grads)
        return -1;
    rc = graph_differentiate(t->g, t->loss, NULL, 0, grads, err);
    if (rc == 0)
        t->seed = grads[t->loss];
    for (size_t v = 0; rc == 0 && v < values; v++)
        for (size_t i = 0; t->g->values[v].kind == VALUE_PARAM && i < s->net->count; i++) {
            const struct network_module *m = &s->net->module[i];

            if (t->g->values[v].source == &m->down)
                t->ddown[i] = grads[v];
            else if (t->g->values[v].source == &m->up)
                t->dup[i] = grads[v];
        }
    free(grads);
    if (rc == 0 && s->checkpoint)
        rc = graph_checkpoint(t->g, err);
    return rc;
}

int train_graph_build(struct train_graph *t, const struct train_setup *s, const struct train_shape *shape,
                      enum train_graph_kind kind, struct err *err)
{
    t->shape = *shape;
    t->kind = kind;
    t->target = t->weight = t->loss = t->delta = t->loss_mask = t->ids = t->rows = t->emphasis = t->context = t->seed = GRAPH_NONE;
    t->g = graph_new(err);
    if (!t->g || build_forward(t, s, err) || (kind == TRAIN_STEP && differentiate(t, s, err)))
        return -1;
    return graph_fuse(t->g, FUSE_ALL, err);
}

void train_graph_free(struct train_graph *t)
{
    run_free(t->run);
    graph_free(t->g);
    free(t->loras);
    free(t->ddown);
    free(t->dup);
    free(t->mask);
    free(t->values);
    free(t->to);
    free(t->from);
    memset(t, 0, sizeof *t);
}

/* Gradients lie side by side in the network, so they can be read in one go: where to, and how many. */
static size_t list_gradients(const struct train_graph *t, const struct network *net, float *base, int *values, void **to)
{
    size_t n = 0;

    for (size_t i = 0; i < net->count; i++) {
        const struct network_module *m = &net->module[i];

        if (t->ddown[i] != GRAPH_NONE) {
            values[n] = t->ddown[i];
            to[n++] = base + (m->ddown - net->grads);
        }
        if (t->dup[i] != GRAPH_NONE) {
            values[n] = t->dup[i];
            to[n++] = base + (m->dup - net->grads);
        }
    }
    return n;
}

int train_graph_gradients(struct train_graph *t, const struct network *net, bool first, float *scratch, struct err *err)
{
    size_t n = list_gradients(t, net, first ? net->grads : scratch, t->values, t->to);

    if (run_read_many(t->run, t->values, t->to, n, err))
        return -1;
    for (size_t i = 0; !first && i < net->size; i++)
        net->grads[i] += scratch[i];
    return 0;
}

int train_graph_gather(struct train_graph *t, const struct network *net, struct optim *o, bool first, struct err *err)
{
    size_t n = list_gradients(t, net, net->grads, t->values, t->to);

    for (size_t i = 0; i < n; i++)
        if (run_device_place(t->run, t->values[i], &t->from[i], err))
            return -1;
    return optim_gather(o, t->from, first, err);
}
