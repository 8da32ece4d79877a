#include "ref/optim/lr.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

static const double pi = 3.14159265358979323846;

static double linear(const struct lr_schedule *s, double step)
{
    double left = (double)s->total - step;

    return fmax(0, left / fmax(1, (double)s->total - (double)s->warmup));
}

/* How much of what follows the warm-up is over; may pass 1. */
static double progress(const struct lr_schedule *s, double step)
{
    return (step - (double)s->warmup) / fmax(1, (double)s->total - (double)s->warmup);
}

static double cosine(const struct lr_schedule *s, double step)
{
    return fmax(0, 0.5 * (1 + cos(pi * progress(s, step))));
}

static double cosine_with_restarts(const struct lr_schedule *s, double step)
{
    double x = progress(s, step);

    return x >= 1 ? 0 : fmax(0, 0.5 * (1 + cos(pi * fmod(s->cycles * x, 1))));
}

static double cosine_with_min_lr(const struct lr_schedule *s, double step)
{
    double x = 0.5 * (1 + cos(pi * s->cycles * progress(s, step)));

    return fmax(0, x * (1 - s->min_ratio) + s->min_ratio);
}

static double polynomial(const struct lr_schedule *s, double step)
{
    double left = 1 - (step - (double)s->warmup) / ((double)s->total - (double)s->warmup);

    return step > (double)s->total ? s->end : (1 - s->end) * pow(left, s->power) + s->end;
}

static double constant(const struct lr_schedule *s, double step)
{
    (void)s;
    (void)step;
    return 1;
}

static double inverse_sqrt(const struct lr_schedule *s, double step)
{
    return 1 / sqrt((step + s->timescale - (double)s->warmup) / s->timescale);
}

static double warmup_stable_decay(const struct lr_schedule *s, double step)
{
    double x = step - (double)s->warmup - (double)s->stable;

    if (x < 0)
        return 1;
    if (x >= (double)s->decay)
        return s->min_ratio;
    x = 0.5 * (1 + cos(pi * s->cycles * (x / (double)s->decay)));
    return fmax(0, x * (1 - s->min_ratio) + s->min_ratio);
}

static double piecewise_constant(const struct lr_schedule *s, double step)
{
    size_t i = 0;

    while (i < s->rules && step >= (double)s->until[i])
        i++;
    return s->factor[i];
}

/* One row a schedule. bare: it has no warm-up of its own, and asking for one is a mistake. */
static const struct {
    const char *name;
    double (*factor)(const struct lr_schedule *s, double step);
    bool bare, floor; /* floor: the warm-up begins at min_ratio */
} kinds[] = {
    {"constant", constant, true, false},
    {"constant_with_warmup", constant, false, false},
    {"linear", linear, false, false},
    {"cosine", cosine, false, false},
    {"cosine_with_restarts", cosine_with_restarts, false, false},
    {"polynomial", polynomial, false, false},
    {"cosine_with_min_lr", cosine_with_min_lr, false, false},
    {"inverse_sqrt", inverse_sqrt, false, false},
    {"warmup_stable_decay", warmup_stable_decay, false, true},
    {"piecewise_constant", piecewise_constant, true, false},
};

enum { KINDS = sizeof kinds / sizeof *kinds };

const char *const lr_names[] = {
    "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial",
    "cosine_with_min_lr", "inverse_sqrt", "warmup_stable_decay", "piecewise_constant", NULL,
};

static int find(const char *name, struct err *err)
{
    char list[256] = "";

    for (int i = 0; i < KINDS; i++)
        if (strcasecmp(kinds[i].name, name) == 0)
            return i;
    for (int i = 0; i < KINDS; i++) {
        strcat(list, i ? ", " : "");
        strcat(list, kinds[i].name);
    }
    return err_usage(err, "there is no learning rate schedule '%s'; choose one of %s", name, list);
}

/* "1:10,0.1:20,0.005" */
static int read_rules(struct lr_schedule *s, const char *text, struct err *err)
{
    const char *at = text;

    for (;;) {
        char *end;
        double factor = strtod(at, &end);
        unsigned long long until;

        if (end == at || !isfinite(factor) || factor < 0)
            break;
        s->factor[s->rules] = factor;
        if (*end == '\0')
            return 0;
        at = end + 1;
        if (*end != ':' || *at < '0' || *at > '9' || s->rules == LR_MAX_RULES)
            break;
        until = strtoull(at, &end, 10);
        if (*end != ',' || (s->rules && until <= s->until[s->rules - 1]))
            break;
        s->until[s->rules++] = (size_t)until;
        at = end + 1;
    }
    return err_usage(err, "'%s' are no rules of a piecewise_constant schedule; write factor:step, with growing steps, and the last factor, as "
                          "in 1:100,0.1:200,0.01", text);
}

/* A number of steps: below 1 a share of the whole run. */
static size_t steps_of(double x, size_t total)
{
    return (size_t)(x < 1 ? x * (double)total : x);
}

static int check(const struct lr_schedule *s, const struct lr_options *o, struct err *err)
{
    const char *name = kinds[s->kind].name;

    if (s->warmup && kinds[s->kind].bare && strcmp(name, "constant") == 0)
        return err_usage(err, "the learning rate schedule 'constant' has no warm-up; use constant_with_warmup, or leave --lr_warmup_steps out");
    if (s->warmup && kinds[s->kind].bare)
        return err_usage(err, "the learning rate schedule '%s' has no warm-up; leave --lr_warmup_steps out", name);
    if (kinds[s->kind].factor == polynomial && !(o->rate > 1e-7))
        return err_usage(err, "the learning rate schedule 'polynomial' ends at 1e-7, and the rate is %g; choose a larger one", o->rate);
    if (kinds[s->kind].factor == warmup_stable_decay && s->warmup + s->decay > s->total)
        return err_usage(err, "%zu steps of warm-up and %zu of decay are more than the run's %zu; choose fewer", s->warmup, s->decay, s->total);
    return 0;
}

int lr_open(struct lr_schedule *s, const struct lr_options *o, struct err *err)
{
    int kind = find(o->name ? o->name : "constant", err);

    if (kind < 0)
        return -1;
    *s = (struct lr_schedule){
        .kind = kind,
        .warmup = steps_of(o->warmup, o->total),
        .decay = steps_of(o->decay, o->total),
        .total = o->total,
        .cycles = o->cycles > 0 ? o->cycles : 1,
        .power = o->power > 0 ? o->power : 1,
        .min_ratio = o->min_ratio,
        .end = o->rate > 0 ? 1e-7 / o->rate : 0,
        .factor = {1},
    };
    s->timescale = o->timescale > 0 ? o->timescale : s->warmup ? (double)s->warmup : 10000;
    if (kinds[kind].factor == piecewise_constant) {
        if (!o->rules)
            return err_usage(err, "the learning rate schedule 'piecewise_constant' needs rules; give them with --lr_scheduler_args, as in "
                                  "step_rules=1:100,0.1:200,0.01");
        if (read_rules(s, o->rules, err))
            return -1;
    }
    if (check(s, o, err))
        return -1;
    s->stable = s->total - s->warmup - s->decay;
    return 0;
}

double lr_factor(const struct lr_schedule *s, size_t step)
{
    if (step < s->warmup) {
        double floor = kinds[s->kind].floor ? s->min_ratio : 0, x = (double)step / (double)s->warmup;

        return x * (1 - floor) + floor;
    }
    return kinds[s->kind].factor(s, (double)step);
}
