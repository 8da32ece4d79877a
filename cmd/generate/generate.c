/* lora generate: pictures from text, and from pictures. */
#include "cmd/generate/generate.h"

#include <ctype.h>
#include <glob.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "cmd/memory.h"
#include "formats/output.h"

static const char *const devices[] = {"cpu", "cuda", NULL};
static const char *const formats[] = {"png", "jpg", "jpeg", "webp", NULL};


#define O(field) OPTION(struct generate_options, field)

static const struct option_row rows[] = {
    {O(ckpt), .arg = "PATH", .flags = OPTION_REQUIRED,
     .help = "checkpoint (.safetensors, .ckpt), diffusers folder, or a pattern that fits one file"},
    {O(prompt), .arg = "TEXT",
     .help = "what to draw; weights as (word:1.3) and [word], LoRAs as <lora:name:0.8>; options behind it: --n NEGATIVE --w N "
             "--h N "
             "--s STEPS --d SEED,... --l SCALE --nl NEGATIVE_SCALE --t STRENGTH"},
    {O(from_file), .arg = "FILE", .help = "prompts from a file, one a line, options behind them; wins over --prompt"},
    {O(interactive), .help = "read prompts from standard input, line by line, after those given"},
    {O(outdir), .arg = "DIR", .def = "outputs", .help = "folder for the pictures, made if missing"},
    {O(W), .arg = "N", .def = "512", .min = 64, .max = 8192, .help = "width in pixels (img2img: that of the picture)"},
    {O(H), .arg = "N", .def = "512", .min = 64, .max = 8192, .help = "height in pixels (img2img: that of the picture)"},
    {O(steps), .arg = "N", .def = "50", .min = 1, .max = 1000, .help = "steps of the sampler"},
    {O(sampler), .arg = "NAME", .def = "ddim",
     .help = "ddim pndm lms euler euler_a heun dpm_2 dpm_2_a dpmsolver dpmsolver++ dpmsingle (also k_lms k_euler k_euler_a "
             "k_dpm_2 k_dpm_2_a) plms dpmpp_2m dpmpp_2m_karras dpmpp_2m_sde dpmpp_2m_sde_karras dpmpp_sde dpmpp_sde_karras "
             "unipc lcm"},
    {O(scale), .arg = "X", .def = "7.5", .min = 0, .max = 1000,
     .help = "guidance: how far the picture is pulled towards the prompt; at most 1: not at all, and twice as fast"},
    {O(negative_scale), .arg = "X", .min = 0, .max = 1000, .help = "a scale of its own for the negative prompt"},
    {O(seed), .arg = "N", .min = 0, .max = 9007199254740991.0,
     .help = "number from which the pictures follow (default: by chance; it is in the file's name and text)"},
    {O(images_per_prompt), .arg = "N", .def = "1", .min = 1, .max = 1000000, .help = "pictures for each prompt"},
    {O(n_iter), .arg = "N", .def = "1", .min = 1, .max = 1000000, .help = "go through all prompts this often"},
    {O(iter_same_seed), .help = "without --seed: one seed for all pictures of a pass"},
    {O(batch_size), .arg = "N", .def = "1", .min = 1, .max = 256,
     .help = "pictures of one size and setting made together: the same pictures, more memory"},
    {O(image_path), .arg = "PATH",
     .help = "begin with this picture (img2img), or those of a folder, one after another; without prompts those inside the "
             "pictures "
             "are taken"},
    {O(strength), .arg = "X", .def = "0.8", .min = 0, .max = 1,
     .help = "img2img: how much is drawn anew, 0 to 1 (models for inpainting: 1 by default)"},
    {O(mask_path), .arg = "PATH",
     .help = "inpainting: white parts of this mask are repainted, black ones stay; or a folder of masks"},
    {O(highres_fix_scale), .arg = "X", .min = 0.01, .max = 1,
     .help = "make a picture of this part of the size first, then scale it up and go over it again with --strength"},
    {O(highres_fix_steps), .arg = "N", .def = "28", .min = 1, .max = 1000, .help = "steps for the first picture"},
    {O(highres_fix_save_1st), .help = "keep the first pictures, too"},
    {O(lora), .arg = "FILE[:X]", .help = "LoRAs to use, each with its multiplier (default: 1)"},
    {O(lora_dir), .arg = "DIR", .def = ".", .help = "where <lora:name> in prompts looks for name.safetensors"},
    {O(network_weights), .arg = "FILE", .help = "LoRAs to use, multipliers in --network_mul"},
    {O(network_mul), .arg = "X", .help = "a multiplier for each of --network_weights (default: 1)"},
    {O(network_dim), .arg = "N", .min = 1, .max = 65536, .flags = OPTION_ADVANCED,
     .help = "the rank of each of --network_weights; the file tells it, this only checks"},
    {O(network_module), .arg = "NAME", .help = "networks.lora; other kinds are refused", .flags = OPTION_ADVANCED},
    {O(network_args), .arg = "TEXT", .help = "networks.lora takes no arguments when it draws: read, not used",
     .flags = OPTION_ADVANCED},
    {O(vae), .arg = "PATH", .help = "a VAE in place of the checkpoint's own"},
    {O(vae_tile), .arg = "N", .max = 8192, .def = "0", .flags = OPTION_ADVANCED,
     .help = "let the VAE work in tiles of N pixels, which takes less memory; 0: only where memory is short"},
    {O(clip_skip), .arg = "N", .def = "1", .min = 1, .max = 24, .help = "text encoder layer to take, counted from the last"},
    {O(max_embeddings_multiples), .arg = "N", .def = "1", .min = 1, .max = 64,
     .help = "prompts may be as long as this many times 75 tokens"},
    {O(v2), .help = "the checkpoint is Stable Diffusion 2.x (found out anyway; checked when given)"},
    {O(v_parameterization), .help = "the model predicts v, not noise (SD2 with 768 pixels)"},
    {O(rng), .arg = "DEVICE", .choices = devices, .def = "cpu",
     .help = "whose random numbers: those that torch draws on the CPU or on a GPU"},
    {O(device), .arg = "NAME", .def = "auto",
     .help =
         "what computes: auto (a GPU where there is one, else the processor), cpu, cpu:bf16, or a plug-in such as dnnl, cuda, "
         "cuda:bf16:1"},
    {O(sequential_file_name), .help = "im_000001.png, im_000002.png ...; files there are replaced"},
    {O(use_original_file_name), .help = "img2img: name the result as the picture it began with"},
    {O(format), .arg = "NAME", .choices = formats, .def = "png", .help = "what to write; only PNG carries all settings inside"},
    {O(quality), .arg = "N", .def = "95", .min = 1, .max = 101, .help = "of JPEG and WebP, 1 to 100; WebP 101: without loss"},
    {O(grid), .arg = "FILE", .help = "also a contact sheet of all pictures with prompts and seeds (.png, .jpg, .webp)"},
    {O(preview), .arg = "HOW", .choices = preview_kinds, .def = "none",
     .help = "show the picture in the terminal while it forms: auto finds out how, blocks works in any with 24-bit colours"},
    {O(no_preview), .help = "--interactive: do not show the finished pictures in the terminal"},
    {O(profile), .help = "print where the time went, by operation", .flags = OPTION_ADVANCED},
    {O(check_nan), .help = "look for numbers that are not finite after each layer, and name the first (slower)",
     .flags = OPTION_ADVANCED},
    {O(clip_guidance_scale), .arg = "X", .def = "0", .flags = OPTION_ADVANCED,
     .help = "strength of guidance by CLIP toward the prompt; not part of this program: refused unless 0"},
    {O(clip_image_guidance_scale), .arg = "X", .def = "0", .flags = OPTION_ADVANCED,
     .help = "the same toward a picture: refused unless 0"},
    {O(vgg16_guidance_scale), .arg = "X", .def = "0", .flags = OPTION_ADVANCED,
     .help = "the same by VGG16: refused unless 0"},
    {O(guide_image_path), .arg = "PATH", .help = "a picture for such guidance: refused", .flags = OPTION_ADVANCED},
    {OPTION_IGNORED_VALUE("vgg16_guidance_layer", "N", "there is no VGG16 guidance here")},
    {OPTION_IGNORED_FLAG("fp16", "weights stay as they are in the file, sums are float; --device chooses the arithmetic")},
    {OPTION_IGNORED_FLAG("bf16", "weights stay as they are in the file, sums are float; --device cpu:bf16 computes in bf16")},
    {OPTION_IGNORED_FLAG("xformers", "attention never holds the whole matrix")},
    {OPTION_IGNORED_FLAG("diffusers_xformers", "attention never holds the whole matrix")},
    {OPTION_IGNORED_FLAG("opt_channels_last", "it is always so")},
    {0},
};
#undef O

static const struct command_example examples[] = {
    {"a picture with the small model that comes with the source",
     "lora generate --ckpt golden/small_model/small.safetensors --W 128 --H 128 --steps 25 --scale 5 --prompt 'a red house to "
     "the left of a green tree in the snow'"},
    {"four pictures with a LoRA at 80%, a negative prompt, and a contact sheet",
     "lora generate --ckpt model.safetensors --lora style.safetensors:0.8 --images_per_prompt 4 --grid sheet.png --prompt 'a "
     "fox "
     "--n blurry'"},
    {"draw over a sketch, keeping a third of it",
     "lora generate --ckpt model.safetensors --image_path sketch.png --strength 0.67 --prompt 'a castle by the sea'"},
    {"repaint what is white in a mask",
     "lora generate --ckpt model.safetensors --image_path photo.png --mask_path mask.png --prompt 'a wooden bench'"},
    {"LoRAs by name, from a file of prompts such as: a fox <lora:style:0.8> --s 20 --d 7",
     "lora generate --ckpt model.safetensors --lora_dir loras --from_file prompts.txt"},
    {"large pictures in two stages",
     "lora generate --ckpt model.safetensors --W 1024 --H 768 --highres_fix_scale 0.5 --strength 0.6 --prompt 'a forest'"},
    {"type prompts, see pictures form",
     "lora generate --ckpt model.safetensors --sampler dpmpp_2m_karras --steps 20 --interactive --preview auto"},
    {0},
};

/* ---- Opening ---- */

static int refuse(const struct generate_options *o, struct err *err)
{
    if (o->clip_guidance_scale != 0 || o->clip_image_guidance_scale != 0)
        return err_usage(err, "CLIP guidance is not part of this program; leave out --clip_guidance_scale and "
                              "--clip_image_guidance_scale, --scale guides by the prompt");
    if (o->vgg16_guidance_scale != 0)
        return err_usage(
            err, "VGG16 guidance is not part of this program; leave out --vgg16_guidance_scale, --image_path begins with "
                 "a picture");
    if (o->guide_image_path)
        return err_usage(err,
                         "guidance by a picture is not part of this program; leave out --guide_image_path, --image_path begins "
                         "with a picture");
    return 0;
}

static int open_pipe(struct work *w, struct err *err)
{
    const struct generate_options *o = w->o;
    struct generate_pipe *p = &w->pipe;

    if (offload_open(&w->offload, o->device, NULL, err) || generate_pipe_open(p, o->ckpt, o->vae, &w->offload.ops, err) ||
        (o->v2 && model_expect_v2(p->model, true, err)))
        return -1;
    if (w->offload.note[0])
        command_note(w->run, "%s", w->offload.note);
    p->clip_skip = o->clip_skip;
    p->most_chunks = o->max_embeddings_multiples;
    p->device = o->rng == 1 ? NOISE_CUDA : NOISE_CPU;
    if (o->v_parameterization)
        p->prediction = PREDICT_V;
    w->limit = w->offload.info.memory ? w->offload.info.free : memory_free("");
    p->profile = o->profile;
    p->check_nan = o->check_nan;
    latents_tile(p->latents, o->vae_tile);
    if (p->model->arch == MODEL_SD2 && p->model->prediction == MODEL_PREDICTION_UNKNOWN && !o->v_parameterization)
        command_note(w->run, "Stable Diffusion 2, taken as predicting noise; if pictures are noise, add --v_parameterization");
    return 0;
}

/* A --ckpt that is no file or folder may be a pattern of the shell that fits exactly one. */
static int find_ckpt(struct generate_options *o, struct arena *a, struct err *err)
{
    glob_t found;
    int rc = 0;

    if (access(o->ckpt, F_OK) == 0 || !strpbrk(o->ckpt, "*?["))
        return 0;
    if (glob(o->ckpt, 0, NULL, &found) != 0)
        return err_set(err, "nothing fits '%s'; name a checkpoint", o->ckpt);
    if (found.gl_pathc != 1)
        rc = err_usage(err, "'%s' fits %zu files, such as '%s' and '%s'; name one", o->ckpt, (size_t)found.gl_pathc,
                       found.gl_pathv[0], found.gl_pathv[1]);
    else if (!(o->ckpt = arena_str(a, found.gl_pathv[0], err)))
        rc = -1;
    globfree(&found);
    return rc;
}

static int check_outputs(const struct generate_options *o, struct err *err)
{
    static const char *const names[] = {"x.png", "x.jpg", "x.jpeg", "x.webp"};
    struct picture_format format = {(int)o->quality};

    if (o->grid && picture_can_write(o->grid, (struct picture_format){95}, err))
        return err_prefix(err, "--grid: ");
    if (o->format != 3 && o->quality > 100)
        return err_usage(err, "--quality %zu is for WebP without loss; give 1 to 100", o->quality);
    if (picture_can_write(names[o->format], format, err))
        return err_prefix(err, "--format %s, --quality %zu: ", formats[o->format], o->quality);
    return 0;
}

static int open_all(struct work *w, struct err *err)
{
    const struct generate_options *o = w->o;

    w->kind = sampler_find(o->sampler);
    if (!w->kind)
        return err_usage(err, "there is no sampler '%s'; 'lora generate --help' lists them", o->sampler);
    w->has_w = option_given(w->run->values, &o->W);
    w->has_h = option_given(w->run->values, &o->H);
    w->has_negative_scale = option_given(w->run->values, &o->negative_scale);
    w->files = json_array();
    w->batch = mem_zero(o->batch_size, sizeof *w->batch, "a batch", err);
    if (!w->files || !w->batch)
        return err_memory(err, 0, "the result");
    if (refuse(o, err) || check_outputs(o, err) || ask_prompts(w, err) || open_pipe(w, err) || loras_open(w, err) ||
        (o->grid && sheet_open(&w->sheet, err)))
        return -1;
    if (w->run->quiet || w->run->json)
        return 0;
    return preview_open(&w->preview,
                        o->preview == PREVIEW_NONE && o->interactive && !o->no_preview &&
                                !option_given(w->run->values, &o->preview)
                            ? PREVIEW_AUTO
                            : (enum preview_kind)o->preview,
                        &w->pipe, err);
}

static void close_all(struct work *w)
{
    progress_end(w->progress);
    preview_close(w->preview);
    sheet_close(w->sheet);
    json_decref(w->files);
    free(w->seed);
    free(w->batch);
    batch_forget(w);
    generate_pipe_close(&w->pipe);
    loras_close(w->loras);
    prompt_file_free(&w->prompts);
    sources_close(&w->sources);
    sources_close(&w->masks);
    offload_close(&w->offload);
}

/* ---- Drawing ---- */

static int draw_prompt(struct work *w, const struct prompt_line *p, struct err *err)
{
    for (size_t i = 0; i < w->o->images_per_prompt; i++) {
        struct shot s;

        if (ask_next(w, p, &s, i, err) || batch_add(w, &s, err))
            return -1;
    }
    return 0;
}

/* Makes the folder for the pictures, so that one that cannot be written to is known before the work. */
static int check_outdir(struct work *w, struct err *err)
{
    struct arena a = {0};
    struct output *o = NULL;
    char *path = arena_printf(&a, err, "%s/generate.options.json", w->o->outdir);
    int rc = path ? output_open(&o, path, err) : -1;

    output_abort(o);
    arena_free(&a);
    return rc;
}

static int draw_given(struct work *w, struct err *err)
{
    size_t passes = w->o->interactive ? 1 : w->o->n_iter, evaluations = 0;

    if (ask_check(w, &evaluations, err) || ask_seeds(w, err) || check_outdir(w, err))
        return -1;
    if (!w->prompts.count)
        return 0;
    w->progress = progress_start(w->run, "generating", evaluations / w->o->n_iter * passes, "steps");
    w->total = w->prompts.count * w->o->images_per_prompt * passes;
    for (size_t pass = 0; pass < passes; pass++) {
        w->step = 0;
        for (size_t i = 0; i < w->prompts.count; i++)
            if (draw_prompt(w, &w->prompts.line[i], err))
                return -1;
        if (batch_flush(w, err) || ask_pass(w, err))
            return -1;
    }
    progress_end(w->progress);
    w->progress = NULL;
    w->total = 0;
    return 0;
}

/* One typed line. What is wrong with it is told, and the next one asked for; only a stop ends the work. */
static int draw_line(struct work *w, const char *text, size_t n, struct prompt_line *p, struct err *err)
{
    struct shot s;
    size_t evaluations;

    if (prompt_line_parse(p, text, n, NULL, 0, err))
        return -1;
    if (ask_shot(w, p, &s, err) || loras_check(w, p, err))
        return -1;
    evaluations = ask_evaluations(w, &s) * w->o->images_per_prompt;
    w->progress = progress_start(w->run, "generating", evaluations, "steps");
    if (draw_prompt(w, p, err))
        return -1;
    return batch_flush(w, err);
}

static bool is_blank(const char *s)
{
    while (isspace((unsigned char)*s))
        s++;
    return !*s;
}

/* Two lines are kept: LoRAs of the last one may be those of the next. */
static int draw_typed(struct work *w, struct err *err)
{
    struct prompt_line line[2] = {{0}, {0}};
    bool asks = isatty(STDIN_FILENO) && !w->run->quiet && !w->run->json;
    char *text = NULL;
    size_t cap = 0, now = 0;
    ssize_t n;

    for (;;) {
        struct err bad = {0};

        if (asks)
            fputs("prompt> ", stderr);
        n = batch_stopped() ? -1 : getline(&text, &cap, stdin);
        if (n < 0)
            break;
        if (is_blank(text))
            continue;
        prompt_line_free(&line[now]);
        if (draw_line(w, text, strlen(text), &line[now], &bad)) {
            w->in_batch = 0;
            if (!batch_stopped())
                command_warn(w->run, "%s", bad.msg);
        }
        progress_end(w->progress);
        w->progress = NULL;
        now = !now;
    }
    if (asks)
        fputc('\n', stderr);
    free(text);
    prompt_line_free(&line[0]);
    prompt_line_free(&line[1]);
    return batch_stopped() ? err_set(err, GENERATE_STOPPED) : 0;
}

static int finish(struct work *w, double seconds, struct err *err)
{
    struct arena a = {0};
    char *path = arena_printf(&a, err, "%s/generate", w->o->outdir);
    int rc = path ? command_write_options(w->run, path, err) : -1;

    arena_free(&a);
    if (rc == 0 && w->run->json)
        return command_print_json(json_pack("{s:O, s:f}", "pictures", w->files, "seconds", seconds), err);
    if (rc == 0 && !w->run->quiet)
        printf("%zu picture%s in '%s', %.1f s\n", w->made, w->made == 1 ? "" : "s", w->o->outdir, seconds);
    return rc;
}

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int run(const struct command_run *run, void *options, struct err *err)
{
    struct work w = {.run = run, .o = options};
    struct arena a = {0};
    double start = now();
    int rc = find_ckpt(options, &a, err) ? -1 : open_all(&w, err);

    if (rc == 0) {
        batch_catch_signals();
        rc = draw_given(&w, err);
    }
    if (rc == 0 && w.o->interactive)
        rc = draw_typed(&w, err);
    progress_end(w.progress);
    w.progress = NULL;
    if (w.sheet && w.made) {
        struct err late = {0};

        if (sheet_write(w.sheet, w.o->grid, rc ? &late : err) && rc == 0)
            rc = -1;
    }
    if (rc && batch_stopped())
        err_set(err, "stopped; %zu finished picture%s in '%s'", w.made, w.made == 1 ? " is" : "s are", w.o->outdir);
    else if (rc && w.made)
        command_note(run, "%zu finished picture%s in '%s'", w.made, w.made == 1 ? " is" : "s are", w.o->outdir);
    if (rc == 0)
        rc = finish(&w, now() - start, err);
    close_all(&w);
    arena_free(&a);
    return rc;
}

static const char *const aliases[] = {"gen_img_diffusers", "gen_img", NULL};

const struct command command_generate = {
    .name = "generate",
    .aliases = aliases,
    .summary = "draw pictures from text and pictures, with LoRAs",
    .description =
        "The same seed gives the picture that others get with it: noise is torch's, samplers and prompt weights are "
        "those that sd-scripts and diffusers have. A picture depends on its own seed and settings, not on what is made "
        "beside it.\n\n"
        "Pictures are PNG files with prompt, seed and settings inside, as sd-scripts and web UIs read them. Each is "
        "written when it is done. Ctrl-C stops after the present step and keeps what is finished; a second one stops at "
        "once.",
    .options = rows,
    .options_size = sizeof(struct generate_options),
    .examples = examples,
    .exit_notes = "1 also after Ctrl-C: finished pictures are kept.",
    .run = run,
};
