/* lora train --check N: does this device train as the plain code does? */
#ifndef CMD_TRAIN_CHECK_H
#define CMD_TRAIN_CHECK_H

#include "cmd/train/train.h"

/* N steps on the trainer's device and, with the same inputs and factors, in f32 on the processor: every layer's output and every
 * factor's gradient is compared. The limit is what rounding does to that very layer, seen by runs with rounding on purpose
 * (cmd/verify/rounding.h). Prints a table as `lora verify` does; the factors follow the processor's steps; no file is written.
 * -1 when something is beyond its limit, too: the message names step, operation and layer, the first in the order of the run. */
int train_check(struct trainer *t, size_t steps, struct err *err);

#endif
