/* Every golden case of every operation as a graph of one node and its backward: whatever memory the device keeps its values
 * in, the way of the data is that of real work. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "cmd/verify/golden_model.h"
#include "cmd/verify/op_case.h"
#include "ref/graph/run.h"

/* Inputs that models give as weights; bit i for in[i]. The others are written before each run. */
static const unsigned weight_inputs[OP_COUNT] = {
    [OP_linear] = 0x36, [OP_conv2d] = 0x6, [OP_group_norm] = 0x6, [OP_layer_norm] = 0x6, [OP_embedding] = 0x6, [OP_lora] = 0xc,
};

struct one_op {
    struct graph *g;
    struct run *run;
    int in[OP_MAX_IN], out, dout, din[OP_MAX_IN];
};

static int add_input(struct one_op *w, const struct op_case *c, int i)
{
    char name[16];

    snprintf(name, sizeof name, "in%d", i);
    if (!(weight_inputs[c->op] >> i & 1))
        return graph_input(w->g, name, c->in[i].dtype, &c->in[i].shape);
    return (c->wants[i] ? graph_param : graph_weight)(w->g, name, &c->in[i]);
}

/* What graph_differentiate() appends for a node, with the output's gradient as an input. */
static void add_backward(struct one_op *w, const struct op_case *c)
{
    struct graph_node back = w->g->nodes[w->g->node_count - 1];

    back.backward = true;
    back.dout[0] = w->dout = graph_input(w->g, "dout0", c->dout.dtype, &c->dout.shape);
    for (int i = 0; i < OP_MAX_IN; i++) {
        if (!c->wants[i])
            continue;
        back.din[i] = w->din[i] = graph_new_value(w->g, VALUE_GRAD, "din", DT_F32, &c->in[i].shape);
        back.reads_in |= c->row->needs_in[i];
        back.reads_out |= c->row->needs_out[i];
        graph_keep(w->g, w->din[i]);
    }
    graph_append(w->g, &back);
}

static int build(struct one_op *w, const struct op_case *c, const struct ops *ops, struct err *err)
{
    w->g = graph_new(err);
    if (!w->g)
        return -1;
    for (int i = 0; i < OP_MAX_IN; i++)
        w->in[i] = c->has_in[i] ? add_input(w, c, i) : GRAPH_NONE;
    w->out = graph_add_node(w->g, c->op, &c->attr, w->in, c->name);
    if (graph_check(w->g, err))
        return -1;
    graph_keep(w->g, w->out);
    if (c->has_back)
        add_backward(w, c);
    if (graph_check(w->g, err) || run_new(&w->run, w->g, ops, err))
        return -1;
    for (int i = 0; i < OP_MAX_IN; i++)
        if (c->has_in[i] && !(weight_inputs[c->op] >> i & 1) && run_write(w->run, w->in[i], c->in[i].data, err))
            return -1;
    return c->has_back ? run_write(w->run, w->dout, c->dout.data, err) : 0;
}

static float *read_value(struct one_op *w, int value, struct arena *a, size_t *n, struct err *err)
{
    struct shape s = graph_shape(w->g, value);
    float *x;

    shape_numel(&s, n);
    x = arena_alloc(a, (*n + 1) * sizeof *x, err);
    return x && run_read(w->run, value, x, err) == 0 ? x : NULL;
}

/* The gradient's product with a direction, against the slope of the forward along it. Errors of the gradient's elements have
 * independent signs: they add as squares, and limit bounds each of them. */
static int compare_slope(struct verify *v, const struct op_case *c, struct verify_file *f, int i, const float *din, size_t n,
                         double limit, struct err *err)
{
    struct verify_row row = {.group = "ops", .dtype = DT_F32, .shape = c->in[i].shape};
    char name[200], what[64];
    float *along = arena_alloc(&f->arena, (n + 1) * sizeof *along, err);
    double sum = 0, squares = 0;

    if (!along)
        return -1;
    snprintf(name, sizeof name, "%s.in%d", c->name, i);
    snprintf(what, sizeof what, "%s finite differences", c->row->name);
    golden_model_fill(along, name, &c->in[i].shape, n);
    for (size_t j = 0; j < n; j++) {
        sum += (double)din[j] * (double)along[j];
        squares += (double)along[j] * (double)along[j];
    }
    row.what = what;
    row.name = name;
    row.worst = fabs(sum - c->slope[i]);
    row.limit = limit * sqrt(squares) + 1e-7 * fabs(c->slope[i]); /* what the difference itself is off by */
    verify_row_add(v, &row);
    return 0;
}

static int compare(struct verify *v, struct one_op *w, const struct op_case *c, struct verify_file *f, struct err *err)
{
    size_t n;
    float *x = read_value(w, w->out, &f->arena, &n, err);

    if (!x || op_case_compare(v, c, f, "out0", c->n, x, n, NULL, err))
        return -1;
    for (int i = 0; i < OP_MAX_IN; i++) {
        char part[16];
        double limit;

        if (!c->wants[i])
            continue;
        snprintf(part, sizeof part, "din%d", i);
        x = read_value(w, w->din[i], &f->arena, &n, err);
        if (!x || op_case_compare(v, c, f, part, c->n + c->back[i], x, n, &limit, err) ||
            compare_slope(v, c, f, i, x, n, limit, err))
            return -1;
    }
    return 0;
}

static int run_case(struct verify *v, struct verify_file *f, const json_t *j, bool *seen, struct err *err)
{
    struct one_op w = {0};
    struct op_case c;
    int rc = -1;

    if (op_case_open(&c, f, j, err))
        return -1;
    seen[c.op] = true;
    if (build(&w, &c, v->ops, err) == 0 && run_graph(w.run, NULL, err) == 0)
        rc = compare(v, &w, &c, f, err);
    run_free(w.run);
    graph_free(w.g);
    return rc ? err_prefix(err, "golden case '%s': ", c.name) : 0;
}

int verify_ops(struct verify *v, struct err *err)
{
    bool seen[OP_COUNT] = {false};
    struct verify_file f;
    json_t *cases = NULL, *j;
    int rc = -1;
    size_t i;

    if (verify_file_open(&f, v, "ops.safetensors", err) || !(cases = verify_json(&f, "cases", err)))
        goto out;
    json_array_foreach(cases, i, j)
        if (run_case(v, &f, j, seen, err))
            goto out;
    rc = 0;
    for (int op = 0; op < OP_COUNT && rc == 0; op++)
        if (!seen[op])
            rc = err_set(err, "golden file '%s' has no case for operation '%s'; take the file of this version", f.file->path,
                         op_table[op]->name);
out:
    json_decref(cases);
    verify_file_close(&f);
    return rc;
}
