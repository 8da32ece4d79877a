/* lora generate: pictures from text. */
#include "cmd/generate/generate.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cmd/progress.h"
#include "formats/prompt_line.h"

struct generate_options {
    const char *ckpt, *vae, *prompt, *from_file, *outdir, *sampler;
    bool v2, v_parameterization, sequential_file_name;
    size_t H, W, steps, images_per_prompt, n_iter, clip_skip, max_embeddings_multiples;
    double scale, negative_scale;
    int64_t seed;
    int rng;
    struct string_list lora, network_weights, network_module;
    struct float_list network_mul;
};

static const char *const devices[] = {"cpu", "cuda", NULL};

static const struct option_row rows[] = {
    {OPTION(struct generate_options, ckpt), .arg = "PATH", .flags = OPTION_REQUIRED,
     .help = "checkpoint (.safetensors, .ckpt) or diffusers folder"},
    {OPTION(struct generate_options, prompt), .arg = "TEXT",
     .help = "what to draw; weights as (word:1.3) and [word]; options behind it: --n NEGATIVE --w N --h N --s STEPS --d SEED,... "
             "--l SCALE --nl NEGATIVE_SCALE"},
    {OPTION(struct generate_options, from_file), .arg = "FILE", .help = "prompts from a file, one a line, options behind them"},
    {OPTION(struct generate_options, outdir), .arg = "DIR", .def = "outputs", .help = "folder for the pictures, made if missing"},
    {OPTION(struct generate_options, W), .arg = "N", .def = "512", .min = 64, .max = 8192, .help = "width in pixels"},
    {OPTION(struct generate_options, H), .arg = "N", .def = "512", .min = 64, .max = 8192, .help = "height in pixels"},
    {OPTION(struct generate_options, steps), .arg = "N", .def = "50", .min = 1, .max = 1000, .help = "steps of the sampler"},
    {OPTION(struct generate_options, sampler), .arg = "NAME", .def = "ddim",
     .help = "ddim pndm lms euler euler_a heun dpm_2 dpm_2_a dpmsolver dpmsolver++ dpmsingle (also k_lms k_euler k_euler_a "
             "k_dpm_2 k_dpm_2_a) plms dpmpp_2m dpmpp_2m_karras dpmpp_2m_sde dpmpp_2m_sde_karras dpmpp_sde dpmpp_sde_karras "
             "unipc lcm"},
    {OPTION(struct generate_options, scale), .arg = "X", .def = "7.5", .min = 0, .max = 1000,
     .help = "guidance: how far the picture is pulled towards the prompt; at most 1: not at all, and twice as fast"},
    {OPTION(struct generate_options, negative_scale), .arg = "X", .min = 0, .max = 1000,
     .help = "a scale of its own for the negative prompt"},
    {OPTION(struct generate_options, seed), .arg = "N", .min = 0, .max = 9007199254740991.0,
     .help = "number from which the pictures follow (default: by chance; it is in the file's name and text)"},
    {OPTION(struct generate_options, rng), .arg = "DEVICE", .choices = devices, .def = "cpu",
     .help = "whose random numbers: those that torch draws on the CPU or on a GPU"},
    {OPTION(struct generate_options, images_per_prompt), .arg = "N", .def = "1", .min = 1, .max = 1000000,
     .help = "pictures for each prompt"},
    {OPTION(struct generate_options, n_iter), .arg = "N", .def = "1", .min = 1, .max = 1000000,
     .help = "go through all prompts this often"},
    {OPTION(struct generate_options, lora), .arg = "FILE[:X]", .help = "LoRAs to use, each with its multiplier (default: 1)"},
    {OPTION(struct generate_options, network_weights), .arg = "FILE", .help = "the same, multipliers in --network_mul"},
    {OPTION(struct generate_options, network_mul), .arg = "X", .help = "a multiplier for each of --network_weights"},
    {OPTION(struct generate_options, network_module), .arg = "NAME", .help = "networks.lora; other kinds are refused",
     .flags = OPTION_ADVANCED},
    {OPTION(struct generate_options, vae), .arg = "PATH", .help = "a VAE in place of the checkpoint's own"},
    {OPTION(struct generate_options, clip_skip), .arg = "N", .def = "1", .min = 1, .max = 24,
     .help = "text encoder layer to take, counted from the last"},
    {OPTION(struct generate_options, max_embeddings_multiples), .arg = "N", .def = "1", .min = 1, .max = 64,
     .help = "prompts may be as long as this many times 75 tokens"},
    {OPTION(struct generate_options, v2), .help = "the checkpoint is Stable Diffusion 2.x (found out anyway; checked when given)"},
    {OPTION(struct generate_options, v_parameterization), .help = "the model predicts v, not noise (SD2 with 768 pixels)"},
    {OPTION(struct generate_options, sequential_file_name), .help = "im_000001.png, im_000002.png ...; files there are replaced"},
    {OPTION_IGNORED_VALUE("batch_size", "N", "pictures are made one after another, the same ones in less memory")},
    {OPTION_IGNORED_FLAG("fp16", "weights stay as they are in the file, sums are float")},
    {OPTION_IGNORED_FLAG("bf16", "weights stay as they are in the file, sums are float")},
    {OPTION_IGNORED_FLAG("xformers", "attention never holds the whole matrix")},
    {OPTION_IGNORED_FLAG("diffusers_xformers", "attention never holds the whole matrix")},
    {OPTION_IGNORED_FLAG("opt_channels_last", "it is always so")},
    {OPTION_IGNORED_FLAG("no_preview", "there is no preview window")},
    {0},
};

static const struct command_example examples[] = {
    {"a picture with the small model that comes with the source",
     "lora generate --ckpt golden/small_model/small.safetensors --W 128 --H 128 --steps 25 --scale 5 --prompt 'a red house to "
     "the left of a green tree in the snow'"},
    {"four pictures with a LoRA at 80%",
     "lora generate --ckpt model.safetensors --lora style.safetensors:0.8 --images_per_prompt 4 --prompt 'a fox --n blurry'"},
    {0},
};

struct work {
    const struct command_run *run;
    const struct generate_options *o;
    struct prompt_file prompts;
    struct generate_pipe pipe;
    struct generate_loras loras;
    const struct sampler_kind *kind;
    uint64_t *seed; /* [seeds] of the pictures whose prompts give none; the last ones go to the first prompt, as in v0.3.0 */
    size_t seeds;
    struct progress *progress;
    size_t made;   /* pictures */
    json_t *files; /* with --json */
};

/* ---- What was asked for ---- */

static int read_prompts(struct work *w, struct err *err)
{
    const struct generate_options *o = w->o;

    if (!o->prompt == !o->from_file)
        return err_usage(err, o->prompt ? "--prompt and --from_file exclude each other; give one"
                                        : "nothing to draw; give --prompt TEXT or --from_file FILE");
    if (o->from_file)
        return prompt_file_read(&w->prompts, o->from_file, err);
    w->prompts.line = mem_zero(1, sizeof *w->prompts.line, "a prompt", err);
    if (!w->prompts.line || prompt_line_parse(w->prompts.line, o->prompt, strlen(o->prompt), NULL, 0, err))
        return -1;
    w->prompts.count = 1;
    return 0;
}

static int refuse_not_done(const struct prompt_line *p, struct err *err)
{
    if (p->loras)
        return err_usage(err, "prompt '%s': <lora:...> is not possible in prompts; give LoRAs with --lora FILE:X", p->text);
    if (p->given & PROMPT_STRENGTH)
        return err_usage(err, "prompt '%s': --t (strength) needs a picture to begin with, which is not possible", p->text);
    if (p->clip)
        return err_usage(err, "prompt '%s': --c asks for CLIP guidance, which is not possible", p->text);
    return 0;
}

static size_t width_of(const struct work *w, const struct prompt_line *p)
{
    return (p->given & PROMPT_WIDTH ? p->width : w->o->W) / w->pipe.factor * w->pipe.factor;
}

static size_t height_of(const struct work *w, const struct prompt_line *p)
{
    return (p->given & PROMPT_HEIGHT ? p->height : w->o->H) / w->pipe.factor * w->pipe.factor;
}

static double scale_of(const struct work *w, const struct prompt_line *p)
{
    return p->given & PROMPT_SCALE ? p->scale : w->o->scale;
}

static size_t steps_of(const struct work *w, const struct prompt_line *p)
{
    return p->given & PROMPT_STEPS ? p->steps : w->o->steps;
}

/* NaN: none. */
static double negative_scale_of(const struct work *w, const struct prompt_line *p)
{
    if (p->negative_scale_none)
        return NAN;
    if (p->given & PROMPT_NEGATIVE_SCALE)
        return p->negative_scale;
    return option_given(w->run->values, &w->o->negative_scale) ? w->o->negative_scale : NAN;
}

/* Rows of the U-Net: prompt; negative prompt when there is guidance; the empty prompt for a negative scale. */
static size_t rows_of(const struct work *w, const struct prompt_line *p)
{
    return scale_of(w, p) <= 1 ? 1 : isnan(negative_scale_of(w, p)) ? 2 : 3;
}

/* MemAvailable of the kernel; 0 when it does not tell. */
static size_t memory_free(void)
{
    FILE *f = fopen("/proc/meminfo", "r");
    unsigned long long kib = 0;
    char line[256];

    while (f && fgets(line, sizeof line, f))
        if (sscanf(line, "MemAvailable: %llu kB", &kib) == 1)
            break;
    if (f)
        fclose(f);
    return (size_t)kib * 1024;
}

/* Every prompt is looked at before the first is drawn: sizes, what cannot be done, and memory. */
static int check_prompts(struct work *w, struct err *err)
{
    size_t most = 0, need = 0, free_now = memory_free(), evaluations = 0;
    char a[32], b[32];

    for (size_t i = 0; i < w->prompts.count; i++) {
        const struct prompt_line *p = &w->prompts.line[i];
        size_t width = width_of(w, p), height = height_of(w, p), n = rows_of(w, p), bytes;

        if (refuse_not_done(p, err))
            return -1;
        if (width < 64 || height < 64 || width > 8192 || height > 8192)
            return err_usage(err, "prompt '%s': cannot draw %zu x %zu pixels; sides of 64 to 8192 are possible", p->text, width,
                             height);
        if (width != (p->given & PROMPT_WIDTH ? p->width : w->o->W) || height != (p->given & PROMPT_HEIGHT ? p->height : w->o->H))
            command_note(w->run, "sizes are multiples of %zu: pictures will be %zu x %zu", w->pipe.factor, width, height);
        if (width * height * n > most) {
            if (generate_pipe_forecast(&w->pipe, width, height, n, &bytes, err))
                return -1;
            most = width * height * n;
            need = bytes > need ? bytes : need;
        }
        evaluations += steps_of(w, p) * w->kind->evaluations * w->o->images_per_prompt * w->o->n_iter;
    }
    command_bytes(need, a, sizeof a);
    command_bytes(free_now, b, sizeof b);
    if (free_now && need > free_now)
        return err_set(err, "not enough memory: this needs %s, %s are free; use a smaller --W and --H or close other programs", a, b);
    if (!w->run->json)
        command_note(w->run, "memory: %s and the checkpoint's pages", a);
    w->progress = progress_start(w->run, "generating", evaluations, "steps");
    return 0;
}

/* FILE or FILE:X; a colon that no number follows belongs to the name. */
static int add_lora(struct work *w, const char *text, double multiplier, bool colon, struct err *err)
{
    struct generate_lora l = {.path = mem_str(text, err), .text_encoder = multiplier, .unet = multiplier};
    char *at, *end;
    int rc;

    if (!l.path)
        return -1;
    if (colon && (at = strrchr(l.path, ':')) != NULL && at[1]) {
        double x = strtod(at + 1, &end);

        if (!*end && isfinite(x)) {
            *at = 0;
            l.text_encoder = l.unet = x;
        }
    }
    rc = generate_loras_add(&w->loras, w->pipe.model, &l, err);
    free(l.path);
    return rc;
}

static int read_loras(struct work *w, struct err *err)
{
    const struct generate_options *o = w->o;

    for (size_t i = 0; i < o->network_module.count; i++)
        if (strcmp(o->network_module.item[i], "networks.lora") != 0)
            return err_usage(err, "--network_module '%s' is not possible; only networks.lora is", o->network_module.item[i]);
    if (o->network_mul.count > o->network_weights.count)
        return err_usage(err, "--network_mul has %zu numbers for %zu files of --network_weights; give one for each",
                         o->network_mul.count, o->network_weights.count);
    for (size_t i = 0; i < o->network_weights.count; i++)
        if (add_lora(w, o->network_weights.item[i], i < o->network_mul.count ? o->network_mul.item[i] : 1, false, err))
            return -1;
    for (size_t i = 0; i < o->lora.count; i++)
        if (add_lora(w, o->lora.item[i], 1, true, err))
            return -1;
    generate_pipe_loras(&w->pipe, &w->loras);
    return 0;
}

static int choose_seeds(struct work *w, struct err *err)
{
    size_t n;

    if (!mem_mul(w->o->n_iter, w->prompts.count, &n) || !mem_mul(n, w->o->images_per_prompt, &n))
        return err_memory(err, ~0ull, "seeds");
    w->seed = mem_zero(n, sizeof *w->seed, "seeds", err);
    if (!w->seed)
        return -1;
    w->seeds = n;
    if (option_given(w->run->values, &w->o->seed)) {
        generate_seeds((uint64_t)w->o->seed, w->seed, n);
        return 0;
    }
    for (size_t i = 0; i < n; i++)
        if (generate_seed_any(&w->seed[i], err))
            return -1;
    return 0;
}

static int open_pipe(struct work *w, struct err *err)
{
    const struct generate_options *o = w->o;
    struct generate_pipe *p = &w->pipe;

    if (generate_pipe_open(p, o->ckpt, o->vae, err))
        return -1;
    if (o->v2 && model_expect_v2(p->model, true, err))
        return -1;
    p->clip_skip = o->clip_skip;
    p->most_chunks = o->max_embeddings_multiples;
    p->device = o->rng == 1 ? NOISE_CUDA : NOISE_CPU;
    p->prediction = o->v_parameterization || p->model->prediction == MODEL_V ? PREDICT_V : PREDICT_EPS;
    if (p->model->arch == MODEL_SD2 && p->model->prediction == MODEL_PREDICTION_UNKNOWN && !o->v_parameterization)
        command_note(w->run, "Stable Diffusion 2, taken as predicting noise; if pictures are noise, add --v_parameterization");
    return 0;
}

/* ---- One picture ---- */

static void count_step(void *ctx)
{
    progress_step(ctx, 1);
}

static int write_picture(struct work *w, const struct prompt_line *p, const struct generate_job *job, const struct picture *pic,
                         struct err *err)
{
    struct arena a = {0};
    struct picture_text text[8];
    size_t n = 0;
    char *path, stamp[32] = "";
    time_t now = time(NULL);
    struct tm tm;
    int rc = -1;

    if (localtime_r(&now, &tm))
        strftime(stamp, sizeof stamp, "%Y%m%d%H%M%S", &tm);
    path = w->o->sequential_file_name
               ? arena_printf(&a, err, "%s/im_%06zu.png", w->o->outdir, w->made + 1)
               : arena_printf(&a, err, "%s/im_%s_%03zu_%llu.png", w->o->outdir, stamp, w->made, (unsigned long long)job->seed);
#define TEXT(k, ...) text[n++] = (struct picture_text){k, arena_printf(&a, err, __VA_ARGS__)}
    TEXT("prompt", "%s", p->text);
    TEXT("seed", "%llu", (unsigned long long)job->seed);
    TEXT("sampler", "%s", w->o->sampler);
    TEXT("steps", "%zu", job->steps);
    TEXT("scale", "%.15g", job->scale);
    if (*p->negative)
        TEXT("negative-prompt", "%s", p->negative);
    if (!isnan(job->negative_scale))
        TEXT("negative-scale", "%.15g", job->negative_scale);
    TEXT("parameters", "%s%s%s\nSteps: %zu, Sampler: %s, CFG scale: %.15g, Seed: %llu, Size: %zux%zu", p->text,
         *p->negative ? "\nNegative prompt: " : "", p->negative, job->steps, w->o->sampler, job->scale,
         (unsigned long long)job->seed, job->width, job->height);
#undef TEXT
    for (size_t i = 0; i < n; i++)
        if (!text[i].value)
            goto out;
    if (!path || picture_write(path, pic, text, n, (struct picture_format){.quality = 95}, err))
        goto out;
    if (w->files)
        json_array_append_new(w->files, json_pack("{s:s, s:s, s:I, s:i, s:i}", "file", path, "prompt", p->text, "seed",
                                                  (json_int_t)job->seed, "width", (int)job->width, "height", (int)job->height));
    else if (!w->run->quiet)
        progress_line(path);
    w->made++;
    rc = 0;
out:
    arena_free(&a);
    return rc;
}

static int make_picture(struct work *w, const struct prompt_line *p, const struct generate_job *job, struct err *err)
{
    struct picture pic = {0};
    float *latents;
    int rc;

    if (generate_pipe_sample(&w->pipe, job, &latents, err))
        return -1;
    rc = generate_pipe_decode(&w->pipe, latents, job->width, job->height, &pic, err);
    free(latents);
    if (rc == 0) {
        rc = write_picture(w, p, job, &pic, err);
        picture_free(&pic);
    }
    return rc;
}

/* The pictures of one prompt. *left: seeds of the run that are not used up. */
static int draw_prompt(struct work *w, const struct prompt_line *p, size_t *left, struct err *err)
{
    size_t count = w->o->images_per_prompt;
    const char *text[3] = {p->text, p->negative, ""};
    struct generate_job job = {.kind = w->kind, .width = width_of(w, p), .height = height_of(w, p), .steps = steps_of(w, p),
                               .scale = scale_of(w, p), .negative_scale = negative_scale_of(w, p), .rows = rows_of(w, p),
                               .step = count_step, .ctx = w->progress};
    float *context;
    bool truncated;
    int rc = generate_pipe_encode(&w->pipe, text, job.rows, &context, &job.tokens, &truncated, err);

    if (rc == 0 && truncated)
        command_warn(w->run, "prompt '%.60s' is longer than %zu tokens and was cut; raise --max_embeddings_multiples", p->text,
                     w->pipe.most_chunks * (size_t)75);
    if (!p->seeds)
        *left -= count;
    job.context = context;
    for (size_t i = 0; rc == 0 && i < count; i++) {
        job.seed = p->seeds ? p->seed[i % p->seeds] : w->seed[*left + i];
        rc = make_picture(w, p, &job, err);
    }
    free(context);
    return rc;
}

static int draw_all(struct work *w, struct err *err)
{
    size_t left = w->seeds;

    for (size_t round = 0; round < w->o->n_iter; round++)
        for (size_t i = 0; i < w->prompts.count; i++)
            if (draw_prompt(w, &w->prompts.line[i], &left, err))
                return -1;
    return 0;
}

static int finish(struct work *w, double seconds, struct err *err)
{
    struct arena a = {0};
    char *path = arena_printf(&a, err, "%s/generate", w->o->outdir);
    int rc = path ? command_write_options(w->run, path, err) : -1;

    arena_free(&a);
    if (rc)
        return -1;
    if (w->files) {
        rc = command_print_json(json_pack("{s:O, s:f}", "pictures", w->files, "seconds", seconds), err);
    } else if (!w->run->quiet) {
        printf("%zu picture%s in '%s', %.1f s\n", w->made, w->made == 1 ? "" : "s", w->o->outdir, seconds);
    }
    return rc;
}

static int run(const struct command_run *run, void *options, struct err *err)
{
    struct work w = {.run = run, .o = options};
    double seconds = 0;
    int rc = -1;

    w.kind = sampler_find(w.o->sampler);
    if (!w.kind)
        return err_usage(err, "there is no sampler '%s'; 'lora generate --help' lists them", w.o->sampler);
    if (run->json && !(w.files = json_array()))
        return err_memory(err, 0, "the result");
    if (read_prompts(&w, err) || open_pipe(&w, err) || read_loras(&w, err) || choose_seeds(&w, err) || check_prompts(&w, err))
        goto out;
    rc = draw_all(&w, err);
    seconds = progress_end(w.progress);
    w.progress = NULL;
    if (rc && w.made)
        command_note(run, "%zu finished picture%s in '%s'", w.made, w.made == 1 ? " is" : "s are", w.o->outdir);
    if (rc == 0)
        rc = finish(&w, seconds, err);
out:
    progress_end(w.progress);
    json_decref(w.files);
    free(w.seed);
    generate_pipe_close(&w.pipe);
    generate_loras_free(&w.loras);
    prompt_file_free(&w.prompts);
    return rc;
}

static const char *const aliases[] = {"gen_img_diffusers", "gen_img", NULL};

const struct command command_generate = {
    .name = "generate",
    .aliases = aliases,
    .summary = "draw pictures from text, with LoRAs",
    .description = "The same seed gives the picture that others get with it: noise is torch's, samplers and prompt weights are "
                   "those that sd-scripts and diffusers have.\n\n"
                   "Pictures are PNG files with prompt, seed and settings inside. Each is written when it is done: a run that "
                   "is stopped keeps those that are finished.",
    .options = rows,
    .options_size = sizeof(struct generate_options),
    .examples = examples,
    .run = run,
};
