/* lora merge: LoRAs into a checkpoint, or into one LoRA. */
#include "cmd/merge.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "formats/output.h"

static const char *const methods[] = {"best", "concat", "factors", NULL};

static const struct option_row rows[] = {
    {OPTION(struct merge_options, sd_model), .arg = "PATH",
     .help = "checkpoint (.safetensors, .ckpt) or diffusers folder to merge into; without it the LoRAs become one LoRA"},
    {OPTION(struct merge_options, models), .arg = "FILE", .flags = OPTION_REQUIRED, .help = "LoRAs, of any layout and rank"},
    {OPTION(struct merge_options, ratios), .arg = "X", .help = "one factor for each LoRA, negative ones too (default: 1 each)"},
    {OPTION(struct merge_options, save_to), .arg = "FILE", .flags = OPTION_REQUIRED | OPTION_OUTPUT,
     .help = "file to write; its suffix (.safetensors, .ckpt) decides the format; without one, a model becomes a diffusers folder"},
    {OPTION(struct merge_options, ratios_te), .arg = "X", .help = "factors for the text encoder, in place of --ratios"},
    {OPTION(struct merge_options, ratios_unet), .arg = "X", .help = "factors for the U-Net, in place of --ratios"},
    {OPTION(struct merge_options, lbw), .arg = "LIST",
     .help =
         "block weights for each LoRA (or one list for all): 12, 17, 20 or 26 numbers with commas, a preset (NONE ALL INS IND "
         "INALL MIDD OUTD OUTS OUTALL ALL0.5), or BLOCK=X,... for some blocks"},
    {OPTION(struct merge_options, save_precision), .arg = "TYPE",
     .help = "float, fp16 or bf16 for all float tensors (default: each keeps its own type)"},
    {OPTION(struct merge_options, precision), .arg = "TYPE",
     .help = "type of the result when --save_precision is not given; sums are float in any case, except with --compat v0.3.0"},
    {OPTION(struct merge_options, v2), .help = "the checkpoint is Stable Diffusion 2.x (found out anyway; checked when given)"},
    {OPTION(struct merge_options, undo), .help = "subtract instead of add, and say what rounding leaves behind"},
    {OPTION(struct merge_options, ignore_missing), .help = "go on when modules of a LoRA have no place in the checkpoint"},
    {OPTION(struct merge_options, method), .arg = "METHOD", .choices = methods, .def = "best",
     .help =
         "LoRA with LoRA: best approximation at --dim; concat, exact with the ranks added up; factors, as v0.3.0 added them"},
    {OPTION(struct merge_options, dim), .arg = "N", .min = 1, .max = 65536,
     .help = "LoRA with LoRA, method best: rank of the result (default: of each module, the largest that comes in)"},
    {OPTION(struct merge_options, conv_dim), .arg = "N", .min = 1, .max = 65536,
     .help = "the same for 3x3 convolutions (default: as --dim)"},
    {OPTION(struct merge_options, overwrite), .help = "allow --save_to to be one of the inputs"},
    {OPTION(struct merge_options, no_metadata), .help = "write no metadata"},
    {0},
};

static const struct command_example examples[] = {
    {"a style at 80% into a checkpoint, which stays fp16",
     "lora merge --sd_model model.safetensors --models style.safetensors --ratios 0.8 --save_to merged.safetensors"},
    {"two LoRAs as one of rank 64",
     "lora merge --models a.safetensors b.safetensors --ratios 0.7 0.5 --dim 64 --save_to ab.safetensors"},
    {"only the middle and output blocks",
     "lora merge --sd_model model.safetensors --models style.safetensors --lbw OUTALL --save_to merged.safetensors"},
    {"take a merged LoRA out again",
     "lora merge --undo --sd_model merged.safetensors --models style.safetensors --ratios 0.8 --save_to model.safetensors"},
    {0},
};

double merge_seconds(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

const char *merge_base_name(const char *path)
{
    const char *slash = strrchr(path, '/');

    return slash && slash[1] ? slash + 1 : path;
}

double merge_ratio(const struct merge_input *in, const struct lora_module *m, size_t layers)
{
    double ratio = in->ratio[m->part];
    int block = in->by_block ? target_block(m->part, m->path, layers) : -1;

    return block < 0 ? ratio : ratio * in->block[block];
}

double merge_scale(const struct merge_job *job, const struct merge_input *in, const struct lora_module *m, size_t layers)
{
    double ratio = merge_ratio(in, m, layers);

    return job->run->compat ? ratio : ratio * m->alpha / (double)m->rank;
}

static void round_factor(float *x, size_t n, enum dtype t, float *spare)
{
    if (t == DT_F32)
        return;
    dtype_convert(spare, t, x, DT_F32, n);
    dtype_convert(x, DT_F32, spare, t, n);
}

int merge_read_factors(const struct merge_job *job, const struct lora_module *m, float *up, float *down, float *spare,
                       struct err *err)
{
    if (lora_module_read_f32(m, up, down, err))
        return -1;
    if (job->run->compat) {
        round_factor(up, m->out * m->rank, job->precision, spare);
        round_factor(down, m->rank * m->in * m->kh * m->kw, job->precision, spare);
    }
    return 0;
}

json_t *merge_recipe(const struct merge_job *job, struct err *err)
{
    json_t *list = json_array(), *recipe;

    for (size_t i = 0; i < job->count; i++) {
        const struct merge_input *in = &job->input[i];
        json_t *item = json_pack("{s:s, s:f, s:f}", "name", in->name, "ratio_unet", in->ratio[MODEL_UNET], "ratio_te",
                                 in->ratio[MODEL_TEXT_ENCODER]);

        if (in->by_block) {
            json_t *blocks = json_array();

            for (size_t b = 0; b < TARGET_BLOCKS; b++)
                json_array_append_new(blocks, json_real(in->block[b]));
            json_object_set_new(item, "lbw", blocks);
        }
        json_array_append_new(list, item);
    }
    recipe = json_pack("{s:s, s:o}", "type", job->o->sd_model ? "lora-into-checkpoint" : "lora-with-lora", "loras", list);
    if (!recipe)
        err_memory(err, 1024, "the merge recipe");
    else if (job->o->sd_model)
        json_object_set_new(recipe, "base", json_string(merge_base_name(job->o->sd_model)));
    else
        json_object_set_new(recipe, "method", json_string(methods[job->o->method]));
    if (recipe && job->o->undo)
        json_object_set_new(recipe, "undo", json_true());
    if (recipe && job->run->compat)
        json_object_set_new(recipe, "compat", json_string("v0.3.0"));
    return recipe;
}

/* Presets of the web UIs' block-weight tools, 17 values each. */
static const struct {
    const char *name;
    double value[17];
} presets[] = {
    {"NONE", {0}},
    {"ALL", {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1}},
    {"INS", {1, 1, 1}},
    {"IND", {1, 0, 0, 0, 1, 1, 1}},
    {"INALL", {1, 1, 1, 1, 1, 1, 1}},
    {"MIDD", {1, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1}},
    {"OUTD", {1, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1}},
    {"OUTS", {1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1}},
    {"OUTALL", {1, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1}},
    {"ALL0.5", {.5, .5, .5, .5, .5, .5, .5, .5, .5, .5, .5, .5, .5, .5, .5, .5, .5}},
};

static int block_number(const char *name, size_t n)
{
    for (int b = 0; b < TARGET_BLOCKS; b++)
        if (strlen(target_block_name(b)) == n && strncmp(target_block_name(b), name, n) == 0)
            return b;
    return -1;
}

/* One number, and what ends it must be a comma, a bracket or the end. Returns where it ended, or NULL. */
static const char *number(const char *s, double *out)
{
    char *end;

    *out = strtod(s, &end);
    end += strspn(end, " ");
    return end == s || !isfinite(*out) || !strchr(",]", *end) ? NULL : end; /* strchr also finds the terminator */
}

/* "IN04=0.5,MID=0" */
static int parse_named_blocks(const char *text, double block[TARGET_BLOCKS], struct err *err)
{
    for (int b = 0; b < TARGET_BLOCKS; b++)
        block[b] = 1;
    for (const char *s = text; *s; s += *s == ',') {
        const char *equals;
        int b;

        s += strspn(s, " ");
        equals = strchr(s, '=');
        b = equals ? block_number(s, (size_t)(equals - s)) : -1;
        if (b < 0)
            return err_usage(err, "--lbw '%s': '%.*s' is no block; blocks are BASE, IN00 .. IN11, MID and OUT00 .. OUT11", text,
                             (int)strcspn(s, "=,"), s);
        s = number(equals + 1, &block[b]);
        if (!s || *s == ']')
            return err_usage(err, "--lbw '%s': what follows '=' must be a number", text);
    }
    return 0;
}

static int parse_blocks(const char *text, double block[TARGET_BLOCKS], struct err *err)
{
    double value[TARGET_BLOCKS];
    size_t n = 0;
    const char *s = text + strspn(text, " [");

    for (size_t i = 0; i < sizeof presets / sizeof presets[0]; i++)
        if (strcmp(text, presets[i].name) == 0)
            return target_block_weights(presets[i].value, 17, block, err);
    if (strchr(text, '='))
        return parse_named_blocks(text, block, err);
    for (;; s++) {
        if (n == TARGET_BLOCKS)
            return err_usage(err, "--lbw '%s': more than 26 values; give 12, 17, 20 or 26", text);
        s = number(s, &value[n]);
        if (!s)
            return err_usage(err,
                             "--lbw '%s': value %zu is neither a number nor is the whole a preset; see 'lora merge --help'",
                             text, n + 1);
        n++;
        if (*s != ',')
            break;
    }
    if (target_block_weights(value, n, block, err))
        return err_prefix(err, "--lbw '%s': ", text);
    return 0;
}

static int check_count(const char *name, size_t n, size_t models, struct err *err)
{
    if (n == 0 || n == models)
        return 0;
    return err_usage(err, "--%s has %zu value%s for %zu LoRA%s; give one for each of --models", name, n, n == 1 ? "" : "s",
                     models, models == 1 ? "" : "s");
}

static int check_options(const struct merge_options *o, struct err *err)
{
    size_t n = o->models.count;

    if (n == 0)
        return err_usage(err, "--models names no LoRA; give at least one");
    if (check_count("ratios", o->ratios.count, n, err) || check_count("ratios_te", o->ratios_te.count, n, err) ||
        check_count("ratios_unet", o->ratios_unet.count, n, err) ||
        (o->lbw.count > 1 && check_count("lbw", o->lbw.count, n, err)))
        return -1;
    if (o->sd_model && (o->dim || o->conv_dim || o->method != MERGE_BEST))
        return err_usage(
            err, "--dim, --conv_dim and --method are for merging LoRAs into one; leave them out or leave --sd_model out");
    if (o->method != MERGE_BEST && (o->dim || o->conv_dim))
        return err_usage(err, "--dim and --conv_dim choose the rank of --method best; the other methods have no choice");
    if (!o->sd_model && o->undo)
        return err_usage(err, "--undo takes LoRAs out of a checkpoint; name it with --sd_model");
    if (o->overwrite)
        return 0;
    for (size_t i = 0; i <= n; i++) {
        const char *input = i < n ? o->models.item[i] : o->sd_model;

        if (input && output_same_file(input, o->save_to))
            return err_set(err,
                           "'%s' is both an input and the output; give another --save_to, or --overwrite to replace the input",
                           o->save_to);
    }
    return 0;
}

/* Opens all LoRAs; on failure those already open are closed by the caller. */
static int open_inputs(struct merge_job *job, struct err *err)
{
    const struct merge_options *o = job->o;
    double sign = o->undo ? -1 : 1;

    for (size_t i = 0; i < job->count; i++) {
        struct merge_input *in = &job->input[i];
        double ratio = o->ratios.count ? o->ratios.item[i] : 1;

        in->name = merge_base_name(o->models.item[i]);
        in->ratio[MODEL_UNET] = sign * (o->ratios_unet.count ? o->ratios_unet.item[i] : ratio);
        in->ratio[MODEL_TEXT_ENCODER] = sign * (o->ratios_te.count ? o->ratios_te.item[i] : ratio);
        in->by_block = o->lbw.count > 0;
        if (in->by_block && parse_blocks(o->lbw.item[o->lbw.count == 1 ? 0 : i], in->block, err))
            return -1;
        if (lora_file_open(&in->file, o->models.item[i], err))
            return -1;
    }
    return 0;
}

static int run_merge(const struct command_run *run, void *options, struct err *err)
{
    struct merge_options *o = options;
    struct merge_job job = {.run = run, .o = o, .count = o->models.count, .started = merge_seconds()};
    int rc = -1;

    if (check_options(o, err))
        return -1;
    if (run->compat && !o->sd_model)
        o->method = MERGE_FACTORS;
    job.precision = o->precision.set ? o->precision.dtype : DT_F32;
    if (job.precision == DT_F64)
        return err_usage(err, "--precision is float, fp16 or bf16");
    job.input = mem_zero(job.count, sizeof *job.input, "the list of LoRAs", err);
    if (!job.input)
        return -1;
    if (open_inputs(&job, err) == 0)
        rc = o->sd_model ? merge_into_model(&job, err) : merge_loras(&job, err);
    for (size_t i = 0; i < job.count; i++)
        lora_file_close(job.input[i].file);
    free(job.input);
    return rc;
}

static const char *const aliases[] = {"merge_lora", NULL};

const struct command command_merge = {
    .name = "merge",
    .aliases = aliases,
    .summary = "merge LoRAs into a checkpoint, or several LoRAs into one",
    .description =
        "Into a checkpoint: every weight that a LoRA changes becomes W + sum of ratio * alpha/rank * up @ down, summed in "
        "float and "
        "rounded once; everything else is copied as it is. Names, layout and types of the checkpoint stay, so a fp16 file "
        "stays as "
        "large as it is. An EMA copy is not touched.\n\n"
        "LoRA with LoRA: the result acts as applying all of them with their ratios. At the rank of the largest it is the best "
        "approximation there is, and its error is printed; '--method concat' is exact, with the ranks added up. '--method "
        "factors' adds the factors themselves, as sd-scripts v0.3.0 does: ratios then act squared, the sign of a negative "
        "ratio "
        "is lost, and cross terms appear.",
    .options = rows,
    .options_size = sizeof(struct merge_options),
    .examples = examples,
    .exit_notes =
        "1 also when modules of a LoRA have no place in the checkpoint: they are listed, and nothing is written without "
        "--ignore_missing.",
    .flags = COMMAND_COMPAT,
    .run = run_merge,
};
