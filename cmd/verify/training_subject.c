#include "cmd/verify/training_subject.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cmd/train/text.h"
#include "ref/base/mem.h"
#include "ref/lora/target.h"
#include "ref/model/clip.h"

int training_file_open(struct training_file *f, const struct verify *v, const char *name, struct err *err)
{
    if (verify_file_open(&f->file, v, name, err))
        return -1;
    f->cases = verify_json(&f->file, "cases", err);
    f->tensors = f->cases ? verify_json(&f->file, "tensors", err) : NULL;
    if (f->tensors && tensor_file_metadata(f->file.file, "error") &&
        (!(f->error = verify_json(&f->file, "error", err)) || !(f->rms = verify_json(&f->file, "rms", err))))
        return -1;
    return f->tensors ? 0 : -1;
}

void training_file_close(struct training_file *f)
{
    json_decref(f->cases);
    json_decref(f->tensors);
    json_decref(f->error);
    json_decref(f->rms);
    verify_file_close(&f->file);
    *f = (struct training_file){0};
}

void training_key(const struct training *t, const char *key, char name[400])
{
    snprintf(name, 400, "%.40s/%.350s", t->name, key);
}

double training_option(const struct training *t, const char *key)
{
    return json_number_value(json_object_get(t->options, key));
}

static bool option_on(const struct training *t, const char *key)
{
    return json_is_true(json_object_get(t->options, key));
}

/* ---- The network ---- */

struct ranks {
    double dim, alpha, conv_dim, conv_alpha;
};

/* One module for the tensor `name`, unless no LoRA reaches it. Its path is the caller's. */
static bool spec_of(struct network_spec *spec, enum model_part part, const char *name, const json_t *dims, const struct ranks *r)
{
    struct shape s = {.ndim = (int)json_array_size(dims)};
    struct target t;
    bool window;

    for (int i = 0; i < s.ndim; i++)
        s.dim[i] = (size_t)json_integer_value(json_array_get(dims, (size_t)i));
    if (target_of(part, name, &s, &t) == TARGET_NONE || ((t.class == TARGET_CONV || t.class == TARGET_CONV1) && r->conv_dim == 0))
        return false;
    window = t.kh * t.kw > 1;
    *spec = (struct network_spec){.part = part, .path = strndup(name, t.path_length), .out = t.out, .in = t.in, .kh = t.kh, .kw = t.kw,
                                  .conv = t.conv, .rank = (size_t)(window ? r->conv_dim : r->dim),
                                  .alpha = window ? r->conv_alpha : r->alpha, .group = part == MODEL_TEXT_ENCODER ? 0 : 1};
    return true;
}

static int add_specs(struct network_spec **spec, size_t *count, size_t *cap, const json_t *tensors, enum model_part part,
                     const struct ranks *r, struct err *err)
{
    const char *name;
    json_t *dims;

    json_object_foreach(json_object_get(tensors, golden_model_part(part)), name, dims)
    {
        if (mem_grow(spec, cap, *count, sizeof **spec, "the golden model's modules", err) < 0)
            return -1;
        if (!spec_of(&(*spec)[*count], part, name, dims, r))
            continue;
        if (!(*spec)[(*count)++].path)
            return err_memory(err, strlen(name), "the golden model's modules");
    }
    return 0;
}

int training_network(struct network **out, const json_t *tensors, bool text, double dim, double alpha, double conv_dim,
                     double conv_alpha, struct err *err)
{
    const struct ranks narrow = {dim, alpha, 0, 0}, all = {dim, alpha, conv_dim, conv_alpha};
    struct network_spec *spec = NULL;
    size_t count = 0, cap = 0;
    int rc = text ? add_specs(&spec, &count, &cap, tensors, MODEL_TEXT_ENCODER, &narrow, err) : 0;

    if (rc == 0)
        rc = add_specs(&spec, &count, &cap, tensors, MODEL_UNET, &all, err);
    if (rc == 0)
        rc = network_new(out, spec, count, err);
    for (size_t i = 0; i < count; i++)
        free((char *)(uintptr_t)spec[i].path);
    free(spec);
    return rc;
}

static void fill_factor(struct tensor *t, const char *name, const char *path, const char *leaf, float by)
{
    char full[400];
    float *x = t->data;
    size_t n = 0;

    snprintf(full, sizeof full, "%s/%s.%s", name, path, leaf);
    shape_numel(&t->shape, &n);
    golden_model_fill(x, full, &t->shape, n);
    for (size_t i = 0; i < n; i++)
        x[i] *= by;
}

static int fill_network(struct training *t, struct network **out, const char *name, struct err *err)
{
    if (training_network(out, t->f->tensors, option_on(t, "te"), training_option(t, "dim"), training_option(t, "alpha"),
                         training_option(t, "conv_dim"), training_option(t, "conv_alpha"), err))
        return -1;
    for (size_t i = 0; i < (*out)->count; i++) {
        struct network_module *m = &(*out)->module[i];

        fill_factor(&m->down, name, m->spec.path, "down", 0.5f);
        fill_factor(&m->up, name, m->spec.path, "up", 0.0625f);
    }
    return 0;
}

static int open_network(struct training *t, struct err *err)
{
    char name[400];

    if (fill_network(t, &t->net, t->name, err))
        return -1;
    if (!option_on(t, "base"))
        return 0;
    training_key(t, "base", name);
    if (fill_network(t, &t->under, name, err) || !(t->base = mem_zero(t->under->count, sizeof *t->base, "a LoRA", err)))
        return -1;
    for (size_t i = 0; i < t->under->count; i++) {
        const struct network_module *m = &t->under->module[i];

        t->base[i] = (struct layers_lora){.part = m->spec.part, .path = m->spec.path, .down = &m->down, .up = &m->up,
                                          .scale = (float)(m->spec.alpha / (double)m->spec.rank), .fold = true};
    }
    return 0;
}

static int open_optimizer(struct training *t, const char *kind, struct err *err)
{
    struct optim_tensor *list = mem_zero(2 * t->net->count, sizeof *list, "a list of factors", err);
    struct optim_options options = {.groups = 2};
    size_t n = 0;
    int rc;

    t->grads = mem_zero(2 * t->net->count, sizeof *t->grads, "a list of gradients", err);
    for (size_t i = 0; list && t->grads && i < t->net->count; i++) {
        const struct network_module *m = &t->net->module[i];

        if (!train_graph_has(&t->setup, m))
            continue;
        t->grads[n] = m->ddown;
        list[n++] = (struct optim_tensor){m->down.data, m->down.shape, m->spec.group};
        t->grads[n] = m->dup;
        list[n++] = (struct optim_tensor){m->up.data, m->up.shape, m->spec.group};
    }
    rc = list && t->grads ? optim_new(&t->optim, kind, NULL, 0, &options, list, n, err) : -1;
    free(list);
    return rc ? -1 : optim_to_device(t->optim, t->ops->device, &t->on_device, err);
}

/* ---- Opening ---- */

static int open_graph(struct training *t, bool checkpoint, struct err *err)
{
    const struct tensor_entry *x;
    char name[400];

    t->setup = (struct train_setup){.w = t->weights, .ops = t->ops, .net = t->net, .text_trained = option_on(t, "te"), .text_layers = 3,
                                    .clip_skip = (size_t)training_option(t, "clip_skip"), .checkpoint = checkpoint,
                                    .huber = option_on(t, "huber"), .masked = option_on(t, "masked"),
                                    .weighted = option_on(t, "weighted"), .base = t->base,
                                    .base_count = t->base ? t->under->count : 0,
                                    .dropout = training_option(t, "rank_dropout") > 0 ? DROP_SAMPLE : DROP_NONE};
    training_key(t, "latents", name);
    x = verify_entry(&t->f->file, name, err);
    if (!x)
        return -1;
    t->n = x->shape.dim[0];
    t->per = x->shape.dim[1] * x->shape.dim[2] * x->shape.dim[3];
    if (train_graph_build(&t->graph, &t->setup, &(struct train_shape){t->n, x->shape.dim[1], x->shape.dim[2],
                                                                      (size_t)training_option(t, "chunks")}, TRAIN_STEP, err))
        return -1;
    return weights_load(t->weights, err) || run_new(&t->graph.run, t->graph.g, t->ops, err) ? -1 : 0;
}

int training_open(struct training *t, struct training_file *f, const char *name, const struct ops *ops, bool checkpoint, float scale,
                  const char *optimizer, struct err *err)
{
    const struct ops_param *params;
    size_t n;

    *t = (struct training){.name = name, .f = f, .ops = ops, .scale = scale, .options = json_object_get(f->cases, name)};
    if (!t->options)
        return err_set(err, "golden file '%s' has no case '%s'; take it from the sources of this version", f->file.file->path, name);
    t->source = (struct golden_model){"train", f->tensors, DT_F16};
    t->door = (struct weight_source){"golden model", &t->source, golden_model_find, golden_model_read};
    schedule_init(&t->schedule);
    if (weights_new(&t->weights, &t->door, err) || open_network(t, err) || open_graph(t, checkpoint, err))
        return -1;
    t->scratch = mem_zero(t->net->size, sizeof *t->scratch, "gradients", err);
    if (!t->scratch || open_optimizer(t, optimizer, err))
        return -1;
    params = optim_params(t->optim, &n);
    return params ? run_share_params(t->graph.run, params, n, err) : 0;
}

void training_close(struct training *t)
{
    optim_free(t->optim);
    free(t->grads);
    free(t->scratch);
    train_graph_free(&t->graph);
    network_free(t->net);
    network_free(t->under);
    free(t->base);
    weights_free(t->weights);
    *t = (struct training){0};
}

/* ---- One step ---- */

static float *floats(const struct training *t, const char *key, struct err *err)
{
    char name[400];

    training_key(t, key, name);
    return verify_f32(&t->f->file, name, NULL, err);
}

static int32_t *integers(const struct training *t, const char *key, size_t *n, struct err *err)
{
    char name[400];

    training_key(t, key, name);
    return verify_i32(&t->f->file, name, n, err);
}

/* The text encoder by itself, where it is not trained. */
static int write_context(struct training *t, const int32_t *ids, struct err *err)
{
    struct layers l = {.w = t->weights, .part = MODEL_TEXT_ENCODER, .g = graph_new(err)};
    struct run *run = NULL;
    struct clip clip;
    float *context = NULL;
    size_t n = 0;
    int rc = -1;

    if (!l.g || clip_build(&l, NULL, t->n, 77, &clip, err) || weights_load(t->weights, err) || run_new(&run, l.g, t->ops, err) ||
        run_write(run, clip.ids, ids, err) || run_graph(run, NULL, err))
        goto out;
    shape_numel(&l.g->values[clip.out].shape, &n);
    context = mem_zero(n, sizeof *context, "a context", err);
    if (context && run_read(run, clip.out, context, err) == 0)
        rc = run_write(t->graph.run, t->graph.context, context, err);
out:
    free(context);
    run_free(run);
    graph_free(l.g);
    return rc;
}

static int write_emphasis(struct training *t, size_t step, struct err *err)
{
    struct shape s = graph_shape(t->graph.g, t->graph.emphasis);
    size_t tokens = s.dim[0] * s.dim[1], width = s.dim[2];
    float *weight = floats(t, "emphasis", err), *spread = weight ? mem_new(tokens * width * sizeof *spread, "weights", err) : NULL;
    int rc = -1;

    for (size_t i = 0; spread && i < tokens * width; i++)
        spread[i] = weight[step * tokens + i / width];
    if (spread)
        rc = run_write(t->graph.run, t->graph.emphasis, spread, err);
    free(spread);
    return rc;
}

static int write_text(struct training *t, size_t step, struct err *err)
{
    size_t chunks = (size_t)training_option(t, "chunks"), all = 0;
    int32_t *ids = integers(t, "ids", &all, err), *mine = ids ? ids + step * (all / TRAINING_STEPS) : NULL;
    int32_t *rows = ids ? mem_zero(t->n * train_tokens(chunks), sizeof *rows, "rows of text", err) : NULL;
    int rc = rows ? 0 : -1;

    if (rc == 0)
        text_rows(chunks, t->n, rows);
    if (rc == 0 && t->graph.rows != GRAPH_NONE)
        rc = run_write(t->graph.run, t->graph.rows, rows, err);
    if (rc == 0)
        rc = t->graph.ids != GRAPH_NONE ? run_write(t->graph.run, t->graph.ids, mine, err) : write_context(t, mine, err);
    free(rows);
    return rc || t->graph.emphasis == GRAPH_NONE ? rc : write_emphasis(t, step, err);
}

static int write_masks(struct training *t, struct err *err)
{
    for (size_t i = 0; i < t->net->count; i++) {
        char key[400];
        float *mask;

        if (t->graph.mask[i] == GRAPH_NONE)
            continue;
        snprintf(key, sizeof key, "mask/%s", t->net->module[i].spec.path);
        mask = floats(t, key, err);
        if (!mask || run_write(t->graph.run, t->graph.mask[i], mask, err))
            return -1;
    }
    return 0;
}

/* noisy and target [n * per] of a step */
static void mix(const struct training *t, const float *x0, const float *noise, const int32_t *timestep, float *noisy, float *target)
{
    for (size_t i = 0; i < t->n; i++) {
        size_t at = i * t->per, k = (size_t)timestep[i];

        schedule_add_noise(&t->schedule, k, x0 + at, noise + at, noisy + at, t->per);
        memcpy(target + at, noise + at, t->per * sizeof *target);
        if (option_on(t, "v"))
            schedule_velocity(&t->schedule, k, x0 + at, noise + at, target + at, t->per);
    }
}

/* The roots of the loss's mask, spread over channels, to the graph and onto the target. */
static int mask_loss(struct training *t, float *target, struct err *err)
{
    struct shape s = graph_shape(t->graph.g, t->graph.loss_mask);
    size_t n = t->n * t->per, channels = s.dim[3];
    float *mask = floats(t, "mask", err), *root = mask ? mem_new(n * sizeof *root, "a mask", err) : NULL;
    int rc = -1;

    for (size_t i = 0; root && i < n; i++) {
        root[i] = sqrtf(mask[i / channels]);
        target[i] *= root[i];
    }
    if (root)
        rc = run_write(t->graph.run, t->graph.loss_mask, root, err);
    free(root);
    return rc;
}

static int write_latents(struct training *t, size_t step, struct err *err)
{
    float *x0 = floats(t, "latents", err), *noise = x0 ? floats(t, "noise", err) : NULL, row[8];
    int32_t *timestep = noise ? integers(t, "timesteps", NULL, err) : NULL;
    float *both = timestep ? mem_zero(2 * t->n * t->per, sizeof *both, "latents", err) : NULL, *target = both + t->n * t->per;
    int rc = both ? 0 : -1;

    if (rc == 0) {
        mix(t, x0, noise + step * t->n * t->per, timestep + step * t->n, both, target);
        if (t->graph.loss_mask != GRAPH_NONE)
            rc = mask_loss(t, target, err);
        for (size_t i = 0; i < t->n; i++)
            row[i] = (float)timestep[step * t->n + i];
        rc = rc || run_write(t->graph.run, t->graph.latents, both, err) || run_write(t->graph.run, t->graph.timestep, row, err) ||
                     run_write(t->graph.run, t->graph.target, target, err)
                 ? -1
                 : 0;
    }
    free(both);
    return rc;
}

static int write_loss(struct training *t, size_t step, struct err *err)
{
    float *weight = floats(t, "weight", err), row[8];

    if (!weight)
        return -1;
    memcpy(row, weight + step * t->n, t->n * sizeof *row);
    if (t->graph.delta != GRAPH_NONE) {
        float *delta = floats(t, "delta", err);

        if (!delta || run_write(t->graph.run, t->graph.delta, delta + step * t->n, err))
            return -1;
        for (size_t i = 0; i < t->n; i++)
            row[i] *= 2 * delta[step * t->n + i]; /* the loss is 2 c (sqrt(x^2 + c^2) - c) */
    }
    return run_write(t->graph.run, t->graph.weight, row, err) || run_write(t->graph.run, t->graph.seed, &t->scale, err) ? -1 : 0;
}

int training_step(struct training *t, size_t step, float *loss, struct err *err)
{
    if (write_text(t, step, err) || write_masks(t, err) || write_latents(t, step, err) || write_loss(t, step, err) ||
        run_graph(t->graph.run, NULL, err) || run_read(t->graph.run, t->graph.loss, loss, err) ||
        train_graph_gradients(&t->graph, t->net, true, t->scratch, err) ||
        (t->on_device && train_graph_gather(&t->graph, t->net, t->optim, true, err)))
        return -1;
    for (size_t i = 0; i < t->net->size; i++)
        t->net->grads[i] /= t->scale;
    return 0;
}

int training_update(struct training *t, struct err *err)
{
    const double lr[2] = {training_option(t, "te_lr"), training_option(t, "unet_lr")};
    double norm, scale = t->on_device ? t->scale : 1; /* the others have been divided by it */

    if (optim_norm(t->optim, t->grads, &norm, err))
        return -1;
    return optim_step(t->optim, t->grads, optim_clip(norm / scale, training_option(t, "max_grad_norm")) / scale, lr, err);
}
