/* A golden case of one operation (golden/make_ops.py): attributes, inputs, and what is to be computed. */
#ifndef CMD_VERIFY_OP_CASE_H
#define CMD_VERIFY_OP_CASE_H

#include "cmd/verify/verify.h"

struct op_case {
    const char *name;
    enum op_id op;
    const struct op *row;
    struct op_attr attr;
    double n, back[OP_MAX_IN]; /* longest sums: of the forward; what the backward of each input adds */
    const json_t *error;       /* see limit.h */
    double slope[OP_MAX_IN];
    bool has_in[OP_MAX_IN], wants[OP_MAX_IN], has_back;
    struct tensor in[OP_MAX_IN], dout; /* data in the file's arena */
};

/* Fills c from one object of the file's "cases" (which c borrows). */
int op_case_open(struct op_case *c, struct verify_file *f, const json_t *j, struct err *err);

/* Tensor NAME.PART ("out0"). The limit of got [n] against it, and the row. n of the longest sum: c->n, and c->back[i] more. */
int op_case_compare(struct verify *v, const struct op_case *c, struct verify_file *f, const char *part, double sum,
                    const float *got, size_t n, double *limit, struct err *err);

#endif
