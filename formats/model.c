#include "formats/model.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "formats/lora_file.h"
#include "formats/model_inside.h"

/* How names begin, in whole checkpoints and in files of one part. */
static const struct {
    const char *begins;
    enum model_part part;
    bool cut; /* the beginning is a prefix, the rest the name */
    bool ldm; /* only LDM checkpoints have it */
} beginnings[] = {
    {"model.diffusion_model.", MODEL_UNET, true, true},
    {"cond_stage_model.transformer.", MODEL_TEXT_ENCODER, true, true},
    {"cond_stage_model.model.", MODEL_TEXT_ENCODER, true, true},
    {"first_stage_model.", MODEL_VAE, true, true},
    {"diffusion_model.", MODEL_UNET, true, true},
    {"unet.", MODEL_UNET, true, false},
    {"text_encoder.", MODEL_TEXT_ENCODER, true, false},
    {"vae.", MODEL_VAE, true, false},
    {"time_embed.", MODEL_UNET, false, true},
    {"input_blocks.", MODEL_UNET, false, true},
    {"middle_block.", MODEL_UNET, false, true},
    {"output_blocks.", MODEL_UNET, false, true},
    {"out.", MODEL_UNET, false, true},
    {"time_embedding.", MODEL_UNET, false, false},
    {"conv_in.", MODEL_UNET, false, false},
    {"conv_out.", MODEL_UNET, false, false},
    {"conv_norm_out.", MODEL_UNET, false, false},
    {"down_blocks.", MODEL_UNET, false, false},
    {"mid_block.", MODEL_UNET, false, false},
    {"up_blocks.", MODEL_UNET, false, false},
    {"text_model.", MODEL_TEXT_ENCODER, false, false},
    {"embeddings.", MODEL_TEXT_ENCODER, false, false},
    {"encoder.layers.", MODEL_TEXT_ENCODER, false, false},
    {"final_layer_norm.", MODEL_TEXT_ENCODER, false, false},
    {"encoder.", MODEL_VAE, false, false},
    {"decoder.", MODEL_VAE, false, false},
    {"quant_conv.", MODEL_VAE, false, false},
    {"post_quant_conv.", MODEL_VAE, false, false},
};
enum { BEGINNINGS = sizeof beginnings / sizeof beginnings[0] };

struct place {
    enum model_part part;
    const char *name; /* behind the prefix */
    bool ldm, cut;
};

static struct place place_of(const struct model *m, size_t file, const char *name)
{
    if (m->file_part[file] != MODEL_OTHER)
        return (struct place){m->file_part[file], name, false, false};
    for (size_t i = 0; i < BEGINNINGS; i++) {
        size_t n = strlen(beginnings[i].begins);

        if (strncmp(name, beginnings[i].begins, n) == 0 && (beginnings[i].cut || m->bare))
            return (struct place){beginnings[i].part, beginnings[i].cut ? name + n : name, beginnings[i].ldm, beginnings[i].cut};
    }
    return (struct place){MODEL_OTHER, name, false, false};
}

int model_add_file(struct model *m, const char *path, enum model_part part, struct err *err)
{
    struct tensor_file **files = realloc(m->file, (m->file_count + 1) * sizeof *files);
    enum model_part *parts = NULL;

    if (files) {
        m->file = files;
        parts = realloc(m->file_part, (m->file_count + 1) * sizeof *parts);
    }
    if (!parts)
        return err_memory(err, (m->file_count + 1) * sizeof *files, "a list of files");
    m->file_part = parts;
    if (tensor_file_open(&m->file[m->file_count], path, err) != 0)
        return -1;
    m->file_part[m->file_count++] = part;
    return 0;
}

/* A whole checkpoint has prefixes; then names without one are none of its parts' (training leftovers). */
static void find_bare(struct model *m)
{
    m->bare = true;
    for (size_t f = 0; f < m->file_count; f++)
        for (size_t i = 0; i < m->file[f]->count; i++)
            if (place_of(m, f, m->file[f]->entries[i].name).cut) {
                m->bare = false;
                return;
            }
}

static void find_plan(struct model *m)
{
    for (size_t f = 0; f < m->file_count; f++)
        for (size_t i = 0; i < m->file[f]->count; i++) {
            struct place p = place_of(m, f, m->file[f]->entries[i].name);

            names_note(&m->plan, p.part, p.name);
        }
    names_plan_finish(&m->plan);
}

/* VAE attention is linear; LDM stores 1x1 convolutions, some old files [out, in, 1]. */
static void squeeze(struct model_tensor *t)
{
    if (t->part == MODEL_VAE && strstr(t->name, ".attentions."))
        while (t->shape.ndim > 2 && t->shape.dim[t->shape.ndim - 1] == 1)
            t->shape.ndim--;
}

static int add_tensor(struct model *m, const struct model_source *s, enum model_part part, const char *name, size_t slice,
                      size_t slices, struct err *err)
{
    struct model_tensor *t = &m->tensor[m->count];
    const struct tensor_entry *e = s->entry;
    char text[128];

    if (slices > 1 && (e->shape.ndim < 1 || e->shape.dim[0] % slices != 0))
        return err_set(err, "cannot read '%s': tensor '%s': its shape %s cannot hold q, k and v; the file is damaged, get it again",
                       s->file->path, e->name, shape_print(&e->shape, text, sizeof text));
    *t = (struct model_tensor){.part = part, .dtype = e->dtype, .shape = e->shape, .nbytes = e->nbytes / slices,
                               .offset = e->nbytes / slices * slice, .file = s->file, .entry = e,
                               .source = (size_t)(s - m->source)};
    if (slices > 1)
        t->shape.dim[0] /= slices;
    t->name = name == e->name ? name : arena_str(&m->arena, name, err);
    if (!t->name)
        return -1;
    squeeze(t);
    m->count++;
    return 0;
}

/* Canonical names of one entry. *ldm becomes true when only LDM has such a name. */
static int translate(const struct model *m, const struct place *p, struct names_slice got[3], bool *ldm)
{
    bool openclip = p->part == MODEL_TEXT_ENCODER && m->plan.openclip;

    if (p->part == MODEL_OTHER)
        return 0;
    got[0].slice = 0, got[0].slices = 1;
    if (!openclip && names_canonical(p->part, p->name, got[0].name))
        return 1;
    *ldm = true;
    return names_from_ldm(&m->plan, p->part, p->name, got);
}

static int add_source(struct model *m, size_t file, const struct tensor_entry *e, bool *ldm, struct err *err)
{
    struct model_source *s = &m->source[m->source_count++];
    struct place p = place_of(m, file, e->name);
    struct names_slice got[3];
    bool only_ldm = p.ldm;
    int n = translate(m, &p, got, &only_ldm);

    *s = (struct model_source){m->file[file], e, m->count, n ? (size_t)n : 1};
    m->ema = m->ema || strncmp(e->name, "model_ema.diff", 14) == 0;
    if (n == 0)
        return add_tensor(m, s, MODEL_OTHER, e->name, 0, 1, err);
    *ldm = *ldm || only_ldm;
    for (int i = 0; i < n; i++)
        if (add_tensor(m, s, p.part, got[i].name, got[i].slice, got[i].slices, err) != 0)
            return -1;
    return 0;
}

static int by_part_and_name(const void *a, const void *b)
{
    const struct model_tensor *x = a, *y = b;
    int c;

    if (x->part != y->part)
        return x->part < y->part ? -1 : 1;
    c = strcmp(x->name, y->name);
    return c ? c : x->source < y->source ? -1 : x->source > y->source;
}

static int by_source(const void *a, const void *b)
{
    const struct model_tensor *x = *(struct model_tensor *const *)a, *y = *(struct model_tensor *const *)b;

    if (x->source != y->source)
        return x->source < y->source ? -1 : 1;
    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

static int make_views(struct model *m, struct err *err)
{
    size_t total = 0;
    bool ldm = false;

    for (size_t f = 0; f < m->file_count; f++)
        total += m->file[f]->count;
    m->source = mem_zero(total, sizeof *m->source, "a model's list of tensors", err);
    m->tensor = mem_zero(total, 3 * sizeof *m->tensor, "a model's list of tensors", err);
    m->in_source = mem_zero(total, 3 * sizeof(struct model_tensor *), "a model's list of tensors", err);
    if (!m->source || !m->tensor || !m->in_source)
        return -1;
    for (size_t f = 0; f < m->file_count; f++)
        for (size_t i = 0; i < m->file[f]->count; i++)
            if (add_source(m, f, &m->file[f]->entries[i], &ldm, err) != 0)
                return -1;
    m->layout = ldm ? MODEL_LDM : MODEL_DIFFUSERS;
    qsort(m->tensor, m->count, sizeof *m->tensor, by_part_and_name);
    for (size_t i = 0; i < m->count; i++)
        m->in_source[i] = &m->tensor[i];
    qsort(m->in_source, m->count, sizeof(struct model_tensor *), by_source);
    for (size_t i = 0, p = 0; p <= MODEL_PARTS; p++) {
        while (i < m->count && m->tensor[i].part < p)
            i++;
        m->part_first[p] = i;
    }
    for (size_t i = 1; i < m->part_first[MODEL_OTHER]; i++) {
        const struct model_tensor *a = &m->tensor[i - 1], *b = &m->tensor[i];

        if (a->part == b->part && strcmp(a->name, b->name) == 0)
            return err_set(err, "cannot read '%s': '%s' and '%s' are both the %s's '%s'; remove one of them from the file", m->path,
                           a->entry->name, b->entry->name, names_part(a->part), a->name);
    }
    return 0;
}

int model_open(struct model **out, const char *path, struct err *err)
{
    struct model *m = mem_zero(1, sizeof *m, "an open model", err);
    struct stat st;

    *out = NULL;
    if (!m)
        return -1;
    m->path = mem_str(path, err);
    if (!m->path)
        goto fail;
    m->folder = stat(path, &st) == 0 && S_ISDIR(st.st_mode);
    if ((m->folder ? model_open_folder(m, err) : model_add_file(m, path, MODEL_OTHER, err)) != 0 || model_refuse(m, err) != 0)
        goto fail;
    find_bare(m);
    find_plan(m);
    if (make_views(m, err) != 0 || model_find_kind(m, err) != 0)
        goto fail;
    *out = m;
    return 0;
fail:
    model_close(m);
    return -1;
}

void model_close(struct model *m)
{
    if (!m)
        return;
    for (size_t i = 0; i < m->file_count; i++)
        tensor_file_close(m->file[i]);
    arena_free(&m->arena);
    free(m->file);
    free(m->file_part);
    free(m->tensor);
    free(m->source);
    free(m->in_source);
    free((char *)m->path);
    free(m);
}

const struct model_tensor *model_find(const struct model *m, enum model_part part, const char *name)
{
    size_t lo = m->part_first[part], hi = m->part_first[part + 1];

    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        int c = strcmp(name, m->tensor[mid].name);

        if (c == 0)
            return &m->tensor[mid];
        if (c < 0)
            hi = mid;
        else
            lo = mid + 1;
    }
    return NULL;
}

int model_read_part(const struct model_tensor *t, size_t first, size_t n, void *dst, struct err *err)
{
    if (first > t->nbytes || n > t->nbytes - first)
        return err_set(err, "cannot read '%s': bytes %zu to %zu of tensor '%s' were asked for, it has %zu; please report this",
                       t->file->path, first, first + n, t->name, t->nbytes);
    return tensor_file_read_part(t->file, t->entry, t->offset + first, n, dst, err);
}

int model_read(const struct model_tensor *t, void *dst, struct err *err)
{
    return model_read_part(t, 0, t->nbytes, dst, err);
}
