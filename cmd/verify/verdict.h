/* What `lora verify` prints: a table, one line for each kind of comparison or for every single one; failures always in full. */
#ifndef CMD_VERIFY_VERDICT_H
#define CMD_VERIFY_VERDICT_H

#include <jansson.h>

#include "cmd/verify/verify.h"

struct verdict;

/* all: a line for every comparison. silent: nothing is printed, rows are only collected for verdict_json(). */
int verdict_new(struct verdict **out, bool all, bool silent, struct err *err);
void verdict_free(struct verdict *r);

/* Begins the rows of a device ("cpu: this program's own code, f32"). */
void verdict_device(struct verdict *r, const char *device);

/* For struct verify: ctx is the verdict. */
void verdict_row(void *ctx, const struct verify_row *row, bool ok);

/* Prints the lines of a summary that are still to come: call it after each group. */
void verdict_flush(struct verdict *r);

/* A list with one object for each row; the caller owns the reference. NULL: memory was short at some row. */
json_t *verdict_json(struct verdict *r);

#endif
