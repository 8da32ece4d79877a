/* From noise, or from a picture's latents, to the latents of a batch. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cmd/generate/pipe_inside.h"
#include "ref/diffusion/guidance.h"

/* A batch on its way. n: floats of one picture, all: of the batch. */
struct walk {
    struct generate_pipe *p;
    const struct generate_job *job;
    struct sampler *s;
    struct noise *noise; /* [count], each of its picture's seed */
    size_t n, all;
    float *x, *prediction, *fresh; /* [all] */
    float *start;                  /* [all] the noise that img2img begins with; NULL without init */
    float *input, *output;         /* of the U-Net */
};

/* ---- What the U-Net is given ---- */

/* input [rows * count, h, w, c or 2c + 1]: each picture's scaled latents, behind them what inpainting models see. */
static void fill_input(const struct walk *k)
{
    size_t c = k->p->channels, e = k->job->extra ? c + 1 : 0, pixels = k->all / c;

    sampler_input(k->s, k->x, k->fresh);
    for (size_t row = 0; row < k->job->rows; row++) {
        float *to = k->input + row * pixels * (c + e);

        if (!e)
            memcpy(to, k->fresh, k->all * sizeof *to);
        for (size_t i = 0; e && i < pixels; i++) {
            memcpy(to + i * (c + e), k->fresh + i * c, c * sizeof *to);
            memcpy(to + i * (c + e) + c, k->job->extra + i * e, e * sizeof *to);
        }
    }
}

static int write_inputs(const struct walk *k, struct err *err)
{
    struct generate_pipe *p = k->p;
    size_t rows = k->job->rows * k->job->count;
    float *timestep = mem_new(rows * sizeof *timestep, "timesteps", err);
    int rc = -1;

    if (!timestep)
        return -1;
    for (size_t i = 0; i < rows; i++)
        timestep[i] = (float)sampler_timestep(k->s);
    fill_input(k);
    if (run_write(p->run, p->in[0], k->input, err) == 0 && run_write(p->run, p->in[1], timestep, err) == 0)
        rc = run_write(p->run, p->in[2], k->job->context, err);
    free(timestep);
    return rc;
}

/* prediction [all] = what the U-Net says of x [all], with guidance. A number that is not finite is an error: the graph runs
 * once more to find the layer. */
static int predict(const struct walk *k, struct err *err)
{
    struct run_options search = {.check_nan = true};
    const struct generate_job *job = k->job;
    struct generate_pipe *p = k->p;
    const float *out = k->output;

    if (write_inputs(k, err) || generate_pipe_run(p, err) || run_read(p->run, p->out, k->output, err))
        return -1;
    if (dtype_find_nonfinite(out, DT_F32, job->rows * k->all) < job->rows * k->all) {
        if (write_inputs(k, err) == 0 && run_graph(p->run, &search, err) == 0)
            err_set(err, "the U-Net's output is not finite");
        return err_prefix(err, "step %zu of %zu: ", sampler_done_evaluations(k->s) + 1, sampler_evaluations(k->s));
    }
    if (job->rows == 1)
        memcpy(k->prediction, out, k->all * sizeof *out);
    else if (job->rows == 2)
        guidance(k->prediction, out, out + k->all, (float)job->scale, k->all);
    else
        guidance_negative(k->prediction, out, out + k->all, out + 2 * k->all, (float)job->scale, (float)job->negative_scale,
                          k->all);
    return 0;
}

/* ---- Where it begins, and what stays ---- */

/* x [all] = signal * init + level * noise, where mask is below 1 (NULL: everywhere): what stays is put back. */
static void put_back(const struct walk *k, const float *mask)
{
    const float *init = k->job->init;
    size_t c = k->p->channels;
    double signal, level;

    sampler_level(k->s, &signal, &level);
    for (size_t i = 0; i < k->all; i++) {
        double kept = signal * (double)init[i] + level * (double)k->start[i], m = mask ? (double)mask[i / c] : 0;

        k->x[i] = (float)(kept * (1 - m) + (m > 0 ? m * (double)k->x[i] : 0));
    }
}

static void draw(const struct walk *k, uint64_t number, float *x)
{
    for (size_t i = 0; i < k->job->count; i++) {
        noise_seek(&k->noise[i], number);
        noise_next(&k->noise[i], x + i * k->n);
    }
}

static void begin(const struct walk *k)
{
    double scale = sampler_init_scale(k->s);

    if (k->start) {
        draw(k, 1 + k->job->steps * k->job->kind->noises, k->start);
        put_back(k, NULL);
        return;
    }
    draw(k, 0, k->x);
    for (size_t i = 0; i < k->all; i++)
        k->x[i] = (float)(scale * (double)k->x[i]);
}

static int tell(const struct walk *k, const float *clean, struct err *err)
{
    const struct generate_job *job = k->job;

    if (job->step && job->step(job->ctx, sampler_done_evaluations(k->s), clean))
        return err_set(err, GENERATE_STOPPED);
    return 0;
}

/* Every evaluation has its own noise, used or not. */
static int take_steps(const struct walk *k, struct err *err)
{
    begin(k);
    if (tell(k, NULL, err))
        return -1;
    while (!sampler_done(k->s)) {
        if (predict(k, err))
            return -1;
        if (k->job->want_clean)
            sampler_clean(k->s, k->x, k->prediction, k->input); /* which is written anew before the next evaluation */
        if (sampler_wants_noise(k->s))
            draw(k, 1 + sampler_done_evaluations(k->s), k->fresh);
        if (sampler_step(k->s, k->x, k->prediction, k->fresh, err))
            return -1;
        if (k->job->mask && k->job->init)
            put_back(k, k->job->mask);
        if (tell(k, k->job->want_clean ? k->input : NULL, err))
            return -1;
    }
    return 0;
}

static int take_memory(struct walk *k, size_t h, size_t w, struct err *err)
{
    const struct generate_job *job = k->job;
    size_t c = k->p->channels, in = job->rows * (job->extra ? 2 * c + 1 : c), per_pixel = 4 * c + in + job->rows * c;

    k->noise = mem_zero(job->count, sizeof *k->noise, "noises", err);
    k->x = mem_zero(k->all / c * per_pixel, sizeof *k->x, "latents", err);
    if (!k->noise || !k->x)
        return -1;
    k->prediction = k->x + k->all;
    k->fresh = k->prediction + k->all;
    k->start = job->init ? k->fresh + k->all : NULL;
    k->input = k->fresh + 2 * k->all;
    k->output = k->input + k->all / c * in;
    for (size_t i = 0; i < job->count; i++)
        if (noise_begin(&k->noise[i], k->p->device, job->seed[i], c, h, w, err))
            return -1;
    return 0;
}

int generate_pipe_sample(struct generate_pipe *p, const struct generate_job *job, float **latents, struct err *err)
{
    size_t h = job->height / p->factor, w = job->width / p->factor;
    struct walk k = {.p = p, .job = job};
    struct sampler_config config = {.kind = job->kind,
                                    .schedule = &p->schedule,
                                    .prediction = p->prediction,
                                    .steps = job->steps,
                                    .first = job->init ? sampler_first_step(job->steps, job->strength) : 0};
    int rc = -1;

    *latents = NULL;
    if (generate_pipe_enter(p, STAGE_UNET, job->rows * job->count, h, w, job->tokens, err))
        return -1;
    k.n = h * w * p->channels; /* the graph's shapes were checked for overflow */
    k.all = k.n * job->count;
    if (sampler_begin(&k.s, &config, k.all, err) == 0 && take_memory(&k, h, w, err) == 0)
        rc = take_steps(&k, err);
    if (rc == 0) {
        *latents = k.x; /* more than the latents: its other parts are not worth a copy */
        k.x = NULL;
    }
    for (size_t i = 0; k.noise && i < job->count; i++)
        noise_end(&k.noise[i]);
    free(k.noise);
    free(k.x);
    sampler_end(k.s);
    return rc;
}
