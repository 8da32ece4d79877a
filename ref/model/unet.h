/* The U-Net of Stable Diffusion 1.x and 2.x as a graph (Rombach et al. 2022; module names of diffusers).
 *
 * The structure comes from the weights: levels, layers a level, where attention is, depth of transformers, widths, number of
 * input channels (4; 9 for inpainting), width of the context. One thing shapes do not tell is the number of attention heads:
 * SD1 has 8 in every layer, SD2 has heads of 64 channels. SD2 is known by its context width of 1024; other models take the
 * SD1 rule unless the options say otherwise.
 */
#ifndef REF_MODEL_UNET_H
#define REF_MODEL_UNET_H

#include "ref/model/layers.h"

struct unet_options {
    size_t heads;    /* number of heads in every layer, 0: by the rule above */
    size_t head_dim; /* or channels a head, 0: by the rule above */
};

/* Values of the built graph. */
struct unet {
    int latents;  /* input [n, h, w, in_channels] */
    int timestep; /* input [n] f32 */
    int context;  /* [n, tokens, context width]: an input, or what was given */
    int out;      /* [n, h, w, out_channels], kept */
};

/* What a caller must know before building. */
struct unet_config {
    size_t in_channels, out_channels, context_width;
    size_t levels; /* sizes that are multiples of 2^(levels - 1) halve evenly; others work too */
};
int unet_config(struct weights *w, struct unet_config *out, struct err *err);

/* Emits the U-Net into l->g for a batch of n latents of h x w. context: GRAPH_NONE makes an input of `tokens` tokens; else the
 * value is used (a text encoder in the same graph) and tokens is not. Gradient checkpointing blocks: each residual block and
 * each transformer. Returns 0 or -1. */
int unet_build(struct layers *l, const struct unet_options *options, size_t n, size_t h, size_t w, int context, size_t tokens,
               struct unet *out, struct err *err);

#endif
