#include "cmd/verify/record.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cmd/memory.h"
#include "cmd/progress.h"
#include "cmd/verify/record_stage.h"
#include "cmd/verify/rounding.h"
#include "formats/tensor_writer.h"
#include "formats/tokenizer.h"
#include "ref/base/thread.h"
#include "ref/diffusion/noise.h"

/* ---- What both sides do ---- */

/* A named array of the file that is being made; data in the arena. */
struct item {
    char *name;
    struct tensor t;
};

struct work {
    const struct command_run *run;
    struct verify *v;
    const struct record_options *o;
    struct record_model m;
    struct progress *progress;
    struct arena arena;
    struct item *item; /* recording: all that will be written */
    size_t count, cap;
    json_t *errors;
    struct verify_file f; /* comparing */
};

static float *read_value(struct record_stage *s, int value, struct arena *a, size_t *n, struct err *err)
{
    struct shape shape = graph_shape(s->g, value);
    float *x;

    shape_numel(&shape, n);
    x = arena_alloc(a, (*n + 1) * sizeof *x, err);
    return x && run_read(s->run, value, x, err) == 0 ? x : NULL;
}

/* The stage that needs most: its arena twice (the graph's, and what was read of it), and the weights. */
static int check_memory(struct work *w, size_t width, size_t height, struct err *err)
{
    struct memory_need need = {0};
    size_t most = 0, all = 0;

    for (enum record_stage_id id = 0; id < RECORD_STAGES; id++) {
        struct record_stage s;
        struct plan *plan = NULL;
        int rc = record_stage_open(&s, &w->m, id, width, height, err);

        if (rc == 0)
            rc = plan_new(&plan, s.g, w->v->ops, thread_count(), err);
        if (rc == 0) {
            most = plan->arena > most ? plan->arena : most;
            all += plan->arena;
        }
        plan_free(plan);
        record_stage_close(&s);
        if (rc)
            return -1;
    }
    weights_bytes(w->m.w, &need.bytes, &need.mapped);
    need.bytes += most + all;
    return memory_check(w->run, &need, "use a smaller --W and --H", err);
}

/* ---- Recording ---- */

static int add_item(struct work *w, const char *name, const char *name2, const char *prefix, const struct tensor *t, struct err *err)
{
    struct item *i;

    if (mem_grow(&w->item, &w->cap, w->count, sizeof *w->item, "a record", err))
        return -1;
    i = &w->item[w->count++];
    *i = (struct item){arena_printf(&w->arena, err, "%s%s/%s", prefix, name, name2), *t};
    return i->name ? 0 : -1;
}

static int tokens(struct work *w, int32_t *ids, struct err *err)
{
    struct token_list list = {0};
    struct tokenizer *t = NULL;
    int32_t pad = w->m.model->arch == MODEL_SD2 ? TOKEN_PAD_SD2 : TOKEN_END;
    int rc = tokenizer_open(&t, err);

    if (rc == 0)
        rc = tokenizer_encode(t, w->o->prompt, strlen(w->o->prompt), &list, err);
    for (size_t j = 0; j < TOKEN_CHUNK && rc == 0; j++) {
        bool text = j > 0 && j <= list.count && j < TOKEN_CHUNK - 1;

        ids[j] = j == 0 ? TOKEN_BEGIN : text ? list.id[j - 1] : j == list.count + 1 || j == TOKEN_CHUNK - 1 ? TOKEN_END : pad;
    }
    free(list.id);
    tokenizer_close(t);
    return rc;
}

/* Fills in[] of a stage: ids, noise of the seed as latents, the number of the step, the text encoder's output, a picture that is
 * the decoder's (clipped). */
static int make_inputs(struct work *w, enum record_stage_id id, struct record_stage *s, void **in, const float *before, struct err *err)
{
    struct noise noise = {0};
    size_t n;

    for (size_t i = 0; i < s->input_count; i++) {
        struct shape shape = graph_shape(s->g, s->input[i].value);

        shape_numel(&shape, &n);
        in[i] = arena_alloc(&w->arena, n * 4, err);
        if (!in[i])
            return -1;
        if (strcmp(s->input[i].name, "latents") == 0) {
            int rc = noise_begin(&noise, NOISE_CPU, w->o->seed, shape.dim[3], shape.dim[1], shape.dim[2], err);

            if (rc == 0)
                noise_next(&noise, in[i]);
            noise_end(&noise);
            if (rc)
                return -1;
        }
    }
    if (id == RECORD_TEXT)
        return tokens(w, in[0], err);
    if (id == RECORD_UNET) {
        *(float *)in[1] = (float)w->o->timestep;
        memcpy(in[2], before, n * sizeof(float));
    }
    if (id == RECORD_ENCODER)
        for (size_t i = 0; i < n; i++)
            ((float *)in[0])[i] = fminf(fmaxf(before[i], -1), 1);
    return 0;
}

/* How much each arithmetic's rounding changes each layer: errors[k] = {"te/PATH": [f32, bf16, f16]}. */
static int add_samples(struct work *w, struct record_stage *s, const void *const *in, size_t first, struct err *err)
{
    static const enum dtype types[] = {DT_F32, DT_BF16, DT_F16};
    struct ops ops;

    for (size_t a = 0; a < 3; a++) {
        rounding_ops(&ops, types[a]);
        if (record_stage_run(s, &w->m, &ops, in, err))
            return err_prefix(err, "with %s rounding: ", dtype_name(types[a]));
        for (size_t i = 0; i < s->layer_count; i++) {
            const struct item *item = &w->item[first + i];
            json_t *list = json_object_get(w->errors, item->name);
            struct arena own = {0};
            size_t n;
            float *x = read_value(s, s->layer[i], &own, &n, err);

            if (!list) {
                list = json_array();
                json_object_set_new(w->errors, item->name, list);
            }
            if (!x || json_array_append_new(list, json_real(verify_max_diff(x, item->t.data, n)))) {
                arena_free(&own);
                return x ? err_memory(err, 0, "a record") : -1;
            }
            arena_free(&own);
        }
        progress_step(w->progress, 1);
    }
    return 0;
}

/* Runs a stage and adds its inputs and layers; *out: what the next stage needs. */
static int record_stage(struct work *w, enum record_stage_id id, const float **out, struct err *err)
{
    struct record_stage s;
    void *in[3] = {0};
    size_t first, n;
    int rc = -1;

    if (record_stage_open(&s, &w->m, id, w->o->width, w->o->height, err) || make_inputs(w, id, &s, in, *out, err) ||
        record_stage_run(&s, &w->m, w->v->ops, (const void *const *)in, err))
        goto done;
    progress_step(w->progress, 1);
    for (size_t i = 0; i < s.input_count; i++) {
        const struct graph_value *value = &s.g->values[s.input[i].value];

        if (add_item(w, s.key, s.input[i].name, "in/", &(struct tensor){in[i], value->dtype, value->shape}, err))
            goto done;
    }
    first = w->count;
    for (size_t i = 0; i < s.layer_count; i++) {
        const struct graph_value *value = &s.g->values[s.layer[i]];
        struct tensor t = {read_value(&s, s.layer[i], &w->arena, &n, err), DT_F32, value->shape};

        if (!t.data || add_item(w, s.key, value->name, "", &t, err))
            goto done;
        if (s.layer[i] == s.out)
            *out = t.data;
    }
    rc = add_samples(w, &s, (const void *const *)in, first, err);
done:
    record_stage_close(&s);
    return rc;
}

static int write_file(struct work *w, const char *path, struct err *err)
{
    struct metadata_item meta[2] = {{"error", json_dumps(w->errors, JSON_COMPACT)}, {"record", NULL}};
    struct tensor_spec *specs = mem_zero(w->count, sizeof *specs, "a record", err);
    json_t *j = json_pack("{s:s, s:s, s:I, s:I, s:I, s:I, s:s, s:s}", "checkpoint", w->o->ckpt, "prompt", w->o->prompt, "width",
                          (json_int_t)w->o->width, "height", (json_int_t)w->o->height, "timestep", (json_int_t)w->o->timestep,
                          "seed", (json_int_t)w->o->seed, "arithmetic", w->v->arithmetic->name, "version", COMMAND_VERSION);
    struct tensor_writer *out = NULL;
    int rc = -1;

    meta[1].value = j ? json_dumps(j, JSON_COMPACT) : NULL;
    for (size_t i = 0; specs && i < w->count; i++)
        specs[i] = (struct tensor_spec){w->item[i].name, w->item[i].t.dtype, w->item[i].t.shape};
    if (!meta[0].value || !meta[1].value)
        err_memory(err, 0, "a record");
    else if (specs)
        rc = tensor_writer_open(&out, path, &format_safetensors, specs, w->count, meta, 2, err);
    for (size_t k = 0; k < w->count && rc == 0; k++) {
        size_t i = tensor_writer_order(out, k);

        rc = tensor_writer_put(out, i, w->item[i].t.data, err);
    }
    if (rc == 0)
        rc = tensor_writer_commit(out, err);
    else
        tensor_writer_abort(out);
    free((void *)(uintptr_t)meta[0].value);
    free((void *)(uintptr_t)meta[1].value);
    json_decref(j);
    free(specs);
    return rc;
}

static void close_work(struct work *w)
{
    progress_end(w->progress);
    record_model_close(&w->m);
    json_decref(w->errors);
    free(w->item);
    arena_free(&w->arena);
    verify_file_close(&w->f);
}

int record_write(const struct command_run *run, struct verify *v, const struct record_options *o, const char *path, struct err *err)
{
    struct work w = {.run = run, .v = v, .o = o, .errors = json_object()};
    const float *before = NULL;
    int rc = record_model_open(&w.m, o->ckpt, err);

    if (rc == 0 && (o->width % w.m.factor || o->height % w.m.factor))
        rc = err_usage(err, "--W %zu and --H %zu must be multiples of %zu, the VAE's factor", o->width, o->height, w.m.factor);
    if (rc == 0)
        rc = check_memory(&w, o->width, o->height, err);
    if (rc == 0)
        w.progress = progress_start(run, "recording", 4 * RECORD_STAGES, "runs");
    for (enum record_stage_id id = 0; id < RECORD_STAGES && rc == 0; id++) {
        if (id == RECORD_DECODER)
            before = NULL;
        rc = record_stage(&w, id, &before, err);
    }
    if (rc == 0)
        rc = write_file(&w, path, err);
    close_work(&w);
    return rc;
}

/* ---- Comparing ---- */

/* The layer's limit in this device's arithmetic, and in the recorder's where that was not f32. */
static double limit_of(const struct verify *v, const struct verify_arithmetic *theirs, const json_t *samples, double size)
{
    return verify_limit_layer(v->arithmetic, samples, size) + (theirs->sample ? verify_limit_layer(theirs, samples, size) : 0);
}

static int compare_layer(struct work *w, struct record_stage *s, int value, const json_t *errors,
                         const struct verify_arithmetic *theirs, struct err *err)
{
    struct verify_row row = {.group = "record"};
    struct arena own = {0};
    char name[512], what[64];
    double size = 0;
    float *want, *x = NULL;
    size_t n = 0, count;
    int rc = -1;

    snprintf(name, sizeof name, "%s/%s", s->key, s->g->values[value].name);
    snprintf(what, sizeof what, "%s layers", s->key);
    row.what = what;
    want = verify_f32(&w->f, name, &count, err);
    if (want)
        x = read_value(s, value, &own, &n, err);
    for (size_t i = 0; x && i < count; i++)
        size = fmax(size, fabs((double)want[i]));
    if (x)
        rc = verify_close(w->v, &w->f, &row, name, x, n, limit_of(w->v, theirs, json_object_get(errors, name), size), 0, err);
    arena_free(&own);
    arena_free(&w->f.arena);
    return rc;
}

static int compare_stage(struct work *w, enum record_stage_id id, const json_t *record, const json_t *errors,
                         const struct verify_arithmetic *theirs, struct err *err)
{
    size_t width = (size_t)json_integer_value(json_object_get(record, "width"));
    size_t height = (size_t)json_integer_value(json_object_get(record, "height"));
    struct record_stage s;
    void *in[3] = {0};
    int rc = record_stage_open(&s, &w->m, id, width, height, err);

    for (size_t i = 0; i < s.input_count && rc == 0; i++) {
        const struct graph_value *value = &s.g->values[s.input[i].value];
        const struct tensor_entry *e;
        char name[64];

        snprintf(name, sizeof name, "in/%s/%s", s.key, s.input[i].name);
        e = verify_entry(&w->f, name, err);
        in[i] = e ? verify_raw(&w->f, e, err) : NULL;
        if (e && (!shape_equal(&e->shape, &value->shape) || e->dtype != value->dtype))
            rc = err_set(err, "'%s': its input '%s' does not fit '%s'; it was recorded with another model", w->f.file->path, name,
                         w->o->ckpt);
        else if (!in[i])
            rc = -1;
    }
    if (rc == 0)
        rc = record_stage_run(&s, &w->m, w->v->ops, (const void *const *)in, err);
    for (size_t i = 0; i < s.layer_count && rc == 0; i++)
        rc = compare_layer(w, &s, s.layer[i], errors, theirs, err);
    record_stage_close(&s);
    return rc;
}

static const struct verify_arithmetic *arithmetic_named(const char *name)
{
    for (const struct verify_arithmetic *a = verify_arithmetics; a->name && name; a++)
        if (strcmp(a->name, name) == 0)
            return a;
    return NULL;
}

int record_compare(const struct command_run *run, struct verify *v, const struct record_options *o, const char *path,
                   struct err *err)
{
    struct work w = {.run = run, .v = v, .o = o};
    const struct verify_arithmetic *theirs = NULL;
    json_t *record = NULL, *errors = NULL;
    int rc = tensor_file_open(&w.f.file, path, err);

    if (rc == 0 && !tensor_file_metadata(w.f.file, "record"))
        rc = err_set(err, "'%s' is no record; make one with lora verify --record FILE --ckpt MODEL --prompt TEXT", path);
    if (rc == 0 && (!(record = verify_json(&w.f, "record", err)) || !(errors = verify_json(&w.f, "error", err))))
        rc = -1;
    if (rc == 0 && !(theirs = arithmetic_named(json_string_value(json_object_get(record, "arithmetic")))))
        rc = err_set(err, "'%s' was recorded in an arithmetic that this version does not know; use the version that made it", path);
    if (rc == 0)
        rc = record_model_open(&w.m, o->ckpt, err);
    if (rc == 0)
        rc = check_memory(&w, (size_t)json_integer_value(json_object_get(record, "width")),
                          (size_t)json_integer_value(json_object_get(record, "height")), err);
    if (rc == 0)
        w.progress = progress_start(run, "comparing", RECORD_STAGES, "stages");
    for (enum record_stage_id id = 0; id < RECORD_STAGES && rc == 0; id++) {
        rc = compare_stage(&w, id, record, errors, theirs, err);
        progress_step(w.progress, 1);
    }
    json_decref(record);
    json_decref(errors);
    close_work(&w);
    return rc;
}
