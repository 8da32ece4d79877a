/* What `lora info` found out about one file or folder. The JSON value holds all of it; the text is printed from it. */
#ifndef CMD_INFO_H
#define CMD_INFO_H

#include <jansson.h>
#include <stdio.h>

#include "cmd/option.h"
#include "formats/lora_file.h"
#include "formats/model.h"

struct info_options {
    struct string_list files;
    bool keys, norms, hash, metadata;
    const char *tokens;
};

/* An opened input: exactly one of model and lora, or neither with the reason in `why`. */
struct info_subject {
    const char *path;
    struct model *model;
    struct lora_file *lora;
    struct tensor_file *plain;        /* a file of tensors that is neither; owned */
    struct tensor_file *const *files; /* [n_files] of whichever it is; borrowed from it */
    size_t n_files;
    char why[sizeof((struct err *)0)->msg];
};

/* Opens path. Whatever holds tensors is accepted; -1 only when it cannot be read as a file of tensors. */
int info_open(struct info_subject *s, const char *path, struct err *err);
void info_close(struct info_subject *s);

/* A new object about the subject; NULL with err filled. A hash that differs from the metadata is told in the object
 * ("hashes": {"wrong": [...]}), not as an error. */
json_t *info_to_json(const struct info_subject *s, const struct info_options *o, struct err *err);

/* info_norms.c: {"blocks": [{"block", "norm"}...], "modules": [{"module", "norm"}...]}, the modules largest first. Reads all
 * of the data. NULL with err filled. */
json_t *info_norms(const struct info_subject *s, struct err *err);

/* info_tokens.c: prints the token ids of text, begin and end marker included, as one JSON list; of "-": of each line of `in`,
 * a list a line. */
int info_tokens(const char *text, FILE *in, struct err *err);

/* info_text.c: prints the object for a person. */
void info_print(const json_t *info, const struct info_options *o, FILE *out);

#endif
