/* `lora extract`: the LoRA that leads from one checkpoint to another. */
#include "cmd/extract.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "cmd/chart.h"
#include "cmd/progress.h"
#include "formats/hash.h"
#include "formats/output.h"
#include "offload/offload.h"
#include "ref/base/thread.h"

struct extract_cli {
    bool v2, exact, no_metadata;
    struct option_dtype save_precision;
    const char *model_org, *model_tuned, *save_to, *device, *report;
    size_t dim, conv_dim, max_dim;
    double clamp_quantile, energy, network_alpha, min_diff;
};

static const struct option_row rows[] = {
    {OPTION(struct extract_cli, model_org), .arg = "PATH", .flags = OPTION_REQUIRED,
     .help = "base model: checkpoint file or diffusers folder"},
    {OPTION(struct extract_cli, model_tuned), .arg = "PATH", .flags = OPTION_REQUIRED,
     .help = "tuned model; the LoRA leads from base to tuned"},
    {OPTION(struct extract_cli, save_to), .arg = "FILE", .flags = OPTION_REQUIRED | OPTION_OUTPUT,
     .help = "LoRA to write: .safetensors, .ckpt or .pt; missing folders are made"},
    {OPTION(struct extract_cli, dim), .arg = "N", .def = "4", .min = 1, .max = 65536, .help = "rank, the same for all modules"},
    {OPTION(struct extract_cli, conv_dim), .arg = "N", .min = 0, .max = 65536,
     .help = "also extract the convolutions of residual blocks (LoCon), 3x3 ones with this rank"},
    {OPTION(struct extract_cli, energy), .arg = "X", .min = 0, .max = 1,
     .help = "choose each module's rank: the smallest that keeps this share of the difference's energy, such as 0.95"},
    {OPTION(struct extract_cli, max_dim), .arg = "N", .def = "128", .min = 1, .max = 65536,
     .help = "with --energy: the largest rank a module may get"},
    {OPTION(struct extract_cli, network_alpha), .arg = "X", .min = 0, .max = 1e6,
     .help = "alpha to write; the factors are scaled so that the LoRA does the same (default: the rank, scale 1)"},
    {OPTION(struct extract_cli, save_precision), .arg = "TYPE", .help = "type of the saved factors: float, fp16 or bf16 (default float)"},
    {OPTION(struct extract_cli, report), .arg = "FILE",
     .help = "write what was kept of every module: .html is a page to look at, .json for programs"},
    {OPTION(struct extract_cli, exact), .help = "LAPACK in f64 throughout: error within 1e-6 of the least possible, not 1e-3; slower"},
    {OPTION(struct extract_cli, v2), .help = "both models are Stable Diffusion 2.x; the files say so themselves, this only has to agree"},
    {OPTION(struct extract_cli, min_diff), .arg = "X", .def = "1e-6", .min = 0, .max = 1e6, .flags = OPTION_ADVANCED,
     .help = "a text encoder that differs nowhere by more than this counts as equal and is left out"},
    {OPTION(struct extract_cli, clamp_quantile), .arg = "X", .min = 0, .max = 1, .flags = OPTION_ADVANCED,
     .help = "cut all factor values at this quantile, such as 0.99; harms (up to 4 times the error at rank 128)"},
    {OPTION(struct extract_cli, no_metadata), .flags = OPTION_ADVANCED, .help = "write no metadata header"},
    {OPTION(struct extract_cli, device), .arg = "NAME", .def = "cpu", .flags = OPTION_ADVANCED,
     .help = "where large products are computed: cpu, cuda, or auto (a GPU where there is one)"},
    {OPTION_IGNORED_FLAG("v_parameterization", "extraction does not depend on what the U-Net predicts")},
    {OPTION_IGNORED_VALUE("load_precision", "TYPE", "differences are taken in f32 from the types that the files have")},
    {OPTION_IGNORED_VALUE("load_original_model_to", "NAME", "models are streamed, never loaded whole")},
    {OPTION_IGNORED_VALUE("load_tuned_model_to", "NAME", "models are streamed, never loaded whole")},
    {0},
};

/* One run */
struct extraction {
    const struct command_run *run;
    const struct extract_cli *o;
    struct extract_plan plan;
    struct extract_options options;
    enum dtype dtype; /* of the saved factors */
    size_t *schedule; /* [plan.count] jobs, most work first */
    struct extract_worker **worker; /* [workers] */
    size_t workers;
    struct offload device; /* cpu, or with memory of its own */
    struct progress *progress;
    double start; /* seconds */
};

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int read_elements(const void *ctx, size_t first, size_t n, void *dst, struct err *err)
{
    const struct model_tensor *t = ctx;
    size_t size = dtype_size(t->dtype);

    return model_read_part(t, first * size, n * size, dst, err);
}

static struct extract_weight weight_of(const struct model_tensor *t)
{
    return (struct extract_weight){.dtype = t->dtype, .read = read_elements, .ctx = t, .name = t->entry->name, .file = t->file->path};
}

/* A copy of x [n] times factor in the type that is saved */
static void *saved(const float *x, size_t n, double factor, enum dtype to, struct err *err)
{
    float part[4096];
    size_t size = dtype_size(to);
    char *copy = mem_new(n * size, "the factors", err);

    for (size_t i = 0; copy && i < n; i += 4096) {
        size_t m = n - i < 4096 ? n - i : 4096;

        for (size_t j = 0; j < m; j++)
            part[j] = (float)((double)x[i + j] * factor);
        dtype_convert(copy + i * size, to, part, DT_F32, m);
    }
    return copy;
}

static int keep_result(const struct extraction *x, struct extract_job *j, const struct extract_result *r, struct err *err)
{
    double alpha = x->o->network_alpha > 0 ? x->o->network_alpha : (double)r->rank, factor = (double)r->rank / alpha;
    size_t more = r->svd.more_count;

    j->rank = r->rank;
    j->largest = r->largest;
    j->total = r->svd.total;
    j->error = r->error;
    j->least = r->svd.least;
    j->clamp = r->clamp;
    j->method = r->svd.method;
    if (r->rank == 0)
        return 0;
    j->sure = r->computed;
    j->known = r->computed + more;
    j->s = mem_zero(j->known, sizeof *j->s, "singular values", err);
    j->up = saved(r->up, j->target.out * r->rank, factor, x->dtype, err);
    j->down = saved(r->down, r->rank * j->in, 1, x->dtype, err);
    if (!j->s || !j->up || !j->down)
        return -1;
    if (dtype_find_nonfinite(j->up, x->dtype, j->target.out * r->rank) != j->target.out * r->rank)
        return err_set(err, "'%s': the factors of '%s' are too large for %s; use --save_precision float", x->o->save_to, j->key,
                       dtype_name(x->dtype));
    memcpy(j->s, r->s, r->computed * sizeof *j->s);
    memcpy(j->s + r->computed, r->svd.more, more * sizeof *j->s);
    return 0;
}

static int one_module(void *ctx, size_t i, struct err *err)
{
    struct extraction *x = ctx;
    struct extract_job *j = &x->plan.job[x->schedule[i]];
    struct extract_module m = {.out = j->target.out, .in = j->in, .org = weight_of(j->org), .tuned = weight_of(j->tuned),
                               .rank = j->rank_asked, .seed = svd_seed(j->key)};
    struct extract_result r;

    if (extract_run(x->worker[thread_index()], &m, &x->options, &r, err) != 0 || keep_result(x, j, &r, err) != 0)
        return -1;
    progress_step(x->progress, 1);
    return 0;
}

struct work {
    double flops;
    size_t job;
};

static int more_work(const void *a, const void *b)
{
    const struct work *x = a, *y = b;

    if (x->flops != y->flops)
        return x->flops > y->flops ? -1 : 1;
    return x->job < y->job ? -1 : 1;
}

/* The longest jobs first, so that threads end together */
static int make_schedule(struct extraction *x, struct err *err)
{
    struct work *w = mem_zero(x->plan.count, sizeof *w, "the list of modules", err);

    x->schedule = mem_zero(x->plan.count, sizeof *x->schedule, "the list of modules", err);
    if (!w || !x->schedule) {
        free(w);
        return -1;
    }
    for (size_t i = 0; i < x->plan.count; i++) {
        double m = (double)x->plan.job[i].target.out, n = (double)x->plan.job[i].in;

        w[i] = (struct work){m * n * (m < n ? m : n), i};
    }
    qsort(w, x->plan.count, sizeof *w, more_work);
    for (size_t i = 0; i < x->plan.count; i++)
        x->schedule[i] = w[i].job;
    free(w);
    return 0;
}

static int run_all(struct extraction *x, struct err *err)
{
    int rc;

    x->workers = (size_t)thread_count();
    x->worker = mem_zero(x->workers, sizeof *x->worker, "extraction", err);
    if (!x->worker || make_schedule(x, err) != 0)
        return -1;
    for (size_t i = 0; i < x->workers; i++) {
        x->worker[i] = extract_worker_new(err);
        if (!x->worker[i] || (x->device.ops.device && extract_use_device(x->worker[i], &x->device.ops, err) != 0))
            return -1;
    }
    x->progress = progress_start(x->run, "extracting", x->plan.count, "modules");
    rc = thread_for(x->plan.count, one_module, x, err);
    progress_end(x->progress);
    for (size_t i = 0; i < x->workers; i++) { /* their memory is wanted for the file now */
        extract_worker_free(x->worker[i]);
        x->worker[i] = NULL;
    }
    return rc;
}

/* v0.3.0's rule, which is ours too: the text encoder is left out when it differs nowhere by more than a rounding error */
static int judge_text_encoder(struct extraction *x, struct err *err)
{
    float text = 0, unet = 0;
    size_t text_modules = 0;

    for (size_t i = 0; i < x->plan.count; i++) {
        struct extract_job *j = &x->plan.job[i];
        float *largest = j->org->part == MODEL_TEXT_ENCODER ? &text : &unet;

        text_modules += j->org->part == MODEL_TEXT_ENCODER;
        *largest = fmaxf(*largest, j->largest);
    }
    if (fmaxf(text, unet) == 0)
        return err_set(err, "'%s' and '%s' are equal in all %zu modules: there is nothing to extract; is --model_tuned the tuned model?",
                       x->o->model_org, x->o->model_tuned, x->plan.count);
    if (text_modules == 0 || (double)text > x->o->min_diff)
        return 0;
    x->plan.text_equal = true;
    for (size_t i = 0; i < x->plan.count; i++)
        if (x->plan.job[i].org->part == MODEL_TEXT_ENCODER)
            x->plan.job[i].rank = 0;
    if (unet == 0)
        return err_set(err, "'%s' and '%s' have equal U-Nets, and their text encoders differ by %g at most, which counts as equal; "
                       "set --min_diff 0 to extract that", x->o->model_org, x->o->model_tuned, (double)text);
    command_note(x->run, "the text encoder is the same in both (largest difference %g): the LoRA covers the U-Net only", (double)text);
    return 0;
}

static const char *file_name(const char *path)
{
    const char *slash = strrchr(path, '/');

    return slash && slash[1] ? slash + 1 : path;
}

/* What web UIs and sd-scripts read; file names only, no folders */
static int make_metadata(const struct extraction *x, const struct extract_totals *t, struct metadata_item *item, size_t *n,
                         struct arena *a, struct err *err)
{
    const struct model *m = x->plan.org;
    char hash[HASH_LEGACY_TEXT];
    size_t count = 0;
    char *rank, *alpha, *comment;

    rank = t->min_rank == t->max_rank || x->o->energy == 0 ? arena_printf(a, err, "%zu", x->o->energy > 0 ? t->max_rank : x->o->dim)
                                                          : arena_str(a, "Dynamic", err);
    alpha = x->o->network_alpha > 0 ? arena_printf(a, err, "%g", x->o->network_alpha) : rank;
    comment = arena_printf(a, err, "extracted from %s by lora.c " COMMAND_VERSION ", %.2f %% of the difference kept",
                           file_name(x->o->model_tuned), 100 * t->kept);
    if (!rank || !alpha || !comment)
        return -1;
    item[count++] = (struct metadata_item){"ss_base_model_version", m->arch == MODEL_SD2 ? (m->prediction == MODEL_V ? "sd_v2_v" : "sd_v2") : "sd_v1"};
    item[count++] = (struct metadata_item){"ss_network_alpha", alpha};
    if (x->o->conv_dim) {
        char *args = arena_printf(a, err, "{\"conv_dim\": \"%zu\", \"conv_alpha\": \"%g\"}", x->o->conv_dim,
                                  x->o->network_alpha > 0 ? x->o->network_alpha : (double)x->o->conv_dim);

        if (!args)
            return -1;
        item[count++] = (struct metadata_item){"ss_network_args", args};
    }
    item[count++] = (struct metadata_item){"ss_network_dim", rank};
    item[count++] = (struct metadata_item){"ss_network_module", "networks.lora"};
    if (!m->folder) {
        char *copy;

        if (hash_legacy(x->o->model_org, hash, err) != 0 || !(copy = arena_str(a, hash, err)))
            return -1;
        item[count++] = (struct metadata_item){"ss_sd_model_hash", copy};
    }
    item[count++] = (struct metadata_item){"ss_sd_model_name", file_name(x->o->model_org)};
    item[count++] = (struct metadata_item){"ss_training_comment", comment};
    item[count++] = (struct metadata_item){"ss_v2", m->arch == MODEL_SD2 ? "True" : "False"};
    *n = count;
    return 0;
}

/* proj_in and proj_out were 1x1 convolutions in v0.3.0 whatever the file had */
static bool is_conv(const struct extraction *x, const struct extract_job *j)
{
    size_t n = strlen(j->path);

    return j->target.conv || (x->run->compat && ((n > 8 && strcmp(j->path + n - 8, ".proj_in") == 0) ||
                                                 (n > 9 && strcmp(j->path + n - 9, ".proj_out") == 0)));
}

static int write_file(struct extraction *x, const struct extract_totals *t, struct err *err)
{
    struct metadata_item metadata[16];
    struct lora_write_options o = {.layout = LORA_KOHYA, .dtype = x->dtype, .metadata = metadata,
                                   .no_metadata = x->run->compat || x->o->no_metadata};
    struct lora_out *out = mem_zero(t->modules, sizeof *out, "the list of modules", err);
    struct lora_write_report report;
    size_t n = 0;
    int rc = -1;

    if (!out || (!o.no_metadata && make_metadata(x, t, metadata, &o.n_metadata, &x->plan.arena, err) != 0))
        goto out;
    for (size_t i = 0; i < x->plan.count; i++) {
        const struct extract_job *j = &x->plan.job[i];

        if (j->rank == 0)
            continue;
        out[n++] = (struct lora_out){.part = j->org->part, .path = j->path, .rank = j->rank, .out = j->target.out,
                                     .in = j->target.in, .kh = j->target.kh, .kw = j->target.kw, .conv = is_conv(x, j),
                                     .alpha = x->o->network_alpha > 0 ? x->o->network_alpha : (double)j->rank,
                                     .has_alpha = !x->run->compat || x->o->network_alpha > 0, .dtype = x->dtype, .up = j->up,
                                     .down = j->down};
    }
    rc = lora_file_write(x->o->save_to, out, n, &o, &report, err);
out:
    free(out);
    return rc;
}

static void print_spectrum(const struct extract_totals *t)
{
    char label[24][16], value[24][32];
    size_t n = 0, width = chart_columns(stdout, 100) - 40;

    puts("\nenergy kept by rank, all modules together");
    for (size_t r = 1; r <= t->ranks && n < 24; r *= 2) {
        char bar[512];
        double share = t->by_rank[r - 1];

        snprintf(label[n], sizeof label[n], "rank %zu", r);
        snprintf(value[n], sizeof value[n], "%s%.1f %%", r > t->sure_ranks && share < 0.9995 ? "at least " : "", 100 * share);
        printf("  %-8s  %s %s\n", label[n], chart_bar(bar, sizeof bar, share, width, true), value[n]);
        n++;
    }
}

static void print_advice(const struct extraction *x, const struct extract_totals *t)
{
    size_t r95 = extract_rank_for(t, 0.95);

    if (x->o->energy > 0)
        return;
    if (r95 == 0)
        printf("rank %zu keeps %.1f %%; 95 %% would need more than rank %zu: try --energy 0.95, which gives each module its own rank\n",
               x->o->dim, 100 * t->kept, t->ranks);
    else if (r95 > x->o->dim)
        printf("rank %zu would keep 95 %% (--dim %zu); --energy 0.95 gives each module the rank that it needs\n", r95, r95);
    else if (r95 < x->o->dim)
        printf("rank %zu would be enough for 95 %% (--dim %zu)\n", r95, r95);
}

static void print_summary(const struct extraction *x, const struct extract_totals *t, const struct extract_facts *f)
{
    char size[32], ranks[64];

    if (t->min_rank == t->max_rank)
        snprintf(ranks, sizeof ranks, "rank %zu", t->max_rank);
    else
        snprintf(ranks, sizeof ranks, "ranks %zu to %zu", t->min_rank, t->max_rank);
    printf("%s: %zu modules (%zu U-Net, %zu text encoder), %s, %s, %s, %.2f s\n", x->o->save_to, t->modules, t->part[MODEL_UNET],
           t->part[MODEL_TEXT_ENCODER], ranks, dtype_name(x->dtype), command_bytes(f->bytes, size, sizeof size), f->seconds);
    if (t->equal && !x->plan.text_equal)
        printf("%zu %s equal in both models and left out\n", t->equal, t->equal == 1 ? "module is" : "modules are");
    if (t->clipped)
        printf("%zu %s smaller than the rank asked for: they get the largest that they can have\n", t->clipped,
               t->clipped == 1 ? "module is" : "modules are");
    printf("\nenergy of the difference that the LoRA keeps: %.2f %% in all, median module %.2f %%\n", 100 * t->kept,
           100 * t->kept_median);
    puts("least kept");
    for (size_t i = 0; i < t->modules && i < 5; i++) {
        const struct extract_job *j = &x->plan.job[t->order[i]];

        printf("  %6.2f %%  %s  [%zu, %zu]\n", 100 * extract_kept(j), j->path, j->target.out, j->in);
    }
    print_spectrum(t);
    print_advice(x, t);
    if (x->options.clamp > 0)
        puts("these are the factors' energies before their values were cut at the quantile; the cut makes the error larger");
    if (x->o->report)
        printf("report: %s\n", x->o->report);
}

static int finish(struct extraction *x, struct err *err)
{
    struct extract_totals t;
    struct extract_facts f = {.org = file_name(x->o->model_org), .tuned = file_name(x->o->model_tuned),
                              .output = file_name(x->o->save_to), .energy = x->o->energy,
                              .clamp = x->options.clamp};
    char kind[256];
    struct stat st;

    if (extract_totals_make(&t, &x->plan, err) != 0 || write_file(x, &t, err) != 0)
        return -1;
    f.kind = model_kind_text(x->plan.org, kind, sizeof kind);
    f.seconds = now() - x->start;
    if (stat(x->o->save_to, &st) == 0)
        f.bytes = (unsigned long long)st.st_size;
    if (x->o->report && extract_report(x->o->report, &x->plan, &t, &f, err) != 0)
        return -1;
    if (x->run->json)
        return command_print_json(extract_report_json(&x->plan, &t, &f, false), err);
    if (!x->run->quiet)
        print_summary(x, &t, &f);
    return 0;
}

static int check(struct extraction *x, struct err *err)
{
    const struct extract_cli *o = x->o;

    if (o->save_precision.set && o->save_precision.dtype == DT_F64)
        return err_usage(err, "--save_precision: a LoRA is saved as float, fp16 or bf16");
    if (o->energy > 0 && option_given(x->run->values, &o->dim))
        return err_usage(err, "--energy chooses the ranks, so --dim says nothing; give --max_dim to bound them");
    if (!tensor_format_of_suffix(o->save_to)) /* before the work, not after it */
        return err_usage(err, "cannot write '%s': its ending tells no format; name it .safetensors, .ckpt or .pt", o->save_to);
    if (o->report && extract_report_check(o->report, err) != 0)
        return -1;
    x->dtype = o->save_precision.set ? o->save_precision.dtype : DT_F32;
    x->options = (struct extract_options){.energy = o->energy, .exact = o->exact, .keep_zero = x->run->compat};
    x->options.clamp = option_given(x->run->values, &o->clamp_quantile) ? o->clamp_quantile : x->run->compat ? 0.99 : 0;
    return 0;
}

/* Products in f32: less would not do for the proof. */
static int open_device(struct extraction *x, struct err *err)
{
    const char *name = x->o->device;
    char device[128];

    snprintf(device, sizeof device, "%s%s", name, strcmp(name, "cpu") == 0 || strstr(name, ":f32") ? "" : ":f32");
    if (offload_open(&x->device, device, NULL, err) != 0)
        return -1;
    if (x->device.note[0])
        command_note(x->run, "%s", x->device.note);
    if (x->device.plugin && !x->device.ops.device)
        return err_usage(err, "--device %s has nothing for an extraction; use cpu or cuda", name);
    return 0;
}

/* The output may be no file of either model: a checkpoint that a LoRA replaces is lost. Hard links and folders count too. */
static int check_output(const struct extraction *x, struct err *err)
{
    const struct model *const models[] = {x->plan.org, x->plan.tuned};

    for (size_t k = 0; k < 2; k++)
        for (size_t i = 0; i < models[k]->file_count; i++)
            if (output_same_file(models[k]->file[i]->path, x->o->save_to))
                return err_set(err, "'%s' is both an input and the output: the LoRA would replace the model; give another --save_to",
                               x->o->save_to);
    return 0;
}

static int run(const struct command_run *run, void *options, struct err *err)
{
    struct extraction x = {.run = run, .o = options, .start = now()};
    size_t dim = x.o->energy > 0 ? x.o->max_dim : x.o->dim, conv_dim = x.o->energy > 0 && x.o->conv_dim ? x.o->max_dim : x.o->conv_dim;
    int rc = -1;

    if (check(&x, err) != 0 ||
        extract_plan_open(&x.plan, run, x.o->model_org, x.o->model_tuned, x.o->v2, dim, conv_dim, err) != 0 ||
        check_output(&x, err) != 0 || open_device(&x, err) != 0 || run_all(&x, err) != 0 || judge_text_encoder(&x, err) != 0 || finish(&x, err) != 0)
        goto out;
    rc = 0;
out:
    for (size_t i = 0; x.worker && i < x.workers; i++)
        extract_worker_free(x.worker[i]);
    free(x.worker);
    free(x.schedule);
    offload_close(&x.device);
    extract_plan_close(&x.plan);
    return rc;
}

const struct command command_extract = {
    .name = "extract",
    .aliases = (const char *const[]){"extract_lora_from_models", NULL},
    .summary = "make the LoRA that leads from one checkpoint to another",
    .description =
        "Takes the difference of every weight that a LoRA reaches and keeps its best approximation of the given rank. The error "
        "of each module is proved to be within 0.1 % of the least possible one (--exact: 0.0001 %). Models are streamed; "
        "types and layouts may differ between the two.\n\n"
        "A text encoder that is the same in both is left out, and said so. The LoRA's alpha is its rank, so its scale is 1.\n\n"
        "With --compat v0.3.0: factor values are cut at their 0.99 quantile, equal U-Net modules are written too, and neither "
        "alpha nor metadata is written.",
    .options = rows,
    .options_size = sizeof(struct extract_cli),
    .examples =
        (const struct command_example[]){
            {"A LoRA of rank 16 between two checkpoints",
             "lora extract --model_org sd15.safetensors --model_tuned mine.safetensors --dim 16 --save_precision fp16 --save_to mine_lora.safetensors"},
            {"Each module gets the rank that keeps 95 % of its energy; a page shows where it went",
             "lora extract --model_org sd15.ckpt --model_tuned mine.safetensors --energy 0.95 --report mine.html --save_to mine_lora.safetensors"},
            {0}},
    .flags = COMMAND_COMPAT,
    .run = run,
};
