#include "ref/op/ops.h"

#include <string.h>

#define OP_ROW(name) [OP_##name] = &op_##name,
const struct op *const op_table[OP_COUNT] = {OP_LIST(OP_ROW)};
#undef OP_ROW

const struct op *op_find(const char *name, enum op_id *id)
{
    for (int i = 0; i < OP_COUNT; i++)
        if (strcmp(op_table[i]->name, name) == 0) {
            if (id)
                *id = (enum op_id)i;
            return op_table[i];
        }
    return NULL;
}

static double bytes_of(const struct tensor *t)
{
    size_t n;

    return t && shape_nbytes(&t->shape, t->dtype, &n) ? (double)n : 0;
}

double op_bytes(const struct op_call *c, bool backward)
{
    double sum = 0;

    for (int i = 0; i < OP_MAX_IN; i++)
        sum += bytes_of(c->in[i]) + (backward ? bytes_of(c->din[i]) : 0);
    for (int i = 0; i < OP_MAX_OUT; i++)
        sum += bytes_of(c->out[i]) + (backward ? bytes_of(c->dout[i]) : 0);
    return sum;
}

static size_t no_scratch(const struct op_call *c, bool backward, int threads)
{
    (void)c, (void)backward, (void)threads;
    return 0;
}

static int no_backward(const struct op_call *c, struct err *err)
{
    (void)c;
    return err_set(err, "this operation has no gradient; this is a bug in the graph, please report it");
}

void ops_ref(struct ops *ops)
{
    ops->name = "ref";
    ops->device = NULL;
    ops->arithmetic = DT_F32;
    for (int i = 0; i < OP_COUNT; i++) {
        ops->forward[i] = op_table[i]->forward;
        ops->backward[i] = op_table[i]->backward ? op_table[i]->backward : no_backward;
        ops->scratch[i] = op_table[i]->scratch ? op_table[i]->scratch : no_scratch;
    }
}

bool ops_is_ref(const struct ops *ops, enum op_id op, bool backward)
{
    const struct op *o = op_table[op];

    return backward ? ops->backward[op] == (o->backward ? o->backward : no_backward) : ops->forward[op] == o->forward;
}
