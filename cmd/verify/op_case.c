#include "cmd/verify/op_case.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static int read_act(enum op_act *act, const json_t *j, struct err *err)
{
    static const char *const names[] = {"none", "silu", "gelu", "quick_gelu"};
    const char *s = json_string_value(j);

    *act = ACT_NONE;
    for (int i = 0; s && i < 4; i++)
        if (strcmp(s, names[i]) == 0) {
            *act = (enum op_act)i;
            return 0;
        }
    return s ? err_set(err, "a golden case has activation '%s', which this version does not know", s) : 0;
}

static int read_attr(struct op_attr *a, const json_t *j, struct err *err)
{
#define NUMBER(type, field) .field = (type)json_number_value(json_object_get(j, #field))
    *a = (struct op_attr){NUMBER(float, scale), NUMBER(float, fold), NUMBER(float, eps), NUMBER(size_t, groups),
                          NUMBER(size_t, heads), NUMBER(size_t, stride), NUMBER(size_t, pad_before), NUMBER(size_t, pad_after),
                          NUMBER(size_t, first), NUMBER(size_t, count), NUMBER(size_t, width), NUMBER(size_t, crop_h),
                          NUMBER(size_t, crop_w), .causal = json_is_true(json_object_get(j, "causal"))};
#undef NUMBER
    return read_act(&a->act, json_object_get(j, "act"), err);
}

static int load(struct tensor *t, const struct op_case *c, struct verify_file *f, const char *part, struct err *err)
{
    const struct tensor_entry *e;
    char name[200];

    snprintf(name, sizeof name, "%s.%s", c->name, part);
    e = verify_entry(f, name, err);
    if (!e)
        return -1;
    *t = (struct tensor){verify_raw(f, e, err), e->dtype, e->shape};
    return t->data ? 0 : -1;
}

static int load_input(struct op_case *c, struct verify_file *f, const json_t *j, int i, struct err *err)
{
    char part[16], key[16], name[200];
    const json_t *back;

    snprintf(part, sizeof part, "in%d", i);
    snprintf(key, sizeof key, "%d", i);
    snprintf(name, sizeof name, "%s.%s", c->name, part);
    back = json_object_get(json_object_get(j, "back"), key);
    c->has_in[i] = tensor_file_find(f->file, name) != NULL;
    c->wants[i] = back != NULL;
    c->back[i] = json_number_value(back);
    c->slope[i] = json_number_value(json_object_get(json_object_get(j, "slope"), key));
    c->has_back |= c->wants[i];
    return c->has_in[i] ? load(&c->in[i], c, f, part, err) : 0;
}

int op_case_open(struct op_case *c, struct verify_file *f, const json_t *j, struct err *err)
{
    const char *op = json_string_value(json_object_get(j, "op"));

    *c = (struct op_case){.name = json_string_value(json_object_get(j, "name")), .error = json_object_get(j, "error")};
    if (!c->name || !op)
        return err_set(err, "golden file '%s' has a case without name or operation", f->file->path);
    c->row = op_find(op, &c->op);
    if (!c->row)
        return err_set(err, "golden file '%s' tests operation '%s', which this version has not; take the file of this version",
                       f->file->path, op);
    c->n = json_number_value(json_object_get(j, "n"));
    if (read_attr(&c->attr, json_object_get(j, "attr"), err))
        return -1;
    for (int i = 0; i < OP_MAX_IN; i++)
        if (load_input(c, f, j, i, err))
            return -1;
    return c->has_back ? load(&c->dout, c, f, "dout0", err) : 0;
}

static double rms(const struct tensor *t)
{
    const float *x = t->data;
    double sum = 0;
    size_t n = 0;

    shape_numel(&t->shape, &n);
    for (size_t i = 0; i < n; i++)
        sum += (double)x[i] * (double)x[i];
    return n ? sqrt(sum / (double)n) : 0;
}

/* The size of what is added up where that is more than the result. A term of attention's dq is p (dy . v - delta) k / sqrt(d), in
 * which dy . v, d products of random sign, is about rms(dy) rms(v) sqrt(d); the terms cancel in part, and altogether when there is
 * one key (likewise dk, with q). */
static double size_of_terms(const struct op_case *c, const char *part)
{
    bool dq = strcmp(part, "din0") == 0, dk = strcmp(part, "din1") == 0;

    return c->op == OP_attention && (dq || dk) ? rms(&c->dout) * rms(&c->in[2]) * rms(&c->in[dq ? 1 : 0]) : 0;
}

int op_case_compare(struct verify *v, const struct op_case *c, struct verify_file *f, const char *part, double sum,
                    const float *got, size_t n, double *limit, struct err *err)
{
    char name[200], what[64];
    double size = size_of_terms(c, part), by;
    size_t count;
    float *want;

    snprintf(name, sizeof name, "%s.%s", c->name, part);
    snprintf(what, sizeof what, "%s %s", c->row->name, part[0] == 'd' ? "backward" : "forward");
    want = verify_f32(f, name, &count, err);
    if (!want)
        return -1;
    for (size_t i = 0; i < count; i++)
        size = fmax(size, fabs((double)want[i]));
    by = verify_limit_op(v->arithmetic, sum, c->error, part, size);
    if (limit)
        *limit = by;
    return verify_close(v, f, &(struct verify_row){.group = "ops", .what = what}, name, got, n, by, 0, err);
}
