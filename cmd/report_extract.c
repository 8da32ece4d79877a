/* The report of `lora extract`: JSON for programs, one self-contained HTML page (inline SVG, light and dark) for people. */
#include "cmd/extract.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "cmd/page.h"
#include "formats/output.h"

static bool ends_with(const char *s, const char *end)
{
    size_t n = strlen(s), m = strlen(end);

    return n > m && strcasecmp(s + n - m, end) == 0;
}

int extract_report_check(const char *path, struct err *err)
{
    if (ends_with(path, ".html") || ends_with(path, ".htm") || ends_with(path, ".json"))
        return 0;
    return err_usage(err, "--report %s: a report is a page (.html) or data (.json); name it so", path);
}

/* ---- JSON ---- */

static json_t *module_json(const struct extract_job *j)
{
    json_t *s = json_array(), *o;

    for (size_t i = 0; s && i < j->sure; i++)
        json_array_append_new(s, json_real((double)j->s[i]));
    o = json_pack("{s:s, s:s, s:s, s:i, s:i, s:i, s:f, s:f, s:f, s:f, s:s}", "module", j->path, "key", j->key, "part",
                  j->org->part == MODEL_UNET ? "unet" : "text_encoder", "out", (int)j->target.out, "in", (int)j->in, "rank",
                  (int)j->rank, "energy_kept", extract_kept(j), "norm", sqrt(j->total), "error", sqrt(j->error),
                  "error_least_possible", sqrt(j->least), "method", svd_method_name(j->method));
    if (o && j->block >= 0)
        json_object_set_new(o, "block", json_string(target_block_name(j->block)));
    if (o)
        json_object_set(o, "singular_values", s);
    json_decref(s);
    return o;
}

json_t *extract_report_json(const struct extract_plan *p, const struct extract_totals *t, const struct extract_facts *f,
                            bool modules)
{
    json_t *ranks = json_array(), *list = json_array(), *o;

    for (size_t r = 0; r < t->ranks; r++)
        json_array_append_new(ranks, json_real(t->by_rank[r]));
    o = json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:I, s:f, s:i, s:i, s:i, s:i, s:b, s:i, s:i, s:f, s:f, s:f, s:O, s:i}", "command",
                  "extract", "version", COMMAND_VERSION, "model_org", f->org, "model_tuned", f->tuned, "output", f->output, "model",
                  f->kind, "bytes", (json_int_t)f->bytes, "seconds", f->seconds, "modules", (int)t->modules, "modules_unet",
                  (int)t->part[MODEL_UNET], "modules_text_encoder", (int)t->part[MODEL_TEXT_ENCODER], "modules_equal", (int)t->equal,
                  "text_encoder_equal", p->text_equal, "rank_min", (int)t->min_rank, "rank_max", (int)t->max_rank, "energy_kept",
                  t->kept, "energy_kept_median", t->kept_median, "energy_kept_least",
                  t->modules ? extract_kept(&p->job[t->order[0]]) : 0.0, "energy_kept_by_rank", ranks, "by_rank_exact_up_to",
                  t->sure_ranks < t->ranks ? (int)t->sure_ranks : (int)t->ranks);
    if (o && t->worst_ratio > 0)
        json_object_set_new(o, "error_over_least_at_most", json_real(t->worst_ratio));
    for (size_t i = 0; modules && i < p->count; i++)
        if (p->job[i].rank)
            json_array_append_new(list, module_json(&p->job[i]));
    if (o && modules)
        json_object_set(o, "module_list", list);
    json_decref(ranks);
    json_decref(list);
    return o;
}

/* ---- HTML ---- */

static void print_tiles(FILE *out, const struct extract_totals *t, const struct extract_facts *f)
{
    char v[64];

    fputs("<div class=tiles>", out);
    snprintf(v, sizeof v, "%.2f %%", 100 * t->kept);
    page_tile(out, "energy kept, in all", v);
    snprintf(v, sizeof v, "%.2f %%", 100 * t->kept_median);
    page_tile(out, "median module", v);
    if (t->min_rank == t->max_rank)
        snprintf(v, sizeof v, "%zu", t->max_rank);
    else
        snprintf(v, sizeof v, "%zu&ndash;%zu", t->min_rank, t->max_rank);
    page_tile(out, "rank", v);
    snprintf(v, sizeof v, "%zu + %zu", t->part[MODEL_UNET], t->part[MODEL_TEXT_ENCODER]);
    page_tile(out, "modules: U-Net + text encoder", v);
    page_tile(out, "file", command_bytes(f->bytes, v, sizeof v));
    snprintf(v, sizeof v, "%.2f s", f->seconds);
    page_tile(out, "time", v);
    fputs("</div>", out);
}

static double rank_x(double rank, double most)
{
    return PAGE_LEFT + (PAGE_RIGHT - PAGE_LEFT) * (most > 1 ? log2(rank) / log2(most) : 0.5);
}

static void rank_axis(FILE *out, double most)
{
    for (double r = 1; r <= most; r *= 2)
        fprintf(out, "<text x=%.1f y=%d text-anchor=middle>%.0f</text>", rank_x(r, most), PAGE_BOTTOM + 18, r);
    fprintf(out, "<text x=%d y=%d text-anchor=end>rank</text>", PAGE_RIGHT, PAGE_BOTTOM + 34);
}

static void percent_axis(FILE *out)
{
    page_level(out, page_y(0), "0 %");
    page_level(out, page_y(0.25), "25 %");
    page_level(out, page_y(0.5), "50 %");
    page_level(out, page_y(0.75), "75 %");
    page_level(out, page_y(1), "100 %");
}

static void print_by_rank(FILE *out, const struct extract_totals *t)
{
    double most = t->ranks > 2 ? (double)t->ranks : 2;
    size_t sure = t->sure_ranks < t->ranks ? t->sure_ranks : t->ranks;

    fputs("<section><h2>Energy kept by rank</h2><p>What a LoRA with this rank in every module would keep of the difference",
          out);
    if (sure < t->ranks)
        fprintf(out, "; up to rank %zu computed, dashed: at least this much", sure);
    fputs(".</p>" PAGE_CHART, out);
    percent_axis(out);
    rank_axis(out, most);
    fputs("<polyline class=unet stroke-width=2.5 points='", out);
    for (size_t r = 0; r < sure; r++)
        fprintf(out, "%.1f,%.1f ", rank_x((double)r + 1, most), page_y(t->by_rank[r]));
    fputs("'/>", out);
    if (sure < t->ranks) {
        fputs("<polyline class=unet stroke-width=2 stroke-dasharray='5 5' points='", out);
        for (size_t r = sure ? sure - 1 : 0; r < t->ranks; r++)
            fprintf(out, "%.1f,%.1f ", rank_x((double)r + 1, most), page_y(t->by_rank[r]));
        fputs("'/>", out);
    }
    for (size_t r = 1; r <= t->ranks; r *= 2)
        fprintf(out, "<circle cx=%.1f cy=%.1f r=4 style='fill:var(--unet)'><title>rank %zu: %s%.2f %%</title></circle>",
                rank_x((double)r, most), page_y(t->by_rank[r - 1]), r, r > sure ? "at least " : "", 100 * t->by_rank[r - 1]);
    fputs("</svg></section>", out);
}

static void print_blocks(FILE *out, const struct extract_totals *t)
{
    double all = 0, widest = 0;
    int n = 0, at = 0;

    for (int b = 0; b < TARGET_BLOCKS; b++) {
        n += t->block_total[b] > 0;
        all += t->block_total[b];
        widest = fmax(widest, t->block_total[b]);
    }
    if (n == 0)
        return;
    fputs("<section><h2>Where the difference is, and what of it is kept</h2><p>Height: the block's share of the whole difference's "
          "energy. Filled: what the LoRA keeps of it. BASE is the text encoder, IN and OUT count down and up the "
          "U-Net.</p>" PAGE_CHART, out);
    for (int i = 0; i <= 4; i++) {
        char label[32];

        snprintf(label, sizeof label, "%.1f %%", 100 * widest / all * i / 4);
        page_level(out, page_y(i / 4.0), label);
    }
    for (int b = 0; b < TARGET_BLOCKS; b++) {
        double step = (double)(PAGE_RIGHT - PAGE_LEFT) / n, x = PAGE_LEFT + step * (at + 0.14), w = step * 0.72, total = t->block_total[b] / widest,
               kept = t->block_kept[b] / widest;

        if (t->block_total[b] <= 0)
            continue;
        fprintf(out, "<g><title>%s: %.2f %% of the difference, %.2f %% of it kept</title>", target_block_name(b),
                100 * t->block_total[b] / all, 100 * t->block_kept[b] / t->block_total[b]);
        fprintf(out, "<rect x=%.1f y=%.1f width=%.1f height=%.1f rx=3 style='fill:var(--quiet)'/>", x, page_y(total), w,
                PAGE_BOTTOM - page_y(total));
        fprintf(out, "<rect x=%.1f y=%.1f width=%.1f height=%.1f rx=3 style='fill:var(--%s)'/>", x, page_y(kept), w,
                PAGE_BOTTOM - page_y(kept), b == TARGET_BASE ? "text" : "unet");
        fprintf(out, "<text x=%.1f y=%d text-anchor=middle style='font-size:%dpx'>%s</text></g>", x + w / 2, PAGE_BOTTOM + 18,
                n > 20 ? 10 : 12, target_block_name(b));
        at++;
    }
    fputs("</svg></section>", out);
}

static void print_spectra(FILE *out, const struct extract_plan *p, const struct extract_totals *t)
{
    double low = 0, most = t->max_rank > 2 ? (double)t->max_rank : 2;

    for (size_t i = 0; i < t->modules; i++) {
        const struct extract_job *j = &p->job[t->order[i]];
        float last = j->s[j->rank - 1];

        if (last > 0)
            low = fmin(low, floor(log10((double)last / sqrt(j->total)) + 0.15));
    }
    low = fmax(low, -8);
    if (low > -1)
        low = -1;
    fputs("<section><h2>Singular values</h2><p>One line a module, each over the norm of its difference. Lines that fall "
          "steeply need few ranks; flat ones hold noise, or more than a LoRA can carry."
          "<span class=key style='background:var(--unet)'></span>U-Net<span class=key style='background:var(--text)'></span>text "
          "encoder</p>" PAGE_CHART, out);
    for (double d = 0; d >= low; d--) {
        char label[64];

        snprintf(label, sizeof label, d == 0 ? "1" : "10<tspan dy=-4 font-size=9>%.0f</tspan>", d);
        page_level(out, PAGE_TOP + (PAGE_BOTTOM - PAGE_TOP) * d / low, label);
    }
    rank_axis(out, most);
    for (size_t i = 0; i < t->modules; i++) {
        const struct extract_job *j = &p->job[t->order[i]];
        double next = 0;

        fprintf(out, "<polyline class='thin %s' points='", j->org->part == MODEL_UNET ? "unet" : "text");
        for (size_t r = 0; r < j->rank; r++) {
            double x = rank_x((double)r + 1, most), y = j->s[r] > 0 ? log10((double)j->s[r] / sqrt(j->total)) : low;

            if (r + 1 < j->rank && x < next)
                continue;
            next = x + 6; /* closer points do not show */
            fprintf(out, "%.0f,%.1f ", x, PAGE_TOP + (PAGE_BOTTOM - PAGE_TOP) * fmin(fmax(y, low) / low, 1));
        }
        fputs("'/>", out);
    }
    fputs("</svg></section>", out);
}

static void print_row(FILE *out, const struct extract_job *j)
{
    double kept = 100 * extract_kept(j);

    fputs("<tr><td>", out);
    page_text(out, j->path);
    fprintf(out, "</td><td>%s</td><td>%zu &times; %zu</td><td>%zu</td><td>%.3g</td><td>%.2f %%</td><td><span class=bar><i "
                 "style='width:%.1f%%'></i></span></td></tr>\n",
            j->block >= 0 ? target_block_name(j->block) : "", j->target.out, j->in, j->rank, sqrt(j->total), kept, kept);
}

static void print_table(FILE *out, const struct extract_plan *p, const struct extract_totals *t)
{
    static const char head[] = "<div class=scroll><table><tr><th>module<th>block<th>matrix<th>rank<th>norm<th>kept<th>"
                               "</tr>\n";

    fputs("<section><h2>Least kept</h2><p>Modules where the most is lost; norm: of the difference.</p>", out);
    fputs(head, out);
    for (size_t i = 0; i < t->modules && i < 12; i++)
        print_row(out, &p->job[t->order[i]]);
    fprintf(out, "</table></div><details><summary>all %zu modules</summary>%s", t->modules, head);
    for (size_t i = 0; i < p->count; i++)
        if (p->job[i].rank)
            print_row(out, &p->job[i]);
    fputs("</table></div></details></section>", out);
}

static void print_page(FILE *out, const struct extract_plan *p, const struct extract_totals *t, const struct extract_facts *f)
{
    page_begin(out, f->output, NULL);
    fputs("<p>A LoRA from ", out);
    page_text(out, f->org);
    fputs(" to ", out);
    page_text(out, f->tuned);
    fputs(" &middot; ", out);
    page_text(out, f->kind);
    fputs("</p>", out);
    if (p->text_equal)
        fputs("<p>The text encoder is the same in both models and left out.</p>", out);
    print_tiles(out, t, f);
    print_by_rank(out, t);
    print_blocks(out, t);
    print_spectra(out, p, t);
    print_table(out, p, t);
    page_footer(out);
    fputs("Energy is the sum of squares of all entries of a weight's difference. ", out);
    if (t->worst_ratio > 0)
        fprintf(out, "No module's error is more than %.6f times the least that its rank allows (proved, not estimated). ",
                t->worst_ratio);
    if (f->clamp > 0)
        fprintf(out, "All values were then cut at their %g quantile, which makes the error larger than shown. ", f->clamp);
    page_end(out);
}

int extract_report(const char *path, const struct extract_plan *p, const struct extract_totals *t,
                   const struct extract_facts *f, struct err *err)
{
    char *data = NULL;
    size_t n = 0;
    int rc = -1;

    if (ends_with(path, ".json")) {
        json_t *o = extract_report_json(p, t, f, true);

        data = o ? json_dumps(o, JSON_INDENT(1) | JSON_REAL_PRECISION(9)) : NULL;
        json_decref(o);
        if (!data)
            return err_memory(err, 0, "a report");
    } else {
        FILE *out = open_memstream(&data, &n);

        if (!out)
            return err_memory(err, 0, "a report");
        print_page(out, p, t, f);
        if (fclose(out) != 0) {
            free(data);
            return err_memory(err, n, "a report");
        }
    }
    rc = output_text(path, data, err);
    free(data);
    return rc;
}
