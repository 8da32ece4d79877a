/* Which modules are trained, with which rank, alpha and learning rate, and what they start with. */
#include <stdlib.h>
#include <string.h>

#include "cmd/train/train.h"
#include "formats/lora_file.h"
#include "ref/lora/target.h"

struct list {
    struct network_spec *spec;
    size_t count, cap;
    struct arena arena; /* paths */
};

/* The group of that name and rate, made when it is new. -1 when there are too many. */
static int find_group(struct trainer *t, const char *name, double lr, size_t *out, struct err *err)
{
    for (*out = 0; *out < t->groups; ++*out)
        if (strcmp(t->group[*out].name, name) == 0)
            return 0;
    if (t->groups == TRAIN_MAX_GROUPS)
        return err_usage(err, "more than %d different learning rates; let more blocks have the same", TRAIN_MAX_GROUPS);
    snprintf(t->group[*out].name, sizeof t->group[*out].name, "%s", name);
    t->group[*out].lr = lr;
    t->groups++;
    return 0;
}

static double rate_of(const struct trainer *t, enum model_part part)
{
    const struct train_options *o = t->o;
    const double *own = part == MODEL_UNET ? &o->unet_lr : &o->text_encoder_lr;

    return option_given(t->run->values, own) ? *own : o->learning_rate;
}

/* The learning rate group of a module: by part, by block where blocks have weights of their own. */
static int set_group(struct trainer *t, struct network_spec *s, struct err *err)
{
    double lr = rate_of(t, s->part), weight = s->part == MODEL_UNET && s->block > 0 ? t->args.block_lr[s->block - 1] : 1;
    char name[32];

    if (s->part == MODEL_TEXT_ENCODER)
        snprintf(name, sizeof name, "textencoder");
    else if (weight != 1)
        snprintf(name, sizeof name, "unet/%s", target_block_name(s->block));
    else
        snprintf(name, sizeof name, "unet");
    return find_group(t, name, lr * weight, &s->group, err);
}

/* Rank and alpha of a module from the options; rank 0: it is not trained. */
static void set_rank(const struct trainer *t, struct network_spec *s, enum target_class class)
{
    const struct train_network_args *a = &t->args;
    bool window = s->kh * s->kw > 1, unet = s->part == MODEL_UNET && s->block > 0;
    size_t block = unet ? (size_t)s->block - 1 : 0;
    bool has_conv = a->conv_dim > 0 || a->conv_by_block;

    if (window) {
        s->rank = a->conv_by_block && unet ? a->conv_block_dim[block] : a->conv_dim;
        s->alpha = a->conv_by_block && unet ? a->conv_block_alpha[block] : a->conv_alpha;
    } else {
        s->rank = a->by_block && unet ? a->block_dim[block] : a->dim;
        s->alpha = a->by_block && unet ? a->block_alpha[block] : a->alpha;
    }
    if ((class == TARGET_CONV || class == TARGET_CONV1) && !has_conv)
        s->rank = 0;
    if (unet && a->block_lr[block] == 0)
        s->rank = 0;
}

static size_t unet_layers(const struct trainer *t)
{
    return t->model->plan.unet_layers ? t->model->plan.unet_layers : 2;
}

static int add_part(struct trainer *t, struct list *l, enum model_part part, const struct lora_file *from, struct err *err)
{
    for (size_t i = t->model->part_first[part]; i < t->model->part_first[part + 1]; i++) {
        const struct model_tensor *x = &t->model->tensor[i];
        const struct lora_module *m;
        struct network_spec s = {.part = part};
        struct target target;

        if (target_of(part, x->name, &x->shape, &target) == TARGET_NONE)
            continue;
        s.path = arena_printf(&l->arena, err, "%.*s", (int)target.path_length, x->name);
        if (!s.path || mem_grow(&l->spec, &l->cap, l->count, sizeof *l->spec, "modules", err))
            return -1;
        s.out = target.out;
        s.in = target.in;
        s.kh = target.kh;
        s.kw = target.kw;
        s.conv = target.conv;
        s.block = target_block(part, s.path, unet_layers(t));
        set_rank(t, &s, target.class);
        m = from ? lora_file_find(from, part, s.path) : NULL;
        if (m) { /* what the file says about a module counts */
            s.rank = t->o->dim_from_weights ? m->rank : s.rank;
            s.alpha = m->alpha;
        } else if (t->o->dim_from_weights) {
            s.rank = 0;
        }
        if (s.rank == 0)
            continue;
        if (set_group(t, &s, err))
            return -1;
        l->spec[l->count++] = s;
    }
    return 0;
}

/* ---- --network_weights ---- */

static struct network_module *find_module(struct network *net, enum model_part part, const char *path)
{
    for (size_t i = 0; i < net->count; i++)
        if (net->module[i].spec.part == part && strcmp(net->module[i].spec.path, path) == 0)
            return &net->module[i];
    return NULL;
}

static int check_parts(const struct trainer *t, const struct lora_file *f, struct err *err)
{
    bool unet = !t->o->network_train_text_encoder_only, text = !t->o->network_train_unet_only;

    if (f->unknown_count)
        return err_set(err, "cannot start from '%s': nothing is known about %zu of its modules, such as '%s'", f->path,
                       f->unknown_count, f->unknown[0]);
    if (unet != (f->part_count[MODEL_UNET] > 0) || text != (f->part_count[MODEL_TEXT_ENCODER] > 0))
        return err_set(err, "cannot start from '%s': it has %zu U-Net and %zu text encoder modules, and %s is to be trained; give %s",
                       f->path, f->part_count[MODEL_UNET], f->part_count[MODEL_TEXT_ENCODER],
                       unet && text ? "both" : unet ? "the U-Net" : "the text encoder",
                       f->part_count[MODEL_UNET] == 0           ? "--network_train_text_encoder_only"
                       : f->part_count[MODEL_TEXT_ENCODER] == 0 ? "--network_train_unet_only"
                                                                : "neither --network_train_..._only option");
    return 0;
}

/* [rank, in, kh, kw] of files to the engine's [rank, kh, kw, in] */
static void to_channels_last(float *dst, const float *src, const struct network_spec *s)
{
    size_t pixels = s->kh * s->kw;

    for (size_t r = 0; r < s->rank; r++)
        for (size_t k = 0; k < s->in; k++)
            for (size_t p = 0; p < pixels; p++)
                dst[(r * pixels + p) * s->in + k] = src[(r * s->in + k) * pixels + p];
}

static int read_module(const struct lora_file *f, const struct lora_module *m, struct network_module *to, float *scratch,
                       struct err *err)
{
    const struct network_spec *s = &to->spec;

    if (m->out != s->out || m->in != s->in || m->kh != s->kh || m->kw != s->kw)
        return err_set(err, "cannot start from '%s': module '%s' is %zu x %zu, the model's layer %zu x %zu; is it for another kind "
                            "of model?", f->path, m->key, m->out, m->in * m->kh * m->kw, s->out, s->in * s->kh * s->kw);
    if (m->rank != s->rank)
        return err_set(err, "cannot start from '%s': module '%s' has rank %zu, not %zu; give --network_dim %zu, or --dim_from_weights",
                       f->path, m->key, m->rank, s->rank, m->rank);
    if (lora_module_read_f32(m, to->up.data, scratch, err))
        return -1;
    to_channels_last(to->down.data, scratch, s);
    return 0;
}

static int read_weights(struct trainer *t, const struct lora_file *f, struct err *err)
{
    float *scratch = mem_new(t->net->size * sizeof *scratch, "a LoRA", err);
    size_t missing = t->net->count;
    int rc = scratch ? 0 : -1;

    for (size_t i = 0; rc == 0 && i < f->count; i++) {
        struct network_module *to = find_module(t->net, f->module[i].part, f->module[i].path);

        if (!to)
            rc = err_set(err, "cannot start from '%s': module '%s' is not among those to be trained; give --network_args conv_dim=%zu, "
                              "or --dim_from_weights", f->path, f->module[i].key, f->module[i].rank);
        else
            rc = read_module(f, &f->module[i], to, scratch, err);
        missing--;
    }
    if (rc == 0 && missing)
        command_note(t->run, "'%s' lacks %zu of %zu modules; those start anew", f->path, missing, t->net->count);
    free(scratch);
    return rc;
}

int train_make_network(struct trainer *t, struct err *err)
{
    struct lora_file *from = NULL;
    struct list l = {0};
    int rc = -1;

    if (t->o->network_weights &&
        (lora_file_open(&from, t->o->network_weights, err) || check_parts(t, from, err)))
        goto out;
    if ((!t->o->network_train_unet_only && add_part(t, &l, MODEL_TEXT_ENCODER, from, err)) ||
        (!t->o->network_train_text_encoder_only && add_part(t, &l, MODEL_UNET, from, err)) ||
        network_new(&t->net, l.spec, l.count, err))
        goto out;
    network_init(t->net, t->seed);
    if (from && read_weights(t, from, err))
        goto out;
    if (t->o->full_fp16)
        network_round_f16(t->net);
    rc = 0;
out:
    lora_file_close(from);
    free(l.spec);
    arena_free(&l.arena);
    return rc;
}
