/* clean_captions_and_tags: the words that taggers and captioning networks repeat are made uniform. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cmd/prepare/prepare.h"

/* In this order, each until it changes nothing; sd-scripts' own list, so that its metadata files come out the same. */
static const struct {
    const char *from, *to;
} replacements[] = {
    {"anime anime", "anime"},
    {"young ", ""},
    {"anime girl", "girl"},
    {"cartoon female", "girl"},
    {"cartoon lady", "girl"},
    {"cartoon character", "girl"},
    {"cartoon woman", "girl"},
    {"cartoon women", "girls"},
    {"cartoon girl", "girl"},
    {"anime female", "girl"},
    {"anime lady", "girl"},
    {"anime character", "girl"},
    {"anime woman", "girl"},
    {"anime women", "girls"},
    {"lady", "girl"},
    {"female", "girl"},
    {"woman", "girl"},
    {"women", "girls"},
    {"people", "girls"},
    {"person", "girl"},
    {"a cartoon figure", "a figure"},
    {"a cartoon image", "an image"},
    {"a cartoon picture", "a picture"},
    {"an anime cartoon image", "an image"},
    {"a cartoon anime drawing", "a drawing"},
    {"a cartoon drawing", "a drawing"},
    {"girl girl", "girl"},
};

/* Replaces in place, left to right, without looking at what was put in; to is never longer than from. Returns whether it did.
 */
static bool replace(char *s, const char *from, const char *to)
{
    size_t n_from = strlen(from), n_to = strlen(to);
    bool did = false;

    for (char *at = s; (at = strstr(at, from)); at += n_to) {
        memmove(at + n_to, at + n_from, strlen(at + n_from) + 1);
        memcpy(at, to, n_to);
        did = true;
    }
    return did;
}

static void clean_caption(char *s)
{
    for (size_t i = 0; i < sizeof replacements / sizeof replacements[0]; i++)
        while (replace(s, replacements[i].from, replacements[i].to))
            ;
}

/* Underscores become blanks; DeepDanbooru's rating at the end goes. Returns how many ratings there were. */
static size_t clean_tags(char *s)
{
    size_t ratings = 0;
    char *first = NULL;

    for (char *c = s; *c; c++)
        *c = *c == '_' ? ' ' : *c;
    for (char *at = s; (at = strstr(at, ", rating")); at++) {
        first = first ? first : at;
        ratings++;
    }
    if (first)
        *first = 0;
    return ratings;
}

/* Cleans one text of a picture. */
static int clean_field(const struct command_run *run, json_t *one, const char *key, const char *field, size_t *missing,
                       size_t *changed, struct err *err)
{
    const char *old = json_string_value(json_object_get(one, field));
    char *text;
    int rc = 0;

    if (!old) {
        ++*missing;
        return 0;
    }
    text = mem_str(old, err);
    if (!text)
        return -1;
    if (strcmp(field, "caption") == 0)
        clean_caption(text);
    else if (clean_tags(text) > 1)
        command_warn(run, "picture '%s' has several ratings among its tags; all from the first on are removed", key);
    if (strcmp(text, old) != 0) {
        ++*changed;
        rc = json_object_set_new(one, field, json_string(text)) ? err_memory(err, strlen(text), "metadata") : 0;
    }
    free(text);
    return rc;
}

int prepare_clean(const struct command_run *run, json_t *all, size_t *changed, struct err *err)
{
    size_t no_tags = 0, no_caption = 0;
    const char *key;
    json_t *one;

    *changed = 0;
    json_object_foreach(all, key, one) if (clean_field(run, one, key, "tags", &no_tags, changed, err) ||
                                           clean_field(run, one, key, "caption", &no_caption, changed, err)) return -1;
    if (no_tags && no_tags < json_object_size(all))
        command_note(run, "%zu pictures have no tags", no_tags);
    if (no_caption && no_caption < json_object_size(all))
        command_note(run, "%zu pictures have no caption", no_caption);
    return 0;
}

/* ---- The command */

struct clean_options {
    const char *in_json, *out_json, *third;
};

static int run(const struct command_run *run, void *options, struct err *err)
{
    const struct clean_options *o = options;
    const char *in = o->third ? o->out_json : o->in_json, *out = o->third ? o->third : o->out_json;
    size_t changed = 0;
    json_t *all;
    int rc;

    if (o->third)
        command_warn(run, "the folder '%s' is not needed; give two files: the metadata to read and the one to write",
                     o->in_json);
    all = prepare_read(in, out, err);
    rc = all ? prepare_clean(run, all, &changed, err) : -1;
    if (!rc)
        rc = prepare_write(out, all, err);
    if (!rc && !run->quiet && !run->json)
        printf("%zu texts of %zu pictures changed -> %s\n", changed, json_object_size(all), out);
    if (!rc && run->json)
        rc = command_print_json(json_pack("{s:I, s:s}", "changed", (json_int_t)changed, "out_json", out), err);
    json_decref(all);
    return rc;
}

static const struct option_row rows[] = {
    {OPTION(struct clean_options, in_json), .arg = "IN.json", .flags = OPTION_POSITIONAL | OPTION_REQUIRED,
     .help = "metadata file to read"},
    {OPTION(struct clean_options, out_json), .arg = "OUT.json", .flags = OPTION_POSITIONAL | OPTION_REQUIRED,
     .help = "metadata file to write"},
    {OPTION(struct clean_options, third), .arg = "FILE", .flags = OPTION_POSITIONAL | OPTION_HIDDEN,
     .help = "old command lines begin with a folder, which is not used"},
    {0},
};

static const char *const aliases[] = {"clean_captions_and_tags", NULL};

const struct command command_clean_captions_and_tags = {
    .name = "clean_captions_and_tags",
    .aliases = aliases,
    .summary = "make captions and tags of a metadata file uniform",
    .description = "In tags, '_' becomes a blank and DeepDanbooru's rating is removed. In captions, many words for people "
                   "become 'girl' and "
                   "'girls': meant for pictures of anime figures, as the original is. Look at the result before you train.",
    .options = rows,
    .options_size = sizeof(struct clean_options),
    .flags = COMMAND_HIDDEN,
    .run = run,
};
