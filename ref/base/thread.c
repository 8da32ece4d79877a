/* A pool: workers sleep until there is work, join the job that is open, take pieces until none is left. A worker that does not
 * come in time (the machine is busy with something else) is not waited for: the caller takes its pieces. Between two jobs,
 * workers look for the next one for some microseconds before they sleep, since a graph is a chain of short jobs. */
#include "ref/base/thread.h"

#include <cblas.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>

#if defined(__x86_64__) || defined(__i386__)
#define RELAX() __builtin_ia32_pause()
#else
#define RELAX() ((void)0)
#endif

enum { SPINS = 2000, MOST_WORKERS = 1023 }; /* some 30 microseconds */

static int threads;
static _Thread_local int index_here;
static _Thread_local bool inside;

static struct {
    pthread_mutex_t lock; /* of everything here that is not atomic, except what only the owner of the job writes before it opens */
    pthread_cond_t wake, done;
    int workers;            /* started */
    atomic_uint generation; /* grows with each job */
    bool taken;             /* somebody's job is in here */
    bool open;              /* workers may join */
    atomic_int active;      /* workers in the job */
    size_t n;
    thread_fn *fn;
    void *ctx;
    atomic_size_t next, failed; /* next piece; lowest that failed, n when none has */
    struct err first;
} pool = {.lock = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER, .done = PTHREAD_COND_INITIALIZER};

static int processors(void)
{
    cpu_set_t set;

    return sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0 ? CPU_COUNT(&set) : 1;
}

void thread_init(int count)
{
    threads = count > 0 ? count : processors();
    threads = threads < MOST_WORKERS ? threads : MOST_WORKERS;
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
    return index_here;
}

/* Takes pieces of the job until none is left; after an error only those before it. */
static void take_pieces(void)
{
    size_t i;

    inside = true;
    while ((i = atomic_fetch_add(&pool.next, 1)) < pool.n) {
        struct err mine = {0};

        if (i > atomic_load(&pool.failed) || pool.fn(pool.ctx, i, &mine) == 0)
            continue;
        pthread_mutex_lock(&pool.lock);
        if (i < atomic_load(&pool.failed)) {
            pool.first = mine;
            atomic_store(&pool.failed, i);
        }
        pthread_mutex_unlock(&pool.lock);
    }
    inside = false;
}

/* Waits for a job after `seen`; returns its generation. */
static unsigned next_job(unsigned seen)
{
    for (int i = 0; i < SPINS; i++) {
        if (atomic_load(&pool.generation) != seen)
            return atomic_load(&pool.generation);
        RELAX();
    }
    pthread_mutex_lock(&pool.lock);
    while (atomic_load(&pool.generation) == seen)
        pthread_cond_wait(&pool.wake, &pool.lock);
    seen = atomic_load(&pool.generation);
    pthread_mutex_unlock(&pool.lock);
    return seen;
}

static bool join_job(void)
{
    bool joined;

    pthread_mutex_lock(&pool.lock);
    joined = pool.open && index_here < threads;
    if (joined)
        atomic_fetch_add(&pool.active, 1);
    pthread_mutex_unlock(&pool.lock);
    return joined;
}

static void *worker(void *arg)
{
    unsigned seen = 0;

    index_here = (int)(size_t)arg;
    for (;;) {
        seen = next_job(seen);
        if (!join_job())
            continue;
        take_pieces();
        pthread_mutex_lock(&pool.lock);
        if (atomic_fetch_sub(&pool.active, 1) == 1)
            pthread_cond_signal(&pool.done);
        pthread_mutex_unlock(&pool.lock);
    }
    return NULL;
}

/* As many workers as are wanted and the system gives: fewer only make it slower. */
static void start_workers(int wanted)
{
    pthread_attr_t attr;

    pthread_attr_init(&attr);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    while (pool.workers < wanted) {
        pthread_t id;

        if (pthread_create(&id, &attr, worker, (void *)(size_t)(pool.workers + 1)) != 0)
            break;
        pool.workers++;
    }
    pthread_attr_destroy(&attr);
}

/* Opens the job; false when the pool is taken by a caller in another thread. */
static bool open_job(size_t n, thread_fn *fn, void *ctx)
{
    bool mine;

    pthread_mutex_lock(&pool.lock);
    mine = !pool.taken;
    if (mine) {
        pool.taken = pool.open = true;
        pool.n = n;
        pool.fn = fn;
        pool.ctx = ctx;
        atomic_store(&pool.next, 0);
        atomic_store(&pool.failed, n);
        start_workers(threads - 1);
        atomic_fetch_add(&pool.generation, 1);
        pthread_cond_broadcast(&pool.wake);
    }
    pthread_mutex_unlock(&pool.lock);
    return mine;
}

/* Nobody joins any more; waits for those inside. Returns the lowest piece that failed, its error in *first. */
static size_t close_job(struct err *first)
{
    size_t failed;

    pthread_mutex_lock(&pool.lock);
    pool.open = false;
    pthread_mutex_unlock(&pool.lock);
    for (int i = 0; i < SPINS && atomic_load(&pool.active) > 0; i++)
        RELAX();
    pthread_mutex_lock(&pool.lock);
    while (atomic_load(&pool.active) > 0)
        pthread_cond_wait(&pool.done, &pool.lock);
    failed = atomic_load(&pool.failed);
    *first = pool.first;
    pool.taken = false;
    pthread_mutex_unlock(&pool.lock);
    return failed;
}

/* In this thread alone; calls from within run here, too. */
static int run_serially(size_t n, thread_fn *fn, void *ctx, struct err *err)
{
    bool was_inside = inside;
    int rc = 0;

    inside = true;
    for (size_t i = 0; i < n && rc == 0; i++) {
        struct err mine = {0};

        rc = fn(ctx, i, &mine) == 0 ? 0 : -1;
        if (rc < 0)
            *err = mine;
    }
    inside = was_inside;
    return rc;
}

int thread_for(size_t n, thread_fn *fn, void *ctx, struct err *err)
{
    struct err first;

    if (n <= 1 || thread_count() == 1 || inside || !open_job(n, fn, ctx))
        return run_serially(n, fn, ctx, err);
    take_pieces();
    if (close_job(&first) == n)
        return 0;
    *err = first;
    return -1;
}
