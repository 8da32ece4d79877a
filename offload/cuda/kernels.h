/* CUDA kernels behind plain C functions: pointers, sizes, types and a stream. They know nothing of graphs and tensors.
 *
 * What holds for all of them:
 *  - pointers are device memory, borrowed, aligned to 16 bytes unless said otherwise; tensors are dense and row-major but
 *    where a row length (elements) is an argument;
 *  - T is the type of the activations of a call: one enum kernel_type for all of them. Sums are f32 or wider. Vectors (gamma,
 *    beta, bias), statistics, losses and LoRA factors with their gradients are f32;
 *  - work is queued on the stream: nothing waits, nothing is allocated, everything may be captured into a CUDA graph;
 *  - the same inputs give the same bytes: no sum is in the order in which blocks finish;
 *  - a function returns the launch's error (cudaSuccess when the work is queued), or cudaErrorInvalidValue for sizes it does
 *    not take; a call of zero elements does nothing;
 *  - scratch, where a function has it, is as many bytes as NAME_scratch() says, unset before, garbage after.
 *
 * Maths and shapes are those of ref/op/op.h; each .cu names the source where it has another. */
#ifndef OFFLOAD_CUDA_KERNELS_H
#define OFFLOAD_CUDA_KERNELS_H

#include <cuda_runtime_api.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum kernel_type { KERNEL_F32, KERNEL_BF16, KERNEL_F16 };
enum kernel_act { KERNEL_NONE, KERNEL_SILU, KERNEL_GELU, KERNEL_QUICK_GELU }; /* as enum op_act */

/* ---- elementwise.cu ---- */

/* y = act(x); dx = dy act'(x). y may be x; dx may be dy. x, y, dx, dy [n] T */
int kernel_act(cudaStream_t s, enum kernel_type t, enum kernel_act act, const void *x, void *y, size_t n);
int kernel_act_backward(cudaStream_t s, enum kernel_type t, enum kernel_act act, const void *x, const void *dy, void *dx,
                        size_t n);

/* y [rows, c] = act(y + bias [c] + residual [rows, c]); in place; bias and residual may be NULL */
int kernel_bias_act(cudaStream_t s, enum kernel_type t, enum kernel_act act, void *y, const float *bias, const void *residual,
                    size_t rows, size_t c);

/* x [rows, 2c] = a beside b: y [rows, c] = a gelu(b); backward: dx [rows, 2c] from dy [rows, c] */
int kernel_geglu(cudaStream_t s, enum kernel_type t, const void *x, void *y, size_t rows, size_t c);
int kernel_geglu_backward(cudaStream_t s, enum kernel_type t, const void *x, const void *dy, void *dx, size_t rows, size_t c);

/* y = a + b, all [n] T; y may be a or b */
int kernel_add(cudaStream_t s, enum kernel_type t, const void *a, const void *b, void *y, size_t n);

/* y [n, rows, c] = a + b [n, c] T; y may be a. Backward: db [n, c] T = sum of dy over rows */
int kernel_add_rows(cudaStream_t s, enum kernel_type t, const void *a, const void *b, void *y, size_t n, size_t rows, size_t c);
size_t kernel_add_rows_scratch(size_t n, size_t rows, size_t c);
int kernel_add_rows_backward(cudaStream_t s, enum kernel_type t, const void *dy, void *db, size_t n, size_t rows, size_t c,
                             void *scratch);

/* y [n, rows, c] = x m, m [n, c] (rows 1: m of x's shape), all T; y may be x. Its own backward: dx = dy m. */
int kernel_mul(cudaStream_t s, enum kernel_type t, const void *x, const void *m, void *y, size_t n, size_t rows, size_t c);

/* y = scale x; y may be x */
int kernel_scale(cudaStream_t s, enum kernel_type t, float scale, const void *x, void *y, size_t n);

/* y [n, per] = a[n] x + b[n] z, with f32 device vectors a, b: noise added to latents, and their velocity. x, z, y of type T;
 * y may be x or z */
int kernel_mix(cudaStream_t s, enum kernel_type t, const float *a, const void *x, const float *b, const void *z, void *y,
               size_t n, size_t per);

/* dst [rows, ldd] columns 0 .. cols-1 = src [rows, lds] columns 0 .. cols-1: concat and split, both directions. Pointers are
 * aligned to an element. kernel_pad2d writes a split's gradient: dst [rows, cols] is zero but for columns first .. first +
 * count-1, which are src [rows, count]. */
int kernel_copy2d(cudaStream_t s, enum kernel_type t, void *dst, size_t ldd, const void *src, size_t lds, size_t rows,
                  size_t cols);
int kernel_pad2d(cudaStream_t s, enum kernel_type t, void *dst, size_t cols, const void *src, size_t first, size_t count,
                 size_t rows);

/* y [n, 2h - crop_h, 2w - crop_w, c] of x [n, h, w, c], nearest; backward: dx from dy */
int kernel_upsample(cudaStream_t s, enum kernel_type t, const void *x, void *y, size_t n, size_t h, size_t w, size_t c,
                    int crop_h, int crop_w);
int kernel_upsample_backward(cudaStream_t s, enum kernel_type t, const void *dy, void *dx, size_t n, size_t h, size_t w,
                             size_t c, int crop_h, int crop_w);

/* y [n, t, c] = table [v, c][ids [n, t]] + positions [t, c] (NULL: none); tables of type T. An id outside 0 .. v-1 gives a row
 * of NaN: the caller checks ids on the host, where it can say which. */
int kernel_embedding(cudaStream_t s, enum kernel_type type, const int32_t *ids, const void *table, const void *positions,
                     void *y, size_t n, size_t t, size_t v, size_t c);

/* y [n, c] = x [count, c][rows [n]]; a number outside 0 .. count-1 gives NaN. Backward: dx [count, c] = the sum of the rows of dy
 * that came from each. */
int kernel_gather(cudaStream_t s, enum kernel_type t, const void *x, const int32_t *rows, void *y, size_t n, size_t count, size_t c);
int kernel_gather_backward(cudaStream_t s, enum kernel_type t, const void *dy, const int32_t *rows, void *dx, size_t n,
                           size_t count, size_t c);

/* y [n, width] T = cos then sin of t [n] f32 * 10000^(-i / (width/2)), in f64 */
int kernel_timestep(cudaStream_t s, enum kernel_type type, const float *t, void *y, size_t n, size_t width);

/* loss [1] f32 = mean over samples of weight[n] (NULL: 1) * mean over per elements of (pred - target)^2. pred [n, per] of type
 * tp, target of type tt. Backward: dpred [n, per] of type tp; dloss [1] f32 on the device (NULL: 1) */
size_t kernel_mse_scratch(size_t n, size_t per);
int kernel_mse(cudaStream_t s, enum kernel_type tp, const void *pred, enum kernel_type tt, const void *target,
               const float *weight, float *loss, size_t n, size_t per, void *scratch);
int kernel_mse_backward(cudaStream_t s, enum kernel_type tp, const void *pred, enum kernel_type tt, const void *target,
                        const float *weight, const float *dloss, void *dpred, size_t n, size_t per);

/* The same with sqrt((pred - target)^2 + delta^2) - delta in place of the square, delta [n] f32; scratch as for the mse. */
int kernel_huber(cudaStream_t s, enum kernel_type tp, const void *pred, enum kernel_type tt, const void *target,
                 const float *delta, const float *weight, float *loss, size_t n, size_t per, void *scratch);
int kernel_huber_backward(cudaStream_t s, enum kernel_type tp, const void *pred, enum kernel_type tt, const void *target,
                          const float *delta, const float *weight, const float *dloss, void *dpred, size_t n, size_t per);

/* dst [n] of type to = src [n] of type from, rounded to nearest, ties to even */
int kernel_convert(cudaStream_t s, void *dst, enum kernel_type to, const void *src, enum kernel_type from, size_t n);

/* ---- norm.cu ---- */

/* x, y [n, rows, c] T, gamma, beta [c], stats [n, groups, 2] (mean, 1/deviation); act: none or SiLU. y may be x.
 * Backward (gamma and beta are frozen): dx may be dy. */
size_t kernel_group_norm_scratch(size_t n, size_t rows, size_t c, size_t groups);
int kernel_group_norm(cudaStream_t s, enum kernel_type t, enum kernel_act act, const void *x, const float *gamma,
                      const float *beta, void *y, float *stats, size_t n, size_t rows, size_t c, size_t groups, float eps,
                      void *scratch);
int kernel_group_norm_backward(cudaStream_t s, enum kernel_type t, enum kernel_act act, const void *x, const float *gamma,
                               const float *beta, const float *stats, const void *dy, void *dx, size_t n, size_t rows, size_t c,
                               size_t groups, void *scratch);

/* x, y [rows, c] T, gamma, beta [c], stats [rows, 2]. y may be x; dx may be dy. */
int kernel_layer_norm(cudaStream_t s, enum kernel_type t, const void *x, const float *gamma, const float *beta, void *y,
                      float *stats, size_t rows, size_t c, float eps);
int kernel_layer_norm_backward(cudaStream_t s, enum kernel_type t, const void *x, const float *gamma, const float *stats,
                               const void *dy, void *dx, size_t rows, size_t c);

/* ---- attention.cu, attention_backward.cu, attention_plain.cu ---- */

/* Head h of token i of sample b is the d elements at ((b * tokens + i) * ld + h * d) of q, k, v, y and their gradients; an ld
 * longer than heads * d takes q, k and v out of one fused product. Tensor cores do types of 16 bits where d and every ld are
 * multiples of 8, pointers are aligned to 16 bytes and d is at most 160 (compute capability 8.0 on); the forward also where d is
 * at most 512 (9.0: it takes 200 KB of shared memory). Plain code does everything else, as long as a block's shared memory holds
 * 48 (forward) or 80 (backward) rows of d floats: d up to 500 or 300 with 99 KB. Scores are scaled by 1/sqrt(d); causal needs
 * tq == tk. */
struct kernel_attention {
    enum kernel_type type;
    size_t n, heads, d, tq, tk;
    bool causal;
    size_t ldq, ldk, ldv, ldy; /* row lengths; dq, dk, dv, dy have those of q, k, v, y */
    const void *q, *k, *v;
    void *y;    /* forward: written; backward: read */
    float *lse; /* [n, heads, tq]: log of the sum of exp; written, then read */
    const void *dy;
    void *dq, *dk, *dv; /* each may be NULL: not wanted */
    void *scratch;      /* backward only */
};
size_t kernel_attention_scratch(const struct kernel_attention *a); /* of the backward; pointers are not looked at */
int kernel_attention_forward(cudaStream_t s, const struct kernel_attention *a);
int kernel_attention_backward(cudaStream_t s, const struct kernel_attention *a);

/* ---- conv.cu ---- */

/* x [n, h, w, ci], weight [co, kh, kw, ci], y, residual [n, oh, ow, co], all T; bias [co] f32; bias, residual may be NULL;
 * y may be residual. oh = (h + pad_before + pad_after - kh) / stride + 1, and so ow. */
struct kernel_conv {
    enum kernel_type type;
    size_t n, h, w, ci, oh, ow, co, kh, kw, stride, pad; /* pad: before */
    const void *x, *weight;
    const float *bias;
    const void *residual;
    void *y;
    const void *dy;
    void *dx;
    float *dweight; /* [co, kh, kw, ci] f32 */
    void *scratch;  /* kernel_conv_backward_weight only */
};
int kernel_conv_forward(cudaStream_t s, const struct kernel_conv *c);       /* y of x, weight, bias, residual */
int kernel_conv_backward_data(cudaStream_t s, const struct kernel_conv *c); /* dx of dy, weight */
size_t kernel_conv_scratch(const struct kernel_conv *c);
int kernel_conv_backward_weight(cudaStream_t s, const struct kernel_conv *c); /* dweight of x, dy: a LoRA's lora_down */

/* ---- lora.cu ---- */

/* The low-rank branch in one pass over x and y, for r up to KERNEL_LORA_RANK: y [m, n] = base + scale (x [m, k] downT) upT,
 * down [r, k], up [n, r] f32; y may be base. Backward: dx [m, k] T (NULL: not wanted; add: added to what is there), ddown,
 * dup f32 (each may be NULL). */
enum { KERNEL_LORA_RANK = 32 };
struct kernel_lora {
    enum kernel_type type;
    size_t m, k, n, r;
    float scale;
    const float *down, *up;
    const void *x, *base;
    void *y;
    const void *dy;
    void *dx;
    bool add; /* dx += instead of dx = */
    float *ddown, *dup;
    void *scratch; /* backward only */
};
size_t kernel_lora_scratch(const struct kernel_lora *l); /* of the backward; pointers are not looked at */
int kernel_lora_forward(cudaStream_t s, const struct kernel_lora *l);
int kernel_lora_backward(cudaStream_t s, const struct kernel_lora *l);

/* ---- optim.cu ---- */

/* flat[at ..] = from[0 ..] for all pieces [n] of at most 16,384 elements; add: += */
struct kernel_piece {
    const float *from;
    uint64_t at, n;
};
int kernel_collect(cudaStream_t s, float *flat, const struct kernel_piece *pieces, size_t n, bool add);

/* norm [1] f64 = sqrt of the sum of squares of g [n] f32, summed in f64; not finite when one of them is not */
size_t kernel_norm_scratch(size_t n);
int kernel_norm(cudaStream_t s, const float *g, size_t n, double *norm, void *scratch);

/* AdamW (Loshchilov and Hutter 2019), a step over flat arrays p, g, m, v [n] f32, as torch.optim.AdamW and ref/optim/adamw.c. Blocks
 * of 256 elements have a learning rate: that of group [(n + 255) / 256]. Without m and v these are in 8 bits, as
 * ref/optim/quant8.h has it: codes m8, v8 [n] of a map [2, 256] (of m, of v, ascending), and a scale a block. */
enum { KERNEL_ADAMW_BLOCK = 256 };
struct kernel_adamw_rate {
    float keep, rate; /* 1 - lr * weight decay; lr / (1 - beta1^t) */
};
struct kernel_adamw {
    float *p;
    const float *g;
    float *m, *v;
    uint8_t *m8, *v8;
    float *scale_m, *scale_v;
    const float *map;
    size_t n;
    const uint8_t *group;
    const struct kernel_adamw_rate *rate;
    float scale; /* gradients are multiplied by this first */
    float beta1, new1, beta2, new2; /* new: 1 - beta, rounded from f64 */
    float root2, eps;               /* root2: sqrt(1 - beta2^t) */
};
int kernel_adamw(cudaStream_t s, const struct kernel_adamw *a);

/* ---- quant.cu ---- */

/* Frozen weights in blocks of 64 elements with one f32 absmax each: NF4 (Dettmers et al. 2023, appendix E) two codes a byte,
 * the first element in the high half, as bitsandbytes stores it; INT8: round(127 x / absmax). q: (n + 1) / 2 bytes or n;
 * absmax [(n + 63) / 64]. first and count (elements, first a multiple of 64) choose a panel to unpack; dst [count]. */
enum kernel_quant { KERNEL_INT8, KERNEL_NF4 };
enum { KERNEL_QUANT_BLOCK = 64 };
int kernel_quantise(cudaStream_t s, enum kernel_quant kind, enum kernel_type t, const void *x, size_t n, void *q,
                    float *absmax);
int kernel_dequantise(cudaStream_t s, enum kernel_quant kind, const void *q, const float *absmax, size_t first, size_t count,
                      void *dst, enum kernel_type t);

/* ---- random.cu ---- */

/* x [n] f32 = torch.randn(n, device="cuda"): ref/base/rng.h says when. offset counts the calls before. */
int kernel_philox_normal(cudaStream_t s, uint64_t seed, uint64_t offset, float *x, size_t n);

#ifdef __cplusplus
}
#endif

#endif
