/* What the files of cases share: data on both sides, ref's op as the witness, and the comparison.
 *
 * A case fills a Call with what to queue and what must come out, and gives it to check(). The outputs are poisoned, the call is
 * made twice (emulated: with threads in both orders), both results must be the same bytes and lie within the limit. */
#ifndef TESTS_CUDA_KERNELS_H
#define TESTS_CUDA_KERNELS_H

#include <functional>
#include <string>
#include <vector>

#include "offload/cuda/kernels.h"
extern "C" {
#include "ref/op/op.h"
}

/* Numbers of a type on the device; `host` are their values after rounding to it. */
struct Data {
    kernel_type type;
    std::vector<float> host;
    void *dev = nullptr;

    Data(kernel_type t, std::vector<float> values);
    Data(kernel_type t, size_t n); /* poisoned */
    Data(const Data &) = delete;
    ~Data();
    float *f32() const { return static_cast<float *>(dev); }
    std::vector<float> read() const;
};

struct Scratch {
    void *dev;
    explicit Scratch(size_t bytes);
    Scratch(const Scratch &) = delete;
    ~Scratch();
};

std::vector<float> numbers(size_t n, float scale = 1, float shift = 0); /* even in shift +- scale, the next of a fixed stream */
size_t type_size(kernel_type t);
double type_unit(kernel_type t); /* the largest relative error of rounding to it */

struct Output {
    const Data *data;
    std::vector<float> want;
    /* The limit is size * (terms * 2^-24 + rounded * unit of the type): sums of `terms` f32 roundings, of values or partial
     * results that were rounded to the type, and of the result's own rounding. size: the largest |want| unless given. */
    double terms, rounded = 1, size = 0;
    /* The same for an f32 result of sums of numbers that were rounded to the call's type. */
    double inner = 0;
};

struct Call {
    std::string name;
    kernel_type type;
    std::function<int()> queue;
    std::vector<Output> out;
    double bytes = 0, flops = 0;
    std::function<void()> restore = nullptr; /* what an in-place call has changed, before it is called again */
};

bool check(const Call &c); /* false: not asked for on the command line */

/* ref's op on the host values. */
struct Ref {
    op_id op;
    op_attr attr = {};
    tensor in[OP_MAX_IN] = {}, out[OP_MAX_OUT] = {}, din[OP_MAX_IN] = {};
    std::vector<float> result[OP_MAX_OUT], gradient[OP_MAX_IN];

    explicit Ref(op_id id) : op(id) {}
    void input(int i, std::vector<size_t> dim, const std::vector<float> &values); /* borrowed */
    void forward();
    void backward(const std::vector<float> &dout, unsigned wanted); /* out as forward() left it, or as the caller set it */
    double flops(bool back) const;
};

bool cases_full(void); /* also sizes of real models, which take a GPU */
extern const kernel_type all_types[3];
const char *type_name(kernel_type t);

void cases_elementwise(void);
void cases_norm(void);
void cases_attention(void);
void cases_products(void);
void cases_optim(void);

#endif
