/* Inside of model.c, model_folder.c and model_kind.c. */
#ifndef FORMATS_MODEL_INSIDE_H
#define FORMATS_MODEL_INSIDE_H

#include "formats/model.h"

/* Opens one more file of the model; part MODEL_OTHER: to be found from its names. */
int model_add_file(struct model *m, const char *path, enum model_part part, struct err *err);

/* Opens the files of a diffusers folder or of the folder of one part, and reads what its configs know. */
int model_open_folder(struct model *m, struct err *err);

/* Refuses what is no Stable Diffusion 1.x or 2.x model, by name, as far as the names in the files tell. */
int model_refuse(const struct model *m, struct err *err);

/* Fills in arch, whole, channels, widths, dtype, prediction. Refuses by widths. */
int model_find_kind(struct model *m, struct err *err);

#endif
