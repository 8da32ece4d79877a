/* A weight source whose numbers follow from names: the models of golden/models.safetensors, whose weights are not stored. */
#ifndef CMD_VERIFY_GOLDEN_MODEL_H
#define CMD_VERIFY_GOLDEN_MODEL_H

#include <jansson.h>

#include "ref/model/weights.h"

struct golden_model {
    const char *model;  /* "sd1" */
    json_t *tensors;    /* {part: {name: [shape]}}, borrowed */
    enum dtype dtype;   /* of all tensors */
};

/* "unet", "te", "vae": the keys of parts in the golden file. */
const char *golden_model_part(enum model_part part);

/* dst [n]: the same numbers as fill() in golden/fill.py, for a tensor of this name ("sd1/unet/conv_in.weight"). */
void golden_model_fill(float *dst, const char *name, const struct shape *s, size_t n);

/* For struct weight_source; ctx is a struct golden_model. */
int golden_model_find(void *ctx, enum model_part part, const char *name, struct weight_info *out, struct err *err);
int golden_model_read(void *ctx, const struct weight_info *w, void *dst, struct err *err);

#endif
