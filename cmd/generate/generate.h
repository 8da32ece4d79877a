/* lora generate inside: generate.c reads the command line and makes one picture after another; pipe.c runs the model's three
 * parts; lora.c brings LoRAs into the engine's form; seed.c chooses seeds. */
#ifndef CMD_GENERATE_GENERATE_H
#define CMD_GENERATE_GENERATE_H

#include "cmd/command.h"
#include "cmd/model_weights.h"
#include "formats/lora_file.h"
#include "formats/model.h"
#include "formats/picture.h"
#include "formats/tokenizer.h"
#include "ref/diffusion/noise.h"
#include "ref/diffusion/sampler.h"
#include "ref/graph/run.h"
#include "ref/model/layers.h"

/* ---- LoRAs ---- */

struct generate_lora { /* a file and how strongly it acts */
    char *path;
    double text_encoder, unet; /* multipliers */
};

/* LoRAs in the engine's form; zero-initialise. item [count] and all it points to is owned. */
struct generate_loras {
    struct layers_lora *item;
    size_t count, cap;
    struct arena arena;
};

/* Reads a LoRA and appends its modules. A module that m has no layer for, or one of another shape, is an error that names
 * it. */
int generate_loras_add(struct generate_loras *l, const struct model *m, const struct generate_lora *from, struct err *err);
void generate_loras_free(struct generate_loras *l);

/* ---- The model ---- */

enum generate_stage { STAGE_NONE, STAGE_TEXT, STAGE_UNET, STAGE_DECODE };

/* One graph is in memory at a time: the parts never run together, so the peak is that of the largest. */
struct generate_pipe {
    struct model *model, *vae_model; /* vae_model: of --vae, NULL when the checkpoint's own is used */
    struct model_weights *source, *vae_source;
    struct weights *w, *vae_w;
    struct tokenizer *tokenizer;
    struct schedule schedule;
    struct ops ops;
    const struct generate_loras *loras; /* borrowed; change it with generate_pipe_loras() */
    size_t clip_skip, most_chunks;
    enum prediction prediction;
    enum noise_device device;
    size_t factor, channels; /* of the VAE: 8, 4 */
    /* the graph in memory */
    enum generate_stage stage;
    size_t n, h, wd, tokens;
    struct graph *g;
    struct run *run;
    int in[3], out;
    struct layers_lora *used; /* of the text encoder: those in layers that clip_skip leaves */
};

/* Opens checkpoint and VAE (may be NULL), reading headers only. p is zeroed; generate_pipe_close() frees what it holds, also
 * after an error. */
int generate_pipe_open(struct generate_pipe *p, const char *ckpt, const char *vae, struct err *err);
void generate_pipe_close(struct generate_pipe *p);

/* From now on the model has these LoRAs. */
void generate_pipe_loras(struct generate_pipe *p, const struct generate_loras *loras);

/* Bytes that pictures of this size [pixels] will need beside the mapped checkpoint; n: rows of the U-Net, 1 or 2. */
int generate_pipe_forecast(struct generate_pipe *p, size_t width, size_t height, size_t n, size_t *bytes, struct err *err);

/* What texts [n] mean to the U-Net: *context [n, *tokens, width] f32, weighted, freed by the caller. *truncated: a text was
 * longer than most_chunks allow. */
int generate_pipe_encode(struct generate_pipe *p, const char *const *text, size_t n, float **context, size_t *tokens,
                         bool *truncated, struct err *err);

struct generate_job {
    const struct sampler_kind *kind;
    size_t width, height, steps; /* pixels: multiples of the factor */
    double scale, negative_scale; /* a negative_scale that is NaN: none */
    uint64_t seed;
    const float *context; /* [rows, tokens, width]: prompt, negative prompt, and with a negative_scale the empty prompt */
    size_t rows, tokens;  /* rows: 1 without guidance, 2, or 3 */
    void (*step)(void *ctx); /* called after each evaluation; may be NULL */
    void *ctx;
};

/* From noise to latents: *latents [height / factor, width / factor, channels] f32, freed by the caller. */
int generate_pipe_sample(struct generate_pipe *p, const struct generate_job *job, float **latents, struct err *err);

/* From latents [height / factor, width / factor, channels] to a picture, which the caller frees. */
int generate_pipe_decode(struct generate_pipe *p, const float *latents, size_t width, size_t height, struct picture *out,
                         struct err *err);

/* ---- Seeds ---- */

/* Seeds of a whole run, as v0.3.0 draws them with Python's random: seed [n] = random.randint(0, 0x7fffffff), after
 * random.seed(from). One seed is `from` itself. */
void generate_seeds(uint64_t from, uint64_t *seed, size_t n);

/* A seed in 0 .. 2^31 - 1 that nobody can foresee. */
int generate_seed_any(uint64_t *seed, struct err *err);

#endif
