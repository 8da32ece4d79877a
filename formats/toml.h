/* TOML 1.0 text as a jansson object. Debian and Ubuntu carry no C library for TOML, so this is ours.
 *
 * Tables, arrays of tables, dotted keys, inline tables, all strings, integers, floats, booleans, arrays. Refused by name
 * because no option is one: dates, times, inf, nan; and control characters in keys.
 * Source: the specification at toml.io, version 1.0.0.
 */
#ifndef FORMATS_TOML_H
#define FORMATS_TOML_H

#include <jansson.h>
#include <stddef.h>

#include "ref/base/err.h"

/* Parses text [n] (UTF-8, need not be terminated). path is for messages, which tell the line. Returns a new reference that
 * the caller owns, or NULL with err filled. */
json_t *toml_parse(const char *text, size_t n, const char *path, struct err *err);

#endif
