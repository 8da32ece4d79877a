/* Every CUDA kernel against ref's op: one line each, exit status 1 when a result is off, 77 without a GPU.
 *     kernels [--full] [--untimed] [WORD ...]     cases whose name has a WORD in it; --full: also sizes of real models; --untimed:
 *                                                 each is called twice and no more (for compute-sanitizer) */
#include "tests/cuda/kernels.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

extern "C" {
#include "ref/base/dtype.h"
#include "ref/base/mem.h"
#include "ref/base/thread.h"
}
#include "tests/cuda/device.h"

static bool full, untimed;
static int failures, done;
static std::vector<std::string> words;
const kernel_type all_types[3] = {KERNEL_F32, KERNEL_BF16, KERNEL_F16};

bool cases_full(void)
{
    return full;
}

const char *type_name(kernel_type t)
{
    return t == KERNEL_F32 ? "f32" : t == KERNEL_BF16 ? "bf16" : "f16";
}

static dtype host_type(kernel_type t)
{
    return t == KERNEL_F32 ? DT_F32 : t == KERNEL_BF16 ? DT_BF16 : DT_F16;
}

size_t type_size(kernel_type t)
{
    return dtype_size(host_type(t));
}

double type_unit(kernel_type t)
{
    return t == KERNEL_F32 ? 0 : t == KERNEL_BF16 ? 0x1p-8 : 0x1p-11;
}

Data::Data(kernel_type t, std::vector<float> values) : type(t), host(std::move(values))
{
    std::vector<char> packed(host.size() * type_size(t) + 1);

    dtype_convert(packed.data(), host_type(t), host.data(), DT_F32, host.size());
    dtype_convert(host.data(), DT_F32, packed.data(), host_type(t), host.size());
    dev = device_new(host.size() * type_size(t));
    device_upload(dev, packed.data(), host.size() * type_size(t));
}

Data::Data(kernel_type t, size_t n) : type(t), host(n), dev(device_new(n * type_size(t)))
{
}

Data::~Data()
{
    device_free(dev);
}

std::vector<float> Data::read() const
{
    std::vector<char> packed(host.size() * type_size(type) + 1);
    std::vector<float> values(host.size());

    device_download(packed.data(), dev, host.size() * type_size(type));
    dtype_convert(values.data(), DT_F32, packed.data(), host_type(type), host.size());
    return values;
}

Scratch::Scratch(size_t bytes) : dev(device_new(bytes))
{
}

Scratch::~Scratch()
{
    device_free(dev);
}

std::vector<float> numbers(size_t n, float scale, float shift)
{
    static uint64_t state = 1;
    std::vector<float> x(n);

    for (float &v : x) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        v = shift + scale * ((float)(state >> 40) * 0x1p-23f - 1);
    }
    return x;
}

/* ---- the comparison ---- */

static void queue(const Call &c, int order)
{
    const char *wrong;
    int e;

    for (const Output &o : c.out)
        device_poison(o.data->dev, o.data->host.size() * type_size(o.data->type));
    if (c.restore)
        c.restore();
    device_order(order);
    e = c.queue();
    wrong = device_wait();
    if (e || wrong) {
        printf("FAIL %s %s: error %d %s\n", c.name.c_str(), type_name(c.type), e, wrong ? wrong : "at the launch");
        exit(1); /* a device does not come back from this */
    }
}

struct Verdict {
    double worst = 0, error = 0, limit = 0; /* worst: of error / limit */
    bool same = true;
};

static Verdict compare(const Call &c)
{
    std::vector<std::vector<float>> first;
    Verdict v;

    queue(c, 0);
    for (const Output &o : c.out)
        first.push_back(o.data->read());
    queue(c, 1);
    for (size_t k = 0; k < c.out.size(); k++) {
        const Output &o = c.out[k];
        std::vector<float> got = o.data->read();
        double size = o.size, error = 0, limit;

        if (o.want.size() != got.size()) {
            printf("FAIL %s: %zu numbers wanted, %zu made\n", c.name.c_str(), o.want.size(), got.size());
            exit(1);
        }
        v.same = v.same && memcmp(got.data(), first[k].data(), got.size() * sizeof(float)) == 0;
        for (size_t i = 0; i < got.size(); i++) {
            double off = fabs((double)got[i] - (double)o.want[i]);

            error = off <= error ? error : std::isnan(off) ? INFINITY : off;
            size = o.size ? size : std::max(size, fabs((double)o.want[i]));
        }
        limit = size * (o.terms * 0x1p-24 + o.rounded * type_unit(o.data->type) + o.inner * type_unit(c.type));
        if (error > 0 || k == 0)
            if (error / limit >= v.worst)
                v.worst = error / limit, v.error = error, v.limit = limit;
    }
    return v;
}

/* Median of five batches of calls. */
static double measure(const Call &c)
{
    std::vector<double> times;

    for (int batch = 0; batch < 5; batch++) {
        enum { CALLS = 10 };

        device_start();
        for (int i = 0; i < CALLS; i++)
            c.queue();
        times.push_back(device_stop() / CALLS);
    }
    std::sort(times.begin(), times.end());
    return times[2];
}

bool check(const Call &c)
{
    bool good, wanted = words.empty();
    Verdict v;

    for (const std::string &w : words)
        wanted = wanted || c.name.find(w) != std::string::npos;
    if (!wanted)
        return false;
    v = compare(c);
    good = v.same && v.worst <= 1;
    done++;
    failures += !good;
    printf("%-4s %-52s %-4s error %.2e limit %.2e", good ? "ok" : "FAIL", c.name.c_str(), type_name(c.type), v.error, v.limit);
    if (!v.same)
        printf(" (two runs differ)");
    if (!device_emulated() && !untimed && c.bytes > 0) {
        double s = measure(c);

        printf("  %8.1f us %6.0f GB/s", s * 1e6, c.bytes / s * 1e-9);
        if (c.flops > 0)
            printf(" %6.1f TFLOP/s", c.flops / s * 1e-12);
    }
    printf("\n");
    fflush(stdout);
    return true;
}

/* ---- ref ---- */

void Ref::input(int i, std::vector<size_t> dim, const std::vector<float> &values)
{
    in[i].dtype = DT_F32;
    in[i].shape.ndim = (int)dim.size();
    std::copy(dim.begin(), dim.end(), in[i].shape.dim);
    in[i].data = const_cast<float *>(values.data());
}

static size_t count(const tensor &t)
{
    size_t n = 0;

    shape_numel(&t.shape, &n);
    return n;
}

static op_call start(Ref &r)
{
    op_call c = {};

    c.attr = &r.attr;
    for (int i = 0; i < OP_MAX_IN; i++)
        c.in[i] = r.in[i].data ? &r.in[i] : nullptr;
    for (int i = 0; i < op_table[r.op]->nout; i++)
        c.out[i] = &r.out[i];
    return c;
}

static void run(Ref &r, op_call &c, bool back)
{
    const op *row = op_table[r.op];
    err e = {};

    c.scratch = mem_new((row->scratch ? row->scratch(&c, back, thread_count()) : 0) + 1, "a test", &e);
    if (!c.scratch || (back ? row->backward : row->forward)(&c, &e) != 0) {
        printf("FAIL %s: %s\n", row->name, e.msg);
        exit(1);
    }
    free(c.scratch);
}

void Ref::forward()
{
    op_call c = start(*this);
    err e = {};

    if (op_table[op]->shape(&c, &e) != 0) {
        printf("FAIL %s: %s\n", op_table[op]->name, e.msg);
        exit(1);
    }
    for (int i = 0; i < op_table[op]->nout; i++) {
        result[i].assign(count(out[i]), 0);
        out[i].data = result[i].data();
    }
    run(*this, c, false);
}

void Ref::backward(const std::vector<float> &dout, unsigned wanted)
{
    op_call c = start(*this);
    tensor dy = out[0];

    dy.data = const_cast<float *>(dout.data());
    c.dout[0] = &dy;
    for (int i = 0; i < OP_MAX_IN; i++)
        if (wanted >> i & 1) {
            gradient[i].assign(count(in[i]), 0);
            din[i] = in[i];
            din[i].data = gradient[i].data();
            c.din[i] = &din[i];
        }
    for (int i = 0; i < op_table[op]->nout; i++)
        out[i].data = result[i].data();
    run(*this, c, true);
}

double Ref::flops(bool back) const
{
    op_call c = start(const_cast<Ref &>(*this));

    for (int i = 0; i < OP_MAX_IN; i++)
        c.din[i] = back && din[i].data ? const_cast<tensor *>(&din[i]) : nullptr;
    return op_table[op]->flops ? op_table[op]->flops(&c, back) : 0;
}

int main(int argc, char **argv)
{
    char name[256];

    for (int i = 1; i < argc; i++)
        if (strcmp(argv[i], "--full") == 0)
            full = true;
        else if (strcmp(argv[i], "--untimed") == 0)
            untimed = true;
        else
            words.push_back(argv[i]);
    if (!device_open(name)) {
        printf("no GPU: %s\n", name);
        return 77;
    }
    printf("%s\n", name);
    thread_init(0);
    cases_elementwise();
    cases_norm();
    cases_attention();
    cases_products();
    cases_optim();
    printf("%d kernels checked, %d failed\n", done, failures);
    return failures > 0 || done == 0;
}
