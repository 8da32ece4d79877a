#include "cmd/progress.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "cmd/chart.h"

enum style { STYLE_BAR, STYLE_LINES, STYLE_JSON };

struct progress {
    const char *what, *unit;
    uint64_t total;
    enum style style;
    double start, period; /* seconds */
    _Atomic uint64_t done;
    double next;    /* when to draw again; under the lock */
    bool drawn;     /* a bar is on the screen; under the lock */
    char info[128]; /* under the lock */
};

/* The terminal is one, so the bar on it is too: progress_line() must know it. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct progress *current;

static double now(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static bool is_terminal(void)
{
    const char *term = getenv("TERM");

    return isatty(STDERR_FILENO) && term && strcmp(term, "dumb") != 0;
}

struct progress *progress_start(const struct command_run *run, const char *what, uint64_t total, const char *unit)
{
    struct progress *p;

    if (run->quiet || !(p = calloc(1, sizeof *p)))
        return NULL;
    p->what = what;
    p->unit = unit;
    p->total = total;
    p->style = run->json ? STYLE_JSON : is_terminal() ? STYLE_BAR : STYLE_LINES;
    /* A bar appears at once; a log is not told of work that takes less than its period. */
    p->period = p->style == STYLE_BAR ? 0.1 : p->style == STYLE_JSON ? 1 : 5;
    p->start = now();
    p->next = p->style == STYLE_BAR ? p->start : p->start + p->period;
    pthread_mutex_lock(&lock);
    current = p;
    pthread_mutex_unlock(&lock);
    progress_step(p, 0);
    return p;
}

static void print_json(struct progress *p, const char *event, uint64_t done, double seconds, double rate)
{
    json_t *j = json_pack("{s:s, s:s, s:I, s:s, s:f, s:f}", "event", event, "what", p->what, "done", (json_int_t)done, "unit",
                          p->unit, "seconds", seconds, "per_second", rate);
    char *text;

    if (j && p->total)
        json_object_set_new(j, "total", json_integer((json_int_t)p->total));
    if (j && p->info[0])
        json_object_set_new(j, "info", json_string(p->info));
    text = j ? json_dumps(j, JSON_COMPACT | JSON_REAL_PRECISION(6)) : NULL;
    if (text)
        fprintf(stderr, "%s\n", text);
    free(text);
    json_decref(j);
}

/* "132/264 modules", or "1.2/4.0 GiB" for bytes. */
static void print_count(const struct progress *p, uint64_t done, char *buf, size_t size)
{
    char a[32], b[32];

    if (strcmp(p->unit, "bytes") == 0)
        snprintf(buf, size, "%s%s%s", command_bytes(done, a, sizeof a), p->total ? " of " : "",
                 p->total ? command_bytes(p->total, b, sizeof b) : "");
    else if (p->total)
        snprintf(buf, size, "%llu/%llu %s", (unsigned long long)done, (unsigned long long)p->total, p->unit);
    else
        snprintf(buf, size, "%llu %s", (unsigned long long)done, p->unit);
}

static void print_rate(const struct progress *p, double rate, char *buf, size_t size)
{
    char a[32];

    if (strcmp(p->unit, "bytes") == 0)
        snprintf(buf, size, "%s/s", command_bytes((unsigned long long)rate, a, sizeof a));
    else if (rate > 0 && rate < 0.5)
        snprintf(buf, size, "%.2f s each", 1 / rate);
    else
        snprintf(buf, size, rate < 100 ? "%.1f/s" : "%.0f/s", rate);
}

/* "0:07 left", "1:02:03 left", or nothing when it cannot be told. */
static void print_left(const struct progress *p, uint64_t done, double rate, char *buf, size_t size)
{
    double left = p->total > done && rate > 0 ? (double)(p->total - done) / rate : 0;
    unsigned s;

    buf[0] = 0;
    if (p->total == 0 || rate <= 0 || left > 1e7)
        return;
    s = (unsigned)(left + 0.5);
    if (s >= 3600)
        snprintf(buf, size, "%u:%02u:%02u left", s / 3600, s / 60 % 60, s % 60);
    else
        snprintf(buf, size, "%u:%02u left", s / 60, s % 60);
}

static void clear_bar(struct progress *p)
{
    if (p->drawn)
        fputs("\r\033[K", stderr);
    p->drawn = false;
}

static void draw_bar(struct progress *p, uint64_t done, double rate)
{
    char count[96], speed[48], left[48], tail[352], bar[512];
    struct winsize w;
    size_t columns = ioctl(STDERR_FILENO, TIOCGWINSZ, &w) == 0 && w.ws_col > 20 ? w.ws_col : 80, used;

    print_count(p, done, count, sizeof count);
    print_rate(p, rate, speed, sizeof speed);
    print_left(p, done, rate, left, sizeof left);
    snprintf(tail, sizeof tail, "%s  %s%s%s%s%s", count, speed, left[0] ? "  " : "", left, p->info[0] ? "  " : "", p->info);
    used = strlen(p->what) + strlen(tail) + 4;
    if (p->total && used + 10 < columns) {
        size_t room = columns - used - 1;

        chart_bar(bar, sizeof bar, (double)done / (double)p->total, room < 40 ? room : 40, true);
        fprintf(stderr, "\r\033[K%s  %s  %s", p->what, bar, tail);
    } else {
        fprintf(stderr, "\r\033[K%.*s", (int)(columns - 1), tail);
    }
    fflush(stderr);
    p->drawn = true;
}

static void draw_line(struct progress *p, uint64_t done, double rate)
{
    char count[96], speed[48], left[48];

    print_count(p, done, count, sizeof count);
    print_rate(p, rate, speed, sizeof speed);
    print_left(p, done, rate, left, sizeof left);
    fprintf(stderr, "%s: %s", p->what, count);
    if (p->total)
        fprintf(stderr, " (%.0f%%)", 100.0 * (double)done / (double)p->total);
    fprintf(stderr, ", %s%s%s%s%s\n", speed, left[0] ? ", " : "", left, p->info[0] ? ", " : "", p->info);
}

/* Under the lock. */
static void draw(struct progress *p, double t)
{
    uint64_t done = atomic_load(&p->done);
    double seconds = t - p->start, rate = seconds > 0 ? (double)done / seconds : 0;

    if (p->style == STYLE_BAR)
        draw_bar(p, done, rate);
    else if (p->style == STYLE_LINES)
        draw_line(p, done, rate);
    else
        print_json(p, "progress", done, seconds, rate);
    p->next = t + p->period;
}

void progress_step(struct progress *p, uint64_t n)
{
    double t;

    if (!p)
        return;
    atomic_fetch_add(&p->done, n);
    /* A worker that finds somebody drawing has nothing to add. */
    if (pthread_mutex_trylock(&lock) != 0)
        return;
    t = now();
    if (t >= p->next)
        draw(p, t);
    pthread_mutex_unlock(&lock);
}

void progress_info(struct progress *p, const char *fmt, ...)
{
    va_list ap;

    if (!p)
        return;
    va_start(ap, fmt);
    pthread_mutex_lock(&lock);
    vsnprintf(p->info, sizeof p->info, fmt, ap);
    pthread_mutex_unlock(&lock);
    va_end(ap);
}

double progress_end(struct progress *p)
{
    double seconds;

    if (!p)
        return 0;
    pthread_mutex_lock(&lock);
    seconds = now() - p->start;
    clear_bar(p);
    fflush(stderr);
    if (p->style == STYLE_JSON) {
        uint64_t done = atomic_load(&p->done);

        print_json(p, "end", done, seconds, seconds > 0 ? (double)done / seconds : 0);
    }
    if (current == p)
        current = NULL;
    pthread_mutex_unlock(&lock);
    free(p);
    return seconds;
}

void progress_line(const char *line)
{
    pthread_mutex_lock(&lock);
    if (current)
        clear_bar(current);
    fprintf(stderr, "%s\n", line);
    if (current && current->style == STYLE_BAR)
        draw(current, now());
    pthread_mutex_unlock(&lock);
}
