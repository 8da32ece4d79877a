/* The model as a pipe: text to context, noise to latents, latents to pictures. For `lora generate`, and for samples while
 * training. pipe.c builds and runs the parts, sample.c is the loop over a sampler's steps.
 *
 * One graph is in memory at a time: the parts never run together, so the peak is that of the largest.
 */
#ifndef CMD_GENERATE_PIPE_H
#define CMD_GENERATE_PIPE_H

#include "cmd/latents.h"
#include "cmd/model_weights.h"
#include "formats/model.h"
#include "formats/prompt.h"
#include "formats/tokenizer.h"
#include "ref/diffusion/noise.h"
#include "ref/diffusion/sampler.h"
#include "ref/graph/profile.h"
#include "ref/model/layers.h"

/* LoRAs in the engine's form; zero-initialise. item [count] and all it points to is owned by the arena, or borrowed. */
struct generate_loras {
    struct layers_lora *item;
    size_t count, cap;
    struct arena arena;
};

/* Reads a LoRA and appends its modules. A module that m has no layer for, or one of another shape, is an error that names
 * it. rank: 0, or what the file's rank must be. */
int generate_loras_add(struct generate_loras *l, const struct model *m, const char *path, double text_encoder, double unet,
                       size_t rank, struct err *err);
void generate_loras_free(struct generate_loras *l);

enum generate_stage { STAGE_NONE, STAGE_TEXT, STAGE_UNET };

struct generate_pipe {
    struct model *model;
    struct model_weights *source;
    struct weights *w;
    bool borrowed;           /* model and w */
    struct latents *latents; /* the VAE */
    struct tokenizer *tokenizer;
    struct schedule schedule;
    const struct ops *ops;
    const struct generate_loras *loras; /* borrowed; change it with generate_pipe_loras() */
    size_t clip_skip, most_chunks;      /* 0 or 1: none, as clip.h says; chunks of 75 tokens a prompt may have */
    enum prediction prediction;
    enum noise_device device;
    size_t factor, channels; /* of the VAE: 8, 4 */
    bool inpainting;         /* the U-Net takes mask and masked picture, too */
    bool check_nan;          /* look at each layer of every run */
    bool profile;            /* say on stderr where the U-Net's time went, whenever its graph is given up */
    struct profile *times;
    /* the graph in memory */
    enum generate_stage stage;
    size_t n, h, wd, tokens;
    struct graph *g;
    struct run *run;
    int in[3], out;
    struct layers_lora *used; /* of the text encoder: those in layers that clip_skip leaves */
};

/* Opens checkpoint and VAE (NULL: the checkpoint's own), reading headers only. ops is borrowed. p is zeroed;
 * generate_pipe_close() frees what it holds, also after an error. */
int generate_pipe_open(struct generate_pipe *p, const char *ckpt, const char *vae, const struct ops *ops, struct err *err);

/* The same with a model that is open already; model and w are borrowed. vae: NULL for the model's own. */
int generate_pipe_borrow(struct generate_pipe *p, struct model *model, struct weights *w, const char *vae,
                         const struct ops *ops, struct err *err);
void generate_pipe_close(struct generate_pipe *p);

/* From now on the model has these LoRAs; NULL: none. Call it also when they have changed. */
void generate_pipe_loras(struct generate_pipe *p, const struct generate_loras *loras);

/* Gives the graph's memory back, not the weights'. */
void generate_pipe_rest(struct generate_pipe *p);

/* Bytes that the work takes at its peak. */
struct generate_need {
    size_t own;    /* allocated */
    size_t mapped; /* pages of the checkpoint in use at that time, which the system can drop */
    size_t device; /* of a device that has memory of its own: the largest graph and all weights */
};

/* What `count` pictures of this size [pixels] take when made at once. rows: of the U-Net for each picture, 1 to 3; encode:
 * pictures are encoded, too. */
int generate_pipe_forecast(struct generate_pipe *p, size_t width, size_t height, size_t count, size_t rows, size_t chunks,
                           bool encode, bool again, struct generate_need *need, struct err *err);

/* How many chunks of 75 tokens these texts [n] need when they are used together, 1 .. most_chunks; *truncated: one of them is
 * longer. */
int generate_pipe_chunks(struct generate_pipe *p, const char *const *text, size_t n, size_t *chunks, bool *truncated,
                         struct err *err);

/* What texts [n] mean to the U-Net: *context [n, chunks * 77, width] f32, weighted, freed by the caller. Equal texts are
 * computed once. */
int generate_pipe_encode(struct generate_pipe *p, const char *const *text, size_t n, size_t chunks, float **context,
                         struct err *err);

/* Pictures of one size and one setting, made together. h, w: sides of the latents. */
struct generate_job {
    const struct sampler_kind *kind;
    size_t count;                 /* pictures */
    size_t width, height, steps;  /* pixels: multiples of the factor */
    double scale, negative_scale; /* a negative_scale that is NaN: none */
    const uint64_t *seed;         /* [count] */
    const float *context; /* [rows, count, tokens, width]: prompts, negative prompts, and with a negative_scale empty prompts */
    size_t rows, tokens;  /* rows: 1 without guidance, 2, or 3 */
    const float *init;    /* [count, h, w, channels] latents to begin with; NULL: noise alone */
    double strength;      /* with init: how much of the way is gone, 0 .. 1 */
    const float *mask;    /* [count, h, w]: 1 where init is repainted, 0 where it stays; NULL: everywhere */
    const float *extra;   /* [count, h, w, 1 + channels]: mask, then latents of the masked picture, for U-Nets that take them */
    bool want_clean;
    /* Called after each evaluation, also before the first with done = 0: clean [h, w, channels] is what the first picture is
     * heading for, NULL unless wanted. Not 0: stop. May be NULL. */
    int (*step)(void *ctx, size_t done, const float *clean);
    void *ctx;
};

/* From noise, or from init, to latents: *latents [count, h, w, channels] f32, freed by the caller. A picture depends on its own
 * seed and settings, not on the others. */
int generate_pipe_sample(struct generate_pipe *p, const struct generate_job *job, float **latents, struct err *err);

/* What the caller's step asked to stop with. */
#define GENERATE_STOPPED "stopped"

/* Latents [h, w, channels] of a picture (RGB, sides multiples of the factor): a sample of what the VAE says. Its noise is that
 * of the seed after all that `steps` of the sampler and img2img take, as in sd-scripts v0.3.0 for a single picture. */
int generate_pipe_picture(struct generate_pipe *p, const struct picture *picture, const struct sampler_kind *kind, size_t steps,
                          uint64_t seed, float *latents, struct err *err);

/* From latents [height / factor, width / factor, channels] to a picture, which the caller frees. */
int generate_pipe_decode(struct generate_pipe *p, const float *latents, size_t width, size_t height, struct picture *out,
                         struct err *err);

#endif
