#include "formats/output.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#include "formats/output_stale.h"
#include "ref/base/mem.h"

struct output_sys output_sys = {
    .pwrite = pwrite,
    .copy_file_range = copy_file_range,
    .fallocate = fallocate,
    .fsync = fsync,
    .close = close,
    .rename = rename,
};

enum {
    COPY_BUFFER = 1 << 20,
    AT_ONCE = 1 << 30,      /* bytes per system call: far below Linux's limit of 2^31 - 4096 */
    START_EVERY = 32 << 20, /* bytes: the disk works while we do, and the last fsync has little left to wait for */
    TEMP_TRIES = 100,
};

/* ---- Temporary files that a signal must remove. A node is taken and given back without locks, because the handler can
 * interrupt any instruction; nodes are never freed, so the handler can always walk the list. */

enum { TEMP_FREE, TEMP_BUSY, TEMP_OPENING, TEMP_LIVE };

struct temp {
    struct temp *next;
    atomic_int state;
    char path[PATH_MAX]; /* absolute, so that it means the same file for ever */
};

static _Atomic(struct temp *) temps;
static atomic_bool dying;

static struct temp *temp_take(struct err *err)
{
    struct temp *t;
    int expected = TEMP_FREE;

    for (t = atomic_load(&temps); t; t = t->next, expected = TEMP_FREE)
        if (atomic_compare_exchange_strong(&t->state, &expected, TEMP_BUSY))
            break;
    if (!t) {
        t = mem_zero(1, sizeof *t, "the name of a temporary file", err);
        if (!t)
            return NULL;
        atomic_store(&t->state, TEMP_BUSY);
        t->next = atomic_load(&temps);
        while (!atomic_compare_exchange_weak(&temps, &t->next, t))
            ;
    }
    /* A handler in another thread may have seen this node live a moment ago and be reading its path: leave it alone, the
     * program is about to end. Had it started after the change to BUSY, it would skip the node. */
    while (atomic_load(&dying))
        pause();
    return t;
}

static void on_signal(int sig)
{
    int saved = errno;

    atomic_store(&dying, true);
    for (struct temp *t = atomic_load(&temps); t; t = t->next) {
        const struct timespec moment = {.tv_nsec = 1000000};

        /* Another thread may be inside open(): it needs microseconds. Where this thread itself was, it never goes on. */
        for (int i = 0; i < 10 && atomic_load(&t->state) == TEMP_OPENING; i++)
            nanosleep(&moment, NULL);
        if (atomic_load(&t->state) >= TEMP_OPENING)
            unlink(t->path);
    }
    signal(sig, SIG_DFL);
    raise(sig); /* blocked until this handler returns */
    errno = saved;
}

void output_catch_signals(void)
{
    static const int fatal[] = {SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGPIPE};
    struct sigaction act = {.sa_handler = on_signal}, old;

    sigfillset(&act.sa_mask);
    for (size_t i = 0; i < sizeof fatal / sizeof fatal[0]; i++)
        if (sigaction(fatal[i], NULL, &old) == 0 && old.sa_handler != SIG_IGN)
            sigaction(fatal[i], &act, NULL);
    signal(SIGXFSZ, SIG_IGN);
}

/* ---- Messages. */

static int fail_for(struct err *err, const char *verb, const char *path, int code, uint64_t need)
{
    struct statvfs fs;

    switch (code) {
    case ENOSPC:
    case EDQUOT: {
        char *slash, folder[PATH_MAX];

        snprintf(folder, sizeof folder, "%s", path);
        slash = strrchr(folder, '/');
        strcpy(slash ? slash + 1 : folder, slash ? "" : ".");
        if (code == ENOSPC && need && statvfs(folder, &fs) == 0)
            return err_set(err,
                           "cannot %s '%s': the disk is full: %" PRIu64 " bytes are needed, %" PRIu64
                           " are free; free some space or write to another disk",
                           verb, path, need, (uint64_t)fs.f_bavail * fs.f_frsize);
        return err_set(err, "cannot %s '%s': %s; free some space or write to another disk", verb, path,
                       code == ENOSPC ? "the disk is full" : "your quota on this disk is used up");
    }
    case EFBIG:
        return err_set(err,
                       "cannot %s '%s': %" PRIu64 " bytes are more than a file may have here; see 'ulimit -f', or write"
                       " to another disk",
                       verb, path, need);
    case EACCES:
    case EPERM:
    case EROFS:
        return err_set(err, "cannot %s '%s': %s; choose a folder where you may write", verb, path,
                       code == EROFS ? "the disk is mounted read-only" : "no permission");
    case EIO:
        return err_set(err, "cannot %s '%s': the disk reports an input/output error; check the disk, write to another one",
                       verb, path);
    default:
        return err_set(err, "cannot %s '%s': %s", verb, path, strerror(code));
    }
}

static int fail(struct err *err, const char *path, int code, uint64_t need)
{
    return fail_for(err, "write", path, code, need);
}

/* ---- Opening. */

struct output {
    char *path;   /* absolute, links resolved: what is renamed over */
    char *folder; /* of path */
    char *shown;  /* as the user wrote it, for messages */
    struct temp *temp;
    int fd;
    uint64_t reserved;
    _Atomic uint64_t unstarted; /* bytes written since the disk was last told to begin */
};

/* Makes the folders before the last slash of path, as mkdir -p does. */
static int make_folders(const char *path, struct err *err)
{
    char *copy = mem_str(path, err);
    int status = -1;

    if (!copy)
        return -1;
    for (char *slash = strchr(copy + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        struct stat st;

        *slash = 0;
        if (stat(copy, &st) == 0 && !S_ISDIR(st.st_mode)) {
            err_set(err, "cannot write '%s': '%s' is not a folder; choose another path", path, copy);
            goto out;
        }
        if (stat(copy, &st) != 0 && mkdir(copy, 0777) != 0 && errno != EEXIST) {
            fail_for(err, "make the folder", copy, errno, 0);
            goto out;
        }
        *slash = '/';
    }
    status = 0;
out:
    free(copy);
    return status;
}

/* Refuses targets that cannot or should not be replaced. *mode: permission bits of the file that is there, or 0. */
static int check_target(const char *path, mode_t *mode, struct err *err)
{
    size_t n = strlen(path);
    struct stat st;

    *mode = 0;
    if (n == 0)
        return err_set(err, "cannot write '': the name of the output is empty; give a file name");
    if (stat(path, &st) != 0) {
        if (path[n - 1] == '/')
            return err_set(err, "cannot write '%s': this names a folder; add a file name", path);
        if (lstat(path, &st) == 0 && S_ISLNK(st.st_mode))
            return err_set(err, "cannot write '%s': it is a link to a file that does not exist; remove the link", path);
        return 0; /* other troubles show when the temporary file is created */
    }
    if (S_ISDIR(st.st_mode))
        return err_set(err, "cannot write '%s': it is a folder; add a file name", path);
    if (!S_ISREG(st.st_mode))
        return err_set(err, "cannot write '%s': it is a device or a pipe; give the name of a file", path);
    if (access(path, W_OK) != 0)
        return err_set(err, "cannot write '%s': the file is write-protected; remove it or choose another name", path);
    *mode = st.st_mode & 0777;
    return 0;
}

/* Fills o->path and o->folder with absolute paths without links. */
static int resolve(struct output *o, struct err *err)
{
    char *real = realpath(o->shown, NULL), *slash;

    if (!real) { /* a new file: its folder exists by now */
        const char *last = strrchr(o->shown, '/');
        char *folder = last ? mem_strn(o->shown, (size_t)(last - o->shown) + 1, err) : mem_str(".", err);

        if (!folder)
            return -1;
        real = realpath(folder, NULL);
        free(folder);
        if (!real)
            return fail(err, o->shown, errno, 0);
        o->folder = real;
        last = last ? last + 1 : o->shown;
        o->path = mem_zero(strlen(real) + strlen(last) + 2, 1, "a path", err);
        if (o->path)
            sprintf(o->path, "%s/%s", real, last);
        return o->path ? 0 : -1;
    }
    o->path = real;
    slash = strrchr(real, '/');
    o->folder = mem_strn(real, slash == real ? 1 : (size_t)(slash - real), err);
    return o->folder ? 0 : -1;
}

static int create_temp(struct output *o, mode_t mode, struct err *err)
{
    struct temp *t = temp_take(err);

    if (!t)
        return -1;
    o->temp = t;
    for (int i = 0; i < TEMP_TRIES; i++) { /* a name may be left over from a killed process that had this number */
        int n = i == 0 ? snprintf(t->path, sizeof t->path, "%s.tmp.%ld", o->path, (long)getpid())
                       : snprintf(t->path, sizeof t->path, "%s.tmp.%ld.%d", o->path, (long)getpid(), i);

        if (n < 0 || (size_t)n >= sizeof t->path)
            return fail(err, o->shown, ENAMETOOLONG, 0);
        atomic_store(&t->state, TEMP_OPENING); /* from here on the handler removes it, were it there already or not */
        o->fd = open(t->path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, mode ? 0600 : 0666);
        if (o->fd >= 0) {
            atomic_store(&t->state, TEMP_LIVE);
            (void)flock(o->fd, LOCK_EX | LOCK_NB); /* says that the writer lives: see output_stale.h */
            if (mode)
                (void)!fchmod(o->fd, mode); /* some file systems have no modes; never wider than the old file's */
            return 0;
        }
        atomic_store(&t->state, TEMP_BUSY);
        if (errno != EEXIST)
            break;
    }
    return fail(err, o->shown, errno, 0);
}

/* Frees o; a temporary file that is still there is removed. */
static void discard(struct output *o)
{
    if (o->fd >= 0)
        output_sys.close(o->fd);
    if (o->temp) {
        if (atomic_load(&o->temp->state) == TEMP_LIVE)
            unlink(o->temp->path);
        atomic_store(&o->temp->state, TEMP_FREE);
    }
    free(o->path);
    free(o->folder);
    free(o->shown);
    free(o);
}

int output_open(struct output **out, const char *path, struct err *err)
{
    struct output *o;
    mode_t mode;

    *out = NULL;
    if (check_target(path, &mode, err) != 0 || make_folders(path, err) != 0)
        return -1;
    o = mem_zero(1, sizeof *o, "an output file", err);
    if (!o)
        return -1;
    o->fd = -1;
    o->shown = mem_str(path, err);
    if (!o->shown || resolve(o, err) != 0) {
        discard(o);
        return -1;
    }
    output_stale_remove(o->folder, strrchr(o->path, '/') + 1);
    if (create_temp(o, mode, err) != 0) {
        discard(o);
        return -1;
    }
    *out = o;
    return 0;
}

/* ---- Writing. */

void output_start(struct output *o)
{
    atomic_store(&o->unstarted, 0);
    /* Only a hint: where the system lacks it, commit's fsync does all the work. */
    (void)sync_file_range(o->fd, 0, 0, SYNC_FILE_RANGE_WRITE);
}

static void wrote(struct output *o, uint64_t n)
{
    if (atomic_fetch_add(&o->unstarted, n) + n >= START_EVERY)
        output_start(o);
}

int output_reserve(struct output *o, uint64_t nbytes, struct err *err)
{
    int r = 0;

    o->reserved = nbytes;
    if (nbytes > INT64_MAX)
        return fail(err, o->shown, EFBIG, nbytes);
    if (nbytes > 0) {
        do
            r = output_sys.fallocate(o->fd, 0, 0, (off_t)nbytes);
        while (r != 0 && errno == EINTR);
        if (r == 0)
            return 0;
        if (errno == ENOSPC || errno == EDQUOT || errno == EFBIG || errno == EIO)
            return fail(err, o->shown, errno, nbytes);
    }
    return ftruncate(o->fd, (off_t)nbytes) == 0 ? 0 : fail(err, o->shown, errno, nbytes);
}

int output_write_at(struct output *o, uint64_t at, const void *data, size_t n, struct err *err)
{
    const unsigned char *p = data;

    if (at > INT64_MAX || n > INT64_MAX - at)
        return fail(err, o->shown, EFBIG, at);
    while (n > 0) {
        ssize_t done = output_sys.pwrite(o->fd, p, n < AT_ONCE ? n : AT_ONCE, (off_t)at);

        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0)
            return fail(err, o->shown, done < 0 ? errno : EIO, o->reserved > at + n ? o->reserved : at + n);
        p += done;
        at += (uint64_t)done;
        n -= (size_t)done;
        wrote(o, (uint64_t)done);
    }
    return 0;
}

static int copy_through_buffer(struct output *o, uint64_t at, int from, const char *from_path, uint64_t from_at, uint64_t n,
                               struct err *err)
{
    unsigned char *buf = mem_new(COPY_BUFFER, "a copy buffer", err);
    int status = -1;

    while (buf && n > 0) {
        ssize_t got = pread(from, buf, n < COPY_BUFFER ? (size_t)n : COPY_BUFFER, (off_t)from_at);

        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            err_set(err, "cannot read '%s': %s", from_path, strerror(errno));
        else if (got == 0)
            err_set(err,
                    "cannot read '%s': it was cut short while being read, %" PRIu64 " bytes are missing; let the other "
                    "program finish, then start again",
                    from_path, n);
        if (got <= 0 || output_write_at(o, at, buf, (size_t)got, err) != 0)
            goto out;
        at += (uint64_t)got;
        from_at += (uint64_t)got;
        n -= (uint64_t)got;
    }
    status = buf ? 0 : -1;
out:
    free(buf);
    return status;
}

int output_copy_at(struct output *o, uint64_t at, int from, const char *from_path, uint64_t from_at, uint64_t n,
                   struct err *err)
{
    if (at > INT64_MAX || from_at > INT64_MAX || n > INT64_MAX - at || n > INT64_MAX - from_at)
        return fail(err, o->shown, EFBIG, n);
    while (n > 0) {
        off_t in = (off_t)from_at, to = (off_t)at;
        ssize_t done = output_sys.copy_file_range(from, &in, o->fd, &to, n < AT_ONCE ? (size_t)n : AT_ONCE, 0);

        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0 && (errno == ENOSPC || errno == EDQUOT))
            return fail(err, o->shown, errno, o->reserved > at + n ? o->reserved : at + n);
        if (done <= 0) /* two file systems, an old kernel, or a real fault: plain reads and writes will tell which */
            return copy_through_buffer(o, at, from, from_path, from_at, n, err);
        at += (uint64_t)done;
        from_at += (uint64_t)done;
        n -= (uint64_t)done;
        wrote(o, (uint64_t)done);
    }
    return 0;
}

/* ---- Ending. */

static int sync_fd(int fd)
{
    int r;

    do
        r = output_sys.fsync(fd);
    while (r != 0 && errno == EINTR);
    return r;
}

static int sync_folder(const struct output *o, struct err *err)
{
    int fd = open(o->folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC), status = 0;

    if (fd < 0)
        return 0; /* a folder one may write to but not list: the file itself is safe */
    if (sync_fd(fd) != 0 && errno != EINVAL && errno != ENOTSUP && errno != EBADF)
        status = err_set(err, "'%s' is written, but its folder's entry could not be forced to the disk: %s; check the disk",
                         o->shown, strerror(errno));
    close(fd);
    return status;
}

int output_commit(struct output *o, struct err *err)
{
    int status = -1, fd = o->fd;

    if (sync_fd(fd) != 0) {
        fail(err, o->shown, errno, o->reserved);
        goto out;
    }
    o->fd = -1;
    if (output_sys.close(fd) != 0 || output_sys.rename(o->temp->path, o->path) != 0) {
        fail(err, o->shown, errno, o->reserved);
        goto out;
    }
    atomic_store(&o->temp->state, TEMP_FREE);
    o->temp = NULL;
    status = sync_folder(o, err);
out:
    discard(o);
    return status;
}

void output_abort(struct output *o)
{
    if (o)
        discard(o);
}

/* ---- Small files. */

/* True for what is written to as it stands: devices, pipes, and the names of open descriptors, even where these are files,
 * since others write to them too. */
static bool is_stream(const char *path)
{
    struct stat st;

    if (strcmp(path, "/dev/stdout") == 0 || strcmp(path, "/dev/stderr") == 0 || strncmp(path, "/dev/fd/", 8) == 0)
        return true;
    return stat(path, &st) == 0 && (S_ISCHR(st.st_mode) || S_ISFIFO(st.st_mode));
}

static int stream_bytes(const char *path, const void *data, size_t n, struct err *err)
{
    int fd = open(path, O_WRONLY | O_APPEND | O_CLOEXEC), status = 0;
    const char *p = data;

    if (fd < 0)
        return fail(err, path, errno, 0);
    while (n > 0 && status == 0) {
        ssize_t done = write(fd, p, n);

        if (done < 0 && errno == EINTR)
            continue;
        if (done <= 0) {
            status = fail(err, path, done < 0 ? errno : EIO, 0);
            break;
        }
        p += done;
        n -= (size_t)done;
    }
    if (output_sys.close(fd) != 0 && status == 0)
        status = fail(err, path, errno, 0);
    return status;
}

int output_bytes(const char *path, const void *data, size_t n, struct err *err)
{
    struct output *o;

    if (is_stream(path))
        return stream_bytes(path, data, n, err);
    if (output_open(&o, path, err) != 0)
        return -1;
    if (output_reserve(o, n, err) != 0 || output_write_at(o, 0, data, n, err) != 0) {
        output_abort(o);
        return -1;
    }
    return output_commit(o, err);
}

int output_text(const char *path, const char *text, struct err *err)
{
    return output_bytes(path, text, strlen(text), err);
}

bool output_same_file(const char *a, const char *b)
{
    struct stat x, y;

    return stat(a, &x) == 0 && stat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}
