/* Device memory for the kernel test: a GPU's (device_gpu.cu), or the CPU's with guard bytes where kernels are emulated
 * (emulate/device_cpu.cpp). */
#ifndef TESTS_CUDA_DEVICE_H
#define TESTS_CUDA_DEVICE_H

#include <stdbool.h>
#include <stddef.h>

bool device_open(char name[256]); /* false: there is none; name says why, or what it is */
bool device_emulated(void);
void *device_new(size_t bytes); /* filled with NaN */
void device_free(void *p);      /* ends the program where bytes behind the end were written */
void device_upload(void *dst, const void *src, size_t bytes);
void device_download(void *dst, const void *src, size_t bytes);
void device_poison(void *p, size_t bytes); /* NaN again */
const char *device_wait(void);             /* NULL, or what went wrong since the last call */
void device_order(int falling);            /* emulated threads: in which order */

/* Seconds between the two calls, by the device's clock. */
void device_start(void);
double device_stop(void);

#endif
