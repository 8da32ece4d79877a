/* lora train inside.
 *
 *   train.c          the command: what happens in which order
 *   options.c        option rows; what they may not ask for together
 *   modules.c        which modules are trained, with which rank, alpha and learning rate
 *   setup.c          opens everything: device, model, captions, data, optimizer; the memory forecast
 *   noise.c          what is random in a step: noise, timesteps, masks; targets and loss weights
 *   inputs.c         what a batch becomes before it goes into a step
 *   step.c           one optimizer step
 *   check.c          steps on the device held against the processor's
 *   loop.c           epochs and steps; when something is saved, tried or measured; signals
 *   validate.c       the loss of pictures that are not learned
 *   save.c, meta.c   LoRA files and what they say about their making
 *   state.c          the state file, from which a run goes on bit for bit
 *   sample.c         pictures drawn while training
 *   seen.c           what a person sees: progress, report.html, TensorBoard's logs
 *   train_graph, text, dataset, report: headers of their own
 *
 * Everything random is a function of (seed, what it is for, step, position), so a run that goes on needs counters only.
 */
#ifndef CMD_TRAIN_TRAIN_H
#define CMD_TRAIN_TRAIN_H

#include <signal.h>

#include "cmd/command.h"
#include "cmd/generate/pipe.h"
#include "cmd/latents.h"
#include "cmd/lora_meta.h"
#include "cmd/model_weights.h"
#include "cmd/progress.h"
#include "cmd/train/dataset.h"
#include "cmd/train/logs.h"
#include "cmd/train/report.h"
#include "cmd/train/text.h"
#include "cmd/train/train_graph.h"
#include "formats/model.h"
#include "offload/offload.h"
#include "ref/diffusion/schedule.h"
#include "ref/optim/lr.h"
#include "ref/optim/optim.h"

#define TRAIN_LATENT_SCALE 0.18215f /* what SD1 and SD2 multiply the VAE's latents with (Rombach et al. 2022, D.1) */

enum train_precision { PRECISION_NO, PRECISION_FP16, PRECISION_BF16 };
enum train_base { BASE_AS_IS, BASE_FP16, BASE_BF16, BASE_INT8, BASE_NF4 };
enum train_container { SAVE_SAFETENSORS, SAVE_CKPT, SAVE_PT };
enum train_prior { PRIOR_PICTURE, PRIOR_MODEL };
enum train_huber { HUBER_SNR, HUBER_EXPONENTIAL, HUBER_CONSTANT };

struct train_options {
    struct dataset_options data;
    /* model */
    const char *pretrained_model_name_or_path, *vae, *device;
    bool v2, v_parameterization;
    size_t clip_skip, max_token_length;
    /* network */
    const char *network_module, *network_weights, *training_comment;
    size_t network_dim;
    double network_alpha, network_dropout, scale_weight_norms;
    struct string_list network_args, base_weights;
    struct float_list base_weights_multiplier;
    bool network_train_unet_only, network_train_text_encoder_only, dim_from_weights;
    /* steps */
    size_t max_train_steps, max_train_epochs, gradient_accumulation_steps, initial_epoch, initial_step;
    bool skip_until_initial_step;
    int64_t seed;
    double learning_rate, unet_lr, text_encoder_lr, max_grad_norm;
    const char *optimizer_type, *lr_scheduler;
    bool use_8bit_adam, use_lion_optimizer;
    struct string_list optimizer_args, lr_scheduler_args;
    double lr_warmup_steps, lr_decay_steps, lr_scheduler_num_cycles, lr_scheduler_power, lr_scheduler_timescale,
        lr_scheduler_min_lr_ratio;
    bool gradient_checkpointing, full_fp16, weighted_captions;
    int mixed_precision, base_dtype;
    /* noise and loss */
    double noise_offset, adaptive_noise_scale, multires_noise_discount, ip_noise_gamma, min_snr_gamma, v_pred_like_loss, huber_c,
        huber_scale;
    size_t multires_noise_iterations, min_timestep, max_timestep;
    bool noise_offset_random_strength, ip_noise_gamma_random_strength;
    bool debiased_estimation_loss, scale_v_pred_loss_like_noise_pred, zero_terminal_snr;
    int loss_type, huber_schedule, prior_loss_target;
    /* output */
    const char *output_dir, *output_name, *resume, *logging_dir, *log_prefix;
    struct option_dtype save_precision;
    int save_model_as;
    size_t save_every_n_epochs, save_every_n_steps, save_last_n_epochs, save_last_n_steps, save_n_epoch_ratio;
    double save_state_every_n_minutes;
    bool save_state, no_metadata, resume_changed;
    size_t max_skipped_steps, check;
    /* trying and measuring */
    const char *sample_prompts, *sample_sampler;
    size_t sample_every_n_steps, sample_every_n_epochs, validate_every_n_steps, validate_every_n_epochs, max_validation_steps;
    bool sample_at_first;
};

extern const struct option_row train_option_rows[];

/* Usage errors that the options alone show; notes on what a choice means here. */
int train_check_options(const struct command_run *run, struct train_options *o, struct err *err);

/* ---- Modules ---- */

enum { TRAIN_MAX_GROUPS = 64 };

/* A group of factors with one learning rate. */
struct train_group {
    char name[32]; /* "textencoder", "unet", with a block or "plus" behind it: what logs call it */
    double lr;
};

/* What --network_args says. Lists are of 25 blocks: IN00-IN11, MID, OUT00-OUT11. */
struct train_network_args {
    size_t dim, conv_dim; /* conv_dim 0: no 3x3 convolutions */
    double alpha, conv_alpha, rank_dropout, module_dropout, plus_unet, plus_text; /* plus: LoRA+ ratio of up to down; 0: 1 */
    bool by_block, conv_by_block;
    size_t block_dim[25], conv_block_dim[25];
    double block_alpha[25], conv_block_alpha[25], block_lr[25];
};

struct trainer;

int train_network_args(struct train_network_args *a, const struct train_options *o, struct err *err);

/* Makes t->net from the model's layers, with start values from t->seed or --network_weights, and t->group. */
int train_make_network(struct trainer *t, struct err *err);

/* ---- The run ---- */

/* Where a run stands; all that a state file holds beside factors and the optimizer's state. */
struct train_counters {
    size_t step;  /* optimizer steps done or skipped */
    size_t epoch; /* epochs done */
    size_t batch; /* batches done in this epoch */
    size_t skipped, skipped_in_row; /* steps that were not taken: loss or gradients not finite */
    double loss_scale;              /* fp16 */
    size_t good_steps;              /* since the scale changed */
    double loss_sum;                /* of this epoch */
    size_t loss_count;
    double seconds;                 /* spent in this training, all runs of it */
    int64_t lr_from;                /* the step at which the schedule of learning rates began; --initial_step moves it */
};

/* A batch and what is drawn for it. */
struct train_inputs {
    const struct dataset_batch *b; /* NULL: none yet */
    bool drawn;
    int rc; /* of taking the batch, and why not */
    struct err err;
    float *x0, *noise, *noisy, *target; /* [largest batch] latents */
    struct train_sample *sample;        /* [largest batch] */
};

struct trainer {
    const struct command_run *run;
    struct train_options *o;
    struct train_network_args args;
    uint64_t seed;
    struct offload device;
    struct model *model;
    struct model_weights *source;
    struct weights *w;
    struct generate_loras base; /* of --base_weights: part of the model that is trained on */
    struct latents *vae;
    char vae_name[512], vae_hash[16];
    struct text *text;
    struct dataset *data, *validation;
    struct network *net;
    struct train_group group[TRAIN_MAX_GROUPS];
    size_t groups;
    struct train_setup setup;
    struct schedule schedule;
    enum prediction prediction;
    size_t factor, channels, chunks;
    /* graphs, one for each shape of batch seen so far */
    struct train_graph **graph;
    size_t graph_count, graph_cap;
    /* optimizer */
    struct optim *optim;
    const float **grads; /* in the order of the optimizer's tensors */
    bool no_room;        /* the device has none for the optimizer */
    bool on_device;      /* optimizer, factors and gradients are; net has the factors after optim_fetch() */
    struct lr_schedule lr;
    /* the plan */
    size_t batches, steps_per_epoch, epochs, steps;
    struct train_counters now;
    bool resumed_same_start; /* the state's run had the same --initial_* options, which are done with */
    bool diverged; /* loss or gradients stayed not finite: nothing more is written */
    /* memory of a step */
    struct train_inputs in, ahead; /* the batch at work, and the one after it */
    float *context, *emphasis, *scratch, *mask, *moments, *row;
    int32_t *ids, *rows;
    size_t *pick; /* which samples of a batch go through a graph */
    struct train_shape largest; /* batch, by its latent pixels */
    /* outputs */
    struct lora_meta meta;
    struct train_hash *hash[2];   /* of the model and VAE files, for the metadata: meta.c */
    char *last_written;           /* the newest LoRA file */
    struct progress *progress;
    struct logs *logs;
    struct report *report;
    double page_at, page_seconds; /* when the page was last written on the way, and how long that took */
    double step_loss, step_norm, step_lr[TRAIN_MAX_GROUPS], validation_loss;
};

/* Opens everything up to the point where the first step could run. trainer is zeroed; train_close() frees, also after an
 * error. */
int train_open(struct trainer *t, const struct command_run *run, struct train_options *o, struct err *err);
void train_close(struct trainer *t);

/* The graph for a shape, made when it is new. */
int train_get_graph(struct trainer *t, const struct train_shape *shape, enum train_graph_kind kind, struct train_graph **out,
                    struct err *err);

/* Frees the memory of all graphs (activations, not weights or factors); they come again when needed. */
void train_drop_graphs(struct trainer *t);

/* ---- Randomness (noise.c) ---- */

enum train_stream { STREAM_NOISE, STREAM_TIMESTEP, STREAM_MASK, STREAM_VAE, STREAM_VALIDATION };

/* A seed for one use: mixes all five well (splitmix64). */
uint64_t train_seed(uint64_t seed, enum train_stream stream, uint64_t step, uint64_t micro, uint64_t position);

/* One sample of a step: what is random about it, and what follows. */
struct train_sample {
    size_t timestep;
    float weight, delta;
};

/* noisy, target [h, w, channels] from x0 (scaled latents) and noise drawn with `seed`; s filled from timestep and the sample's own
 * weight. noise [h, w, channels] is scratch. fixed: no augmentation of the noise (validation). */
void train_draw(const struct trainer *t, const float *x0, size_t h, size_t w, uint64_t seed, bool fixed, float weight, float *noise,
                float *noisy, float *target, struct train_sample *s);

size_t train_draw_timestep(const struct trainer *t, uint64_t seed);

/* mask [count] for one module: dropouts of activations, ranks, and the module. rows x rank, rows_per_sample 1 when one vector
 * serves a sample. */
void train_draw_mask(const struct train_network_args *a, double dropout, uint64_t seed, float *mask, size_t rows, size_t rank,
                     size_t rows_per_sample);

/* ---- Inputs (inputs.c) ---- */

/* Takes the next batch into t->ahead and draws what it needs at this place, without touching a device. What goes wrong shows when the
 * batch is used. */
void train_look_ahead(struct trainer *t, struct dataset_prefetch *data, size_t step, size_t micro);

/* Makes the batch that was looked at ahead, or else the next one, the one at work. */
int train_next_batch(struct trainer *t, struct dataset_prefetch *data, size_t micro, const struct dataset_batch **b, struct err *err);

/* Writes everything a graph reads for the batch at work. */
int train_write_next(struct trainer *t, struct train_graph *g, size_t micro, double loss_gradient, struct err *err);

/* The same for any batch, drawn anew. */
int train_write_batch(struct trainer *t, struct train_graph *g, const struct dataset_batch *b, size_t micro, double loss_gradient,
                      struct err *err);

/* The same for validation batch number `index`: timesteps and noises follow from it alone. */
int train_write_validation(struct trainer *t, struct train_graph *g, const struct dataset_batch *b, size_t index, struct err *err);

/* ---- Step (step.c) ---- */

/* Hands the network's gradients to the optimizer: cut to --max_grad_norm (norm: theirs, without the loss scale), with the rates of
 * this step; then --scale_weight_norms. */
int train_update(struct trainer *t, double norm, struct err *err);

/* One optimizer step from t->now on: as many batches as belong to it. Advances t->now. 1: the step was skipped. -1: error. */
int train_step(struct trainer *t, struct dataset_prefetch *data, struct err *err);

/* ---- Loop, measuring, trying ---- */

int train_loop(struct trainer *t, struct err *err);

/* Set by SIGINT, SIGTERM, SIGHUP while the loop runs. */
extern volatile sig_atomic_t train_stop_signal;

/* Mean loss over the validation pictures, at fixed timesteps and noises. */
int train_validate(struct trainer *t, double *loss, struct err *err);

/* Reads the prompts once, so that mistakes in them show before the training. */
int train_check_samples(const struct trainer *t, struct err *err);

/* Draws the prompts of --sample_prompts with the factors as they are. */
int train_sample(struct trainer *t, struct err *err);

/* ---- Seen (seen.c) ---- */

/* Opens the page and the logs. What then goes wrong with them is told once and does not end the training. */
int train_seen_open(struct trainer *t, struct err *err);
void train_seen_step(struct trainer *t, bool skipped, double seconds);
void train_seen_epoch(struct trainer *t);
void train_seen_validation(struct trainer *t);
void train_seen_sample(struct trainer *t, const char *prompt, size_t index, const char *file);

/* Seconds from some start on. */
double train_clock(void);

/* Norms by block, then the page. train_seen_page(): after an epoch, left out while pages would take more than a 20th of the time. */
void train_seen_save(struct trainer *t, const char *status);
void train_seen_page(struct trainer *t);
void train_seen_close(struct trainer *t);

/* ---- Files (save.c, meta.c, state.c) ---- */

/* Writes OUTPUT_DIR/NAME.EXT, refusing factors that are not finite. */
int train_save_lora(struct trainer *t, const char *name, struct err *err);

/* At the end of an epoch, after a step, at the very end: what the options ask for then. */
int train_save_epoch(struct trainer *t, struct err *err);
int train_save_step(struct trainer *t, struct err *err);
int train_save_last(struct trainer *t, bool finished, struct err *err);

/* Metadata that is the same for all files of the run. The hashes of whole files are computed meanwhile, by threads of their own;
 * train_meta_complete() waits for them. */
int train_meta(struct trainer *t, struct err *err);
int train_meta_complete(struct trainer *t, struct err *err);

/* The folder of the logs of the training whose state is at path, or NULL; for the caller to free. */
char *train_state_logs(const char *path);

/* The seed of the training whose state is at path. */
int train_state_seed(const char *path, uint64_t *seed, struct err *err);

int train_state_write(struct trainer *t, const char *name, struct err *err);

/* Reads --resume into t; everything is open and of its final size. */
int train_state_read(struct trainer *t, struct err *err);

/* "output_name" or what stands for it. */
const char *train_name(const struct trainer *t, const char *otherwise);

#endif
