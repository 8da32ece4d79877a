#!/bin/sh
# usage: make_all.sh PYTHON OUT [WORD]      (from the top folder of the sources; `make golden` calls it)
# Makes golden data again into OUT and compares with golden/; WORD: only the rows that have it. The packages and their versions
# stand in PROVENANCE.md; other versions of torch give other last bits in places. What needs more than packages (the vocabulary, a
# GPU, an old diffusers) is named and left out; lora/ is made whole where SD_SCRIPTS names a checkout. Some bytes change from run to run
# or with the processor: compare.py says which may. Exit status 1 when something failed or differs.
set -u
python=$1 out=$2 word=${3:-}
top=$(pwd)
bad=0
mkdir -p "$out"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

# Compares each file of OUT/PART that golden/ has, too.
compare() {
    find "$out/$1" -type f | while read -r made; do
        kept=golden/${made#"$out/"}
        if [ ! -e "$kept" ]; then
            echo "  new      $kept"
        elif cmp -s "$made" "$kept"; then
            echo "  same     $kept"
        else
            "$python" golden/compare.py "$made" "$kept" 2>&1 | tail -n 1 | {
                read -r verdict what
                printf '  %-8s %s%s\n' "$verdict" "$kept" "${what:+ ($what)}"
            }
        fi
    done
}

# row SCRIPT OUTPUT [ARGUMENT...]: golden/make_SCRIPT.py OUT/OUTPUT ...
row() {
    script=$1 target=$2
    shift 2
    case "make_$script.py $target" in *"$word"*) ;; *) return ;; esac
    echo "make_$script.py $target"
    case $target in *.*) ;; *) mkdir -p "$out/$target" ;; esac
    if "$python" "golden/make_$script.py" "$out/$target" "$@" > "$out/log" 2>&1; then
        result=$(compare "$target")
        echo "$result"
        printf '%s\n' "$result" | grep -Ev '^  (new|same) ' > /dev/null && bad=1
    else
        tail -n 2 "$out/log"
        bad=1
    fi
}

row rng rng.safetensors
row noise noise.safetensors
row seeds seeds.txt
row numbers numbers.txt
row schedule schedule.safetensors
row samplers samplers.safetensors
row ops ops.safetensors
row models models.safetensors
row merge merge.safetensors
row svd svd.txt
row extract extract
row convert convert
row names names
row lora_layouts lora ${SD_SCRIPTS:+"$SD_SCRIPTS"}
row torch_files torch
row pictures pictures
row resize resize.safetensors
row area area.safetensors
row npz npz
row latents latents.safetensors
row generate generate
row quant quant.safetensors
row optim optim.safetensors "$out/lr.txt"
row dataset dataset.json
echo "left out: make_samplers.py with diffusers 0.10.2, make_rng_cuda.py (a GPU), make_tokenizer.py and make_prompts.py (CLIP's vocabulary),"
echo "make_merge_model.py and make_prepare.py (sd-scripts), small_model/ (hours of a GPU): commands in $top/golden/PROVENANCE.md"
exit $bad
