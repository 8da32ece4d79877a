/* merge_captions_to_metadata and merge_dd_tags_to_metadata: text files beside pictures become entries of a metadata file. */
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "cmd/prepare/prepare.h"
#include "cmd/train/dataset_inside.h"

/* Sets the field of one picture; *found is false when it has no text file. */
static int merge_one(struct arena *arena, json_t *all, const char *dir, const char *name, const char *extension,
                     const char *field, bool full_path, bool debug, bool *found, struct err *err)
{
    const char *dot = strrchr(name, '.'), *text, *problem;
    char *path = arena_printf(arena, err, "%s/%.*s%s", dir, (int)(dot - name), name, extension), key[4096];
    struct stat st;
    json_t *one;

    *found = false;
    if (!path)
        return -1;
    if (stat(path, &st) != 0)
        return 0;
    if (dataset_read_caption(arena, path, false, &text, &problem, err))
        return -1;
    if (problem)
        return err_set(err, "cannot read '%s': %s", path, problem);
    one = prepare_entry(all, dir, name, full_path, key, sizeof key, err);
    if (!one)
        return -1;
    if (json_object_set_new(one, field, json_string(text)) != 0)
        return err_memory(err, strlen(text), "metadata");
    if (debug)
        printf("%s %s\n", key, text);
    *found = true;
    return 0;
}

int prepare_merge(const struct command_run *run, json_t *all, const char *dir, const char *extension, const char *field,
                  bool full_path, bool debug, struct prepare_merged *out, struct err *err)
{
    struct arena arena = {0};
    const char *const *name;
    int rc = dataset_list_pictures(&arena, dir, &name, &out->pictures, err);

    (void)run;
    out->texts = 0;
    out->first_missing[0] = 0;
    for (size_t i = 0; i < out->pictures && !rc; i++) {
        bool found;

        rc = merge_one(&arena, all, dir, name[i], extension, field, full_path, debug, &found, err);
        out->texts += found;
        if (!found && !out->first_missing[0])
            snprintf(out->first_missing, sizeof out->first_missing, "%s", name[i]);
    }
    arena_free(&arena);
    return rc;
}

/* ---- The commands */

struct merge_options {
    const char *train_data_dir, *out_json, *in_json, *caption_extension;
    bool full_path, debug;
};

static int merge(const struct command_run *run, const struct merge_options *o, const char *extension, const char *field,
                 struct err *err)
{
    struct prepare_merged m = {0};
    json_t *all = prepare_read(o->in_json, o->out_json, err);
    int rc = all ? 0 : -1;

    if (!rc && json_object_size(all) && !run->quiet)
        command_note(run, "%zu pictures are in the metadata already; their %s are replaced where there is a file",
                     json_object_size(all), strcmp(field, "tags") == 0 ? "tags" : "captions");
    if (!rc)
        rc = prepare_merge(run, all, o->train_data_dir, extension, field, o->full_path, o->debug, &m, err);
    if (!rc && m.pictures == 0)
        rc = err_set(err, "no pictures in '%s'; put .png, .jpg, .webp or .bmp files there", o->train_data_dir);
    if (!rc && m.texts < m.pictures)
        rc = err_set(
            err,
            "%zu of %zu pictures in '%s' have no '%s' file, '%s' first; write them, or use 'lora prepare', which goes on "
            "without",
            m.pictures - m.texts, m.pictures, o->train_data_dir, extension, m.first_missing);
    if (!rc)
        rc = prepare_write(o->out_json, all, err);
    if (!rc && !run->quiet && !run->json)
        printf("%s of %zu pictures -> %s\n", strcmp(field, "tags") == 0 ? "tags" : "captions", m.texts, o->out_json);
    if (!rc && run->json)
        rc = command_print_json(json_pack("{s:I, s:s}", "pictures", (json_int_t)m.texts, "out_json", o->out_json), err);
    json_decref(all);
    return rc;
}

static int run_captions(const struct command_run *run, void *options, struct err *err)
{
    const struct merge_options *o = options;

    return merge(run, o, o->caption_extension, "caption", err);
}

static int run_tags(const struct command_run *run, void *options, struct err *err)
{
    return merge(run, options, ".txt", "tags", err);
}

#define COMMON_ROWS                                                                                                            \
    {OPTION(struct merge_options, train_data_dir), .arg = "DIR", .flags = OPTION_POSITIONAL | OPTION_REQUIRED,                 \
     .help = "folder of pictures with their text files"},                                                                      \
        {OPTION(struct merge_options, out_json), .arg = "OUT.json", .flags = OPTION_POSITIONAL | OPTION_REQUIRED,              \
         .help = "metadata file to write"},                                                                                    \
        {OPTION(struct merge_options, in_json), .arg = "FILE",                                                                 \
         .help = "metadata file to add to; unset: OUT.json, if there is one"},                                                 \
        {OPTION(struct merge_options, full_path),                                                                              \
         .help = "name pictures by their paths, for several folders in one metadata file"},                                    \
    {                                                                                                                          \
        OPTION(struct merge_options, debug), .help = "print each text"                                                         \
    }

static const struct option_row caption_rows[] = {
    COMMON_ROWS,
    {OPTION(struct merge_options, caption_extension), .arg = "EXT", .def = ".caption", .help = "ending of the text files"},
    {OPTION_NAMED(struct merge_options, caption_extension, "caption_extention"), .arg = "EXT", .alias_of = "caption_extension"},
    {0},
};

static const struct option_row tag_rows[] = {COMMON_ROWS, {0}};

static const char *const caption_aliases[] = {"merge_captions_to_metadata", NULL};
static const char *const tag_aliases[] = {"merge_dd_tags_to_metadata", NULL};

const struct command command_merge_captions_to_metadata = {
    .name = "merge_captions_to_metadata",
    .aliases = caption_aliases,
    .summary = "put caption files into a metadata file",
    .description =
        "The first line of PICTURE.caption becomes the picture's caption. 'lora prepare' does this and the steps after it at "
        "once.",
    .options = caption_rows,
    .options_size = sizeof(struct merge_options),
    .flags = COMMAND_HIDDEN,
    .run = run_captions,
};

const struct command command_merge_dd_tags_to_metadata = {
    .name = "merge_dd_tags_to_metadata",
    .aliases = tag_aliases,
    .summary = "put files of tags into a metadata file",
    .description =
        "The first line of PICTURE.txt becomes the picture's tags. 'lora prepare' does this and the steps around it at once.",
    .options = tag_rows,
    .options_size = sizeof(struct merge_options),
    .flags = COMMAND_HIDDEN,
    .run = run_tags,
};
