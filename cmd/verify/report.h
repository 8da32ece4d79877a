/* What `lora verify` prints: a table, one line for each kind of comparison or for every single one; failures always in full. */
#ifndef CMD_VERIFY_REPORT_H
#define CMD_VERIFY_REPORT_H

#include <jansson.h>

#include "cmd/verify/verify.h"

struct report;

/* all: a line for every comparison. silent: nothing is printed, rows are only collected for report_json(). */
int report_new(struct report **out, bool all, bool silent, struct err *err);
void report_free(struct report *r);

/* Begins the rows of a device ("cpu: this program's own code, f32"). */
void report_device(struct report *r, const char *device);

/* For struct verify: ctx is the report. */
void report_row(void *ctx, const struct verify_row *row, bool ok);

/* Prints the lines of a summary that are still to come: call it after each group. */
void report_flush(struct report *r);

/* A list with one object for each row; the caller owns the reference. NULL: memory was short at some row. */
json_t *report_json(struct report *r);

#endif
