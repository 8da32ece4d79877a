/* lora info's text for people, printed from its JSON value. */
#include <stdarg.h>
#include <string.h>

#include "cmd/chart.h"
#include "cmd/command.h"
#include "cmd/info.h"

enum { LABEL = 14, SHORT_KEYS = 12, SHORT_VALUE = 64, MOST_UNKNOWN = 5, LARGEST = 5 };

static json_int_t number(const json_t *o, const char *key)
{
    return json_integer_value(json_object_get(o, key));
}

static const char *text(const json_t *o, const char *key)
{
    const char *s = json_string_value(json_object_get(o, key));

    return s ? s : "";
}

/* Text out of a file: control characters could steer the terminal, so they become '?'; cut after `most` bytes at the end of a
 * character. */
static void put_clean(FILE *out, const char *s, size_t most)
{
    size_t n = 0;

    for (; s[n] && (n < most || ((unsigned char)s[n] & 0xc0) == 0x80); n++) {
        unsigned char c = (unsigned char)s[n];

        /* U+0080 .. U+009F, the C1 controls, are 0xc2 0x80 .. 0xc2 0x9f. */
        if (c < 0x20 || c == 0x7f || (c == 0xc2 && (unsigned char)s[n + 1] >= 0x80 && (unsigned char)s[n + 1] < 0xa0))
            fputc('?', out);
        else if (!(n > 0 && (unsigned char)s[n - 1] == 0xc2 && c >= 0x80 && c < 0xa0))
            fputc(c, out);
    }
    if (s[n])
        fputs("...", out);
}

static void row(FILE *out, const char *label, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

static void row(FILE *out, const char *label, const char *fmt, ...)
{
    va_list ap;

    fprintf(out, "  %-*s ", LABEL, label);
    va_start(ap, fmt);
    vfprintf(out, fmt, ap);
    va_end(ap);
    fputc('\n', out);
}

static void print_file(const json_t *info, FILE *out)
{
    char size[32];
    const char *key;
    json_t *n, *dtypes = json_object_get(info, "dtypes");
    size_t i = 0;

    fprintf(out, "  %-*s %s, %s, %lld tensor%s (", LABEL, "file", text(info, "format"),
            command_bytes((unsigned long long)number(info, "bytes"), size, sizeof size), (long long)number(info, "tensors"),
            number(info, "tensors") == 1 ? "" : "s");
    json_object_foreach(dtypes, key, n)
    {
        if (json_object_size(dtypes) == 1)
            fprintf(out, "%s", key);
        else
            fprintf(out, "%s%lld %s", i++ ? ", " : "", (long long)json_integer_value(n), key);
    }
    fputs(number(info, "files") > 1 ? ") in " : ")\n", out);
    if (number(info, "files") > 1)
        fprintf(out, "%lld files\n", (long long)number(info, "files"));
}

static const char *print_count(json_int_t n, char *buf, size_t size)
{
    if (n < 100000)
        snprintf(buf, size, "%lld parameters", (long long)n);
    else
        snprintf(buf, size, "%.1f million parameters", (double)n / 1e6);
    return buf;
}

static void print_model(const json_t *m, FILE *out)
{
    json_t *part;
    size_t i;
    char size[32], count[64];

    json_array_foreach(json_object_get(m, "parts"), i, part)
    {
        const char *name = text(part, "part");
        bool cut = json_is_false(json_object_get(part, "complete"));

        command_bytes((unsigned long long)number(part, "bytes"), size, sizeof size);
        if (json_object_get(part, "complete"))
            row(out, name, "%s, %lld tensors, %s%s", print_count(number(part, "parameters"), count, sizeof count),
                (long long)number(part, "tensors"), size, cut ? ", INCOMPLETE" : "");
        else
            row(out, name, "%lld tensor%s, %s, not used", (long long)number(part, "tensors"),
                number(part, "tensors") == 1 ? "" : "s", size);
    }
    if (number(m, "in_channels"))
        row(out, "U-Net takes", "%lld channels, text of width %lld", (long long)number(m, "in_channels"),
            (long long)number(m, "context_width"));
    if (json_object_get(m, "prediction"))
        row(out, "prediction", "%s (from %s)", text(m, "prediction"), text(m, "prediction_from"));
    else if (number(m, "in_channels") && strcmp(text(m, "architecture"), "sd2") == 0)
        row(out, "prediction", "not written in the file: epsilon or v");
}

static void print_lora(const json_t *l, FILE *out)
{
    json_t *r, *unknown = json_object_get(l, "unknown_modules");
    size_t i;

    row(out, "modules", "%lld: U-Net %lld (%lld of them convolutions beyond 1x1), text encoder %lld",
        (long long)number(l, "modules"), (long long)number(l, "unet_modules"), (long long)number(l, "convolutions"),
        (long long)number(l, "text_encoder_modules"));
    json_array_foreach(json_object_get(l, "ranks"), i, r)
    {
        double rank = (double)number(r, "rank"), alpha = json_real_value(json_object_get(r, "alpha"));

        row(out, i ? "" : "ranks", "rank %lld, alpha %g%s, scale %g: %lld module%s", (long long)number(r, "rank"), alpha,
            json_is_true(json_object_get(r, "alpha_in_file")) ? "" : " (not in the file)", alpha / rank,
            (long long)number(r, "modules"), number(r, "modules") == 1 ? "" : "s");
    }
    json_array_foreach(unknown, i, r)
    {
        fprintf(out, "  %-*s ", LABEL, i ? "" : "not known");
        if (i == MOST_UNKNOWN) {
            fprintf(out, "and %zu more\n", json_array_size(unknown) - i);
            break;
        }
        put_clean(out, json_string_value(r), 200);
        fputc('\n', out);
    }
}

static void print_metadata(const json_t *metadata, bool all, FILE *out)
{
    size_t n = json_object_size(metadata), i = 0;
    const char *key;
    json_t *value;

    json_object_foreach((json_t *)metadata, key, value)
    {
        if (!all && i == SHORT_KEYS && n > SHORT_KEYS + 1) {
            row(out, "", "and %zu more (--metadata shows all)", n - i);
            break;
        }
        fprintf(out, "  %-*s ", LABEL, i++ ? "" : "metadata");
        put_clean(out, key, 200);
        fputs(" = ", out);
        put_clean(out, json_string_value(value), all ? (size_t)-1 : SHORT_VALUE);
        fputc('\n', out);
    }
}

static void print_hashes(const json_t *info, FILE *out)
{
    const json_t *h = json_object_get(info, "hashes");
    const json_t *checked = json_object_get(h, "sshs_model_hash_checked");

    row(out, "hashes", "%s (legacy%s)", text(h, "legacy"),
        number(info, "bytes") <= 1 << 20 ? "; of nothing, the file is under 1 MiB" : "");
    if (json_object_get(h, "sshs_legacy_hash_checked"))
        row(out, "", json_is_true(json_object_get(h, "sshs_legacy_hash_checked"))
                         ? "sshs_legacy_hash in the metadata fits"
                         : "sshs_legacy_hash in the metadata does not fit: ss_* metadata or tensors were changed after it was made");
    if (json_object_get(h, "sha256"))
        row(out, "", "%s (SHA-256)", text(h, "sha256"));
    if (json_object_get(h, "sshs_model_hash"))
        row(out, "", "%s (of the data%s)", text(h, "sshs_model_hash"),
            !checked                ? "; the metadata has none to check"
            : json_is_true(checked) ? "; the metadata says the same"
                                    : "; THE METADATA SAYS ANOTHER");
}

static void print_norms(const json_t *norms, bool lora, FILE *out)
{
    const json_t *blocks = json_object_get(norms, "blocks"), *b;
    const char *label[32];
    double value[32];
    size_t n = 0, i;

    json_array_foreach(blocks, i, b)
    {
        if (n < sizeof label / sizeof *label) {
            label[n] = text(b, "block");
            value[n++] = json_real_value(json_object_get(b, "norm"));
        }
    }
    fprintf(out, "\n  %s, Frobenius norm %.4g in all; by block:\n", lora ? "change of the weights" : "weights",
            json_real_value(json_object_get(norms, "total")));
    chart_rows(out, label, value, n, 40, "%.4g");
    fprintf(out, "\n  largest:\n");
    json_array_foreach(json_object_get(norms, "largest"), i, b)
    {
        if (i == LARGEST)
            break;
        fprintf(out, "  %8.4g  %s ", json_real_value(json_object_get(b, "norm")), text(b, "part"));
        put_clean(out, text(b, "name"), 200);
        fputc('\n', out);
    }
}

static void print_keys(const json_t *keys, FILE *out)
{
    const json_t *k, *d;
    size_t i, j;

    fputc('\n', out);
    json_array_foreach(keys, i, k)
    {
        char shape[256] = "[";
        size_t used = 1;

        json_array_foreach(json_object_get(k, "shape"), j, d)
        {
            used +=
                (size_t)snprintf(shape + used, sizeof shape - used, "%s%lld", j ? ", " : "", (long long)json_integer_value(d));
        }
        fprintf(out, "  %-4s %s]%*s ", text(k, "dtype"), shape, used < 20 ? (int)(20 - used) : 0, "");
        put_clean(out, text(k, "name"), (size_t)-1);
        fputc('\n', out);
    }
}

void info_print(const json_t *info, const struct info_options *o, FILE *out)
{
    put_clean(out, text(info, "path"), (size_t)-1);
    fprintf(out, "\n  %-*s ", LABEL, "kind");
    put_clean(out, text(info, "kind"), (size_t)-1);
    fputc('\n', out);
    if (json_object_get(info, "not_supported")) {
        fprintf(out, "  %-*s ", LABEL, "not supported");
        put_clean(out, text(info, "not_supported"), (size_t)-1);
        fputc('\n', out);
    }
    print_file(info, out);
    if (json_object_get(info, "model"))
        print_model(json_object_get(info, "model"), out);
    if (json_object_get(info, "lora"))
        print_lora(json_object_get(info, "lora"), out);
    print_metadata(json_object_get(info, "metadata"), o->metadata, out);
    if (json_object_get(info, "hashes"))
        print_hashes(info, out);
    if (json_object_get(info, "norms"))
        print_norms(json_object_get(info, "norms"), json_object_get(info, "lora") != NULL, out);
    if (json_object_get(info, "keys"))
        print_keys(json_object_get(info, "keys"), out);
}
