#include "ref/lora/factors.h"

#include <stdbool.h>
#include <string.h>

#include "ref/base/dtype.h"
#include "ref/base/simd.h"

void factors_fold_mid(float *dst, const float *mid, const float *down, size_t r, size_t q, size_t in, size_t k)
{
    memset(dst, 0, r * in * k * sizeof *dst);
    for (size_t p = 0; p < r; p++)
        for (size_t j = 0; j < q; j++)
            for (size_t i = 0; i < in; i++)
                for (size_t t = 0; t < k; t++)
                    dst[(p * in + i) * k + t] += mid[(p * q + j) * k + t] * down[j * in + i];
}

size_t factors_total_rank(const struct lora_factors *f, size_t n)
{
    size_t sum = 0;

    for (size_t i = 0; i < n; i++)
        sum += f[i].rank;
    return sum;
}

/* x [n] = a x + b y */
SIMD_CLONES static void add_scaled(float *restrict x, double a, const float *restrict y, double b, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x[i] = (float)(a * (double)x[i] + b * (double)y[i]);
}

/* Adds b to a where they share a factor. */
static bool join(struct lora_factors *a, const struct lora_factors *b, size_t out, size_t in)
{
    size_t up = out * a->rank, down = a->rank * in;

    if (a->rank != b->rank)
        return false;
    if (memcmp(a->up, b->up, up * sizeof *a->up) == 0)
        add_scaled((float *)a->down, a->scale, b->down, b->scale, down);
    else if (memcmp(a->down, b->down, down * sizeof *a->down) == 0)
        add_scaled((float *)a->up, a->scale, b->up, b->scale, up);
    else
        return false;
    a->scale = 1;
    return true;
}

size_t factors_join(struct lora_factors *f, size_t n, size_t out, size_t in)
{
    size_t left = 0;

    for (size_t i = 0; i < n; i++) {
        size_t j = 0;

        while (j < left && !join(&f[j], &f[i], out, in))
            j++;
        if (j == left)
            f[left++] = f[i];
    }
    return left;
}

static int check(const char *name, const float *x, size_t rows, size_t cols, struct err *err)
{
    size_t bad = dtype_find_nonfinite(x, DT_F32, rows * cols);

    if (bad == rows * cols)
        return 0;
    return err_set(err, "%s is %s at row %zu, column %zu; the training that made this LoRA diverged: use an earlier save", name,
                   x[bad] != x[bad] ? "not a number" : "infinite", bad / cols, bad % cols);
}

int factors_check(const struct lora_factors *f, size_t out, size_t in, struct err *err)
{
    if (check("lora_up", f->up, out, f->rank, err))
        return -1;
    return check("lora_down", f->down, f->rank, in, err);
}
