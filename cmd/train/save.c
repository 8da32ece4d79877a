/* LoRA files, and which ones stay. */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cmd/train/train.h"

const char *train_name(const struct trainer *t, const char *otherwise)
{
    return t->o->output_name ? t->o->output_name : otherwise;
}

/* Convolutions as files have them: [rank, in, kh, kw]. */
static float *to_channels_first(const struct network_module *m, struct arena *a, struct err *err)
{
    const struct network_spec *s = &m->spec;
    size_t pixels = s->kh * s->kw;
    float *out = arena_alloc(a, s->rank * s->in * pixels * sizeof *out, err);
    const float *down = m->down.data;

    for (size_t r = 0; out && r < s->rank; r++)
        for (size_t k = 0; k < s->in; k++)
            for (size_t p = 0; p < pixels; p++)
                out[(r * s->in + k) * pixels + p] = down[(r * pixels + p) * s->in + k];
    return out;
}

static int fill_out(const struct trainer *t, struct lora_out *out, struct arena *a, struct err *err)
{
    for (size_t i = 0; i < t->net->count; i++) {
        const struct network_module *m = &t->net->module[i];
        const struct network_spec *s = &m->spec;

        out[i] = (struct lora_out){.part = s->part, .path = s->path, .rank = s->rank, .out = s->out, .in = s->in, .kh = s->kh,
                                   .kw = s->kw, .conv = s->conv, .alpha = s->alpha, .has_alpha = true, .dtype = DT_F32,
                                   .up = m->up.data, .down = m->down.data};
        if (s->kh * s->kw > 1 && !(out[i].down = to_channels_first(m, a, err)))
            return -1;
    }
    return 0;
}

static int set_number(struct lora_meta *m, const char *key, size_t value, struct err *err)
{
    char text[32];

    snprintf(text, sizeof text, "%zu", value);
    return lora_meta_set(m, key, text, err);
}

static char *path_of(const struct trainer *t, const char *name, const char *ending, struct arena *a, struct err *err)
{
    return arena_printf(a, err, "%s/%s.%s", t->o->output_dir, name, ending);
}

static const char *ending_of(const struct trainer *t)
{
    static const char *const endings[] = {"safetensors", "ckpt", "pt"};

    return endings[t->o->save_model_as];
}

int train_save_lora(struct trainer *t, const char *name, struct err *err)
{
    struct lora_write_options w = {.layout = LORA_KOHYA, .no_metadata = t->o->no_metadata};
    struct lora_out *out = mem_zero(t->net->count, sizeof *out, "the LoRA", err);
    const struct network_module *bad;
    struct arena a = {0};
    char *path = out ? path_of(t, name, ending_of(t), &a, err) : NULL;
    int rc = -1;

    if (!path || optim_fetch(t->optim, false, err))
        goto out;
    bad = network_find_nonfinite(t->net);
    if (bad) {
        err_set(err, "the LoRA of layer '%s' is not finite, so '%s' was not written; lower --learning_rate", bad->spec.path, path);
        goto out;
    }
    w.dtype = t->o->save_precision.set ? t->o->save_precision.dtype : t->o->full_fp16 ? DT_F16 : DT_F32;
    if (fill_out(t, out, &a, err) || train_meta_complete(t, err) || set_number(&t->meta, "ss_epoch", t->now.epoch, err) ||
        set_number(&t->meta, "ss_steps", t->now.step, err))
        goto out;
    if (t->o->dim_from_weights && lora_meta_network(&t->meta, out, t->net->count, t->model->arch == MODEL_SD2, err))
        goto out; /* ranks are those of the file, not of --network_dim */
    w.metadata = t->meta.item;
    w.n_metadata = t->meta.count;
    if (lora_file_write(path, out, t->net->count, &w, NULL, err))
        goto out;
    free(t->last_written);
    t->last_written = mem_str(path, err);
    rc = t->last_written ? 0 : -1;
out:
    free(out);
    arena_free(&a);
    return rc;
}

/* ---- Which files stay ---- */

static void remove_file(const struct trainer *t, const char *name, const char *ending)
{
    struct arena a = {0};
    struct err none = {0};
    char *path = path_of(t, name, ending, &a, &none);

    if (path)
        unlink(path); /* somebody else may have moved it */
    arena_free(&a);
}

/* NAME-000001 of an epoch, NAME-step00000001 of a step. */
static void series_name(const struct trainer *t, bool steps, size_t at, char *out, size_t size)
{
    if (steps)
        snprintf(out, size, "%s-step%08zu", train_name(t, "at"), at);
    else
        snprintf(out, size, "%s-%06zu", train_name(t, "epoch"), at);
}

/* Writes the file of epoch or step `at`, and removes those before the window of `keep` files: by their names, so that a run that
 * goes on removes those of the run before. */
static int save_series(struct trainer *t, bool steps, size_t at, size_t every, size_t keep, struct err *err)
{
    char name[600];

    series_name(t, steps, at, name, sizeof name);
    if (train_save_lora(t, name, err) || (t->o->save_state && train_state_write(t, name, err)))
        return -1;
    for (size_t old = every; keep && old + keep * every <= at; old += every) {
        series_name(t, steps, old, name, sizeof name);
        remove_file(t, name, ending_of(t));
        remove_file(t, name, "state");
    }
    return 0;
}

int train_save_epoch(struct trainer *t, struct err *err)
{
    size_t every = t->o->save_every_n_epochs;

    if (t->o->save_n_epoch_ratio)
        every = t->epochs / t->o->save_n_epoch_ratio ? t->epochs / t->o->save_n_epoch_ratio : 1;
    if (!every || t->now.epoch % every || t->now.epoch >= t->epochs)
        return 0;
    return save_series(t, false, t->now.epoch, every, t->o->save_last_n_epochs, err);
}

int train_save_step(struct trainer *t, struct err *err)
{
    size_t every = t->o->save_every_n_steps, keep = t->o->save_last_n_steps;

    if (!every || t->now.step % every || t->now.step >= t->steps)
        return 0;
    keep = keep ? keep / every + (keep % every > 0) : 0;
    return save_series(t, true, t->now.step, every, keep, err);
}

int train_save_last(struct trainer *t, bool finished, struct err *err)
{
    char name[600];

    snprintf(name, sizeof name, "%s%s", train_name(t, "last"), finished ? "" : "-stopped");
    if (train_save_lora(t, name, err) || ((t->o->save_state || !finished) && train_state_write(t, name, err)))
        return -1;
    if (finished) {
        snprintf(name, sizeof name, "%s-auto", train_name(t, "last"));
        remove_file(t, name, "state");
        snprintf(name, sizeof name, "%s-stopped", train_name(t, "last"));
        remove_file(t, name, "state");
        remove_file(t, name, ending_of(t));
    }
    return 0;
}
