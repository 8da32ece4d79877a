/* lora generate inside. generate.c has the options and the order of events; ask.c makes of options and prompts a list of shots,
 * checked before the first is made; source.c reads pictures to begin with and masks; batch.c makes shots that go together;
 * write.c names and writes what comes out; sheet.c collects a contact sheet; preview.c shows the picture in the terminal while
 * it forms; lora.c brings LoRAs into the engine's form; pipe.h is the model. */
#ifndef CMD_GENERATE_GENERATE_H
#define CMD_GENERATE_GENERATE_H

#include "cmd/command.h"
#include "cmd/generate/pipe.h"
#include "cmd/progress.h"
#include "formats/lora_file.h"
#include "formats/picture.h"
#include "formats/prompt_line.h"
#include "offload/offload.h"
#include "ref/base/rng.h"

struct generate_options {
    const char *ckpt, *vae, *prompt, *from_file, *outdir, *sampler, *image_path, *mask_path, *grid, *device, *lora_dir;
    bool v2, v_parameterization, sequential_file_name, use_original_file_name, interactive, no_preview, iter_same_seed;
    bool highres_fix_save_1st, profile, check_nan;
    size_t H, W, steps, images_per_prompt, n_iter, batch_size, clip_skip, max_embeddings_multiples, highres_fix_steps, quality;
    size_t vae_tile;
    double scale, negative_scale, strength, highres_fix_scale;
    double clip_guidance_scale, clip_image_guidance_scale, vgg16_guidance_scale;
    const char *guide_image_path;
    int64_t seed;
    int rng, format, preview;
    struct string_list lora, network_weights, network_module, network_args;
    struct float_list network_mul;
    struct int_list network_dim;
};

/* ---- Pictures to begin with, and masks (source.c) ---- */

struct source {
    char *path;
    size_t width, height;
    char *prompt; /* from the texts in the file, as a prompt line with its options; NULL: none in it */
};

struct sources {
    struct source *item; /* [count], by name */
    size_t count, cap;
};

/* Finds the pictures at path: a file, or those of a folder. Each is read once, so that a broken one is known now. `what` for
 * messages: "--image_path". */
int sources_open(struct sources *s, const char *path, const char *what, struct err *err);
void sources_close(struct sources *s);

/* The picture as RGB, upright, scaled to width x height. Freed by the caller. */
int source_picture(const struct source *s, size_t width, size_t height, struct picture *out, struct err *err);

/* The same in grey. */
int source_grey(const struct source *s, size_t width, size_t height, struct picture *out, struct err *err);

/* ---- What is to be made (ask.c) ---- */

struct shot { /* one picture */
    const struct prompt_line *prompt;
    size_t width, height, steps;
    double scale, negative_scale, strength; /* negative_scale NaN: none */
    size_t rows, chunks;                    /* of the U-Net; of text */
    uint64_t seed;
    const struct source *source, *mask; /* NULL: none */
};

struct loras_in_use; /* lora.c */

struct work {
    const struct command_run *run;
    const struct generate_options *o;
    struct offload offload;
    struct prompt_file prompts;
    struct generate_pipe pipe;
    struct loras_in_use *loras;
    const struct sampler_kind *kind;
    struct sources sources, masks;
    bool prompts_of_pictures; /* the prompts came from the sources */
    bool has_negative_scale, has_w, has_h;
    uint64_t *seed; /* [seeds] of the pictures whose prompts give none, in the order of making */
    size_t seeds, next_seed;
    uint64_t iter_seed;
    size_t step;                   /* pictures asked for so far in this pass */
    size_t limit;                  /* bytes that may be used; SIZE_MAX: not known */
    struct remembered *remembered; /* batch.c: the last batch's prompts */
    struct shot *batch;            /* [batch_size] */
    size_t in_batch;
    struct progress *progress;
    struct preview *preview; /* NULL: none */
    struct sheet *sheet;     /* NULL: none */
    size_t total;            /* pictures that were asked for; 0: not known */
    size_t made, made_first; /* pictures; of highres fix's first stages */
    json_t *files;           /* with --json */
};

/* Reads --prompt, --from_file or the pictures' own prompts, and the pictures. */
int ask_prompts(struct work *w, struct err *err);

/* Chooses the seeds of all pictures, and of --iter_same_seed; the latter anew before each further pass. */
int ask_seeds(struct work *w, struct err *err);
int ask_pass(struct work *w, struct err *err);

/* One prompt's settings, except for seed, source and mask; errors name the prompt. */
int ask_shot(struct work *w, const struct prompt_line *p, struct shot *out, struct err *err);

/* Looks at every prompt: sizes, LoRAs, memory. *evaluations: of the model, in all. */
int ask_check(struct work *w, size_t *evaluations, struct err *err);

/* The i-th picture of that prompt: seed, source and mask, which move on. */
int ask_next(struct work *w, const struct prompt_line *p, struct shot *shot, size_t i, struct err *err);

/* The size of highres fix's first stage: the given part of the shot's, cut to multiples of 32. */
void ask_first_stage(const struct work *w, const struct shot *s, size_t *width, size_t *height);

/* Evaluations that a shot takes, with its first stage. */
size_t ask_evaluations(const struct work *w, const struct shot *s);

/* ---- Making them (batch.c) ---- */

/* Puts a shot into the batch; makes the batch when it is full, or before when the shot does not go with it. */
int batch_add(struct work *w, const struct shot *s, struct err *err);

/* Makes what is in the batch. */
int batch_flush(struct work *w, struct err *err);

/* Forgets what the last batch's prompts mean: LoRAs have changed, or the end has come. */
void batch_forget(struct work *w);

/* From here on Ctrl-C and SIGTERM stop the work after the present step; a second one ends the program. batch_stopped(): whether
 * that has happened. */
void batch_catch_signals(void);
bool batch_stopped(void);

/* ---- Files (write.c) ---- */

/* stage: "" or with highres fix "0", "1". */
int write_picture(struct work *w, const struct shot *s, const struct picture *pic, const char *stage, struct err *err);

/* ---- LoRAs (lora.c) ---- */

/* Opens those of the command line. */
int loras_open(struct work *w, struct err *err);
void loras_close(struct loras_in_use *l);

/* Finds the files of <lora:...> without reading them: a message in time. */
int loras_check(struct work *w, const struct prompt_line *p, struct err *err);

/* Whether two prompts ask for the same ones. */
bool loras_same(const struct prompt_line *a, const struct prompt_line *b);

/* Bytes that the command line's LoRAs take. */
size_t loras_bytes(const struct loras_in_use *l);

/* The pipe has the command line's LoRAs and the prompt's. */
int loras_use(struct work *w, const struct prompt_line *p, struct err *err);

/* ---- Contact sheet (sheet.c) ---- */

struct sheet;

int sheet_open(struct sheet **out, struct err *err);
void sheet_close(struct sheet *s); /* NULL is fine */

/* Keeps a small copy of the picture with its label. */
int sheet_add(struct sheet *s, const struct picture *p, const char *label, struct err *err);

/* Draws them in rows and columns to path (.png, .jpg, .webp); nothing when there are none. */
int sheet_write(const struct sheet *s, const char *path, struct err *err);

/* ---- Preview (preview.c) ---- */

struct preview;

enum preview_kind { PREVIEW_NONE, PREVIEW_AUTO, PREVIEW_KITTY, PREVIEW_ITERM, PREVIEW_SIXEL, PREVIEW_BLOCKS };
extern const char *const preview_kinds[];

/* *out stays NULL where the terminal shows nothing (auto) or stderr is none. pipe: whose latents will be shown; borrowed. */
int preview_open(struct preview **out, enum preview_kind kind, struct generate_pipe *pipe, struct err *err);
void preview_close(struct preview *p); /* NULL is fine */

/* Shows latents [h, w, channels] as colours, unless the last one was shown a moment ago. */
void preview_latents(struct preview *p, const float *latents, size_t h, size_t w);

/* Shows a finished picture. */
void preview_picture(struct preview *p, const struct picture *pic);

#endif
