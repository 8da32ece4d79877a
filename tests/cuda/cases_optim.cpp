/* Optimizer steps against ref/optim, weights in 4 and 8 bits against bitsandbytes (golden/quant.safetensors), random numbers
 * against ref/base/rng.h. */
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

enum { STEPS = 3 };

static void must(int status, const err &e)
{
    if (status == 0)
        return;
    printf("FAIL %s\n", e.msg);
    exit(1);
}

static const double LR = 1e-3, DECAY = 0.01, EPS = 1e-8;

static kernel_adamw_step step_numbers(int t, float max_norm, float unscale)
{
    kernel_adamw_step s = {};

    s.keep = (float)(1 - LR * DECAY);
    s.rate = (float)(LR / (1 - pow(0.9, t)));
    s.beta1 = 0.9f, s.new1 = (float)(1 - 0.9);
    s.beta2 = 0.999f, s.new2 = (float)(1 - 0.999);
    s.root2 = (float)sqrt(1 - pow(0.999, t));
    s.eps = (float)EPS;
    s.unscale = unscale, s.max_norm = max_norm;
    return s;
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
    for (int i = 0; i < STEPS; i++)
        must(optim_step(o, grads, optim_clip(optim_norm(o, grads), 1), &LR, &e), e);
    optim_free(o);
    return p;
}

struct Steps {
    Data p, g, start, norm, m, v;
    Scratch scratch;
    std::vector<void *> numbers;

    Steps(size_t n, float unscale)
        : p(KERNEL_F32, n), g(KERNEL_F32, ::numbers(n)), start(KERNEL_F32, ::numbers(n)), norm(KERNEL_F32, 1), m(KERNEL_F32, n),
          v(KERNEL_F32, n), scratch(kernel_norm_scratch(n))
    {
        std::vector<float> scaled = g.host; /* by a loss scale, a power of two, that the step takes off again */

        for (float &x : scaled)
            x /= unscale;
        device_upload(g.dev, scaled.data(), n * sizeof(float));
        for (int t = 1; t <= STEPS; t++) {
            kernel_adamw_step s = step_numbers(t, 1, unscale);

            numbers.push_back(device_new(sizeof s));
            device_upload(numbers.back(), &s, sizeof s);
        }
    }
    ~Steps()
    {
        for (void *q : numbers)
            device_free(q);
    }
    const kernel_adamw_step *at(int t) const { return static_cast<const kernel_adamw_step *>(numbers[(size_t)t]); }
    void begin()
    {
        std::vector<float> zero(m.host.size());

        device_upload(p.dev, start.host.data(), start.host.size() * sizeof(float));
        device_upload(m.dev, zero.data(), zero.size() * sizeof(float));
        device_upload(v.dev, zero.data(), zero.size() * sizeof(float));
    }
};

/* A step has about 16 roundings of a size of lr, and p one of its own: 2^-24 of p's size is more than both. */
static void adamw(size_t n)
{
    Steps s(n, 0x1p-7f);

    check({"adamw " + std::to_string(n), KERNEL_F32,
           [&] {
               int e = kernel_norm(0, s.g.f32(), n, s.norm.f32(), s.scratch.dev);
               for (int t = 0; t < STEPS && !e; t++)
                   e = kernel_adamw(0, s.p.f32(), s.g.f32(), s.m.f32(), s.v.f32(), n, s.at(t), s.norm.f32());
               return e;
           },
           {{&s.p, ref_steps("AdamW", s.start.host, s.g.host), 2 * STEPS}}, 28.0 * STEPS * n, 0, [&] { s.begin(); }});
}

/* A number at the middle of two codes may take either where sums are fused: it moves by 1/64 at most, and with it a step by
 * 1/64 of three times lr (mean over root, blocks of even gradients), so 0.05 lr in each of the later steps. */
static void adamw8(size_t n)
{
    Steps s(n, 1);
    size_t blocks = (n + 255) / 256;
    Scratch m8(n), v8(n);
    Data sm(KERNEL_F32, blocks), sv(KERNEL_F32, blocks), code_m(KERNEL_F32, 256), code_v(KERNEL_F32, 256);
    std::vector<float> want = ref_steps("AdamW8bit", s.start.host, s.g.host);
    quant8 *map = new quant8;
    double flips = device_emulated() ? 0 : 0.05 * (STEPS - 1) * LR * 0x1p24;

    quant8_init(map, true);
    device_upload(code_m.dev, map->value, sizeof map->value);
    quant8_init(map, false);
    device_upload(code_v.dev, map->value, sizeof map->value);
    delete map;
    check({"adamw8 " + std::to_string(n), KERNEL_F32,
           [&] {
               int e = kernel_norm(0, s.g.f32(), n, s.norm.f32(), s.scratch.dev);
               for (int t = 0; t < STEPS && !e; t++)
                   e = kernel_adamw8(0, s.p.f32(), s.g.f32(), (uint8_t *)m8.dev, (uint8_t *)v8.dev, sm.f32(), sv.f32(),
                                     code_m.f32(), code_v.f32(), n, s.at(t), s.norm.f32());
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

/* A step with a gradient that is not finite changes nothing, and the search finds where it is. */
static void skipped(size_t n, size_t bad)
{
    Steps s(n, 1);
    Data found(KERNEL_F32, 2);
    std::vector<float> bits(2);
    uint64_t at = bad;

    s.g.host[bad] = INFINITY;
    device_upload(s.g.dev, s.g.host.data(), n * sizeof(float));
    check({"adamw, gradient not finite", KERNEL_F32,
           [&] {
               int e = kernel_norm(0, s.g.f32(), n, s.norm.f32(), s.scratch.dev);
               return e ? e : kernel_adamw(0, s.p.f32(), s.g.f32(), s.m.f32(), s.v.f32(), n, s.at(0), s.norm.f32());
           },
           {{&s.p, s.start.host, 0.5}}, 0, 0, [&] { s.begin(); }});
    memcpy(bits.data(), &at, sizeof at);
    check({"find_nonfinite", KERNEL_F32,
           [&] { return kernel_find_nonfinite(0, KERNEL_F32, s.g.dev, n, static_cast<uint64_t *>(found.dev)); },
           {{&found, bits, 0, 0, 1e-50}}}); /* bit for bit: the number is read as two floats */
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
    skipped(777, 300);
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
