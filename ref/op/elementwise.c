#include "ref/op/elementwise.h"

#include "ref/base/thread.h"

struct loop {
    size_t count, piece;
    elementwise_fn *fn;
    const void *ctx;
};

static int run_piece(void *ctx, size_t index, struct err *err)
{
    const struct loop *l = ctx;
    size_t first = index * l->piece, left = l->count - first;

    (void)err;
    l->fn(l->ctx, first, left < l->piece ? left : l->piece);
    return 0;
}

int elementwise_run(size_t count, size_t piece, elementwise_fn *fn, const void *ctx, struct err *err)
{
    struct loop l = {count, piece, fn, ctx};

    return thread_for((count + piece - 1) / piece, run_piece, &l, err);
}

size_t elementwise_rows(size_t c)
{
    size_t rows = c ? 16384 / c : 1;

    return rows ? rows : 1;
}

size_t elementwise_count(const struct tensor *t)
{
    size_t n = 0;

    return shape_numel(&t->shape, &n) ? n : 0;
}

size_t elementwise_last(const struct tensor *t)
{
    return t->shape.ndim ? t->shape.dim[t->shape.ndim - 1] : 1;
}

int elementwise_shape(const struct op_call *c, struct err *err)
{
    if (elementwise_need_f32(c, 0, "input", err) < 0)
        return -1;
    c->out[0]->dtype = DT_F32;
    c->out[0]->shape = c->in[0]->shape;
    return 0;
}

int elementwise_need_f32(const struct op_call *c, int i, const char *what, struct err *err)
{
    if (c->in[i] && c->in[i]->dtype != DT_F32)
        return err_set(err, "%s is %s, not f32", what, dtype_name(c->in[i]->dtype));
    return 0;
}

int elementwise_need_float(const struct op_call *c, int i, const char *what, struct err *err)
{
    enum dtype t = c->in[i]->dtype;

    if (t != DT_F32 && t != DT_F16 && t != DT_BF16)
        return err_set(err, "%s is %s; f32, f16 and bf16 can be computed with", what, dtype_name(t));
    return 0;
}

int elementwise_need_vector(const struct op_call *c, int i, size_t n, const char *what, struct err *err)
{
    char have[128];

    if (!c->in[i])
        return 0;
    if (c->in[i]->shape.ndim != 1 || c->in[i]->shape.dim[0] != n)
        return err_set(err, "%s has shape %s, not [%zu]", what, shape_print(&c->in[i]->shape, have, sizeof have), n);
    return elementwise_need_f32(c, i, what, err);
}
