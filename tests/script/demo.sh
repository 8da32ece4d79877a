#!/bin/sh
# make demo runs to its end, in short: a few steps learn no rocket, but every command works on what the one before made, and what
# the LoRA does in a picture is what it does merged and taken out again.
set -eu
cd "$TOP"
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
helper=$BUILD/tests/demo/demo
sh tests/demo/demo.sh "$LORA" "$helper" "$dir" short > "$dir/log" 2>&1 || { cat "$dir/log"; exit 1; }
fail() { cat "$dir/log"; echo "$1"; exit 1; }

# What looks for rockets finds them where they are, and nowhere else.
[ "$("$helper" rockets golden/small_model/concept '')" = "10 of 10" ] || fail "the template does not fit the ten pictures"
[ "$("$helper" rockets "$dir/before" 'sks rocket')" = "0 of 2" ] || fail "the base model draws rockets"

# 3 rows, 4 columns; the report of the training has its samples: 2 prompts, before and after.
[ "$(grep -o 'data:image/png' "$dir/index.html" | wc -l)" = 12 ] || fail "index.html has not 12 pictures"
[ "$(grep -o 'data:image/png' "$dir/training/report.html" | wc -l)" = 4 ] || fail "report.html has not 4 samples"
[ -s "$dir/grid.png" ] || fail "there is no grid.png"

# The merged checkpoint is fp16: its weights are off by up to 2^-11 of themselves, the extraction holds most of a change of rank 16
# and what of that rounding it can. Pictures of few steps then differ by far less than the LoRA changes them.
changed=$("$helper" difference "$dir/before" "$dir/lora" 'sks rocket')
for folder in merged extracted; do
    off=$("$helper" difference "$dir/lora" "$dir/$folder" 'sks rocket')
    awk -v off="$off" -v changed="$changed" 'BEGIN { exit !(changed > 0.5 && off < changed / 2) }' ||
        fail "$folder: pictures are off by $off where the LoRA changes $changed"
done
