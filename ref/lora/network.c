#include "ref/lora/network.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "ref/base/rng.h"
#include "ref/base/thread.h"
#include "ref/lora/norm.h"

/* Words of module paths in the order in which the modules are made. */
static const char *const order[] = {
    "down_blocks", "up_blocks", "mid_block", "attentions", "resnets", "downsamplers", "upsamplers", "proj_in", "transformer_blocks",
    "proj_out", "attn1", "ff", "attn2", "to_q", "to_k", "to_v", "to_out", "conv1", "time_emb_proj", "conv2", "conv_shortcut",
    "self_attn", "mlp", "k_proj", "v_proj", "q_proj", "out_proj", "fc1", "fc2",
};

/* Where one word of a path stands: numbers by value, known words by the table, others behind. */
static size_t word_rank(const char *word, size_t n)
{
    if (word[0] >= '0' && word[0] <= '9')
        return strtoul(word, NULL, 10);
    for (size_t i = 0; i < sizeof order / sizeof *order; i++)
        if (strlen(order[i]) == n && memcmp(order[i], word, n) == 0)
            return i;
    return sizeof order / sizeof *order;
}

static int by_creation(const void *x, const void *y)
{
    const struct network_spec *a = &((const struct network_module *)x)->spec, *b = &((const struct network_module *)y)->spec;
    const char *p = a->path, *q = b->path;

    if (a->part != b->part)
        return a->part == MODEL_TEXT_ENCODER ? -1 : 1;
    while (*p && *q) {
        size_t n = strcspn(p, "."), m = strcspn(q, "."), i = word_rank(p, n), j = word_rank(q, m);

        if (i != j)
            return i < j ? -1 : 1;
        p += n + (p[n] == '.');
        q += m + (q[m] == '.');
    }
    return strcmp(a->path, b->path);
}

/* Elements of a factor with what fills it up to the next boundary. */
static bool padded(size_t a, size_t b, size_t *out)
{
    size_t n, align = MEM_ALIGN / sizeof(float);

    if (!mem_mul(a, b, &n) || !mem_add(n, align - 1, &n))
        return false;
    *out = n / align * align;
    return true;
}

static size_t inputs(const struct network_spec *s)
{
    return s->in * s->kh * s->kw;
}

static int place(struct network *n, struct err *err)
{
    size_t at = 0, bytes, down = 0, up = 0;

    for (size_t i = 0; i < n->count; i++) {
        const struct network_spec *s = &n->module[i].spec;

        if (s->rank == 0)
            return err_set(err, "module '%s' has rank 0", s->path);
        if (!padded(s->rank, inputs(s), &down) || !padded(s->out, s->rank, &up) || !mem_add(at, down, &at) || !mem_add(at, up, &at))
            return err_memory(err, ~0ull, "the LoRA");
        n->used += s->rank * (inputs(s) + s->out);
    }
    n->size = at;
    if (!mem_mul(n->size, sizeof(float), &bytes))
        return err_memory(err, ~0ull, "the LoRA");
    n->params = mem_new(bytes, "the LoRA", err);
    n->grads = n->params ? mem_new(bytes, "the LoRA's gradients", err) : NULL;
    if (!n->grads)
        return -1;
    memset(n->params, 0, bytes);
    memset(n->grads, 0, bytes);
    return 0;
}

static void point(struct network *n)
{
    size_t at = 0;

    for (size_t i = 0; i < n->count; i++) {
        struct network_module *m = &n->module[i];
        const struct network_spec *s = &m->spec;
        bool window = s->kh * s->kw > 1;
        struct shape down = window ? (struct shape){4, {s->rank, s->kh, s->kw, s->in}} : (struct shape){2, {s->rank, s->in}};
        size_t step = 0;

        m->down = (struct tensor){n->params + at, DT_F32, down};
        m->ddown = n->grads + at;
        padded(s->rank, inputs(s), &step);
        at += step;
        m->up = (struct tensor){n->params + at, DT_F32, {2, {s->out, s->rank}}};
        m->dup = n->grads + at;
        padded(s->out, s->rank, &step);
        at += step;
    }
}

int network_new(struct network **out, const struct network_spec *specs, size_t count, struct err *err)
{
    struct network *n;

    if (count == 0)
        return err_set(err, "no module would be trained; choose parts and ranks that leave some");
    n = mem_zero(1, sizeof *n, "the LoRA", err);
    if (!n)
        return -1;
    n->module = mem_zero(count, sizeof *n->module, "the LoRA", err);
    n->count = count;
    for (size_t i = 0; n->module && i < count; i++) {
        n->module[i].spec = specs[i];
        n->module[i].spec.path = arena_str(&n->arena, specs[i].path, err);
        if (!n->module[i].spec.path)
            goto fail;
    }
    if (!n->module)
        goto fail;
    qsort(n->module, count, sizeof *n->module, by_creation);
    if (place(n, err))
        goto fail;
    point(n);
    *out = n;
    return 0;
fail:
    network_free(n);
    return -1;
}

void network_free(struct network *n)
{
    if (!n)
        return;
    free(n->module);
    free(n->params);
    free(n->grads);
    free(n->gram);
    free(n->norm);
    arena_free(&n->arena);
    free(n);
}

/* torch makes a layer with random weights of its own first; those numbers are drawn and lost. */
static void skip_uniform(struct rng *r, size_t n)
{
    while (n-- > 0)
        rng_u32(r);
}

/* torch fills [rank, in, kh, kw]; ours is channels last. */
static void init_down(struct rng *r, struct network_module *m)
{
    const struct network_spec *s = &m->spec;
    size_t pixels = s->kh * s->kw;
    float *down = m->down.data, bound = (float)(1 / sqrt((double)inputs(s)));

    for (size_t i = 0; i < s->rank; i++)
        for (size_t k = 0; k < s->in; k++)
            for (size_t p = 0; p < pixels; p++)
                down[(i * pixels + p) * s->in + k] = rng_uniform(r) * (2 * bound) - bound;
}

void network_init(struct network *n, uint64_t seed)
{
    struct rng r;

    rng_seed(&r, seed);
    memset(n->params, 0, n->size * sizeof *n->params);
    for (size_t i = 0; i < n->count; i++) {
        const struct network_spec *s = &n->module[i].spec;

        skip_uniform(&r, s->rank * inputs(s));
        skip_uniform(&r, s->out * s->rank);
        init_down(&r, &n->module[i]);
    }
}

size_t network_bytes(const struct network *n)
{
    return 2 * n->size * sizeof(float);
}

void network_round_f16(struct network *n)
{
    for (size_t i = 0; i < n->size; i++)
        n->params[i] = dtype_f16_to_f32(dtype_f32_to_f16(n->params[i]));
}

static void scale(float *x, size_t n, float by)
{
    for (size_t i = 0; i < n; i++)
        x[i] *= by;
}

/* Room for all modules' norms, and a matrix for each thread to find one with. */
static int make_room(struct network *n, struct err *err)
{
    size_t rank = 1, cells;

    for (size_t i = 0; i < n->count; i++)
        rank = n->module[i].spec.rank > rank ? n->module[i].spec.rank : rank;
    n->cells = rank * rank;
    if (!n->gram && mem_mul(n->cells, (size_t)thread_count(), &cells))
        n->gram = mem_zero(cells, sizeof *n->gram, "the norm of a LoRA module", err);
    if (!n->norm)
        n->norm = mem_zero(n->count, sizeof *n->norm, "the norm of a LoRA module", err);
    return n->gram && n->norm ? 0 : -1;
}

static int find_norm(void *ctx, size_t i, struct err *err)
{
    struct network *n = ctx;
    const struct network_module *m = &n->module[i];
    const struct network_spec *s = &m->spec;

    (void)err;
    n->norm[i] = norm_of_product_in(m->up.data, m->down.data, s->out, s->rank, inputs(s), n->gram + (size_t)thread_index() * n->cells) *
                 s->alpha / (double)s->rank;
    return 0;
}

const double *network_norms(struct network *n, struct err *err)
{
    return make_room(n, err) || thread_for(n->count, find_norm, n, err) ? NULL : n->norm;
}

int network_limit_norms(struct network *n, double most, size_t *scaled, double *mean, double *largest, struct err *err)
{
    const double *norms = network_norms(n, err);

    if (!norms)
        return -1;
    *scaled = 0;
    *mean = *largest = 0;
    for (size_t i = 0; i < n->count; i++) {
        struct network_module *m = &n->module[i];
        const struct network_spec *s = &m->spec;
        double norm = norms[i];

        if (norm > most) {
            float by = (float)sqrt(most / norm);

            scale(m->up.data, s->out * s->rank, by);
            scale(m->down.data, s->rank * inputs(s), by);
            ++*scaled;
            norm = most;
        }
        *mean += norm / (double)n->count;
        *largest = norm > *largest ? norm : *largest;
    }
    return 0;
}

const struct network_module *network_find_nonfinite(const struct network *n)
{
    for (size_t i = 0; i < n->count; i++) {
        const struct network_module *m = &n->module[i];
        size_t down = m->spec.rank * inputs(&m->spec), up = m->spec.out * m->spec.rank;

        if (dtype_find_nonfinite(m->down.data, DT_F32, down) < down || dtype_find_nonfinite(m->up.data, DT_F32, up) < up)
            return m;
    }
    return NULL;
}
