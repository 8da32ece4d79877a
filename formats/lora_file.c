#include "formats/lora_file.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "formats/lora_inside.h"

static const struct {
    const char *name, *text;
    bool written;
} layouts[LORA_LAYOUTS] = {
    [LORA_KOHYA] = {"kohya", "kohya layout", true},
    [LORA_KOHYA_LDM] = {"kohya-ldm", "kohya layout with LDM names", false},
    [LORA_COMFY] = {"comfy", "ComfyUI layout", false},
    [LORA_DIFFUSERS_OLD] = {"diffusers-old", "old diffusers layout", true},
    [LORA_DIFFUSERS] = {"diffusers", "diffusers layout", true},
    [LORA_PEFT] = {"peft", "PEFT layout", true},
    [LORA_CLONEOFSIMO] = {"cloneofsimo", "cloneofsimo layout", true},
};

enum { SDXL_WIDTH = 2048, SD2_WIDTH = 1024 };

const char *lora_layout_name(enum lora_layout layout)
{
    return layouts[layout].name;
}

bool lora_layout_parse(const char *name, enum lora_layout *out)
{
    for (int i = 0; i < LORA_LAYOUTS; i++)
        if (layouts[i].written && strcmp(name, layouts[i].name) == 0) {
            *out = (enum lora_layout)i;
            return true;
        }
    return false;
}

/* "unet:12:up" -> part, 12, LORA_UP. */
static bool parse_ordered(const char *name, enum model_part *part, size_t *index, enum lora_role *role)
{
    static const struct {
        const char *begin;
        enum model_part part;
    } parts[] = {{"unet:", MODEL_UNET}, {"text_encoder:", MODEL_TEXT_ENCODER}};

    for (int i = 0; i < 2; i++) {
        size_t n = strlen(parts[i].begin);
        char *end;

        if (strncmp(name, parts[i].begin, n) != 0 || name[n] < '0' || name[n] > '9')
            continue;
        *part = parts[i].part;
        *index = strtoul(name + n, &end, 10);
        *role = strcmp(end, ":up") == 0 ? LORA_UP : LORA_DOWN;
        return strcmp(end, ":up") == 0 || strcmp(end, ":down") == 0;
    }
    return false;
}

/* A pickled list has "0", "1", ...: up, down, up, down. */
static bool is_list(const struct tensor_file *f)
{
    char name[24];

    if (f->count < 2 || f->count % 2)
        return false;
    for (size_t i = 0; i < f->count; i++) {
        const struct tensor_entry *e;

        snprintf(name, sizeof name, "%zu", i);
        e = tensor_file_find(f, name);
        if (!e || (e->shape.ndim != 2 && e->shape.ndim != 4))
            return false;
    }
    return true;
}

bool lora_file_claims(const struct tensor_file *f)
{
    struct lora_key k;
    enum model_part part;
    enum lora_role role;
    size_t index;

    for (size_t i = 0; i < f->count; i++) {
        const char *name = f->entries[i].name;

        if ((lora_key_parse(name, &k) && k.role != LORA_ALPHA) || lora_key_refused(name) ||
            parse_ordered(name, &part, &index, &role))
            return true;
    }
    return is_list(f);
}

/* ---- From tensors to modules ---- */

struct item { /* a tensor of the file that belongs to a module */
    enum model_part part;
    enum lora_role role;
    bool any_part;
    const char *path, *key; /* canonical (NULL: unknown), as spelled; in the arena */
    const struct tensor_file *file;
    const struct tensor_entry *entry;
};

struct items {
    struct item *item;
    size_t count, cap;
    size_t layout[LORA_LAYOUTS];
    struct names_plan plan;
};

static int add_item(struct items *all, const struct item *item, struct err *err)
{
    if (mem_grow(&all->item, &all->cap, all->count, sizeof *all->item, "a list of tensors", err) != 0)
        return -1;
    all->item[all->count++] = *item;
    return 0;
}

static bool is_ldm(const char *key)
{
    return strncmp(key, "input_blocks", 12) == 0 || strncmp(key, "output_blocks", 13) == 0 || strncmp(key, "middle_block", 12) == 0;
}

static int collect_named(struct lora_file *f, size_t file, enum model_part part, struct items *all, struct err *err)
{
    const struct tensor_file *t = f->file[file];

    for (size_t i = 0; i < t->count; i++) {
        const struct tensor_entry *e = &t->entries[i];
        struct lora_key k;
        struct item item = {.file = t, .entry = e};

        if (!lora_key_parse(e->name, &k))
            continue;
        item.part = part != MODEL_OTHER && k.any_part ? part : k.part;
        item.any_part = part == MODEL_OTHER && k.any_part;
        item.role = k.role;
        item.key = arena_str(&f->arena, k.module, err);
        if (!item.key || add_item(all, &item, err) != 0)
            return -1;
        if (k.layout == LORA_KOHYA && is_ldm(k.module))
            k.layout = LORA_KOHYA_LDM;
        all->layout[k.layout] += k.role != LORA_ALPHA;
        f->te1 = f->te1 || k.te1;
        names_note_loose(&all->plan, item.part, k.module, strlen(k.module));
    }
    return 0;
}

/* How a pair of this index is called: "unet:3:up", or "6" and "7" of a list. */
static const struct tensor_entry *ordered_entry(const struct tensor_file *t, enum model_part part, size_t i, enum lora_role role,
                                                bool list)
{
    char name[64];

    if (list)
        snprintf(name, sizeof name, "%zu", 2 * i + (role == LORA_DOWN));
    else
        snprintf(name, sizeof name, "%s:%zu:%s", part == MODEL_UNET ? "unet" : "text_encoder", i, role == LORA_UP ? "up" : "down");
    return tensor_file_find(t, name);
}

static int collect_ordered_part(struct lora_file *f, enum model_part part, size_t n, bool list, struct items *all, struct err *err)
{
    const struct tensor_entry *up0 = ordered_entry(f->file[0], part, 0, LORA_UP, list);
    const struct tensor_entry *up4 = n > 4 ? ordered_entry(f->file[0], part, 4, LORA_UP, list) : NULL;
    bool wide = up0 && up4 && up0->shape.ndim > 0 && up4->shape.ndim > 0 && up0->shape.dim[0] != up4->shape.dim[0];

    for (size_t i = 0; i < n; i++)
        for (int role = LORA_DOWN; role <= LORA_UP; role++) {
            struct item item = {.part = part, .role = (enum lora_role)role, .file = f->file[0]};
            char path[NAMES_MAX];

            item.entry = ordered_entry(f->file[0], part, i, item.role, list);
            if (!item.entry)
                return err_set(err, "cannot read '%s': pair %zu of its %s LoRA is not complete; get it again", f->path, i,
                               names_part(part));
            if (!lora_order_path(part, n, i, wide, path))
                return err_set(err, "cannot read '%s': its %zu %s modules have no names, and that is no number of modules known "
                                    "here (U-Net: 144; text encoder: 48 or 92); convert it with its own tool", f->path, n,
                               names_part(part));
            item.path = item.key = arena_str(&f->arena, path, err);
            if (!item.path || add_item(all, &item, err) != 0)
                return -1;
        }
    return 0;
}

/* cloneofsimo's files. */
static int collect_ordered(struct lora_file *f, struct items *all, struct err *err)
{
    const struct tensor_file *t = f->file[0];
    size_t n[MODEL_PARTS] = {0}, tensors = 0;

    if (is_list(t)) {
        enum model_part part = t->count / 2 == 48 || t->count / 2 == 92 ? MODEL_TEXT_ENCODER : MODEL_UNET;

        all->layout[LORA_CLONEOFSIMO] = t->count;
        return collect_ordered_part(f, part, t->count / 2, true, all, err);
    }
    for (size_t i = 0; i < t->count; i++) {
        enum model_part part;
        enum lora_role role;
        size_t index;

        if (parse_ordered(t->entries[i].name, &part, &index, &role)) {
            tensors++;
            if (index < t->count && index + 1 > n[part])
                n[part] = index + 1;
        }
    }
    all->layout[LORA_CLONEOFSIMO] = tensors;
    return collect_ordered_part(f, MODEL_UNET, n[MODEL_UNET], false, all, err) == 0 &&
                   collect_ordered_part(f, MODEL_TEXT_ENCODER, n[MODEL_TEXT_ENCODER], false, all, err) == 0
               ? 0
               : -1;
}

static int resolve(struct lora_file *f, struct items *all, struct err *err)
{
    char path[NAMES_MAX];

    names_plan_finish(&all->plan);
    for (size_t i = 0; i < all->count; i++) {
        struct item *it = &all->item[i];
        size_t n = strlen(it->key);

        if (it->path)
            continue;
        if (!names_module(&all->plan, it->part, it->key, n, path)) {
            if (!it->any_part || !names_module(&all->plan, MODEL_TEXT_ENCODER, it->key, n, path))
                continue;
            it->part = MODEL_TEXT_ENCODER;
        }
        it->path = arena_str(&f->arena, path, err);
        if (!it->path)
            return -1;
    }
    return 0;
}

static int by_module(const void *a, const void *b)
{
    const struct item *x = a, *y = b;
    int c;

    if (!x->path != !y->path)
        return x->path ? -1 : 1;
    if (x->part != y->part)
        return x->part < y->part ? -1 : 1;
    c = strcmp(x->path ? x->path : x->key, y->path ? y->path : y->key);
    return c ? c : (int)x->role - (int)y->role ? (int)x->role - (int)y->role : strcmp(x->entry->name, y->entry->name);
}

static int read_alpha(const struct item *it, double *out, struct err *err)
{
    const struct tensor_entry *e = it->entry;
    _Alignas(8) unsigned char bytes[8];
    size_t n;

    if (!shape_numel(&e->shape, &n) || n != 1 || e->nbytes > sizeof bytes ||
        (!dtype_is_float(e->dtype) && e->dtype != DT_I64 && e->dtype != DT_I32))
        return err_set(err, "cannot read '%s': tensor '%s': alpha is not one number; get the file again", it->file->path, e->name);
    if (tensor_file_read(it->file, e, bytes, err) != 0)
        return -1;
    if (e->dtype == DT_I64 || e->dtype == DT_I32) {
        int64_t wide = 0;
        int32_t narrow;

        memcpy(&wide, bytes, e->nbytes);
        memcpy(&narrow, bytes, sizeof narrow);
        *out = e->dtype == DT_I64 ? (double)wide : narrow;
    } else {
        dtype_convert(out, DT_F64, bytes, e->dtype, 1);
    }
    if (!isfinite(*out))
        return err_set(err, "cannot read '%s': tensor '%s': alpha is not a finite number; get the file again", it->file->path,
                       e->name);
    return 0;
}

static bool fits_4d(const struct shape *s, size_t kh, size_t kw)
{
    return s->ndim == 2 || (s->ndim == 4 && s->dim[2] == kh && s->dim[3] == kw);
}

/* Reads sizes off the factors and checks that they belong together. */
static int measure(const struct lora_file *f, struct lora_module *m, struct err *err)
{
    const struct tensor_entry *u = m->up.entry, *d = m->down.entry, *mid = m->mid.entry;
    char su[128], sd[128];

    if (!u || !d)
        return err_set(err, "cannot read '%s': module '%s' lacks its lora_%s; get the file again", f->path, m->key, u ? "down" : "up");
    if (!dtype_is_float(u->dtype) || !dtype_is_float(d->dtype) || (mid && !dtype_is_float(mid->dtype)))
        return err_set(err, "cannot read '%s': module '%s' is of type %s; f16, bf16, f32 and f64 are supported", f->path, m->key,
                       dtype_name(dtype_is_float(u->dtype) ? d->dtype : u->dtype));
    m->kh = m->kw = 1;
    if (mid && mid->shape.ndim == 4)
        m->kh = mid->shape.dim[2], m->kw = mid->shape.dim[3];
    else if (d->shape.ndim == 4)
        m->kh = d->shape.dim[2], m->kw = d->shape.dim[3];
    if (!fits_4d(&u->shape, 1, 1) || !fits_4d(&d->shape, mid ? 1 : m->kh, mid ? 1 : m->kw) || u->shape.dim[0] == 0 ||
        d->shape.dim[0] == 0 || d->shape.dim[1] == 0 || m->kh * m->kw == 0 || u->shape.dim[1] != d->shape.dim[0] ||
        (mid && (mid->shape.ndim != 4 || mid->shape.dim[0] != d->shape.dim[0] || mid->shape.dim[1] != d->shape.dim[0])))
        return err_set(err, "cannot read '%s': module '%s': lora_up %s and lora_down %s do not fit together; get the file again",
                       f->path, m->key, shape_print(&u->shape, su, sizeof su), shape_print(&d->shape, sd, sizeof sd));
    m->out = u->shape.dim[0], m->rank = d->shape.dim[0], m->in = d->shape.dim[1];
    m->dtype = d->dtype;
    if (!m->has_alpha)
        m->alpha = (double)m->rank;
    return 0;
}

/* The items of one module, [n], sorted by role. */
static int make_module(struct lora_file *f, const struct item *it, size_t n, struct err *err)
{
    struct lora_module *m = &f->module[f->count++];

    *m = (struct lora_module){.part = it->part, .path = it->path, .key = it->key};
    for (size_t i = 0; i < n; i++) {
        struct lora_factor x = {it[i].file, it[i].entry};

        if (i > 0 && it[i].role == it[i - 1].role)
            return err_set(err, "cannot read '%s': tensors '%s' and '%s' are the same factor of one module; remove one of them",
                           f->path, it[i - 1].entry->name, it[i].entry->name);
        switch (it[i].role) {
        case LORA_DOWN: m->down = x; break;
        case LORA_UP: m->up = x; break;
        case LORA_MID: m->mid = x; break;
        case LORA_ALPHA:
            if (read_alpha(&it[i], &m->alpha, err) != 0)
                return -1;
            m->has_alpha = true;
        }
    }
    return measure(f, m, err);
}

static int make_modules(struct lora_file *f, struct items *all, struct err *err)
{
    f->module = mem_zero(all->count, sizeof *f->module, "a list of modules", err);
    f->unknown = mem_zero(all->count, sizeof *f->unknown, "a list of modules", err);
    if (!f->module || !f->unknown)
        return -1;
    if (all->count)
        qsort(all->item, all->count, sizeof *all->item, by_module);
    for (size_t i = 0, n; i < all->count; i += n) {
        const struct item *it = &all->item[i];

        n = 1;
        if (!it->path) {
            if (f->unknown_count == 0 || strcmp(f->unknown[f->unknown_count - 1], it->key) != 0)
                f->unknown[f->unknown_count++] = it->key;
            continue;
        }
        while (i + n < all->count && it[n].path && it[n].part == it->part && strcmp(it[n].path, it->path) == 0)
            n++;
        if (make_module(f, it, n, err) != 0)
            return -1;
    }
    return 0;
}

static bool ends(const char *s, const char *with)
{
    size_t n = strlen(s), m = strlen(with);

    return n >= m && strcmp(s + n - m, with) == 0;
}

/* Sums up the modules. */
static int find_kind(struct lora_file *f, const struct items *all, struct err *err)
{
    size_t types[DT_COUNT] = {0};

    for (int i = 0; i < LORA_LAYOUTS; i++)
        if (all->layout[i] > all->layout[f->layout])
            f->layout = (enum lora_layout)i;
    if (f->count == 0)
        return f->unknown_count ? err_set(err, "cannot use '%s': none of its %zu LoRA modules is one of Stable Diffusion ('%s' is the "
                                               "first); give a LoRA for 1.x or 2.x", f->path, f->unknown_count, f->unknown[0])
                                : err_set(err, "cannot use '%s' as a LoRA: no tensor in it is a LoRA's; give a LoRA file", f->path);
    f->dtype = f->module[0].dtype;
    f->min_rank = f->max_rank = f->module[0].rank;
    for (size_t i = 0; i < f->count; i++) {
        const struct lora_module *m = &f->module[i];

        f->part_count[m->part]++;
        f->any_alpha = f->any_alpha || m->has_alpha;
        f->min_rank = m->rank < f->min_rank ? m->rank : f->min_rank;
        f->max_rank = m->rank > f->max_rank ? m->rank : f->max_rank;
        if (++types[m->dtype] > types[f->dtype])
            f->dtype = m->dtype;
        if (m->part == MODEL_UNET && ends(m->path, ".attn2.to_k"))
            f->context_width = m->in;
        if (m->part == MODEL_TEXT_ENCODER && (ends(m->path, "_proj") || ends(m->path, ".fc1")))
            f->text_width = m->in;
    }
    if (f->context_width == SDXL_WIDTH)
        return err_set(err, "cannot use '%s': it is an SDXL LoRA; SDXL is not supported, give a LoRA for Stable Diffusion 1.x or 2.x",
                       f->path);
    f->sd2 = f->context_width ? f->context_width == SD2_WIDTH : f->text_width == SD2_WIDTH;
    return 0;
}

static int refuse(const struct lora_file *f, struct err *err)
{
    for (size_t k = 0; k < f->file_count; k++)
        for (size_t i = 0; i < f->file[k]->count; i++) {
            const char *is = lora_key_refused(f->file[k]->entries[i].name);

            if (is)
                return err_set(err, "cannot use '%s' as a LoRA: it is %s", f->path, is);
        }
    return 0;
}

static int open_all(struct lora_file *f, struct items *all, struct err *err)
{
    const char *configs[2] = {NULL, NULL};
    enum model_part part_of[2] = {MODEL_OTHER, MODEL_OTHER};
    struct stat st;

    if (stat(f->path, &st) == 0 && S_ISDIR(st.st_mode)) {
        if (lora_open_folder(f, configs, part_of, err) != 0)
            return -1;
    } else {
        if (tensor_file_open(&f->file[0], f->path, err) != 0)
            return -1;
        f->file_count = 1;
    }
    f->metadata = f->file[0]->metadata;
    f->metadata_count = f->file[0]->metadata_count;
    if (refuse(f, err) != 0)
        return -1;
    for (size_t k = 0; k < f->file_count; k++)
        if (collect_named(f, k, part_of[k], all, err) != 0)
            return -1;
    if ((all->count == 0 && collect_ordered(f, all, err) != 0) || resolve(f, all, err) != 0 || make_modules(f, all, err) != 0 ||
        find_kind(f, all, err) != 0 || lora_alpha_from_header(f, err) != 0)
        return -1;
    for (size_t k = 0; k < f->file_count; k++)
        for (int p = MODEL_UNET; configs[k] && p <= MODEL_TEXT_ENCODER; p++)
            if ((part_of[k] == MODEL_OTHER || part_of[k] == (enum model_part)p) &&
                lora_alpha_from_config(f, (enum model_part)p, configs[k], f->path, err) != 0)
                return -1;
    for (size_t i = 0; i < f->count; i++)
        f->any_alpha = f->any_alpha || f->module[i].has_alpha;
    return 0;
}

int lora_file_open(struct lora_file **out, const char *path, struct err *err)
{
    struct lora_file *f = mem_zero(1, sizeof *f, "an open LoRA", err);
    struct items all = {.item = NULL};
    int rc = -1;

    *out = NULL;
    if (!f)
        return -1;
    f->path = mem_str(path, err);
    if (f->path)
        rc = open_all(f, &all, err);
    free(all.item);
    if (rc != 0) {
        lora_file_close(f);
        return -1;
    }
    *out = f;
    return 0;
}

void lora_file_close(struct lora_file *f)
{
    if (!f)
        return;
    for (size_t i = 0; i < f->file_count; i++)
        tensor_file_close(f->file[i]);
    arena_free(&f->arena);
    free(f->module);
    free(f->unknown);
    free((char *)f->path);
    free(f);
}

const struct lora_module *lora_file_find(const struct lora_file *f, enum model_part part, const char *path)
{
    size_t lo = 0, hi = f->count;

    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        const struct lora_module *m = &f->module[mid];
        int c = m->part != part ? (part < m->part ? -1 : 1) : strcmp(path, m->path);

        if (c == 0)
            return m;
        if (c < 0)
            hi = mid;
        else
            lo = mid + 1;
    }
    return NULL;
}

/* As f32. In pieces that stay in the cache, where the file has the numbers as they are: a buffer for all of them would be new
 * memory each time, which costs more than the reading. */
static int read_widened(const struct lora_factor *x, float *dst, size_t n, struct err *err)
{
    _Alignas(64) unsigned char piece[1 << 15];
    size_t size = dtype_size(x->entry->dtype), most = x->entry->plain ? sizeof piece / size : n;
    void *raw = x->entry->plain ? piece : mem_new(x->entry->nbytes, "a LoRA factor", err);
    int rc = raw ? 0 : -1;

    for (size_t at = 0, part; at < n && rc == 0; at += part) {
        part = n - at < most ? n - at : most;
        rc = tensor_file_read_part(x->file, x->entry, at * size, part * size, raw, err);
        if (rc == 0)
            dtype_convert(dst + at, DT_F32, raw, x->entry->dtype, part);
    }
    if (raw != piece)
        free(raw);
    return rc;
}

/* Reads a factor as f32 and checks that it is finite. */
static int read_factor(const struct lora_factor *x, float *dst, struct err *err)
{
    size_t n = x->entry->nbytes / dtype_size(x->entry->dtype), bad;

    if (x->entry->dtype == DT_F32 ? tensor_file_read(x->file, x->entry, dst, err) : read_widened(x, dst, n, err))
        return -1;
    bad = dtype_find_nonfinite(dst, DT_F32, n);
    if (bad < n)
        return err_set(err,
                       "cannot use '%s': tensor '%s' has a NaN or infinity at element %zu; the LoRA is broken, get it again or "
                       "train it again",
                       x->file->path, x->entry->name, bad);
    return 0;
}

/* down [rank, in * k] = mid [rank, rank, k] over thin [rank, in]: CP form, W = up x mid x thin. Sums in f64. */
static int widen_down(const struct lora_module *m, float *down, struct err *err)
{
    size_t k = m->kh * m->kw, rank = m->rank, in = m->in, need;
    float *mid = NULL, *thin;
    int rc = -1;

    if (!mem_mul(m->mid.entry->nbytes, 4, &need) || !mem_mul(rank * in, sizeof *thin, &need))
        return err_memory(err, m->mid.entry->nbytes, "a LoRA factor");
    thin = mem_new(need, "a LoRA factor", err);
    mid = mem_new(rank * rank * k * sizeof *mid, "a LoRA factor", err);
    if (!thin || !mid || read_factor(&m->down, thin, err) != 0 || read_factor(&m->mid, mid, err) != 0)
        goto out;
    for (size_t r = 0; r < rank; r++)
        for (size_t c = 0; c < in; c++)
            for (size_t q = 0; q < k; q++) {
                double sum = 0;

                for (size_t j = 0; j < rank; j++)
                    sum += (double)mid[(r * rank + j) * k + q] * (double)thin[j * in + c];
                down[(r * in + c) * k + q] = (float)sum;
            }
    rc = 0;
out:
    free(thin);
    free(mid);
    return rc;
}

int lora_module_read_f32(const struct lora_module *m, float *up, float *down, struct err *err)
{
    if (read_factor(&m->up, up, err) != 0)
        return -1;
    return m->mid.entry ? widen_down(m, down, err) : read_factor(&m->down, down, err);
}

int lora_module_read(const struct lora_module *m, void *up, void *down, struct err *err)
{
    if (m->mid.entry || m->up.entry->dtype != m->down.entry->dtype)
        return err_set(err, "cannot use module '%s': its factors are of several types or in CP form; please report this", m->key);
    return tensor_file_read(m->up.file, m->up.entry, up, err) == 0 ? tensor_file_read(m->down.file, m->down.entry, down, err) : -1;
}

const char *lora_kind_text(const struct lora_file *f, char *buf, size_t size)
{
    const char *version = f->sd2                                          ? " for Stable Diffusion 2.x"
                          : f->context_width == 768 || f->text_width == 768 ? " for Stable Diffusion 1.x"
                                                                            : "";
    char rank[64], modules[96];

    if (f->min_rank == f->max_rank)
        snprintf(rank, sizeof rank, "rank %zu", f->min_rank);
    else
        snprintf(rank, sizeof rank, "rank %zu to %zu", f->min_rank, f->max_rank);
    if (f->part_count[MODEL_UNET] && f->part_count[MODEL_TEXT_ENCODER])
        snprintf(modules, sizeof modules, "%zu U-Net and %zu text encoder modules", f->part_count[MODEL_UNET],
                 f->part_count[MODEL_TEXT_ENCODER]);
    else
        snprintf(modules, sizeof modules, "%zu %s modules", f->count, f->part_count[MODEL_UNET] ? "U-Net" : "text encoder");
    snprintf(buf, size, "LoRA%s (%s), %s, %s, %s", version, layouts[f->layout].text, rank, dtype_name(f->dtype), modules);
    return buf;
}
