/* lora info: what a file is, from its header; with --norms and --hash also from its data. */
#include "cmd/info.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "cmd/command.h"
#include "formats/hash.h"
#include "ref/base/thread.h"

static bool exists_in(const char *folder, const char *name)
{
    char path[4096];
    struct stat st;

    return (size_t)snprintf(path, sizeof path, "%s/%s", folder, name) < sizeof path && stat(path, &st) == 0;
}

static int open_folder(struct info_subject *s, const char *path, struct err *err)
{
    if (exists_in(path, "adapter_config.json") || exists_in(path, "unet/adapter_config.json") ||
        exists_in(path, "text_encoder/adapter_config.json"))
        return lora_file_open(&s->lora, path, err);
    return model_open(&s->model, path, err);
}

/* Above this size a file is a checkpoint far more often than a LoRA. */
#define LIKELY_CHECKPOINT (512u << 20)

/* What a file of tensors is. The guess by size only saves reading a long header twice. */
static int open_file(struct info_subject *s, const char *path, bool guess_model, struct err *err)
{
    struct err reason = {0};
    int rc;

    if (guess_model && model_open(&s->model, path, &reason) == 0)
        return 0;
    if (tensor_file_open(&s->plain, path, err))
        return -1;
    rc = lora_file_claims(s->plain) ? lora_file_open(&s->lora, path, &reason) : model_open(&s->model, path, &reason);
    if (rc)
        snprintf(s->why, sizeof s->why, "%s", reason.msg);
    return 0;
}

int info_open(struct info_subject *s, const char *path, struct err *err)
{
    struct stat st;
    bool known;

    *s = (struct info_subject){.path = path};
    known = stat(path, &st) == 0;
    if (known && S_ISDIR(st.st_mode) ? open_folder(s, path, err)
                                     : open_file(s, path, known && st.st_size > (off_t)LIKELY_CHECKPOINT, err))
        return -1;
    s->files = s->lora ? s->lora->file : s->model ? s->model->file : &s->plain;
    s->n_files = s->lora ? s->lora->file_count : s->model ? s->model->file_count : 1;
    return 0;
}

void info_close(struct info_subject *s)
{
    lora_file_close(s->lora);
    model_close(s->model);
    tensor_file_close(s->plain);
    *s = (struct info_subject){0};
}

static void set(json_t *o, const char *key, json_t *value)
{
    json_object_set_new(o, key, value);
}

static void set_size(json_t *o, const char *key, uint64_t n)
{
    set(o, key, json_integer((json_int_t)n));
}

/* Strings of files are UTF-8 by contract; a path need not be. */
static json_t *text_or_bytes(const char *s)
{
    json_t *j = json_string(s);
    char *clean;

    if (j || !(clean = strdup(s)))
        return j;
    for (char *c = clean; *c; c++)
        if ((unsigned char)*c >= 0x80)
            *c = '?';
    j = json_string(clean);
    free(clean);
    return j;
}

static void add_files(json_t *o, const struct info_subject *s)
{
    size_t count[DT_COUNT] = {0}, tensors = 0;
    uint64_t bytes = 0;
    json_t *dtypes = json_object();

    for (size_t f = 0; f < s->n_files; f++) {
        bytes += s->files[f]->file_size;
        tensors += s->files[f]->count;
        for (size_t i = 0; i < s->files[f]->count; i++)
            count[s->files[f]->entries[i].dtype]++;
    }
    for (int t = 0; t < DT_COUNT; t++)
        if (count[t])
            set_size(dtypes, dtype_name((enum dtype)t), count[t]);
    set(o, "format", json_string(s->files[0]->format->name));
    set_size(o, "files", s->n_files);
    set_size(o, "bytes", bytes);
    set_size(o, "tensors", tensors);
    set(o, "dtypes", dtypes);
}

static json_t *model_to_json(const struct model *m)
{
    static const char *const arch[] = {NULL, "sd1", "sd2"}, *const prediction[] = {NULL, "epsilon", "v"};
    json_t *o = json_object(), *parts = json_array();

    if (arch[m->arch])
        set(o, "architecture", json_string(arch[m->arch]));
    set(o, "layout", json_string(m->layout == MODEL_LDM ? "ldm" : "diffusers"));
    if (prediction[m->prediction]) {
        set(o, "prediction", json_string(prediction[m->prediction]));
        if (m->prediction_from)
            set(o, "prediction_from", text_or_bytes(m->prediction_from));
    }
    for (int p = 0; p < MODEL_PARTS; p++) {
        uint64_t bytes = 0, values = 0;
        json_t *part;

        for (size_t i = m->part_first[p]; i < m->part_first[p + 1]; i++) {
            bytes += m->tensor[i].nbytes;
            values += m->tensor[i].nbytes / dtype_size(m->tensor[i].dtype);
        }
        if (m->part_first[p] == m->part_first[p + 1])
            continue;
        part = json_object();
        set(part, "part", json_string(names_part((enum model_part)p)));
        set_size(part, "tensors", m->part_first[p + 1] - m->part_first[p]);
        set_size(part, "parameters", values);
        set_size(part, "bytes", bytes);
        if (p != MODEL_OTHER)
            set(part, "complete", json_boolean(m->whole[p]));
        json_array_append_new(parts, part);
    }
    set(o, "parts", parts);
    if (m->in_channels)
        set_size(o, "in_channels", m->in_channels);
    if (m->context_width)
        set_size(o, "context_width", m->context_width);
    if (m->text_layers)
        set_size(o, "text_layers", m->text_layers);
    set(o, "ema", json_boolean(m->ema));
    return o;
}

/* "ranks": [{"rank", "alpha", "modules"}] in order of first appearance, so that mixed files show what they mix. */
static json_t *ranks_to_json(const struct lora_file *l)
{
    json_t *list = json_array(), *row;
    size_t k;

    for (size_t i = 0; i < l->count; i++) {
        const struct lora_module *m = &l->module[i];
        bool found = false;

        json_array_foreach(list, k, row)
        {
            if ((size_t)json_integer_value(json_object_get(row, "rank")) == m->rank &&
                json_real_value(json_object_get(row, "alpha")) == m->alpha &&
                json_is_true(json_object_get(row, "alpha_in_file")) == m->has_alpha) {
                json_object_set_new(row, "modules", json_integer(json_integer_value(json_object_get(row, "modules")) + 1));
                found = true;
            }
        }
        if (!found) {
            row = json_object();
            set_size(row, "rank", m->rank);
            set(row, "alpha", json_real(m->alpha));
            set(row, "alpha_in_file", json_boolean(m->has_alpha));
            set_size(row, "modules", 1);
            json_array_append_new(list, row);
        }
    }
    return list;
}

static json_t *lora_to_json(const struct lora_file *l)
{
    json_t *o = json_object(), *unknown = json_array();
    size_t convs = 0;

    for (size_t i = 0; i < l->count; i++)
        convs += l->module[i].kh > 1 || l->module[i].kw > 1;
    for (size_t i = 0; i < l->unknown_count; i++)
        json_array_append_new(unknown, text_or_bytes(l->unknown[i]));
    set(o, "layout", json_string(lora_layout_name(l->layout)));
    if (l->context_width || l->text_width)
        set(o, "architecture", json_string(l->sd2 ? "sd2" : "sd1"));
    set_size(o, "modules", l->count);
    set_size(o, "unet_modules", l->part_count[MODEL_UNET]);
    set_size(o, "text_encoder_modules", l->part_count[MODEL_TEXT_ENCODER]);
    set_size(o, "convolutions", convs);
    set(o, "ranks", ranks_to_json(l));
    set(o, "unknown_modules", unknown);
    return o;
}

static json_t *keys_to_json(const struct info_subject *s)
{
    json_t *list = json_array();

    for (size_t f = 0; f < s->n_files; f++)
        for (size_t i = 0; i < s->files[f]->count; i++) {
            const struct tensor_entry *e = &s->files[f]->entries[i];
            json_t *row = json_object(), *shape = json_array();

            for (int d = 0; d < e->shape.ndim; d++)
                json_array_append_new(shape, json_integer((json_int_t)e->shape.dim[d]));
            set(row, "name", text_or_bytes(e->name));
            set(row, "dtype", json_string(dtype_name(e->dtype)));
            set(row, "shape", shape);
            json_array_append_new(list, row);
        }
    return list;
}

struct hash_job {
    const struct tensor_file *file;
    char whole[SHA256_TEXT], data[SHA256_TEXT];
};

static int hash_piece(void *ctx, size_t index, struct err *err)
{
    struct hash_job *job = ctx;

    return index == 0 ? hash_file(job->file->path, job->whole, err) : hash_behind_header(job->file, job->data, err);
}

/* Hashes of a single file; of a folder they mean nothing. */
static int add_hashes(json_t *o, const struct info_subject *s, bool all, struct err *err)
{
    struct hash_job job = {.file = s->files[0]};
    bool safetensors = strcmp(s->files[0]->format->name, "safetensors") == 0;
    const char *said = tensor_file_metadata(s->files[0], "sshs_model_hash");
    const char *said_legacy = tensor_file_metadata(s->files[0], "sshs_legacy_hash");
    char legacy[HASH_LEGACY_TEXT];
    json_t *h;

    if (s->n_files != 1 || strcmp(s->files[0]->path, s->path) != 0)
        return 0;
    if (hash_legacy(s->path, legacy, err) || (all && thread_for(safetensors ? 2 : 1, hash_piece, &job, err)))
        return -1;
    h = json_pack("{s:s}", "legacy", legacy);
    if (said_legacy) {
        int known = hash_legacy_lora(s->files[0], legacy, err);

        if (known < 0) {
            json_decref(h);
            return -1;
        }
        if (known)
            set(h, "sshs_legacy_hash_checked", json_boolean(strcmp(said_legacy, legacy) == 0));
    }
    if (all)
        set(h, "sha256", json_string(job.whole));
    if (all && safetensors) {
        set(h, "sshs_model_hash", json_string(job.data));
        if (said)
            set(h, "sshs_model_hash_checked", json_boolean(strcmp(said, job.data) == 0));
    }
    set(o, "hashes", h);
    return 0;
}

json_t *info_to_json(const struct info_subject *s, const struct info_options *o, struct err *err)
{
    json_t *info = json_object(), *metadata = json_object();
    char kind[256];

    set(info, "path", text_or_bytes(s->path));
    if (s->lora)
        lora_kind_text(s->lora, kind, sizeof kind);
    else if (s->model)
        model_kind_text(s->model, kind, sizeof kind);
    else
        snprintf(kind, sizeof kind, "tensors");
    set(info, "kind", text_or_bytes(kind));
    if (s->why[0])
        set(info, "not_supported", text_or_bytes(s->why));
    if (s->n_files)
        add_files(info, s);
    if (s->model)
        set(info, "model", model_to_json(s->model));
    if (s->lora)
        set(info, "lora", lora_to_json(s->lora));
    for (size_t i = 0; s->n_files && i < s->files[0]->metadata_count; i++)
        set(metadata, s->files[0]->metadata[i].key, text_or_bytes(s->files[0]->metadata[i].value));
    set(info, "metadata", metadata);
    if (o->keys)
        set(info, "keys", keys_to_json(s));
    if (s->n_files && add_hashes(info, s, o->hash, err))
        goto bad;
    if (o->norms) {
        json_t *norms = info_norms(s, err);

        if (!norms)
            goto bad;
        set(info, "norms", norms);
    }
    return info;
bad:
    json_decref(info);
    return NULL;
}

static int one_file(const struct command_run *r, const struct info_options *o, size_t i, json_t *all, char wrong[512],
                    struct err *err)
{
    struct info_subject s;
    json_t *info;

    if (info_open(&s, o->files.item[i], err)) {
        info_close(&s);
        return -1;
    }
    info = info_to_json(&s, o, err);
    info_close(&s);
    if (!info)
        return -1;
    if (json_is_false(json_object_get(json_object_get(info, "hashes"), "sshs_model_hash_checked")))
        snprintf(wrong, 512, "%.400s", o->files.item[i]);
    if (!r->json) {
        if (json_array_size(all) > 0)
            putchar('\n');
        info_print(info, o, stdout);
    }
    return json_array_append_new(all, info) ? err_memory(err, 0, "the list of files") : 0;
}

/* The first failure goes to main(), which says it last; later ones are said at once. */
static void keep_first(const struct command_run *r, struct err *err, size_t *failed, const struct err *one)
{
    if ((*failed)++ == 0)
        *err = *one;
    else
        command_warn(r, "%s", one->msg);
}

static int run(const struct command_run *r, void *options, struct err *err)
{
    const struct info_options *o = options;
    json_t *all;
    struct err one = {0};
    size_t failed = 0;
    char wrong[512] = "";

    if (o->tokens)
        return info_tokens(o->tokens, stdin, err);
    if (o->files.count == 0)
        return err_usage(err, "'lora info' needs a FILE; see 'lora info --help'");
    all = json_array();
    for (size_t i = 0; i < o->files.count; i++)
        if (one_file(r, o, i, all, wrong, &one))
            keep_first(r, err, &failed, &one);
    if (!r->json || (failed && failed == o->files.count))
        json_decref(all);
    else if (command_print_json(all, &one))
        keep_first(r, err, &failed, &one);
    if (wrong[0]) {
        err_set(&one,
                "'%s': sshs_model_hash in the metadata is not the hash of the data; the tensors were changed after it was "
                "written, or the file is damaged: compare it with its source",
                wrong);
        keep_first(r, err, &failed, &one);
    }
    return failed ? -1 : 0;
}

static const struct option_row rows[] = {
    {OPTION(struct info_options, files), .arg = "FILE", .flags = OPTION_POSITIONAL,
     .help = "checkpoints, LoRA files, diffusers or PEFT folders"},
    {OPTION(struct info_options, keys), .help = "list every tensor: type, shape, name"},
    {OPTION(struct info_options, norms),
     .help = "chart how large the weights (of a LoRA: its changes) are, by block; reads the data"},
    {OPTION(struct info_options, hash), .help = "SHA-256 hashes, checked against the metadata; reads the file"},
    {OPTION(struct info_options, metadata), .help = "all metadata, uncut"},
    {OPTION(struct info_options, tokens), .arg = "TEXT",
     .help = "print CLIP's token ids of a text, begin and end marker included, as a JSON list, and stop; with -, of each line "
             "of standard input"},
    {0},
};

static const struct command_example examples[] = {
    {"what is this file? (milliseconds, also for 4 GB: only the header is read)", "lora info model.safetensors"},
    {"which blocks does a LoRA change most?", "lora info style.safetensors --norms"},
    {"is it what its metadata says it is?", "lora info style.safetensors --hash"},
    {"for scripts", "lora info *.safetensors --json"},
    {0},
};

const struct command command_info = {
    .name = "info",
    .summary = "say what a file is: kind, layout, ranks, norms, metadata, hashes",
    .description = "Works on every file the other commands read, and names what they do not. Without --norms and --hash only "
                   "headers are read. A file that cannot be read does not stop the rest.",
    .options = rows,
    .options_size = sizeof(struct info_options),
    .examples = examples,
    .exit_notes = "With --hash, 1 also means that a hash in the metadata does not fit the data.",
    .run = run,
};
