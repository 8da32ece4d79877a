/* How many singular values to keep: the rules of resize, also used when LoRAs are combined. See combine.h. */
#ifndef REF_LORA_RESIZE_H
#define REF_LORA_RESIZE_H

#include <stdbool.h>
#include <stddef.h>

/* How the rank is chosen from the singular values s_1 >= s_2 >= ...: the smallest rank that keeps what is asked, at least 1 and
 * at most max_rank. The names in brackets are those of the command line. */
enum rank_method {
    RANK_FIXED,      /* max_rank, or the number of values that are not zero where that is smaller */
    RANK_RATIO,      /* (sv_ratio) every s_k > s_1 / param; param >= 1 */
    RANK_FROBENIUS,  /* (sv_fro) sqrt(sum of s_k^2) >= param * sqrt(sum of all s_k^2); 0 < param <= 1 */
    RANK_CUMULATIVE, /* (sv_cumulative) sum of s_k >= param * sum of all; 0 < param <= 1 */
};

struct rank_rule {
    enum rank_method method;
    size_t max_rank; /* at least 1 */
    double param;
};

/* The method of that name on the command line. Returns false for another name. */
bool rank_method_parse(const char *name, enum rank_method *out);

/* The rank that the rule takes for s [n], descending, not negative, n >= 1. The smallest rank that fulfils the rule: not one
 * more, as the scripts that the names come from take. */
size_t rank_choose(const struct rank_rule *rule, const double *s, size_t n);

#endif
