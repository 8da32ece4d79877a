/* Event files: the same bytes as TensorBoard's own classes write; what a killed or full disk leaves. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "formats/tensorboard.h"
#include "tests/lib/scratch.h"

static struct tensorboard *open_in(const char *folder, uint64_t from_step)
{
    struct tensorboard *t;
    struct err err = {0};

    if (tensorboard_open(&t, folder, 1700000000.25, from_step, &err))
        fail_msg("%s", err.msg);
    return t;
}

static void same_bytes(void **state)
{
    const char *folder = scratch_new();
    struct tensorboard *t = open_in(scratch_path(folder, "a/b"), 7);
    unsigned char picture[400], *got, *want;
    char path[512];
    size_t n, m;
    struct err err = {0};

    (void)state;
    for (size_t i = 0; i < sizeof picture; i++)
        picture[i] = (unsigned char)(i % 200);
    assert_int_equal(tensorboard_scalar(t, "loss", 0.125, 0, 1700000001.5, &err), 0);
    assert_int_equal(tensorboard_scalar(t, "lr/unet", 1e-4, 1, 1700000001.5, &err), 0);
    assert_int_equal(tensorboard_flush(t, &err), 0);
    assert_int_equal(tensorboard_scalar(t, "lr/text encoder", HUGE_VAL, 300, 1700000002.0, &err), 0);
    assert_int_equal(tensorboard_scalar(t, "loss/epoch", -2.5, (uint64_t)1 << 40, 1700000003.0, &err), 0);
    assert_int_equal(tensorboard_picture(t, "sample", picture, sizeof picture, 300, 16, 9, 1700000004.0, &err), 0);
    snprintf(path, sizeof path, "%s", tensorboard_path(t));
    assert_non_null(strstr(path, "/a/b/events.out.tfevents.1700000000.lora."));
    assert_int_equal(tensorboard_close(t, &err), 0);
    got = scratch_read(path, &n);
    want = scratch_read("golden/tensorboard.events", &m);
    assert_int_equal(n, m);
    assert_memory_equal(got, want, n);
    free(got);
    free(want);
    scratch_remove(folder);
}

/* What was flushed is in the file; what was not, is not, and not in part. */
static void killed(void **state)
{
    const char *folder = scratch_new();
    struct tensorboard *t = open_in(folder, 0);
    size_t before, after, last;
    struct err err = {0};

    (void)state;
    free(scratch_read(tensorboard_path(t), &before));
    assert_int_equal(before, 12 + 24 + 4); /* the version alone: 9 bytes of time, 15 of text */
    assert_int_equal(tensorboard_scalar(t, "loss", 1, 3, 0, &err), 0);
    free(scratch_read(tensorboard_path(t), &after));
    assert_int_equal(after, before);
    assert_int_equal(tensorboard_flush(t, &err), 0);
    free(scratch_read(tensorboard_path(t), &last));
    assert_true(last > before);
    assert_int_equal(tensorboard_close(t, &err), 0);
    scratch_remove(folder);
}

/* A second run in the folder, in the same second, gets a file of its own. */
static void two_files(void **state)
{
    const char *folder = scratch_new();
    struct tensorboard *a = open_in(folder, 0), *b = open_in(folder, 5);
    struct err err = {0};

    (void)state;
    assert_string_not_equal(tensorboard_path(a), tensorboard_path(b));
    assert_int_equal(scratch_count(folder), 2);
    assert_int_equal(tensorboard_close(a, &err), 0);
    assert_int_equal(tensorboard_close(b, &err), 0);
    assert_int_equal(tensorboard_close(NULL, &err), 0);
    scratch_remove(folder);
}

static void no_room(void **state)
{
    const char *folder = scratch_new();
    struct tensorboard *t = open_in(folder, 0);
    const struct rlimit little = {64, RLIM_INFINITY};
    struct rlimit before;
    struct err err = {0};
    char message[1024];

    (void)state;
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &before);
    snprintf(message, sizeof message, "cannot write the log '%s': File too large", tensorboard_path(t));
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &(struct rlimit){little.rlim_cur, before.rlim_max}), 0);
    for (int i = 0; i < 3; i++)
        assert_int_equal(tensorboard_scalar(t, "loss", 1, 3, 0, &err), 0);
    assert_int_equal(tensorboard_flush(t, &err), -1);
    assert_string_equal(err.msg, message);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    assert_int_equal(tensorboard_flush(t, &err), 0); /* nothing was lost */
    assert_int_equal(tensorboard_close(t, &err), 0);
    scratch_remove(folder);
}

static void bad_folder(void **state)
{
    const char *folder = scratch_new();
    char path[512], message[1024];
    struct tensorboard *t;
    struct err err = {0};

    (void)state;
    scratch_write(scratch_path(folder, "file"), "x", 1);
    snprintf(path, sizeof path, "%s/file/logs", folder);
    snprintf(message, sizeof message, "cannot make the folder '%s/file/logs' for logs: Not a directory", folder);
    assert_int_equal(tensorboard_open(&t, path, 0, 0, &err), -1);
    assert_string_equal(err.msg, message);
    assert_null(t);
    scratch_remove(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(same_bytes), cmocka_unit_test(killed),     cmocka_unit_test(two_files),
        cmocka_unit_test(no_room),    cmocka_unit_test(bad_folder),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
