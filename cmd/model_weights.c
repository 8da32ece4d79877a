#include "cmd/model_weights.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

struct mapping {
    const struct tensor_file *file;
    char *base; /* NULL: not mapped */
    volatile sig_atomic_t cut;
    struct mapping *next; /* in the list that the signal's handler walks */
};

struct model_weights {
    const struct model *model;
    struct mapping *maps; /* [model->file_count] */
    struct weight_source source;
};

/* ---- Files cut short ---- */

static struct mapping *mapped; /* changed by the main thread only, while no graph runs */
static char cut_path[256];     /* a file that was cut short and has been closed since */

/* The page behind the new end of the file, and all after it, become zeros of our own, and the thread goes on. */
static void on_lost_page(int sig, siginfo_t *info, void *context)
{
    uintptr_t at = (uintptr_t)info->si_addr, page = at & ~((uintptr_t)sysconf(_SC_PAGESIZE) - 1);

    (void)context;
    for (struct mapping *m = mapped; m; m = m->next) {
        uintptr_t base = (uintptr_t)m->base, end = base + m->file->file_size;

        if (at < base || at >= end)
            continue;
        if (mmap((void *)page, end - page, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
            break;
        m->cut = 1;
        return;
    }
    signal(sig, SIG_DFL); /* not ours: the access is repeated and ends the program */
}

static void guard(struct mapping *m)
{
    struct sigaction action = {.sa_flags = SA_SIGINFO};

    action.sa_sigaction = on_lost_page;
    sigemptyset(&action.sa_mask);
    sigaction(SIGBUS, &action, NULL);
    m->next = mapped;
    mapped = m;
}

static void unguard(struct mapping *m)
{
    struct mapping **at = &mapped;

    while (*at && *at != m)
        at = &(*at)->next;
    if (*at)
        *at = m->next;
    if (m->cut)
        snprintf(cut_path, sizeof cut_path, "%s", m->file->path);
}

static int report_cut(const char *path, struct err *err)
{
    return err_set(err, "'%s' was cut short by another program while it was in use, and results since then are worthless; restore the "
                        "file and run again", path);
}

int model_weights_check(const struct model_weights *w, struct err *err)
{
    for (size_t i = 0; w && i < w->model->file_count; i++)
        if (w->maps[i].cut)
            return report_cut(w->maps[i].file->path, err);
    for (const struct mapping *m = w ? NULL : mapped; m; m = m->next)
        if (m->cut)
            return report_cut(m->file->path, err);
    return !w && cut_path[0] ? report_cut(cut_path, err) : 0;
}

/* ---- The source ---- */

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

        w->maps[i] = (struct mapping){.file = f, .base = p == MAP_FAILED ? NULL : p}; /* what cannot be mapped is read */
        if (w->maps[i].base)
            guard(&w->maps[i]);
    }
    *out = w;
    return 0;
}

void model_weights_close(struct model_weights *w)
{
    if (!w)
        return;
    for (size_t i = 0; i < w->model->file_count; i++)
        if (w->maps[i].base) {
            unguard(&w->maps[i]);
            munmap(w->maps[i].base, w->maps[i].file->file_size);
        }
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
