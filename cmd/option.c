#include "cmd/option.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool takes_value(const struct option_row *r)
{
    return r->type != OPTION_FLAG;
}

static bool is_list(const struct option_row *r)
{
    return r->type == OPTION_STRINGS || r->type == OPTION_FLOATS || r->type == OPTION_INTS;
}

static void *field_of(const struct option_values *v, const struct option_row *r)
{
    return (char *)v->base + r->offset;
}

/* How the option is written on a command line: positional ones in capitals of their argument. */
static const char *typed_name(const struct option_row *r, char *buf, size_t size)
{
    if (r->flags & OPTION_POSITIONAL)
        snprintf(buf, size, "%s", r->arg ? r->arg : r->name);
    else
        snprintf(buf, size, "--%s", r->name);
    return buf;
}

static int bad(const struct option_row *r, struct err *err, const char *text, const char *what)
{
    char name[128];

    return err_usage(err, "option '%s': '%s' %s", typed_name(r, name, sizeof name), text, what);
}

static int check_range(const struct option_row *r, double x, const char *text, struct err *err)
{
    char what[128];

    if (!(r->min < r->max) || (x >= r->min && x <= r->max))
        return 0;
    if (isinf(r->max))
        snprintf(what, sizeof what, "is too small; the least is %.10g", r->min);
    else if (isinf(r->min))
        snprintf(what, sizeof what, "is too large; the most is %.10g", r->max);
    else
        snprintf(what, sizeof what, "is out of range; give a value from %.10g to %.10g", r->min, r->max);
    return bad(r, err, text, what);
}

static int parse_int(const struct option_row *r, const char *text, int64_t *out, struct err *err)
{
    char *end;
    long long x;

    errno = 0;
    x = strtoll(text, &end, 10);
    if (end == text || *end || isspace((unsigned char)*text))
        return bad(r, err, text, "is not an integer; give a whole number such as 4");
    if (errno)
        return bad(r, err, text, "is too large for any use; give a smaller number");
    *out = x;
    return check_range(r, (double)x, text, err);
}

static int parse_size(const struct option_row *r, const char *text, size_t *out, struct err *err)
{
    int64_t x = 0;

    if (parse_int(r, text, &x, err))
        return -1;
    if (x < 0)
        return bad(r, err, text, "is negative; give 0 or more");
    *out = (size_t)x;
    return 0;
}

static int parse_float(const struct option_row *r, const char *text, double *out, struct err *err)
{
    char *end;
    double x;

    x = strtod(text, &end);
    if (end == text || *end || isspace((unsigned char)*text))
        return bad(r, err, text, "is not a number; give one such as 0.8");
    if (!isfinite(x))
        return bad(r, err, text, "is not a finite number; give one such as 0.8");
    *out = x;
    return check_range(r, x, text, err);
}

static int parse_choice(const struct option_row *r, const char *text, int *out, struct err *err)
{
    char what[512] = "is not one of: ";
    size_t n = 0;

    for (; r->choices[n]; n++) {
        if (strcmp(r->choices[n], text) == 0) {
            *out = (int)n;
            return 0;
        }
        snprintf(what + strlen(what), sizeof what - strlen(what), "%s%s", n ? ", " : "", r->choices[n]);
    }
    const char *near = option_nearest(text, r->choices, n);

    if (near)
        snprintf(what + strlen(what), sizeof what - strlen(what), "; did you mean '%s'?", near);
    return bad(r, err, text, what);
}

static int parse_dtype(const struct option_row *r, const char *text, struct option_dtype *out, struct err *err)
{
    if (!dtype_parse(text, &out->dtype))
        return bad(r, err, text, "is not a number format; give float, fp16 or bf16");
    out->set = true;
    return 0;
}

/* Lists: n texts to an array in the arena. */
static int parse_list(struct option_values *v, const struct option_row *r, const char *const *texts, size_t n, void *field,
                      struct err *err)
{
    size_t size = r->type == OPTION_STRINGS ? sizeof *texts : r->type == OPTION_FLOATS ? sizeof(double) : sizeof(int64_t);
    void *item = n ? arena_alloc(&v->arena, n * size, err) : NULL;

    if (n && !item)
        return -1;
    for (size_t i = 0; i < n; i++) {
        if (r->type == OPTION_STRINGS)
            ((const char **)item)[i] = texts[i];
        else if (r->type == OPTION_FLOATS ? parse_float(r, texts[i], (double *)item + i, err)
                                          : parse_int(r, texts[i], (int64_t *)item + i, err))
            return -1;
    }
    /* The three list structs have one layout, but C asks for each to be written as itself. */
    if (r->type == OPTION_STRINGS)
        *(struct string_list *)field = (struct string_list){item, n};
    else if (r->type == OPTION_FLOATS)
        *(struct float_list *)field = (struct float_list){item, n};
    else
        *(struct int_list *)field = (struct int_list){item, n};
    return 0;
}

static int parse_into(struct option_values *v, const struct option_row *r, const char *const *texts, size_t n, void *field,
                      struct err *err)
{
    switch (r->type) {
    case OPTION_FLAG:
        *(bool *)field = true;
        return 0;
    case OPTION_INT:
        return parse_int(r, texts[0], field, err);
    case OPTION_SIZE:
        return parse_size(r, texts[0], field, err);
    case OPTION_FLOAT:
        return parse_float(r, texts[0], field, err);
    case OPTION_STRING:
        *(const char **)field = texts[0];
        return 0;
    case OPTION_CHOICE:
        return parse_choice(r, texts[0], field, err);
    case OPTION_DTYPE:
        return parse_dtype(r, texts[0], field, err);
    case OPTION_STRINGS:
    case OPTION_FLOATS:
    case OPTION_INTS:
        return parse_list(v, r, texts, n, field, err);
    }
    return err_set(err, "option '--%s' has no type", r->name);
}

/* A field big enough for any type, to check a value that will be dropped. */
union any_field {
    bool flag;
    int64_t i;
    size_t z;
    double d;
    const char *s;
    int choice;
    struct option_dtype dtype;
    struct string_list strings;
    struct float_list floats;
    struct int_list ints;
};

static enum option_source field_source(const struct option_values *v, size_t offset)
{
    enum option_source s = OPTION_FROM_DEFAULT;

    for (size_t k = 0; k < v->count; k++)
        if (!v->rows[k].ignored && v->rows[k].offset == offset && v->source[k] > s)
            s = (enum option_source)v->source[k];
    return s;
}

int option_set(struct option_values *v, size_t i, const char *const *texts, size_t n, enum option_source source,
               struct err *err)
{
    const struct option_row *r = &v->rows[i];
    union any_field dropped;
    char name[128];

    if (!takes_value(r) && n > 0)
        return err_usage(err, "option '--%s' takes no value; leave '%s' out", r->name, texts[0]);
    if (takes_value(r) && n == 0)
        return err_usage(err, "option '%s' needs %s; see --help", typed_name(r, name, sizeof name),
                         is_list(r) ? "at least one value" : "a value");
    if (takes_value(r) && !is_list(r) && n > 1)
        return err_usage(err, "option '%s' takes one value, not %zu", typed_name(r, name, sizeof name), n);
    if (!r->ignored) {
        bool weaker = source < field_source(v, r->offset);

        if (parse_into(v, r, texts, n, weaker ? (void *)&dropped : field_of(v, r), err))
            return -1;
        if (weaker)
            return 0;
    }
    v->source[i] = (unsigned char)source;
    return 0;
}

static void set_unset(const struct option_row *r, void *field)
{
    switch (r->type) {
    case OPTION_FLAG:
        *(bool *)field = false;
        break;
    case OPTION_INT:
        *(int64_t *)field = 0;
        break;
    case OPTION_SIZE:
        *(size_t *)field = 0;
        break;
    case OPTION_FLOAT:
        *(double *)field = 0;
        break;
    case OPTION_STRING:
        *(const char **)field = NULL;
        break;
    case OPTION_CHOICE:
        *(int *)field = -1;
        break;
    case OPTION_DTYPE:
        *(struct option_dtype *)field = (struct option_dtype){0};
        break;
    case OPTION_STRINGS:
        *(struct string_list *)field = (struct string_list){0};
        break;
    case OPTION_FLOATS:
        *(struct float_list *)field = (struct float_list){0};
        break;
    case OPTION_INTS:
        *(struct int_list *)field = (struct int_list){0};
        break;
    }
}

int option_values_init(struct option_values *v, const struct option_row *rows, void *base, struct err *err)
{
    static const struct option_row none[1];

    *v = (struct option_values){.rows = rows ? rows : none, .base = base};
    while (v->rows[v->count].name)
        v->count++;
    v->source = mem_zero(v->count + 1, 1, "options", err);
    if (!v->source)
        return -1;
    for (size_t i = 0; i < v->count; i++) {
        const struct option_row *r = &v->rows[i];

        if (r->ignored || r->alias_of)
            continue;
        set_unset(r, field_of(v, r));
        if (r->def && parse_into(v, r, &r->def, 1, field_of(v, r), err)) {
            option_values_free(v);
            return -1;
        }
    }
    return 0;
}

void option_values_free(struct option_values *v)
{
    arena_free(&v->arena);
    free(v->source);
    *v = (struct option_values){0};
}

bool option_given(const struct option_values *v, const void *field)
{
    return field_source(v, (size_t)((const char *)field - (const char *)v->base)) != OPTION_FROM_DEFAULT;
}

static bool missing(const struct option_values *v, const struct option_row *r)
{
    return field_source(v, r->offset) == OPTION_FROM_DEFAULT;
}

/* "--model_org PATH (base model)" behind what the list has; `glue` in front unless it is the first. */
static void append_row(char *list, size_t size, const char *glue, const struct option_row *r)
{
    char name[128];
    size_t n = strlen(list);
    bool bare = r->flags & OPTION_POSITIONAL || !r->arg;

    snprintf(list + n, size - n, "%s%s%s%s (%s)", n ? glue : "", typed_name(r, name, sizeof name), bare ? "" : " ",
             bare ? "" : r->arg, r->help);
}

int option_check_required(const struct option_values *v, const char *who, struct err *err)
{
    char list[sizeof err->msg] = "", choice[sizeof list] = "";
    bool chosen = false;

    for (size_t i = 0; i < v->count; i++) {
        const struct option_row *r = &v->rows[i];

        if (r->flags & OPTION_REQUIRED && missing(v, r))
            append_row(list, sizeof list, ", ", r);
        if (r->flags & OPTION_EITHER)
            append_row(choice, sizeof choice, " or ", r);
        chosen = chosen || (r->flags & OPTION_EITHER && !missing(v, r));
    }
    if (choice[0] && !chosen)
        snprintf(list + strlen(list), sizeof list - strlen(list), "%s%s", list[0] ? ", and " : "", choice);
    return list[0] ? err_usage(err, "'%s' needs %s; see '%s --help'", who, list, who) : 0;
}
