/* The page about a training, as HTML. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cmd/command.h"
#include "cmd/page.h"
#include "cmd/train/report_inside.h"

enum { BINS = 430 }; /* points of a curve: two pixels each */

static const char style[] =
    ".pictures td,.pictures th{padding:4px 6px 4px 0;text-align:left;vertical-align:top;border:0;font-family:inherit;white-space:normal}"
    ".pictures td:first-child{min-width:120px;max-width:150px;color:var(--soft);font-family:inherit;font-size:13px;"
    "position:sticky;left:0;background:var(--card)}"
    ".pictures img{width:128px;height:auto;display:block;border-radius:6px;image-rendering:auto}"
    ".facts td{text-align:left;vertical-align:top;white-space:normal;overflow-wrap:anywhere}.facts td:first-child{width:34%}"
    ".tile b{font-size:19px;white-space:nowrap}.dot{fill:var(--unet);opacity:.3}"
    "pre{overflow-x:auto;font:12.5px/1.5 ui-monospace,monospace;margin:0}"
    ".epoch{stroke:var(--line);stroke-dasharray:2 4}.now{display:inline-block;padding:1px 9px;border-radius:9px;"
    "background:var(--quiet);color:var(--ink);font-size:13px;margin-right:8px}"
    ".c0{stroke:var(--unet)}.c1{stroke:var(--text)}.c2{stroke:#3a9e6e}.c3{stroke:#a05cc9}.c4{stroke:#b8860b}.c5{stroke:#c03a5b}"
    ".c6{stroke:#2aa1b3}.c7{stroke:#7a7f87}.line{fill:none;stroke-width:2.2}.band{fill:var(--unet);opacity:.16;stroke:none}";

static const char *const colour[] = {"var(--unet)", "var(--text)", "#3a9e6e", "#a05cc9", "#b8860b", "#c03a5b", "#2aa1b3", "#7a7f87"};

static const char *duration(double seconds, char *buf, size_t size)
{
    long s = lround(seconds);

    if (seconds < 60)
        snprintf(buf, size, "%.3g s", seconds);
    else if (s < 3600)
        snprintf(buf, size, "%ld min %02ld s", s / 60, s % 60);
    else
        snprintf(buf, size, "%ld h %02ld min", s / 3600, s / 60 % 60);
    return buf;
}

/* ---- loss ---- */

/* The mean loss of steps from .. to - 1 that have one; NAN when none has. */
static double mean_loss(const struct report *r, size_t from, size_t to)
{
    double sum = 0;
    size_t n = 0;

    for (size_t i = from; i < to; i++)
        if (isfinite(r->loss[i])) {
            sum += (double)r->loss[i];
            n++;
        }
    return n ? sum / (double)n : (double)NAN;
}

/* The part of the run that "at the end" means: the last epoch, or a tenth of the run. */
static size_t last_part(const struct report *r)
{
    size_t n = r->epoch_steps ? r->epoch_steps : (r->done + 9) / 10;

    return n > r->done ? r->done : n;
}

static void print_tiles(FILE *out, const struct report *r)
{
    char v[96];
    size_t n = last_part(r), skipped = 0, mine = r->done - r->first;
    double loss = n ? mean_loss(r, r->done - n, r->done) : (double)NAN, start = mean_loss(r, 0, n);

    for (size_t i = 0; i < r->done; i++)
        skipped += r->skipped[i];
    fputs("<div class=tiles>", out);
    snprintf(v, sizeof v, "%zu of %zu", r->done, r->steps);
    page_tile(out, "steps", v);
    if (isfinite(loss)) {
        snprintf(v, sizeof v, "%.4f", loss);
        page_tile(out, r->epoch_steps ? "mean loss of the last epoch" : "mean loss at the end", v);
        snprintf(v, sizeof v, "%+.1f %%", 100 * (loss / start - 1));
        page_tile(out, r->epoch_steps ? "against the first epoch" : "against the beginning", v);
    }
    if (mine && r->seconds > 0) {
        snprintf(v, sizeof v, "%.3g s", r->seconds / (double)mine);
        page_tile(out, "a step", v);
        page_tile(out, r->first ? "time, since resumed" : "time in steps", duration(r->seconds, v, sizeof v));
    }
    if (skipped) {
        snprintf(v, sizeof v, "%zu", skipped);
        page_tile(out, "steps skipped (not finite)", v);
    }
    fputs("</div>", out);
}

static double step_x(const struct report *r, double step)
{
    return page_x(r->steps > 1 ? step / (double)r->steps : 0.5);
}

static void step_axis(FILE *out, const struct report *r)
{
    double each = page_round_step(r->steps ? (double)r->steps : 1, 8);
    size_t epochs = r->epoch_steps ? (r->steps - 1) / r->epoch_steps : 0;

    if (each < 1)
        each = 1;
    for (size_t e = 1; e <= epochs && epochs <= 60; e++)
        fprintf(out, "<line class=epoch x1=%.1f x2=%.1f y1=%d y2=%d />", step_x(r, (double)(e * r->epoch_steps)),
                step_x(r, (double)(e * r->epoch_steps)), PAGE_TOP, PAGE_BOTTOM);
    for (double s = 0; s <= (double)r->steps; s += each)
        fprintf(out, "<text x=%.1f y=%d text-anchor=middle>%.0f</text>", step_x(r, s), PAGE_BOTTOM + 18, s);
    fprintf(out, "<text x=%d y=%d text-anchor=end>step</text>", PAGE_RIGHT, PAGE_BOTTOM + 36);
}

/* One point of the curve: the steps that fall on the same pixels. */
struct bin {
    double low, high, smooth;
    bool used;
};

/* The running mean has half its weight in the last fiftieth of the run, and is corrected for its beginning. */
static double fill_bins(const struct report *r, struct bin bin[BINS])
{
    double keep = pow(0.5, 1 / fmax(1, (double)r->steps / 50)), sum = 0, weight = 0, top = 0;

    for (size_t i = 0; i < r->done; i++) {
        size_t k = i * BINS / r->steps;
        double x = (double)r->loss[i];

        if (!isfinite(x))
            continue;
        sum = sum * keep + x;
        weight = weight * keep + 1;
        if (!bin[k].used)
            bin[k] = (struct bin){x, x, 0, true};
        bin[k].low = fmin(bin[k].low, x);
        bin[k].high = fmax(bin[k].high, x);
        bin[k].smooth = sum / weight;
        top = fmax(top, bin[k].smooth);
    }
    return top;
}

static void loss_levels(FILE *out, double top)
{
    double each = page_round_step(top, 5);
    char label[32];

    for (double y = 0; y <= top * (1 + 1e-9); y += each) {
        snprintf(label, sizeof label, "%.3g", y);
        page_level(out, page_y(y / top), label);
    }
}

static double bin_x(size_t k)
{
    return page_x(((double)k + 0.5) / BINS);
}

/* Every step's loss: a dot each, or where there are too many the range that each bin's have. */
static void print_each(FILE *out, const struct report *r, const struct bin bin[BINS], double top)
{
    if (r->steps <= BINS) {
        for (size_t i = 0; i < r->done; i++)
            if (isfinite(r->loss[i]))
                fprintf(out, "<circle class=dot cx=%.1f cy=%.1f r=2 />", step_x(r, (double)i), page_y((double)r->loss[i] / top));
        return;
    }
    fputs("<polygon class=band points='", out);
    for (size_t k = 0; k < BINS; k++)
        if (bin[k].used)
            fprintf(out, "%.1f,%.1f ", bin_x(k), page_y(bin[k].high / top));
    for (size_t k = BINS; k-- > 0;)
        if (bin[k].used)
            fprintf(out, "%.1f,%.1f ", bin_x(k), page_y(bin[k].low / top));
    fputs("'/>", out);
}

static void print_validation(FILE *out, const struct report *r, double top)
{
    if (r->validations == 0)
        return;
    fputs("<polyline class='line c1' points='", out);
    for (size_t i = 0; i < r->validations; i++)
        fprintf(out, "%.1f,%.1f ", step_x(r, (double)r->validated[i].step), page_y(r->validated[i].loss / top));
    fputs("'/>", out);
    for (size_t i = 0; i < r->validations; i++)
        fprintf(out, "<circle cx=%.1f cy=%.1f r=3.5 style='fill:var(--text)'><title>step %zu: %.5f</title></circle>",
                step_x(r, (double)r->validated[i].step), page_y(r->validated[i].loss / top), r->validated[i].step,
                r->validated[i].loss);
}

static void print_loss(FILE *out, const struct report *r)
{
    struct bin bin[BINS] = {{0}};
    double top = r->steps ? fill_bins(r, bin) : 0;

    page_section(out, "Loss", NULL);
    if (!(top > 0)) {
        fputs("<p>No step is done yet.</p></section>", out);
        return;
    }
    for (size_t i = 0; i < r->validations; i++)
        top = fmax(top, isfinite(r->validated[i].loss) ? r->validated[i].loss : 0);
    fputs(r->steps > BINS ? "<p>Shaded: every step's, from least to most" : "<p>Dots: every step's", out);
    fputs("<span class=key style='background:var(--unet)'></span>running mean", out);
    if (r->validations)
        fputs("<span class=key style='background:var(--text)'></span>on the pictures held back", out);
    fprintf(out, "%s. Single steps differ by their timestep and noise: only the mean tells something.</p>" PAGE_CHART,
            r->epoch_steps && r->steps > r->epoch_steps ? "; dotted: epochs" : "");
    top *= 1.3;
    loss_levels(out, top);
    step_axis(out, r);
    print_each(out, r, bin, top);
    fputs("<polyline class='line c0' points='", out);
    for (size_t k = 0; k < BINS; k++)
        if (bin[k].used)
            fprintf(out, "%.1f,%.1f ", bin_x(k), page_y(bin[k].smooth / top));
    fputs("'/>", out);
    print_validation(out, r, top);
    fputs("</svg></section>", out);
}

/* ---- rates ---- */

static void rate_line(FILE *out, const struct report *r, size_t k, double top)
{
    size_t each = r->done / BINS + 1;

    fprintf(out, "<polyline class='line c%zu' points='", k);
    for (size_t i = 0; i < r->done; i++)
        if (i % each == 0 || i + 1 == r->done)
            fprintf(out, "%.1f,%.1f ", step_x(r, (double)i), page_y((double)r->rate[i * r->rates + k] / top));
    fputs("'/>", out);
}

static void print_rates(FILE *out, const struct report *r)
{
    double top = 0, each;

    for (size_t i = 0; i < r->done * r->rates; i++)
        top = fmax(top, (double)r->rate[i]);
    if (!(top > 0))
        return;
    page_section(out, "Learning rate", NULL);
    fputs("<p>", out);
    for (size_t k = 0; k < r->rates; k++) {
        fprintf(out, "<span class=key style='background:%s'></span>", colour[k]);
        page_text(out, r->rate_name[k]);
    }
    fputs("</p>" PAGE_CHART, out);
    top *= 1.08;
    each = page_round_step(top, 4);
    for (double y = 0; y <= top; y += each) {
        char label[32];

        snprintf(label, sizeof label, "%.3g", y);
        page_level(out, page_y(y / top), label);
    }
    step_axis(out, r);
    for (size_t k = r->rates; k-- > 0;)
        rate_line(out, r, k, top);
    fputs("</svg></section>", out);
}

/* ---- norms ---- */

static void print_norms(FILE *out, const struct report *r)
{
    const struct report_norm_set *s = r->norm_sets ? &r->norms[r->norm_sets - 1] : NULL;
    double top = 0;

    if (!s || s->n == 0)
        return;
    for (size_t i = 0; i < r->norm_sets; i++)
        for (size_t k = 0; k < r->norms[i].n; k++)
            top = fmax(top, isfinite(r->norms[i].norm[k]) ? r->norms[i].norm[k] : 0);
    if (!(top > 0))
        return;
    page_section(out, "What the LoRA adds, by block",
                 "The Frobenius norm of what is added to the weights of a block, at the last save; marks: at the saves before. BASE is the "
                 "text encoder, IN and OUT count down and up the U-Net.");
    fputs(PAGE_CHART, out);
    for (double y = 0, each = page_round_step(top, 4); y <= top * (1 + 1e-9); y += each) {
        char label[32];

        snprintf(label, sizeof label, "%.3g", y);
        page_level(out, page_y(y / top), label);
    }
    for (size_t k = 0; k < s->n; k++) {
        double step = (double)(PAGE_RIGHT - PAGE_LEFT) / (double)s->n, x = PAGE_LEFT + step * ((double)k + 0.14), w = step * 0.72;

        fputs("<g><title>", out);
        page_text(out, s->block[k]);
        fprintf(out, ": %.4g</title><rect x=%.1f y=%.1f width=%.1f height=%.1f rx=3 style='fill:var(--%s)'/>", s->norm[k], x,
                page_y(s->norm[k] / top), w, PAGE_BOTTOM - page_y(s->norm[k] / top), strcmp(s->block[k], "BASE") ? "unet" : "text");
        for (size_t i = 0; i + 1 < r->norm_sets; i++)
            if (r->norms[i].n == s->n)
                fprintf(out, "<line x1=%.1f x2=%.1f y1=%.1f y2=%.1f style='stroke:var(--ink);opacity:.35'/>", x, x + w,
                        page_y(r->norms[i].norm[k] / top), page_y(r->norms[i].norm[k] / top));
        fprintf(out, "<text x=%.1f y=%d text-anchor=middle style='font-size:%dpx'>", x + w / 2, PAGE_BOTTOM + 18, s->n > 20 ? 10 : 12);
        page_text(out, s->block[k]);
        fputs("</text></g>", out);
    }
    fputs("</svg></section>", out);
}

/* ---- pictures ---- */

static int by_step(const void *a, const void *b)
{
    size_t x = *(const size_t *)a, y = *(const size_t *)b;

    return (x > y) - (x < y);
}

/* The different steps, ascending, into step [pictures]; returns how many. */
static size_t list_steps(const struct report *r, size_t *step)
{
    size_t n = 0;

    for (size_t i = 0; i < r->pictures; i++) {
        bool seen = false;

        for (size_t k = 0; k < n; k++)
            seen |= step[k] == r->picture[i].step;
        if (!seen)
            step[n++] = r->picture[i].step;
    }
    qsort(step, n, sizeof *step, by_step);
    return n;
}

static void print_cell(FILE *out, const struct report *r, const char *prompt, size_t step)
{
    fputs("<td>", out);
    for (size_t i = 0; i < r->pictures; i++) {
        const struct report_picture *p = &r->picture[i];

        if (p->step != step || strcmp(p->prompt, prompt) != 0)
            continue;
        fprintf(out, "<img alt=\"step %zu: ", step);
        page_text(out, p->prompt);
        fprintf(out, "\" src=\"data:%s;base64,", p->type);
        page_base64(out, p->data, p->size);
        fputs("\">", out);
    }
}

static void print_row(FILE *out, const struct report *r, size_t row, const size_t *step, size_t n)
{
    const char *prompt = r->picture[row].prompt;

    for (size_t i = 0; i < row; i++)
        if (strcmp(r->picture[i].prompt, prompt) == 0)
            return; /* has its row */
    fputs("<tr><td>", out);
    page_text(out, prompt);
    for (size_t k = 0; k < n; k++)
        print_cell(out, r, prompt, step[k]);
    fputs("</tr>\n", out);
}

static void print_pictures(FILE *out, const struct report *r)
{
    size_t *step, n;

    if (r->pictures == 0)
        return;
    step = malloc(r->pictures * sizeof *step);
    if (!step)
        return; /* the next save tries again */
    n = list_steps(r, step);
    page_section(out, "Samples", "The same prompt and noise in a row, as the training goes on.");
    fputs("<div class=scroll><table class=pictures><tr><th>prompt", out);
    for (size_t k = 0; k < n; k++) {
        if (step[k] == 0)
            fputs("<th>before", out);
        else if (r->epoch_steps && step[k] % r->epoch_steps == 0)
            fprintf(out, "<th>step %zu, epoch %zu", step[k], step[k] / r->epoch_steps);
        else
            fprintf(out, "<th>step %zu", step[k]);
    }
    fputs("</tr>\n", out);
    for (size_t i = 0; i < r->pictures; i++)
        print_row(out, r, i, step, n);
    fputs("</table></div></section>", out);
    free(step);
}

/* ---- tables ---- */

static void print_facts(FILE *out, const struct report *r, enum report_table table, const char *title)
{
    if (r->rows[table] == 0)
        return;
    page_section(out, title, NULL);
    fputs("<div class=scroll><table class=facts>", out);
    for (size_t i = 0; i < r->rows[table]; i++) {
        fputs("<tr><td>", out);
        page_text(out, r->row[table][i].name);
        fputs("<td>", out);
        page_text(out, r->row[table][i].value);
        fputs("</tr>\n", out);
    }
    fputs("</table></div></section>", out);
}

void report_print(const struct report *r, const char *status, FILE *out)
{
    struct err ignored = {0};
    char *history = report_history(r, &ignored);

    page_begin(out, r->title, style);
    fputs("<p><span class=now>", out);
    page_text(out, status);
    fputs("</span>", out);
    page_text(out, r->subtitle);
    fputs("</p>", out);
    print_tiles(out, r);
    print_pictures(out, r);
    print_loss(out, r);
    print_rates(out, r);
    print_norms(out, r);
    if (r->data) {
        page_section(out, "Data", NULL);
        fputs("<pre>", out);
        page_text(out, r->data);
        fputs("</pre></section>", out);
    }
    print_facts(out, r, REPORT_SETTINGS, "Settings");
    print_facts(out, r, REPORT_TIMES, "Times");
    print_facts(out, r, REPORT_MACHINE, "Machine");
    if (history)
        fprintf(out, REPORT_HISTORY_BEGIN "%s" REPORT_HISTORY_END, history);
    free(history);
    page_footer(out);
    page_end(out);
}
