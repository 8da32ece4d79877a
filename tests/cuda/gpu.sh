#!/bin/sh
# The kernel test (tests/cuda/kernels.cpp) on this machine's GPU: builds build/kernels and runs it with the arguments given:
#     sh tests/cuda/gpu.sh --full              every kernel, sizes of real models too, with times
#     sh tests/cuda/gpu.sh --untimed lora      cases with that word, called twice each
# then, for instance: compute-sanitizer --tool racecheck build/kernels --untimed attention
set -eu
cd "$(dirname "$0")/../.."
nvcc=$(sed -n 's/^NVCC = //p' config.mak)
[ -n "$nvcc" ] || { echo "there is no CUDA toolkit; install one and run ./configure again" >&2; exit 77; }
make build/release/liblora.a > /dev/null
mkdir -p build/kernels.o
{
    for f in offload/cuda/*.cu tests/cuda/device_gpu.cu; do echo "$nvcc -std=c++17 -O3 -lineinfo -arch=native -I. -c $f"; done
    for f in tests/cuda/*.cpp; do echo "$nvcc -std=c++17 -O2 -I. -c $f"; done
} | while read -r command; do
    f=${command##* }
    echo "$command -o build/kernels.o/$(basename "$f").o"
done | xargs -P "$(nproc)" -I '{}' sh -c '{}'
# shellcheck disable=SC2046
"$nvcc" -o build/kernels build/kernels.o/*.o build/release/liblora.a -Xcompiler -fopenmp $(sed -n 's/^DEP_LIBS =//p' config.mak)
exec build/kernels "$@"
