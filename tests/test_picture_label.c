/* Text in pictures, terminals' pictures, and colours of latents. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "formats/picture_label.h"
#include "formats/picture_terminal.h"
#include "ref/diffusion/colours.h"

/* The picture as lines of '#' and '.', blank columns on the right left out. */
static void want(const struct picture *p, size_t rows, size_t columns, const char *text)
{
    char got[4096];
    size_t n = 0;

    for (size_t y = 0; y < rows; y++) {
        for (size_t x = 0; x < columns; x++)
            got[n++] = p->data[(y * p->width + x) * 3] ? '.' : '#';
        got[n++] = '\n';
    }
    got[n] = 0;
    assert_string_equal(got, text);
}

static void white(struct picture *p, size_t w, size_t h)
{
    struct err err = {0};

    assert_int_equal(picture_new(p, w, h, 3, &err), 0);
    memset(p->data, 255, w * h * 3);
}

static void letters(void **state)
{
    struct picture p;

    (void)state;
    white(&p, 24, 13);
    assert_int_equal(picture_label(&p, 0, 0, 24, 1, "A\xc3\xb6", 0), 1);
    want(&p, 13, 12,
         "............\n"
         "............\n"
         "..#....#.#..\n"
         ".#.#...#.#..\n"
         "#...#.......\n"
         "#...#..###..\n"
         "#...#.#...#.\n"
         "#####.#...#.\n"
         "#...#.#...#.\n"
         "#...#.#...#.\n"
         "#...#..###..\n"
         "............\n"
         "............\n");
    picture_free(&p);
}

static size_t dark(const struct picture *p)
{
    size_t n = 0;

    for (size_t i = 0; i < p->width * p->height; i++)
        n += p->data[3 * i] == 0;
    return n;
}

static void lines(void **state)
{
    struct picture p;
    size_t one, two;

    (void)state;
    white(&p, 60, 60);
    assert_int_equal(picture_label(&p, 0, 0, 60, 4, "", 0), 0);
    assert_int_equal(picture_label(&p, 0, 0, 60, 4, "0123456789", 0), 1);
    assert_int_equal(picture_label(&p, 0, 0, 60, 4, "one two three", 0), 2); /* broken at the blank before three */
    assert_int_equal(picture_label(&p, 0, 0, 60, 4, "0123456789012345", 0), 2);
    assert_int_equal(picture_label(&p, 0, 0, 60, 4, "a\nb\nc", 0), 3);
    assert_int_equal(picture_label(&p, 0, 0, 60, 2, "a\nb\nc", 0), 2);
    assert_int_equal(picture_label(&p, 0, 0, 12, 2, "abc", 0), 0); /* too narrow for anything */
    picture_free(&p);
    white(&p, 60, 13);
    picture_label(&p, 0, 0, 60, 1, "iiiiiiiiii", 0);
    one = dark(&p);
    picture_free(&p);
    white(&p, 60, 13);
    picture_label(&p, 0, 0, 60, 1, "iiiiiiiiiii", 0); /* does not fit: seven letters and three dots */
    two = dark(&p);
    assert_true(two < one);
    picture_label(&p, 1000, 1000, 60, 1, "outside", 0);
    picture_label(&p, 55, 5, 60, 1, "\xe7\x8b\x90\xff", 0);
    picture_free(&p);
}

static void pasting(void **state)
{
    struct picture p, q;

    (void)state;
    white(&p, 4, 3);
    white(&q, 2, 1);
    memset(q.data, 0, 6);
    picture_paste(&p, 1, 2, &q);
    want(&p, 3, 4, "....\n....\n.##.\n");
    picture_free(&p);
    picture_free(&q);
}

static const char *const *variables;

static char *get(const char *name)
{
    size_t n = strlen(name);

    for (const char *const *v = variables; *v; v++)
        if (strncmp(*v, name, n) == 0 && (*v)[n] == '=')
            return (char *)(uintptr_t)(*v + n + 1);
    return NULL;
}

static void terminals(void **state)
{
    static const struct {
        const char *variables[4];
        enum picture_terminal kind;
    } cases[] = {
        {{NULL}, TERMINAL_NONE},
        {{"TERM=dumb", "COLORTERM=truecolor", NULL}, TERMINAL_NONE},
        {{"TERM=xterm-256color", NULL}, TERMINAL_NONE},
        {{"TERM=xterm-256color", "COLORTERM=truecolor", NULL}, TERMINAL_BLOCKS},
        {{"TERM=xterm-kitty", NULL}, TERMINAL_KITTY},
        {{"TERM=xterm-256color", "TERM_PROGRAM=iTerm.app", NULL}, TERMINAL_ITERM},
        {{"TERM=foot", NULL}, TERMINAL_SIXEL},
        {{"TERM=screen-256color", "TMUX=x", "KITTY_WINDOW_ID=1", NULL}, TERMINAL_NONE},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        variables = cases[i].variables;
        assert_int_equal(picture_terminal_guess(get), cases[i].kind);
    }
}

static void terminal_texts(void **state)
{
    struct err err = {0};
    struct picture p;
    size_t n;
    char *text;

    (void)state;
    white(&p, 2, 3);
    p.data[0] = 0;
    assert_int_equal(picture_terminal_text(TERMINAL_BLOCKS, &p, 2, &text, &n, &err), 0);
    assert_int_equal(n, 2);
    assert_string_equal(text, "\033[38;2;0;255;255m\033[48;2;255;255;255m\xe2\x96\x80"
                              "\033[38;2;255;255;255m\033[48;2;255;255;255m\xe2\x96\x80\033[0m\n"
                              "\033[38;2;255;255;255m\033[48;2;255;255;255m\xe2\x96\x80"
                              "\033[38;2;255;255;255m\033[48;2;255;255;255m\xe2\x96\x80\033[0m");
    free(text);
    /* colour 35 is 0, 5, 5; colour 215 white: the first column is 001 and 110 in bits from below, the second 111 */
    assert_int_equal(picture_terminal_text(TERMINAL_SIXEL, &p, 2, &text, &n, &err), 0);
    assert_non_null(strstr(text, "#215;2;100;100;100"));
    assert_non_null(strstr(text, "#35!1@!1?$#215!1E!1F$-\033\\"));
    free(text);
    assert_int_equal(picture_terminal_text(TERMINAL_KITTY, &p, 4, &text, &n, &err), 0);
    assert_int_equal(n, 3);
    assert_int_equal(strncmp(text, "\033_Ga=T,f=100,q=2,C=1,i=7,p=1,c=4,r=3,m=0;iVBORw0KGgo", 49),
                     0); /* base64 of PNG's signature */
    free(text);
    assert_int_equal(picture_terminal_text(TERMINAL_ITERM, &p, 4, &text, &n, &err), 0);
    assert_non_null(strstr(text, ":iVBORw0KGgo"));
    free(text);
    picture_free(&p);
}

/* Colours that are a weighted sum are found again: f32 least squares of well-conditioned examples. */
static void fitted(void **state)
{
    static const float weight[5][3] = {{0.5f, -1, 0}, {0, 0.25f, 1}, {1, 1, 1}, {-0.5f, 0.125f, 0}, {0.1f, 0.2f, 0.3f}};
    enum { N = 40 };
    float latents[N * 4], rgb[N * 3], got[N * 3];
    struct err err = {0};
    struct colours c;

    (void)state;
    for (size_t i = 0; i < N * 4; i++)
        latents[i] = sinf((float)(i * i % 101));
    for (size_t i = 0; i < N; i++)
        for (size_t j = 0; j < 3; j++) {
            rgb[i * 3 + j] = weight[4][j];
            for (size_t k = 0; k < 4; k++)
                rgb[i * 3 + j] += weight[k][j] * latents[i * 4 + k];
        }
    assert_int_equal(colours_fit(&c, latents, rgb, N, 4, &err), 0);
    colours_of(&c, latents, got, N);
    for (size_t i = 0; i < N * 3; i++)
        assert_true(fabsf(got[i] - rgb[i]) < 100 * 0x1p-24f * 4); /* condition below 100, values below 4 */
    memset(latents, 0, sizeof latents);
    assert_int_equal(colours_fit(&c, latents, rgb, N, 4, &err), -1);
    assert_string_equal(err.msg, "cannot fit colours to latents: they say too little (rank 1 of 5)");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(letters),   cmocka_unit_test(lines),          cmocka_unit_test(pasting),
        cmocka_unit_test(terminals), cmocka_unit_test(terminal_texts), cmocka_unit_test(fitted),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
