#include "ref/lora/svd_device.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "ref/base/mem.h"
#include "ref/base/thread.h"

enum { D, SHORT, LONG, SCRATCH, BUFFERS }; /* D; vectors of A's short and long side; what an operation asks for */

struct svd_device {
    const struct ops *ops;
    void *data[BUFFERS];
    size_t cap[BUFFERS];
    bool there; /* D is */
    struct err err;
};

/* A device serves one call at a time. */
static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;

int svd_device_new(struct svd_device **out, const struct ops *ops, struct err *err)
{
    *out = mem_zero(1, sizeof **out, "a decomposition on a device", err);
    if (*out)
        (*out)->ops = ops;
    return *out ? 0 : -1;
}

void svd_device_free(struct svd_device *v)
{
    if (!v)
        return;
    pthread_mutex_lock(&turn);
    for (int i = 0; i < BUFFERS; i++)
        v->ops->device->free(v->data[i]);
    pthread_mutex_unlock(&turn);
    free(v);
}

void svd_device_forget(struct svd_device *v)
{
    v->there = false;
}

int svd_device_check(struct svd_device *v, struct err *err)
{
    if (v->err.kind == ERR_NONE)
        return 0;
    *err = v->err;
    v->err = (struct err){0};
    return -1;
}

static bool failed(const struct svd_device *v)
{
    return v->err.kind != ERR_NONE;
}

/* At least so many bytes; NULL with v->err filled. */
static void *room(struct svd_device *v, int which, size_t bytes)
{
    const struct ops_device *d = v->ops->device;

    if (v->cap[which] >= bytes && v->data[which])
        return v->data[which];
    d->free(v->data[which]);
    v->cap[which] = 0;
    v->data[which] = d->alloc(bytes, "a matrix to decompose", &v->err);
    if (v->data[which])
        v->cap[which] = bytes;
    return v->data[which];
}

static void *put(struct svd_device *v, int which, const float *x, size_t n)
{
    void *data = room(v, which, n * sizeof *x);

    return data && v->ops->device->write(data, x, n * sizeof *x, &v->err) == 0 ? data : NULL;
}

static struct tensor matrix(void *data, size_t rows, size_t cols)
{
    return (struct tensor){data, DT_F32, {.ndim = 2, .dim = {rows, cols}}};
}

/* D [m, n] as it is stored, copied when it is not there. */
static struct tensor take(struct svd_device *v, const struct svd_matrix *a)
{
    size_t m = a->flipped ? a->cols : a->rows, n = a->flipped ? a->rows : a->cols;
    void *data = v->there ? v->data[D] : put(v, D, a->d, m * n);

    v->there = data != NULL;
    return matrix(data, m, n);
}

/* One call of linear; y [s, m] = x [s, n] D', dx [s, n] = dy [s, m] D, or dw [m, n] = dy' x. */
static void call(struct svd_device *v, struct op_call *c, bool back)
{
    static const struct op_attr plain = {0};
    size_t bytes;

    c->attr = &plain;
    bytes = v->ops->scratch[OP_linear] ? v->ops->scratch[OP_linear](c, back, thread_count()) : 0;
    if (failed(v) || (bytes && !(c->scratch = room(v, SCRATCH, bytes))))
        return;
    (back ? v->ops->backward : v->ops->forward)[OP_linear](c, &v->err);
}

/* out = in times D' (D when `by_d`), both on the device: s vectors */
static void multiply(struct svd_device *v, const struct tensor *d, bool by_d, size_t s, void *in, void *out)
{
    size_t m = d->shape.dim[0], n = d->shape.dim[1];
    struct tensor x = matrix(by_d ? out : in, s, n), y = matrix(by_d ? in : out, s, m);
    struct op_call c = {.in = {&x, d}};

    if (by_d) {
        c.dout[0] = &y;
        c.din[0] = &x;
    } else {
        c.out[0] = &y;
    }
    call(v, &c, by_d);
}

static void get(struct svd_device *v, float *x, const void *data, size_t n)
{
    if (failed(v) || v->ops->device->read(x, data, n * sizeof *x, &v->err) != 0)
        memset(x, 0, n * sizeof *x);
}

/* y = A x, or A' x, for s vectors: D is tall, or lies flipped. */
static void times(struct svd_device *v, const struct svd_matrix *a, bool transposed, const float *x, size_t s, float *y)
{
    size_t from = s * (transposed ? a->rows : a->cols), to = s * (transposed ? a->cols : a->rows);
    struct tensor d;
    void *in, *out;

    pthread_mutex_lock(&turn);
    d = take(v, a);
    in = d.data ? put(v, transposed ? LONG : SHORT, x, from) : NULL;
    out = in ? room(v, transposed ? SHORT : LONG, to * sizeof *y) : NULL;
    if (out)
        multiply(v, &d, a->flipped != transposed, s, in, out);
    get(v, y, out, to);
    pthread_mutex_unlock(&turn);
}

void svd_device_times(struct svd_device *v, const struct svd_matrix *a, const float *x, size_t s, float *y)
{
    times(v, a, false, x, s, y);
}

void svd_device_times_transposed(struct svd_device *v, const struct svd_matrix *a, const float *y, size_t s, float *x)
{
    times(v, a, true, y, s, x);
}

void svd_device_times_gram(struct svd_device *v, const struct svd_matrix *a, const float *x, size_t s, float *z)
{
    struct tensor d;
    void *in, *out;

    pthread_mutex_lock(&turn);
    d = take(v, a);
    in = d.data ? put(v, SHORT, x, s * a->cols) : NULL;
    out = in ? room(v, LONG, s * a->rows * sizeof *z) : NULL;
    if (out) {
        multiply(v, &d, a->flipped, s, in, out);
        multiply(v, &d, !a->flipped, s, out, in);
    }
    get(v, z, in, s * a->cols);
    pthread_mutex_unlock(&turn);
}

/* All of it, both triangles: D' D as the gradient of a weight, or D D' as a layer's output. */
void svd_device_gram(struct svd_device *v, const struct svd_matrix *a, float *g)
{
    struct tensor d, gram;
    struct op_call c = {0};

    pthread_mutex_lock(&turn);
    d = take(v, a);
    gram = matrix(d.data ? room(v, LONG, a->cols * a->cols * sizeof *g) : NULL, a->cols, a->cols);
    c.in[0] = c.in[1] = &d;
    if (a->flipped) {
        c.out[0] = &gram;
    } else {
        c.in[1] = &gram; /* the weight whose gradient this is: only its shape is looked at */
        c.dout[0] = &d;
        c.din[1] = &gram;
    }
    if (gram.data)
        call(v, &c, !a->flipped);
    get(v, g, gram.data, a->cols * a->cols);
    pthread_mutex_unlock(&turn);
}
