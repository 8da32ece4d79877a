#include "formats/tensorboard.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ref/base/mem.h"

struct bytes {
    unsigned char *data;
    size_t n, cap;
};

struct tensorboard {
    char *path;
    int fd;
    struct bytes pending;
};

/* ---- protocol buffers: a field is its number and kind, then the value ---- */

enum wire { VARINT = 0, FIXED64 = 1, LENGTH = 2, FIXED32 = 5 };

static int add(struct bytes *b, const void *data, size_t n, struct err *err)
{
    size_t want, cap = b->cap ? b->cap : 1024;

    if (!mem_add(b->n, n, &want))
        return err_memory(err, n, "a log");
    while (cap < want)
        if (!mem_mul(cap, 2, &cap))
            return err_memory(err, want, "a log");
    if (cap > b->cap) {
        unsigned char *more = realloc(b->data, cap);

        if (!more)
            return err_memory(err, cap, "a log");
        b->data = more;
        b->cap = cap;
    }
    if (n)
        memcpy(b->data + b->n, data, n);
    b->n = want;
    return 0;
}

static void little(unsigned char *to, uint64_t x, int n)
{
    for (int i = 0; i < n; i++)
        to[i] = (unsigned char)(x >> 8 * i);
}

static int add_varint(struct bytes *b, uint64_t x, struct err *err)
{
    unsigned char text[10];
    size_t n = 0;

    do {
        text[n] = (unsigned char)((x & 127) | (x > 127 ? 128 : 0));
        n++;
        x >>= 7;
    } while (x);
    return add(b, text, n, err);
}

static int add_key(struct bytes *b, unsigned field, enum wire wire, struct err *err)
{
    return add_varint(b, field << 3 | (unsigned)wire, err);
}

static int add_number(struct bytes *b, unsigned field, uint64_t x, struct err *err)
{
    return x == 0 || (add_key(b, field, VARINT, err) == 0 && add_varint(b, x, err) == 0) ? 0 : -1;
}

static int add_double(struct bytes *b, unsigned field, double x, struct err *err)
{
    unsigned char text[8];
    uint64_t bits;

    memcpy(&bits, &x, sizeof bits);
    little(text, bits, 8);
    return add_key(b, field, FIXED64, err) || add(b, text, 8, err) ? -1 : 0;
}

static int add_float(struct bytes *b, unsigned field, float x, struct err *err)
{
    unsigned char text[4];
    uint32_t bits;

    memcpy(&bits, &x, sizeof bits);
    little(text, bits, 4);
    return add_key(b, field, FIXED32, err) || add(b, text, 4, err) ? -1 : 0;
}

static int add_data(struct bytes *b, unsigned field, const void *data, size_t n, struct err *err)
{
    return add_key(b, field, LENGTH, err) || add_varint(b, n, err) || add(b, data, n, err) ? -1 : 0;
}

/* A message as a field of another. Frees inner. */
static int add_message(struct bytes *b, unsigned field, struct bytes *inner, struct err *err)
{
    int rc = add_data(b, field, inner->data, inner->n, err);

    free(inner->data);
    *inner = (struct bytes){0};
    return rc;
}

/* ---- records ---- */

/* CRC-32C (Castagnoli), bit by bit: a record has about 50 bytes, a picture is rare. */
static uint32_t crc32c(const unsigned char *data, size_t n)
{
    uint32_t crc = 0xffffffff;

    for (size_t i = 0; i < n; i++) {
        crc ^= data[i];
        for (int k = 0; k < 8; k++)
            crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78 : 0);
    }
    return ~crc;
}

static void masked(unsigned char to[4], const unsigned char *data, size_t n)
{
    uint32_t crc = crc32c(data, n);

    little(to, (crc >> 15 | crc << 17) + 0xa282ead8, 4);
}

/* Puts an event into a record and frees it. */
static int add_record(struct tensorboard *t, struct bytes *event, struct err *err)
{
    unsigned char head[12], tail[4];
    size_t start = t->pending.n;
    int rc;

    little(head, event->n, 8);
    masked(head + 8, head, 8);
    masked(tail, event->data, event->n);
    rc = add(&t->pending, head, sizeof head, err) || add(&t->pending, event->data, event->n, err) ||
                 add(&t->pending, tail, sizeof tail, err)
             ? -1
             : 0;
    if (rc)
        t->pending.n = start;
    free(event->data);
    return rc;
}

/* Event { double wall_time = 1; int64 step = 2; string file_version = 3; Summary summary = 5; SessionLog session_log = 7; }
 * One of the last three, which `inner` holds. */
static int add_event(struct tensorboard *t, unsigned field, struct bytes *inner, uint64_t step, double now, struct err *err)
{
    struct bytes event = {0};

    if (add_double(&event, 1, now, err) || add_number(&event, 2, step, err) || add_message(&event, field, inner, err)) {
        free(event.data);
        free(inner->data);
        return -1;
    }
    return add_record(t, &event, err);
}

/* Summary { repeated Value value = 1; } Frees value. */
static int add_summary(struct tensorboard *t, struct bytes *value, uint64_t step, double now, struct err *err)
{
    struct bytes summary = {0};

    if (add_message(&summary, 1, value, err)) {
        free(summary.data);
        return -1;
    }
    return add_event(t, 5, &summary, step, now, err);
}

/* ---- the interface ---- */

static int make_folders(const char *path, struct err *err)
{
    char *copy = mem_str(path, err);
    int rc = copy ? 0 : -1;

    for (char *at = copy; rc == 0 && at;) {
        at = strchr(at + 1, '/');
        if (at)
            *at = '\0';
        if (*copy && mkdir(copy, 0777) && errno != EEXIST)
            rc = err_set(err, "cannot make the folder '%s' for logs: %s", copy, strerror(errno));
        if (at)
            *at = '/';
    }
    free(copy);
    return rc;
}

static int create(struct tensorboard *t, const char *folder, double now, struct err *err)
{
    size_t size = strlen(folder) + 96;

    t->path = mem_new(size, "a path", err);
    if (!t->path)
        return -1;
    for (int n = 0;; n++) {
        snprintf(t->path, size, "%s/events.out.tfevents.%.0f.lora.%ld.%d", folder, now, (long)getpid(), n);
        t->fd = open(t->path, O_WRONLY | O_CREAT | O_EXCL | O_APPEND | O_CLOEXEC, 0666);
        if (t->fd >= 0)
            return 0;
        if (errno != EEXIST)
            return err_set(err, "cannot write the log '%s': %s", t->path, strerror(errno));
    }
}

static int begin(struct tensorboard *t, double now, uint64_t from_step, struct err *err)
{
    static const char version[] = "brain.Event:2";
    struct bytes text = {0}, session = {0};

    if (add(&text, version, sizeof version - 1, err)) {
        free(text.data);
        return -1;
    }
    if (add_event(t, 3, &text, 0, now, err))
        return -1;
    if (from_step == 0)
        return 0;
    /* SessionLog { SessionStatus status = 1; } START = 1 */
    if (add_number(&session, 1, 1, err)) {
        free(session.data);
        return -1;
    }
    return add_event(t, 7, &session, from_step, now, err);
}

int tensorboard_open(struct tensorboard **out, const char *folder, double now, uint64_t from_step, struct err *err)
{
    struct tensorboard *t = mem_zero(1, sizeof *t, "a log", err);
    struct err ignored = {0};

    *out = NULL;
    if (!t)
        return -1;
    t->fd = -1;
    if (make_folders(folder, err) || create(t, folder, now, err) || begin(t, now, from_step, err) || tensorboard_flush(t, err)) {
        t->pending.n = 0;
        tensorboard_close(t, &ignored);
        return -1;
    }
    *out = t;
    return 0;
}

const char *tensorboard_path(const struct tensorboard *t)
{
    return t->path;
}

int tensorboard_scalar(struct tensorboard *t, const char *tag, double value, uint64_t step, double now, struct err *err)
{
    struct bytes v = {0};

    /* Value { string tag = 1; float simple_value = 2; } */
    if (add_data(&v, 1, tag, strlen(tag), err) || add_float(&v, 2, (float)value, err)) {
        free(v.data);
        return -1;
    }
    return add_summary(t, &v, step, now, err);
}

int tensorboard_picture(struct tensorboard *t, const char *tag, const void *png, size_t n, unsigned width, unsigned height,
                        uint64_t step, double now, struct err *err)
{
    struct bytes v = {0}, image = {0};

    /* Value { string tag = 1; Image image = 4; } Image { height = 1; width = 2; colorspace = 3 (RGB); bytes = 4; } */
    if (add_number(&image, 1, height, err) || add_number(&image, 2, width, err) || add_number(&image, 3, 3, err) ||
        add_data(&image, 4, png, n, err) || add_data(&v, 1, tag, strlen(tag), err) || add_message(&v, 4, &image, err)) {
        free(image.data);
        free(v.data);
        return -1;
    }
    return add_summary(t, &v, step, now, err);
}

int tensorboard_flush(struct tensorboard *t, struct err *err)
{
    while (t->pending.n) {
        ssize_t n = write(t->fd, t->pending.data, t->pending.n);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_set(err, "cannot write the log '%s': %s", t->path, strerror(errno));
        memmove(t->pending.data, t->pending.data + n, t->pending.n - (size_t)n);
        t->pending.n -= (size_t)n;
    }
    return 0;
}

int tensorboard_close(struct tensorboard *t, struct err *err)
{
    int rc = 0;

    if (!t)
        return 0;
    if (t->fd >= 0) {
        rc = tensorboard_flush(t, err);
        if (close(t->fd) && rc == 0)
            rc = err_set(err, "cannot write the log '%s': %s", t->path, strerror(errno));
    }
    free(t->path);
    free(t->pending.data);
    free(t);
    return rc;
}
