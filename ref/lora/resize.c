#include "ref/lora/resize.h"

#include <math.h>
#include <string.h>

bool rank_method_parse(const char *name, enum rank_method *out)
{
    static const struct {
        const char *name;
        enum rank_method method;
    } names[] = {
        {"sv_ratio", RANK_RATIO},
        {"sv_fro", RANK_FROBENIUS},
        {"sv_cumulative", RANK_CUMULATIVE},
    };

    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (strcmp(name, names[i].name) == 0) {
            *out = names[i].method;
            return true;
        }
    return false;
}

static double weight(enum rank_method method, double s)
{
    return method == RANK_FROBENIUS ? s * s : s;
}

/* The smallest k with weight(s_1) + ... + weight(s_k) >= share of the whole. Summed from the small end, so that what is left
 * over is known to its own precision and not to that of the total. */
static size_t keep_share(enum rank_method method, double share, const double *s, size_t n)
{
    double total = 0, rest = 0;

    for (size_t i = n; i-- > 0;)
        total += weight(method, s[i]);
    for (size_t k = n; k > 0; k--) {
        rest += weight(method, s[k - 1]);
        if (rest > (1 - share) * total)
            return k;
    }
    return 1;
}

size_t rank_choose(const struct rank_rule *rule, const double *s, size_t n)
{
    size_t k = 0;

    switch (rule->method) {
    case RANK_FIXED:
        while (k < n && s[k] > 0)
            k++;
        break;
    case RANK_RATIO:
        while (k < n && s[k] > 0 && s[k] * rule->param > s[0])
            k++;
        break;
    case RANK_FROBENIUS:
        k = keep_share(rule->method, rule->param * rule->param, s, n);
        break;
    case RANK_CUMULATIVE:
        k = keep_share(rule->method, rule->param, s, n);
        break;
    }
    k = k < rule->max_rank ? k : rule->max_rank;
    return k ? k : 1;
}
