/* The GPU's memory as run.h uses it, and where a call finds a weight or param in the type of the activations, T. */
#ifndef OFFLOAD_CUDA_MEMORY_H
#define OFFLOAD_CUDA_MEMORY_H

#include "offload/cuda/state.h"

/* The table for the open device, with its storage type. */
struct ops_device memory_table(void);

/* The tensor (activation, weight or param) in T. */
const void *memory_typed(const struct tensor *t);

/* The block of params at data is about to be freed; any other pointer is fine. */
void memory_forget_params(const void *data);

#endif
