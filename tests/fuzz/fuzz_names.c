/* Files with any tensor names and shapes, opened as a model and as a LoRA.
 *
 * Input: lines `NAME DIM DIM ...`, or `@KEY VALUE` for the header's metadata. They become a safetensors file of zeros (f32; f16
 * where the name has an even length), so that the fuzzer need not find its way through the header's rules. */
#include <jansson.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "formats/lora_file.h"
#include "formats/model.h"
#include "ref/lora/target.h"

enum { MOST_DATA = 1 << 16, MOST_LINES = 400 };

static void add_line(json_t *header, json_t *metadata, char *line, size_t *at)
{
    char *space = strchr(line, ' '), *p = space;
    json_t *shape, *t;
    size_t n = strlen(line) % 2 ? 4 : 2;
    const char *type = n == 4 ? "F32" : "F16";

    if (space)
        *p++ = 0;
    if (line[0] == '@') {
        json_object_set_new(metadata, line + 1, json_string(p ? p : ""));
        return;
    }
    shape = json_array();
    for (int i = 0; p && i < 6; i++) {
        char *end;
        unsigned long d = strtoul(p, &end, 10);

        if (end == p || d > 3000)
            break;
        json_array_append_new(shape, json_integer((json_int_t)d));
        n *= d;
        if (n > MOST_DATA - *at) {
            json_decref(shape);
            return;
        }
        p = end;
    }
    t = json_pack("{s:s, s:o, s:[I, I]}", "dtype", type, "shape", shape, "data_offsets", (json_int_t)*at, (json_int_t)(*at + n));
    if (n <= MOST_DATA - *at && t && !json_object_get(header, line) && json_object_set(header, line, t) == 0)
        *at += n;
    json_decref(t);
}

static void use_lora(const char *path)
{
    struct err err;
    struct lora_file *f;
    char text[256];

    if (lora_file_open(&f, path, &err) != 0)
        return;
    lora_kind_text(f, text, sizeof text);
    for (size_t i = 0; i < f->count; i++) {
        const struct lora_module *m = &f->module[i];
        float *up = malloc(m->out * m->rank * sizeof *up), *down = malloc(m->rank * m->in * m->kh * m->kw * sizeof *down);

        if (!up || !down || lora_file_find(f, m->part, m->path) != m || lora_module_read_f32(m, up, down, &err) != 0)
            abort();
        target_of_path(m->part, m->path, strlen(m->path));
        target_block(m->part, m->path, 2);
        free(up), free(down);
    }
    lora_file_close(f);
}

static void use_model(const char *path)
{
    struct err err;
    struct model *m;
    char text[256];

    if (model_open(&m, path, &err) != 0)
        return;
    model_kind_text(m, text, sizeof text);
    model_expect_same(m, m, MODEL_UNET, &err);
    for (size_t i = 0; i < m->part_first[MODEL_OTHER]; i++) {
        const struct model_tensor *t = &m->tensor[i];
        void *data = malloc(t->nbytes + 1);
        struct names_slice ldm;

        if (!data || model_find(m, t->part, t->name) != t || model_read(t, data, &err) != 0)
            abort();
        names_to_ldm(&m->plan, t->part, t->name, &ldm);
        free(data);
    }
    model_close(m);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    json_t *header = json_object(), *metadata = json_object();
    char *copy = malloc(size + 1), *next = copy, *json, path[64];
    size_t at = 0, n;
    uint64_t length;
    int fd = memfd_create("names", MFD_CLOEXEC);

    memcpy(copy, data, size);
    copy[size] = 0;
    for (int i = 0; i < MOST_LINES && next; i++) {
        char *line = next, *end = strchr(line, '\n');

        if (end)
            *end = 0;
        next = end ? end + 1 : NULL;
        if (line[0])
            add_line(header, metadata, line, &at);
    }
    json_object_set(header, "__metadata__", metadata);
    json = json_dumps(header, JSON_COMPACT);
    if (json && fd >= 0) {
        length = n = strlen(json);
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        if (write(fd, &length, 8) == 8 && write(fd, json, n) == (ssize_t)n && ftruncate(fd, (off_t)(8 + n + at)) == 0) {
            use_model(path);
            use_lora(path);
        }
    }
    if (fd >= 0)
        close(fd);
    free(json);
    free(copy);
    json_decref(header);
    json_decref(metadata);
    return 0;
}
