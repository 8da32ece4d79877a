/* How much memory there is: the kernel's own files, and made-up ones with control groups of both versions; and the forecast of a
 * graph's peak against a process's. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cmd/memory.h"
#include "cmd/model_weights.h"
#include "ref/base/thread.h"
#include "ref/graph/run.h"
#include "ref/model/unet.h"
#include "ref/model/vae.h"
#include "tests/lib/scratch.h"

static void put(const char *root, const char *path, const char *text)
{
    char full[600];
    FILE *f;

    snprintf(full, sizeof full, "%s%s", root, path);
    for (char *s = full + strlen(root) + 1; (s = strchr(s, '/')) != NULL; s++) {
        *s = '\0';
        mkdir(full, 0777);
        *s = '/';
    }
    f = fopen(full, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static void test_groups(void **state)
{
    const char *root = scratch_new();

    (void)state;
    assert_true(memory_free(root) == SIZE_MAX);
    put(root, "/proc/meminfo", "MemTotal:  9000 kB\nMemFree: 10 kB\nMemAvailable:   8000 kB\n");
    assert_int_equal(memory_free(root), 8000 * 1024);
    put(root, "/proc/self/cgroup", "9:name=systemd:/\n4:memory:/a/b\n0::/u/v\n");
    assert_int_equal(memory_free(root), 8000 * 1024);
    /* version 1: the group itself has no limit (a number near 2^63), the one above has; pages of files count as free */
    put(root, "/sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", "9223372036854771712\n");
    put(root, "/sys/fs/cgroup/memory/a/b/memory.usage_in_bytes", "1\n");
    put(root, "/sys/fs/cgroup/memory/a/memory.limit_in_bytes", "7000000\n");
    put(root, "/sys/fs/cgroup/memory/a/memory.usage_in_bytes", "2000000\n");
    assert_int_equal(memory_free(root), 5000000);
    put(root, "/sys/fs/cgroup/memory/a/memory.stat", "cache 3\ntotal_inactive_file 400000\ntotal_active_file 100000\n");
    assert_int_equal(memory_free(root), 5500000);
    /* version 2: "max" is no limit; the mount itself has one, as in a container */
    put(root, "/sys/fs/cgroup/u/v/memory.max", "max\n");
    put(root, "/sys/fs/cgroup/u/v/memory.current", "5\n");
    assert_int_equal(memory_free(root), 5500000);
    put(root, "/sys/fs/cgroup/memory.max", "3000000\n");
    put(root, "/sys/fs/cgroup/memory.current", "2900000\n");
    assert_int_equal(memory_free(root), 100000);
    put(root, "/sys/fs/cgroup/memory.current", "3900000\n");
    assert_int_equal(memory_free(root), 0);
    put(root, "/sys/fs/cgroup/memory.stat", "anon 3\ninactive_file 1900000\n");
    assert_int_equal(memory_free(root), 1000000);
    scratch_remove(root);
}

static void test_check(void **state)
{
    struct command_run run = {.quiet = true};
    struct memory_need small = {.bytes = 1 << 20}, large = {.bytes = SIZE_MAX / 2};
    struct err err = {0};
    size_t now = memory_now();

    (void)state;
    assert_true(memory_free("") > 1 << 20);
    assert_true(now > 1 << 20);
    assert_true(memory_peak() + (1 << 20) >= now); /* read in this order; the kernel adds up pages in batches, processor by processor */
    assert_true(memory_forecast(&small) >= (1 << 20) + (1 << 20));
    assert_int_equal(memory_check(&run, &small, "use a smaller --W", &err), 0);
    assert_int_equal(memory_check(&run, &large, "use a smaller --W", &err), -1);
    assert_int_equal(err.kind, ERR_FAILED);
    assert_non_null(strstr(err.msg, "not enough memory: this needs 8.00 EiB"));
    assert_non_null(strstr(err.msg, "free; use a smaller --W"));
}

/* ---- The forecast against the truth: what a process of its own has at its peak ---- */

struct subject {
    const char *name;
    enum model_part part;
    size_t n, side; /* of the latents */
    bool train;
};

/* A LoRA of rank 4 on every attention projection of the U-Net. */
static size_t make_loras(struct layers_lora *l, struct tensor *t, struct model *m, struct err *err)
{
    size_t count = 0;

    for (size_t i = m->part_first[MODEL_UNET]; i < m->part_first[MODEL_UNET + 1]; i++) {
        const struct model_tensor *w = &m->tensor[i];
        size_t sides[2] = {w->shape.dim[1], w->shape.dim[0]};
        char *path;

        if (!strstr(w->name, ".attn") || w->shape.ndim != 2)
            continue;
        path = mem_strn(w->name, strlen(w->name) - strlen(".weight"), err);
        for (size_t side = 0; side < 2; side++) {
            struct tensor *x = &t[2 * count + side];

            *x = (struct tensor){mem_zero(4 * sides[side], sizeof(float), "a test", err), DT_F32, {2, {4, sides[side]}}};
            if (side)
                x->shape = (struct shape){2, {sides[1], 4}};
            for (size_t k = 0; k < 4 * sides[side]; k++)
                ((float *)x->data)[k] = 0.01f;
        }
        l[count] = (struct layers_lora){.part = MODEL_UNET, .path = path, .down = &t[2 * count], .up = &t[2 * count + 1], .scale = 1,
                                        .train = true};
        count++;
    }
    return count;
}

static int build(struct graph *g, struct weights *w, struct model *m, const struct subject *s, struct err *err)
{
    static struct layers_lora loras[512];
    static struct tensor factors[1024];
    struct layers l = {.g = g, .w = w, .part = s->part};
    struct unet unet;
    struct vae vae;
    int target, loss, *grads;

    if (s->part == MODEL_VAE)
        return vae_build_decoder(&l, s->n, s->side, s->side, &vae, err);
    if (s->train) {
        l.loras = loras;
        l.lora_count = make_loras(loras, factors, m, err);
    }
    if (unet_build(&l, NULL, s->n, s->side, s->side, GRAPH_NONE, 77, &unet, err) || !s->train)
        return graph_check(g, err);
    target = graph_input(g, "target", DT_F32, &g->values[unet.out].shape);
    loss = graph_binary(g, OP_mse, unet.out, target, "loss");
    grads = mem_zero(g->value_count, sizeof *grads, "a test", err);
    return graph_check(g, err) || graph_differentiate(g, loss, NULL, 0, grads, err) ? -1 : 0;
}

/* In a child: forecasts, runs, and tells both numbers. */
static int measure(const struct subject *s, size_t numbers[2], struct err *err)
{
    struct memory_need need;
    struct model *m;
    struct model_weights *source;
    struct weights *w;
    struct graph *g = graph_new(err);
    struct plan *plan;
    struct run *run;
    struct ops ops;

    ops_ref(&ops);
    thread_init(1); /* with more, one that comes late leaves its scratch untouched */
    if (!g || model_open(&m, "golden/small_model/small.safetensors", err) || model_weights_open(&source, m, true, err) ||
        weights_new(&w, model_weights_source(source), err) || build(g, w, m, s, err) || plan_new(&plan, g, &ops, 1, err))
        return -1;
    weights_bytes(w, &need.bytes, &need.mapped);
    need.bytes += plan->arena;
    plan_free(plan);
    numbers[0] = memory_forecast(&need);
    if (weights_load(w, err) || run_new(&run, g, &ops, err) || run_graph(run, NULL, err))
        return -1;
    numbers[1] = memory_peak();
    return 0;
}

static void test_forecast(void **state)
{
    static const struct subject subjects[] = {
        {"U-Net, forward", MODEL_UNET, 2, 48, false},
        {"U-Net, forward and backward", MODEL_UNET, 1, 40, true},
        {"VAE decoder", MODEL_VAE, 1, 64, false},
    };

    (void)state;
#ifdef __SANITIZE_ADDRESS__
    skip(); /* the sanitizer's own memory comes on top */
#endif
    for (size_t i = 0; i < sizeof subjects / sizeof *subjects; i++) {
        struct err err = {0};
        size_t numbers[2];
        int ends[2], status;
        pid_t child;

        assert_int_equal(pipe(ends), 0);
        child = fork();
        assert_true(child >= 0);
        if (child == 0) {
            int rc = measure(&subjects[i], numbers, &err);

            if (rc)
                fprintf(stderr, "%s: %s\n", subjects[i].name, err.msg);
            _exit(rc || write(ends[1], numbers, sizeof numbers) != sizeof numbers);
        }
        close(ends[1]);
        assert_int_equal(read(ends[0], numbers, sizeof numbers), sizeof numbers);
        close(ends[0]);
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_int_equal(status, 0);
        if (getenv("VERBOSE"))
            printf("%s: forecast %.1f MiB, peak %.1f MiB\n", subjects[i].name, (double)numbers[0] / (1 << 20),
                   (double)numbers[1] / (1 << 20));
        if (fabs((double)numbers[0] - (double)numbers[1]) > 0.05 * (double)numbers[1])
            fail_msg("%s: forecast %zu bytes, peak %zu", subjects[i].name, numbers[0], numbers[1]);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_forecast), cmocka_unit_test(test_groups), cmocka_unit_test(test_check)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
