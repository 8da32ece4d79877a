#include "ref/diffusion/schedule.h"

#include <assert.h>
#include <math.h>

/* torch.linspace in f32 counts its second half from the end, and its products are fused with the sum (on every CPU with
 * AVX2 or better; on older ones 145 of the 1,000 betas end one bit away). */
static void linspace(float *x, size_t n, float from, float to)
{
    float step = (to - from) / (float)(n - 1);

    for (size_t i = 0; i < n; i++)
        x[i] = i < n / 2 ? fmaf(step, (float)i, from) : fmaf(-step, (float)(n - 1 - i), to);
}

static void accumulate(struct schedule *s)
{
    double product = 1;

    for (size_t i = 0; i < SCHEDULE_STEPS; i++) {
        product *= (double)(1.0f - s->beta[i]);
        s->bar[i] = (float)product;
    }
}

void schedule_init(struct schedule *s)
{
    linspace(s->beta, SCHEDULE_STEPS, (float)sqrt(0.00085), (float)sqrt(0.012));
    for (size_t i = 0; i < SCHEDULE_STEPS; i++)
        s->beta[i] *= s->beta[i];
    accumulate(s);
}

void schedule_zero_snr(struct schedule *s)
{
    float first = sqrtf(s->bar[0]), last = sqrtf(s->bar[SCHEDULE_STEPS - 1]), before = 0;

    for (size_t i = 0; i < SCHEDULE_STEPS; i++) {
        float root = (sqrtf(s->bar[i]) - last) * (first / (first - last)), bar = root * root;

        s->beta[i] = 1.0f - (i ? bar / before : bar);
        before = bar;
    }
    accumulate(s);
}

static void mix(float a, const float *x, float b, const float *y, float *out, size_t n)
{
    for (size_t i = 0; i < n; i++)
        out[i] = a * x[i] + b * y[i];
}

void schedule_add_noise(const struct schedule *s, size_t t, const float *x0, const float *noise, float *x, size_t n)
{
    assert(t < SCHEDULE_STEPS);
    mix(sqrtf(s->bar[t]), x0, sqrtf(1.0f - s->bar[t]), noise, x, n);
}

void schedule_velocity(const struct schedule *s, size_t t, const float *x0, const float *noise, float *v, size_t n)
{
    assert(t < SCHEDULE_STEPS);
    mix(sqrtf(s->bar[t]), noise, -sqrtf(1.0f - s->bar[t]), x0, v, n);
}

float schedule_snr(const struct schedule *s, size_t t)
{
    float a, b;

    assert(t < SCHEDULE_STEPS);
    a = sqrtf(s->bar[t]);
    b = sqrtf(1.0f - s->bar[t]);
    return (a / b) * (a / b);
}

float schedule_min_snr(const struct schedule *s, size_t t, float gamma, enum prediction what)
{
    float snr = schedule_snr(s, t), least = snr < gamma ? snr : gamma;

    switch (what) {
    case PREDICT_EPS:
        return snr > 0 ? least / snr : 1;
    case PREDICT_V:
        return least / (snr + 1);
    case PREDICT_X0:
        break;
    }
    return least;
}

/* First everything as x_0, then from x_0 to what is wanted. */
void schedule_convert(double bar, enum prediction from, enum prediction to, double *of_model, double *of_x)
{
    double a = sqrt(bar), s = sqrt(1 - bar);

    if (from == to) {
        *of_model = 1;
        *of_x = 0;
    } else if (to == PREDICT_X0) { /* (x - s e) / a; a x - s v */
        *of_model = from == PREDICT_EPS ? -s / a : -s;
        *of_x = from == PREDICT_EPS ? 1 / a : a;
    } else if (to == PREDICT_EPS) { /* a v + s x; (x - a x0) / s */
        *of_model = from == PREDICT_V ? a : -a / s;
        *of_x = from == PREDICT_V ? s : 1 / s;
    } else { /* v = (e - s x) / a; (a x - x0) / s */
        *of_model = from == PREDICT_EPS ? 1 / a : -1 / s;
        *of_x = from == PREDICT_EPS ? -s / a : a / s;
    }
}
