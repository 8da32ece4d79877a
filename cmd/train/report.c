#include "cmd/train/report.h"

#include <errno.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cmd/train/report_inside.h"
#include "formats/output.h"
#include "formats/picture_codec.h"
#include "formats/picture_resize.h"

enum { PICTURE_SIDE = 256, PICTURE_AS_IT_IS = 96 << 10 };

int report_new(struct report **out, const struct report_options *o, struct err *err)
{
    struct report *r = mem_zero(1, sizeof *r, "a report", err);
    size_t n = o->steps ? o->steps : 1, rates;

    *out = NULL;
    if (!r)
        return -1;
    r->steps = o->steps;
    r->epoch_steps = o->epoch_steps;
    r->rates = o->rates < REPORT_MOST_RATES ? o->rates : REPORT_MOST_RATES;
    r->title = arena_str(&r->text, o->title, err);
    r->subtitle = arena_str(&r->text, o->subtitle ? o->subtitle : "", err);
    for (size_t i = 0; i < r->rates; i++)
        if (!(r->rate_name[i] = arena_str(&r->text, o->rate[i], err)))
            goto fail;
    if (!r->title || !r->subtitle || !mem_mul(n, r->rates ? r->rates : 1, &rates))
        goto fail;
    r->loss = mem_zero(n, sizeof *r->loss, "a report's curves", err);
    r->rate = r->loss ? mem_zero(rates, sizeof *r->rate, "a report's curves", err) : NULL;
    r->skipped = r->rate ? mem_zero(n, 1, "a report's curves", err) : NULL;
    if (!r->skipped)
        goto fail;
    *out = r;
    return 0;
fail:
    report_free(r);
    return -1;
}

void report_free(struct report *r)
{
    if (!r)
        return;
    for (size_t i = 0; i < r->pictures; i++)
        free(r->picture[i].data);
    for (int t = 0; t < REPORT_TABLES; t++)
        free(r->row[t]);
    free(r->picture);
    free(r->norms);
    free(r->validated);
    free(r->loss);
    free(r->rate);
    free(r->skipped);
    arena_free(&r->text);
    free(r);
}

int report_fact(struct report *r, enum report_table table, const char *name, const char *value, struct err *err)
{
    char *copy = arena_str(&r->text, value, err);
    struct report_row *row = r->row[table];

    if (!copy)
        return -1;
    for (size_t i = 0; i < r->rows[table]; i++)
        if (strcmp(row[i].name, name) == 0) {
            row[i].value = copy;
            return 0;
        }
    if (mem_grow(&r->row[table], &r->row_cap[table], r->rows[table], sizeof *row, "a report's table", err))
        return -1;
    row = &r->row[table][r->rows[table]];
    row->value = copy;
    row->name = arena_str(&r->text, name, err);
    if (!row->name)
        return -1;
    r->rows[table]++;
    return 0;
}

int report_data(struct report *r, const char *text, struct err *err)
{
    r->data = arena_str(&r->text, text, err);
    return r->data ? 0 : -1;
}

void report_step(struct report *r, size_t step, double loss, const double *rate, bool skipped, double seconds)
{
    if (step >= r->steps)
        return;
    r->loss[step] = skipped || !isfinite(loss) ? NAN : (float)loss;
    r->skipped[step] = skipped;
    for (size_t i = 0; i < r->rates; i++)
        r->rate[step * r->rates + i] = (float)rate[i];
    r->seconds += seconds;
    if (step >= r->done)
        r->done = step + 1;
}

int report_validation(struct report *r, size_t step, double loss, struct err *err)
{
    if (mem_grow(&r->validated, &r->validation_cap, r->validations, sizeof *r->validated, "a report's curve", err))
        return -1;
    r->validated[r->validations++] = (struct report_validated){step, loss};
    return 0;
}

int report_norms(struct report *r, size_t step, const char *const *block, const double *norm, size_t n, struct err *err)
{
    struct report_norm_set *s;

    if (mem_grow(&r->norms, &r->norm_cap, r->norm_sets, sizeof *r->norms, "a report's norms", err))
        return -1;
    s = &r->norms[r->norm_sets];
    *s = (struct report_norm_set){.step = step, .n = n};
    s->block = arena_alloc(&r->text, n * sizeof *s->block, err);
    s->norm = s->block ? arena_alloc(&r->text, n * sizeof *s->norm, err) : NULL;
    if (!s->norm)
        return -1;
    for (size_t i = 0; i < n; i++) {
        s->block[i] = arena_str(&r->text, block[i], err);
        if (!s->block[i])
            return -1;
        s->norm[i] = norm[i];
    }
    r->norm_sets++;
    return 0;
}

/* ---- pictures ---- */

static int read_file(const char *path, unsigned char **data, size_t *n, struct err *err)
{
    FILE *f = fopen(path, "rb");
    size_t cap = 0;

    *data = NULL;
    *n = 0;
    if (!f)
        return err_set(err, "cannot read '%s': %s", path, strerror(errno));
    for (;;) {
        size_t got;

        if (*n + (1 << 16) > cap) {
            unsigned char *more = realloc(*data, cap = cap * 2 + (1 << 17));

            if (!more)
                break;
            *data = more;
        }
        got = fread(*data + *n, 1, 1 << 16, f);
        *n += got;
        if (got == 0 && !ferror(f)) {
            fclose(f);
            return 0;
        }
        if (got == 0)
            break;
    }
    fclose(f);
    free(*data);
    *data = NULL;
    return err_set(err, "cannot read '%s'", path);
}

/* A smaller JPEG of the picture in data. */
static int shrink(struct report_picture *p, const char *path, struct err *err)
{
    struct picture big;
    struct picture_bytes small = {0};
    double scale;
    int rc;

    if (picture_decode(&big, p->data, p->size, path, err))
        return -1;
    picture_lay_over(&big, 255, 255, 255);
    scale = PICTURE_SIDE / fmax((double)big.width, (double)big.height);
    rc = scale < 1 ? picture_resize(&big, (size_t)fmax(1, round((double)big.width * scale)),
                                    (size_t)fmax(1, round((double)big.height * scale)), PICTURE_LANCZOS, err)
                   : 0;
    if (rc == 0)
        rc = picture_encode_jpeg(&small, &big, NULL, 90, err);
    picture_free(&big);
    if (rc) {
        free(small.data);
        return -1;
    }
    free(p->data);
    p->data = small.data;
    p->size = small.n;
    p->type = "image/jpeg";
    return 0;
}

static bool fits_as_it_is(const struct report_picture *p, const char *path)
{
    struct picture picture;
    struct err ignored = {0};
    bool small;

    if (p->size > PICTURE_AS_IT_IS || p->size < 8 || memcmp(p->data, "\x89PNG", 4) != 0)
        return false;
    if (picture_decode(&picture, p->data, p->size, path, &ignored))
        return false;
    small = picture.width <= PICTURE_SIDE && picture.height <= PICTURE_SIDE;
    picture_free(&picture);
    return small;
}

int report_sample(struct report *r, size_t step, const char *prompt, const char *folder, const char *path, struct err *err)
{
    struct report_picture p = {.step = step, .type = "image/png"};
    char *whole = path[0] == '/' || !folder || !*folder ? arena_str(&r->text, path, err)
                                                       : arena_printf(&r->text, err, "%s/%s", folder, path);

    p.prompt = arena_str(&r->text, prompt, err);
    p.path = arena_str(&r->text, path, err);
    if (!whole || !p.prompt || !p.path ||
        mem_grow(&r->picture, &r->picture_cap, r->pictures, sizeof *r->picture, "a report's pictures", err) ||
        read_file(whole, &p.data, &p.size, err))
        return -1;
    if (!fits_as_it_is(&p, whole) && shrink(&p, whole, err)) {
        free(p.data);
        return -1;
    }
    r->picture[r->pictures++] = p;
    return 0;
}

/* ---- the file ---- */

int report_write(const struct report *r, const char *path, const char *status, struct err *err)
{
    char *data = NULL;
    size_t n = 0;
    FILE *out = open_memstream(&data, &n);
    int rc;

    if (!out)
        return err_memory(err, 0, "a report");
    report_print(r, status, out);
    if (fclose(out) != 0) {
        free(data);
        return err_memory(err, n, "a report");
    }
    rc = output_bytes(path, data, n, err);
    free(data);
    return rc;
}
