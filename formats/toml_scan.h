/* The words of TOML: blanks, line ends, texts in quotes, numbers. For toml.c, which knows the tables. */
#ifndef FORMATS_TOML_SCAN_H
#define FORMATS_TOML_SCAN_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

#include "ref/base/err.h"

struct toml {
    /* the text that is left, and where it is */
    const char *s, *end;
    size_t line;
    const char *path;
    struct err *err;
    int depth;
};

/* A text being built; data is the caller's to free(). */
struct text {
    char *data;
    size_t n, cap;
};

/* "cannot read 'path': line N: what"; returns -1. */
int toml_fail(struct toml *t, const char *what);
int toml_no_memory(struct toml *t);

int toml_peek(const struct toml *t); /* the next byte, or -1 at the end */
bool toml_take(struct toml *t, char c);
bool toml_take_newline(struct toml *t);
bool toml_is_control(int c); /* what no text may hold as it is */
bool toml_is_bare(int c);    /* letters of a name without quotes */
void toml_skip_blanks(struct toml *t);
int toml_skip_comment(struct toml *t); /* blanks and a comment, up to the line's end */
int toml_skip_space(struct toml *t);   /* blanks, comments and line ends */

/* Appends n bytes. */
int toml_text_add(struct toml *t, struct text *x, const char *data, size_t n);

/* Reads a text of any of the four kinds; t->s stands on its first quote. */
int toml_text(struct toml *t, struct text *x);

/* Reads a boolean or a number. A new reference, or NULL with the error filled. */
json_t *toml_word(struct toml *t);

#endif
