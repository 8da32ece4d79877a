/* CLIP's text encoder as a graph: OpenAI's ViT-L/14 of SD1, OpenCLIP's ViT-H/14 of SD2 (names of transformers).
 *
 * Depth, width and vocabulary come from the weights. What shapes do not tell: heads have 64 channels in both; the activation
 * is quick GELU in SD1 and GELU in SD2, which is known by its width of 1024.
 */
#ifndef REF_MODEL_CLIP_H
#define REF_MODEL_CLIP_H

#include "ref/model/layers.h"

struct clip_options {
    size_t heads;     /* 0: width / 64 */
    enum op_act act;  /* ACT_NONE: by the rule above */
    size_t clip_skip; /* 0 or 1: the last layer's output; 2: the one before it, and so on. SD2's own skip of OpenCLIP's last
                         layer is not counted: the weights end before it */
};

struct clip {
    int ids; /* input [n, tokens] i32 */
    int out; /* [n, tokens, width] after final_layer_norm: the U-Net's context; kept */
};

/* Emits the text encoder for n rows of `tokens` tokens (at most the model's positions, 77). Checkpointing blocks: layers. */
int clip_build(struct layers *l, const struct clip_options *options, size_t n, size_t tokens, struct clip *out,
               struct err *err);

#endif
