/* Writing a model in another layout: LDM single files and diffusers folders, streamed tensor by tensor.
 *
 * Bytes are copied unless a type changes; q, k, v are fused or split, 1x1 convolutions get or lose their trailing ones, so
 * that each layout looks as its own tools write it:
 *   LDM        SD1: text encoder with `text_model.`; SD2: OpenCLIP names, fused q, k, v, 2-D proj_in and proj_out; VAE
 *              attention as 1x1 convolutions.
 *   diffusers  one folder a part; configs written from the shapes; SD2's proj 2-D (use_linear_projection), VAE attention 2-D.
 * MODEL_OTHER tensors are kept when the layout stays (LDM -> LDM); across layouts they have no place and are counted.
 */
#ifndef FORMATS_MODEL_WRITE_H
#define FORMATS_MODEL_WRITE_H

#include "formats/model.h"
#include "formats/tensor_writer.h"

/* A change to some tensors on the way, a few rows at a time and in order (a merge). */
struct model_patch {
    void *ctx;
    bool (*changes)(void *ctx, const struct model_tensor *t);
    /* dst of type `to` = rows [first, first + rows) of t, changed; src: as they are, of t's type. t seen as [dim 0, the rest]. */
    int (*apply)(void *ctx, const struct model_tensor *t, size_t first, size_t rows, void *dst, enum dtype to, const void *src,
                 struct err *err);
};

struct model_write_options {
    enum model_layout layout;
    bool cast;                            /* float tensors to `dtype`; false: each keeps its own. Integers always do */
    enum dtype dtype;
    bool bin;                             /* diffusers folder: pytorch .bin files instead of .safetensors */
    const char *tokenizer_from;           /* diffusers folder to take tokenizer/ (and scheduler/) from, or NULL: the source
                                             model's own folder when it is one */
    enum model_prediction prediction;     /* UNKNOWN: the source's, else epsilon (SD1) */
    bool no_metadata;                     /* single file: without the source's metadata */
    const struct model_patch *patch;      /* may be NULL */
    void (*step)(void *ctx, size_t done_bytes, size_t total_bytes); /* progress, may be NULL */
    void *step_ctx;
};

struct model_write_report {
    size_t tensors, left_out; /* written; MODEL_OTHER tensors without a place in the target */
    bool guessed_prediction;  /* a folder for an SD2 model was written as epsilon because nothing said which it is */
    bool tokenizer;           /* a tokenizer was copied or written into the folder (true for single files, which have none) */
    bool made_last_block;     /* SD2 to LDM: OpenCLIP's unused last block was not in the source and is written as a copy of
                                 the one before, as loaders of the original want it to be there */
};

/* The metadata of a single file that m is written to, for tensor_writer_open(): the source's (with keep), and always what
 * .ckpt files have in place of it: the key of the root under which the source's tensors stand, "state_dict" for a source
 * that is no torch file, and with keep its counters. *items has room for one more item; it and its strings are owned by
 * arena and m. Returns 0 or -1. */
int model_write_metadata(const struct model *m, bool keep, struct arena *arena, struct metadata_item **items, size_t *n,
                         struct err *err);

/* Writes m to path: a file whose suffix names the container (.safetensors, .ckpt), or a folder. report may be NULL. */
int model_write(const struct model *m, const char *path, const struct model_write_options *o,
                struct model_write_report *report, struct err *err);

#endif
