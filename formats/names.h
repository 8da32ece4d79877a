/* The two ways to name the weights of Stable Diffusion 1.x and 2.x, and the rules between them.
 *
 *   canonical  diffusers' module paths, per part:   down_blocks.0.attentions.1.proj_in.weight
 *   LDM        the original checkpoints' names:     model.diffusion_model.input_blocks.2.1.proj_in.weight
 *
 * A name is a module path and a leaf (`weight`, `bias`) after the last dot. The paths are a finite grammar: a head with block
 * numbers, then a tail that names a layer. Both sides stand in one table of rules (names_rules.c), which is read in either
 * direction; the block numbers of the two worlds follow from the number of levels and of layers per block, which are read
 * off the names. Nothing here depends on widths, so models of any size map. No file is touched.
 *
 * U-Net: with n = layers + 1, input block i > 0 holds layer (i - 1) % n of level (i - 1) / n (the n-th one is the
 * downsampler); output block i holds layer i % n of level i / n, and the last of a level also the upsampler, after the
 * attention if the level has one. VAE: the decoder counts its levels from the other end. OpenCLIP keeps q, k and v in one
 * tensor.
 */
#ifndef FORMATS_NAMES_H
#define FORMATS_NAMES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ref/base/err.h"
#include "ref/base/part.h"

enum { NAMES_LEVELS = 16, NAMES_MAX = 512 }; /* most levels of a U-Net or VAE; bytes that hold any name */

/* What of a model's structure the rules need. Zero-initialise, then feed names of either kind to names_note(). */
struct names_plan {
    size_t unet_levels;
    size_t unet_layers;                 /* residual blocks per down level: 2 in SD1 and SD2 */
    bool up_attention[NAMES_LEVELS];    /* whether up level i has attention: moves the LDM upsampler from .1 to .2 */
    size_t vae_levels;
    bool openclip;                      /* LDM text encoder is OpenCLIP's (SD2): other names, fused q, k, v */
    size_t text_layers;                 /* blocks of the text encoder in the names, also the unused one of OpenCLIP */
    size_t text_used;                   /* of these, what SD uses: see names_plan_finish() */
    struct {                            /* while noting LDM names; a bit a block */
        size_t inputs, first_down;      /* input blocks; the first one that is a downsampler, 0: none seen */
        uint64_t in_attention, out_attention;
        bool stem; /* input block 0, as every whole U-Net has it */
    } ldm;
};

/* Learns from one canonical name or LDM name without its prefix ("input_blocks.3.0.op.weight"). Unknown names are ignored, order is free. */
void names_note(struct names_plan *p, enum model_part part, const char *name);

/* Call once after the last name; fills in what follows from the rest. SD2 takes the output of OpenCLIP's last block but one,
 * so the last block is unused, unless there are 23: OpenCLIP-H has 24, and some tools leave the unused one out. Where LDM
 * keys of a LoRA do not tell the number of layers, it is that of SD1 and SD2. */
void names_plan_finish(struct names_plan *p);

/* A canonical tensor inside a tensor of a file: part `slice` of `slices` equal parts along the first dimension. */
struct names_slice {
    char name[NAMES_MAX];
    size_t slice, slices;
};

/* Canonical names of an LDM name without its prefix; most have one, OpenCLIP's in_proj_weight and in_proj_bias three (q, k,
 * v). Returns how many, 0 when no rule knows the name (or the plan says that it is unused, as OpenCLIP's last block). */
int names_from_ldm(const struct names_plan *p, enum model_part part, const char *name, struct names_slice out[3]);

/* The LDM name, without prefix, that holds a canonical name. Returns false when no rule knows it. p->openclip decides about
 * the text encoder. out->name is the LDM name; q, k and v get the same one with their slice. */
bool names_to_ldm(const struct names_plan *p, enum model_part part, const char *canonical, struct names_slice *out);

/* Canonical spelling of a diffusers name: old VAE attention names (query, key, value, proj_attn) become to_q, to_k, to_v,
 * to_out.0; a text encoder name without `text_model.` gets it. Returns false when no rule knows the name. */
bool names_canonical(enum model_part part, const char *name, char out[NAMES_MAX]);

/* Finds the canonical module path (without leaf) that `key` spells with dots or with underscores in place of any of them, as
 * kohya's LoRA keys do: "down_blocks_0_attentions_0_proj_in". Exact: the grammar has no two paths with one such spelling.
 * LDM paths ("input_blocks_1_1_proj_in") are known as well and need the plan. n bytes of key. */
bool names_module(const struct names_plan *p, enum model_part part, const char *key, size_t n, char out[NAMES_MAX]);

/* For names_module() with LDM keys: learns the plan from keys spelled with underscores or dots. */
void names_note_loose(struct names_plan *p, enum model_part part, const char *key, size_t n);

/* "U-Net", "text encoder", "VAE", "other": for people. */
const char *names_part(enum model_part part);

/* Prefixes of a whole LDM checkpoint: "model.diffusion_model.", "first_stage_model.", "cond_stage_model.transformer." or, for
 * OpenCLIP, "cond_stage_model.model.". "" for MODEL_OTHER. */
const char *names_ldm_prefix(const struct names_plan *p, enum model_part part);

#endif
