/* The pictures of several folders side by side. */
#ifndef TESTS_DEMO_STORY_H
#define TESTS_DEMO_STORY_H

#include <stddef.h>

#include "ref/base/err.h"

/* A column: the pictures of a folder in the order of their names. */
struct story_column {
    const char *folder, *title, *about; /* about: HTML for the page, may be NULL */
};

/* Writes FOLDER/index.html (self-contained) and FOLDER/grid.png: a row for each prompt, which is read from the pictures. The
 * folders must have as many pictures each. links: HTML at the end of the page, may be NULL. */
int story_write(const char *folder, const struct story_column *column, size_t n, const char *links, struct err *err);

/* *found of *all pictures in the folder show the rocket. only: those whose prompt begins so; "!..": those whose does not. */
int story_rockets(const char *folder, const char *only, size_t *found, size_t *all, struct err *err);

/* Mean difference of a sample (0 .. 255) between the pictures of two folders. */
int story_difference(const char *a, const char *b, const char *only, double *mean, struct err *err);

#endif
