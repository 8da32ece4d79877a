/* lora completion: shell scripts made from the rows. */
#include <string.h>

#include "cmd/command.h"

static bool is_path(const struct option_row *r)
{
    return r->arg && (strcmp(r->arg, "FILE") == 0 || strcmp(r->arg, "DIR") == 0 || strcmp(r->arg, "PATH") == 0 ||
                      strcmp(r->arg, "IN") == 0 || strcmp(r->arg, "OUT") == 0);
}

/* Calls fn for every option of a command that is typed with its name: its own, --compat's, and the global ones. */
static void each_option(const struct command *c, void (*fn)(const struct command *, const struct option_row *))
{
    const struct option_row *tables[] = {c->options, c->flags & COMMAND_COMPAT ? command_compat_rows : NULL,
                                         command_global_rows};

    for (size_t t = 0; t < sizeof tables / sizeof *tables; t++)
        for (const struct option_row *r = tables[t]; r && r->name; r++)
            if (!(r->flags & (OPTION_HIDDEN | OPTION_POSITIONAL)) && !r->alias_of)
                fn(c, r);
}

static void put_word(const struct command *c, const struct option_row *r)
{
    (void)c;
    printf(" --%s", r->name);
}

static void put_command_names(void)
{
    for (size_t i = 0; i < command_count; i++)
        printf("%s%s", i ? " " : "", command_table[i]->name);
}

static void bash_values(const struct command *c, const struct option_row *r)
{
    if (r->type != OPTION_CHOICE && r->type != OPTION_DTYPE)
        return;
    printf("        %s:--%s) words='", c->name, r->name);
    if (r->type == OPTION_DTYPE)
        printf("float fp16 bf16");
    else
        for (size_t k = 0; r->choices[k]; k++)
            printf("%s%s", k ? " " : "", r->choices[k]);
    printf("' ;;\n");
}

static void print_bash(void)
{
    printf("# bash completion of lora; written by 'lora completion bash'\n"
           "_lora() {\n"
           "    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} words=''\n"
           "    COMPREPLY=()\n"
           "    if [ \"$COMP_CWORD\" = 1 ]; then COMPREPLY=($(compgen -W '");
    put_command_names();
    printf("' -- \"$cur\")); return; fi\n"
           "    case $cur in\n"
           "    -*)\n"
           "        case ${COMP_WORDS[1]} in\n");
    for (size_t i = 0; i < command_count; i++) {
        printf("        %s) words='", command_table[i]->name);
        each_option(command_table[i], put_word);
        printf("' ;;\n");
    }
    printf("        esac ;;\n"
           "    *)\n"
           "        case ${COMP_WORDS[1]}:$prev in\n"
           "        help:*|man:*) words='");
    put_command_names();
    printf("' ;;\n        completion:*) words='bash zsh fish' ;;\n");
    for (size_t i = 0; i < command_count; i++)
        each_option(command_table[i], bash_values);
    printf("        esac\n"
           "        [ -n \"$words\" ] || { compopt -o default; return; } ;;\n"
           "    esac\n"
           "    COMPREPLY=($(compgen -W \"$words\" -- \"$cur\"))\n"
           "}\n"
           "complete -F _lora lora\n");
}

/* Inside single quotes of a shell script; brackets and colons are special to zsh's _arguments. */
static void put_quoted(const char *text, bool zsh)
{
    for (; *text; text++) {
        if (*text == '\'')
            fputs(zsh ? "'\\''" : "\\'", stdout);
        else if (zsh && strchr("[]:\\", *text))
            printf("\\%c", *text);
        else
            putchar(*text);
    }
}

static void zsh_option(const struct command *c, const struct option_row *r)
{
    (void)c;
    printf("            '--%s[", r->name);
    put_quoted(r->ignored ? "accepted without effect" : r->help, true);
    putchar(']');
    if (r->type == OPTION_CHOICE) {
        printf(":value:(");
        for (size_t k = 0; r->choices[k]; k++)
            printf("%s%s", k ? " " : "", r->choices[k]);
        putchar(')');
    } else if (r->type == OPTION_DTYPE) {
        printf(":type:(float fp16 bf16)");
    } else if (r->type != OPTION_FLAG) {
        printf(is_path(r) ? ":path:_files" : ":value:");
    }
    printf("' \\\n");
}

static void print_zsh(void)
{
    printf("#compdef lora\n# zsh completion of lora; written by 'lora completion zsh'\n_lora() {\n    local -a commands\n    "
           "commands=(\n");
    for (size_t i = 0; i < command_count; i++) {
        printf("        '%s:", command_table[i]->name);
        put_quoted(command_table[i]->summary, true);
        printf("'\n");
    }
    printf("    )\n    if (( CURRENT == 2 )); then _describe command commands; return; fi\n"
           "    local name=$words[2]\n    shift words\n    (( CURRENT-- ))\n    case $name in\n"
           "    help|man) _describe command commands ;;\n    completion) _values shell bash zsh fish ;;\n");
    for (size_t i = 0; i < command_count; i++) {
        const char *n = command_table[i]->name;

        if (strcmp(n, "help") == 0 || strcmp(n, "man") == 0 || strcmp(n, "completion") == 0)
            continue;
        printf("    %s)\n        _arguments \\\n", n);
        each_option(command_table[i], zsh_option);
        printf("            '*:path:_files' ;;\n");
    }
    printf("    esac\n}\n_lora \"$@\"\n");
}

static void fish_option(const struct command *c, const struct option_row *r)
{
    printf("complete -c lora -n '__fish_seen_subcommand_from %s' -l %s", c->name, r->name);
    if (r->type == OPTION_CHOICE || r->type == OPTION_DTYPE) {
        printf(" -x -a '");
        for (size_t k = 0; r->type == OPTION_CHOICE && r->choices[k]; k++)
            printf("%s%s", k ? " " : "", r->choices[k]);
        printf(r->type == OPTION_DTYPE ? "float fp16 bf16'" : "'");
    } else if (r->type != OPTION_FLAG) {
        printf(is_path(r) ? " -r -F" : " -x");
    }
    printf(" -d '");
    put_quoted(r->ignored ? "accepted without effect" : r->help, false);
    printf("'\n");
}

static void print_fish(void)
{
    printf("# fish completion of lora; written by 'lora completion fish'\n");
    for (size_t i = 0; i < command_count; i++) {
        printf("complete -c lora -n __fish_use_subcommand -f -a %s -d '", command_table[i]->name);
        put_quoted(command_table[i]->summary, false);
        printf("'\n");
    }
    printf("complete -c lora -n '__fish_seen_subcommand_from help man' -f -a '");
    put_command_names();
    printf("'\ncomplete -c lora -n '__fish_seen_subcommand_from completion' -f -a 'bash zsh fish'\n");
    for (size_t i = 0; i < command_count; i++)
        each_option(command_table[i], fish_option);
}

struct completion_options {
    int shell;
};

static const char *const shells[] = {"bash", "zsh", "fish", NULL};

static const struct option_row rows[] = {
    {OPTION(struct completion_options, shell), .arg = "SHELL", .choices = shells, .flags = OPTION_POSITIONAL | OPTION_REQUIRED,
     .help = "bash, zsh or fish"},
    {0},
};

static int run(const struct command_run *r, void *options, struct err *err)
{
    static void (*const print[])(void) = {print_bash, print_zsh, print_fish};

    (void)r;
    (void)err;
    print[((const struct completion_options *)options)->shell]();
    return 0;
}

static const struct command_example examples[] = {
    {"try it in this bash", "eval \"$(lora completion bash)\""},
    {0},
};

const struct command command_completion = {
    .name = "completion",
    .summary = "print a completion script for bash, zsh or fish",
    .options = rows,
    .options_size = sizeof(struct completion_options),
    .examples = examples,
    .run = run,
};
