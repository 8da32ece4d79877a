/* Normals from Philox4x32-10 (Salmon et al. 2011), number by number as ref/base/rng.c makes them: uniforms rounded to f32, the
 * rest in f64. */
#include "offload/cuda/elementwise.cuh"

__device__ inline void philox(uint32_t c[4], uint64_t key)
{
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);

    for (int round = 0; round < 10; round++) {
        uint32_t high0 = multiply_high(0xd2511f53u, c[0]), low0 = 0xd2511f53u * c[0];
        uint32_t high1 = multiply_high(0xcd9e8d57u, c[2]), low1 = 0xcd9e8d57u * c[2];

        c[0] = high1 ^ c[1] ^ k0;
        c[1] = low1;
        c[2] = high0 ^ c[3] ^ k1;
        c[3] = low0;
        k0 += 0x9e3779b9u;
        k1 += 0xbb67ae85u;
    }
}

struct PhiloxNormal {
    uint64_t seed, offset;
    float *x;
    template <int N> __device__ void run(size_t first) const
    {
        constexpr double TWO_PI = 6.283185307179586476925286766559;

        for (size_t i = first; i < first + N; i++) {
            uint32_t c[4] = {(uint32_t)offset, (uint32_t)(offset >> 32), (uint32_t)i, (uint32_t)((uint64_t)i >> 32)};
            float u, v;

            philox(c, seed);
            u = fmaf((float)c[0], 0x1p-32f, 0x1p-33f);
            v = fmaf((float)c[1], (float)(TWO_PI * 0x1p-32), (float)(TWO_PI * 0x1p-33));
            x[i] = (float)(sqrt(-2 * log((double)u)) * sin((double)v));
        }
    }
};

int kernel_philox_normal(cudaStream_t s, uint64_t seed, uint64_t offset, float *x, size_t n)
{
    return each<float>(s, PhiloxNormal{seed, offset, x}, n);
}
