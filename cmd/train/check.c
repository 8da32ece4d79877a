#include "cmd/train/check.h"

#include <math.h>
#include <stdlib.h>

#include "cmd/memory.h"
#include "cmd/verify/rounding.h"
#include "cmd/verify/verdict.h"
#include "ref/base/thread.h"

/* The same step in four ways: as it should be, on the device, with f32's rounding disturbed, and rounded as the device does. */
enum { PLAIN, DEVICE, NOISY, ROUNDED, SIDES };
static const enum dtype sample_types[] = {DT_F32, DT_BF16, DT_F16}; /* in the order of a limit's samples */

static const char gradients[] = "gradient"; /* what a row is of */

struct side {
    struct ops ops;
    struct train_graph g;
    float *grads; /* [net->size] */
};

struct check {
    struct trainer *t;
    const struct verify_arithmetic *arithmetic;
    struct side side[SIDES];
    size_t sides;
    float *x[SIDES]; /* [room] a value of each side */
    size_t room;
    struct verify v;
    struct verdict *verdict;
    struct err first; /* the first comparison beyond its limit */
};

/* ---- Graphs ---- */

/* What graph_find() finds, the last value of each name, stays to be read. */
static void keep_layers(struct graph *g)
{
    for (size_t i = 0; i < g->node_count; i++) {
        int value = g->nodes[i].out[0];

        if (!g->nodes[i].backward && graph_find(g, g->values[value].name) == value)
            graph_keep(g, value);
    }
}

static int build(struct check *c, size_t which, const struct train_shape *shape, struct err *err)
{
    struct side *s = &c->side[which];
    struct train_setup setup = c->t->setup;

    ops_ref(&s->ops);
    if (which == NOISY || which == ROUNDED)
        rounding_ops(&s->ops, which == NOISY ? DT_F32 : sample_types[c->arithmetic->sample]);
    if (which == DEVICE)
        s->ops = c->t->device.ops;
    else
        setup.checkpoint = false;
    setup.ops = &s->ops;
    if (train_graph_build(&s->g, &setup, shape, TRAIN_STEP, err))
        return -1;
    keep_layers(s->g.g);
    s->grads = mem_zero(c->t->net->size, sizeof *s->grads, "gradients", err);
    return s->grads ? 0 : -1;
}

/* All sides at once, and the weights that the device alone would not need here. */
static int check_memory(struct check *c, struct err *err)
{
    struct memory_need need = {0};

    weights_bytes(c->t->w, &need.bytes, &need.mapped);
    for (size_t i = 0; i < c->sides; i++) {
        struct plan *plan = NULL;

        if (i == DEVICE && c->side[i].ops.device)
            continue;
        if (plan_new(&plan, c->side[i].g.g, &c->side[i].ops, thread_count(), err))
            return -1;
        need.bytes += plan->arena;
        plan_free(plan);
    }
    return memory_check(c->t->run, &need, "use a smaller --resolution or --train_batch_size for the check", err);
}

static void close_graphs(struct check *c)
{
    for (size_t i = 0; i < c->sides; i++) {
        train_graph_free(&c->side[i].g);
        free(c->side[i].grads);
        c->side[i].grads = NULL;
        free(c->x[i]);
        c->x[i] = NULL;
    }
}

static int open_graphs(struct check *c, const struct train_shape *shape, struct err *err)
{
    train_drop_graphs(c->t);
    close_graphs(c);
    for (size_t i = 0; i < c->sides; i++)
        if (build(c, i, shape, err))
            return -1;
    if (check_memory(c, err))
        return -1;
    c->room = c->t->net->size;
    for (size_t i = 0; i < c->side[PLAIN].g.g->value_count; i++) {
        size_t n = 0;

        if (c->side[PLAIN].g.g->values[i].keep && shape_numel(&c->side[PLAIN].g.g->values[i].shape, &n) && n > c->room)
            c->room = n;
    }
    for (size_t i = 0; i < c->sides; i++) {
        c->x[i] = mem_new(c->room * sizeof(float), "a layer's output", err);
        if (!c->x[i] || run_new(&c->side[i].g.run, c->side[i].g.g, &c->side[i].ops, err))
            return -1;
    }
    return weights_load(c->t->w, err);
}

/* ---- Comparing ---- */

static double largest(const float *x, size_t n)
{
    double size = 0;

    for (size_t i = 0; i < n; i++)
        size = fmax(size, fabs((double)x[i]));
    return size;
}

/* What limits are shares of. A gradient may be 0 because terms cancel (attention over one token): then it is off by roundings of
 * those, which are of the size of other gradients. */
static double size_of(const struct check *c, bool gradient, size_t n)
{
    double size = largest(c->x[PLAIN], n), all = gradient ? largest(c->side[PLAIN].grads, c->t->net->size) : 0;

    return size < 1e-6 * all ? all : size;
}

/* c->x[] [n] of all sides: a row. */
static int compare(struct check *c, const char *what, const char *name, enum op_id op, const struct shape *shape, size_t n,
                   struct err *err)
{
    double sample[3] = {verify_max_diff(c->x[NOISY], c->x[PLAIN], n), 0, 0};
    struct verify_row row = {.group = "check", .what = what, .name = name, .dtype = DT_F32, .shape = *shape,
                             .worst = verify_max_diff(c->x[DEVICE], c->x[PLAIN], n)};
    json_t *samples;

    if (c->arithmetic->sample)
        sample[c->arithmetic->sample] = verify_max_diff(c->x[ROUNDED], c->x[PLAIN], n);
    samples = json_pack("[f, f, f]", sample[0], sample[1], sample[2]);
    if (!samples)
        return err_memory(err, 1, "a limit");
    row.limit = verify_limit_layer(c->arithmetic, samples, size_of(c, what == gradients, n));
    json_decref(samples);
    if (!verify_row_add(&c->v, &row) && c->first.kind == ERR_NONE)
        err_set(&c->first, "step %zu: %s of layer '%s' (%s): off by %.3g, limit %.3g", c->t->now.step + 1,
                what, name, op_table[op]->name, row.worst, row.limit);
    return 0;
}

static int compare_layer(struct check *c, const struct graph_node *node, struct err *err)
{
    const char *name = c->side[PLAIN].g.g->values[node->out[0]].name;
    struct shape shape = graph_shape(c->side[PLAIN].g.g, node->out[0]);
    size_t n = 0;

    shape_numel(&shape, &n);
    for (size_t i = 0; i < c->sides; i++) {
        int value = graph_find(c->side[i].g.g, name);

        if (value == GRAPH_NONE) /* one way has a layer of more or fewer, as a LoRA that is folded in */
            return 0;
        if (run_read(c->side[i].g.run, value, c->x[i], err))
            return -1;
    }
    return compare(c, "output", name, node->op, &shape, n, err);
}

/* The factor whose gradient a backward node writes, if any. */
static int compare_gradient(struct check *c, const struct graph_node *node, int value, struct err *err)
{
    const struct network *net = c->t->net;

    for (size_t m = 0; value != GRAPH_NONE && m < 2 * net->count; m++) {
        const struct network_module *module = &net->module[m / 2];
        const struct tensor *factor = m % 2 ? &module->up : &module->down;
        size_t at = (size_t)((m % 2 ? module->dup : module->ddown) - net->grads), n = 0;
        char name[400];

        if ((m % 2 ? c->side[PLAIN].g.dup : c->side[PLAIN].g.ddown)[m / 2] != value)
            continue;
        shape_numel(&factor->shape, &n);
        for (size_t i = 0; i < c->sides; i++)
            for (size_t k = 0; k < n; k++)
                c->x[i][k] = c->side[i].grads[at + k];
        snprintf(name, sizeof name, "%s.%s", module->spec.path, m % 2 ? "lora_up" : "lora_down");
        return compare(c, gradients, name, node->op, &factor->shape, n, err);
    }
    return 0;
}

static int compare_all(struct check *c, struct err *err)
{
    const struct graph *g = c->side[PLAIN].g.g;

    for (size_t i = 0; i < g->node_count; i++) {
        const struct graph_node *node = &g->nodes[i];

        if (!node->backward) {
            if (g->values[node->out[0]].keep && compare_layer(c, node, err))
                return -1;
            continue;
        }
        for (int k = 0; k < OP_MAX_IN; k++)
            if (compare_gradient(c, node, node->din[k], err))
                return -1;
    }
    return 0;
}

/* ---- Steps ---- */

static int run_side(struct check *c, size_t which, const struct dataset_batch *b, struct err *err)
{
    struct side *s = &c->side[which];
    struct trainer *t = c->t;
    float *own = t->net->grads;

    if (which == NOISY || which == ROUNDED)
        rounding_ops(&s->ops, which == NOISY ? DT_F32 : sample_types[c->arithmetic->sample]);
    if (train_write_batch(t, &s->g, b, 0, t->now.loss_scale, err) || run_graph(s->g.run, NULL, err) ||
        train_graph_gradients(&s->g, t->net, true, t->scratch, err))
        return -1;
    for (size_t i = 0; i < t->net->size; i++)
        s->grads[i] = own[i];
    return 0;
}

static bool same_shape(const struct train_shape *a, const struct train_shape *b)
{
    return a->n == b->n && a->h == b->h && a->w == b->w && a->chunks == b->chunks;
}

static int step(struct check *c, struct dataset_prefetch *data, struct err *err)
{
    struct trainer *t = c->t;
    const struct dataset_batch *b;
    struct train_shape shape;
    double norm;

    if (dataset_prefetch_next(data, &b, err))
        return -1;
    shape = (struct train_shape){b->n, b->height / t->factor, b->width / t->factor, t->chunks};
    if ((!c->x[0] || !same_shape(&shape, &c->side[PLAIN].g.shape)) && open_graphs(c, &shape, err))
        return -1;
    for (size_t i = c->sides; i-- > 0;) /* the plain one last: its gradients are the network's */
        if (run_side(c, i, b, err))
            return -1;
    if (compare_all(c, err))
        return -1;
    if (optim_norm(t->optim, t->grads, &norm, err) || train_update(t, norm / t->now.loss_scale, err))
        return -1;
    t->now.step++;
    if (++t->now.batch == t->batches) {
        t->now.batch = 0;
        t->now.epoch++;
    }
    return 0;
}

static int verdict(struct check *c, struct err *err)
{
    const struct command_run *run = c->t->run;

    if (run->json) {
        json_t *rows = verdict_json(c->verdict);

        if (command_print_json(rows ? json_pack("{s:I, s:I, s:o}", "checks", (json_int_t)c->v.rows, "failed", (json_int_t)c->v.failed,
                                                "rows", rows)
                                    : NULL, err))
            return -1;
    } else if (c->v.failed == 0 && !run->quiet) {
        printf("%zu checks in %zu steps, all within their limits\n", c->v.rows, c->t->now.step);
    }
    if (c->v.failed)
        return err_set(err, "%s; %zu of %zu checks are beyond their limits: use --device cpu, and report it with the table", c->first.msg,
                       c->v.failed, c->v.rows);
    return 0;
}

int train_check(struct trainer *t, size_t steps, struct err *err)
{
    struct check c = {.t = t, .arithmetic = verify_arithmetic_of(t->device.info.arithmetic, t->device.info.tf32)};
    struct dataset_prefetch *data = NULL;
    char text[240];
    int rc = verdict_new(&c.verdict, false, t->run->json || t->run->quiet, err);

    if (t->o->prior_loss_target == PRIOR_MODEL) { /* until the LoRA has changed something its loss is rounding and nothing else */
        command_note(t->run, "regularisation pictures are compared against what they show, not against the model's prediction");
        t->o->prior_loss_target = PRIOR_PICTURE;
    }
    c.sides = c.arithmetic->sample ? SIDES : ROUNDED;
    c.v = (struct verify){.report = verdict_row, .ctx = c.verdict, .arithmetic = c.arithmetic};
    if (rc == 0) {
        snprintf(text, sizeof text, "%s; limits for %s", t->device.info.text, c.arithmetic->name);
        verdict_device(c.verdict, text);
        rc = dataset_prefetch_open(&data, t->data, t->now.epoch, t->now.batch, err);
    }
    for (size_t i = 0; rc == 0 && i < steps && c.v.failed == 0; i++)
        rc = step(&c, data, err);
    if (rc == 0) {
        verdict_flush(c.verdict);
        rc = verdict(&c, err);
    }
    dataset_prefetch_close(data);
    close_graphs(&c);
    verdict_free(c.verdict);
    return rc;
}
