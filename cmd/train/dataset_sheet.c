/* --debug_dataset: the samples of an epoch as a contact sheet, and a page that shows its parts with their captions. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cmd/page.h"
#include "cmd/train/dataset_inside.h"
#include "formats/output.h"
#include "formats/picture_label.h"
#include "formats/picture_resize.h"

enum { LEAST = 96, MOST = 192, GAP = 8, COLUMNS = 6, LINES = 3, LABEL = LINES * PICTURE_LETTER_HEIGHT + 2 };

struct sheet {
    struct picture all;
    char *page;
    size_t page_n;
    FILE *html;
    size_t cells, done;
    size_t side; /* of a cell, pixels: that of the largest bucket, within bounds */
};

static void place_of(const struct sheet *s, size_t i, size_t *x, size_t *y)
{
    *x = GAP + i % COLUMNS * (s->side + GAP);
    *y = GAP + i / COLUMNS * (s->side + LABEL + GAP);
}

/* Draws p, made small enough, in the middle of cell i. */
static int draw_cell(struct sheet *s, struct picture *p, size_t i, struct err *err)
{
    size_t most = p->width > p->height ? p->width : p->height, w = p->width, h = p->height, x, y;

    if (most > s->side) {
        w = (w * s->side + most / 2) / most;
        h = (h * s->side + most / 2) / most;
        if (picture_resize_area(p, w ? w : 1, h ? h : 1, err))
            return -1;
    }
    place_of(s, i, &x, &y);
    picture_paste(&s->all, x + (s->side - p->width) / 2, y + (s->side - p->height) / 2, p);
    return 0;
}

static void describe_cell(struct sheet *s, const struct dataset *d, const struct dataset_batch *b, size_t i, size_t batch,
                          size_t cell)
{
    const struct sample_picture *p = &d->picture[b->picture[i]];
    size_t x, y;

    place_of(s, cell, &x, &y);
    picture_label(&s->all, x, y + s->side + 2, s->side, LINES, *b->caption[i] ? b->caption[i] : "(no caption)", 230);
    fprintf(s->html, "<figure><div style='background-position:-%zupx -%zupx'></div><figcaption><b>", x, y);
    page_text(s->html, b->caption[i]);
    fprintf(s->html, "</b><br>");
    page_text(s->html, p->key);
    fprintf(s->html, "<br>batch %zu, bucket %zu x %zu, time %zu of %zu%s%s", batch + 1, b->width, b->height, b->repeat[i] + 1,
            p->repeats, b->flipped[i] ? ", mirrored" : "", d->subset[p->subset].reg ? ", regularisation" : "");
    if (b->weight[i] != 1)
        fprintf(s->html, ", weight %g", (double)b->weight[i]);
    fprintf(s->html, "</figcaption></figure>\n");
}

/* What the loss does not see is darker. */
static void darken(struct picture *p, const float *mask, size_t factor)
{
    size_t w = p->width / factor, h = p->height / factor;

    for (size_t y = 0; y < h * factor; y++)
        for (size_t x = 0; x < w * factor; x++)
            for (size_t k = 0; k < 3; k++) {
                uint8_t *v = p->data + (y * p->width + x) * 3 + k;

                *v = (uint8_t)((float)*v * (0.25f + 0.75f * mask[y / factor * w + x / factor]));
            }
}

static int add_batch(struct sheet *s, struct dataset *d, size_t epoch, size_t index, struct dataset_batch *b, struct err *err)
{
    if (dataset_batch(d, epoch, index, b, err))
        return -1;
    for (size_t i = 0; i < b->n && s->done < s->cells; i++, s->done++) {
        struct picture p;
        bool flipped;
        int rc;

        if (!d->picture[b->picture[i]].path) { /* only latents are there */
            describe_cell(s, d, b, i, index, s->done);
            continue;
        }
        if (dataset_load(d, b->picture[i], epoch, b->repeat[i], !d->has_latents, &p, NULL, &flipped, err))
            return -1;
        if (d->has_latents && b->flipped[i])
            dataset_mirror(&p);
        if (b->mask)
            darken(&p, b->mask + i * (b->width / d->setup.factor * (b->height / d->setup.factor)), d->setup.factor);
        rc = draw_cell(s, &p, s->done, err);
        picture_free(&p);
        if (rc)
            return -1;
        describe_cell(s, d, b, i, index, s->done);
    }
    return 0;
}

static size_t side_of(const struct dataset *d)
{
    size_t side = LEAST;

    for (size_t i = 0; i < d->buckets; i++) {
        side = d->shown[i].width > side ? d->shown[i].width : side;
        side = d->shown[i].height > side ? d->shown[i].height : side;
    }
    return side < MOST ? side : MOST;
}

static int begin(struct sheet *s, const struct dataset *d, size_t epoch, size_t most, struct err *err)
{
    size_t samples = dataset_train_samples(d) + dataset_reg_samples(d), rows;
    char *table = dataset_table(d, err), style[512];

    if (!table)
        return -1;
    s->cells = samples < most ? samples : most;
    s->side = side_of(d);
    rows = (s->cells + COLUMNS - 1) / COLUMNS;
    s->html = open_memstream(&s->page, &s->page_n);
    if (!s->html || picture_new(&s->all, GAP + COLUMNS * (s->side + GAP), GAP + rows * (s->side + LABEL + GAP), 3, err)) {
        free(table);
        return s->html ? -1 : err_memory(err, 65536, "a contact sheet");
    }
    memset(s->all.data, 48, s->all.width * s->all.height * 3);
    snprintf(
        style, sizeof style,
        "figure{display:inline-block;width:%zupx;margin:8px;vertical-align:top;overflow-wrap:anywhere}figure div{width:%zupx;"
        "height:%zupx;background-image:url(dataset.png)}figcaption{font-size:12px}",
        s->side, s->side, s->side);
    page_begin(s->html, "Training data", style);
    fprintf(s->html, "<pre>");
    page_text(s->html, table);
    fprintf(s->html,
            "</pre>\n<p>The first %zu of %zu samples of epoch %zu, as the trainer sees them before they become latents.</p>\n",
            s->cells, samples, epoch + 1);
    free(table);
    return 0;
}

int dataset_sheet(struct dataset *d, size_t epoch, size_t most, const char *folder, struct err *err)
{
    struct sheet s = {0};
    struct dataset_batch b = {0};
    char png[4096], page[4096];
    int rc = -1;

    if ((size_t)snprintf(png, sizeof png, "%s/dataset.png", folder) >= sizeof png ||
        (size_t)snprintf(page, sizeof page, "%s/dataset.html", folder) >= sizeof page)
        return err_set(err, "the path '%s' is too long", folder);
    if (begin(&s, d, epoch, most, err))
        goto out;
    for (size_t i = 0; i < dataset_batches(d) && s.done < s.cells; i++)
        if (add_batch(&s, d, epoch, i, &b, err))
            goto out;
    page_footer(s.html);
    page_end(s.html);
    rc = fclose(s.html) == 0 ? 0 : err_memory(err, 65536, "a contact sheet");
    s.html = NULL;
    if (!rc)
        rc = picture_write(png, &s.all, NULL, 0, (struct picture_format){0}, err) || output_text(page, s.page, err) ? -1 : 0;
out:
    if (s.html)
        fclose(s.html);
    free(s.page);
    picture_free(&s.all);
    dataset_batch_free(&b);
    return rc;
}
