#include "ref/graph/profile.h"

#include <stdlib.h>
#include <string.h>

struct line {
    const char *name;
    bool backward, falls_back;
    double seconds, flops, bytes;
    size_t calls;
};

struct profile {
    const struct graph *g;
    const struct run *run;
    double *seconds; /* [node_count] */
    size_t runs;
};

int profile_new(struct profile **out, const struct graph *g, const struct run *run, struct err *err)
{
    struct profile *p = mem_zero(1, sizeof *p, "a profile", err);

    if (!p)
        return -1;
    p->g = g;
    p->run = run;
    p->seconds = mem_zero(g->node_count, sizeof *p->seconds, "a profile", err);
    if (!p->seconds) {
        free(p);
        return -1;
    }
    *out = p;
    return 0;
}

void profile_free(struct profile *p)
{
    if (!p)
        return;
    free(p->seconds);
    free(p);
}

void profile_after(void *ctx, const struct graph *g, size_t node, double seconds)
{
    struct profile *p = ctx;

    (void)g;
    p->seconds[node] += seconds;
    p->runs += node == 0;
}

static void measure(const struct profile *p, size_t node, struct line *l)
{
    const struct graph_node *n = &p->g->nodes[node];
    struct tensor store[2 * OP_MAX_IN + 2 * OP_MAX_OUT];
    struct op_call c;
    size_t out = 0;

    graph_call(p->g, n, &c, store);
    if (c.out[0])
        shape_numel(&c.out[0]->shape, &out);
    l->seconds += p->seconds[node];
    l->flops += op_table[n->op]->flops ? op_table[n->op]->flops(&c, n->backward) : (double)out;
    l->bytes += op_bytes(&c, n->backward);
    l->calls++;
    l->falls_back |= p->run && run_falls_back(p->run, node);
}

static int slower_first(const void *a, const void *b)
{
    const struct line *x = a, *y = b;

    return x->seconds < y->seconds ? 1 : x->seconds > y->seconds ? -1 : strcmp(x->name, y->name);
}

static void print_lines(struct line *lines, size_t count, size_t most, double total, double runs, double peak, FILE *out)
{
    qsort(lines, count, sizeof *lines, slower_first);
    for (size_t i = 0; i < count && i < most; i++) {
        const struct line *l = &lines[i];
        double s = l->seconds > 0 ? l->seconds / runs : 1e-12;

        fprintf(out, "%9.4f s %5.1f %% %5zu x %8.1f GFLOP/s %7.1f GB/s", s, 100 * l->seconds / total, l->calls,
                l->flops / s * 1e-9, l->bytes / s * 1e-9);
        if (peak > 0)
            fprintf(out, " %5.1f %% of peak", l->flops / s * 1e-7 / peak);
        fprintf(out, "  %s%s%s\n", l->name, l->backward ? " (backward)" : "", l->falls_back ? ", on the processor" : "");
    }
}

/* The line of that name and direction, new if there is none. */
static struct line *line_of(struct line *lines, size_t *count, const char *name, bool backward)
{
    for (size_t i = *count; i-- > 0;)
        if (lines[i].backward == backward && strcmp(lines[i].name, name) == 0)
            return &lines[i];
    lines[*count] = (struct line){.name = name, .backward = backward};
    return &lines[(*count)++];
}

void profile_print(const struct profile *p, FILE *out, double peak_gflops, size_t layers)
{
    size_t ops = 0, paths = 0, n = p->g->node_count;
    struct line by_op[2 * OP_COUNT], *by_layer = calloc(n ? n : 1, sizeof *by_layer), sum = {0};
    double runs = p->runs ? (double)p->runs : 1;

    for (size_t i = 0; i < n; i++) {
        const struct graph_node *node = &p->g->nodes[i];

        measure(p, i, &sum);
        sum.falls_back = false; /* said of single operations and layers */
        measure(p, i, line_of(by_op, &ops, op_table[node->op]->name, node->backward));
        if (by_layer)
            measure(p, i, line_of(by_layer, &paths, node->layer, node->backward));
    }
    sum.name = "all";
    print_lines(&sum, 1, 1, sum.seconds, runs, peak_gflops, out);
    print_lines(by_op, ops, ops, sum.seconds, runs, peak_gflops, out);
    if (by_layer && layers)
        print_lines(by_layer, paths, layers, sum.seconds, runs, peak_gflops, out);
    free(by_layer);
}
