/* Convolution as a product whose left side is never laid out: where its elements lie. Channels last. */
#ifndef OFFLOAD_CUDA_CONV_CUH
#define OFFLOAD_CUDA_CONV_CUH

#include "offload/cuda/common.cuh"

/* Rows of the product are pixels [n, oh, ow]; its columns (tap, channel) of the picture [n, h, w, c] that patches are taken from:
 * x in a forward, dy in the gradient of x. */
struct Patches {
    int h, w, c, oh, ow, kw, stride, pad;
    bool back;

    /* Where tap k of pixel `out` lies along a dimension of `limit`; -1: outside. Forward: output o sees input o stride + k - pad.
     * Backward: input i was seen by output (i + pad - k) / stride, where that is whole. */
    __device__ int locate(int out, int k, int limit) const
    {
        int at = back ? out + pad - k : out * stride + k - pad;

        if (at < 0 || (back && at % stride != 0))
            return -1;
        at = back ? at / stride : at;
        return at < limit ? at : -1;
    }

    /* Index of channel 0 of the pixel that tap sees from row, or -1. */
    __device__ long long pixel(size_t row, int tap) const
    {
        int ox = (int)(row % ow), oy = (int)(row / ow % oh), n = (int)(row / ow / oh);
        int y = locate(oy, tap / kw, h), x = locate(ox, tap % kw, w);

        return y < 0 || x < 0 ? -1 : (((long long)n * h + y) * w + x) * c;
    }
};

inline bool conv_fits(const struct kernel_conv *c)
{
    size_t most = 1 << 30;

    return c->n > 0 && c->h > 0 && c->w > 0 && c->ci > 0 && c->oh > 0 && c->ow > 0 && c->co > 0 && c->kh > 0 && c->kw > 0 &&
           c->stride > 0 && c->n * c->h * c->w < most && c->n * c->oh * c->ow < most && c->kh * c->kw * c->ci < most &&
           c->kh * c->kw * c->co < most;
}

inline Patches conv_forward_patches(const struct kernel_conv *c)
{
    return {(int)c->h, (int)c->w, (int)c->ci, (int)c->oh, (int)c->ow, (int)c->kw, (int)c->stride, (int)c->pad, false};
}

inline Patches conv_backward_patches(const struct kernel_conv *c)
{
    return {(int)c->oh, (int)c->ow, (int)c->co, (int)c->h, (int)c->w, (int)c->kw, (int)c->stride, (int)c->pad, true};
}

/* conv_tensor.cu: types of 16 bits, channels in multiples of 8 */
bool conv_on_tensor_cores(const struct kernel_conv *c);
int conv_tensor_forward(cudaStream_t s, const struct kernel_conv *c);
int conv_tensor_backward_data(cudaStream_t s, const struct kernel_conv *c);

#endif
