/* Norms of products from their factors, against the product itself. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <float.h>
#include <math.h>
#include <stdlib.h>

#include "ref/base/rng.h"
#include "ref/lora/norm.h"

/* The product, formed in double. */
static double direct(const float *up, const float *down, size_t rows, size_t rank, size_t columns)
{
    double sum = 0;

    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < columns; j++) {
            double x = 0;

            for (size_t k = 0; k < rank; k++)
                x += (double)up[i * rank + k] * (double)down[k * columns + j];
            sum += x * x;
        }
    return sqrt(sum);
}

static void products(void **state)
{
    static const size_t shape[][3] = {{1, 1, 1}, {5, 1, 7}, {33, 4, 17}, {64, 64, 64}, {16, 40, 9}, {320, 8, 768}};
    struct rng r;

    (void)state;
    rng_seed(&r, 7);
    for (size_t s = 0; s < sizeof shape / sizeof *shape; s++) {
        size_t rows = shape[s][0], rank = shape[s][1], columns = shape[s][2];
        float *up = malloc(rows * rank * sizeof *up), *down = malloc(rank * columns * sizeof *down);
        double norm, want, limit;
        struct err err = {0};

        rng_normal(&r, up, rows * rank);
        rng_normal(&r, down, rank * columns);
        assert_int_equal(norm_of_product(up, down, rows, rank, columns, &norm, &err), 0);
        want = direct(up, down, rows, rank, columns);
        /* The squared norm is a sum of products of Gram entries; each entry is a sum of max(rows, columns) terms in double.
         * All are bounded by ||U||^2 ||D||^2, so the square is off by at most 2 (rows + columns + rank^2) eps times that. */
        limit = 2 * (double)(rows + columns + rank * rank) * DBL_EPSILON * norm_squared(up, rows * rank) *
                norm_squared(down, rank * columns);
        if (fabs(norm * norm - want * want) > limit)
            fail_msg("%zu x %zu x %zu: %.17g, not %.17g", rows, rank, columns, norm, want);
        free(up);
        free(down);
    }
}

static void cancellation(void **state)
{
    /* Two equal and opposite columns: the product is exactly 0. */
    const float up[] = {1, 1, 2, 2, 3, 3}, down[] = {1, 2, -1, -2};
    struct err err = {0};
    double norm = 1;

    (void)state;
    assert_int_equal(norm_of_product(up, down, 3, 2, 2, &norm, &err), 0);
    assert_true(norm == 0);
    assert_true(norm_squared(up, 6) == 28);
    assert_true(norm_squared(up, 0) == 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(products),
        cmocka_unit_test(cancellation),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
