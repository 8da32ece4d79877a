/* Progress and charts: what reaches a terminal, a log, and a machine. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <fcntl.h>
#include <math.h>
#include <pty.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

#include "cmd/chart.h"
#include "cmd/progress.h"
#include "ref/base/thread.h"

static char shown[65536];

/* Runs body(run) with standard error going to `to` and collects from `from` what it printed. */
static void capture(int to, int from, void (*body)(const struct command_run *), const struct command_run *run)
{
    int saved = dup(2);
    ssize_t n;
    size_t used = 0;

    fflush(stderr);
    assert_true(dup2(to, 2) == 2);
    close(to);
    body(run);
    fflush(stderr);
    assert_true(dup2(saved, 2) == 2);
    close(saved);
    while (used + 1 < sizeof shown && (n = read(from, shown + used, sizeof shown - 1 - used)) > 0)
        used += (size_t)n;
    shown[used] = 0;
    close(from);
}

static int step_piece(void *ctx, size_t index, struct err *err)
{
    (void)index;
    (void)err;
    progress_step(ctx, 3);
    return 0;
}

static void body(const struct command_run *run)
{
    struct progress *p = progress_start(run, "extracting", 300, "modules");
    struct err err = {0};

    progress_info(p, "loss %.2f", 0.5);
    thread_for(100, step_piece, p, &err);
    command_note(run, "half way");
    command_warn(run, "look \"out\"");
    assert_true(progress_end(p) >= 0);
}

static void to_pipe(const struct command_run *run)
{
    int fd[2];

    assert_int_equal(pipe(fd), 0);
    capture(fd[1], fd[0], body, run);
}

static void json_lines(void **state)
{
    struct command_run run = {.json = true};
    char *line, *rest = shown;
    int notes = 0, ends = 0;

    (void)state;
    to_pipe(&run);
    while ((line = strtok_r(rest, "\n", &rest))) {
        json_t *j = json_loads(line, JSON_REJECT_DUPLICATES, NULL);
        const char *event = json_string_value(json_object_get(j, "event"));

        if (!event)
            fail_msg("no JSON event: %s", line);
        if (strcmp(event, "warning") == 0)
            assert_string_equal(json_string_value(json_object_get(j, "text")), "look \"out\"");
        notes += strcmp(event, "note") == 0;
        if (strcmp(event, "end") == 0) {
            ends++;
            assert_int_equal(json_integer_value(json_object_get(j, "done")), 300);
            assert_int_equal(json_integer_value(json_object_get(j, "total")), 300);
            assert_string_equal(json_string_value(json_object_get(j, "unit")), "modules");
        }
        json_decref(j);
    }
    assert_int_equal(notes, 1);
    assert_int_equal(ends, 1);
}

static void a_log(void **state)
{
    struct command_run run = {0};

    (void)state;
    to_pipe(&run);
    /* Work that takes less than the period leaves no line of progress. */
    assert_string_equal(shown, "note: half way\nlora: warning: look \"out\"\n");
}

static void quiet(void **state)
{
    struct command_run run = {.quiet = true};

    (void)state;
    to_pipe(&run);
    assert_string_equal(shown, "lora: warning: look \"out\"\n");
    assert_null(progress_start(&run, "x", 1, "y"));
    progress_step(NULL, 1);
    progress_info(NULL, "x");
    assert_true(progress_end(NULL) == 0);
}

static void terminal(void **state)
{
    struct command_run run = {0};
    struct winsize size = {.ws_col = 100, .ws_row = 25};
    int parent, child;
    const char *note, *last;

    (void)state;
    if (openpty(&parent, &child, NULL, NULL, &size) != 0)
        skip();
    setenv("TERM", "xterm", 1);
    setenv("LC_ALL", "C.UTF-8", 1);
    capture(child, parent, body, &run);
    /* The first bar comes at once, empty; the note wipes it and it is drawn again below, full; the end wipes it. */
    assert_non_null(strstr(shown, "\r\033[Kextracting  \xe2\x96\x91"));
    assert_non_null(strstr(shown, "0/300 modules"));
    note = strstr(shown, "\r\033[Knote: half way\r\n");
    assert_non_null(note);
    assert_non_null(strstr(note, "\xe2\x96\x88  300/300 modules"));
    assert_non_null(strstr(note, "loss 0.50"));
    last = strrchr(shown, '\r');
    assert_non_null(last);
    assert_string_equal(last, "\r\033[K");
}

static void bars(void **state)
{
    char b[256];

    (void)state;
    setenv("LC_ALL", "C.UTF-8", 1);
    assert_string_equal(chart_bar(b, sizeof b, 0.5, 4, true), "██░░");
    assert_string_equal(chart_bar(b, sizeof b, 1.0 / 8 + 1.0 / 64, 8, false), "█▏");
    assert_string_equal(chart_bar(b, sizeof b, 7, 2, true), "██");
    assert_string_equal(chart_bar(b, sizeof b, NAN, 2, true), "░░");
    setenv("LC_ALL", "C", 1);
    assert_string_equal(chart_bar(b, sizeof b, 0.5, 4, true), "##..");
    assert_string_equal(chart_bar(b, 3, 1, 4, true), "##");
}

static void print_to(char *buf, size_t size, void (*fn)(FILE *))
{
    FILE *f = tmpfile();
    size_t n;

    assert_non_null(f);
    fn(f);
    rewind(f);
    n = fread(buf, 1, size - 1, f);
    buf[n] = 0;
    fclose(f);
}

static void draw_rows(FILE *f)
{
    static const char *const label[] = {"IN01", "é", "MID"};
    static const double value[] = {2, 1, NAN};

    chart_rows(f, label, value, 3, 4, "%.1f");
}

static void draw_plot(FILE *f)
{
    static const double y[] = {1000, 100, 10, 1};

    chart_plot(f, y, 4, 4, 4, true);
}

static void draw_flat(FILE *f)
{
    static const double y[] = {0, 0};

    chart_plot(f, y, 2, 4, 2, true);
    chart_plot(f, y, 0, 4, 2, true);
}

static void charts(void **state)
{
    char b[2048];

    (void)state;
    setenv("LC_ALL", "C", 1);
    print_to(b, sizeof b, draw_rows);
    assert_string_equal(b, "  IN01       2.0  ####\n"
                           "  é          1.0  ##\n"
                           "  MID          -  \n");
    print_to(b, sizeof b, draw_plot);
    assert_string_equal(b, "      1e+03 |*   \n"
                           "            | *  \n"
                           "         10 |  * \n"
                           "          1 |   *\n"
                           "            +----\n"
                           "             1  4\n");
    print_to(b, sizeof b, draw_flat);
    assert_non_null(strstr(b, "+----"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(json_lines), cmocka_unit_test(a_log), cmocka_unit_test(quiet),
        cmocka_unit_test(terminal),   cmocka_unit_test(bars),  cmocka_unit_test(charts),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
