#include "formats/output_stale.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

/* The folder read last without a find, by identity(); a wrong guess costs a read or leaves a file for the next run. */
static _Atomic uint64_t clean;

/* A number for a folder: a removed one gives its inode to the next, but not the time it was made. 0: not known. */
static uint64_t identity(int folder)
{
    struct statx st;
    uint64_t id;

    if (statx(folder, "", AT_EMPTY_PATH, STATX_INO | STATX_BTIME, &st) || !(st.stx_mask & STATX_BTIME))
        return 0;
    id = (uint64_t)st.stx_btime.tv_sec * 1000000000u + st.stx_btime.tv_nsec;
    id = (id ^ st.stx_ino) * 0x9e3779b97f4a7c15u;
    return id ^ ((uint64_t)st.stx_dev_major << 32 | st.stx_dev_minor);
}

/* The process that "NAME.tmp.123" or "NAME.tmp.123.4" names, 0 for another kind of name; *length: of NAME. */
static long writer_of(const char *file, size_t *length)
{
    const char *at = NULL, *next = file;
    char *end;
    long pid;

    while ((next = strstr(next, ".tmp.")) != NULL)
        at = next++;
    if (!at || !isdigit((unsigned char)at[5]))
        return 0;
    pid = strtol(at + 5, &end, 10);
    if (*end == '.' && isdigit((unsigned char)end[1]))
        strtol(end + 1, &end, 10);
    *length = (size_t)(at - file);
    return *end == '\0' && pid > 0 ? pid : 0;
}

static void remove_one(int folder, const char *file)
{
    int fd = openat(folder, file, O_RDONLY | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
    struct stat st;

    if (fd < 0)
        return;
    if (fstat(fd, &st) == 0 && S_ISREG(st.st_mode) && flock(fd, LOCK_EX | LOCK_NB) == 0)
        unlinkat(folder, file, 0);
    close(fd);
}

void output_stale_remove(const char *folder, const char *name)
{
    DIR *d = opendir(folder);
    struct dirent *e;
    uint64_t id;
    bool any = false;

    if (!d)
        return;
    id = identity(dirfd(d));
    if (id && id == clean) {
        closedir(d);
        return;
    }
    while ((e = readdir(d)) != NULL) {
        size_t length = 0;
        long pid = writer_of(e->d_name, &length);

        any = any || pid;
        if (pid && strlen(name) == length && strncmp(e->d_name, name, length) == 0 && kill((pid_t)pid, 0) != 0 && errno == ESRCH)
            remove_one(dirfd(d), e->d_name);
    }
    closedir(d);
    if (!any)
        clean = id;
}
