/* Merging LoRAs into a checkpoint, streamed: each tensor of the file is read, patched, converted and written once, in the
 * order of the new file; a tensor that does not change is copied without passing through the program. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cmd/convert.h"
#include "cmd/merge.h"
#include "cmd/merge_report.h"
#include "cmd/progress.h"
#include "formats/model_write.h"
#include "ref/base/thread.h"
#include "ref/lora/merge.h"

#define CHUNK_BYTES ((size_t)1 << 20) /* read, patched and written at a time: stays in the second-level cache */
#define LISTED      20                /* missing modules that are named one by one */

/* One module of one LoRA at work on one tensor. */
struct use {
    const struct model_tensor *t;
    const struct lora_module *m;
    size_t input;
    double scale;
    size_t out, in; /* of the weight seen as a matrix */
};

/* What one thread keeps from tensor to tensor. */
struct worker {
    unsigned char *src, *dst;
    size_t src_size, dst_size;
    float *factors, *spare, *work;
    size_t factors_size, spare_size, work_size;
    struct lora_factors *f;
    size_t f_size;
};

struct into {
    struct merge_job *job;
    struct model *m;
    struct use *use; /* [uses], by source, then tensor, then input */
    size_t uses, use_cap;
    size_t *use_first;        /* [source_count + 1] */
    struct tensor_spec *spec; /* [source_count] */
    struct tensor_writer *writer;
    struct worker *worker;       /* [thread_count()] */
    struct merge_change *change; /* [uses], the first use of a tensor holds its figures */
    struct progress *progress;
    size_t done; /* bytes that progress knows of */
    struct merge_report report;
};

/* Room for n elements in a buffer that keeps nothing. */
static int room(void *buffer, size_t *have, size_t n, size_t size, struct err *err)
{
    void **p = buffer;
    size_t bytes;

    if (n <= *have && *p)
        return 0;
    if (!mem_mul(n, size, &bytes))
        return err_memory(err, (unsigned long long)-1, "a tensor");
    free(*p);
    *have = 0;
    *p = mem_new(bytes, "a tensor", err);
    if (!*p)
        return -1;
    *have = n;
    return 0;
}

/* ---- Plan: which module goes where ---- */

static int compare_uses(const void *a, const void *b)
{
    const struct use *x = a, *y = b;

    if (x->t->source != y->t->source)
        return x->t->source < y->t->source ? -1 : 1;
    if (x->t->offset != y->t->offset)
        return x->t->offset < y->t->offset ? -1 : 1;
    return x->input < y->input ? -1 : x->input > y->input;
}

/* v1 with v2, said before any module is looked at. */
static int check_same_kind(const struct into *k, const struct merge_input *in, struct err *err)
{
    const struct lora_file *f = in->file;
    const struct model_tensor *q = model_find(k->m, MODEL_TEXT_ENCODER, "text_model.encoder.layers.0.self_attn.q_proj.weight");

    if (f->context_width && k->m->context_width && f->context_width != k->m->context_width)
        return err_set(
            err,
            "'%s' was made for %s: its cross-attention takes %zu values, that of '%s' (%s) takes %zu; use a LoRA made for "
            "this kind of model",
            f->path, f->sd2 ? "Stable Diffusion 2.x" : "Stable Diffusion 1.x", f->context_width, k->m->path,
            k->m->arch == MODEL_SD2 ? "2.x" : "1.x", k->m->context_width);
    if (f->text_width && q && q->shape.dim[1] != f->text_width)
        return err_set(
            err,
            "'%s' was made for another text encoder: it is %zu wide there and %zu wide in '%s'; use a LoRA made for this "
            "kind of model",
            f->path, f->text_width, q->shape.dim[1], k->m->path);
    return 0;
}

static int check_shape(const struct into *k, const struct merge_input *in, const struct lora_module *m,
                       const struct model_tensor *t, struct err *err)
{
    size_t kh = t->shape.ndim == 4 ? t->shape.dim[2] : 1, kw = t->shape.ndim == 4 ? t->shape.dim[3] : 1;
    char shape[128];

    if (!dtype_is_float(t->dtype))
        return err_set(err,
                       "'%s': tensor '%s' is of type %s, which cannot be merged into; convert the checkpoint to fp16 first",
                       k->m->path, t->entry->name, dtype_name(t->dtype));
    if ((t->shape.ndim == 2 || t->shape.ndim == 4) && t->shape.dim[0] == m->out && t->shape.dim[1] == m->in && kh == m->kh &&
        kw == m->kw)
        return 0;
    return err_set(err,
                   "'%s': module '%s' changes a weight of [%zu, %zu, %zu, %zu], but '%s' of '%s' is %s; use a LoRA made for "
                   "this kind of model",
                   in->file->path, m->key, m->out, m->in, m->kh, m->kw, t->entry->name, k->m->path,
                   shape_print(&t->shape, shape, sizeof shape));
}

/* One line for each of the first missing modules, when there is a person to read it. */
static void say_missing(struct into *k, const struct merge_input *in, const char *key, size_t already)
{
    if (already < LISTED)
        command_warn(k->job->run, "'%s': module '%s' has no place in '%s'", in->name, key, merge_base_name(k->m->path));
    else if (already == LISTED)
        command_warn(k->job->run, "'%s': more modules have no place in '%s'", in->name, merge_base_name(k->m->path));
}

/* Finds the tensors of one LoRA's modules. */
static int plan_input(struct into *k, size_t index, struct err *err)
{
    struct merge_input *in = &k->job->input[index];
    struct merge_report_input *said = &k->report.input[index];
    char name[NAMES_MAX + 8];

    if (check_same_kind(k, in, err))
        return -1;
    for (size_t i = 0; i < in->file->count; i++) {
        const struct lora_module *m = &in->file->module[i];
        const struct model_tensor *t;
        struct use *u;

        snprintf(name, sizeof name, "%s.weight", m->path);
        t = model_find(k->m, m->part, name);
        if (!t) {
            say_missing(k, in, m->key, said->missing++);
            continue;
        }
        if (check_shape(k, in, m, t, err))
            return -1;
        said->modules[m->part]++;
        if (merge_scale(k->job, in, m, k->m->plan.unet_layers) == 0) {
            said->zero++;
            continue;
        }
        if (mem_grow(&k->use, &k->use_cap, k->uses, sizeof *k->use, "the merge plan", err))
            return -1;
        u = &k->use[k->uses++];
        *u = (struct use){t, m, index, merge_scale(k->job, in, m, k->m->plan.unet_layers), m->out, m->in * m->kh * m->kw};
    }
    for (size_t i = 0; i < in->file->unknown_count; i++)
        say_missing(k, in, in->file->unknown[i], said->missing++);
    if (said->missing == in->file->count + in->file->unknown_count)
        return err_set(err, "no module of '%s' has a place in '%s'; use a LoRA made for this kind of model", in->file->path,
                       k->m->path);
    if (said->missing && !k->job->o->ignore_missing)
        return err_set(
            err, "%zu of %zu modules of '%s' have no place in '%s'; nothing was written: --ignore_missing merges the rest",
            said->missing, in->file->count + in->file->unknown_count, in->file->path, k->m->path);
    return 0;
}

/* The type that an entry gets in the new file. v0.3.0 casts what it loads into its models and leaves the rest as it was. */
static enum dtype target_type(const struct into *k, const struct model_source *s)
{
    const struct merge_options *o = k->job->o;
    bool model = k->m->in_source[s->first]->part != MODEL_OTHER;

    if (!dtype_is_float(s->entry->dtype))
        return s->entry->dtype;
    if (k->job->run->compat)
        return !model ? s->entry->dtype : o->save_precision.set ? o->save_precision.dtype : k->job->precision;
    if (o->save_precision.set)
        return o->save_precision.dtype;
    return o->precision.set ? o->precision.dtype : s->entry->dtype;
}

static int plan(struct into *k, struct err *err)
{
    size_t n = k->m->source_count, at = 0;

    for (size_t i = 0; i < k->job->count; i++)
        if (plan_input(k, i, err))
            return -1;
    if (k->uses)
        qsort(k->use, k->uses, sizeof *k->use, compare_uses);
    k->use_first = mem_zero(n + 1, sizeof *k->use_first, "the merge plan", err);
    k->spec = mem_zero(n, sizeof *k->spec, "the merge plan", err);
    k->worker = mem_zero((size_t)thread_count(), sizeof *k->worker, "the merge plan", err);
    k->change = mem_zero(k->uses ? k->uses : 1, sizeof *k->change, "the merge plan", err);
    if (!k->use_first || !k->spec || !k->worker || !k->change)
        return -1;
    for (size_t i = 0; i < n; i++) {
        const struct model_source *s = &k->m->source[i];

        k->use_first[i] = at;
        while (at < k->uses && k->use[at].t->source == i)
            at++;
        k->spec[i] = (struct tensor_spec){s->entry->name, target_type(k, s), s->entry->shape};
        k->report.bytes += s->entry->nbytes;
    }
    k->use_first[n] = at;
    return 0;
}

/* ---- Work: one tensor of the file ---- */

static int load_factors(struct into *k, struct worker *w, const struct use *u, size_t n, struct err *err)
{
    size_t floats = 0, spare = 0;
    float *at;

    for (size_t i = 0; i < n; i++) {
        size_t up = u[i].out * u[i].m->rank, down = u[i].in * u[i].m->rank;

        floats += up + down;
        spare = up > spare ? up : spare;
        spare = down > spare ? down : spare;
    }
    if (room(&w->factors, &w->factors_size, floats, sizeof *w->factors, err) || room(&w->f, &w->f_size, n, sizeof *w->f, err) ||
        room(&w->work, &w->work_size, merge_work_floats(u->in), sizeof *w->work, err) ||
        (k->job->run->compat && room(&w->spare, &w->spare_size, spare, sizeof *w->spare, err)))
        return -1;
    at = w->factors;
    for (size_t i = 0; i < n; i++) {
        float *up = at, *down = at + u[i].out * u[i].m->rank;

        if (merge_read_factors(k->job, u[i].m, up, down, w->spare, err))
            return -1;
        w->f[i] = (struct lora_factors){up, down, u[i].m->rank, u[i].scale};
        at = down + u[i].in * u[i].m->rank;
    }
    return 0;
}

/* from -> to; in v0.3.0's mode by way of --precision, since there whole models are cast before they are saved. */
static void convert(const struct into *k, enum model_part part, void *dst, enum dtype to, const void *src, enum dtype from,
                    size_t n)
{
    enum dtype via = k->job->precision;
    uint16_t half[2048];

    if (!k->job->run->compat || via == DT_F32 || (part != MODEL_UNET && part != MODEL_TEXT_ENCODER)) {
        dtype_convert(dst, to, src, from, n);
        return;
    }
    for (size_t i = 0, m; i < n; i += m) {
        m = n - i < 2048 ? n - i : 2048;
        dtype_convert(half, via, (const char *)src + i * dtype_size(from), from, m);
        dtype_convert((char *)dst + i * dtype_size(to), to, half, via, m);
    }
}

/* A source as rows: an entry [rows, width], and where its bytes are. */
struct rows {
    size_t index; /* of the source */
    const struct model_source *s;
    size_t rows, width, row_bytes, to_row_bytes;
    enum dtype from, to;
};

/* Reads, patches, converts and writes rows [first, first + count): those of one tensor with its n modules, or n = 0. */
static int rewrite_stretch(struct into *k, struct worker *w, const struct rows *r, size_t first, size_t count,
                           const struct use *use, size_t n, struct merge_stats *stats, struct err *err)
{
    const struct tensor_entry *e = r->s->entry;
    size_t step = e->plain ? CHUNK_BYTES / (r->row_bytes ? r->row_bytes : 1) : count, m;

    step = step < 64 ? 64 : step;
    if (n && load_factors(k, w, use, n, err))
        return -1;
    for (size_t row = first; row < first + count; row += m) {
        unsigned char *src = e->plain ? w->src : w->src + row * r->row_bytes, *dst = r->to == r->from ? src : w->dst;

        m = first + count - row < step ? first + count - row : step;
        if (e->plain && tensor_file_read_part(r->s->file, e, row * r->row_bytes, m * r->row_bytes, src, err))
            return -1;
        if (n == 0)
            convert(k, k->m->in_source[r->s->first]->part, dst, r->to, src, r->from, m * r->width);
        else if (k->job->run->compat
                     ? merge_weight_v030(dst, r->to, src, r->from, m, r->width, w->f, n, k->job->precision, w->work, stats, err)
                     : merge_weight(dst, r->to, src, r->from, m, r->width, w->f, n, w->work, stats, err))
            return err_prefix(err, "'%s': '%s': ", k->m->path, e->name);
        if (tensor_writer_put_part(k->writer, r->index, row * r->to_row_bytes, m * r->to_row_bytes, dst, err))
            return -1;
        for (size_t i = 0; i < n; i++)
            w->f[i].up += m * w->f[i].rank;
    }
    return 0;
}

/* Buffers for the largest stretch, and all bytes of an entry that can only be read whole. */
static int prepare_rows(struct worker *w, const struct rows *r, struct err *err)
{
    const struct tensor_entry *e = r->s->entry;
    size_t step = e->plain ? CHUNK_BYTES / (r->row_bytes ? r->row_bytes : 1) : r->rows;

    step = step < 64 ? 64 : step;
    step = step < r->rows ? step : r->rows;
    if (room(&w->src, &w->src_size, step * r->row_bytes, 1, err))
        return -1;
    if (r->to != r->from && room(&w->dst, &w->dst_size, step * r->to_row_bytes, 1, err))
        return -1;
    return e->plain ? 0 : tensor_file_read(r->s->file, e, w->src, err);
}

static int rewrite(struct into *k, struct worker *w, size_t i, struct err *err)
{
    const struct model_source *s = &k->m->source[i];
    const struct shape *shape = &s->entry->shape;
    struct rows r = {.index = i, .s = s, .from = s->entry->dtype, .to = k->spec[i].dtype};
    size_t at = 0, u = k->use_first[i], n;

    r.rows = shape->ndim ? shape->dim[0] : 1;
    r.width = r.rows ? s->entry->nbytes / dtype_size(r.from) / r.rows : 0;
    r.row_bytes = r.width * dtype_size(r.from);
    r.to_row_bytes = r.width * dtype_size(r.to);
    if (r.rows * r.width == 0)
        return tensor_writer_put(k->writer, i, "", err);
    if (prepare_rows(w, &r, err))
        return -1;
    for (; u < k->use_first[i + 1]; u += n) {
        const struct model_tensor *t = k->use[u].t;
        size_t first = t->offset / r.row_bytes;
        struct merge_stats stats = {.want_rounding = k->job->o->undo};

        for (n = 1; u + n < k->use_first[i + 1] && k->use[u + n].t == t; n++)
            ;
        if (first > at && rewrite_stretch(k, w, &r, at, first - at, NULL, 0, NULL, err))
            return -1;
        if (rewrite_stretch(k, w, &r, first, t->shape.dim[0], &k->use[u], n, &stats, err))
            return -1;
        at = first + t->shape.dim[0];
        k->change[u] = (struct merge_change){t->part, t->name, stats.weight2, stats.delta2, stats.rounding2};
    }
    return at < r.rows ? rewrite_stretch(k, w, &r, at, r.rows - at, NULL, 0, NULL, err) : 0;
}

/* The index-th tensor of the new file. */
static int work(void *ctx, size_t index, struct err *err)
{
    struct into *k = ctx;
    size_t i = tensor_writer_order(k->writer, index);
    const struct model_source *s = &k->m->source[i];
    bool same = k->use_first[i] == k->use_first[i + 1] && k->spec[i].dtype == s->entry->dtype;
    bool rounded = k->job->run->compat && k->job->precision != DT_F32 && dtype_is_float(s->entry->dtype);
    int rc;

    rc = same && !rounded ? tensor_writer_copy(k->writer, i, s->file, s->entry, err)
                          : rewrite(k, &k->worker[thread_index()], i, err);
    progress_step(k->progress, s->entry->nbytes);
    return rc;
}

/* ---- The file ---- */

/* The source's metadata and a note of what was merged. *items is owned by a, the strings too. v0.3.0 writes no such note. */
static int make_metadata(const struct into *k, struct arena *a, struct metadata_item **items, size_t *n, struct err *err)
{
    bool keep = !k->job->o->no_metadata && !k->job->run->compat;
    json_t *recipe = keep ? merge_recipe(k->job, err) : NULL;
    char *text = recipe ? json_dumps(recipe, JSON_COMPACT | JSON_REAL_PRECISION(9)) : NULL;
    char *kept = text ? arena_str(a, text, err) : NULL;

    json_decref(recipe);
    free(text);
    if ((keep && !kept) || model_write_metadata(k->m, keep, a, items, n, err))
        return -1;
    for (size_t i = 0; keep && i < *n; i++)
        if (strcmp((*items)[i].key, "lora_merge_recipe") == 0)
            (*items)[i--] = (*items)[--*n];
    if (keep)
        (*items)[(*n)++] = (struct metadata_item){"lora_merge_recipe", kept};
    return 0;
}

static int write_file(struct into *k, struct err *err)
{
    struct arena a = {0};
    struct metadata_item *items = NULL;
    size_t n = 0;
    int rc = -1;

    if (make_metadata(k, &a, &items, &n, err))
        goto out;
    if (tensor_writer_open(&k->writer, k->job->o->save_to, NULL, k->spec, k->m->source_count, items, n, err))
        goto out;
    k->progress = progress_start(k->job->run, "merging", k->report.bytes, "bytes");
    rc = thread_for(k->m->source_count, work, k, err);
    progress_end(k->progress);
    if (rc == 0) {
        rc = tensor_writer_commit(k->writer, err);
        k->writer = NULL;
    }
out:
    tensor_writer_abort(k->writer);
    arena_free(&a);
    return rc;
}

/* ---- Folders: from one, or into one, by way of the converter ---- */

/* The first use of a tensor, and how many there are. */
static size_t uses_of(const struct into *k, const struct model_tensor *t, size_t *n)
{
    size_t u = 0;

    while (u < k->uses && k->use[u].t != t)
        u++;
    for (*n = 0; u + *n < k->uses && k->use[u + *n].t == t; ++*n)
        ;
    return u;
}

static bool changes(void *ctx, const struct model_tensor *t)
{
    size_t n;

    uses_of(ctx, t, &n);
    return n > 0;
}

static int apply(void *ctx, const struct model_tensor *t, size_t first, size_t rows, void *dst, enum dtype to, const void *src,
                 struct err *err)
{
    struct into *k = ctx;
    struct worker *w = &k->worker[0];
    size_t n, u = uses_of(k, t, &n), width = t->nbytes / dtype_size(t->dtype) / t->shape.dim[0];
    struct merge_change *c = &k->change[u];
    struct merge_stats stats = {.want_rounding = k->job->o->undo};

    if (first == 0 && load_factors(k, w, &k->use[u], n, err))
        return -1;
    if (merge_weight(dst, to, src, t->dtype, rows, width, w->f, n, w->work, &stats, err))
        return -1;
    for (size_t i = 0; i < n; i++)
        w->f[i].up += rows * w->f[i].rank;
    *c = (struct merge_change){t->part, t->name, c->weight2 + stats.weight2, c->delta2 + stats.delta2,
                               c->rounding2 + stats.rounding2};
    return 0;
}

static void step(void *ctx, size_t done, size_t total)
{
    struct into *k = ctx;

    if (!k->progress)
        k->progress = progress_start(k->job->run, "merging", total, "bytes");
    progress_step(k->progress, done - k->done);
    k->done = done;
}

static int write_converted(struct into *k, struct err *err)
{
    const struct merge_options *o = k->job->o;
    const struct option_dtype *type = o->save_precision.set ? &o->save_precision : &o->precision;
    struct model_patch patch = {k, changes, apply};
    struct model_write_options w = {.layout = convert_is_file_name(o->save_to) ? MODEL_LDM : MODEL_DIFFUSERS,
                                    .cast = type->set, .dtype = type->dtype, .no_metadata = o->no_metadata, .patch = &patch,
                                    .step = step, .step_ctx = k};
    int rc = model_write(k->m, o->save_to, &w, NULL, err);

    progress_end(k->progress);
    return rc;
}

static void into_free(struct into *k)
{
    for (size_t i = 0; k->worker && i < (size_t)thread_count(); i++) {
        struct worker *w = &k->worker[i];

        free(w->src);
        free(w->dst);
        free(w->factors);
        free(w->spare);
        free(w->work);
        free(w->f);
    }
    free(k->worker);
    free(k->use);
    free(k->use_first);
    free(k->spec);
    free(k->change);
    merge_report_free(&k->report);
    model_close(k->m);
}

int merge_into_model(struct merge_job *job, struct err *err)
{
    struct into k = {.job = job};
    bool converted;
    int rc = -1;

    if (merge_report_init(&k.report, job, err) || model_open(&k.m, job->o->sd_model, err))
        goto out;
    converted = k.m->folder || !convert_is_file_name(job->o->save_to);
    if (!convert_is_file_name(job->o->save_to) && convert_ends_unlike_folder(job->o->save_to)) {
        err_usage(err, "'%s' is named like a file of no known kind; end it with .safetensors or .ckpt, or with / for a folder",
                  job->o->save_to);
        goto out;
    }
    if (converted && job->run->compat) {
        err_usage(err, "--compat v0.3.0 merges single files; 'lora convert' '%s' first, or leave --compat away",
                  k.m->folder ? job->o->sd_model : job->o->save_to);
        goto out;
    }
    if ((job->o->v2 || job->run->compat) && model_expect_v2(k.m, job->o->v2, err))
        goto out;
    if (plan(&k, err) || (converted ? write_converted(&k, err) : write_file(&k, err)))
        goto out;
    rc = merge_report_model(&k.report, job, k.m, k.change, k.uses, err);
out:
    into_free(&k);
    return rc;
}
