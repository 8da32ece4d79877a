/* Any bytes as one of torch's zip archives: refused with a message, or every promise of the reader holds. Bytes that are no
 * archive become the data.pkl of one, beside a storage of 64 bytes, so that the fuzzer need not find checksums. */
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

static size_t put(uint8_t *p, size_t at, const void *data, size_t n)
{
    if (n)
        memcpy(p + at, data, n);
    return at + n;
}

/* "PK.." and the fields that local header and directory row have in common; no checksum, as torch may write it */
static size_t put_header(uint8_t *p, size_t at, int row, const char *name, size_t n, size_t header)
{
    uint32_t size = (uint32_t)n;
    uint16_t n_name = (uint16_t)strlen(name);
    size_t start = at;

    memset(p + at, 0, 46);
    memcpy(p + at, row ? "PK\1\2" : "PK\3\4", 4);
    at += row ? 6 : 4;
    memcpy(p + at + 14, &size, 4);
    memcpy(p + at + 18, &size, 4);
    memcpy(p + at + 22, &n_name, 2);
    if (row)
        memcpy(p + start + 42, &(uint32_t){(uint32_t)header}, 4);
    return put(p, start + (row ? 46 : 30), name, n_name);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    uint8_t *p, storage[64];
    size_t at, second, directory, n;

    if (size > 2 && memcmp(data, "PK", 2) == 0) {
        open_bytes(data, size);
        return 0;
    }
    p = malloc(size + 512);
    need(p != NULL, "no memory");
    for (size_t i = 0; i < sizeof storage; i++)
        storage[i] = (uint8_t)i;
    at = put(p, put_header(p, 0, 0, "a/data.pkl", size, 0), data, size);
    second = at;
    at = put(p, put_header(p, at, 0, "a/data/0", sizeof storage, 0), storage, sizeof storage);
    directory = at;
    at = put_header(p, at, 1, "a/data.pkl", size, 0);
    at = put_header(p, at, 1, "a/data/0", sizeof storage, second);
    n = at - directory;
    memset(p + at, 0, 22);
    memcpy(p + at, "PK\5\6\0\0\0\0\2\0\2\0", 12);
    memcpy(p + at + 12, &(uint32_t){(uint32_t)n}, 4);
    memcpy(p + at + 16, &(uint32_t){(uint32_t)directory}, 4);
    open_bytes(p, at + 22);
    free(p);
    return 0;
}
