#!/bin/sh
# The command lines of sd-scripts' guide, with only the words before the script's name left out: extract, merge into a model,
# several LoRAs into a model, LoRA with LoRA. The
# script's name is taken in any spelling; in paths the guide's '\' becomes '/', as anyone not on Windows has to write it.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
mkdir -p "$dir/model" "$dir/lora_train1" "$dir/lora_train2" "$dir/work"
cd "$dir/work"
"$BUILD/tests/demo/demo" pair ../model/base.safetensors ../model/tuned.safetensors > log
"$LORA" convert --quiet ../model/base.safetensors ../model/model.ckpt
"$LORA" convert --quiet ../model/tuned.safetensors ../model/fine-tuned-model.ckpt
cp ../model/model.ckpt base-model.ckpt
cp ../model/fine-tuned-model.ckpt fine-tuned-model.ckpt

# Runs the line given on standard input: guide OUTPUT NAME..., once for each name of the script.
guide() {
    out=$1
    shift
    tr '\\\n' '/ ' > line
    words=$(cat line)
    for script in "$@"; do
        rm -f "$out"
        "$LORA" "$script" $words > log 2>&1 < /dev/null || { echo "$script $words"; cat log; exit 1; }
        [ -s "$out" ] || { echo "$script wrote no $out"; exit 1; }
    done
}

guide lora-weights.safetensors networks/extract_lora_from_models.py 'networks\extract_lora_from_models.py' \
    extract_lora_from_models.py extract_lora_from_models extract << 'LINE'
--model_org base-model.ckpt
     --model_tuned fine-tuned-model.ckpt
     --save_to lora-weights.safetensors --dim 4
LINE
cp lora-weights.safetensors ../lora_train1/last.safetensors
"$LORA" extract --quiet --model_org base-model.ckpt --model_tuned fine-tuned-model.ckpt --dim 4 --compat v0.3.0 \
    --save_to ../lora_train2/last.safetensors

guide ../lora_train1/model-char1-merged.safetensors 'networks\merge_lora.py' << 'LINE'
--sd_model ..\model\model.ckpt
     --save_to ..\lora_train1\model-char1-merged.safetensors
     --models ..\lora_train1\last.safetensors --ratios 0.8
LINE
cp ../lora_train1/model-char1-merged.safetensors one.safetensors

guide ../lora_train1/model-char1-merged.safetensors 'networks\merge_lora.py' << 'LINE'
--sd_model ..\model\model.ckpt
     --save_to ..\lora_train1\model-char1-merged.safetensors
     --models ..\lora_train1\last.safetensors ..\lora_train2\last.safetensors --ratios 0.8 0.5
LINE
! cmp -s one.safetensors ../lora_train1/model-char1-merged.safetensors || { echo "the second LoRA changed nothing"; exit 1; }

guide ../lora_train1/model-char1-style1-merged.safetensors 'networks\merge_lora.py' << 'LINE'
--save_to ..\lora_train1\model-char1-style1-merged.safetensors
     --models ..\lora_train1\last.safetensors ..\lora_train2\last.safetensors --ratios 0.6 0.4
LINE

# "Other Options" of the guide: --precision, --save_precision, --device cpu.
for p in float fp16 bf16; do
    "$LORA" merge_lora.py --quiet --sd_model ../model/model.ckpt --models ../lora_train1/last.safetensors --ratios 0.8 \
        --precision $p --save_precision $p --save_to $p.ckpt
    "$LORA" extract_lora_from_models.py --quiet --model_org base-model.ckpt --model_tuned fine-tuned-model.ckpt --dim 4 \
        --device cpu --save_precision $p --save_to lora-$p.safetensors
done
[ "$(wc -c < float.ckpt)" -gt $((2 * $(wc -c < fp16.ckpt) - 1000000)) ] || { echo "float is not wider than fp16"; exit 1; }

# A v2 option for v1 files must be refused by a message, not obeyed.
! "$LORA" merge_lora.py --v2 --sd_model ../model/model.ckpt --models ../lora_train1/last.safetensors --ratios 1 \
    --save_to v2.safetensors 2> log || { echo "--v2 was accepted for a 1.x model"; exit 1; }
[ ! -e v2.safetensors ]
