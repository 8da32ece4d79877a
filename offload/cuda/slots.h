/* The slots of the table: from a call (ref/op/op.h) to products, convolutions and kernels. */
#ifndef OFFLOAD_CUDA_SLOTS_H
#define OFFLOAD_CUDA_SLOTS_H

#include "offload/cuda/memory.h"
#include "offload/cuda/weight.h"

/* Each overrides what its file does. */
void slots_linear(struct ops *ops);    /* slots_linear.c: linear, lora */
void slots_conv(struct ops *ops);      /* slots_conv.c: conv2d */
void slots_attention(struct ops *ops); /* slots_norm.c: attention, group_norm, layer_norm */
void slots_simple(struct ops *ops);    /* slots_simple.c: everything else */

/* Adds the end of a training's step to the device's table: slots_optim.c. */
void slots_optim(struct ops_device *device);

/* Rows in front of the last dimension. */
static inline size_t slots_rows(const struct tensor *t)
{
    size_t c = t->shape.dim[t->shape.ndim - 1];

    return c ? state_count(t) / c : 0;
}

static inline size_t slots_last(const struct tensor *t)
{
    return t->shape.dim[t->shape.ndim - 1];
}

/* The tensor's own type, for the kernels that take a type a tensor. */
static inline enum kernel_type slots_type(const struct tensor *t)
{
    return t->dtype == DT_F32 ? KERNEL_F32 : t->dtype == DT_BF16 ? KERNEL_BF16 : KERNEL_F16;
}

static inline enum kernel_act slots_act(enum op_act act)
{
    static const enum kernel_act acts[] = {[ACT_NONE] = KERNEL_NONE, [ACT_SILU] = KERNEL_SILU, [ACT_GELU] = KERNEL_GELU,
                                           [ACT_QUICK_GELU] = KERNEL_QUICK_GELU};

    return acts[act];
}

/* *data = the weight of a product in T, unpacked into the front of the call's scratch where it is packed: weight_room() bytes. */
static inline int slots_weight(const struct op_call *c, const struct tensor *w, const void **data, struct err *err)
{
    if (weight_room(w) > 0)
        return weight_unpack(w, c->scratch, data, err);
    *data = memory_typed(w);
    return 0;
}

/* Data of an optional tensor. */
static inline void *slots_data(const struct tensor *t)
{
    return t ? t->data : NULL;
}

#endif
