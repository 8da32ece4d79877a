/* lora verify: does this build, on this device, compute what others compute? */
#include "cmd/verify/verify.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cmd/command.h"
#include "cmd/verify/record.h"
#include "cmd/verify/verdict.h"
#include "offload/offload.h"

struct verify_options {
    struct string_list groups;
    const char *golden, *device, *record, *against, *ckpt, *prompt;
    size_t W, H, timestep;
    int64_t seed;
    int arithmetic;
    bool all, list;
};

const struct verify_group verify_groups[] = {
    {"ops", "every operation, forward and backward, against torch in f64", true, verify_ops},
    {"models", "text encoders, U-Nets, VAEs: every layer, all LoRA gradients, against diffusers in f64", true, verify_models},
    {"training", "ten steps: losses, all gradients, all factors, against PyTorch in f64", true, verify_training},
    {"pictures", "the small model end to end: text, 20 steps, picture and back, against diffusers in f64", true, verify_pictures},
    {"tokenizer", "token ids against transformers", false, verify_tokenizer},
    {"rng", "random numbers against torch's, of CPU and GPU", false, verify_rng},
    {"schedule", "noise schedules and loss weights against diffusers", false, verify_schedule},
    {"samplers", "whole trajectories of every sampler against diffusers", false, verify_samplers},
    {0},
};

/* ---- Where the golden files are ---- */

/* Beside the sources the program was built from, or where `make install` puts them. */
static int find_golden(const char *given, char path[PATH_MAX + 64], struct err *err)
{
    static const char *const places[] = {"../golden", "../../golden", "../share/lora/golden"};
    char base[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", base, sizeof base - 1);

    if (given) {
        snprintf(path, PATH_MAX + 64, "%s", given);
        return access(path, R_OK) == 0 ? 0 : err_set(err, "there is no folder '%s'; give --golden the sources' folder 'golden'", given);
    }
    base[n > 0 ? n : 0] = '\0';
    if (strrchr(base, '/'))
        *strrchr(base, '/') = '\0';
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        char probe[PATH_MAX + 96];

        snprintf(path, PATH_MAX + 64, "%s/%s", base, places[i]);
        snprintf(probe, sizeof probe, "%s/ops.safetensors", path);
        if (access(probe, R_OK) == 0)
            return 0;
    }
    return err_set(err, "found no golden files in '%s/../golden' or '%s/../share/lora/golden'; give --golden DIR (the folder 'golden' "
                        "of this version's sources)", base, base);
}

/* ---- Running ---- */

static const struct verify_group *find_group(const char *name)
{
    for (const struct verify_group *g = verify_groups; g->name; g++)
        if (strcmp(g->name, name) == 0)
            return g;
    return NULL;
}

static bool wanted(const struct verify_options *o, const struct verify_group *g)
{
    for (size_t i = 0; i < o->groups.count; i++)
        if (strcmp(o->groups.item[i], g->name) == 0)
            return true;
    return o->groups.count == 0;
}

static int check_record(const struct verify_options *o, struct err *err)
{
    if (o->record && o->against)
        return err_usage(err, "--record and --against exclude each other; record on one machine, compare on the other");
    if (o->groups.count || o->golden)
        return err_usage(err, "golden files have no place with --record and --against; leave %s away",
                         o->groups.count ? "the groups" : "--golden");
    if (!o->ckpt)
        return err_usage(err, "--%s needs the model; give --ckpt MODEL", o->record ? "record" : "against");
    if (o->record && !o->prompt)
        return err_usage(err, "--record needs a text for the text encoder; give --prompt TEXT");
    return 0;
}

static int check_groups(const struct verify_options *o, struct err *err)
{
    const char *words[16];
    size_t n = 0;

    if (o->record || o->against)
        return check_record(o, err);
    if (o->ckpt || o->prompt)
        return err_usage(err, "--%s is for --record FILE and --against FILE; give one of them", o->ckpt ? "ckpt" : "prompt");

    for (const struct verify_group *g = verify_groups; g->name; g++)
        words[n++] = g->name;
    for (size_t i = 0; i < o->groups.count; i++) {
        const char *near = option_nearest(o->groups.item[i], words, n);

        if (!find_group(o->groups.item[i]))
            return err_usage(err, "there is no group '%s'%s%s%s; 'lora verify --list' names them", o->groups.item[i],
                             near ? "; did you mean '" : "", near ? near : "", near ? "'" : "");
    }
    return 0;
}

static int run_groups(struct verify *v, const struct verify_options *o, struct verdict *r, bool device, struct err *err)
{
    for (const struct verify_group *g = verify_groups; g->name; g++) {
        if (g->device != device || !wanted(o, g))
            continue;
        if (g->run(v, err))
            return -1;
        verdict_flush(r);
    }
    return 0;
}

/* --record or --against: the person's own model instead of golden files. */
static int run_record(const struct command_run *run, struct verify *v, const struct verify_options *o, struct verdict *r, struct err *err)
{
    struct record_options options = {.ckpt = o->ckpt, .prompt = o->prompt, .width = o->W, .height = o->H, .timestep = o->timestep,
                                     .seed = (uint64_t)o->seed};
    char text[32];
    struct stat st;

    if (o->against) {
        if (record_compare(run, v, &options, o->against, err))
            return -1;
        verdict_flush(r);
        return 0;
    }
    if (record_write(run, v, &options, o->record, err))
        return -1;
    if (!run->json && !run->quiet && stat(o->record, &st) == 0)
        printf("%s: every layer of '%s', %s; hold another machine against it with --against\n", o->record, o->ckpt,
               command_bytes((unsigned long long)st.st_size, text, sizeof text));
    return 0;
}

static int run_device(const struct command_run *run, struct verify *v, const struct verify_options *o, const char *name,
                      struct verdict *r, struct err *err)
{
    char text[240];
    struct offload device;
    int rc;

    if (offload_open(&device, name, NULL, err))
        return -1;
    v->ops = &device.ops;
    v->arithmetic = o->arithmetic >= 0 ? &verify_arithmetics[o->arithmetic]
                                       : verify_arithmetic_of(device.info.arithmetic, device.info.tf32);
    snprintf(text, sizeof text, "%s: %s; limits for %s", name, device.info.text, v->arithmetic->name);
    verdict_device(r, text);
    rc = o->record || o->against ? run_record(run, v, o, r, err) : run_groups(v, o, r, true, err);
    offload_close(&device);
    v->ops = NULL;
    return rc;
}

/* Every device there is, when none was named. One that does not open is no failure of the build: it is noted. */
static int run_all_devices(const struct command_run *run, struct verify *v, const struct verify_options *o, struct verdict *r,
                           struct err *err)
{
    static const struct {
        const char *plugin, *device; /* plugin NULL: of the program itself */
    } devices[] = {{NULL, "cpu"}, {NULL, "cpu:bf16"}, {"dnnl", "dnnl"}, {"dnnl", "dnnl:f32"}, {"cuda", "cuda"}, {"cuda", "cuda:f32"}};

    for (size_t i = 0; i < sizeof devices / sizeof *devices; i++) {
        struct offload probe;
        struct err why = {0};

        if (devices[i].plugin && !offload_has(devices[i].plugin, NULL))
            continue;
        if (offload_open(&probe, devices[i].device, NULL, &why)) {
            command_note(run, "device %s left out: %s", devices[i].device, why.msg);
            continue;
        }
        offload_close(&probe);
        if (run_device(run, v, o, devices[i].device, r, err))
            return -1;
    }
    return 0;
}

static bool wants_device(const struct verify_options *o)
{
    bool any = false;

    for (const struct verify_group *g = verify_groups; g->name; g++)
        any = any || (g->device && wanted(o, g));
    return any;
}

static void print_list(void)
{
    for (const struct verify_group *g = verify_groups; g->name; g++)
        printf("%-10s %s%s\n", g->name, g->summary, g->device ? "" : " (the same on every device)");
}

static int finish(const struct command_run *run, const struct verify *v, struct verdict *r, struct err *err)
{
    if (run->json) {
        json_t *rows = verdict_json(r);

        if (command_print_json(rows ? json_pack("{s:I, s:I, s:o}", "checks", (json_int_t)v->rows, "failed", (json_int_t)v->failed,
                                                "rows", rows)
                                    : NULL, err))
            return -1;
    } else if (v->failed == 0) {
        printf("%zu checks, all within their limits\n", v->rows);
    }
    if (v->failed)
        return err_set(err, "%zu of %zu checks over their limits; compare with --device cpu, and report it with the table",
                       v->failed, v->rows);
    return 0;
}

static int run(const struct command_run *run, void *options, struct err *err)
{
    const struct verify_options *o = options;
    char golden[PATH_MAX + 64];
    struct verdict *r = NULL;
    struct verify v = {.golden = golden, .report = verdict_row, .arithmetic = verify_arithmetics};
    int rc;

    if (o->list) {
        print_list();
        return 0;
    }
    if (check_groups(o, err) || (!o->record && !o->against && find_golden(o->golden, golden, err)) || verdict_new(&r, o->all, run->json, err))
        return -1;
    v.ctx = r;
    if (o->device || o->record || o->against)
        rc = run_device(run, &v, o, o->device ? o->device : "cpu", r, err);
    else
        rc = wants_device(o) ? run_all_devices(run, &v, o, r, err) : 0;
    if (rc == 0 && !o->record && !o->against) {
        verdict_device(r, "the same on every device");
        rc = run_groups(&v, o, r, false, err);
    }
    if (rc == 0 && !o->record)
        rc = finish(run, &v, r, err);
    verdict_free(r);
    return rc;
}

static const char *const arithmetics[] = {"f32", "tf32", "f16", "bf16", NULL}; /* the rows of verify_arithmetics */

static const struct option_row rows[] = {
    {OPTION(struct verify_options, groups), .arg = "GROUP", .flags = OPTION_POSITIONAL,
     .help = "ops, models, training, pictures, tokenizer, rng, schedule, samplers (default: all of them)"},
    {OPTION(struct verify_options, device), .arg = "NAME",
     .help = "what computes: cpu, cpu:bf16, dnnl, cuda:1 ... (default: every device there is; for --record and --against: cpu)"},
    {OPTION(struct verify_options, golden), .arg = "DIR", .help = "folder of golden files (default: beside the program's sources or "
                                                                  "installed with it)"},
    {OPTION(struct verify_options, all), .help = "print every comparison, not only the one nearest to its limit of each kind"},
    {OPTION(struct verify_options, record), .arg = "FILE", .flags = OPTION_OUTPUT,
     .help = "run a model of your own instead and write every layer's output"},
    {OPTION(struct verify_options, against), .arg = "FILE", .help = "run the model again (on another machine, build or device) and "
                                                                    "compare every layer with a record"},
    {OPTION(struct verify_options, ckpt), .arg = "PATH", .help = "the model for --record and --against"},
    {OPTION(struct verify_options, prompt), .arg = "TEXT", .help = "--record: what the text encoder reads"},
    {OPTION(struct verify_options, W), .arg = "N", .def = "64", .min = 8, .max = 4096,
     .help = "--record: width in pixels; the file grows with the area (SD1, 64 x 64: some 160 MB)"},
    {OPTION(struct verify_options, H), .arg = "N", .def = "64", .min = 8, .max = 4096, .help = "--record: height in pixels"},
    {OPTION(struct verify_options, seed), .arg = "N", .def = "1", .min = 0, .max = 9007199254740991.0,
     .help = "--record: of the noise that U-Net and VAE are given"},
    {OPTION(struct verify_options, timestep), .arg = "N", .def = "500", .min = 0, .max = 999,
     .help = "--record: how far the noise is, for the U-Net"},
    {OPTION(struct verify_options, list), .help = "list the groups and stop"},
    {OPTION(struct verify_options, arithmetic), .arg = "TYPE", .choices = arithmetics, .flags = OPTION_ADVANCED,
     .help = "limits for products in this type (default: what the device says it computes in)"},
    {0},
};

static const struct command_example examples[] = {
    {"is this build right?", "lora verify"},
    {"is a device right, operation by operation?", "lora verify ops models --device dnnl"},
    {"does another machine or device compute the same with my model?",
     "lora verify --record layers.safetensors --ckpt model.safetensors --prompt 'a fox'"},
    {"there", "lora verify --against layers.safetensors --ckpt model.safetensors --device dnnl"},
    {"everything that was compared, for scripts", "lora verify --json"},
    {0},
};

const struct command command_verify = {
    .name = "verify",
    .summary = "check this build and a device against golden files",
    .description =
        "Golden files hold what independent programs (torch, diffusers, transformers) computed in double precision. Each "
        "comparison prints its largest error, the limit that rounding may reach in the device's arithmetic, and the verdict; "
        "the exit status is the verdict of all.",
    .options = rows,
    .options_size = sizeof(struct verify_options),
    .examples = examples,
    .exit_notes = "1 also means that a comparison was over its limit.",
    .run = run,
};
