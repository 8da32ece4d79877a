/* Optimizers: what turns gradients into the next values of the LoRA factors.
 *
 *     optim_new(&o, "AdamW8bit", args, n_args, &options, tensors, count, err);
 *     each step:  optim_norm(o, grads, &norm, err);                   NaN or infinity: skip the step
 *                 optim_step(o, grads, optim_clip(norm, 1.0), lr, err);
 *
 * Names (any case) are sd-scripts': AdamW, AdamW8bit, Lion, Lion8bit, SGD, SGDNesterov, Adafactor, Prodigy, DAdaptAdam.
 * Arguments, defaults and arithmetic are those of torch.optim (AdamW, SGD), lion-pytorch, transformers (Adafactor), prodigyopt,
 * dadaptation, and bitsandbytes for the 8-bit ones (quant8.h). optim_describe() lists them.
 *
 * All state is flat arrays that optim_state() lists by name: writing them to a file and reading them back continues bit for
 * bit, whatever the optimizer. A tensor begins at a multiple of OPTIM_BLOCK in them (optim_place), so a block of 256 elements
 * belongs to one tensor, which is also the block of the 8-bit states. Nothing is allocated after optim_new(). Results are the
 * same bytes for any number of threads.
 */
#ifndef REF_OPTIM_OPTIM_H
#define REF_OPTIM_OPTIM_H

#include <stdbool.h>
#include <stdio.h>

#include "ref/base/tensor.h"
#include "ref/base/err.h"
#include "ref/op/ops.h"

enum {
    OPTIM_BLOCK = 256,      /* elements that share one scale in an 8-bit state */
    OPTIM_8BIT_LEAST = 4096 /* smaller tensors keep f32 states under an 8-bit optimizer, as in bitsandbytes */
};

/* One trainable tensor. param is f32, dense, borrowed until optim_free(), and written by each step. */
struct optim_tensor {
    float *param;
    struct shape shape; /* Adafactor factors the last two of several dimensions; else only the number of elements counts */
    size_t group;       /* index of its learning rate: 0 .. groups - 1 */
};

struct optim_options {
    size_t groups;     /* learning rates a step is given, at least 1 */
    bool round_to_f16; /* params are rounded to f16 after each step (full_fp16); they stay f32 in memory */
};

/* One flat array of the state. data is owned by the optimizer; a state file writes and reads its bytes. */
struct optim_state {
    const char *name; /* "exp_avg", ... unique in an optimizer; a constant */
    enum dtype dtype;
    size_t count;
    void *data;
};

struct optim;

/* Makes an optimizer with zeroed state. args [n_args] are texts "key=value" (betas=0.9,0.99 or betas=(0.9,0.99); true, True, 1),
 * borrowed for the call. tensors [count] are copied. -1: unknown name or argument (usage error, the nearest is suggested),
 * value out of range, no memory. optim_free(NULL) is fine. */
int optim_new(struct optim **out, const char *name, const char *const *args, size_t n_args, const struct optim_options *options,
              const struct optim_tensor *tensors, size_t count, struct err *err);
void optim_free(struct optim *o);

/* The name in its usual spelling, and every argument as in effect: "AdamW", "weight_decay=0.01, betas=(0.9, 0.999), eps=1e-08".
 * Owned by o. */
const char *optim_name(const struct optim *o);
const char *optim_args(const struct optim *o);

/* Prints all optimizers with their arguments and defaults, one a line, for --help. */
void optim_describe(FILE *out);

/* *norm = sqrt of the sum of squares of all gradients, grads [count] f32 in the order of the tensors; sums in f64, in an order that
 * follows from the shapes alone. Not finite when one element is not. -1: a device failed. */
int optim_norm(struct optim *o, const float *const *grads, double *norm, struct err *err);

/* The factor that torch's clip_grad_norm_ gives gradients: max_norm / (norm + 1e-6), at most 1; max_norm 0: no clipping, 1. */
double optim_clip(double norm, double max_norm);

/* One step: params from grads [count] times `scale` (clipping, loss scale; the product is rounded to f32 as torch does) with
 * learning rates lr [groups], which the schedule gives. The gradients must be finite. -1: a rate that this optimizer cannot
 * take (Prodigy, DAdaptAdam: all rates must be equal, or 0). */
int optim_step(struct optim *o, const float *const *grads, double scale, const double *lr, struct err *err);

/* Steps done since the start, restored with the state. */
size_t optim_steps(const struct optim *o);

/* What a logged rate is to be multiplied with: Prodigy's and DAdaptAdam's estimate d, 1 for the others. */
double optim_factor(const struct optim *o);

/* The optimizer finds its own step size: --learning_rate stands for a factor near 1 (Prodigy, DAdaptAdam), or is not used at all
 * (AdaFactor with relative_step). */
bool optim_finds_rate(const struct optim *o);

/* The state as a table; *rows is owned by o. Returns how many. */
size_t optim_state(const struct optim *o, const struct optim_state **rows);

/* Whether tensor t has 8-bit states, and where it begins in the flat arrays: those of f32 elements (exp_avg, ..) hold the tensors
 * that do not, those of codes (exp_avg_8bit, ..) those that do; their scales lie at optim_place() / OPTIM_BLOCK. Arrays that
 * have an entry for each row or column of a matrix are apart from this. */
bool optim_is_8bit(const struct optim *o, size_t t);
size_t optim_place(const struct optim *o, size_t t);

/* ---- On a device ----
 *
 * Params, gradients and states in the device's memory, where a graph makes the gradients: nothing is copied in a step. Then the
 * grads of optim_norm() and optim_step() are not looked at; optim_gather() has taken them. */

/* Moves everything there as it is now. *there: whether it did; AdamW and AdamW8bit can, without round_to_f16, on devices that have
 * the functions for it. ops is borrowed until optim_free(). */
int optim_to_device(struct optim *o, const struct ops_device *ops, bool *there, struct err *err);

/* Where the params lie, for runs of graphs (run_share_params): [count], owned by o. NULL: not on a device. */
const struct ops_param *optim_params(const struct optim *o, size_t *count);

/* Gradients of one batch, from [count] device memory: = or, when not the first of a step, +=. */
int optim_gather(struct optim *o, const void *const *from, bool first, struct err *err);

/* Brings params (and with `states` the state as well) back into the program's memory, when steps have changed them. Without a
 * device they are there. */
int optim_fetch(struct optim *o, bool states, struct err *err);

/* Bytes that optim_to_device() takes beside those of the params, for a forecast; 0 where it would not move. */
size_t optim_device_bytes(const struct optim *o, const struct ops_device *ops);

/* Bytes of state that optim_new() takes for these tensors, for a forecast. 0 and -1 as above. */
int optim_bytes(const char *name, const char *const *args, size_t n_args, const struct optim_tensor *tensors, size_t count,
                size_t *bytes, struct err *err);

#endif
