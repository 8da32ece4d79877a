/* lora merge: what its three files share. merge.c reads the command line, merge_model.c merges into a checkpoint,
 * merge_loras.c merges LoRAs into one. */
#ifndef CMD_MERGE_H
#define CMD_MERGE_H

#include "cmd/command.h"
#include "formats/lora_file.h"
#include "ref/lora/target.h"

enum merge_method { MERGE_BEST, MERGE_CONCAT, MERGE_FACTORS };

struct merge_options {
    bool v2;
    struct option_dtype save_precision, precision;
    const char *sd_model, *save_to;
    struct string_list models, lbw;
    struct float_list ratios, ratios_te, ratios_unet;
    bool undo, ignore_missing, overwrite, no_metadata;
    int method; /* enum merge_method */
    size_t dim, conv_dim;
};

/* One LoRA of the command line. */
struct merge_input {
    struct lora_file *file;
    const char *name;          /* without its folders: what messages to others and metadata may show */
    double ratio[MODEL_PARTS]; /* sign turned by --undo; of MODEL_UNET and MODEL_TEXT_ENCODER */
    bool by_block;             /* block[] was given with --lbw */
    double block[TARGET_BLOCKS];
};

struct merge_job {
    const struct command_run *run;
    const struct merge_options *o;
    struct merge_input *input; /* [count] */
    size_t count;
    enum dtype precision; /* of v0.3.0's arithmetic */
    double started;       /* seconds, for the report */
};

/* The factor before alpha / rank: ratio times block weight. layers: residual blocks per level of the U-Net (2). */
double merge_ratio(const struct merge_input *in, const struct lora_module *m, size_t layers);

/* alpha / rank times merge_ratio(); v0.3.0 knows no alpha. */
double merge_scale(const struct merge_job *job, const struct merge_input *in, const struct lora_module *m, size_t layers);

/* A module's factors as f32, in v0.3.0's mode rounded to its precision, into up [out, rank] and down [rank, in * kh * kw];
 * spare holds as many floats as the larger of the two. */
int merge_read_factors(const struct merge_job *job, const struct lora_module *m, float *up, float *down, float *spare,
                       struct err *err);

/* What was merged, as JSON: files by name without folders, ratios. NULL with err filled; the caller owns the reference. */
json_t *merge_recipe(const struct merge_job *job, struct err *err);

/* The part of a path behind its last '/'. */
const char *merge_base_name(const char *path);

double merge_seconds(void); /* a clock */

int merge_into_model(struct merge_job *job, struct err *err);
int merge_loras(struct merge_job *job, struct err *err);

#endif
