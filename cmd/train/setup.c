/* Opens everything that a training works with, and tells beforehand how much memory it will take. */
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "cmd/memory.h"
#include "cmd/train/train.h"
#include "formats/hash.h"
#include "ref/base/rng.h"
#include "ref/base/thread.h"
#include "ref/model/unet.h"
#include "ref/op/kernel_bf16.h"

/* ---- Device and precision ---- */

/* Whether a device's name says an arithmetic, "cuda:tf32:1"; a number or a form of weights is none. */
static bool names_arithmetic(const char *device)
{
    static const char *const words[] = {":f32", ":tf32", ":bf16", ":fp16", ":f16"};

    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (strstr(device, words[i]))
            return true;
    return false;
}

/* Frozen weights in a form of their own lie on a GPU only; the others have the arithmetic's type there. */
static int check_base(const struct trainer *t, struct err *err)
{
    static const enum dtype types[] = {DT_COUNT, DT_F16, DT_BF16};
    int base = t->o->base_dtype;

    if (base != BASE_AS_IS && !t->device.plugin)
        return err_set(err, "--base_dtype is for GPUs: the processor reads frozen weights as they are in the file; leave it out%s%s",
                       t->device.note[0] ? " - " : "", t->device.note);
    if ((base == BASE_FP16 || base == BASE_BF16) && t->device.info.arithmetic != types[base])
        return err_set(err, "--base_dtype %s: the device keeps plain weights in its arithmetic's type, %s; give --mixed_precision %s as well",
                       dtype_name(types[base]), dtype_name(t->device.info.arithmetic), base == BASE_FP16 ? "fp16" : "bf16");
    return 0;
}

/* --mixed_precision asks for a kind of arithmetic, unless --device names one; what there is, the device says. */
static int open_device(struct trainer *t, struct err *err)
{
    static const char *const asked[] = {":f32", ":fp16", ":bf16"}, *const bases[] = {"", "", "", ":int8", ":nf4"};
    static const enum dtype types[] = {DT_F32, DT_F16, DT_BF16};
    struct train_options *o = t->o;
    bool cpu = strcmp(o->device, "cpu") == 0, named = names_arithmetic(o->device);
    char device[128];

    snprintf(device, sizeof device, "%s%s%s", o->device, named ? "" : asked[o->mixed_precision], bases[o->base_dtype]);
    if (cpu) /* leaves out what the processor cannot do */
        snprintf(device, sizeof device, "cpu%s", o->mixed_precision == PRECISION_BF16 && kernel_has_bf16() ? ":bf16" : "");
    if (offload_open(&t->device, device, NULL, err) || check_base(t, err))
        return -1;
    if (t->device.note[0])
        command_note(t->run, "%s", t->device.note);
    command_note(t->run, "device: %s, arithmetic in %s%s", t->device.info.text, dtype_name(t->device.info.arithmetic),
                 t->device.info.arithmetic == types[o->mixed_precision] || named ? ""
                 : o->mixed_precision == PRECISION_FP16 ? " (it has no fp16); the loss is scaled as in fp16"
                                                        : " (it has no other)");
    return 0;
}

/* ---- Model ---- */

static int open_model(struct trainer *t, struct err *err)
{
    const struct train_options *o = t->o;
    struct unet_config config;

    if (model_open(&t->model, o->pretrained_model_name_or_path, err) || model_need(t->model, MODEL_UNET, err) ||
        model_need(t->model, MODEL_TEXT_ENCODER, err) || (o->v2 && model_expect_v2(t->model, true, err)) ||
        model_weights_open(&t->source, t->model, true, err) || weights_new(&t->w, model_weights_source(t->source), err) ||
        unet_config(t->w, &config, err))
        return -1;
    if (latents_open(&t->vae, o->vae ? o->vae : o->pretrained_model_name_or_path, &t->device.ops, err))
        return -1;
    t->factor = latents_factor(t->vae);
    t->channels = latents_channels(t->vae);
    if (config.in_channels != t->channels || config.out_channels != t->channels)
        return err_set(err, "cannot train on '%s': its U-Net takes %zu channels and gives %zu, the VAE has %zu; give a model for text "
                            "to image (not one for inpainting or depth)",
                       t->model->path, config.in_channels, config.out_channels, t->channels);
    t->prediction = o->v_parameterization || t->model->prediction == MODEL_V ? PREDICT_V : PREDICT_EPS;
    if (t->prediction == PREDICT_V && !o->v_parameterization)
        command_note(t->run, "the model says that it predicts velocity: --v_parameterization is on");
    if (o->v_parameterization && t->model->arch != MODEL_SD2)
        command_warn(t->run, "--v_parameterization is unusual for Stable Diffusion 1");
    schedule_init(&t->schedule);
    if (o->zero_terminal_snr)
        schedule_zero_snr(&t->schedule);
    return 0;
}

/* Modules of text layers that clip_skip leaves out have no effect, and no layer to go to. */
static int open_base(struct trainer *t, struct err *err)
{
    const struct train_options *o = t->o;
    size_t kept = 0;

    for (size_t i = 0; i < o->base_weights.count; i++) {
        double x = i < o->base_weights_multiplier.count ? o->base_weights_multiplier.item[i] : 1;

        if (generate_loras_add(&t->base, t->model, o->base_weights.item[i], x, x, 0, err))
            return -1;
    }
    for (size_t i = 0; i < t->base.count; i++) {
        const struct layers_lora *m = &t->base.item[i];

        if (m->part != MODEL_TEXT_ENCODER || train_graph_keeps(t->model->text_layers, o->clip_skip, m->path))
            t->base.item[kept++] = *m;
    }
    t->base.count = kept;
    return 0;
}

static int open_text(struct trainer *t, struct err *err)
{
    bool trained = !t->o->network_train_unet_only;
    struct text_options options = {.chunks = t->o->max_token_length / 75, .sd2 = t->model->arch == MODEL_SD2,
                                   .weighted = t->o->weighted_captions, .clip_skip = t->o->clip_skip, .most = (size_t)64 << 20, .loras = t->base.item,
                                   .lora_count = t->base.count};

    t->chunks = options.chunks;
    if (t->o->clip_skip > t->model->text_layers)
        return err_usage(err, "--clip_skip %zu leaves nothing of a text encoder of %zu layers", t->o->clip_skip, t->model->text_layers);
    return text_open(&t->text, t->w, &t->device.ops, &options, !trained, err);
}

static void fill_setup(struct trainer *t)
{
    const struct train_options *o = t->o;

    t->setup = (struct train_setup){
        .w = t->w, .ops = &t->device.ops, .net = t->net, .base = t->base.item, .base_count = t->base.count,
        .text_trained = !o->network_train_unet_only, .weighted = o->weighted_captions,
        .text_layers = t->model->text_layers, .clip_skip = o->clip_skip, .checkpoint = o->gradient_checkpointing,
        .huber = o->loss_type != LOSS_L2, .masked = dataset_has_masks(t->data),
        .dropout = o->network_dropout > 0                                          ? DROP_EACH
                   : t->args.rank_dropout > 0 || t->args.module_dropout > 0 ? DROP_SAMPLE
                                                                                   : DROP_NONE};
}

/* ---- Optimizer ---- */

/* LoRA+ (Hayou et al. 2024): up learns faster than down. */
static int plus_group(struct trainer *t, size_t group, double ratio, size_t *out, struct err *err)
{
    char name[32];

    *out = group;
    if (ratio == 0 || ratio == 1)
        return 0;
    snprintf(name, sizeof name, "%.26s/plus", t->group[group].name);
    for (*out = 0; *out < t->groups; ++*out)
        if (strcmp(t->group[*out].name, name) == 0)
            return 0;
    if (t->groups == TRAIN_MAX_GROUPS)
        return err_usage(err, "more than %d different learning rates; let more blocks have the same", TRAIN_MAX_GROUPS);
    memcpy(t->group[*out].name, name, sizeof name);
    t->group[t->groups++].lr = t->group[group].lr * ratio;
    return 0;
}

static int make_optimizer(struct trainer *t, struct err *err)
{
    struct optim_tensor *list = mem_zero(2 * t->net->count, sizeof *list, "the optimizer", err);
    struct optim_options options = {.round_to_f16 = t->o->full_fp16};
    size_t n = 0;
    int rc = -1;

    t->grads = mem_zero(2 * t->net->count, sizeof *t->grads, "the optimizer", err);
    for (size_t i = 0; list && t->grads && i < t->net->count; i++) {
        const struct network_module *m = &t->net->module[i];
        double ratio = m->spec.part == MODEL_UNET ? t->args.plus_unet : t->args.plus_text;
        size_t up;

        if (!train_graph_has(&t->setup, m))
            continue;
        if (plus_group(t, m->spec.group, ratio, &up, err))
            goto out;
        t->grads[n] = m->ddown;
        list[n++] = (struct optim_tensor){m->down.data, m->down.shape, m->spec.group};
        t->grads[n] = m->dup;
        list[n++] = (struct optim_tensor){m->up.data, m->up.shape, up};
    }
    options.groups = t->groups;
    if (list && t->grads)
        rc = optim_new(&t->optim, t->o->optimizer_type, t->o->optimizer_args.item, t->o->optimizer_args.count, &options, list, n, err);
out:
    free(list);
    return rc;
}

/* Whether factors and optimizer stay with the program: a check compares both sides' gradients there, and limits on norms are laid on
 * there. */
static bool stays(const struct trainer *t)
{
    return t->o->check || t->o->scale_weight_norms > 0;
}

static int open_schedule(struct trainer *t, struct err *err)
{
    const struct train_options *o = t->o;
    struct lr_options l = {.name = o->lr_scheduler, .warmup = o->lr_warmup_steps, .decay = o->lr_decay_steps, .total = t->steps,
                           .cycles = o->lr_scheduler_num_cycles, .power = o->lr_scheduler_power,
                           .timescale = o->lr_scheduler_timescale, .min_ratio = o->lr_scheduler_min_lr_ratio,
                           .rate = o->learning_rate};

    for (size_t i = 0; i < o->lr_scheduler_args.count; i++) {
        const char *item = o->lr_scheduler_args.item[i];

        if (strncmp(item, "step_rules=", 11) != 0)
            return err_usage(err, "--lr_scheduler_args has no '%s'; step_rules=1:100,0.1 is possible", item);
        l.rules = item + 11;
    }
    if (strcmp(o->lr_scheduler, "constant") == 0 && o->lr_warmup_steps > 0) { /* as in sd-scripts, where it has no effect either */
        command_warn(t->run, "the schedule 'constant' has no warm-up, so --lr_warmup_steps changes nothing; use constant_with_warmup");
        l.warmup = 0;
    }
    return lr_open(&t->lr, &l, err);
}

/* ---- Data ---- */

static int open_data(struct trainer *t, struct err *err)
{
    const struct train_options *o = t->o;
    struct dataset_setup setup = {.run = t->run, .seed = t->seed, .factor = t->factor, .channels = t->channels,
                                  .max_tokens = o->max_token_length, .weighted = o->weighted_captions,
                                  .max_steps = o->max_train_epochs ? 0 : o->max_train_steps};

    if (dataset_open(&t->data, &o->data, &setup, err))
        return -1;
    if (o->prior_loss_target == PRIOR_MODEL && dataset_reg_samples(t->data) == 0)
        return err_usage(err, "--prior_loss_target model needs regularisation pictures; give --reg_data_dir DIR");
    if (dataset_has_masks(t->data) && o->loss_type != LOSS_L2)
        return err_usage(err, "a masked loss goes with --loss_type l2 only");
    return dataset_print_findings(t->data, t->run, err);
}

/* Epochs and steps as v0.3.0 counts them: a step is so many batches, the last of an epoch may be short. */
static void plan_steps(struct trainer *t)
{
    const struct train_options *o = t->o;

    t->validation = dataset_validation(t->data);
    t->batches = dataset_batches(t->data);
    t->steps_per_epoch = (t->batches + o->gradient_accumulation_steps - 1) / o->gradient_accumulation_steps;
    t->steps = o->max_train_epochs ? o->max_train_epochs * t->steps_per_epoch : o->max_train_steps;
    t->epochs = (t->steps + t->steps_per_epoch - 1) / t->steps_per_epoch;
}

/* --initial_step and --initial_epoch. As sd-scripts counts: with --skip_until_initial_step the training goes on there, without it
 * the epochs before are left out and the steps counted from 0. The rates of the schedule go on where they would have been. */
static int begin_later(struct trainer *t, struct err *err)
{
    const struct train_options *o = t->o;
    bool by_step = option_given(t->run->values, &o->initial_step), by_epoch = option_given(t->run->values, &o->initial_epoch);
    size_t step = by_step ? o->initial_step : (o->initial_epoch - 1) * t->steps_per_epoch, before = t->now.step, left;

    if ((by_step || by_epoch) && !t->resumed_same_start) {
        if (step >= t->steps)
            return err_usage(err, "--initial_%s leaves none of %zu steps; raise --max_train_steps", by_step ? "step" : "epoch", t->steps);
        t->now.epoch = step / t->steps_per_epoch;
        t->now.step = o->skip_until_initial_step ? step : 0;
        t->now.batch = o->skip_until_initial_step ? step % t->steps_per_epoch * o->gradient_accumulation_steps : 0;
        t->now.lr_from += (int64_t)t->now.step - (int64_t)before;
        t->now.loss_sum = (double)(t->now.loss_count = 0);
        command_note(t->run, "beginning with epoch %zu, at step %zu", t->now.epoch + 1, t->now.step);
    }
    left = t->now.epoch < t->epochs ? (t->epochs - t->now.epoch) * t->steps_per_epoch - t->now.batch / o->gradient_accumulation_steps : 0;
    if (t->steps > t->now.step + left)
        t->steps = t->now.step + left;
    return 0;
}

/* ---- Memory ---- */

/* For batches of at most n samples and `area` latent pixels in all. */
static int make_buffers(struct trainer *t, size_t n, size_t area, struct err *err)
{
    size_t latents = area * t->channels * sizeof(float), tokens = n * t->chunks * TOKEN_CHUNK, most_rank = 1, rows = n * t->chunks;
    float **each[] = {&t->in.x0, &t->in.noise, &t->in.noisy, &t->in.target, &t->ahead.x0, &t->ahead.noise, &t->ahead.noisy,
                      &t->ahead.target};

    for (size_t i = 0; i < t->net->count; i++)
        most_rank = t->net->module[i].spec.rank > most_rank ? t->net->module[i].spec.rank : most_rank;
    if (t->setup.dropout == DROP_EACH)
        rows = area > tokens ? area : tokens;
    for (size_t i = 0; i < sizeof each / sizeof *each; i++)
        if (!(*each[i] = mem_new(latents, "a batch", err)))
            return -1;
    t->moments = mem_new(2 * latents, "a batch", err);
    t->context = mem_new(n * text_size(t->text) * sizeof(float), "a batch", err);
    t->emphasis = mem_new(t->setup.text_trained && t->setup.weighted ? n * train_tokens(t->chunks) * t->model->context_width * sizeof(float) : 0, "a batch", err);
    t->mask = mem_new(t->setup.dropout == DROP_NONE ? 0 : rows * most_rank * sizeof(float), "a batch", err);
    t->scratch = mem_zero(t->o->gradient_accumulation_steps > 1 ? t->net->size : 0, sizeof(float), "a batch", err);
    t->ids = mem_new(tokens * sizeof *t->ids, "a batch", err);
    t->rows = mem_new(n * train_tokens(t->chunks) * sizeof *t->rows, "a batch", err);
    t->in.sample = mem_zero(n, sizeof *t->in.sample, "a batch", err);
    t->ahead.sample = mem_zero(n, sizeof *t->ahead.sample, "a batch", err);
    t->row = mem_zero(n, sizeof *t->row, "a batch", err);
    t->pick = mem_zero(n, sizeof *t->pick, "a batch", err);
    return t->moments && t->emphasis && t->context && t->mask && t->scratch && t->ids && t->rows && t->in.sample && t->ahead.sample && t->row && t->pick ? 0 : -1;
}

/* The shape of the largest batch of d, by its number of latent pixels. */
static void largest_shape(const struct trainer *t, const struct dataset *d, struct train_shape *s)
{
    const struct dataset_bucket *b;
    size_t n = dataset_buckets(d, &b);

    for (size_t i = 0; i < n; i++) {
        struct train_shape x = {b[i].batch, b[i].height / t->factor, b[i].width / t->factor, t->chunks};

        if (x.n * x.h * x.w > s->n * s->h * s->w)
            *s = x;
    }
}

static const char *less_memory(const struct train_options *o)
{
    return !o->gradient_checkpointing ? "use --gradient_checkpointing" : "use a smaller --train_batch_size or --resolution";
}

/* A device with memory of its own holds activations, weights and factors, and the optimizer where there is room for it. What its
 * libraries load with the first run, buffers for copying and recordings came to at most MARGIN where it was measured. */
static int forecast_device(struct trainer *t, size_t bytes, struct err *err)
{
    enum { MARGIN = 144 << 20 };
    const struct train_options *o = t->o;
    size_t optimizer = stays(t) ? 0 : optim_device_bytes(t->optim, t->device.ops.device);
    char a[32], b[32];

    bytes += MARGIN;
    t->no_room = optimizer && bytes <= t->device.info.free && bytes + optimizer > t->device.info.free;
    if (t->no_room)
        command_note(t->run, "the device has no room for the optimizer: the processor makes its steps");
    else
        bytes += optimizer;
    command_bytes(bytes, a, sizeof a);
    command_bytes(t->device.info.free, b, sizeof b);
    if (bytes > t->device.info.free)
        return err_set(err, "not enough memory on the device: the training needs %s, %s are free; %s%s", a, b, less_memory(o),
                       o->base_dtype == BASE_AS_IS ? ", or --base_dtype nf4" : ", or --device cpu");
    command_note(t->run, "memory of the device: %s at the peak; %s are free", a, b);
    return 0;
}

/* Graph memory of the largest batch, the LoRA, the optimizer and what is kept, told and compared with what there is. */
static int forecast(struct trainer *t, const struct train_shape *largest, struct err *err)
{
    struct train_graph probe = {0};
    const struct optim_state *row;
    size_t rows = optim_state(t->optim, &row), owned, mapped, vae = 0, arena, device;
    struct memory_need need = {0};
    int rc = -1;

    if (train_graph_build(&probe, &t->setup, largest, TRAIN_STEP, err) || run_forecast(probe.g, &t->device.ops, &arena, &device, err))
        goto out;
    weights_bytes(t->w, &owned, &mapped);
    if (!dataset_wants_cache(t->data) &&
        latents_forecast(t->vae, true, largest->h * t->factor, largest->w * t->factor, &vae, NULL, err))
        goto out;
    need.bytes = owned + t->base.arena.total + (t->setup.text_trained ? 0 : text_bytes(t->text));
    if (!t->device.ops.device)
        need.bytes += arena + vae;
    else if (forecast_device(t, arena + device + vae, err))
        goto out;
    for (size_t i = 0; i < rows; i++)
        need.bytes += row[i].count * dtype_size(row[i].dtype);
    if (dataset_wants_cache(t->data))
        need.bytes += dataset_pictures(t->data) * largest->h * largest->w * t->channels * sizeof(float) / largest->n;
    need.mapped = mapped;
    rc = memory_check(t->run, &need, less_memory(t->o), err);
out:
    train_graph_free(&probe);
    return rc;
}

static int prepare_memory(struct trainer *t, struct err *err)
{
    size_t n = dataset_max_batch(t->data);

    largest_shape(t, t->data, &t->largest);
    if (t->validation)
        largest_shape(t, t->validation, &t->largest);
    if (t->validation && dataset_max_batch(t->validation) > n)
        n = dataset_max_batch(t->validation);
    if (forecast(t, &t->largest, err))
        return -1;
    return make_buffers(t, n, t->largest.n * t->largest.h * t->largest.w, err);
}

/* ---- Latents ---- */

static int cache_latents(struct trainer *t, struct err *err)
{
    if (dataset_wants_cache(t->data)) {
        if (dataset_cache(t->data, t->run, dataset_encode_latents, t->vae, t->vae_hash, err))
            return -1;
        latents_release(t->vae);
    }
    return 0;
}

/* After a state has been read, and before there is a graph. */
static int move_optimizer(struct trainer *t, struct err *err)
{
    return stays(t) || t->no_room ? 0 : optim_to_device(t->optim, t->device.ops.device, &t->on_device, err);
}

/* ---- All of it ---- */

static int choose_seed(struct trainer *t, struct err *err)
{
    uint32_t any;

    if (option_given(t->run->values, &t->o->seed)) {
        t->seed = (uint64_t)t->o->seed;
        return 0;
    }
    if (t->o->resume)
        return train_state_seed(t->o->resume, &t->seed, err);
    if (getrandom(&any, sizeof any, 0) != sizeof any)
        return err_set(err, "the system gives no random number for a seed; give one with --seed N");
    t->seed = any >> 1; /* below 2^31, as people write them */
    t->o->seed = (int64_t)t->seed;
    command_note(t->run, "seed %llu; the same --seed gives the same LoRA again", (unsigned long long)t->seed);
    return 0;
}

static int name_vae(struct trainer *t, struct err *err)
{
    const char *path = t->o->vae ? t->o->vae : t->o->pretrained_model_name_or_path;
    struct err none = {0};
    char hash[HASH_LEGACY_TEXT];

    (void)err;
    snprintf(t->vae_name, sizeof t->vae_name, "%s", path);
    if (hash_legacy(path, hash, &none)) /* a folder: its name must do */
        snprintf(hash, sizeof hash, "folder");
    memcpy(t->vae_hash, hash, sizeof hash);
    return 0;
}

int train_open(struct trainer *t, const struct command_run *run, struct train_options *o, struct err *err)
{
    t->run = run;
    t->o = o;
    t->now.loss_scale = o->mixed_precision == PRECISION_FP16 ? 65536 : 1;
    if (train_check_options(run, o, err) || train_network_args(&t->args, o, err) || train_check_samples(t, err) || choose_seed(t, err) || open_device(t, err) ||
        open_model(t, err) || open_base(t, err) || open_text(t, err) || name_vae(t, err) || open_data(t, err))
        return -1;
    if (o->data.debug_dataset)
        return 0;
    plan_steps(t);
    if (train_make_network(t, err))
        return -1;
    fill_setup(t);
    if (make_optimizer(t, err) || open_schedule(t, err) || train_meta(t, err) || prepare_memory(t, err))
        return -1;
    if (o->resume && train_state_read(t, err))
        return -1;
    if (begin_later(t, err))
        return -1;
    return train_seen_open(t, err) || cache_latents(t, err) || move_optimizer(t, err) ? -1 : 0;
}

static void free_inputs(struct train_inputs *in)
{
    free(in->x0);
    free(in->noise);
    free(in->noisy);
    free(in->target);
    free(in->sample);
}

void train_close(struct trainer *t)
{
    struct err none = {0};

    (void)train_meta_complete(t, &none); /* its threads use the options */
    train_seen_close(t);
    train_drop_graphs(t);
    free(t->graph);
    optim_free(t->optim);
    free(t->grads);
    network_free(t->net);
    dataset_close(t->data);
    text_close(t->text);
    generate_loras_free(&t->base);
    latents_close(t->vae);
    weights_free(t->w);
    model_weights_close(t->source);
    model_close(t->model);
    offload_close(&t->device);
    lora_meta_free(&t->meta);
    free_inputs(&t->in);
    free_inputs(&t->ahead);
    free(t->moments);
    free(t->context);
    free(t->emphasis);
    free(t->mask);
    free(t->scratch);
    free(t->ids);
    free(t->rows);
    free(t->pick);
    free(t->row);
    free(t->last_written);
}
