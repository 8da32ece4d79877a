/* Inside of names.c: the rules between canonical and LDM module paths, as data.
 *
 * In patterns `#` stands for a number and `.` for what separates words. A rule is a head and one of a list of tails; a rule
 * without tails is a whole path. */
#ifndef FORMATS_NAMES_RULES_H
#define FORMATS_NAMES_RULES_H

#include "ref/base/part.h"

/* How the numbers of the two heads follow from each other; n = layers + 1, see names.h. */
enum names_numbers {
    NUMBERS_SAME,
    NUMBERS_DOWN,     /* level, layer <-> input block */
    NUMBERS_DOWN_END, /* level <-> input block */
    NUMBERS_UP,       /* level, layer <-> output block */
    NUMBERS_UP_END,   /* level <-> output block, place in it */
    NUMBERS_FLIP,     /* level, ... <-> last level - level, ... */
};

struct names_pair {
    const char *canonical, *ldm;
};

struct names_rule {
    enum model_part part;
    const char *canonical, *ldm;
    const struct names_pair *tail; /* ends with a NULL pair; NULL: none */
    enum names_numbers numbers;
};

extern const struct names_rule names_rules[]; /* ends with canonical == NULL */

/* Old diffusers names of VAE attention: .canonical is today's, .ldm the old one. */
extern const struct names_pair names_old_vae_attention[];

#endif
