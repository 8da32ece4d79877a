/* Threads of a block as fibres: switched by longjmp, which asks the kernel nothing; made by makecontext. */
#include <csetjmp>
#include <cstdio>
#include <cstdlib>
#include <ucontext.h>
#include <vector>

#include "offload/cuda/device.cuh"
#include "tests/cuda/emulate/emulate.h"

dim3 threadIdx, blockIdx, blockDim, gridDim;
int emulate_falling;

enum state { READY, AT_WARP, AT_BLOCK, DONE };
enum { STACK = 256 * 1024, MAX_THREADS = 1024, MAX_SHARED = 232448, MAX_EXCHANGE = 32 };

struct fibre {
    ucontext_t start;
    jmp_buf at;
    bool begun;
    enum state state;
    unsigned exchanges;
    char *stack;
};

static fibre fibres[MAX_THREADS];
static jmp_buf scheduler;
static unsigned current;
static const std::function<void()> *body;
alignas(128) static char dynamic_shared[MAX_SHARED];
static char slots[MAX_THREADS / 32][2][32 * MAX_EXCHANGE];

char *shared_memory()
{
    return dynamic_shared;
}

static void wait_as(enum state s)
{
    fibres[current].state = s;
    if (_setjmp(fibres[current].at) == 0)
        _longjmp(scheduler, 1);
}

void __syncthreads()
{
    wait_as(AT_BLOCK);
}

void sync_warp()
{
    wait_as(AT_WARP);
}

const char *emulate_exchange(const void *mine, size_t bytes)
{
    char *slot = slots[current / 32][fibres[current].exchanges++ % 2];

    if (bytes > MAX_EXCHANGE)
        abort();
    memcpy(slot + current % 32 * bytes, mine, bytes);
    sync_warp();
    return slot;
}

static void enter()
{
    (*body)();
    fibres[current].state = DONE;
    _longjmp(scheduler, 1);
}

static void resume(unsigned i)
{
    fibre &f = fibres[i];

    current = i;
    threadIdx = dim3(i);
    if (_setjmp(scheduler) != 0)
        return;
    if (f.begun)
        _longjmp(f.at, 1);
    f.begun = true;
    setcontext(&f.start);
}

static void prepare(unsigned block)
{
    for (unsigned i = 0; i < block; i++) {
        fibre &f = fibres[i];

        if (!f.stack)
            f.stack = static_cast<char *>(malloc(STACK));
        if (!f.stack || getcontext(&f.start) != 0)
            abort();
        f.start.uc_stack.ss_sp = f.stack;
        f.start.uc_stack.ss_size = STACK;
        makecontext(&f.start, enter, 0);
        f.begun = false;
        f.state = READY;
        f.exchanges = 0;
    }
}

/* Makes every thread of first .. first + n - 1 ready when all of them that still run wait in the same way. */
static bool release(unsigned first, unsigned n, enum state s)
{
    unsigned waiting = 0, done = 0;

    for (unsigned i = first; i < first + n; i++) {
        waiting += fibres[i].state == s;
        done += fibres[i].state == DONE;
    }
    if (waiting == 0 || waiting + done < n)
        return false;
    for (unsigned i = first; i < first + n; i++)
        if (fibres[i].state == s)
            fibres[i].state = READY;
    return true;
}

static void run_block(unsigned block)
{
    prepare(block);
    for (;;) {
        bool moved = false;

        for (unsigned i = 0; i < block; i++) {
            unsigned k = emulate_falling ? block - 1 - i : i;

            if (fibres[k].state == READY) {
                resume(k);
                moved = true;
            }
        }
        for (unsigned i = 0; i < block; i += 32)
            moved |= release(i, std::min(32u, block - i), AT_WARP);
        moved |= release(0, block, AT_BLOCK);
        if (!moved)
            break;
    }
    for (unsigned i = 0; i < block; i++)
        if (fibres[i].state != DONE) {
            fprintf(stderr, "emulate: thread %u of block %u waits for ever\n", i, blockIdx.x);
            abort();
        }
}

int emulate_launch(const std::function<void()> &thread, dim3 grid, unsigned block, size_t shared)
{
    if (block == 0 || block > MAX_THREADS || shared > shared_limit() || grid.x == 0 || grid.y == 0 || grid.z == 0 ||
        grid.y > 65535 || grid.z > 65535)
        return cudaErrorInvalidValue;
    body = &thread;
    blockDim = dim3(block);
    gridDim = grid;
    for (unsigned z = 0; z < grid.z; z++)
        for (unsigned y = 0; y < grid.y; y++)
            for (unsigned x = 0; x < grid.x; x++) {
                blockIdx = dim3(x, y, z);
                memset(dynamic_shared, 0xff, shared);
                run_block(block);
            }
    return cudaSuccess;
}
