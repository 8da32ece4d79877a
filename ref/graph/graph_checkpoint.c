/* Gradient checkpointing (Chen et al. 2016) as a transform: the forward nodes of each marked block are copied to just before
 * the block's first backward node, and the block's backward reads the copies. What the block made in the forward pass then
 * dies there; only what enters and leaves a block is held. */
#include <stdlib.h>
#include <string.h>

#include "ref/graph/graph.h"

struct copy {
    struct graph *g;
    int *again; /* [values before the transform]: the recomputed value, or GRAPH_NONE */
    struct graph_node *nodes;
    size_t count;
};

static int translate(const struct copy *c, int v)
{
    return v != GRAPH_NONE && c->again[v] != GRAPH_NONE ? c->again[v] : v;
}

/* Appends copies of the block's forward nodes to the new list. */
static int copy_block(struct copy *c, int block)
{
    struct graph *g = c->g;

    for (size_t i = 0; i < g->node_count && !g->nodes[i].backward; i++) {
        struct graph_node n = g->nodes[i];

        if (n.block != block)
            continue;
        for (int j = 0; j < OP_MAX_IN; j++)
            n.in[j] = translate(c, n.in[j]);
        for (int j = 0; j < OP_MAX_OUT; j++) {
            int v = n.out[j];
            struct shape shape;

            if (v == GRAPH_NONE)
                continue;
            shape = g->values[v].shape;
            n.out[j] = graph_new_value(g, VALUE_ACT, g->values[v].name, g->values[v].dtype, &shape);
            if (n.out[j] == GRAPH_NONE)
                return -1;
            c->again[v] = n.out[j];
        }
        c->nodes[c->count++] = n;
    }
    return 0;
}

/* A backward node of a block reads what was recomputed; places it only has for their shapes are changed too, which is
 * harmless. */
static struct graph_node redirect(const struct copy *c, struct graph_node n)
{
    for (int j = 0; j < OP_MAX_IN; j++)
        n.in[j] = translate(c, n.in[j]);
    for (int j = 0; j < OP_MAX_OUT; j++)
        n.out[j] = translate(c, n.out[j]);
    return n;
}

static int rebuild(struct copy *c, bool *done)
{
    struct graph *g = c->g;
    size_t before = g->node_count;

    for (size_t i = 0; i < before; i++) {
        struct graph_node n = g->nodes[i];

        if (n.backward && n.block && !done[n.block]) {
            done[n.block] = true;
            if (copy_block(c, n.block) < 0)
                return -1;
        }
        c->nodes[c->count++] = n.backward && n.block ? redirect(c, n) : n;
    }
    return 0;
}

int graph_checkpoint(struct graph *g, struct err *err)
{
    struct copy c = {.g = g};
    size_t values = g->value_count, room;
    bool *done = mem_zero((size_t)g->blocks + 1, sizeof *done, "a graph", err);
    int rc = -1;

    c.again = mem_zero(values, sizeof *c.again, "a graph", err);
    if (!mem_mul(g->node_count, 2, &room))
        goto out;
    c.nodes = mem_zero(room, sizeof *c.nodes, "a graph", err); /* each node is copied at most once */
    if (!done || !c.again || !c.nodes)
        goto out;
    for (size_t i = 0; i < values; i++)
        c.again[i] = GRAPH_NONE;
    if (rebuild(&c, done) < 0) {
        graph_check(g, err);
        goto out;
    }
    free(g->nodes);
    g->nodes = c.nodes;
    g->node_count = c.count;
    g->node_cap = room;
    c.nodes = NULL;
    rc = graph_prune(g, err);
out:
    free(done);
    free(c.again);
    free(c.nodes);
    return rc;
}
