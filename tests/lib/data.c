#include "tests/lib/data.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "cmd/train/dataset_options.h"

struct command_run data_quiet = {.quiet = true};
const char *data_folder;

static const struct option_row rows[] = {DATASET_OPTION_ROWS(struct data_options, data), {0}};

int data_try_open(struct data *x, const char *fmt, ...)
{
    static char line[8192];
    struct dataset_setup setup = {
        .run = &data_quiet, .seed = x->seed, .factor = 8, .channels = 4, .max_tokens = 75, .max_steps = x->max_steps};
    char *argv[64], *at;
    int argc = 0;
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(line, sizeof line, fmt, ap);
    va_end(ap);
    for (at = strtok(line, "|"); at; at = strtok(NULL, "|"))
        argv[argc++] = at;
    x->d = NULL;
    assert_int_equal(option_values_init(&x->v, rows, &x->o, &x->err), 0);
    if (option_parse(&x->v, 1, "lora test", argc, argv, &x->err))
        return -1;
    return dataset_open(&x->d, &x->o.data, &setup, &x->err);
}

void data_close(struct data *x)
{
    dataset_close(x->d);
    option_values_free(&x->v);
}

const char *data_path(const char *name)
{
    return scratch_path(data_folder, name);
}

void data_dir(const char *name)
{
    char path[4096];

    snprintf(path, sizeof path, "%s", data_path(name));
    for (char *s = path + strlen(data_folder) + 1; *s; s++)
        if (*s == '/') {
            *s = 0;
            mkdir(path, 0777);
            *s = '/';
        }
    mkdir(path, 0777);
}

void data_text(const char *name, const char *text)
{
    scratch_write(data_path(name), text, strlen(text));
}

void data_picture(const char *name, size_t w, size_t h, unsigned number)
{
    struct picture p;
    struct err err;

    assert_int_equal(picture_new(&p, w, h, 3, &err), 0);
    for (size_t i = 0; i < w * h; i++) {
        p.data[3 * i] = (uint8_t)(number * 9);
        p.data[3 * i + 1] = (uint8_t)(i % w);
        p.data[3 * i + 2] = (uint8_t)(i / w);
    }
    if (picture_write(data_path(name), &p, NULL, 0, (struct picture_format){0}, &err))
        fail_msg("%s", err.msg);
    picture_free(&p);
}

int data_setup(void **state)
{
    (void)state;
    data_folder = scratch_new();
    return 0;
}

int data_teardown(void **state)
{
    (void)state;
    scratch_remove(data_folder);
    return 0;
}

void data_small(void)
{
    data_dir("train/2_red cat");
    data_dir("train/1_dog");
    data_picture("train/2_red cat/a.png", 64, 64, 1);
    data_picture("train/2_red cat/b.png", 64, 64, 2);
    data_picture("train/2_red cat/c.png", 128, 64, 3);
    data_picture("train/1_dog/d.png", 64, 64, 4);
    data_picture("train/1_dog/e.png", 64, 64, 5);
    data_text("train/2_red cat/a.txt", "one, two, three\nsecond line\n");
    data_text("train/2_red cat/b.txt", "\xef\xbb\xbf  b1 , b2,b3,b4 \r\n");
}

void data_copy(const char *from, const char *to)
{
    size_t n;
    unsigned char *data = scratch_read(from, &n);

    scratch_write(data_path(to), data, n);
    free(data);
}

const char *data_caption(struct data *x, size_t epoch)
{
    const char *text;

    assert_int_equal(dataset_caption(x->d, 0, epoch, 0, &text, &x->err), 0);
    return text;
}
