/* Merging LoRAs into one LoRA, module by module. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "cmd/lora_meta.h"
#include "cmd/merge.h"
#include "cmd/progress.h"
#include "ref/base/thread.h"
#include "ref/lora/combine.h"

/* A module of the result and what it is made of: parts [first, first + n) of the list. */
struct group {
    size_t first, n;
    size_t total; /* sum of the ranks */
    bool exact;   /* nothing was cut */
    struct combined c;
};

/* A module of one input. */
struct source {
    const struct lora_module *m;
    size_t input;
};

struct turn {
    size_t cost, group;
};

struct worker {
    float *data;
    size_t size;
    struct lora_factors *f;
    size_t f_size;
    struct combine_work combine;
};

struct loras {
    struct merge_job *job;
    struct source *source; /* [sources], by module, then input */
    size_t sources;
    struct group *group;  /* [groups] */
    struct lora_out *out; /* [groups]; up and down owned here, in one block that starts at up */
    struct turn *turn;    /* [groups] most work first, so that threads end together */
    size_t groups;
    enum dtype dtype;
    struct worker *worker; /* [thread_count()] */
    struct progress *progress;
};

static int compare_sources(const void *a, const void *b)
{
    const struct source *x = a, *y = b;
    int by_path;

    if (x->m->part != y->m->part)
        return x->m->part < y->m->part ? -1 : 1;
    by_path = strcmp(x->m->path, y->m->path);
    if (by_path)
        return by_path;
    return x->input < y->input ? -1 : x->input > y->input;
}

static bool is_conv(const struct lora_module *m)
{
    return m->down.entry->shape.ndim == 4;
}

static size_t columns(const struct lora_module *m)
{
    return m->in * m->kh * m->kw;
}

static int check_same_shape(const struct loras *k, const struct source *a, const struct source *b, struct err *err)
{
    const struct lora_module *x = a->m, *y = b->m;

    if (x->out == y->out && x->in == y->in && x->kh == y->kh && x->kw == y->kw)
        return 0;
    return err_set(
        err,
        "module '%s' changes a weight of [%zu, %zu, %zu, %zu] in '%s' and of [%zu, %zu, %zu, %zu] in '%s'; LoRAs of different "
        "models (1.x and 2.x) cannot become one",
        x->path, x->out, x->in, x->kh, x->kw, k->job->input[a->input].file->path, y->out, y->in, y->kh, y->kw,
        k->job->input[b->input].file->path);
}

static int collect(struct loras *k, struct err *err)
{
    size_t n = 0;

    for (size_t i = 0; i < k->job->count; i++) {
        const struct lora_file *f = k->job->input[i].file;

        n += f->count;
        if (f->unknown_count && !k->job->o->ignore_missing)
            return err_set(
                err,
                "'%s': %zu modules have names that no rule knows (first: '%s'); nothing was written: --ignore_missing merges "
                "the rest",
                f->path, f->unknown_count, f->unknown[0]);
    }
    k->source = mem_zero(n, sizeof *k->source, "the list of modules", err);
    k->group = mem_zero(n, sizeof *k->group, "the list of modules", err);
    k->out = mem_zero(n, sizeof *k->out, "the list of modules", err);
    k->turn = mem_zero(n, sizeof *k->turn, "the list of modules", err);
    k->worker = mem_zero((size_t)thread_count(), sizeof *k->worker, "the list of modules", err);
    if (!k->source || !k->group || !k->out || !k->turn || !k->worker)
        return -1;
    for (size_t i = 0; i < k->job->count; i++)
        for (size_t j = 0; j < k->job->input[i].file->count; j++)
            k->source[k->sources++] = (struct source){&k->job->input[i].file->module[j], i};
    qsort(k->source, k->sources, sizeof *k->source, compare_sources);
    for (size_t i = 0; i < k->sources; i++) {
        struct source *s = &k->source[i];
        struct group *g = k->groups ? &k->group[k->groups - 1] : NULL;

        if (g && s->m->part == k->source[g->first].m->part && strcmp(s->m->path, k->source[g->first].m->path) == 0) {
            if (check_same_shape(k, &k->source[g->first], s, err))
                return -1;
        } else {
            g = &k->group[k->groups++];
            g->first = i;
        }
        g->n++;
        g->total += s->m->rank;
    }
    return 0;
}

/* The type of the result: --save_precision, --precision, or the one that loses nothing of any input. */
static enum dtype result_type(const struct merge_job *job)
{
    enum dtype t = job->input[0].file->dtype;

    if (job->o->save_precision.set)
        return job->o->save_precision.dtype;
    if (job->o->precision.set || job->run->compat)
        return job->precision;
    for (size_t i = 1; i < job->count; i++)
        if (job->input[i].file->dtype != t)
            t = DT_F32;
    return t == DT_F16 || t == DT_BF16 ? t : DT_F32;
}

static int by_cost(const void *a, const void *b)
{
    const struct turn *x = a, *y = b;

    if (x->cost != y->cost)
        return x->cost > y->cost ? -1 : 1;
    return x->group < y->group ? -1 : 1;
}

static void order_groups(struct loras *k)
{
    for (size_t i = 0; i < k->groups; i++) {
        const struct lora_module *m = k->source[k->group[i].first].m;

        k->turn[i] = (struct turn){(m->out + columns(m)) * k->group[i].total, i};
    }
    qsort(k->turn, k->groups, sizeof *k->turn, by_cost);
}

/* The largest rank that comes in, or --dim, --conv_dim. */
static struct rank_rule group_rule(const struct loras *k, const struct group *g)
{
    const struct merge_options *o = k->job->o;
    const struct lora_module *first = k->source[g->first].m;
    struct rank_rule rule = {RANK_FIXED, 1, 0};

    for (size_t i = 0; i < g->n; i++)
        rule.max_rank = k->source[g->first + i].m->rank > rule.max_rank ? k->source[g->first + i].m->rank : rule.max_rank;
    if (o->dim)
        rule.max_rank = o->dim;
    if (o->conv_dim && first->kh * first->kw > 1)
        rule.max_rank = o->conv_dim;
    return rule;
}

/* ---- v0.3.0's arithmetic: up = sum of ratio * up, down = sum of ratio * down, every step rounded to --precision ---- */

static void add_factor(float *sum, float *x, size_t n, double ratio, bool first, enum dtype t)
{
    uint16_t half[1024];

    for (size_t i = 0; i < n; i++)
        x[i] *= (float)ratio;
    for (size_t i = 0, m; t != DT_F32 && i < n; i += m) {
        m = n - i < 1024 ? n - i : 1024;
        dtype_convert(half, t, x + i, DT_F32, m);
        dtype_convert(x + i, DT_F32, half, t, m);
    }
    for (size_t i = 0; i < n; i++)
        sum[i] = first ? x[i] : sum[i] + x[i];
    for (size_t i = 0, m; !first && t != DT_F32 && i < n; i += m) {
        m = n - i < 1024 ? n - i : 1024;
        dtype_convert(half, t, sum + i, DT_F32, m);
        dtype_convert(sum + i, DT_F32, half, t, m);
    }
}

static int sum_factors(struct loras *k, struct worker *w, const struct group *g, struct lora_out *out, float *up, float *down,
                       struct err *err)
{
    const struct source *s = &k->source[g->first];
    size_t r = s->m->rank, nu = s->m->out * r, nd = r * columns(s->m);
    float *x = w->data, *y = x + nu, *spare = y + nd;
    double alpha = 0;
    bool compat = k->job->run->compat;

    out->has_alpha = false;
    for (size_t i = 0; i < g->n; i++) {
        double ratio = merge_ratio(&k->job->input[s[i].input], s[i].m, 2);

        if (s[i].m->rank != r)
            return err_set(err,
                           "module '%s' has rank %zu in '%s' and %zu in '%s': factors of different ranks cannot be added; use "
                           "--method best or concat",
                           s->m->path, r, k->job->input[s->input].file->path, s[i].m->rank,
                           k->job->input[s[i].input].file->path);
        if (!compat && s[i].m->alpha != s->m->alpha)
            return err_set(err,
                           "module '%s' has alpha %g in '%s' and %g in '%s': factors of different scales cannot be added; use "
                           "--method best or concat",
                           s->m->path, s->m->alpha, k->job->input[s->input].file->path, s[i].m->alpha,
                           k->job->input[s[i].input].file->path);
        if (merge_read_factors(k->job, s[i].m, x, y, spare, err))
            return -1;
        add_factor(up, x, nu, ratio, i == 0, compat ? k->job->precision : DT_F32);
        add_factor(down, y, nd, ratio, i == 0, compat ? k->job->precision : DT_F32);
        alpha += ratio * s[i].m->alpha; /* v0.3.0 treats an alpha as any other tensor */
        out->has_alpha |= s[i].m->has_alpha;
    }
    out->rank = r;
    out->alpha = compat ? alpha : s->m->alpha;
    if (!out->has_alpha)
        out->alpha = (double)r;
    return 0;
}

/* ---- The exact sum, at its own rank or approximated ---- */

static int combine(struct loras *k, struct worker *w, struct group *g, struct lora_out *out, float *up, float *down,
                   struct err *err)
{
    const struct source *s = &k->source[g->first];
    struct rank_rule rule = group_rule(k, g);
    bool concat = k->job->o->method == MERGE_CONCAT;
    float *at = w->data;
    size_t n = g->n;

    for (size_t i = 0; i < g->n; i++) {
        float *x = at, *y = at + s[i].m->out * s[i].m->rank;

        at = y + s[i].m->rank * columns(s[i].m);
        if (merge_read_factors(k->job, s[i].m, x, y, NULL, err))
            return -1;
        w->f[i] = (struct lora_factors){x, y, s[i].m->rank, merge_scale(k->job, &k->job->input[s[i].input], s[i].m, 2)};
    }
    if (!concat)
        n = factors_join(w->f, n, out->out, columns(s->m));
    out->rank = factors_total_rank(w->f, n);
    g->exact = concat || out->rank <= rule.max_rank;
    if (g->exact)
        combine_concat(up, down, w->f, n, out->out, columns(s->m));
    else if (combine_best(up, down, &g->c, w->f, n, out->out, columns(s->m), &rule, &w->combine, err))
        return err_prefix(err, "module '%s': ", out->path);
    else
        out->rank = g->c.rank;
    out->alpha = (double)out->rank;
    out->has_alpha = true;
    return 0;
}

/* Room for the factors of all inputs (or v0.3.0's two and a spare), and for the result in f32. */
static int prepare(struct loras *k, struct worker *w, const struct group *g, float **up, float **down, struct err *err)
{
    const struct lora_module *m = k->source[g->first].m;
    size_t sides = m->out + columns(m), ranks = g->total > 2 * m->rank ? g->total : 2 * m->rank, need;

    if (!mem_mul(sides, ranks, &need) || !mem_mul(need, 2, &need) || need > SIZE_MAX / sizeof(float))
        return err_memory(err, (unsigned long long)-1, "the factors of a module");
    if (need > w->size) {
        free(w->data);
        w->size = 0;
        w->data = mem_new(need * sizeof *w->data, "the factors of a module", err);
        if (!w->data)
            return -1;
        w->size = need;
    }
    if (g->n > w->f_size) {
        free(w->f);
        w->f_size = 0;
        w->f = mem_zero(g->n, sizeof *w->f, "the factors of a module", err);
        if (!w->f)
            return -1;
        w->f_size = g->n;
    }
    *up = w->data + sides * ranks;
    *down = *up + m->out * ranks;
    return 0;
}

/* Rounds the result once, into memory of its own. */
static int keep(const struct loras *k, struct lora_out *out, const float *up, const float *down, struct err *err)
{
    size_t nu = out->out * out->rank, nd = out->rank * out->in * out->kh * out->kw, size = dtype_size(k->dtype);
    char *data = mem_new((nu + nd) * size, "the merged LoRA", err);

    if (!data)
        return -1;
    out->up = data;
    out->down = data + nu * size;
    dtype_convert(data, k->dtype, up, DT_F32, nu);
    dtype_convert(data + nu * size, k->dtype, down, DT_F32, nd);
    if (dtype_find_nonfinite(data, k->dtype, nu + nd) < nu + nd)
        return err_set(err, "the merged module '%s' does not fit in %s; use smaller ratios, or --save_precision bf16 or float",
                       out->path, dtype_name(k->dtype));
    return 0;
}

static int work(void *ctx, size_t index, struct err *err)
{
    struct loras *k = ctx;
    struct group *g = &k->group[k->turn[index].group];
    struct lora_out *out = &k->out[k->turn[index].group];
    const struct lora_module *m = k->source[g->first].m;
    struct worker *w = &k->worker[thread_index()];
    float *up = NULL, *down = NULL;

    *out = (struct lora_out){
        .part = m->part, .path = m->path, .out = m->out, .in = m->in, .kh = m->kh, .kw = m->kw, .dtype = k->dtype};
    for (size_t i = 0; i < g->n; i++)
        out->conv |= is_conv(k->source[g->first + i].m);
    if (prepare(k, w, g, &up, &down, err))
        return -1;
    if (k->job->o->method == MERGE_FACTORS ? sum_factors(k, w, g, out, up, down, err) : combine(k, w, g, out, up, down, err))
        return -1;
    progress_step(k->progress, 1);
    return keep(k, out, up, down, err);
}

/* ---- File and report ---- */

static int make_metadata(struct loras *k, struct lora_meta *meta, struct err *err)
{
    const char *name = merge_base_name(k->job->o->save_to), *dot = strrchr(name, '.');
    char *stem = mem_strn(name, dot && dot > name ? (size_t)(dot - name) : strlen(name), err);
    struct lora_file **files = mem_zero(k->job->count, sizeof *files, "metadata", err);
    json_t *recipe = files ? merge_recipe(k->job, err) : NULL;
    char *text = recipe ? json_dumps(recipe, JSON_COMPACT | JSON_REAL_PRECISION(9)) : NULL;
    bool sd2 = false;
    int rc = -1;

    for (size_t i = 0; files && i < k->job->count; i++) {
        files[i] = k->job->input[i].file;
        sd2 = sd2 || files[i]->sd2;
    }
    if (text && stem)
        rc = lora_meta_common(meta, files, k->job->count, err) || lora_meta_network(meta, k->out, k->groups, sd2, err) ||
                     lora_meta_set(meta, "ss_output_name", stem, err) || lora_meta_set(meta, "ss_merge_recipe", text, err)
                 ? -1
                 : 0;
    json_decref(recipe);
    free(text);
    free(stem);
    free(files);
    return rc;
}

static int write_file(struct loras *k, struct err *err)
{
    struct lora_meta meta = {0};
    struct lora_write_options w = {
        .layout = LORA_KOHYA, .dtype = k->dtype, .no_metadata = k->job->o->no_metadata || k->job->run->compat};
    struct lora_write_report report = {0};
    int rc = -1;

    if (!w.no_metadata && make_metadata(k, &meta, err))
        goto out;
    w.metadata = meta.item;
    w.n_metadata = meta.count;
    rc = lora_file_write(k->job->o->save_to, k->out, k->groups, &w, &report, err);
out:
    lora_meta_free(&meta);
    return rc;
}

struct error_figures {
    double total, worst; /* relative errors of the cut: over all modules that were approximated, and the largest */
    const char *worst_in;
    size_t cut, min_rank, max_rank;
};

static struct error_figures figures(const struct loras *k)
{
    struct error_figures e = {.min_rank = SIZE_MAX};
    double norm2 = 0, lost2 = 0;

    for (size_t i = 0; i < k->groups; i++) {
        const struct group *g = &k->group[i];
        size_t rank = k->out[i].rank;

        e.min_rank = rank < e.min_rank ? rank : e.min_rank;
        e.max_rank = rank > e.max_rank ? rank : e.max_rank;
        if (g->exact || g->c.norm2 == 0)
            continue;
        e.cut++;
        norm2 += g->c.norm2;
        lost2 += g->c.lost2;
        if (!e.worst_in || sqrt(g->c.lost2 / g->c.norm2) > e.worst) {
            e.worst = sqrt(g->c.lost2 / g->c.norm2);
            e.worst_in = k->out[i].path;
        }
    }
    e.total = norm2 > 0 ? sqrt(lost2 / norm2) : 0;
    return e;
}

static int report_json(const struct loras *k, const struct error_figures *e, unsigned long long size, double seconds,
                       struct err *err)
{
    json_t *out = merge_recipe(k->job, err);

    if (!out)
        return -1;
    json_object_set_new(out, "output", json_string(k->job->o->save_to));
    json_object_set_new(out, "bytes", json_integer((json_int_t)size));
    json_object_set_new(out, "modules", json_integer((json_int_t)k->groups));
    json_object_set_new(out, "min_rank", json_integer((json_int_t)e->min_rank));
    json_object_set_new(out, "max_rank", json_integer((json_int_t)e->max_rank));
    if (k->job->o->method != MERGE_FACTORS) {
        json_object_set_new(out, "modules_cut", json_integer((json_int_t)e->cut));
        json_object_set_new(out, "error", json_real(e->total));
        json_object_set_new(out, "worst_error", json_real(e->worst));
        json_object_set_new(out, "worst_in", e->worst_in ? json_string(e->worst_in) : json_null());
    }
    json_object_set_new(out, "seconds", json_real(seconds));
    return command_print_json(out, err);
}

static int report(const struct loras *k, struct err *err)
{
    double seconds = merge_seconds() - k->job->started;
    struct error_figures e = figures(k);
    struct stat st = {0};
    char size[32];

    (void)stat(k->job->o->save_to, &st); /* the size is a courtesy: the file has been committed */
    if (k->job->run->json)
        return report_json(k, &e, (unsigned long long)st.st_size, seconds, err);
    if (k->job->run->quiet)
        return 0;
    printf("merged %zu LoRA%s into one\n", k->job->count, k->job->count == 1 ? "" : "s");
    for (size_t i = 0; i < k->job->count; i++) {
        const struct merge_input *in = &k->job->input[i];

        printf("  %s: ratio %g", in->name, in->ratio[MODEL_UNET]);
        if (in->ratio[MODEL_UNET] != in->ratio[MODEL_TEXT_ENCODER])
            printf(" (text encoder %g)", in->ratio[MODEL_TEXT_ENCODER]);
        printf("%s, rank %zu, %zu U-Net and %zu text encoder modules%s\n", in->by_block ? ", block weights" : "",
               in->file->max_rank, in->file->part_count[MODEL_UNET], in->file->part_count[MODEL_TEXT_ENCODER],
               in->file->unknown_count ? ", modules of unknown names skipped" : "");
    }
    if (k->job->o->method == MERGE_FACTORS)
        printf("  factors added as v0.3.0 does: this does not act as applying all of them (see 'lora merge --help')\n");
    else if (e.cut)
        printf("  error of the cut to rank %zu: %.3g of what all of them do together (most: %.3g in %s); '--method concat' is "
               "exact\n",
               e.max_rank, e.total, e.worst, e.worst_in);
    else
        printf("  exact: nothing was cut\n");
    printf("wrote '%s': %zu modules, rank %zu", k->job->o->save_to, k->groups, e.min_rank);
    if (e.min_rank != e.max_rank)
        printf("-%zu", e.max_rank);
    printf(", %s, %s, %.1f s\n", dtype_name(k->dtype), command_bytes((unsigned long long)st.st_size, size, sizeof size),
           seconds);
    return 0;
}

int merge_loras(struct merge_job *job, struct err *err)
{
    struct loras k = {.job = job, .dtype = result_type(job)};
    int rc = -1;

    if (collect(&k, err))
        goto out;
    order_groups(&k);
    k.progress = progress_start(job->run, "merging", k.groups, "modules");
    rc = thread_for(k.groups, work, &k, err);
    progress_end(k.progress);
    if (rc == 0)
        rc = write_file(&k, err);
    if (rc == 0)
        rc = report(&k, err);
out:
    for (size_t i = 0; k.out && i < k.groups; i++)
        free((void *)k.out[i].up);
    for (size_t i = 0; k.worker && i < (size_t)thread_count(); i++) {
        free(k.worker[i].data);
        free(k.worker[i].f);
        combine_work_free(&k.worker[i].combine);
    }
    free(k.worker);
    free(k.source);
    free(k.group);
    free(k.out);
    free(k.turn);
    return rc;
}
