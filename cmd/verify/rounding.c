#include "cmd/verify/rounding.h"

#include <math.h>
#include <stdlib.h>

#include "ref/base/mem.h"

static struct ops ref;
static enum dtype type;
static uint64_t state;

static double uniform(void)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (double)(int64_t)state * 0x1p-63;
}

/* x [n] rounded to the type and back, 256 numbers at a time. */
static void narrow(float *x, size_t n)
{
    uint16_t half[256];

    for (size_t i = 0; i < n; i += 256) {
        size_t some = n - i < 256 ? n - i : 256;

        dtype_convert(half, type, x + i, DT_F32, some);
        dtype_convert(x + i, DT_F32, half, type, some);
    }
}

static void disturb(float *x, size_t n)
{
    double squares = 0, size;

    for (size_t i = 0; i < n; i++)
        squares += (double)x[i] * (double)x[i];
    size = 8 * 0x1p-24 * sqrt(squares / (double)(n ? n : 1));
    for (size_t i = 0; i < n; i++)
        x[i] = (float)((double)x[i] + size * uniform());
}

/* A copy of a matrix as f32, rounded; NULL with err filled. */
static float *rounded_matrix(const struct tensor *w, size_t n, struct err *err)
{
    float *copy = mem_new(n * sizeof *copy, "a rounded weight", err);

    if (!copy)
        return NULL;
    dtype_convert(copy, DT_F32, w->data, w->dtype, n);
    narrow(copy, n);
    return copy;
}

static int round_op(enum op_id op, const struct op_call *c, struct err *err)
{
    struct op_call k = *c;
    struct tensor matrix;
    float *copy = NULL;
    size_t n;
    int rc;

    if (type != DT_F32 && (op == OP_linear || op == OP_conv2d) && c->in[1]->dtype != type && shape_numel(&c->in[1]->shape, &n)) {
        copy = rounded_matrix(c->in[1], n, err);
        if (!copy)
            return -1;
        matrix = (struct tensor){copy, DT_F32, c->in[1]->shape};
        k.in[1] = &matrix;
    }
    rc = ref.forward[op](&k, err);
    free(copy);
    if (rc == 0 && op != OP_timestep && c->out[0]->dtype == DT_F32 && shape_numel(&c->out[0]->shape, &n))
        (type == DT_F32 ? disturb : narrow)(c->out[0]->data, n);
    return rc;
}

#define ROUND(name)                                                          \
    static int round_##name(const struct op_call *c, struct err *err)        \
    {                                                                        \
        return round_op(OP_##name, c, err);                                  \
    }
OP_LIST(ROUND)
#undef ROUND

void rounding_ops(struct ops *ops, enum dtype t)
{
    ops_ref(&ref);
    *ops = ref;
    ops->name = "rounding";
    type = t;
    state = 1;
#define SLOT(name) ops->forward[OP_##name] = round_##name;
    OP_LIST(SLOT)
#undef SLOT
}
