/* A group of `lora verify` as a test: golden files of this tree, on the CPU, every row within its limit. */
#ifndef TESTS_LIB_VERIFY_GROUP_H
#define TESTS_LIB_VERIFY_GROUP_H

#include "cmd/verify/verify.h"

/* For struct verify's report: prints what fails. */
void verify_group_report(void *ctx, const struct verify_row *row, bool ok);

/* v, ready for golden/ on ops (borrowed, filled with ref's). */
struct verify verify_group_new(struct ops *ops);

/* Runs the group; fails the test when it cannot, when a row fails, or when there are fewer rows than at_least. */
void verify_group(int (*group)(struct verify *v, struct err *err), size_t at_least);

#endif
