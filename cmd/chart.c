#include "cmd/chart.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/ioctl.h>
#include <unistd.h>

bool chart_utf8(void)
{
    static const char *const names[] = {"LC_ALL", "LC_CTYPE", "LANG"};

    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const char *v = getenv(names[i]);

        if (v && *v)
            return strcasestr(v, "utf-8") || strcasestr(v, "utf8");
    }
    return false;
}

size_t chart_columns(FILE *out, size_t most)
{
    struct winsize w;
    size_t columns = 80;

    if (isatty(fileno(out)) && ioctl(fileno(out), TIOCGWINSZ, &w) == 0 && w.ws_col > 20)
        columns = w.ws_col;
    return columns < most ? columns : most;
}

const char *chart_bar(char *buf, size_t size, double share, size_t width, bool rest)
{
    static const char *const part[] = {"", "▏", "▎", "▍", "▌", "▋", "▊", "▉"};
    bool utf8 = chart_utf8();
    size_t eighths, full, used = 0;

    share = !(share > 0) ? 0 : share > 1 ? 1 : share;
    eighths = (size_t)(share * 8 * (double)width + 0.5);
    full = eighths / 8;
    buf[0] = 0;
    for (size_t i = 0; i < width; i++) {
        const char *c = i < full ? (utf8 ? "█" : "#") : i == full && utf8 ? part[eighths % 8] : "";

        if (!*c)
            c = rest ? (utf8 ? "░" : ".") : "";
        if (used + strlen(c) + 1 > size)
            break;
        memcpy(buf + used, c, strlen(c) + 1);
        used += strlen(c);
    }
    return buf;
}

/* Columns that a UTF-8 text takes, where every character takes one. */
static size_t text_width(const char *s)
{
    size_t n = 0;

    for (; *s; s++)
        n += ((unsigned char)*s & 0xc0) != 0x80;
    return n;
}

void chart_rows(FILE *out, const char *const *label, const double *value, size_t n, size_t width, const char *format)
{
    size_t label_width = 0;
    double top = 0;
    char bar[1024], number[64];

    for (size_t i = 0; i < n; i++) {
        size_t w = text_width(label[i]);

        label_width = w > label_width ? w : label_width;
        if (value[i] > top)
            top = value[i];
    }
    for (size_t i = 0; i < n; i++) {
        size_t pad = label_width - text_width(label[i]);

        if (isnan(value[i]))
            snprintf(number, sizeof number, "-");
        else {
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
            snprintf(number, sizeof number, format, value[i]);
#pragma GCC diagnostic pop
        }
        chart_bar(bar, sizeof bar, top > 0 ? value[i] / top : 0, width, false);
        fprintf(out, "  %s%*s  %8s  %s\n", label[i], (int)pad, "", number, bar);
    }
}

/* Sub-cell dots: a braille character holds 2 x 4 dots, ASCII one '*'. */
struct canvas {
    size_t width, height, dx, dy; /* in characters; dots in one */
    unsigned char *cell;          /* [height, width], braille bits */
};

static void canvas_dot(struct canvas *c, size_t x, size_t y)
{
    static const unsigned char bit[4][2] = {{0x01, 0x08}, {0x02, 0x10}, {0x04, 0x20}, {0x40, 0x80}};

    if (x < c->width * c->dx && y < c->height * c->dy)
        c->cell[(y / c->dy) * c->width + x / c->dx] |= bit[y % c->dy][x % c->dx];
}

static void canvas_put(FILE *out, unsigned char bits, bool utf8)
{
    if (!utf8 || !bits)
        fputc(bits ? '*' : ' ', out);
    else /* U+2800 + bits */
        fprintf(out, "%c%c%c", 0xe2, 0xa0 + (bits >> 6), 0x80 + (bits & 0x3f));
}

static double scale_y(double y, bool log_y, double floor_y)
{
    return log_y ? log10(y > floor_y ? y : floor_y) : y;
}

void chart_plot(FILE *out, const double *y, size_t n, size_t width, size_t height, bool log_y)
{
    bool utf8 = chart_utf8();
    struct canvas c = {.width = width, .height = height, .dx = utf8 ? 2 : 1, .dy = utf8 ? 4 : 1};
    double top = 0, least = INFINITY, floor_y, lo, hi;

    for (size_t i = 0; i < n; i++) {
        top = y[i] > top ? y[i] : top;
        least = y[i] > 0 && y[i] < least ? y[i] : least;
    }
    if (n == 0 || width == 0 || height < 2 || !(c.cell = calloc(width * height, 1)))
        return;
    /* Six decades show all that a float32 spectrum can say. */
    floor_y = top > 0 ? fmax(least, top * 1e-6) : 1;
    hi = scale_y(top > 0 ? top : 1, log_y, floor_y);
    lo = log_y ? log10(floor_y) : 0;
    if (!(hi > lo))
        lo = hi - 1;
    for (size_t x = 0; x < width * c.dx; x++) {
        size_t i = n == 1 ? 0 : (size_t)((double)x * (double)(n - 1) / (double)(width * c.dx - 1) + 0.5);
        double v = (scale_y(y[i], log_y, floor_y) - lo) / (hi - lo);

        canvas_dot(&c, x, (size_t)((1 - v) * (double)(height * c.dy - 1) + 0.5));
    }
    for (size_t r = 0; r < height; r++) {
        double v = hi - (hi - lo) * (double)r / (double)(height - 1);

        if (r == 0 || r == height - 1 || r == height / 2)
            fprintf(out, "  %9.3g %s", log_y ? pow(10, v) : v, utf8 ? "┤" : "|");
        else
            fprintf(out, "  %9s %s", "", utf8 ? "│" : "|");
        for (size_t x = 0; x < width; x++)
            canvas_put(out, c.cell[r * width + x], utf8);
        fputc('\n', out);
    }
    fprintf(out, "  %9s %s", "", utf8 ? "└" : "+");
    for (size_t x = 0; x < width; x++)
        fputs(utf8 ? "─" : "-", out);
    fprintf(out, "\n  %9s  1%*zu\n", "", (int)width - 1, n);
    free(c.cell);
}
