/* --logging_dir and --log_prefix: curves for TensorBoard, in sd-scripts' folders and with its newer names.
 *
 * A run's files are in LOGGING_DIR/PREFIX + YYYYMMDDhhmmss/network_train. Curves: loss/current, loss/average, loss/epoch_average,
 * loss/validation, lr/NAME for each rate, lr/d*lr/NAME for optimizers that find theirs. All functions take NULL for logs (no
 * --logging_dir) and do nothing then.
 */
#ifndef CMD_TRAIN_LOGS_H
#define CMD_TRAIN_LOGS_H

#include <stddef.h>

#include "ref/base/err.h"

struct logs;

enum { LOGS_MOST_RATES = 32 };

struct logs_options {
    const char *logging_dir, *log_prefix; /* logging_dir NULL: no logs; log_prefix may be NULL */
    const char *const *rate;              /* [rates] names: "unet", "textencoder", "group0", ..; copied */
    size_t rates;
    const char *resume; /* the folder of the run that is continued (logs_folder(), from its state), or NULL */
    size_t step;        /* first step of this run, 0-based */
};

/* *out = NULL without a logging_dir. The folder is made at once, so that a wrong one is known before the training. */
int logs_open(struct logs **out, const struct logs_options *o, struct err *err);

/* The folder that has the event files; NULL without logs. */
const char *logs_folder(const struct logs *l);

/* After step `step` (counted from 1): rate [rates] as the schedule gives it; factor: optim_factor(). Written to the file. */
int logs_step(struct logs *l, size_t step, double loss, double average, const double *rate, double factor, struct err *err);

/* After an epoch (counted from 1); validation after a step. */
int logs_epoch(struct logs *l, size_t epoch, double average, struct err *err);
int logs_validation(struct logs *l, size_t step, double loss, struct err *err);

/* A sample picture file (PNG; others are left out) after a step; name: "sample 0". */
int logs_sample(struct logs *l, size_t step, const char *name, const char *path, struct err *err);

int logs_close(struct logs *l, struct err *err);

#endif
