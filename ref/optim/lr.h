/* Learning rate schedules: a factor on each group's rate, as a function of the step alone.
 *
 * Names and formulas are those of diffusers.optimization.get_scheduler at the time of sd-scripts v0.3.0 (linear, cosine,
 * cosine_with_restarts, polynomial, constant, constant_with_warmup) and of transformers' and sd-scripts' newer ones
 * (piecewise_constant, inverse_sqrt, cosine_with_min_lr, warmup_stable_decay). As there, the first step of a run
 * has number 0, so it has rate 0 when there is a warm-up.
 */
#ifndef REF_OPTIM_LR_H
#define REF_OPTIM_LR_H

#include <stddef.h>

#include "ref/base/err.h"

struct lr_options {
    const char *name;   /* NULL: constant */
    double warmup;      /* steps; below 1: that share of total */
    double decay;       /* warmup_stable_decay: steps of the last phase; below 1: that share of total */
    size_t total;       /* optimizer steps of the whole run */
    double cycles;      /* cosine_with_restarts, cosine_with_min_lr (half waves), warmup_stable_decay; 0: 1 */
    double power;       /* polynomial; 0: 1 */
    double timescale;   /* inverse_sqrt; 0: the warm-up, or 10,000 without one */
    double min_ratio;   /* cosine_with_min_lr, warmup_stable_decay: least rate over the first one */
    double rate;        /* the run's learning rate: polynomial ends at 1e-7 over it */
    const char *rules;  /* piecewise_constant: "1:10,0.1:20,0.005": factor up to a step, ..., factor for the rest */
};

enum { LR_MAX_RULES = 32 };

/* A parsed schedule, plain data. */
struct lr_schedule {
    int kind;
    size_t warmup, stable, decay, total;
    double cycles, power, timescale, min_ratio, end;
    size_t rules, until[LR_MAX_RULES];
    double factor[LR_MAX_RULES];
};

/* Checks the options and fills *s. -1: unknown name (usage error that suggests the nearest), rules that do not parse, polynomial
 * with a rate of 1e-7 or less, phases longer than the run. */
int lr_open(struct lr_schedule *s, const struct lr_options *o, struct err *err);

/* The factor on the rate for optimizer step `step` (0, 1, ..). Holds beyond the end too, as in the originals. */
double lr_factor(const struct lr_schedule *s, size_t step);

/* Names of all schedules, NULL at the end; for option rows. */
extern const char *const lr_names[];

#endif
