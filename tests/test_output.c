/* formats/output.c: every fault leaves the old file whole and no temporary file behind */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "formats/tensor_writer.h"
#include "tests/lib/scratch.h"

static const char *folder;
static struct output_sys real_sys;

static void expect_file(const char *path, const void *data, size_t n)
{
    size_t m;
    unsigned char *got = scratch_read(path, &m);

    assert_int_equal(m, n);
    assert_memory_equal(got, data, n);
    free(got);
}

static void expect_text(const char *path, const char *text)
{
    expect_file(path, text, strlen(text));
}

static void expect_error(const struct err *err, const char *part)
{
    if (err->kind != ERR_FAILED || !strstr(err->msg, part))
        fail_msg("message '%s' lacks '%s'", err->msg, part);
}

/* ---- Faults. Each replacement fails at call number fail_at with fail_errno, or splits and interrupts calls. */

static int calls, fail_at, fail_errno;

static int failing(void)
{
    if (++calls != fail_at)
        return 0;
    errno = fail_errno;
    return 1;
}

static ssize_t fault_pwrite(int fd, const void *data, size_t n, off_t at)
{
    return failing() ? -1 : pwrite(fd, data, n > 5 ? 5 : n, at); /* short writes all the way */
}

static ssize_t fault_copy(int from, off_t *in, int to, off_t *out, size_t n, unsigned flags)
{
    return failing() ? -1 : copy_file_range(from, in, to, out, n > 5 ? 5 : n, flags);
}

static int fault_fallocate(int fd, int mode, off_t at, off_t n)
{
    return failing() ? -1 : fallocate(fd, mode, at, n);
}

static int fault_fsync(int fd)
{
    return failing() ? -1 : fsync(fd);
}

static int fault_close(int fd)
{
    if (!failing())
        return close(fd);
    close(fd);
    errno = fail_errno;
    return -1;
}

static int fault_rename(const char *from, const char *to)
{
    return failing() ? -1 : rename(from, to);
}

static const struct output_sys fault_sys = {fault_pwrite, fault_copy, fault_fallocate, fault_fsync, fault_close, fault_rename};

static void arm(int at, int code)
{
    calls = 0;
    fail_at = at;
    fail_errno = code;
    output_sys = fault_sys;
}

static void test_bytes(void **state)
{
    char path[256], deep[256];
    struct err err = {0};
    struct stat st;

    (void)state;
    snprintf(path, sizeof path, "%s/report.txt", folder);
    assert_int_equal(output_text(path, "one", &err), 0);
    expect_text(path, "one");
    assert_int_equal(chmod(path, 0640), 0);
    assert_int_equal(output_text(path, "", &err), 0);
    expect_text(path, "");
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0640); /* the old file's permissions */
    assert_int_equal(output_bytes(path, "a\0b", 3, &err), 0);
    expect_file(path, "a\0b", 3);
    snprintf(deep, sizeof deep, "%s/new/folders/x", folder);
    assert_int_equal(output_text(deep, "deep", &err), 0);
    expect_text(deep, "deep");
    assert_int_equal(output_text("/dev/null", "x", &err), 0);
    assert_int_equal(stat("/dev/null", &st), 0);
    assert_true(S_ISCHR(st.st_mode));
    assert_int_equal(output_text("/dev/full", "x", &err), -1);
    expect_error(&err, "the disk is full");
    assert_int_equal(scratch_count(folder), 2);
}

/* A report to /dev/stdout goes where the shell sent it, behind what is there, and replaces nothing. */
static void test_stdout(void **state)
{
    char path[256];
    int status;

    (void)state;
    snprintf(path, sizeof path, "%s/log", folder);
    scratch_write(path, "first\n", 6);
    if (fork() == 0) {
        int fd = open(path, O_WRONLY | O_APPEND);
        struct err err = {0};

        if (fd < 0 || dup2(fd, 1) != 1 || output_text("/dev/stdout", "second\n", &err) != 0 || write(1, "third\n", 6) != 6)
            _exit(1);
        _exit(0);
    }
    wait(&status);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    expect_text(path, "first\nsecond\nthird\n");
    assert_int_equal(scratch_count(folder), 1);
}

/* While it is written, the new file is as private as the old one. */
static void test_private(void **state)
{
    char path[256], temp[300];
    struct err err = {0};
    struct output *o;
    struct stat st;

    (void)state;
    snprintf(path, sizeof path, "%s/x", folder);
    snprintf(temp, sizeof temp, "%s.tmp.%ld", path, (long)getpid());
    scratch_write(path, "x", 1);
    assert_int_equal(chmod(path, 0600), 0);
    assert_int_equal(output_open(&o, path, &err), 0);
    assert_int_equal(stat(temp, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    output_abort(o);
    assert_int_equal(stat(temp, &st), -1);
}

static void test_relative(void **state)
{
    char here[4096];
    struct err err = {0};
    struct output *o;

    (void)state;
    assert_non_null(getcwd(here, sizeof here));
    assert_int_equal(chdir(folder), 0);
    assert_int_equal(output_open(&o, "relative", &err), 0);
    assert_int_equal(output_write_at(o, 0, "here", 4, &err), 0);
    assert_int_equal(chdir(here), 0); /* the file stays where it was meant to be */
    assert_int_equal(output_commit(o, &err), 0);
    expect_text(scratch_path(folder, "relative"), "here");
}

static void test_refused(void **state)
{
    static const struct {
        const char *name, *part;
    } cases[] = {
        {"dir", "it is a folder"},          {"dir/", "it is a folder"},      {"nothing/", "names a folder"},
        {"file/x", "is not a folder"},      {"fifo", "device or a pipe"},    {"dangling", "link to a file that does not exist"},
    };
    struct output *o;
    struct err err = {0};

    (void)state;
    assert_int_equal(mkdir(scratch_path(folder, "dir"), 0700), 0);
    assert_int_equal(mkfifo(scratch_path(folder, "fifo"), 0600), 0);
    assert_int_equal(symlink("nowhere", scratch_path(folder, "dangling")), 0);
    scratch_write(scratch_path(folder, "file"), "x", 1);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        assert_int_equal(output_open(&o, scratch_path(folder, cases[i].name), &err), -1);
        assert_null(o);
        expect_error(&err, cases[i].part);
        expect_error(&err, ";");
    }
    assert_int_equal(output_open(&o, "", &err), -1);
    expect_error(&err, "is empty");
    assert_int_equal(output_open(&o, "/proc/x/y", &err), -1);
    expect_error(&err, "/proc/x");
    assert_int_equal(scratch_count(folder), 4);
}

/* What root may do anyway is tried as another user. */
static void test_no_permission(void **state)
{
    pid_t child;
    int status;

    (void)state;
    assert_int_equal(chmod(folder, 0755), 0);
    scratch_write(scratch_path(folder, "locked"), "x", 1);
    assert_int_equal(chmod(scratch_path(folder, "locked"), 0444), 0);
    child = fork();
    if (child == 0) {
        struct output *o;
        struct err err = {0};

        int root = geteuid() == 0;

        if (root && setuid(65534) != 0)
            _exit(77);
        if (output_open(&o, scratch_path(folder, "locked"), &err) == 0 || !strstr(err.msg, "write-protected"))
            _exit(1);
        if (root && (output_open(&o, scratch_path(folder, "new"), &err) == 0 || !strstr(err.msg, "no permission")))
            _exit(2);
        _exit(0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == 77)
        skip();
    assert_int_equal(WEXITSTATUS(status), 0);
}

static void test_links(void **state)
{
    char target[256], link[256];
    struct err err = {0};
    struct stat st;

    (void)state;
    snprintf(target, sizeof target, "%s/target", folder);
    snprintf(link, sizeof link, "%s/link", folder);
    scratch_write(target, "old", 3);
    assert_int_equal(symlink("target", link), 0);
    assert_int_equal(output_text(link, "new", &err), 0);
    expect_text(target, "new");
    assert_int_equal(lstat(link, &st), 0);
    assert_true(S_ISLNK(st.st_mode));
    assert_true(output_same_file(target, link));
    assert_false(output_same_file(target, folder));
    assert_false(output_same_file(target, scratch_path(folder, "none")));
}

static void test_left_over(void **state)
{
    char path[256], temp[300];
    struct output *a, *b;
    struct err err = {0};

    (void)state;
    snprintf(path, sizeof path, "%s/x", folder);
    snprintf(temp, sizeof temp, "%s.tmp.%ld", path, (long)getpid());
    scratch_write(temp, "stale", 5);
    assert_int_equal(output_open(&a, path, &err), 0);
    assert_int_equal(output_open(&b, path, &err), 0); /* the same target twice */
    assert_int_equal(output_write_at(a, 0, "a", 1, &err), 0);
    assert_int_equal(output_write_at(b, 0, "b", 1, &err), 0);
    assert_int_equal(scratch_count(folder), 3);
    assert_int_equal(output_commit(b, &err), 0);
    expect_text(path, "b");
    assert_int_equal(output_commit(a, &err), 0);
    expect_text(path, "a");
    expect_text(temp, "stale");
    assert_int_equal(scratch_count(folder), 2);
}

/* ---- A small file of tensors, written through a table of faults. */

enum { TENSORS = 3 };
static const char *const names[TENSORS] = {"a", "b", "c"};
static unsigned char content[TENSORS][40];

static int write_tensors(const char *path, const struct tensor_file *from, struct err *err)
{
    struct tensor_spec specs[TENSORS];
    struct tensor_writer *w;

    for (size_t i = 0; i < TENSORS; i++)
        specs[i] = (struct tensor_spec){names[i], DT_F32, shape_of(2, 2, 5)};
    if (tensor_writer_open(&w, path, NULL, specs, TENSORS, NULL, 0, err) != 0)
        return -1;
    if (tensor_writer_put(w, 2, content[2], err) != 0 || tensor_writer_put_part(w, 0, 0, 11, content[0], err) != 0 ||
        tensor_writer_copy(w, 1, from, tensor_file_find(from, "b"), err) != 0 ||
        tensor_writer_put_part(w, 0, 11, 29, content[0] + 11, err) != 0) {
        tensor_writer_abort(w);
        return -1;
    }
    return tensor_writer_commit(w, err);
}

/* What killed runs left is removed by the next run with that name: the process is gone and the file's lock free. A file of a process
 * that lives, of one that holds the lock (on another machine), of another name, or of no number stays. */
static void test_stale(void **state)
{
    static const char *const left[] = {"m.safetensors.tmp.%d", "m.safetensors.tmp.%d.2", "n.safetensors.tmp.%d", "m.safetensors.tmp.x%d"};
    const char *own = scratch_new();
    char path[400], dead[4][400], alive[400], locked[400];
    struct err err = {0};
    pid_t gone = fork();
    int fd;

    (void)state;
    if (gone == 0)
        _exit(0);
    assert_int_equal(waitpid(gone, NULL, 0), gone);
    for (int i = 0; i < 4; i++) {
        size_t n = (size_t)snprintf(dead[i], sizeof dead[i], "%s/", own);

        snprintf(dead[i] + n, sizeof dead[i] - n, left[i], (int)gone);
        scratch_write(dead[i], "x", 1);
    }
    snprintf(alive, sizeof alive, "%s/m.safetensors.tmp.%d", own, (int)getppid());
    scratch_write(alive, "x", 1);
    snprintf(locked, sizeof locked, "%s/m.safetensors.tmp.%d.9", own, (int)gone);
    scratch_write(locked, "x", 1);
    fd = open(locked, O_RDONLY);
    assert_int_equal(flock(fd, LOCK_EX | LOCK_NB), 0);
    snprintf(path, sizeof path, "%s/m.safetensors", own);
    assert_int_equal(output_text(path, "whole", &err), 0);
    expect_text(path, "whole");
    assert_int_equal(access(dead[0], F_OK), -1);
    assert_int_equal(access(dead[1], F_OK), -1);
    assert_int_equal(access(dead[2], F_OK), 0);
    assert_int_equal(access(dead[3], F_OK), 0);
    assert_int_equal(access(alive, F_OK), 0);
    assert_int_equal(access(locked, F_OK), 0);
    close(fd);
    assert_int_equal(output_text(path, "again", &err), 0);
    assert_int_equal(access(locked, F_OK), -1);
    scratch_remove(own);
}

/* Calls are made to fail one after the other, with every error a disk can give, until the run passes. */
static void test_every_call_fails(void **state)
{
    static const int codes[] = {ENOSPC, EIO, EDQUOT, EINTR, EXDEV, EOPNOTSUPP, EACCES};
    char source[256], path[256];
    struct tensor_file *from;
    struct err err = {0};
    unsigned char *good;
    size_t n, passed = 0, failed = 0;

    (void)state;
    for (size_t i = 0; i < sizeof content; i++)
        content[i / 40][i % 40] = (unsigned char)(i * 7);
    snprintf(source, sizeof source, "%s/source.safetensors", folder);
    snprintf(path, sizeof path, "%s/out.safetensors", folder);
    {
        struct tensor_spec spec = {"b", DT_F32, shape_of(2, 2, 5)};
        struct tensor_writer *w;

        assert_int_equal(tensor_writer_open(&w, source, NULL, &spec, 1, NULL, 0, &err), 0);
        assert_int_equal(tensor_writer_put(w, 0, content[1], &err), 0);
        assert_int_equal(tensor_writer_commit(w, &err), 0);
    }
    assert_int_equal(tensor_file_open(&from, source, &err), 0);
    assert_int_equal(write_tensors(path, from, &err), 0);
    good = scratch_read(path, &n);
    for (size_t c = 0; c < sizeof codes / sizeof codes[0]; c++)
        for (int at = 1;; at++) {
            int status;

            scratch_write(path, "old", 3);
            arm(at, codes[c]);
            status = write_tensors(path, from, &err);
            output_sys = real_sys;
            if (status == 0) {
                expect_file(path, good, n);
                passed++;
            } else if (strstr(err.msg, "folder's entry")) {
                expect_file(path, good, n); /* the last fsync, that of the folder */
                failed++;
            } else {
                expect_text(path, "old");
                expect_error(&err, "out.safetensors");
                failed++;
            }
            assert_int_equal(scratch_count(folder), 2);
            if (calls < at)
                break; /* no call was left to fail */
        }
    /* 3 x 40 bytes and the header in pieces of 5 bytes are more than 60 calls, times 7 codes */
    assert_true(failed > 200);
    assert_true(passed > 60); /* interrupted calls are made again, copies go through a buffer */
    tensor_file_close(from);
    free(good);
}

static void test_messages(void **state)
{
    struct output *o;
    struct err err = {0};
    const char *path = scratch_path(folder, "x");

    (void)state;
    assert_int_equal(output_open(&o, path, &err), 0);
    arm(1, ENOSPC);
    assert_int_equal(output_reserve(o, 123456789, &err), -1);
    output_sys = real_sys;
    expect_error(&err, "the disk is full: 123456789 bytes are needed, ");
    assert_int_equal(output_reserve(o, UINT64_MAX, &err), -1);
    expect_error(&err, "ulimit -f");
    assert_int_equal(output_write_at(o, UINT64_MAX - 1, "xx", 2, &err), -1);
    output_abort(o);
    output_abort(NULL);
    tensor_writer_abort(NULL);
    assert_int_equal(scratch_count(folder), 0);
}

static void test_copy(void **state)
{
    enum { N = 3000000, FROM = 12345 };
    unsigned char *data = malloc(N);
    char source[256], path[256];
    struct err err = {0};
    struct output *o;
    int fd;

    (void)state;
    for (size_t i = 0; i < N; i++)
        data[i] = (unsigned char)(i * 2654435761u >> 13);
    snprintf(source, sizeof source, "%s/source", folder);
    snprintf(path, sizeof path, "%s/copy", folder);
    scratch_write(source, data, N);
    fd = open(source, O_RDONLY);
    for (int how = 0; how < 2; how++) {
        assert_int_equal(output_open(&o, path, &err), 0);
        if (how == 1)
            arm(1, EXDEV); /* then through a buffer */
        output_sys.pwrite = real_sys.pwrite;
        assert_int_equal(output_copy_at(o, 7, fd, source, FROM, N - FROM, &err), 0);
        output_sys = real_sys;
        assert_int_equal(output_write_at(o, 0, "0123456", 7, &err), 0);
        output_start(o);
        assert_int_equal(output_copy_at(o, 7, fd, source, FROM, N - FROM + 1, &err), -1);
        expect_error(&err, "cut short while being read, 1 bytes are missing");
        assert_int_equal(output_commit(o, &err), 0);
        memcpy(data + FROM - 7, "0123456", 7);
        expect_file(path, data + FROM - 7, N - FROM + 7);
    }
    close(fd);
    free(data);
}

/* ---- Processes that end in the middle. */

static void write_and_end(const char *path, int sig, int ignored)
{
    struct output *o;
    struct err err = {0};

    signal(sig, SIG_DFL); /* whoever runs the test may ignore it */
    if (ignored)
        signal(ignored, SIG_IGN);
    output_catch_signals();
    if (output_open(&o, path, &err) != 0 || output_write_at(o, 0, "half", 4, &err) != 0)
        _exit(1);
    raise(sig);
    if (sig == ignored && output_commit(o, &err) == 0)
        _exit(0);
    _exit(2);
}

static void test_signals(void **state)
{
    static const int signals[] = {SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGPIPE, SIGKILL};
    char path[256];
    int status;

    (void)state;
    snprintf(path, sizeof path, "%s/x", folder);
    for (size_t i = 0; i < sizeof signals / sizeof signals[0]; i++) {
        pid_t child;

        scratch_write(path, "old", 3);
        child = fork();
        if (child == 0) {
            setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0});
            write_and_end(path, signals[i], 0);
        }
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFSIGNALED(status));
        assert_int_equal(WTERMSIG(status), signals[i]);
        expect_text(path, "old");
        assert_int_equal(scratch_count(folder), signals[i] == SIGKILL ? 2 : 1);
    }
    if (fork() == 0)
        write_and_end(path, SIGHUP, SIGHUP); /* as under nohup */
    wait(&status);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    expect_text(path, "half");
}

static void test_size_limit(void **state)
{
    int status;

    (void)state;
    if (fork() == 0) {
        struct rlimit limit = {65536, 65536};
        struct output *o;
        struct err err = {0};
        static char big[100000];

        output_catch_signals();
        if (setrlimit(RLIMIT_FSIZE, &limit) != 0 || output_open(&o, scratch_path(folder, "x"), &err) != 0)
            _exit(1);
        if (output_reserve(o, 1 << 20, &err) == 0 || !strstr(err.msg, "1048576 bytes are more than a file may have"))
            _exit(2);
        if (output_write_at(o, 0, big, sizeof big, &err) == 0 || !strstr(err.msg, "ulimit -f"))
            _exit(3);
        output_abort(o);
        _exit(0);
    }
    wait(&status);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    assert_int_equal(scratch_count(folder), 0);
}

/* A really full disk: a file system of 1 MiB in memory, seen by the child alone. */
static void test_full_disk(void **state)
{
    int status;

    (void)state;
    if (fork() == 0) {
        static char big[900000];
        char path[256];
        struct output *o;
        struct err err = {0};

        if (unshare(CLONE_NEWNS) != 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0 ||
            mount("tmpfs", folder, "tmpfs", 0, "size=1m") != 0)
            _exit(77);
        snprintf(path, sizeof path, "%s/x", folder);
        if (output_bytes(path, big, sizeof big, &err) != 0)
            _exit(1);
        if (output_open(&o, path, &err) != 0 || output_reserve(o, sizeof big, &err) == 0)
            _exit(2);
        if (!strstr(err.msg, "the disk is full: 900000 bytes are needed, ") || !strstr(err.msg, "free some space"))
            _exit(3);
        if (output_write_at(o, 0, big, sizeof big, &err) == 0 || !strstr(err.msg, "the disk is full"))
            _exit(4);
        output_abort(o);
        expect_file(path, big, sizeof big);
        _exit(scratch_count(folder) == 1 ? 0 : 5);
    }
    wait(&status);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == 77)
        skip();
    assert_int_equal(WEXITSTATUS(status), 0);
}

static int set_up(void **state)
{
    (void)state;
    folder = scratch_new();
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    output_sys = real_sys;
    scratch_remove(folder);
    return 0;
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_stdout),      TEST(test_private),
        TEST(test_bytes),       TEST(test_relative),        TEST(test_refused),         TEST(test_no_permission),
        TEST(test_links),       TEST(test_left_over),       TEST(test_stale),           TEST(test_every_call_fails), TEST(test_messages),
        TEST(test_copy),        TEST(test_signals),         TEST(test_size_limit),      TEST(test_full_disk),
    };

    real_sys = output_sys;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
