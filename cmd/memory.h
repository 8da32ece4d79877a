/* Memory before the work: how much there is, and whether a forecast fits. A command that runs a graph knows its peak
 * beforehand (ref/graph/plan.h, weights_bytes()); it says so here and stops here rather than in the kernel's killer.
 *
 *     struct memory_need need = {.bytes = owned + plan->arena, .mapped = mapped};
 *     if (memory_check(run, &need, "use a smaller --W and --H", err))
 *         return -1;
 */
#ifndef CMD_MEMORY_H
#define CMD_MEMORY_H

#include "cmd/command.h"

struct memory_need {
    size_t bytes;  /* still to be allocated: weights of our own, the arena of the largest graph, buffers */
    size_t mapped; /* pages of files that will be used in place: the system may drop and read them again */
};

/* Bytes that this process can still get: the least of the kernel's MemAvailable and of what its control groups and its
 * address space limit (ulimit -v) leave; SIZE_MAX when nothing says. root: "" or, for tests, the folder that holds copies of
 * /proc and /sys. */
size_t memory_free(const char *root);

/* Resident bytes of this process: now, and at its peak so far. 0 when the system does not say. */
size_t memory_now(void);
size_t memory_peak(void);

/* The peak that need leads to: what the process has now comes on top. */
size_t memory_forecast(const struct memory_need *need);

/* Prints the forecast (a note; silent with --quiet) and compares it with memory_free(). Returns -1 with err filled when bytes
 * do not fit: both numbers, and `advice` as the next step ("use a smaller --W and --H"). Warns when they fit but the mapped
 * pages beside them do not, which is slow. */
int memory_check(const struct command_run *run, const struct memory_need *need, const char *advice, struct err *err);

#endif
