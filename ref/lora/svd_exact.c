/* The way that always ends: LAPACK in f64 (svd.h, point 4). */
#include "ref/lora/svd_work.h"

#include <cblas.h>
#include <lapacke.h>
#include <math.h>
#include <string.h>

#define EPS64 1.11e-16

static void widen(double *out, const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        out[i] = (double)x[i];
}

static void narrow(float *out, const double *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        out[i] = (float)x[i];
}

/* Eigenvectors of A'A in f64. Returns 1 when they are good enough, 0 when not, -1 on error. */
static int by_gram(struct svd *w, const struct svd_matrix *a, size_t k, double tolerance, double total, float *v, float *y,
                   struct svd_info *info, struct err *err)
{
    size_t n = a->cols, ld = a->flipped ? a->rows : n;
    double *d = svd_buffer(w, SVD_BUF_FLOAT64, a->rows * n, sizeof *d, err);
    double *g = svd_buffer(w, SVD_BUF_FLOAT64_B, n * n + n, sizeof *g, err);
    double *image = svd_buffer(w, SVD_BUF_FLOAT64_C, k * a->rows, sizeof *image, err), *values, tail = 0, floor, slack;

    if (!d || !g || !image)
        return -1;
    values = g + n * n;
    widen(d, a->d, a->rows * n);
    cblas_dsyrk(CblasRowMajor, CblasLower, a->flipped ? CblasNoTrans : CblasTrans, (int)n, (int)a->rows, 1, d, (int)ld, 0, g,
                (int)n);
    if (LAPACKE_dsyevd(LAPACK_COL_MAJOR, 'V', 'U', (int)n, g, (int)n, values) != 0)
        return 0;
    for (size_t i = 0; i < n - k; i++)
        tail += fmax(values[i], 0);
    /* as svd_rounding(), in f64; a tail that f32 factors cannot show is good enough too */
    slack = EPS64 * (4 * (double)k / sqrt((double)n) + 8) * total;
    floor = SVD_FLOOR * SVD_FLOOR / 4 * total;
    if (slack > tolerance * tail && tail + slack > floor)
        return 0;
    cblas_dgemm(CblasRowMajor, CblasNoTrans, a->flipped ? CblasNoTrans : CblasTrans, (int)k, (int)a->rows, (int)n, 1,
                g + (n - k) * n, (int)n, d, (int)ld, 0, image, (int)a->rows);
    for (size_t i = 0; i < k; i++) {
        narrow(v + i * n, g + (n - 1 - i) * n, n);
        narrow(y + i * a->rows, image + (k - 1 - i) * a->rows, a->rows);
    }
    info->method = SVD_GRAM64;
    info->error = tail + slack;
    info->least = fmax(tail - slack, 0);
    info->more_count = n - k < SVD_MORE ? n - k : SVD_MORE;
    for (size_t i = 0; i < info->more_count; i++)
        info->more[i] = (float)sqrt(fmax(values[n - 1 - k - i], 0));
    return 1;
}

static int by_svd(struct svd *w, const struct svd_matrix *a, size_t k, float *v, float *y, struct svd_info *info, struct err *err)
{
    /* LAPACK sees columns: d stored [p, q] by rows is a matrix of q rows, p columns */
    size_t n = a->cols, m = a->rows, q = a->flipped ? m : n, p = a->flipped ? n : m;
    double *d = svd_buffer(w, SVD_BUF_FLOAT64, m * n, sizeof *d, err);
    double *u = svd_buffer(w, SVD_BUF_FLOAT64_B, q * n + n, sizeof *u, err);
    double *vt = svd_buffer(w, SVD_BUF_FLOAT64_C, n * p + n, sizeof *vt, err), *s, tail = 0;
    int failed;

    if (!d || !u || !vt)
        return -1;
    s = u + q * n;
    widen(d, a->d, m * n);
    failed = LAPACKE_dgesdd(LAPACK_COL_MAJOR, 'S', (int)q, (int)p, d, (int)q, s, u, (int)q, vt, (int)n);
    if (failed) { /* known to happen on rare matrices; QR iteration is slower and surer */
        widen(d, a->d, m * n);
        failed = LAPACKE_dgesvd(LAPACK_COL_MAJOR, 'S', 'S', (int)q, (int)p, d, (int)q, s, u, (int)q, vt, (int)n, vt + n * p);
    }
    if (failed)
        return err_set(err, "neither gesdd nor gesvd could decompose a matrix of %zu x %zu (LAPACK says %d)", p, q, failed);
    for (size_t i = 0; i < k; i++) {
        float *from_u = a->flipped ? y + i * m : v + i * n, *from_vt = a->flipped ? v + i * n : y + i * m;
        double scale_u = a->flipped ? s[i] : 1, scale_vt = a->flipped ? 1 : s[i];

        for (size_t j = 0; j < q; j++)
            from_u[j] = (float)(scale_u * u[i * q + j]);
        for (size_t j = 0; j < p; j++)
            from_vt[j] = (float)(scale_vt * vt[j * n + i]);
    }
    for (size_t i = k; i < n; i++)
        tail += s[i] * s[i];
    info->method = SVD_LAPACK;
    info->error = info->least = tail;
    info->more_count = n - k < SVD_MORE ? n - k : SVD_MORE;
    for (size_t i = 0; i < info->more_count; i++)
        info->more[i] = (float)s[k + i];
    return 0;
}

int svd_by_lapack(struct svd *w, const struct svd_matrix *a, size_t k, double tolerance, float *v, float *y,
                  struct svd_info *info, struct err *err)
{
    double total = svd_energy(a->d, a->rows * a->cols);
    int done = by_gram(w, a, k, tolerance, total, v, y, info, err);

    if (done != 0)
        return done < 0 ? -1 : 0;
    return by_svd(w, a, k, v, y, info, err);
}
