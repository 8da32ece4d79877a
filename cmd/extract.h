/* `lora extract` inside: the modules of two models side by side, what came out for each, and the report. */
#ifndef CMD_EXTRACT_H
#define CMD_EXTRACT_H

#include "cmd/command.h"
#include "formats/lora_file.h"
#include "formats/model.h"
#include "ref/lora/extract.h"
#include "ref/lora/target.h"

struct extract_job {
    const struct model_tensor *org, *tuned;
    char *path; /* canonical module path */
    char *key;  /* kohya's, for people and the seed */
    struct target target;
    int block;  /* target_block(), -1: none */
    size_t in;  /* inputs x kernel */
    size_t rank_asked;
    /* results */
    size_t rank;   /* 0: the weights are equal, nothing is written */
    float largest; /* largest |difference| */
    double total, error, least, clamp; /* ||D||^2, ||D - up down||^2, proved lower bound of the latter, cut of the values */
    enum svd_method method;
    float *s;      /* [known] singular values: `sure` are computed, the others estimates from below */
    size_t known, sure;
    void *up, *down; /* [out, rank], [rank, in] in the type they are saved in */
};

struct extract_plan {
    struct model *org, *tuned;
    struct extract_job *job; /* [count], by part, then path */
    size_t count;
    bool text_equal; /* the text encoder was found equal and left out */
    struct arena arena;
};

/* Opens both models and pairs their LoRA modules. What does not fit together is an error; a part that only one of them has is
 * left out with a note. */
int extract_plan_open(struct extract_plan *p, const struct command_run *run, const char *org, const char *tuned, bool v2,
                      size_t dim, size_t conv_dim, struct err *err);
void extract_plan_close(struct extract_plan *p);

/* Facts of the whole, for the summary and the report. Energies are shares of ||D||^2, 0 .. 1. */
struct extract_totals {
    size_t modules, part[MODEL_PARTS], equal, clipped;
    size_t min_rank, max_rank;
    double kept, kept_median; /* of all together; median over modules */
    size_t *order;            /* [modules] job indices, least kept energy first */
    double *by_rank;          /* [ranks] kept by rank r + 1 in every module: exact up to sure_ranks, then at least */
    size_t ranks, sure_ranks;
    double block_total[TARGET_BLOCKS], block_kept[TARGET_BLOCKS];
    double worst_ratio; /* largest proved bound of error / least possible error */
};

/* Arrays live in the plan's arena. */
int extract_totals_make(struct extract_totals *t, struct extract_plan *p, struct err *err);

double extract_kept(const struct extract_job *j);

/* The smallest rank that keeps `share` in all, or 0 when the known singular values do not say. */
size_t extract_rank_for(const struct extract_totals *t, double share);

/* What a report says beside the modules */
struct extract_facts {
    const char *org, *tuned, *output; /* file names without folders */
    const char *kind;                 /* model_kind_text() of the base */
    unsigned long long bytes;         /* of the output */
    double seconds;
    double energy;  /* asked for, or 0 */
    double clamp;   /* quantile, or 0 */
};

/* Writes .html, .htm or .json by the path's ending; another ending is a usage error (checked early by report_kind()). */
int extract_report(const char *path, const struct extract_plan *p, const struct extract_totals *t,
                   const struct extract_facts *f, struct err *err);
int extract_report_check(const char *path, struct err *err);
json_t *extract_report_json(const struct extract_plan *p, const struct extract_totals *t, const struct extract_facts *f,
                            bool modules);

#endif
