/* What the files dataset_*.c share. */
#ifndef CMD_TRAIN_DATASET_INSIDE_H
#define CMD_TRAIN_DATASET_INSIDE_H

#include "cmd/train/dataset.h"
#include "cmd/train/dataset_draw.h"
#include "formats/picture.h"
#include "formats/tokenizer.h"

/* Pictures that share sizes and batches: a "dataset" of --dataset_config. */
struct group {
    size_t width, height; /* of --resolution; 0: none given */
    bool buckets, no_upscale;
    size_t min, max, steps; /* of buckets */
    size_t batch;
    double prior_weight, validation_split;
    size_t validation_seed;
    /* sizes that pictures are put into, sorted; without buckets one */
    size_t (*size)[2];
    size_t sizes;
};

/* A folder of pictures, or a metadata file, with options of its own. */
struct subset {
    const char *dir;      /* may be NULL with metadata */
    const char *metadata; /* NULL: DreamBooth */
    const char *name;     /* last part of dir or metadata */
    const char *words;    /* caption of pictures without a caption file; NULL: none */
    const char *extension;
    size_t group, repeats;
    bool reg;
    size_t pictures; /* that are used */
    bool shuffle, wildcard;
    size_t keep, warmup_min, dropout_epochs;
    const char *separator, *keep_separator, *second_separator, *prefix, *suffix;
    double warmup_step, dropout, tag_dropout;
    bool color, flip, random_crop;
    double face[2]; /* --face_crop_aug_range; 0: none */
    const char *mask_dir; /* --conditioning_data_dir */
    bool alpha_mask;
};

struct sample_picture {
    const char *key, *path; /* key: as people know it */
    const char *caption;    /* one line, or several with --enable_wildcard */
    size_t subset, repeats;
    size_t size[2]; /* upright, or train_resolution of the metadata */
    size_t bucket;  /* index into d->bucket */
    size_t fit[2];  /* width, height of the bucket */
    const char *npz, *npz_flipped;
    float *latents, *latents_flipped; /* [h / factor, w / factor, channels] */
    const char *mask_path;            /* a picture whose red is the loss's mask, or NULL */
    float *mask;                      /* [h / factor, w / factor] beside cached latents, or NULL */
};

/* Problems with the data; the rows in dataset_findings.c tell about each kind. */
enum finding_kind {
    FINDING_UNREADABLE,
    FINDING_MISSING,
    FINDING_CAPTION_BAD,
    FINDING_CAPTION_NONE,
    FINDING_MASK_BAD,
    FINDING_LATENTS_BAD,
    FINDING_CAPTION_EMPTY,
    FINDING_CAPTION_WORDS,
    FINDING_CAPTION_LONG,
    FINDING_TINY,
    FINDING_TURNED,
    FINDING_FOLDER,
    FINDING_LOOSE,
    FINDING_LATENTS_SOME,
    FINDING_REG_UNUSED,
    FINDING_PLAIN_FOLDER,
    FINDING_KINDS
};

struct finding {
    enum finding_kind kind;
    const char *name, *detail; /* detail may be NULL */
};

struct bucket {
    struct dataset_bucket shown; /* also in d->shown */
    size_t group;
    size_t first; /* of its samples in the epoch's order */
};

struct slot { /* a sample of an epoch */
    uint32_t picture, repeat;
};

struct batch_place {
    uint32_t bucket, first, n; /* first: in the epoch's order */
};

struct dataset {
    struct dataset_options o; /* strings in arena */
    struct dataset_setup setup;
    struct arena arena;
    struct group *group;
    size_t groups, group_cap;
    struct subset *subset;
    size_t subsets, subset_cap;
    struct sample_picture *picture;
    size_t pictures, picture_cap;
    struct finding *finding;
    size_t findings, finding_cap;
    struct bucket *bucket;
    struct dataset_bucket *shown;
    size_t buckets;
    struct tokenizer *tokenizer;
    double mean_ar_error; /* of picture and bucket */
    bool plain;           /* validation: fixed order, no augmentation */
    bool has_latents, has_masks;
    struct dataset *validation;
    /* the order of one epoch */
    struct slot *slot;
    size_t slots;
    struct batch_place *place;
    size_t places;
    size_t order_epoch; /* SIZE_MAX: none yet */
    char *caption;      /* of dataset_caption() */
};

/* dataset_config.c: adds the groups and subsets of --dataset_config; what it does not say is as in group and subset. */
int dataset_read_config(struct dataset *d, const struct group *group, const struct subset *subset, struct err *err);
int dataset_add_group(struct dataset *d, const struct group *g, struct err *err);
int dataset_add_subset(struct dataset *d, const struct subset *s, struct err *err);
/* "512" or "512,768" */
int dataset_parse_resolution(const char *text, size_t *width, size_t *height, struct err *err);
int dataset_parse_range(const char *text, double range[2], struct err *err);

/* dataset_scan.c: folders. */
int dataset_scan_train(struct dataset *d, const struct subset *like, struct err *err);
int dataset_scan_subset(struct dataset *d, size_t subset, struct err *err);
/* Reads the sizes of all pictures that have none yet; those that cannot be read become findings. */
int dataset_read_sizes(struct dataset *d, struct err *err);
int dataset_add_picture(struct dataset *d, const struct sample_picture *p, struct err *err);
/* The last part of a path, without slashes; in the arena. */
const char *dataset_last_part(struct dataset *d, const char *path, struct err *err);
bool dataset_is_picture_name(const char *name);
/* Names in a folder that are pictures, sorted; *name [*n] and texts in the arena. */
int dataset_list_pictures(struct arena *arena, const char *dir, const char *const **name, size_t *n, struct err *err);

/* dataset_json.c: a metadata file. */
int dataset_scan_metadata(struct dataset *d, size_t subset, struct err *err);
/* Reads a metadata file: an object of objects, its texts strings. The caller owns the reference; NULL with err filled. */
json_t *dataset_read_metadata(const char *path, struct err *err);

/* dataset_text.c: caption files. Sets *text (in the arena) to the caption of a file, or NULL where it is not usable: *problem
 * then says why. Returns -1 only for lack of memory. */
int dataset_read_caption(struct arena *arena, const char *path, bool all_lines, const char **text, const char **problem,
                         struct err *err);

/* dataset_open.c: the pictures of one folder, captions or not, in buckets of a group; for lora prepare. */
int dataset_open_folder(struct dataset **out, const char *dir, const struct group *g, bool flip, bool skip_bad,
                        const struct dataset_setup *setup, struct err *err);

/* dataset_cache.c: encodes all pictures in turn, `batch` at once, and hands each over when it is done; keep may free its
 * latents. */
typedef int dataset_keep(void *ctx, struct sample_picture *p, struct err *err);
int dataset_encode_all(struct dataset *d, const struct command_run *run, dataset_encode *encode, void *ctx, dataset_keep *keep,
                       void *keep_ctx, size_t batch, struct err *err);

/* dataset_findings.c */
int dataset_find(struct dataset *d, enum finding_kind kind, const char *name, const char *detail, struct err *err);
bool dataset_stops(const struct dataset *d, enum finding_kind kind);

/* dataset_bucket.c */
int dataset_group_sizes(struct dataset *d, struct group *g, struct err *err);
/* Chooses a size for every picture, leaving out those too small for any; then makes the buckets. */
int dataset_assign_sizes(struct dataset *d, struct err *err);
int dataset_make_buckets(struct dataset *d, struct err *err);
/* The size that a picture of w x h is scaled to before it is cut to `to`. */
void dataset_fit(const struct group *g, size_t w, size_t h, const size_t to[2], size_t fit[2]);
/* All sizes of buckets, sorted, for a largest area: *out [return value] owned by the caller; 0 without memory. */
size_t dataset_bucket_sizes(size_t width, size_t height, size_t min, size_t max, size_t steps, size_t (**out)[2],
                            struct err *err);
/* The index of the nearest aspect ratio among sizes [n]. */
size_t dataset_nearest_size(size_t (*size)[2], size_t n, size_t w, size_t h);

/* dataset_caption.c: the caption of one sample, freed by the caller. step: batches done before. NULL without memory. */
char *dataset_make_caption(const struct dataset *d, size_t picture, size_t epoch, size_t repeat, size_t step, struct err *err);

/* The same with nothing shuffled or dropped. */
char *dataset_plain_caption(const struct dataset *d, size_t picture, struct err *err);

/* dataset_pixels.c: picture `p` as the trainer sees it, of the size of its bucket; *flipped is set when it was mirrored.
 * augment: with everything drawn for this epoch and repeat, else in the middle and as it is. mask [h / factor, w / factor]: the
 * loss's mask of just that view; NULL: not wanted. */
int dataset_load(const struct dataset *d, size_t picture, size_t epoch, size_t repeat, bool augment, struct picture *out,
                 float *mask, bool *flipped, struct err *err);
bool dataset_draws_flip(const struct dataset *d, size_t picture, size_t epoch, size_t repeat);
void dataset_mirror(struct picture *p);
/* out [h, w, 3] f32 in -1 .. 1 */
void dataset_to_floats(const struct picture *p, float *out);

/* dataset_mask.c. dataset_find_masks: for pictures of known size; those whose mask cannot be used become findings. dataset_add_mask:
 * gives an upright picture its mask as alpha; dataset_take_mask: averages that over latents' pixels, mirrored if asked, and drops it.
 * dataset_load_masks: of all pictures, to stay with cached latents; dataset_copy_mask: one of those. */
int dataset_find_masks(struct dataset *d, struct err *err);
int dataset_add_mask(const struct dataset *d, size_t picture, struct picture *p, struct err *err);
void dataset_take_mask(struct picture *p, size_t factor, bool mirror, float *mask);
int dataset_load_masks(struct dataset *d, struct err *err);
void dataset_copy_mask(const struct dataset *d, size_t picture, bool mirror, float *mask);

/* dataset_batch.c: makes the order of an epoch. */
int dataset_order(struct dataset *d, size_t epoch, struct err *err);

#endif
