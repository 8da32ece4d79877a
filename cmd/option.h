/* Options as rows: an option is one field of a command's options struct and one row of its table, two lines in all. Parsing,
 * --help, man pages, completion, --config files and the options file beside an output all read the rows.
 *
 *     struct extract_options { const char *model_org; size_t dim; bool v2; ... };
 *     static const struct option_row rows[] = {
 *         {OPTION(struct extract_options, model_org), .arg = "FILE", .help = "base checkpoint", .flags = OPTION_REQUIRED},
 *         {OPTION(struct extract_options, dim), .arg = "N", .def = "4", .min = 1, .max = 65536, .help = "rank of the LoRA"},
 *         {OPTION(struct extract_options, v2), .help = "both are Stable Diffusion 2.x"},
 *         {0},
 *     };
 *
 * Rules of a command line (those of the scripts whose option names we use): `--name value` or `--name=value`; a unique
 * prefix names an option; a list takes every value up to the next option; a negative number is a value; a flag takes no
 * value; given twice, the last one counts; `--` ends the options. '-' and '_' inside a name are the same.
 */
#ifndef CMD_OPTION_H
#define CMD_OPTION_H

#include <jansson.h>
#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "ref/base/dtype.h"
#include "ref/base/err.h"
#include "ref/base/mem.h"

/* What a list option holds. item is NULL when count is 0; owned by the struct option_values that parsed it. */
struct string_list {
    const char *const *item;
    size_t count;
};
struct float_list {
    const double *item;
    size_t count;
};
struct int_list {
    const int64_t *item;
    size_t count;
};

/* An element type that may be left unset (then: the file's own). Typed as float fp16 bf16, or any name dtype_parse() knows. */
struct option_dtype {
    bool set;
    enum dtype dtype;
};

/* The type follows from the C type of the field, so that a row cannot disagree with it. */
enum option_type {
    OPTION_FLAG,    /* bool: false, or true when named */
    OPTION_INT,     /* int64_t */
    OPTION_SIZE,    /* size_t: an integer >= 0 */
    OPTION_FLOAT,   /* double: finite */
    OPTION_STRING,  /* const char *: NULL when unset; owned by argv or the option_values */
    OPTION_CHOICE,  /* int: index into the row's choices, -1 when unset */
    OPTION_DTYPE,   /* struct option_dtype */
    OPTION_STRINGS, /* struct string_list */
    OPTION_FLOATS,  /* struct float_list */
    OPTION_INTS,    /* struct int_list */
};

#define OPTION_TYPE_OF(x)                                                                                                      \
    _Generic((x), bool: OPTION_FLAG, int64_t: OPTION_INT, size_t: OPTION_SIZE, double: OPTION_FLOAT, const char *: OPTION_STRING, \
        int: OPTION_CHOICE, struct option_dtype: OPTION_DTYPE, struct string_list: OPTION_STRINGS,                            \
        struct float_list: OPTION_FLOATS, struct int_list: OPTION_INTS)

/* The option is named as its field; OPTION_NAMED where the name is no C identifier or differs. */
#define OPTION(T, field)             OPTION_NAMED(T, field, #field)
#define OPTION_NAMED(T, field, text) .name = text, .offset = offsetof(T, field), .type = OPTION_TYPE_OF(((T *)0)->field)

enum option_flags {
    OPTION_REQUIRED = 1,   /* not giving it is a usage error */
    OPTION_POSITIONAL = 2, /* given without its name, in the order of the rows; a list takes all that remain */
    OPTION_OUTPUT = 4,     /* the path the command writes: the options file is put beside it */
    OPTION_HIDDEN = 8,     /* accepted, but in no help text */
    OPTION_ADVANCED = 16,  /* last in the help text */
    OPTION_EITHER = 32,    /* one of the rows that have this must be given */
};

struct option_row {
    const char *name; /* without dashes; NULL ends a table */
    enum option_type type;
    size_t offset;
    const char *arg;  /* what the help shows for the value: FILE, DIR, PATH, N, X, TEXT; FILE, DIR and PATH complete */
    const char *help; /* one sentence, small first letter, no full stop */
    const char *def;  /* default as it would be typed; NULL: unset (false, 0, NULL, -1, empty list) */
    const char *const *choices; /* OPTION_CHOICE: the words, NULL at the end */
    double min, max;            /* numbers and elements of number lists: inclusive range, checked when min < max */
    unsigned flags;
    const char *alias_of; /* an older spelling of that option: same field, mentioned as such in the help */
    const char *ignored;  /* accepted without any effect: the reason, printed as one note when the option is given */
};

/* An ignored option needs no field: its value, where it takes one, is checked for presence only. */
#define OPTION_IGNORED_FLAG(text, why)            .name = text, .type = OPTION_FLAG, .ignored = why
#define OPTION_IGNORED_VALUE(text, argument, why) .name = text, .type = OPTION_STRING, .arg = argument, .ignored = why

enum option_source {
    OPTION_FROM_DEFAULT = 0,
    OPTION_FROM_CONFIG = 1,
    OPTION_FROM_LINE = 2,
};

/* One table of rows bound to one options struct, and where each value came from. */
struct option_values {
    const struct option_row *rows; /* borrowed */
    void *base;                    /* the options struct, borrowed */
    unsigned char *source;         /* [rows] enum option_source */
    size_t count;                  /* rows */
    struct arena arena;            /* strings and lists */
};

/* Fills base (of any content) with the rows' defaults. option_values_free() frees what the values own, not base. */
int option_values_init(struct option_values *v, const struct option_row *rows, void *base, struct err *err);
void option_values_free(struct option_values *v);

/* Sets the option of row i from n texts as they would be typed (n = 0 for a flag). The texts are borrowed and must outlive v.
 * A value from a weaker source (config after command line) is checked and then dropped. Returns 0 or -1 (usage error that
 * names the option). */
int option_set(struct option_values *v, size_t i, const char *const *texts, size_t n, enum option_source source,
               struct err *err);

/* Parses argv [argc] (no program or command name in it) into several tables at once: prefixes are unique over all of them.
 * Positional arguments go to the first table. `who` is the command for messages ("lora extract"). Stops early, with success,
 * after an option named "help" (then nothing may be required). Returns 0 or -1 (usage error). */
int option_parse(struct option_values *tables, size_t n_tables, const char *who, int argc, char *const *argv, struct err *err);

/* Every OPTION_REQUIRED row must have a value, and one of the OPTION_EITHER rows. Returns 0, or -1: a usage error that names all
 * that is missing. */
int option_check_required(const struct option_values *v, const char *who, struct err *err);

/* Whether the option stored at `field` (an address inside the options struct) was given, on the line or in a config file. */
bool option_given(const struct option_values *v, const void *field);

/* Finds the row that a typed name (with or without dashes, '-' or '_') means exactly. Returns its index or SIZE_MAX. */
size_t option_find(const struct option_values *v, const char *name);

/* The nearest of n words to a mistyped one, or NULL when none is near. */
const char *option_nearest(const char *word, const char *const *words, size_t n);

/* A new object with every value that is set or has a default (aliases and ignored options left out); feeding it to --config
 * gives the same run. NULL with err filled. The caller owns the reference. */
json_t *option_to_json(const struct option_values *v, struct err *err);

/* Sets options from an object {"name": value, ...} read from `path`; objects inside it group options and their names mean
 * nothing. Keys "command" and "version" at the top are skipped. Values set on the command line win. Returns 0 or -1
 * (unknown name, wrong type). */
int option_from_json(struct option_values *tables, size_t n_tables, const json_t *object, const char *path, struct err *err);

#endif
