/* golden/names: LDM names and shapes of a model, and what diffusers' own converters make of them. */
#ifndef TESTS_LIB_NAMES_GOLDEN_H
#define TESTS_LIB_NAMES_GOLDEN_H

#include <stddef.h>
#include <stdint.h>

#include "ref/base/part.h"
#include "ref/base/tensor.h"

struct golden_name {
    enum model_part part; /* MODEL_OTHER: an LDM tensor */
    char name[200];
    struct shape shape;
    uint32_t crc; /* of the f32 bytes; 0 for LDM tensors: names_golden_values() has them */
};

struct names_golden {
    struct golden_name *line; /* [count] */
    size_t count;
};

/* Reads NAME.txt.gz of that folder; stops the test when it cannot. Freed with free(g.line). */
struct names_golden names_golden_read(const char *name);

/* The values that make_names.py gives a tensor of this name: f32 [n], to be freed. */
float *names_golden_values(const char *name, size_t n);

/* Writes the model as one file; a line is left out when its name begins with `without` (NULL: none are). */
void names_golden_write(const struct names_golden *g, const char *path, const char *without);

#endif
