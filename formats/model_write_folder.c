/* Writing a diffusers folder: a folder a part, configs, scheduler, tokenizer. */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "formats/diffusers.h"
#include "formats/model_write_inside.h"
#include "formats/output_folder.h"
#include "formats/tokenizer.h"

static const struct {
    enum model_part part;
    const char *folder, *base, *bin_base;
} parts[] = {
    {MODEL_UNET, "unet", "diffusion_pytorch_model", "diffusion_pytorch_model"},
    {MODEL_TEXT_ENCODER, "text_encoder", "model", "pytorch_model"},
    {MODEL_VAE, "vae", "diffusion_pytorch_model", "diffusion_pytorch_model"},
};

static int write_json(struct model_job *j, json_t *json, const char *folder, const char *name, struct err *err)
{
    char *text = json ? json_dumps(json, JSON_INDENT(2) | JSON_SORT_KEYS | JSON_REAL_PRECISION(12)) : NULL;
    const char *path = arena_printf(&j->arena, err, "%s/%s", folder, name);
    int rc = -1;

    if (!text)
        err_memory(err, 0, "a config");
    else if (path)
        rc = output_text(path, text, err);
    json_decref(json);
    free(text);
    return rc;
}

/* Copies a small file. 1 when done, 0 when there is none, -1. */
static int copy_file(struct model_job *j, const char *from_folder, const char *to_folder, const char *name, struct err *err)
{
    enum { MOST = 1 << 26 };
    const char *from = arena_printf(&j->arena, err, "%s/%s", from_folder, name);
    const char *to = arena_printf(&j->arena, err, "%s/%s", to_folder, name);
    FILE *in = from && to ? fopen(from, "rb") : NULL;
    char *data = NULL;
    size_t n;
    int rc = -1;

    if (!from || !to)
        return -1;
    if (!in)
        return 0;
    data = mem_new(MOST, "a config", err);
    if (!data)
        goto out;
    n = fread(data, 1, MOST, in);
    if (n == MOST || ferror(in))
        err_set(err, "cannot copy '%s': %s", from, n == MOST ? "it is too large for such a file" : "it cannot be read");
    else if (output_bytes(to, data, n, err) == 0)
        rc = 1;
out:
    free(data);
    fclose(in);
    return rc;
}

/* Where the source model's own folder is, or NULL. */
static const char *source_folder(const struct model_job *j)
{
    return j->o->tokenizer_from ? j->o->tokenizer_from : j->m->folder ? j->m->path : NULL;
}

/* All files of tokenizer/, as they are; without them our own, when the text encoder knows CLIP's tokens. */
static int copy_tokenizer(struct model_job *j, const char *path, struct err *err)
{
    const char *from = source_folder(j), *to = arena_printf(&j->arena, err, "%s/tokenizer", path);
    const struct model_tensor *embedding;
    struct dirent *e;
    DIR *d;
    int rc = 0;

    from = from ? arena_printf(&j->arena, err, "%s/tokenizer", from) : NULL;
    if (!to || (source_folder(j) && !from))
        return -1;
    d = from ? opendir(from) : NULL;
    while (d && rc >= 0 && (e = readdir(d)))
        if (e->d_name[0] != '.') {
            rc = copy_file(j, from, to, e->d_name, err);
            j->report->tokenizer = j->report->tokenizer || rc == 1;
        }
    if (d)
        closedir(d);
    if (rc < 0 || j->report->tokenizer)
        return rc < 0 ? -1 : 0;
    embedding = model_find(j->m, MODEL_TEXT_ENCODER, "text_model.embeddings.token_embedding.weight");
    if (!embedding || embedding->shape.dim[0] != TOKEN_COUNT)
        return 0;
    j->report->tokenizer = true;
    return tokenizer_write(to, j->m->arch == MODEL_SD2, err);
}

/* Dimensions of proj_in and proj_out in the folder: a folder's own config goes with its own shapes. */
static int proj_dims(const struct model *m)
{
    for (size_t i = m->part_first[MODEL_UNET]; i < m->part_first[MODEL_UNET + 1]; i++)
        if (strstr(m->tensor[i].name, ".proj_in.weight"))
            return m->folder ? m->tensor[i].shape.ndim : m->arch == MODEL_SD2 ? 2 : m->tensor[i].shape.ndim;
    return 4;
}

static int write_part(struct model_job *j, const char *path, size_t k, struct err *err)
{
    const struct model *m = j->m;
    enum model_part part = parts[k].part;
    size_t n = m->part_first[part + 1] - m->part_first[part];
    struct model_piece *p = mem_zero(n, sizeof *p, "a list of tensors", err);
    const struct metadata_item pt = {"format", "pt"};
    const char *folder = arena_printf(&j->arena, err, "%s/%s", path, parts[k].folder), *file, *own = NULL;
    int rc = -1, copied = 0;

    file = folder ? arena_printf(&j->arena, err, "%s/%s.%s", folder, j->o->bin ? parts[k].bin_base : parts[k].base,
                                 j->o->bin ? "bin" : "safetensors") : NULL;
    own = m->folder ? arena_printf(&j->arena, err, "%s/%s", m->path, parts[k].folder) : NULL;
    if (!p || !file || (m->folder && !own))
        goto out;
    for (size_t i = 0; i < n; i++) {
        const struct model_tensor *t = &m->tensor[m->part_first[part] + i];

        p[i] = (struct model_piece){.from = {t}, .count = 1, .name = t->name, .shape = t->shape};
        if (part == MODEL_UNET && strstr(t->name, ".attentions.") &&
            (strstr(t->name, ".proj_in.weight") || strstr(t->name, ".proj_out.weight")))
            p[i].shape = model_write_reshape(t->shape, proj_dims(m));
    }
    if (model_write_pieces(j, file, p, n, &pt, 1, err) != 0)
        goto out;
    if (own)
        copied = copy_file(j, own, folder, "config.json", err);
    if (copied >= 0)
        rc = copied ? 0 : write_json(j, diffusers_config(m, part, proj_dims(m)), folder, "config.json", err);
out:
    free(p);
    return rc;
}

static int write_scheduler(struct model_job *j, const char *path, struct err *err)
{
    enum model_prediction p = j->o->prediction ? j->o->prediction : j->m->prediction;
    const char *folder = arena_printf(&j->arena, err, "%s/scheduler", path), *own;
    int copied = 0;

    if (!folder)
        return -1;
    if (j->m->folder && !j->o->prediction) {
        own = arena_printf(&j->arena, err, "%s/scheduler", j->m->path);
        copied = own ? copy_file(j, own, folder, "scheduler_config.json", err) : -1;
    }
    if (copied != 0)
        return copied > 0 ? 0 : -1;
    j->report->guessed_prediction = p == MODEL_PREDICTION_UNKNOWN && j->m->arch == MODEL_SD2 && j->m->has[MODEL_UNET];
    return write_json(j, diffusers_scheduler(j->m->arch, p), folder, "scheduler_config.json", err);
}

static int write_all(struct model_job *j, const char *path, struct err *err)
{
    const struct model *m = j->m;

    for (size_t i = 0; i < m->part_first[MODEL_OTHER]; i++)
        j->total += m->tensor[i].nbytes;
    for (size_t k = 0; k < sizeof parts / sizeof parts[0]; k++)
        if (m->has[parts[k].part] && write_part(j, path, k, err) != 0)
            return -1;
    j->report->left_out = m->count - m->part_first[MODEL_OTHER];
    if (copy_tokenizer(j, path, err) != 0 || write_scheduler(j, path, err) != 0)
        return -1;
    return write_json(j, diffusers_index(m, j->report->tokenizer), path, "model_index.json", err);
}

int model_write_folder(struct model_job *j, const char *path, struct err *err)
{
    struct output_folder folder;
    struct stat st;

    if (access(path, F_OK) == 0 && j->m->folder && output_same_file(path, j->m->path))
        return err_usage(err, "cannot write '%s': it is the folder that is read; give another one", path);
    if (stat(path, &st) == 0 && !S_ISDIR(st.st_mode))
        return err_set(err, "cannot write '%s': it is a file, and diffusers models are folders; give another name", path);
    if (output_folder_open(&folder, path, err) != 0)
        return -1;
    return write_all(j, folder.temp, err) != 0 ? output_folder_fail(&folder, err) : output_folder_commit(&folder, err);
}
