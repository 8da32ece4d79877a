/* lora convert: the same weights in another layout, container or type. */
#include "cmd/convert.h"

#include <string.h>
#include <sys/stat.h>

#include "formats/lora_file.h"
#include "formats/output.h"

static const char *const suffixes[] = {".safetensors", ".ckpt", ".pt", ".pth", ".bin"};

bool convert_is_file_name(const char *path)
{
    size_t n = strlen(path);

    for (size_t i = 0; i < sizeof suffixes / sizeof *suffixes; i++)
        if (n > strlen(suffixes[i]) && strcmp(path + n - strlen(suffixes[i]), suffixes[i]) == 0)
            return true;
    return false;
}

/* "model.gguf" ends like a file, but of no kind that is written; "stable-diffusion-v1.5" and "model.x/" are folders. */
bool convert_ends_unlike_folder(const char *path)
{
    const char *slash = strrchr(path, '/'), *dot = strrchr(slash ? slash : path, '.');

    return dot && dot[1] && strspn(dot + 1, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ") == strlen(dot + 1);
}

static bool exists_in(const char *folder, const char *name)
{
    char path[4096];
    struct stat st;

    return (size_t)snprintf(path, sizeof path, "%s/%s", folder, name) < sizeof path && stat(path, &st) == 0;
}

/* *lora = whether path holds a LoRA. */
static int find_kind(const char *path, bool *lora, struct err *err)
{
    struct tensor_file *f;
    struct stat st;

    if (stat(path, &st) == 0 && S_ISDIR(st.st_mode)) {
        *lora = exists_in(path, "adapter_config.json") || exists_in(path, "unet/adapter_config.json") ||
                exists_in(path, "text_encoder/adapter_config.json");
        return 0;
    }
    if (tensor_file_open(&f, path, err))
        return -1;
    *lora = lora_file_claims(f);
    tensor_file_close(f);
    return 0;
}

/* --float --fp16 --bf16 are the other program's way to say --dtype. */
static int join_dtypes(struct convert_options *o, struct err *err)
{
    int given = o->fp16 + o->bf16 + o->float32 + o->dtype.set;

    if (given > 1)
        return err_usage(err, "--dtype, --float, --fp16 and --bf16 say the same thing; give one of them");
    if (given == 1 && !o->dtype.set)
        o->dtype = (struct option_dtype){true, o->fp16 ? DT_F16 : o->bf16 ? DT_BF16 : DT_F32};
    if (o->dtype.set && o->dtype.dtype == DT_F64)
        return err_usage(err, "--dtype takes float, fp16 or bf16; no program reads models of f64");
    return 0;
}

static int run(const struct command_run *r, void *options, struct err *err)
{
    struct convert_options *o = options;
    bool lora;

    if (join_dtypes(o, err))
        return -1;
    if (o->v1 && o->v2)
        return err_usage(err, "--v1 and --v2 contradict each other; leave both out: the kind is found from the file");
    if (o->to == CONVERT_UNSET && !convert_is_file_name(o->out) && convert_ends_unlike_folder(o->out))
        return err_usage(
            err, "'%s' is named like a file of no known kind; end it with .safetensors or .ckpt, or with / for a folder",
            o->out);
    if (output_same_file(o->in, o->out))
        return err_usage(err, "'%s' is both input and output; give the output another name", o->in);
    if (find_kind(o->in, &lora, err))
        return -1;
    return lora ? convert_lora(r, o, err) : convert_model(r, o, err);
}

/* enum convert_layout */
static const char *const layouts[] = {"ldm", "diffusers", "kohya", "diffusers-old", "peft", "cloneofsimo", NULL};

static const struct option_row rows[] = {
    {OPTION(struct convert_options, in), .arg = "IN", .flags = OPTION_POSITIONAL | OPTION_REQUIRED,
     .help = "checkpoint, diffusers folder, LoRA file or PEFT folder"},
    {OPTION(struct convert_options, out), .arg = "OUT", .flags = OPTION_POSITIONAL | OPTION_REQUIRED | OPTION_OUTPUT,
     .help = "file (.safetensors, .ckpt, .pt) or folder to write"},
    {OPTION(struct convert_options, to), .choices = layouts,
     .help = "layout to write; checkpoints: ldm (one file) or diffusers (a folder), LoRA: the others or diffusers. Unset: what "
             "OUT's name asks for"},
    {OPTION(struct convert_options, dtype), .help = "type of the weights; unset: each keeps its own"},
    {OPTION(struct convert_options, no_metadata), .help = "leave the metadata out"},
    {OPTION(struct convert_options, v1), .help = "stop unless the model is Stable Diffusion 1.x", .flags = OPTION_ADVANCED},
    {OPTION(struct convert_options, v2), .help = "stop unless the model is Stable Diffusion 2.x", .flags = OPTION_ADVANCED},
    {OPTION(struct convert_options, v_parameterization),
     .help = "the model predicts the velocity: written into the folder's scheduler", .flags = OPTION_ADVANCED},
    {OPTION(struct convert_options, bin), .help = "write pytorch .bin files inside a folder", .flags = OPTION_ADVANCED},
    {OPTION(struct convert_options, reference_model), .arg = "DIR",
     .help = "diffusers folder whose tokenizer and scheduler are copied into the new one", .flags = OPTION_ADVANCED},
    {OPTION(struct convert_options, fp16), .help = "the same as --dtype fp16", .flags = OPTION_ADVANCED},
    {OPTION(struct convert_options, bf16), .help = "the same as --dtype bf16", .flags = OPTION_ADVANCED},
    {OPTION_NAMED(struct convert_options, float32, "float"), .help = "the same as --dtype float", .flags = OPTION_ADVANCED},
    {OPTION_IGNORED_FLAG("use_safetensors", "folders are written as safetensors unless --bin is given")},
    {OPTION_IGNORED_VALUE("epoch", "N", "no program reads the number; a .ckpt keeps its source's")},
    {OPTION_IGNORED_VALUE("global_step", "N", "no program reads the number; a .ckpt keeps its source's")},
    {0},
};

static const char *const aliases[] = {"convert_diffusers20_original_sd", NULL};

static const struct command_example examples[] = {
    {"a pickled checkpoint as a safe file", "lora convert model.ckpt model.safetensors"},
    {"a checkpoint as a diffusers folder, in half precision", "lora convert model.safetensors model/ --dtype fp16"},
    {"and back to one file", "lora convert model/ model2.safetensors"},
    {"a LoRA for PEFT, and one from it", "lora convert style.safetensors style-peft --to peft"},
    {"a LoRA of any layout for web UIs", "lora convert pytorch_lora_weights.safetensors style.safetensors --to kohya"},
    {0},
};

const struct command command_convert = {
    .name = "convert",
    .aliases = aliases,
    .summary = "write a checkpoint or LoRA in another layout, container or type",
    .description =
        "Kind and layout of the input are found from the file. Weights whose type and shape do not change are copied byte for "
        "byte, "
        "so that a way there and back gives the same bytes.\n\n"
        "Checkpoints: ldm is the single file of the original programs (.safetensors or .ckpt), diffusers a folder with one "
        "part "
        "each. LoRA: kohya (what web UIs read), diffusers, diffusers-old (attention processors of 2023), peft (a folder) and "
        "cloneofsimo.",
    .options = rows,
    .options_size = sizeof(struct convert_options),
    .examples = examples,
    .run = run,
};
