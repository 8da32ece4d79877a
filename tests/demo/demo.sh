#!/bin/sh
# make demo: the whole way on a small pair of checkpoints. $1 is the program, $2 the helper, $3 a folder for the files.
set -eu
lora=$1 helper=$2 dir=$3
mkdir -p "$dir"

run() {
    echo
    echo "\$ lora $*"
    "$lora" "$@"
}

echo "Two small checkpoints with the structure of Stable Diffusion 1.x (random weights): $dir/base.safetensors and"
echo "$dir/tuned.safetensors, which differs from it as after a fine-tuning."
"$helper" pair "$dir/base.safetensors" "$dir/tuned.safetensors"
cd "$dir"

run info base.safetensors
run extract --model_org base.safetensors --model_tuned tuned.safetensors --dim 32 --save_to difference.safetensors \
    --report report.json
"$helper" spectrum report.json
run info difference.safetensors --norms
run merge --sd_model base.safetensors --models difference.safetensors --ratios 1.0 --save_to merged.safetensors

echo
echo "How much of the fine-tuning is missing in the merged checkpoint?"
"$helper" error base.safetensors tuned.safetensors merged.safetensors

echo
echo "The files are in $dir. Try next:"
echo "  cd $dir"
echo "  $lora extract --model_org base.safetensors --model_tuned tuned.safetensors --dim 8 --save_to small.safetensors --report small.html"
echo "  $lora convert difference.safetensors difference-peft"
echo "  $lora help"
