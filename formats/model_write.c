#include "formats/model_write.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "formats/model_write_inside.h"
#include "formats/torch_state.h"

enum { PIECE = 1 << 20 }; /* elements converted at a time */

struct shape model_write_reshape(struct shape s, int dims)
{
    if (dims == 4 && s.ndim == 2)
        s.ndim = 4, s.dim[2] = s.dim[3] = 1;
    else if (dims == 2 && s.ndim == 4 && s.dim[2] == 1 && s.dim[3] == 1)
        s.ndim = 2;
    return s;
}

static enum dtype dtype_of(const struct model_job *j, const struct model_piece *p)
{
    enum dtype own = p->from[0]->dtype;

    return j->o->cast && dtype_is_float(own) ? j->o->dtype : own;
}

/* ---- Streaming ---- */

struct buffers {
    unsigned char in[PIECE * 8], out[PIECE * 8];
};

static void progress(struct model_job *j, size_t bytes)
{
    j->done += bytes;
    if (j->o->step)
        j->o->step(j->o->step_ctx, j->done, j->total);
}

static bool is_changed(const struct model_job *j, const struct model_tensor *t)
{
    return j->o->patch && j->o->patch->changes(j->o->patch->ctx, t);
}

/* How many elements go through the buffers at once: whole rows where the tensor is changed. 0: a row is too long. */
static size_t elements_at_once(const struct model_job *j, const struct model_tensor *t, size_t total, size_t *width)
{
    *width = t->shape.ndim && t->shape.dim[0] ? total / t->shape.dim[0] : total;
    return is_changed(j, t) && *width ? PIECE / *width * *width : PIECE;
}

/* b->in -> b->out or b->in itself: n elements from number `first` on, changed, converted and checked. */
static int convert_some(struct model_job *j, const struct model_tensor *t, enum dtype to, struct buffers *b, size_t first, size_t n,
                        size_t width, const void **data, struct err *err)
{
    size_t bad;

    *data = b->in;
    if (is_changed(j, t)) {
        *data = b->out;
        if (j->o->patch->apply(j->o->patch->ctx, t, first / width, n / width, b->out, to, b->in, err) != 0)
            return err_prefix(err, "'%s': '%s': ", t->file->path, t->entry->name);
    } else if (to != t->dtype) {
        *data = b->out;
        dtype_convert(b->out, to, b->in, t->dtype, n);
        bad = dtype_find_nonfinite(b->out, to, n);
        if (bad < n && bad != dtype_find_nonfinite(b->in, t->dtype, n))
            return err_set(err, "cannot convert '%s': tensor '%s': the value at element %zu is too large for %s; choose bf16 or "
                                "float", t->file->path, t->entry->name, first + bad, dtype_name(to));
    }
    return 0;
}

/* Appends one tensor of the model to tensor i of the file, from byte *at on. */
static int put_tensor(struct model_job *j, struct tensor_writer *w, size_t i, size_t *at, const struct model_tensor *t, enum dtype to,
                      struct buffers *b, struct err *err)
{
    size_t size = dtype_size(t->dtype), total = t->nbytes / size, width, most = elements_at_once(j, t, total, &width);

    if (most == 0)
        return err_set(err, "'%s': a row of tensor '%s' has %zu elements, too many to merge into", t->file->path, t->entry->name,
                       width);
    for (size_t first = 0; first < total; first += most) {
        size_t n = total - first < most ? total - first : most;
        const void *data;

        if (model_read_part(t, first * size, n * size, b->in, err) != 0 ||
            convert_some(j, t, to, b, first, n, width, &data, err) != 0 ||
            tensor_writer_put_part(w, i, *at, n * dtype_size(to), data, err) != 0)
            return -1;
        *at += n * dtype_size(to);
        progress(j, n * size);
    }
    return 0;
}

static int put_piece(struct model_job *j, struct tensor_writer *w, size_t i, const struct model_piece *p, struct buffers *b,
                     struct err *err)
{
    const struct model_tensor *t = p->from[0];
    enum dtype to = dtype_of(j, p);
    bool changed = false;
    size_t at = 0;

    for (size_t k = 0; k < p->count; k++)
        changed = changed || is_changed(j, p->from[k]);
    if (!changed && to == t->dtype && p->from[p->count - 1]->entry == t->entry && p->count * t->nbytes == t->entry->nbytes) {
        progress(j, t->entry->nbytes);
        return tensor_writer_copy(w, i, t->file, t->entry, err);
    }
    for (size_t k = 0; k < p->count; k++)
        if (put_tensor(j, w, i, &at, p->from[k], to, b, err) != 0)
            return -1;
    return 0;
}

int model_write_pieces(struct model_job *j, const char *path, const struct model_piece *pieces, size_t n,
                       const struct metadata_item *metadata, size_t n_metadata, struct err *err)
{
    struct tensor_spec *specs = mem_zero(n, sizeof *specs, "a list of tensors", err);
    struct buffers *b = mem_new(sizeof *b, "a piece of a tensor", err);
    struct tensor_writer *w = NULL;
    int rc = -1;

    if (!specs || !b)
        goto out;
    for (size_t i = 0; i < n; i++)
        specs[i] = (struct tensor_spec){pieces[i].name, dtype_of(j, &pieces[i]), pieces[i].shape};
    if (tensor_writer_open(&w, path, NULL, specs, n, metadata, n_metadata, err) != 0)
        goto out;
    for (size_t k = 0; k < n; k++) {
        size_t i = tensor_writer_order(w, k);

        if (put_piece(j, w, i, &pieces[i], b, err) != 0) {
            tensor_writer_abort(w);
            goto out;
        }
    }
    rc = tensor_writer_commit(w, err);
    j->report->tensors += rc == 0 ? n : 0;
out:
    free(specs);
    free(b);
    return rc;
}

/* ---- One file ---- */

struct list {
    struct model_piece *piece;
    size_t n;
};

/* The layout stays: every entry of the files as it is. */
static int list_as_is(const struct model *m, struct list *l, struct err *err)
{
    for (size_t i = 0; i < m->source_count; i++) {
        const struct model_source *s = &m->source[i];
        struct model_piece *p = &l->piece[l->n++];

        *p = (struct model_piece){.count = s->count, .name = s->entry->name, .shape = s->entry->shape};
        for (size_t k = 0; k < s->count; k++)
            p->from[k] = m->in_source[s->first + k];
    }
    return l->n > 0 ? 0 : err_set(err, "cannot write '%s': there are no tensors in it", m->path);
}

static bool is_projection(const char *name)
{
    return strstr(name, ".attentions.") && (strstr(name, ".proj_in.weight") || strstr(name, ".proj_out.weight"));
}

static struct shape ldm_shape(const struct model *m, const struct model_tensor *t)
{
    if (t->part == MODEL_VAE && strstr(t->name, ".attentions."))
        return model_write_reshape(t->shape, 4);
    if (t->part == MODEL_UNET && is_projection(t->name))
        return model_write_reshape(t->shape, m->arch == MODEL_SD2 ? 2 : 4);
    return t->shape;
}

/* A lone VAE goes without prefix, as VAE files do. */
static const char *ldm_prefix(const struct model *m, const struct names_plan *plan, enum model_part part)
{
    return part == MODEL_VAE && !m->has[MODEL_UNET] && !m->has[MODEL_TEXT_ENCODER] ? "" : names_ldm_prefix(plan, part);
}

/* Adds a tensor under its LDM name, to the piece that holds its neighbours if it is q, k or v. */
static int add_ldm(struct model_job *j, const struct names_plan *plan, const struct model_tensor *t, const char *canonical,
                   struct list *l, struct err *err)
{
    struct names_slice s;
    char name[2 * NAMES_MAX];
    struct model_piece *p = NULL;

    if (!names_to_ldm(plan, t->part, canonical, &s))
        return err_set(err, "cannot convert '%s': the LDM layout has no name for the %s's '%s'", j->m->path, names_part(t->part),
                       canonical);
    snprintf(name, sizeof name, "%s%s", ldm_prefix(j->m, plan, t->part), s.name);
    for (size_t i = l->n; s.slices > 1 && i-- > 0 && !p;) /* neighbours are a few steps back: names are sorted */
        if (strcmp(l->piece[i].name, name) == 0)
            p = &l->piece[i];
    if (!p) {
        p = &l->piece[l->n++];
        *p = (struct model_piece){.count = s.slices, .shape = ldm_shape(j->m, t)};
        if (s.slices > 1)
            p->shape.dim[0] *= s.slices;
        p->name = arena_str(&j->arena, name, err);
        if (!p->name)
            return -1;
    }
    if (p->from[s.slice] || (s.slices > 1 && p->shape.dim[0] != s.slices * t->shape.dim[0]))
        return err_set(err, "cannot convert '%s': '%s' does not fit beside its neighbours in '%s'", j->m->path, canonical, name);
    p->from[s.slice] = t;
    return 0;
}

/* OpenCLIP's last block, which SD2 does not use but loaders want, as a copy of the one before. */
static int add_last_block(struct model_job *j, const struct names_plan *plan, struct list *l, struct err *err)
{
    char head[64], name[NAMES_MAX];
    size_t n = (size_t)snprintf(head, sizeof head, "text_model.encoder.layers.%zu.", j->m->text_layers - 1);

    for (size_t i = j->m->part_first[MODEL_TEXT_ENCODER]; i < j->m->part_first[MODEL_TEXT_ENCODER + 1]; i++) {
        const struct model_tensor *t = &j->m->tensor[i];

        if (strncmp(t->name, head, n) != 0)
            continue;
        snprintf(name, sizeof name, "text_model.encoder.layers.%zu.%.300s", j->m->text_layers, t->name + n);
        if (add_ldm(j, plan, t, name, l, err) != 0)
            return -1;
        j->report->made_last_block = true;
    }
    return 0;
}

static int list_ldm(struct model_job *j, struct list *l, struct err *err)
{
    const struct model *m = j->m;
    struct names_plan plan = m->plan;

    plan.openclip = m->arch == MODEL_SD2;
    for (size_t i = 0; i < m->part_first[MODEL_OTHER]; i++)
        if (add_ldm(j, &plan, &m->tensor[i], m->tensor[i].name, l, err) != 0)
            return -1;
    if (plan.openclip && m->text_layers > 0 && add_last_block(j, &plan, l, err) != 0)
        return -1;
    for (size_t i = 0; i < l->n; i++)
        for (size_t k = 0; k < l->piece[i].count; k++)
            if (!l->piece[i].from[k] || l->piece[i].from[k]->dtype != l->piece[i].from[0]->dtype)
                return err_set(err, "cannot convert '%s': q, k and v for '%s' are not all there in one type; give a complete model",
                               m->path, l->piece[i].name);
    j->report->left_out = m->count - m->part_first[MODEL_OTHER];
    return 0;
}

int model_write_metadata(const struct model *m, bool keep, struct arena *arena, struct metadata_item **items, size_t *n,
                         struct err *err)
{
    const struct tensor_file *f = m->file[0];
    bool torch = !m->folder && f->format != &format_safetensors;
    size_t count = m->folder ? 0 : f->metadata_count; /* of a folder's parts: says nothing about the whole */

    *n = 0;
    *items = arena_alloc(arena, (count + 2) * sizeof **items, err);
    if (!*items)
        return -1;
    for (size_t i = 0; i < count; i++)
        if (strcmp(f->metadata[i].key, TORCH_META_ROOT) == 0 ? torch : keep)
            (*items)[(*n)++] = f->metadata[i];
    if (!torch)
        (*items)[(*n)++] = (struct metadata_item){TORCH_META_ROOT, "state_dict"};
    return 0;
}

static int write_single(struct model_job *j, const char *path, struct err *err)
{
    const struct model *m = j->m;
    bool same = m->layout == j->o->layout && !m->folder;
    struct list l = {mem_zero(m->count + 64, sizeof *l.piece, "a list of tensors", err), 0};
    struct metadata_item *metadata;
    size_t n_metadata;
    int rc = -1;

    if (!l.piece)
        return -1;
    if (same)
        rc = list_as_is(m, &l, err);
    else if (j->o->layout == MODEL_LDM)
        rc = list_ldm(j, &l, err);
    else
        err_usage(err, "cannot write '%s': the diffusers layout is a folder; give a path without an ending", path);
    j->report->tokenizer = true;
    for (size_t i = 0; i < l.n; i++)
        for (size_t k = 0; k < l.piece[i].count && l.piece[i].from[k]; k++)
            j->total += l.piece[i].from[k]->nbytes;
    if (rc == 0)
        rc = model_write_metadata(m, !j->o->no_metadata, &j->arena, &metadata, &n_metadata, err);
    if (rc == 0)
        rc = model_write_pieces(j, path, l.piece, l.n, metadata, n_metadata, err);
    free(l.piece);
    return rc;
}

int model_write(const struct model *m, const char *path, const struct model_write_options *o, struct model_write_report *report,
                struct err *err)
{
    struct model_write_report unused;
    struct model_job j = {.m = m, .o = o, .report = report ? report : &unused};
    int rc;

    *j.report = (struct model_write_report){0};
    if (o->cast && (!dtype_is_float(o->dtype) || o->dtype == DT_F64))
        return err_usage(err, "a model cannot be written as %s; give float, fp16 or bf16", dtype_name(o->dtype));
    rc = tensor_format_of_suffix(path) || o->layout == MODEL_LDM ? write_single(&j, path, err) : model_write_folder(&j, path, err);
    arena_free(&j.arena);
    return rc;
}
