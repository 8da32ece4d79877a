/* Plug-in "dnnl": matrix products and convolutions by oneDNN, in bf16 (products of bf16, sums in f32) or f32.
 *
 * It takes linear (forward, and the gradient of x) and conv2d (forward) with at least LEAST channels on both sides. To ref go:
 * a LoRA folded into the weight; gradients of weights; 3x3 convolutions without stride, where ref's Winograd in f32 is faster
 * than oneDNN's direct bf16 (28 against 33 ms at 64x64x320, one thread) and closer; the first and the last convolution of a
 * model, whose 3 or 4 channels carry the picture itself.
 *
 * Nothing is kept between calls but oneDNN's own cache of generated code: a weight is converted and laid out for every call in
 * the caller's scratch, so no second copy of the model exists. How work is divided is oneDNN's affair: the last bits may depend
 * on the number of threads. */
#include <stdio.h>
#include <string.h>

#include "offload/dnnl/api.h"
#include "offload/offload.h"
#include "ref/base/mem.h"

enum { X, W, BIAS, RESIDUAL, DOWN, UP };
enum { LEAST = 16, CHUNK = 1 << 15 };

static struct {
    const struct ops *ref;
    dnnl_engine_t engine;
    dnnl_stream_t stream;
    enum dtype arithmetic;
    int threads;
} self;

/* One call of oneDNN: its descriptors, and where its parts lie in scratch. */
struct job {
    struct api_desc src, weights, plain, bias, dst; /* weights: oneDNN's choice; plain: as in the file */
    dnnl_primitive_attr_t attr;
    dnnl_post_ops_t post;
    dnnl_primitive_desc_t pd;
    size_t x_count, w_count, y_count;
    const struct tensor *x, *w, *y, *b, *residual;
    bool convert_x, convert_w, pack;
    size_t x_at, w_at, packed_at, work_at, total; /* bytes */
};

static dnnl_data_type_t type(void)
{
    return self.arithmetic == DT_BF16 ? dnnl_bf16 : dnnl_f32;
}

static size_t count_of(const struct tensor *t)
{
    size_t n = 0;

    return shape_numel(&t->shape, &n) ? n : 0;
}

static void job_free(struct job *j)
{
    if (j->pd)
        dnnl_primitive_desc_destroy(j->pd);
    if (j->post)
        dnnl_post_ops_destroy(j->post);
    if (j->attr)
        dnnl_primitive_attr_destroy(j->attr);
    api_desc_free(&j->src);
    api_desc_free(&j->weights);
    api_desc_free(&j->plain);
    api_desc_free(&j->bias);
    api_desc_free(&j->dst);
}

static int failed(const char *what, dnnl_status_t status, struct err *err)
{
    return err_set(err, "oneDNN cannot %s (its status %d); use --device cpu", what, (int)status);
}

/* What comes after the product: residual, or activation. Scratch is ours. */
static dnnl_status_t attributes(struct job *j, enum op_act act)
{
    dnnl_status_t s = dnnl_primitive_attr_create(&j->attr);

    if (s == dnnl_success)
        s = dnnl_post_ops_create(&j->post);
    if (s == dnnl_success && j->residual)
        s = api_append_sum(j->post);
    if (s == dnnl_success && act == ACT_GELU)
        s = api_append_eltwise(j->post, dnnl_eltwise_gelu_erf, 0);
    if (s == dnnl_success && (act == ACT_SILU || act == ACT_QUICK_GELU))
        s = api_append_eltwise(j->post, dnnl_eltwise_swish, act == ACT_SILU ? 1.0f : 1.702f);
    if (s == dnnl_success)
        s = dnnl_primitive_attr_set_post_ops(j->attr, j->post);
    return s == dnnl_success ? dnnl_primitive_attr_set_scratchpad_mode(j->attr, dnnl_scratchpad_mode_user) : s;
}

static size_t take(struct job *j, size_t bytes)
{
    size_t at = j->total;

    j->total += (bytes + MEM_ALIGN - 1) / MEM_ALIGN * MEM_ALIGN;
    return at;
}

/* Conversions that are needed, and the room for all parts. */
static void lay_out(struct job *j)
{
    api_md packed = dnnl_primitive_desc_query_md(j->pd, dnnl_query_weights_md, 0);

    j->convert_x = self.arithmetic != DT_F32;
    j->convert_w = j->w->dtype != self.arithmetic;
    j->pack = !dnnl_memory_desc_equal(packed, api_desc_md(&j->plain));
    j->x_at = take(j, j->convert_x ? j->x_count * dtype_size(self.arithmetic) : 0);
    j->w_at = take(j, j->convert_w ? j->w_count * dtype_size(self.arithmetic) : 0);
    j->packed_at = take(j, j->pack ? dnnl_memory_desc_get_size(packed) : 0);
    j->work_at = take(j, dnnl_memory_desc_get_size(dnnl_primitive_desc_query_md(j->pd, dnnl_query_scratchpad_md, 0)));
}

/* y [m, n] = x [m, k] w, where w is stored [n, k] (forward) or [k, n] (gradient of x) */
static dnnl_status_t plan_linear(struct job *j, const struct op_call *c, bool back)
{
    size_t rows = c->in[W]->shape.dim[0], cols = c->in[W]->shape.dim[1], k = back ? rows : cols, n = back ? cols : rows;
    int64_t m = (int64_t)(count_of(j->x) / k), sk = (int64_t)k, sn = (int64_t)n;
    const dnnl_dims_t x = {m, sk}, w = {sk, sn}, y = {m, sn}, b = {1, sn};
    const dnnl_dims_t turned = {back ? sn : 1, back ? 1 : sk};
    dnnl_status_t s = attributes(j, back ? ACT_NONE : c->attr->act);

    if (s == dnnl_success)
        s = api_desc_tag(&j->src, 2, x, type(), dnnl_ab);
    if (s == dnnl_success)
        s = api_desc_tag(&j->weights, 2, w, type(), dnnl_format_tag_any);
    if (s == dnnl_success)
        s = api_desc_strides(&j->plain, 2, w, type(), turned);
    if (s == dnnl_success)
        s = api_desc_tag(&j->dst, 2, y, dnnl_f32, dnnl_ab);
    if (s == dnnl_success && j->b)
        s = api_desc_tag(&j->bias, 2, b, dnnl_f32, dnnl_ab);
    return s == dnnl_success ? api_matmul(&j->pd, self.engine, &j->src, &j->weights, &j->bias, &j->dst, j->attr) : s;
}

static dnnl_status_t plan_convolution(struct job *j, const struct op_call *c)
{
    const size_t *sx = j->x->shape.dim, *sw = j->w->shape.dim, *sy = j->y->shape.dim;
    const dnnl_dims_t x = {(int64_t)sx[0], (int64_t)sx[3], (int64_t)sx[1], (int64_t)sx[2]};
    const dnnl_dims_t w = {(int64_t)sw[0], (int64_t)sw[3], (int64_t)sw[1], (int64_t)sw[2]};
    const dnnl_dims_t y = {(int64_t)sy[0], (int64_t)sy[3], (int64_t)sy[1], (int64_t)sy[2]}, b = {(int64_t)sy[3]};
    int64_t stride = (int64_t)c->attr->stride;
    const dnnl_dims_t strides = {stride, stride}, before = {(int64_t)c->attr->pad_before, (int64_t)c->attr->pad_before};
    dnnl_dims_t after;
    dnnl_status_t s = attributes(j, ACT_NONE);

    for (int i = 0; i < 2; i++) /* what the last window reaches, not what the attribute allows: a stride may leave some over */
        after[i] = (y[2 + i] - 1) * stride + w[2 + i] - x[2 + i] - before[i];
    if (s == dnnl_success)
        s = api_desc_tag(&j->src, 4, x, type(), dnnl_nhwc);
    if (s == dnnl_success)
        s = api_desc_tag(&j->weights, 4, w, type(), dnnl_format_tag_any);
    if (s == dnnl_success)
        s = api_desc_tag(&j->plain, 4, w, type(), dnnl_ohwi);
    if (s == dnnl_success)
        s = api_desc_tag(&j->dst, 4, y, dnnl_f32, dnnl_nhwc);
    if (s == dnnl_success && j->b)
        s = api_desc_tag(&j->bias, 1, b, dnnl_f32, dnnl_a);
    return s == dnnl_success
               ? api_convolution(&j->pd, self.engine, &j->src, &j->weights, &j->bias, &j->dst, strides, before, after, j->attr)
               : s;
}

/* Fills *j for the call; job_free() it in any case. */
static dnnl_status_t plan(struct job *j, const struct op_call *c, enum op_id op, bool back)
{
    dnnl_status_t s;

    *j = (struct job){.x = back ? c->dout[0] : c->in[X], .w = c->in[W], .y = back ? c->din[X] : c->out[0],
                      .b = back ? NULL : c->in[BIAS], .residual = back ? NULL : c->in[RESIDUAL]};
    j->x_count = count_of(j->x);
    j->w_count = count_of(j->w);
    j->y_count = count_of(j->y);
    s = op == OP_linear ? plan_linear(j, c, back) : plan_convolution(j, c);
    if (s == dnnl_success)
        lay_out(j);
    return s;
}

static void convert(void *dst, const struct tensor *t, size_t n)
{
    size_t from = dtype_size(t->dtype), to = dtype_size(self.arithmetic), chunks = (n + CHUNK - 1) / CHUNK;

#pragma omp parallel for schedule(static) num_threads(self.threads)
    for (size_t i = 0; i < chunks; i++)
        dtype_convert((char *)dst + i * CHUNK * to, self.arithmetic, (const char *)t->data + i * CHUNK * from, t->dtype,
                      n - i * CHUNK < CHUNK ? n - i * CHUNK : CHUNK);
}

static dnnl_status_t run_primitive(dnnl_primitive_desc_t pd, const int *args, const api_md *mds, void *const *data, int count)
{
    dnnl_exec_arg_t list[8];
    dnnl_primitive_t p = NULL;
    dnnl_status_t s = dnnl_primitive_create(&p, pd);
    int made = 0, used = 0;

    for (int i = 0; i < count && s == dnnl_success; i++)
        if (mds[i]) {
            list[used].arg = args[i];
            s = dnnl_memory_create(&list[used].memory, mds[i], self.engine, data[i]);
            made += s == dnnl_success;
            used++;
        }
    if (s == dnnl_success)
        s = dnnl_primitive_execute(p, self.stream, made, list);
    if (s == dnnl_success)
        s = dnnl_stream_wait(self.stream);
    while (made > 0)
        dnnl_memory_destroy(list[--made].memory);
    if (p)
        dnnl_primitive_destroy(p);
    return s;
}

/* From the file's order to the one that the product wants. */
static dnnl_status_t pack(const struct job *j, void *from, void *to)
{
    api_md plain = api_desc_md(&j->plain), packed = dnnl_primitive_desc_query_md(j->pd, dnnl_query_weights_md, 0);
    dnnl_primitive_desc_t pd = NULL;
    dnnl_status_t s = dnnl_reorder_primitive_desc_create(&pd, plain, self.engine, packed, self.engine, NULL);

    if (s == dnnl_success)
        s = run_primitive(pd, (const int[]){DNNL_ARG_FROM, DNNL_ARG_TO}, (const api_md[]){plain, packed},
                          (void *const[]){from, to}, 2);
    if (pd)
        dnnl_primitive_desc_destroy(pd);
    return s;
}

static dnnl_status_t execute(const struct job *j, char *scratch)
{
    void *x = j->x->data, *w = j->w->data;
    dnnl_status_t s = dnnl_success;

    if (j->convert_x)
        convert(x = scratch + j->x_at, j->x, j->x_count);
    if (j->convert_w)
        convert(w = scratch + j->w_at, j->w, j->w_count);
    if (j->pack) {
        s = pack(j, w, scratch + j->packed_at);
        w = scratch + j->packed_at;
    }
    if (j->residual && j->residual->data != j->y->data)
        memcpy(j->y->data, j->residual->data, j->y_count * sizeof(float));
    if (s != dnnl_success)
        return s;
    return run_primitive(j->pd,
                         (const int[]){DNNL_ARG_SRC, DNNL_ARG_WEIGHTS, DNNL_ARG_BIAS, DNNL_ARG_DST, DNNL_ARG_SCRATCHPAD},
                         (const api_md[]){api_desc_md(&j->src), dnnl_primitive_desc_query_md(j->pd, dnnl_query_weights_md, 0),
                                          api_desc_md(&j->bias), api_desc_md(&j->dst),
                                          dnnl_primitive_desc_query_md(j->pd, dnnl_query_scratchpad_md, 0)},
                         (void *const[]){x, w, j->b ? j->b->data : NULL, j->y->data, scratch + j->work_at}, 5);
}

/* From shapes and attributes only, so that scratch and run agree. */
static bool takes(const struct op_call *c, enum op_id op, bool back)
{
    const size_t *w = c->in[W]->shape.dim;
    size_t in = op == OP_linear ? w[1] : w[3];

    if (w[0] < LEAST || in < LEAST || count_of(c->in[X]) < LEAST * in)
        return false;
    if (op == OP_linear)
        return !c->in[DOWN] && (c->attr->scale == 0 || c->attr->scale == 1) && (!back || (c->din[X] && !c->din[W]));
    return !back && (w[1] != 3 || w[2] != 3 || c->attr->stride != 1);
}

static int call(const struct op_call *c, enum op_id op, bool back, struct err *err)
{
    dnnl_status_t s;
    struct job j;

    if (!takes(c, op, back))
        return (back ? self.ref->backward : self.ref->forward)[op](c, err);
    s = plan(&j, c, op, back);
    if (s == dnnl_success)
        s = execute(&j, c->scratch);
    job_free(&j);
    return s == dnnl_success ? 0 : failed(op == OP_linear ? "multiply" : "convolve", s, err);
}

static size_t scratch(const struct op_call *c, enum op_id op, bool back, int threads)
{
    size_t need = self.ref->scratch[op](c, back, threads);
    struct job j;

    if (!takes(c, op, back))
        return need;
    need = plan(&j, c, op, back) == dnnl_success ? j.total : 0; /* a failure is reported by the call itself */
    job_free(&j);
    return need;
}

static int linear_forward(const struct op_call *c, struct err *err)
{
    return call(c, OP_linear, false, err);
}

static int linear_backward(const struct op_call *c, struct err *err)
{
    return call(c, OP_linear, true, err);
}

static size_t linear_scratch(const struct op_call *c, bool back, int threads)
{
    return scratch(c, OP_linear, back, threads);
}

static int convolution_forward(const struct op_call *c, struct err *err)
{
    return call(c, OP_conv2d, false, err);
}

static size_t convolution_scratch(const struct op_call *c, bool back, int threads)
{
    return scratch(c, OP_conv2d, back, threads);
}

static void describe(struct offload_info *info, bool bf16)
{
    const dnnl_version_t *v = dnnl_version();

    snprintf(info->text, sizeof info->text, "oneDNN %d.%d.%d, processor %s bf16 arithmetic", v->major, v->minor, v->patch,
             bf16 ? "with" : "without");
    info->arithmetic = self.arithmetic;
    info->same_bytes = false;
}

static void shut(void)
{
    if (self.stream)
        dnnl_stream_destroy(self.stream);
    if (self.engine)
        dnnl_engine_destroy(self.engine);
    memset(&self, 0, sizeof self);
}

static int start(const struct ops *ref, const struct offload_options *options, struct ops *ops, struct offload_info *info,
                 struct err *err)
{
    bool bf16 = (dnnl_get_effective_cpu_isa() & dnnl_cpu_isa_avx512_core_bf16) == dnnl_cpu_isa_avx512_core_bf16;
    dnnl_status_t s;

    if (dnnl_version()->major != DNNL_VERSION_MAJOR)
        return err_set(err, "device 'dnnl' was built for oneDNN %d, this machine has %d; build it again", DNNL_VERSION_MAJOR,
                       dnnl_version()->major);
    if (options->arithmetic == DT_F16 || options->tf32 || options->base != OFFLOAD_BASE_PLAIN || options->index > 0)
        return err_usage(err, "device 'dnnl' computes in f32 or bf16 and has one device; use dnnl, dnnl:f32 or dnnl:bf16");
    if (options->arithmetic == DT_BF16 && !bf16)
        return err_set(err, "this processor has no bf16 arithmetic that oneDNN knows; use dnnl:f32 or cpu");
    self.ref = ref;
    self.threads = options->threads;
    self.arithmetic = options->arithmetic != DT_COUNT ? options->arithmetic : bf16 ? DT_BF16 : DT_F32;
    s = dnnl_engine_create(&self.engine, dnnl_cpu, 0);
    if (s == dnnl_success)
        s = dnnl_stream_create(&self.stream, self.engine, dnnl_stream_default_flags);
    if (s != dnnl_success) {
        shut();
        return failed("start", s, err);
    }
    describe(info, bf16);
    ops->name = "dnnl";
    ops->forward[OP_linear] = linear_forward;
    ops->backward[OP_linear] = linear_backward;
    ops->scratch[OP_linear] = linear_scratch;
    ops->forward[OP_conv2d] = convolution_forward;
    ops->scratch[OP_conv2d] = convolution_scratch;
    return 0;
}

/* The one function the program looks for. */
__attribute__((visibility("default"))) offload_plugin_fn offload_plugin;

const struct offload_plugin *offload_plugin(void)
{
    static const struct offload_plugin row = {OFFLOAD_VERSION, OFFLOAD_LAYOUT, "dnnl", start, shut};

    return &row;
}
