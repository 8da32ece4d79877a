#include "ref/lora/norm.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "ref/base/mem.h"
#include "ref/base/simd.h"

double norm_squared(const float *x, size_t n)
{
    double sum[8] = {0};
    size_t i = 0;

    for (; i + 8 <= n; i += 8)
        for (size_t k = 0; k < 8; k++)
            sum[k] += (double)x[i + k] * (double)x[i + k];
    for (; i < n; i++)
        sum[0] += (double)x[i] * (double)x[i];
    return ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
}

/* gram [rank, rank] += upper triangle of one row's outer product. */
SIMD_CLONES static void add_row(double *gram, const float *row, size_t rank)
{
    for (size_t i = 0; i < rank; i++)
        for (size_t j = i; j < rank; j++)
            gram[i * rank + j] += (double)row[i] * (double)row[j];
}

SIMD_CLONES static double dot(const float *a, const float *b, size_t n)
{
    double sum[4] = {0};
    size_t i = 0;

    for (; i + 4 <= n; i += 4)
        for (size_t k = 0; k < 4; k++)
            sum[k] += (double)a[i + k] * (double)b[i + k];
    for (; i < n; i++)
        sum[0] += (double)a[i] * (double)b[i];
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

double norm_of_product_in(const float *up, const float *down, size_t rows, size_t rank, size_t columns, double *gram)
{
    double sum = 0;

    memset(gram, 0, rank * rank * sizeof *gram);
    for (size_t r = 0; r < rows; r++)
        add_row(gram, up + r * rank, rank);
    for (size_t i = 0; i < rank; i++)
        for (size_t j = i; j < rank; j++)
            sum += (i == j ? 1 : 2) * gram[i * rank + j] * dot(down + i * columns, down + j * columns, columns);
    /* Rounding may leave a tiny negative sum where the product is zero. */
    return sum > 0 ? sqrt(sum) : 0;
}

int norm_of_product(const float *up, const float *down, size_t rows, size_t rank, size_t columns, double *out, struct err *err)
{
    size_t cells;
    double *gram;

    if (!mem_mul(rank, rank, &cells))
        return err_memory(err, ~0ULL, "the norm of a LoRA module");
    gram = mem_zero(cells + 1, sizeof *gram, "the norm of a LoRA module", err);
    if (!gram)
        return -1;
    *out = norm_of_product_in(up, down, rows, rank, columns, gram);
    free(gram);
    return 0;
}
