/* Frozen weights on the GPU: one copy of each, however many graphs use it, in T. Vectors and small f32 matrices (LoRA factors)
 * are there twice: in f32, and behind that in T. With cuda:int8 or cuda:nf4 the large weights of products are in blocks of 64
 * elements with a factor each (kernels.h), unpacked before each product into the call's scratch. */
#ifndef OFFLOAD_CUDA_WEIGHT_H
#define OFFLOAD_CUDA_WEIGHT_H

#include "offload/cuda/state.h"

/* As struct ops_device says. */
enum dtype weight_type(const struct tensor *host, bool product);
int weight_get(const struct tensor *host, enum dtype type, struct tensor *device, struct err *err);
void weight_drop(const void *data);
size_t weight_bytes(const struct tensor *host, enum dtype type);

/* For a weight in blocks of few bits: the bytes that unpacking needs (0: it is plain), and *data = the weight in T, unpacked into
 * `room`, for the next product. */
size_t weight_room(const struct tensor *t);
int weight_unpack(const struct tensor *t, void *room, const void **data, struct err *err);

/* The T half of a weight that is there twice. */
const void *weight_typed(const struct tensor *t);

/* Frees the buffers for copying, since no weight is expected soon; the next one makes them again. */
void weight_settled(void);

/* Frees the table and the buffers for copying; after the last weight_drop(). */
void weight_close(void);

#endif
