/* Opening a data set: options, then folders and files, then buckets. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cmd/train/dataset_inside.h"
#include "formats/prompt.h"

/* ---- Options */

int dataset_parse_resolution(const char *text, size_t *width, size_t *height, struct err *err)
{
    unsigned long w = 0, h = 0;
    char rest;

    if (sscanf(text, "%lu%c", &w, &rest) == 1)
        h = w;
    else if (sscanf(text, "%lu,%lu%c", &w, &h, &rest) != 2)
        return err_usage(err, "--resolution '%s' is neither a size nor width,height; give 512 or 512,768", text);
    if (strchr(text, '-') || w < 8 || h < 8 || w > 16384 || h > 16384)
        return err_usage(err, "--resolution '%s' is out of range; sides are 8 .. 16384, as in 512,768", text);
    *width = w;
    *height = h;
    return 0;
}

int dataset_parse_range(const char *text, double range[2], struct err *err)
{
    char rest;

    if (sscanf(text, "%lf,%lf%c", &range[0], &range[1], &rest) == 2 && range[0] >= 1 && range[0] <= range[1] &&
        range[1] <= 1000)
        return 0;
    return err_usage(err, "--face_crop_aug_range '%s' is no pair low,high with 1 <= low <= high; give 2.0,4.0", text);
}

static int copy_strings(struct dataset *d, struct err *err)
{
    const char **text[] = {&d->o.train_data_dir,        &d->o.reg_data_dir,        &d->o.in_json,
                           &d->o.dataset_config,        &d->o.resolution,          &d->o.caption_extension,
                           &d->o.caption_prefix,        &d->o.caption_suffix,      &d->o.caption_separator,
                           &d->o.keep_tokens_separator, &d->o.secondary_separator, &d->o.face_crop_aug_range,
                           &d->o.conditioning_data_dir};

    for (size_t i = 0; i < sizeof text / sizeof text[0]; i++)
        if (*text[i] && !(*text[i] = arena_str(&d->arena, *text[i], err)))
            return -1;
    return 0;
}

static int group_of_options(const struct dataset_options *o, struct group *g, struct err *err)
{
    *g = (struct group){.buckets = o->enable_bucket,
                        .no_upscale = o->bucket_no_upscale,
                        .min = o->min_bucket_reso,
                        .max = o->max_bucket_reso,
                        .steps = o->bucket_reso_steps,
                        .batch = o->train_batch_size,
                        .prior_weight = o->prior_loss_weight,
                        .validation_split = o->validation_split,
                        .validation_seed = o->validation_seed};
    return o->resolution ? dataset_parse_resolution(o->resolution, &g->width, &g->height, err) : 0;
}

static int subset_of_options(const struct dataset_options *o, struct subset *s, struct err *err)
{
    *s = (struct subset){.extension = o->caption_extension,
                         .repeats = o->dataset_repeats,
                         .shuffle = o->shuffle_caption,
                         .wildcard = o->enable_wildcard,
                         .keep = o->keep_tokens,
                         .warmup_min = o->token_warmup_min,
                         .warmup_step = o->token_warmup_step,
                         .dropout_epochs = o->caption_dropout_every_n_epochs,
                         .dropout = o->caption_dropout_rate,
                         .tag_dropout = o->caption_tag_dropout_rate,
                         .separator = o->caption_separator,
                         .keep_separator = o->keep_tokens_separator,
                         .second_separator = o->secondary_separator,
                         .prefix = o->caption_prefix,
                         .suffix = o->caption_suffix,
                         .color = o->color_aug,
                         .flip = o->flip_aug,
                         .random_crop = o->random_crop,
                         .mask_dir = o->conditioning_data_dir,
                         .alpha_mask = o->alpha_mask};
    return o->face_crop_aug_range ? dataset_parse_range(o->face_crop_aug_range, s->face, err) : 0;
}

int dataset_add_group(struct dataset *d, const struct group *g, struct err *err)
{
    if (mem_grow(&d->group, &d->group_cap, d->groups, sizeof *d->group, "data sets", err))
        return -1;
    d->group[d->groups++] = *g;
    return 0;
}

int dataset_add_subset(struct dataset *d, const struct subset *s, struct err *err)
{
    struct subset *new;

    if (mem_grow(&d->subset, &d->subset_cap, d->subsets, sizeof *d->subset, "folders", err))
        return -1;
    new = &d->subset[d->subsets++];
    *new = *s;
    if (strchr(s->extension, '.')) /* "_en.txt" is meant as it stands, "txt" is not */
        return 0;
    new->extension = arena_printf(&d->arena, err, ".%s", s->extension);
    return new->extension ? 0 : -1;
}

static int check_given(const struct dataset *d, struct err *err)
{
    const struct dataset_options *o = &d->o;

    if (o->dataset_config && (o->train_data_dir || o->reg_data_dir || o->in_json))
        return err_usage(
            err,
            "--dataset_config '%s' says where the pictures are; leave --train_data_dir, --reg_data_dir and --in_json "
            "out, or the other way round",
            o->dataset_config);
    if (!o->dataset_config && !o->train_data_dir)
        return err_usage(err, "no pictures given; name their folder with --train_data_dir, or use --dataset_config");
    if (o->in_json && o->reg_data_dir)
        return err_usage(err, "--reg_data_dir has no meaning with --in_json; leave one of them out");
    if (o->caption_separator && !*o->caption_separator)
        return err_usage(err, "--caption_separator is empty; leave it out for ','");
    return 0;
}

/* What cannot go together, in any subset. */
static int check_subsets(const struct dataset *d, struct err *err)
{
    bool cached = d->o.cache_latents || d->o.cache_latents_to_disk;
    const char *idle = NULL;
    bool masks = false;

    for (size_t i = 0; i < d->subsets; i++) {
        const struct subset *s = &d->subset[i];

        if (cached && s->color)
            return err_usage(
                err, "--color_aug changes the pictures each time, --cache_latents encodes them once; leave one of them out");
        if (s->mask_dir && !d->o.masked_loss)
            return err_usage(err, "the pictures of --conditioning_data_dir '%s' are for --masked_loss; give that, too", s->mask_dir);
        masks |= s->alpha_mask || (s->mask_dir && !s->reg);
        if (cached && (s->random_crop || s->face[1] > 0))
            idle = s->random_crop ? "random_crop" : "face_crop_aug_range";
    }
    for (size_t i = 0; i < d->subsets; i++)
        if (!cached && d->subset[i].face[1] > 0 && d->group[d->subset[i].group].buckets) {
            command_warn(d->setup.run, "--face_crop_aug_range does nothing where there are buckets: leave --enable_bucket out");
            break;
        }
    if (d->o.masked_loss && !masks)
        return err_usage(err, "--masked_loss has no masks; give --alpha_mask or --conditioning_data_dir DIR");
    if (idle)
        command_warn(d->setup.run, "--%s does nothing with cached latents: each picture is cut once, in the middle", idle);
    return 0;
}

/* ---- Pictures */

static int scan(struct dataset *d, struct err *err)
{
    struct group g;
    struct subset s;

    if (group_of_options(&d->o, &g, err) || subset_of_options(&d->o, &s, err))
        return -1;
    if (d->o.dataset_config) {
        if (dataset_read_config(d, &g, &s, err))
            return -1;
    } else if (dataset_add_group(d, &g, err)) {
        return -1;
    } else if (d->o.in_json) {
        s.metadata = d->o.in_json;
        s.dir = d->o.train_data_dir;
        s.name = dataset_last_part(d, s.metadata, err);
        if (!s.name || dataset_add_subset(d, &s, err))
            return -1;
    } else if (dataset_scan_train(d, &s, err)) {
        return -1;
    }
    if (check_subsets(d, err))
        return -1;
    for (size_t i = 0; i < d->subsets; i++)
        if (d->subset[i].metadata ? dataset_scan_metadata(d, i, err) : dataset_scan_subset(d, i, err))
            return -1;
    return 0;
}

/* Latents from files serve only where all pictures have them or the others get them from a cache: a batch is of one kind. */
static int settle_mixed(struct dataset *d, struct err *err)
{
    size_t have = 0, kept = 0;

    for (size_t i = 0; i < d->pictures; i++)
        have += d->picture[i].npz != NULL;
    if (have == 0 || have == d->pictures || d->o.cache_latents || d->o.cache_latents_to_disk)
        return 0;
    command_note(d->setup.run, "%zu of %zu pictures have .npz latents, which are not used: with --cache_latents they would be",
                 have, d->pictures);
    for (size_t i = 0; i < d->pictures; i++) {
        struct sample_picture *p = &d->picture[i];

        p->npz = p->npz_flipped = NULL;
        if (p->path)
            d->picture[kept++] = *p;
        else if (dataset_find(d, FINDING_MISSING, p->key, NULL, err))
            return -1;
    }
    d->pictures = kept;
    return 0;
}

static int make_sizes(struct dataset *d, struct err *err)
{
    for (size_t i = 0; i < d->groups; i++) {
        struct group *g = &d->group[i];

        if (g->sizes)
            continue;
        if (!g->width)
            return err_usage(err, "--resolution is needed: the size to train at, as in --resolution 512 or 512,768");
        if (dataset_group_sizes(d, g, err))
            return -1;
    }
    return dataset_assign_sizes(d, err);
}

/* Regularisation pictures are repeated until there are as many as samples to learn: first each as its folder says, then one
 * more of each in turn. Those left when there are enough are not used. */
static int balance(struct dataset *d, size_t group, struct err *err)
{
    size_t want = 0, have = 0, kept = 0, reg = 0;
    bool first = true;

    for (size_t i = 0; i < d->pictures; i++) {
        const struct subset *s = &d->subset[d->picture[i].subset];

        want += s->group == group && !s->reg ? d->picture[i].repeats : 0;
        reg += s->group == group && s->reg;
    }
    if (!reg || !want)
        return 0;
    for (size_t i = 0; i < d->pictures; i++) { /* the first time round */
        struct sample_picture *p = &d->picture[i];
        const struct subset *s = &d->subset[p->subset];

        if (s->group == group && s->reg) {
            if (have >= want) {
                if (dataset_find(d, FINDING_REG_UNUSED, p->key, NULL, err))
                    return -1;
                continue;
            }
            have += p->repeats;
        }
        d->picture[kept++] = *p;
    }
    d->pictures = kept;
    for (; have < want || first; first = false)
        for (size_t i = 0; i < d->pictures && have < want; i++) {
            const struct subset *s = &d->subset[d->picture[i].subset];

            if (s->group == group && s->reg) {
                d->picture[i].repeats++;
                have++;
            }
        }
    return 0;
}

/* ---- Validation */

/* Marks the pictures of one subset that are held back: held [d->pictures]. */
static int hold_back(struct dataset *d, size_t subset, bool *held, struct err *err)
{
    const struct subset *s = &d->subset[subset];
    const struct group *g = &d->group[s->group];
    struct draw draw = draw_begin(g->validation_seed, DRAW_VALIDATION, 0, subset, 0);
    uint32_t *mine = mem_zero(d->pictures, sizeof *mine, "a list of pictures", err);
    size_t n = 0, take;

    if (!mine)
        return -1;
    for (size_t i = 0; i < d->pictures; i++)
        if (d->picture[i].subset == subset)
            mine[n++] = (uint32_t)i;
    draw_shuffle(&draw, mine, n, sizeof *mine);
    take = s->reg ? 0 : (size_t)nearbyint((double)n * g->validation_split);
    for (size_t i = 0; i < take; i++)
        held[mine[i]] = true;
    free(mine);
    return 0;
}

static int split_validation(struct dataset *d, struct err *err)
{
    bool *held = mem_zero(d->pictures + 1, sizeof *held, "a list of pictures", err);
    struct dataset *v = held ? mem_zero(1, sizeof *v, "validation data", err) : NULL;
    size_t kept = 0;
    int rc = v ? 0 : -1;

    for (size_t i = 0; i < d->subsets && !rc; i++)
        rc = hold_back(d, i, held, err);
    if (!rc) {
        *v = (struct dataset){.o = d->o,
                              .setup = d->setup,
                              .group = d->group,
                              .groups = d->groups,
                              .subset = d->subset,
                              .subsets = d->subsets,
                              .plain = true,
                              .order_epoch = SIZE_MAX};
        for (size_t i = 0; i < d->pictures && !rc; i++)
            if (!held[i])
                d->picture[kept++] = d->picture[i];
            else {
                d->picture[i].repeats = 1;
                rc = dataset_add_picture(v, &d->picture[i], err);
            }
        d->pictures = kept;
    }
    free(held);
    if (rc || !v->pictures) {
        if (v)
            free(v->picture);
        free(v);
        return rc;
    }
    d->validation = v;
    return dataset_make_buckets(v, err);
}

/* ---- Findings that need everything */

static int look_at_sizes(struct dataset *d, struct err *err)
{
    for (size_t i = 0; i < d->pictures; i++) {
        const struct sample_picture *p = &d->picture[i];
        const char *detail;

        if (2 * p->size[0] >= p->fit[0] && 2 * p->size[1] >= p->fit[1])
            continue;
        detail = arena_printf(&d->arena, err, "%zu x %zu, enlarged to cover %zu x %zu", p->size[0], p->size[1], p->fit[0],
                              p->fit[1]);
        if (!detail || dataset_find(d, FINDING_TINY, p->key, detail, err))
            return -1;
    }
    return 0;
}

/* *count: tokens of a caption. Brackets that cannot be understood are told now, not in the first step that needs them. */
static int count_tokens(const struct dataset *d, struct tokenizer *t, size_t picture, size_t *count, struct err *err)
{
    char *text = dataset_plain_caption(d, picture, err);
    struct token_list ids = {0};
    struct prompt_tokens weighted = {0};
    int rc = -1;

    if (text && d->setup.weighted) {
        rc = prompt_tokenize(&weighted, t, text, strlen(text), SIZE_MAX - 1, err);
        *count = weighted.count;
        if (rc)
            err_prefix(err, "the caption of '%s' cannot be used with --weighted_captions: ", d->picture[picture].key);
        else
            prompt_tokens_free(&weighted);
    } else if (text) {
        rc = tokenizer_encode(t, text, strlen(text), &ids, err);
        *count = ids.count;
    }
    free(ids.id);
    free(text);
    return rc;
}

static int look_at_tokens(struct dataset *d, struct err *err)
{
    struct tokenizer *t = NULL;
    int rc = tokenizer_open(&t, err);

    for (size_t i = 0; i < d->pictures && !rc; i++) {
        const char *detail;
        size_t count;

        rc = count_tokens(d, t, i, &count, err);
        if (rc || count <= d->setup.max_tokens)
            continue;
        detail = arena_printf(&d->arena, err, "%zu tokens, %zu are read%s", count, d->setup.max_tokens,
                              d->setup.max_tokens < 225 ? "; see --max_token_length" : "");
        rc = !detail || dataset_find(d, FINDING_CAPTION_LONG, d->picture[i].key, detail, err) ? -1 : 0;
    }
    tokenizer_close(t);
    return rc;
}

/* ---- */

static int nothing_left(const struct dataset *d, struct err *err)
{
    const struct finding *f = NULL;

    for (size_t i = 0; i < d->findings && !f; i++)
        if (d->finding[i].kind <= FINDING_LATENTS_BAD)
            f = &d->finding[i];
    if (f)
        return err_set(err, "no picture can be used; the first is '%s': %s", f->name, f->detail ? f->detail : "not found");
    return err_set(err, "no pictures in '%s'; put .png, .jpg, .webp or .bmp files there",
                   d->subsets ? (d->subset[0].dir ? d->subset[0].dir : d->subset[0].metadata) : d->o.dataset_config);
}

static bool any_to_learn(const struct dataset *d)
{
    for (size_t i = 0; i < d->pictures; i++)
        if (!d->subset[d->picture[i].subset].reg)
            return true;
    return false;
}

static bool any_split(const struct dataset *d)
{
    for (size_t i = 0; i < d->groups; i++)
        if (d->group[i].validation_split > 0)
            return true;
    return false;
}

static int fill(struct dataset *d, struct err *err)
{
    if (copy_strings(d, err) || check_given(d, err) || scan(d, err) || dataset_read_sizes(d, err) || dataset_find_masks(d, err) || settle_mixed(d, err) ||
        make_sizes(d, err))
        return -1;
    if (!any_to_learn(d))
        return nothing_left(d, err);
    if (look_at_sizes(d, err) || look_at_tokens(d, err))
        return -1;
    if (any_split(d) && split_validation(d, err))
        return -1;
    if (any_split(d) && !d->validation)
        command_warn(d->setup.run, "--validation_split takes less than half a picture of each folder, so that there are none");
    for (size_t i = 0; i < d->groups; i++)
        if (balance(d, i, err))
            return -1;
    for (size_t i = 0; i < d->pictures; i++)
        d->subset[d->picture[i].subset].pictures++;
    d->has_masks = dataset_has_masks(d);
    if (d->validation)
        d->validation->has_masks = d->has_masks;
    return any_to_learn(d) ? dataset_make_buckets(d, err)
                           : err_usage(err, "--validation_split leaves nothing to train on; make it smaller");
}

int dataset_open(struct dataset **out, const struct dataset_options *o, const struct dataset_setup *setup, struct err *err)
{
    struct dataset *d = mem_zero(1, sizeof *d, "the training data", err);

    *out = NULL;
    if (!d)
        return -1;
    d->o = *o;
    d->setup = *setup;
    d->order_epoch = SIZE_MAX;
    if (fill(d, err)) {
        dataset_close(d);
        return -1;
    }
    *out = d;
    return 0;
}

static int fill_from_folder(struct dataset *d, const char *dir, const struct group *g, bool flip, struct err *err)
{
    struct subset s = {.repeats = 1, .extension = ".caption", .separator = ",", .words = "", .flip = flip};

    s.dir = arena_str(&d->arena, dir, err);
    s.name = s.dir ? dataset_last_part(d, dir, err) : NULL;
    if (!s.name || dataset_add_group(d, g, err) || dataset_add_subset(d, &s, err) || dataset_group_sizes(d, d->group, err) ||
        dataset_scan_subset(d, 0, err) || dataset_read_sizes(d, err) || dataset_assign_sizes(d, err))
        return -1;
    return d->pictures ? dataset_make_buckets(d, err) : nothing_left(d, err);
}

int dataset_open_folder(struct dataset **out, const char *dir, const struct group *g, bool flip, bool skip_bad,
                        const struct dataset_setup *setup, struct err *err)
{
    struct dataset *d = mem_zero(1, sizeof *d, "pictures", err);

    *out = NULL;
    if (!d)
        return -1;
    d->o.skip_bad_pictures = skip_bad;
    d->setup = *setup;
    d->order_epoch = SIZE_MAX;
    if (fill_from_folder(d, dir, g, flip, err)) {
        dataset_close(d);
        return -1;
    }
    *out = d;
    return 0;
}

static void free_own(struct dataset *d)
{
    for (size_t i = 0; i < d->pictures; i++) {
        free(d->picture[i].latents);
        free(d->picture[i].latents_flipped);
        free(d->picture[i].mask);
    }
    free(d->picture);
    free(d->slot);
    free(d->place);
    free(d->caption);
    arena_free(&d->arena);
}

void dataset_close(struct dataset *d)
{
    if (!d)
        return;
    if (d->validation)
        free_own(d->validation);
    free(d->validation);
    free_own(d);
    free(d->group);
    free(d->subset);
    free(d->finding);
    free(d);
}

struct dataset *dataset_validation(struct dataset *d)
{
    return d->validation;
}

/* ---- What is in it */

static size_t count_samples(const struct dataset *d, bool reg)
{
    size_t n = 0;

    for (size_t i = 0; i < d->pictures; i++)
        n += d->subset[d->picture[i].subset].reg == reg ? d->picture[i].repeats : 0;
    return n;
}

size_t dataset_train_samples(const struct dataset *d)
{
    return count_samples(d, false);
}

size_t dataset_reg_samples(const struct dataset *d)
{
    return count_samples(d, true);
}

size_t dataset_pictures(const struct dataset *d)
{
    return d->pictures;
}

size_t dataset_buckets(const struct dataset *d, const struct dataset_bucket **bucket)
{
    *bucket = d->shown;
    return d->buckets;
}

size_t dataset_max_batch(const struct dataset *d)
{
    size_t most = 0;

    for (size_t i = 0; i < d->buckets; i++)
        most = d->shown[i].batch > most ? d->shown[i].batch : most;
    return most;
}

const char *dataset_picture_name(const struct dataset *d, size_t picture)
{
    return d->picture[picture].key;
}

bool dataset_has_latents(const struct dataset *d)
{
    return d->has_latents;
}

bool dataset_fixed_captions(const struct dataset *d)
{
    for (size_t i = 0; i < d->subsets; i++) {
        const struct subset *s = &d->subset[i];

        if (s->shuffle || s->wildcard || s->dropout > 0 || s->dropout_epochs || s->tag_dropout > 0 || s->warmup_step > 0)
            return false;
    }
    return true;
}
