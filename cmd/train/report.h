/* report.html: one self-contained page about a training, in the output folder: curves of loss and rates, norms by block, sample
 * pictures by step, settings, data, machine, times. Written anew at every save, never half.
 *
 *     report_new()             when the number of steps and the names of the rates are known
 *     report_resume()          a resumed run: takes the history before its first step out of the page that is there
 *     report_fact(), report_data()
 *     report_step()            each step; allocates nothing
 *     report_validation(), report_norms(), report_sample()
 *     report_write()           at every save and at the end
 *
 * The history travels in the page itself, as JSON, so that a resumed run's page shows the whole. Failing to write the page
 * need not stop a training: the caller decides.
 */
#ifndef CMD_TRAIN_REPORT_H
#define CMD_TRAIN_REPORT_H

#include <stdbool.h>
#include <stddef.h>

#include "ref/base/err.h"

enum { REPORT_MOST_RATES = 8 };

struct report;

struct report_options {
    const char *title;    /* the headline: the output's name; copied, as all strings here */
    const char *subtitle; /* a line below it: "rank 8 for 264 modules of model.safetensors"; may be NULL */
    size_t steps;         /* optimizer steps of the whole run */
    size_t epoch_steps;   /* in an epoch; 0: no epochs are shown */
    const char *rate[REPORT_MOST_RATES]; /* names of the rates a step is given: "U-Net", "text encoder", .. */
    size_t rates;
};

int report_new(struct report **out, const struct report_options *o, struct err *err);
void report_free(struct report *r); /* NULL is fine */

/* Steps before `step` (0-based) from the page at path. A missing page is no error (nothing is taken); one that is not such a
 * page is. Facts and data are not taken: they are this run's. */
int report_resume(struct report *r, const char *path, size_t step, struct err *err);

/* A row of a table; the same name again replaces the value. */
enum report_table { REPORT_SETTINGS, REPORT_MACHINE, REPORT_TIMES, REPORT_TABLES };
int report_fact(struct report *r, enum report_table table, const char *name, const char *value, struct err *err);

/* The data set as plain text (dataset_table()). */
int report_data(struct report *r, const char *text, struct err *err);

/* One optimizer step, 0-based: its loss and rates [rates]. skipped: the step was dropped because of NaN or infinity (the loss
 * need not be finite). seconds: how long it took. */
void report_step(struct report *r, size_t step, double loss, const double *rate, bool skipped, double seconds);

/* Loss on the held-back pictures after `step` steps. */
int report_validation(struct report *r, size_t step, double loss, struct err *err);

/* Frobenius norms of what the LoRA adds, after `step` steps: norm [n] with the blocks' names (target_block_name()). */
int report_norms(struct report *r, size_t step, const char *const *block, const double *norm, size_t n, struct err *err);

/* A sample picture after `step` steps. path: of the picture file, as it is found from the page's folder. The file is read now and
 * kept small (at most 256 pixels a side); its path is kept for report_resume(). */
int report_sample(struct report *r, size_t step, const char *prompt, const char *folder, const char *path, struct err *err);

/* Writes FOLDER/report.html. status: "running", "finished", "stopped": shown at the top. */
int report_write(const struct report *r, const char *path, const char *status, struct err *err);

#endif
