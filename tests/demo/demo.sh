#!/bin/sh
# make demo: the whole story of a LoRA on the model that comes with the sources. $1 is the program, $2 the helper, $3 a folder for
# the files; $4 "short" trains and draws only as much as a test needs.
set -eu
lora=$1 helper=$2 dir=$3
small=$PWD/golden/small_model/small.safetensors concept=$PWD/golden/small_model/concept prompts=$PWD/tests/demo/others.txt
if [ "${4-}" = short ]; then
    training=6 every=6 steps=4 others=4
else
    training=1000 every=250 steps=20 others=100
fi
began=$(date +%s)

run() {
    echo
    echo "\$ lora $*" | fold -s -w 118 | sed '2,$s/^/      /'
    "$lora" "$@"
}

say() {
    echo
    echo "$*" | fold -s -w 118
}

draw() { # draw FOLDER WITH...: the pictures of prompts.txt
    folder=$1
    shift
    rm -rf "$folder"
    run generate "$@" --from_file prompts.txt --outdir "$folder" --W 128 --H 128 --steps $steps --scale 5 --sequential_file_name --quiet
}

mkdir -p "$dir/rocket"
cd "$dir"
cp "$small" base.safetensors
cp "$concept"/rocket*.png "$concept"/rocket*.txt rocket
head -n $others "$prompts" > others.txt
cat > prompts.txt <<END
sks rocket in the snow --d 11
sks rocket on a pink background --d 12
sks rocket by the sea --d 13
sks rocket on a gray checkered background --d 14
sks rocket on an orange background --d 15
sks rocket at night --d 16
a red house to the left of a green tree --d 17
two blue fish in a meadow --d 18
a big yellow star at night --d 19
END
[ "${4-}" = short ] && sed -n '1p;6p;8p' prompts.txt > few.txt && mv few.txt prompts.txt

say "1. base.safetensors is a small Stable Diffusion model that has never seen a rocket. It draws this of 'sks rocket':"
draw before --ckpt base.safetensors

say "2. So that everything else stays as it is, the model draws $others other pictures first, without guidance: as it sees them."
rm -rf others
run generate --ckpt base.safetensors --from_file others.txt --outdir others --W 128 --H 128 --steps 20 --scale 1 --sequential_file_name --quiet
n=0
while read -r line; do # a picture's caption is the prompt without its options
    n=$((n + 1))
    echo "${line% --d *}" > "$(printf 'others/im_%06d.txt' $n)"
done < others.txt

say "3. Ten pictures of a little rocket, with a line of text each, become a LoRA; the $others others are held to what the model makes of \
them without the LoRA, some without their caption. (The training's report shows samples on the way.)"
cat > pictures.toml <<END
[general]
resolution = 128
caption_extension = ".txt"

[[datasets]]
batch_size = 8

    [[datasets.subsets]]
    image_dir = "rocket"
    num_repeats = 30

    [[datasets.subsets]]
    image_dir = "others"
    is_reg = true
    caption_dropout_rate = 0.15
END
cat pictures.toml
head -n 2 prompts.txt > samples.txt
run train --pretrained_model_name_or_path base.safetensors --dataset_config pictures.toml --prior_loss_target model --cache_latents \
    --network_dim 16 --unet_lr 1e-3 --text_encoder_lr 2e-4 --lr_scheduler cosine --min_snr_gamma 5 --max_train_steps $training --seed 1 \
    --sample_prompts samples.txt --sample_every_n_steps $every --sample_at_first --output_dir training --output_name rocket

say "4. The same prompts and noise, with the LoRA:"
draw lora --ckpt base.safetensors --lora training/rocket.safetensors

say "5. Merged into the checkpoint, it needs no LoRA any more:"
run merge --sd_model base.safetensors --models training/rocket.safetensors --ratios 1.0 --save_to tuned.safetensors
draw merged --ckpt tuned.safetensors

say "6. And from the two checkpoints alone, the LoRA comes back:"
run extract --model_org base.safetensors --model_tuned tuned.safetensors --dim 16 --save_to extracted.safetensors --report extracted.html
draw extracted --ckpt base.safetensors --lora extracted.safetensors

"$helper" page . "before=before=the base model" "with the LoRA=lora=base and rocket.safetensors" "merged=merged=tuned.safetensors alone" \
    "extracted=extracted=base and extracted.safetensors"

echo
echo "Pictures in which a rocket is found (a template of its parts and colours; tests/demo/rocket.c):"
for folder in before lora merged extracted; do
    printf '  %-10s %s\n' $folder "$("$helper" rockets $folder 'sks rocket')"
done
echo "Mean difference of a pixel, 0 to 255:"
difference() { printf '  %-44s %s\n' "$1" "$("$helper" difference "$2" "$3" "$4")"; }
difference "rockets, before and with the LoRA" before lora 'sks rocket'
difference "everything else, before and with the LoRA" before lora '!sks rocket'
difference "all, with the LoRA and merged" lora merged ''
difference "all, with the LoRA and extracted" lora extracted ''

say "All in $(($(date +%s) - began)) seconds. Look at it:"
echo "  $dir/index.html            all pictures side by side (grid.png: as one picture)"
echo "  $dir/training/report.html  how it learned"
echo "Try next:"
echo "  cd $dir"
echo "  $lora generate --ckpt base.safetensors --lora training/rocket.safetensors:0.7 --W 128 --H 128 --prompt 'two sks rockets in a meadow'"
echo "  $lora info training/rocket.safetensors --norms"
echo "  $lora train --help"
