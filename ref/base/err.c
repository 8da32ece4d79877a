#include "ref/base/err.h"

#include <stdio.h>
#include <string.h>

static void format(struct err *err, enum err_kind kind, const char *fmt, va_list ap)
{
    int n = vsnprintf(err->msg, sizeof err->msg, fmt, ap);

    if (n < 0)
        snprintf(err->msg, sizeof err->msg, "unprintable error");
    else if ((size_t)n >= sizeof err->msg)
        memcpy(err->msg + sizeof err->msg - 4, "...", 4);
    for (char *p = err->msg; *p; p++) /* names come from files: they must not steer the terminal */
        if (((unsigned char)*p < 0x20 && *p != '\n' && *p != '\t') || *p == 0x7f)
            *p = '?';
    err->kind = kind;
}

int err_set(struct err *err, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    format(err, ERR_FAILED, fmt, ap);
    va_end(ap);
    return -1;
}

int err_usage(struct err *err, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    format(err, ERR_USAGE, fmt, ap);
    va_end(ap);
    return -1;
}

int err_prefix(struct err *err, const char *fmt, ...)
{
    struct err old = *err;
    enum err_kind kind = old.kind == ERR_NONE ? ERR_FAILED : old.kind;
    va_list ap;
    size_t n;

    va_start(ap, fmt);
    format(err, kind, fmt, ap);
    va_end(ap);
    n = strlen(err->msg);
    snprintf(err->msg + n, sizeof err->msg - n, "%s", old.msg);
    return -1;
}

int err_memory(struct err *err, unsigned long long nbytes, const char *what)
{
    return err_set(err, "out of memory: cannot get %llu bytes for %s; close other programs or use fewer threads (--threads 1)",
                   nbytes, what);
}
