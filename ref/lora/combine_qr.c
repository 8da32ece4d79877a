/* combine_best() where the Gram matrices are too ill-conditioned: Householder QR of both sides and the SVD of the core, in f64.
 */
#include <cblas.h>
#include <lapacke.h>
#include <math.h>
#include <string.h>

#include "ref/base/dtype.h"
#include "ref/lora/combine_work.h"

/* q [rows, r] column-major in f64 = U diag(s) or D', then its QR: the triangle stays above, Householder vectors below. */
static int factorise(double *q, double *tau, const struct stack *k, bool down, struct err *err)
{
    size_t r = k->r, rows = down ? k->in : k->out;
    const float *x = down ? k->d : k->u;

    for (size_t j = 0; j < r; j++)
        for (size_t i = 0; i < rows; i++) {
            double v = !x ? i == j : down ? (double)x[j * rows + i] : (double)x[i * r + j];

            q[j * rows + i] = down ? v : v * k->s[j];
        }
    if (LAPACKE_dgeqrf(LAPACK_COL_MAJOR, (int)rows, (int)r, q, (int)rows, tau))
        return err_set(err, "the QR factorisation of a LoRA factor failed; report this with the files");
    return 0;
}

/* q's orthonormal basis times coef [r, rank] (column-major), both sides scaled by the roots of sv. p [rows, rank]. */
static int from_basis(double *p, const double *q, const double *tau, size_t rows, size_t r, const double *coef, size_t step,
                      size_t rank, const double *sv, struct err *err)
{
    for (size_t j = 0; j < rank; j++)
        for (size_t i = 0; i < rows; i++)
            p[j * rows + i] = i < r ? coef[j * (step == 1 ? r : 1) + i * step] * sqrt(sv[j]) : 0;
    if (LAPACKE_dormqr(LAPACK_COL_MAJOR, 'L', 'N', (int)rows, (int)rank, (int)r, q, (int)rows, tau, p, (int)rows))
        return err_set(err, "the product with a LoRA factor's basis failed; report this with the files");
    return 0;
}

int combine_by_qr(float *up, float *down, struct combined *c, struct stack *k, const struct rank_rule *rule, struct err *err)
{
    size_t r = k->r, out = k->out, in = k->in;
    double *qu = combine_take(k, out * r, sizeof *qu), *qd = combine_take(k, in * r, sizeof *qd),
           *tau = combine_take(k, 2 * r, sizeof *tau);
    double *core = combine_take(k, r * r, sizeof *core), *x = combine_take(k, r * r, sizeof *x),
           *yt = combine_take(k, r * r, sizeof *yt);
    double *keep = combine_take(k, r * r, sizeof *keep), *sv = combine_take(k, r, sizeof *sv),
           *super = combine_take(k, r, sizeof *super), *p;

    if (factorise(qu, tau, k, false, err) || factorise(qd, tau + r, k, true, err))
        return -1;
    for (size_t j = 0; j < r; j++)
        for (size_t i = 0; i < r; i++)
            core[j * r + i] = i <= j ? qu[j * out + i] : 0;
    cblas_dtrmm(CblasColMajor, CblasRight, CblasUpper, CblasTrans, CblasNonUnit, (int)r, (int)r, 1, qd, (int)in, core, (int)r);
    memcpy(keep, core, r * r * sizeof *keep);
    if (LAPACKE_dgesdd(LAPACK_COL_MAJOR, 'S', (int)r, (int)r, core, (int)r, sv, x, (int)r, yt, (int)r) &&
        LAPACKE_dgesvd(LAPACK_COL_MAJOR, 'S', 'S', (int)r, (int)r, keep, (int)r, sv, x, (int)r, yt, (int)r, super))
        return err_set(err, "the singular values of a module did not converge; report this with the files");
    combine_choose(c, rule, sv, k, (double)r * 0x1p-52);
    p = combine_take(k, (out > in ? out : in) * c->rank, sizeof *p);
    for (size_t j = 0; j < c->rank; j++) { /* the sign convention of the other route: right vectors decide */
        size_t top = 0;

        for (size_t i = 1; i < r; i++)
            if (fabs(yt[i * r + j]) > fabs(yt[top * r + j]))
                top = i;
        if (yt[top * r + j] < 0) {
            cblas_dscal((int)r, -1, yt + j, (int)r);
            cblas_dscal((int)r, -1, x + j * r, 1);
        }
    }
    if (from_basis(p, qu, tau, out, r, x, 1, c->rank, sv, err))
        return -1;
    for (size_t i = 0; i < out; i++)
        for (size_t j = 0; j < c->rank; j++)
            up[i * c->rank + j] = (float)p[j * out + i];
    if (from_basis(p, qd, tau + r, in, r, yt, r, c->rank, sv, err))
        return -1;
    dtype_convert(down, DT_F32, p, DT_F64, in * c->rank);
    return 0;
}
