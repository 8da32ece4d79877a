/* lora man: manual pages in roff, from the rows. */
#include <string.h>

#include "cmd/command.h"

/* Text as roff takes it: dashes and backslashes escaped, no line that starts with a dot or quote. */
static void put(FILE *out, const char *text)
{
    bool line_start = true;

    for (; *text; text++) {
        if (line_start && (*text == '.' || *text == '\''))
            fputs("\\&", out);
        if (*text == '\\')
            fputs("\\e", out);
        else if (*text == '-')
            fputs("\\-", out);
        else
            fputc(*text, out);
        line_start = *text == '\n';
    }
}

static void put_paragraphs(FILE *out, const char *text)
{
    const char *end;

    while (text && (end = strstr(text, "\n\n"))) {
        char one[4096];

        snprintf(one, sizeof one, "%.*s", (int)(end - text), text);
        put(out, one);
        fputs("\n.PP\n", out);
        text = end + 2;
    }
    if (text && *text) {
        put(out, text);
        fputc('\n', out);
    }
}

static void put_option(FILE *out, const struct option_row *r)
{
    bool list = r->type == OPTION_STRINGS || r->type == OPTION_FLOATS || r->type == OPTION_INTS;

    fputs(".TP\n", out);
    if (r->flags & OPTION_POSITIONAL) {
        fprintf(out, "\\fI%s\\fR%s", r->arg ? r->arg : r->name, list ? "..." : "");
    } else {
        fputs("\\fB\\-\\-", out);
        put(out, r->name);
        fputs("\\fR", out);
        if (r->type == OPTION_DTYPE)
            fputs(" \\fBfloat\\fR|\\fBfp16\\fR|\\fBbf16\\fR", out);
        else if (r->type == OPTION_CHOICE)
            for (size_t i = 0; r->choices[i]; i++)
                fprintf(out, "%s\\fB%s\\fR", i ? "|" : " ", r->choices[i]);
        else if (r->type != OPTION_FLAG)
            fprintf(out, " \\fI%s\\fR%s", r->arg ? r->arg : "VALUE", list ? "..." : "");
    }
    fputc('\n', out);
    if (r->ignored) {
        fputs("accepted without effect: ", out);
        put(out, r->ignored);
    } else if (r->alias_of) {
        fputs("old spelling of \\fB\\-\\-", out);
        put(out, r->alias_of);
        fputs("\\fR", out);
    } else {
        put(out, r->help);
    }
    if (r->flags & OPTION_REQUIRED)
        fputs(" (needed)", out);
    if (r->def) {
        fputs(" (default ", out);
        put(out, r->def);
        fputc(')', out);
    }
    fputc('\n', out);
}

static void put_options(FILE *out, const char *heading, const struct option_row *rows)
{
    if (!rows || !rows->name)
        return;
    fprintf(out, ".SH %s\n", heading);
    for (const struct option_row *r = rows; r->name; r++)
        if (!(r->flags & OPTION_HIDDEN))
            put_option(out, r);
}

static void put_header(FILE *out, const char *page, const char *summary)
{
    fprintf(out, ".TH \"%s\" 1 \"\" \"lora %s\" \"User commands\"\n.SH NAME\n", page, COMMAND_VERSION);
    put(out, page);
    fputs(" \\- ", out);
    put(out, summary);
    fputs("\n.SH SYNOPSIS\n", out);
}

static void man_overview(FILE *out)
{
    put_header(out, "lora", "LoRA for Stable Diffusion 1.x and 2.x, in one program");
    fputs("\\fBlora\\fR \\fICOMMAND\\fR [options]\n.SH COMMANDS\n", out);
    for (size_t i = 0; i < command_count; i++) {
        if (command_table[i]->flags & COMMAND_HIDDEN)
            continue;
        fprintf(out, ".TP\n\\fBlora %s\\fR\n", command_table[i]->name);
        put(out, command_table[i]->summary);
        fputc('\n', out);
    }
    put_options(out, "OPTIONS OF EVERY COMMAND", command_global_rows);
    fputs(".SH OPTION NAMES\nA unique prefix names an option; \\fB\\-\\-name value\\fR and \\fB\\-\\-name=value\\fR are the "
          "same; "
          "a list takes all values up to the next option.\n"
          ".SH EXIT STATUS\n0 done, 1 failed, 2 wrong usage.\n",
          out);
}

void command_print_man(const struct command *c, FILE *out)
{
    char page[64];

    if (!c) {
        man_overview(out);
        return;
    }
    snprintf(page, sizeof page, "lora-%s", c->name);
    put_header(out, page, c->summary);
    fprintf(out, "\\fBlora %s\\fR [options]", c->name);
    for (const struct option_row *r = c->options; r && r->name; r++)
        if (r->flags & OPTION_POSITIONAL)
            fprintf(out, " \\fI%s\\fR%s", r->arg ? r->arg : r->name, r->type == OPTION_STRINGS ? "..." : "");
    fputc('\n', out);
    if (c->description) {
        fputs(".SH DESCRIPTION\n", out);
        put_paragraphs(out, c->description);
    }
    put_options(out, "OPTIONS", c->options);
    if (c->flags & COMMAND_COMPAT)
        put_options(out, "COMPATIBILITY", command_compat_rows);
    put_options(out, "OPTIONS OF EVERY COMMAND", command_global_rows);
    if (c->examples)
        fputs(".SH EXAMPLES\n", out);
    for (const struct command_example *e = c->examples; e && e->line; e++) {
        put(out, e->text);
        fputs(":\n.PP\n.RS\n.nf\n", out);
        put(out, e->line);
        fputs("\n.fi\n.RE\n.PP\n", out);
    }
    fputs(".SH EXIT STATUS\n0 done, 1 failed, 2 wrong usage.\n", out);
    if (c->exit_notes) {
        put(out, c->exit_notes);
        fputc('\n', out);
    }
    fputs(".SH SEE ALSO\n\\fBlora\\fR(1)\n", out);
}

struct man_options {
    const char *command;
};

static const struct option_row rows[] = {
    {OPTION(struct man_options, command), .arg = "COMMAND", .flags = OPTION_POSITIONAL,
     .help = "the page's command; without it, lora(1)"},
    {0},
};

static int run(const struct command_run *r, void *options, struct err *err)
{
    const struct man_options *o = options;
    const struct command *c = NULL;

    (void)r;
    if (o->command && !(c = command_find(o->command)))
        return err_usage(err, "there is no command '%s'; 'lora help' lists them", o->command);
    command_print_man(c, stdout);
    return 0;
}

static const struct command_example examples[] = {
    {"read a page", "lora man help | man -l -"},
    {0},
};

const struct command command_man = {
    .name = "man",
    .summary = "print a manual page (roff)",
    .options = rows,
    .options_size = sizeof(struct man_options),
    .examples = examples,
    .run = run,
};
