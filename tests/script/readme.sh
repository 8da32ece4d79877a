#!/bin/sh
# The README's table of commands is the program's own, and its worked examples run as they stand.
set -eu
cd "$TOP"
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
"$LORA" help --as markdown > "$dir/table"
sed -n '/^| command/,/^$/p' README.md | sed '/^$/d' > "$dir/table_in_readme"
diff -u "$dir/table_in_readme" "$dir/table" || { echo "put the output of 'lora help --as markdown' into README.md"; exit 1; }

"$BUILD/tests/demo/demo" pair "$dir/base.safetensors" "$dir/tuned.safetensors"
sed -n '/^## From two checkpoints/,/^## [^F]/s/^    \(lora .*\)/\1/p' README.md > "$dir/examples"
[ "$(wc -l < "$dir/examples")" -ge 8 ] || { echo "too few examples in README.md"; exit 1; }
cd "$dir"
lora() { "$LORA" "$@"; }
while read -r line; do
    eval "$line" > log 2>&1 < /dev/null || { echo "this example of the README failed: $line"; cat log; exit 1; }
done < examples
