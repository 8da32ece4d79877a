/* The training data: everything between folders of pictures and a batch.
 *
 *     dataset_open()            folders, captions and picture headers are read; buckets are made; problems become findings
 *     dataset_print_findings()  one table before anything costs time
 *     dataset_cache()           with --cache_latents: each picture goes through the VAE once
 *     dataset_batch()           batch i of epoch e; or dataset_prefetch_*(), which makes the next ones in a thread
 *
 * Nothing random has a state: order, captions and augmentation are functions of (seed, epoch, picture, repeat). A run that is
 * resumed at batch i of epoch e goes on with the very same data, and no thread or prefetching changes it. Within an epoch
 * each picture comes exactly as often as its repeats say.
 *
 * Behaviour is that of sd-scripts v0.3.0 (library/train_util.py), and that of its newer versions for the options v0.3.0 does
 * not have; dataset_options.h has the option rows. Differences on purpose: pictures are turned upright as their EXIF data say;
 * without buckets, a picture of another shape is scaled and cut (v0.3.0 did so only when caching latents, and stopped else).
 */
#ifndef CMD_TRAIN_DATASET_H
#define CMD_TRAIN_DATASET_H

#include <jansson.h>

#include "cmd/command.h"
#include "formats/hash.h"

/* What the rows of dataset_options.h fill. */
struct dataset_options {
    const char *train_data_dir, *reg_data_dir, *in_json, *dataset_config;
    size_t dataset_repeats, train_batch_size;
    double prior_loss_weight;
    const char *resolution; /* "size" or "width,height" */
    bool enable_bucket, bucket_no_upscale;
    size_t min_bucket_reso, max_bucket_reso, bucket_reso_steps;
    const char *caption_extension, *caption_separator, *keep_tokens_separator, *secondary_separator;
    const char *caption_prefix, *caption_suffix;
    bool shuffle_caption, enable_wildcard;
    size_t keep_tokens, token_warmup_min;
    double token_warmup_step;
    double caption_dropout_rate, caption_tag_dropout_rate;
    size_t caption_dropout_every_n_epochs;
    bool color_aug, flip_aug, random_crop;
    const char *face_crop_aug_range; /* "low,high" */
    const char *conditioning_data_dir;
    bool masked_loss, alpha_mask;
    bool cache_latents, cache_latents_to_disk;
    size_t vae_batch_size;
    double validation_split;
    size_t validation_seed;
    bool skip_bad_pictures, debug_dataset;
};

/* What only the trainer knows. */
struct dataset_setup {
    const struct command_run *run; /* for option_given() and progress; borrowed */
    uint64_t seed;
    size_t factor, channels; /* of the VAE: 8, 4 */
    size_t max_tokens;       /* of a caption without begin and end: 75, 150 or 225 */
    bool weighted;           /* brackets in captions weigh */
    size_t max_steps;        /* for token_warmup_step below 1; 0 when unknown */
};

struct dataset;

/* Reads everything but pixels. Returns 0 or -1: impossible options (usage errors), missing folders, nothing to train on. What a
 * person may want to overlook is a finding instead. Strings of o are copied. The caller closes it. */
int dataset_open(struct dataset **out, const struct dataset_options *o, const struct dataset_setup *setup, struct err *err);
void dataset_close(struct dataset *d); /* NULL is fine */

/* Prints the findings as a table on stderr, with counts where there are many of a kind (JSON lines with --json). Returns 0, or
 * -1 when one of them stops the training: err then says how many, and that --skip_bad_pictures goes on without those pictures
 * (dataset_open() has already left them out when that option is set, and they only warn). */
int dataset_print_findings(const struct dataset *d, const struct command_run *run, struct err *err);

/* Pictures held back by validation_split, in a fixed order with no augmentation; NULL when there are none. Owned by d. */
struct dataset *dataset_validation(struct dataset *d);

/* ---- What is in it ---- */

struct dataset_bucket {
    size_t width, height; /* pixels */
    size_t samples;       /* in an epoch, repeats counted */
    size_t batch;         /* most samples in one of its batches */
};

size_t dataset_batches(const struct dataset *d);       /* in an epoch */
size_t dataset_train_samples(const struct dataset *d); /* in an epoch: pictures times repeats, regularisation not counted */
size_t dataset_reg_samples(const struct dataset *d);
size_t dataset_pictures(const struct dataset *d);                                      /* different ones, all kinds */
size_t dataset_buckets(const struct dataset *d, const struct dataset_bucket **bucket); /* only those with samples */
size_t dataset_max_batch(const struct dataset *d);                         /* the largest batch size of any bucket */
const char *dataset_picture_name(const struct dataset *d, size_t picture); /* path or key in the metadata file */

/* Whether batches carry latents (cached, or all from .npz files) rather than pixels; false before dataset_cache(). */
bool dataset_has_latents(const struct dataset *d);
/* Whether dataset_cache() has to be called: --cache_latents, or .npz files to read. */
bool dataset_wants_cache(const struct dataset *d);
/* Whether any picture has a mask of its loss; then all batches have masks. */
bool dataset_has_masks(const struct dataset *d);
/* Whether every sample's caption is always the same, so that text embeddings may be kept: all captions then come from
 * dataset_caption(). */
bool dataset_fixed_captions(const struct dataset *d);

/* Adds to meta the strings that describe the data: ss_num_train_images, ss_num_reg_images, ss_num_batches_per_epoch,
 * ss_resolution, ss_color_aug, ... as v0.3.0 writes them, and ss_dataset_dirs, ss_reg_dataset_dirs, ss_bucket_info,
 * ss_tag_frequency, ss_datasets as newer versions do. Folders by their last name only. Returns 0 or -1 (memory). */
int dataset_metadata(const struct dataset *d, json_t *meta, struct err *err);

/* A hash of which pictures there are, how often, with which captions and at which size; not of what they show, nor of where they
 * lie. */
void dataset_fingerprint(const struct dataset *d, char out[SHA256_TEXT]);

/* Plain text for people: folders, repeats, buckets; ends with a newline. The caller frees it; NULL without memory. */
char *dataset_table(const struct dataset *d, struct err *err);

/* ---- Latents ---- */

/* latents [n, h / factor, w / factor, channels] = one sample of the VAE's distribution for each of pixels [n, h, w, 3]
 * (-1 .. 1), not scaled by 0.18215; noise of picture i comes from seed[i]. */
typedef int dataset_encode(void *ctx, const float *pixels, size_t n, size_t h, size_t w, const uint64_t *seed, float *latents,
                           struct err *err);

/* A dataset_encode for the VAE of cmd/latents.h: ctx is its struct latents. Noise is torch's randn for the seed. */
int dataset_encode_latents(void *ctx, const float *pixels, size_t n, size_t h, size_t w, const uint64_t *seed, float *latents,
                           struct err *err);

/* Fills the cache: reads .npz files of the caption method, or encodes each picture once (mirrored too with flip_aug). Seeds
 * come from the content, so that the same picture has the same latents in every run. With --cache_latents_to_disk they are kept
 * beside the pictures, keyed by picture bytes, crop and vae_hash (any text that names the VAE's weights): stale files are made
 * anew. */
int dataset_cache(struct dataset *d, const struct command_run *run, dataset_encode *encode, void *ctx, const char *vae_hash,
                  struct err *err);

/* ---- Batches ---- */

/* Samples of one bucket. Zero-initialise; dataset_batch() reuses its memory from call to call; dataset_batch_free() in the end.
 */
struct dataset_batch {
    size_t n, width, height; /* samples, pixels */
    float *pixels;           /* [n, height, width, 3] in -1 .. 1, or NULL: then there are latents */
    float *latents;          /* [n, height / factor, width / factor, channels] not scaled, or NULL */
    const char **caption;    /* [n] after shuffling and dropping */
    float *weight;           /* [n] of the loss: 1, or prior_loss_weight */
    bool *reg;               /* [n] regularisation pictures */
    float *mask;             /* [n, height / factor, width / factor] what the loss is multiplied by, or NULL: 1 everywhere */
    size_t *picture;         /* [n] which picture: see dataset_picture_name() */
    size_t *repeat;          /* [n] the how-manieth time in this epoch, from 0 */
    bool *flipped;           /* [n] */
    void *inside;            /* memory behind these */
};

/* Batch `index` (0 .. dataset_batches() - 1) of epoch `epoch` (from 0). Not thread-safe for one dataset. A picture that can no
 * longer be read is an error that names it. */
int dataset_batch(struct dataset *d, size_t epoch, size_t index, struct dataset_batch *b, struct err *err);
void dataset_batch_free(struct dataset_batch *b);

/* The caption of one picture in one repeat, to out (valid until the next call): what dataset_batch() gives. */
int dataset_caption(struct dataset *d, size_t picture, size_t epoch, size_t repeat, const char **out, struct err *err);

/* Makes batches ahead in one thread, in order, going on with the next epoch after the last batch. Until it is closed, d is its
 * own: no dataset_batch() beside it. */
struct dataset_prefetch;
int dataset_prefetch_open(struct dataset_prefetch **out, struct dataset *d, size_t epoch, size_t index, struct err *err);

/* The next batch; valid until the next call but one. Waits for it. Returns 0 or -1 with the error that dataset_batch() had. */
int dataset_prefetch_next(struct dataset_prefetch *p, const struct dataset_batch **b, struct err *err);
void dataset_prefetch_close(struct dataset_prefetch *p); /* NULL is fine */

/* ---- --debug_dataset ---- */

/* Writes FOLDER/dataset.png, a contact sheet of the first `most` samples of an epoch exactly as the trainer gets them (before
 * latents), and FOLDER/dataset.html, the same with captions, buckets and weights. */
int dataset_sheet(struct dataset *d, size_t epoch, size_t most, const char *folder, struct err *err);

#endif
