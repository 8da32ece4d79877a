/* Adafactor: Shazeer and Stern, Adaptive Learning Rates with Sublinear Memory Cost, 2018; arithmetic of transformers.Adafactor.
 * A matrix's mean squares are kept as those of its rows and of its columns. */
#include <math.h>

#include "ref/base/thread.h"
#include "ref/optim/optim_kind.h"

enum { ROWS, COLUMNS, VECTORS, MEAN, CHUNK = 256 };

struct factor_numbers {
    float scale, keep, fresh, eps, shrink, rate, decay, beta1;
};

static float square(const struct factor_numbers *a, float g)
{
    float x = g * a->scale;

    return x * x + a->eps;
}

/* Moves the mean squares of one matrix's rows and columns towards those of g [rows, columns]. */
static void follow(float *row, float *column, const float *g, size_t rows, size_t columns, const struct factor_numbers *a)
{
    for (size_t r = 0; r < rows; r++) {
        double sum = 0;

        for (size_t k = 0; k < columns; k++)
            sum += (double)square(a, g[r * columns + k]);
        row[r] = row[r] * a->keep + (float)(sum / (double)columns) * a->fresh;
    }
    for (size_t from = 0; from < columns; from += CHUNK) {
        size_t n = columns - from < CHUNK ? columns - from : CHUNK;
        double sum[CHUNK] = {0};

        for (size_t r = 0; r < rows; r++)
            for (size_t k = 0; k < n; k++)
                sum[k] += (double)square(a, g[r * columns + from + k]);
        for (size_t k = 0; k < n; k++)
            column[from + k] = column[from + k] * a->keep + (float)(sum[k] / (double)rows) * a->fresh;
    }
}

static float row_mean(const float *row, size_t rows)
{
    double sum = 0;

    for (size_t r = 0; r < rows; r++)
        sum += (double)row[r];
    return (float)(sum / (double)rows);
}

/* Where a tensor's state is. A vector is one row without a row factor. */
struct factor_state {
    float *row, *column; /* mean squares; row NULL for a vector, whose elements' own are in column */
    size_t stack, rows, columns;
};

static struct factor_state locate(const struct optim *o, size_t t)
{
    struct factor_state s = {.stack = 1, .rows = 1, .columns = o->n[t]};

    if (optim_matrix(&o->tensors[t], &s.stack, &s.rows, &s.columns)) {
        s.row = (float *)o->array[ROWS] + o->matrix[t];
        s.column = (float *)o->array[COLUMNS] + o->matrix[o->count + t];
    } else
        s.column = (float *)o->array[VECTORS] + o->matrix[t];
    return s;
}

/* out [n] = the direction of a step: g over the root of its estimated mean square; a part of one row, from column `from` on. */
static void direction(float *out, const struct factor_state *s, const float *g, size_t row, size_t from, size_t n, float mean,
                      float scale)
{
    float factor = s->row ? 1 / sqrtf(s->row[row] / mean) : 1;
    const float *column = s->column + row / s->rows * s->columns;

    for (size_t k = from; k < from + n; k++)
        out[k - from] = g[row * s->columns + k] * scale * (factor * (1 / sqrtf(column[k])));
}

/* p [n] moved along `out`, by way of the running mean m where there is one. */
static void move(float *p, float *m, const float *out, size_t n, const struct factor_numbers *a)
{
    for (size_t k = 0; k < n; k++) {
        float x = out[k] / a->shrink * a->rate;

        if (m)
            x = m[k] = m[k] * a->beta1 + x * (1 - a->beta1);
        p[k] = p[k] * a->decay - x;
    }
}

/* Goes over the tensor's directions: p NULL: returns the sum of their squares; else moves p. */
static double sweep(const struct factor_state *s, const float *g, float *p, float *m, const struct factor_numbers *a)
{
    float out[CHUNK];
    double sum = 0;

    for (size_t row = 0; row < s->stack * s->rows; row++) {
        float mean = s->row ? row_mean(s->row + row / s->rows * s->rows, s->rows) : 1;

        for (size_t from = 0; from < s->columns; from += CHUNK) {
            size_t n = s->columns - from < CHUNK ? s->columns - from : CHUNK, at = row * s->columns + from;

            direction(out, s, g, row, from, n, mean, a->scale);
            if (p)
                move(p + at, m ? m + at : NULL, out, n, a);
            else
                sum += optim_squares(out, n);
        }
    }
    return sum;
}

struct factor_job {
    struct optim *o;
    const struct optim_call *c;
    double keep; /* of the old mean squares */
};

/* The rate of a tensor: its own, or one that falls with the steps; times the size of what it moves. */
static double tensor_rate(const struct optim *o, const struct optim_call *c, size_t t)
{
    double rate = c->lr[o->tensors[t].group], steps = (double)*o->steps,
           size = sqrt(optim_squares(o->tensors[t].param, o->n[t]) / (double)o->n[t]);

    if (o->v.relative_step)
        rate = fmin(o->v.warmup_init ? 1e-6 * steps : 1e-2, 1 / sqrt(steps));
    return o->v.scale_parameter ? fmax(o->v.eps_pair[1], size) * rate : rate;
}

/* One tensor's step, in one thread: its sums are in one order. */
static int tensor_step(void *ctx, size_t t, struct err *err)
{
    struct factor_job *job = ctx;
    struct optim *o = job->o;
    struct factor_state s = locate(o, t);
    const float *g = job->c->grads[t];
    double rate = tensor_rate(o, job->c, t);
    struct factor_numbers a = {
        .scale = job->c->scale,
        .keep = (float)job->keep,
        .fresh = (float)(1 - job->keep),
        .eps = (float)o->v.eps_pair[0],
        .rate = (float)rate,
        .decay = (float)(1 - o->v.weight_decay * rate),
        .beta1 = (float)o->v.beta1,
    };

    (void)err;
    for (size_t i = 0; s.row && i < s.stack; i++)
        follow(s.row + i * s.rows, s.column + i * s.columns, g + i * s.rows * s.columns, s.rows, s.columns, &a);
    for (size_t k = 0; !s.row && k < s.columns; k++)
        s.column[k] = s.column[k] * a.keep + square(&a, g[k]) * a.fresh;
    a.shrink = (float)fmax(sqrt(sweep(&s, g, NULL, NULL, &a) / (double)o->n[t]) / o->v.clip_threshold, 1);
    sweep(&s, g, o->tensors[t].param, o->array[MEAN] ? (float *)o->array[MEAN] + o->place[t] : NULL, &a);
    optim_round(o, o->tensors[t].param, o->n[t]);
    return 0;
}

static int step(struct optim *o, const struct optim_call *c, struct err *err)
{
    struct factor_job job = {o, c, 1 - pow((double)*o->steps, o->v.decay_rate)};

    return thread_for(o->count, tensor_step, &job, err);
}

static int check(const struct optim_values *v, struct err *err)
{
    if (v->warmup_init && !v->relative_step)
        return err_usage(err, "Adafactor with 'warmup_init=True' sets its own rate; leave 'relative_step=False' out");
    return 0;
}

static const struct optim_arg args[] = {
    OPTIM_ARG(eps_pair, ARG_PAIR, .spelling = "eps", .def = "1e-30,0.001", .max = 1),
    OPTIM_ARG(clip_threshold, ARG_NUMBER, .def = "1", .max = HUGE_VAL, .above_min = true),
    OPTIM_ARG(decay_rate, ARG_NUMBER, .def = "-0.8", .min = -HUGE_VAL, .max = 0),
    OPTIM_ARG(beta1, ARG_OPTIONAL, .def = "None", .max = 1, .below_max = true),
    OPTIM_ARG_DECAY("0"),
    OPTIM_ARG_FLAG(scale_parameter, "True"),
    OPTIM_ARG_FLAG(relative_step, "True"),
    OPTIM_ARG_FLAG(warmup_init, "False"),
    {0},
};

static const struct optim_array arrays[] = {
    [ROWS] = {"exp_avg_sq_row", ARRAY_ROWS},
    [COLUMNS] = {"exp_avg_sq_col", ARRAY_COLUMNS},
    [VECTORS] = {"exp_avg_sq", ARRAY_VECTORS},
    [MEAN] = {"exp_avg", ARRAY_EACH, offsetof(struct optim_values, beta1)},
    {0},
};

const struct optim_kind optim_adafactor = {
    .name = "Adafactor",
    .help = "almost no state; sets its own rate unless relative_step=False",
    .args = args,
    .arrays = arrays,
    .check = check,
    .step = step,
};
