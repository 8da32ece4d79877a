/* Two models side by side: which modules a LoRA between them has, and what they add up to. */
#include "cmd/extract.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static int add_job(struct extract_plan *p, size_t *cap, const struct model_tensor *t, size_t dim, size_t conv_dim, struct err *err)
{
    struct target target;
    enum target_class class = target_of(t->part, t->name, &t->shape, &target);
    struct extract_job *j;
    char key[NAMES_MAX + 16];

    if (class == TARGET_NONE || (conv_dim == 0 && (class == TARGET_CONV || class == TARGET_CONV1)))
        return 0;
    if (!dtype_is_float(t->dtype))
        return err_set(err, "'%s': tensor '%s' is of type %s, which cannot be computed with; convert the model to f16 first",
                       t->file->path, t->entry->name, dtype_name(t->dtype));
    if (mem_grow(&p->job, cap, p->count, sizeof *p->job, "the list of modules", err) != 0)
        return -1;
    j = &p->job[p->count];
    *j = (struct extract_job){.org = t, .target = target, .in = target.in * target.kh * target.kw};
    j->rank_asked = class == TARGET_CONV ? conv_dim : dim;
    j->path = arena_alloc(&p->arena, target.path_length + 1, err);
    if (!j->path)
        return -1;
    memcpy(j->path, t->name, target.path_length);
    if (!target_kohya_key(t->part, j->path, key, sizeof key))
        return err_set(err, "'%s': the name of tensor '%s' is too long", t->file->path, t->entry->name);
    j->key = arena_str(&p->arena, key, err);
    if (!j->key)
        return -1;
    j->block = target_block(t->part, j->path, p->org->plan.unet_layers ? p->org->plan.unet_layers : 2);
    j->tuned = model_find(p->tuned, t->part, t->name);
    if (!j->tuned)
        return err_set(err, "'%s' has no tensor '%s', which '%s' has; both must be models of one structure", p->tuned->path,
                       t->name, p->org->path);
    if (!dtype_is_float(j->tuned->dtype))
        return err_set(err, "'%s': tensor '%s' is of type %s, which cannot be computed with; convert the model to f16 first",
                       j->tuned->file->path, j->tuned->entry->name, dtype_name(j->tuned->dtype));
    p->count++;
    return 0;
}

static int add_part(struct extract_plan *p, const struct command_run *run, size_t *cap, enum model_part part, size_t dim,
                    size_t conv_dim, struct err *err)
{
    if (p->org->has[part] != p->tuned->has[part]) {
        const char *lacks = p->org->has[part] ? p->tuned->path : p->org->path;

        command_warn(run, "'%s' has no %s: the LoRA will not cover it", lacks, names_part(part));
        return 0;
    }
    if (!p->org->has[part])
        return 0;
    if (model_expect_same(p->org, p->tuned, part, err) != 0)
        return -1;
    for (size_t i = p->org->part_first[part]; i < p->org->part_first[part + 1]; i++)
        if (add_job(p, cap, &p->org->tensor[i], dim, conv_dim, err) != 0)
            return -1;
    return 0;
}

int extract_plan_open(struct extract_plan *p, const struct command_run *run, const char *org, const char *tuned, bool v2,
                      size_t dim, size_t conv_dim, struct err *err)
{
    static const enum model_part parts[] = {MODEL_TEXT_ENCODER, MODEL_UNET};
    size_t cap = 0;

    *p = (struct extract_plan){0};
    if (model_open(&p->org, org, err) != 0 || model_open(&p->tuned, tuned, err) != 0)
        return -1;
    if (p->org->arch != p->tuned->arch) {
        char a[256], b[256];

        return err_set(err, "'%s' and '%s' are models of different kinds: %s; %s. A LoRA leads between models of one kind", org, tuned,
                       model_kind_text(p->org, a, sizeof a), model_kind_text(p->tuned, b, sizeof b));
    }
    if (v2 && model_expect_v2(p->org, v2, err) != 0) /* the files say what they are; --v2 only has to agree */
        return -1;
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (add_part(p, run, &cap, parts[i], dim, conv_dim, err) != 0)
            return -1;
    if (p->count == 0)
        return err_set(err, "'%s' and '%s' have no module in common that a LoRA reaches; give two checkpoints with a U-Net or a "
                       "text encoder", org, tuned);
    return 0;
}

void extract_plan_close(struct extract_plan *p)
{
    for (size_t i = 0; i < p->count; i++) {
        free(p->job[i].s);
        free(p->job[i].up);
        free(p->job[i].down);
    }
    free(p->job);
    model_close(p->org);
    model_close(p->tuned);
    arena_free(&p->arena);
    *p = (struct extract_plan){0};
}

double extract_kept(const struct extract_job *j)
{
    return j->total > 0 && j->error < j->total ? 1 - j->error / j->total : 0;
}

struct row {
    double kept;
    size_t index;
};

static int less_kept(const void *a, const void *b)
{
    const struct row *x = a, *y = b;

    if (x->kept != y->kept)
        return x->kept < y->kept ? -1 : 1;
    return x->index < y->index ? -1 : x->index > y->index;
}

static int sort_by_kept(struct extract_totals *t, const struct extract_plan *p, struct err *err)
{
    struct row *rows = mem_zero(t->modules + 1, sizeof *rows, "the list of modules", err);

    if (!rows)
        return -1;
    for (size_t i = 0; i < t->modules; i++)
        rows[i] = (struct row){extract_kept(&p->job[t->order[i]]), t->order[i]};
    qsort(rows, t->modules, sizeof *rows, less_kept);
    for (size_t i = 0; i < t->modules; i++)
        t->order[i] = rows[i].index;
    free(rows);
    return 0;
}

static int sum_ranks(struct extract_totals *t, struct extract_plan *p, double all, struct err *err)
{
    t->sure_ranks = SIZE_MAX;
    for (size_t i = 0; i < p->count; i++) {
        const struct extract_job *j = &p->job[i];
        size_t least = j->target.out < j->in ? j->target.out : j->in;

        if (j->rank == 0)
            continue;
        t->ranks = j->known > t->ranks ? j->known : t->ranks;
        if (j->sure < least && j->sure < t->sure_ranks)
            t->sure_ranks = j->sure;
    }
    t->by_rank = arena_alloc(&p->arena, t->ranks * sizeof *t->by_rank + 1, err);
    if (!t->by_rank)
        return -1;
    for (size_t i = 0; i < p->count; i++)
        for (size_t r = 0; p->job[i].rank && r < p->job[i].known; r++)
            t->by_rank[r] += (double)p->job[i].s[r] * (double)p->job[i].s[r] / all;
    for (size_t r = 1; r < t->ranks; r++)
        t->by_rank[r] += t->by_rank[r - 1];
    return 0;
}

int extract_totals_make(struct extract_totals *t, struct extract_plan *p, struct err *err)
{
    double all = 0, lost = 0;

    *t = (struct extract_totals){.min_rank = SIZE_MAX};
    t->order = arena_alloc(&p->arena, p->count * sizeof *t->order, err);
    if (!t->order)
        return -1;
    for (size_t i = 0; i < p->count; i++) {
        const struct extract_job *j = &p->job[i];
        size_t least = j->target.out < j->in ? j->target.out : j->in;

        if (j->rank == 0) {
            t->equal += j->largest == 0;
            continue;
        }
        t->order[t->modules++] = i;
        t->part[j->org->part]++;
        t->clipped += j->rank_asked > least;
        t->min_rank = j->rank < t->min_rank ? j->rank : t->min_rank;
        t->max_rank = j->rank > t->max_rank ? j->rank : t->max_rank;
        all += j->total;
        lost += j->error;
        if (j->block >= 0) {
            t->block_total[j->block] += j->total;
            t->block_kept[j->block] += j->total - j->error;
        }
        if (j->sure == j->rank && j->least > SVD_FLOOR * SVD_FLOOR * j->total)
            t->worst_ratio = fmax(t->worst_ratio, sqrt(j->error / j->least));
    }
    if (sort_by_kept(t, p, err) != 0)
        return -1;
    t->kept = all > 0 ? 1 - lost / all : 0;
    if (t->modules)
        t->kept_median = extract_kept(&p->job[t->order[t->modules / 2]]);
    return sum_ranks(t, p, all > 0 ? all : 1, err);
}

size_t extract_rank_for(const struct extract_totals *t, double share)
{
    for (size_t r = 0; r < t->ranks; r++)
        if (t->by_rank[r] >= share)
            return r + 1;
    return 0;
}
