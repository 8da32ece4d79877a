/* Ops that touch each element once. Their f32 arithmetic is a dozen roundings, exp and erf included, and a slope of 1.1: terms 24. */
#include <cmath>
#include <cstring>

#include "tests/cuda/kernels.h"

enum { ROUNDINGS = 24 };

static std::string named(const char *what, std::initializer_list<size_t> sizes)
{
    std::string s = what;

    for (size_t n : sizes)
        s += " " + std::to_string(n);
    return s;
}

static void activation(kernel_type t, enum kernel_act act, op_id op, const char *name, size_t n)
{
    Data x(t, numbers(n, 6)), dy(t, numbers(n)), y(t, n), dx(t, n);
    Ref r(op);

    r.input(0, {n}, x.host);
    r.forward();
    r.backward(dy.host, 1);
    check({named(name, {n}), t, [&] { return kernel_act(0, t, act, x.dev, y.dev, n); }, {{&y, r.result[0], ROUNDINGS}},
           2.0 * n * type_size(t)});
    check({named(name, {n}) + " backward", t, [&] { return kernel_act_backward(0, t, act, x.dev, dy.dev, dx.dev, n); },
           {{&dx, r.gradient[0], ROUNDINGS}}, 3.0 * n * type_size(t)});
}

static void bias_act(kernel_type t, size_t rows, size_t c)
{
    Data start(t, numbers(rows * c)), y(t, rows * c), bias(KERNEL_F32, numbers(c)), residual(t, numbers(rows * c));
    std::vector<float> sum(rows * c);
    Ref r(OP_quick_gelu);

    for (size_t i = 0; i < rows * c; i++)
        sum[i] = start.host[i] + bias.host[i % c] + residual.host[i];
    r.input(0, {rows, c}, sum);
    r.forward();
    check({named("bias_act", {rows, c}), t,
           [&] { return kernel_bias_act(0, t, KERNEL_QUICK_GELU, y.dev, bias.f32(), residual.dev, rows, c); },
           {{&y, r.result[0], ROUNDINGS}},
           0,
           0,
           [&] { kernel_convert(0, y.dev, t, start.dev, t, rows * c); }});
}

static void geglu(kernel_type t, size_t rows, size_t c)
{
    Data x(t, numbers(rows * 2 * c, 3)), dy(t, numbers(rows * c)), y(t, rows * c), dx(t, rows * 2 * c);
    Ref r(OP_geglu);

    r.input(0, {rows, 2 * c}, x.host);
    r.forward();
    r.backward(dy.host, 1);
    check({named("geglu", {rows, c}), t, [&] { return kernel_geglu(0, t, x.dev, y.dev, rows, c); },
           {{&y, r.result[0], ROUNDINGS}}, 3.0 * rows * c * type_size(t)});
    check({named("geglu", {rows, c}) + " backward", t,
           [&] { return kernel_geglu_backward(0, t, x.dev, dy.dev, dx.dev, rows, c); },
           {{&dx, r.gradient[0], ROUNDINGS}}, 5.0 * rows * c * type_size(t)});
}

static void add(kernel_type t, size_t n, size_t rows, size_t c)
{
    Data a(t, numbers(n * rows * c)), b(t, numbers(n * c)), same(t, numbers(n * rows * c)), y(t, n * rows * c), db(t, n * c);
    Scratch scratch(kernel_add_rows_scratch(n, rows, c));
    Ref spread(OP_add), plain(OP_add);

    plain.input(0, {n, rows, c}, a.host);
    plain.input(1, {n, rows, c}, same.host);
    plain.forward();
    check({named("add", {n, rows, c}), t, [&] { return kernel_add(0, t, a.dev, same.dev, y.dev, n * rows * c); },
           {{&y, plain.result[0], 1}}, 3.0 * n * rows * c * type_size(t)});
    spread.input(0, {n, rows, c}, a.host);
    spread.input(1, {n, c}, b.host);
    spread.forward();
    spread.backward(a.host, 2);
    check({named("add_rows", {n, rows, c}), t, [&] { return kernel_add_rows(0, t, a.dev, b.dev, y.dev, n, rows, c); },
           {{&y, spread.result[0], 1}}, 2.0 * n * rows * c * type_size(t)});
    check({named("add_rows", {n, rows, c}) + " backward", t,
           [&] { return kernel_add_rows_backward(0, t, a.dev, db.dev, n, rows, c, scratch.dev); },
           {{&db, spread.gradient[1], (double)rows}}, 1.0 * n * rows * c * type_size(t)});
}

static void mul(kernel_type t, size_t n, size_t rows, size_t c)
{
    Data x(t, numbers(n * rows * c)), m(t, numbers(n * c)), dy(t, numbers(n * rows * c)), y(t, n * rows * c);
    Ref r(OP_mul);

    r.input(0, {n, rows, c}, x.host);
    r.input(1, {n, c}, m.host);
    r.forward();
    r.backward(dy.host, 1);
    check({named("mul", {n, rows, c}), t, [&] { return kernel_mul(0, t, x.dev, m.dev, y.dev, n, rows, c); },
           {{&y, r.result[0], 1}}});
    check({named("mul", {n, rows, c}) + " backward", t, [&] { return kernel_mul(0, t, dy.dev, m.dev, y.dev, n, rows, c); },
           {{&y, r.gradient[0], 1}}});
}

static void mix(kernel_type t, size_t n, size_t per)
{
    Data a(KERNEL_F32, numbers(n)), b(KERNEL_F32, numbers(n)), x(t, numbers(n * per)), z(t, numbers(n * per)), y(t, n * per);
    std::vector<float> want(n * per), scaled(n * per);

    for (size_t i = 0; i < n * per; i++)
        want[i] = a.host[i / per] * x.host[i] + b.host[i / per] * z.host[i];
    check({named("mix", {n, per}), t, [&] { return kernel_mix(0, t, a.f32(), x.dev, b.f32(), z.dev, y.dev, n, per); },
           {{&y, want, 3}}});
    for (size_t i = 0; i < n * per; i++)
        scaled[i] = -0.3f * x.host[i];
    check({named("scale", {n * per}), t, [&] { return kernel_scale(0, t, -0.3f, x.dev, y.dev, n * per); }, {{&y, scaled, 1}}});
}

/* concat of a and b, and the split of it that takes columns ca .. ca+cb-1 */
static void channels(kernel_type t, size_t rows, size_t ca, size_t cb)
{
    size_t c = ca + cb, size = type_size(t);
    Data a(t, numbers(rows * ca)), b(t, numbers(rows * cb)), y(t, rows * c), part(t, rows * cb), dx(t, rows * c);
    Ref concat(OP_concat), split(OP_split);

    concat.input(0, {rows, ca}, a.host);
    concat.input(1, {rows, cb}, b.host);
    concat.forward();
    check({named("concat", {rows, ca, cb}), t,
           [&] {
               int e = kernel_copy2d(0, t, y.dev, c, a.dev, ca, rows, ca);
               return e ? e : kernel_copy2d(0, t, (char *)y.dev + ca * size, c, b.dev, cb, rows, cb);
           },
           {{&y, concat.result[0], 0.5}}, 2.0 * rows * c * size});
    Data whole(t, concat.result[0]);
    split.attr.first = ca;
    split.attr.count = cb;
    split.input(0, {rows, c}, whole.host);
    split.forward();
    split.backward(b.host, 1);
    check({named("split", {rows, ca, cb}), t,
           [&] { return kernel_copy2d(0, t, part.dev, cb, (char *)whole.dev + ca * size, c, rows, cb); },
           {{&part, split.result[0], 0.5}}, 2.0 * rows * cb * size});
    check({named("split", {rows, ca, cb}) + " backward", t, [&] { return kernel_pad2d(0, t, dx.dev, c, b.dev, ca, cb, rows); },
           {{&dx, split.gradient[0], 0.5}}, 1.0 * rows * (c + cb) * size});
}

static void upsample(kernel_type t, size_t n, size_t h, size_t w, size_t c, size_t crop_h, size_t crop_w)
{
    size_t big = n * (2 * h - crop_h) * (2 * w - crop_w) * c;
    Data x(t, numbers(n * h * w * c)), dy(t, numbers(big)), y(t, big), dx(t, n * h * w * c);
    Ref r(OP_upsample);

    r.attr.crop_h = crop_h;
    r.attr.crop_w = crop_w;
    r.input(0, {n, h, w, c}, x.host);
    r.forward();
    r.backward(dy.host, 1);
    check({named("upsample", {n, h, w, c}), t,
           [&] { return kernel_upsample(0, t, x.dev, y.dev, n, h, w, c, (int)crop_h, (int)crop_w); },
           {{&y, r.result[0], 0.5}}, 1.25 * big * type_size(t)});
    check({named("upsample", {n, h, w, c}) + " backward", t,
           [&] { return kernel_upsample_backward(0, t, dy.dev, dx.dev, n, h, w, c, (int)crop_h, (int)crop_w); },
           {{&dx, r.gradient[0], 3}}, 1.25 * big * type_size(t)});
}

static void embedding(kernel_type t, size_t n, size_t tokens, size_t v, size_t c)
{
    Data table(t, numbers(v * c)), positions(t, numbers(tokens * c)), y(t, n * tokens * c);
    Data time(KERNEL_F32, std::vector<float>{0, 1, 500.25f, 999}), wave(t, 4 * 2 * c);
    std::vector<float> bits(n * tokens);
    Ref r(OP_embedding), w(OP_timestep);
    int32_t *id = reinterpret_cast<int32_t *>(bits.data());

    for (size_t i = 0; i < n * tokens; i++)
        id[i] = (int32_t)((i * 7 + 3) % v);
    r.input(0, {n, tokens}, bits);
    r.in[0].dtype = DT_I32;
    r.input(1, {v, c}, table.host);
    r.input(2, {tokens, c}, positions.host);
    r.forward();
    Data holder(KERNEL_F32, bits);
    check({named("embedding", {n, tokens, v, c}), t,
           [&] { return kernel_embedding(0, t, (const int32_t *)holder.dev, table.dev, positions.dev, y.dev, n, tokens, v, c); },
           {{&y, r.result[0], 1}}});
    w.attr.width = 2 * c;
    w.input(0, {4}, time.host);
    w.forward();
    check({named("timestep", {4, 2 * c}), t, [&] { return kernel_timestep(0, t, time.f32(), wave.dev, 4, 2 * c); },
           {{&wave, w.result[0], 1}}});
}

/* Rows of 0, 3, 6, ..: some twice, some never. */
static void gather(kernel_type t, size_t n, size_t count, size_t c)
{
    Data x(t, numbers(count * c)), dy(t, numbers(n * c)), y(t, n * c), dx(t, count * c);
    std::vector<float> bits(n);
    Ref r(OP_gather);

    for (size_t i = 0; i < n; i++) {
        int32_t row = (int32_t)(i * 3 % count / 2 * 2);

        memcpy(&bits[i], &row, sizeof row);
    }
    Data rows(KERNEL_F32, bits);
    r.input(0, {count, c}, x.host);
    r.input(1, {n}, bits);
    r.in[1].dtype = DT_I32;
    r.forward();
    r.backward(dy.host, 1);
    check({named("gather", {n, count, c}), t,
           [&] { return kernel_gather(0, t, x.dev, (const int32_t *)rows.dev, y.dev, n, count, c); }, {{&y, r.result[0], 0.5}}});
    check({named("gather", {n, count, c}) + " backward", t,
           [&] { return kernel_gather_backward(0, t, dy.dev, (const int32_t *)rows.dev, dx.dev, n, count, c); },
           {{&dx, r.gradient[0], (double)n}}});
}

static void huber(kernel_type t, size_t n, size_t per)
{
    Data pred(t, numbers(n * per)), target(KERNEL_F32, numbers(n * per)), weight(KERNEL_F32, numbers(n, 0.5f, 1));
    Data delta(KERNEL_F32, numbers(n, 0.1f, 0.15f)), loss(KERNEL_F32, 1), slope(KERNEL_F32, std::vector<float>{128}), dpred(t, n * per);
    Scratch scratch(kernel_mse_scratch(n, per));
    Ref r(OP_huber);

    r.input(0, {n, per}, pred.host);
    r.input(1, {n, per}, target.host);
    r.input(2, {n}, delta.host);
    r.input(3, {n}, weight.host);
    r.forward();
    r.backward(slope.host, 1);
    check({named("huber", {n, per}), t,
           [&] {
               return kernel_huber(0, t, pred.dev, KERNEL_F32, target.dev, delta.f32(), weight.f32(), loss.f32(), n, per,
                                   scratch.dev);
           },
           {{&loss, r.result[0], 64}}});
    check({named("huber", {n, per}) + " backward", t,
           [&] {
               return kernel_huber_backward(0, t, pred.dev, KERNEL_F32, target.dev, delta.f32(), weight.f32(), slope.f32(),
                                            dpred.dev, n, per);
           },
           {{&dpred, r.gradient[0], 10}}});
}

static void mse(kernel_type t, size_t n, size_t per)
{
    Data pred(t, numbers(n * per)), target(KERNEL_F32, numbers(n * per)), weight(KERNEL_F32, numbers(n, 0.5f, 1));
    Data loss(KERNEL_F32, 1), slope(KERNEL_F32, std::vector<float>{128}), dpred(t, n * per);
    Scratch scratch(kernel_mse_scratch(n, per));
    Ref r(OP_mse);

    r.input(0, {n, per}, pred.host);
    r.input(1, {n, per}, target.host);
    r.input(2, {n}, weight.host);
    r.forward();
    r.backward(slope.host, 1);
    /* squares and their sums: a thread adds 16, a block 8 levels, the join n * strips / 256 and 8 levels */
    check({named("mse", {n, per}), t,
           [&] {
               return kernel_mse(0, t, pred.dev, KERNEL_F32, target.dev, weight.f32(), loss.f32(), n, per, scratch.dev);
           },
           {{&loss, r.result[0], 64}}});
    check({named("mse", {n, per}) + " backward", t,
           [&] {
               return kernel_mse_backward(0, t, pred.dev, KERNEL_F32, target.dev, weight.f32(), slope.f32(), dpred.dev, n, per);
           },
           {{&dpred, r.gradient[0], 6}}});
}

/* Every finite f16 and bf16 to f32 and back, and f32 ties between the two. */
static void convert(kernel_type from, kernel_type to)
{
    Data src(from, numbers(1003, 70000)), dst(to, 1003);
    Data want(to, src.host);

    check({std::string("convert from ") + type_name(from), to,
           [&] { return kernel_convert(0, dst.dev, to, src.dev, from, 1003); }, {{&dst, want.host, 0.5}}});
}

void cases_elementwise(void)
{
    for (kernel_type t : all_types) {
        size_t n = cases_full() ? 4096 * 320 * 8 : 2099;

        activation(t, KERNEL_SILU, OP_silu, "silu", n);
        activation(t, KERNEL_GELU, OP_gelu, "gelu", n);
        activation(t, KERNEL_QUICK_GELU, OP_quick_gelu, "quick_gelu", n);
        bias_act(t, 7, 33);
        bias_act(t, 9, 64);
        geglu(t, 5, 13);
        geglu(t, 6, 40);
        add(t, 2, 70, 24);
        add(t, 2, 131, 7);
        mix(t, 3, 40);
        mix(t, 3, 37);
        channels(t, 9, 16, 40);
        channels(t, 9, 5, 8);
        upsample(t, 2, 3, 4, 8, 0, 0);
        upsample(t, 1, 3, 4, 5, 1, 1);
        embedding(t, 2, 5, 11, 24);
        embedding(t, 2, 5, 11, 7);
        mse(t, 2, 100);
        mse(t, 3, 9001);
        mul(t, 2, 9, 24);
        mul(t, 6, 1, 13);
        gather(t, 9, 7, 24);
        gather(t, 9, 12, 5);
        huber(t, 3, 5001);
        for (kernel_type to : all_types)
            convert(t, to);
        if (cases_full()) {
            geglu(t, 4096, 1280);
            add(t, 2, 4096, 320);
            channels(t, 4096, 640, 320);
            upsample(t, 1, 32, 32, 640, 0, 0);
            embedding(t, 1, 77, 49408, 768);
            mse(t, 4, 16384);
        }
    }
}
