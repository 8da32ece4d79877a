/* Sinusoidal timestep embedding: y [n, width] = cos(t w_0) .. cos(t w_last), sin(t w_0) .. sin(t w_last) with
 * w_i = 10000^(-i / half), half = width / 2: the cosines first, as Stable Diffusion has it. Computed in f64: t w reaches
 * 999 radians, where f32 would lose four digits. */
#include <math.h>

#include "ref/op/elementwise.h"

static int forward(const struct op_call *c, struct err *err)
{
    const float *t = c->in[0]->data;
    float *y = c->out[0]->data;
    size_t n = c->in[0]->shape.dim[0], half = c->attr->width / 2;

    (void)err;
    for (size_t i = 0; i < n; i++, y += 2 * half)
        for (size_t j = 0; j < half; j++) {
            double angle = (double)t[i] * exp(-log(10000.0) * (double)j / (double)half);

            y[j] = (float)cos(angle);
            y[half + j] = (float)sin(angle);
        }
    return 0;
}

static int shape(const struct op_call *c, struct err *err)
{
    if (c->in[0]->shape.ndim != 1 || c->attr->width == 0 || c->attr->width % 2 != 0)
        return err_set(err, "timesteps are a vector, and their embedding has an even width");
    if (elementwise_need_f32(c, 0, "the timestep", err) < 0)
        return -1;
    *c->out[0] = (struct tensor){.dtype = DT_F32, .shape = {2, {c->in[0]->shape.dim[0], c->attr->width}}};
    return 0;
}

const struct op op_timestep = {
    .name = "timestep", .min_in = 1, .max_in = 1, .nout = 1, .shape = shape, .forward = forward,
};
