#include "tests/lib/scratch.h"

#include <dirent.h>
#include <ftw.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static void need(int ok, const char *what, const char *path)
{
    if (ok)
        return;
    fprintf(stderr, "scratch: %s ", what);
    perror(path);
    abort();
}

const char *scratch_new(void)
{
    static char made[64][64];
    static int count;
    const char *base = getenv("TMPDIR");

    need(count < 64, "too many folders", "");
    snprintf(made[count], sizeof made[count], "%s/lora-test-XXXXXX", base && strlen(base) < 40 ? base : "/tmp");
    need(mkdtemp(made[count]) != NULL, "mkdtemp", made[count]);
    return made[count++];
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *where)
{
    (void)st, (void)type, (void)where;
    return remove(path);
}

void scratch_remove(const char *folder)
{
    need(nftw(folder, remove_one, 16, FTW_DEPTH | FTW_PHYS) == 0, "remove", folder);
}

const char *scratch_path(const char *folder, const char *name)
{
    static char paths[8][PATH_MAX];
    static int next;
    char *path = paths[next++ % 8];

    snprintf(path, PATH_MAX, "%s/%s", folder, name);
    return path;
}

unsigned char *scratch_read(const char *path, size_t *n)
{
    FILE *f = fopen(path, "rb");
    struct stat st;
    unsigned char *data;

    need(f && fstat(fileno(f), &st) == 0, "read", path);
    data = calloc((size_t)st.st_size + 1, 1);
    need(data && fread(data, 1, (size_t)st.st_size, f) == (size_t)st.st_size, "read", path);
    fclose(f);
    *n = (size_t)st.st_size;
    return data;
}

void scratch_write(const char *path, const void *data, size_t n)
{
    FILE *f = fopen(path, "wb");

    need(f && fwrite(data, 1, n, f) == n && fclose(f) == 0, "write", path);
}

size_t scratch_count(const char *folder)
{
    DIR *dir = opendir(folder);
    size_t n = 0;

    need(dir != NULL, "list", folder);
    while (readdir(dir))
        n++;
    closedir(dir);
    return n - 2;
}
