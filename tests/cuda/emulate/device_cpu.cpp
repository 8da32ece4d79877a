#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "tests/cuda/device.h"
#include "tests/cuda/emulate/emulate.h"

enum { GUARD = 128 };

bool device_open(char name[256])
{
    snprintf(name, 256, "CUDA emulated on this processor");
    return true;
}

bool device_emulated(void)
{
    return true;
}

/* The size lies in front, guard bytes behind. */
void *device_new(size_t bytes)
{
    char *p = static_cast<char *>(aligned_alloc(64, (bytes + 64 + GUARD + 63) / 64 * 64));

    if (!p)
        abort();
    memcpy(p, &bytes, sizeof bytes);
    memset(p + 64, 0xff, bytes);
    memset(p + 64 + bytes, 0x5a, GUARD);
    return p + 64;
}

void device_free(void *q)
{
    char *p = static_cast<char *>(q) - 64;
    size_t bytes;

    memcpy(&bytes, p, sizeof bytes);
    for (size_t i = 0; i < GUARD; i++)
        if (p[64 + bytes + i] != 0x5a) {
            fprintf(stderr, "a kernel wrote behind its memory of %zu bytes\n", bytes);
            exit(1);
        }
    free(p);
}

void device_upload(void *dst, const void *src, size_t bytes)
{
    memcpy(dst, src, bytes);
}

void device_download(void *dst, const void *src, size_t bytes)
{
    memcpy(dst, src, bytes);
}

void device_poison(void *p, size_t bytes)
{
    memset(p, 0xff, bytes);
}

const char *device_wait(void)
{
    return nullptr;
}

void device_order(int falling)
{
    emulate_falling = falling;
}

static std::chrono::steady_clock::time_point from;

void device_start(void)
{
    from = std::chrono::steady_clock::now();
}

double device_stop(void)
{
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - from).count();
}
