/* cuBLASLt computes column-major: a row-major matrix is its transpose there. So y^T = op(w)^T op(x)^T: w is the first factor.
 *
 * How to compute a product is asked once per shape (the first answer of the library's heuristic, so that two runs use the same
 * way and give the same bytes) and kept. */
#include "offload/cuda/gemm.h"

#include <stdlib.h>
#include <string.h>

#include "ref/base/mem.h"

/* What a way of computing depends on; compared as bytes, so it is zeroed before it is filled. */
struct key {
    size_t m, n, k, ldx, ldw, ldy;
    unsigned align; /* the least alignment of the pointers, up to 256 */
    bool x_turned, w_turned, y_f32, bias, adds;
};

struct entry {
    struct key key;
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t a, b, d;
    cublasLtMatmulAlgo_t algo;
};

static struct entry *entries;
static size_t count, cap;

static int failed(cublasStatus_t status, const struct gemm_call *g, struct err *err)
{
    return err_set(err, "cuBLASLt cannot multiply [%zu, %zu] by [%zu, %zu]: %s; update CUDA, or use --device cpu", g->m, g->k, g->k,
                   g->n, cublasLtGetStatusString(status));
}

static cudaDataType_t data_type(void)
{
    return state.type == KERNEL_F32 ? CUDA_R_32F : state.type == KERNEL_BF16 ? CUDA_R_16BF : CUDA_R_16F;
}

static cublasStatus_t set_transposed(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t which, bool yes)
{
    cublasOperation_t op = yes ? CUBLAS_OP_T : CUBLAS_OP_N;

    return cublasLtMatmulDescSetAttribute(desc, which, &op, sizeof op);
}

/* Stored rows x cols, row length ld, as the column-major cols x rows that it is. */
static cublasStatus_t layout(cublasLtMatrixLayout_t *out, cudaDataType_t type, size_t rows, size_t cols, size_t ld)
{
    return cublasLtMatrixLayoutCreate(out, type, cols, rows, (int64_t)ld);
}

static cublasStatus_t describe(struct entry *e, const struct gemm_call *g)
{
    cudaDataType_t t = data_type(), y = g->y_f32 ? CUDA_R_32F : t;
    cublasComputeType_t compute = state.tf32 ? CUBLAS_COMPUTE_32F_FAST_TF32 : CUBLAS_COMPUTE_32F;
    cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
    cublasStatus_t s = cublasLtMatmulDescCreate(&e->desc, compute, CUDA_R_32F);

    if (s == CUBLAS_STATUS_SUCCESS)
        s = set_transposed(e->desc, CUBLASLT_MATMUL_DESC_TRANSA, g->w_turned);
    if (s == CUBLAS_STATUS_SUCCESS)
        s = set_transposed(e->desc, CUBLASLT_MATMUL_DESC_TRANSB, g->x_turned);
    if (s == CUBLAS_STATUS_SUCCESS && g->bias)
        s = cublasLtMatmulDescSetAttribute(e->desc, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, sizeof epilogue);
    if (s == CUBLAS_STATUS_SUCCESS && g->bias)
        s = cublasLtMatmulDescSetAttribute(e->desc, CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, &y, sizeof y);
    if (s == CUBLAS_STATUS_SUCCESS)
        s = layout(&e->a, t, g->w_turned ? g->n : g->k, g->w_turned ? g->k : g->n, g->ldw);
    if (s == CUBLAS_STATUS_SUCCESS)
        s = layout(&e->b, t, g->x_turned ? g->k : g->m, g->x_turned ? g->m : g->k, g->ldx);
    return s == CUBLAS_STATUS_SUCCESS ? layout(&e->d, y, g->m, g->n, g->ldy) : s;
}

static unsigned alignment(const struct gemm_call *g)
{
    uintptr_t all = (uintptr_t)g->x | (uintptr_t)g->w | (uintptr_t)g->y | (uintptr_t)g->c | 256;

    return (unsigned)(all & -all);
}

static cublasStatus_t choose(struct entry *e)
{
    size_t workspace = STATE_WORKSPACE;
    cublasLtMatmulPreference_t p = NULL;
    cublasLtMatmulHeuristicResult_t best;
    unsigned align = e->key.align;
    int found = 0;
    cublasStatus_t s = cublasLtMatmulPreferenceCreate(&p);

    if (s == CUBLAS_STATUS_SUCCESS)
        s = cublasLtMatmulPreferenceSetAttribute(p, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace);
    for (int i = 0; i < 4 && s == CUBLAS_STATUS_SUCCESS; i++) {
        static const cublasLtMatmulPreferenceAttributes_t which[] = {
            CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
            CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};

        s = cublasLtMatmulPreferenceSetAttribute(p, which[i], &align, sizeof align);
    }
    if (s == CUBLAS_STATUS_SUCCESS)
        s = cublasLtMatmulAlgoGetHeuristic(state.lt, e->desc, e->a, e->b, e->d, e->d, p, 1, &best, &found);
    if (s == CUBLAS_STATUS_SUCCESS && found == 0)
        s = CUBLAS_STATUS_NOT_SUPPORTED;
    if (s == CUBLAS_STATUS_SUCCESS)
        e->algo = best.algo;
    if (p)
        cublasLtMatmulPreferenceDestroy(p);
    return s;
}

static void drop(struct entry *e)
{
    if (e->desc)
        cublasLtMatmulDescDestroy(e->desc);
    if (e->a)
        cublasLtMatrixLayoutDestroy(e->a);
    if (e->b)
        cublasLtMatrixLayoutDestroy(e->b);
    if (e->d)
        cublasLtMatrixLayoutDestroy(e->d);
}

static struct entry *find(const struct gemm_call *g, struct err *err)
{
    struct entry e;
    cublasStatus_t s;

    memset(&e, 0, sizeof e);
    e.key.m = g->m, e.key.n = g->n, e.key.k = g->k, e.key.ldx = g->ldx, e.key.ldw = g->ldw, e.key.ldy = g->ldy;
    e.key.align = alignment(g);
    e.key.x_turned = g->x_turned, e.key.w_turned = g->w_turned, e.key.y_f32 = g->y_f32;
    e.key.bias = g->bias != NULL, e.key.adds = g->beta != 0;
    for (size_t i = 0; i < count; i++)
        if (memcmp(&entries[i].key, &e.key, sizeof e.key) == 0)
            return &entries[i];
    if (mem_grow(&entries, &cap, count, sizeof *entries, "products", err) < 0)
        return NULL;
    s = describe(&e, g);
    if (s == CUBLAS_STATUS_SUCCESS)
        s = choose(&e);
    if (s != CUBLAS_STATUS_SUCCESS) {
        drop(&e);
        failed(s, g, err);
        return NULL;
    }
    memcpy(&entries[count], &e, sizeof e); /* an assignment need not copy what lies between the key's fields */
    return &entries[count++];
}

int gemm_run(const struct gemm_call *g, struct err *err)
{
    const void *c = g->beta != 0 ? g->c : g->y;
    struct entry *e;
    cublasStatus_t s = CUBLAS_STATUS_SUCCESS;

    if (g->m == 0 || g->n == 0)
        return 0;
    e = find(g, err);
    if (!e)
        return -1;
    if (g->bias)
        s = cublasLtMatmulDescSetAttribute(e->desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &g->bias, sizeof g->bias);
    if (s == CUBLAS_STATUS_SUCCESS)
        s = cublasLtMatmul(state.lt, e->desc, &g->alpha, g->w, e->a, g->x, e->b, &g->beta, c, e->d, g->y, e->d, &e->algo,
                           state.workspace, STATE_WORKSPACE, state.stream);
    return s == CUBLAS_STATUS_SUCCESS ? 0 : failed(s, g, err);
}

void gemm_close(void)
{
    for (size_t i = 0; i < count; i++)
        drop(&entries[i]);
    free(entries);
    entries = NULL;
    count = cap = 0;
}
