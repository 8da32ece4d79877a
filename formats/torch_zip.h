/* torch's zip files, written. The row and its reader are in torch_zip.c; see TORCH_META_ROOT in torch_state.h for how the
 * state dict is wrapped. */
#ifndef FORMATS_TORCH_ZIP_H
#define FORMATS_TORCH_ZIP_H

#include "formats/tensor_writer.h"

extern const struct tensor_writer_ops torch_zip_writer;

#endif
