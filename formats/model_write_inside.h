/* Inside of model_write.c and diffusers.c. */
#ifndef FORMATS_MODEL_WRITE_INSIDE_H
#define FORMATS_MODEL_WRITE_INSIDE_H

#include "formats/model_write.h"

struct model_piece { /* a tensor to write: one tensor of the model, or three that are fused, in this order */
    const struct model_tensor *from[3];
    size_t count;
    const char *name;
    struct shape shape;
};

struct model_job {
    const struct model *m;
    const struct model_write_options *o;
    struct model_write_report *report;
    size_t done, total; /* bytes, over all files */
    struct arena arena;
};

/* Writes one file of pieces [n]. */
int model_write_pieces(struct model_job *j, const char *path, const struct model_piece *pieces, size_t n,
                       const struct metadata_item *metadata, size_t n_metadata, struct err *err);

/* Writes the whole folder (diffusers.c). */
int model_write_folder(struct model_job *j, const char *path, struct err *err);

/* [out, in] of a weight that may be a 1x1 convolution, as 2 or 4 dimensions. Other shapes stay. */
struct shape model_write_reshape(struct shape s, int dims);

#endif
