/* Convolutions and the low-rank branch. A sum of n products in f32: n roundings of its size; the largest result stands for the
 * sum of sizes, which random signs more than make up for. */
#include "tests/cuda/kernels.h"

struct Window {
    size_t n, h, w, ci, co, k, stride, before, after;
};

static void conv(kernel_type t, const Window &z)
{
    kernel_conv c = {};
    size_t oh = (z.h + z.before + z.after - z.k) / z.stride + 1, ow = (z.w + z.before + z.after - z.k) / z.stride + 1;
    size_t nx = z.n * z.h * z.w * z.ci, ny = z.n * oh * ow * z.co, nw = z.co * z.k * z.k * z.ci;
    std::string name = "conv " + std::to_string(z.k) + "x" + std::to_string(z.k) + "/" + std::to_string(z.stride) + " n" +
                       std::to_string(z.n) + " " + std::to_string(z.h) + "x" + std::to_string(z.w) + " " +
                       std::to_string(z.ci) + " to " + std::to_string(z.co);
    Data x(t, numbers(nx)), w(t, numbers(nw, 0.1f)), bias(KERNEL_F32, numbers(z.co)), residual(t, numbers(ny));
    Data dy(t, numbers(ny)), y(t, ny), dx(t, nx), dw(KERNEL_F32, nw);
    double bytes = (double)(nx + nw + ny) * type_size(t), flops;
    Ref r(OP_conv2d);

    r.attr.stride = z.stride, r.attr.pad_before = z.before, r.attr.pad_after = z.after;
    r.input(0, {z.n, z.h, z.w, z.ci}, x.host);
    r.input(1, {z.co, z.k, z.k, z.ci}, w.host);
    r.input(2, {z.co}, bias.host);
    r.input(3, {z.n, oh, ow, z.co}, residual.host);
    r.forward();
    flops = r.flops(false);
    r.backward(dy.host, 3);
    c.type = t;
    c.n = z.n, c.h = z.h, c.w = z.w, c.ci = z.ci, c.oh = oh, c.ow = ow, c.co = z.co, c.kh = c.kw = z.k;
    c.stride = z.stride, c.pad = z.before;
    Scratch scratch(kernel_conv_scratch(&c));
    c.x = x.dev, c.weight = w.dev, c.bias = bias.f32(), c.residual = residual.dev, c.y = y.dev;
    c.dy = dy.dev, c.dx = dx.dev, c.dweight = dw.f32(), c.scratch = scratch.dev;
    check({name, t, [&] { return kernel_conv_forward(0, &c); }, {{&y, r.result[0], (double)(z.k * z.k * z.ci + 3)}}, bytes,
           flops});
    check({name + " backward data", t, [&] { return kernel_conv_backward_data(0, &c); },
           {{&dx, r.gradient[0], (double)(z.k * z.k * z.co)}}, bytes, flops});
    if (z.co <= 16)
        check({name + " backward weight", t, [&] { return kernel_conv_backward_weight(0, &c); },
               {{&dw, r.gradient[1], (double)(z.n * oh * ow)}}, bytes, flops});
}

/* Ref has base, x, down, up -> y; the gradient of base is dy. On tensor cores the factors, and t or dt between the two products,
 * are rounded to the type: two errors of random sign for the factors' gradients, three for y and dx, each 3.5 units at six
 * deviations (cases_attention.cpp), so 3.5 sqrt(2) and 3.5 sqrt(3): 5 and 6. */
static void lora(kernel_type t, size_t m, size_t k, size_t n, size_t rank, bool add)
{
    kernel_lora l = {};
    std::string name = "lora " + std::to_string(m) + " " + std::to_string(k) + " to " + std::to_string(n) + " rank " +
                       std::to_string(rank) + (add ? " added" : "");
    Data base(t, numbers(m * n)), x(t, numbers(m * k)), down(KERNEL_F32, numbers(rank * k)), up(KERNEL_F32, numbers(n * rank));
    Data dy(t, numbers(m * n)), y(t, m * n), dx(t, m * k), start(t, numbers(m * k));
    Data ddown(KERNEL_F32, rank * k), dup(KERNEL_F32, n * rank);
    std::vector<float> dx_want;
    double bytes = (double)(m * k + 2 * m * n) * type_size(t);
    Ref r(OP_lora);

    r.attr.scale = 0.7f;
    r.input(0, {m, n}, base.host);
    r.input(1, {m, k}, x.host);
    r.input(2, {rank, k}, down.host);
    r.input(3, {n, rank}, up.host);
    r.forward();
    r.backward(dy.host, 14);
    dx_want = r.gradient[1];
    for (size_t i = 0; add && i < m * k; i++)
        dx_want[i] += start.host[i];
    l.type = t, l.m = m, l.k = k, l.n = n, l.r = rank, l.scale = 0.7f, l.add = add;
    Scratch scratch(kernel_lora_scratch(&l));
    l.down = down.f32(), l.up = up.f32(), l.x = x.dev, l.base = base.dev, l.y = y.dev, l.dy = dy.dev, l.dx = dx.dev;
    l.ddown = ddown.f32(), l.dup = dup.f32(), l.scratch = scratch.dev;
    check({name, t, [&] { return kernel_lora_forward(0, &l); }, {{&y, r.result[0], (double)(k + rank + 2), 1, 0, 6}}, bytes,
           r.flops(false)});
    check({name + " backward", t, [&] { return kernel_lora_backward(0, &l); },
           {{&dx, dx_want, (double)(n + rank + 2), 1, 0, 6}, {&ddown, r.gradient[2], (double)(n + m + 1), 1, 0, 5},
            {&dup, r.gradient[3], (double)(k + m + 1), 1, 0, 5}},
           bytes, r.flops(true), [&] { kernel_convert(0, dx.dev, t, start.dev, t, m * k); }});
}

void cases_products(void)
{
    static const Window small[] = {
        {2, 7, 5, 16, 24, 3, 1, 1, 1}, {1, 8, 9, 17, 35, 3, 2, 1, 1}, {1, 8, 8, 8, 16, 3, 2, 0, 1},
        {1, 6, 4, 64, 72, 1, 1, 0, 0}, {2, 9, 11, 3, 4, 3, 1, 1, 1},  {1, 20, 17, 40, 136, 3, 1, 1, 1},
    };
    static const Window real[] = {
        {1, 64, 64, 320, 320, 3, 1, 1, 1}, {1, 32, 32, 640, 640, 3, 1, 1, 1}, {1, 16, 16, 2560, 1280, 3, 1, 1, 1},
        {1, 64, 64, 320, 320, 3, 2, 1, 1}, {1, 64, 64, 4, 320, 3, 1, 1, 1},
    };

    for (kernel_type t : all_types) {
        for (const Window &z : small)
            conv(t, z);
        lora(t, 70, 40, 24, 4, false);
        lora(t, 33, 37, 19, 3, true);
        lora(t, 300, 24, 40, 32, true);
        lora(t, 50, 80, 320, 16, false);
        lora(t, 9, 16, 16, 7, false);
        lora(t, 2, 48, 1032, 4, false);
        lora(t, 1, 96, 40, 20, true);
        lora(t, 200, 136, 72, 20, false);
        if (!cases_full())
            continue;
        lora(t, 4096, 320, 320, 4, true);
        lora(t, 4096, 320, 320, 32, true);
        lora(t, 1024, 640, 640, 4, true);
        lora(t, 77, 768, 320, 4, false);
        lora(t, 256, 1280, 1280, 16, true);
        for (const Window &z : real)
            if (t != KERNEL_F16)
                conv(t, z);
    }
}
