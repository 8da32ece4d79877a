/* Which modules of a Stable Diffusion model LoRA reaches, and what they are called.
 *
 * The classes follow what LoRA files in use hold (kohya's sd-scripts decides by module class):
 *   TARGET_LINEAR  U-Net: every Linear and 1x1 Conv2d in Transformer2DModel: proj_in, proj_out, attn1/attn2 to_q to_k to_v
 *                  to_out.0, ff.net.0.proj, ff.net.2
 *   TARGET_TEXT    text encoder: self_attn q_proj k_proj v_proj out_proj, mlp fc1 fc2
 *   TARGET_CONV    with conv_dim (LoCon) also ResnetBlock2D's conv1, conv2 (3x3), Downsample2D's and Upsample2D's conv (3x3)
 *   TARGET_CONV1   and, of the same blocks, what is no 3x3: conv_shortcut (1x1) and time_emb_proj (Linear); these take the
 *                  plain rank, not conv_dim
 * SD1 has 192 + 72 LINEAR + TEXT modules, SD2 192 + 138. The VAE has none; neither has conv_in, conv_out, time_embedding.
 */
#ifndef REF_LORA_TARGET_H
#define REF_LORA_TARGET_H

#include <stdbool.h>
#include <stddef.h>

#include "ref/base/err.h"
#include "ref/base/part.h"
#include "ref/base/tensor.h"

enum target_class { TARGET_NONE, TARGET_LINEAR, TARGET_TEXT, TARGET_CONV, TARGET_CONV1 };

struct target {
    enum target_class class;
    size_t out, in, kh, kw; /* of the weight [out, in] or [out, in, kh, kw]; kh = kw = 1 for a linear layer */
    bool conv;              /* the weight is 4-D */
    size_t path_length;     /* the name without ".weight" */
};

/* Looks at a canonical weight name (down_blocks.0.attentions.0.proj_in.weight) and shape. Returns its class (also in
 * out->class; out may be NULL); TARGET_NONE for biases, norms and whatever LoRA does not reach. */
enum target_class target_of(enum model_part part, const char *name, const struct shape *shape, struct target *out);

/* The class of a module path alone (no leaf, no shape); length bytes of it. */
enum target_class target_of_path(enum model_part part, const char *path, size_t length);

/* kohya's key of a canonical module path: "lora_unet_" or "lora_te_", then the path with dots as underscores. Returns buf, or
 * NULL when it does not fit or the part is neither. */
const char *target_kohya_key(enum model_part part, const char *path, char *buf, size_t size);

/* ---- Block weights: one factor a block, in the order people know from the web UIs' block-weight tools.
 *
 * There are 26 blocks: BASE (text encoder), IN00-IN11, MID, OUT00-OUT11, numbered as the LDM U-Net's input and output blocks
 * of a model with 4 levels of 2 layers. A module's block, with n = layers + 1 = 3:
 *   down_blocks.L.{resnets,attentions}.J  IN  1 + n L + J        downsamplers.0  IN  n (L + 1)
 *   mid_block                             MID
 *   up_blocks.L.{resnets,attentions}.J    OUT n L + J            upsamplers.0    OUT n L + n - 1
 *   conv_in, time_embedding: IN00; conv_out, conv_norm_out: OUT11
 * Lists of 17, 12 and 20 values give the blocks that matter to a kind of LoRA; blocks that they do not name keep factor 1:
 *   26  all
 *   17  SD1, SD2 attention blocks: BASE IN01 IN02 IN04 IN05 IN07 IN08 MID OUT03-OUT11
 *   12  BASE IN04 IN05 IN07 IN08 MID OUT00-OUT05
 *   20  BASE IN00-IN08 MID OUT00-OUT08
 */
enum { TARGET_BLOCKS = 26, TARGET_BASE = 0, TARGET_IN00 = 1, TARGET_MID = 13, TARGET_OUT00 = 14 };

/* The block of a canonical module path, 0 .. 25; layers is the number of residual blocks per down level (2). -1 when the path
 * has no block (the VAE, a model with more blocks than the scheme has names for). */
int target_block(enum model_part part, const char *path, size_t layers);

/* "BASE", "IN00" .. "OUT11" */
const char *target_block_name(int block);

/* Spreads a list of n = 12, 17, 20 or 26 values over the 26 blocks. -1 (usage) for any other n. */
int target_block_weights(const double *values, size_t n, double out[TARGET_BLOCKS], struct err *err);

#endif
