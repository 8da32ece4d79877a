#include "ref/model/unet.h"

#include <stdio.h>

enum { MAX_SKIPS = 64 };

struct build {
    struct layers *l;
    struct graph *g;
    struct unet_options options;
    int emb;     /* silu of the time embedding [n, c] */
    int context; /* [n, tokens, width] */
    int skips[MAX_SKIPS];
    size_t skip_count;
};

int unet_config(struct weights *w, struct unet_config *out, struct err *err)
{
    struct shape s;
    char name[80];

    *out = (struct unet_config){0};
    if (weights_shape(w, MODEL_UNET, "conv_in.weight", &s, err) < 0)
        return -1;
    out->in_channels = s.ndim == 4 ? s.dim[1] : 0;
    if (weights_shape(w, MODEL_UNET, "conv_out.weight", &s, err) < 0)
        return -1;
    out->out_channels = s.dim[0];
    do
        snprintf(name, sizeof name, "down_blocks.%zu.resnets.0.conv1.weight", out->levels);
    while (weights_has(w, MODEL_UNET, name) && ++out->levels);
    if (weights_shape(w, MODEL_UNET, "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight", &s, err) < 0)
        return -1;
    out->context_width = s.dim[1];
    return 0;
}

static size_t heads(const struct build *b, size_t channels)
{
    struct shape context = graph_shape(b->g, b->context);

    if (b->options.heads)
        return b->options.heads;
    if (b->options.head_dim)
        return channels / b->options.head_dim;
    return context.ndim == 3 && context.dim[2] == 1024 ? channels / 64 : 8;
}

/* x + to_out(attention(to_q(h), to_k(c), to_v(c))), h = norm(x), c = the context, or h itself */
static int attention(struct build *b, int x, const char *norm, bool self, const char *path)
{
    struct layers *l = b->l;
    int h = layers_layer_norm(l, x, norm), c = self ? h : b->context;
    int q = layers_linear(l, h, layers_path(l, "%s.to_q", path));
    int k = layers_linear(l, c, layers_path(l, "%s.to_k", path));
    int v = layers_linear(l, c, layers_path(l, "%s.to_v", path));
    struct shape s = graph_shape(b->g, q);
    int y = graph_attention(b->g, q, k, v, heads(b, s.ndim ? s.dim[s.ndim - 1] : 0), false, layers_path(l, "%s.attention", path));

    y = layers_linear(l, y, layers_path(l, "%s.to_out.0", path));
    return graph_binary(b->g, OP_add, y, x, layers_path(l, "%s.residual", path));
}

static int transformer_block(struct build *b, int x, const char *path)
{
    struct layers *l = b->l;
    int h;

    x = attention(b, x, layers_path(l, "%s.norm1", path), true, layers_path(l, "%s.attn1", path));
    x = attention(b, x, layers_path(l, "%s.norm2", path), false, layers_path(l, "%s.attn2", path));
    h = layers_layer_norm(l, x, layers_path(l, "%s.norm3", path));
    h = layers_linear(l, h, layers_path(l, "%s.ff.net.0.proj", path));
    h = graph_unary(b->g, OP_geglu, h, layers_path(l, "%s.ff.net.0", path));
    h = layers_linear(l, h, layers_path(l, "%s.ff.net.2", path));
    return graph_binary(b->g, OP_add, h, x, path);
}

/* proj_in and proj_out are 1x1 convolutions in SD1 and linear layers in SD2: the same thing, channels last. */
static int transformer(struct build *b, int x, const char *path)
{
    struct layers *l = b->l;
    int h;

    graph_block_begin(b->g);
    h = layers_group_norm(l, x, 1e-6f, layers_path(l, "%s.norm", path));
    h = layers_linear(l, h, layers_path(l, "%s.proj_in", path));
    for (size_t i = 0; layers_has(l, layers_path(l, "%s.transformer_blocks.%zu.norm1", path, i)); i++)
        h = transformer_block(b, h, layers_path(l, "%s.transformer_blocks.%zu", path, i));
    h = layers_linear(l, h, layers_path(l, "%s.proj_out", path));
    h = graph_binary(b->g, OP_add, h, x, path);
    graph_block_end(b->g);
    return h;
}

static int resnet(struct build *b, int x, const char *path)
{
    int y;

    graph_block_begin(b->g);
    y = layers_resnet(b->l, x, b->emb, 1e-5f, path);
    graph_block_end(b->g);
    return y;
}

/* A residual block, and a transformer where the level has them. */
static int layer(struct build *b, int x, const char *path, size_t j)
{
    const char *at = layers_path(b->l, "%s.attentions.%zu", path, j);

    x = resnet(b, x, layers_path(b->l, "%s.resnets.%zu", path, j));
    return layers_has(b->l, layers_path(b->l, "%s.norm", at)) ? transformer(b, x, at) : x;
}

static void push(struct build *b, int x)
{
    if (b->skip_count < MAX_SKIPS)
        b->skips[b->skip_count++] = x;
    else if (b->g->err.kind == ERR_NONE)
        err_set(&b->g->err, "the U-Net has more than %d layers on its way down; no known architecture has", MAX_SKIPS);
}

static bool has_resnet(struct build *b, const char *path, size_t j)
{
    return layers_has(b->l, layers_path(b->l, "%s.resnets.%zu.conv1", path, j));
}

static int down(struct build *b, int x, size_t level)
{
    const char *path = layers_path(b->l, "down_blocks.%zu", level);
    const char *sampler = layers_path(b->l, "%s.downsamplers.0.conv", path);

    for (size_t j = 0; has_resnet(b, path, j); j++) {
        x = layer(b, x, path, j);
        push(b, x);
    }
    if (layers_has(b->l, sampler)) {
        x = layers_conv(b->l, x, 2, 1, 1, sampler);
        push(b, x);
    }
    return x;
}

static int up(struct build *b, int x, size_t level)
{
    const char *path = layers_path(b->l, "up_blocks.%zu", level), *sampler = layers_path(b->l, "%s.upsamplers.0", path);

    for (size_t j = 0; has_resnet(b, path, j); j++) {
        if (b->skip_count == 0) {
            if (b->g->err.kind == ERR_NONE)
                err_set(&b->g->err, "the U-Net has more layers on its way up ('%s.resnets.%zu') than its way down feeds", path, j);
            return GRAPH_NONE;
        }
        x = graph_binary(b->g, OP_concat, x, b->skips[--b->skip_count], layers_path(b->l, "%s.concat.%zu", path, j));
        x = layer(b, x, path, j);
    }
    if (layers_has(b->l, layers_path(b->l, "%s.conv", sampler)) && b->skip_count > 0) {
        struct shape next = graph_shape(b->g, b->skips[b->skip_count - 1]); /* odd sizes were rounded up on the way down */

        x = layers_upsample(b->l, x, next.dim[1], next.dim[2], sampler);
    }
    return x;
}

/* Sinusoids of the timestep through two linear layers; every residual block starts from silu of the result. */
static int time_embedding(struct build *b, int timestep, size_t width)
{
    struct layers *l = b->l;
    struct op_attr attr = {.width = width};
    int in[OP_MAX_IN] = {timestep, GRAPH_NONE, GRAPH_NONE, GRAPH_NONE, GRAPH_NONE, GRAPH_NONE};
    int t = graph_add_node(b->g, OP_timestep, &attr, in, "time_proj");

    t = layers_linear(l, t, "time_embedding.linear_1");
    t = graph_unary(b->g, OP_silu, t, "time_embedding.act");
    t = layers_linear(l, t, "time_embedding.linear_2");
    return graph_unary(b->g, OP_silu, t, "time_embedding.silu");
}

static int body(struct build *b, int x)
{
    struct layers *l = b->l;

    for (size_t i = 0; has_resnet(b, layers_path(l, "down_blocks.%zu", i), 0); i++)
        x = down(b, x, i);
    x = resnet(b, x, "mid_block.resnets.0");
    for (size_t j = 0; layers_has(l, layers_path(l, "mid_block.attentions.%zu.norm", j)); j++) {
        x = transformer(b, x, layers_path(l, "mid_block.attentions.%zu", j));
        x = resnet(b, x, layers_path(l, "mid_block.resnets.%zu", j + 1));
    }
    for (size_t i = 0; has_resnet(b, layers_path(l, "up_blocks.%zu", i), 0); i++)
        x = up(b, x, i);
    x = layers_group_norm(l, x, 1e-5f, "conv_norm_out");
    x = graph_unary(b->g, OP_silu, x, "conv_act");
    return layers_conv(l, x, 1, 1, 1, "conv_out");
}

int unet_build(struct layers *l, const struct unet_options *options, size_t n, size_t h, size_t w, int context, size_t tokens,
               struct unet *out, struct err *err)
{
    struct build b = {.l = l, .g = l->g, .options = options ? *options : (struct unet_options){0}};
    struct shape t = {1, {n}}, x = {4, {n, h, w, 0}}, c = {3, {n, tokens, 0}};
    struct unet_config config;
    int in;

    if (unet_config(l->w, &config, err) < 0)
        return -1;
    x.dim[3] = config.in_channels;
    c.dim[2] = config.context_width;
    out->latents = graph_input(b.g, "latents", DT_F32, &x);
    out->timestep = graph_input(b.g, "timestep", DT_F32, &t);
    out->context = b.context = context != GRAPH_NONE ? context : graph_input(b.g, "context", DT_F32, &c);
    in = layers_conv(l, out->latents, 1, 1, 1, "conv_in");
    b.emb = time_embedding(&b, out->timestep, graph_shape(b.g, in).dim[3]);
    push(&b, in);
    out->out = body(&b, in);
    graph_keep(b.g, out->out);
    layers_check_loras(l);
    return graph_check(b.g, err);
}
