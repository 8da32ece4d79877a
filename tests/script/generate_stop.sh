#!/bin/sh
# Ctrl-C and SIGTERM while pictures are made: what is finished stays and is whole, nothing half written, one message, status 1.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"

fail() {
    echo "$*"
    cat err
    exit 1
}

for signal in INT TERM; do
    rm -rf out
    # a background job of this shell would ignore SIGINT
    env --default-signal=INT "$LORA" generate --quiet --ckpt "$TOP/golden/small_model/small.safetensors" --W 64 --H 64 --steps 2 \
        --images_per_prompt 100000 --prompt 'a star' --outdir out --grid out/sheet.png --sequential_file_name > log 2> err &
    pid=$! i=0 status=0
    while [ ! -e out/im_000002.png ] && [ $i -lt 600 ]; do
        sleep 0.1
        i=$((i + 1))
    done
    kill -$signal $pid
    wait $pid || status=$?
    [ $status = 1 ] || fail "$signal: status $status, expected 1"
    made=$(ls out | grep -c '^im_') || fail "$signal: no picture in a minute"
    grep -q "^lora: error: stopped; $made finished picture.* in 'out'" err || fail "$signal: not the message for $made pictures"
    [ "$(wc -l < err)" = 1 ] || fail "$signal: not one message"
    [ -e out/sheet.png ] || fail "$signal: no contact sheet of what is finished"
    ! ls out | grep -q tmp || fail "$signal: something is left behind: $(ls out)"
done
echo "stopped in time, finished pictures kept"
