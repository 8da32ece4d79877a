/* Any bytes as one of torch's legacy files (or any other tensor file): refused with a message, or every promise holds. Bytes
 * that do not begin as one get the three small pickles of the front, so that the fuzzer starts behind the magic number. */
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
    fprintf(stderr, "%s\n", what);
    abort();
}

/* What the reader promises about an accepted file. */
static void check(const struct tensor_file *f, size_t size)
{
    struct err err = {0};

    need(f->arena.total <= 4096 * size + (1 << 20), "memory out of proportion to the input");
    for (size_t i = 0; i < f->count; i++) {
        const struct tensor_entry *e = &f->entries[i];
        size_t n;

        need(shape_nbytes(&e->shape, e->dtype, &n) && n == e->nbytes, "shape and bytes differ");
        need(!e->plain || (e->offset <= f->file_size && n <= f->file_size - e->offset), "data outside of the file");
        need(tensor_file_find(f, e->name) == e, "a name is not found");
        if (n < 1 << 20) {
            unsigned char *dst = malloc(n + 1), *part = malloc(n + 1);
            int status = tensor_file_read(f, e, dst, &err);

            need(status == 0 || (!e->plain && strchr(err.msg, ';')), "reading fails");
            if (status == 0 && n > 1) {
                need(tensor_file_read_part(f, e, 1, n / 2, part, &err) == 0, "reading a part fails");
                need(memcmp(part, dst + 1, n / 2) == 0, "a part differs from the whole");
            }
            free(dst);
            free(part);
        }
    }
    for (size_t i = 0; i < f->metadata_count; i++)
        need(i == 0 || strcmp(f->metadata[i - 1].key, f->metadata[i].key) < 0, "metadata is not sorted");
}

static void open_bytes(const uint8_t *data, size_t size)
{
    static int fd = -1;
    static char path[64];
    struct tensor_file *f;
    struct err err = {0};

    if (fd < 0) {
        fd = memfd_create("fuzz", 0);
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    }
    need(fd >= 0 && ftruncate(fd, 0) == 0 && pwrite(fd, data, size, 0) == (ssize_t)size, "no file in memory");
    if (tensor_file_open(&f, path, &err) == 0) {
        check(f, size);
        tensor_file_close(f);
    } else {
        need(!f && err.kind == ERR_FAILED && strstr(err.msg, path) && strchr(err.msg, ';'), "an error without its message");
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char front[] = "\x80\x02\x8a\x0al\xfc\x9c"
                                "F\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.}.";
    uint8_t *whole;

    if (size > 4 && memcmp(data, front, 4) == 0) {
        open_bytes(data, size);
        return 0;
    }
    whole = malloc(sizeof front - 1 + size);
    need(whole != NULL, "no memory");
    memcpy(whole, front, sizeof front - 1);
    if (size)
        memcpy(whole + sizeof front - 1, data, size);
    open_bytes(whole, sizeof front - 1 + size);
    free(whole);
    return 0;
}
