/* Fusions: a node that is read by one other node only is taken into it. The new node stands at the later one's place, so all
 * inputs exist; the value between them is never made. */
#include <stdlib.h>

#include "ref/graph/graph.h"


/* The forward node that makes v, when it is of this op and nobody but one node reads v; else NULL. */
static struct graph_node *sole_maker(struct graph *g, const int *count, int v, enum op_id op)
{
    struct graph_node *n;

    if (v == GRAPH_NONE || g->values[v].node == GRAPH_NONE || count[v] != 1)
        return NULL;
    n = &g->nodes[g->values[v].node];
    return n->op == op && !n->backward && n->out[0] == v ? n : NULL;
}

/* Moves `first` into the place of `second`, whose output it makes now; the old place becomes empty. */
static void take_place(struct graph *g, struct graph_node *first, struct graph_node *second)
{
    int y = second->out[0];

    *second = *first;
    second->out[0] = y;
    g->values[y].node = (int)(second - g->nodes);
    for (int i = 1; i < OP_MAX_OUT; i++)
        if (second->out[i] != GRAPH_NONE)
            g->values[second->out[i]].node = (int)(second - g->nodes);
    graph_clear_node(first, first->op, first->layer, 0); /* writes nothing: remove_empty() takes it out */
}

static void fuse_act(struct graph *g, const int *count, struct graph_node *n, unsigned which)
{
    static const enum op_act acts[OP_COUNT] = {
        [OP_silu] = ACT_SILU, [OP_gelu] = ACT_GELU, [OP_quick_gelu] = ACT_QUICK_GELU};
    enum op_act act = acts[n->op];
    struct graph_node *norm, *linear;

    if (act == ACT_NONE)
        return;
    norm = act == ACT_SILU && which & FUSE_NORM_SILU ? sole_maker(g, count, n->in[0], OP_group_norm) : NULL;
    linear = which & FUSE_LINEAR_ACT ? sole_maker(g, count, n->in[0], OP_linear) : NULL;
    if (norm && norm->attr.act == ACT_NONE && norm->block == n->block) {
        norm->attr.act = act;
        take_place(g, norm, n);
    } else if (linear && linear->attr.act == ACT_NONE && linear->in[3] == GRAPH_NONE && linear->block == n->block) {
        linear->attr.act = act;
        take_place(g, linear, n);
    }
}

/* add(linear or conv2d, other): in[3] is the residual of both ops. Either side may be the product. */
static void fuse_residual(struct graph *g, const int *count, struct graph_node *n)
{
    for (int side = 0; side < 2; side++) {
        struct graph_node *p = sole_maker(g, count, n->in[side], OP_linear);
        int other = n->in[1 - side], mine = n->in[side];

        p = p ? p : sole_maker(g, count, n->in[side], OP_conv2d);
        if (!p || p->in[3] != GRAPH_NONE || p->attr.act != ACT_NONE || p->block != n->block ||
            !shape_equal(&g->values[other].shape, &g->values[mine].shape))
            continue;
        p->in[3] = other;
        take_place(g, p, n);
        return;
    }
}

static void remove_empty(struct graph *g)
{
    int list[OP_MAX_IN];
    size_t kept = 0;

    for (size_t i = 0; i < g->node_count; i++)
        if (graph_list_writes(&g->nodes[i], list) > 0)
            g->nodes[kept++] = g->nodes[i];
    g->node_count = kept;
    graph_renumber(g);
}

int graph_fuse(struct graph *g, unsigned which, struct err *err)
{
    int *count, list[GRAPH_MAX_READS];

    if (graph_check(g, err) < 0)
        return -1;
    count = mem_zero(g->value_count, sizeof *count, "a graph", err);
    if (!count)
        return -1;
    for (size_t i = 0; i < g->value_count; i++)
        count[i] = g->values[i].keep ? 2 : 0; /* the caller reads it: never fused away */
    for (size_t i = 0; i < g->node_count; i++)
        for (int j = graph_list_reads(&g->nodes[i], list); j-- > 0;)
            count[list[j]]++;
    for (size_t i = 0; i < g->node_count; i++) {
        struct graph_node *n = &g->nodes[i];

        if (n->backward)
            continue;
        if (n->op == OP_add && which & FUSE_RESIDUAL)
            fuse_residual(g, count, n);
        else
            fuse_act(g, count, n, which);
    }
    free(count);
    remove_empty(g);
    return 0;
}
