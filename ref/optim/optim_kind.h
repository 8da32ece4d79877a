/* Inside of the optimizers: what optim.c knows of a kind, and what a kind may use. One kind is one file and one row; see sgd.c
 * for a small one. */
#ifndef REF_OPTIM_OPTIM_KIND_H
#define REF_OPTIM_OPTIM_KIND_H

#include "ref/optim/optim.h"
#include "ref/optim/quant8.h"

/* What arguments set. NAN where "None" is given. */
struct optim_values {
    double beta[2], beta1, beta3, eps, eps_pair[2], weight_decay, momentum, dampening, clip_threshold, decay_rate, d0, d_coef,
        growth_rate;
    bool nesterov, decouple, use_bias_correction, safeguard_warmup, scale_parameter, relative_step, warmup_init;
};

enum optim_arg_type { ARG_NUMBER, ARG_OPTIONAL, ARG_PAIR, ARG_FLAG };

/* An argument: a row. min and max are inclusive; `open` leaves max (or, for min 0, min) out. */
struct optim_arg {
    const char *key;
    const char *spelling; /* what people type, where it is not the key */
    enum optim_arg_type type;
    size_t offset; /* in struct optim_values */
    const char *def;
    double min, max;
    bool above_min, below_max; /* the bound itself is refused */
};

#define OPTIM_ARG_BETAS(def_) \
    {.key = "betas", .type = ARG_PAIR, .offset = offsetof(struct optim_values, beta), .def = def_, .max = 1, .below_max = true}
#define OPTIM_ARG(name, type_, ...) {.key = #name, .type = type_, .offset = offsetof(struct optim_values, name), __VA_ARGS__}
#define OPTIM_ARG_FLAG(name, def_)  {.key = #name, .type = ARG_FLAG, .offset = offsetof(struct optim_values, name), .def = def_}
#define OPTIM_ARG_DECAY(def_)       OPTIM_ARG(weight_decay, ARG_NUMBER, .def = def_, .max = HUGE_VAL)
#define OPTIM_ARG_EPS(def_)         OPTIM_ARG(eps, ARG_NUMBER, .def = def_, .max = 1)

enum optim_array_type {
    ARRAY_EACH,    /* f32: elements of tensors without 8-bit states */
    ARRAY_CODES,   /* u8: elements of tensors with them */
    ARRAY_SCALES,  /* f32: their blocks */
    ARRAY_ROWS,    /* f32: rows of matrices (Adafactor) */
    ARRAY_COLUMNS, /* f32: columns of matrices */
    ARRAY_VECTORS, /* f32: elements of tensors that are no matrices */
    ARRAY_START,   /* f32: elements, set to the params that optim_new() was given */
};

struct optim_array {
    const char *name; /* NULL ends the list */
    enum optim_array_type type;
    size_t needs; /* offset in struct optim_values of a number; when that is 0 or None, the array is not made. 0: always made */
};

enum { OPTIM_MAX_ARRAYS = 6, OPTIM_NUMBERS = 8, OPTIM_SPAN = 16384, OPTIM_ARGS_TEXT = 512 };

/* Up to OPTIM_SPAN elements of one tensor: what one thread works on at a time. at: a multiple of OPTIM_BLOCK in the tensor. */
struct optim_span {
    size_t tensor, at, n;
};

/* One step's call. */
struct optim_call {
    const float *const *grads;
    float scale;
    const double *lr;
};

struct optim_kind {
    const char *name;
    const char *const *also; /* other names, NULL at the end; may be NULL */
    const char *help;
    const struct optim_arg *args; /* key NULL ends the list */
    const struct optim_array *arrays;
    bool narrow;              /* tensors of OPTIM_8BIT_LEAST elements or more have 8-bit states */
    bool adapts;              /* numbers[0] is a factor on the rate that it finds itself; starts as d0 */
    int (*check)(const struct optim_values *v, struct err *err); /* arguments that exclude each other; may be NULL */
    int (*step)(struct optim *o, const struct optim_call *c, struct err *err);
    /* The same as a device takes it: fills all of wide (tensors with f32 states) and narrow (with 8-bit ones) that is a number or a
     * state, and the rates of all groups. array: as o->array, on the device. NULL: this kind has no such step. */
    void (*device_step)(const struct optim *o, const struct optim_call *c, void *const *array, struct ops_adamw *wide,
                        struct ops_adamw *narrow, struct ops_adamw_rate *rate);
};

struct optim {
    const struct optim_kind *kind;
    struct optim_values v;
    struct optim_options options;
    struct optim_tensor *tensors;
    size_t count;
    size_t *n, *place, *matrix; /* [count]: elements; where it begins; its first row in ARRAY_ROWS (columns: matrix[count + t]) */
    struct optim_span *spans;
    size_t span_count;
    double *sums; /* [2, spans]: partial sums of a step */
    struct optim_state state[OPTIM_MAX_ARRAYS + 2];
    size_t state_count;
    void *array[OPTIM_MAX_ARRAYS]; /* data of kind->arrays, in their order */
    size_t array_bytes[OPTIM_MAX_ARRAYS];
    int64_t *steps;
    double *numbers; /* [OPTIM_NUMBERS] of an adapting kind */
    struct quant8 *map; /* signed, unsigned; NULL without 8-bit states */
    size_t wide, narrow; /* elements of the arrays of tensors without 8-bit states, and with them */
    struct optim_device *device; /* NULL: steps are made by the program */
    char args_text[OPTIM_ARGS_TEXT];
};

/* Calls fn for every span, in threads. `numbers` is the kind's own struct of scalars. */
typedef void optim_span_fn(struct optim *o, const struct optim_call *c, const struct optim_span *s, const void *numbers);
void optim_spans(struct optim *o, const struct optim_call *c, optim_span_fn *fn, const void *numbers);

/* The sum of the partial sums that spans left in o->sums (which: 0 or 1), in the order of the spans. */
double optim_sum(const struct optim *o, int which);

/* Sum of squares of x [n], in f64. */
double optim_squares(const float *x, size_t n);

/* full_fp16: x [n] rounded to f16 where the options ask for it. */
void optim_round(const struct optim *o, float *x, size_t n);

/* How many rows and columns tensor t has as a stack of matrices (the last two dimensions); false for a vector. */
bool optim_matrix(const struct optim_tensor *t, size_t *stack, size_t *rows, size_t *columns);

/* The one rate of a kind that cannot have several: the largest; others must equal it or be 0. */
int optim_one_rate(const struct optim *o, const double *lr, double *out, struct err *err);

/* optim_device.c: what optim_norm(), optim_step() and optim_free() do when o->device is there. */
int optim_device_norm(struct optim *o, double *norm, struct err *err);
int optim_device_step(struct optim *o, const struct optim_call *c, struct err *err);
void optim_device_free(struct optim *o);

extern const struct optim_kind optim_adamw, optim_adamw8bit, optim_lion, optim_lion8bit, optim_sgd, optim_sgd_nesterov,
    optim_adafactor, optim_prodigy, optim_dadapt_adam;

#endif
