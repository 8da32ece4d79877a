/* Attention. Limits: scores are sums of d products, e^score turns their absolute error (d 2^-24 times their size, about 1 here)
 * into a relative one, sums go over the keys. On tensor cores p and ds are rounded to the type before the second product:
 * errors of random sign, so a sum of k of them is off by unit sqrt(k / 3) root mean square, as the sum itself grows by
 * sqrt(k); six deviations of that are 3.5 units of the largest result, each rounding (rounded: 1 + 3.5 forward and for dv, dq,
 * dk). In the plain kernel nothing but the result is rounded. A gradient may be a difference that is nearly zero: its error is
 * held to the size of the largest of the three. l may be the sum of rounded p: off by a unit of itself, and log l by one unit; it
 * is held to one of its own size, which is larger than 1 but for a single key. */
#include <algorithm>
#include <cmath>

#include "tests/cuda/kernels.h"

struct Sizes {
    size_t n, heads, d, tq, tk;
    bool causal;
};

static double largest(const std::vector<float> *x, int count)
{
    double size = 0;

    for (int i = 0; i < count; i++)
        for (float v : x[i])
            size = std::max(size, fabs((double)v));
    return size;
}

static kernel_attention describe(kernel_type t, const Sizes &z)
{
    kernel_attention a = {};
    size_t c = z.heads * z.d;

    a.type = t;
    a.n = z.n, a.heads = z.heads, a.d = z.d, a.tq = z.tq, a.tk = z.tk;
    a.causal = z.causal;
    a.ldq = a.ldk = a.ldv = a.ldy = c;
    return a;
}

static void attention(kernel_type t, const Sizes &z)
{
    size_t c = z.heads * z.d, nq = z.n * z.tq * c, nk = z.n * z.tk * c;
    Data q(t, numbers(nq)), k(t, numbers(nk)), v(t, numbers(nk)), dy(t, numbers(nq));
    Data y(t, nq), lse(KERNEL_F32, z.n * z.heads * z.tq), dq(t, nq), dk(t, nk), dv(t, nk);
    std::string name = "attention n" + std::to_string(z.n) + " h" + std::to_string(z.heads) + " d" + std::to_string(z.d) + " " +
                       std::to_string(z.tq) + "x" + std::to_string(z.tk) + (z.causal ? " causal" : "");
    kernel_attention a = describe(t, z), b;
    Scratch scratch(kernel_attention_scratch(&a));
    double roundings = (double)(2 * z.d + 2 * z.tk + 16), rounded = 4.5, size, bytes = (2.0 * nq + 2.0 * nk) * type_size(t);
    Ref r(OP_attention);

    r.attr.heads = z.heads;
    r.attr.causal = z.causal;
    r.input(0, {z.n, z.tq, c}, q.host);
    r.input(1, {z.n, z.tk, c}, k.host);
    r.input(2, {z.n, z.tk, c}, v.host);
    r.forward();
    a.q = q.dev, a.k = k.dev, a.v = v.dev, a.y = y.dev, a.lse = lse.f32();
    check({name, t, [&] { return kernel_attention_forward(0, &a); },
           {{&y, r.result[0], roundings, rounded}, {&lse, r.result[1], roundings, 1, 0, 1}}, bytes, r.flops(false)});
    /* the backward of both sides starts from the same y and lse */
    Data known(t, r.result[0]), known_lse(KERNEL_F32, r.result[1]);
    r.result[0] = known.host;
    r.backward(dy.host, 7);
    b = a;
    b.y = known.dev, b.lse = known_lse.f32(), b.dy = dy.dev;
    b.dq = dq.dev, b.dk = dk.dev, b.dv = dv.dev, b.scratch = scratch.dev;
    roundings = (double)(4 * z.d + 2 * z.tk + 2 * z.tq + 16);
    size = largest(r.gradient, 3);
    check({name + " backward", t, [&] { return kernel_attention_backward(0, &b); },
           {{&dq, r.gradient[0], roundings, rounded, size}, {&dk, r.gradient[1], roundings, rounded, size},
            {&dv, r.gradient[2], roundings, rounded, size}},
           2 * bytes, r.flops(true)});
}

/* q, k and v beside each other in one product */
static void fused(kernel_type t)
{
    enum { N = 2, T = 70, H = 2, D = 40, C = H * D };
    Data qkv(t, numbers(N * T * 3 * C)), y(t, N * T * C), lse(KERNEL_F32, N * T * H);
    std::vector<float> part[3];
    kernel_attention a = describe(t, {N, H, D, T, T, false});
    Ref r(OP_attention);

    for (size_t i = 0; i < N * T * 3 * C; i++)
        part[i / C % 3].push_back(qkv.host[i]);
    r.attr.heads = H;
    for (int i = 0; i < 3; i++)
        r.input(i, {N, T, C}, part[i]);
    r.forward();
    a.ldq = a.ldk = a.ldv = 3 * C;
    a.q = qkv.dev;
    a.k = (char *)qkv.dev + C * type_size(t);
    a.v = (char *)qkv.dev + 2 * C * type_size(t);
    a.y = y.dev, a.lse = lse.f32();
    check({"attention, one product for q, k, v", t, [&] { return kernel_attention_forward(0, &a); },
           {{&y, r.result[0], 2 * D + 2 * T + 16, 4.5}, {&lse, r.result[1], 2 * D + 2 * T + 16, 1, 0, 1}}});
}

void cases_attention(void)
{
    static const Sizes small[] = {
        {2, 2, 40, 70, 70, false}, {1, 2, 40, 130, 77, false}, {1, 2, 64, 77, 77, true}, {1, 1, 64, 40, 200, false},
        {1, 2, 80, 65, 33, false}, {1, 1, 160, 66, 70, false}, {1, 1, 160, 1, 1, false}, {1, 2, 8, 90, 90, true},
        {1, 2, 13, 19, 21, false}, {1, 1, 40, 400, 20, false}, {1, 1, 40, 401, 21, false}, {1, 3, 11, 18, 18, true}, {1, 1, 80, 150, 150, true}, {1, 1, 512, 70, 40, false}, {2, 1, 200, 30, 70, false},
    };
    static const Sizes real[] = {
        {1, 8, 40, 4096, 4096, false}, {1, 8, 40, 4096, 77, false}, {1, 8, 80, 1024, 1024, false}, {1, 8, 80, 1024, 77, false},
        {1, 8, 160, 256, 256, false},  {1, 8, 160, 64, 64, false},  {1, 12, 64, 77, 77, true},     {4, 8, 40, 4096, 4096, false},
        {1, 5, 64, 4096, 4096, false}, {1, 1, 512, 1024, 1024, false}, {1, 1, 512, 4096, 4096, false},
    };

    for (kernel_type t : all_types) {
        for (const Sizes &z : small)
            attention(t, z);
        fused(t);
        if (cases_full())
            for (const Sizes &z : real)
                if (t == KERNEL_BF16 || z.n * z.tq * z.tk < 4096 * 4096) /* f32 and f16 say nothing new there */
                    attention(t, z);
    }
}
