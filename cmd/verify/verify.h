/* Verification: golden data, made by independent programs, against this build on one device.
 *
 * A group (ops, models, tokenizer ...) reads its golden files and reports one row for each comparison: what, shape, largest
 * error, limit. The command prints them, unit tests demand that none fails; both go through verify_row_add(). What a limit
 * is, for which arithmetic, is said in limit.h and nowhere else.
 */
#ifndef CMD_VERIFY_VERIFY_H
#define CMD_VERIFY_VERIFY_H

#include <jansson.h>

#include "cmd/verify/limit.h"
#include "formats/tensor_file.h"
#include "ref/op/ops.h"

struct verify_row {
    const char *group; /* "ops" */
    const char *what;  /* what a summary puts together: "linear forward", "sd1 layers" */
    const char *name;  /* this comparison: "linear.3x7x5.float32", "out/unet/conv_in" */
    enum dtype dtype;  /* of the golden tensor; DT_COUNT: no tensor */
    struct shape shape;
    double worst, limit; /* ok when worst <= limit; what is not finite on one side only counts as infinity */
};

struct verify {
    const char *golden; /* folder of golden files */
    const struct ops *ops;
    const struct verify_arithmetic *arithmetic; /* what ops computes products in */
    void (*report)(void *ctx, const struct verify_row *row, bool ok); /* may be NULL */
    void *ctx;
    size_t rows, failed;
};

struct verify_group {
    const char *name, *summary; /* "ops", "every operation, forward and backward, against torch in f64" */
    bool device;                /* runs on the device; the others are the same on all */
    /* 0 when everything was compared, whatever the verdict; -1 when that was not possible. */
    int (*run)(struct verify *v, struct err *err);
};

extern const struct verify_group verify_groups[]; /* ends with a NULL name */

int verify_ops(struct verify *v, struct err *err);
int verify_models(struct verify *v, struct err *err);
int verify_training(struct verify *v, struct err *err);
int verify_pictures(struct verify *v, struct err *err);
int verify_tokenizer(struct verify *v, struct err *err);
int verify_rng(struct verify *v, struct err *err);
int verify_schedule(struct verify *v, struct err *err);
int verify_samplers(struct verify *v, struct err *err);

/* Counts and reports a row; true when it is ok. */
bool verify_row_add(struct verify *v, const struct verify_row *row);

/* Largest |a - b|; infinity when a value is not finite on one side only. */
double verify_max_diff(const float *a, const float *b, size_t n);

/* ---- Golden files. What is read lies in the arena; NULL or -1 with err filled when it is missing or of another kind. ---- */

struct verify_file {
    struct tensor_file *file;
    struct arena arena;
};

int verify_file_open(struct verify_file *f, const struct verify *v, const char *name, struct err *err);
void verify_file_close(struct verify_file *f); /* zeroed is fine */

const struct tensor_entry *verify_entry(const struct verify_file *f, const char *name, struct err *err);
float *verify_f32(struct verify_file *f, const char *name, size_t *n, struct err *err); /* n may be NULL */
int32_t *verify_i32(struct verify_file *f, const char *name, size_t *n, struct err *err);
void *verify_raw(struct verify_file *f, const struct tensor_entry *e, struct err *err);

/* A metadata value that holds JSON, of which the caller owns the reference. */
json_t *verify_json(const struct verify_file *f, const char *key, struct err *err);

/* got [n] against the golden tensor `name` with a limit for each element: abs + rel |want|. Reports the row with the element
 * that is nearest to or farthest over its limit. -1: the tensor is missing or has another number of elements. */
int verify_close(struct verify *v, struct verify_file *f, const struct verify_row *row, const char *name, const float *got,
                 size_t n, double abs, double rel, struct err *err);

#endif
