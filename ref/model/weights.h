/* Where a model's weights come from, and in what form the engine keeps them.
 *
 * A weight_source is the door to any checkpoint: whoever opens files (formats, cmd) fills one in; ref knows no file format.
 * Names are the canonical ones: diffusers' module paths.
 *
 * A `struct weights` keeps what the models asked for, once, however many graphs use it:
 *  - matrices (linear weights, embeddings) in the file's dtype, in place when the source has them in memory;
 *  - convolution weights in the file's dtype, repacked from [co, ci, kh, kw] to [co, kh, kw, ci];
 *  - vectors (bias, norms) as f32.
 * Asking gives a tensor whose shape and dtype are final and whose data is NULL until weights_load(), so a graph can be built,
 * planned and its memory told before anything is read.
 */
#ifndef REF_MODEL_WEIGHTS_H
#define REF_MODEL_WEIGHTS_H

#include "ref/base/err.h"
#include "ref/base/part.h"
#include "ref/base/tensor.h"

/* "U-Net", "text encoder", "VAE" */
const char *weights_part_name(enum model_part part);

struct weight_info {
    enum dtype dtype;
    struct shape shape; /* as torch has it: [out, in], [co, ci, kh, kw], [c] */
    const void *data;   /* row-major bytes that stay until weights_free(), or NULL: use read() */
    const void *handle; /* the source's own */
};

struct weight_source {
    const char *path; /* for messages */
    void *ctx;
    /* 1 when the part has a tensor of that name (out is filled), 0 when not, -1 with err filled. */
    int (*find)(void *ctx, enum model_part part, const char *name, struct weight_info *out, struct err *err);
    /* Reads the tensor's bytes in its own dtype, contiguous, into dst. Thread-safe. */
    int (*read)(void *ctx, const struct weight_info *w, void *dst, struct err *err);
};

struct weights;

/* source is borrowed until weights_free(). */
int weights_new(struct weights **out, const struct weight_source *source, struct err *err);
void weights_free(struct weights *w); /* NULL is fine; frees every tensor handed out */

/* True when the part has a tensor of that name. A read error counts as absent and is reported by the next getter. */
bool weights_has(struct weights *w, enum model_part part, const char *name);

/* The shape a tensor has in the source. 0, or -1 when it is absent ("... lacks tensor ...") or the source fails. */
int weights_shape(struct weights *w, enum model_part part, const char *name, struct shape *out, struct err *err);

/* The tensor of that name in the engine's form, owned by w; NULL with err filled when it is absent, not a float type or has
 * a shape of another kind. A matrix may be stored as [out, in, 1, 1] (a 1x1 convolution): it is given as [out, in]. */
const struct tensor *weights_matrix(struct weights *w, enum model_part part, const char *name, struct err *err);
const struct tensor *weights_conv(struct weights *w, enum model_part part, const char *name, struct err *err);
const struct tensor *weights_vector(struct weights *w, enum model_part part, const char *name, struct err *err);

/* Reads and converts everything asked for and not yet loaded. */
int weights_load(struct weights *w, struct err *err);

/* Bytes of what was asked for: owned (allocated, or to be allocated by weights_load) and mapped (used in place). */
void weights_bytes(const struct weights *w, size_t *owned, size_t *mapped);

/* Frees the memory of one part; its tensors have data NULL until the next weights_load(). */
void weights_release(struct weights *w, enum model_part part);

#endif
