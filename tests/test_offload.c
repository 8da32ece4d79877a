/* Devices: what opening one says, and the oneDNN plug-in (where it is built) against the definition in double precision. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "offload/offload.h"
#include "ref/base/mem.h"
#include "ref/base/thread.h"

#ifdef __SANITIZE_ADDRESS__
/* The leak detector of GCC 12 crashes on the thread-local data of libraries that were opened while threads ran. */
__attribute__((visibility("default"))) int __lsan_is_turned_off(void);
int __lsan_is_turned_off(void)
{
    return 1;
}
#endif

static uint32_t state = 1;

static float uniform(void)
{
    state = state * 1664525u + 1013904223u;
    return (float)(int32_t)state / 2147483648.0f;
}

/* Where this build's plug-ins are: beside the program, one folder up or two. */
static const char *folder(void)
{
    static char path[PATH_MAX + 32];
    char base[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", base, sizeof base - 1);

    assert_true(n > 0);
    base[n] = '\0';
    *strrchr(base, '/') = '\0';
    snprintf(path, sizeof path, "%s/../../plugins/lora-dnnl.so", base);
    snprintf(path, sizeof path, access(path, R_OK) == 0 ? "%s/../../plugins" : "%s/../plugins", base);
    return path;
}

static bool built(void)
{
    char path[PATH_MAX + 64];

    snprintf(path, sizeof path, "%s/lora-dnnl.so", folder());
    return access(path, R_OK) == 0;
}

static void refused(const char *device, const char *in, const char *message)
{
    struct offload o;
    struct err err = {0};

    assert_int_equal(offload_open(&o, device, in, &err), -1);
    if (!strstr(err.msg, message))
        fail_msg("device %s: '%s' lacks '%s'", device, err.msg, message);
}

static void test_errors(void **arg)
{
    (void)arg;
    refused("", NULL, "'' is no device");
    refused("../dnnl", NULL, "'../dnnl' is no device");
    refused("dnnl:f64", NULL, "'f64' is no arithmetic (f32, tf32, bf16, fp16)");
    refused("cuda:1:x", NULL, "'x' is no arithmetic");
    refused("dnnl:", NULL, "'' is no arithmetic");
    refused("cpu:fp16", NULL, "device cpu computes in f32 or bf16, not in f16");
    refused("nosuch", NULL, "there is no device 'nosuch'");
    refused("dnnl", "/nonexistent", "no lora-dnnl.so in '/nonexistent'");
}

static void test_broken_file(void **arg)
{
    char dir[] = "/tmp/lora-offload-XXXXXX", path[64];
    FILE *f;

    (void)arg;
    assert_non_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/lora-bad.so", dir);
    f = fopen(path, "w");
    assert_non_null(f);
    fputs("no library", f);
    fclose(f);
    refused("bad", dir, "cannot open device 'bad'");
    unlink(path);
    rmdir(dir);
}

static void test_cpu(void **arg)
{
    struct offload o;
    struct err err = {0};

    (void)arg;
    assert_int_equal(offload_open(&o, "cpu", NULL, &err), 0);
    assert_true(o.info.same_bytes && o.info.arithmetic == DT_F32);
    for (int i = 0; i < OP_COUNT; i++)
        assert_true(o.ops.forward[i] != NULL && o.ops.forward[i] == o.ref.forward[i]);
    offload_close(&o);
}

static struct tensor make(enum dtype dtype, int ndim, const size_t *dim, float size)
{
    struct tensor t = {.dtype = dtype, .shape = {.ndim = ndim}};
    struct err err = {0};
    size_t n;

    memcpy(t.shape.dim, dim, (size_t)ndim * sizeof *dim);
    assert_true(shape_numel(&t.shape, &n));
    t.data = mem_new(n * dtype_size(dtype) + 64, "a test", &err);
    assert_non_null(t.data);
    for (size_t i = 0; i < n; i++)
        if (dtype == DT_F32)
            ((float *)t.data)[i] = size * uniform();
        else
            ((uint16_t *)t.data)[i] = dtype_f32_to_f16(size * uniform());
    return t;
}

struct sizes {
    bool convolution, back;
    size_t n, h, w, in, out, window, stride, before, after; /* a linear layer has h x w = rows */
    enum op_act act;
    bool residual;
};

/* x and w of term t of output i; false: outside the picture. *terms: how many there are. */
static bool term(const struct sizes *s, const struct op_call *c, size_t i, size_t t, double *x, double *w)
{
    const float *px = s->back ? c->dout[0]->data : c->in[0]->data;
    const uint16_t *pw = c->in[1]->data;
    size_t k = s->back ? s->out : s->in, n = s->back ? s->in : s->out, oh = c->out[0]->shape.dim[1];
    size_t ow = c->out[0]->shape.dim[2], row = i / n, col = i % n, tap = t / k, y, z;

    if (!s->convolution) {
        *x = (double)px[row * k + t];
        *w = (double)dtype_f16_to_f32(pw[s->back ? t * s->in + col : col * s->in + t]);
        return true;
    }
    y = row / ow % oh * s->stride + tap / s->window - s->before; /* wraps below zero: outside, too */
    z = row % ow * s->stride + tap % s->window - s->before;
    if (y >= s->h || z >= s->w)
        return false;
    *x = (double)px[((row / ow / oh * s->h + y) * s->w + z) * k + t % k];
    *w = (double)dtype_f16_to_f32(pw[(col * s->window * s->window + tap) * k + t % k]);
    return true;
}

static double activate(enum op_act act, double x)
{
    switch (act) {
    case ACT_SILU: return x / (1 + exp(-x));
    case ACT_GELU: return 0.5 * x * erfc(-x / sqrt(2));
    case ACT_QUICK_GELU: return x / (1 + exp(-1.702 * x));
    case ACT_NONE: break;
    }
    return x;
}

/* Rounding to bf16 is off by 2^-9 of a number (8 bits: half of 2^-8), to f16 -> bf16 of a weight the same; f32: nothing. Each
 * product is off by u = 2 * 2^-9 (plus 2^-18), a sum of n in f32 by n 2^-24 of the sum of sizes S, and a slope of an activation
 * is at most 1.13; 2^-20 S more for the activation's own polynomial. Independent roundings add as their squares:
 * root mean square of sums of q = sum (x w)^2: u sqrt(q), with the same additions. */
static void compare(const struct sizes *s, const struct op_call *c, const float *got, const float *start, enum dtype arithmetic)
{
    size_t n = 0, terms = s->convolution ? s->window * s->window * s->in : s->back ? s->out : s->in;
    double u = arithmetic == DT_BF16 ? 0x1p-8 + 0x1p-18 : 0, errors = 0, limits = 0;

    assert_true(shape_numel(s->back ? &c->din[0]->shape : &c->out[0]->shape, &n));
    for (size_t i = 0; i < n; i++) {
        double sum = 0, size = 0, squares = 0, slack, off, x, w;

        for (size_t t = 0; t < terms; t++)
            if (term(s, c, i, t, &x, &w)) {
                sum += x * w;
                size += fabs(x * w);
                squares += x * w * x * w;
            }
        if (!s->back) {
            sum += (double)((const float *)c->in[2]->data)[i % s->out] + (s->residual ? (double)start[i] : 0);
            size += 2;
        }
        slack = ((double)terms + 4) * 0x1p-24 * size + 0x1p-20 * size;
        off = fabs((double)got[i] - activate(s->act, sum));
        if (!(off <= 1.13 * (u * size + slack)))
            fail_msg("output %zu is off by %g, limit %g", i, off, 1.13 * (u * size + slack));
        errors += off * off;
        limits += 1.28 * (u * u * squares + slack * slack);
    }
    if (!(errors <= limits))
        fail_msg("root mean square of the errors: %g over the limit", sqrt(errors / limits));
}

static void run(const struct offload *o, const struct sizes *s)
{
    size_t x_dim[] = {s->n, s->h, s->w, s->in}, wc[] = {s->out, s->window, s->window, s->in}, wl[] = {s->out, s->in};
    struct op_attr attr = {.act = s->act, .stride = s->stride, .pad_before = s->before, .pad_after = s->after};
    enum op_id op = s->convolution ? OP_conv2d : OP_linear;
    struct tensor x = make(DT_F32, 4, x_dim, 1), w = s->convolution ? make(DT_F16, 4, wc, 0.1f) : make(DT_F16, 2, wl, 0.1f);
    struct tensor bias = make(DT_F32, 1, &s->out, 1), y = {0}, start, dx = make(DT_F32, 4, x_dim, 0);
    struct op_call c = {.attr = &attr, .in = {&x, &w, &bias}, .out = {&y}, .arithmetic = o->ops.arithmetic};
    struct err err = {0};
    size_t bytes;

    assert_int_equal(op_table[op]->shape(&c, &err), 0);
    y = make(DT_F32, 4, y.shape.dim, 1);
    start = make(DT_F32, 4, y.shape.dim, 1);
    c.in[3] = s->residual ? &start : NULL;
    if (s->back) {
        c.dout[0] = &start;
        c.din[0] = &dx;
    }
    bytes = o->ops.scratch[op](&c, s->back, thread_count());
    c.scratch = mem_new(bytes + 64, "a test", &err);
    assert_non_null(c.scratch);
    memset((char *)c.scratch + bytes, 0x5a, 64);
    if ((s->back ? o->ops.backward : o->ops.forward)[op](&c, &err) != 0)
        fail_msg("%s", err.msg);
    for (size_t i = 0; i < 64; i++)
        assert_int_equal(((unsigned char *)c.scratch)[bytes + i], 0x5a);
    compare(s, &c, s->back ? dx.data : y.data, start.data, o->info.arithmetic);
    free(c.scratch);
    free(x.data);
    free(w.data);
    free(bias.data);
    free(y.data);
    free(start.data);
    free(dx.data);
}

static const struct sizes rows[] = {
    {.n = 1, .h = 3, .w = 11, .in = 40, .out = 72},
    {.n = 2, .h = 1, .w = 37, .in = 77, .out = 33, .act = ACT_GELU},
    {.n = 1, .h = 1, .w = 64, .in = 64, .out = 64, .act = ACT_QUICK_GELU},
    {.n = 1, .h = 1, .w = 50, .in = 48, .out = 20, .act = ACT_SILU},
    {.n = 1, .h = 4, .w = 9, .in = 160, .out = 48, .residual = true},
    {.n = 1, .h = 4, .w = 9, .in = 36, .out = 50, .back = true},
    {.n = 1, .h = 2, .w = 2, .in = 8, .out = 5}, /* too small for oneDNN: ref's */
    {.convolution = true, .n = 2, .h = 7, .w = 5, .in = 32, .out = 48, .window = 3, .stride = 1, .before = 1, .after = 1},
    {.convolution = true, .n = 1, .h = 8, .w = 9, .in = 17, .out = 35, .window = 3, .stride = 2, .before = 1, .after = 1,
     .residual = true},
    {.convolution = true, .n = 1, .h = 8, .w = 8, .in = 32, .out = 16, .window = 3, .stride = 2, .before = 0, .after = 1},
    {.convolution = true, .n = 1, .h = 6, .w = 4, .in = 64, .out = 32, .window = 1, .stride = 1, .residual = true},
};

static void check_device(const char *device)
{
    struct offload o;
    struct err err = {0};

    if (offload_open(&o, device, folder(), &err) != 0) {
        /* the one good reason on a machine with the plug-in */
        if (!strstr(device, "bf16") || !strstr(err.msg, "no bf16 arithmetic"))
            fail_msg("%s", err.msg);
        return;
    }
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        run(&o, &rows[i]);
    offload_close(&o);
}

static void test_own(void **arg)
{
    (void)arg;
    check_device("cpu");
    check_device("cpu:bf16");
}

static void test_dnnl(void **arg)
{
    (void)arg;
    if (!built())
        skip();
    check_device("dnnl");
    check_device("dnnl:f32");
    check_device("dnnl:bf16");
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_errors), cmocka_unit_test(test_broken_file),
                                       cmocka_unit_test(test_cpu), cmocka_unit_test(test_own), cmocka_unit_test(test_dnnl)};

    thread_init(2);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
