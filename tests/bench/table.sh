#!/bin/sh
# usage: [MODEL=FILE] [PEER_PYTHON=PYTHON] [ROWS=WORD] table.sh BENCH_UNET
#
# One table of whole parts of Stable Diffusion 1.5 at 512x512: ours in f32 and, where the processor has it, bf16; PyTorch and
# OpenVINO beside it where PEER_PYTHON has them. MODEL is a full-size checkpoint; without one, PEER_PYTHON makes a random one in
# build/bench. ROWS: only rows whose name has WORD in it.
set -u
bench=$1
here=$(dirname "$0")
python=${PEER_PYTHON:-}
model=${MODEL:-}

if [ -z "$model" ]; then
    model=build/bench/random.safetensors
    if [ ! -f $model ]; then
        if [ -z "$python" ]; then
            echo "whole models: skipped; give MODEL=FILE (a Stable Diffusion 1.x checkpoint), or PEER_PYTHON=python3 with torch"
            exit 0
        fi
        mkdir -p build/bench && "$python" "$here/make_sd.py" $model --dtype fp16 || exit 1
    fi
fi

peer() { # peer ARGS: seconds and GiB, or a dash
    out=$("$python" "$here/peer_model.py" "$@" 2> /dev/null | tail -n 1)
    echo "${out:-               -}"
}

# row NAME ARGS-OF-OURS -- ARGS-OF-PEERS
row() {
    name=$1
    shift
    case $name in *"${ROWS:-}"*) ;; *) return ;; esac
    ours=
    while [ "$1" != -- ]; do ours="$ours $1" && shift; done
    shift
    # shellcheck disable=SC2086
    result=$("$bench" "$model" $ours --row 2>&1) || { printf '%-34s %s\n' "$name" "$result" && return; }
    if [ -z "$python" ]; then
        printf '%-34s %s\n' "$name" "$result"
        return
    fi
    case $1 in unet) other=$(peer "$@" --openvino) ;; *) other='               -' ;; esac
    printf '%-34s %s | %s | %s\n' "$name" "$result" "$(peer "$@")" "$other"
}

printf '%-34s %10s %14s %6s %10s' 'part, 512x512' seconds 'arithmetic' 'of peak' memory
if [ -n "$python" ]; then printf ' | %20s | %20s' 'PyTorch' 'OpenVINO'; fi
echo
row 'U-Net, batch 1' unet -- unet
row 'U-Net, batch 2' unet --batch 2 -- unet --batch 2
row 'U-Net, batch 1, bf16' unet --device cpu:bf16 -- unet --bf16
row 'U-Net, batch 2, bf16' unet --batch 2 --device cpu:bf16 -- unet --batch 2 --bf16
row 'text encoder' te --runs 6 -- te
row 'text encoder, bf16' te --runs 6 --device cpu:bf16 -- te --bf16
row 'VAE decode' decode -- decode
row 'VAE encode' encode -- encode
row 'training step' step --train 4 -- step
row 'training step, bf16' step --train 4 --device cpu:bf16 -- step --bf16
row 'training step, checkpointed' step --train 4 --checkpoint -- step --checkpoint
row 'training step, 256x256' step --train 4 --size 256 -- step --size 256
