/* Which values of a graph have the device's storage type, and which stay f32 (ops.h). */
#include <stdlib.h>

#include "ref/graph/run_inside.h"

/* Reads of forward nodes, by what the reader does with the value. */
struct readers {
    bool exact, other; /* a loss or timestep; anything else */
};

static bool is_loss(enum op_id op)
{
    return op == OP_mse || op == OP_huber;
}

static bool both(const bool *exact, int a, int b)
{
    return exact[a] && (b == GRAPH_NONE || exact[b]);
}

/* A loss and what is made of it alone, and statistics (outputs behind the first). */
static void mark_forward(const struct graph_node *n, bool *exact)
{
    if (is_loss(n->op) || ((n->op == OP_add || n->op == OP_scale) && both(exact, n->in[0], n->in[1])))
        exact[n->out[0]] = true;
    for (int i = 1; i < OP_MAX_OUT; i++)
        if (n->out[i] != GRAPH_NONE)
            exact[n->out[i]] = true;
}

/* A gradient is as its value is; of a param it is f32. */
static void mark_backward(const struct graph *g, const struct graph_node *n, bool *exact)
{
    for (int i = 0; i < OP_MAX_OUT; i++)
        if (n->dout[i] != GRAPH_NONE && exact[n->out[i]])
            exact[n->dout[i]] = true;
    for (int i = 0; i < OP_MAX_IN; i++)
        if (n->din[i] != GRAPH_NONE && (g->values[n->in[i]].kind == VALUE_PARAM || exact[n->in[i]]))
            exact[n->din[i]] = true;
}

static void note_readers(const struct graph_node *n, struct readers *readers)
{
    for (int i = 0; i < OP_MAX_IN; i++)
        if (n->in[i] != GRAPH_NONE) {
            readers[n->in[i]].exact |= is_loss(n->op) || n->op == OP_timestep;
            readers[n->in[i]].other |= !is_loss(n->op) && n->op != OP_timestep;
        }
}

int run_types(struct graph *g, enum dtype storage, struct err *err)
{
    bool *exact = mem_zero(g->value_count, sizeof *exact, "a graph", err);
    struct readers *readers = mem_zero(g->value_count, sizeof *readers, "a graph", err);
    int rc = exact && readers ? 0 : -1;

    for (size_t i = 0; rc == 0 && i < g->node_count; i++)
        note_readers(&g->nodes[i], readers);
    for (size_t i = 0; rc == 0 && i < g->value_count; i++)
        exact[i] = g->values[i].kind == VALUE_PARAM ||
                   (g->values[i].kind == VALUE_INPUT && readers[i].exact && !readers[i].other);
    for (size_t i = 0; rc == 0 && i < g->node_count; i++)
        if (g->nodes[i].backward)
            mark_backward(g, &g->nodes[i], exact);
        else
            mark_forward(&g->nodes[i], exact);
    for (size_t i = 0; rc == 0 && i < g->value_count; i++)
        if (g->values[i].dtype == DT_F32 && g->values[i].kind != VALUE_WEIGHT && !exact[i])
            g->values[i].dtype = storage;
    free(exact);
    free(readers);
    return rc;
}
