#include "ref/base/thread.h"

#include <cblas.h>
#include <omp.h>

static int threads;

void thread_init(int count)
{
    threads = count > 0 ? count : omp_get_num_procs();
    omp_set_dynamic(0);
    omp_set_num_threads(threads);
    openblas_set_num_threads(1);
}

int thread_count(void)
{
    if (threads == 0)
        thread_init(0);
    return threads;
}

int thread_index(void)
{
    return omp_get_thread_num();
}

int thread_for(size_t n, thread_fn *fn, void *ctx, struct err *err)
{
    size_t failed = n;
    struct err first = {0};

#pragma omp parallel for schedule(dynamic, 1) num_threads(thread_count()) if (!omp_in_parallel())
    for (size_t i = 0; i < n; i++) {
        struct err mine = {0};
        size_t worst;

#pragma omp atomic read
        worst = failed;
        if (i > worst || fn(ctx, i, &mine) == 0)
            continue;
#pragma omp critical(thread_for_error)
        if (i < failed) {
            first = mine;
#pragma omp atomic write
            failed = i;
        }
    }
    if (failed == n)
        return 0;
    *err = first;
    return -1;
}
