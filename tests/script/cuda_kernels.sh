#!/bin/sh
# Every CUDA kernel, on the CPU (tests/cuda): against ref, with threads in both orders.
set -eu
run=$BUILD/tests/cuda/emulated
[ -x "$run" ] || { echo "no C++ compiler was found, so CUDA kernels are not emulated"; exit 77; }
exec "$run"
