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

/* in[1] of *k becomes a rounded copy where the type asks for it; *copy: to be freed. */
static int round_weight(enum op_id op, struct op_call *k, struct tensor *matrix, float **copy, struct err *err)
{
    const struct tensor *w = k->in[1];
    size_t n;

    if (type == DT_F32 || (op != OP_linear && op != OP_conv2d) || w->dtype == type || !shape_numel(&w->shape, &n))
        return 0;
    *copy = rounded_matrix(w, n, err);
    *matrix = (struct tensor){*copy, DT_F32, w->shape};
    k->in[1] = matrix;
    return *copy ? 0 : -1;
}

static void round_result(struct tensor *t)
{
    size_t n;

    if (t && t->dtype == DT_F32 && shape_numel(&t->shape, &n))
        (type == DT_F32 ? disturb : narrow)(t->data, n);
}

static int round_op(enum op_id op, const struct op_call *c, struct err *err)
{
    struct op_call k = *c;
    struct tensor matrix;
    float *copy = NULL;
    int rc = round_weight(op, &k, &matrix, &copy, err) ? -1 : ref.forward[op](&k, err);

    free(copy);
    if (rc == 0 && op != OP_timestep)
        round_result(c->out[0]);
    return rc;
}

/* Gradients of trained matrices are sums that every device keeps in f32. */
static bool trained(enum op_id op, int i)
{
    return op == OP_lora ? i >= 2 : (op == OP_linear || op == OP_conv2d) && i == 1;
}

static int round_back(enum op_id op, const struct op_call *c, struct err *err)
{
    struct op_call k = *c;
    struct tensor matrix;
    float *copy = NULL;
    int rc = round_weight(op, &k, &matrix, &copy, err) ? -1 : ref.backward[op](&k, err);

    free(copy);
    for (int i = 0; rc == 0 && i < OP_MAX_IN; i++)
        if (type == DT_F32 || !trained(op, i))
            round_result(c->din[i]);
    return rc;
}

#define ROUND(name)                                                          \
    static int round_##name(const struct op_call *c, struct err *err)        \
    {                                                                        \
        return round_op(OP_##name, c, err);                                  \
    }                                                                        \
    static int back_##name(const struct op_call *c, struct err *err)         \
    {                                                                        \
        return round_back(OP_##name, c, err);                                \
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
#define SLOT(name) ops->forward[OP_##name] = round_##name, ops->backward[OP_##name] = back_##name;
    OP_LIST(SLOT)
#undef SLOT
}
