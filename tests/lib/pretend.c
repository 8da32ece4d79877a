#include "tests/lib/pretend.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "ref/base/mem.h"
#include "ref/base/thread.h"

enum { BLOCKS = 4096, TENSORS = 2 * OP_MAX_IN + 2 * OP_MAX_OUT };

struct pretend_counts pretend_counts;

static struct {
    void *data;
    size_t bytes;
} blocks[BLOCKS];
static struct ops_device device;
static size_t allocations, failing;
static const float *params_at;
static size_t params_count;

/* A call with tensors of its own. */
struct call {
    enum op_id op;
    bool back;
    struct op_call c;
    struct tensor t[TENSORS];
};

struct recording {
    struct call *calls;
    size_t count, cap;
};
static struct recording *recorder;

static void access_to(int rights)
{
    for (size_t i = 0; i < BLOCKS; i++)
        if (blocks[i].data && mprotect(blocks[i].data, blocks[i].bytes, rights) != 0)
            abort();
}

static void *get(size_t bytes, const char *what, struct err *err)
{
    size_t i = 0;

    if (++allocations == failing) {
        err_set(err, "out of memory for %s", what);
        return NULL;
    }
    while (i < BLOCKS && blocks[i].data)
        i++;
    if (i == BLOCKS)
        abort();
    blocks[i].bytes = bytes ? bytes : 1;
    blocks[i].data = mmap(NULL, blocks[i].bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (blocks[i].data == MAP_FAILED)
        abort();
    pretend_counts.blocks++;
    return blocks[i].data;
}

static void give_back(void *data)
{
    for (size_t i = 0; data && i < BLOCKS; i++)
        if (blocks[i].data == data) {
            munmap(data, blocks[i].bytes);
            blocks[i].data = NULL;
            pretend_counts.blocks--;
            return;
        }
    if (data)
        abort(); /* freed twice, or never ours */
}

static int put(void *dst, const void *src, size_t bytes, struct err *err)
{
    (void)err;
    access_to(PROT_READ | PROT_WRITE);
    memcpy(dst, src, bytes);
    access_to(PROT_NONE);
    return 0;
}

static int fetch(void *dst, const void *src, size_t bytes, struct err *err)
{
    (void)err;
    pretend_counts.reads++;
    access_to(PROT_READ);
    memcpy(dst, src, bytes);
    access_to(PROT_NONE);
    return 0;
}

static void *get_host(size_t bytes, const char *what, struct err *err)
{
    pretend_counts.host++;
    return mem_new(bytes, what, err);
}

static void give_host(void *data)
{
    pretend_counts.host -= data != NULL;
    free(data);
}

static int nothing(struct err *err)
{
    (void)err;
    return 0;
}

static size_t count_of(const struct tensor *t)
{
    size_t n = 0;

    return shape_numel(&t->shape, &n) ? n : 0;
}

/* Weights of products are f16, to have a type that is neither ref's nor that of activations. */
static enum dtype weight_type(const struct tensor *host, bool product)
{
    (void)host;
    pretend_counts.products += product;
    return device.storage != DT_F32 && product ? DT_F16 : device.storage;
}

static size_t weight_bytes(const struct tensor *host, enum dtype type)
{
    return count_of(host) * dtype_size(type);
}

static struct {
    const struct tensor *host;
    const void *source;
    void *data;
    size_t users;
} weights[BLOCKS];

static int weight(const struct tensor *host, enum dtype type, struct tensor *out, struct err *err)
{
    size_t i = 0;

    for (i = 0; i < BLOCKS && !(weights[i].users && weights[i].host == host && weights[i].source == host->data);)
        i++;
    if (i == BLOCKS) {
        for (i = 0; weights[i].users;)
            i++;
        weights[i].data = get(weight_bytes(host, type), "a weight", err);
        if (!weights[i].data)
            return -1;
        weights[i].host = host;
        weights[i].source = host->data;
        access_to(PROT_READ | PROT_WRITE);
        dtype_convert(weights[i].data, type, host->data, host->dtype, count_of(host));
        access_to(PROT_NONE);
        pretend_counts.uploads++;
        pretend_counts.weights++;
    }
    weights[i].users++;
    *out = (struct tensor){weights[i].data, type, host->shape};
    return 0;
}

static void unweight(const void *data)
{
    for (size_t i = 0; i < BLOCKS; i++)
        if (weights[i].users && weights[i].data == data) {
            if (--weights[i].users == 0) {
                give_back(weights[i].data);
                pretend_counts.weights--;
            }
            return;
        }
    abort();
}

static size_t shadow_bytes(size_t count)
{
    return count * sizeof(float);
}

/* The shadow is what the slots compute with: forgetting to tell of a change would be seen. */
static int params(float *data, size_t count, struct err *err)
{
    (void)err;
    access_to(PROT_READ | PROT_WRITE);
    memcpy(data + count, data, count * sizeof *data);
    access_to(PROT_NONE);
    params_at = data;
    params_count = count;
    pretend_counts.params++;
    return 0;
}

/* ---- Slots ---- */

/* The tensor in f32 in memory of its own, with its data where read. */
static struct tensor widen(const struct tensor *t, bool read)
{
    struct tensor out = *t;
    size_t n = count_of(t);
    const float *data = t->data;

    if (!t->data)
        return out;
    if (params_at && data >= params_at && data < params_at + params_count)
        data += params_count;
    out.dtype = dtype_is_float(t->dtype) ? DT_F32 : t->dtype;
    out.data = malloc(n * sizeof(float) + 64);
    if (!out.data)
        abort();
    if (read && dtype_is_float(t->dtype))
        dtype_convert(out.data, DT_F32, data, t->dtype, n);
    else if (read)
        memcpy(out.data, data, n * dtype_size(t->dtype));
    return out;
}

static bool is_written(bool back, int i)
{
    return back ? i >= OP_MAX_IN + 2 * OP_MAX_OUT : i >= OP_MAX_IN && i < OP_MAX_IN + OP_MAX_OUT;
}

/* The places of a call, in the order of struct call's tensors. */
static struct tensor **places(struct op_call *c, struct tensor **list)
{
    int n = 0;

    for (int i = 0; i < OP_MAX_IN; i++)
        list[n++] = (struct tensor *)(uintptr_t)c->in[i];
    for (int i = 0; i < OP_MAX_OUT; i++)
        list[n++] = c->out[i];
    for (int i = 0; i < OP_MAX_OUT; i++)
        list[n++] = (struct tensor *)(uintptr_t)c->dout[i];
    for (int i = 0; i < OP_MAX_IN; i++)
        list[n++] = c->din[i];
    return list;
}

/* A copy of the call whose tensors are t[]. */
static struct op_call aim(const struct op_call *c, struct tensor t[TENSORS])
{
    struct op_call out = *c;
    int n = 0;

    for (int i = 0; i < OP_MAX_IN; i++, n++)
        out.in[i] = c->in[i] ? &t[n] : NULL;
    for (int i = 0; i < OP_MAX_OUT; i++, n++)
        out.out[i] = c->out[i] ? &t[n] : NULL;
    for (int i = 0; i < OP_MAX_OUT; i++, n++)
        out.dout[i] = c->dout[i] ? &t[n] : NULL;
    for (int i = 0; i < OP_MAX_IN; i++, n++)
        out.din[i] = c->din[i] ? &t[n] : NULL;
    return out;
}

static int compute(enum op_id op, bool back, const struct op_call *call, struct err *err)
{
    struct tensor *list[TENSORS], t[TENSORS];
    struct op_call c = *call;
    int rc;

    places(&c, list);
    access_to(PROT_READ | PROT_WRITE);
    for (int i = 0; i < TENSORS; i++)
        if (list[i])
            t[i] = widen(list[i], !is_written(back, i));
    c = aim(call, t);
    c.scratch = op_table[op]->scratch ? mem_new(op_table[op]->scratch(&c, back, thread_count()), "a test", err) : NULL;
    rc = (back ? op_table[op]->backward : op_table[op]->forward)(&c, err);
    for (int i = 0; i < TENSORS; i++)
        if (list[i] && list[i]->data) {
            if (is_written(back, i))
                dtype_convert(list[i]->data, list[i]->dtype, t[i].data, DT_F32, count_of(list[i]));
            free(t[i].data);
        }
    access_to(PROT_NONE);
    free(c.scratch);
    return rc;
}

static int slot(enum op_id op, bool back, const struct op_call *c, struct err *err)
{
    struct call *k;
    struct tensor *list[TENSORS];

    pretend_counts.calls++;
    if (!recorder)
        return compute(op, back, c, err);
    if (recorder->count == recorder->cap) {
        recorder->cap = recorder->cap ? 2 * recorder->cap : 64;
        recorder->calls = realloc(recorder->calls, recorder->cap * sizeof *recorder->calls);
        if (!recorder->calls)
            abort();
    }
    k = &recorder->calls[recorder->count++];
    *k = (struct call){.op = op, .back = back, .c = *c};
    places(&k->c, list);
    for (int i = 0; i < TENSORS; i++)
        if (list[i])
            k->t[i] = *list[i];
    return 0;
}

#define SLOTS(name)                                                               \
    static int name##_forward(const struct op_call *c, struct err *err)           \
    {                                                                             \
        return slot(OP_##name, false, c, err);                                    \
    }                                                                             \
    static int name##_backward(const struct op_call *c, struct err *err)          \
    {                                                                             \
        return slot(OP_##name, true, c, err);                                     \
    }
OP_LIST(SLOTS)
#undef SLOTS

/* ---- The end of a training's step ---- */

static int collect(float *flat, const struct ops_piece *pieces, size_t n, bool first, struct err *err)
{
    (void)err;
    access_to(PROT_READ | PROT_WRITE);
    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < pieces[i].n; k++) {
            float *to = &flat[pieces[i].at + k];

            *to = first ? pieces[i].from[k] : *to + pieces[i].from[k];
        }
    access_to(PROT_NONE);
    return 0;
}

static int norm(const float *x, size_t n, double *out, struct err *err)
{
    double sum = 0;

    (void)err;
    access_to(PROT_READ);
    for (size_t i = 0; i < n; i++)
        sum += (double)x[i] * (double)x[i];
    access_to(PROT_NONE);
    *out = sqrt(sum);
    return 0;
}

static uint8_t nearest(const float *map, float x)
{
    int best = 0;

    for (int i = 1; i < 256; i++)
        if (fabsf(map[i] - x) < fabsf(map[best] - x))
            best = i;
    return (uint8_t)best;
}

/* One block: mean m and square v in f32. */
static void adamw_block(const struct ops_adamw *a, size_t at, float *m, float *v)
{
    const struct ops_adamw_rate *r = &a->rate[a->group[at / OPS_ADAMW_BLOCK]];

    for (size_t k = 0; k < OPS_ADAMW_BLOCK; k++) {
        float g = a->grad[at + k] * a->scale, *p = &a->param[at + k];

        m[k] = m[k] * a->beta1 + g * a->new1;
        v[k] = v[k] * a->beta2 + g * g * a->new2;
        *p = *p * r->keep - r->rate * (m[k] / (sqrtf(v[k]) / a->root2 + a->eps));
    }
}

static void read_codes(const uint8_t *code, float scale, const float *map, float *x)
{
    for (size_t k = 0; k < OPS_ADAMW_BLOCK; k++)
        x[k] = map[code[k]] * scale;
}

static void write_codes(uint8_t *code, float *scale, const float *map, const float *x)
{
    *scale = 0;
    for (size_t k = 0; k < OPS_ADAMW_BLOCK; k++)
        *scale = fmaxf(*scale, fabsf(x[k]));
    for (size_t k = 0; k < OPS_ADAMW_BLOCK; k++)
        code[k] = *scale > 0 ? nearest(map, x[k] / *scale) : 0;
}

static int adamw(const struct ops_adamw *a, struct err *err)
{
    (void)err;
    access_to(PROT_READ | PROT_WRITE);
    for (size_t at = 0; at < a->n; at += OPS_ADAMW_BLOCK) {
        size_t block = at / OPS_ADAMW_BLOCK;
        float m[OPS_ADAMW_BLOCK], v[OPS_ADAMW_BLOCK];

        if (a->mean) {
            adamw_block(a, at, a->mean + at, a->square + at);
            continue;
        }
        read_codes(a->mean8 + at, a->mean_scale[block], a->map, m);
        read_codes(a->square8 + at, a->square_scale[block], a->map + 256, v);
        adamw_block(a, at, m, v);
        write_codes(a->mean8 + at, &a->mean_scale[block], a->map, m);
        write_codes(a->square8 + at, &a->square_scale[block], a->map + 256, v);
    }
    access_to(PROT_NONE);
    pretend_counts.steps++;
    return 0;
}

/* ---- Recording ---- */

static int record_begin(struct err *err)
{
    recorder = mem_zero(1, sizeof *recorder, "a recording", err);
    pretend_counts.recordings++;
    return recorder ? 0 : -1;
}

static void *record_end(struct err *err)
{
    void *r = recorder;

    (void)err;
    recorder = NULL;
    return r;
}

static int replay(void *recording, struct err *err)
{
    const struct recording *r = recording;

    pretend_counts.replays++;
    for (size_t i = 0; i < r->count; i++) {
        struct op_call c = aim(&r->calls[i].c, r->calls[i].t);

        c.attr = r->calls[i].c.attr;
        if (compute(r->calls[i].op, r->calls[i].back, &c, err) < 0)
            return -1;
    }
    return 0;
}

static void record_free(void *recording)
{
    struct recording *r = recording;

    if (!r)
        return;
    free(r->calls);
    free(r);
    pretend_counts.recordings--;
}

void pretend_ops(struct ops *ops, enum dtype storage, unsigned long without, size_t fail_alloc)
{
    ops_ref(ops);
    ops->name = "pretend";
    device = (struct ops_device){storage, get, give_back, put, fetch, get_host, give_host, nothing, weight_type, weight, unweight, weight_bytes, params,
                                 shadow_bytes, record_begin, record_end, replay, record_free, collect, norm, adamw};
    ops->device = &device;
    allocations = 0;
    failing = fail_alloc;
    params_at = NULL;
#define TAKE(name)                                      \
    if (!(without >> OP_##name & 1)) {                  \
        ops->forward[OP_##name] = name##_forward;       \
        if (op_##name.backward)                         \
            ops->backward[OP_##name] = name##_backward; \
    }
    OP_LIST(TAKE)
#undef TAKE
}
