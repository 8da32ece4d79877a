#include "ref/model/vae.h"

#include <stdio.h>

static const float eps = 1e-6f;

int vae_config(struct weights *w, size_t *factor, size_t *channels, struct err *err)
{
    const char *side = weights_has(w, MODEL_VAE, "decoder.conv_in.weight") ? "decoder.up_blocks.%zu.upsamplers.0.conv.weight"
                                                                          : "encoder.down_blocks.%zu.downsamplers.0.conv.weight";
    bool decoder = weights_has(w, MODEL_VAE, "decoder.conv_in.weight");
    char name[80];
    struct shape s;

    *factor = 1;
    for (size_t i = 0; i < 8; i++) {
        snprintf(name, sizeof name, side, i);
        if (weights_has(w, MODEL_VAE, name))
            *factor *= 2;
    }
    if (weights_shape(w, MODEL_VAE, decoder ? "decoder.conv_in.weight" : "encoder.conv_out.weight", &s, err) < 0)
        return -1;
    *channels = decoder ? s.dim[1] : s.dim[0] / 2;
    return 0;
}

/* Attention over all pixels, one head as wide as the channels. */
static int attention(struct layers *l, int x, const char *path)
{
    int h = layers_group_norm(l, x, eps, layers_path(l, "%s.group_norm", path));
    int q = layers_linear(l, h, layers_path(l, "%s.to_q", path));
    int k = layers_linear(l, h, layers_path(l, "%s.to_k", path));
    int v = layers_linear(l, h, layers_path(l, "%s.to_v", path));

    h = graph_attention(l->g, q, k, v, 1, false, layers_path(l, "%s.attention", path));
    h = layers_linear(l, h, layers_path(l, "%s.to_out.0", path));
    return graph_binary(l->g, OP_add, h, x, path);
}

static int middle(struct layers *l, int x, const char *side)
{
    x = layers_resnet(l, x, GRAPH_NONE, eps, layers_path(l, "%s.mid_block.resnets.0", side));
    if (layers_has(l, layers_path(l, "%s.mid_block.attentions.0.to_q", side)))
        x = attention(l, x, layers_path(l, "%s.mid_block.attentions.0", side));
    return layers_resnet(l, x, GRAPH_NONE, eps, layers_path(l, "%s.mid_block.resnets.1", side));
}

static int resnets(struct layers *l, int x, const char *path)
{
    for (size_t j = 0; layers_has(l, layers_path(l, "%s.resnets.%zu.conv1", path, j)); j++)
        x = layers_resnet(l, x, GRAPH_NONE, eps, layers_path(l, "%s.resnets.%zu", path, j));
    return x;
}

static int finish(struct layers *l, int x, const char *side)
{
    x = layers_group_norm(l, x, eps, layers_path(l, "%s.conv_norm_out", side));
    x = graph_unary(l->g, OP_silu, x, layers_path(l, "%s.conv_act", side));
    return layers_conv(l, x, 1, 1, 1, layers_path(l, "%s.conv_out", side));
}

/* quant_conv and post_quant_conv are missing from some VAEs; they then do nothing. */
static int optional_1x1(struct layers *l, int x, const char *path)
{
    return layers_has(l, path) ? layers_linear(l, x, path) : x;
}

int vae_build_encoder(struct layers *l, size_t n, size_t h, size_t w, struct vae *out, struct err *err)
{
    struct shape s = {4, {n, h, w, 3}};
    const char *path;
    int x = out->in = graph_input(l->g, "pictures", DT_F32, &s);

    x = layers_conv(l, x, 1, 1, 1, "encoder.conv_in");
    for (size_t i = 0; path = layers_path(l, "encoder.down_blocks.%zu", i),
                layers_has(l, layers_path(l, "%s.resnets.0.conv1", path));
         i++) {
        const char *sampler = layers_path(l, "%s.downsamplers.0.conv", path);

        x = resnets(l, x, path);
        if (layers_has(l, sampler))
            x = layers_conv(l, x, 2, 0, 1, sampler); /* the VAE pads right and below only */
    }
    x = finish(l, middle(l, x, "encoder"), "encoder");
    out->out = optional_1x1(l, x, "quant_conv");
    graph_keep(l->g, out->out);
    return graph_check(l->g, err);
}

int vae_build_decoder(struct layers *l, size_t n, size_t h, size_t w, struct vae *out, struct err *err)
{
    size_t factor, channels;
    struct shape s = {4, {n, h, w, 0}};
    const char *path;
    int x;

    if (vae_config(l->w, &factor, &channels, err) < 0)
        return -1;
    s.dim[3] = channels;
    x = out->in = graph_input(l->g, "latents", DT_F32, &s);
    x = optional_1x1(l, x, "post_quant_conv");
    x = layers_conv(l, x, 1, 1, 1, "decoder.conv_in");
    x = middle(l, x, "decoder");
    for (size_t i = 0; path = layers_path(l, "decoder.up_blocks.%zu", i),
                layers_has(l, layers_path(l, "%s.resnets.0.conv1", path));
         i++) {
        const char *sampler = layers_path(l, "%s.upsamplers.0", path);

        x = resnets(l, x, path);
        if (layers_has(l, layers_path(l, "%s.conv", sampler))) {
            struct shape now = graph_shape(l->g, x);

            x = layers_upsample(l, x, 2 * now.dim[1], 2 * now.dim[2], sampler);
        }
    }
    out->out = finish(l, x, "decoder");
    graph_keep(l->g, out->out);
    return graph_check(l->g, err);
}
