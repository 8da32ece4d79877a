/* What pipe.c and sample.c share. */
#ifndef CMD_GENERATE_PIPE_INSIDE_H
#define CMD_GENERATE_PIPE_INSIDE_H

#include "cmd/generate/pipe.h"

/* Makes a stage ready to run, unless it is: n rows, latents of h x wd, tokens of the context. */
int generate_pipe_enter(struct generate_pipe *p, enum generate_stage stage, size_t n, size_t h, size_t wd, size_t tokens,
                        struct err *err);

/* Runs the graph of the stage, watched as the caller of the pipe asked for. */
int generate_pipe_run(struct generate_pipe *p, struct err *err);

#endif
