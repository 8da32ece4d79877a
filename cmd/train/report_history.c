/* The history inside the page: written as JSON, read back when a run is resumed. */
#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cmd/train/report_inside.h"

/* A number to seven digits, null for NaN. */
static json_t *number(double x)
{
    return isfinite(x) ? json_real(x) : json_null();
}

static json_t *losses(const struct report *r)
{
    json_t *list = json_array();

    for (size_t i = 0; i < r->done; i++)
        json_array_append_new(list, number((double)r->loss[i]));
    return list;
}

static json_t *skips(const struct report *r)
{
    json_t *list = json_array();

    for (size_t i = 0; i < r->done; i++)
        if (r->skipped[i])
            json_array_append_new(list, json_integer((json_int_t)i));
    return list;
}

/* A rate as [step, value] where it changes: a constant one is one pair. */
static json_t *rates(const struct report *r)
{
    json_t *all = json_object();

    for (size_t k = 0; k < r->rates; k++) {
        json_t *list = json_array();

        for (size_t i = 0; i < r->done; i++)
            if (i == 0 || r->rate[i * r->rates + k] != r->rate[(i - 1) * r->rates + k])
                json_array_append_new(list, json_pack("[I,o]", (json_int_t)i, number((double)r->rate[i * r->rates + k])));
        json_object_set_new(all, r->rate_name[k], list);
    }
    return all;
}

static json_t *norms(const struct report *r)
{
    json_t *list = json_array();

    for (size_t i = 0; i < r->norm_sets; i++) {
        const struct report_norm_set *s = &r->norms[i];
        json_t *blocks = json_object();

        for (size_t k = 0; k < s->n; k++)
            json_object_set_new(blocks, s->block[k], number(s->norm[k]));
        json_array_append_new(list, json_pack("{s:I,s:o}", "step", (json_int_t)s->step, "blocks", blocks));
    }
    return list;
}

char *report_history(const struct report *r, struct err *err)
{
    json_t *validation = json_array(), *samples = json_array(), *all;
    char *text;

    for (size_t i = 0; i < r->validations; i++)
        json_array_append_new(validation, json_pack("[I,o]", (json_int_t)r->validated[i].step, number(r->validated[i].loss)));
    for (size_t i = 0; i < r->pictures; i++)
        json_array_append_new(samples, json_pack("{s:I,s:s,s:s}", "step", (json_int_t)r->picture[i].step, "prompt",
                                                 r->picture[i].prompt, "path", r->picture[i].path));
    all = json_pack("{s:o,s:o,s:o,s:o,s:o,s:o}", "loss", losses(r), "skipped", skips(r), "rate", rates(r), "validation", validation,
                    "norms", norms(r), "samples", samples);
    text = all ? json_dumps(all, JSON_COMPACT | JSON_ESCAPE_SLASH | JSON_REAL_PRECISION(7)) : NULL;
    json_decref(all);
    if (!text)
        err_memory(err, 0, "a report's history");
    return text;
}

/* ---- back ---- */

static int take_norms(struct report *r, const json_t *set, struct err *err)
{
    const json_t *blocks = json_object_get(set, "blocks");
    size_t n = json_object_size(blocks), at = 0;
    const char **name = mem_zero(n, sizeof *name, "a report's norms", err);
    double *norm = name ? mem_zero(n, sizeof *norm, "a report's norms", err) : NULL;
    const char *key;
    json_t *value;
    int rc = -1;

    if (norm) {
        json_object_foreach((json_t *)blocks, key, value)
        {
            name[at] = key;
            norm[at++] = json_number_value(value);
        }
        rc = report_norms(r, (size_t)json_integer_value(json_object_get(set, "step")), name, norm, n, err);
    }
    free(name);
    free(norm);
    return rc;
}

static void take_rates(struct report *r, const json_t *all, size_t k)
{
    const json_t *list = json_object_get(all, r->rate_name[k]);
    size_t i = 0;
    float value = 0;

    for (size_t step = 0; step < r->done; step++) {
        const json_t *pair = json_array_get(list, i);

        if (pair && (size_t)json_integer_value(json_array_get(pair, 0)) == step) {
            value = (float)json_number_value(json_array_get(pair, 1));
            i++;
        }
        r->rate[step * r->rates + k] = value;
    }
}

static int take(struct report *r, const json_t *all, size_t until, const char *folder, struct err *err)
{
    const json_t *loss = json_object_get(all, "loss");
    json_t *x;
    size_t i, n = json_array_size(loss);

    r->done = n < until ? n : until;
    if (r->done > r->steps)
        r->done = r->steps;
    for (i = 0; i < r->done; i++) {
        x = json_array_get(loss, i);
        r->loss[i] = json_is_number(x) ? (float)json_number_value(x) : NAN;
    }
    json_array_foreach(json_object_get(all, "skipped"), i, x)
    {
        if (json_integer_value(x) >= 0 && (size_t)json_integer_value(x) < r->done)
            r->skipped[json_integer_value(x)] = 1;
    }
    for (i = 0; i < r->rates; i++)
        take_rates(r, json_object_get(all, "rate"), i);
    json_array_foreach(json_object_get(all, "validation"), i, x)
    {
        if ((size_t)json_integer_value(json_array_get(x, 0)) <= until &&
            report_validation(r, (size_t)json_integer_value(json_array_get(x, 0)), json_number_value(json_array_get(x, 1)), err))
            return -1;
    }
    json_array_foreach(json_object_get(all, "norms"), i, x)
    {
        if ((size_t)json_integer_value(json_object_get(x, "step")) <= until && take_norms(r, x, err))
            return -1;
    }
    json_array_foreach(json_object_get(all, "samples"), i, x)
    {
        const char *prompt = json_string_value(json_object_get(x, "prompt")), *path = json_string_value(json_object_get(x, "path"));
        size_t step = (size_t)json_integer_value(json_object_get(x, "step"));
        struct err gone = {0};

        /* A picture that was taken away since is no reason to stop. */
        if (prompt && path && step <= until)
            report_sample(r, step, prompt, folder, path, &gone);
    }
    r->first = r->done;
    return 0;
}

static char *read_text(const char *path, struct err *err)
{
    FILE *f = fopen(path, "rb"), *to;
    char *text = NULL, buf[4096];
    size_t n, size;

    if (!f) {
        if (errno != ENOENT)
            err_set(err, "cannot read '%s': %s", path, strerror(errno));
        return NULL;
    }
    to = open_memstream(&text, &size);
    while (to && (n = fread(buf, 1, sizeof buf, f)) > 0)
        fwrite(buf, 1, n, to);
    if (!to || ferror(f) || fclose(to) != 0) {
        err_set(err, "cannot read '%s'", path);
        free(text);
        text = NULL;
    }
    fclose(f);
    return text;
}

int report_resume(struct report *r, const char *path, size_t step, struct err *err)
{
    struct err mine = {0};
    char *page = read_text(path, &mine), *from = page ? strstr(page, REPORT_HISTORY_BEGIN) : NULL,
         *to = from ? strstr(from, REPORT_HISTORY_END) : NULL, *folder;
    const char *slash = strrchr(path, '/');
    json_t *all = NULL;
    int rc;

    if (!page && mine.kind == ERR_NONE)
        return 0; /* there is none */
    if (!page) {
        *err = mine;
        return -1;
    }
    if (to) {
        from += strlen(REPORT_HISTORY_BEGIN);
        all = json_loadb(from, (size_t)(to - from), 0, NULL);
    }
    free(page);
    if (!json_is_object(all)) {
        json_decref(all);
        return err_set(err, "'%s' is no report of a training; move it away, or choose another --output_dir", path);
    }
    folder = slash ? mem_strn(path, (size_t)(slash - path), err) : mem_str("", err);
    rc = folder ? take(r, all, step, folder, err) : -1;
    free(folder);
    json_decref(all);
    return rc;
}
