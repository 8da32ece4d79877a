/* Reverse-mode differentiation as a transform: walks the nodes backward and appends, for each that leads from something
 * wanted to the loss, one backward node. Frozen weights are never differentiated, and neither is what lies before the first
 * trainable layer. */
#include <stdlib.h>

#include "ref/graph/graph.h"

struct reverse {
    struct graph *g;
    bool *wanted; /* [values before the transform]: leads to a param or wanted input */
    int *grads;   /* [the same]: the gradient summed so far */
};

static bool flows(const struct reverse *r, const struct graph_node *n, int i)
{
    return n->in[i] != GRAPH_NONE && (op_table[n->op]->differentiable >> i & 1) && r->wanted[n->in[i]];
}

/* Marks what depends on something wanted. */
static void mark(struct reverse *r, size_t values, const int *inputs, size_t count)
{
    for (size_t i = 0; i < values; i++)
        r->wanted[i] = r->g->values[i].kind == VALUE_PARAM;
    for (size_t i = 0; i < count; i++)
        r->wanted[inputs[i]] = true;
    for (size_t i = 0; i < r->g->node_count; i++) {
        const struct graph_node *n = &r->g->nodes[i];

        for (int j = 0; j < OP_MAX_IN; j++)
            if (flows(r, n, j))
                r->wanted[n->out[0]] = true;
    }
}

static int new_gradient(struct graph *g, int v)
{
    struct shape shape = g->values[v].shape; /* copied: the array may move */
    const char *name = g->values[v].name;

    return graph_new_value(g, VALUE_GRAD, name, DT_F32, &shape);
}

/* Adds one more gradient to what value v has. */
static int contribute(struct reverse *r, int v, int gradient, const struct graph_node *from)
{
    struct graph_node sum;

    if (r->grads[v] == GRAPH_NONE) {
        r->grads[v] = gradient;
        return 0;
    }
    graph_clear_node(&sum, OP_add, from->layer, from->block);
    sum.in[0] = r->grads[v];
    sum.in[1] = gradient;
    sum.out[0] = new_gradient(r->g, v);
    r->grads[v] = sum.out[0];
    return sum.out[0] == GRAPH_NONE ? -1 : graph_append(r->g, &sum);
}

/* The gradient of this input is the output's own, without any work. */
static bool passes(const struct graph *g, const struct graph_node *n, int i)
{
    return (op_table[n->op]->pass >> i & 1) && shape_equal(&g->values[n->in[i]].shape, &g->values[n->out[0]].shape);
}

static int reverse_node(struct reverse *r, size_t index)
{
    struct graph_node n = r->g->nodes[index], back;
    const struct op *op = op_table[n.op];
    int dy = r->grads[n.out[0]];
    bool work = false;

    if (dy == GRAPH_NONE)
        return 0;
    back = n;
    back.backward = true;
    back.dout[0] = dy;
    for (int i = 0; i < OP_MAX_IN; i++) {
        if (!flows(r, &n, i) || passes(r->g, &n, i))
            continue;
        back.din[i] = new_gradient(r->g, n.in[i]);
        back.reads_in |= op->needs_in[i];
        back.reads_out |= op->needs_out[i];
        work = true;
    }
    if (work && graph_append(r->g, &back) < 0)
        return -1;
    for (int i = 0; i < OP_MAX_IN; i++)
        if (flows(r, &n, i) && contribute(r, n.in[i], passes(r->g, &n, i) ? dy : back.din[i], &n) < 0)
            return -1;
    return 0;
}

/* Only params and wanted inputs keep a gradient that the caller may read; their memory must survive the run. */
static void keep_gradients(struct reverse *r, size_t values, const int *inputs, size_t count)
{
    for (size_t i = 0; i < values; i++)
        if (r->g->values[i].kind == VALUE_PARAM && r->grads[i] != GRAPH_NONE)
            graph_keep(r->g, r->grads[i]);
    for (size_t i = 0; i < count; i++)
        if (r->grads[inputs[i]] != GRAPH_NONE)
            graph_keep(r->g, r->grads[inputs[i]]);
}

int graph_differentiate(struct graph *g, int loss, const int *wanted, size_t wanted_count, int *grads, struct err *err)
{
    size_t values = g->value_count, nodes = g->node_count, one;
    struct reverse r = {.g = g, .grads = grads};
    struct shape scalar = {0};
    int rc = -1;

    if (graph_check(g, err) < 0)
        return -1;
    r.wanted = mem_zero(values, sizeof *r.wanted, "a graph", err);
    if (!r.wanted)
        goto out;
    for (size_t i = 0; i < values; i++)
        grads[i] = GRAPH_NONE;
    mark(&r, values, wanted, wanted_count);
    if (!shape_numel(&g->values[loss].shape, &one) || one != 1) {
        err_set(err, "only a single number can be differentiated, '%s' is none", g->values[loss].name);
        goto out;
    }
    if (!r.wanted[loss]) {
        err_set(err, "nothing trainable leads to '%s'; attach a LoRA first", g->values[loss].name);
        goto out;
    }
    scalar = g->values[loss].shape;
    grads[loss] = graph_input(g, "loss gradient", DT_F32, &scalar);
    for (size_t i = nodes; i-- > 0 && graph_check(g, err) == 0;)
        reverse_node(&r, i);
    if (graph_check(g, err) < 0)
        goto out;
    graph_keep(g, loss);
    keep_gradients(&r, values, wanted, wanted_count);
    rc = graph_prune(g, err);
out:
    free(r.wanted);
    return rc;
}
