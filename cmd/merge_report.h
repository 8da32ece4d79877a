/* What a merge tells the person: a few lines on standard output, or one JSON value. */
#ifndef CMD_MERGE_REPORT_H
#define CMD_MERGE_REPORT_H

#include "cmd/merge.h"
#include "formats/model.h"

/* One tensor that was changed; part MODEL_UNET with name NULL marks an unused slot. */
struct merge_change {
    enum model_part part;
    const char *name;                  /* canonical, borrowed */
    double weight2, delta2, rounding2; /* sums of squares, see ref/lora/merge.h */
};

struct merge_report_input {
    size_t modules[MODEL_PARTS]; /* with a place in the checkpoint */
    size_t missing, zero;        /* without a place; with a factor of 0 */
};

struct merge_report {
    struct merge_report_input *input; /* [job->count] */
    uint64_t bytes;                   /* of tensors in the checkpoint */
};

int merge_report_init(struct merge_report *r, const struct merge_job *job, struct err *err);
void merge_report_free(struct merge_report *r);

/* After a merge into a checkpoint. change [n], in any order; its order is changed. */
int merge_report_model(const struct merge_report *r, const struct merge_job *job, const struct model *m,
                       struct merge_change *change, size_t n, struct err *err);

#endif
