/* The table a backend fills. ops_ref() fills every slot; a backend starts from that and overrides what it does better,
 * so no slot is ever empty and an op added to ref works everywhere the day it is added:
 *
 *     struct ops mine;
 *     ops_ref(&mine);
 *     mine.name = "mine";
 *     mine.forward[OP_linear] = my_linear;
 *
 * A slot obeys the contract in op.h. A slot that needs another amount of scratch overrides scratch[] as well.
 *
 * A backend whose slots work in memory of its own (a GPU) also gives a struct ops_device. Then whoever runs a graph puts
 * everything there, and a slot that still is ref's runs on the processor, with copies made in one place (graph/run_device.c).
 */
#ifndef REF_OP_OPS_H
#define REF_OP_OPS_H

#include "ref/op/op.h"

/* A trained tensor in the program's memory, and its place in a block of params on a device. */
struct ops_param {
    const float *host;
    float *device;
};

/* n elements from `from` on belong at flat[at]. */
struct ops_piece {
    const float *from;
    uint64_t at, n;
};

/* What a learning rate makes of a step of AdamW: p = p keep - rate m / (..). */
struct ops_adamw_rate {
    float keep, rate;
};

/* A step of AdamW over flat arrays [n], n a multiple of OPS_ADAMW_BLOCK; m and v are f32, or codes of 8 bits with a scale a block
 * (ref/optim/quant8.h). Everything that a pointer leads to lies on the device. */
struct ops_adamw {
    float *param;
    const float *grad; /* multiplied by `scale` first */
    float *mean, *square; /* NULL: in 8 bits */
    uint8_t *mean8, *square8;
    float *mean_scale, *square_scale;
    const float *map; /* [2, 256] values of the codes of mean and square, ascending */
    size_t n;
    const uint8_t *group; /* [n / OPS_ADAMW_BLOCK] which rate */
    const struct ops_adamw_rate *rate;
    float scale, beta1, new1, beta2, new2; /* new: 1 - beta, rounded from f64 */
    float root2, eps;                      /* root2: sqrt(1 - beta2^t) */
};

#define OPS_ADAMW_BLOCK 256

/* Memory and order of work of a device. Calls come from one thread; what is asked for happens in the order of the calls, as
 * if each had waited for those before it, but only read() and sync() really wait. On a device the contract of op.h changes:
 *  - data pointers are the device's, aligned to MEM_ALIGN in the arena, to OPS_DEVICE_ALIGN elsewhere;
 *  - activations and gradients have the type `storage`; but stats, lse, a loss and its gradient, gradients of params, and
 *    inputs that a loss (mse, huber) or timestep reads are f32. Inputs of other types (ids) are as they are;
 *  - a weight is what weight() made of it; a param is f32 and lies in the block that params() was told of. */
struct ops_device {
    enum dtype storage; /* DT_F32, DT_BF16 or DT_F16 */
    void *(*alloc)(size_t bytes, const char *what, struct err *err); /* NULL with err filled: says what was free */
    void (*free)(void *data);                                        /* after all work that was asked for; NULL is fine */
    int (*write)(void *dst, const void *src, size_t bytes, struct err *err); /* to the device; src may be changed afterwards */
    int (*read)(void *dst, const void *src, size_t bytes, struct err *err);  /* from the device */
    /* Memory of the program that write() and read() are fastest with. Both NULL: any is as good. */
    void *(*alloc_host)(size_t bytes, const char *what, struct err *err);
    void (*free_host)(void *data);
    int (*sync)(struct err *err); /* waits for everything; reports what went wrong meanwhile */
    /* The type that the device's copy of a frozen tensor has; product: it is only read as the weight of linear and conv2d, and is
     * no LoRA's. DT_U8 (two codes a byte) and DT_I8 are blocks with a factor each, of the same shape. */
    enum dtype (*weight_type)(const struct tensor *host, bool product);
    /* The copy, made by the first call for this host tensor and type and shared by the later ones: fills *device, in the layout
     * that the slots take. unweight(device->data) as often as weight(): the last one frees it. */
    int (*weight)(const struct tensor *host, enum dtype type, struct tensor *device, struct err *err);
    void (*unweight)(const void *data);
    size_t (*weight_bytes)(const struct tensor *host, enum dtype type); /* what it takes, for a forecast */
    /* Says that a graph's params, in one block [count], have changed; NULL: need not be told. They lie in front of a shadow
     * of shadow_bytes(count), which the slots may fill with a form of their own. */
    int (*params)(float *data, size_t count, struct err *err);
    size_t (*shadow_bytes)(size_t count);
    /* Records the calls of slots between begin and end instead of doing them; replay() does them, any number of times. After
     * a failed end() (NULL) nothing has been done. All four NULL: the device cannot. */
    int (*record_begin)(struct err *err);
    void *(*record_end)(struct err *err);
    int (*replay)(void *recording, struct err *err);
    void (*record_free)(void *recording);
    /* The end of a training's step: gradients gathered into a flat array (= or, when not the first, +=; pieces [n] on the device, none
     * over OPS_PIECE elements), their norm (sums in f64; waits), AdamW. All three NULL: that is done by the program. */
    int (*gather)(float *flat, const struct ops_piece *pieces, size_t n, bool first, struct err *err);
    int (*norm)(const float *x, size_t n, double *norm, struct err *err);
    int (*adamw)(const struct ops_adamw *a, struct err *err);
};

#define OPS_PIECE 16384

#define OPS_DEVICE_ALIGN 256

struct ops {
    const char *name;
    op_fn *forward[OP_COUNT];
    op_fn *backward[OP_COUNT]; /* of an op without one: a function that reports so */
    size_t (*scratch[OP_COUNT])(const struct op_call *c, bool backward, int threads);
    enum dtype arithmetic; /* of every call: DT_F32, or DT_BF16 when ref's own products shall round their factors */
    const struct ops_device *device; /* NULL: slots work in the program's own memory */
};

/* *ops = every slot from op_table. */
void ops_ref(struct ops *ops);

/* Whether a slot is ref's own. */
bool ops_is_ref(const struct ops *ops, enum op_id op, bool backward);

#endif
