#!/bin/sh
# usage: [BASE=FILE TUNED=FILE OTHER=FILE] [PEER_PYTHON=PYTHON] [SD_SCRIPTS=DIR] [ROWS=WORD] table_files.sh LORA_PROGRAM
#
# One table of extract, merge and info on full-size checkpoints: seconds, memory, and beside them `dd` of the same size (what the
# disk takes) or sd-scripts v0.3.0 in SD_SCRIPTS, run by PEER_PYTHON. BASE and TUNED are a checkpoint and its tuned twin, OTHER another twin; without
# them PEER_PYTHON makes a random pair in build/bench (4.3 GB; results need 5 GB more, removed at the end). Each row is the best of
# three runs, of which the first may find the files on the disk only; merge and dd run in turns.
set -u
lora=$1
here=$(cd "$(dirname "$0")" && pwd)
python=${PEER_PYTHON:-} scripts=${SD_SCRIPTS:-} base=${BASE:-} tuned=${TUNED:-}

if [ -z "$base" ] || [ -z "$tuned" ]; then
    base=build/bench/random.safetensors tuned=build/bench/random_tuned.safetensors
    if [ ! -f $base ] || [ ! -f $tuned ]; then
        [ -n "$python" ] || { echo "files: skipped; give BASE=FILE and TUNED=FILE (two checkpoints), or PEER_PYTHON=python3 with torch"; exit 0; }
        mkdir -p build/bench
        [ -f $base ] || "$python" "$here/make_sd.py" $base --dtype fp16 || exit 1
        [ -f $tuned ] || "$python" "$here/make_sd.py" $tuned --dtype fp16 --tuned || exit 1
    fi
fi
work=$(mktemp -d "${TMPDIR:-build}/bench_files.XXXXXX") || exit 1
trap 'rm -rf "$work"' EXIT

# Seconds and MiB of a command at its peak, as "1.234 45"; "- -" when it fails.
measure() {
    time=
    command -v /usr/bin/time > /dev/null && time="/usr/bin/time -o $work/time -f %M"
    sync # what others have written is not this command's to wait for
    start=$(date +%s.%N)
    $time "$@" > "$work/log" 2>&1 || { echo '- -'; return; }
    end=$(date +%s.%N)
    kib=$([ -n "$time" ] && cat "$work/time")
    echo "$start $end $kib" | awk '{printf "%.3f %s\n", $2 - $1, $3 == "" ? "-" : sprintf("%.0f", $3 / 1024)}'
}

best() { # of three
    { measure "$@"; measure "$@"; measure "$@"; } | sort -n | head -n 1
}

show() { # NAME "SECONDS MIB" [BESIDE "SECONDS MIB"]
    echo "$2 ${4:-- -}" | awk -v name="$1" -v beside="${3:-}" '{
        printf "%-26s %7s s %5s MiB", name, $1, $2
        if ($3 + 0 > 0) printf " | %-10s %7s s %5s MiB, %.2f times as long", beside, $3, $4, $3 / $1
        print "" }'
}

wanted() { case $1 in *"${ROWS:-}"*) true ;; *) false ;; esac; }

peer() { # SCRIPT ARGS: sd-scripts, where it is given
    if [ -n "$python" ] && [ -n "$scripts" ]; then (cd "$scripts" && measure "$python" "$@"); else echo '- -'; fi
}

# New files each time: to put an old one of 2 GB away takes half a second of either.
into_checkpoint() {
    rm -f "$work/m.safetensors"
    measure "$lora" merge --quiet --sd_model "$base" --models "$work/l128.safetensors" --ratios 0.8 --save_to "$work/m.safetensors"
}
copied() {
    rm -f "$work/dd.safetensors"
    measure dd if="$base" of="$work/dd.safetensors" bs=4M conv=fsync
}

base=$(realpath "$base") tuned=$(realpath "$tuned") work=$(realpath "$work")
for dim in 4 128; do
    name="extract, rank $dim"
    result=$(best "$lora" extract --quiet --model_org "$base" --model_tuned "$tuned" --dim $dim --save_precision fp16 --save_to "$work/l$dim.safetensors")
    wanted "$name" && show "$name" "$result" 'sd-scripts' \
        "$(peer networks/extract_lora_from_models.py --model_org "$base" --model_tuned "$tuned" --dim $dim --save_to "$work/peer.safetensors")"
done
name='merge rank 128 into fp16'
if wanted "$name"; then
    # in turns, as what a disk takes changes from minute to minute
    for i in 1 2 3; do into_checkpoint >> "$work/ours"; copied >> "$work/dd"; done
    result=$(sort -n "$work/ours" | head -n 1)
    show "$name" "$result" 'dd, fsync' "$(sort -n "$work/dd" | head -n 1)"
    rm -f "$work/dd.safetensors"
    [ -z "$scripts" ] || show "$name" "$result" 'sd-scripts' "$(peer networks/merge_lora.py --sd_model "$base" \
        --models "$work/l128.safetensors" --ratios 0.8 --save_to "$work/m.safetensors" --save_precision fp16)"
    rm -f "$work/m.safetensors"
fi
name='LoRA with LoRA, rank 128'
second=build/bench/random_other.safetensors
if wanted "$name" && { [ -n "${OTHER:-}" ] || [ -n "$python" ]; }; then
    [ -n "${OTHER:-}" ] || [ -f $second ] || { mkdir -p build/bench && "$python" "$here/make_sd.py" $second --dtype fp16 --tuned --other 2; } || exit 1
    "$lora" extract --quiet --model_org "$base" --model_tuned "${OTHER:-$second}" --dim 128 --save_precision fp16 --save_to "$work/b128.safetensors"
    for i in 1 2 3; do
        measure "$lora" merge --quiet --models "$work/l128.safetensors" "$work/b128.safetensors" --ratios 0.6 0.4 \
            --save_to "$work/ll$i.safetensors"
    done > "$work/loras"
    show "$name" "$(sort -n "$work/loras" | head -n 1)" 'sd-scripts' "$(peer networks/merge_lora.py --models "$work/l128.safetensors" \
        "$work/b128.safetensors" --ratios 0.6 0.4 --save_to "$work/ll.safetensors")"
fi
wanted info && show 'info of a checkpoint' "$(best "$lora" info "$base")"
exit 0
