/* lora help, lora COMMAND --help, and the overview: all from the rows. */
#include <string.h>

#include "cmd/chart.h"
#include "cmd/command.h"

enum { OPTION_COLUMN = 28, OVERVIEW_EXAMPLES = 3 };

/* Prints words of text[0..n) from column `at`, wrapped before `width`, further lines indented by `indent`. */
static void wrap(FILE *out, const char *text, size_t n, size_t at, size_t indent, size_t width)
{
    bool first = true;

    for (size_t i = 0; i < n;) {
        size_t len = 0;

        while (i < n && (text[i] == ' ' || text[i] == '\n'))
            i++;
        while (i + len < n && text[i + len] != ' ' && text[i + len] != '\n')
            len++;
        if (len == 0)
            break;
        if (!first && at + 1 + len > width) {
            fprintf(out, "\n%*s", (int)indent, "");
            at = indent;
            first = true;
        }
        fprintf(out, "%s%.*s", first ? "" : " ", (int)len, text + i);
        at += len + !first;
        first = false;
        i += len;
    }
    fputc('\n', out);
}

static void print_paragraphs(FILE *out, const char *text, size_t width)
{
    while (text && *text) {
        const char *end = strstr(text, "\n\n");
        size_t n = end ? (size_t)(end - text) : strlen(text);

        wrap(out, text, n, 0, 0, width);
        fputc('\n', out);
        text += n + (end ? 2 : 0);
    }
}

static bool is_list(const struct option_row *r)
{
    return r->type == OPTION_STRINGS || r->type == OPTION_FLOATS || r->type == OPTION_INTS;
}

/* "--dim N", "--models FILE...", "--method svd|concat", "FILE...". */
static void print_left(const struct option_row *r, char *buf, size_t size)
{
    size_t n;

    if (r->flags & OPTION_POSITIONAL) {
        snprintf(buf, size, "%s%s", r->arg ? r->arg : r->name, is_list(r) ? "..." : "");
        return;
    }
    n = (size_t)snprintf(buf, size, "--%s", r->name);
    if (r->type == OPTION_CHOICE) {
        for (size_t i = 0; r->choices[i] && n < size; i++)
            n += (size_t)snprintf(buf + n, size - n, "%s%s", i ? "|" : " ", r->choices[i]);
    } else if (r->type == OPTION_DTYPE) {
        snprintf(buf + n, size - n, " float|fp16|bf16");
    } else if (r->type != OPTION_FLAG) {
        snprintf(buf + n, size - n, " %s%s", r->arg ? r->arg : "VALUE", is_list(r) ? "..." : "");
    }
}

static void print_option(FILE *out, const struct option_row *r, size_t width)
{
    char left[512], right[1024];
    size_t n = 0;

    print_left(r, left, sizeof left);
    if (r->ignored)
        n = (size_t)snprintf(right, sizeof right, "accepted without effect: %s", r->ignored);
    else if (r->alias_of)
        n = (size_t)snprintf(right, sizeof right, "old spelling of --%s", r->alias_of);
    else
        n = (size_t)snprintf(right, sizeof right, "%s", r->help);
    if (r->flags & OPTION_REQUIRED && n < sizeof right)
        n += (size_t)snprintf(right + n, sizeof right - n, " (needed)");
    if (r->def && n < sizeof right)
        snprintf(right + n, sizeof right - n, " (default %s)", r->def);
    fprintf(out, "  %s", left);
    if (strlen(left) + 4 > OPTION_COLUMN)
        fprintf(out, "\n%*s", OPTION_COLUMN, "");
    else
        fprintf(out, "%*s", (int)(OPTION_COLUMN - 2 - strlen(left)), "");
    wrap(out, right, strlen(right), OPTION_COLUMN, OPTION_COLUMN, width);
}

/* The rows that `want` picks; their heading only if there is one. */
static void print_group(FILE *out, const struct option_row *rows, const char *heading, int group, size_t width)
{
    bool any = false;

    for (const struct option_row *r = rows; r && r->name; r++) {
        int mine = r->flags & OPTION_POSITIONAL ? 0 : r->ignored || r->alias_of ? 3 : r->flags & OPTION_ADVANCED ? 2 : 1;

        if (r->flags & OPTION_HIDDEN || mine != group)
            continue;
        if (!any)
            fprintf(out, "%s:\n", heading);
        any = true;
        print_option(out, r, width);
    }
    if (any)
        fputc('\n', out);
}

static void print_usage(FILE *out, const struct command *c)
{
    char left[512];

    fprintf(out, "usage: lora %s", c->name);
    for (const struct option_row *r = c->options; r && r->name; r++)
        if (r->flags & OPTION_REQUIRED && !(r->flags & OPTION_POSITIONAL)) {
            print_left(r, left, sizeof left);
            fprintf(out, " %s", left);
        }
    fputs(" [options]", out);
    for (const struct option_row *r = c->options; r && r->name; r++)
        if (r->flags & OPTION_POSITIONAL) {
            print_left(r, left, sizeof left);
            fprintf(out, r->flags & OPTION_REQUIRED ? " %s" : " [%s]", left);
        }
    fputs("\n\n", out);
}

void command_print_help(const struct command *c, FILE *out)
{
    size_t width = chart_columns(out, 100);

    fprintf(out, "lora %s: %s\n\n", c->name, c->summary);
    print_usage(out, c);
    print_paragraphs(out, c->description, width);
    print_group(out, c->options, "arguments", 0, width);
    print_group(out, c->options, "options", 1, width);
    print_group(out, c->options, "further options", 2, width);
    print_group(out, c->options, "options of other programs that are accepted", 3, width);
    if (c->flags & COMMAND_COMPAT)
        print_group(out, command_compat_rows, "compatibility", 1, width);
    print_group(out, command_global_rows, "options of every command", 1, width);
    if (c->examples)
        fputs("examples:\n", out);
    for (const struct command_example *e = c->examples; e && e->line; e++)
        fprintf(out, "  # %s\n  %s\n\n", e->text, e->line);
    if (c->aliases) {
        fputs("also called:", out);
        for (const char *const *a = c->aliases; *a; a++)
            fprintf(out, " %s", *a);
        fputs("\n\n", out);
    }
    fputs("exit status: 0 done, 1 failed, 2 wrong usage\n", out);
    if (c->exit_notes)
        wrap(out, c->exit_notes, strlen(c->exit_notes), 0, 0, width);
}

void command_print_overview(FILE *out)
{
    size_t shown = 0;

    fputs("lora: LoRA for Stable Diffusion 1.x and 2.x, in one program\n\nusage: lora COMMAND [options]\n\n", out);
    for (size_t i = 0; i < command_count; i++)
        if (!(command_table[i]->flags & COMMAND_HIDDEN))
            fprintf(out, "  %-12s %s\n", command_table[i]->name, command_table[i]->summary);
    fputc('\n', out);
    for (size_t i = 0; i < command_count && shown < OVERVIEW_EXAMPLES; i++) {
        const struct command_example *e = command_table[i]->examples;

        if (e && e->line && !(command_table[i]->flags & COMMAND_HIDDEN)) {
            fprintf(out, "  # %s\n  %s\n", e->text, e->line);
            shown++;
        }
    }
    fputs("\n'lora help COMMAND' describes a command, with more examples.\n", out);
}

/* For scripts: one command a line, its aliases after it. */
static void print_names(FILE *out)
{
    for (size_t i = 0; i < command_count; i++) {
        fputs(command_table[i]->name, out);
        for (const char *const *a = command_table[i]->aliases; a && *a; a++)
            fprintf(out, " %s", *a);
        fputc('\n', out);
    }
}

/* For the README. */
static void print_markdown(FILE *out)
{
    fputs("| command | what it does | also called |\n|---|---|---|\n", out);
    for (size_t i = 0; i < command_count; i++) {
        const struct command *c = command_table[i];

        if (c->flags & COMMAND_HIDDEN)
            continue;
        fprintf(out, "| `lora %s` | %s |", c->name, c->summary);
        for (const char *const *a = c->aliases; a && *a; a++)
            fprintf(out, " `%s`", *a);
        fputs(" |\n", out);
    }
}

struct help_options {
    const char *command;
    int as;
};

static const char *const forms[] = {"names", "markdown", NULL};

static const struct option_row rows[] = {
    {OPTION(struct help_options, command), .arg = "COMMAND", .flags = OPTION_POSITIONAL, .help = "the command to describe"},
    {OPTION(struct help_options, as), .choices = forms, .flags = OPTION_ADVANCED,
     .help = "print the list of commands as bare names, or as the table of the README"},
    {0},
};

static int run(const struct command_run *r, void *options, struct err *err)
{
    const struct help_options *o = options;
    const struct command *c;

    (void)r;
    if (o->as == 0)
        print_names(stdout);
    else if (o->as == 1)
        print_markdown(stdout);
    else if (!o->command)
        command_print_overview(stdout);
    else if ((c = command_find(o->command)))
        command_print_help(c, stdout);
    else
        return err_usage(err, "there is no command '%s'; 'lora help' lists them", o->command);
    return 0;
}

const struct command command_help = {
    .name = "help",
    .summary = "describe a command, or list them all",
    .options = rows,
    .options_size = sizeof(struct help_options),
    .run = run,
};
