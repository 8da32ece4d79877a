/* Running a graph on a device: weights and params go there, whole runs are recorded and replayed. */
#include <stdlib.h>
#include <string.h>

#include "ref/base/thread.h"
#include "ref/graph/run_device.h"

static size_t aligned(size_t n)
{
    return (n + OPS_DEVICE_ALIGN - 1) / OPS_DEVICE_ALIGN * OPS_DEVICE_ALIGN;
}

size_t run_device_count(const struct shape *s)
{
    size_t n = 0;

    return shape_numel(s, &n) ? n : 0;
}

static void *get_host(const struct run_device *d, size_t bytes, const char *what, struct err *err)
{
    return d->ops->alloc_host ? d->ops->alloc_host(bytes, what, err) : mem_new(bytes, what, err);
}

static void free_host(const struct run_device *d, void *data)
{
    if (d->ops->free_host)
        d->ops->free_host(data);
    else
        free(data);
}

/* Params lie one after another, each from an aligned place on. */
static void count_params(struct run *r)
{
    struct run_device *d = r->device;
    size_t bytes = 0;

    for (size_t i = 0; i < r->g->value_count; i++) {
        const struct graph_value *v = &r->g->values[i];

        d->param_at[i] = bytes / sizeof(float);
        if (v->kind == VALUE_PARAM)
            bytes += aligned(run_device_count(&v->shape) * sizeof(float));
    }
    d->param_count = bytes / sizeof(float);
}

/* By the first run, since they may be shared until then. */
static int place_params(struct run *r, struct err *err)
{
    struct run_device *d = r->device;
    size_t bytes = d->param_count * sizeof(float);

    d->staged = get_host(d, bytes, "the trained factors", err);
    if (d->staged)
        memset(d->staged, 0, bytes); /* gaps stay zero */
    d->params = d->staged ? d->ops->alloc(bytes + d->ops->shadow_bytes(d->param_count), "the trained factors", err) : NULL;
    return d->params ? 0 : -1;
}

/* Which weights are only those of products. A LoRA's factors, small and all that a training changes, are not among them. */
static int type_weights(struct run *r, struct err *err)
{
    const struct graph *g = r->g;
    bool *other = mem_zero(g->value_count, sizeof *other, "a graph", err);

    if (!other)
        return -1;
    for (size_t i = 0; i < g->node_count; i++)
        for (int j = 0; j < OP_MAX_IN; j++)
            if (g->nodes[i].in[j] != GRAPH_NONE)
                other[g->nodes[i].in[j]] |= j != 1 || (g->nodes[i].op != OP_linear && g->nodes[i].op != OP_conv2d);
    for (size_t i = 0; i < g->value_count; i++) {
        const struct graph_value *v = &g->values[i];

        if (v->kind == VALUE_WEIGHT && v->source)
            r->typed.values[i].dtype = r->device->ops->weight_type(v->source, !other[i] && !strstr(v->name, ".lora_"));
    }
    free(other);
    return 0;
}

bool run_falls_back(const struct run *r, size_t node)
{
    const struct graph_node *n = &r->g->nodes[node];

    return r->device && ops_is_ref(r->ops, n->op, n->backward);
}

int run_device_new(struct run *r, struct err *err)
{
    size_t values = r->g->value_count;
    struct run_device *d = mem_zero(1, sizeof *d, "a graph", err);

    if (!d)
        return -1;
    r->device = d;
    d->ops = r->ops->device;
    r->typed = *r->g;
    r->typed.values = mem_new(values * sizeof *r->typed.values, "a graph", err);
    d->weights = mem_zero(values, sizeof *d->weights, "a graph", err);
    d->seen = mem_zero(values, sizeof *d->seen, "a graph", err);
    d->param_at = mem_zero(values, sizeof *d->param_at, "a graph", err);
    if (!r->typed.values || !d->weights || !d->seen || !d->param_at)
        return -1;
    memcpy(r->typed.values, r->g->values, values * sizeof *r->typed.values);
    count_params(r);
    for (size_t i = 0; i < r->g->node_count; i++)
        d->falls_back |= run_falls_back(r, i);
    return run_types(&r->typed, d->ops->storage, err) < 0 ? -1 : type_weights(r, err);
}

int run_device_arena(struct run *r, struct err *err)
{
    if (!r->borrowed)
        r->arena = r->device->ops->alloc(r->plan->arena, "the activations", err);
    return r->arena ? 0 : -1;
}

static float *find_param(const struct ops_param *params, size_t n, const void *host)
{
    for (size_t i = 0; i < n; i++)
        if (params[i].host == host)
            return params[i].device;
    return NULL;
}

int run_share_params(struct run *r, const struct ops_param *params, size_t n, struct err *err)
{
    struct run_device *d = r->device;

    if (!d)
        return err_set(err, "params lie on a device, and the graph runs on the processor");
    d->shared = mem_zero(r->g->value_count, sizeof *d->shared, "a graph", err);
    if (!d->shared)
        return -1;
    for (size_t i = 0; i < r->g->value_count; i++) {
        const struct graph_value *v = &r->g->values[i];

        if (v->kind != VALUE_PARAM)
            continue;
        d->shared[i] = find_param(params, n, v->source->data);
        if (!d->shared[i])
            return err_set(err, "'%s' is not among the params on the device", v->name);
    }
    return 0;
}

static void forget_recording(struct run_device *d)
{
    if (d->recording)
        d->ops->record_free(d->recording);
    d->recording = NULL;
    d->warm = false;
}

void run_device_free(struct run *r)
{
    struct run_device *d = r->device;

    if (!d)
        return;
    forget_recording(d);
    for (size_t i = 0; d->seen && i < r->g->value_count; i++)
        if (d->seen[i])
            d->ops->unweight(d->weights[i].data);
    d->ops->free(d->params);
    if (!r->borrowed)
        d->ops->free(r->arena);
    r->arena = NULL;
    free_host(d, d->staged);
    free_host(d, d->gathered);
    free(d->weights);
    free(d->seen);
    free(d->param_at);
    free(d->shared);
    free(d->bounce);
    free(d->host);
    free(r->typed.values);
    free(d);
    r->device = NULL;
}

size_t run_device_bytes(const struct run *r)
{
    const struct run_device *d = r->device;
    size_t sum;

    if (!d)
        return 0;
    sum = d->param_count * sizeof(float) + d->ops->shadow_bytes(d->param_count);
    for (size_t i = 0; i < r->g->value_count; i++)
        if (r->g->values[i].kind == VALUE_WEIGHT && r->g->values[i].source)
            sum += aligned(d->ops->weight_bytes(r->g->values[i].source, r->typed.values[i].dtype));
    return sum;
}

/* A weight that was released and loaded again has another address, and is copied again. */
static int refresh_weight(struct run *r, size_t value, struct err *err)
{
    struct run_device *d = r->device;
    const struct tensor *t = r->g->values[value].source;

    if (d->seen[value] == t->data && t->data)
        return 0;
    if (!t->data)
        return err_set(err, "'%s' has no data yet; load the weights before the first run", r->g->values[value].name);
    forget_recording(d);
    if (d->seen[value])
        d->ops->unweight(d->weights[value].data);
    d->seen[value] = NULL;
    if (d->ops->weight(t, r->typed.values[value].dtype, &d->weights[value], err) < 0)
        return err_prefix(err, "'%s': ", r->g->values[value].name);
    d->seen[value] = t->data;
    return 0;
}

static int stage_param(void *ctx, size_t index, struct err *err)
{
    const struct run *r = ctx;
    const struct graph_value *v = &r->g->values[index];

    if (v->kind != VALUE_PARAM)
        return 0;
    if (!v->source->data)
        return err_set(err, "'%s' has no data", v->name);
    memcpy(r->device->staged + r->device->param_at[index], v->source->data, run_device_count(&v->shape) * sizeof(float));
    return 0;
}

static int refresh_params(struct run *r, struct err *err)
{
    struct run_device *d = r->device;

    if (!d->params && place_params(r, err) < 0)
        return -1;
    if (thread_for(r->g->value_count, stage_param, r, err) < 0 ||
        d->ops->write(d->params, d->staged, d->param_count * sizeof(float), err) < 0)
        return -1;
    return d->ops->params ? d->ops->params(d->params, d->param_count, err) : 0;
}

int run_device_begin(struct run *r, bool params, struct err *err)
{
    for (size_t i = 0; i < r->g->value_count; i++)
        if (r->g->values[i].kind == VALUE_WEIGHT && refresh_weight(r, i, err) < 0)
            return -1;
    return (params || !r->device->params) && r->device->param_count && !r->device->shared ? refresh_params(r, err) : 0;
}

int run_device_replay(struct run *r, bool *done, struct err *err)
{
    struct run_device *d = r->device;

    *done = false;
    if (!d->recording && (!d->warm || d->falls_back || !d->ops->record_begin)) {
        d->warm = true;
        return 0;
    }
    if (!d->recording) {
        if (d->ops->record_begin(err) < 0)
            return -1;
        if (run_nodes(r, NULL, err) < 0) {
            struct err unused;

            d->ops->record_free(d->ops->record_end(&unused));
            return -1;
        }
        d->recording = d->ops->record_end(err);
        if (!d->recording)
            return -1;
    }
    *done = true;
    return d->ops->replay(d->recording, err);
}

struct tensor run_device_source(struct run *r, int value)
{
    const struct graph_value *v = &r->g->values[value];

    if (v->kind == VALUE_WEIGHT)
        return r->device->weights[value];
    if (r->device->shared)
        return (struct tensor){r->device->shared[value], v->dtype, v->shape};
    return (struct tensor){r->device->params + r->device->param_at[value], v->dtype, v->shape};
}

/* Room for one value in the type that the device has, when that is not the caller's. */
static void *bounce(struct run_device *d, size_t bytes, struct err *err)
{
    if (bytes > d->bounce_bytes) {
        free(d->bounce);
        d->bounce = mem_new(bytes, "a value", err);
        d->bounce_bytes = d->bounce ? bytes : 0;
    }
    return d->bounce;
}

int run_device_put(struct run_device *d, const struct tensor *to, enum dtype from, const void *src, struct err *err)
{
    size_t n = run_device_count(&to->shape), bytes = n * dtype_size(to->dtype);

    if (to->dtype != from) {
        void *other = bounce(d, bytes, err);

        if (!other)
            return -1;
        dtype_convert(other, to->dtype, src, from, n);
        src = other;
    }
    return d->ops->write(to->data, src, bytes, err);
}

int run_device_get(struct run_device *d, const struct tensor *from, enum dtype to, void *dst, struct err *err)
{
    size_t n = run_device_count(&from->shape), bytes = n * dtype_size(from->dtype);
    void *other = from->dtype == to ? dst : bounce(d, bytes, err);

    if (!other || d->ops->read(other, from->data, bytes, err) < 0)
        return -1;
    if (other != dst)
        dtype_convert(dst, to, other, from->dtype, n);
    return 0;
}

/* A view of a value as it lies on the device. */
static int locate(struct run *r, int value, struct tensor *t, struct err *err)
{
    const struct graph_value *v = &r->typed.values[value];

    if (v->source || r->plan->offset[value] == PLAN_NOWHERE)
        return err_set(err, "'%s' has no place in the arena", v->name);
    *t = (struct tensor){r->arena + r->plan->offset[value], v->dtype, v->shape};
    return 0;
}

int run_device_write(struct run *r, int value, const void *src, struct err *err)
{
    struct tensor t;

    return locate(r, value, &t, err) < 0 ? -1 : run_device_put(r->device, &t, r->g->values[value].dtype, src, err);
}

int run_device_place(struct run *r, int value, const void **place, struct err *err)
{
    struct tensor t = {0};

    if (locate(r, value, &t, err) < 0)
        return -1;
    *place = t.data;
    return 0;
}

int run_device_read(struct run *r, int value, void *dst, struct err *err)
{
    struct tensor t;

    return locate(r, value, &t, err) < 0 ? -1 : run_device_get(r->device, &t, r->g->values[value].dtype, dst, err);
}

/* Values whose bytes are the caller's and that fill most of what lies between the first and the last of them. */
static bool side_by_side(struct run *r, const int *values, size_t n, char **first, size_t *bytes)
{
    size_t low = SIZE_MAX, high = 0, sum = 0;

    for (size_t i = 0; i < n; i++) {
        const struct graph_value *v = &r->typed.values[values[i]];
        size_t at = r->plan->offset[values[i]], size = run_device_count(&v->shape) * dtype_size(v->dtype);

        if (v->source || at == PLAN_NOWHERE || v->dtype != r->g->values[values[i]].dtype)
            return false;
        low = at < low ? at : low;
        high = at + size > high ? at + size : high;
        sum += size;
    }
    *first = r->arena + low;
    *bytes = high - low;
    return *bytes <= 2 * sum;
}

struct gathering {
    const struct run *r;
    const int *values;
    void *const *dst;
    const char *first; /* on the device; what was read from there lies in d->gathered */
};

static int scatter(void *ctx, size_t i, struct err *err)
{
    const struct gathering *g = ctx;
    const struct graph_value *v = &g->r->typed.values[g->values[i]];

    (void)err;
    memcpy(g->dst[i], g->r->device->gathered + (g->r->arena + g->r->plan->offset[g->values[i]] - g->first),
           run_device_count(&v->shape) * dtype_size(v->dtype));
    return 0;
}

int run_device_read_many(struct run *r, const int *values, void *const *dst, size_t n, struct err *err)
{
    struct run_device *d = r->device;
    size_t bytes;
    char *first;

    if (n == 0)
        return 0;
    if (!side_by_side(r, values, n, &first, &bytes)) {
        for (size_t i = 0; i < n; i++)
            if (run_device_read(r, values[i], dst[i], err) < 0)
                return -1;
        return 0;
    }
    if (bytes > d->gathered_bytes) {
        free_host(d, d->gathered);
        d->gathered = get_host(d, bytes, "gradients", err);
        d->gathered_bytes = d->gathered ? bytes : 0;
    }
    if (!d->gathered || d->ops->read(d->gathered, first, bytes, err) < 0)
        return -1;
    return thread_for(n, scatter, &(struct gathering){r, values, dst, first}, err);
}

int run_device_sync(struct run *r, struct err *err)
{
    return r->device->ops->sync(err);
}
