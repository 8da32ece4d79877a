/* Writing LoRA files: which tensors a layout has (lora_spell.c has their names), values, hashes. */
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "formats/hash.h"
#include "formats/lora_inside.h"
#include "formats/output_folder.h"
#include "formats/tensor_writer.h"
#include "ref/base/thread.h"

enum { PIECE = 1 << 15, LEGACY_AT = 0x100000, LEGACY_BYTES = 0x10000 };

struct factor { /* one of the file */
    const struct lora_out *module;
    enum lora_role role;
};

struct job { /* one file */
    const char *path;
    const struct lora_write_options *o;
    struct lora_write_report *report;
    bool has_alpha; /* the layout has a place for it */
    struct factor *tensor;   /* [n] */
    struct tensor_spec *spec; /* [n] */
    size_t n;
    struct metadata_item *metadata;
    size_t n_metadata;
    uint64_t hashed_header;   /* the header's bytes in the file of which the legacy hash is one */
    char *model_hash, *legacy_hash; /* NULL, or metadata's texts, filled in while the data is written */
    struct tensor_writer *writer;
    struct arena arena;
};

struct buffers { /* of one pass over the data: out holds a piece as the file has it */
    double wide[PIECE], back[PIECE];
    unsigned char out[PIECE * 8];
};

static double scale_of(const struct lora_out *m)
{
    return m->has_alpha ? m->alpha / (double)m->rank : 1;
}

static bool folds(const struct job *j, const struct factor *t)
{
    return !j->has_alpha && t->role == LORA_UP && scale_of(t->module) != 1;
}

/* alpha has the file's type where that holds it exactly, as other writers have it, else f32. */
static enum dtype alpha_dtype(const struct lora_out *m, enum dtype file)
{
    _Alignas(8) unsigned char narrow[8];
    double back;

    dtype_convert(narrow, file, &m->alpha, DT_F64, 1);
    dtype_convert(&back, DT_F64, narrow, file, 1);
    return back == m->alpha ? file : DT_F32;
}

static struct shape shape_for(const struct lora_out *m, enum lora_role role, bool flat)
{
    if (role == LORA_ALPHA)
        return (struct shape){0, {0}};
    if (flat || !m->conv)
        return role == LORA_UP ? (struct shape){2, {m->out, m->rank}} : (struct shape){2, {m->rank, m->in * m->kh * m->kw}};
    return role == LORA_UP ? (struct shape){4, {m->out, m->rank, 1, 1}} : (struct shape){4, {m->rank, m->in, m->kh, m->kw}};
}

static int add_tensor(struct job *j, const struct lora_out *m, enum lora_role role, size_t index, struct err *err)
{
    struct tensor_spec *s = &j->spec[j->n];
    char name[2 * NAMES_MAX];

    if (!lora_spell(j->o->layout, m, role, index, name, sizeof name))
        return err_set(err, "cannot write '%s': the %s layout has no place for the %s's '%s' (%s); choose another layout, such as "
                            "kohya or diffusers", j->path, lora_layout_name(j->o->layout), names_part(m->part), m->path,
                       j->o->layout == LORA_DIFFUSERS_OLD ? "only for attention" : "only for what its trainer reaches");
    s->name = arena_str(&j->arena, name, err);
    s->dtype = role == LORA_ALPHA ? alpha_dtype(m, j->o->dtype) : j->o->dtype;
    s->shape = shape_for(m, role, j->o->layout == LORA_CLONEOFSIMO);
    j->tensor[j->n++] = (struct factor){m, role};
    return s->name ? 0 : -1;
}

static size_t values_of(const struct factor *t)
{
    const struct lora_out *m = t->module;

    return t->role == LORA_ALPHA ? 1 : t->role == LORA_UP ? m->out * m->rank : m->rank * m->in * m->kh * m->kw;
}

/* Bytes of elements [first, first + n) of a tensor as the file has them, n <= PIECE, in b->out. *inexact is set when a product
 * had to be rounded. */
static int convert(const struct job *j, struct buffers *b, size_t i, size_t first, size_t n, bool *inexact, struct err *err)
{
    const struct factor *t = &j->tensor[i];
    const struct lora_out *m = t->module;
    enum dtype to = j->spec[i].dtype;
    const unsigned char *from = t->role == LORA_UP ? m->up : m->down;
    size_t bad;

    if (t->role == LORA_ALPHA) {
        dtype_convert(b->out, to, &m->alpha, DT_F64, 1);
        return 0;
    }
    from += first * dtype_size(m->dtype);
    if (folds(j, t)) {
        dtype_convert(b->wide, DT_F64, from, m->dtype, n);
        for (size_t k = 0; k < n; k++)
            b->wide[k] *= scale_of(m);
        dtype_convert(b->out, to, b->wide, DT_F64, n);
        dtype_convert(b->back, DT_F64, b->out, to, n);
        *inexact = *inexact || memcmp(b->wide, b->back, n * sizeof *b->wide) != 0;
    } else if (to == m->dtype) {
        memcpy(b->out, from, n * dtype_size(to));
    } else {
        dtype_convert(b->out, to, from, m->dtype, n);
    }
    bad = dtype_find_nonfinite(b->out, to, n);
    if (bad < n)
        return err_set(err, "cannot write '%s': tensor '%s': the value at element %zu is NaN, infinite or too large for %s; use "
                            "--save_precision float", j->path, j->spec[i].name, first + bad, dtype_name(to));
    return 0;
}

/* ---- Hashes and metadata ---- */

/* What a layout says of itself, so it does not travel. */
static bool own_key(const char *key)
{
    static const char *const own[] = {"sshs_", "ckpt.", "format", "lora_adapter_metadata", "unet", "text_encoder"};

    for (size_t i = 0; i < sizeof own / sizeof own[0]; i++)
        if (strncmp(key, own[i], strlen(own[i])) == 0)
            return true;
    return false;
}

static int add_metadata(struct job *j, const char *key, const char *value, struct err *err)
{
    const char *k = arena_str(&j->arena, key, err), *v = k ? arena_str(&j->arena, value, err) : NULL;

    if (!v)
        return -1;
    j->metadata[j->n_metadata++] = (struct metadata_item){k, v};
    return 0;
}

/* A text of `digits` zeros for now; NULL with err filled. */
static char *add_hash(struct job *j, const char *key, int digits, struct err *err)
{
    char *text = arena_printf(&j->arena, err, "%0*d", digits, 0);

    if (text)
        j->metadata[j->n_metadata++] = (struct metadata_item){key, text};
    return text;
}

/* Data in file order through both hashes. */
static int hash_data(const struct job *j, struct buffers *b, struct err *err)
{
    struct sha256 whole, window;
    char text[SHA256_TEXT];
    uint64_t at = j->hashed_header;
    bool ignored = false;

    sha256_start(&whole);
    sha256_start(&window);
    for (size_t k = 0; k < j->n; k++) {
        size_t i = tensor_writer_order(j->writer, k), total = values_of(&j->tensor[i]), size = dtype_size(j->spec[i].dtype);

        for (size_t first = 0; first < total; first += PIECE) {
            size_t n = total - first < PIECE ? total - first : PIECE;
            uint64_t from = at > LEGACY_AT ? at : LEGACY_AT, end = at + n * size;
            uint64_t to = end < LEGACY_AT + LEGACY_BYTES ? end : LEGACY_AT + LEGACY_BYTES;

            if (convert(j, b, i, first, n, &ignored, err) != 0)
                return -1;
            sha256_add(&whole, b->out, n * size);
            if (from < to)
                sha256_add(&window, b->out + (from - at), (size_t)(to - from));
            at = end;
        }
    }
    sha256_text(&whole, j->model_hash);
    sha256_text(&window, text);
    if (j->legacy_hash)
        memcpy(j->legacy_hash, text, HASH_LEGACY_TEXT - 1);
    return 0;
}

static int by_key(const void *a, const void *b)
{
    return strcmp(((const struct metadata_item *)a)->key, ((const struct metadata_item *)b)->key);
}

/* Places for sshs_model_hash and sshs_legacy_hash. The latter looks at bytes from 1 MiB on of the file that it would be with ss_*
 * keys alone, so that file is laid out (not written) by the format itself. */
static int add_hashes(struct job *j, struct err *err)
{
    struct tensor_writer w = {.path = j->path, .format = &format_safetensors, .n = j->n};
    struct metadata_item *ss = mem_zero(j->n_metadata, sizeof *ss, "metadata", err);
    int rc = -1;

    w.slot = mem_zero(j->n, sizeof *w.slot, "a list of tensors", err);
    w.order = mem_zero(j->n, sizeof *w.order, "a list of tensors", err);
    if (!ss || !w.slot || !w.order)
        goto out;
    for (size_t i = 0; i < j->n; i++) {
        w.slot[i].spec = j->spec[i], w.order[i] = i;
        w.slot[i].nbytes = values_of(&j->tensor[i]) * dtype_size(j->spec[i].dtype);
    }
    for (size_t i = 0; i < j->n_metadata; i++)
        if (strncmp(j->metadata[i].key, "ss_", 3) == 0)
            ss[w.n_metadata++] = j->metadata[i];
    if (w.n_metadata)
        qsort(ss, w.n_metadata, sizeof *ss, by_key);
    w.metadata = ss;
    if (format_safetensors.writer->layout(&w, err) != 0)
        goto out;
    j->hashed_header = w.slot[w.order[0]].offset;
    if (!(j->model_hash = add_hash(j, "sshs_model_hash", SHA256_TEXT - 1, err)))
        goto out;
    if (w.n_metadata > 0 && j->hashed_header <= LEGACY_AT) {
        if (!(j->legacy_hash = add_hash(j, "sshs_legacy_hash", HASH_LEGACY_TEXT - 1, err)))
            goto out;
        j->report->legacy_hash = true;
    }
    rc = 0;
out:
    if (format_safetensors.writer->close && w.impl)
        format_safetensors.writer->close(&w);
    arena_free(&w.arena);
    free(ss);
    free(w.slot);
    free(w.order);
    return rc;
}

static int make_metadata(struct job *j, const struct lora_out *const *modules, size_t n, struct err *err)
{
    bool kohya = j->o->layout == LORA_KOHYA;
    size_t most = j->o->n_metadata + 8 + n;

    j->metadata = mem_zero(most, sizeof *j->metadata, "metadata", err);
    if (!j->metadata)
        return -1;
    if (kohya && (j->o->no_metadata || tensor_format_of_suffix(j->path) != &format_safetensors))
        return 0;
    for (size_t i = 0; i < j->o->n_metadata; i++)
        if (!own_key(j->o->metadata[i].key) && add_metadata(j, j->o->metadata[i].key, j->o->metadata[i].value, err) != 0)
            return -1;
    if (kohya)
        return j->n > 0 ? add_hashes(j, err) : 0;
    if (j->o->layout != LORA_CLONEOFSIMO)
        return add_metadata(j, "format", "pt", err);
    for (size_t i = 0, of_part = 0; i < n; i++) {
        char key[64], rank[32];

        of_part = i > 0 && modules[i]->part == modules[i - 1]->part ? of_part + 1 : 0;
        if (of_part == 0 && add_metadata(j, modules[i]->part == MODEL_UNET ? "unet" : "text_encoder",
                                         modules[i]->part == MODEL_UNET ? "[\"CrossAttention\", \"Attention\", \"GEGLU\"]"
                                                                        : "[\"CLIPAttention\"]", err) != 0)
            return -1;
        snprintf(key, sizeof key, "%s:%zu:rank", modules[i]->part == MODEL_UNET ? "unet" : "text_encoder", of_part);
        snprintf(rank, sizeof rank, "%zu", modules[i]->rank);
        if (add_metadata(j, key, rank, err) != 0)
            return -1;
    }
    return 0;
}

/* ---- One file ---- */

static int put_all(const struct job *j, struct buffers *b, struct err *err)
{
    for (size_t k = 0; k < j->n; k++) {
        size_t i = tensor_writer_order(j->writer, k), total = values_of(&j->tensor[i]), size = dtype_size(j->spec[i].dtype);
        bool inexact = false;

        for (size_t first = 0; first < total; first += PIECE) {
            size_t n = total - first < PIECE ? total - first : PIECE;

            if (convert(j, b, i, first, n, &inexact, err) != 0 ||
                tensor_writer_put_part(j->writer, i, first * size, n * size, b->out, err) != 0)
                return -1;
        }
        j->report->folded += folds(j, &j->tensor[i]);
        j->report->folded_inexact += inexact;
    }
    return 0;
}

/* Writing and hashing take as long as each other: two threads go over the data. */
static int pass(void *ctx, size_t index, struct err *err)
{
    struct buffers *b = mem_new(sizeof *b, "a piece of a tensor", err);
    int rc = b ? (index == 0 ? put_all : hash_data)(ctx, b, err) : -1;

    free(b);
    return rc;
}

/* Writes modules [n], already in the layout's order, to one file. */
static int write_one(const char *path, const struct lora_out *const *modules, size_t n, const struct lora_write_options *o,
                     struct lora_write_report *report, struct err *err)
{
    struct job j = {.path = path, .o = o, .report = report, .has_alpha = o->layout == LORA_KOHYA || o->layout == LORA_PEFT};
    int rc = -1;

    j.tensor = mem_zero(n, 3 * sizeof *j.tensor, "a list of tensors", err);
    j.spec = mem_zero(n, 3 * sizeof *j.spec, "a list of tensors", err);
    if (!j.tensor || !j.spec)
        goto out;
    for (size_t i = 0, of_part = 0; i < n; i++) {
        of_part = i > 0 && modules[i]->part == modules[i - 1]->part ? of_part + 1 : 0;
        if (add_tensor(&j, modules[i], LORA_DOWN, of_part, err) != 0 || add_tensor(&j, modules[i], LORA_UP, of_part, err) != 0 ||
            (o->layout == LORA_KOHYA && modules[i]->has_alpha && add_tensor(&j, modules[i], LORA_ALPHA, of_part, err) != 0))
            goto out;
    }
    if (make_metadata(&j, modules, n, err) != 0 ||
        tensor_writer_open(&j.writer, path, NULL, j.spec, j.n, j.metadata, j.n_metadata, err) != 0)
        goto out;
    if (thread_for(j.model_hash ? 2 : 1, pass, &j, err) != 0) {
        tensor_writer_abort(j.writer);
        goto out;
    }
    rc = tensor_writer_commit(j.writer, err);
out:
    free(j.tensor);
    free(j.spec);
    free(j.metadata);
    arena_free(&j.arena);
    return rc;
}

/* ---- PEFT's folder ---- */

/* What most modules have goes to the config's main fields, the others into patterns. */
static json_t *peft_config(const struct lora_out *const *m, size_t n)
{
    json_t *targets = json_array(), *ranks = json_object(), *alphas = json_object();
    size_t best = 0, most = 0;

    for (size_t i = 0; i < n; i++) {
        size_t same = 0;

        for (size_t k = 0; k < n; k++)
            same += m[k]->rank == m[i]->rank && m[k]->has_alpha == m[i]->has_alpha && m[k]->alpha == m[i]->alpha;
        if (same > most)
            most = same, best = i;
    }
    for (size_t i = 0; i < n; i++) {
        double alpha = m[i]->has_alpha ? m[i]->alpha : (double)m[i]->rank;
        double usual = m[best]->has_alpha ? m[best]->alpha : (double)m[best]->rank;

        json_array_append_new(targets, json_string(lora_spell_peft_path(m[i])));
        if (m[i]->rank != m[best]->rank)
            json_object_set_new(ranks, lora_spell_peft_path(m[i]), json_integer((json_int_t)m[i]->rank));
        if (alpha != usual)
            json_object_set_new(alphas, lora_spell_peft_path(m[i]), json_real(alpha));
    }
    return json_pack("{s:s, s:n, s:n, s:i, s:f, s:f, s:s, s:b, s:b, s:b, s:b, s:b, s:o, s:o, s:o}", "peft_type", "LORA", "task_type",
                     "base_model_name_or_path", "r", (int)m[best]->rank, "lora_alpha",
                     m[best]->has_alpha ? m[best]->alpha : (double)m[best]->rank, "lora_dropout", 0.0, "bias", "none",
                     "fan_in_fan_out", 0, "inference_mode", 1, "init_lora_weights", 1, "use_rslora", 0, "use_dora", 0,
                     "rank_pattern", ranks, "alpha_pattern", alphas, "target_modules", targets);
}

static int write_adapter(const char *folder, const struct lora_out *const *m, size_t n, const struct lora_write_options *o,
                         struct lora_write_report *report, struct err *err)
{
    json_t *config = peft_config(m, n);
    char *text = config ? json_dumps(config, JSON_INDENT(2) | JSON_SORT_KEYS | JSON_REAL_PRECISION(17)) : NULL;
    struct arena arena = {NULL, 0};
    const char *weights = arena_printf(&arena, err, "%s/adapter_model.safetensors", folder);
    const char *file = arena_printf(&arena, err, "%s/adapter_config.json", folder);
    int rc = -1;

    if (!text)
        err_memory(err, 0, "a config");
    else if (weights && file && write_one(weights, m, n, o, report, err) == 0)
        rc = output_text(file, text, err);
    json_decref(config);
    free(text);
    arena_free(&arena);
    return rc;
}

static int write_adapters(const char *path, const struct lora_out *const *m, size_t n, const struct lora_write_options *o,
                          struct lora_write_report *report, struct err *err)
{
    struct arena arena = {NULL, 0};
    size_t unet = 0;
    int rc = -1;

    while (unet < n && m[unet]->part == MODEL_UNET)
        unet++;
    if (unet == 0 || unet == n) {
        rc = write_adapter(path, m, n, o, report, err);
    } else {
        const char *u = arena_printf(&arena, err, "%s/unet", path), *t = arena_printf(&arena, err, "%s/text_encoder", path);

        if (u && t && write_adapter(u, m, unet, o, report, err) == 0)
            rc = write_adapter(t, m + unet, n - unet, o, report, err);
    }
    arena_free(&arena);
    return rc;
}

static int write_peft(const char *path, const struct lora_out *const *m, size_t n, const struct lora_write_options *o,
                      struct lora_write_report *report, struct err *err)
{
    struct output_folder folder;
    struct stat st;

    if (stat(path, &st) == 0 && !S_ISDIR(st.st_mode))
        return err_set(err, "cannot write '%s': it is a file, and PEFT adapters are folders; give another name", path);
    if (output_folder_open(&folder, path, err) != 0)
        return -1;
    return write_adapters(folder.temp, m, n, o, report, err) != 0 ? output_folder_fail(&folder, err)
                                                                  : output_folder_commit(&folder, err);
}

/* ---- All ---- */

static int check(const char *path, const struct lora_out *m, const struct lora_write_options *o, struct err *err)
{
    size_t n;

    if ((m->part != MODEL_UNET && m->part != MODEL_TEXT_ENCODER) || m->rank == 0 || !dtype_is_float(m->dtype) || !isfinite(m->alpha) ||
        !mem_mul(m->out, m->rank, &n) || !mem_mul(m->in, m->kh * m->kw, &n) || !mem_mul(n, m->rank, &n))
        return err_set(err, "cannot write '%s': module '%s' has no rank, type or alpha; please report this", path, m->path);
    if (!m->conv && m->kh * m->kw != 1)
        return err_set(err, "cannot write '%s': module '%s' has a kernel but is no convolution; please report this", path, m->path);
    if (!dtype_is_float(o->dtype) || o->dtype == DT_F64)
        return err_usage(err, "a LoRA file cannot be of type %s; give float, fp16 or bf16", dtype_name(o->dtype));
    return 0;
}

static int by_part_and_path(const void *a, const void *b)
{
    const struct lora_out *x = *(const struct lora_out *const *)a, *y = *(const struct lora_out *const *)b;

    return x->part != y->part ? (x->part < y->part ? -1 : 1) : strcmp(x->path, y->path);
}

/* Brings modules, sorted by part and path, into cloneofsimo's order. */
static int reorder(const char *path, const struct lora_out **m, size_t n, struct err *err)
{
    const struct lora_out **by_order = mem_zero(n, sizeof *by_order, "a list of modules", err);
    size_t unet = 0;
    int rc = by_order ? 0 : -1;

    while (unet < n && m[unet]->part == MODEL_UNET)
        unet++;
    for (size_t i = 0; rc == 0 && i < n; i++) {
        enum model_part part = i < unet ? MODEL_UNET : MODEL_TEXT_ENCODER;
        size_t from = i < unet ? 0 : unet, count = i < unet ? unet : n - unet;
        char name[NAMES_MAX];
        struct lora_out key = {.part = part, .path = name};
        const struct lora_out *k = &key, **found = NULL;

        if (lora_order_path(part, count, i - from, true, name))
            found = bsearch(&k, m + from, count, sizeof *m, by_part_and_path);
        if (!found)
            rc = err_set(err, "cannot write '%s': the cloneofsimo layout has no names, so it holds exactly the layers that its trainer "
                              "reaches (attention and ff.net.0.proj), and the %s has others; choose another layout", path,
                         names_part(part));
        else
            by_order[i] = *found;
    }
    if (rc == 0)
        memcpy(m, by_order, n * sizeof *m);
    free(by_order);
    return rc;
}

int lora_file_write(const char *path, const struct lora_out *modules, size_t n, const struct lora_write_options *o,
                    struct lora_write_report *report, struct err *err)
{
    struct lora_write_report unused;
    const struct lora_out **m = mem_zero(n, sizeof *m, "a list of modules", err);
    int rc = m ? 0 : -1;

    report = report ? report : &unused;
    *report = (struct lora_write_report){0};
    if (rc == 0 && n == 0)
        rc = err_set(err, "cannot write '%s': there are no modules to write", path);
    for (size_t i = 0; rc == 0 && i < n; i++) {
        m[i] = &modules[i];
        rc = check(path, m[i], o, err);
    }
    if (rc == 0)
        qsort(m, n, sizeof *m, by_part_and_path);
    for (size_t i = 1; rc == 0 && i < n; i++)
        if (by_part_and_path(&m[i - 1], &m[i]) == 0)
            rc = err_set(err, "cannot write '%s': there are two modules '%s'; please report this", path, m[i]->path);
    if (rc == 0 && o->layout == LORA_CLONEOFSIMO)
        rc = reorder(path, m, n, err);
    if (rc == 0 && o->layout != LORA_KOHYA && o->layout != LORA_PEFT && tensor_format_of_suffix(path) != &format_safetensors)
        rc = err_usage(err, "cannot write '%s': a LoRA in %s layout is a .safetensors file; change the ending", path,
                       lora_layout_name(o->layout));
    if (rc == 0)
        rc = o->layout == LORA_PEFT ? write_peft(path, m, n, o, report, err) : write_one(path, m, n, o, report, err);
    free(m);
    return rc;
}
