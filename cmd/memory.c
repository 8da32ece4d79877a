#include "cmd/memory.h"

#include <limits.h>
#include <stdint.h>
#include <string.h>
#include <sys/resource.h>

static size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

static FILE *open_under(const char *root, const char *path)
{
    char full[2 * PATH_MAX];

    snprintf(full, sizeof full, "%s%s", root, path);
    return fopen(full, "r");
}

/* The number behind a key ("MemAvailable:", "inactive_file"; "": the first number) in a file of lines; false: no such file,
 * line or number ("max"). */
static bool read_number(const char *root, const char *path, const char *key, unsigned long long *out)
{
    FILE *f = open_under(root, path);
    size_t n = strlen(key);
    char line[512];
    bool found = false;

    while (f && !found && fgets(line, sizeof line, f))
        found = strncmp(line, key, n) == 0 && sscanf(line + n, " %llu", out) == 1;
    if (f)
        fclose(f);
    return found;
}

/* What one control group leaves: its limit less its use, where pages of files count as free. */
static size_t left_in_group(const char *root, const char *folder, bool v2)
{
    unsigned long long limit, used, file = 0, more = 0;
    char path[PATH_MAX + 32];

    snprintf(path, sizeof path, "%s/%s", folder, v2 ? "memory.max" : "memory.limit_in_bytes");
    if (!read_number(root, path, "", &limit) || limit >= INT64_MAX / 2)
        return SIZE_MAX;
    snprintf(path, sizeof path, "%s/%s", folder, v2 ? "memory.current" : "memory.usage_in_bytes");
    if (!read_number(root, path, "", &used))
        return SIZE_MAX;
    snprintf(path, sizeof path, "%s/memory.stat", folder);
    read_number(root, path, v2 ? "inactive_file " : "total_inactive_file ", &file);
    read_number(root, path, v2 ? "active_file " : "total_active_file ", &more);
    used -= least(used, file + more);
    return used < limit ? (size_t)(limit - used) : 0;
}

/* The least that the group at mount + path and all above it leave. In a container the path may name a group that is not
 * visible: then the mount itself is the process's group. */
static size_t left_in_groups(const char *root, const char *mount, const char *path, bool v2)
{
    char folder[PATH_MAX];
    size_t left = SIZE_MAX, base = strlen(mount);
    char *slash;

    snprintf(folder, sizeof folder, "%s%s", mount, path);
    for (;;) {
        left = least(left, left_in_group(root, folder, v2));
        slash = strrchr(folder, '/');
        if (!slash || (size_t)(slash - folder) < base)
            return left;
        *slash = '\0';
    }
}

/* /proc/self/cgroup has a line "0::/path" (version 2) and lines "4:memory:/path" (version 1). */
static size_t left_by_groups(const char *root)
{
    FILE *f = open_under(root, "/proc/self/cgroup");
    char line[PATH_MAX];
    size_t left = SIZE_MAX;

    while (f && fgets(line, sizeof line, f)) {
        char *list = strchr(line, ':'), *path = list ? strchr(list + 1, ':') : NULL;

        if (!path)
            continue;
        *path++ = '\0';
        path[strcspn(path, "\n")] = '\0';
        if (!list[1])
            left = least(left, left_in_groups(root, "/sys/fs/cgroup", path, true));
        else if (strcmp(list + 1, "memory") == 0)
            left = least(left, left_in_groups(root, "/sys/fs/cgroup/memory", path, false));
    }
    if (f)
        fclose(f);
    return left;
}

static size_t left_of_address_space(void)
{
    unsigned long long kib;
    struct rlimit limit;

    if (getrlimit(RLIMIT_AS, &limit) || limit.rlim_cur == RLIM_INFINITY || !read_number("", "/proc/self/status", "VmSize:", &kib))
        return SIZE_MAX;
    return limit.rlim_cur > kib * 1024 ? (size_t)(limit.rlim_cur - kib * 1024) : 0;
}

size_t memory_free(const char *root)
{
    unsigned long long kib;
    size_t left = read_number(root, "/proc/meminfo", "MemAvailable:", &kib) ? (size_t)(kib * 1024) : SIZE_MAX;

    return least(least(left, left_by_groups(root)), left_of_address_space());
}

static size_t own_status(const char *key)
{
    unsigned long long kib;

    return read_number("", "/proc/self/status", key, &kib) ? (size_t)(kib * 1024) : 0;
}

size_t memory_now(void)
{
    return own_status("VmRSS:");
}

size_t memory_peak(void)
{
    return own_status("VmHWM:");
}

/* Stacks of threads, BLAS's buffers and the code that a first run touches: 1.4 to 2.6 MiB where it was measured. */
#define OVERHEAD ((size_t)2 << 20)

size_t memory_forecast(const struct memory_need *need)
{
    size_t sum;

    return mem_add(need->bytes, need->mapped, &sum) && mem_add(sum, memory_now() + OVERHEAD, &sum) ? sum : SIZE_MAX;
}

int memory_check(const struct command_run *run, const struct memory_need *need, const char *advice, struct err *err)
{
    size_t left = memory_free(""), peak = memory_forecast(need);
    char a[32], b[32], c[32];

    command_bytes(peak, a, sizeof a);
    command_bytes(need->mapped, b, sizeof b);
    command_bytes(left, c, sizeof c);
    if (need->bytes > left)
        return err_set(err, "not enough memory: this needs %s, %s are free; %s", command_bytes(need->bytes, a, sizeof a), c, advice);
    if (left == SIZE_MAX)
        command_note(run, "memory: %s at the peak, %s of it pages of the model's files", a, b);
    else
        command_note(run, "memory: %s at the peak, %s of it pages of the model's files; %s are free", a, b, c);
    if (need->mapped > left - need->bytes)
        command_warn(run, "the model's files (%s) do not fit into memory beside the rest and will be read again and again, which "
                          "is slow; %s", b, advice);
    return 0;
}
