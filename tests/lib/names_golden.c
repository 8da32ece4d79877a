#include "tests/lib/names_golden.h"

#include <stdarg.h>
#include <setjmp.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "formats/tensor_writer.h"

struct names_golden names_golden_read(const char *name)
{
    struct names_golden g = {NULL, 0};
    char path[256], line[512];
    gzFile in;

    snprintf(path, sizeof path, "golden/names/%s.txt.gz", name);
    in = gzopen(path, "rb");
    assert_non_null(in);
    while (gzgets(in, line, sizeof line)) {
        char part[8], shape[64];
        struct golden_name n = {MODEL_OTHER, "", {0}, 0};
        unsigned crc = 0;

        assert_true(sscanf(line, "%7s %199s %63s %u", part, n.name, shape, &crc) >= 3);
        n.crc = crc;
        n.part = strcmp(part, "unet") == 0   ? MODEL_UNET
                 : strcmp(part, "text") == 0 ? MODEL_TEXT_ENCODER
                 : strcmp(part, "vae") == 0  ? MODEL_VAE
                                             : MODEL_OTHER;
        for (char *p = strtok(shape, "x-"); p; p = strtok(NULL, "x-"))
            n.shape.dim[n.shape.ndim++] = strtoul(p, NULL, 10);
        g.line = realloc(g.line, (g.count + 1) * sizeof *g.line);
        assert_non_null(g.line);
        g.line[g.count++] = n;
    }
    gzclose(in);
    assert_true(g.count > 0);
    return g;
}

float *names_golden_values(const char *name, size_t n)
{
    uint32_t seed = (uint32_t)crc32(0, (const unsigned char *)name, (unsigned)strlen(name));
    float *v = malloc((n + 1) * sizeof *v);

    assert_non_null(v);
    for (size_t i = 0; i < n; i++)
        v[i] = (float)((seed + (uint32_t)i * 2654435761u) >> 8) / 16777216.0f - 0.5f;
    return v;
}

void names_golden_write(const struct names_golden *g, const char *path, const char *without)
{
    struct tensor_spec *specs = calloc(g->count, sizeof *specs);
    struct tensor_writer *w;
    struct err err = {0};
    size_t n = 0;

    assert_non_null(specs);
    for (size_t i = 0; i < g->count; i++)
        if (g->line[i].part == MODEL_OTHER && (!without || strncmp(g->line[i].name, without, strlen(without)) != 0))
            specs[n++] = (struct tensor_spec){g->line[i].name, DT_F32, g->line[i].shape};
    assert_int_equal(tensor_writer_open(&w, path, NULL, specs, n, NULL, 0, &err), 0);
    for (size_t i = 0; i < n; i++) {
        size_t count;
        float *v;

        assert_true(shape_numel(&specs[i].shape, &count));
        v = names_golden_values(specs[i].name, count);
        assert_int_equal(tensor_writer_put(w, i, v, &err), 0);
        free(v);
    }
    assert_int_equal(tensor_writer_commit(w, &err), 0);
    free(specs);
}
