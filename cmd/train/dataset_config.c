/* --dataset_config: sd-scripts' description of data sets in TOML or JSON.
 *
 *     [general]              what holds for all
 *     [[datasets]]           pictures that share resolution and batches
 *     [[datasets.subsets]]   a folder (image_dir), or a metadata file (metadata_file)
 *
 * A key may stand in the narrowest place that knows it or in any wider one; the narrowest wins, the command line is the widest.
 */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cmd/train/dataset_inside.h"
#include "formats/toml.h"

enum type { FLAG, COUNT, NUMBER, TEXT, PAIR_OF_NUMBERS, RESOLUTION, ANYTHING };
enum place { GENERAL = 1, DATASET = 2, SUBSET = 4, ALL = 7, WIDE = 3 };

/* Keys, where they may stand, and the field of struct group or struct subset they set. */
static const struct row {
    const char *name;
    enum type type;
    unsigned places;
    bool of_group;
    size_t offset;
    double max;
} rows[] = {
#define G(name, type, field, max)                                                                                              \
    {                                                                                                                          \
        name, type, WIDE, true, offsetof(struct group, field), max                                                             \
    }
#define S(name, type, field, max)                                                                                              \
    {                                                                                                                          \
        name, type, ALL, false, offsetof(struct subset, field), max                                                            \
    }
#define ONE(name, type, field, max)                                                                                            \
    {                                                                                                                          \
        name, type, SUBSET, false, offsetof(struct subset, field), max                                                         \
    }
    G("resolution", RESOLUTION, width, 16384),
    G("batch_size", COUNT, batch, 1024),
    G("enable_bucket", FLAG, buckets, 0),
    G("bucket_no_upscale", FLAG, no_upscale, 0),
    G("min_bucket_reso", COUNT, min, 16384),
    G("max_bucket_reso", COUNT, max, 16384),
    G("bucket_reso_steps", COUNT, steps, 1024),
    G("validation_split", NUMBER, validation_split, 0.9),
    G("validation_seed", COUNT, validation_seed, 1e15),
    G("prior_loss_weight", NUMBER, prior_weight, 1000),
    S("num_repeats", COUNT, repeats, 1000000),
    S("shuffle_caption", FLAG, shuffle, 0),
    S("keep_tokens", COUNT, keep, 1000),
    S("keep_tokens_separator", TEXT, keep_separator, 0),
    S("secondary_separator", TEXT, second_separator, 0),
    S("caption_separator", TEXT, separator, 0),
    S("enable_wildcard", FLAG, wildcard, 0),
    S("caption_prefix", TEXT, prefix, 0),
    S("caption_suffix", TEXT, suffix, 0),
    S("token_warmup_min", COUNT, warmup_min, 1000),
    S("token_warmup_step", NUMBER, warmup_step, 1e9),
    S("caption_dropout_rate", NUMBER, dropout, 1),
    S("caption_dropout_every_n_epochs", COUNT, dropout_epochs, 1000000),
    S("caption_tag_dropout_rate", NUMBER, tag_dropout, 1),
    S("color_aug", FLAG, color, 0),
    S("flip_aug", FLAG, flip, 0),
    S("random_crop", FLAG, random_crop, 0),
    S("face_crop_aug_range", PAIR_OF_NUMBERS, face, 1000),
    S("caption_extension", TEXT, extension, 0),
    S("class_tokens", TEXT, words, 0),
    S("alpha_mask", FLAG, alpha_mask, 0),
    S("conditioning_data_dir", TEXT, mask_dir, 0),
    ONE("image_dir", TEXT, dir, 0),
    ONE("metadata_file", TEXT, metadata, 0),
    ONE("is_reg", FLAG, reg, 0),
    {"cache_info", ANYTHING, ALL, false, 0, 0}, /* headers are read in milliseconds: nothing to keep */
#undef G
#undef S
#undef ONE
};

static const char *const place_names[] = {
    [GENERAL] = "[general]", [DATASET] = "[[datasets]]", [SUBSET] = "[[datasets.subsets]]"};

struct reading {
    struct dataset *d;
    const char *path;
    struct err *err;
};

static int wrong(const struct reading *r, enum place at, const char *key, const char *what)
{
    return err_set(r->err, "cannot read '%s': '%s' in %s %s", r->path, key, place_names[at], what);
}

static int set_pair(const struct reading *r, enum place at, const struct row *row, const json_t *v, double pair[2])
{
    for (size_t i = 0; i < 2; i++) {
        const json_t *one = json_is_array(v) ? json_array_get(v, i) : v;

        if ((json_is_array(v) && json_array_size(v) != 2) || !json_is_number(one) || json_number_value(one) < 1 ||
            json_number_value(one) > row->max)
            return wrong(r, at, row->name,
                         row->type == RESOLUTION ? "has to be a number or [width, height]" : "has to be [low, high]");
        pair[i] = json_number_value(one);
    }
    return 0;
}

static int set_resolution(const struct reading *r, enum place at, const struct row *row, const json_t *v, struct group *g)
{
    double pair[2];

    if (json_is_string(v))
        return dataset_parse_resolution(json_string_value(v), &g->width, &g->height, r->err);
    if (set_pair(r, at, row, v, pair))
        return -1;
    g->width = (size_t)pair[0];
    g->height = (size_t)pair[1];
    return 0;
}

static int set_range(const struct reading *r, enum place at, const struct row *row, const json_t *v, double range[2])
{
    if (json_is_string(v))
        return dataset_parse_range(json_string_value(v), range, r->err);
    return !json_is_array(v) || set_pair(r, at, row, v, range) || range[0] > range[1]
               ? wrong(r, at, row->name, "has to be [low, high]")
               : 0;
}

static int set_value(const struct reading *r, enum place at, const struct row *row, const json_t *v, void *field)
{
    char what[96];

    switch (row->type) {
    case FLAG:
        if (!json_is_boolean(v))
            return wrong(r, at, row->name, "has to be true or false");
        *(bool *)field = json_is_true(v);
        return 0;
    case COUNT:
        snprintf(what, sizeof what, "has to be a whole number from 0 to %.0f", row->max);
        if (!json_is_integer(v) || json_integer_value(v) < 0 || (double)json_integer_value(v) > row->max)
            return wrong(r, at, row->name, what);
        *(size_t *)field = (size_t)json_integer_value(v);
        return 0;
    case NUMBER:
        snprintf(what, sizeof what, "has to be a number from 0 to %g", row->max);
        if (!json_is_number(v) || !(json_number_value(v) >= 0 && json_number_value(v) <= row->max))
            return wrong(r, at, row->name, what);
        *(double *)field = json_number_value(v);
        return 0;
    case TEXT:
        if (!json_is_string(v))
            return wrong(r, at, row->name, "has to be a text in quotes");
        *(const char **)field = arena_str(&r->d->arena, json_string_value(v), r->err);
        return *(const char **)field ? 0 : -1;
    case PAIR_OF_NUMBERS:
        return set_range(r, at, row, v, field);
    case ANYTHING:
        return 0;
    case RESOLUTION:
        return 0; /* its own function: it sets two fields */
    }
    return 0;
}

static int unknown_key(const struct reading *r, enum place at, const char *key)
{
    const char *words[sizeof rows / sizeof rows[0]], *near;
    size_t n = 0;

    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        if (!strcmp(rows[i].name, key))
            return wrong(r, at, key, at == SUBSET ? "belongs to [[datasets]] or [general]" : "belongs to [[datasets.subsets]]");
        if (rows[i].places & at)
            words[n++] = rows[i].name;
    }
    near = option_nearest(key, words, n);
    return err_set(r->err, "cannot read '%s': '%s' in %s is no key known here%s%s%s", r->path, key, place_names[at],
                   near ? "; did you mean '" : "; see 'lora train --help'", near ? near : "", near ? "'?" : "");
}

/* Sets what the object says; the keys `skip` hold what stands inside. */
static int apply(const struct reading *r, enum place at, json_t *object, const char *skip, struct group *g, struct subset *s)
{
    const char *key;
    json_t *v;

    if (!json_is_object(object))
        return err_set(r->err, "cannot read '%s': %s is no table", r->path, place_names[at]);
    json_object_foreach(object, key, v)
    {
        size_t i = 0;
        int rc;

        if (skip && !strcmp(key, skip))
            continue;
        while (i < sizeof rows / sizeof rows[0] && (strcmp(rows[i].name, key) != 0 || !(rows[i].places & at)))
            i++;
        if (i == sizeof rows / sizeof rows[0])
            return unknown_key(r, at, key);
        rc = rows[i].type == RESOLUTION
                 ? set_resolution(r, at, &rows[i], v, g)
                 : set_value(r, at, &rows[i], v, (char *)(rows[i].of_group ? (void *)g : (void *)s) + rows[i].offset);
        if (rc)
            return -1;
    }
    return 0;
}

static int add_subset(const struct reading *r, json_t *object, const struct subset *like)
{
    struct subset s = *like;
    struct group nobody;

    if (apply(r, SUBSET, object, NULL, &nobody, &s))
        return -1;
    if (!s.metadata && !s.dir)
        return err_set(r->err, "cannot read '%s': a [[datasets.subsets]] has neither 'image_dir' nor 'metadata_file'; add one",
                       r->path);
    if (s.metadata && s.reg)
        return err_set(r->err, "cannot read '%s': 'is_reg' has no meaning with 'metadata_file'", r->path);
    if (!s.separator || !*s.separator)
        return err_set(r->err, "cannot read '%s': 'caption_separator' is empty", r->path);
    s.name = dataset_last_part(r->d, s.dir ? s.dir : s.metadata, r->err);
    if (s.repeats == 0)
        return 0; /* switched off, as sd-scripts takes it */
    return s.name ? dataset_add_subset(r->d, &s, r->err) : -1;
}

static int add_dataset(const struct reading *r, json_t *object, const struct group *group, const struct subset *subset)
{
    struct group g = *group;
    struct subset s = *subset;
    json_t *subsets, *one;
    size_t i, from = r->d->subsets;

    if (apply(r, DATASET, object, "subsets", &g, &s))
        return -1;
    if (!g.batch || !g.steps)
        return err_set(r->err, "cannot read '%s': 'batch_size' and 'bucket_reso_steps' are at least 1", r->path);
    subsets = json_object_get(object, "subsets");
    if (json_array_size(subsets) == 0)
        return err_set(r->err, "cannot read '%s': a [[datasets]] has no [[datasets.subsets]]; add one with 'image_dir'",
                       r->path);
    s.group = r->d->groups;
    if (dataset_add_group(r->d, &g, r->err))
        return -1;
    json_array_foreach(subsets, i, one) if (add_subset(r, one, &s)) return -1;
    for (size_t k = from + 1; k < r->d->subsets; k++)
        if (!r->d->subset[k].metadata != !r->d->subset[from].metadata)
            return err_set(r->err,
                           "cannot read '%s': subsets with and without 'metadata_file' stand in one [[datasets]]; make two",
                           r->path);
    return 0;
}

static json_t *load(const char *path, struct err *err)
{
    enum { MOST = 1 << 20 }; /* bytes */
    size_t n = strlen(path), used;
    FILE *f;
    char *text;
    json_t *all = NULL;
    json_error_t e;

    if (n > 5 && !strcmp(path + n - 5, ".json")) {
        all = json_load_file(path, JSON_REJECT_DUPLICATES, &e);
        if (!all)
            err_set(err, "cannot read '%s': line %d: %s", path, e.line, e.text);
        return all;
    }
    f = fopen(path, "rb");
    text = mem_new(MOST + 1, "a data set description", err);
    if (f && text) {
        used = fread(text, 1, MOST + 1, f);
        if (used <= MOST)
            all = toml_parse(text, used, path, err);
        else
            err_set(err, "cannot read '%s': it has more than 1 MiB; is it a description of data sets?", path);
    } else if (!f) {
        err_set(err, "cannot read '%s': there is no such file, or no permission; check --dataset_config", path);
    }
    if (f)
        fclose(f);
    free(text);
    return all;
}

static int read_all(const struct reading *r, json_t *all, const struct group *group, const struct subset *subset)
{
    struct group g = *group;
    struct subset s = *subset;
    json_t *general = json_object_get(all, "general"), *datasets = json_object_get(all, "datasets"), *one;
    const char *key;
    size_t i;

    if (!json_is_object(all))
        return err_set(r->err, "cannot read '%s': it is no table", r->path);
    json_object_foreach(all, key, one) if (strcmp(key, "general") != 0 && strcmp(key, "datasets") != 0) return err_set(
        r->err, "cannot read '%s': '%s' stands outside of [general] and [[datasets]]; move it into one of them", r->path, key);
    if (general && apply(r, GENERAL, general, NULL, &g, &s))
        return -1;
    if (!json_is_array(datasets) || json_array_size(datasets) == 0)
        return err_set(r->err, "cannot read '%s': there is no [[datasets]] in it", r->path);
    json_array_foreach(datasets, i, one) if (add_dataset(r, one, &g, &s)) return -1;
    return 0;
}

int dataset_read_config(struct dataset *d, const struct group *group, const struct subset *subset, struct err *err)
{
    struct reading r = {d, d->o.dataset_config, err};
    json_t *all = load(r.path, err);
    int rc = all ? read_all(&r, all, group, subset) : -1;

    json_decref(all);
    return rc;
}
