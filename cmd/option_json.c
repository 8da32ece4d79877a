/* Options to and from a JSON object: the options file beside an output, and --config. */
#include "cmd/option.h"

#include <stdio.h>
#include <string.h>

static json_t *list_to_json(const struct option_row *r, const void *field)
{
    json_t *list = json_array();
    const struct string_list *s = field;
    const struct float_list *f = field;
    const struct int_list *n = field;

    if (r->type == OPTION_STRINGS)
        for (size_t i = 0; i < s->count; i++)
            json_array_append_new(list, json_string(s->item[i]));
    else if (r->type == OPTION_FLOATS)
        for (size_t i = 0; i < f->count; i++)
            json_array_append_new(list, json_real(f->item[i]));
    else
        for (size_t i = 0; i < n->count; i++)
            json_array_append_new(list, json_integer((json_int_t)n->item[i]));
    return list;
}

/* The value as JSON, or NULL when it is unset (or, for a string, not UTF-8: then *bad_text is set). */
static json_t *value_to_json(const struct option_row *r, const void *field, bool *bad_text)
{
    json_t *j = NULL;

    switch (r->type) {
    case OPTION_FLAG:
        return *(const bool *)field ? json_true() : NULL;
    case OPTION_INT:
        return json_integer((json_int_t) * (const int64_t *)field);
    case OPTION_SIZE:
        return json_integer((json_int_t) * (const size_t *)field);
    case OPTION_FLOAT:
        return json_real(*(const double *)field);
    case OPTION_STRING:
        if (!*(const char *const *)field)
            return NULL;
        j = json_string(*(const char *const *)field);
        break;
    case OPTION_CHOICE:
        return *(const int *)field < 0 ? NULL : json_string(r->choices[*(const int *)field]);
    case OPTION_DTYPE:
        return ((const struct option_dtype *)field)->set ? json_string(dtype_name(((const struct option_dtype *)field)->dtype))
                                                         : NULL;
    case OPTION_STRINGS:
    case OPTION_FLOATS:
    case OPTION_INTS:
        if (((const struct string_list *)field)->count == 0)
            return NULL;
        j = list_to_json(r, field);
        if (j && json_array_size(j) < ((const struct string_list *)field)->count) {
            json_decref(j);
            j = NULL;
        }
        break;
    }
    *bad_text = !j;
    return j;
}

json_t *option_to_json(const struct option_values *v, struct err *err)
{
    json_t *o = json_object();

    for (size_t i = 0; o && i < v->count; i++) {
        const struct option_row *r = &v->rows[i];
        const void *field = (const char *)v->base + r->offset;
        bool bad_text = false;
        json_t *j;

        if (r->ignored || r->alias_of)
            continue;
        /* A number without a default that nobody set is not 0: leave it out. */
        if (!r->def && !option_given(v, field))
            continue;
        j = value_to_json(r, field, &bad_text);
        if (bad_text) {
            json_decref(o);
            err_set(err, "the value of option '--%s' is not UTF-8 text; it cannot be written as JSON", r->name);
            return NULL;
        }
        if (j && json_object_set_new(o, r->name, j)) {
            json_decref(o);
            o = NULL;
        }
    }
    if (!o)
        err_memory(err, 4096, "the options as JSON");
    return o;
}

/* One scalar as the text that would be typed; NULL when the value has no such form. */
static const char *scalar_text(struct option_values *v, const json_t *j, struct err *err)
{
    if (json_is_string(j)) {
        if (strlen(json_string_value(j)) != json_string_length(j)) {
            err_usage(err, "has a NUL character");
            return NULL;
        }
        return arena_str(&v->arena, json_string_value(j), err);
    }
    if (json_is_integer(j))
        return arena_printf(&v->arena, err, "%lld", (long long)json_integer_value(j));
    if (json_is_real(j))
        return arena_printf(&v->arena, err, "%.17g", json_real_value(j));
    err_usage(err, "must be %s", "a text, a number, true, false, or a list of these");
    return NULL;
}

static int set_from_value(struct option_values *v, size_t i, const json_t *j, struct err *err)
{
    const struct option_row *r = &v->rows[i];
    bool list = json_is_array(j);
    size_t n = list ? json_array_size(j) : 1;
    const char **texts;

    if (json_is_null(j) || (r->type == OPTION_FLAG && json_is_false(j)))
        return 0;
    if (r->type == OPTION_FLAG && json_is_true(j))
        return option_set(v, i, NULL, 0, OPTION_FROM_CONFIG, err);
    if (r->type == OPTION_FLAG)
        return err_usage(err, "must be true or false");
    if (r->ignored)
        return option_set(v, i, (const char *const[]){""}, 1, OPTION_FROM_CONFIG, err);
    texts = arena_alloc(&v->arena, (n + 1) * sizeof *texts, err);
    if (!texts)
        return -1;
    for (size_t k = 0; k < n; k++)
        if (!(texts[k] = scalar_text(v, list ? json_array_get(j, k) : j, err)))
            return -1;
    return option_set(v, i, texts, n, OPTION_FROM_CONFIG, err);
}

static int set_by_name(struct option_values *tables, size_t n_tables, const char *key, const json_t *j, const char *path,
                       struct err *err)
{
    const char *words[512], *near;
    size_t n = 0;

    for (size_t t = 0; t < n_tables; t++) {
        size_t i = option_find(&tables[t], key);

        if (i == SIZE_MAX)
            continue;
        if (set_from_value(&tables[t], i, j, err) == 0)
            return 0;
        return err->kind == ERR_FAILED ? -1 : err_prefix(err, "'%s': option '%s': ", path, key);
    }
    for (size_t t = 0; t < n_tables; t++)
        for (size_t i = 0; i < tables[t].count && n < sizeof words / sizeof *words; i++)
            words[n++] = tables[t].rows[i].name;
    near = option_nearest(key, words, n);
    return near ? err_usage(err, "'%s': unknown option '%s'; did you mean '%s'?", path, key, near)
                : err_usage(err, "'%s': unknown option '%s'; the command's --help lists what it takes", path, key);
}

/* Objects group options; eight levels are more than any file has. */
static int from_object(struct option_values *tables, size_t n_tables, const json_t *object, const char *path, int depth,
                       struct err *err)
{
    const char *key;
    json_t *j;

    json_object_foreach((json_t *)object, key, j)
    {
        if (depth == 0 && (strcmp(key, "command") == 0 || strcmp(key, "version") == 0))
            continue;
        if (json_is_object(j) && depth < 8) {
            if (from_object(tables, n_tables, j, path, depth + 1, err))
                return -1;
        } else if (set_by_name(tables, n_tables, key, j, path, err)) {
            return -1;
        }
    }
    return 0;
}

int option_from_json(struct option_values *tables, size_t n_tables, const json_t *object, const char *path, struct err *err)
{
    if (!json_is_object(object))
        return err_usage(err, "'%s' holds no table of options; write {\"name\": value, ...}", path);
    return from_object(tables, n_tables, object, path, 0, err);
}
