/* Convolutions by cuDNN, which is opened at run time: without it the plug-in's own kernels do them. */
#ifndef OFFLOAD_CUDA_CUDNN_H
#define OFFLOAD_CUDA_CUDNN_H

#include "offload/cuda/state.h"

/* Opens the library and a handle for the open device; false when there is none that fits. version: of the library. */
bool cudnn_open(char version[32]);
void cudnn_close(void);

/* CUDNN_FORWARD: y [n, oh, ow, co] = what x and weight give; CUDNN_ADD: y += that; CUDNN_BACKWARD: dx of dy and weight. It looks
 * at the fields of *c that these name, all T. `post`: padding behind. 1: done; 0: cuDNN has no way to do this one; -1: it
 * failed. */
enum cudnn_kind { CUDNN_FORWARD, CUDNN_ADD, CUDNN_BACKWARD };
int cudnn_convolve(const struct kernel_conv *c, size_t post, enum cudnn_kind kind, struct err *err);

#endif
