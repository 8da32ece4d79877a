/* LoRA files of every layout, seen one way.
 *
 *   layout         one module (U-Net down block 0, first self-attention query)                             alpha
 *   kohya          lora_unet_down_blocks_0_..._to_q.lora_down.weight, .lora_up.weight, .alpha; lora_te_    .alpha, else rank
 *   kohya, LDM     lora_unet_input_blocks_1_1_..._to_q.lora_down.weight                                    .alpha, else rank
 *   ComfyUI        diffusion_model.input_blocks.1.1....to_q.lora_down.weight (or lora_A)                   .alpha, else rank
 *   diffusers old  unet.down_blocks.0....attn1.processor.to_q_lora.down.weight                             rank
 *   diffusers      unet.down_blocks.0....to_q.lora.down.weight (lora_A), text_encoder....lora_linear_layer .alpha, header,
 *                                                                                                          else rank
 *   PEFT folder    adapter_config.json + adapter_model.safetensors: base_model.model....to_q.lora_A.weight lora_alpha, its
 *                  of the U-Net, the text encoder, or a folder with unet/ and text_encoder/                pattern, use_rslora
 *   cloneofsimo    unet:0:up, unet:0:down (safetensors), or a .pt list up, down, up, down: order is all    rank
 *
 * Every module stands under its canonical path (formats/names.h). What it does to a weight W [out, in, kh, kw]:
 *     W += multiplier * (alpha / rank) * up x down          up [out, rank], down [rank, in * kh * kw]
 * LoHa, LoKr, DoRA, OFT, (IA)3, full differences and LoRA for SDXL, SD3 or Flux are recognised and refused by name.
 * Opening reads headers (and the few bytes of the alphas) only.
 */
#ifndef FORMATS_LORA_FILE_H
#define FORMATS_LORA_FILE_H

#include <stdbool.h>
#include <stddef.h>

#include "formats/names.h"
#include "formats/tensor_file.h"
#include "ref/base/part.h"

enum lora_layout {
    LORA_KOHYA,
    LORA_KOHYA_LDM, /* read only */
    LORA_COMFY,     /* read only */
    LORA_DIFFUSERS_OLD,
    LORA_DIFFUSERS,
    LORA_PEFT,
    LORA_CLONEOFSIMO,
    LORA_LAYOUTS
};

/* "kohya", "diffusers", "diffusers-old", "peft", "cloneofsimo" ...: for people and for --to. */
const char *lora_layout_name(enum lora_layout layout);
bool lora_layout_parse(const char *name, enum lora_layout *out); /* only layouts that can be written */

struct lora_factor {
    const struct tensor_file *file;
    const struct tensor_entry *entry; /* NULL: there is none (mid of most modules) */
};

struct lora_module {
    enum model_part part; /* MODEL_UNET or MODEL_TEXT_ENCODER */
    const char *path;     /* canonical module path; borrowed from the file, as all strings */
    const char *key;      /* what the file calls it, for messages */
    size_t rank, out, in, kh, kw; /* kh = kw = 1 unless a convolution larger than 1x1 */
    double alpha;         /* what the file says, or rank; the scale is alpha / rank (PEFT's rslora is folded in) */
    bool has_alpha;
    struct lora_factor up, down; /* stored [out, rank] and [rank, in], or with 1x1 or kh x kw behind */
    struct lora_factor mid;      /* CP form, [rank, rank, kh, kw]; down is then [rank, in] and up [out, rank] */
    enum dtype dtype;            /* of down */
};

struct lora_file {
    const char *path;
    enum lora_layout layout;
    struct lora_module *module; /* [count], sorted by part, then path */
    size_t count;
    size_t part_count[MODEL_PARTS];
    const char **unknown; /* [unknown_count] modules under a LoRA key that no rule knows: kept for messages */
    size_t unknown_count;
    size_t min_rank, max_rank;
    bool te1;             /* text keys are spelled lora_te1_ */
    bool any_alpha;
    bool sd2;             /* cross-attention takes 1024 inputs, or the text encoder is 1024 wide */
    size_t context_width; /* inputs of attn2.to_k: 768 for SD1, 1024 for SD2; 0 when the file has no cross-attention */
    size_t text_width;    /* inputs of the text encoder's q_proj; 0 without one */
    enum dtype dtype;     /* of most factors */
    const struct metadata_item *metadata; /* [metadata_count], of the (first) file */
    size_t metadata_count;
    struct tensor_file *file[2]; /* [file_count]; owned; a PEFT folder has one a part */
    size_t file_count;
    struct arena arena;
};

/* True when a name in the file is a LoRA's: what model_open() and lora_file_open() decide by. */
bool lora_file_claims(const struct tensor_file *f);

/* Opens a file or a PEFT folder. Errors: not a LoRA; a kind that is refused; a module with a factor missing, or whose shapes
 * do not fit together; alpha that is not a finite number; no module of a known name. Unknown modules alone are not an error:
 * see unknown. The caller closes *out with lora_file_close(). */
int lora_file_open(struct lora_file **out, const char *path, struct err *err);
void lora_file_close(struct lora_file *f); /* NULL is fine */

/* The module of that canonical path, or NULL. */
const struct lora_module *lora_file_find(const struct lora_file *f, enum model_part part, const char *path);

/* up [out, rank] and down [rank, in * kh * kw] as f32, row-major, both the caller's. alpha is not applied. A mid factor is
 * multiplied into down. -1 on a read error and when a value is NaN or infinite (the message names the tensor).
 * Thread-safe. */
int lora_module_read_f32(const struct lora_module *m, float *up, float *down, struct err *err);

/* The same in the file's type, only for m->mid.entry == NULL and equal types of up and down: bytes as stored. */
int lora_module_read(const struct lora_module *m, void *up, void *down, struct err *err);

/* One line for people: "LoRA (kohya layout) for SD1, rank 4 .. 128, f16, 192 U-Net and 72 text encoder modules". */
const char *lora_kind_text(const struct lora_file *f, char *buf, size_t size);

/* ---- Writing (lora_write.c) ---- */

struct lora_out { /* one module to write; all borrowed */
    enum model_part part;
    const char *path;
    size_t rank, out, in, kh, kw;
    bool conv;             /* the base weight is a convolution: factors are written 4-D then, also 1x1 ones */
    double alpha;
    bool has_alpha;        /* false: alpha is rank, and kohya gets no .alpha */
    enum dtype dtype;      /* of the data below: f32, f16 or bf16 */
    const void *up, *down; /* [out, rank], [rank, in * kh * kw] */
};

struct lora_write_options {
    enum lora_layout layout;
    enum dtype dtype;                     /* f32, f16, bf16 of the file */
    const struct metadata_item *metadata; /* [n_metadata] ss_* and others. What a layout keeps about itself (sshs_*, format,
                                             lora_adapter_metadata, cloneofsimo's lists) is made anew */
    size_t n_metadata;
    bool no_metadata;                     /* a kohya file without header, as --no_metadata asks for */
};

struct lora_write_report {
    size_t folded;         /* modules whose alpha / rank was multiplied into up because the layout has no alpha */
    size_t folded_inexact; /* of these, where the product had to be rounded (once) */
    bool legacy_hash;      /* sshs_legacy_hash was written */
};

/* Writes modules [n], in any order, to path: a .safetensors file (kohya also .ckpt, .pt), or a folder for PEFT (with unet/ and
 * text_encoder/ in it when there are both). Values are converted to the options' type once. kohya files get sshs_model_hash
 * and, when there is ss_* metadata to hash it with, sshs_legacy_hash, of the bytes that are written.
 * Refused by name: a value that the type cannot hold; a module that the layout has no place for (diffusers-old: attention
 * only; cloneofsimo: the layers that its trainer reached, all of them, none beside). report may be NULL. Returns 0 or -1. */
int lora_file_write(const char *path, const struct lora_out *modules, size_t n, const struct lora_write_options *o,
                    struct lora_write_report *report, struct err *err);

#endif
