/* Errors: one message for a person, one kind for the exit status.
 *
 * Every function that can fail returns 0, or -1 after filling the `struct err` it was given (last parameter, never NULL).
 * Only main() prints it and exits. A message reads: subject, in single quotes where it is a name; what is wrong; after a
 * semicolon what to do next. Small first letter, no full stop:
 *     cannot read 'a.safetensors': tensor 'x' ends past the end of the file; download it again
 */
#ifndef REF_BASE_ERR_H
#define REF_BASE_ERR_H

#include <stdarg.h>

enum err_kind {
    ERR_NONE = 0,
    ERR_FAILED = 1, /* the work could not be done; exit status 1 */
    ERR_USAGE = 2,  /* the command line asks for something impossible; exit status 2 */
};

struct err {
    enum err_kind kind;
    char msg[2048]; /* always terminated; a longer message is cut with "..."; control characters become '?' */
};

/* Fills err with kind ERR_FAILED and the formatted message. Returns -1, so that `return err_set(err, ...)` is one line. */
int err_set(struct err *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* The same with kind ERR_USAGE. Returns -1. */
int err_usage(struct err *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Puts a formatted text before the message that err holds ("cannot merge 'x': " + message). Returns -1. */
int err_prefix(struct err *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* "out of memory: cannot get N bytes for WHAT; ..." Returns -1. */
int err_memory(struct err *err, unsigned long long nbytes, const char *what);

#endif
