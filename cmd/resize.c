/* lora resize: another rank for each module, or as much of it as is asked for. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "cmd/command.h"
#include "cmd/lora_meta.h"
#include "cmd/progress.h"
#include "formats/lora_file.h"
#include "formats/output.h"
#include "ref/base/thread.h"
#include "ref/lora/combine.h"

static const char *const methods[] = {"sv_ratio", "sv_fro", "sv_cumulative", NULL};

struct resize_options {
    const char *model, *save_to;
    size_t new_rank, new_conv_rank;
    int dynamic_method;
    double dynamic_param;
    struct option_dtype save_precision;
    bool verbose, overwrite, no_metadata;
};

static const struct option_row rows[] = {
    {OPTION(struct resize_options, model), .arg = "FILE", .flags = OPTION_REQUIRED, .help = "LoRA to resize, of any layout"},
    {OPTION(struct resize_options, save_to), .arg = "FILE", .flags = OPTION_REQUIRED | OPTION_OUTPUT,
     .help = "file to write (.safetensors, .ckpt)"},
    {OPTION(struct resize_options, new_rank), .arg = "N", .def = "4", .min = 1, .max = 65536,
     .help = "new rank; with --dynamic_method the largest rank allowed. A module whose rank is no larger is kept as it is"},
    {OPTION(struct resize_options, new_conv_rank), .arg = "N", .min = 1, .max = 65536,
     .help = "the same for 3x3 convolutions (default: as --new_rank)"},
    {OPTION(struct resize_options, dynamic_method), .arg = "METHOD", .choices = methods,
     .help = "choose each module's rank: sv_ratio keeps singular values above the largest / PARAM, sv_fro keeps PARAM of the "
             "Frobenius norm, sv_cumulative PARAM of the sum of singular values"},
    {OPTION(struct resize_options, dynamic_param), .arg = "X", .help = "what --dynamic_method keeps: 0.9, or for sv_ratio 20"},
    {OPTION(struct resize_options, save_precision), .arg = "TYPE",
     .help = "float, fp16 or bf16 (default: the type of the file)"},
    {OPTION(struct resize_options, verbose), .help = "print a line for every module"},
    {OPTION(struct resize_options, overwrite), .help = "allow --save_to to be the input"},
    {OPTION(struct resize_options, no_metadata), .help = "write no metadata"},
    {OPTION_IGNORED_VALUE("device", "NAME", "resizing takes a second on the CPU")},
    {0},
};

static const struct command_example examples[] = {
    {"from rank 128 to 32", "lora resize --model big.safetensors --new_rank 32 --save_to small.safetensors"},
    {"keep 95% of each module's norm, at most rank 64", "lora resize --model big.safetensors --new_rank 64 --dynamic_method "
                                                        "sv_fro --dynamic_param 0.95 --save_to small.safetensors"},
    {0},
};

struct worker {
    float *data;
    size_t size;
    struct combine_work combine;
};

struct resize {
    const struct command_run *run;
    const struct resize_options *o;
    struct lora_file *file;
    struct rank_rule rule, conv_rule;
    enum dtype dtype;
    struct lora_out *out; /* [file->count]; up and down owned here, in one block that starts at up */
    struct combined *c;   /* [file->count]; rank 0: the module was kept as it is */
    struct worker *worker;
    struct progress *progress;
    double started;
};

static int check_options(const struct command_run *run, const struct resize_options *o, struct err *err)
{
    bool ratio = o->dynamic_method >= 0 && strcmp(methods[o->dynamic_method], "sv_ratio") == 0;

    if (o->dynamic_method >= 0 && !option_given(run->values, &o->dynamic_param))
        return err_usage(err, "--dynamic_method needs --dynamic_param: how much to keep");
    if (o->dynamic_method < 0 && option_given(run->values, &o->dynamic_param))
        return err_usage(err, "--dynamic_param needs --dynamic_method: sv_ratio, sv_fro or sv_cumulative");
    if (ratio && !(o->dynamic_param >= 1))
        return err_usage(err,
                         "--dynamic_param of sv_ratio is the largest singular value over the smallest that is kept: 1 or more");
    if (o->dynamic_method >= 0 && !ratio && !(o->dynamic_param > 0 && o->dynamic_param <= 1))
        return err_usage(err, "--dynamic_param of %s is a share: above 0, at most 1", methods[o->dynamic_method]);
    if (!o->overwrite && output_same_file(o->model, o->save_to))
        return err_set(err, "'%s' is both the input and the output; give another --save_to, or --overwrite to replace it",
                       o->save_to);
    return 0;
}

static int prepare(struct worker *w, const struct lora_module *m, struct err *err)
{
    size_t need;

    if (!mem_mul(m->out + m->in * m->kh * m->kw, m->rank, &need) || !mem_mul(need, 2, &need) || need > SIZE_MAX / sizeof(float))
        return err_memory(err, (unsigned long long)-1, "the factors of a module");
    if (need <= w->size)
        return 0;
    free(w->data);
    w->size = 0;
    w->data = mem_new(need * sizeof *w->data, "the factors of a module", err);
    if (!w->data)
        return -1;
    w->size = need;
    return 0;
}

/* Rounds a module once, into memory of its own. */
static int keep(const struct resize *k, struct lora_out *out, const float *up, const float *down, struct err *err)
{
    size_t nu = out->out * out->rank, nd = out->rank * out->in * out->kh * out->kw, size = dtype_size(k->dtype);
    char *data = mem_new((nu + nd) * size, "the resized LoRA", err);

    if (!data)
        return -1;
    out->up = data;
    out->down = data + nu * size;
    dtype_convert(data, k->dtype, up, DT_F32, nu);
    dtype_convert(data + nu * size, k->dtype, down, DT_F32, nd);
    if (dtype_find_nonfinite(data, k->dtype, nu + nd) < nu + nd)
        return err_set(err, "the resized module '%s' does not fit in %s; use --save_precision bf16 or float", out->path,
                       dtype_name(k->dtype));
    return 0;
}

static int work(void *ctx, size_t i, struct err *err)
{
    struct resize *k = ctx;
    const struct lora_module *m = &k->file->module[i];
    const struct rank_rule *rule = m->kh * m->kw > 1 ? &k->conv_rule : &k->rule;
    struct worker *w = &k->worker[thread_index()];
    struct lora_out *out = &k->out[i];
    size_t in = m->in * m->kh * m->kw;
    float *up, *down, *new_up, *new_down;
    struct lora_factors f;

    if (prepare(w, m, err))
        return -1;
    up = w->data;
    down = up + m->out * m->rank;
    new_up = down + m->rank * in;
    new_down = new_up + m->out * m->rank;
    if (lora_module_read_f32(m, up, down, err))
        return -1;
    *out = (struct lora_out){.part = m->part,
                             .path = m->path,
                             .rank = m->rank,
                             .out = m->out,
                             .in = m->in,
                             .kh = m->kh,
                             .kw = m->kw,
                             .conv = m->down.entry->shape.ndim == 4,
                             .alpha = m->alpha,
                             .has_alpha = true,
                             .dtype = k->dtype};
    progress_step(k->progress, 1);
    if (rule->method == RANK_FIXED && m->rank <= rule->max_rank)
        return keep(k, out, up, down, err);
    f = (struct lora_factors){up, down, m->rank, 1}; /* alpha / rank stays what it was: alpha follows the rank */
    if (combine_best(new_up, new_down, &k->c[i], &f, 1, m->out, in, rule, &w->combine, err))
        return err_prefix(err, "'%s': module '%s': ", k->file->path, m->key);
    out->rank = k->c[i].rank;
    out->alpha = m->alpha / (double)m->rank * (double)out->rank;
    return keep(k, out, new_up, new_down, err);
}

static int make_metadata(const struct resize *k, struct lora_meta *meta, struct err *err)
{
    const struct resize_options *o = k->o;
    const char *old;
    char text[1024], from[64];

    if (lora_meta_common(meta, (struct lora_file *const *)&k->file, 1, err) ||
        lora_meta_network(meta, k->out, k->file->count, k->file->sd2, err))
        return -1;
    old = lora_meta_get(meta, "ss_training_comment");
    snprintf(from, sizeof from, k->file->min_rank == k->file->max_rank ? "%zu" : "%zu-%zu", k->file->min_rank,
             k->file->max_rank);
    if (o->dynamic_method >= 0)
        snprintf(text, sizeof text, "Dynamic resize with %s: %g from %s; %s", methods[o->dynamic_method], o->dynamic_param,
                 from, old ? old : "");
    else if (k->conv_rule.max_rank != k->rule.max_rank)
        snprintf(text, sizeof text, "dimension is resized from %s to %zu (conv: %zu); %s", from, k->rule.max_rank,
                 k->conv_rule.max_rank, old ? old : "");
    else
        snprintf(text, sizeof text, "dimension is resized from %s to %zu; %s", from, k->rule.max_rank, old ? old : "");
    return lora_meta_set(meta, "ss_training_comment", text, err);
}

static int write_file(const struct resize *k, struct err *err)
{
    struct lora_meta meta = {0};
    struct lora_write_options w = {.layout = LORA_KOHYA, .dtype = k->dtype, .no_metadata = k->o->no_metadata};
    struct lora_write_report report = {0};
    int rc = w.no_metadata ? 0 : make_metadata(k, &meta, err);

    w.metadata = meta.item;
    w.n_metadata = meta.count;
    if (rc == 0)
        rc = lora_file_write(k->o->save_to, k->out, k->file->count, &w, &report, err);
    lora_meta_free(&meta);
    return rc;
}

/* Share of the norm that a module kept. */
static double kept(const struct combined *c)
{
    return c->rank && c->norm2 > 0 ? sqrt(1 - c->lost2 / c->norm2) : 1;
}

static void print_modules(const struct resize *k)
{
    for (size_t i = 0; i < k->file->count; i++) {
        const struct combined *c = &k->c[i];
        const struct lora_module *m = &k->file->module[i];

        if (c->rank == 0)
            printf("%-75s rank %zu, kept as it is\n", m->key, m->rank);
        else
            printf("%-75s rank %zu -> %zu, alpha %g, norm kept %.2f%%, sum of singular values kept %.2f%%, largest / smallest "
                   "kept %.3g\n",
                   m->key, m->rank, c->rank, k->out[i].alpha, 100 * kept(c), 100 * c->sum_kept,
                   c->last > 0 ? c->first / c->last : 0);
    }
}

struct figures {
    size_t min_rank, max_rank, kept_whole;
    double rank_sum, norm2, lost2, least; /* least: share of the norm in the worst module */
    const char *least_in;
};

static struct figures figures(const struct resize *k)
{
    struct figures f = {.min_rank = SIZE_MAX, .least = 1};

    for (size_t i = 0; i < k->file->count; i++) {
        size_t rank = k->out[i].rank;
        double share = kept(&k->c[i]), scale = k->file->module[i].alpha / (double)k->file->module[i].rank;

        f.min_rank = rank < f.min_rank ? rank : f.min_rank;
        f.max_rank = rank > f.max_rank ? rank : f.max_rank;
        f.rank_sum += (double)rank;
        f.kept_whole += k->c[i].rank == 0;
        f.norm2 += scale * scale * k->c[i].norm2;
        f.lost2 += scale * scale * k->c[i].lost2;
        if (share < f.least) {
            f.least = share;
            f.least_in = k->file->module[i].path;
        }
    }
    return f;
}

static int report(const struct resize *k, struct err *err)
{
    struct figures f = figures(k);
    double seconds, error = f.norm2 > 0 ? sqrt(f.lost2 / f.norm2) : 0;
    struct stat st = {0}, old = {0};
    struct timespec now;
    char size[32], was[32];

    clock_gettime(CLOCK_MONOTONIC, &now);
    seconds = (double)now.tv_sec + 1e-9 * (double)now.tv_nsec - k->started;
    (void)stat(k->o->save_to, &st); /* sizes are a courtesy: the file has been committed */
    (void)stat(k->o->model, &old);
    if (k->run->json) {
        json_t *out =
            json_pack("{s:s, s:I, s:I, s:I, s:I, s:f, s:I, s:f, s:f, s:f}", "output", k->o->save_to, "bytes",
                      (json_int_t)st.st_size, "modules", (json_int_t)k->file->count, "min_rank", (json_int_t)f.min_rank,
                      "max_rank", (json_int_t)f.max_rank, "mean_rank", f.rank_sum / (double)k->file->count, "kept_as_is",
                      (json_int_t)f.kept_whole, "error", error, "least_norm_kept", f.least, "seconds", seconds);

        return out ? command_print_json(out, err) : err_memory(err, 1024, "the report");
    }
    if (k->o->verbose)
        print_modules(k);
    if (k->run->quiet)
        return 0;
    printf("resized '%s' from rank %zu", k->file->path, k->file->min_rank);
    if (k->file->min_rank != k->file->max_rank)
        printf("-%zu", k->file->max_rank);
    printf(" to %zu", f.min_rank);
    if (f.min_rank != f.max_rank)
        printf("-%zu (mean %.1f)", f.max_rank, f.rank_sum / (double)k->file->count);
    printf("\n");
    if (f.kept_whole)
        printf("  %zu of %zu modules kept as they are: their rank is no larger\n", f.kept_whole, k->file->count);
    printf("  error %.3g of what the LoRA does", error);
    if (f.least_in)
        printf("; the worst module keeps %.2f%% of its norm (%s)", 100 * f.least, f.least_in);
    printf("\nwrote '%s': %s (was %s), %s, %.1f s\n", k->o->save_to,
           command_bytes((unsigned long long)st.st_size, size, sizeof size),
           command_bytes((unsigned long long)old.st_size, was, sizeof was), dtype_name(k->dtype), seconds);
    return 0;
}

static void set_rules(struct resize *k)
{
    const struct resize_options *o = k->o;

    k->rule = (struct rank_rule){RANK_FIXED, o->new_rank, o->dynamic_param};
    if (o->dynamic_method >= 0)
        (void)rank_method_parse(methods[o->dynamic_method], &k->rule.method); /* the choices are its names */
    k->conv_rule = k->rule;
    if (o->new_conv_rank)
        k->conv_rule.max_rank = o->new_conv_rank;
}

static int resize(struct resize *k, struct err *err)
{
    size_t n = k->file->count;
    int rc;

    for (size_t i = 0; i < k->file->unknown_count; i++)
        command_warn(k->run, "'%s': module '%s' has a name that no rule knows, and is left out", k->file->path,
                     k->file->unknown[i]);
    k->out = mem_zero(n, sizeof *k->out, "the list of modules", err);
    k->c = mem_zero(n, sizeof *k->c, "the list of modules", err);
    k->worker = mem_zero((size_t)thread_count(), sizeof *k->worker, "the list of modules", err);
    if (!k->out || !k->c || !k->worker)
        return -1;
    k->progress = progress_start(k->run, "resizing", n, "modules");
    rc = thread_for(n, work, k, err);
    progress_end(k->progress);
    return rc || write_file(k, err) ? -1 : report(k, err);
}

static int run_resize(const struct command_run *run, void *options, struct err *err)
{
    struct resize_options *o = options;
    struct resize k = {.run = run, .o = o};
    struct timespec now;
    int rc = -1;

    clock_gettime(CLOCK_MONOTONIC, &now);
    k.started = (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
    set_rules(&k);
    if (check_options(run, o, err) || lora_file_open(&k.file, o->model, err))
        return -1;
    k.dtype = o->save_precision.set ? o->save_precision.dtype : k.file->dtype == DT_F64 ? DT_F32 : k.file->dtype;
    if (k.dtype == DT_F64)
        err_usage(err, "--save_precision is float, fp16 or bf16");
    else
        rc = resize(&k, err);
    for (size_t i = 0; k.out && i < k.file->count; i++)
        free((void *)k.out[i].up);
    for (size_t i = 0; k.worker && i < (size_t)thread_count(); i++) {
        free(k.worker[i].data);
        combine_work_free(&k.worker[i].combine);
    }
    free(k.out);
    free(k.c);
    free(k.worker);
    lora_file_close(k.file);
    return rc;
}

static const char *const aliases[] = {"resize_lora", NULL};

const struct command command_resize = {
    .name = "resize",
    .aliases = aliases,
    .summary = "give a LoRA another rank",
    .description =
        "Each module is replaced by its best approximation of the new rank (Frobenius norm); alpha follows the rank, so that "
        "the strength stays. With --dynamic_method every module gets the smallest rank that keeps what is asked for, not "
        "one more.",
    .options = rows,
    .options_size = sizeof(struct resize_options),
    .examples = examples,
    .run = run_resize,
};
