/* What report.c collects and report_page.c prints. */
#ifndef CMD_TRAIN_REPORT_INSIDE_H
#define CMD_TRAIN_REPORT_INSIDE_H

#include <stdio.h>

#include "cmd/train/report.h"
#include "ref/base/mem.h"

struct report_row {
    char *name, *value;
};

struct report_validated {
    size_t step;
    double loss;
};

struct report_norm_set {
    size_t step, n;
    char **block;
    double *norm; /* [n] */
};

struct report_picture {
    size_t step;
    char *prompt, *path;
    unsigned char *data; /* [size] a PNG or JPEG file */
    size_t size;
    const char *type; /* "image/png" */
};

struct report {
    char *title, *subtitle;
    size_t steps, epoch_steps, rates;
    char *rate_name[REPORT_MOST_RATES];
    float *loss; /* [steps]; NAN: not run */
    float *rate; /* [steps, rates] */
    unsigned char *skipped; /* [steps] */
    size_t done, first; /* steps known; the first of this run */
    double seconds;     /* of this run's steps */
    struct report_row *row[REPORT_TABLES];
    size_t rows[REPORT_TABLES], row_cap[REPORT_TABLES];
    char *data;
    struct report_validated *validated;
    size_t validations, validation_cap;
    struct report_norm_set *norms;
    size_t norm_sets, norm_cap;
    struct report_picture *picture;
    size_t pictures, picture_cap;
    struct arena text;
};

/* The page, onto a stream. */
void report_print(const struct report *r, const char *status, FILE *out);

/* Where the history lies in the page. */
#define REPORT_HISTORY_BEGIN "<script type='application/json' id=history>"
#define REPORT_HISTORY_END   "</script>"

/* The history as JSON; the caller frees it. NULL without memory. */
char *report_history(const struct report *r, struct err *err);

#endif
