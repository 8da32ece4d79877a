/* Progress of one long piece of work, on stderr: a bar with rate and time left on a terminal (redrawn at most ten times a
 * second), a plain line every few seconds elsewhere, JSON lines with --json, nothing with --quiet. One at a time.
 */
#ifndef CMD_PROGRESS_H
#define CMD_PROGRESS_H

#include <stdint.h>

#include "cmd/command.h"

struct progress;

/* Starts showing `what` ("extracting"), from 0 to total units ("modules", "MB" and "bytes" are shown as sizes when unit is
 * "bytes"). total = 0: unknown. Never fails: without memory the result is NULL, which every function here takes. */
struct progress *progress_start(const struct command_run *run, const char *what, uint64_t total, const char *unit);

/* n more units are done. Thread-safe, cheap: most calls only add. */
void progress_step(struct progress *p, uint64_t n);

/* A few words after the bar ("loss 0.083"), replaced by the next call. Thread-safe. */
void progress_info(struct progress *p, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Removes the bar (a JSON line says how it ended) and frees p. Call it also when the work failed. Returns the seconds that
 * the work took. */
double progress_end(struct progress *p);

/* Prints one finished line (without its newline) to stderr, above a bar if one is being shown. Thread-safe. */
void progress_line(const char *line);

#endif
