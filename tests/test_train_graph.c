/* The training step against PyTorch (golden/train.safetensors): loss of each step, every gradient, factors after ten steps, with
 * and without checkpointing, on one and on several threads; dropout masks, long captions, clip_skip, v, min-SNR, huber. And the
 * factors that a training starts with. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cmd/verify/training_subject.h"
#include "ref/base/thread.h"
#include "tests/lib/golden.h"
#include "tests/lib/pretend.h"

#define MUST(call)                   \
    do {                             \
        if ((call) != 0)             \
            fail_msg("%s", err.msg); \
    } while (0)

static struct ops ops;
static struct verify verify = {.golden = "golden", .ops = &ops, .arithmetic = verify_arithmetics};
static struct training_file file;

/* ---- Tests ---- */

static void report(void *ctx, const struct verify_row *row, bool ok)
{
    (void)ctx;
    if (!ok)
        print_error("%s: off by %g, limit %g\n", row->name, row->worst, row->limit);
}

/* rows: how many comparisons a case has. */
static void train(const char *name, bool checkpoint, size_t rows)
{
    struct verify v = verify;
    struct err err = {0};

    v.report = report;
    MUST(training_compare(&v, &file, name, checkpoint, &err));
    assert_int_equal(v.rows, rows);
    assert_int_equal(v.failed, 0);
}

/* Gradients, factors and losses. */
static void test_eps(void **state)
{
    (void)state;
    train("eps", false, 132 + 132 + 1);
    train("eps", true, 132 + 132 + 1);
}

static void test_v(void **state)
{
    (void)state;
    train("v", true, 120 + 1);
}

static void test_unet_huber_conv(void **state)
{
    (void)state;
    train("unet", false, 156 + 1);
}

static void test_dropout(void **state)
{
    (void)state;
    train("drop", true, 132 + 1);
}

/* A masked loss, weighted captions, and a LoRA in the base model: folded, as cheap as that is here, or beside the layer. */
static void test_more(void **state)
{
    struct training_file before = file;
    struct err err = {0};

    (void)state;
    MUST(training_file_open(&file, &verify, "train_more.safetensors", &err));
    train("more", false, 132 + 1);
    train("more", true, 132 + 1);
    training_file_close(&file);
    file = before;
}

/* With factors, gradients and AdamW on a device (tests/lib/pretend.h), and a LoRA's backward that it leaves to the processor. */
static void test_on_device(void **state)
{
    struct ops device, before = ops;

    (void)state;
    for (unsigned long without = 0; without <= 1ul << OP_lora; without += 1ul << OP_lora) {
        pretend_ops(&device, DT_F32, without, 0);
        memset(&pretend_counts, 0, sizeof pretend_counts);
        ops = device;
        train("eps", false, 132 + 132 + 1);
        assert_int_equal(pretend_counts.steps, TRAINING_STEPS);
        assert_int_equal(pretend_counts.blocks + pretend_counts.host, 0);
    }
    ops = before;
}

/* How much of a golden factor's elements lies further off than f32's roundings let AdamW's: 16 roundings of the largest, and 1e-3
 * of a step, ten times. Whatever happens, no element is further than two whole ways of ten steps of that rate. */
static double share_off(struct training *t, const char *key, const float *got, size_t got_count, double lr)
{
    struct err err = {0};
    char name[400];
    size_t n, off = 0;
    float *want;
    double size = 0;

    training_key(t, key, name);
    want = verify_f32(&t->f->file, name, &n, &err);
    assert_non_null(want);
    assert_int_equal(n, got_count);
    for (size_t i = 0; i < n; i++)
        size = fmax(size, fabs((double)want[i]));
    for (size_t i = 0; i < n; i++) {
        double d = fabs((double)got[i] - (double)want[i]);

        if (d > 2 * 10 * lr)
            fail_msg("%s: element %zu is off by %g", name, i, d);
        off += d > 16 * 0x1p-24 * size + 10 * 1e-3 * lr;
    }
    return (double)off / (double)n;
}

/* Ten steps with the named optimizer against bitsandbytes' AdamW8bit: the largest share of a factor's elements that is off, and of
 * the losses the largest relative difference. */
static void train8(struct training_file *f, const char *kind, double *share, double *loss)
{
    struct training t;
    struct err err = {0};
    size_t compared = 0;
    float *want = verify_f32(&f->file, "adam8/losses", NULL, &err), one;

    assert_non_null(want);
    MUST(training_open(&t, f, "adam8", &ops, false, 1, kind, &err));
    *share = *loss = 0;
    for (size_t i = 0; i < TRAINING_STEPS; i++) {
        MUST(training_step(&t, i, &one, &err));
        *loss = fmax(*loss, fabs((double)one / (double)want[i] - 1));
        MUST(training_update(&t, &err));
    }
    for (size_t i = 0; i < 2 * t.net->count; i++) {
        const struct network_module *m = &t.net->module[i / 2];
        const struct tensor *factor = i % 2 ? &m->up : &m->down;
        char key[300], name[400];
        size_t n = 0;

        snprintf(key, sizeof key, "last/%s.%s", m->spec.path, i % 2 ? "up" : "down");
        training_key(&t, key, name);
        shape_numel(&factor->shape, &n);
        if (tensor_file_find(f->file.file, name)) {
            *share = fmax(*share, share_off(&t, key, factor->data, n, m->spec.group ? 1e-3 : 5e-4));
            compared++;
        }
    }
    assert_int_equal(compared, 8);
    training_close(&t);
}

/* A gradient that is off by a few 1e-6 of its size, as f32 leaves it, puts a mean on the other side of the middle of two codes once
 * in about 1e4 times, since a code covers 1e-2 of its number; then that element is off by some 1e-2 of a step. 2 means, 10 steps:
 * about 1 in 500. Gradients that are sums of larger terms are off by ten times as much: 1 in 50. AdamW with 32 bits is off nearly
 * everywhere, and so would be other codes or blocks. The losses differ by what moved: a few f32 roundings of a sum of 100 layers. */
static void test_adamw8bit(void **state)
{
    struct training_file f = {0};
    struct err err = {0};
    double share, loss;

    (void)state;
    MUST(training_file_open(&f, &verify, "train8.safetensors", &err));
    train8(&f, "AdamW8bit", &share, &loss);
    assert_true(share < 0.02);
    assert_true(loss < 100 * 0x1p-24);
    train8(&f, "AdamW", &share, &loss);
    assert_true(share > 0.5);
    training_file_close(&f);
}

/* The same bytes for any number of threads, with and without checkpointing. */
static void test_same_bytes(void **state)
{
    float *first = NULL;

    (void)state;
    for (int run = 0; run < 4; run++) {
        struct training s;
        struct err err = {0};
        float loss;

        thread_init(run == 0 ? 1 : run + 1);
        MUST(training_open(&s, &file, "eps", &ops, run & 1, 1, "AdamW", &err));
        MUST(training_step(&s, 0, &loss, &err));
        if (!first) {
            first = malloc(s.net->size * sizeof *first);
            assert_non_null(first);
            memcpy(first, s.net->grads, s.net->size * sizeof *first);
        }
        assert_memory_equal(first, s.net->grads, s.net->size * sizeof *first);
        training_close(&s);
    }
    free(first);
    thread_init(0);
}

/* The last eight numbers of each module, in torch's layout; uniform numbers are exact, the bound is rounded once. */
static void test_init(void **state)
{
    struct network *net;
    struct err err = {0};

    (void)state;
    MUST(training_network(&net, file.tensors, true, 4, 1, 2, 1, &err));
    network_init(net, 42);
    for (size_t i = 0; i < net->count; i++) {
        const struct network_module *m = &net->module[i];
        size_t pixels = m->spec.kh * m->spec.kw, in = m->spec.in;
        const float *down = m->down.data, *up = m->up.data;
        float mine[8], *want;
        char name[400];

        snprintf(name, sizeof name, "init/%s", m->spec.path);
        want = verify_f32(&file.file, name, NULL, &err);
        assert_non_null(want);
        for (size_t k = 0; k < 8; k++) {
            size_t p = pixels - 1 - (7 - k) / in, c = in - 1 - (7 - k) % in;

            mine[k] = down[((m->spec.rank - 1) * pixels + p) * in + c];
        }
        golden_close(m->spec.path, mine, want, 8, 0x1p-24, 0);
        for (size_t k = 0; k < m->spec.out * m->spec.rank; k++)
            assert_true(up[k] == 0);
    }
    network_free(net);
}

static void test_limit_norms(void **state)
{
    struct network *net;
    struct err err = {0};
    double mean, largest, norm = 0;
    size_t scaled;
    float *down, *up;

    (void)state;
    MUST(training_network(&net, file.tensors, false, 4, 4, 0, 0, &err));
    network_init(net, 1);
    down = net->module[0].down.data;
    up = net->module[0].up.data;
    for (size_t i = 0; i < net->module[0].spec.out * 4; i++)
        up[i] = 1 + (float)(i % 7);
    MUST(network_limit_norms(net, 0.5, &scaled, &mean, &largest, &err));
    for (size_t o = 0; o < net->module[0].spec.out; o++)
        for (size_t k = 0; k < net->module[0].spec.in; k++) {
            double sum = 0;

            for (size_t r = 0; r < 4; r++)
                sum += (double)up[o * 4 + r] * (double)down[r * net->module[0].spec.in + k];
            norm += sum * sum;
        }
    assert_int_equal(scaled, 1);
    assert_true(fabs(sqrt(norm) - 0.5) < 1e-6); /* factors are rounded to 2^-24 each */
    assert_true(largest == 0.5 && fabs(mean * (double)net->count - 0.5) < 1e-12);
    up[3] = NAN;
    assert_ptr_equal(network_find_nonfinite(net), &net->module[0]);
    network_free(net);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_init),
        cmocka_unit_test(test_limit_norms),
        cmocka_unit_test(test_eps),
        cmocka_unit_test(test_v),
        cmocka_unit_test(test_unet_huber_conv),
        cmocka_unit_test(test_dropout),
        cmocka_unit_test(test_on_device), cmocka_unit_test(test_more),
        cmocka_unit_test(test_adamw8bit),
        cmocka_unit_test(test_same_bytes),
    };
    struct err err = {0};
    int failed;

    thread_init(0);
    ops_ref(&ops);
    if (training_file_open(&file, &verify, "train.safetensors", &err)) {
        print_error("%s\n", err.msg);
        return 1;
    }
    failed = cmocka_run_group_tests(tests, NULL, NULL);
    training_file_close(&file);
    return failed;
}
