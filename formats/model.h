/* An opened Stable Diffusion model, whatever it came as, seen under canonical names.
 *
 * Sources: one file (.safetensors, .ckpt, .pt, .bin through formats/tensor_file.h) with a whole model, a U-Net, a text
 * encoder or a VAE in it, under LDM or diffusers names; or a diffusers folder (unet/, text_encoder/, vae/ with whole or
 * sharded files, also of a variant such as fp16), or one such part's folder. Opening reads headers only.
 *
 * There are two views of the same bytes:
 *   - tensors: what the program computes with, by part and canonical name (diffusers' module paths);
 *   - sources: what lies in the files, in file order, each with the tensors inside it. One source is several tensors where
 *     OpenCLIP keeps q, k and v in one; it has none when no part uses it (part MODEL_OTHER).
 * So a reader asks model_find(), and who rewrites a file walks the sources and keeps every name, type and shape.
 *
 * What the kinds of files share is not repeated by users: prefixes, position_ids (left to MODEL_OTHER), OpenCLIP's last
 * block, which SD2 does not use (MODEL_OTHER), EMA copies (MODEL_OTHER), VAE attention stored as 1x1 convolutions or with
 * old names. A 1x1 convolution or linear layer of the U-Net keeps the shape of the file: proj_in and proj_out are
 * [out, in, 1, 1] in SD1 and in some SD2 files, [out, in] in others; the bytes are the same.
 */
#ifndef FORMATS_MODEL_H
#define FORMATS_MODEL_H

#include <stdbool.h>
#include <stddef.h>

#include "formats/names.h"
#include "formats/tensor_file.h"
#include "ref/base/part.h"

enum model_arch { MODEL_ARCH_UNKNOWN, MODEL_SD1, MODEL_SD2 };
enum model_layout { MODEL_LDM, MODEL_DIFFUSERS };
enum model_prediction { MODEL_PREDICTION_UNKNOWN, MODEL_EPSILON, MODEL_V };

struct model_tensor {
    enum model_part part;
    const char *name; /* canonical; of a MODEL_OTHER tensor: the name in its file. Borrowed from the model */
    enum dtype dtype;
    struct shape shape; /* of this tensor, q, k, v separated; VAE attention always [out, in] */
    size_t nbytes;
    size_t offset; /* of its first byte in the entry's data: not 0 only for k and v of a fused tensor */
    const struct tensor_file *file;
    const struct tensor_entry *entry;
    size_t source; /* index into model.source */
};

struct model_source {
    const struct tensor_file *file;
    const struct tensor_entry *entry;
    size_t first, count; /* its tensors are model.in_source[first .. first + count); at least one, perhaps MODEL_OTHER */
};

struct model {
    const char *path;
    enum model_arch arch;             /* from the width of what attention looks at: see model_kind_text() */
    enum model_layout layout;         /* of the names in the files */
    enum model_prediction prediction; /* known only when the file says so */
    const char *prediction_from;      /* what said so, or NULL */
    bool folder;                      /* a folder was opened */
    bool has[MODEL_PARTS];
    bool whole[MODEL_PARTS];          /* has, and a first and last layer are there: a part that can run */
    bool bare;                        /* LDM names of one part without the prefixes of a whole checkpoint */
    bool ema;                         /* an EMA copy of the U-Net is in the file (not used) */
    size_t in_channels;               /* of the U-Net: 4; 9 for inpainting; 5 depth, 7 upscaler, 8 edit; 0 without U-Net */
    size_t context_width;             /* what cross-attention looks at: 768 in SD1, 1024 in SD2; 0 without U-Net */
    size_t text_layers;               /* text encoder blocks that are used: 12 in SD1, 23 in SD2 */
    int head_dim_hint;                /* U-Net config's attention_head_dim when a folder states one number for all, else 0.
                                         diffusers uses it as the number of heads */
    enum dtype dtype;                 /* of most of the U-Net's bytes (or of the part there is) */
    bool mixed;                       /* float tensors of other types occur */
    struct names_plan plan;

    struct model_tensor *tensor; /* [count], sorted by part, then name */
    size_t count;
    size_t part_first[MODEL_PARTS + 1]; /* tensors of part p are [part_first[p], part_first[p + 1]) */
    struct model_source *source;        /* [source_count], file by file, in the order of their data */
    size_t source_count;
    struct model_tensor **in_source;    /* [count], ordered by source, then offset */
    struct tensor_file **file;          /* [file_count]; owned */
    enum model_part *file_part;         /* [file_count]; part of a folder's file; MODEL_OTHER for a single file */
    size_t file_count;
    struct arena arena;
};

/* Opens path. Refused by name: SDXL, SD3, Flux and other architectures, LoRA files, two tensors for one canonical name, files
 * without a part of a model. A VAE or text encoder that is missing is not an error here (model_need()). The caller
 * closes *out with model_close(). Returns 0 or -1. */
int model_open(struct model **out, const char *path, struct err *err);
void model_close(struct model *m); /* NULL is fine */

/* The tensor of that part and canonical name ("conv_in.weight"), or NULL. Logarithmic. */
const struct model_tensor *model_find(const struct model *m, enum model_part part, const char *name);

/* Reads a tensor, or bytes [first, first + n) of it, in its own dtype, row-major. Thread-safe. */
int model_read(const struct model_tensor *t, void *dst, struct err *err);
int model_read_part(const struct model_tensor *t, size_t first, size_t n, void *dst, struct err *err);

/* -1 with a message that says what is missing and how to give it, unless the part is there and whole. */
int model_need(const struct model *m, enum model_part part, struct err *err);

/* -1 (usage) when the model is known to be SD1 and --v2 was given, or SD2 and it was not. */
int model_expect_v2(const struct model *m, bool v2_given, struct err *err);

/* -1 when a and b differ in architecture, or in the part's set of names or shapes: names the first difference. Trailing
 * dimensions of 1 do not count. A part that neither has is fine. */
int model_expect_same(const struct model *a, const struct model *b, enum model_part part, struct err *err);

/* "Stable Diffusion 1.x checkpoint (LDM layout), inpainting, f16, with U-Net, text encoder and VAE, EMA copy". buf of 256
 * bytes suffices. Returns buf. */
const char *model_kind_text(const struct model *m, char *buf, size_t size);

#endif
