/* A contact sheet: small copies of all pictures in rows, each with its prompt and seed below. */
#include <stdlib.h>
#include <string.h>

#include "cmd/generate/generate.h"
#include "formats/picture_label.h"
#include "formats/picture_resize.h"

enum { MOST_SIDE = 256, MOST_PIXELS = 1 << 26, GAP = 6, LINES = 4 };

struct cell {
    struct picture small;
    char *label;
};

struct sheet {
    struct cell *cell; /* [count] */
    size_t count, cap;
};

int sheet_open(struct sheet **out, struct err *err)
{
    *out = mem_zero(1, sizeof **out, "a contact sheet", err);
    return *out ? 0 : -1;
}

void sheet_close(struct sheet *s)
{
    if (!s)
        return;
    for (size_t i = 0; i < s->count; i++) {
        picture_free(&s->cell[i].small);
        free(s->cell[i].label);
    }
    free(s->cell);
    free(s);
}

/* A copy whose longer side is at most `most`. */
static int shrink(const struct picture *p, size_t most, struct picture *out, struct err *err)
{
    size_t longer = p->width > p->height ? p->width : p->height;
    size_t w = longer > most ? p->width * most / longer : p->width, h = longer > most ? p->height * most / longer : p->height;

    if (picture_new(out, p->width, p->height, 3, err))
        return -1;
    memcpy(out->data, p->data, p->width * p->height * 3);
    if (w == p->width && h == p->height)
        return 0;
    if (picture_resize(out, w ? w : 1, h ? h : 1, PICTURE_LANCZOS, err)) {
        picture_free(out);
        return -1;
    }
    return 0;
}

int sheet_add(struct sheet *s, const struct picture *p, const char *label, struct err *err)
{
    struct cell *c;

    if (mem_grow(&s->cell, &s->cap, s->count, sizeof *s->cell, "a contact sheet", err))
        return -1;
    c = &s->cell[s->count];
    if (shrink(p, MOST_SIDE, &c->small, err))
        return -1;
    c->label = mem_str(label, err);
    if (!c->label) {
        picture_free(&c->small);
        return -1;
    }
    s->count++;
    return 0;
}

/* Columns so that the sheet is about as wide as it is high; one more or less where that leaves fewer places empty. */
static size_t columns_for(size_t count, size_t w, size_t h)
{
    size_t columns = 1, best, least = SIZE_MAX;

    while (columns < count && columns * columns * w < count * h)
        columns++;
    best = columns;
    for (size_t c = columns > 1 ? columns - 1 : 1; c <= columns + 1 && c <= count; c++) {
        size_t empty = (count + c - 1) / c * c - count;

        if (empty < least) {
            least = empty;
            best = c;
        }
    }
    return best;
}

int sheet_write(const struct sheet *s, const char *path, struct err *err)
{
    size_t w = 64, h = 0, label = LINES * PICTURE_LETTER_HEIGHT + GAP, columns, rows, count = s->count;
    struct picture sheet;
    int rc;

    if (!count)
        return 0;
    for (size_t i = 0; i < count; i++) {
        w = s->cell[i].small.width > w ? s->cell[i].small.width : w;
        h = s->cell[i].small.height > h ? s->cell[i].small.height : h;
    }
    columns = columns_for(count, w + GAP, h + label);
    rows = (count + columns - 1) / columns;
    if ((columns * (w + GAP) + GAP) * (rows * (h + label) + GAP) > MOST_PIXELS)
        return err_set(err, "%zu pictures are too many for one contact sheet; leave out --grid", count);
    if (picture_new(&sheet, columns * (w + GAP) + GAP, rows * (h + label) + GAP, 3, err))
        return -1;
    memset(sheet.data, 255, sheet.width * sheet.height * 3);
    for (size_t i = 0; i < count; i++) {
        const struct cell *c = &s->cell[i];
        size_t x = GAP + i % columns * (w + GAP), y = GAP + i / columns * (h + label);

        picture_paste(&sheet, x + (w - c->small.width) / 2, y + (h - c->small.height), &c->small);
        picture_label(&sheet, x, y + h + GAP / 2, w, LINES, c->label, 0);
    }
    rc = picture_write(path, &sheet, NULL, 0, (struct picture_format){.quality = 95}, err);
    picture_free(&sheet);
    return rc;
}
