/* Python pickles read as data: a machine of a few opcodes that builds values and runs nothing.
 *
 * A pickle is a program for a stack machine. Ours knows the opcodes that checkpoints use and turns each into a plain value;
 * a call of a Python object becomes, at most, a value that says who would have been called with what, and only for objects
 * in the caller's table. Any other call is refused by name. An object that is named but never called (a class used as a
 * dictionary key, as Lightning does) is harmless and kept as its name.
 *
 * Nothing recurses, whatever the nesting. Memory is bounded by a constant times the input: every value costs at least one
 * byte of it, and PICKLE_MAX_VALUES caps them; strings are not copied but point into the input.
 */
#ifndef FORMATS_PICKLE_H
#define FORMATS_PICKLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ref/base/err.h"
#include "ref/base/mem.h"

#define PICKLE_MAX_BYTES  ((size_t)64 << 20) /* callers read no longer pickle; checkpoints of 1,000 tensors take 0.2 MB */
#define PICKLE_MAX_VALUES ((size_t)4 << 20)  /* the values of one pickle, and the items that calls copy */

enum pickle_kind {
    PICKLE_NONE,
    PICKLE_BOOL,   /* i is 0 or 1 */
    PICKLE_INT,    /* i */
    PICKLE_BIGINT, /* an integer of more than 64 bits: text = little-endian two's complement bytes */
    PICKLE_FLOAT,  /* f */
    PICKLE_STR,    /* text: valid UTF-8 */
    PICKLE_BYTES,  /* text */
    PICKLE_TUPLE,  /* seq */
    PICKLE_LIST,   /* seq */
    PICKLE_SET,    /* seq */
    PICKLE_DICT,   /* seq: key, value, key, value ... in order of insertion; a key may come twice, the last counts */
    PICKLE_GLOBAL, /* global: a Python object named, not fetched */
    PICKLE_CALL,   /* call: what would have been called */
    PICKLE_PERSID, /* seq: the items of a persistent id (a tuple), torch's way to name a storage */
};

/* A row of the table of objects that a pickle may call. `what` is the caller's own. */
enum pickle_call {
    PICKLE_NEVER,      /* known, but only as a name: dtypes, storage classes */
    PICKLE_VALUE,      /* a call is kept as PICKLE_CALL; setting its state is refused */
    PICKLE_OBJECT,     /* a call is kept as PICKLE_CALL; state set on it is dropped */
    PICKLE_MAKES_DICT, /* a call gives a PICKLE_DICT from pairs, a dictionary or nothing; its attributes are dropped */
};

struct pickle_global {
    const char *name; /* "module.name" */
    enum pickle_call call;
    int what;
};

struct pickle_value {
    enum pickle_kind kind;
    union {
        int64_t i;
        double f;
        struct {
            const char *s; /* not terminated; borrowed from the input */
            size_t n;
        } text;
        struct {
            struct pickle_value **item; /* [n] */
            size_t n, cap;
        } seq;
        struct {
            const struct pickle_global *row; /* NULL: not in the table */
            const char *module, *name;       /* not terminated; borrowed from the input */
            size_t n_module, n_name;
        } global;
        struct {
            const struct pickle_global *row;
            struct pickle_value *args; /* a PICKLE_TUPLE */
        } call;
    };
};

struct pickle {
    const struct pickle_value *root;
    const struct pickle_value **persid; /* [n_persid] every persistent id, in order */
    size_t n_persid;
    size_t n_values; /* all values made, for limits on walks */
    size_t used;     /* bytes of the input up to and with STOP */
    bool cut;        /* after a failure: the input ended too early; more of it may help */
    struct arena arena;
};

/* Reads one pickle from the front of data [n bytes], which must outlive p. globals [until a NULL name] is borrowed. path is
 * the file's name for messages. Returns 0 or -1; p is to be given to pickle_free() in both cases. */
int pickle_parse(struct pickle *p, const void *data, size_t n, const struct pickle_global *globals, const char *path,
                 struct err *err);
void pickle_free(struct pickle *p);

/* True when v is a string equal to s. */
bool pickle_is(const struct pickle_value *v, const char *s);

/* The value of the last string key `key` of a dictionary, or NULL (also when dict is no dictionary). */
const struct pickle_value *pickle_get(const struct pickle_value *dict, const char *key);

/* True when s [n] is valid UTF-8. */
bool pickle_is_utf8(const unsigned char *s, size_t n);

/* Writes text [n] into buf for a message: unprintable bytes become '?', what does not fit becomes "...". Returns buf. */
const char *pickle_quote(const char *text, size_t n, char *buf, size_t size);

#endif
