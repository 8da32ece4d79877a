#!/bin/sh
# lora train around a run: a training that is killed again and again, or stopped by Ctrl-C, ends with the file of the one that
# was not; the same file on any number of threads; the guide's command line; what a run must refuse.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
small=$PWD/golden/small_model
mkdir -p "$dir/data/db/char1/2_sks rocket" "$dir/data/db/reg1/1_rocket"
cp "$small"/concept/rocket0[0-4].* "$dir/data/db/char1/2_sks rocket"
cp "$small"/concept/rocket0[5-7].png "$dir/data/db/reg1/1_rocket"
cd "$dir"

fail() {
    echo "$*"
    [ ! -s log ] || cat log
    exit 1
}
# A small training with a bit of everything that is random: train OUT OPTION... (how='exec ..': in place of a background shell)
how=
train() {
    out=$1
    shift
    $how "$LORA" train --pretrained_model_name_or_path "$small/small.safetensors" --train_data_dir data/db/char1 --resolution 64 \
        --caption_extension .txt --shuffle_caption --flip_aug --cache_latents --network_dim 2 --network_args rank_dropout=0.2 \
        --learning_rate 1e-3 --lr_scheduler cosine --lr_warmup_steps 2 --noise_offset 0.05 --gradient_accumulation_steps 2 \
        --max_train_steps 12 --seed 3 --output_name rocket --output_dir "$out" --threads 1 "$@" > log 2>&1
}

train whole || fail "the training failed"
[ ! -e whole/rocket.state ] || fail "a state was written without --save_state"
"$LORA" info whole/rocket.safetensors > log || fail "the LoRA is none"
grep -q 'rank 2' log || fail "rank 2 is not told"

"$LORA" info --metadata whole/rocket.safetensors > log
for key in learning_rate text_encoder_lr unet_lr num_train_images num_reg_images num_batches_per_epoch num_epochs batch_size_per_device \
    total_batch_size gradient_accumulation_steps max_train_steps lr_warmup_steps lr_scheduler network_module network_dim mixed_precision \
    full_fp16 v2 resolution clip_skip max_token_length color_aug flip_aug random_crop shuffle_caption cache_latents enable_bucket \
    min_bucket_reso max_bucket_reso seed sd_model_hash sd_model_name epoch; do
    grep -q " ss_$key = " log || fail "the metadata lacks ss_$key"
done
grep -q 'ss_lr_warmup_steps = 2$' log && grep -q 'ss_total_batch_size = 2$' log || fail "wrong values in the metadata"
! grep -q "$dir" whole/rocket.safetensors || fail "a path is in the metadata"

train threads --threads 2 || fail "two threads failed"
cmp whole/rocket.safetensors threads/rocket.safetensors || fail "two threads give another file"
train eight --use_8bit_adam --gradient_checkpointing || fail "8-bit AdamW failed"
! cmp -s whole/rocket.safetensors eight/rocket.safetensors || fail "8-bit AdamW gives the same file as AdamW"

# SIGKILL at any moment; a state after every step. The delays grow so that it ends on a slow machine, too.
tries=0
resume=
while :; do
    tries=$((tries + 1))
    how=exec train killed --save_state_every_n_minutes 0.00001 $resume &
    job=$!
    sleep "$(awk -v n=$tries -v s=$$ 'BEGIN { srand(s + n); print 0.1 + rand() * 0.2 * n }')"
    kill -9 $job 2> /dev/null || :
    wait $job 2> /dev/null && break || :
    if [ -e killed/rocket.safetensors ]; then # killed between the last rename and the end: the file is whole; once more
        cmp whole/rocket.safetensors killed/rocket.safetensors || fail "a training that was killed at its end gives another file"
        rm -rf killed
        resume=
    fi
    [ ! -e killed/rocket-auto.state ] || resume='--resume killed/rocket-auto.state'
    [ $tries -lt 60 ] || fail "60 kills and no end"
done
cmp whole/rocket.safetensors killed/rocket.safetensors || fail "a training that was killed gives another file"
[ ! -e killed/rocket-auto.state ] || fail "the state for accidents is still there"

# Ctrl-C and SIGTERM: LoRA and state are saved, status 1, and it goes on from there. A training that is done before the signal
# comes is tried again.
for signal in INT TERM; do
    tries=0 status=0
    while [ $status = 0 ]; do
        tries=$((tries + 1))
        [ $tries -lt 30 ] || fail "30 trainings ended before SIG$signal came"
        rm -rf stopped
        # a background job of this shell would ignore SIGINT
        how='exec env --default-signal=INT' train stopped --save_every_n_steps 1 &
        job=$!
        while [ ! -e stopped/rocket-step00000002.safetensors ]; do kill -0 $job 2> /dev/null || break; sleep 0.01; done
        kill -$signal $job 2> /dev/null || :
        wait $job || status=$?
    done
    [ $status = 1 ] || fail "SIG$signal: status $status, expected 1"
    grep -q "stopped by SIG$signal after step .* go on with --resume 'stopped/rocket-stopped.state'" log || fail "SIG$signal: message"
    "$LORA" info --quiet stopped/rocket-stopped.safetensors > /dev/null || fail "SIG$signal: no LoRA"
    train stopped --resume stopped || fail "SIG$signal: cannot go on"
    cmp whole/rocket.safetensors stopped/rocket.safetensors || fail "a training that was stopped gives another file"
done

# A picture that vanishes on the way ends the training; what was learned is saved.
cp -r data gone
"$LORA" train --pretrained_model_name_or_path "$small/small.safetensors" --train_data_dir gone/db/char1 --resolution 64 --network_dim 2 \
    --max_train_steps 5000 --output_name rocket --output_dir half --threads 1 --save_every_n_steps 1 --save_last_n_steps 1 > log 2>&1 &
job=$!
until ls half/rocket-step*.safetensors > /dev/null 2>&1; do # each is soon replaced by the next
    kill -0 $job 2> /dev/null || fail "no step"
    sleep 0.05
done
rm "gone/db/char1/2_sks rocket/rocket01.png"
status=0
wait $job || status=$?
[ $status = 1 ] || fail "vanished picture: status $status, expected 1"
grep -q "rocket01.png" log || fail "vanished picture: its name is not told"
grep -q "saved as 'half/rocket-stopped'" log || fail "vanished picture: nothing is said about what is saved"
[ -s half/rocket-stopped.state ] && [ -s half/rocket-stopped.safetensors ] || fail "vanished picture: nothing is saved"

# What must be refused, each with its message: refused STATUS TEXT OPTION...
refused() {
    want=$1 text=$2 status=0
    shift 2
    train refused "$@" || status=$?
    [ $status = "$want" ] || fail "$*: status $status, expected $want"
    grep -qF -- "$text" log || fail "$*: the message lacks: $text"
    [ ! -e refused/rocket.safetensors ] || fail "$*: a LoRA was written"
}
train state --save_state || fail "--save_state failed"
refused 1 "--learning_rate 0.001 then, 0.002 now" --resume state/rocket.state --learning_rate 2e-3
refused 1 "is at step 12 already" --resume state/rocket.state --max_train_steps 8 --resume_changed
echo 'sks rocket, another caption' > "data/db/char1/2_sks rocket/rocket02.txt"
refused 1 "pictures or captions are not those of then" --resume state/rocket.state
train recaptioned --resume state/rocket.state --resume_changed || fail "cannot go on with another caption"
cp "$small"/concept/rocket02.txt "data/db/char1/2_sks rocket"
refused 1 "it is no training state" --resume state/rocket.safetensors
refused 1 "cannot read 'none.state'" --resume none.state
refused 2 "--full_fp16 needs --mixed_precision fp16" --full_fp16
refused 2 "exclude each other" --network_train_unet_only --network_train_text_encoder_only
refused 2 "give 75, 150 or 225" --max_token_length 100
refused 2 "--network_args has no 'conv_dimm'" --network_args conv_dimm=4
refused 2 "has 3 numbers; give 25" --network_args block_dims=1,2,3
refused 2 "only networks.lora is" --network_module lycoris.kohya
refused 2 "has 1 numbers for 0 files of --base_weights" --base_weights_multiplier 0.5
refused 2 "a masked loss goes with --loss_type l2 only" --alpha_mask --loss_type huber
refused 2 "needs regularisation pictures" --prior_loss_target model
refused 2 "needs --initial_step N or --initial_epoch N" --skip_until_initial_step
refused 2 "--initial_step leaves none of 12 steps" --initial_step 12
refused 1 "has rank 2, not 3" --network_weights state/rocket.safetensors --network_dim 3
refused 1 "lower --learning_rate" --learning_rate 1e30 --lr_scheduler constant --lr_warmup_steps 0 --max_grad_norm 0
train more --network_weights state/rocket.safetensors || fail "cannot start from a LoRA"
! cmp -s more/rocket.safetensors state/rocket.safetensors || fail "starting from a LoRA learned nothing"
train based --base_weights state/rocket.safetensors --base_weights_multiplier 2 || fail "cannot start from a LoRA in the base model"
! cmp -s based/rocket.safetensors whole/rocket.safetensors || fail "a LoRA in the base model changes nothing"
train prior --reg_data_dir data/db/reg1 --prior_loss_target model --threads 1 || fail "cannot preserve the model's own prediction"
train prior2 --reg_data_dir data/db/reg1 --prior_loss_target model --threads 2 || fail "cannot preserve the model's own prediction"
train prior3 --reg_data_dir data/db/reg1 --prior_loss_target model --check 6 --resolution 128 --gradient_accumulation_steps 1 || fail "--check with it"
cmp prior/rocket.safetensors prior2/rocket.safetensors || fail "two threads give another file with --prior_loss_target model"
train longer --resume state/rocket.state --max_train_steps 14 --resume_changed || fail "cannot train longer"

# Files of epochs and steps, the last ones kept.
train many --save_every_n_epochs 1 --save_every_n_steps 2 --save_last_n_epochs 1 --save_last_n_steps 4 --save_precision fp16
ls many | tr '\n' ' ' > names
grep -qx 'report.html rocket-000002.safetensors rocket-step00000008.safetensors rocket-step00000010.safetensors rocket.options.json rocket.safetensors ' names ||
    fail "wrong files are left: $(cat names)"

# A run that goes on drops the files of the run before in turn.
train window --save_every_n_steps 2 --save_last_n_steps 4 --save_state --max_train_steps 6 --lr_scheduler constant --lr_warmup_steps 0
train window --save_every_n_steps 2 --save_last_n_steps 4 --save_state --resume window/rocket.state --lr_scheduler constant --lr_warmup_steps 0 ||
    fail "cannot go on with a window of files"
ls window/*step* | tr '\n' ' ' > names
grep -qx 'window/rocket-step00000008.safetensors window/rocket-step00000008.state window/rocket-step00000010.safetensors window/rocket-step00000010.state ' names ||
    fail "wrong files are left after going on: $(cat names)"

# The guide's command line for the DreamBooth method, with its first words changed ("accelerate launch .. train_network.py"), in any
# spelling; fewer steps and a small picture, so that it takes a second.
mkdir -p models work
cp "$small/small.safetensors" models/model.safetensors
"$LORA" convert --quiet models/model.safetensors models/model.ckpt
cd work
tr '\\\n' '/ ' > line << 'LINE'
--pretrained_model_name_or_path=..\models\model.ckpt
     --train_data_dir=..\data\db\char1 --output_dir=..\lora_train1
     --reg_data_dir=..\data\db\reg1 --prior_loss_weight=1.0
     --resolution=448,640 --train_batch_size=1 --learning_rate=1e-4
     --max_train_steps=400 --use_8bit_adam --xformers --mixed_precision=fp16
     --save_every_n_epochs=1 --save_model_as=safetensors --clip_skip=2 --seed=42 --color_aug
     --network_module=networks.lora
LINE
for script in train train_network.py 'sd-scripts\train_network.py'; do
    rm -rf ../lora_train1
    "$LORA" "$script" $(cat line) --resolution=64,96 --max_train_steps=3 --threads 1 > log 2>&1 || fail "the guide's command line"
    [ -s ../lora_train1/last.safetensors ] || fail "no last.safetensors"
done
"$LORA" generate --quiet --ckpt ../models/model.ckpt --lora ../lora_train1/last.safetensors --prompt 'sks rocket' --W 64 --H 64 \
    --steps 2 --threads 1 --outdir pictures > log 2>&1 || fail "the LoRA cannot be used"
