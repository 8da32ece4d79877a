#include "ref/diffusion/sampler.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "ref/base/dtype.h"
#include "ref/base/mem.h"
#include "ref/diffusion/sampler_plan.h"

const struct sampler_kind sampler_kinds[] = {
    {"ddim", NULL, "DDIM", "DDIM without noise: plain and even", 1, 1, 1, false, true, 0, plan_ddim},
    {"pndm", NULL, "PNDM", "PNDM: four Runge-Kutta steps, then multistep; 9 evaluations more", 1, 1, 4, false, true,
     PNDM_RUNGE_KUTTA, plan_pndm},
    {"lms", "k_lms", "LMS", "linear multistep over four evaluations", 1, 1, 4, false, true, 0, plan_lms},
    {"euler", "k_euler", "Euler", "Euler", 1, 1, 1, false, true, K_EULER, plan_euler},
    {"euler_a", "k_euler_a", "Euler a", "Euler with fresh noise in each step", 1, 1, 1, true, true, K_EULER_A, plan_euler},
    {"heun", NULL, "Heun", "Heun: two evaluations a step", 1, 2, 2, false, true, 0, plan_heun},
    {"dpm_2", "k_dpm_2", "DPM2", "midpoint: two evaluations a step", 1, 2, 2, false, true, K_DPM_2, plan_dpm_2},
    {"dpm_2_a", "k_dpm_2_a", "DPM2 a", "midpoint with fresh noise: two evaluations a step", 2, 2, 2, true, true, K_DPM_2_A,
     plan_dpm_2},
    {"dpmsolver", NULL, "DPM-Solver", "DPM-Solver, multistep", 1, 1, 2, false, true, DPM_EPS, plan_dpm},
    {"dpmsolver++", NULL, "DPM-Solver++", "DPM-Solver++, multistep, as diffusers had it in 2022", 1, 1, 2, false, true, DPM_X0,
     plan_dpm},
    {"dpmsingle", NULL, "DPM-Solver++ singlestep", "DPM-Solver++, pairs of evaluations", 1, 1, 2, false, true, DPM_SINGLE,
     plan_dpm},
    {"plms", NULL, "PLMS", "PNDM without Runge-Kutta steps", 1, 1, 4, false, false, PNDM_MULTISTEP, plan_pndm},
    {"dpmpp_2m", "dpm++_2m", "DPM++ 2M", "DPM-Solver++ 2M: good from 15 steps on", 1, 1, 2, false, false, DPM_2M, plan_dpm},
    {"dpmpp_2m_karras", "dpm++_2m_karras", "DPM++ 2M Karras", "the same with Karras's noise levels", 1, 1, 2, false, false,
     DPM_2M_KARRAS, plan_dpm},
    {"dpmpp_2m_sde", "dpm++_2m_sde", "DPM++ 2M SDE", "DPM-Solver++ 2M with fresh noise", 1, 1, 2, true, false, DPM_2M_SDE,
     plan_dpm},
    {"dpmpp_2m_sde_karras", "dpm++_2m_sde_karras", "DPM++ 2M SDE Karras", "the same with Karras's noise levels", 1, 1, 2, true,
     false, DPM_2M_SDE_KARRAS, plan_dpm},
    {"dpmpp_sde", "dpm++_sde", "DPM++ SDE", "DPM-Solver++ with fresh noise: two evaluations a step", 2, 2, 2, true, false,
     SDE_PLAIN, plan_dpm_sde},
    {"dpmpp_sde_karras", "dpm++_sde_karras", "DPM++ SDE Karras", "the same with Karras's noise levels", 2, 2, 2, true, false,
     SDE_KARRAS, plan_dpm_sde},
    {"unipc", NULL, "UniPC", "UniPC: predictor and corrector, good from 10 steps on", 1, 1, 2, false, false, 0, plan_unipc},
    {"lcm", NULL, "LCM", "for models distilled to few steps (LCM), 1 to 8 steps", 1, 1, 1, true, false, 0, plan_lcm},
    {0},
};

struct sampler {
    struct plan plan;
    size_t at;          /* the coming row */
    size_t n;           /* elements of the latents */
    float *memory;      /* kept [n] and as many slots [n] as the rows name */
    float *term[TERMS]; /* where each term lies; x and noise are the caller's */
};

const struct sampler_kind *sampler_find(const char *name)
{
    for (const struct sampler_kind *k = sampler_kinds; k->name; k++)
        if (!strcmp(k->name, name) || (k->alias && !strcmp(k->alias, name)))
            return k;
    return NULL;
}

size_t sampler_first_step(size_t steps, double strength)
{
    double left = floor((double)steps * strength);

    if (!(left >= 1))
        left = 1;
    return left >= (double)steps ? 0 : steps - (size_t)left;
}

static int take_memory(struct sampler *s, struct err *err)
{
    int slots = 0;
    size_t elements, bytes;

    for (size_t i = 0; i < s->plan.count; i++) {
        const struct plan_row *r = &s->plan.row[i];

        slots = r->store >= slots ? r->store + 1 : slots;
        slots = r->store_noise >= slots ? r->store_noise + 1 : slots;
    }
    if (!mem_mul(s->n, (size_t)slots + 1, &elements) || !mem_mul(elements, sizeof(float), &bytes))
        return err_memory(err, ~0ull, "a sampler");
    s->memory = mem_new(bytes, "a sampler", err);
    if (!s->memory)
        return -1;
    memset(s->memory, 0, bytes);
    s->term[TERM_KEPT] = s->memory;
    for (int i = 0; i < slots; i++)
        s->term[TERM_SLOT + i] = s->memory + s->n * ((size_t)i + 1);
    return 0;
}

int sampler_begin(struct sampler **out, const struct sampler_config *c, size_t n, struct err *err)
{
    struct sampler *s;

    *out = NULL;
    if (c->steps < 1 || c->steps > SCHEDULE_STEPS)
        return err_usage(err, "cannot sample in %zu steps; give 1 to %d", c->steps, SCHEDULE_STEPS);
    if (c->first >= c->steps)
        return err_usage(err, "cannot begin at step %zu of %zu; give a lower one", c->first, c->steps);
    s = mem_zero(1, sizeof *s, "a sampler", err);
    if (!s)
        return -1;
    s->n = n;
    s->plan = (struct plan){.schedule = c->schedule,
                            .prediction = c->prediction,
                            .steps = c->steps,
                            .first = c->first,
                            .variant = c->kind->variant,
                            .init_scale = 1,
                            .last_signal = 1};
    if (c->kind->plan(&s->plan, err) || take_memory(s, err)) {
        sampler_end(s);
        return -1;
    }
    s->plan.schedule = NULL; /* was borrowed for planning */
    *out = s;
    return 0;
}

void sampler_end(struct sampler *s)
{
    if (!s)
        return;
    free(s->plan.row);
    free(s->memory);
    free(s);
}

size_t sampler_evaluations(const struct sampler *s)
{
    return s->plan.count;
}

size_t sampler_done_evaluations(const struct sampler *s)
{
    return s->at;
}

bool sampler_done(const struct sampler *s)
{
    return s->at == s->plan.count;
}

double sampler_init_scale(const struct sampler *s)
{
    return s->plan.init_scale;
}

static const struct plan_row *coming(const struct sampler *s)
{
    assert(!sampler_done(s));
    return &s->plan.row[s->at];
}

void sampler_level(const struct sampler *s, double *signal, double *noise)
{
    *signal = sampler_done(s) ? s->plan.last_signal : coming(s)->signal;
    *noise = sampler_done(s) ? s->plan.last_noise : coming(s)->noise;
}

double sampler_timestep(const struct sampler *s)
{
    return coming(s)->timestep;
}

void sampler_input(const struct sampler *s, const float *x, float *input)
{
    double scale = coming(s)->scale;

    for (size_t i = 0; i < s->n; i++)
        input[i] = (float)(scale * (double)x[i]);
}

static void mix(double a, const float *x, double b, const float *y, float *out, size_t n)
{
    for (size_t i = 0; i < n; i++)
        out[i] = (float)(a * (double)x[i] + b * (double)y[i]);
}

void sampler_clean(const struct sampler *s, const float *x, const float *prediction, float *clean)
{
    mix(coming(s)->clean_m, prediction, coming(s)->clean_x, x, clean, s->n);
}

bool sampler_wants_noise(const struct sampler *s)
{
    return coming(s)->out[TERM_NOISE] != 0 || coming(s)->store_noise != NO_SLOT;
}

/* x [n] = the weighted terms, one of which may be x itself: a block is summed in f64 before it is written. */
static void sum_terms(float *x, const double weight[TERMS], float *const term[TERMS], size_t n)
{
    enum { BLOCK = 256 };
    double sum[BLOCK];

    for (size_t at = 0; at < n; at += BLOCK) {
        size_t m = n - at < BLOCK ? n - at : BLOCK;

        memset(sum, 0, sizeof sum);
        for (int k = 0; k < TERMS; k++) {
            if (weight[k] == 0)
                continue;
            for (size_t i = 0; i < m; i++)
                sum[i] += weight[k] * (double)term[k][at + i];
        }
        for (size_t i = 0; i < m; i++)
            x[at + i] = (float)sum[i];
    }
}

int sampler_step(struct sampler *s, float *x, const float *prediction, const float *noise, struct err *err)
{
    const struct plan_row *r = coming(s);
    float *term[TERMS];

    assert(noise || !sampler_wants_noise(s));
    memcpy(term, s->term, sizeof term);
    term[TERM_X] = x;
    if (r->store_noise != NO_SLOT)
        memcpy(term[TERM_SLOT + r->store_noise], noise, s->n * sizeof *noise);
    term[TERM_NOISE] = (float *)(uintptr_t)noise; /* only ever read */
    mix(r->to_m, prediction, r->to_x, x, term[TERM_SLOT + r->store], s->n);
    if (r->fixing)
        sum_terms(x, r->fix, term, s->n);
    if (r->keep)
        memcpy(term[TERM_KEPT], x, s->n * sizeof *x);
    sum_terms(x, r->out, term, s->n);
    if (dtype_find_nonfinite(x, DT_F32, s->n) < s->n)
        return err_set(err,
                       "the picture is lost: numbers are no longer finite after evaluation %zu of %zu (timestep %g); compute "
                       "with wider numbers (float32 or bf16 instead of fp16), or lower the guidance scale",
                       s->at + 1, s->plan.count, r->timestep);
    s->at++;
    return 0;
}
