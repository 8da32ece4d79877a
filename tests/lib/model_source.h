/* A weight source whose numbers follow from names: the models of golden/models.safetensors, whose weights are not stored. */
#ifndef TESTS_LIB_MODEL_SOURCE_H
#define TESTS_LIB_MODEL_SOURCE_H

#include <jansson.h>

#include "ref/model/weights.h"

struct model_source {
    const char *model;  /* "sd1" */
    json_t *tensors;    /* {part: {name: [shape]}}, borrowed */
    enum dtype dtype;   /* of all tensors */
};

/* "unet", "te", "vae": the keys of parts in the golden file. */
const char *model_source_part(enum model_part part);

/* dst [n]: the same numbers as fill() in golden/make_models.py, for a tensor of this name ("sd1/unet/conv_in.weight"). */
void model_source_fill(float *dst, const char *name, const struct shape *s, size_t n);

/* For struct weight_source; ctx is a struct model_source. */
int model_source_find(void *ctx, enum model_part part, const char *name, struct weight_info *out, struct err *err);
int model_source_read(void *ctx, const struct weight_info *w, void *dst, struct err *err);

#endif
