/* Folders of pictures: which there are, their captions and sizes. */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

#include "cmd/train/dataset_inside.h"
#include "ref/base/thread.h"

static const char *ending_of(const char *name)
{
    const char *dot = strrchr(name, '.');

    return dot && dot != name ? dot : name + strlen(name);
}

bool dataset_is_picture_name(const char *name)
{
    static const char *const endings[] = {".png", ".jpg", ".jpeg", ".webp", ".bmp"};

    for (size_t i = 0; i < sizeof endings / sizeof endings[0]; i++)
        if (name[0] != '.' && !strcasecmp(ending_of(name), endings[i]))
            return true;
    return false;
}

static int by_text(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Sorted names in a folder; hidden ones are left out. */
static int list_names(struct arena *arena, const char *dir, const char ***name, size_t *n, struct err *err)
{
    DIR *open = opendir(dir);
    const char **names = NULL, **kept;
    size_t cap = 0;
    int rc = -1;

    *n = 0;
    if (!open)
        return err_set(err, "cannot read the folder '%s': %s; check the path", dir, strerror(errno));
    for (struct dirent *e; (e = readdir(open));) {
        if (e->d_name[0] == '.')
            continue;
        if (mem_grow(&names, &cap, *n, sizeof *names, "names of files", err) || !(names[*n] = arena_str(arena, e->d_name, err)))
            goto out;
        ++*n;
    }
    if (*n)
        qsort(names, *n, sizeof *names, by_text);
    kept = arena_alloc(arena, (*n + 1) * sizeof *kept, err);
    if (!kept)
        goto out;
    if (*n)
        memcpy(kept, names, *n * sizeof *kept);
    *name = kept;
    rc = 0;
out:
    closedir(open);
    free(names);
    return rc;
}

int dataset_list_pictures(struct arena *arena, const char *dir, const char *const **name, size_t *n, struct err *err)
{
    const char **all;
    size_t kept = 0;

    if (list_names(arena, dir, &all, n, err))
        return -1;
    for (size_t i = 0; i < *n; i++)
        if (dataset_is_picture_name(all[i]))
            all[kept++] = all[i];
    *n = kept;
    *name = all;
    return 0;
}

const char *dataset_last_part(struct dataset *d, const char *path, struct err *err)
{
    size_t n = strlen(path), from;

    while (n > 1 && path[n - 1] == '/')
        n--;
    for (from = n; from > 0 && path[from - 1] != '/'; from--)
        ;
    return arena_printf(&d->arena, err, "%.*s", (int)(n - from), path + from);
}

int dataset_add_picture(struct dataset *d, const struct sample_picture *p, struct err *err)
{
    if (d->pictures == UINT32_MAX)
        return err_set(err, "more than %u pictures; split them over several trainings", UINT32_MAX);
    if (mem_grow(&d->picture, &d->picture_cap, d->pictures, sizeof *d->picture, "a list of pictures", err))
        return -1;
    d->picture[d->pictures++] = *p;
    return 0;
}

/* ---- One folder */

static bool is_file(const char *path)
{
    struct stat st;

    return stat(path, &st) == 0 && S_ISREG(st.st_mode);
}

/* Where the caption of a picture may be: its name with another ending, or, where a face's place ends the name (_cx_cy_w_h),
 * that name without it. NULL: nowhere. */
static const char *find_caption_file(struct dataset *d, const struct subset *s, const char *name, bool *failed, struct err *err)
{
    size_t n = (size_t)(ending_of(name) - name), parts = 1, cut = n;

    for (int pass = 0; pass < 2; pass++) {
        const char *path = arena_printf(&d->arena, err, "%s/%.*s%s", s->dir, (int)cut, name, s->extension);

        *failed = !path;
        if (!path || is_file(path))
            return path;
        for (size_t i = 0; i < n; i++)
            parts += name[i] == '_';
        if (parts < 5)
            break;
        for (int k = 0; k < 4; k++)
            while (name[--cut] != '_')
                ;
    }
    return NULL;
}

/* A common slip: the texts are there, with the other of the two usual endings. NULL: not so, or no memory. */
static const char *find_other_ending(struct dataset *d, const struct subset *s, const char *name, struct err *err)
{
    static const char *const usual[] = {".txt", ".caption"};
    size_t n = (size_t)(ending_of(name) - name);

    for (size_t i = 0; i < 2; i++) {
        const char *path = arena_printf(&d->arena, err, "%s/%.*s%s", s->dir, (int)n, name, usual[i]);

        if (path && is_file(path))
            return arena_printf(&d->arena, err, "but there is '%.*s%s'; to use it, give --caption_extension %s", (int)n, name,
                                usual[i], usual[i]);
    }
    return NULL;
}

/* Fills p->caption; *use = false when the picture cannot be used. */
static int take_caption(struct dataset *d, const struct subset *s, struct sample_picture *p, const char *name, bool *use,
                        struct err *err)
{
    bool failed = false;
    const char *path = find_caption_file(d, s, name, &failed, err), *problem = NULL;

    if (failed)
        return -1;
    p->caption = s->words ? s->words : "";
    if (!path) {
        const char *other = find_other_ending(d, s, name, err);

        if (!s->words || !*s->words)
            return dataset_find(d, FINDING_CAPTION_EMPTY, p->key,
                                other ? other : "it has no caption file, and its folder no words", err);
        return s->reg && !other ? 0 : dataset_find(d, FINDING_CAPTION_WORDS, p->key, other, err);
    }
    if (dataset_read_caption(&d->arena, path, s->wildcard, &p->caption, &problem, err))
        return -1;
    if (!problem)
        return *p->caption ? 0 : dataset_find(d, FINDING_CAPTION_EMPTY, path, "the first line of the file is empty", err);
    *use = false;
    return dataset_find(d, FINDING_CAPTION_BAD, path, problem, err);
}

int dataset_scan_subset(struct dataset *d, size_t subset, struct err *err)
{
    const struct subset *s = &d->subset[subset];
    const char *const *name;
    size_t n;

    if (dataset_list_pictures(&d->arena, s->dir, &name, &n, err))
        return -1;
    for (size_t i = 0; i < n; i++) {
        struct sample_picture p = {.subset = subset, .repeats = s->repeats};
        bool use = true;

        p.path = p.key = arena_printf(&d->arena, err, "%s/%s", s->dir, name[i]);
        if (!p.path || take_caption(d, s, &p, name[i], &use, err))
            return -1;
        if (use && dataset_add_picture(d, &p, err))
            return -1;
    }
    return 0;
}

/* ---- Sizes */

struct sizing {
    struct sample_picture *picture;
    struct answer {
        int rc, orientation;
        char why[256];
    } * answer;
};

static int read_size(void *ctx, size_t i, struct err *err)
{
    struct sizing *s = ctx;
    struct answer *a = &s->answer[i];
    struct err why;

    (void)err;
    if (s->picture[i].size[0])
        return 0;
    a->rc = picture_read_size(s->picture[i].path, s->picture[i].size, &a->orientation, &why);
    if (a->rc) { /* the message begins with "cannot read 'PATH': ", which the table says already */
        const char *detail = strstr(why.msg, "': ");

        snprintf(a->why, sizeof a->why, "%.255s", detail ? detail + 3 : why.msg);
    }
    return 0;
}

int dataset_read_sizes(struct dataset *d, struct err *err)
{
    struct sizing s = {d->picture, mem_zero(d->pictures, sizeof *s.answer, "sizes of pictures", err)};
    size_t kept = 0;
    int rc = s.answer ? thread_for(d->pictures, read_size, &s, err) : -1;

    for (size_t i = 0; i < d->pictures && !rc; i++) {
        const struct answer *a = &s.answer[i];
        const char *key = d->picture[i].key;

        if (a->rc) {
            const char *why = arena_str(&d->arena, a->why, err);

            rc = why ? dataset_find(d, FINDING_UNREADABLE, key, why, err) : -1;
            continue;
        }
        if (a->orientation > 1)
            rc = dataset_find(d, FINDING_TURNED, key, NULL, err);
        d->picture[kept++] = d->picture[i];
    }
    d->pictures = kept;
    free(s.answer);
    return rc;
}

/* ---- The folder of folders: N_words */

/* "10_sks dog": how often, and the words behind it. */
static bool split_name(const char *name, size_t *repeats, const char **words)
{
    char *end;
    unsigned long long n = name[0] >= '0' && name[0] <= '9' ? strtoull(name, &end, 10) : 0;

    if (n == 0 || n > 1000000 || (*end && *end != '_'))
        return false;
    *repeats = (size_t)n;
    *words = *end ? end + 1 : "";
    return true;
}

static int add_folder(struct dataset *d, const struct subset *like, const char *dir, const char *name, bool reg, bool *added,
                      struct err *err)
{
    struct subset s = *like;
    char *path = arena_printf(&d->arena, err, "%s/%s", dir, name);
    struct stat st;

    *added = false;
    if (!path)
        return -1;
    if (stat(path, &st) != 0 || !S_ISDIR(st.st_mode))
        return 0;
    if (!split_name(name, &s.repeats, &s.words))
        return dataset_find(d, FINDING_FOLDER, path, "its name does not begin with a number above 0 and '_', as in '10_name'",
                            err);
    s.dir = path;
    s.name = name;
    s.reg = reg;
    *added = true;
    return dataset_add_subset(d, &s, err);
}

static int add_folders(struct dataset *d, const struct subset *like, const char *dir, bool reg, size_t *added, struct err *err)
{
    const char **name;
    size_t n;

    *added = 0;
    if (list_names(&d->arena, dir, &name, &n, err))
        return -1;
    for (size_t i = 0; i < n; i++) {
        bool one;

        if (add_folder(d, like, dir, name[i], reg, &one, err))
            return -1;
        *added += one;
    }
    for (size_t i = 0; i < n && *added; i++) { /* without such folders these are the pictures: see add_plain() */
        char *path = dataset_is_picture_name(name[i]) ? arena_printf(&d->arena, err, "%s/%s", dir, name[i]) : NULL;

        if (path && dataset_find(d, FINDING_LOOSE, path, NULL, err))
            return -1;
    }
    return 0;
}

/* Pictures that lie in the folder itself, with no folder inside that has a number: often the folder is one of those that should
 * be inside, and its own name counts; else each picture comes once. */
static int add_plain(struct dataset *d, const struct subset *like, const char *dir, bool reg, struct err *err)
{
    struct subset s = *like;
    const char *const *name, *detail;
    size_t n;

    if (dataset_list_pictures(&d->arena, dir, &name, &n, err))
        return -1;
    if (n == 0)
        return err_set(
            err,
            "no folders to train on in '%s': put the pictures into a folder inside it whose name is REPEATS_words, as in "
            "'10_sks dog'",
            dir);
    s.dir = dir;
    s.reg = reg;
    s.repeats = 1;
    s.name = dataset_last_part(d, dir, err);
    if (!s.name)
        return -1;
    detail = split_name(s.name, &s.repeats, &s.words) ? "its own name says how often they come, and with which words"
                                                      : "each of them comes once in an epoch";
    return dataset_find(d, FINDING_PLAIN_FOLDER, dir, detail, err) || dataset_add_subset(d, &s, err) ? -1 : 0;
}

int dataset_scan_train(struct dataset *d, const struct subset *like, struct err *err)
{
    size_t added;

    if (add_folders(d, like, d->o.train_data_dir, false, &added, err))
        return -1;
    if (!added && add_plain(d, like, d->o.train_data_dir, false, err))
        return -1;
    if (!d->o.reg_data_dir)
        return 0;
    if (add_folders(d, like, d->o.reg_data_dir, true, &added, err))
        return -1;
    return added ? 0 : add_plain(d, like, d->o.reg_data_dir, true, err);
}
