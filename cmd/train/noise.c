/* What is random in a step, and what follows from it: noise, timesteps, dropout masks, targets and loss weights. */
#include <math.h>
#include <string.h>

#include "cmd/train/train.h"
#include "ref/base/rng.h"

/* Steele et al. 2014 */
static uint64_t mix(uint64_t z)
{
    z += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

uint64_t train_seed(uint64_t seed, enum train_stream stream, uint64_t step, uint64_t micro, uint64_t position)
{
    return mix(mix(mix(mix(mix(seed) ^ (uint64_t)stream) ^ step) ^ micro) ^ position);
}

size_t train_draw_timestep(const struct trainer *t, uint64_t seed)
{
    struct rng r;

    rng_seed(&r, seed);
    return t->o->min_timestep + rng_below(&r, (uint32_t)(t->o->max_timestep - t->o->min_timestep));
}

void train_draw_mask(const struct train_network_args *a, double dropout, uint64_t seed, float *mask, size_t rows, size_t rank,
                     size_t rows_per_sample)
{
    float keep_rank = (float)(1 / (1 - a->rank_dropout)), keep = (float)(1 / (1 - dropout));
    struct rng r, ranks;
    bool module;

    rng_seed(&r, seed);
    module = a->module_dropout > 0 && (double)rng_uniform(&r) < a->module_dropout;
    rng_seed(&ranks, mix(seed));
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < rank; j++) {
            float x = module ? 0 : 1;

            if (i % rows_per_sample > 0)
                x = mask[(i - 1) * rank + j] > 0 ? 1 : 0; /* the sample's ranks were drawn in its first row */
            else if (a->rank_dropout > 0 && (double)rng_uniform(&ranks) <= a->rank_dropout)
                x = 0;
            mask[i * rank + j] = x;
        }
    for (size_t i = 0; i < rows * rank; i++) {
        if (a->rank_dropout > 0)
            mask[i] *= keep_rank;
        if (dropout > 0)
            mask[i] *= (double)rng_uniform(&r) < dropout ? 0 : keep;
    }
}

/* One value a channel on top of the noise, so that a picture's mean is learned too (Guttenberg 2023). */
static void offset_noise(const struct trainer *t, struct rng *r, const float *x0, float *noise, size_t pixels)
{
    size_t c = t->channels;
    double strength = t->o->noise_offset;

    if (t->o->noise_offset_random_strength)
        strength *= (double)rng_uniform(r);
    for (size_t k = 0; k < c; k++) {
        double mean = 0, offset = strength;
        float z;

        for (size_t i = 0; i < pixels; i++)
            mean += (double)x0[i * c + k] / (double)pixels;
        offset = fmax(0, offset + t->o->adaptive_noise_scale * fabs(mean));
        rng_normal(r, &z, 1);
        for (size_t i = 0; i < pixels; i++)
            noise[i * c + k] += (float)offset * z;
    }
}

/* Between which two of n points (of size in all) pixel i of `of` lies, and how far: bilinear, as torch without align_corners. */
static size_t between(size_t i, size_t of, size_t n, float *share)
{
    double at = fmax(0, ((double)i + 0.5) * (double)n / (double)of - 0.5);
    size_t low = (size_t)at;

    *share = low + 1 < n ? (float)(at - (double)low) : 0;
    return low;
}

static void add_enlarged(float *noise, size_t h, size_t w, const float *coarse, size_t ch, size_t cw, size_t c, float by)
{
    for (size_t y = 0; y < h; y++)
        for (size_t x = 0; x < w; x++) {
            float v, u;
            size_t y0 = between(y, h, ch, &v), x0 = between(x, w, cw, &u), y1 = y0 + (v > 0), x1 = x0 + (u > 0);

            for (size_t k = 0; k < c; k++) {
                float top = coarse[(y0 * cw + x0) * c + k] * (1 - u) + coarse[(y0 * cw + x1) * c + k] * u;
                float low = coarse[(y1 * cw + x0) * c + k] * (1 - u) + coarse[(y1 * cw + x1) * c + k] * u;

                noise[(y * w + x) * c + k] += by * (top * (1 - v) + low * v);
            }
        }
}

/* Noise of coarser and coarser grain, scaled back to unit variance (Whitaker 2023). */
static void pyramid_noise(const struct trainer *t, struct rng *r, float *noise, size_t h, size_t w, float *coarse)
{
    size_t c = t->channels, n = h * w * c;
    double sum = 0, squares = 0, deviation;

    for (size_t i = 0; i < t->o->multires_noise_iterations; i++) {
        double step = pow((double)rng_uniform(r) * 2 + 2, (double)i);
        size_t ch = (size_t)fmax(1, (double)h / step), cw = (size_t)fmax(1, (double)w / step);

        rng_normal(r, coarse, ch * cw * c);
        add_enlarged(noise, h, w, coarse, ch, cw, c, (float)pow(t->o->multires_noise_discount, (double)i));
        if (ch == 1 || cw == 1)
            break;
    }
    for (size_t i = 0; i < n; i++) {
        sum += (double)noise[i];
        squares += (double)noise[i] * (double)noise[i];
    }
    deviation = sqrt((squares - sum * sum / (double)n) / (double)(n - 1));
    for (size_t i = 0; i < n; i++)
        noise[i] = (float)((double)noise[i] / deviation);
}

/* The loss weight of a timestep. snr is cut to 1000 where sd-scripts cuts it. */
static double loss_weight(const struct trainer *t, size_t timestep)
{
    const struct train_options *o = t->o;
    double snr = fmin(1000, (double)schedule_snr(&t->schedule, timestep)), scale = snr / (snr + 1), w = 1;

    if (o->min_snr_gamma > 0)
        w *= (double)schedule_min_snr(&t->schedule, timestep, (float)o->min_snr_gamma, t->prediction);
    if (o->scale_v_pred_loss_like_noise_pred)
        w *= scale;
    if (o->v_pred_like_loss > 0)
        w *= 1 + o->v_pred_like_loss / scale;
    if (o->debiased_estimation_loss)
        w *= t->prediction == PREDICT_V ? 1 / (snr + 1) : 1 / sqrt(snr);
    return w;
}

/* The width of the pseudo-Huber loss at a timestep. */
static double huber_width(const struct trainer *t, size_t timestep)
{
    const struct train_options *o = t->o;
    double bar = (double)t->schedule.bar[timestep], sigma = sqrt((1 - bar) / bar);

    switch ((enum train_huber)o->huber_schedule) {
    case HUBER_EXPONENTIAL:
        return exp(log(o->huber_c) / SCHEDULE_STEPS * (double)timestep) * o->huber_scale;
    case HUBER_SNR:
        return (1 - o->huber_c) / ((1 + sigma) * (1 + sigma)) + o->huber_c;
    case HUBER_CONSTANT:
        break;
    }
    return o->huber_c * o->huber_scale;
}

void train_draw(const struct trainer *t, const float *x0, size_t h, size_t w, uint64_t seed, bool fixed, float weight, float *noise,
                float *noisy, float *target, struct train_sample *s)
{
    size_t n = h * w * t->channels;
    struct rng r;

    rng_seed(&r, seed);
    rng_normal(&r, noise, n);
    if (!fixed && t->o->noise_offset != 0)
        offset_noise(t, &r, x0, noise, h * w);
    if (!fixed && t->o->multires_noise_iterations > 0)
        pyramid_noise(t, &r, noise, h, w, target);
    memcpy(target, noise, n * sizeof *target);
    if (!fixed && t->o->ip_noise_gamma > 0) {
        float strength = (float)t->o->ip_noise_gamma * (t->o->ip_noise_gamma_random_strength ? rng_uniform(&r) : 1);

        rng_normal(&r, noisy, n);
        for (size_t i = 0; i < n; i++)
            noise[i] += strength * noisy[i];
    }
    schedule_add_noise(&t->schedule, s->timestep, x0, noise, noisy, n);
    if (t->prediction == PREDICT_V)
        schedule_velocity(&t->schedule, s->timestep, x0, target, target, n);
    s->weight = weight * (fixed ? 1 : (float)loss_weight(t, s->timestep));
    if (t->setup.huber) {
        double width = huber_width(t, s->timestep);

        s->delta = (float)width;
        s->weight *= (float)(t->o->loss_type == LOSS_HUBER ? 2 * width : 2);
    }
}
