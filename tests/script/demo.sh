#!/bin/sh
# make demo runs to its end, and what it prints holds: the LoRA brings the change back.
set -eu
cd "$TOP"
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
sh tests/demo/demo.sh "$LORA" "$BUILD/tests/demo/demo" "$dir" > "$dir/log" 2>&1 || { cat "$dir/log"; exit 1; }
# The change has 24 singular values 0.7^i times 0.05 sqrt(rows), so 0.07 sqrt(rows) in all, and noise of 0.0005 sqrt(rows):
# 0.7 %. Of that rank 32 keeps a part; storing the weights, which are 15 times the change, as f16 costs about 15 * 2^-12 = 0.4 %.
error=$(sed -n 's/.*tuned - base| = \([0-9.]*\) %.*/\1/p' "$dir/log")
[ -n "$error" ] || { cat "$dir/log"; echo "no error was printed"; exit 1; }
awk -v e="$error" 'BEGIN { exit !(e > 0.2 && e < 1.2) }' || { cat "$dir/log"; echo "error $error % is not near 0.7 %"; exit 1; }
