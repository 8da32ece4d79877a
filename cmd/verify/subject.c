#include "cmd/verify/subject.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ref/model/clip.h"
#include "ref/model/unet.h"
#include "ref/model/vae.h"

static const float lora_scale = 0.5f; /* SCALE in golden/make_models.py */

/* ---- Opening ---- */

static int make_factor(struct subject *s, struct tensor *t, const char *part, const char *path, const char *leaf, struct err *err)
{
    const struct tensor_entry *e;
    char name[300];
    size_t n = 0;

    snprintf(name, sizeof name, "%s/grad/%s/%s.%s", s->name, part, path, leaf);
    e = verify_entry(s->f, name, err);
    if (!e || !shape_numel(&e->shape, &n))
        return -1;
    *t = (struct tensor){arena_alloc(&s->f->arena, n * sizeof(float), err), DT_F32, e->shape};
    if (!t->data)
        return -1;
    snprintf(name, sizeof name, "%s/%s/%s.%s", s->name, part, path, leaf);
    golden_model_fill(t->data, name, &t->shape, n);
    return 0;
}

/* Each "MODEL/grad/PART/PATH.down" of the file is a LoRA module. */
static int make_loras(struct subject *s, struct err *err)
{
    const struct tensor_file *file = s->f->file;
    char prefix[64];
    size_t length = (size_t)snprintf(prefix, sizeof prefix, "%s/grad/", s->name);

    s->loras = mem_zero(file->count, sizeof *s->loras, "LoRA modules", err);
    s->attached = mem_zero(file->count, sizeof *s->attached, "LoRA modules", err);
    if (!s->loras || !s->attached)
        return -1;
    for (size_t i = 0; i < file->count; i++) {
        const char *name = file->entries[i].name, *slash, *dot = strrchr(name, '.');
        struct subject_lora *l = &s->loras[s->lora_count];
        enum model_part part = MODEL_UNET;

        if (strncmp(name, prefix, length) != 0 || !dot || strcmp(dot, ".down") != 0 || !(slash = strchr(name + length, '/')))
            continue;
        if (strncmp(name + length, "te/", 3) == 0)
            part = MODEL_TEXT_ENCODER;
        snprintf(l->path, sizeof l->path, "%.*s", (int)(dot - slash - 1), slash + 1);
        if (make_factor(s, &l->down, golden_model_part(part), l->path, "down", err) ||
            make_factor(s, &l->up, golden_model_part(part), l->path, "up", err))
            return -1;
        s->attached[s->lora_count++] = (struct layers_lora){
            .part = part, .path = l->path, .down = &l->down, .up = &l->up, .scale = lora_scale, .train = true};
    }
    return 0;
}

int subject_open(struct subject *s, struct verify_file *f, json_t *meta, const char *name, struct err *err)
{
    const char *dtype;

    *s = (struct subject){.name = name, .f = f, .meta = json_object_get(meta, name), .result = GRAPH_NONE, .loss = GRAPH_NONE};
    s->source = (struct golden_model){name, json_object_get(s->meta, "tensors"), DT_F32};
    dtype = json_string_value(json_object_get(s->meta, "dtype"));
    if (!s->meta || !dtype || !dtype_parse(dtype, &s->source.dtype))
        return err_set(err, "golden file '%s' has no model '%s'; take it from the sources of this version", f->file->path, name);
    s->door = (struct weight_source){"golden model", &s->source, golden_model_find, golden_model_read};
    if (weights_new(&s->weights, &s->door, err) || make_loras(s, err) || !(s->g = graph_new(err)))
        return -1;
    s->layers = (struct layers){.g = s->g, .w = s->weights, .part = MODEL_UNET, .loras = s->attached, .lora_count = s->lora_count};
    return 0;
}

void subject_close(struct subject *s)
{
    run_free(s->run);
    free(s->loras);
    free(s->attached);
    free(s->grads);
    graph_free(s->g);
    weights_free(s->weights);
    *s = (struct subject){0};
}

/* ---- Building ---- */

static const struct shape *input_shape(struct subject *s, const char *name, struct err *err)
{
    const struct tensor_entry *e;
    char full[100];

    snprintf(full, sizeof full, "%s/in/%s", s->name, name);
    e = verify_entry(s->f, full, err);
    return e ? &e->shape : NULL;
}

static void add_input(struct subject *s, const char *name, int value)
{
    s->inputs[s->input_count].name = name;
    s->inputs[s->input_count++].value = value;
}

static int build_diffusion(struct subject *s, struct err *err)
{
    const struct shape *ids = input_shape(s, "ids", err), *x = input_shape(s, "latents", err);
    const struct shape *y = input_shape(s, "target", err);
    struct clip clip;
    struct unet unet;
    int target;

    if (!ids || !x || !y)
        return -1;
    s->layers.part = MODEL_TEXT_ENCODER;
    if (clip_build(&s->layers, NULL, ids->dim[0], ids->dim[1], &clip, err))
        return -1;
    s->layers.part = MODEL_UNET;
    if (unet_build(&s->layers, NULL, x->dim[0], x->dim[1], x->dim[2], clip.out, 0, &unet, err))
        return -1;
    s->result = unet.out;
    target = graph_input(s->g, "target", DT_F32, y);
    s->loss = graph_binary(s->g, OP_mse, unet.out, target, "loss");
    add_input(s, "ids", clip.ids);
    add_input(s, "latents", unet.latents);
    add_input(s, "timestep", unet.timestep);
    add_input(s, "target", target);
    return graph_check(s->g, err);
}

static int build_vae(struct subject *s, bool encoder, struct err *err)
{
    const char *name = encoder ? "pictures" : "latents";
    const struct shape *x = input_shape(s, name, err);
    struct vae vae;

    s->layers.part = MODEL_VAE;
    if (!x || (encoder ? vae_build_encoder : vae_build_decoder)(&s->layers, x->dim[0], x->dim[1], x->dim[2], &vae, err))
        return -1;
    s->result = vae.out;
    add_input(s, name, vae.in);
    return 0;
}

int subject_build(struct subject *s, struct err *err)
{
    if (strcmp(s->name, "encoder") == 0 || strcmp(s->name, "decoder") == 0)
        return build_vae(s, s->name[0] == 'e', err);
    return build_diffusion(s, err);
}

int subject_differentiate(struct subject *s, struct err *err)
{
    s->grads = mem_zero(s->g->value_count, sizeof *s->grads, "gradients", err);
    return s->grads ? graph_differentiate(s->g, s->loss, NULL, 0, s->grads, err) : -1;
}

/* The value a module gives, found by its path (behind "out/PART/"); the text encoder's paths do not occur in the U-Net. */
static int layer_value(const struct subject *s, const char *key, struct err *err)
{
    const char *path = strchr(key + 4, '/');
    int value = path ? graph_find(s->g, path + 1) : GRAPH_NONE;

    if (value == GRAPH_NONE)
        err_set(err, "golden file '%s': this version has no layer for '%s' of model %s", s->f->file->path, key, s->name);
    return value;
}

int subject_keep_layers(struct subject *s, struct err *err)
{
    json_t *errors = json_object_get(s->meta, "error"), *e;
    const char *key;

    json_object_foreach(errors, key, e)
        if (strncmp(key, "out/", 4) == 0) {
            int value = layer_value(s, key, err);

            if (value == GRAPH_NONE)
                return -1;
            graph_keep(s->g, value);
        }
    return 0;
}

int subject_start(struct subject *s, const struct ops *ops, struct err *err)
{
    const float one = 1;

    if (weights_load(s->weights, err) || run_new(&s->run, s->g, ops, err))
        return -1;
    for (size_t i = 0; i < s->input_count; i++) {
        const struct tensor_entry *e;
        char name[100];
        void *raw;

        if (s->g->values[s->inputs[i].value].kind != VALUE_INPUT)
            return err_set(err, "'%s' is no input", s->inputs[i].name);
        snprintf(name, sizeof name, "%s/in/%s", s->name, s->inputs[i].name);
        e = verify_entry(s->f, name, err);
        raw = e ? verify_raw(s->f, e, err) : NULL;
        if (!raw || run_write(s->run, s->inputs[i].value, raw, err))
            return -1;
    }
    return s->grads ? run_write(s->run, s->grads[s->loss], &one, err) : 0;
}

int subject_gradient(const struct subject *s, size_t lora, int side)
{
    const struct tensor *t = side ? &s->loras[lora].up : &s->loras[lora].down;

    for (size_t i = 0; i < s->g->value_count; i++)
        if (s->g->values[i].source == t)
            return s->grads[i];
    return GRAPH_NONE;
}

/* ---- Comparing ---- */

static float *read_value(struct subject *s, int value, size_t *n, struct err *err)
{
    struct shape shape = graph_shape(s->g, value);
    float *x;

    shape_numel(&shape, n);
    x = arena_alloc(&s->f->arena, (*n + 1) * sizeof *x, err);
    return x && run_read(s->run, value, x, err) == 0 ? x : NULL;
}

static int compare(struct verify *v, struct subject *s, const char *key, const char *kind, const float *got, size_t n,
                   double *limit, struct err *err)
{
    const json_t *samples = json_object_get(json_object_get(s->meta, "error"), key);
    char name[300], what[64];
    double size = 0, by;
    size_t count;
    float *want;

    snprintf(name, sizeof name, "%s/%s", s->name, key);
    snprintf(what, sizeof what, "%s %s", s->name, kind);
    want = verify_f32(s->f, name, &count, err);
    if (!want)
        return -1;
    if (!json_is_array(samples))
        return err_set(err, "golden file '%s' has no errors for '%s'; take it from the sources of this version",
                       s->f->file->path, name);
    for (size_t i = 0; i < count; i++)
        size = fmax(size, fabs((double)want[i]));
    by = verify_limit_layer(v->arithmetic, samples, size);
    if (limit)
        *limit = by;
    return verify_close(v, s->f, &(struct verify_row){.group = "models", .what = what}, name, got, n, by, 0, err);
}

int subject_compare_value(struct verify *v, struct subject *s, const char *key, const char *kind, int value, struct err *err)
{
    size_t n;
    float *x = read_value(s, value, &n, err);

    return x ? compare(v, s, key, kind, x, n, NULL, err) : -1;
}

int subject_compare_layers(struct verify *v, struct subject *s, struct err *err)
{
    json_t *errors = json_object_get(s->meta, "error"), *e;
    const char *key;

    json_object_foreach(errors, key, e)
        if (strncmp(key, "out/", 4) == 0) {
            int value = layer_value(s, key, err);

            if (value == GRAPH_NONE || subject_compare_value(v, s, key, "layers", value, err))
                return -1;
        }
    return 0;
}

struct slope {
    double sum, squares; /* gradient x direction; (limit x direction)^2 */
};

static int compare_gradient(struct verify *v, struct subject *s, size_t i, int side, struct slope *slope, struct err *err)
{
    const char *part = golden_model_part(s->attached[i].part), *leaf = side ? "up" : "down";
    const struct tensor *t = side ? &s->loras[i].up : &s->loras[i].down;
    int value = subject_gradient(s, i, side);
    char key[300], name[300];
    float *x, *along;
    double limit;
    size_t n;

    snprintf(key, sizeof key, "grad/%s/%s.%s", part, s->loras[i].path, leaf);
    snprintf(name, sizeof name, "%s/direction/%s/%s.%s", s->name, part, s->loras[i].path, leaf);
    if (value == GRAPH_NONE)
        return err_set(err, "model %s: '%s' has no gradient", s->name, key);
    x = read_value(s, value, &n, err);
    along = x ? arena_alloc(&s->f->arena, (n + 1) * sizeof *along, err) : NULL;
    if (!along || compare(v, s, key, "gradients", x, n, &limit, err))
        return -1;
    golden_model_fill(along, name, &t->shape, n);
    for (size_t j = 0; j < n; j++) {
        slope->sum += (double)x[j] * (double)along[j];
        slope->squares += limit * limit * (double)along[j] * (double)along[j];
    }
    return 0;
}

/* Errors of single elements have independent signs and add as squares; 1e-7 is what the central difference is off by. */
static void compare_slopes(struct verify *v, struct subject *s, const struct slope *slope)
{
    const enum model_part parts[] = {MODEL_TEXT_ENCODER, MODEL_UNET};

    for (size_t p = 0; p < 2; p++) {
        const char *part = golden_model_part(parts[p]);
        double want = json_number_value(json_object_get(json_object_get(s->meta, "slope"), part));
        char name[100], what[64];
        struct verify_row row = {.group = "models", .what = what, .name = name, .dtype = DT_COUNT};

        snprintf(name, sizeof name, "%s/slope/%s", s->name, part);
        snprintf(what, sizeof what, "%s finite differences", s->name);
        row.worst = fabs(slope[parts[p]].sum - want);
        row.limit = sqrt(slope[parts[p]].squares) + 1e-7 * fabs(want);
        verify_row_add(v, &row);
    }
}

int subject_compare_gradients(struct verify *v, struct subject *s, struct err *err)
{
    struct slope slope[MODEL_PARTS] = {{0}};

    for (size_t i = 0; i < s->lora_count; i++)
        for (int side = 0; side < 2; side++)
            if (compare_gradient(v, s, i, side, &slope[s->attached[i].part], err))
                return -1;
    compare_slopes(v, s, slope);
    return 0;
}
