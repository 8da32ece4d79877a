/* How long the truncated SVDs of a whole extraction take: the 264 matrices of SD1.5, one thread.
 *
 * usage: bench_svd [RANK ...]      (default 4 128)
 *
 * One run a distinct shape, times its count. The matrices are a product of rank 16 with singular values falling by 0.85, norm
 * 10, plus white noise of norm 1, as the tuned twin of make_sd.py differs from its base. "equivalent" is the work that a direct
 * method would do at least, 2 m n min(m, n): a figure to compare times with, not a count of operations that were done. */
#include <cblas.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "ref/base/thread.h"
#include "ref/lora/svd.h"

static const struct {
    size_t m, n;
    int count;
} shapes[] = {
    {768, 768, 48},   {3072, 768, 12},   {768, 3072, 12},  {320, 320, 40},  {320, 768, 10},  {2560, 320, 5}, {320, 1280, 5},
    {640, 640, 40},   {640, 768, 10},    {5120, 640, 5},   {640, 2560, 5},  {1280, 1280, 48}, {1280, 768, 12},
    {10240, 1280, 6}, {1280, 5120, 6},
};

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static uint64_t state = 1;

/* Sum of four uniforms: near enough to normal, variance 1 */
static float normal(void)
{
    double sum = 0;

    for (int i = 0; i < 4; i++) {
        state = state * 6364136223846793005ULL + 1442695040888963407ULL;
        sum += (double)(int32_t)(state >> 32) / 2147483648.0;
    }
    return (float)(sum * 0.8660254);
}

static void fill(float *d, size_t m, size_t n)
{
    float *u = malloc(16 * m * sizeof *u), *v = malloc(16 * n * sizeof *v);
    double norm = sqrt((1 - pow(0.85, 32)) / (1 - 0.85 * 0.85)), area = sqrt((double)m * (double)n);

    for (size_t i = 0; u && i < 16 * m; i++)
        u[i] = normal() * (float)(10 * pow(0.85, (double)(i % 16)) / norm / area);
    for (size_t i = 0; v && i < 16 * n; i++)
        v[i] = normal();
    for (size_t i = 0; i < m * n; i++)
        d[i] = normal() / (float)area;
    if (u && v)
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)m, (int)n, 16, 1, u, 16, v, (int)n, 1, d, (int)n);
    free(u);
    free(v);
}

static int bench(size_t rank)
{
    double all = 0, flops = 0, worst = 0;
    struct err err = {0};
    struct svd *w = svd_new(&err);

    printf("rank %zu, one thread\n%-14s %5s %10s %8s %10s  %s\n", rank, "matrix", "count", "ms each", "s", "error/least", "way");
    for (size_t i = 0; w && i < sizeof shapes / sizeof *shapes; i++) {
        size_t m = shapes[i].m, n = shapes[i].n, least = m < n ? m : n, k = rank < least ? rank : least;
        float *d = malloc(m * n * sizeof *d), *up = malloc(m * k * sizeof *up), *down = malloc(n * k * sizeof *down),
              *s = malloc(k * sizeof *s);
        double best = HUGE_VAL, ratio;
        struct svd_info info;
        char name[32];

        for (int r = 0; d && up && down && s && r < 3; r++) {
            double t;

            fill(d, m, n);
            t = now();
            if (svd_truncate(w, d, m, n, k, NULL, up, s, down, &info, &err) != 0) {
                fprintf(stderr, "bench_svd: %s\n", err.msg);
                return -1;
            }
            t = now() - t;
            best = t < best ? t : best;
        }
        ratio = sqrt(info.error / info.least);
        snprintf(name, sizeof name, "%zux%zu", m, n);
        printf("%-14s %5d %10.2f %8.3f %10.6f  %s\n", name, shapes[i].count, best * 1e3, best * shapes[i].count, ratio,
               svd_method_name(info.method));
        all += best * shapes[i].count;
        flops += 2.0 * (double)m * (double)n * (double)least * shapes[i].count;
        worst = fmax(worst, ratio);
        free(d);
        free(up);
        free(down);
        free(s);
    }
    printf("all 264: %.2f s, %.0f GFLOP/s equivalent, error/least at most %.6f\n\n", all, flops / all / 1e9, worst);
    svd_free(w);
    return 0;
}

int main(int argc, char **argv)
{
    thread_init(1);
    if (argc < 2)
        return bench(4) != 0 || bench(128) != 0;
    for (int i = 1; i < argc; i++)
        if (atoi(argv[i]) < 1 || bench((size_t)atoi(argv[i])) != 0)
            return 1;
    return 0;
}
