/* Commands as rows: a command is one file and one word in the list in command.c. See option.h for its options.
 *
 *     const struct command command_resize = {
 *         .name = "resize",
 *         .summary = "give a LoRA another rank",
 *         .options = rows,
 *         .options_size = sizeof(struct resize_options),
 *         .run = run,
 *     };
 */
#ifndef CMD_COMMAND_H
#define CMD_COMMAND_H

#include <stdio.h>

#include "cmd/option.h"

#define COMMAND_VERSION "0.1.0"

struct command_example {
    const char *text; /* what it does, one line */
    const char *line; /* the command line, as typed */
};

enum command_flags {
    COMMAND_COMPAT = 1, /* takes --compat v0.3.0 */
    COMMAND_HIDDEN = 2, /* not in the overview */
};

/* One run of a command: what is the same for all commands. */
struct command_run {
    const struct command *command;
    const struct option_values *values; /* for option_given() */
    size_t threads;                     /* as typed; 0: all processors. Already set: use thread_count() */
    bool quiet;                         /* print nothing but what was asked for, and errors */
    bool json;                          /* results on stdout as one JSON value, progress on stderr as JSON lines */
    bool compat;                        /* --compat v0.3.0 */
};

struct command {
    const char *name;
    const char *const *aliases;             /* NULL at the end, or NULL; matched with and without ".py" and any folder */
    const char *summary;                    /* one line, small first letter, no full stop */
    const char *description;                /* paragraphs, blank line between; may be NULL */
    const struct option_row *options;       /* ends with {0}; NULL: none */
    size_t options_size;                    /* of the struct the rows point into */
    const struct command_example *examples; /* ends with {0}; may be NULL */
    const char *exit_notes;                 /* what exit status 1 can mean beyond "an error was printed"; may be NULL */
    unsigned flags;                         /* enum command_flags */
    /* options: the filled struct of options_size bytes, borrowed. Returns 0, or -1 with err filled. */
    int (*run)(const struct command_run *run, void *options, struct err *err);
};

/* All commands, in the order of the overview. */
extern const struct command *const command_table[];
extern const size_t command_count;

/* Finds a command by name or alias, as typed: "merge", "merge_lora", "networks/merge_lora.py", "networks\merge_lora.py", or a
 * path whose last part is an alias (argv[0] of a link). Returns NULL when there is none. */
const struct command *command_find(const char *typed);

/* Parses, runs, prints an error. Returns the exit status: 0 done, 1 failed, 2 wrong usage. argv as main() got it. */
int command_main(int argc, char **argv);

/* One line for a person on stderr ("note: ..." / "lora: warning: ..."), a JSON line with --json; notes are silenced by
 * --quiet, warnings are not. Thread-safe; goes above the progress bar. */
void command_note(const struct command_run *run, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void command_warn(const struct command_run *run, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Writes the options of this run to OUTPUT.options.json (version, command, values), a file that --config reads.
 * command_main() does so after a successful run for the row with OPTION_OUTPUT; a command whose output's name is not an
 * option calls it. Returns 0 or -1. */
int command_write_options(const struct command_run *run, const char *output, struct err *err);

/* Rows of the options that every command takes, and of --compat; ended with {0}. */
extern const struct option_row command_global_rows[];
extern const struct option_row command_compat_rows[];

/* Prints a JSON value to stdout, indented, and a newline. Consumes the reference. Returns 0 or -1. */
int command_print_json(json_t *value, struct err *err);

/* "1.99 GiB", "12.3 kB"-like sizes are written in one way everywhere: 1024-based, three digits. Returns buf. */
const char *command_bytes(unsigned long long n, char *buf, size_t size);

/* help.c, man.c, completion.c: texts made from the rows, to a stream. */
void command_print_overview(FILE *out);
void command_print_help(const struct command *c, FILE *out);
void command_print_man(const struct command *c, FILE *out); /* NULL: lora(1) itself */

#endif
