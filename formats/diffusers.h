/* The JSON files of a diffusers folder, made from a model's shapes. */
#ifndef FORMATS_DIFFUSERS_H
#define FORMATS_DIFFUSERS_H

#include <jansson.h>

#include "formats/model.h"

/* config.json of a part. proj_dims: dimensions that proj_in.weight is written with (2: use_linear_projection). A new reference
 * or NULL (no memory). What shapes do not tell is as in SD1 and SD2: 32 norm groups (fewer where widths do not divide), 8 heads
 * in SD1's U-Net, heads of 64 elsewhere. */
json_t *diffusers_config(const struct model *m, enum model_part part, int proj_dims);

json_t *diffusers_scheduler(enum model_arch arch, enum model_prediction prediction);

/* model_index.json for the parts that m has. */
json_t *diffusers_index(const struct model *m, bool tokenizer);

#endif
