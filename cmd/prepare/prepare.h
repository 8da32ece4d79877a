/* lora prepare inside: metadata files for the caption method, and the four commands of sd-scripts that make them step by step.
 *
 *     prepare.c    lora prepare: all steps at once
 *     merge.c      merge_captions_to_metadata and merge_dd_tags_to_metadata: text files into a metadata file
 *     clean.c      clean_captions_and_tags
 *     buckets.c    prepare_buckets_latents: sizes into the metadata file, latents into .npz files
 *     metadata.c   reading and writing metadata files; cmd/train/dataset_json.c says what they hold
 */
#ifndef CMD_PREPARE_PREPARE_H
#define CMD_PREPARE_PREPARE_H

#include <jansson.h>

#include "cmd/command.h"

/* Reads in_json, or out_json when in_json is NULL and it is there; else a new, empty object. The caller owns the reference;
 * NULL with err filled. */
json_t *prepare_read(const char *in_json, const char *out_json, struct err *err);

/* Writes it as Python's json.dump(indent=2) does. */
int prepare_write(const char *path, const json_t *all, struct err *err);

/* The object of a picture, made when it is missing. name: of a file in dir; its key is DIR/NAME with full_path, else the name
 * without its ending. Borrowed; NULL with err filled. key [size] gets the key. */
json_t *prepare_entry(json_t *all, const char *dir, const char *name, bool full_path, char *key, size_t size, struct err *err);

/* What merging text files did. */
struct prepare_merged {
    size_t pictures, texts; /* in the folder, and those that have a text */
    char first_missing[512];
};

/* Puts the first line of each picture's text file (its name with `extension`) under `field`. debug: prints each. A file that is
 * no text is an error; a missing one is counted. */
int prepare_merge(const struct command_run *run, json_t *all, const char *dir, const char *extension, const char *field,
                  bool full_path, bool debug, struct prepare_merged *out, struct err *err);

/* Cleans captions and tags of all pictures, as clean_captions_and_tags does. *changed: texts that are different now. */
int prepare_clean(const struct command_run *run, json_t *all, size_t *changed, struct err *err);

struct prepare_sizes {
    const char *dir, *model, *vae, *device;
    const char *resolution; /* "width,height" */
    size_t min, max, steps, batch;
    bool no_upscale, full_path, flip, skip_existing, skip_bad;
    bool known_only; /* leave out pictures that the metadata file does not have */
};

/* Gives each picture its 'train_resolution', and writes its latents to DIR/STEM.npz, mirrored ones to DIR/STEM_flip.npz. Prints
 * the buckets. */
int prepare_latents(const struct command_run *run, json_t *all, const struct prepare_sizes *o, struct err *err);

#endif
