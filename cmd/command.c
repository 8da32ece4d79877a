#include "cmd/command.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "cmd/config.h"
#include "cmd/model_weights.h"
#include "cmd/progress.h"
#include "formats/output.h"
#include "ref/base/thread.h"

/* One word a command, in the order of the overview; cmd/NAME.c defines command_NAME. */
#define COMMAND_LIST(X) X(train) X(prepare) X(generate) X(extract) X(merge) X(resize) X(info) X(convert) X(verify) X(devices) X(help) X(man) X(completion) \
    X(merge_captions_to_metadata) X(merge_dd_tags_to_metadata) X(clean_captions_and_tags) X(prepare_buckets_latents)

#define DECLARE(name) extern const struct command command_##name;
COMMAND_LIST(DECLARE)
#undef DECLARE

#define ADDRESS(name) &command_##name,
const struct command *const command_table[] = {COMMAND_LIST(ADDRESS)};
#undef ADDRESS
const size_t command_count = sizeof command_table / sizeof *command_table;

struct global_options {
    size_t threads;
    bool quiet, json, help, version;
    const char *config;
};

const struct option_row command_global_rows[] = {
    {OPTION(struct global_options, config), .arg = "FILE",
     .help = "read options from a JSON or TOML file; the command line wins"},
    {OPTION(struct global_options, threads), .arg = "N", .min = 1, .max = 4096,
     .help = "processors to use (default: all); results do not depend on it"},
    {OPTION(struct global_options, quiet), .help = "print errors and what was asked for, nothing else"},
    {OPTION(struct global_options, json),
     .help = "result as JSON on standard output, progress as JSON lines on standard error"},
    {OPTION(struct global_options, help), .help = "describe the command and stop (-h too)"},
    {OPTION(struct global_options, version), .flags = OPTION_HIDDEN, .help = "print the version and stop"},
    {0},
};

struct compat_options {
    int compat;
};

static const char *const compat_versions[] = {"v0.3.0", NULL};

const struct option_row command_compat_rows[] = {
    {OPTION(struct compat_options, compat), .arg = "VERSION", .choices = compat_versions,
     .help = "compute as sd-scripts of that version did, defects included"},
    {0},
};

/* The last part of a path as typed: "networks\merge_lora.py" -> "merge_lora" (a shell may have eaten the backslash:
 * "networksmerge_lora.py"). */
static void last_part(const char *typed, char *out, size_t size)
{
    static const char *const eaten[] = {"networks", "tools", "finetune"};
    size_t n;

    for (const char *s = typed; *s; s++)
        if ((*s == '/' || *s == '\\') && s[1])
            typed = s + 1;
    snprintf(out, size, "%s", typed);
    n = strlen(out);
    if (n <= 3 || strcmp(out + n - 3, ".py") != 0)
        return;
    out[n - 3] = 0;
    for (size_t i = 0; i < sizeof eaten / sizeof *eaten; i++) {
        size_t k = strlen(eaten[i]);

        if (strncmp(out, eaten[i], k) == 0 && out[k] && out[k] != '_')
            memmove(out, out + k, strlen(out + k) + 1);
    }
}

static const struct command *find_alias(const char *name)
{
    for (size_t i = 0; i < command_count; i++)
        for (const char *const *a = command_table[i]->aliases; a && *a; a++)
            if (strcmp(*a, name) == 0)
                return command_table[i];
    return NULL;
}

const struct command *command_find(const char *typed)
{
    char name[256];

    for (size_t i = 0; i < command_count; i++)
        if (strcmp(command_table[i]->name, typed) == 0)
            return command_table[i];
    last_part(typed, name, sizeof name);
    return find_alias(name);
}

static void say(const struct command_run *run, const char *event, const char *prefix, const char *fmt, va_list ap)
{
    char text[4096], line[8192];
    size_t n = 0;

    if (!run->json)
        n = (size_t)snprintf(text, sizeof text, "%s", prefix);
    vsnprintf(text + n, sizeof text - n, fmt, ap);
    if (run->json) {
        json_t *j = json_pack("{s:s, s:s}", "event", event, "text", text);
        char *s = j ? json_dumps(j, JSON_COMPACT) : NULL;

        snprintf(line, sizeof line, "%s", s ? s : "{\"event\":\"unprintable\"}");
        free(s);
        json_decref(j);
        progress_line(line);
    } else {
        progress_line(text);
    }
}

void command_note(const struct command_run *run, const char *fmt, ...)
{
    va_list ap;

    if (run->quiet)
        return;
    va_start(ap, fmt);
    say(run, "note", "note: ", fmt, ap);
    va_end(ap);
}

void command_warn(const struct command_run *run, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    say(run, "warning", "lora: warning: ", fmt, ap);
    va_end(ap);
}

static void print_error(bool json, const struct err *err)
{
    json_t *j = json ? json_pack("{s:s, s:s, s:s}", "event", "error", "kind", err->kind == ERR_USAGE ? "usage" : "failed",
                                 "text", err->msg)
                     : NULL;
    char *text = j ? json_dumps(j, JSON_COMPACT) : NULL;

    if (text)
        fprintf(stderr, "%s\n", text);
    else
        fprintf(stderr, "lora: error: %s\n", err->msg);
    free(text);
    json_decref(j);
}

int command_print_json(json_t *value, struct err *err)
{
    int rc = value ? json_dumpf(value, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(9)) : -1;

    if (rc)
        err_set(err,
                value ? "cannot write JSON to standard output" : "out of memory for the JSON result; close other programs");
    else
        putchar('\n');
    json_decref(value);
    return rc ? -1 : 0;
}

const char *command_bytes(unsigned long long n, char *buf, size_t size)
{
    static const char *const unit[] = {"bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    double x = (double)n;
    size_t u = 0;

    /* 999.5 KiB would print as "1000": step up where three digits end. */
    while (x >= 999.5 && u + 1 < sizeof unit / sizeof *unit) {
        x /= 1024;
        u++;
    }
    if (u == 0)
        snprintf(buf, size, "%llu bytes", n);
    else
        snprintf(buf, size, x < 9.995 ? "%.2f %s" : x < 99.95 ? "%.1f %s" : "%.0f %s", x, unit[u]);
    return buf;
}

/* One note for each option that was given and means nothing here. */
static void note_ignored(const struct command_run *run, const struct option_values *v)
{
    for (size_t i = 0; i < v->count; i++) {
        if (v->source[i] == OPTION_FROM_DEFAULT)
            continue;
        if (v->rows[i].ignored)
            command_note(run, "--%s has no effect here: %s", v->rows[i].name, v->rows[i].ignored);
        else if (v->rows[i].alias_of)
            command_note(run, "--%s is an old spelling of --%s", v->rows[i].name, v->rows[i].alias_of);
    }
}

static int write_options_beside(const struct command_run *run, struct err *err)
{
    const struct option_values *v = run->values;

    for (size_t i = 0; i < v->count; i++)
        if (v->rows[i].flags & OPTION_OUTPUT && v->rows[i].type == OPTION_STRING) {
            const char *path = *(const char *const *)((const char *)v->base + v->rows[i].offset);

            if (path && command_write_options(run, path, err))
                return -1;
        }
    return 0;
}

enum { OF_COMMAND, OF_ALL, OF_COMPAT, TABLES };

/* The tables are filled; runs the command. */
static int run_command(const struct command *c, struct option_values *tables, size_t n_tables, const struct global_options *g,
                       const struct compat_options *compat, const char *who, struct err *err)
{
    struct command_run run = {.command = c,
                              .values = &tables[OF_COMMAND],
                              .threads = g->threads,
                              .quiet = g->quiet,
                              .json = g->json,
                              .compat = compat->compat == 0};

    if (g->config && config_read(tables, n_tables, c->name, g->config, err))
        return -1;
    if (option_check_required(&tables[OF_COMMAND], who, err))
        return -1;
    /* A config file may have set them. */
    run.threads = g->threads;
    run.quiet = g->quiet;
    run.json = g->json;
    run.compat = compat->compat == 0;
    note_ignored(&run, &tables[OF_COMMAND]);
    thread_init((int)g->threads);
    if (c->run(&run, tables[OF_COMMAND].base, err) || model_weights_check(NULL, err)) {
        model_weights_check(NULL, err); /* the cause of whatever else went wrong */
        return -1;
    }
    return write_options_beside(&run, err);
}

static int parse_and_run(const struct command *c, int argc, char **argv, bool *json, struct err *err)
{
    struct option_values tables[TABLES] = {0};
    struct global_options globals;
    struct compat_options compat = {-1};
    size_t n = c->flags & COMMAND_COMPAT ? TABLES : OF_COMPAT;
    void *options = mem_zero(1, c->options_size + 1, "options", err);
    char who[64];
    int rc = -1;

    snprintf(who, sizeof who, "lora %s", c->name);
    if (!options || option_values_init(&tables[OF_COMMAND], c->options, options, err) ||
        option_values_init(&tables[OF_ALL], command_global_rows, &globals, err))
        goto out;
    if (n > OF_COMPAT && option_values_init(&tables[OF_COMPAT], command_compat_rows, &compat, err))
        goto out;
    rc = option_parse(tables, n, who, argc, argv, err);
    *json = globals.json;
    if (rc)
        goto out;
    if (globals.help)
        command_print_help(c, stdout);
    else if (globals.version)
        printf("lora %s\n", COMMAND_VERSION);
    else
        rc = run_command(c, tables, n, &globals, &compat, who, err);
out:
    for (size_t i = 0; i < n; i++)
        option_values_free(&tables[i]);
    free(options);
    return rc;
}

static int unknown_command(const char *typed, struct err *err)
{
    const char *words[256], *near;
    size_t n = 0;

    for (size_t i = 0; i < command_count && n < sizeof words / sizeof *words; i++)
        words[n++] = command_table[i]->name;
    near = option_nearest(typed, words, n);
    return near ? err_usage(err, "there is no command '%s'; did you mean '%s'? 'lora help' lists them", typed, near)
                : err_usage(err, "there is no command '%s'; 'lora help' lists them", typed);
}

static int dispatch(int argc, char **argv, bool *json, struct err *err)
{
    const struct command *c = NULL;
    char self[256] = "";

    if (argc > 0)
        last_part(argv[0], self, sizeof self);
    if ((c = find_alias(self)))
        return parse_and_run(c, argc - 1, argv + 1, json, err);
    if (argc < 2 || strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0) {
        command_print_overview(stdout);
        return 0;
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("lora %s\n", COMMAND_VERSION);
        return 0;
    }
    if (argv[1][0] == '-')
        return err_usage(err, "a command comes before options such as '%s'; 'lora help' lists the commands", argv[1]);
    c = command_find(argv[1]);
    return c ? parse_and_run(c, argc - 2, argv + 2, json, err) : unknown_command(argv[1], err);
}

/* A standard stream that is closed at the start would lend its number to the next file that is opened, and messages would be
 * written into a model. So the numbers are taken, in the direction in which every use of them fails as before. */
static void keep_standard_files(void)
{
    for (int fd = 0; fd <= 2; fd++)
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", fd == 0 ? O_WRONLY : O_RDONLY) < 0)
            return; /* no /dev/null: nothing better can be done */
}

int command_main(int argc, char **argv)
{
    struct err err = {0};
    bool json = false;
    int rc;

    keep_standard_files();
    output_catch_signals();
    rc = dispatch(argc, argv, &json, &err);
    if ((fflush(stdout) || ferror(stdout)) && rc == 0)
        rc = err_set(&err, "cannot write to standard output; is the disk full or the reader gone?");
    if (rc == 0)
        return 0;
    print_error(json, &err);
    return err.kind == ERR_USAGE ? 2 : 1;
}
