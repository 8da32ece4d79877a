#include "cmd/merge_report.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

int merge_report_init(struct merge_report *r, const struct merge_job *job, struct err *err)
{
    r->input = mem_zero(job->count, sizeof *r->input, "the merge report", err);
    return r->input ? 0 : -1;
}

void merge_report_free(struct merge_report *r)
{
    free(r->input);
}

/* ||dW|| / ||W||; a zero weight counts as changed wholly. */
static double relative(const struct merge_change *c)
{
    return c->weight2 > 0 ? sqrt(c->delta2 / c->weight2) : c->delta2 > 0 ? 1 : 0;
}

static int by_relative(const void *a, const void *b)
{
    double x = relative(a), y = relative(b);

    return x < y ? -1 : x > y ? 1 : strcmp(((const struct merge_change *)a)->name, ((const struct merge_change *)b)->name);
}

/* Moves the used slots to the front, least change first. Returns how many. */
static size_t sort_changes(struct merge_change *c, size_t n)
{
    size_t used = 0;

    for (size_t i = 0; i < n; i++)
        if (c[i].name)
            c[used++] = c[i];
    if (used)
        qsort(c, used, sizeof *c, by_relative);
    return used;
}

static double rounding_left(const struct merge_change *c, size_t n)
{
    double weight2 = 0, rounding2 = 0;

    for (size_t i = 0; i < n; i++) {
        weight2 += c[i].weight2;
        rounding2 += c[i].rounding2;
    }
    return weight2 > 0 ? sqrt(rounding2 / weight2) : 0;
}

static json_t *report_json(const struct merge_report *r, const struct merge_job *job, const struct merge_change *c, size_t n,
                           unsigned long long size, double seconds, struct err *err)
{
    json_t *out = merge_recipe(job, err), *list = out ? json_object_get(out, "loras") : NULL;

    if (!out)
        return NULL;
    for (size_t i = 0; i < job->count; i++) {
        json_t *item = json_array_get(list, i);

        json_object_set_new(item, "unet_modules", json_integer((json_int_t)r->input[i].modules[MODEL_UNET]));
        json_object_set_new(item, "te_modules", json_integer((json_int_t)r->input[i].modules[MODEL_TEXT_ENCODER]));
        json_object_set_new(item, "missing", json_integer((json_int_t)r->input[i].missing));
    }
    json_object_set_new(out, "output", json_string(job->o->save_to));
    json_object_set_new(out, "bytes", json_integer((json_int_t)size));
    json_object_set_new(out, "tensors_changed", json_integer((json_int_t)n));
    if (n)
        json_object_set_new(out, "relative_change",
                            json_pack("{s:f, s:f, s:f, s:s}", "least", relative(&c[0]), "median", relative(&c[n / 2]), "most",
                                      relative(&c[n - 1]), "most_in", c[n - 1].name));
    if (job->o->undo)
        json_object_set_new(out, "rounding", json_real(rounding_left(c, n)));
    json_object_set_new(out, "seconds", json_real(seconds));
    return out;
}

static void print_input(const struct merge_input *in, const struct merge_report_input *r)
{
    printf("  %s: ", in->name);
    if (in->ratio[MODEL_UNET] == in->ratio[MODEL_TEXT_ENCODER])
        printf("ratio %g", in->ratio[MODEL_UNET]);
    else
        printf("ratio %g (U-Net), %g (text encoder)", in->ratio[MODEL_UNET], in->ratio[MODEL_TEXT_ENCODER]);
    printf("%s, rank ", in->by_block ? ", block weights" : "");
    if (in->file->min_rank != in->file->max_rank)
        printf("%zu-", in->file->min_rank);
    printf("%zu, %zu U-Net and %zu text encoder modules", in->file->max_rank, r->modules[MODEL_UNET],
           r->modules[MODEL_TEXT_ENCODER]);
    if (r->zero)
        printf(", %zu with a factor of 0", r->zero);
    if (r->missing)
        printf(", %zu skipped", r->missing);
    printf("\n");
}

int merge_report_model(const struct merge_report *r, const struct merge_job *job, const struct model *m,
                       struct merge_change *change, size_t n, struct err *err)
{
    double seconds = merge_seconds() - job->started;
    struct stat st = {0};
    char size[32], kind[256];

    n = sort_changes(change, n);
    (void)stat(job->o->save_to, &st); /* the size is a courtesy: the file has been committed */
    if (job->run->json) {
        json_t *out = report_json(r, job, change, n, (unsigned long long)st.st_size, seconds, err);

        return out ? command_print_json(out, err) : -1;
    }
    if (job->run->quiet)
        return 0;
    printf("%s '%s' (%s)\n", job->o->undo ? "took out of" : "merged into", m->path, model_kind_text(m, kind, sizeof kind));
    for (size_t i = 0; i < job->count; i++)
        print_input(&job->input[i], &r->input[i]);
    if (n)
        printf("  %zu weights changed by |dW|/|W| = %.3g (least) %.3g (median) %.3g (most, %s)\n", n, relative(&change[0]),
               relative(&change[n / 2]), relative(&change[n - 1]), change[n - 1].name);
    else
        printf("  no weight changed: every factor is 0\n");
    if (job->o->undo)
        printf("  rounding now is %.2g of the weights, and was about as much when it was merged: the original is met to %.2g or better\n",
               rounding_left(change, n), rounding_left(change, n) * sqrt(2));
    if (m->ema)
        printf("  the EMA copy was left as it is\n");
    printf("wrote '%s': %s, %.1f s\n", job->o->save_to,
           S_ISDIR(st.st_mode) ? "a diffusers folder" : command_bytes((unsigned long long)st.st_size, size, sizeof size), seconds);
    return 0;
}
