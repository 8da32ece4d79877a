#include "ref/graph/graph.h"

#include <stdlib.h>
#include <string.h>

struct graph *graph_new(struct err *err)
{
    return mem_zero(1, sizeof(struct graph), "a graph", err);
}

void graph_free(struct graph *g)
{
    if (!g)
        return;
    arena_free(&g->names);
    free(g->values);
    free(g->nodes);
    free(g);
}

static bool broken(const struct graph *g)
{
    return g->err.kind != ERR_NONE;
}

int graph_check(const struct graph *g, struct err *err)
{
    if (!broken(g))
        return 0;
    *err = g->err;
    return -1;
}

int graph_new_value(struct graph *g, enum value_kind kind, const char *name, enum dtype dtype, const struct shape *shape)
{
    struct graph_value *v;
    size_t bytes, n;

    if (broken(g))
        return GRAPH_NONE;
    if (shape_numel(shape, &n) && n == 0) {
        char text[128];

        err_set(&g->err, "'%s' has shape %s, no element at all; the model or the size asked for makes no sense", name,
                shape_print(shape, text, sizeof text));
        return GRAPH_NONE;
    }
    if (!shape_nbytes(shape, dtype, &bytes)) {
        err_set(&g->err, "'%s' has more elements than memory can hold; use a smaller picture or batch", name);
        return GRAPH_NONE;
    }
    if (mem_grow(&g->values, &g->value_cap, g->value_count, sizeof *g->values, "a graph", &g->err) < 0)
        return GRAPH_NONE;
    v = &g->values[g->value_count];
    *v = (struct graph_value){.kind = kind, .dtype = dtype, .shape = *shape, .node = GRAPH_NONE};
    v->name = arena_str(&g->names, name, &g->err);
    return v->name ? (int)g->value_count++ : GRAPH_NONE;
}

int graph_input(struct graph *g, const char *name, enum dtype dtype, const struct shape *shape)
{
    return graph_new_value(g, VALUE_INPUT, name, dtype, shape);
}

static int add_source(struct graph *g, enum value_kind kind, const char *name, const struct tensor *t)
{
    int v;

    for (size_t i = 0; t && i < g->value_count; i++)
        if (g->values[i].source == t)
            return (int)i;
    v = t ? graph_new_value(g, kind, name, t->dtype, &t->shape) : GRAPH_NONE;
    if (v != GRAPH_NONE)
        g->values[v].source = t;
    else if (!broken(g))
        err_set(&g->err, "tensor '%s' is missing", name);
    return v;
}

int graph_weight(struct graph *g, const char *name, const struct tensor *t)
{
    return add_source(g, VALUE_WEIGHT, name, t);
}

int graph_param(struct graph *g, const char *name, const struct tensor *t)
{
    if (t && t->dtype != DT_F32 && !broken(g))
        err_set(&g->err, "trainable tensor '%s' is %s; only f32 can be trained", name, dtype_name(t->dtype));
    return add_source(g, VALUE_PARAM, name, t);
}

/* Fills one place of a call from a value. */
static struct tensor *describe(const struct graph *g, int v, struct tensor **store)
{
    struct tensor *t = (*store)++;

    if (v == GRAPH_NONE)
        return NULL;
    *t = (struct tensor){.dtype = g->values[v].dtype, .shape = g->values[v].shape};
    return t;
}

void graph_call(const struct graph *g, const struct graph_node *n, struct op_call *c, struct tensor *store)
{
    *c = (struct op_call){.attr = &n->attr};
    for (int i = 0; i < OP_MAX_IN; i++)
        c->in[i] = describe(g, n->in[i], &store);
    for (int i = 0; i < OP_MAX_OUT; i++)
        c->out[i] = describe(g, n->out[i], &store);
    for (int i = 0; i < OP_MAX_OUT; i++)
        c->dout[i] = describe(g, n->dout[i], &store);
    for (int i = 0; i < OP_MAX_IN; i++)
        c->din[i] = describe(g, n->din[i], &store);
}

void graph_clear_node(struct graph_node *n, enum op_id op, const char *layer, int block)
{
    *n = (struct graph_node){.op = op, .layer = layer, .block = block};
    for (int i = 0; i < OP_MAX_IN; i++)
        n->in[i] = n->din[i] = GRAPH_NONE;
    for (int i = 0; i < OP_MAX_OUT; i++)
        n->out[i] = n->dout[i] = GRAPH_NONE;
}

/* Shapes and dtypes of the outputs, from the op's own rule; the layer's name goes in front of its complaint. */
static int infer(struct graph *g, const struct graph_node *n, struct tensor out[OP_MAX_OUT])
{
    const struct op *op = op_table[n->op];
    struct tensor store[2 * OP_MAX_IN + 2 * OP_MAX_OUT];
    struct op_call c;

    for (int i = 0; i < OP_MAX_IN; i++)
        if ((n->in[i] != GRAPH_NONE && i >= op->max_in) || (n->in[i] == GRAPH_NONE && i < op->min_in))
            return err_set(&g->err, "layer '%s': operation %s takes %d to %d inputs", n->layer, op->name, op->min_in, op->max_in);
    graph_call(g, n, &c, store);
    for (int i = 0; i < OP_MAX_OUT; i++)
        c.out[i] = i < op->nout ? &out[i] : NULL;
    if (op->shape(&c, &g->err) < 0)
        return err_prefix(&g->err, "layer '%s': ", n->layer);
    return 0;
}

int graph_append(struct graph *g, const struct graph_node *n)
{
    int list[OP_MAX_IN];

    if (broken(g) || mem_grow(&g->nodes, &g->node_cap, g->node_count, sizeof *g->nodes, "a graph", &g->err) < 0)
        return -1;
    for (int i = graph_list_writes(n, list); i-- > 0;)
        g->values[list[i]].node = (int)g->node_count;
    g->nodes[g->node_count++] = *n;
    return 0;
}

int graph_add_node(struct graph *g, enum op_id op, const struct op_attr *attr, const int in[OP_MAX_IN], const char *layer)
{
    struct tensor out[OP_MAX_OUT] = {{0}};
    struct graph_node n;

    if (broken(g))
        return GRAPH_NONE;
    graph_clear_node(&n, op, arena_str(&g->names, layer, &g->err), g->block);
    if (attr)
        n.attr = *attr;
    memcpy(n.in, in, sizeof n.in);
    if (!n.layer || infer(g, &n, out) < 0)
        return GRAPH_NONE;
    for (int i = 0; i < op_table[op]->nout; i++) {
        n.out[i] = graph_new_value(g, VALUE_ACT, layer, out[i].dtype, &out[i].shape);
        if (n.out[i] == GRAPH_NONE)
            return GRAPH_NONE;
    }
    return graph_append(g, &n) < 0 ? GRAPH_NONE : n.out[0];
}

#define INPUTS(...) (const int[OP_MAX_IN + 6]){__VA_ARGS__, GRAPH_NONE, GRAPH_NONE, GRAPH_NONE, GRAPH_NONE, GRAPH_NONE, GRAPH_NONE}

int graph_linear(struct graph *g, int x, int w, int b, const char *layer)
{
    return graph_add_node(g, OP_linear, NULL, INPUTS(x, w, b), layer);
}

int graph_conv2d(struct graph *g, int x, int w, int b, size_t stride, size_t pad_before, size_t pad_after, const char *layer)
{
    struct op_attr attr = {.stride = stride, .pad_before = pad_before, .pad_after = pad_after};

    return graph_add_node(g, OP_conv2d, &attr, INPUTS(x, w, b), layer);
}

int graph_group_norm(struct graph *g, int x, int gamma, int beta, size_t groups, float eps, const char *layer)
{
    struct op_attr attr = {.groups = groups, .eps = eps};

    return graph_add_node(g, OP_group_norm, &attr, INPUTS(x, gamma, beta), layer);
}

int graph_layer_norm(struct graph *g, int x, int gamma, int beta, float eps, const char *layer)
{
    struct op_attr attr = {.eps = eps};

    return graph_add_node(g, OP_layer_norm, &attr, INPUTS(x, gamma, beta), layer);
}

int graph_attention(struct graph *g, int q, int k, int v, size_t heads, bool causal, const char *layer)
{
    struct op_attr attr = {.heads = heads, .causal = causal};

    return graph_add_node(g, OP_attention, &attr, INPUTS(q, k, v), layer);
}

int graph_lora(struct graph *g, int base, int x, int down, int up, float scale, const char *layer)
{
    struct op_attr attr = {.scale = scale};

    return graph_add_node(g, OP_lora, &attr, INPUTS(base, x, down, up), layer);
}

int graph_unary(struct graph *g, enum op_id op, int x, const char *layer)
{
    return graph_add_node(g, op, NULL, INPUTS(x), layer);
}

int graph_binary(struct graph *g, enum op_id op, int a, int b, const char *layer)
{
    return graph_add_node(g, op, NULL, INPUTS(a, b), layer);
}

void graph_block_begin(struct graph *g)
{
    g->block = ++g->blocks;
}

void graph_block_end(struct graph *g)
{
    g->block = 0;
}

void graph_keep(struct graph *g, int value)
{
    if (!broken(g) && value != GRAPH_NONE)
        g->values[value].keep = true;
}

struct shape graph_shape(const struct graph *g, int value)
{
    return broken(g) || value == GRAPH_NONE ? (struct shape){0} : g->values[value].shape;
}

int graph_find(const struct graph *g, const char *name)
{
    for (size_t i = g->value_count; i-- > 0;) {
        const struct graph_value *v = &g->values[i];

        /* output 0 only: statistics have the layer's name too; what a fusion took away has no node */
        if (v->kind == VALUE_ACT && v->node != GRAPH_NONE && g->nodes[v->node].out[0] == (int)i && strcmp(v->name, name) == 0)
            return (int)i;
    }
    return GRAPH_NONE;
}

int graph_list_reads(const struct graph_node *n, int list[GRAPH_MAX_READS])
{
    int count = 0;

    for (int i = 0; i < OP_MAX_IN; i++)
        if (n->in[i] != GRAPH_NONE && (!n->backward || n->reads_in >> i & 1))
            list[count++] = n->in[i];
    for (int i = 0; n->backward && i < OP_MAX_OUT; i++) {
        if (n->out[i] != GRAPH_NONE && n->reads_out >> i & 1)
            list[count++] = n->out[i];
        if (n->dout[i] != GRAPH_NONE)
            list[count++] = n->dout[i];
    }
    return count;
}

int graph_list_writes(const struct graph_node *n, int list[OP_MAX_IN])
{
    int count = 0;

    for (int i = 0; !n->backward && i < OP_MAX_OUT; i++)
        if (n->out[i] != GRAPH_NONE)
            list[count++] = n->out[i];
    for (int i = 0; n->backward && i < OP_MAX_IN; i++)
        if (n->din[i] != GRAPH_NONE)
            list[count++] = n->din[i];
    return count;
}

void graph_renumber(struct graph *g)
{
    int list[OP_MAX_IN];

    for (size_t i = 0; i < g->value_count; i++)
        g->values[i].node = GRAPH_NONE;
    for (size_t i = 0; i < g->node_count; i++)
        for (int j = graph_list_writes(&g->nodes[i], list); j-- > 0;)
            g->values[list[j]].node = (int)i;
}

int graph_prune(struct graph *g, struct err *err)
{
    bool *needed = mem_zero(g->value_count, sizeof *needed, "a graph", err);
    bool *live = mem_zero(g->node_count, sizeof *live, "a graph", err);
    int list[GRAPH_MAX_READS];
    size_t kept = 0;
    int rc = -1;

    if (!needed || !live)
        goto out;
    for (size_t i = 0; i < g->value_count; i++)
        needed[i] = g->values[i].keep;
    for (size_t i = g->node_count; i-- > 0;) {
        const struct graph_node *n = &g->nodes[i];

        for (int j = graph_list_writes(n, list); j-- > 0;)
            live[i] |= needed[list[j]];
        for (int j = live[i] ? graph_list_reads(n, list) : 0; j-- > 0;)
            needed[list[j]] = true;
    }
    for (size_t i = 0; i < g->node_count; i++)
        if (live[i])
            g->nodes[kept++] = g->nodes[i];
    g->node_count = kept;
    graph_renumber(g);
    rc = 0;
out:
    free(needed);
    free(live);
    return rc;
}
