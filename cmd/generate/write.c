#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "cmd/generate/generate.h"
#include "formats/picture_info.h"

static const char *const endings[] = {"png", "jpg", "jpg", "webp"};

static const char *last_part(const char *path)
{
    const char *slash = strrchr(path, '/');

    return slash && slash[1] ? slash + 1 : path;
}

/* The last part of a path without its ending. */
static char *stem(struct arena *a, const char *path, struct err *err)
{
    char *name = arena_str(a, last_part(path), err), *dot = name ? strrchr(name, '.') : NULL;

    if (dot && dot > name)
        *dot = 0;
    return name;
}

/* The name of the source; a second picture of it in this run gets a number. */
static char *name_of_source(struct work *w, struct arena *a, const struct shot *s, const char *ending, struct err *err)
{
    char *name = stem(a, s->source->path, err),
         *path = name ? arena_printf(a, err, "%s/%s.%s", w->o->outdir, name, ending) : NULL;

    for (size_t i = 2; path; i++) {
        size_t k = 0;

        while (k < json_array_size(w->files) &&
               strcmp(json_string_value(json_object_get(json_array_get(w->files, k), "file")), path) != 0)
            k++;
        if (k == json_array_size(w->files))
            break;
        path = arena_printf(a, err, "%s/%s_%zu.%s", w->o->outdir, name, i, ending);
    }
    return path;
}

static char *file_name(struct work *w, struct arena *a, const struct shot *s, const char *stage, struct err *err)
{
    const char *ending = endings[w->o->format];
    char stamp[32] = "";
    time_t now = time(NULL);
    struct tm tm;

    if (w->o->use_original_file_name && s->source)
        return name_of_source(w, a, s, ending, err);
    if (w->o->sequential_file_name)
        return arena_printf(a, err, "%s/im_%s%06zu.%s", w->o->outdir, stage, (*stage == '0' ? w->made_first : w->made) + 1,
                            ending);
    if (localtime_r(&now, &tm))
        strftime(stamp, sizeof stamp, "%Y%m%d%H%M%S", &tm);
    return arena_printf(a, err, "%s/im_%s_%s%03zu_%llu.%s", w->o->outdir, stamp, stage, *stage == '0' ? w->made_first : w->made,
                        (unsigned long long)s->seed, ending);
}

/* How the picture was made, as texts inside it. */
static int texts_of(struct work *w, struct arena *a, const struct shot *s, struct picture_texts *out, struct err *err)
{
    const struct prompt_line *p = s->prompt;
    char *written = arena_str(a, p->text, err);
    struct picture_info info = {.negative = p->negative,
                                .sampler = w->kind->name,
                                .sampler_title = w->kind->title,
                                .model = stem(a, w->o->ckpt, err),
                                .seed = s->seed,
                                .steps = s->steps,
                                .width = s->width,
                                .height = s->height,
                                .scale = s->scale,
                                .has_negative_scale = !isnan(s->negative_scale),
                                .negative_scale = s->negative_scale,
                                .has_strength = s->source != NULL,
                                .strength = s->strength,
                                .clip_skip = w->o->clip_skip > 1 ? (unsigned)w->o->clip_skip : 0};

    for (size_t i = 0; written && i < p->loras; i++) {
        const struct prompt_lora *l = &p->lora[i];

        written = l->unet == l->text_encoder
                      ? arena_printf(a, err, "%s<lora:%s:%g>", written, l->name, l->unet)
                      : arena_printf(a, err, "%s<lora:%s:%g:%g>", written, l->name, l->text_encoder, l->unet);
    }
    info.prompt = written;
    return written && info.model ? picture_info_texts(out, &info, err) : -1;
}

static int remember(struct work *w, const char *path, const struct shot *s, struct err *err)
{
    json_t *row = json_pack("{s:s, s:s, s:s, s:I, s:I, s:I, s:I, s:f}", "file", path, "prompt", s->prompt->text,
                            "negative_prompt", s->prompt->negative, "seed", (json_int_t)s->seed, "width", (json_int_t)s->width,
                            "height", (json_int_t)s->height, "steps", (json_int_t)s->steps, "scale", s->scale);

    if (row && s->source)
        json_object_set_new(row, "source", json_string(s->source->path));
    if (!row || json_array_append_new(w->files, row))
        return err_memory(err, 0, "the result");
    return 0;
}

static int add_to_sheet(struct work *w, struct arena *a, const struct shot *s, const struct picture *pic, struct err *err)
{
    char *label = arena_printf(a, err, "%s\nseed %llu", s->prompt->text, (unsigned long long)s->seed);

    return label ? sheet_add(w->sheet, pic, label, err) : -1;
}

int write_picture(struct work *w, const struct shot *s, const struct picture *pic, const char *stage, struct err *err)
{
    struct arena a = {0};
    struct picture_texts texts = {0};
    struct picture_format format = {.quality = (int)w->o->quality};
    char *path = file_name(w, &a, s, stage, err);
    int rc = path ? texts_of(w, &a, s, &texts, err) : -1;

    if (rc == 0)
        rc = picture_write(path, pic, texts.text, texts.count, format, err);
    if (rc == 0)
        rc = remember(w, path, s, err);
    if (rc == 0 && *stage == '0') {
        w->made_first++;
    } else if (rc == 0) {
        w->made++;
        preview_picture(w->preview, pic);
        if (!w->run->json && !w->run->quiet)
            progress_line(path);
        rc = w->sheet ? add_to_sheet(w, &a, s, pic, err) : 0;
    }
    picture_texts_free(&texts);
    arena_free(&a);
    return rc;
}
