#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/stat.h>

#include "cmd/generate/generate.h"
#include "formats/picture_resize.h"

/* ---- Prompts inside pictures ---- */

/* The prompt of "parameters" as web UIs write it: lines of prompt, "Negative prompt: ...", "Steps: ...". */
static char *from_parameters(struct arena *a, const char *text, struct err *err)
{
    static const char negative[] = "\nNegative prompt: ", steps[] = "\nSteps: ";
    const char *n = strstr(text, negative), *s = strstr(text, steps);
    size_t length = n ? (size_t)(n - text) : s ? (size_t)(s - text) : strlen(text);

    if (!n)
        return arena_printf(a, err, "%.*s", (int)length, text);
    n += sizeof negative - 1;
    return arena_printf(a, err, "%.*s --n %.*s", (int)length, text, s > n ? (int)(s - n) : (int)strlen(n), n);
}

/* *out: the picture's own prompt as a line, or NULL. Line breaks become blanks. */
static int own_prompt(const struct picture *p, char **out, struct err *err)
{
    const char *prompt = picture_find_text(p, "prompt"), *negative = picture_find_text(p, "negative-prompt"),
               *parameters = picture_find_text(p, "parameters");
    struct arena a = {0};
    char *line = NULL;
    int rc = 0;

    *out = NULL;
    if (!prompt && !parameters)
        return 0;
    if (!prompt)
        line = from_parameters(&a, parameters, err);
    else if (negative && *negative)
        line = arena_printf(&a, err, "%s --n %s", prompt, negative);
    else
        line = arena_str(&a, prompt, err);
    for (char *c = line; c && *c; c++)
        if (*c == '\n' || *c == '\r')
            *c = ' ';
    rc = line && (*out = mem_str(line, err)) ? 0 : -1;
    arena_free(&a);
    return rc;
}

/* ---- Finding them ---- */

static int read_upright(const char *path, struct picture *p, struct err *err)
{
    if (picture_read(p, path, err))
        return -1;
    if (picture_upright(p, err)) {
        picture_free(p);
        return -1;
    }
    picture_drop_alpha(p);
    return 0;
}

static int add(struct sources *s, const char *path, struct err *err)
{
    struct picture p;
    struct source *item;
    int rc;

    if (mem_grow(&s->item, &s->cap, s->count, sizeof *s->item, "pictures", err) || read_upright(path, &p, err))
        return -1;
    item = &s->item[s->count];
    *item = (struct source){.path = mem_str(path, err), .width = p.width, .height = p.height};
    rc = item->path ? own_prompt(&p, &item->prompt, err) : -1;
    picture_free(&p);
    if (rc)
        free(item->path);
    else
        s->count++;
    return rc;
}

static bool is_picture(const char *name)
{
    static const char *const endings[] = {".png", ".jpg", ".jpeg", ".webp", ".bmp"};
    const char *dot = strrchr(name, '.');

    for (size_t i = 0; dot && i < sizeof endings / sizeof *endings; i++)
        if (strcasecmp(dot, endings[i]) == 0)
            return true;
    return false;
}

static int add_folder(struct sources *s, const char *path, struct err *err)
{
    struct dirent **entry = NULL;
    struct arena a = {0};
    int n = scandir(path, &entry, NULL, alphasort), rc = 0;

    if (n < 0)
        return err_set(err, "cannot read '%s': %s", path, strerror(errno));
    for (int i = 0; i < n; i++) {
        if (rc == 0 && is_picture(entry[i]->d_name)) {
            char *full = arena_printf(&a, err, "%s/%s", path, entry[i]->d_name);

            rc = full ? add(s, full, err) : -1;
        }
        free(entry[i]);
    }
    free(entry);
    arena_free(&a);
    return rc;
}

int sources_open(struct sources *s, const char *path, const char *what, struct err *err)
{
    struct stat st;
    int rc;

    if (stat(path, &st))
        return err_set(err, "cannot read '%s': %s; %s is a picture or a folder of pictures", path, strerror(errno), what);
    rc = S_ISDIR(st.st_mode) ? add_folder(s, path, err) : add(s, path, err);
    if (rc == 0 && !s->count)
        rc = err_set(err, "there is no picture in '%s'; %s takes .png, .jpg, .jpeg, .webp and .bmp", path, what);
    return rc;
}

void sources_close(struct sources *s)
{
    for (size_t i = 0; i < s->count; i++) {
        free(s->item[i].path);
        free(s->item[i].prompt);
    }
    free(s->item);
    *s = (struct sources){0};
}

/* ---- Using them ---- */

int source_picture(const struct source *s, size_t width, size_t height, struct picture *out, struct err *err)
{
    if (read_upright(s->path, out, err))
        return -1;
    if ((out->width != width || out->height != height) && picture_resize(out, width, height, PICTURE_LANCZOS, err)) {
        picture_free(out);
        return -1;
    }
    return 0;
}

int source_grey(const struct source *s, size_t width, size_t height, struct picture *out, struct err *err)
{
    if (source_picture(s, width, height, out, err))
        return -1;
    picture_make_grey(out);
    return 0;
}
