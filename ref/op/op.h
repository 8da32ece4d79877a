/* Operations: one file each, one row each.
 *
 * An op is a `struct op`: its name, the rule that gives the output's shape, forward and backward as neighbours in one file,
 * and what a planner has to know (scratch, flops, which values the backward reads). To add one: write ref/op/NAME.c with
 * `const struct op op_NAME` and add a row to OP_LIST below. The graph, the planner, the profiler and the golden test then
 * know it; a backend may override its slot (ops.h).
 *
 * Contract of every forward and backward:
 *  - tensors are dense and row-major; data is aligned to MEM_ALIGN unless it is a weight mapped from a file;
 *  - activations and gradients are f32, channels last: [n, h, w, c] or [n, tokens, c]. An op that works on channels takes
 *    any number of dimensions before the last, so [n, h, w, c] is also [n, h*w, c] without a reshape;
 *  - matrices and convolution weights come in f32, f16 or bf16; everything else (bias, norm, LoRA factors) in f32;
 *  - sums are f32 or wider; results are the same bytes for any number of threads;
 *  - outputs do not overlap inputs, except as `inplace` and `inplace_backward` allow;
 *  - nothing is allocated: scratch comes with the call.
 */
#ifndef REF_OP_OP_H
#define REF_OP_OP_H

#include <stdbool.h>
#include <stddef.h>

#include "ref/base/err.h"
#include "ref/base/tensor.h"

/* All ops, in the order of enum op_id. Inputs in brackets are optional.
 *
 *  linear      x [.., k], w [n, k], [bias n], [residual .., n], [down r, k], [up n, r]  -> y [.., n]
 *              y = act(scale * x wT + bias) or scale * x wT + bias + residual (not both); with down and up (both or none)
 *              w becomes w + fold * up down, in scratch. attr: act, scale, fold
 *  conv2d      x [n, h, w, ci], w [co, kh, kw, ci], [bias co], [residual n, ho, wo, co] -> y [n, ho, wo, co]
 *              attr: stride, pad_before, pad_after (zeros, both dimensions)
 *  group_norm  x [n, .., c], gamma [c], beta [c] -> y, stats [n, groups, 2] (mean, 1/deviation); attr: groups, eps,
 *              act (none or silu)
 *  layer_norm  x [.., c], gamma [c], beta [c] -> y, stats [rows, 2]; attr: eps
 *  attention   q [n, .., c], k [n, .., c], v [n, .., c] -> y as q, lse [n, heads, tokens of q] (log of the sum of exp)
 *              attr: heads, causal. Scores are scaled by 1/sqrt(c/heads)
 *  gelu, quick_gelu, silu   x -> y. gelu is the exact one (erf)
 *  geglu       x [.., 2c] -> y [.., c] = first half * gelu(second half)
 *  embedding   ids [n, t] i32, table [v, c], [positions p, c] (p >= t) -> y [n, t, c]
 *  timestep    t [n] f32 -> y [n, width] = cos then sin of t * 10000^(-i / (width/2)); attr: width
 *  upsample    x [n, h, w, c] -> y [n, 2h - crop_h, 2w - crop_w, c], nearest; attr: crop_h, crop_w (0 or 1)
 *  concat      a [.., ca], b [.., cb] -> y [.., ca + cb]
 *  split       x [.., c] -> y [.., count], channels first .. first+count-1; attr: first, count
 *  add         a [n, .., c], b of the same shape, or [n, c] -> y = a + b
 *  scale       x -> y = scale * x; attr: scale
 *  mse         pred, target of one shape, [weight n] -> loss [] = mean over samples of weight * mean((pred - target)^2)
 *  lora        base [.., n], x [.., k], down [r, k], up [n, r] -> y = base + scale * (x downT) upT; attr: scale
 *  mul         x [n, .., c], m of the same shape, or [n, c] -> y = x * m; m has no gradient
 *  gather      x [.., c], rows [.., t] i32 -> y [.., t, c]: rows of x, all its dimensions but the last counted as one
 *  huber       pred, target of one shape, delta [n], [weight n] -> loss [] = mean over samples of
 *              weight * mean(sqrt((pred - target)^2 + delta^2) - delta)
 */
#define OP_LIST(ROW) \
    ROW(linear)      \
    ROW(conv2d)      \
    ROW(group_norm)  \
    ROW(layer_norm)  \
    ROW(attention)   \
    ROW(gelu)        \
    ROW(quick_gelu)  \
    ROW(silu)        \
    ROW(geglu)       \
    ROW(embedding)   \
    ROW(timestep)    \
    ROW(upsample)    \
    ROW(concat)      \
    ROW(split)       \
    ROW(add)         \
    ROW(scale)       \
    ROW(mse)         \
    ROW(lora)        \
    ROW(mul)         \
    ROW(gather)      \
    ROW(huber)

#define OP_ENUM(name) OP_##name,
enum op_id { OP_LIST(OP_ENUM) OP_COUNT };
#undef OP_ENUM

enum { OP_MAX_IN = 6, OP_MAX_OUT = 2 };

enum op_act { ACT_NONE, ACT_SILU, ACT_GELU, ACT_QUICK_GELU };

/* Attributes of a node; each op reads those its row above names, the others stay zero. */
struct op_attr {
    enum op_act act;
    float scale; /* linear, scale, lora; 0 means 1 for linear, so that a zeroed struct is the plain op */
    float fold;
    float eps;
    size_t groups;
    size_t heads;
    bool causal;
    size_t stride, pad_before, pad_after;
    size_t first, count;
    size_t width;
    size_t crop_h, crop_w;
};

/* One call of an op. Absent tensors are NULL. When a plan is made the data pointers are NULL too; shapes are always set. */
struct op_call {
    const struct op_attr *attr;
    const struct tensor *in[OP_MAX_IN];
    struct tensor *out[OP_MAX_OUT];        /* forward: written; backward: read */
    const struct tensor *dout[OP_MAX_OUT]; /* backward: gradient of each output, NULL when nothing flows from it */
    struct tensor *din[OP_MAX_IN];         /* backward: gradients to write (not add to), NULL where not wanted */
    enum dtype arithmetic;                 /* DT_BF16: products may round their factors to bf16, as ref's do where it pays */
    void *scratch;                         /* as many bytes as scratch() asked for, aligned to MEM_ALIGN */
};

struct op {
    const char *name;
    int min_in, max_in, nout; /* inputs min_in .. max_in-1 are optional */
    unsigned differentiable;  /* bit i: backward can give din[i] */
    /* What the backward must have the data of, when din[i] is wanted: bit j of needs_in[i] for in[j], of needs_out[i] for
     * out[j]. Everything else may be gone by then, and its data pointer NULL. */
    unsigned char needs_in[OP_MAX_IN], needs_out[OP_MAX_IN];
    unsigned pass;            /* bit i: when in[i] has the shape of out[0], its gradient is dout[0] itself: no work */
    unsigned inplace;         /* bit i: out[0] may have the same memory as in[i] in a forward */
    bool inplace_backward;    /* din[0] may have the same memory as dout[0] */
    /* Given attr and the shapes and dtypes of in[], sets shape and dtype of every out[]. The message of an error says what
     * does not fit, without naming the layer: the graph puts that in front. */
    int (*shape)(const struct op_call *c, struct err *err);
    int (*forward)(const struct op_call *c, struct err *err);
    int (*backward)(const struct op_call *c, struct err *err); /* NULL when differentiable is 0 */
    size_t (*scratch)(const struct op_call *c, bool backward, int threads); /* bytes; NULL: none */
    double (*flops)(const struct op_call *c, bool backward);   /* additions + multiplications; NULL: one an element of out */
};

/* What a slot of a backend's table (ops.h) looks like. */
typedef int op_fn(const struct op_call *c, struct err *err);

#define OP_EXTERN(name) extern const struct op op_##name;
OP_LIST(OP_EXTERN)
#undef OP_EXTERN

extern const struct op *const op_table[OP_COUNT];

/* Bytes that a call reads and writes when each tensor is touched once. */
double op_bytes(const struct op_call *c, bool backward);

/* The row of that name, or NULL; *id is set when it is found and id is not NULL. */
const struct op *op_find(const char *name, enum op_id *id);

#endif
