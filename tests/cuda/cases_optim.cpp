/* Optimizer steps against ref/optim, weights in 4 and 8 bits against bitsandbytes (golden/quant.safetensors), random numbers
 * against ref/base/rng.h. */
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "tests/cuda/device.h"
#include "tests/cuda/kernels.h"
extern "C" {
#include "formats/tensor_file.h"
#include "ref/base/rng.h"
#include "ref/optim/optim.h"
#include "ref/optim/quant8.h"
}

enum { STEPS = 3, PIECE = 384 };

static void must(int status, const err &e)
{
    if (status == 0)
        return;
    printf("FAIL %s\n", e.msg);
    exit(1);
}

static const double LR = 1e-3, DECAY = 0.01, EPS = 1e-8;

static kernel_adamw_rate rate_of(int t)
{
    return {(float)(1 - LR * DECAY), (float)(LR / (1 - pow(0.9, t)))};
}

/* What ref/optim makes of p in STEPS steps with the same gradient g, clipped to norm 1. */
static std::vector<float> ref_steps(const char *name, const std::vector<float> &start, const std::vector<float> &g)
{
    std::vector<float> p = start;
    optim_tensor tensor = {};
    optim_options options = {1, false};
    const float *grads[] = {g.data()};
    optim *o;
    err e = {};

    tensor.param = p.data();
    tensor.shape.ndim = 1;
    tensor.shape.dim[0] = p.size();
    must(optim_new(&o, name, nullptr, 0, &options, &tensor, 1, &e), e);
    for (int i = 0; i < STEPS; i++) {
        double norm;

        must(optim_norm(o, grads, &norm, &e), e);
        must(optim_step(o, grads, optim_clip(norm, 1), &LR, &e), e);
    }
    optim_free(o);
    return p;
}

/* Gradients that come in pieces, the steps' numbers, params. Half of the blocks have another group, of the same rate. */
struct Steps {
    Data p, g, start, flat, m, v, norm;
    Scratch scratch, group;
    std::vector<void *> rates;
    Scratch pieces;
    size_t piece_count;

    explicit Steps(size_t n)
        : p(KERNEL_F32, n), g(KERNEL_F32, ::numbers(n)), start(KERNEL_F32, ::numbers(n)), flat(KERNEL_F32, n), m(KERNEL_F32, n),
          v(KERNEL_F32, n), norm(KERNEL_F32, 2), scratch(kernel_norm_scratch(n)), group(blocks_of(n)),
          pieces((n / PIECE + 1) * sizeof(kernel_piece)), piece_count((n + PIECE - 1) / PIECE)
    {
        std::vector<char> which(blocks_of(n));
        std::vector<kernel_piece> list;

        for (size_t i = 0; i < which.size(); i++)
            which[i] = (char)(i % 2);
        device_upload(group.dev, which.data(), which.size());
        for (size_t at = 0; at < n; at += PIECE)
            list.push_back({g.f32() + at, at, std::min<size_t>(n - at, PIECE)});
        device_upload(pieces.dev, list.data(), list.size() * sizeof list[0]);
        for (int t = 1; t <= STEPS; t++) {
            kernel_adamw_rate r[2] = {rate_of(t), rate_of(t)};

            rates.push_back(device_new(sizeof r));
            device_upload(rates.back(), r, sizeof r);
        }
    }
    ~Steps()
    {
        for (void *q : rates)
            device_free(q);
    }
    static size_t blocks_of(size_t n) { return (n + 255) / 256; }
    struct kernel_adamw at(int t, float scale) const
    {
        struct kernel_adamw a = {};

        a.p = p.f32();
        a.g = flat.f32();
        a.m = m.f32();
        a.v = v.f32();
        a.n = p.host.size();
        a.group = static_cast<const uint8_t *>(group.dev);
        a.rate = static_cast<const kernel_adamw_rate *>(rates[(size_t)t]);
        a.scale = scale;
        a.beta1 = 0.9f, a.new1 = (float)(1 - 0.9);
        a.beta2 = 0.999f, a.new2 = (float)(1 - 0.999);
        a.root2 = (float)sqrt(1 - pow(0.999, t + 1));
        a.eps = (float)EPS;
        return a;
    }
    void begin()
    {
        std::vector<float> zero(m.host.size());

        device_upload(p.dev, start.host.data(), start.host.size() * sizeof(float));
        device_upload(m.dev, zero.data(), zero.size() * sizeof(float));
        device_upload(v.dev, zero.data(), zero.size() * sizeof(float));
    }
    /* Gathered twice: half of it, then the sum, is what a step of two batches does. */
    int gather() const
    {
        int e = kernel_collect(0, flat.f32(), static_cast<const kernel_piece *>(pieces.dev), piece_count, false);

        return e ? e : kernel_collect(0, flat.f32(), static_cast<const kernel_piece *>(pieces.dev), piece_count, true);
    }
    /* What brings the sum of both to norm 1. */
    float clip() const
    {
        double sum = 0;

        for (float x : g.host)
            sum += (double)x * (double)x;
        return (float)(optim_clip(sqrt(sum), 1) / 2);
    }
};

/* A step has about 16 roundings of a size of lr, and p one of its own: 2^-24 of p's size is more than both. */
static void adamw(size_t n)
{
    Steps s(n);

    check({"adamw " + std::to_string(n), KERNEL_F32,
           [&] {
               int e = s.gather();
               for (int t = 0; t < STEPS && !e; t++) {
                   struct kernel_adamw a = s.at(t, s.clip());
                   e = kernel_adamw(0, &a);
               }
               return e;
           },
           {{&s.p, ref_steps("AdamW", s.start.host, s.g.host), 2 * STEPS}}, 28.0 * STEPS * n, 0, [&] { s.begin(); }});
}

/* A number at the middle of two codes may take either where sums are fused: it moves by 1/64 at most, and with it a step by
 * 1/64 of three times lr (mean over root, blocks of even gradients), so 0.05 lr in each of the later steps. */
static void adamw8(size_t n)
{
    Steps s(n);
    size_t blocks = (n + 255) / 256;
    Scratch m8(n), v8(n), map(512 * sizeof(float));
    Data sm(KERNEL_F32, blocks), sv(KERNEL_F32, blocks);
    std::vector<float> want = ref_steps("AdamW8bit", s.start.host, s.g.host), values;
    quant8 *q = new quant8;
    double flips = device_emulated() ? 0 : 0.05 * (STEPS - 1) * LR * 0x1p24;

    for (int i = 0; i < 2; i++) {
        quant8_init(q, i == 0);
        values.insert(values.end(), q->value, q->value + QUANT8_CODES);
    }
    device_upload(map.dev, values.data(), values.size() * sizeof(float));
    delete q;
    check({"adamw8 " + std::to_string(n), KERNEL_F32,
           [&] {
               int e = s.gather();
               for (int t = 0; t < STEPS && !e; t++) {
                   struct kernel_adamw a = s.at(t, s.clip());
                   a.m = a.v = nullptr;
                   a.m8 = static_cast<uint8_t *>(m8.dev), a.v8 = static_cast<uint8_t *>(v8.dev);
                   a.scale_m = sm.f32(), a.scale_v = sv.f32();
                   a.map = static_cast<const float *>(map.dev);
                   e = kernel_adamw(0, &a);
               }
               return e;
           },
           {{&s.p, want, 2 * STEPS + flips}}, 16.0 * STEPS * n, 0,
           [&] {
               std::vector<char> codes(n, 0);
               std::vector<float> scales(blocks, 0);

               s.begin();
               device_upload(m8.dev, codes.data(), n);
               device_upload(v8.dev, codes.data(), n);
               device_upload(sm.dev, scales.data(), blocks * sizeof(float));
               device_upload(sv.dev, scales.data(), blocks * sizeof(float));
           }});
}

/* Squares of f32 are exact in f64, and sums of n of them, all positive, lose less than n 2^-53. With a NaN it is one. */
static void norms(size_t n, bool bad)
{
    Steps s(n);
    std::vector<float> first(1), g = s.g.host;
    double sum = 0, got = 0;

    if (bad)
        g[n / 2] = NAN;
    for (float x : g)
        sum += (double)x * (double)x;
    device_upload(s.g.dev, g.data(), n * sizeof(float));
    if (kernel_norm(0, s.g.f32(), n, static_cast<double *>(s.norm.dev), s.scratch.dev) != cudaSuccess) {
        printf("FAIL norm %zu\n", n);
        exit(1);
    }
    device_download(&got, s.norm.dev, sizeof got);
    if (bad ? got == got : !(fabs(got / sqrt(sum) - 1) < (double)n * 0x1p-53)) {
        printf("FAIL norm %zu: %.17g, not %.17g\n", n, got, sqrt(sum));
        exit(1);
    }
}

static void philox(size_t n)
{
    Data x(KERNEL_F32, n);
    std::vector<float> want(n);

    rng_philox_normal(42, 3, want.data(), n);
    check({"philox_normal " + std::to_string(n), KERNEL_F32, [&] { return kernel_philox_normal(0, 42, 3, x.f32(), n); },
           {{&x, want, 2}}});
}

/* A tensor of the file in its own bytes. */
static std::vector<char> bytes_of(const tensor_file *f, const char *name)
{
    const tensor_entry *t = tensor_file_find(f, name);
    std::vector<char> data(t ? t->nbytes : 0);
    err e = {};

    if (!t) {
        printf("FAIL golden/quant.safetensors has no '%s'\n", name);
        exit(1);
    }
    must(tensor_file_read(f, t, data.data(), &e), e);
    return data;
}

static std::vector<float> floats_of(const tensor_file *f, const char *name)
{
    std::vector<char> data = bytes_of(f, name);
    const tensor_entry *t = tensor_file_find(f, name);
    std::vector<float> x(data.size() / dtype_size(t->dtype));

    dtype_convert(x.data(), DT_F32, data.data(), t->dtype, x.size());
    return x;
}

/* Bytes as numbers, so that they can be compared. */
static std::vector<float> codes(const std::vector<char> &bytes, size_t n)
{
    return std::vector<float>(bytes.begin(), bytes.begin() + (long)n);
}

static std::vector<float> codes_on_device(const Scratch &q, size_t n)
{
    std::vector<char> bytes(n);

    device_download(bytes.data(), q.dev, n);
    return codes(bytes, n);
}

/* Codes, scales and, unpacked, the numbers themselves; a panel from the second block on is the same numbers. int8 rounds
 * (127 / scale) x where this is 127 (x / scale): a tie may fall on either side. */
static void quantised(const tensor_file *f, kernel_quant kind)
{
    bool nf4 = kind == KERNEL_NF4;
    std::vector<float> x = floats_of(f, "x");
    size_t n = nf4 ? floats_of(f, "back").size() : x.size(), blocks = (n + 63) / 64, bytes = nf4 ? (n + 1) / 2 : n;
    std::vector<char> want = bytes_of(f, nf4 ? "nf4" : "int8");
    std::vector<float> scale = floats_of(f, nf4 ? "absmax" : "scale"), back;
    Data src(KERNEL_F16, x), absmax(KERNEL_F32, blocks), all(KERNEL_F32, n), panel(KERNEL_BF16, n - 64);
    Scratch q(bytes);
    std::string name = nf4 ? "nf4" : "int8";

    back = nf4 ? floats_of(f, "back") : codes(want, n);
    for (size_t i = 0; !nf4 && i < n; i++)
        back[i] *= scale[i / 64] / 127;
    check({"quantise " + name, KERNEL_F16,
           [&] {
               int e = kernel_quantise(0, kind, KERNEL_F16, src.dev, n, q.dev, absmax.f32());
               return e ? e : kernel_dequantise(0, kind, q.dev, absmax.f32(), 0, n, all.dev, KERNEL_F32);
           },
           {{&absmax, scale, 0.5}, {&all, back, 2}}});
    bool ran = check({"dequantise " + name + ", a panel", KERNEL_BF16,
           [&] { return kernel_dequantise(0, kind, q.dev, absmax.f32(), 64, n - 64, panel.dev, KERNEL_BF16); },
           {{&panel, std::vector<float>(back.begin() + 64, back.end()), 2}}});
    if (ran && codes_on_device(q, bytes) != codes(want, bytes)) {
        printf("FAIL codes of %s are not those of bitsandbytes\n", name.c_str());
        exit(1);
    }
}

void cases_optim(void)
{
    tensor_file *f;
    err e = {};

    adamw(1003);
    adamw8(5000);
    norms(1003, false);
    norms(20000, false);
    norms(777, true);
    philox(4099);
    if (cases_full()) {
        adamw(800 * 1000);
        adamw8(800 * 1024);
    }
    must(tensor_file_open(&f, "golden/quant.safetensors", &e), e);
    quantised(f, KERNEL_NF4);
    quantised(f, KERNEL_INT8);
    tensor_file_close(f);
}
