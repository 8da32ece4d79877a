/* A person's own checkpoint and prompt: every layer's output in a file, and another build, device or machine held against it.
 *
 * The model runs in four stages: text encoder, one evaluation of the U-Net, VAE decoder, VAE encoder. Each stage's inputs are in the
 * file, so that the other side starts every stage from the same numbers and an error is seen where it is made.
 *
 * Tensors: STAGE/PATH (te/, unet/, decoder/, encoder/) f32, in/STAGE/NAME the inputs. Metadata "record": what was asked for and
 * what recorded it; "error": for each layer how much rounding in f32, bf16 and f16 changes it (rounding.h), for limit.h.
 */
#ifndef CMD_VERIFY_RECORD_H
#define CMD_VERIFY_RECORD_H

#include "cmd/command.h"
#include "cmd/verify/verify.h"

struct record_options {
    const char *ckpt, *prompt; /* prompt: for record_write() only, like the rest */
    size_t width, height, timestep;
    uint64_t seed;
};

/* v: the device. Writes `path`. */
int record_write(const struct command_run *run, struct verify *v, const struct record_options *o, const char *path, struct err *err);

/* Runs the same and reports a row for each layer. o->prompt and sizes are the file's own. */
int record_compare(const struct command_run *run, struct verify *v, const struct record_options *o, const char *path,
                   struct err *err);

#endif
