#!/bin/sh
# What goes wrong around a run must not harm the file that stands there: a full disk, a limit on file sizes, SIGKILL and
# Ctrl-C at any moment, an input that is cut short while it is read.
set -eu
dir=$(mktemp -d)
mounted=
trap '[ -z "$mounted" ] || umount "$dir/full"; rm -rf "$dir"' EXIT
cd "$dir"
"$BUILD/tests/demo/demo" pair base.safetensors tuned.safetensors > log
"$LORA" extract --quiet --model_org base.safetensors --model_tuned tuned.safetensors --dim 8 --save_to lora.safetensors

fail() {
    echo "$*"
    [ ! -s err ] || cat err
    exit 1
}

# The command line that makes what is asked for, in words without blanks: line merge OUT.
line() {
    case $1 in
    merge) echo "$LORA" merge --quiet --sd_model base.safetensors --models lora.safetensors --save_to "$2" ;;
    ckpt) echo "$LORA" convert --quiet base.safetensors "$2" ;;
    extract) echo "$LORA" extract --quiet --model_org base.safetensors --model_tuned tuned.safetensors --dim 32 --save_to "$2" ;;
    esac
}
suffix() {
    case $1 in ckpt) echo .ckpt ;; *) echo .safetensors ;; esac
}

# One message that names the file, status 1, the old file as it was, nothing left beside it: refused WHAT OUT COMMAND...
refused() {
    case_=$1 file=$2 status=0
    shift 2
    echo old > "$file"
    "$@" 2> err || status=$?
    [ $status = 1 ] || fail "$case_: status $status, expected 1"
    [ "$(wc -l < err)" = 1 ] || fail "$case_: not one message"
    grep -q "'$file'" err || fail "$case_: the message does not name the file"
    [ "$(cat "$file")" = old ] || fail "$case_: the old file is gone"
    [ "$(ls -A "$(dirname "$file")")" = "$(basename "$file")" ] || fail "$case_: left behind: $(ls -A "$(dirname "$file")")"
    rm "$file"
}
limited() {
    (ulimit -f 1000 && "$@")
}

# A disk that is too small, where this user may make one; and a limit on the size of files, whose signal must not kill.
mkdir full small
mount -t tmpfs -o size=1m tmpfs full 2> /dev/null && mounted=yes
for what in merge ckpt extract; do
    if [ "$mounted" ]; then
        out=full/out$(suffix $what)
        refused "full disk, $what" "$out" $(line $what "$out")
    fi
    out=small/out$(suffix $what)
    refused "size limit, $what" "$out" limited $(line $what "$out")
done

# Stopped at any moment: the file is the old one or the whole new one. SIGKILL may leave the temporary file, which does not
# hinder the next run; SIGINT and SIGTERM leave nothing.
mkdir killed
for what in merge ckpt extract; do
    good=good$(suffix $what) out=killed/out$(suffix $what)
    $(line $what "$good")
    for signal in KILL INT TERM; do
        stopped=0
        for delay in 0.01 0.03 0.05 0.1; do
            echo old > "$out"
            timeout -s $signal $delay $(line $what "$out") > /dev/null 2>&1 || :
            if cmp -s "$out" "$good"; then
                :
            elif [ "$(head -c 4 "$out" | tr -d '\000')" = old ]; then
                stopped=$((stopped + 1))
            else
                fail "$signal after $delay s, $what: the file is neither the old one nor the new one"
            fi
            left=$(ls -A killed | grep '\.tmp\.' || :)
            [ $signal = KILL ] || [ -z "$left" ] || fail "$signal after $delay s, $what: left behind: $left"
        done
        $(line $what "$out") # with what SIGKILL left there
        cmp "$out" "$good"
        rm -f killed/*
        [ $stopped -gt 0 ] || fail "$signal, $what: no run was stopped before its end: this shows nothing"
    done
done

# An input that somebody cuts short while it is read is an error, not a SIGBUS; when the run was faster, its result is whole.
mkdir cut
for delay in 0 0.02 0.04; do
    for what in merge ckpt extract; do
        for input in base tuned; do
            [ $what = extract ] || [ $input = base ] || continue
            cp base.safetensors tuned.safetensors lora.safetensors cut/
            (cd cut && exec $(line $what "out$(suffix $what)")) > /dev/null 2> err &
            sleep $delay
            truncate -s 5000000 cut/$input.safetensors
            status=0
            wait $! || status=$?
            case $status in
            0) cmp "cut/out$(suffix $what)" "good$(suffix $what)" ;;
            1) grep -q "$input.safetensors" err || fail "input cut, $what: the message does not name it" ;;
            *) fail "input cut after $delay s, $what: status $status" ;;
            esac
            rm -rf cut/*
        done
    done
done
