#include "cmd/page.h"

#include <math.h>
#include <stdint.h>

#include "cmd/command.h"

void page_text(FILE *out, const char *s)
{
    for (; *s; s++)
        switch (*s) {
        case '<':
            fputs("&lt;", out);
            break;
        case '>':
            fputs("&gt;", out);
            break;
        case '&':
            fputs("&amp;", out);
            break;
        case '"':
            fputs("&quot;", out);
            break;
        case '\'':
            fputs("&#39;", out);
            break;
        default:
            fputc(*s, out);
        }
}

static const char common_style[] =
    ":root{--page:#f6f7f9;--card:#fff;--ink:#1b1f24;--soft:#5d6670;--line:#e2e6ea;--unet:#2f6fd0;--text:#c2571a;--quiet:#c9d2dc}"
    "@media(prefers-color-scheme:dark){:root{--page:#14171b;--card:#1d2126;--ink:#e8ebee;--soft:#98a2ad;--line:#30363d;"
    "--unet:#6ea4f4;--text:#ee9457;--quiet:#454e58}}"
    "*{box-sizing:border-box}body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,sans-serif}"
    "main{max-width:980px;margin:0 auto;padding:32px 20px 60px}h1{font-size:26px;margin:0;overflow-wrap:anywhere}"
    "h2{font-size:17px;margin:0 0 2px}p{margin:0 0 12px;color:var(--soft)}"
    "section{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:18px 20px;margin-top:18px}"
    ".tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(130px,1fr));gap:12px;margin-top:18px}"
    ".tile{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:12px 14px}"
    ".tile b{display:block;font-size:22px;font-weight:600}.tile span{color:var(--soft);font-size:13px}"
    "svg{width:100%;height:auto;display:block}svg text{fill:var(--soft);font-size:12px}.grid{stroke:var(--line)}"
    ".unet{stroke:var(--unet);fill:none}.text{stroke:var(--text);fill:none}.thin{stroke-width:1;opacity:.28}"
    ".key{display:inline-block;width:12px;height:3px;vertical-align:middle;margin:0 5px 0 14px}"
    ".scroll{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:13.5px}"
    "td,th{padding:4px 8px 4px 0;text-align:right;white-space:nowrap;border-top:1px solid var(--line)}"
    "th{color:var(--soft);font-weight:500;border-top:0}td:first-child,th:first-child{text-align:left}"
    "td:first-child{font-family:ui-monospace,monospace;font-size:12.5px}summary{cursor:pointer;color:var(--soft)}"
    ".bar{background:var(--quiet);border-radius:3px;height:8px;width:56px;display:inline-block;vertical-align:middle}"
    ".bar i{display:block;height:8px;border-radius:3px;background:var(--unet)}footer{color:var(--soft);font-size:13px;margin-top:22px}";

void page_begin(FILE *out, const char *title, const char *style)
{
    fputs("<!doctype html>\n<html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'><title>", out);
    page_text(out, title);
    fprintf(out, "</title><style>%s%s</style><main>\n<h1>", common_style, style ? style : "");
    page_text(out, title);
    fputs("</h1>", out);
}

void page_footer(FILE *out)
{
    fputs("<footer>", out);
}

void page_end(FILE *out)
{
    fprintf(out, "lora.c %s</footer></main></html>\n", COMMAND_VERSION);
}

void page_section(FILE *out, const char *title, const char *about)
{
    fprintf(out, "<section><h2>%s</h2>", title);
    if (about)
        fprintf(out, "<p>%s</p>", about);
}

void page_tile(FILE *out, const char *label, const char *value)
{
    fprintf(out, "<div class=tile><b>%s</b><span>%s</span></div>", value, label);
}

void page_base64(FILE *out, const void *data, size_t n)
{
    static const char digit[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const uint8_t *in = data;

    for (size_t i = 0; i < n; i += 3) {
        unsigned x = (unsigned)in[i] << 16 | (i + 1 < n ? (unsigned)in[i + 1] << 8 : 0) | (i + 2 < n ? in[i + 2] : 0);

        fputc(digit[x >> 18], out);
        fputc(digit[x >> 12 & 63], out);
        fputc(i + 1 < n ? digit[x >> 6 & 63] : '=', out);
        fputc(i + 2 < n ? digit[x & 63] : '=', out);
    }
}

void page_level(FILE *out, double y, const char *label)
{
    fprintf(out, "<line class=grid x1=%d x2=%d y1=%.1f y2=%.1f /><text x=%d y=%.1f text-anchor=end>%s</text>", PAGE_LEFT, PAGE_RIGHT,
            y, y, PAGE_LEFT - 8, y + 4, label);
}

double page_y(double share)
{
    return PAGE_BOTTOM - (PAGE_BOTTOM - PAGE_TOP) * fmin(fmax(share, 0), 1);
}

double page_x(double share)
{
    return PAGE_LEFT + (PAGE_RIGHT - PAGE_LEFT) * fmin(fmax(share, 0), 1);
}

double page_round_step(double most, int n)
{
    double unit = pow(10, floor(log10(most / n)));

    for (int i = 0; i < 3; i++) {
        static const double round[] = {1, 2, 5};

        if (round[i] * unit * n >= most * (1 - 1e-9))
            return round[i] * unit;
    }
    return 10 * unit;
}
