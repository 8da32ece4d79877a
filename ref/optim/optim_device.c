/* An optimizer whose params, gradients and states lie on a device: flat arrays there, tensors with f32 states in front, those with
 * 8-bit ones behind, each from a multiple of OPTIM_BLOCK on. What lies between tensors stays 0. */
#include <stdlib.h>
#include <string.h>

#include "ref/base/mem.h"
#include "ref/base/thread.h"
#include "ref/optim/optim_kind.h"

_Static_assert((int)OPTIM_BLOCK == OPS_ADAMW_BLOCK, "a block has one group, and one scale");
_Static_assert((int)OPTIM_SPAN == OPS_PIECE, "a span is a piece");

enum { MOST_GROUPS = 256 };

struct optim_device {
    const struct ops_device *ops;
    void *array[OPTIM_MAX_ARRAYS]; /* as the optimizer's, there */
    float *params, *grads, *map;   /* params: [elements], then the slots' shadow; map [2, 256] */
    uint8_t *group;                /* [blocks] */
    struct ops_adamw_rate *rate;   /* [groups] */
    struct ops_piece *pieces;      /* [spans] */
    struct ops_param *placed;      /* [count] in the program's memory, as the following */
    struct ops_piece *told;        /* [spans] what `pieces` holds */
    float *staged;                 /* [elements] (alloc_host) */
    struct ops_adamw_rate rates[MOST_GROUPS];
    bool params_changed, states_changed; /* since they were last in the program's memory */
};

static size_t elements(const struct optim *o)
{
    return o->wide + o->narrow;
}

/* Where tensor t begins among all elements. */
static size_t begin(const struct optim *o, size_t t)
{
    return optim_is_8bit(o, t) ? o->wide + o->place[t] : o->place[t];
}

static bool can_move(const struct optim *o, const struct ops_device *ops)
{
    return ops && ops->gather && ops->norm && ops->adamw && o->kind->device_step && !o->options.round_to_f16 &&
           o->options.groups <= MOST_GROUPS && o->count > 0;
}

size_t optim_device_bytes(const struct optim *o, const struct ops_device *ops)
{
    size_t n = elements(o), bytes;

    if (!can_move(o, ops))
        return 0;
    bytes = n * sizeof(float) + n / OPTIM_BLOCK + o->span_count * sizeof(struct ops_piece);
    for (size_t i = 0; i < OPTIM_MAX_ARRAYS; i++)
        bytes += o->array_bytes[i];
    return bytes;
}

/* ---- There and back ---- */

static int stage(void *ctx, size_t t, struct err *err)
{
    const struct optim *o = ctx;

    (void)err;
    memcpy(o->device->staged + begin(o, t), o->tensors[t].param, o->n[t] * sizeof(float));
    return 0;
}

static int unstage(void *ctx, size_t t, struct err *err)
{
    const struct optim *o = ctx;

    (void)err;
    memcpy(o->tensors[t].param, o->device->staged + begin(o, t), o->n[t] * sizeof(float));
    return 0;
}

/* Codes behind the end of a tensor are read as part of its last block there: they must stand for 0. */
static void fill_gaps(struct optim *o)
{
    for (size_t i = 0; o->kind->arrays[i].name; i++) {
        uint8_t zero = 0, *codes = o->array[i];
        const struct quant8 *map = strstr(o->kind->arrays[i].name, "_sq") ? &o->map[1] : &o->map[0];

        if (o->kind->arrays[i].type != ARRAY_CODES || !codes)
            continue;
        while (map->value[zero] != 0)
            zero++;
        for (size_t t = 0; t < o->count; t++)
            for (size_t k = o->n[t]; optim_is_8bit(o, t) && k % OPTIM_BLOCK; k++)
                codes[o->place[t] + k] = zero;
    }
}

static int send_params(struct optim *o, struct err *err)
{
    struct optim_device *d = o->device;
    size_t bytes = elements(o) * sizeof(float);

    memset(d->staged, 0, bytes);
    if (d->ops->write(d->grads, d->staged, bytes, err) || thread_for(o->count, stage, o, err) ||
        d->ops->write(d->params, d->staged, bytes, err))
        return -1;
    return d->ops->params ? d->ops->params(d->params, elements(o), err) : 0;
}

static int send_states(struct optim *o, struct err *err)
{
    struct optim_device *d = o->device;

    fill_gaps(o);
    for (size_t i = 0; i < OPTIM_MAX_ARRAYS; i++)
        if (o->array_bytes[i] && d->ops->write(d->array[i], o->array[i], o->array_bytes[i], err))
            return -1;
    for (size_t i = 0; o->map && i < 2; i++)
        if (d->ops->write(d->map + i * QUANT8_CODES, o->map[i].value, sizeof o->map[i].value, err))
            return -1;
    return 0;
}

static int send_groups(struct optim *o, struct err *err)
{
    size_t blocks = elements(o) / OPTIM_BLOCK;
    uint8_t *group = mem_zero(blocks, 1, "learning rates", err);
    int rc = -1;

    for (size_t t = 0; group && t < o->count; t++)
        memset(group + begin(o, t) / OPTIM_BLOCK, (int)o->tensors[t].group, (o->n[t] + OPTIM_BLOCK - 1) / OPTIM_BLOCK);
    if (group)
        rc = o->device->ops->write(o->device->group, group, blocks, err);
    free(group);
    return rc;
}

static int take_memory(struct optim *o, struct err *err)
{
    struct optim_device *d = o->device;
    const struct ops_device *ops = d->ops;
    size_t n = elements(o), bytes = n * sizeof(float);

    for (size_t i = 0; i < OPTIM_MAX_ARRAYS; i++)
        if (o->array_bytes[i] && !(d->array[i] = ops->alloc(o->array_bytes[i], "the optimizer's state", err)))
            return -1;
    d->params = ops->alloc(bytes + ops->shadow_bytes(n), "the trained factors", err);
    d->grads = d->params ? ops->alloc(bytes, "gradients", err) : NULL;
    d->map = d->grads ? ops->alloc(2 * QUANT8_CODES * sizeof(float), "the optimizer", err) : NULL;
    d->group = d->map ? ops->alloc(n / OPTIM_BLOCK, "the optimizer", err) : NULL;
    d->rate = d->group ? ops->alloc(o->options.groups * sizeof *d->rate, "the optimizer", err) : NULL;
    d->pieces = d->rate ? ops->alloc(o->span_count * sizeof *d->pieces, "the optimizer", err) : NULL;
    d->placed = d->pieces ? mem_zero(o->count, sizeof *d->placed, "the optimizer", err) : NULL;
    d->told = d->placed ? mem_zero(o->span_count, sizeof *d->told, "the optimizer", err) : NULL;
    if (d->told)
        d->staged = ops->alloc_host ? ops->alloc_host(bytes, "the trained factors", err) : mem_new(bytes, "the trained factors", err);
    return d->staged ? 0 : -1;
}

int optim_to_device(struct optim *o, const struct ops_device *ops, bool *there, struct err *err)
{
    *there = can_move(o, ops);
    if (!*there)
        return 0;
    o->device = mem_zero(1, sizeof *o->device, "the optimizer", err);
    if (!o->device)
        return -1;
    o->device->ops = ops;
    if (take_memory(o, err) || send_params(o, err) || send_states(o, err) || send_groups(o, err)) {
        optim_device_free(o);
        return -1;
    }
    for (size_t t = 0; t < o->count; t++)
        o->device->placed[t] = (struct ops_param){o->tensors[t].param, o->device->params + begin(o, t)};
    return 0;
}

const struct ops_param *optim_params(const struct optim *o, size_t *count)
{
    *count = o->device ? o->count : 0;
    return o->device ? o->device->placed : NULL;
}

int optim_fetch(struct optim *o, bool states, struct err *err)
{
    struct optim_device *d = o->device;

    if (d && d->params_changed) {
        if (d->ops->read(d->staged, d->params, elements(o) * sizeof(float), err) || thread_for(o->count, unstage, o, err))
            return -1;
        d->params_changed = false;
    }
    if (d && d->states_changed && states) {
        for (size_t i = 0; i < OPTIM_MAX_ARRAYS; i++)
            if (o->array_bytes[i] && d->ops->read(o->array[i], d->array[i], o->array_bytes[i], err))
                return -1;
        d->states_changed = false;
    }
    return 0;
}

void optim_device_free(struct optim *o)
{
    struct optim_device *d = o->device;

    if (!d)
        return;
    for (size_t i = 0; i < OPTIM_MAX_ARRAYS; i++)
        d->ops->free(d->array[i]);
    d->ops->free(d->params);
    d->ops->free(d->grads);
    d->ops->free(d->map);
    d->ops->free(d->group);
    d->ops->free(d->rate);
    d->ops->free(d->pieces);
    if (d->ops->free_host)
        d->ops->free_host(d->staged);
    else
        free(d->staged);
    free(d->placed);
    free(d->told);
    free(d);
    o->device = NULL;
}

/* ---- A step ---- */

/* The table goes there when it differs from the last one: gradients of one graph always lie at the same places. */
int optim_gather(struct optim *o, const void *const *from, bool first, struct err *err)
{
    struct optim_device *d = o->device;
    bool same = true;

    for (size_t i = 0; i < o->span_count; i++) {
        const struct optim_span *s = &o->spans[i];
        struct ops_piece piece = {(const float *)from[s->tensor] + s->at, begin(o, s->tensor) + s->at, s->n};

        same = same && d->told[i].from == piece.from && d->told[i].n == piece.n;
        d->told[i] = piece;
    }
    if (!same && d->ops->write(d->pieces, d->told, o->span_count * sizeof *d->told, err))
        return -1;
    return d->ops->gather(d->grads, d->pieces, o->span_count, first, err);
}

int optim_device_norm(struct optim *o, double *norm, struct err *err)
{
    return o->device->ops->norm(o->device->grads, elements(o), norm, err);
}

int optim_device_step(struct optim *o, const struct optim_call *c, struct err *err)
{
    struct optim_device *d = o->device;
    struct ops_adamw wide, narrow;

    o->kind->device_step(o, c, d->array, &wide, &narrow, d->rates);
    if (d->ops->write(d->rate, d->rates, o->options.groups * sizeof *d->rates, err))
        return -1;
    wide.n = o->wide;
    narrow.n = o->narrow;
    wide.param = d->params;
    narrow.param = d->params + o->wide;
    wide.grad = d->grads;
    narrow.grad = d->grads + o->wide;
    wide.group = d->group;
    narrow.group = d->group + o->wide / OPTIM_BLOCK;
    wide.rate = narrow.rate = d->rate;
    narrow.map = d->map;
    d->params_changed = d->states_changed = true;
    if ((wide.n && d->ops->adamw(&wide, err)) || (narrow.n && d->ops->adamw(&narrow, err)))
        return -1;
    return d->ops->params ? d->ops->params(d->params, elements(o), err) : 0;
}
