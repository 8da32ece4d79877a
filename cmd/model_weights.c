#include "cmd/model_weights.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

struct mapping {
    const struct tensor_file *file;
    const char *base; /* NULL: not mapped */
};

struct model_weights {
    const struct model *model;
    struct mapping *maps; /* [model->file_count] */
    struct weight_source source;
};

static const char *base_of(const struct model_weights *w, const struct tensor_file *f)
{
    for (size_t i = 0; i < w->model->file_count; i++)
        if (w->maps[i].file == f)
            return w->maps[i].base;
    return NULL;
}

static int find(void *ctx, enum model_part part, const char *name, struct weight_info *out, struct err *err)
{
    const struct model_weights *w = ctx;
    const struct model_tensor *t = model_find(w->model, part, name);
    const char *base = t ? base_of(w, t->file) : NULL;

    (void)err;
    if (!t)
        return 0;
    *out = (struct weight_info){.dtype = t->dtype, .shape = t->shape, .handle = t};
    if (base && t->entry->plain) {
        const char *at = base + t->entry->offset + t->offset;

        /* some writers do not align; an element that straddles is read into memory of its own */
        out->data = (uintptr_t)at % dtype_size(t->dtype) == 0 ? at : NULL;
    }
    return 1;
}

static int read_tensor(void *ctx, const struct weight_info *info, void *dst, struct err *err)
{
    (void)ctx;
    return model_read(info->handle, dst, err);
}

int model_weights_open(struct model_weights **out, const struct model *m, bool map, struct err *err)
{
    struct model_weights *w = mem_zero(1, sizeof *w, "weights", err);

    if (!w)
        return -1;
    w->model = m;
    w->source = (struct weight_source){m->path, w, find, read_tensor};
    w->maps = mem_zero(m->file_count, sizeof *w->maps, "weights", err);
    if (!w->maps) {
        free(w);
        return -1;
    }
    for (size_t i = 0; i < m->file_count; i++) {
        const struct tensor_file *f = m->file[i];
        void *p = map && f->file_size > 0 ? mmap(NULL, f->file_size, PROT_READ, MAP_SHARED, f->fd, 0) : MAP_FAILED;

        w->maps[i] = (struct mapping){f, p == MAP_FAILED ? NULL : p}; /* what cannot be mapped is read */
    }
    *out = w;
    return 0;
}

void model_weights_close(struct model_weights *w)
{
    if (!w)
        return;
    for (size_t i = 0; i < w->model->file_count; i++)
        if (w->maps[i].base)
            munmap((void *)(uintptr_t)w->maps[i].base, w->maps[i].file->file_size);
    free(w->maps);
    free(w);
}

const struct weight_source *model_weights_source(const struct model_weights *w)
{
    return &w->source;
}

void model_weights_rest(const struct model_weights *w)
{
    for (size_t i = 0; i < w->model->file_count; i++)
        if (w->maps[i].base)
            madvise((void *)(uintptr_t)w->maps[i].base, w->maps[i].file->file_size,
                    MADV_DONTNEED); /* read-only: nothing is lost */
}
