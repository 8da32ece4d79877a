/* The demonstration's helper.
 *
 *   demo rockets FOLDER PROMPT       in how many of the pictures with such prompts a rocket is found
 *   demo difference A B PROMPT       how much the pictures with such prompts differ
 *   demo page FOLDER COLUMN=FOLDER.. the page and the grid of all pictures
 *   demo error BASE TUNED MERGED     what of a change is missing in another checkpoint, by block
 *   demo spectrum REPORT.json        the singular values of the module that changed most
 *   demo pair BASE TUNED             two small checkpoints of random numbers, for tests */
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cmd/chart.h"
#include "formats/tensor_file.h"
#include "ref/base/mem.h"
#include "tests/demo/pair.h"
#include "tests/demo/story.h"

enum { BLOCKS = 26 }; /* text encoder, 12 input blocks, middle, 12 output blocks */

/* The block of an LDM name, or -1. */
static int block_of(const char *name)
{
    int n;

    if (strncmp(name, "cond_stage_model.", 17) == 0)
        return 0;
    if (sscanf(name, "model.diffusion_model.input_blocks.%d.", &n) == 1 && n < 12)
        return 1 + n;
    if (strstr(name, ".middle_block."))
        return 13;
    if (sscanf(name, "model.diffusion_model.output_blocks.%d.", &n) == 1 && n < 12)
        return 14 + n;
    return -1;
}

static float *read_f32(const struct tensor_file *f, const char *name, size_t n, struct err *err)
{
    const struct tensor_entry *e = tensor_file_find(f, name);
    void *raw = NULL;
    float *x = NULL;

    if (!e) {
        err_set(err, "'%s' has no tensor '%s'", f->path, name);
        return NULL;
    }
    raw = mem_new(e->nbytes, "a tensor", err);
    x = raw ? mem_new(n * sizeof *x, "a tensor", err) : NULL;
    if (x && tensor_file_read(f, e, raw, err) == 0) {
        dtype_convert(x, DT_F32, raw, e->dtype, n);
        free(raw);
        return x;
    }
    free(raw);
    free(x);
    return NULL;
}

struct sums {
    double change[BLOCKS], missing[BLOCKS]; /* squares */
};

static int add_tensor(struct tensor_file *const f[3], const struct tensor_entry *e, struct sums *s, struct err *err)
{
    float *x[3] = {0};
    int rc = 0, block = block_of(e->name);
    size_t n = 0;

    if (block < 0 || !shape_numel(&e->shape, &n))
        return 0;
    for (int i = 0; i < 3; i++)
        if (!(x[i] = read_f32(f[i], e->name, n, err)))
            rc = -1;
    for (size_t k = 0; rc == 0 && k < n; k++) {
        double change = (double)x[1][k] - (double)x[0][k], missing = (double)x[1][k] - (double)x[2][k];

        s->change[block] += change * change;
        s->missing[block] += missing * missing;
    }
    for (int i = 0; i < 3; i++)
        free(x[i]);
    return rc;
}

static void print_sums(const struct sums *s)
{
    static char name[BLOCKS][8];
    const char *label[BLOCKS];
    double value[BLOCKS], change = 0, missing = 0;
    size_t n = 0;

    for (int b = 0; b < BLOCKS; b++) {
        change += s->change[b];
        missing += s->missing[b];
        if (s->change[b] == 0)
            continue;
        snprintf(name[n], sizeof name[n],
                 b == 0    ? "BASE"
                 : b == 13 ? "MID"
                 : b < 13  ? "IN%02d"
                           : "OUT%02d",
                 b < 13 ? b - 1 : b - 14);
        label[n] = name[n];
        value[n++] = 100 * sqrt(s->missing[b] / s->change[b]);
    }
    printf("\n  |tuned - merged| / |tuned - base| = %.2f %%; by block (BASE is the text encoder), in percent:\n",
           100 * sqrt(missing / change));
    chart_rows(stdout, label, value, n, 40, "%.2f");
}

static int print_error(char *const path[3], struct err *err)
{
    struct tensor_file *f[3] = {0};
    struct sums s = {0};
    int rc = 0;

    for (int i = 0; i < 3 && rc == 0; i++)
        rc = tensor_file_open(&f[i], path[i], err);
    for (size_t i = 0; rc == 0 && i < f[0]->count; i++)
        rc = add_tensor(f, &f[0]->entries[i], &s, err);
    if (rc == 0)
        print_sums(&s);
    for (int i = 0; i < 3; i++)
        tensor_file_close(f[i]);
    return rc;
}

static int print_spectrum(const char *path, struct err *err)
{
    json_error_t e;
    json_t *report = json_load_file(path, 0, &e), *module, *most = NULL, *values;
    double *y;
    size_t i, n;

    if (!report)
        return err_set(err, "cannot read '%s': %s", path, e.text);
    json_array_foreach(json_object_get(report, "module_list"), i, module)
    {
        if (!most || json_real_value(json_object_get(module, "norm")) > json_real_value(json_object_get(most, "norm")))
            most = module;
    }
    values = json_object_get(most, "singular_values");
    n = json_array_size(values);
    y = n ? mem_new(n * sizeof *y, "singular values", err) : NULL;
    for (i = 0; y && i < n; i++)
        y[i] = json_real_value(json_array_get(values, i));
    if (y) {
        printf("\nSingular values of the change of %s:\n", json_string_value(json_object_get(most, "module")));
        chart_plot(stdout, y, n, 60, 10, true);
    }
    free(y);
    json_decref(report);
    return y ? 0 : err_set(err, "'%s' has no singular values", path);
}

static int print_rockets(char *const arg[2], struct err *err)
{
    size_t found, all;

    if (story_rockets(arg[0], arg[1], &found, &all, err))
        return -1;
    printf("%zu of %zu", found, all);
    return 0;
}

static int print_difference(char *const arg[3], struct err *err)
{
    double mean;

    if (story_difference(arg[0], arg[1], arg[2], &mean, err))
        return -1;
    printf("%.3f", mean);
    return 0;
}

static const char next_steps[] =
    "<section><h2>What to look at next</h2><ul>"
    "<li><a href=training/report.html>The training's report</a>: samples while it learned, loss, rates, what each block changed"
    "<li><a href=extracted.html>The extraction's report</a>: what of the change a LoRA of this rank holds"
    "<li><a href=grid.png>These pictures as one file</a></ul></section>";

/* argv: the folder, then TITLE=FOLDER for each column; the folder may be followed by another '=' and what the page says of it. */
static int write_story(int argc, char **argv, struct err *err)
{
    struct story_column column[8];
    size_t n = 0;

    for (int i = 1; i < argc && n < 8; i++, n++) {
        char *folder = strchr(argv[i], '='), *about = folder ? strchr(folder + 1, '=') : NULL;

        if (!folder)
            return err_usage(err, "'%s': write TITLE=FOLDER", argv[i]);
        *folder++ = '\0';
        if (about)
            *about++ = '\0';
        column[n] = (struct story_column){folder, argv[i], about};
    }
    return story_write(argv[0], column, n, next_steps, err);
}

int main(int argc, char **argv)
{
    struct err err = {0};
    int rc;

    if (argc == 4 && strcmp(argv[1], "pair") == 0)
        rc = pair_write(argv[2], argv[3], &err);
    else if (argc == 3 && strcmp(argv[1], "spectrum") == 0)
        rc = print_spectrum(argv[2], &err);
    else if (argc == 5 && strcmp(argv[1], "error") == 0)
        rc = print_error(argv + 2, &err);
    else if (argc == 4 && strcmp(argv[1], "rockets") == 0)
        rc = print_rockets(argv + 2, &err);
    else if (argc == 5 && strcmp(argv[1], "difference") == 0)
        rc = print_difference(argv + 2, &err);
    else if (argc > 3 && strcmp(argv[1], "page") == 0)
        rc = write_story(argc - 2, argv + 2, &err);
    else
        rc = err_usage(&err, "usage: demo rockets | difference | page | error | spectrum | pair, as demo.c says");
    if (rc)
        fprintf(stderr, "demo: %s\n", err.msg);
    return rc ? 1 : 0;
}
