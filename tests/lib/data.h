/* Small sets of training data for tests: a folder, pictures in it, and a data set opened with the options of a command line. */
#ifndef TESTS_LIB_DATA_H
#define TESTS_LIB_DATA_H

#include "cmd/train/dataset_inside.h"
#include "tests/lib/scratch.h"

struct data_options {
    struct dataset_options data;
};

struct data { /* zero-initialise */
    struct data_options o;
    struct option_values v;
    struct dataset *d;
    struct err err;
    uint64_t seed;
    size_t max_steps;
};

extern struct command_run data_quiet;
extern const char *data_folder; /* of the running test */

/* For cmocka_unit_test_setup_teardown(). */
int data_setup(void **state);
int data_teardown(void **state);

/* Parses a line of words, '|' between them, and opens. Returns 0 or -1; data_close() in any case. */
int data_try_open(struct data *x, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void data_close(struct data *x);

/* The same; anything else than success fails the test. */
#define data_open(x, ...)                                                                                                      \
    do {                                                                                                                       \
        if (data_try_open(x, __VA_ARGS__))                                                                                     \
            fail_msg("%s", (x)->err.msg);                                                                                      \
    } while (0)

/* Paths below are inside the test's folder; folders are made with those around them. */
const char *data_path(const char *name);
void data_dir(const char *name);
void data_text(const char *name, const char *text);
void data_copy(const char *from, const char *to); /* from: any path */

/* A picture whose pixels tell its number (red, times 9) and place (green: column, blue: row). */
void data_picture(const char *name, size_t w, size_t h, unsigned number);

/* train/2_red cat: a, b, c (128 x 64; the others 64 x 64); train/1_dog: d, e. a and b have captions in .txt files. */
void data_small(void);

/* The caption of the first picture in an epoch; valid until the next call. */
const char *data_caption(struct data *x, size_t epoch);

#endif
