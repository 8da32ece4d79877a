/* Alphas that do not stand beside the factors: PEFT's adapter_config.json, and the same words in diffusers' headers. */
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "formats/lora_inside.h"

/* PEFT: a pattern's key is a regular expression that matches the end of a module's path, from a dot on. 1, 0 or -1. */
static int pattern_fits(const char *key, const char *path, const char *from, struct err *err)
{
    char regex[2 * NAMES_MAX];
    pcre2_code *code;
    pcre2_match_data *data;
    int why, rc = -1;
    PCRE2_SIZE at;

    if (snprintf(regex, sizeof regex, "^(.*\\.)?(%s)$", key) >= (int)sizeof regex)
        return err_set(err, "cannot read '%s': the pattern '%.60s...' is too long", from, key);
    code = pcre2_compile((PCRE2_SPTR)regex, PCRE2_ZERO_TERMINATED, 0, &why, &at, NULL);
    data = code ? pcre2_match_data_create_from_pattern(code, NULL) : NULL;
    if (!code)
        err_set(err, "cannot read '%s': '%s' is no valid pattern for modules; correct it", from, key);
    else if (!data)
        err_memory(err, 0, "a pattern");
    else
        rc = pcre2_match(code, (PCRE2_SPTR)path, strlen(path), 0, 0, data, NULL) >= 0;
    pcre2_match_data_free(data);
    pcre2_code_free(code);
    return rc;
}

static const json_t *get(const json_t *j, const char *prefix, const char *key)
{
    char name[64];

    snprintf(name, sizeof name, "%s%s", prefix, key);
    return json_object_get(j, name);
}

/* alpha of one module: the first pattern that fits, else lora_alpha, else rank. */
static int alpha_of(const json_t *j, const char *prefix, struct lora_module *m, const char *from, struct err *err)
{
    const json_t *patterns = get(j, prefix, "alpha_pattern"), *alpha = get(j, prefix, "lora_alpha"), *value;
    const char *key;

    json_object_foreach((json_t *)patterns, key, value) {
        int fits = pattern_fits(key, m->path, from, err);

        if (fits < 0)
            return -1;
        if (fits) {
            alpha = value;
            break;
        }
    }
    if (!json_is_number(alpha))
        return 0;
    m->alpha = json_number_value(alpha);
    if (!isfinite(m->alpha))
        return err_set(err, "cannot read '%s': alpha of '%s' is not a finite number; correct it", from, m->path);
    if (json_is_true(get(j, prefix, "use_rslora"))) /* its scale is alpha / sqrt(rank) */
        m->alpha *= sqrt((double)m->rank);
    m->has_alpha = true;
    return 0;
}

static int check_kind(const json_t *j, const char *prefix, const char *from, struct err *err)
{
    const char *kind = json_string_value(get(j, prefix, "peft_type")), *bias = json_string_value(get(j, prefix, "bias"));

    if (kind && strcmp(kind, "LORA") != 0)
        return err_set(err, "cannot read '%s': it is of PEFT's kind '%s', not a LoRA; give a LoRA", from, kind);
    if (json_is_true(get(j, prefix, "use_dora")))
        return err_set(err, "cannot read '%s': it is a DoRA; DoRA is not supported, give a plain LoRA", from);
    if ((bias && strcmp(bias, "none") != 0) || json_is_true(get(j, prefix, "lora_bias")))
        return err_set(err, "cannot read '%s': it trains biases too; they are not supported, give a LoRA with bias 'none'", from);
    return 0;
}

static int from_json(struct lora_file *f, enum model_part part, const char *text, const char *prefix, const char *from,
                     struct err *err)
{
    json_error_t why;
    json_t *j = json_loads(text, 0, &why);
    int rc = 0;

    if (!j || !json_is_object(j))
        rc = err_set(err, "cannot read '%s': %s; get it again", from, j ? "it is not a JSON object" : why.text);
    if (rc == 0)
        rc = check_kind(j, prefix, from, err);
    for (size_t i = 0; rc == 0 && i < f->count; i++)
        if (f->module[i].part == part && !f->module[i].has_alpha)
            rc = alpha_of(j, prefix, &f->module[i], from, err);
    json_decref(j);
    return rc;
}

int lora_alpha_from_config(struct lora_file *f, enum model_part part, const char *json, const char *from, struct err *err)
{
    return from_json(f, part, json, "", from, err);
}

int lora_alpha_from_header(struct lora_file *f, struct err *err)
{
    const char *text = NULL;

    for (size_t i = 0; i < f->metadata_count; i++)
        if (strcmp(f->metadata[i].key, "lora_adapter_metadata") == 0)
            text = f->metadata[i].value;
    if (!text)
        return 0;
    return from_json(f, MODEL_UNET, text, "unet.", f->path, err) == 0 &&
                   from_json(f, MODEL_TEXT_ENCODER, text, "text_encoder.", f->path, err) == 0
               ? 0
               : -1;
}

/* ---- PEFT's folders ---- */

static char *read_text(struct lora_file *f, const char *path, struct err *err)
{
    enum { MOST = 1 << 22 };
    FILE *in = fopen(path, "rb");
    char *text = in ? mem_new(MOST + 1, "a config", err) : NULL, *kept = NULL;
    size_t n;

    if (!in)
        err_set(err, "cannot read '%s'; check its permissions", path);
    if (text) {
        n = fread(text, 1, MOST + 1, in);
        if (n > MOST || ferror(in)) {
            err_set(err, "cannot read '%s': %s", path, n > MOST ? "it is too large for a config; get it again" : "the disk failed");
        } else {
            text[n] = 0;
            kept = arena_str(&f->arena, text, err);
        }
    }
    free(text);
    if (in)
        fclose(in);
    return kept;
}

/* 1 when the folder holds an adapter, 0 when not, -1. */
static int open_adapter(struct lora_file *f, const char *folder, const char **config, struct err *err)
{
    static const char *const weights[] = {"adapter_model.safetensors", "adapter_model.bin"};
    const char *json = arena_printf(&f->arena, err, "%s/adapter_config.json", folder);

    if (!json)
        return -1;
    for (size_t i = 0; i < 2; i++) {
        const char *path = arena_printf(&f->arena, err, "%s/%s", folder, weights[i]);

        if (!path)
            return -1;
        if (access(path, F_OK) != 0)
            continue;
        if (tensor_file_open(&f->file[f->file_count], path, err) != 0)
            return -1;
        f->file_count++;
        *config = NULL;
        if (access(json, F_OK) == 0 && !(*config = read_text(f, json, err)))
            return -1;
        return 1;
    }
    return 0;
}

int lora_open_folder(struct lora_file *f, const char *configs[2], enum model_part part_of[2], struct err *err)
{
    static const char *const names[] = {"unet", "text_encoder"};
    static const enum model_part parts[] = {MODEL_UNET, MODEL_TEXT_ENCODER};
    int got = open_adapter(f, f->path, &configs[0], err);

    part_of[0] = MODEL_OTHER;
    for (size_t i = 0; got == 0 && i < 2; i++) {
        const char *folder = arena_printf(&f->arena, err, "%s/%s", f->path, names[i]);
        size_t k = f->file_count;

        part_of[k] = parts[i];
        if (!folder || open_adapter(f, folder, &configs[k], err) < 0)
            return -1;
    }
    if (got < 0)
        return -1;
    if (f->file_count == 0)
        return err_set(err, "cannot use folder '%s' as a LoRA: it has no adapter_model.safetensors, nor have unet/ and "
                            "text_encoder/ in it; give a LoRA file or a PEFT folder", f->path);
    return 0;
}
