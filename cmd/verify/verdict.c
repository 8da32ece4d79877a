#include "cmd/verify/verdict.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "ref/base/mem.h"

/* Rows of one kind put together: how many, and the one nearest to (or farthest over) its limit. */
struct line {
    char group[24], what[64], name[160], shape[64], type[8];
    double worst, limit, share;
    size_t count, failed;
};

struct verdict {
    bool all, silent, head;
    char device[200];
    struct line *line; /* of the group that is running, in the order in which kinds appeared */
    size_t count, cap;
    json_t *rows;
    bool lost; /* a row, for want of memory */
};

int verdict_new(struct verdict **out, bool all, bool silent, struct err *err)
{
    struct verdict *r = mem_zero(1, sizeof *r, "the verdicts", err);

    if (!r)
        return -1;
    r->all = all;
    r->silent = silent;
    r->rows = json_array();
    *out = r;
    return 0;
}

void verdict_free(struct verdict *r)
{
    if (!r)
        return;
    json_decref(r->rows);
    free(r->line);
    free(r);
}

void verdict_device(struct verdict *r, const char *device)
{
    snprintf(r->device, sizeof r->device, "%s", device);
    r->head = false;
}

/* Error over limit; what has no room for error is 0 or infinity. */
static double share_of(const struct verify_row *row)
{
    return row->worst == 0 ? 0 : row->limit > 0 ? row->worst / row->limit : INFINITY;
}

static void print_head(struct verdict *r)
{
    if (r->head)
        return;
    printf("%s\n  %-29s %6s  %-42s %-18s %-4s  %9s %9s %8s  %s\n", r->device, "what", "checks", "nearest to its limit", "shape", "type",
           "max error", "limit", "share", "verdict");
    r->head = true;
}

/* "12.3 %", or how often too large. */
static const char *print_share(char buf[24], double share)
{
    if (share < 10)
        snprintf(buf, 24, "%.1f %%", 100 * share);
    else
        snprintf(buf, 24, "%.3gx", share);
    return buf;
}

static void print_line(struct verdict *r, const struct line *l)
{
    enum { WIDTH = 42 };
    char share[24], name[WIDTH + 1];
    size_t n = strlen(l->name);

    print_head(r);
    /* what tells names apart is at their end */
    snprintf(name, sizeof name, n > WIDTH ? "..%s" : "%s", n > WIDTH ? l->name + n - (WIDTH - 2) : l->name);
    printf("  %-29s %6zu  %-42s %-18s %-4s  %9.3g %9.3g %8s  %s", l->what, l->count, name, l->shape, l->type, l->worst, l->limit,
           print_share(share, l->share), l->failed ? "FAIL" : "ok");
    if (l->failed && l->count > 1)
        printf(" (%zu of %zu)", l->failed, l->count);
    putchar('\n');
}

static void describe(struct line *l, const struct verify_row *row, bool ok)
{
    char shape[128] = "-";

    *l = (struct line){.worst = row->worst, .limit = row->limit, .share = share_of(row), .count = 1, .failed = !ok};
    if (row->dtype != DT_COUNT)
        shape_print(&row->shape, shape, sizeof shape);
    snprintf(l->group, sizeof l->group, "%s", row->group);
    snprintf(l->what, sizeof l->what, "%s", row->what);
    snprintf(l->name, sizeof l->name, "%s", row->name);
    snprintf(l->shape, sizeof l->shape, "%.63s", shape);
    snprintf(l->type, sizeof l->type, "%s", row->dtype == DT_COUNT ? "-" : dtype_name(row->dtype));
}

/* Adds the row to the line of its kind. */
static void put_together(struct verdict *r, const struct line *row)
{
    struct err err = {0};
    struct line *l = NULL;

    for (size_t i = 0; i < r->count && !l; i++)
        if (strcmp(r->line[i].what, row->what) == 0 && strcmp(r->line[i].group, row->group) == 0)
            l = &r->line[i];
    if (!l) {
        if (mem_grow(&r->line, &r->cap, r->count, sizeof *r->line, "the verdicts", &err)) {
            r->lost = true;
            return;
        }
        r->line[r->count++] = *row;
        return;
    }
    if (row->share > l->share) {
        size_t count = l->count, failed = l->failed;

        *l = *row;
        l->count = 0;
        l->failed = failed + row->failed;
        l->count = count + 1;
        return;
    }
    l->count++;
    l->failed += row->failed;
}

static void remember(struct verdict *r, const struct line *l, const struct verify_row *row, bool ok)
{
    /* JSON has no infinity: null says that the value was not finite */
    json_t *j = json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:o, s:f, s:b}", "device", r->device, "group", l->group, "what", l->what,
                          "name", l->name, "shape", l->shape, "type", l->type, "error",
                          isfinite(row->worst) ? json_real(row->worst) : json_null(), "limit", row->limit, "ok", (int)ok);

    if (!j || json_array_append_new(r->rows, j))
        r->lost = true;
}

void verdict_row(void *ctx, const struct verify_row *row, bool ok)
{
    struct verdict *r = ctx;
    struct line l;

    describe(&l, row, ok);
    if (r->silent) {
        remember(r, &l, row, ok);
        return;
    }
    if (r->all || !ok)
        print_line(r, &l);
    if (!r->all)
        put_together(r, &l);
}

void verdict_flush(struct verdict *r)
{
    for (size_t i = 0; i < r->count; i++)
        print_line(r, &r->line[i]);
    r->count = 0;
    fflush(stdout);
}

json_t *verdict_json(struct verdict *r)
{
    return r->lost ? NULL : json_incref(r->rows);
}
