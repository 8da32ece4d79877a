/* Whole trajectories of every sampler against diffusers' schedulers (golden/make_samplers.py). */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "cmd/verify/samplers.h"
#include "ref/diffusion/sampler.h"

/* The model of make_samplers.py, rounded to f32 as a network's output is. */
void sampler_problem_model(const struct sampler_problem *p, const float *x, double t, enum prediction what, float *out)
{
    const double b0 = sqrt(0.00085), k = (sqrt(0.012) - sqrt(0.00085)) / 999;
    double bar = exp(-(pow(b0 + k * (t + 1), 3) - b0 * b0 * b0) / (3 * k)), a = sqrt(bar), s = sqrt(1 - bar);

    for (size_t i = 0; i < p->n; i++) {
        double m = (double)p->mean[i], d = (double)p->deviation[i], y = (double)x[i];
        double eps = s * (y - a * m) / (a * a * d * d + s * s) + 0.05 * sin(3 * y);

        out[i] = (float)(what == PREDICT_EPS ? eps : (eps - s * y) / a);
    }
}

void sampler_problem_first(const struct sampler_problem *p, const struct sampler *s, size_t first, float *x)
{
    double signal, level;

    sampler_level(s, &signal, &level);
    for (size_t i = 0; i < p->n; i++)
        x[i] = (float)(first ? signal * (double)p->init[i] + level * (double)p->start[i]
                             : sampler_init_scale(s) * (double)p->start[i]);
}

int sampler_problem_open(struct sampler_problem *p, const struct verify *v, struct err *err)
{
    *p = (struct sampler_problem){0};
    if (verify_file_open(&p->v030, v, "samplers_v030.safetensors", err) ||
        verify_file_open(&p->today, v, "samplers.safetensors", err))
        return -1;
    schedule_init(&p->schedule);
    p->mean = verify_f32(&p->today, "mean", &p->n, err);
    p->deviation = p->mean ? verify_f32(&p->today, "deviation", NULL, err) : NULL;
    p->start = p->deviation ? verify_f32(&p->today, "start", NULL, err) : NULL;
    p->init = p->start ? verify_f32(&p->today, "init", NULL, err) : NULL;
    p->noises = p->init ? verify_f32(&p->today, "noise", NULL, err) : NULL;
    if (!p->noises)
        return -1;
    return p->n <= SAMPLER_PROBLEM_MOST ? 0 : err_set(err, "golden file '%s': latents are too long", p->today.file->path);
}

void sampler_problem_close(struct sampler_problem *p)
{
    verify_file_close(&p->v030);
    verify_file_close(&p->today);
}

static double largest(const float *x, size_t count, double so_far)
{
    for (size_t i = 0; i < count; i++)
        so_far = fmax(so_far, fabs((double)x[i]));
    return so_far;
}

/* How far off the latents may be, carried along with them. With u = 2^-24 and M the largest latents here (present, next or
 * clean): an evaluation rounds x, its prediction and what is stored of it, u M each; the last two enter x through weights whose
 * absolute values sum to at most 7 (Adams-Bashforth's 55, 59, 37, 9 over 24), so an evaluation adds (1 + 2 * 7) u M. What was
 * there before moves with the flow: for a normal distribution it shrinks as the deviation of the latents does,
 * sqrt(signal^2 d^2 + noise^2), with d at most 0.8; the part of the model that is not normal, 0.05 sin 3x, stretches all
 * of it by exp(integral of 0.15 / sqrt(1 + sigma^2) d sigma) = 1.66 at most, which is in the factor 2. The first latents are
 * rounded once, and so are the golden numbers. */
struct bound {
    double off;
};

static double deviation_of(const struct sampler *s)
{
    double signal, level;

    sampler_level(s, &signal, &level);
    return sqrt(0.64 * signal * signal + level * level);
}

static double bound_limit(const struct bound *b, double most)
{
    return 2 * b->off + 0x1p-24 * most;
}

struct trajectory {
    const char *label;
    const float *t, *want, *scale; /* want: [evaluations + 1, n], or of the last step only; scale: NULL then */
    size_t evaluations;
    double worst, limit, share, worst_t, worst_scale;
};

static int read_golden(struct trajectory *a, struct verify_file *f, bool whole, struct err *err)
{
    char name[128];

    snprintf(name, sizeof name, "%s/t", a->label);
    a->t = verify_f32(f, name, &a->evaluations, err);
    snprintf(name, sizeof name, whole ? "%s/x" : "%s/last", a->label);
    a->want = a->t ? verify_f32(f, name, NULL, err) : NULL;
    snprintf(name, sizeof name, "%s/scale", a->label);
    if (a->want && whole)
        a->scale = verify_f32(f, name, NULL, err);
    return a->want && (a->scale || !whole) ? 0 : -1;
}

static void compare(struct trajectory *a, const float *x, const float *want, size_t n, double limit)
{
    double off = verify_max_diff(x, want, n), share = off / limit;

    if (!(share <= a->share)) {
        a->share = share;
        a->worst = off;
        a->limit = limit;
    }
}

/* One evaluation: what the model is told, how its input is scaled, where the latents go. */
static int evaluate(const struct sampler_problem *p, struct sampler *s, const struct sampler_config *c, struct trajectory *a,
                    size_t e, float *x, struct bound *b, struct err *err)
{
    float input[SAMPLER_PROBLEM_MOST], said[SAMPLER_PROBLEM_MOST], clean[SAMPLER_PROBLEM_MOST];
    double before = deviation_of(s), most = largest(x, p->n, 0), told = sampler_timestep(s);

    a->worst_t = fmax(a->worst_t, fabs(told - (double)a->t[e]) / fmax((double)a->t[e], 1));
    if (a->scale)
        compare(a, x, a->want + e * p->n, p->n, bound_limit(b, most));
    sampler_input(s, x, input);
    if (a->scale)
        a->worst_scale = fmax(a->worst_scale, fabs((double)(input[0] / x[0]) / (double)a->scale[e] - 1));
    sampler_problem_model(p, input, told, c->prediction, said);
    sampler_clean(s, x, said, clean);
    most = largest(clean, p->n, most);
    if (sampler_wants_noise(s) && !c->kind->needs_noise)
        return err_set(err, "sampler %s asks for noise that its row denies", c->kind->name);
    if (sampler_step(s, x, said, sampler_wants_noise(s) ? p->noises + e * p->n : NULL, err))
        return -1;
    most = largest(x, p->n, most);
    b->off = b->off * deviation_of(s) / before + 15 * 0x1p-24 * most;
    return 0;
}

/* Rows: timesteps, relative, rounded once on each side; scales: two roundings here, one in the golden file; latents. */
static void report(struct verify *v, const struct trajectory *a, size_t n)
{
    char name[160], what[64];
    struct verify_row row = {.group = "samplers", .what = what, .name = name, .dtype = DT_F32};

    snprintf(what, sizeof what, "%.*s", (int)strcspn(a->label, "/"), a->label);
    snprintf(name, sizeof name, "%s/t", a->label);
    row.shape = shape_of(1, (int)a->evaluations);
    row.worst = a->worst_t;
    row.limit = 0x1p-22;
    verify_row_add(v, &row);
    if (a->scale) {
        snprintf(name, sizeof name, "%s/scale", a->label);
        row.worst = a->worst_scale;
        row.limit = 3 * 0x1p-24;
        verify_row_add(v, &row);
    }
    snprintf(name, sizeof name, "%s/x", a->label);
    row.shape = a->scale ? shape_of(2, (int)a->evaluations + 1, (int)n) : shape_of(1, (int)n);
    row.worst = a->worst;
    row.limit = a->limit;
    verify_row_add(v, &row);
}

static int one_case(struct verify *v, struct sampler_problem *p, struct verify_file *f, const char *label,
                    const struct sampler_config *c, struct err *err)
{
    struct trajectory a = {.label = label, .share = -1};
    float x[SAMPLER_PROBLEM_MOST];
    bool whole = c->steps != 37;
    struct sampler *s = NULL;
    struct bound bound;
    int rc = -1;

    if (read_golden(&a, f, whole, err) || sampler_begin(&s, c, p->n, err))
        return -1;
    if (sampler_evaluations(s) != a.evaluations) {
        err_set(err, "sampler %s makes %zu evaluations for '%s', diffusers %zu", c->kind->name, sampler_evaluations(s), label,
                a.evaluations);
        goto out;
    }
    sampler_problem_first(p, s, c->first, x);
    bound.off = 0x1p-24 * largest(x, p->n, 0);
    for (size_t e = 0; e < a.evaluations; e++)
        if (evaluate(p, s, c, &a, e, x, &bound, err))
            goto out;
    compare(&a, x, whole ? a.want + a.evaluations * p->n : a.want, p->n, bound_limit(&bound, largest(x, p->n, 0)));
    report(v, &a, p->n);
    rc = 0;
out:
    sampler_end(s);
    return rc;
}

int verify_samplers(struct verify *v, struct err *err)
{
    static const size_t cases[][2] = {{2, 0}, {5, 0}, {20, 0}, {37, 0}, {20, 8}, {8, 3}};
    struct sampler_problem p;
    int rc = sampler_problem_open(&p, v, err);

    for (const struct sampler_kind *k = sampler_kinds; k->name && rc == 0; k++)
        for (size_t i = 0; i < 12 && rc == 0; i++) {
            const size_t *n = cases[i / 2];
            struct sampler_config c = {.kind = k, .schedule = &p.schedule, .prediction = i % 2 ? PREDICT_V : PREDICT_EPS,
                                       .steps = n[0], .first = n[1]};
            char label[96];

            if ((!strcmp(k->name, "pndm") && n[0] < 4) || (!strcmp(k->name, "dpmsingle") && n[1] % 2))
                continue; /* diffusers stops with an error there */
            snprintf(label, sizeof label, "%s/%s/%zu/%zu", k->name, i % 2 ? "v_prediction" : "epsilon", n[0], n[1]);
            rc = one_case(v, &p, k->in_v030 ? &p.v030 : &p.today, label, &c, err);
        }
    sampler_problem_close(&p);
    return rc;
}
