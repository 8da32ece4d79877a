#include "ref/model/layers.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

const char *layers_path(struct layers *l, const char *fmt, ...)
{
    char buf[512];
    va_list ap;
    const char *p;

    va_start(ap, fmt);
    vsnprintf(buf, sizeof buf, fmt, ap);
    va_end(ap);
    p = arena_str(&l->g->names, buf, &l->g->err);
    return p ? p : "";
}

bool layers_has(struct layers *l, const char *path)
{
    char buf[512];

    snprintf(buf, sizeof buf, "%s.weight", path);
    return weights_has(l->w, l->part, buf);
}

typedef const struct tensor *weights_fn(struct weights *w, enum model_part part, const char *name, struct err *err);

static int weight(struct layers *l, weights_fn *get, const char *path, const char *leaf)
{
    const char *name = layers_path(l, "%s.%s", path, leaf);
    const struct tensor *t;

    if (l->g->err.kind != ERR_NONE)
        return GRAPH_NONE;
    t = get(l->w, l->part, name, &l->g->err);
    return t ? graph_weight(l->g, name, t) : GRAPH_NONE;
}

static int bias(struct layers *l, const char *path)
{
    return weights_has(l->w, l->part, layers_path(l, "%s.bias", path)) ? weight(l, weights_vector, path, "bias") : GRAPH_NONE;
}

static const struct layers_lora *next_lora(const struct layers *l, const char *path, size_t *at)
{
    while (*at < l->lora_count) {
        const struct layers_lora *a = &l->loras[(*at)++];

        if (a->part == l->part && strcmp(a->path, path) == 0)
            return a;
    }
    return NULL;
}

static int factor(struct layers *l, const struct layers_lora *a, const struct tensor *t, const char *leaf)
{
    const char *name = layers_path(l, "%s.%s", a->path, leaf);

    return a->train ? graph_param(l->g, name, t) : graph_weight(l->g, name, t);
}

/* down(x) times a new input. */
static int masked(struct layers *l, int low, const struct layers_lora *a)
{
    struct shape s = graph_shape(l->g, low);
    const char *name = layers_path(l, "%s.mask", a->path);

    if (a->mask == LAYERS_MASK_SAMPLE && s.ndim > 2)
        s = (struct shape){2, {s.dim[0], s.dim[s.ndim - 1]}};
    *a->mask_value = graph_input(l->g, name, DT_F32, &s);
    return graph_binary(l->g, OP_mul, low, *a->mask_value, name);
}

/* base + scale * up(down(x)) in two layers: down a convolution like the layer's own (conv), or a mask between them. A scale of 0
 * would mean 1 to the linear layer. */
static int long_branch(struct layers *l, int base, int x, const struct layers_lora *a, const struct op_attr *conv)
{
    int low[OP_MAX_IN] = {x, GRAPH_NONE, GRAPH_NONE, GRAPH_NONE, GRAPH_NONE, GRAPH_NONE};
    int high[OP_MAX_IN] = {GRAPH_NONE, GRAPH_NONE, GRAPH_NONE, base, GRAPH_NONE, GRAPH_NONE};
    struct op_attr scaled = {.scale = a->scale};

    if (a->scale == 0)
        return base;
    low[1] = factor(l, a, a->down, "lora_down");
    high[0] = graph_add_node(l->g, conv ? OP_conv2d : OP_linear, conv, low, layers_path(l, "%s.lora_down", a->path));
    if (a->mask != LAYERS_NO_MASK)
        high[0] = masked(l, high[0], a);
    high[1] = factor(l, a, a->up, "lora_up");
    return graph_add_node(l->g, OP_linear, &scaled, high, a->path);
}

static int branches(struct layers *l, int base, int x, const char *path, const struct layers_lora *folded,
                    const struct op_attr *conv)
{
    const struct layers_lora *a;
    size_t at = 0;

    while ((a = next_lora(l, path, &at)) != NULL) {
        if (a == folded)
            continue;
        if ((a->down->shape.ndim == 4 && conv) || a->mask != LAYERS_NO_MASK)
            base = long_branch(l, base, x, a, a->down->shape.ndim == 4 ? conv : NULL);
        else
            base = graph_lora(l->g, base, x, factor(l, a, a->down, "lora_down"), factor(l, a, a->up, "lora_up"), a->scale, path);
    }
    return base;
}

/* The one LoRA that goes into the weight itself. Folding costs 2 n k r operations, a branch 2 m (n + k) r. */
static const struct layers_lora *foldable(const struct layers *l, int x, const char *path)
{
    struct shape s = graph_shape(l->g, x);
    const struct layers_lora *a;
    size_t at = 0, m = 1;

    for (int i = 0; i + 1 < s.ndim; i++)
        m *= s.dim[i];
    while ((a = next_lora(l, path, &at)) != NULL) {
        double n = (double)a->up->shape.dim[0], k = (double)a->down->shape.dim[1];

        if (a->fold && !a->train && a->down->shape.ndim == 2 && n * k < (double)m * (n + k))
            return a;
    }
    return NULL;
}

int layers_linear(struct layers *l, int x, const char *path)
{
    const struct layers_lora *a = foldable(l, x, path);
    struct op_attr attr = {.fold = a ? a->scale : 0};
    int in[OP_MAX_IN] = {x, weight(l, weights_matrix, path, "weight"), bias(l, path), GRAPH_NONE,
                         a ? factor(l, a, a->down, "lora_down") : GRAPH_NONE, a ? factor(l, a, a->up, "lora_up") : GRAPH_NONE};
    int y = graph_add_node(l->g, OP_linear, &attr, in, path);

    return branches(l, y, x, path, a, NULL);
}

int layers_conv(struct layers *l, int x, size_t stride, size_t pad_before, size_t pad_after, const char *path)
{
    struct op_attr attr = {.stride = stride, .pad_before = pad_before, .pad_after = pad_after};
    int y = graph_conv2d(l->g, x, weight(l, weights_conv, path, "weight"), bias(l, path), stride, pad_before, pad_after, path);

    return branches(l, y, x, path, NULL, &attr);
}

int layers_group_norm(struct layers *l, int x, float eps, const char *path)
{
    return graph_group_norm(l->g, x, weight(l, weights_vector, path, "weight"), weight(l, weights_vector, path, "bias"), 32,
                            eps, path);
}

int layers_layer_norm(struct layers *l, int x, const char *path)
{
    return graph_layer_norm(l->g, x, weight(l, weights_vector, path, "weight"), weight(l, weights_vector, path, "bias"),
                            1e-5f, path);
}

int layers_resnet(struct layers *l, int x, int emb, float eps, const char *path)
{
    const char *shortcut = layers_path(l, "%s.conv_shortcut", path);
    int h = layers_group_norm(l, x, eps, layers_path(l, "%s.norm1", path));

    h = graph_unary(l->g, OP_silu, h, layers_path(l, "%s.silu1", path));
    h = layers_conv(l, h, 1, 1, 1, layers_path(l, "%s.conv1", path));
    if (emb != GRAPH_NONE)
        h = graph_binary(l->g, OP_add, h, layers_linear(l, emb, layers_path(l, "%s.time_emb_proj", path)),
                         layers_path(l, "%s.time_emb", path));
    h = layers_group_norm(l, h, eps, layers_path(l, "%s.norm2", path));
    h = graph_unary(l->g, OP_silu, h, layers_path(l, "%s.silu2", path));
    h = layers_conv(l, h, 1, 1, 1, layers_path(l, "%s.conv2", path));
    if (layers_has(l, shortcut))
        x = layers_linear(l, x, shortcut);
    return graph_binary(l->g, OP_add, x, h, path);
}

int layers_upsample(struct layers *l, int x, size_t h, size_t w, const char *path)
{
    struct shape s = graph_shape(l->g, x);
    int in[OP_MAX_IN] = {x, GRAPH_NONE, GRAPH_NONE, GRAPH_NONE, GRAPH_NONE, GRAPH_NONE};
    struct op_attr attr = {.crop_h = 2 * s.dim[1] - h, .crop_w = 2 * s.dim[2] - w};
    int y = graph_add_node(l->g, OP_upsample, &attr, in, layers_path(l, "%s.upsample", path));

    return layers_conv(l, y, 1, 1, 1, layers_path(l, "%s.conv", path));
}

void layers_check_loras(struct layers *l)
{
    if (l->g->err.kind != ERR_NONE)
        return;
    for (size_t i = 0; i < l->lora_count; i++) {
        const struct layers_lora *a = &l->loras[i];

        if (a->part == l->part && graph_find(l->g, a->path) == GRAPH_NONE) {
            err_set(&l->g->err, "the LoRA has a module for '%s', which this %s lacks; use a LoRA made for this architecture",
                    a->path, weights_part_name(l->part));
            return;
        }
    }
}
