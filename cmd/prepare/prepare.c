/* lora prepare: from a folder of pictures to a metadata file for 'lora train --in_json', all steps at once. */
#include "cmd/prepare/prepare.h"

#include <stdio.h>
#include <string.h>

struct prepare_options {
    const char *folder, *out, *in_json, *caption_extension, *tag_extension, *model, *vae, *resolution, *device;
    size_t batch_size, min_bucket_reso, max_bucket_reso, bucket_reso_steps;
    bool clean, full_path, flip_aug, bucket_no_upscale, skip_existing, skip_bad_pictures;
};

/* Entries with neither caption nor tags; the first one's key to first. */
static size_t count_wordless(json_t *all, const char **first)
{
    const char *key;
    json_t *one;
    size_t n = 0;

    *first = "";
    json_object_foreach(all, key, one)
    {
        if (json_object_get(one, "caption") || json_object_get(one, "tags"))
            continue;
        if (n++ == 0)
            *first = key;
    }
    return n;
}

static int check_words(const struct command_run *run, const struct prepare_options *o, json_t *all,
                       const struct prepare_merged m[2], struct err *err)
{
    const char *first;
    size_t without;

    if (m[0].pictures == 0)
        return err_set(err, "no pictures in '%s'; put .png, .jpg, .webp or .bmp files there", o->folder);
    if (json_object_size(all) == 0)
        return err_set(
            err,
            "none of the %zu pictures in '%s' has a '%s' or '%s' file; write what each shows into one, or name another ending "
            "with --caption_extension",
            m[0].pictures, o->folder, o->caption_extension, o->tag_extension);
    without = count_wordless(all, &first);
    if (without)
        command_warn(run, "%zu entries of the metadata have neither caption nor tags, '%s' first", without, first);
    without = m[0].pictures > json_object_size(all) ? m[0].pictures - json_object_size(all) : 0;
    if (without && !o->skip_bad_pictures)
        return err_set(
            err,
            "%zu of %zu pictures have neither a '%s' nor a '%s' file, '%s' first; write them, or go on without these pictures "
            "with --skip_bad_pictures",
            without, m[0].pictures, o->caption_extension, o->tag_extension,
            m[0].first_missing[0] ? m[0].first_missing : m[1].first_missing);
    if (without)
        command_warn(run, "%zu %s neither caption nor tags and %s left out", without,
                     without == 1 ? "picture has" : "pictures have", without == 1 ? "is" : "are");
    return 0;
}

static int prepare_all(const struct command_run *run, const struct prepare_options *o, json_t *all, struct err *err)
{
    struct prepare_merged m[2] = {{0}};
    struct prepare_sizes s = {.dir = o->folder,
                              .model = o->model,
                              .vae = o->vae,
                              .device = o->device,
                              .resolution = o->resolution,
                              .min = o->min_bucket_reso,
                              .max = o->max_bucket_reso,
                              .steps = o->bucket_reso_steps,
                              .batch = o->batch_size,
                              .no_upscale = o->bucket_no_upscale,
                              .full_path = o->full_path,
                              .flip = o->flip_aug,
                              .skip_existing = o->skip_existing,
                              .skip_bad = o->skip_bad_pictures,
                              .known_only = true};
    size_t changed = 0;

    if (prepare_merge(run, all, o->folder, o->caption_extension, "caption", o->full_path, false, &m[0], err) ||
        prepare_merge(run, all, o->folder, o->tag_extension, "tags", o->full_path, false, &m[1], err) ||
        check_words(run, o, all, m, err) || (o->clean && prepare_clean(run, all, &changed, err)))
        return -1;
    if (!run->quiet && !run->json) {
        printf("%zu pictures: %zu captions, %zu files of tags", m[0].pictures, m[0].texts, m[1].texts);
        if (o->clean)
            printf(", %zu texts cleaned", changed);
        printf("\n");
    }
    return (o->model || o->vae) && prepare_latents(run, all, &s, err) ? -1 : prepare_write(o->out, all, err);
}

static int run(const struct command_run *run, void *options, struct err *err)
{
    const struct prepare_options *o = options;
    json_t *all = prepare_read(o->in_json, o->out, err);
    int rc = all ? prepare_all(run, o, all, err) : -1;

    if (!rc && run->json)
        rc = command_print_json(json_pack("{s:I, s:s}", "pictures", (json_int_t)json_object_size(all), "out", o->out), err);
    else if (!rc && !run->quiet)
        printf("-> %s; now: lora train --train_data_dir '%s' --in_json '%s' ...\n", o->out, o->folder, o->out);
    json_decref(all);
    return rc;
}

static const struct option_row rows[] = {
    {OPTION(struct prepare_options, folder), .arg = "DIR", .flags = OPTION_POSITIONAL | OPTION_REQUIRED,
     .help = "folder of pictures with text files of the same names"},
    {OPTION(struct prepare_options, out), .arg = "FILE", .flags = OPTION_REQUIRED | OPTION_OUTPUT,
     .help = "metadata file to write; one that is there is added to"},
    {OPTION(struct prepare_options, model), .arg = "PATH",
     .help = "also find each picture's size for training and encode it once, with this checkpoint's VAE"},
    {OPTION(struct prepare_options, vae), .arg = "PATH", .help = "encode with this VAE instead"},
    {OPTION(struct prepare_options, caption_extension), .arg = "EXT", .def = ".caption",
     .help = "ending of files with a sentence"},
    {OPTION(struct prepare_options, tag_extension), .arg = "EXT", .def = ".txt", .help = "ending of files with tags"},
    {OPTION(struct prepare_options, clean),
     .help = "make the words of taggers uniform; meant for anime figures, see 'lora help clean_captions_and_tags'"},
    {OPTION(struct prepare_options, resolution), .arg = "W,H", .def = "512,512",
     .help = "largest area of a picture in training"},
    {OPTION(struct prepare_options, flip_aug), .help = "also encode mirrored pictures, for --flip_aug in training"},
    {OPTION(struct prepare_options, skip_existing), .help = "keep files of latents that are there and have the right size"},
    {OPTION(struct prepare_options, skip_bad_pictures), .help = "go on without pictures that have no text or cannot be read"},
    {OPTION(struct prepare_options, device), .arg = "NAME", .def = "auto",
     .help = "what computes: cpu, auto (a GPU where there is one), or a plug-in's name"},
    {OPTION(struct prepare_options, in_json), .arg = "FILE", .flags = OPTION_ADVANCED,
     .help = "metadata file to begin with; unset: --out, if it is there"},
    {OPTION(struct prepare_options, full_path), .flags = OPTION_ADVANCED,
     .help = "name pictures by their paths, for several folders in one metadata file"},
    {OPTION(struct prepare_options, min_bucket_reso), .arg = "N", .def = "256", .min = 8, .max = 16384,
     .flags = OPTION_ADVANCED, .help = "shortest side of a bucket"},
    {OPTION(struct prepare_options, max_bucket_reso), .arg = "N", .def = "1024", .min = 8, .max = 16384,
     .flags = OPTION_ADVANCED, .help = "longest side of a bucket"},
    {OPTION(struct prepare_options, bucket_reso_steps), .arg = "N", .def = "64", .min = 8, .max = 1024,
     .flags = OPTION_ADVANCED, .help = "sides of buckets are multiples of this"},
    {OPTION(struct prepare_options, bucket_no_upscale), .flags = OPTION_ADVANCED, .help = "never enlarge a picture"},
    {OPTION(struct prepare_options, batch_size), .arg = "N", .def = "1", .min = 1, .max = 1024, .flags = OPTION_ADVANCED,
     .help = "pictures that go through the VAE at once"},
    {0},
};

static const struct command_example examples[] = {
    {"captions (.caption) and tags (.txt) beside the pictures into one file", "lora prepare pictures --out meta.json"},
    {"and encode the pictures for training at 512x512, mirrored ones too",
     "lora prepare pictures --out meta.json --model model.safetensors --flip_aug"},
    {"the original's steps, one by one", "lora merge_captions_to_metadata.py pictures meta.json"},
    {0},
};

const struct command command_prepare = {
    .name = "prepare",
    .summary = "gather captions, sizes and latents of a folder of pictures for training",
    .description =
        "Training with captions ('lora train --in_json') reads a metadata file: one entry a picture with its caption, its "
        "tags, and the "
        "size it is trained at. This command makes it from text files beside the pictures. With --model, pictures are scaled, "
        "cut and "
        "encoded once, to .npz files beside them, so that training begins at once and needs no VAE.\n\n"
        "The four scripts it stands for are there under their names, with their options: merge_captions_to_metadata, "
        "merge_dd_tags_to_metadata, clean_captions_and_tags and prepare_buckets_latents. Captioning and tagging pictures by "
        "neural "
        "networks (make_captions, tag_images_by_wd14_tagger) is not part of this program: use any tool that writes text "
        "files.\n\n"
        "Folders named REPEATS_words need none of this: 'lora train --train_data_dir' reads them and their text files "
        "directly.",
    .options = rows,
    .options_size = sizeof(struct prepare_options),
    .examples = examples,
    .run = run,
};
