/* What a LoRA's header tells about its training data (ss_*), and the table for people. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cmd/train/dataset_inside.h"
#include "formats/picture_info.h"

/* All values are texts, as Python's str() makes them. */
static int set(json_t *meta, const char *key, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

static int set(json_t *meta, const char *key, const char *fmt, ...)
{
    char text[256];
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    return json_object_set_new(meta, key, json_string(text));
}

static int set_bool(json_t *meta, const char *key, bool v)
{
    return set(meta, key, "%s", v ? "True" : "False");
}

/* Takes the reference. */
static int set_json(json_t *meta, const char *key, json_t *value)
{
    char *text = value ? json_dumps(value, JSON_ENSURE_ASCII) : NULL;
    int rc = text ? json_object_set_new(meta, key, json_string(text)) : -1;

    free(text);
    json_decref(value);
    return rc;
}

/* ---- Folders, tags, buckets; each a new reference, or NULL without memory */

static json_t *dirs_of(const struct dataset *d, size_t group, bool reg)
{
    json_t *all = json_object();

    for (size_t i = 0; i < d->subsets && all; i++) {
        const struct subset *s = &d->subset[i];

        if ((group == SIZE_MAX || s->group == group) && s->reg == reg && s->pictures)
            json_object_set_new(
                all, s->name,
                json_pack("{s:I, s:I}", "n_repeats", (json_int_t)s->repeats, "img_count", (json_int_t)s->pictures));
    }
    return all;
}

/* Counts the comma-separated parts of a caption, in small ASCII letters. */
static int count_tags(json_t *frequency, const char *caption)
{
    while (*caption) {
        size_t n = strcspn(caption, ","), from = strspn(caption, " \t\n"), to = n;
        char *tag;

        while (to > from && strchr(" \t\n", caption[to - 1]))
            to--;
        if (from < to) {
            tag = strndup(caption + from, to - from);
            if (!tag)
                return -1;
            for (char *c = tag; *c; c++)
                *c = *c >= 'A' && *c <= 'Z' ? (char)(*c + 32) : *c;
            if (json_object_set_new(frequency, tag, json_integer(json_integer_value(json_object_get(frequency, tag)) + 1))) {
                free(tag);
                return -1;
            }
            free(tag);
        }
        caption += n + (caption[n] == ',');
    }
    return 0;
}

static json_t *tags_of(const struct dataset *d, size_t group)
{
    json_t *all = json_object();

    for (size_t i = 0; i < d->pictures && all; i++) {
        const struct subset *s = &d->subset[d->picture[i].subset];
        json_t *one;

        if (group != SIZE_MAX && s->group != group)
            continue;
        if (!json_object_get(all, s->name))
            json_object_set_new(all, s->name, json_object());
        one = json_object_get(all, s->name);
        if (!one || count_tags(one, d->picture[i].caption)) {
            json_decref(all);
            return NULL;
        }
    }
    return all;
}

static json_t *buckets_of(const struct dataset *d, size_t group)
{
    json_t *buckets = json_object();

    for (size_t i = 0, n = 0; i < d->buckets && buckets; i++) {
        char name[24];

        if (group != SIZE_MAX && d->bucket[i].group != group)
            continue;
        snprintf(name, sizeof name, "%zu", n++);
        json_object_set_new(buckets, name,
                            json_pack("{s:[I, I], s:I}", "resolution", (json_int_t)d->shown[i].width,
                                      (json_int_t)d->shown[i].height, "count", (json_int_t)d->shown[i].samples));
    }
    return json_pack("{s:o, s:f}", "buckets", buckets, "mean_img_ar_error", d->mean_ar_error);
}

static json_t *subsets_of(const struct dataset *d, size_t group)
{
    json_t *all = json_array();

    for (size_t i = 0; i < d->subsets && all; i++) {
        const struct subset *s = &d->subset[i];

        if (s->group == group)
            json_array_append_new(
                all,
                json_pack("{s:s, s:I, s:I, s:b, s:s?, s:b, s:I, s:b, s:b, s:b, s:f, s:f, s:I, s:s?, s:s?}",
                          s->metadata ? "metadata_file" : "image_dir", s->name, "img_count", (json_int_t)s->pictures,
                          "num_repeats", (json_int_t)s->repeats, "is_reg", (int)s->reg, "class_tokens", s->words,
                          "shuffle_caption", (int)s->shuffle, "keep_tokens", (json_int_t)s->keep, "color_aug", (int)s->color,
                          "flip_aug", (int)s->flip, "random_crop", (int)s->random_crop, "caption_dropout_rate", s->dropout,
                          "caption_tag_dropout_rate", s->tag_dropout, "caption_dropout_every_n_epochs",
                          (json_int_t)s->dropout_epochs, "caption_prefix", s->prefix, "caption_suffix", s->suffix));
    }
    return all;
}

static json_t *datasets_of(const struct dataset *d)
{
    json_t *all = json_array();

    for (size_t i = 0; i < d->groups && all; i++) {
        const struct group *g = &d->group[i];
        json_int_t samples[2] = {0};

        for (size_t k = 0; k < d->pictures; k++)
            if (d->subset[d->picture[k].subset].group == i)
                samples[d->subset[d->picture[k].subset].reg] += (json_int_t)d->picture[k].repeats;
        json_array_append_new(
            all, json_pack("{s:I, s:I, s:I, s:[I, I], s:b, s:b, s:I, s:I, s:o, s:o, s:o}", "batch_size_per_device",
                           (json_int_t)g->batch, "num_train_images", samples[0], "num_reg_images", samples[1], "resolution",
                           (json_int_t)g->width, (json_int_t)g->height, "enable_bucket", (int)g->buckets, "bucket_no_upscale",
                           (int)g->no_upscale, "min_bucket_reso", (json_int_t)g->min, "max_bucket_reso", (json_int_t)g->max,
                           "tag_frequency", tags_of(d, i), "bucket_info", buckets_of(d, i), "subsets", subsets_of(d, i)));
    }
    return all;
}

/* ---- */

static int set_options(const struct dataset *d, json_t *meta)
{
    const struct group *g = &d->group[0];
    const struct subset *s = &d->subset[0];
    char a[32], b[32];
    int rc = 0;

    if (g->width)
        rc |= set(meta, "ss_resolution", "(%zu, %zu)", g->width, g->height);
    else
        rc |= set(meta, "ss_resolution", "None");
    if (s->face[1] > 0)
        rc |= set(meta, "ss_face_crop_aug_range", "(%s, %s)", picture_info_number(s->face[0], a),
                  picture_info_number(s->face[1], b));
    else
        rc |= set(meta, "ss_face_crop_aug_range", "None");
    rc |= set_bool(meta, "ss_color_aug", s->color) | set_bool(meta, "ss_flip_aug", s->flip);
    rc |= set_bool(meta, "ss_random_crop", s->random_crop) | set_bool(meta, "ss_shuffle_caption", s->shuffle);
    rc |= set_bool(meta, "ss_enable_bucket", g->buckets) | set_bool(meta, "ss_bucket_no_upscale", g->no_upscale);
    rc |= set(meta, "ss_min_bucket_reso", "%zu", g->min) | set(meta, "ss_max_bucket_reso", "%zu", g->max);
    rc |= set(meta, "ss_keep_tokens", "%zu", s->keep);
    rc |= set(meta, "ss_batch_size_per_device", "%zu", g->batch);
    rc |= set(meta, "ss_caption_dropout_rate", "%s", picture_info_number(s->dropout, a));
    rc |= set(meta, "ss_caption_tag_dropout_rate", "%s", picture_info_number(s->tag_dropout, a));
    rc |= set(meta, "ss_caption_dropout_every_n_epochs", "%zu", s->dropout_epochs);
    return rc;
}

int dataset_metadata(const struct dataset *d, json_t *meta, struct err *err)
{
    char a[32];
    int rc = set_options(d, meta);

    rc |= set_bool(meta, "ss_cache_latents", d->o.cache_latents || d->o.cache_latents_to_disk);
    rc |= set(meta, "ss_num_train_images", "%zu", dataset_train_samples(d));
    rc |= set(meta, "ss_num_reg_images", "%zu", dataset_reg_samples(d));
    rc |= set(meta, "ss_num_validation_images", "%zu", d->validation ? dataset_train_samples(d->validation) : 0);
    rc |= set(meta, "ss_num_batches_per_epoch", "%zu", dataset_batches(d));
    rc |= set(meta, "ss_prior_loss_weight", "%s", picture_info_number(d->group[0].prior_weight, a));
    rc |= set(meta, "ss_validation_split", "%s", picture_info_number(d->group[0].validation_split, a));
    rc |= set(meta, "ss_validation_seed", "%zu", d->group[0].validation_seed);
    rc |= set_json(meta, "ss_dataset_dirs", dirs_of(d, SIZE_MAX, false));
    rc |= set_json(meta, "ss_reg_dataset_dirs", dirs_of(d, SIZE_MAX, true));
    rc |= set_json(meta, "ss_tag_frequency", tags_of(d, SIZE_MAX));
    rc |= set_json(meta, "ss_bucket_info", buckets_of(d, SIZE_MAX));
    if (d->o.dataset_config)
        rc |= set_json(meta, "ss_datasets", datasets_of(d));
    return rc ? err_memory(err, 65536, "the metadata of the training data") : 0;
}

/* ---- The table for people */

static void print_table(const struct dataset *d, FILE *f)
{
    size_t width = 6;

    for (size_t i = 0; i < d->subsets; i++)
        width = strlen(d->subset[i].name) > width ? strlen(d->subset[i].name) : width;
    width = width > 40 ? 40 : width;
    for (size_t i = 0; i < d->subsets; i++) {
        const struct subset *s = &d->subset[i];
        size_t samples = 0;

        for (size_t k = 0; k < d->pictures; k++)
            samples += d->picture[k].subset == i ? d->picture[k].repeats : 0;
        fprintf(f, "%-*.*s  %5zu %-8s -> %6zu samples an epoch%s\n", (int)width, (int)width, s->name, s->pictures,
                s->pictures == 1 ? "picture" : "pictures", samples, s->reg ? ", regularisation" : "");
    }
    for (size_t i = 0; i < d->buckets; i++) {
        char size[48];

        snprintf(size, sizeof size, "%zu x %zu", d->shown[i].width, d->shown[i].height);
        fprintf(f, "%-*s  %6zu samples in batches of %zu\n", (int)width, size, d->shown[i].samples, d->shown[i].batch);
    }
    fprintf(f, "%zu batches an epoch%s", dataset_batches(d), d->validation ? "; held back for validation: " : "\n");
    if (d->validation)
        fprintf(f, "%zu pictures\n", d->validation->pictures);
}

char *dataset_table(const struct dataset *d, struct err *err)
{
    char *text = NULL;
    size_t n;
    FILE *f = open_memstream(&text, &n);

    if (f) {
        print_table(d, f);
        if (fclose(f) == 0)
            return text;
    }
    free(text);
    err_memory(err, 4096, "a table");
    return NULL;
}

void dataset_fingerprint(const struct dataset *d, char out[SHA256_TEXT])
{
    struct sha256 h;

    sha256_start(&h);
    for (size_t i = 0; i < d->pictures; i++) {
        const struct sample_picture *p = &d->picture[i];
        const char *slash = strrchr(p->key, '/'), *name = slash ? slash + 1 : p->key;
        char numbers[96];

        snprintf(numbers, sizeof numbers, " %zu %zu %zu %zu %zu", p->repeats, p->size[0], p->size[1], p->fit[0], p->fit[1]);
        sha256_add(&h, name, strlen(name) + 1);
        sha256_add(&h, p->caption, strlen(p->caption) + 1);
        sha256_add(&h, numbers, strlen(numbers) + 1);
    }
    sha256_text(&h, out);
}
