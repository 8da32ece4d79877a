#include "tests/demo/story.h"

#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cmd/page.h"
#include "formats/output.h"
#include "formats/picture_codec.h"
#include "formats/picture_label.h"
#include "ref/base/mem.h"
#include "tests/demo/rocket.h"

enum { GAP = 6, HEAD = 22, LABEL = 132, INK = 40, LABEL_LINES = 6 };

/* The pictures of one folder. */
struct set {
    struct picture *picture;
    size_t n;
};

static void set_free(struct set *s)
{
    for (size_t i = 0; i < s->n; i++)
        picture_free(&s->picture[i]);
    free(s->picture);
}

static int set_read(struct set *s, const char *folder, struct err *err)
{
    char pattern[4096];
    glob_t found = {0};
    int rc = 0;

    *s = (struct set){0};
    snprintf(pattern, sizeof pattern, "%s/*.png", folder);
    if (glob(pattern, 0, NULL, &found) || found.gl_pathc == 0) {
        globfree(&found);
        return err_set(err, "there are no pictures in '%s'", folder);
    }
    s->picture = mem_zero(found.gl_pathc, sizeof *s->picture, "pictures", err);
    for (size_t i = 0; rc == 0 && s->picture && i < found.gl_pathc; i++) {
        rc = picture_read(&s->picture[i], found.gl_pathv[i], err);
        if (rc == 0) {
            s->n++;
            picture_lay_over(&s->picture[i], 255, 255, 255);
        }
    }
    if (!s->picture)
        rc = -1;
    globfree(&found);
    return rc;
}

static const char *prompt_of(const struct picture *p)
{
    const char *text = picture_find_text(p, "prompt");

    return text ? text : "";
}

/* only: how the prompt begins; with '!' before it: how it does not. */
static bool is_wanted(const struct picture *p, const char *only)
{
    bool negated = only[0] == '!';

    only += negated;
    return (strncmp(prompt_of(p), only, strlen(only)) == 0) != negated;
}

int story_rockets(const char *folder, const char *only, size_t *found, size_t *all, struct err *err)
{
    struct set s;
    int rc = set_read(&s, folder, err);

    *found = *all = 0;
    for (size_t i = 0; rc == 0 && i < s.n; i++)
        if (is_wanted(&s.picture[i], only)) {
            *found += rocket_fit(&s.picture[i]) >= ROCKET_LEAST;
            ++*all;
        }
    set_free(&s);
    return rc;
}

static int same_size(const struct picture *a, const struct picture *b)
{
    return a->width == b->width && a->height == b->height;
}

int story_difference(const char *a, const char *b, const char *only, double *mean, struct err *err)
{
    struct set x = {0}, y = {0};
    double sum = 0, n = 0;
    int rc = set_read(&x, a, err) || set_read(&y, b, err) ? -1 : 0;

    if (rc == 0 && x.n != y.n)
        rc = err_set(err, "'%s' has %zu pictures, '%s' has %zu", a, x.n, b, y.n);
    for (size_t i = 0; rc == 0 && i < x.n; i++) {
        const struct picture *p = &x.picture[i], *q = &y.picture[i];

        if (!is_wanted(p, only))
            continue;
        if (!same_size(p, q)) {
            rc = err_set(err, "picture %zu of '%s' and of '%s' are not of one size", i, a, b);
            break;
        }
        for (size_t k = 0; k < p->width * p->height * 3; k++)
            sum += abs(p->data[k] - q->data[k]);
        n += (double)(p->width * p->height * 3);
    }
    *mean = n > 0 ? sum / n : 0;
    set_free(&x);
    set_free(&y);
    return rc;
}

/* ---- the grid ---- */

static int write_grid(const char *path, const struct story_column *column, const struct set *set, size_t n, struct err *err)
{
    size_t w = set[0].picture[0].width, h = set[0].picture[0].height;
    struct picture grid;
    int rc;

    if (picture_new(&grid, LABEL + n * (w + GAP) + GAP, HEAD + set[0].n * (h + GAP), 3, err))
        return -1;
    memset(grid.data, 255, grid.width * grid.height * 3);
    for (size_t c = 0; c < n; c++)
        picture_label(&grid, LABEL + c * (w + GAP), GAP, w, 1, column[c].title, INK);
    for (size_t i = 0; i < set[0].n; i++) {
        picture_label(&grid, GAP, HEAD + i * (h + GAP) + h / 3, LABEL - 2 * GAP, LABEL_LINES, prompt_of(&set[0].picture[i]), INK);
        for (size_t c = 0; c < n; c++)
            picture_paste(&grid, LABEL + c * (w + GAP), HEAD + i * (h + GAP), &set[c].picture[i]);
    }
    rc = picture_write(path, &grid, NULL, 0, (struct picture_format){0}, err);
    picture_free(&grid);
    return rc;
}

/* ---- the page ---- */

static const char style[] =
    ".pictures td,.pictures th{padding:5px 8px 5px 0;text-align:left;vertical-align:middle;border:0;white-space:normal;font-family:inherit}"
    ".pictures td:first-child{font-family:inherit;color:var(--soft);font-size:13.5px;min-width:120px}"
    ".pictures img{width:150px;height:150px;display:block;border-radius:8px}.pictures th{color:var(--ink);font-weight:600;"
    "vertical-align:bottom}.pictures th small{display:block;color:var(--soft);font-weight:400}"
    ".yes{outline:3px solid #3a9e6e;outline-offset:-3px}code{font:13px ui-monospace,monospace;overflow-wrap:anywhere}li{margin:6px 0}";

static int print_picture(FILE *out, const struct picture *p, const char *column, struct err *err)
{
    struct picture_bytes png = {0};
    int rc = picture_encode_png(&png, p, NULL, 0, err);

    if (rc == 0) {
        fprintf(out, "<td><img class=%s alt=\"%s: ", rocket_fit(p) >= ROCKET_LEAST ? "yes" : "no", column);
        page_text(out, prompt_of(p));
        fputs("\" src=\"data:image/png;base64,", out);
        page_base64(out, png.data, png.n);
        fputs("\">", out);
    }
    free(png.data);
    return rc;
}

static int print_page(FILE *out, const struct story_column *column, const struct set *set, size_t n, const char *links, struct err *err)
{
    page_begin(out, "A LoRA from ten pictures", style);
    page_section(out, "The same prompts and noise, four times",
                 "Framed in green: a template of the rocket's parts and colours finds it in the picture. The last rows ask for something else.");
    fputs("<div class=scroll><table class=pictures><tr><th>prompt", out);
    for (size_t c = 0; c < n; c++)
        fprintf(out, "<th>%s<small>%s</small>", column[c].title, column[c].about ? column[c].about : "");
    fputs("</tr>\n", out);
    for (size_t i = 0; i < set[0].n; i++) {
        fputs("<tr><td>", out);
        page_text(out, prompt_of(&set[0].picture[i]));
        for (size_t c = 0; c < n; c++)
            if (print_picture(out, &set[c].picture[i], column[c].title, err))
                return -1;
        fputs("</tr>\n", out);
    }
    fputs("</table></div></section>", out);
    if (links)
        fputs(links, out);
    page_footer(out);
    page_end(out);
    return 0;
}

static int write_page(const char *path, const struct story_column *column, const struct set *set, size_t n, const char *links,
                      struct err *err)
{
    char *data = NULL;
    size_t size = 0;
    FILE *out = open_memstream(&data, &size);
    int rc;

    if (!out)
        return err_memory(err, 0, "a page");
    rc = print_page(out, column, set, n, links, err);
    if (fclose(out) != 0 && rc == 0)
        rc = err_memory(err, size, "a page");
    if (rc == 0)
        rc = output_bytes(path, data, size, err);
    free(data);
    return rc;
}

static int check_sets(const struct story_column *column, const struct set *set, size_t n, struct err *err)
{
    for (size_t c = 0; c < n; c++) {
        if (set[c].n != set[0].n)
            return err_set(err, "'%s' has %zu pictures, '%s' has %zu", column[c].folder, set[c].n, column[0].folder, set[0].n);
        for (size_t i = 0; i < set[c].n; i++)
            if (!same_size(&set[c].picture[i], &set[0].picture[0]))
                return err_set(err, "the pictures in '%s' are not all of one size", column[c].folder);
    }
    return 0;
}

int story_write(const char *folder, const struct story_column *column, size_t n, const char *links, struct err *err)
{
    struct set *set = mem_zero(n, sizeof *set, "pictures", err);
    char path[4096];
    int rc = set ? 0 : -1;

    for (size_t c = 0; rc == 0 && c < n; c++)
        rc = set_read(&set[c], column[c].folder, err);
    if (rc == 0)
        rc = check_sets(column, set, n, err);
    if (rc == 0) {
        snprintf(path, sizeof path, "%s/grid.png", folder);
        rc = write_grid(path, column, set, n, err);
    }
    if (rc == 0) {
        snprintf(path, sizeof path, "%s/index.html", folder);
        rc = write_page(path, column, set, n, links, err);
    }
    for (size_t c = 0; set && c < n; c++)
        set_free(&set[c]);
    free(set);
    return rc;
}
