/* prepare_buckets_latents: the size each picture will have in training, and its latents in an .npz file. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "cmd/latents.h"
#include "cmd/memory.h"
#include "cmd/prepare/prepare.h"
#include "cmd/train/dataset_inside.h"
#include "formats/npz.h"
#include "offload/offload.h"

struct job {
    const struct command_run *run;
    const struct prepare_sizes *o;
    json_t *all;
    struct dataset *d;
    size_t channels, factor, skipped;
};

static const char *name_in(const char *path)
{
    const char *slash = strrchr(path, '/');

    return slash ? slash + 1 : path;
}

static int npz_path(const struct job *j, const char *picture, const char *tail, char *out, size_t size, struct err *err)
{
    const char *name = name_in(picture), *dot = strrchr(name, '.');

    if ((size_t)snprintf(out, size, "%s/%.*s%s.npz", j->o->dir, (int)(dot - name), name, tail) >= size)
        return err_set(err, "the path of '%s' is too long", picture);
    return 0;
}

/* [h, w, c] to an array arr_0 of [c, h, w], which np.savez(path, latents) makes. */
static int write_latents(const struct job *j, const struct sample_picture *p, const float *latents, const char *tail,
                         struct err *err)
{
    size_t h = p->fit[1] / j->factor, w = p->fit[0] / j->factor, c = j->channels;
    float *first = mem_new(c * h * w * sizeof *first, "latents", err);
    struct npz_array a = {"arr_0", DT_F32, {3, {c, h, w}}, first};
    char path[4096];
    int rc = first ? npz_path(j, p->path, tail, path, sizeof path, err) : -1;

    for (size_t i = 0; i < h * w && !rc; i++)
        for (size_t k = 0; k < c; k++)
            first[k * h * w + i] = latents[i * c + k];
    if (!rc)
        rc = npz_write(path, &a, 1, err);
    free(first);
    return rc;
}

static int keep(void *ctx, struct sample_picture *p, struct err *err)
{
    const struct job *j = ctx;
    int rc = write_latents(j, p, p->latents, "", err);

    if (!rc && p->latents_flipped)
        rc = write_latents(j, p, p->latents_flipped, "_flip", err);
    free(p->latents); /* what is on the disk need not stay */
    free(p->latents_flipped);
    p->latents = p->latents_flipped = NULL;
    return rc;
}

/* Whether the files of a picture are there and have its size. */
static bool is_done(const struct job *j, const struct sample_picture *p)
{
    static const char *const tails[] = {"", "_flip"};

    for (size_t i = 0; i < (j->o->flip ? 2 : 1); i++) {
        struct err ignored;
        struct npz n;
        char path[4096];
        const struct npz_array *a;
        bool same;

        if (npz_path(j, p->path, tails[i], path, sizeof path, &ignored) || npz_read(&n, path, &ignored))
            return false;
        a = npz_find(&n, "arr_0");
        same = a && a->shape.ndim == 3 && a->shape.dim[1] == p->fit[1] / j->factor && a->shape.dim[2] == p->fit[0] / j->factor;
        npz_free(&n);
        if (!same)
            return false;
    }
    return true;
}

/* Two pictures whose names differ only in their endings would write one file. */
static int check_stems(const struct job *j, struct err *err)
{
    for (size_t i = 1; i < j->d->pictures; i++) { /* sorted by name: such two are neighbours */
        char a[4096], b[4096];

        if (npz_path(j, j->d->picture[i - 1].path, "", a, sizeof a, err) ||
            npz_path(j, j->d->picture[i].path, "", b, sizeof b, err))
            return -1;
        if (!strcmp(a, b))
            return err_set(err, "'%s' and '%s' would have the same file of latents; rename one of them",
                           j->d->picture[i - 1].path, j->d->picture[i].path);
    }
    return 0;
}

static void drop_unknown(struct job *j)
{
    size_t kept = 0;

    for (size_t i = 0; i < j->d->pictures; i++) {
        const char *path = j->d->picture[i].path, *name = name_in(path), *dot = strrchr(name, '.');
        char key[4096];

        if (j->o->full_path)
            snprintf(key, sizeof key, "%s/%s", j->o->dir, name);
        else
            snprintf(key, sizeof key, "%.*s", (int)(dot - name), name);
        if (json_object_get(j->all, key))
            j->d->picture[kept++] = j->d->picture[i];
    }
    j->d->pictures = kept;
}

static int write_sizes(const struct job *j, struct err *err)
{
    for (size_t i = 0; i < j->d->pictures; i++) {
        const struct sample_picture *p = &j->d->picture[i];
        char key[4096];
        json_t *one = prepare_entry(j->all, j->o->dir, name_in(p->path), j->o->full_path, key, sizeof key, err);

        if (!one)
            return -1;
        if (json_object_set_new(one, "train_resolution", json_pack("[I, I]", (json_int_t)p->fit[0], (json_int_t)p->fit[1])) !=
            0)
            return err_memory(err, 64, "metadata");
    }
    return 0;
}

/* Leaves out the pictures that have their files. */
static void skip_done(struct job *j)
{
    size_t kept = 0;

    for (size_t i = 0; i < j->d->pictures; i++)
        if (is_done(j, &j->d->picture[i]))
            j->skipped++;
        else
            j->d->picture[kept++] = j->d->picture[i];
    j->d->pictures = kept;
}

static void print_buckets(const struct job *j)
{
    const struct dataset_bucket *b;
    size_t n = dataset_buckets(j->d, &b);

    for (size_t i = 0; i < n; i++)
        printf("bucket %zu x %zu: %zu\n", b[i].width, b[i].height, b[i].samples);
    printf("mean error of the aspect ratio: %.4f\n", j->d->mean_ar_error);
}

static int find_pictures(struct job *j, const struct latents *l, struct err *err)
{
    const struct prepare_sizes *o = j->o;
    struct group g = {
        .buckets = true, .no_upscale = o->no_upscale, .min = o->min, .max = o->max, .steps = o->steps, .batch = o->batch};
    struct dataset_setup setup = {
        .run = j->run, .factor = latents_factor(l), .channels = latents_channels(l), .max_tokens = 225};

    j->factor = setup.factor;
    j->channels = setup.channels;
    if (dataset_parse_resolution(o->resolution, &g.width, &g.height, err) ||
        dataset_open_folder(&j->d, o->dir, &g, o->flip, o->skip_bad, &setup, err))
        return -1;
    for (size_t i = 0; i < j->d->findings; i++) { /* captions are another step's business */
        struct finding *f = &j->d->finding[i];

        if (f->kind != FINDING_UNREADABLE && f->kind != FINDING_TURNED) {
            *f = j->d->finding[--j->d->findings];
            i--;
        }
    }
    if (o->known_only)
        drop_unknown(j);
    return dataset_make_buckets(j->d, err) || dataset_print_findings(j->d, j->run, err) || check_stems(j, err) ? -1 : 0;
}

int prepare_latents(const struct command_run *run, json_t *all, const struct prepare_sizes *o, struct err *err)
{
    struct job j = {.run = run, .o = o, .all = all};
    struct offload device = {0};
    struct latents *l = NULL;
    int rc = -1;

    if (offload_open(&device, o->device, NULL, err))
        return -1;
    if (latents_open(&l, o->vae ? o->vae : o->model, &device.ops, err) || find_pictures(&j, l, err) || write_sizes(&j, err))
        goto out;
    latents_limit(l, (device.info.memory ? device.info.free : memory_free("")) / 2); /* larger pictures go through in tiles */
    if (!run->quiet && !run->json)
        print_buckets(&j);
    if (o->skip_existing)
        skip_done(&j);
    if (j.skipped)
        command_note(run, "%zu pictures have their latents already", j.skipped);
    rc = dataset_encode_all(j.d, run, dataset_encode_latents, l, keep, &j, o->batch, err);
out:
    dataset_close(j.d);
    latents_close(l);
    offload_close(&device);
    return rc;
}

/* ---- The command */

struct bucket_options {
    const char *train_data_dir, *in_json, *out_json, *model_name_or_path, *max_resolution, *device;
    size_t batch_size, min_bucket_reso, max_bucket_reso, bucket_reso_steps;
    bool full_path, flip_aug, bucket_no_upscale, skip_existing, skip_bad_pictures;
};

static int run(const struct command_run *run, void *options, struct err *err)
{
    const struct bucket_options *o = options;
    struct prepare_sizes s = {.dir = o->train_data_dir,
                              .model = o->model_name_or_path,
                              .device = o->device,
                              .resolution = o->max_resolution,
                              .min = o->min_bucket_reso,
                              .max = o->max_bucket_reso,
                              .steps = o->bucket_reso_steps,
                              .batch = o->batch_size,
                              .no_upscale = o->bucket_no_upscale,
                              .full_path = o->full_path,
                              .flip = o->flip_aug,
                              .skip_existing = o->skip_existing,
                              .skip_bad = o->skip_bad_pictures};
    json_t *all = prepare_read(o->in_json, o->out_json, err);
    int rc = all ? prepare_latents(run, all, &s, err) : -1;

    if (!rc)
        rc = prepare_write(o->out_json, all, err);
    if (!rc && !run->quiet && !run->json)
        printf("latents and sizes of the pictures in '%s' -> %s\n", o->train_data_dir, o->out_json);
    if (!rc && run->json)
        rc = command_print_json(json_pack("{s:I, s:s}", "pictures", (json_int_t)json_object_size(all), "out_json", o->out_json),
                                err);
    json_decref(all);
    return rc;
}

static const struct option_row rows[] = {
    {OPTION(struct bucket_options, train_data_dir), .arg = "DIR", .flags = OPTION_POSITIONAL | OPTION_REQUIRED,
     .help = "folder of pictures; .npz files are written there"},
    {OPTION(struct bucket_options, in_json), .arg = "IN.json", .flags = OPTION_POSITIONAL | OPTION_REQUIRED,
     .help = "metadata file to read"},
    {OPTION(struct bucket_options, out_json), .arg = "OUT.json", .flags = OPTION_POSITIONAL | OPTION_REQUIRED,
     .help = "metadata file to write, with each picture's size"},
    {OPTION(struct bucket_options, model_name_or_path), .arg = "PATH", .flags = OPTION_POSITIONAL | OPTION_REQUIRED,
     .help = "checkpoint, diffusers folder or VAE that encodes"},
    {OPTION(struct bucket_options, max_resolution), .arg = "W,H", .def = "512,512", .help = "largest area, as width,height"},
    {OPTION(struct bucket_options, min_bucket_reso), .arg = "N", .def = "256", .min = 8, .max = 16384,
     .help = "shortest side of a bucket"},
    {OPTION(struct bucket_options, max_bucket_reso), .arg = "N", .def = "1024", .min = 8, .max = 16384,
     .help = "longest side of a bucket"},
    {OPTION(struct bucket_options, bucket_reso_steps), .arg = "N", .def = "64", .min = 8, .max = 1024,
     .help = "sides of buckets are multiples of this"},
    {OPTION(struct bucket_options, bucket_no_upscale), .help = "never enlarge a picture"},
    {OPTION(struct bucket_options, batch_size), .arg = "N", .def = "1", .min = 1, .max = 1024,
     .help = "pictures that go through the VAE at once"},
    {OPTION(struct bucket_options, flip_aug), .help = "also write the mirrored pictures' latents, for --flip_aug in training"},
    {OPTION(struct bucket_options, full_path), .help = "pictures are named by their paths"},
    {OPTION(struct bucket_options, skip_existing), .help = "keep files of latents that are there and have the right size"},
    {OPTION(struct bucket_options, skip_bad_pictures), .help = "go on without pictures that cannot be read"},
    {OPTION(struct bucket_options, device), .arg = "NAME", .def = "auto",
     .help = "what computes: cpu, auto (a GPU where there is one), or a plug-in's name"},
    {OPTION_IGNORED_FLAG("v2", "the kind of model is found from the file; its VAE is the same anyway")},
    {OPTION_IGNORED_VALUE("mixed_precision", "TYPE", "pictures are encoded in f32")},
    {0},
};

static const char *const aliases[] = {"prepare_buckets_latents", NULL};

const struct command command_prepare_buckets_latents = {
    .name = "prepare_buckets_latents",
    .aliases = aliases,
    .summary = "find each picture's bucket and encode it once",
    .description =
        "Each picture is scaled and cut to the bucket that fits its shape, encoded by the VAE, and its latents written beside "
        "it "
        "for 'lora train --in_json OUT.json'. A picture's noise follows from its content, so that the same picture gives the "
        "same latents.",
    .options = rows,
    .options_size = sizeof(struct bucket_options),
    .flags = COMMAND_HIDDEN,
    .run = run,
};
