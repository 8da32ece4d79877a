/* The option rows of the training data, for a command whose options struct T has a field `at` of struct dataset_options:
 *
 *     struct train_options { struct dataset_options data; ... };
 *     static const struct option_row rows[] = { DATASET_OPTION_ROWS(struct train_options, data) ... {0} };
 */
#ifndef CMD_TRAIN_DATASET_OPTIONS_H
#define CMD_TRAIN_DATASET_OPTIONS_H

#include "cmd/train/dataset.h"

#define DATASET_ROW(T, at, field) OPTION_NAMED(T, at.field, #field)

/* clang-format off */
#define DATASET_OPTION_ROWS(T, at) \
    {DATASET_ROW(T, at, train_data_dir), .flags = OPTION_EITHER, .arg = "DIR", \
     .help = "pictures: a folder of folders named REPEATS_words (with --in_json: of the pictures themselves)"}, \
    {DATASET_ROW(T, at, reg_data_dir), .arg = "DIR", \
     .help = "regularisation pictures, in folders named REPEATS_words; taken as often as those to learn"}, \
    {DATASET_ROW(T, at, in_json), .arg = "FILE", .help = "captions from this metadata file (lora prepare writes it)"}, \
    {DATASET_ROW(T, at, dataset_repeats), .arg = "N", .def = "1", .min = 1, .max = 1000000, \
     .help = "with --in_json: how often each picture comes in an epoch"}, \
    {DATASET_ROW(T, at, dataset_config), .flags = OPTION_EITHER, .arg = "FILE", \
     .help = "TOML or JSON file that describes several data sets, each with options of its own"}, \
    {DATASET_ROW(T, at, resolution), .arg = "W,H", .help = "size in pixels: one number, or width,height"}, \
    {DATASET_ROW(T, at, train_batch_size), .arg = "N", .def = "1", .min = 1, .max = 1024, .help = "pictures in a step"}, \
    {DATASET_ROW(T, at, enable_bucket), \
     .help = "keep the pictures' shapes: each goes to the nearest of many sizes of about the same area"}, \
    {DATASET_ROW(T, at, min_bucket_reso), .arg = "N", .def = "256", .min = 8, .max = 16384, \
     .help = "shortest side of a bucket"}, \
    {DATASET_ROW(T, at, max_bucket_reso), .arg = "N", .def = "1024", .min = 8, .max = 16384, \
     .help = "longest side of a bucket"}, \
    {DATASET_ROW(T, at, bucket_reso_steps), .arg = "N", .def = "64", .min = 8, .max = 1024, \
     .help = "sides of buckets are multiples of this"}, \
    {DATASET_ROW(T, at, bucket_no_upscale), .help = "never enlarge a picture: its bucket is at most its own size"}, \
    {DATASET_ROW(T, at, caption_extension), .arg = "EXT", .def = ".caption", \
     .help = "ending of the caption files beside the pictures"}, \
    {OPTION_NAMED(T, at.caption_extension, "caption_extention"), .arg = "EXT", .alias_of = "caption_extension"}, \
    {DATASET_ROW(T, at, shuffle_caption), .help = "put the comma-separated parts of a caption in another order each time"}, \
    {DATASET_ROW(T, at, keep_tokens), .arg = "N", .def = "0", .max = 1000, .min = 0, \
     .help = "the first N parts stay where they are when shuffling"}, \
    {DATASET_ROW(T, at, caption_dropout_rate), .arg = "X", .def = "0", .min = 0, .max = 1, \
     .help = "share of samples that come without caption"}, \
    {DATASET_ROW(T, at, caption_dropout_every_n_epochs), .arg = "N", .def = "0", .max = 1000000, \
     .help = "every Nth epoch has no captions; 0: none"}, \
    {DATASET_ROW(T, at, caption_tag_dropout_rate), .arg = "X", .def = "0", .min = 0, .max = 1, \
     .help = "share of the comma-separated parts that are left out, drawn anew each time"}, \
    {DATASET_ROW(T, at, flip_aug), .help = "mirror half of the samples"}, \
    {DATASET_ROW(T, at, color_aug), .help = "change hue or gamma of a third of the samples a little"}, \
    {DATASET_ROW(T, at, random_crop), .help = "move the crop at random"}, \
    {DATASET_ROW(T, at, face_crop_aug_range), .arg = "LOW,HIGH", \
     .help = "crop around the face given in file names (_cx_cy_w_h at the end), this many times its size"}, \
    {DATASET_ROW(T, at, alpha_mask), .help = "learn pictures only where they are opaque"}, \
    {DATASET_ROW(T, at, masked_loss), .help = "learn pictures only where their mask is white; see the next option"}, \
    {DATASET_ROW(T, at, conditioning_data_dir), .arg = "DIR", \
     .help = "masks: pictures of the same names as those to learn, white (red 255) where these count"}, \
    {DATASET_ROW(T, at, cache_latents), .help = "put each picture through the VAE once and keep the result"}, \
    {DATASET_ROW(T, at, cache_latents_to_disk), \
     .help = "the same, kept beside the pictures for the next run; a changed picture or VAE is noticed"}, \
    {DATASET_ROW(T, at, skip_bad_pictures), \
     .help = "go on without pictures and captions that cannot be used (unset: list them and stop)"}, \
    {DATASET_ROW(T, at, validation_split), .arg = "X", .def = "0", .min = 0, .max = 0.9, \
     .help = "share of the pictures that is not learned but used to measure the loss"}, \
    {DATASET_ROW(T, at, debug_dataset), \
     .help = "write dataset.png and dataset.html, showing what would be trained on, and stop"}, \
    {DATASET_ROW(T, at, prior_loss_weight), .arg = "X", .def = "1", .min = 0, .max = 1000, \
     .help = "weight of regularisation pictures in the loss"}, \
    {DATASET_ROW(T, at, caption_separator), .arg = "TEXT", .def = ",", .flags = OPTION_ADVANCED, \
     .help = "what divides a caption into parts"}, \
    {DATASET_ROW(T, at, keep_tokens_separator), .arg = "TEXT", .flags = OPTION_ADVANCED, \
     .help = "in captions that have it, parts before it stay in place, and those after a second one"}, \
    {DATASET_ROW(T, at, secondary_separator), .arg = "TEXT", .flags = OPTION_ADVANCED, \
     .help = "becomes --caption_separator after shuffling: what it joins stays together"}, \
    {DATASET_ROW(T, at, enable_wildcard), .flags = OPTION_ADVANCED, \
     .help = "in captions, {a|b} is one of its parts and a caption of several lines one of its lines"}, \
    {DATASET_ROW(T, at, caption_prefix), .arg = "TEXT", .flags = OPTION_ADVANCED, .help = "put before every caption"}, \
    {DATASET_ROW(T, at, caption_suffix), .arg = "TEXT", .flags = OPTION_ADVANCED, .help = "put after every caption"}, \
    {DATASET_ROW(T, at, token_warmup_min), .arg = "N", .def = "1", .max = 1000, .min = 0, .flags = OPTION_ADVANCED, \
     .help = "parts of a caption to begin with; see --token_warmup_step"}, \
    {DATASET_ROW(T, at, token_warmup_step), .arg = "X", .def = "0", .min = 0, .max = 1e9, .flags = OPTION_ADVANCED, \
     .help = "captions grow from --token_warmup_min parts to all in this many steps (below 1: share of all steps)"}, \
    {DATASET_ROW(T, at, vae_batch_size), .arg = "N", .def = "1", .min = 1, .max = 1024, .flags = OPTION_ADVANCED, \
     .help = "pictures that go through the VAE at once"}, \
    {DATASET_ROW(T, at, validation_seed), .arg = "N", .def = "0", .flags = OPTION_ADVANCED, \
     .help = "which pictures --validation_split takes"}, \
    {OPTION_IGNORED_FLAG("cache_info", "captions and picture headers are read in milliseconds")}, \
    {OPTION_IGNORED_FLAG("skip_cache_check", "cached latents are always checked against picture and VAE")}
/* clang-format on */

#endif
