/* Diffusers folders: which files hold the weights, and what their configs say. */
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "formats/model_inside.h"

static const char *path_of(struct model *m, const char *folder, const char *name, struct err *err)
{
    return arena_printf(&m->arena, err, "%s%s%s", folder, folder[0] && folder[strlen(folder) - 1] == '/' ? "" : "/", name);
}

static bool exists(const char *path)
{
    return path && access(path, F_OK) == 0;
}

/* A JSON object from a file, or NULL with err filled. */
static json_t *read_json(const char *path, struct err *err)
{
    json_error_t why;
    json_t *j = json_load_file(path, JSON_REJECT_DUPLICATES, &why);

    if (!j || !json_is_object(j)) {
        err_set(err, "cannot read '%s': %s; get it again", path, j ? "it is not a JSON object" : why.text);
        json_decref(j);
        return NULL;
    }
    return j;
}

/* Opens the shards that an index file lists, each once. */
static int add_shards(struct model *m, const char *folder, const char *index, enum model_part part, struct err *err)
{
    json_t *j = read_json(index, err), *map = j ? json_object_get(j, "weight_map") : NULL, *value;
    size_t first = m->file_count;
    const char *key;
    int rc = -1;

    if (!j)
        return -1;
    if (!json_is_object(map)) {
        err_set(err, "cannot read '%s': it has no 'weight_map'; get it again", index);
        goto out;
    }
    json_object_foreach(map, key, value) {
        const char *name = json_string_value(value), *path;
        size_t f = first;

        if (!name || !name[0] || strchr(name, '/') || strchr(name, '\\')) {
            err_set(err, "cannot read '%s': '%s' stands in no file of its folder; get it again", index, key);
            goto out;
        }
        path = path_of(m, folder, name, err);
        while (path && f < m->file_count && strcmp(m->file[f]->path, path) != 0)
            f++;
        if (!path || (f == m->file_count && model_add_file(m, path, part, err) != 0))
            goto out;
        if (!tensor_file_find(m->file[f], key)) {
            err_set(err, "cannot read '%s': it lacks tensor '%s', which '%s' says it has; get it again", path, key, index);
            goto out;
        }
    }
    rc = 0;
out:
    json_decref(j);
    return rc;
}

/* Finds the weights of a part in its folder: safetensors before pickles, the plain variant before others. 1 when found, 0
 * when there are none. */
static int add_part(struct model *m, const char *folder, enum model_part part, struct err *err)
{
    static const char *const unet[] = {"diffusion_pytorch_model", NULL}, *const text[] = {"model", "pytorch_model", NULL};
    static const char *const types[] = {"safetensors", "bin"}, *const variants[] = {"", "fp16", "bf16", "fp32"};
    const char *const *bases = part == MODEL_TEXT_ENCODER ? text : unet;

    for (size_t t = 0; t < 2; t++)
        for (size_t v = 0; v < 4; v++)
            for (size_t b = 0; bases[b]; b++) {
                const char *dot = variants[v][0] ? "." : "", *file, *index;

                file = arena_printf(&m->arena, err, "%s/%s%s%s.%s", folder, bases[b], dot, variants[v], types[t]);
                index = arena_printf(&m->arena, err, "%s/%s.%s.index%s%s.json", folder, bases[b], types[t], dot, variants[v]);
                if (!file || !index)
                    return -1;
                if (exists(file))
                    return model_add_file(m, file, part, err) == 0 ? 1 : -1;
                if (exists(index))
                    return add_shards(m, folder, index, part, err) == 0 ? 1 : -1;
            }
    return 0;
}

/* What config.json of a U-Net or text encoder tells that the shapes do not. */
static int read_part_config(struct model *m, const char *folder, enum model_part part, struct err *err)
{
    const char *path = path_of(m, folder, "config.json", err);
    json_t *j, *heads;

    if (!path)
        return -1;
    if (!exists(path) || part == MODEL_VAE)
        return 0;
    j = read_json(path, err);
    if (!j)
        return -1;
    heads = json_object_get(j, "attention_head_dim");
    if (part == MODEL_UNET && json_is_integer(heads) && json_integer_value(heads) > 0 && json_integer_value(heads) < 10000)
        m->head_dim_hint = (int)json_integer_value(heads);
    if (part == MODEL_TEXT_ENCODER) {
        const char *act = json_string_value(json_object_get(j, "hidden_act"));

        m->arch = !act ? m->arch : strcmp(act, "gelu") == 0 ? MODEL_SD2 : strcmp(act, "quick_gelu") == 0 ? MODEL_SD1 : m->arch;
    }
    json_decref(j);
    return 0;
}

static int read_scheduler(struct model *m, struct err *err)
{
    const char *path = path_of(m, m->path, "scheduler/scheduler_config.json", err), *said;
    json_t *j;

    if (!path)
        return -1;
    if (!exists(path))
        return 0;
    j = read_json(path, err);
    if (!j)
        return -1;
    said = json_string_value(json_object_get(j, "prediction_type"));
    if (said) {
        m->prediction = strcmp(said, "v_prediction") == 0 ? MODEL_V
                        : strcmp(said, "epsilon") == 0    ? MODEL_EPSILON
                                                          : MODEL_PREDICTION_UNKNOWN;
        m->prediction_from = m->prediction ? "scheduler/scheduler_config.json" : NULL;
    }
    json_decref(j);
    return 0;
}

/* The part that a lone folder with a config.json holds, MODEL_OTHER for none. */
static int part_of_config(const char *path, enum model_part *out, struct err *err)
{
    json_t *j = read_json(path, err);
    const char *class;

    if (!j)
        return -1;
    class = json_string_value(json_object_get(j, "_class_name"));
    if (!class)
        class = json_string_value(json_array_get(json_object_get(j, "architectures"), 0));
    *out = !class                                        ? MODEL_OTHER
           : strcmp(class, "UNet2DConditionModel") == 0  ? MODEL_UNET
           : strcmp(class, "AutoencoderKL") == 0         ? MODEL_VAE
           : strncmp(class, "CLIPText", 8) == 0          ? MODEL_TEXT_ENCODER
                                                         : MODEL_OTHER;
    json_decref(j);
    return 0;
}

static int refuse_folder(struct model *m, struct err *err)
{
    static const struct {
        const char *has, *is;
    } others[] = {
        {"adapter_config.json", "a LoRA (PEFT folder); give the checkpoint that it belongs to"},
        {"unet/adapter_config.json", "a LoRA (PEFT folder); give the checkpoint that it belongs to"},
        {"text_encoder/adapter_config.json", "a LoRA (PEFT folder); give the checkpoint that it belongs to"},
        {"text_encoder_2", "an SDXL or newer model; give a Stable Diffusion 1.x or 2.x model"},
        {"transformer", "a transformer model (Stable Diffusion 3, Flux or the like); give a Stable Diffusion 1.x or 2.x model"},
        {"prior", "a model with a prior (Kandinsky, unCLIP or the like); give a Stable Diffusion 1.x or 2.x model"},
    };

    for (size_t i = 0; i < sizeof others / sizeof others[0]; i++) {
        const char *path = path_of(m, m->path, others[i].has, err);

        if (!path)
            return -1;
        if (exists(path))
            return err_set(err, "cannot use folder '%s' as a model: it is %s", m->path, others[i].is);
    }
    return 0;
}

int model_open_folder(struct model *m, struct err *err)
{
    static const struct {
        const char *folder;
        enum model_part part;
    } parts[] = {{"unet", MODEL_UNET}, {"text_encoder", MODEL_TEXT_ENCODER}, {"vae", MODEL_VAE}};
    const char *config = path_of(m, m->path, "config.json", err);
    enum model_part alone = MODEL_OTHER;

    if (!config || refuse_folder(m, err) != 0)
        return -1;
    for (size_t i = 0; i < 3; i++) {
        const char *folder = path_of(m, m->path, parts[i].folder, err);
        int got = folder && exists(folder) ? add_part(m, folder, parts[i].part, err) : folder ? 2 : -1;

        if (got == 0)
            return err_set(err, "cannot read folder '%s': there are no weights in it (diffusion_pytorch_model.safetensors, "
                                "model.safetensors, .bin or an index of shards); get it again", folder);
        if (got < 0 || (got == 1 && read_part_config(m, folder, parts[i].part, err) != 0))
            return -1;
    }
    if (m->file_count == 0 && exists(config)) {
        if (part_of_config(config, &alone, err) != 0)
            return -1;
        if (alone != MODEL_OTHER &&
            (add_part(m, m->path, alone, err) < 0 || read_part_config(m, m->path, alone, err) != 0))
            return -1;
    }
    if (m->file_count == 0)
        return err_set(err, "cannot use folder '%s' as a model: it has no unet/, text_encoder/ or vae/ with weights; give a diffusers "
                            "model folder or a checkpoint file", m->path);
    return read_scheduler(m, err);
}
