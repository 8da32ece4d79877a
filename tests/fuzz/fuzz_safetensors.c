/* Any bytes as a safetensors file: refused with a message, or every promise of the reader holds and every tensor can be read. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "formats/tensor_file.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void need(int ok, const char *what)
{
    if (ok)
        return;
    fprintf(stderr, "fuzz_safetensors: %s\n", what);
    abort();
}

/* What the reader promises about an accepted file. */
static void check(const struct tensor_file *f)
{
    struct err err = {0};

    for (size_t i = 0; i < f->count; i++) {
        const struct tensor_entry *e = &f->entries[i];
        size_t n;

        need(shape_nbytes(&e->shape, e->dtype, &n) && n == e->nbytes, "shape and bytes differ");
        need(e->plain && e->offset <= f->file_size && n <= f->file_size - e->offset, "data outside of the file");
        need(i == 0 || e->offset == e[-1].offset + e[-1].nbytes, "a hole or an overlap");
        need(tensor_file_find(f, e->name) == e, "a name is not found");
        if (n < 1 << 20) {
            void *dst = malloc(n + 1);

            need(dst && tensor_file_read(f, e, dst, &err) == 0, "reading fails");
            free(dst);
        }
    }
    for (size_t i = 0; i < f->metadata_count; i++)
        need(strcmp(tensor_file_metadata(f, f->metadata[i].key), f->metadata[i].value) == 0, "metadata is not found");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static int fd = -1;
    static char path[64];
    struct tensor_file *f;
    struct err err = {0};

    if (fd < 0) {
        fd = memfd_create("x.safetensors", 0);
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    }
    need(fd >= 0 && ftruncate(fd, 0) == 0 && pwrite(fd, data, size, 0) == (ssize_t)size, "no file in memory");
    if (tensor_file_open(&f, path, &err) == 0) {
        check(f);
        tensor_file_close(f);
    } else {
        need(!f && err.kind == ERR_FAILED && strstr(err.msg, path) && strchr(err.msg, ';'), "an error without its message");
    }
    return 0;
}
