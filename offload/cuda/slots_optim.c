/* The end of a training's step (ref/op/ops.h): gathering gradients, their norm, AdamW. */
#include "offload/cuda/slots.h"

_Static_assert(sizeof(struct ops_piece) == sizeof(struct kernel_piece) && offsetof(struct ops_piece, at) == offsetof(struct kernel_piece, at) &&
                   offsetof(struct ops_piece, n) == offsetof(struct kernel_piece, n), "one layout");
_Static_assert(sizeof(struct ops_adamw_rate) == sizeof(struct kernel_adamw_rate), "one layout");
_Static_assert(OPS_ADAMW_BLOCK == KERNEL_ADAMW_BLOCK, "one block");

static int gather(float *flat, const struct ops_piece *pieces, size_t n, bool first, struct err *err)
{
    return state_check(kernel_collect(state.stream, flat, (const struct kernel_piece *)pieces, n, !first), "gather gradients", err);
}

/* The result and the partial sums lie in the workspace, which nothing else uses meanwhile. */
static int norm(const float *x, size_t n, double *out, struct err *err)
{
    double *result = state.workspace;

    if (kernel_norm_scratch(n) + sizeof *result > STATE_WORKSPACE)
        return err_set(err, "too many trained numbers for this GPU's norm: %zu; use a smaller --network_dim", n);
    if (state_check(kernel_norm(state.stream, x, n, result, result + 1), "compute a norm", err) < 0)
        return -1;
    return state_check(cudaMemcpyAsync(out, result, sizeof *out, cudaMemcpyDeviceToHost, state.stream), "give a norm back", err) < 0
               ? -1
               : state_check(cudaStreamSynchronize(state.stream), "compute a norm", err);
}

static int adamw(const struct ops_adamw *o, struct err *err)
{
    struct kernel_adamw a = {.p = o->param, .g = o->grad, .m = o->mean, .v = o->square, .m8 = o->mean8, .v8 = o->square8,
                             .scale_m = o->mean_scale, .scale_v = o->square_scale, .map = o->map, .n = o->n, .group = o->group,
                             .rate = (const struct kernel_adamw_rate *)o->rate, .scale = o->scale, .beta1 = o->beta1, .new1 = o->new1,
                             .beta2 = o->beta2, .new2 = o->new2, .root2 = o->root2, .eps = o->eps};

    return state_check(kernel_adamw(state.stream, &a), "change the factors", err);
}

void slots_optim(struct ops_device *device)
{
    device->gather = gather;
    device->norm = norm;
    device->adamw = adamw;
}
