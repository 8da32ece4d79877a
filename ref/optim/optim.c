#include "ref/optim/optim.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "ref/base/mem.h"
#include "ref/base/thread.h"
#include "ref/optim/optim_args.h"

static bool has_8bit(const struct optim_kind *k, size_t n)
{
    return k->narrow && n >= OPTIM_8BIT_LEAST;
}

bool optim_matrix(const struct optim_tensor *t, size_t *stack, size_t *rows, size_t *columns)
{
    int d = t->shape.ndim;

    if (d < 2)
        return false;
    *stack = 1;
    for (int i = 0; i < d - 2; i++)
        *stack *= t->shape.dim[i];
    *rows = t->shape.dim[d - 2];
    *columns = t->shape.dim[d - 1];
    return true;
}

/* What the arrays of one optimizer are long. */
struct layout {
    size_t wide, narrow, rows, columns, vectors, spans; /* elements, or spans */
};

static bool add_blocks(size_t *total, size_t n)
{
    return mem_add(n, OPTIM_BLOCK - 1, &n) && mem_add(*total, n / OPTIM_BLOCK * OPTIM_BLOCK, total);
}

/* Adds tensor t to the layout; place and matrix [2] get where it begins. */
static int add_tensor(const struct optim_kind *k, const struct optim_tensor *t, struct layout *l, size_t *n, size_t *place,
                      size_t matrix[2], struct err *err)
{
    size_t stack, rows, columns;

    if (!shape_numel(&t->shape, n) || *n == 0)
        return err_set(err, "a tensor to be trained has no elements, or too many");
    *place = has_8bit(k, *n) ? l->narrow : l->wide;
    if (!add_blocks(has_8bit(k, *n) ? &l->narrow : &l->wide, *n))
        return err_set(err, "a tensor to be trained has too many elements");
    matrix[0] = l->rows;
    matrix[1] = l->columns;
    if (optim_matrix(t, &stack, &rows, &columns)) {
        l->rows += stack * rows;
        l->columns += stack * columns;
    } else {
        matrix[0] = l->vectors;
        l->vectors += *n;
    }
    l->spans += (*n + OPTIM_SPAN - 1) / OPTIM_SPAN;
    return 0;
}

static size_t array_count(const struct optim_array *a, const struct layout *l)
{
    switch (a->type) {
    case ARRAY_EACH:
    case ARRAY_START:
        return l->wide;
    case ARRAY_CODES:
        return l->narrow;
    case ARRAY_SCALES:
        return l->narrow / OPTIM_BLOCK;
    case ARRAY_ROWS:
        return l->rows;
    case ARRAY_COLUMNS:
        return l->columns;
    case ARRAY_VECTORS:
        return l->vectors;
    }
    return 0;
}

static bool is_needed(const struct optim_array *a, const struct optim_values *v)
{
    double x = *(const double *)(const void *)((const char *)v + a->needs);

    return a->needs == 0 || (x != 0 && !isnan(x));
}

static int add_state(struct optim *o, const char *name, enum dtype dtype, size_t count, struct err *err)
{
    void *data = mem_zero(count, dtype_size(dtype), "the optimizer's state", err);

    if (!data)
        return -1;
    o->state[o->state_count++] = (struct optim_state){name, dtype, count, data};
    return 0;
}

static int add_arrays(struct optim *o, const struct layout *l, struct err *err)
{
    const struct optim_array *list = o->kind->arrays;

    if (add_state(o, "step", DT_I64, 1, err))
        return -1;
    o->steps = o->state[0].data;
    if (o->kind->adapts) {
        if (add_state(o, "adaptation", DT_F64, OPTIM_NUMBERS, err))
            return -1;
        o->numbers = o->state[1].data;
        o->numbers[0] = o->v.d0;
    }
    for (size_t i = 0; list[i].name; i++) {
        if (!is_needed(&list[i], &o->v))
            continue;
        if (add_state(o, list[i].name, list[i].type == ARRAY_CODES ? DT_U8 : DT_F32, array_count(&list[i], l), err))
            return -1;
        o->array[i] = o->state[o->state_count - 1].data;
        o->array_bytes[i] = array_count(&list[i], l) * dtype_size(o->state[o->state_count - 1].dtype);
        for (size_t t = 0; t < o->count && list[i].type == ARRAY_START; t++)
            memcpy((float *)o->array[i] + o->place[t], o->tensors[t].param, o->n[t] * sizeof(float));
    }
    return 0;
}

static void add_spans(struct optim *o)
{
    struct optim_span *s = o->spans;

    for (size_t t = 0; t < o->count; t++)
        for (size_t at = 0; at < o->n[t]; at += OPTIM_SPAN)
            *s++ = (struct optim_span){t, at, o->n[t] - at < OPTIM_SPAN ? o->n[t] - at : OPTIM_SPAN};
}

static int fill(struct optim *o, const struct optim_tensor *tensors, struct err *err)
{
    struct layout l = {0};

    o->tensors = mem_zero(o->count, sizeof *o->tensors, "the optimizer's tensors", err);
    o->n = o->tensors ? mem_zero(o->count, 4 * sizeof *o->n, "the optimizer's tensors", err) : NULL;
    if (!o->n)
        return -1;
    o->place = o->n + o->count;
    o->matrix = o->place + o->count;
    for (size_t t = 0; t < o->count; t++) {
        size_t matrix[2] = {0};

        o->tensors[t] = tensors[t];
        if (tensors[t].group >= o->options.groups)
            return err_set(err, "tensor %zu is in group %zu of %zu", t, tensors[t].group, o->options.groups);
        if (add_tensor(o->kind, &tensors[t], &l, &o->n[t], &o->place[t], matrix, err))
            return -1;
        o->matrix[t] = matrix[0];
        o->matrix[o->count + t] = matrix[1];
    }
    o->wide = l.wide;
    o->narrow = l.narrow;
    o->span_count = l.spans;
    o->spans = mem_zero(l.spans, sizeof *o->spans, "the optimizer's pieces", err);
    o->sums = o->spans ? mem_zero(2 * l.spans, sizeof *o->sums, "the optimizer's sums", err) : NULL;
    if (!o->sums)
        return -1;
    add_spans(o);
    if (o->kind->narrow) {
        o->map = mem_new(2 * sizeof *o->map, "8-bit maps", err);
        if (!o->map)
            return -1;
        quant8_init(&o->map[0], true);
        quant8_init(&o->map[1], false);
    }
    return add_arrays(o, &l, err);
}

int optim_new(struct optim **out, const char *name, const char *const *args, size_t n_args, const struct optim_options *options,
              const struct optim_tensor *tensors, size_t count, struct err *err)
{
    const struct optim_kind *kind = optim_find(name, err);
    struct optim_values v;
    struct optim *o;

    *out = NULL;
    if (!kind || optim_parse(kind, args, n_args, &v, err))
        return -1;
    o = mem_zero(1, sizeof *o, "an optimizer", err);
    if (!o)
        return -1;
    o->kind = kind;
    o->v = v;
    o->options = *options;
    o->count = count;
    optim_print_args(kind, &v, o->args_text, sizeof o->args_text);
    if (fill(o, tensors, err)) {
        optim_free(o);
        return -1;
    }
    *out = o;
    return 0;
}

void optim_free(struct optim *o)
{
    if (!o)
        return;
    optim_device_free(o);
    for (size_t i = 0; i < o->state_count; i++)
        free(o->state[i].data);
    free(o->map);
    free(o->sums);
    free(o->spans);
    free(o->n);
    free(o->tensors);
    free(o);
}

int optim_bytes(const char *name, const char *const *args, size_t n_args, const struct optim_tensor *tensors, size_t count,
                size_t *bytes, struct err *err)
{
    const struct optim_kind *kind = optim_find(name, err);
    struct optim_values v;
    struct layout l = {0};

    if (!kind || optim_parse(kind, args, n_args, &v, err))
        return -1;
    for (size_t t = 0; t < count; t++) {
        size_t n, place, matrix[2] = {0};

        if (add_tensor(kind, &tensors[t], &l, &n, &place, matrix, err))
            return -1;
    }
    *bytes = sizeof(int64_t) + (kind->adapts ? OPTIM_NUMBERS * sizeof(double) : 0);
    for (const struct optim_array *a = kind->arrays; a->name; a++)
        if (is_needed(a, &v))
            *bytes += array_count(a, &l) * (a->type == ARRAY_CODES ? 1 : sizeof(float));
    return 0;
}

const char *optim_name(const struct optim *o)
{
    return o->kind->name;
}

const char *optim_args(const struct optim *o)
{
    return o->args_text;
}

size_t optim_steps(const struct optim *o)
{
    return (size_t)*o->steps;
}

double optim_factor(const struct optim *o)
{
    return o->kind->adapts ? o->numbers[0] : 1;
}

bool optim_finds_rate(const struct optim *o)
{
    return o->kind->adapts || o->v.relative_step;
}

size_t optim_state(const struct optim *o, const struct optim_state **rows)
{
    *rows = o->state;
    return o->state_count;
}

bool optim_is_8bit(const struct optim *o, size_t t)
{
    return has_8bit(o->kind, o->n[t]);
}

size_t optim_place(const struct optim *o, size_t t)
{
    return o->place[t];
}

/* ---- what a step is made of ---- */

struct span_job {
    struct optim *o;
    const struct optim_call *c;
    optim_span_fn *fn;
    const void *numbers;
};

static int run_span(void *ctx, size_t i, struct err *err)
{
    struct span_job *j = ctx;

    (void)err;
    j->fn(j->o, j->c, &j->o->spans[i], j->numbers);
    return 0;
}

void optim_spans(struct optim *o, const struct optim_call *c, optim_span_fn *fn, const void *numbers)
{
    struct span_job job = {o, c, fn, numbers};
    struct err none = {0};

    thread_for(o->span_count, run_span, &job, &none); /* run_span cannot fail */
}

double optim_sum(const struct optim *o, int which)
{
    double sum = 0;

    for (size_t i = 0; i < o->span_count; i++)
        sum += o->sums[(size_t)which * o->span_count + i];
    return sum;
}

double optim_squares(const float *x, size_t n)
{
    double part[8] = {0}, sum = 0;
    size_t i = 0;

    for (; i + 8 <= n; i += 8)
        for (size_t k = 0; k < 8; k++)
            part[k] += (double)x[i + k] * (double)x[i + k];
    for (; i < n; i++)
        sum += (double)x[i] * (double)x[i];
    for (size_t k = 0; k < 8; k++)
        sum += part[k];
    return sum;
}

void optim_round(const struct optim *o, float *x, size_t n)
{
    for (size_t i = 0; o->options.round_to_f16 && i < n; i++)
        x[i] = dtype_f16_to_f32(dtype_f32_to_f16(x[i]));
}

int optim_one_rate(const struct optim *o, const double *lr, double *out, struct err *err)
{
    *out = 0;
    for (size_t g = 0; g < o->options.groups; g++)
        *out = fmax(*out, lr[g]);
    for (size_t g = 0; g < o->options.groups; g++)
        if (lr[g] != *out && lr[g] != 0)
            return err_usage(err, "%s finds one step size for all parts, and was given the rates %g and %g; give --unet_lr and "
                                  "--text_encoder_lr the same value, or 0 for what is not to be trained", o->kind->name, *out, lr[g]);
    return 0;
}

static void sum_squares(struct optim *o, const struct optim_call *c, const struct optim_span *s, const void *numbers)
{
    (void)numbers;
    o->sums[s - o->spans] = optim_squares(c->grads[s->tensor] + s->at, s->n);
}

int optim_norm(struct optim *o, const float *const *grads, double *norm, struct err *err)
{
    const struct optim_call c = {.grads = grads};

    if (o->device)
        return optim_device_norm(o, norm, err);
    optim_spans(o, &c, sum_squares, NULL);
    *norm = sqrt(optim_sum(o, 0));
    return 0;
}

double optim_clip(double norm, double max_norm)
{
    return max_norm > 0 ? fmin(max_norm / (norm + 1e-6), 1) : 1;
}

int optim_step(struct optim *o, const float *const *grads, double scale, const double *lr, struct err *err)
{
    const struct optim_call c = {.grads = grads, .scale = (float)scale, .lr = lr};

    ++*o->steps;
    if ((o->device ? optim_device_step : o->kind->step)(o, &c, err) == 0)
        return 0;
    --*o->steps;
    return -1;
}
