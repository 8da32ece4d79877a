/* How much memory there is: the kernel's own files, and made-up ones with control groups of both versions. */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "cmd/memory.h"
#include "tests/lib/scratch.h"

static void put(const char *root, const char *path, const char *text)
{
    char full[600];
    FILE *f;

    snprintf(full, sizeof full, "%s%s", root, path);
    for (char *s = full + strlen(root) + 1; (s = strchr(s, '/')) != NULL; s++) {
        *s = '\0';
        mkdir(full, 0777);
        *s = '/';
    }
    f = fopen(full, "w");
    assert_non_null(f);
    fputs(text, f);
    fclose(f);
}

static void test_groups(void **state)
{
    const char *root = scratch_new();

    (void)state;
    assert_true(memory_free(root) == SIZE_MAX);
    put(root, "/proc/meminfo", "MemTotal:  9000 kB\nMemFree: 10 kB\nMemAvailable:   8000 kB\n");
    assert_int_equal(memory_free(root), 8000 * 1024);
    put(root, "/proc/self/cgroup", "9:name=systemd:/\n4:memory:/a/b\n0::/u/v\n");
    assert_int_equal(memory_free(root), 8000 * 1024);
    /* version 1: the group itself has no limit (a number near 2^63), the one above has; pages of files count as free */
    put(root, "/sys/fs/cgroup/memory/a/b/memory.limit_in_bytes", "9223372036854771712\n");
    put(root, "/sys/fs/cgroup/memory/a/b/memory.usage_in_bytes", "1\n");
    put(root, "/sys/fs/cgroup/memory/a/memory.limit_in_bytes", "7000000\n");
    put(root, "/sys/fs/cgroup/memory/a/memory.usage_in_bytes", "2000000\n");
    assert_int_equal(memory_free(root), 5000000);
    put(root, "/sys/fs/cgroup/memory/a/memory.stat", "cache 3\ntotal_inactive_file 400000\ntotal_active_file 100000\n");
    assert_int_equal(memory_free(root), 5500000);
    /* version 2: "max" is no limit; the mount itself has one, as in a container */
    put(root, "/sys/fs/cgroup/u/v/memory.max", "max\n");
    put(root, "/sys/fs/cgroup/u/v/memory.current", "5\n");
    assert_int_equal(memory_free(root), 5500000);
    put(root, "/sys/fs/cgroup/memory.max", "3000000\n");
    put(root, "/sys/fs/cgroup/memory.current", "2900000\n");
    assert_int_equal(memory_free(root), 100000);
    put(root, "/sys/fs/cgroup/memory.current", "3900000\n");
    assert_int_equal(memory_free(root), 0);
    put(root, "/sys/fs/cgroup/memory.stat", "anon 3\ninactive_file 1900000\n");
    assert_int_equal(memory_free(root), 1000000);
    scratch_remove(root);
}

static void test_check(void **state)
{
    struct command_run run = {.quiet = true};
    struct memory_need small = {.bytes = 1 << 20}, large = {.bytes = SIZE_MAX / 2};
    struct err err = {0};

    (void)state;
    assert_true(memory_free("") > 1 << 20);
    assert_true(memory_now() > 1 << 20);
    assert_true(memory_peak() >= memory_now());
    assert_true(memory_forecast(&small) >= (1 << 20) + (1 << 20));
    assert_int_equal(memory_check(&run, &small, "use a smaller --W", &err), 0);
    assert_int_equal(memory_check(&run, &large, "use a smaller --W", &err), -1);
    assert_int_equal(err.kind, ERR_FAILED);
    assert_non_null(strstr(err.msg, "not enough memory: this needs 8.00 EiB"));
    assert_non_null(strstr(err.msg, "free; use a smaller --W"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_groups), cmocka_unit_test(test_check)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
