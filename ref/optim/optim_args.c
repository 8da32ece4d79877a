/* Names and arguments of optimizers: rows, as people type them. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "ref/optim/optim_args.h"

static const struct optim_kind *const kinds[] = {
    &optim_adamw, &optim_adamw8bit, &optim_lion, &optim_lion8bit, &optim_sgd, &optim_sgd_nesterov, &optim_adafactor, &optim_prodigy,
    &optim_dadapt_adam,
};

enum { KINDS = sizeof kinds / sizeof *kinds };

static bool is_called(const struct optim_kind *k, const char *name)
{
    if (strcasecmp(k->name, name) == 0)
        return true;
    for (const char *const *a = k->also; a && *a; a++)
        if (strcasecmp(*a, name) == 0)
            return true;
    return false;
}

const struct optim_kind *optim_find(const char *name, struct err *err)
{
    char list[512] = "";

    for (size_t i = 0; i < KINDS; i++)
        if (is_called(kinds[i], name))
            return kinds[i];
    for (size_t i = 0; i < KINDS; i++) {
        strcat(list, i ? ", " : "");
        strcat(list, kinds[i]->name);
    }
    err_usage(err, "there is no optimizer '%s'; choose one of %s", name, list);
    return NULL;
}

static const char *spelling(const struct optim_arg *a)
{
    return a->spelling ? a->spelling : a->key;
}

/* One number at *s, moved behind it. Infinity is a number here. */
static bool number(const char **s, double *x)
{
    char *end;

    errno = 0;
    *x = strtod(*s, &end);
    if (end == *s || isnan(*x))
        return false;
    *s = end;
    return true;
}

static bool in_range(const struct optim_arg *a, double x)
{
    return x >= a->min && x <= a->max && !(a->above_min && x <= a->min) && !(a->below_max && x >= a->max);
}

/* Two numbers with a comma between them, with or without brackets. */
static bool pair(const char *s, double x[2])
{
    bool bracket = *s == '(' || *s == '[';

    s += bracket;
    if (!number(&s, &x[0]))
        return false;
    s += strspn(s, " ");
    if (*s++ != ',' || !number(&s, &x[1]))
        return false;
    return strcmp(s, bracket ? ")" : "") == 0 || strcmp(s, bracket ? "]" : "") == 0;
}

static bool flag(const char *s, bool *x)
{
    *x = strcasecmp(s, "true") == 0 || strcmp(s, "1") == 0;
    return *x || strcasecmp(s, "false") == 0 || strcmp(s, "0") == 0;
}

static bool optional(const char *s, double *x)
{
    if (strcasecmp(s, "none") == 0) {
        *x = (double)NAN;
        return true;
    }
    return number(&s, x) && *s == '\0';
}

/* Reads the value of one argument. Returns false with what is expected in *wanted. */
static bool set(const struct optim_arg *a, const char *text, struct optim_values *v, const char **wanted)
{
    void *field = (char *)v + a->offset;
    double x[2];

    switch (a->type) {
    case ARG_FLAG:
        *wanted = "True or False";
        return flag(text, field);
    case ARG_PAIR:
        *wanted = "two numbers such as 0.9,0.99";
        if (!pair(text, x))
            return false;
        *wanted = "numbers from 0 to below 1";
        if (!in_range(a, x[0]) || !in_range(a, x[1]))
            return false;
        memcpy(field, x, sizeof x);
        return true;
    case ARG_OPTIONAL:
    case ARG_NUMBER:
        *wanted = a->type == ARG_OPTIONAL ? "a number or None" : "a number";
        if (!optional(text, x) || (isnan(x[0]) && a->type == ARG_NUMBER))
            return false;
        *wanted = a->above_min ? "a number above its least one" : "a number in its range";
        if (!isnan(x[0]) && !in_range(a, x[0]))
            return false;
        memcpy(field, x, sizeof *x);
        return true;
    }
    return false;
}

static const struct optim_arg *find(const struct optim_kind *k, const char *key, size_t n)
{
    for (const struct optim_arg *a = k->args; a->key; a++)
        if (strlen(spelling(a)) == n && strncmp(spelling(a), key, n) == 0)
            return a;
    return NULL;
}

static int refuse_key(const struct optim_kind *k, const char *arg, struct err *err)
{
    char list[512] = "";

    for (const struct optim_arg *a = k->args; a->key; a++) {
        strcat(list, a == k->args ? "" : ", ");
        strcat(list, spelling(a));
    }
    return err_usage(err, "'%s' is no argument of %s; it takes %s, each as key=value", arg, k->name, list);
}

static int refuse_value(const struct optim_arg *a, const char *arg, const char *wanted, struct err *err)
{
    char range[96] = "";

    if (a->type == ARG_NUMBER || a->type == ARG_OPTIONAL) {
        if (isfinite(a->min) && isfinite(a->max))
            snprintf(range, sizeof range, " (%s %g %s %g)", a->above_min ? "above" : "from", a->min, a->below_max ? "to below" : "to", a->max);
        else if (isfinite(a->min))
            snprintf(range, sizeof range, " (%s %g)", a->above_min ? "above" : "at least", a->min);
    }
    return err_usage(err, "optimizer argument '%s': give %s%s", arg, wanted, range);
}

int optim_parse(const struct optim_kind *k, const char *const *args, size_t n, struct optim_values *v, struct err *err)
{
    const char *wanted;

    *v = (struct optim_values){0};
    for (const struct optim_arg *a = k->args; a->key; a++)
        if (!set(a, a->def, v, &wanted))
            return err_set(err, "%s: the default of '%s' is no value of it", k->name, a->key);
    for (size_t i = 0; i < n; i++) {
        size_t key = strcspn(args[i], "=");
        const struct optim_arg *a = find(k, args[i], key);

        if (!a || args[i][key] != '=')
            return refuse_key(k, args[i], err);
        if (!set(a, args[i] + key + 1, v, &wanted))
            return refuse_value(a, args[i], wanted, err);
    }
    return k->check ? k->check(v, err) : 0;
}

static int print(const struct optim_arg *a, const struct optim_values *v, char *text, size_t size)
{
    const void *field = (const char *)v + a->offset;
    const double *x = field;

    switch (a->type) {
    case ARG_FLAG:
        return snprintf(text, size, "%s=%s", spelling(a), *(const bool *)field ? "True" : "False");
    case ARG_PAIR:
        return snprintf(text, size, "%s=(%.6g,%.6g)", spelling(a), x[0], x[1]);
    case ARG_OPTIONAL:
    case ARG_NUMBER:
        break;
    }
    return isnan(*x) ? snprintf(text, size, "%s=None", spelling(a)) : snprintf(text, size, "%s=%.6g", spelling(a), *x);
}

void optim_print_args(const struct optim_kind *k, const struct optim_values *v, char *text, size_t size)
{
    size_t at = 0;

    text[0] = '\0';
    for (const struct optim_arg *a = k->args; a->key && at + 3 < size; a++) {
        if (a != k->args)
            at += (size_t)snprintf(text + at, size - at, ", ");
        at += (size_t)print(a, v, text + at, size - at);
    }
}

void optim_describe(FILE *out)
{
    struct optim_values v;
    struct err err = {0};
    char text[OPTIM_ARGS_TEXT];

    for (size_t i = 0; i < KINDS; i++) {
        if (optim_parse(kinds[i], NULL, 0, &v, &err))
            continue;
        optim_print_args(kinds[i], &v, text, sizeof text);
        fprintf(out, "%-12s %s\n             %s\n", kinds[i]->name, kinds[i]->help, text);
    }
}
