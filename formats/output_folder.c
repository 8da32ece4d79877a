#include "formats/output_folder.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "ref/base/mem.h"

int output_folder_open(struct output_folder *f, const char *path, struct err *err)
{
    size_t n = strlen(path);

    while (n > 1 && path[n - 1] == '/')
        n--;
    *f = (struct output_folder){.path = mem_strn(path, n, err)};
    f->temp = f->path ? mem_zero(n + 32, 1, "a path", err) : NULL;
    if (!f->temp) {
        output_folder_abort(f);
        return -1;
    }
    sprintf(f->temp, "%s.tmp.%ld", f->path, (long)getpid());
    return 0;
}

/* Calls itself for each folder inside; each file is moved to `to`, or removed when that is NULL. The folder goes, too. */
static int empty(const char *from, const char *to, struct err *err)
{
    DIR *d = opendir(from);
    struct dirent *e;
    int rc = 0;

    if (!d)
        return to ? err_set(err, "cannot read the folder '%s': %s", from, strerror(errno)) : 0;
    if (to && mkdir(to, 0777) && errno != EEXIST)
        rc = err_set(err, "cannot make the folder '%s': %s", to, strerror(errno));
    while (rc == 0 && (e = readdir(d)) != NULL) {
        char a[PATH_MAX], b[PATH_MAX];
        struct stat st;

        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
            continue;
        if (snprintf(a, sizeof a, "%s/%s", from, e->d_name) >= PATH_MAX ||
            snprintf(b, sizeof b, "%s/%s", to ? to : "", e->d_name) >= PATH_MAX)
            rc = err_set(err, "cannot write into '%s': the path is too long", to ? to : from);
        else if (lstat(a, &st) == 0 && S_ISDIR(st.st_mode))
            rc = empty(a, to ? b : NULL, err);
        else if (to && rename(a, b))
            rc = err_set(err, "cannot replace '%s': %s", b, strerror(errno));
        else if (!to)
            unlink(a);
    }
    closedir(d);
    rmdir(from);
    return rc;
}

static void release(struct output_folder *f)
{
    free(f->path);
    free(f->temp);
    *f = (struct output_folder){0};
}

int output_folder_commit(struct output_folder *f, struct err *err)
{
    int rc = 0;

    /* an empty folder gives way, a full one does not */
    if (rename(f->temp, f->path))
        rc = errno == ENOTEMPTY || errno == EEXIST || errno == ENOTDIR ? empty(f->temp, f->path, err)
                                                     : err_set(err, "cannot write '%s': %s", f->path, strerror(errno));
    if (rc)
        return output_folder_fail(f, err);
    release(f);
    return 0;
}

int output_folder_fail(struct output_folder *f, struct err *err)
{
    size_t n = strlen(f->temp), m = strlen(f->path); /* m < n */

    for (char *at = err->msg; (at = strstr(at, f->temp)) != NULL; at += m)
        memmove(at + m, at + n, strlen(at + n) + 1);
    output_folder_abort(f);
    return -1;
}

void output_folder_abort(struct output_folder *f)
{
    struct err unused;

    if (f->temp)
        empty(f->temp, NULL, &unused);
    release(f);
}
