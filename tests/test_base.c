/* errors, memory, shapes, threads */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "ref/base/mem.h"
#include "ref/base/slab.h"
#include "ref/base/tensor.h"
#include "ref/base/thread.h"

static void test_err(void **state)
{
    struct err e = {0};
    char big[4000];

    (void)state;
    assert_int_equal(err_set(&e, "cannot read '%s'", "a"), -1);
    assert_int_equal(e.kind, ERR_FAILED);
    assert_int_equal(err_prefix(&e, "in '%s': ", "b"), -1);
    assert_string_equal(e.msg, "in 'b': cannot read 'a'");
    err_usage(&e, "unknown option");
    err_prefix(&e, "lora: ");
    assert_int_equal(e.kind, ERR_USAGE);
    err_set(&e, "tensor '%s'", "a\033[2J\r\177\xc3\xa9");
    assert_string_equal(e.msg, "tensor 'a?[2J??\xc3\xa9'");
    memset(big, 'x', sizeof big);
    big[sizeof big - 1] = 0;
    err_set(&e, "%s", big);
    assert_int_equal(strlen(e.msg), sizeof e.msg - 1);
    assert_string_equal(e.msg + sizeof e.msg - 4, "...");
}

static void test_mem(void **state)
{
    struct err e = {0};
    struct arena a = {0};
    size_t n, cap = 0;
    int *grown = NULL;
    char *s;

    (void)state;
    assert_false(mem_mul(SIZE_MAX / 2, 3, &n));
    assert_true(mem_mul(SIZE_MAX, 1, &n));
    assert_false(mem_add(SIZE_MAX, 1, &n));
    assert_null(mem_new(SIZE_MAX - 3, "a test", &e));
    assert_non_null(strstr(e.msg, "for a test"));
    for (size_t i = 0; i < 1000; i++) {
        assert_int_equal(mem_grow(&grown, &cap, i, sizeof *grown, "a test", &e), 0);
        grown[i] = (int)i;
    }
    assert_int_equal(grown[999], 999);
    free(grown);
    for (size_t i = 1; i < 3000; i += 7) {
        unsigned char *p = arena_alloc(&a, i, &e);

        assert_non_null(p);
        assert_int_equal((uintptr_t)p % (i >= MEM_ALIGN ? MEM_ALIGN : 16), 0);
        assert_int_equal(p[i - 1], 0);
        memset(p, 0xff, i);
    }
    s = arena_printf(&a, &e, "%s.%d", "x", 7);
    assert_string_equal(s, "x.7");
    assert_non_null(arena_alloc(&a, 1 << 20, &e));
    arena_free(&a);
    assert_int_equal(a.total, 0);
}

static void test_shape(void **state)
{
    struct shape s = shape_of(3, 2, 3, 4), huge = {.ndim = 2, .dim = {SIZE_MAX / 2, 3}};
    size_t n;
    char text[128];

    (void)state;
    assert_true(shape_numel(&s, &n));
    assert_int_equal(n, 24);
    assert_true(shape_nbytes(&s, DT_BF16, &n));
    assert_int_equal(n, 48);
    assert_false(shape_numel(&huge, &n));
    assert_string_equal(shape_print(&s, text, sizeof text), "[2, 3, 4]");
    s.ndim = 0;
    assert_true(shape_numel(&s, &n));
    assert_int_equal(n, 1);
    assert_string_equal(shape_print(&s, text, sizeof text), "[]");
}

static int mark(void *ctx, size_t i, struct err *err)
{
    unsigned char *seen = ctx;

    seen[i]++;
    return i == 700 || i == 701 || i == 990 ? err_set(err, "piece %zu", i) : 0;
}

static int nested(void *ctx, size_t i, struct err *err)
{
    unsigned char(*seen)[50] = ctx;

    return i % 2 && thread_index() >= thread_count() ? err_set(err, "worker %d", thread_index())
                                                     : thread_for(50, mark, seen[i], err);
}

static void *call_often(void *unused)
{
    struct err e = {0};

    (void)unused;
    for (int i = 0; i < 2000; i++) {
        unsigned char seen[20][50] = {{0}};

        if (thread_for(20, nested, seen, &e) < 0)
            return "failed";
        for (size_t j = 0; j < 1000; j++)
            if (seen[j / 50][j % 50] != 1)
                return "not each piece once";
    }
    return NULL;
}

/* Calls within calls, and from two threads at once: each piece is done once. */
static void test_thread_calls(void **state)
{
    pthread_t other;
    void *here, *there;

    (void)state;
    thread_init(3);
    assert_int_equal(pthread_create(&other, NULL, call_often, NULL), 0);
    here = call_often(NULL);
    assert_int_equal(pthread_join(other, &there), 0);
    assert_null(here);
    assert_null(there);
    thread_init(0);
}

static void test_thread(void **state)
{
    (void)state;
    for (int count = 1; count <= 4; count++) {
        unsigned char seen[1000] = {0};
        struct err e = {0};

        thread_init(count);
        assert_int_equal(thread_count(), count);
        assert_int_equal(thread_for(700, mark, seen, &e), 0);
        for (size_t i = 0; i < 700; i++)
            assert_int_equal(seen[i], 1);
        memset(seen, 0, sizeof seen);
        assert_int_equal(thread_for(1000, mark, seen, &e), -1);
        assert_string_equal(e.msg, "piece 700");
    }
    thread_init(0);
}

static size_t blocks, block_bytes;
static bool full;

static void *block_get(size_t bytes, const char *what, struct err *err)
{
    if (full) {
        err_memory(err, bytes, what);
        return NULL;
    }
    blocks++;
    block_bytes += bytes;
    return aligned_alloc(256, bytes);
}

static void block_free(void *block)
{
    blocks--;
    free(block);
}

static void test_slab(void **state)
{
    struct slabs s = {.alloc = block_get, .free = block_free, .align = 256, .block = 4096};
    struct err e = {0};
    char *a = slab_get(&s, 1000, "weights", &e), *b = slab_get(&s, 1, "weights", &e), *c = slab_get(&s, 2000, "weights", &e), *d;

    (void)state;
    assert_int_equal(blocks, 1);
    assert_ptr_equal(b, a + 1024);
    assert_ptr_equal(c, a + 1280);
    d = slab_get(&s, 5000, "weights", &e); /* a block of its own, whose end serves others */
    assert_int_equal(block_bytes, 4096 + 8192);
    assert_ptr_equal(slab_get(&s, 3000, "weights", &e), d + 5120);
    slab_put(&s, b);
    assert_ptr_equal(slab_get(&s, 256, "weights", &e), b); /* in the gap */
    slab_put(&s, a);
    assert_ptr_equal(slab_get(&s, 1024, "weights", &e), a);
    assert_ptr_equal(slab_get(&s, 768, "weights", &e), a + 3328); /* to the block's very end */
    full = true;
    assert_null(slab_get(&s, 1, "the weights", &e));
    assert_non_null(strstr(e.msg, "the weights"));
    full = false;
    slab_put(&s, NULL);
    slab_put(&s, a + 1); /* no piece begins there */
    slab_put(&s, d);
    assert_int_equal(blocks, 2);
    slab_put(&s, d + 5120);
    assert_int_equal(blocks, 1); /* the last of its block */
    slab_close(&s);
    assert_int_equal(blocks, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_err),
        cmocka_unit_test(test_mem),
        cmocka_unit_test(test_shape),
        cmocka_unit_test(test_slab),
        cmocka_unit_test(test_thread),
        cmocka_unit_test(test_thread_calls),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
