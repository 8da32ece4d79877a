#include "ref/graph/plan.h"

#include <stdlib.h>
#include <string.h>

/* A piece of the arena: one value, several that share by working in place, or a node's scratch. */
struct block {
    size_t first, last; /* nodes during which it is alive */
    size_t bytes, offset;
};

struct rank {
    bool front; /* placed before all others */
    size_t bytes, first, block;
};

struct planner {
    const struct graph *g;
    const struct ops *ops;
    int threads;
    struct block *blocks; /* values in front, then scratch: [value_count + node_count] */
    size_t *home;         /* [value_count]: the value whose block this one lives in */
    struct rank *order;   /* blocks to place, largest first */
    struct plan *plan;
};

static size_t aligned(size_t n)
{
    return (n + MEM_ALIGN - 1) / MEM_ALIGN * MEM_ALIGN;
}

static bool in_arena(const struct graph_value *v)
{
    return v->kind != VALUE_WEIGHT && v->kind != VALUE_PARAM;
}

/* When each value is made and read last. Inputs are there from the start. */
static int lifetimes(struct planner *p, struct err *err)
{
    const struct graph *g = p->g;
    int list[GRAPH_MAX_READS];

    for (size_t i = 0; i < g->value_count; i++) {
        const struct graph_value *v = &g->values[i];
        size_t bytes = 0;

        p->home[i] = i;
        p->blocks[i] = (struct block){.offset = PLAN_NOWHERE};
        if (!in_arena(v) || (v->node == GRAPH_NONE && v->kind != VALUE_INPUT))
            continue;
        if (!shape_nbytes(&v->shape, v->dtype, &bytes) || bytes > PLAN_NOWHERE / 4)
            return err_memory(err, PLAN_NOWHERE, "the activations");
        p->blocks[i].bytes = aligned(bytes ? bytes : 1);
        p->blocks[i].first = v->node == GRAPH_NONE ? 0 : (size_t)v->node;
        p->blocks[i].last = v->keep ? g->node_count : p->blocks[i].first;
    }
    for (size_t i = 0; i < g->node_count; i++)
        for (int j = graph_list_reads(&g->nodes[i], list); j-- > 0;)
            if (p->blocks[list[j]].last < i)
                p->blocks[list[j]].last = i;
    return 0;
}

/* Whether the block that v lives in ends at node i and holds nothing the caller wants to see. Blocks joined before have the
 * later value's end, so the home's lifetime is the truth. */
static bool dies_at(const struct planner *p, int v, size_t i)
{
    return v != GRAPH_NONE && in_arena(&p->g->values[v]) && p->g->values[v].kind != VALUE_INPUT &&
           p->blocks[p->home[v]].last == i && p->blocks[p->home[v]].bytes > 0;
}

static bool join(struct planner *p, int from, int to)
{
    struct block *a = &p->blocks[p->home[from]], *b = &p->blocks[to];

    if (a->bytes != b->bytes)
        return false;
    a->last = b->last;
    p->home[to] = p->home[from];
    b->bytes = 0;
    return true;
}

static bool listed_twice(const struct graph_node *n, int v)
{
    int list[GRAPH_MAX_READS], times = 0;

    for (int j = graph_list_reads(n, list); j-- > 0;)
        times += list[j] == v;
    return times > 1;
}

/* An output takes over the memory of an input that ends here, where the op allows it. */
static void work_in_place(struct planner *p)
{
    for (size_t i = 0; i < p->g->node_count; i++) {
        const struct graph_node *n = &p->g->nodes[i];
        const struct op *op = op_table[n->op];

        if (n->backward) {
            if (op->inplace_backward && n->din[0] != GRAPH_NONE && dies_at(p, n->dout[0], i) && !listed_twice(n, n->dout[0]))
                join(p, n->dout[0], n->din[0]);
            continue;
        }
        for (int j = 0; j < op->max_in; j++)
            if ((op->inplace >> j & 1) && dies_at(p, n->in[j], i) && !listed_twice(n, n->in[j]) && join(p, n->in[j], n->out[0]))
                break;
    }
}

static void add_scratch(struct planner *p)
{
    for (size_t i = 0; i < p->g->node_count; i++) {
        const struct graph_node *n = &p->g->nodes[i];
        struct tensor store[2 * OP_MAX_IN + 2 * OP_MAX_OUT];
        struct op_call c;

        graph_call(p->g, n, &c, store);
        c.arithmetic = p->ops->arithmetic;
        p->blocks[p->g->value_count + i] = (struct block){
            .first = i, .last = i, .bytes = aligned(p->ops->scratch[n->op](&c, n->backward, p->threads)), .offset = PLAN_NOWHERE};
    }
}

static int larger_first(const void *a, const void *b)
{
    const struct rank *x = a, *y = b;

    if (x->front != y->front)
        return x->front ? -1 : 1;
    if (x->front)
        return x->block < y->block ? -1 : 1;
    if (x->bytes != y->bytes)
        return x->bytes < y->bytes ? 1 : -1;
    if (x->first != y->first)
        return x->first < y->first ? -1 : 1;
    return x->block < y->block ? -1 : 1;
}

/* Gradients that are read after the run lie side by side on a device, so that one copy brings them all. */
static bool goes_together(const struct planner *p, size_t block)
{
    const struct graph_value *v = block < p->g->value_count ? &p->g->values[block] : NULL;

    return p->ops->device && v && v->kind == VALUE_GRAD && v->keep;
}

/* The lowest offset where b collides with nobody placed who lives at the same time; placed [count] is sorted by offset. */
static size_t lowest(const struct planner *p, const struct block *b, const size_t *placed, size_t count)
{
    size_t at = 0;

    for (size_t i = 0; i < count; i++) {
        const struct block *o = &p->blocks[placed[i]];

        if (o->last < b->first || o->first > b->last || o->offset + o->bytes <= at)
            continue;
        if (o->offset >= at + b->bytes)
            break; /* a gap that is large enough lies before this one, and all others lie behind it */
        at = o->offset + o->bytes;
    }
    return at;
}

static void place(struct planner *p, size_t count, size_t *placed)
{
    for (size_t i = 0; i < count; i++) {
        struct block *b = &p->blocks[p->order[i].block];
        size_t at = i;

        b->offset = lowest(p, b, placed, i);
        if (b->offset + b->bytes > p->plan->arena)
            p->plan->arena = b->offset + b->bytes;
        for (; at > 0 && p->blocks[placed[at - 1]].offset > b->offset; at--)
            placed[at] = placed[at - 1];
        placed[at] = p->order[i].block;
    }
}

/* The most that is alive at once. */
static int measure(struct planner *p, struct err *err)
{
    size_t n = p->g->node_count + 2, now = 0;
    size_t *born = mem_zero(n, sizeof *born, "a memory plan", err), *dead = mem_zero(n, sizeof *dead, "a memory plan", err);
    int rc = -1;

    if (!born || !dead)
        goto out;
    for (size_t i = 0; i < p->g->value_count + p->g->node_count; i++) {
        born[p->blocks[i].first] += p->blocks[i].bytes;
        dead[p->blocks[i].last + 1] += p->blocks[i].bytes;
    }
    for (size_t i = 0; i + 1 < n; i++) {
        now = now + born[i] - dead[i];
        if (now > p->plan->live) {
            p->plan->live = now;
            p->plan->peak_node = i < p->g->node_count ? i : p->g->node_count - 1;
        }
    }
    rc = 0;
out:
    free(born);
    free(dead);
    return rc;
}

static int make(struct planner *p, size_t *placed, struct err *err)
{
    size_t count = 0, all = p->g->value_count + p->g->node_count;

    if (lifetimes(p, err) < 0)
        return -1;
    work_in_place(p);
    add_scratch(p);
    for (size_t i = 0; i < all; i++)
        if (p->blocks[i].bytes > 0)
            p->order[count++] = (struct rank){goes_together(p, i), p->blocks[i].bytes, p->blocks[i].first, i};
    qsort(p->order, count, sizeof *p->order, larger_first);
    place(p, count, placed);
    for (size_t i = 0; i < p->g->value_count; i++)
        p->plan->offset[i] = p->blocks[p->home[i]].offset;
    for (size_t i = 0; i < p->g->node_count; i++)
        p->plan->scratch[i] = p->blocks[p->g->value_count + i].offset;
    return measure(p, err);
}

int plan_new(struct plan **out, const struct graph *g, const struct ops *ops, int threads, struct err *err)
{
    size_t all = g->value_count + g->node_count, *placed = NULL;
    struct planner p = {.g = g, .ops = ops, .threads = threads};
    int rc = -1;

    if (graph_check(g, err) < 0)
        return -1;
    p.plan = mem_zero(1, sizeof *p.plan, "a memory plan", err);
    p.blocks = mem_zero(all, sizeof *p.blocks, "a memory plan", err);
    p.home = mem_zero(all, sizeof *p.home, "a memory plan", err);
    p.order = mem_zero(all, sizeof *p.order, "a memory plan", err);
    placed = mem_zero(all, sizeof *placed, "a memory plan", err);
    if (!p.plan || !p.blocks || !p.home || !p.order || !placed)
        goto out;
    p.plan->offset = mem_zero(g->value_count, sizeof(size_t), "a memory plan", err);
    p.plan->scratch = mem_zero(g->node_count, sizeof(size_t), "a memory plan", err);
    if (!p.plan->offset || !p.plan->scratch || make(&p, placed, err) < 0)
        goto out;
    *out = p.plan;
    p.plan = NULL;
    rc = 0;
out:
    plan_free(p.plan);
    free(p.blocks);
    free(p.home);
    free(p.order);
    free(placed);
    return rc;
}

void plan_free(struct plan *p)
{
    if (!p)
        return;
    free(p->offset);
    free(p->scratch);
    free(p);
}
