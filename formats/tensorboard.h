/* Event files that TensorBoard reads: values of a run over its steps.
 *
 * A file is a list of records (length, its checksum, data, its checksum; CRC-32C, masked), each an Event message of TensorBoard's
 * protocol buffers. Source: tensorflow/core/util/event.proto and lib/io/record_writer.h. A folder may hold several files, which
 * TensorBoard shows as one run; so a resumed run opens another one and says from which step on it stands for the older.
 *
 * Records are collected and written by tensorboard_flush() in one piece: a run that is killed leaves whole records.
 */
#ifndef FORMATS_TENSORBOARD_H
#define FORMATS_TENSORBOARD_H

#include <stddef.h>
#include <stdint.h>

#include "ref/base/err.h"

struct tensorboard;

/* Makes the folder where needed and a new file in it, named by the time: events.out.tfevents.SECONDS.lora.PID.N. `now`: seconds
 * since 1970. from_step > 0: what older files of the folder have of this step and later ones is not shown any more. */
int tensorboard_open(struct tensorboard **out, const char *folder, double now, uint64_t from_step, struct err *err);

/* The path of the file, owned by t. */
const char *tensorboard_path(const struct tensorboard *t);

/* One value of the curve `tag` ("loss", "lr/unet") at a step. */
int tensorboard_scalar(struct tensorboard *t, const char *tag, double value, uint64_t step, double now, struct err *err);

/* A picture: png [n] bytes as in a file, of this size. */
int tensorboard_picture(struct tensorboard *t, const char *tag, const void *png, size_t n, unsigned width, unsigned height,
                        uint64_t step, double now, struct err *err);

/* Writes what was collected. -1: the disk is full, ..; what was collected is kept for the next call. */
int tensorboard_flush(struct tensorboard *t, struct err *err);

/* Flushes and frees t (NULL is fine), in any case. */
int tensorboard_close(struct tensorboard *t, struct err *err);

#endif
