/* The parts of the pickle machine that opcodes are made of: input, values, the stack. For pickle.c alone. Functions that
 * return a pointer or an int give NULL or -1 after filling err. */
#ifndef FORMATS_PICKLE_VM_H
#define FORMATS_PICKLE_VM_H

#include "formats/pickle.h"

enum {
    PICKLE_MAX_STACK = 1 << 20, /* values waiting on the stack; writers send items in batches of 1,000 */
    PICKLE_MAX_MARKS = 1000,    /* open marks: nesting as a writer sees it; CPython's own writer gives up near 1,000 too */
};

struct vm {
    struct pickle *p;
    const unsigned char *at, *end;
    const struct pickle_global *globals;
    const char *path;
    struct pickle_value **stack;
    size_t n_stack, cap_stack;
    size_t mark[PICKLE_MAX_MARKS]; /* heights of the stack */
    size_t n_mark;
    struct pickle_value **memo; /* [cap_memo], holes are NULL */
    size_t cap_memo, n_memo;    /* n_memo: entries that are set */
    size_t limit_memo;
    size_t cap_persid;
    struct pickle_value *constant; /* [3] False, True, None: shared and not counted */
};

/* Says that the pickle `what` ("ends in its middle"). Returns -1. */
int pickle_broken(struct vm *vm, const char *what, struct err *err);

/* The next n bytes of the input; a little-endian number of 1 to 8 bytes; the rest of a line without its newline. */
const unsigned char *pickle_take(struct vm *vm, uint64_t n, struct err *err);
int pickle_take_number(struct vm *vm, unsigned bytes, uint64_t *out, struct err *err);
int pickle_take_line(struct vm *vm, const char **s, size_t *n, struct err *err);

/* Counts n more values towards PICKLE_MAX_VALUES; pickle_new() counts its own. */
int pickle_count(struct vm *vm, size_t n, struct err *err);
struct pickle_value *pickle_new(struct vm *vm, enum pickle_kind kind, struct err *err);

/* The stack. Values are taken down to the last mark only. pickle_push() passes the failure of a NULL v on. What
 * pickle_pop_mark() takes, *item [*n], stays valid until the next push. */
int pickle_push(struct vm *vm, struct pickle_value *v, struct err *err);
int pickle_push_seq(struct vm *vm, enum pickle_kind kind, struct pickle_value *const *item, size_t n, struct err *err);
int pickle_push_text(struct vm *vm, enum pickle_kind kind, const void *s, size_t n, struct err *err);
int pickle_push_int(struct vm *vm, int64_t i, struct err *err);
size_t pickle_floor(const struct vm *vm); /* the height of the last mark */
struct pickle_value *pickle_pop(struct vm *vm, struct err *err);
struct pickle_value *pickle_top(struct vm *vm, struct err *err);
int pickle_pop_mark(struct vm *vm, struct pickle_value ***item, size_t *n, struct err *err);

/* Adds items [n] to a sequence. */
int pickle_add(struct vm *vm, struct pickle_value *seq, struct pickle_value *const *item, size_t n, struct err *err);

#endif
