#include "cmd/train/logs.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "formats/tensorboard.h"
#include "ref/base/mem.h"

struct logs {
    struct tensorboard *board;
    char *folder;
    char *rate[LOGS_MOST_RATES];
    size_t rates;
    struct arena text;
};

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_REALTIME, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* DIR/PREFIXyyyymmddhhmmss/network_train, in local time. */
static char *new_folder(struct logs *l, const struct logs_options *o, double at, struct err *err)
{
    time_t seconds = (time_t)at;
    struct tm parts;
    char stamp[32];

    localtime_r(&seconds, &parts);
    strftime(stamp, sizeof stamp, "%Y%m%d%H%M%S", &parts);
    return arena_printf(&l->text, err, "%s/%s%s/network_train", o->logging_dir, o->log_prefix ? o->log_prefix : "", stamp);
}

static int fill(struct logs *l, const struct logs_options *o, struct err *err)
{
    double at = now();

    for (size_t i = 0; i < o->rates && i < LOGS_MOST_RATES; i++) {
        l->rate[i] = arena_str(&l->text, o->rate[i], err);
        if (!l->rate[i])
            return -1;
        l->rates++;
    }
    l->folder = o->resume ? arena_str(&l->text, o->resume, err) : new_folder(l, o, at, err);
    /* Steps are counted from 1 in the curves; those of an earlier run from here on are not shown any more. */
    return l->folder ? tensorboard_open(&l->board, l->folder, at, o->step ? o->step + 1 : 0, err) : -1;
}

int logs_open(struct logs **out, const struct logs_options *o, struct err *err)
{
    struct logs *l;

    *out = NULL;
    if (!o->logging_dir)
        return 0;
    l = mem_zero(1, sizeof *l, "a log", err);
    if (!l)
        return -1;
    if (fill(l, o, err)) {
        arena_free(&l->text);
        free(l);
        return -1;
    }
    *out = l;
    return 0;
}

const char *logs_folder(const struct logs *l)
{
    return l ? l->folder : NULL;
}

int logs_step(struct logs *l, size_t step, double loss, double average, const double *rate, double factor, struct err *err)
{
    double at = now();
    char tag[256];

    if (!l)
        return 0;
    if (tensorboard_scalar(l->board, "loss/current", loss, step, at, err) ||
        tensorboard_scalar(l->board, "loss/average", average, step, at, err))
        return -1;
    for (size_t i = 0; i < l->rates; i++) {
        snprintf(tag, sizeof tag, "lr/%s", l->rate[i]);
        if (tensorboard_scalar(l->board, tag, rate[i], step, at, err))
            return -1;
        snprintf(tag, sizeof tag, "lr/d*lr/%s", l->rate[i]);
        if (factor != 1 && tensorboard_scalar(l->board, tag, rate[i] * factor, step, at, err))
            return -1;
    }
    return tensorboard_flush(l->board, err);
}

int logs_epoch(struct logs *l, size_t epoch, double average, struct err *err)
{
    if (!l)
        return 0;
    return tensorboard_scalar(l->board, "loss/epoch_average", average, epoch, now(), err) || tensorboard_flush(l->board, err) ? -1 : 0;
}

int logs_validation(struct logs *l, size_t step, double loss, struct err *err)
{
    if (!l)
        return 0;
    return tensorboard_scalar(l->board, "loss/validation", loss, step, now(), err) || tensorboard_flush(l->board, err) ? -1 : 0;
}

static int add_file(struct logs *l, size_t step, const char *name, const char *path, FILE *f, struct err *err)
{
    unsigned char head[24];
    unsigned char *data;
    long n;
    int rc;

    if (fread(head, 1, sizeof head, f) != sizeof head || memcmp(head, "\x89PNG\r\n\x1a\n", 8) != 0)
        return 0; /* another kind of picture */
    if (fseek(f, 0, SEEK_END) || (n = ftell(f)) < 0 || fseek(f, 0, SEEK_SET))
        return err_set(err, "cannot read '%s'", path);
    data = mem_new((size_t)n, "a picture", err);
    if (!data)
        return -1;
    if (fread(data, 1, (size_t)n, f) != (size_t)n)
        rc = err_set(err, "cannot read '%s'", path);
    else
        rc = tensorboard_picture(l->board, name, data, (size_t)n, (unsigned)head[18] << 8 | head[19], (unsigned)head[22] << 8 | head[23],
                                 step, now(), err);
    free(data);
    return rc;
}

int logs_sample(struct logs *l, size_t step, const char *name, const char *path, struct err *err)
{
    FILE *f;
    int rc;

    if (!l)
        return 0;
    f = fopen(path, "rb");
    if (!f)
        return err_set(err, "cannot read '%s'", path);
    rc = add_file(l, step, name, path, f, err);
    fclose(f);
    return rc ? -1 : tensorboard_flush(l->board, err);
}

int logs_close(struct logs *l, struct err *err)
{
    int rc;

    if (!l)
        return 0;
    rc = tensorboard_close(l->board, err);
    arena_free(&l->text);
    free(l);
    return rc;
}
