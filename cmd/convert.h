/* lora convert's two halves. */
#ifndef CMD_CONVERT_H
#define CMD_CONVERT_H

#include "cmd/command.h"

/* The order of convert.c's list of layouts; LAYOUT_UNSET when --to was not given. */
enum convert_layout {
    CONVERT_UNSET = -1,
    CONVERT_LDM,
    CONVERT_DIFFUSERS,
    CONVERT_KOHYA,
    CONVERT_DIFFUSERS_OLD,
    CONVERT_PEFT,
    CONVERT_CLONEOFSIMO
};

struct convert_options {
    const char *in, *out;
    int to; /* enum convert_layout */
    struct option_dtype dtype;
    bool fp16, bf16, float32;
    bool v1, v2, v_parameterization, bin, no_metadata;
    const char *reference_model;
};

/* Writes the checkpoint or folder o->in as o->out. o->dtype holds the type that any of the options gave. */
int convert_model(const struct command_run *run, const struct convert_options *o, struct err *err);

/* The same for a LoRA file or folder. */
int convert_lora(const struct command_run *run, const struct convert_options *o, struct err *err);

/* Whether a path ends like a file of tensors (.safetensors .ckpt .pt .pth .bin). */
bool convert_is_file_name(const char *path);

/* Whether a path that is no such file's is hardly meant for a folder ("model.gguf"; not "stable-diffusion-v1.5"). */
bool convert_ends_unlike_folder(const char *path);

#endif
