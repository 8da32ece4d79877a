/* lora info --norms: how large the weights of a checkpoint, or the changes of a LoRA, are, block by block. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cmd/info.h"
#include "ref/base/mem.h"
#include "ref/base/thread.h"
#include "ref/lora/norm.h"
#include "ref/lora/target.h"

enum { TOP_MODULES = 10, SD_LAYERS = 2 };

struct item {
    const struct lora_module *module; /* a LoRA's, or */
    const struct model_tensor *tensor;
    double norm;
    int block; /* of the 26; -1 none */
};

struct job {
    struct item *item; /* [n] */
    size_t n;
    const struct info_subject *s;
};

static int lora_norm(struct item *it, struct err *err)
{
    const struct lora_module *m = it->module;
    size_t columns, up_n, down_n;
    float *up = NULL, *down = NULL;
    int rc = -1;

    if (!mem_mul(m->in, m->kh * m->kw, &columns) || !mem_mul(m->out, m->rank, &up_n) || !mem_mul(m->rank, columns, &down_n) ||
        up_n > SIZE_MAX / 4 || down_n > SIZE_MAX / 4)
        return err_memory(err, ~0ULL, "the factors of a LoRA module");
    up = mem_new(up_n * sizeof *up, "a LoRA factor", err);
    down = up ? mem_new(down_n * sizeof *down, "a LoRA factor", err) : NULL;
    if (!down || lora_module_read_f32(m, up, down, err) || norm_of_product(up, down, m->out, m->rank, columns, &it->norm, err))
        goto out;
    it->norm *= fabs(m->alpha) / (double)m->rank;
    rc = 0;
out:
    free(up);
    free(down);
    return rc;
}

/* A megabyte at a time, so that a thread needs no more however large the tensor is. */
static int tensor_norm(struct item *it, const struct info_subject *s, struct err *err)
{
    enum { STEP = 1 << 18 };
    const struct model_tensor *t = it->tensor;
    size_t size = dtype_size(t->dtype), n = t->nbytes / size;
    char *raw = mem_new(STEP * size, "a part of a tensor", err);
    float *x = raw ? mem_new(STEP * sizeof *x, "a part of a tensor", err) : NULL;
    double sum = 0;
    int rc = x ? 0 : -1;

    for (size_t at = 0; rc == 0 && at < n; at += STEP) {
        size_t k = n - at < STEP ? n - at : STEP, bad;

        rc = model_read_part(t, at * size, k * size, raw, err);
        if (rc)
            break;
        bad = dtype_find_nonfinite(raw, t->dtype, k);
        if (bad < k)
            rc = err_set(err,
                         "'%s': tensor '%s' has a NaN or infinity at element %zu; the file is damaged or was saved from a "
                         "diverged training",
                         s->path, t->entry->name, at + bad);
        dtype_convert(x, DT_F32, raw, t->dtype, k);
        sum += norm_squared(x, k);
    }
    it->norm = sqrt(sum);
    free(raw);
    free(x);
    return rc;
}

static int piece(void *ctx, size_t index, struct err *err)
{
    struct job *job = ctx;
    struct item *it = &job->item[index];

    return it->module ? lora_norm(it, err) : tensor_norm(it, job->s, err);
}

static int block_of(enum model_part part, const char *path, size_t length, size_t layers)
{
    char module[NAMES_MAX];

    if (length >= sizeof module)
        return -1;
    memcpy(module, path, length);
    module[length] = 0;
    return target_block(part, module, layers);
}

/* Fills the list; its room suffices for every tensor. */
static void collect(struct job *job)
{
    const struct info_subject *s = job->s;

    for (size_t i = 0; s->lora && i < s->lora->count; i++) {
        const struct lora_module *m = &s->lora->module[i];

        job->item[job->n++] = (struct item){.module = m, .block = block_of(m->part, m->path, strlen(m->path), SD_LAYERS)};
    }
    for (size_t i = 0; s->model && i < s->model->count; i++) {
        const struct model_tensor *t = &s->model->tensor[i];
        const char *leaf = strrchr(t->name, '.');

        if (t->part == MODEL_OTHER || !dtype_is_float(t->dtype))
            continue;
        job->item[job->n++] = (struct item){
            .tensor = t,
            .block = block_of(t->part, t->name, leaf ? (size_t)(leaf - t->name) : strlen(t->name), s->model->plan.unet_layers)};
    }
}

static int larger(const void *a, const void *b)
{
    double x = ((const struct item *)a)->norm, y = ((const struct item *)b)->norm;

    return x < y ? 1 : x > y ? -1 : 0;
}

static json_t *to_json(struct job *job)
{
    double block[TARGET_BLOCKS] = {0}, total = 0;
    bool seen[TARGET_BLOCKS] = {0};
    json_t *blocks = json_array(), *modules = json_array();

    for (size_t i = 0; i < job->n; i++) {
        double square = job->item[i].norm * job->item[i].norm;

        total += square;
        if (job->item[i].block >= 0) {
            block[job->item[i].block] += square;
            seen[job->item[i].block] = true;
        }
    }
    for (int b = 0; b < TARGET_BLOCKS; b++)
        if (seen[b])
            json_array_append_new(blocks, json_pack("{s:s, s:f}", "block", target_block_name(b), "norm", sqrt(block[b])));
    qsort(job->item, job->n, sizeof *job->item, larger);
    for (size_t i = 0; i < job->n && (job->item[i].module || i < TOP_MODULES); i++) {
        const struct item *it = &job->item[i];

        json_array_append_new(modules,
                              json_pack("{s:s, s:s, s:f}", "part", names_part(it->module ? it->module->part : it->tensor->part),
                                        "name", it->module ? it->module->path : it->tensor->name, "norm", it->norm));
    }
    return json_pack("{s:f, s:o, s:o}", "total", sqrt(total), "blocks", blocks, "largest", modules);
}

json_t *info_norms(const struct info_subject *s, struct err *err)
{
    struct job job = {.s = s};
    size_t n = s->lora ? s->lora->count : s->model ? s->model->count : 0;
    json_t *j = NULL;

    if (n == 0) {
        err_set(err, "'%s': --norms needs a Stable Diffusion 1.x/2.x checkpoint or LoRA%s%s", s->path, s->why[0] ? "; " : "",
                s->why);
        return NULL;
    }
    job.item = mem_zero(n, sizeof *job.item, "the list of norms", err);
    if (!job.item)
        return NULL;
    collect(&job);
    if (thread_for(job.n, piece, &job, err) == 0 && !(j = to_json(&job)))
        err_memory(err, n, "the norms as JSON");
    free(job.item);
    return j;
}
