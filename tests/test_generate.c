/* `lora generate` from command line to file, on the model that ships: whole pictures against diffusers'
 * (golden/make_generate.py), batches against single pictures. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cmd/command.h"
#include "formats/picture.h"
#include "formats/tensor_writer.h"
#include "tests/lib/scratch.h"

static const char *folder;

enum { MOST_ARGUMENTS = 64 };

/* Runs `lora generate` with the fixed options of all tests and more of them, NULL at the end; pictures go to OUT as
 * im_000001.png and so on. */
static int generate(const char *ckpt, const char *out, const char *const *more)
{
    const char *argv[MOST_ARGUMENTS] = {"lora", "generate", "--quiet", "--ckpt",
                                        ckpt,   "--outdir", out,       "--sequential_file_name"};
    int argc = 8;

    while (*more && argc + 1 < MOST_ARGUMENTS)
        argv[argc++] = *more++;
    return command_main(argc, (char **)(uintptr_t)argv);
}

/* Samples [of the picture] that differ, and by how much at most. */
static void differences(const struct picture *a, const struct picture *b, size_t *differ, int *most)
{
    *differ = 0;
    *most = 0;
    assert_int_equal(a->width, b->width);
    assert_int_equal(a->height, b->height);
    assert_int_equal(a->channels, b->channels);
    for (size_t i = 0; i < a->width * a->height * a->channels; i++) {
        int d = abs(a->data[i] - b->data[i]);

        *most = d > *most ? d : *most;
        *differ += d != 0;
    }
}

/* The latents of both sides differ by f32 rounding, some 1e-5, thousands of times less than a grey level (1 / 255): a sample
 * then differs where its value lies that near to the middle between two levels, and by one level. Allowed are two (the
 * project's promise); and no more than one sample in a hundred may differ, which a systematic difference would exceed. */
static void compare(const char *ours, const char *theirs)
{
    struct err err = {0};
    struct picture a, b;
    size_t differ;
    int most;

    if (picture_read(&a, ours, &err) || picture_read(&b, theirs, &err))
        fail_msg("%s", err.msg);
    differences(&a, &b, &differ, &most);
    if (most > 2 || differ > a.width * a.height * 3 / 100)
        fail_msg("%s, %s: largest difference %d of 255, %zu samples differ", ours, theirs, most, differ);
    picture_free(&a);
    picture_free(&b);
}

/* The model for inpainting that make_generate.py has: five more input channels, whose weights are a formula. */
static const char *inpainting_model(void)
{
    static const char name[] = "model.diffusion_model.input_blocks.0.0.weight";
    static char path[512];
    struct tensor_file *f;
    struct tensor_writer *w;
    struct tensor_spec *spec;
    struct err err = {0};

    snprintf(path, sizeof path, "%s", scratch_path(folder, "nine.safetensors"));
    assert_int_equal(tensor_file_open(&f, "golden/small_model/small.safetensors", &err), 0);
    spec = calloc(f->count, sizeof *spec);
    for (size_t i = 0; i < f->count; i++) {
        spec[i] = (struct tensor_spec){f->entries[i].name, f->entries[i].dtype, f->entries[i].shape};
        if (strcmp(spec[i].name, name) == 0)
            spec[i].shape.dim[1] = 9;
    }
    assert_int_equal(tensor_writer_open(&w, path, NULL, spec, f->count, f->metadata, f->metadata_count, &err), 0);
    for (size_t i = 0; i < f->count; i++) {
        const struct tensor_entry *e = &f->entries[i];
        size_t out = e->shape.dim[0];
        uint16_t *old, *new;

        if (strcmp(e->name, name) != 0) {
            assert_int_equal(tensor_writer_copy(w, i, f, e, &err), 0);
            continue;
        }
        assert_int_equal(e->dtype, DT_F16);
        old = malloc(e->nbytes);
        new = malloc(out * 81 * sizeof *new);
        assert_int_equal(tensor_file_read(f, e, old, &err), 0);
        for (size_t o = 0; o < out; o++)
            for (size_t k = 0; k < 81; k++) {
                size_t c = k / 9, y = k / 3 % 3, x = k % 3;

                new[o * 81 + k] =
                    c < 4 ? old[o * 36 + k] : dtype_f32_to_f16(0.05f * sinf((float)(7 * o + 13 * (c - 4) + 3 * y + x)));
            }
        assert_int_equal(tensor_writer_put(w, i, new, &err), 0);
        free(old);
        free(new);
    }
    assert_int_equal(tensor_writer_commit(w, &err), 0);
    tensor_file_close(f);
    free(spec);
    return path;
}

static const char house[] = "a red house to the left of a green tree in the snow", fish[] = "an orange fish under the sea";

#define PICTURE "--image_path", "golden/generate/source.png"
#define MASK    "--mask_path", "golden/generate/mask.png"

static const struct expected {
    const char *file;
    bool inpainting; /* with a model for it */
    const char *more[MOST_ARGUMENTS - 10];
} cases[] = {
    {"ddim", false, {"--prompt", house, "--seed", "1", "--W=128", "--H=128", "--steps=10", "--scale=5", NULL}},
    {"negative",
     false,
     {"--prompt", "three yellow stars at night --n blue circle --w 128 --h 96 --s 8 --l 7.5 --d 2", "--W=64", NULL}},
    {"no_guidance",
     false,
     {"--prompt", "a big striped purple heart on a white background", "--seed", "3", "--W=72", "--H=136", "--steps=6",
      "--scale=1", NULL}},
    {"lora",
     false,
     {"--prompt", house, "--seed", "4", "--W=128", "--H=128", "--steps=8", "--scale=5", "--lora",
      "golden/generate/lora.safetensors:0.8", NULL}},
    {"lora",
     false,
     {"--prompt", "a red house to the left of a green tree in the snow<lora:lora:0.8>", "--seed", "4", "--W=128", "--H=128",
      "--steps=8", "--scale=5", "--lora_dir", "golden/generate", NULL}},
    {"v_prediction",
     false,
     {"--prompt", fish, "--seed", "5", "--W=64", "--H=64", "--steps=4", "--scale=3", "--v_parameterization", NULL}},
    {"img2img", false, {"--prompt", fish, "--seed", "6", "--steps=8", "--scale=5", "--strength=0.6", PICTURE, NULL}},
    {"inpaint",
     false,
     {"--prompt", fish, "--seed", "7", "--steps=6", "--scale=5", "--sampler", "euler_a", PICTURE, MASK, NULL}},
    {"inpaint_model", true, {"--prompt", fish, "--seed", "8", "--steps=5", "--scale=3", PICTURE, MASK, NULL}},
};

static void pictures_are_those_of_diffusers(void **state)
{
    char out[512], ours[600], theirs[200];

    (void)state;
    snprintf(out, sizeof out, "%s", scratch_path(folder, "single"));
    snprintf(ours, sizeof ours, "%s/im_000001.png", out);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *ckpt = cases[i].inpainting ? inpainting_model() : "golden/small_model/small.safetensors";

        snprintf(theirs, sizeof theirs, "golden/generate/%s.png", cases[i].file);
        if (generate(ckpt, out, cases[i].more))
            fail_msg("%s failed", cases[i].file);
        compare(ours, theirs);
    }
}

/* Five pictures of three prompts: alone, and in batches, where each has other neighbours and another place. Sums over more rows
 * are cut in other pieces, so that values may differ by rounding: the limits above. */
static void batches_are_their_single_pictures(void **state)
{
    static const char *const single[] = {"--from_file", NULL,        "--W=64",  "--H=64", "--steps=3",
                                         "--scale=4",   "--sampler", "euler_a", NULL};
    const char *batch[] = {"--batch_size=4", "--from_file", NULL,        "--W=64",  "--H=64",
                           "--steps=3",      "--scale=4",   "--sampler", "euler_a", NULL};
    static const char prompts[] = "a red circle --d 1\na blue square --d 2 --n star\na red circle --d 3\n"
                                  "a yellow star --d 4 --s 4\na tree --d 5\n";
    const char *one[sizeof single / sizeof *single];
    char file[512], a[512], b[512], ours[600], theirs[600];

    (void)state;
    snprintf(file, sizeof file, "%s", scratch_path(folder, "prompts.txt"));
    scratch_write(file, prompts, sizeof prompts - 1);
    memcpy(one, single, sizeof one);
    one[1] = batch[2] = file;
    snprintf(a, sizeof a, "%s", scratch_path(folder, "a"));
    snprintf(b, sizeof b, "%s", scratch_path(folder, "b"));
    assert_int_equal(generate("golden/small_model/small.safetensors", a, one), 0);
    assert_int_equal(generate("golden/small_model/small.safetensors", b, batch), 0);
    for (int i = 1; i <= 5; i++) {
        snprintf(ours, sizeof ours, "%s/im_%06d.png", b, i);
        snprintf(theirs, sizeof theirs, "%s/im_%06d.png", a, i);
        compare(ours, theirs);
    }
}

static int make_folder(void **state)
{
    (void)state;
    folder = scratch_new();
    return 0;
}

static int remove_folder(void **state)
{
    (void)state;
    scratch_remove(folder);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pictures_are_those_of_diffusers),
        cmocka_unit_test(batches_are_their_single_pictures),
    };

    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
