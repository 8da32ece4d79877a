/* Norms. Sums of n terms are taken in a tree of depth log n; 64 roundings cover it, the quotient and an activation. What is
 * subtracted from x is of x's size, so an error is relative to shift / deviation where x has a shift. */
#include <cmath>

#include "tests/cuda/kernels.h"

enum { ROUNDINGS = 64 };

static void group_norm(kernel_type t, size_t n, size_t rows, size_t c, size_t groups, bool silu, float shift)
{
    Data x(t, numbers(n * rows * c, 2, shift)), dy(t, numbers(n * rows * c)), y(t, n * rows * c), dx(t, n * rows * c);
    Data gamma(KERNEL_F32, numbers(c, 1, 1)), beta(KERNEL_F32, numbers(c)), stats(KERNEL_F32, n * groups * 2);
    Scratch scratch(kernel_group_norm_scratch(n, rows, c, groups));
    enum kernel_act act = silu ? KERNEL_SILU : KERNEL_NONE;
    std::string name = "group_norm " + std::to_string(n) + " " + std::to_string(rows) + " " + std::to_string(c) + " / " +
                       std::to_string(groups) + (silu ? " silu" : "") + (shift != 0 ? " shifted" : "");
    double bytes = (double)n * rows * c * type_size(t), more = 1 + fabs((double)shift);
    Ref r(OP_group_norm);

    r.attr.groups = groups;
    r.attr.eps = 1e-5f;
    r.attr.act = silu ? ACT_SILU : ACT_NONE;
    r.input(0, {n, rows, c}, x.host);
    r.input(1, {c}, gamma.host);
    r.input(2, {c}, beta.host);
    r.forward();
    r.backward(dy.host, 1);
    check({name, t,
           [&] {
               return kernel_group_norm(0, t, act, x.dev, gamma.f32(), beta.f32(), y.dev, stats.f32(), n, rows, c, groups, 1e-5f,
                                        scratch.dev);
           },
           {{&y, r.result[0], ROUNDINGS * more}, {&stats, r.result[1], ROUNDINGS * more}}, 2 * bytes});
    Data known(KERNEL_F32, r.result[1]);
    check({name + " backward", t,
           [&] {
               return kernel_group_norm_backward(0, t, act, x.dev, gamma.f32(), beta.f32(), known.f32(), dy.dev, dx.dev, n, rows,
                                                 c, groups, scratch.dev);
           },
           {{&dx, r.gradient[0], ROUNDINGS * more}}, 3 * bytes});
}

static void layer_norm(kernel_type t, size_t rows, size_t c, float shift)
{
    Data x(t, numbers(rows * c, 2, shift)), dy(t, numbers(rows * c)), y(t, rows * c), dx(t, rows * c);
    Data gamma(KERNEL_F32, numbers(c, 1, 1)), beta(KERNEL_F32, numbers(c)), stats(KERNEL_F32, rows * 2);
    std::string name = "layer_norm " + std::to_string(rows) + " " + std::to_string(c) + (shift != 0 ? " shifted" : "");
    double bytes = (double)rows * c * type_size(t), more = 1 + fabs((double)shift);
    Ref r(OP_layer_norm);

    r.attr.eps = 1e-5f;
    r.input(0, {rows, c}, x.host);
    r.input(1, {c}, gamma.host);
    r.input(2, {c}, beta.host);
    r.forward();
    r.backward(dy.host, 1);
    check({name, t,
           [&] { return kernel_layer_norm(0, t, x.dev, gamma.f32(), beta.f32(), y.dev, stats.f32(), rows, c, 1e-5f); },
           {{&y, r.result[0], ROUNDINGS * more}, {&stats, r.result[1], ROUNDINGS * more}}, 2 * bytes});
    Data known(KERNEL_F32, r.result[1]);
    check({name + " backward", t,
           [&] { return kernel_layer_norm_backward(0, t, x.dev, gamma.f32(), known.f32(), dy.dev, dx.dev, rows, c); },
           {{&dx, r.gradient[0], ROUNDINGS * more}}, 3 * bytes});
}

void cases_norm(void)
{
    for (kernel_type t : all_types) {
        group_norm(t, 2, 37, 40, 4, true, 0);
        group_norm(t, 1, 203, 64, 32, false, 100);
        group_norm(t, 2, 5, 9, 3, true, 0);
        group_norm(t, 1, 3, 4160, 32, true, 0); /* more channels than a block has vectors */
        layer_norm(t, 11, 40, 0);
        layer_norm(t, 3, 1283, 30);
        layer_norm(t, 9, 1288, 0);
        layer_norm(t, 2, 4096, 0);
        if (cases_full()) {
            group_norm(t, 1, 4096, 320, 32, true, 0);
            group_norm(t, 4, 4096, 320, 32, true, 0);
            group_norm(t, 4, 1024, 640, 32, true, 0);
            group_norm(t, 1, 256, 1280, 32, true, 0);
            group_norm(t, 1, 64, 2560, 32, true, 0);
            layer_norm(t, 4096, 320, 0);
            layer_norm(t, 4096, 640, 0);
            layer_norm(t, 1024, 1280, 0);
            layer_norm(t, 77, 768, 0);
        }
    }
}
