/* Embedding: y [n, t, c] = table [v, c][ids [n, t]] (+ positions [p, c][0 .. t-1]); tables in f32, f16 or bf16 */
#include "ref/op/elementwise.h"

enum { IDS, TABLE, POSITIONS };
enum { CHUNK = 256 };

static void add_row(float *y, const struct tensor *table, size_t row, size_t c, bool first)
{
    const char *src = (const char *)table->data + row * c * dtype_size(table->dtype);
    float part[CHUNK];

    for (size_t j = 0; j < c; j += CHUNK) {
        size_t n = c - j < CHUNK ? c - j : CHUNK;

        dtype_convert(part, DT_F32, src + j * dtype_size(table->dtype), table->dtype, n);
        for (size_t i = 0; i < n; i++)
            y[j + i] = first ? part[i] : y[j + i] + part[i];
    }
}

static int forward(const struct op_call *c, struct err *err)
{
    const struct tensor *table = c->in[TABLE], *positions = c->in[POSITIONS];
    const int32_t *ids = c->in[IDS]->data;
    size_t channels = table->shape.dim[1], t = c->in[IDS]->shape.dim[1], n = elementwise_count(c->in[IDS]);
    float *y = c->out[0]->data;

    for (size_t i = 0; i < n; i++, y += channels) {
        if (ids[i] < 0 || (size_t)ids[i] >= table->shape.dim[0])
            return err_set(err, "token %ld is not below the vocabulary's size %zu; use the tokenizer that belongs to the model",
                           (long)ids[i], table->shape.dim[0]);
        add_row(y, table, (size_t)ids[i], channels, true);
        if (positions)
            add_row(y, positions, i % t, channels, false);
    }
    return 0;
}

static int shape(const struct op_call *c, struct err *err)
{
    const struct shape *ids = &c->in[IDS]->shape, *table = &c->in[TABLE]->shape;

    if (c->in[IDS]->dtype != DT_I32 || ids->ndim != 2 || table->ndim != 2)
        return err_set(err, "an embedding takes i32 tokens [n, t] and a table [v, c]");
    if (elementwise_need_float(c, TABLE, "the table", err) < 0)
        return -1;
    if (c->in[POSITIONS]) {
        const struct shape *p = &c->in[POSITIONS]->shape;

        if (elementwise_need_float(c, POSITIONS, "the position table", err) < 0)
            return -1;
        if (p->ndim != 2 || p->dim[1] != table->dim[1] || p->dim[0] < ids->dim[1])
            return err_set(err, "%zu tokens do not fit a model of %zu positions; use chunks of that length", ids->dim[1],
                           p->ndim == 2 ? p->dim[0] : 0);
    }
    *c->out[0] = (struct tensor){.dtype = DT_F32, .shape = {3, {ids->dim[0], ids->dim[1], table->dim[1]}}};
    return 0;
}

const struct op op_embedding = {
    .name = "embedding", .min_in = 2, .max_in = 3, .nout = 1, .shape = shape, .forward = forward,
};
