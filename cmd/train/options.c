#include <stdio.h>
#include <string.h>

#include "cmd/train/dataset_options.h"
#include "cmd/train/train.h"
#include "ref/lora/target.h"

static const char *const precisions[] = {"no", "fp16", "bf16", NULL};
static const char *const containers[] = {"safetensors", "ckpt", "pt", NULL};
static const char *const base_dtypes[] = {"model", "fp16", "bf16", "int8", "nf4", NULL};
static const char *const losses[] = {"l2", "huber", "smooth_l1", NULL};
static const char *const prior_targets[] = {"picture", "model", NULL};
static const char *const huber_schedules[] = {"snr", "exponential", "constant", NULL};

#define ROW(field) OPTION(struct train_options, field)

const struct option_row train_option_rows[] = {
    {ROW(pretrained_model_name_or_path), .arg = "PATH", .flags = OPTION_REQUIRED,
     .help = "base model: checkpoint (.safetensors, .ckpt) or diffusers folder"},
    {ROW(v2), .help = "the base model is Stable Diffusion 2.x (it is found out; this makes sure)"},
    {ROW(v_parameterization), .help = "the model predicts velocity instead of noise (SD 2.x at 768)"},
    {ROW(vae), .arg = "PATH", .help = "a VAE in place of the model's own"},
    DATASET_OPTION_ROWS(struct train_options, data),
    {ROW(output_dir), .arg = "DIR", .def = ".", .help = "folder for everything that is written, made if missing"},
    {ROW(output_name), .arg = "NAME", .help = "name of the LoRA file without ending (default: last)"},
    {ROW(network_dim), .arg = "N", .def = "4", .min = 1, .max = 65536, .help = "rank of the LoRA"},
    {ROW(network_alpha), .arg = "X", .min = 1e-6, .max = 1e6,
     .help = "the LoRA acts with alpha / rank (default: the rank)"},
    {ROW(network_weights), .arg = "FILE", .help = "start from this LoRA"},
    {ROW(base_weights), .arg = "FILE", .help = "put these LoRAs into the base model first; the new one is made on top of them"},
    {ROW(base_weights_multiplier), .arg = "X", .help = "how strongly, a number for each of --base_weights (default: 1)"},
    {ROW(dim_from_weights), .help = "take rank and alpha of each module from --network_weights"},
    {ROW(network_train_unet_only), .help = "leave the text encoder as it is"},
    {ROW(network_train_text_encoder_only), .help = "leave the U-Net as it is"},
    {ROW(network_args), .arg = "KEY=VALUE",
     .help = "conv_dim conv_alpha rank_dropout module_dropout block_dims block_alphas conv_block_dims conv_block_alphas "
             "down_lr_weight mid_lr_weight up_lr_weight block_lr_zero_threshold loraplus_lr_ratio loraplus_unet_lr_ratio "
             "loraplus_text_encoder_lr_ratio"},
    {ROW(network_module), .arg = "NAME", .def = "networks.lora", .help = "networks.lora; other kinds are refused"},
    {ROW(network_dropout), .arg = "X", .def = "0", .min = 0, .max = 0.99,
     .help = "share of the LoRA's inner activations that is left out in training"},
    {ROW(scale_weight_norms), .arg = "X", .def = "0", .min = 0, .max = 1e6,
     .help = "after each step, cut every module's change to this norm; 0: do not"},
    {ROW(learning_rate), .arg = "X", .def = "1e-4", .min = 0, .max = 1e30, .help = "of every part without a rate of its own"},
    {ROW(unet_lr), .arg = "X", .min = 0, .max = 1e30, .help = "learning rate of the U-Net"},
    {ROW(text_encoder_lr), .arg = "X", .min = 0, .max = 1e30, .help = "learning rate of the text encoder"},
    {ROW(max_train_steps), .arg = "N", .def = "1600", .min = 1, .max = 1e9, .help = "optimizer steps"},
    {ROW(max_train_epochs), .arg = "N", .def = "0", .min = 0, .max = 1e9, .help = "passes over the data, in place of steps"},
    {ROW(initial_epoch), .arg = "N", .min = 1, .max = 1e9, .flags = OPTION_ADVANCED,
     .help = "begin with this epoch, from 1; the learning rate's schedule still begins at its start, or where --resume left it"},
    {ROW(initial_step), .arg = "N", .min = 0, .max = 1e9, .flags = OPTION_ADVANCED,
     .help = "the same by a step, from 0, of the whole training; with --resume, in place of the state's"},
    {ROW(skip_until_initial_step), .flags = OPTION_ADVANCED,
     .help = "count the steps before as done and leave their batches out (unset: only the epoch's number changes)"},
    {ROW(gradient_accumulation_steps), .arg = "N", .def = "1", .min = 1, .max = 1e6, .help = "batches in a step"},
    {ROW(seed), .arg = "N", .min = 0, .max = 9007199254740991.0,
     .help = "number from which everything random follows (default: by chance; it is told)"},
    {ROW(optimizer_type), .arg = "NAME",
     .help = "AdamW AdamW8bit Lion Lion8bit SGD SGDNesterov Prodigy DAdaptAdam Adafactor (default: AdamW)"},
    {ROW(optimizer_args), .arg = "KEY=VALUE", .help = "weight_decay=0.01 betas=0.9,0.99 and so on; an unknown one lists all"},
    {ROW(use_8bit_adam), .help = "the same as --optimizer_type AdamW8bit"},
    {ROW(use_lion_optimizer), .flags = OPTION_ADVANCED, .help = "the same as --optimizer_type Lion"},
    {ROW(max_grad_norm), .arg = "X", .def = "1", .min = 0, .max = 1e6, .help = "longer gradients are cut to this norm; 0: none"},
    {ROW(lr_scheduler), .arg = "NAME", .def = "constant",
     .help = "linear cosine cosine_with_restarts polynomial constant constant_with_warmup piecewise_constant inverse_sqrt "
             "cosine_with_min_lr warmup_stable_decay"},
    {ROW(lr_warmup_steps), .arg = "X", .def = "0", .min = 0, .max = 1e9,
     .help = "steps in which the rate grows from 0; below 1: share of all steps"},
    {ROW(lr_decay_steps), .arg = "X", .def = "0", .min = 0, .max = 1e9, .flags = OPTION_ADVANCED,
     .help = "last phase of warmup_stable_decay, counted as --lr_warmup_steps"},
    {ROW(lr_scheduler_num_cycles), .arg = "X", .def = "1", .min = 0, .max = 1e6, .help = "restarts of cosine_with_restarts"},
    {ROW(lr_scheduler_power), .arg = "X", .def = "1", .min = 0, .max = 100, .help = "exponent of polynomial"},
    {ROW(lr_scheduler_timescale), .arg = "X", .def = "0", .min = 0, .max = 1e9, .flags = OPTION_ADVANCED,
     .help = "of inverse_sqrt; 0: the warm-up"},
    {ROW(lr_scheduler_min_lr_ratio), .arg = "X", .def = "0", .min = 0, .max = 1, .flags = OPTION_ADVANCED,
     .help = "least rate over the first one, of cosine_with_min_lr and warmup_stable_decay"},
    {ROW(lr_scheduler_args), .arg = "KEY=VALUE", .flags = OPTION_ADVANCED, .help = "step_rules=1:100,0.1 of piecewise_constant"},
    {ROW(gradient_checkpointing), .help = "compute activations twice to need a fraction of their memory"},
    {ROW(mixed_precision), .arg = "TYPE", .choices = precisions, .def = "no",
     .help = "arithmetic of the frozen model where the device has it; the LoRA stays f32"},
    {ROW(base_dtype), .arg = "TYPE", .choices = base_dtypes, .def = "model",
     .help = "frozen weights on a GPU: int8 and nf4 (4 bits) take a half and a quarter of the memory; model: the type of "
             "--mixed_precision"},
    {ROW(full_fp16), .help = "keep the LoRA in fp16, too; needs --mixed_precision fp16"},
    {ROW(device), .arg = "NAME", .def = "auto",
     .help = "where to compute: auto (a GPU where there is one), cpu, or a plug-in such as cuda or dnnl:bf16"},
    {ROW(clip_skip), .arg = "N", .def = "1", .min = 1, .max = 24, .help = "text encoder layer to take, counted from the last"},
    {ROW(max_token_length), .arg = "N", .def = "75", .min = 75, .max = 225, .help = "tokens of a caption: 75, 150 or 225"},
    {ROW(weighted_captions), .help = "(x:1.3), (x) and [x] in captions weigh, as in prompts"},
    {ROW(save_model_as), .arg = "KIND", .choices = containers, .def = "safetensors", .help = "kind of the LoRA file"},
    {ROW(save_precision), .arg = "TYPE", .help = "type of the saved numbers: float, fp16, bf16 (default: as trained)"},
    {ROW(save_every_n_epochs), .arg = "N", .def = "0", .min = 0, .max = 1e9, .help = "save NAME-000001 and so on, too"},
    {ROW(save_n_epoch_ratio), .arg = "N", .def = "0", .min = 0, .max = 1e9, .flags = OPTION_ADVANCED,
     .help = "save so many times in the whole training"},
    {ROW(save_every_n_steps), .arg = "N", .def = "0", .min = 0, .max = 1e9, .help = "save NAME-step00000100 and so on, too"},
    {ROW(save_last_n_epochs), .arg = "N", .def = "0", .min = 0, .max = 1e9, .help = "keep the last N epochs' files; 0: all"},
    {ROW(save_last_n_steps), .arg = "N", .def = "0", .min = 0, .max = 1e9,
     .help = "keep the files of the last N steps (a span of steps, not of files); 0: all"},
    {ROW(save_state), .help = "write a state file with each LoRA, from which --resume goes on"},
    {ROW(save_state_every_n_minutes), .arg = "X", .def = "10", .min = 0, .max = 1e6,
     .help = "a state file for accidents, replaced each time and removed at the end; 0: none"},
    {ROW(resume), .arg = "PATH", .help = "go on from a state file (or the newest one in a folder), bit for bit"},
    {ROW(resume_changed), .help = "go on although options differ from those of the state file"},
    {ROW(no_metadata), .help = "leave out what the file says about its making"},
    {ROW(training_comment), .arg = "TEXT", .help = "a remark in the file's metadata"},
    {ROW(logging_dir), .arg = "DIR", .help = "write TensorBoard logs to a folder named by the time, in here"},
    {ROW(log_prefix), .arg = "TEXT", .help = "put before the time in that folder's name"},
    {ROW(sample_prompts), .arg = "FILE", .help = "draw these prompts while training: one a line, options as in lora generate"},
    {ROW(sample_every_n_steps), .arg = "N", .def = "0", .min = 0, .max = 1e9, .help = "how often, in steps"},
    {ROW(sample_every_n_epochs), .arg = "N", .def = "0", .min = 0, .max = 1e9, .help = "how often, in epochs"},
    {ROW(sample_at_first), .help = "also before the first step"},
    {ROW(sample_sampler), .arg = "NAME", .def = "ddim", .help = "sampler; see lora generate"},
    {ROW(validate_every_n_steps), .arg = "N", .def = "0", .min = 0, .max = 1e9, .help = "measure the validation loss, in steps"},
    {ROW(validate_every_n_epochs), .arg = "N", .def = "1", .min = 0, .max = 1e9, .help = "the same, in epochs"},
    {ROW(max_validation_steps), .arg = "N", .def = "0", .min = 0, .max = 1e9, .flags = OPTION_ADVANCED,
     .help = "batches to measure; 0: all"},
    {ROW(min_snr_gamma), .arg = "X", .def = "0", .min = 0, .max = 1000,
     .help = "give timesteps of little noise less weight (Hang et al. 2023; 5 is usual); 0: do not"},
    {ROW(noise_offset), .arg = "X", .def = "0", .min = 0, .max = 1, .help = "noise of one value for a whole channel, for dark and light pictures"},
    {ROW(noise_offset_random_strength), .flags = OPTION_ADVANCED, .help = "a random share of --noise_offset each time"},
    {ROW(adaptive_noise_scale), .arg = "X", .def = "0", .min = -10, .max = 10, .flags = OPTION_ADVANCED,
     .help = "add this times the latents' mean to --noise_offset"},
    {ROW(multires_noise_iterations), .arg = "N", .def = "0", .min = 0, .max = 64, .help = "noise of ever coarser grain, so many times"},
    {ROW(multires_noise_discount), .arg = "X", .def = "0.3", .min = 0, .max = 1, .help = "how much less each time"},
    {ROW(ip_noise_gamma), .arg = "X", .def = "0", .min = 0, .max = 1, .help = "noise on the input that is not asked back (Ning et al. 2023)"},
    {ROW(ip_noise_gamma_random_strength), .flags = OPTION_ADVANCED, .help = "a random share of --ip_noise_gamma each time"},
    {ROW(loss_type), .arg = "KIND", .choices = losses, .def = "l2", .help = "huber and smooth_l1 mind odd pictures less"},
    {ROW(huber_schedule), .arg = "KIND", .choices = huber_schedules, .def = "snr", .help = "how the width of those changes with the timestep"},
    {ROW(huber_c), .arg = "X", .def = "0.1", .min = 1e-9, .max = 1000, .help = "its width"},
    {ROW(huber_scale), .arg = "X", .def = "1", .min = 1e-9, .max = 1e6, .flags = OPTION_ADVANCED, .help = "a factor on its width"},
    {ROW(prior_loss_target), .arg = "KIND", .choices = prior_targets, .def = "picture",
     .help = "what regularisation pictures are held to: what they show, or (model) what the model without LoRA makes of them"},
    {ROW(debiased_estimation_loss), .help = "weight by 1 / sqrt(snr) (Yu et al. 2023)"},
    {ROW(scale_v_pred_loss_like_noise_pred), .flags = OPTION_ADVANCED, .help = "with --v_parameterization: weigh timesteps as noise prediction does"},
    {ROW(v_pred_like_loss), .arg = "X", .def = "0", .min = 0, .max = 1000, .flags = OPTION_ADVANCED,
     .help = "add so much of the loss that velocity prediction would have"},
    {ROW(zero_terminal_snr), .flags = OPTION_ADVANCED, .help = "with --v_parameterization: the last timestep is noise alone (Lin et al. 2023)"},
    {ROW(min_timestep), .arg = "N", .def = "0", .min = 0, .max = 999, .flags = OPTION_ADVANCED, .help = "first timestep to train"},
    {ROW(max_timestep), .arg = "N", .def = "1000", .min = 1, .max = 1000, .flags = OPTION_ADVANCED, .help = "one beyond the last"},
    {ROW(check), .arg = "N", .def = "0", .min = 0, .max = 1e6, .flags = OPTION_ADVANCED,
     .help = "do not train: run N steps on --device and on the processor in f32, compare every layer and gradient, name the first "
             "beyond its limit; writes nothing"},
    {ROW(max_skipped_steps), .arg = "N", .def = "5", .min = 1, .max = 1e6, .flags = OPTION_ADVANCED,
     .help = "stop after so many steps in a row whose loss or gradients are not finite"},
    {OPTION_IGNORED_FLAG("xformers", "attention never holds the whole matrix of scores here")},
    {OPTION_IGNORED_FLAG("mem_eff_attn", "attention never holds the whole matrix of scores here")},
    {OPTION_IGNORED_FLAG("sdpa", "attention never holds the whole matrix of scores here")},
    {OPTION_IGNORED_FLAG("diffusers_xformers", "attention never holds the whole matrix of scores here")},
    {OPTION_IGNORED_VALUE("num_cpu_threads_per_process", "N", "all processors are used; --threads N changes that")},
    {OPTION_IGNORED_VALUE("max_data_loader_n_workers", "N", "one thread makes batches ahead, and results do not depend on it")},
    {OPTION_IGNORED_FLAG("persistent_data_loader_workers", "one thread makes batches ahead all the time")},
    {OPTION_IGNORED_FLAG("lowram", "the checkpoint is mapped, not read into memory")},
    {OPTION_IGNORED_FLAG("highvram", "nothing is moved between devices")},
    {OPTION_IGNORED_FLAG("no_half_vae", "the VAE is computed in f32 anyway")},
    {OPTION_IGNORED_FLAG("cpu_offload_checkpointing", "on the processor there is nothing to offload")},
    {OPTION_IGNORED_FLAG("torch_compile", "there is no torch here; the graph is planned before it runs")},
    {OPTION_IGNORED_VALUE("dynamo_backend", "NAME", "there is no torch here")},
    {OPTION_IGNORED_VALUE("log_with", "NAME", "logs are TensorBoard's")},
    {0},
};

static int check_text(const struct train_options *o, struct err *err)
{
    if (o->max_token_length != 75 && o->max_token_length != 150 && o->max_token_length != 225)
        return err_usage(err, "--max_token_length %zu is not possible; give 75, 150 or 225", o->max_token_length);
    if (o->network_train_unet_only && o->network_train_text_encoder_only)
        return err_usage(err, "--network_train_unet_only and --network_train_text_encoder_only exclude each other; give one");
    if (strcmp(o->network_module, "networks.lora") != 0)
        return err_usage(err, "--network_module '%s' is not possible; only networks.lora is", o->network_module);
    if (o->dim_from_weights && !o->network_weights)
        return err_usage(err, "--dim_from_weights needs --network_weights FILE");
    if (o->base_weights_multiplier.count > o->base_weights.count)
        return err_usage(err, "--base_weights_multiplier has %zu numbers for %zu files of --base_weights; give one for each",
                         o->base_weights_multiplier.count, o->base_weights.count);
    return 0;
}

static int check_loss(const struct train_options *o, struct err *err)
{
    if (o->min_timestep >= o->max_timestep)
        return err_usage(err, "--min_timestep %zu and --max_timestep %zu leave no timestep; the first must be below the second",
                         o->min_timestep, o->max_timestep);
    if (o->zero_terminal_snr && !o->v_parameterization)
        return err_usage(err, "--zero_terminal_snr needs --v_parameterization: pure noise tells a noise prediction nothing");
    if (o->scale_v_pred_loss_like_noise_pred && !o->v_parameterization)
        return err_usage(err, "--scale_v_pred_loss_like_noise_pred needs --v_parameterization");
    if (o->v_pred_like_loss > 0 && o->v_parameterization)
        return err_usage(err, "--v_pred_like_loss and --v_parameterization exclude each other");
    if (o->adaptive_noise_scale != 0 && o->noise_offset == 0)
        return err_usage(err, "--adaptive_noise_scale needs --noise_offset X");
    if (o->noise_offset != 0 && o->multires_noise_iterations > 0)
        return err_usage(err, "--noise_offset and --multires_noise_iterations exclude each other; give one");
    return 0;
}

static int check_optimizer(struct train_options *o, struct err *err)
{
    if (o->use_8bit_adam + o->use_lion_optimizer + (o->optimizer_type != NULL) > 1)
        return err_usage(err, "--use_8bit_adam, --use_lion_optimizer and --optimizer_type exclude each other; give one");
    if (!o->optimizer_type)
        o->optimizer_type = o->use_8bit_adam ? "AdamW8bit" : o->use_lion_optimizer ? "Lion" : "AdamW";
    if (o->full_fp16 && o->mixed_precision != PRECISION_FP16)
        return err_usage(err, "--full_fp16 needs --mixed_precision fp16");
    return 0;
}

int train_check_options(const struct command_run *run, struct train_options *o, struct err *err)
{
    bool samples = o->sample_every_n_steps || o->sample_every_n_epochs || o->sample_at_first;

    if (o->check && (o->base_dtype == BASE_INT8 || o->base_dtype == BASE_NF4 || strstr(o->device, ":int8") || strstr(o->device, ":nf4")))
        return err_usage(err, "--check compares arithmetic; weights in 8 or 4 bits are other weights, so leave --base_dtype out");
    if (check_text(o, err) || check_loss(o, err) || check_optimizer(o, err))
        return -1;
    if (samples && !o->sample_prompts)
        return err_usage(err, "no prompts to draw; give --sample_prompts FILE");
    if (o->sample_prompts && !samples)
        o->sample_every_n_epochs = 1;
    if (o->resume_changed && !o->resume)
        return err_usage(err, "--resume_changed needs --resume PATH");
    if (o->skip_until_initial_step && !option_given(run->values, &o->initial_step) && !option_given(run->values, &o->initial_epoch))
        return err_usage(err, "--skip_until_initial_step needs --initial_step N or --initial_epoch N");
    if (o->log_prefix && !o->logging_dir)
        return err_usage(err, "--log_prefix needs --logging_dir DIR");
    if (!option_given(run->values, &o->network_alpha))
        o->network_alpha = (double)o->network_dim;
    return 0;
}
