/* The engine's weight source (ref/model/weights.h) over an opened model (formats/model.h): mapped from its files where the
 * bytes lie there plainly, so that an f16 checkpoint costs its own size and its pages can be dropped; read otherwise. */
#ifndef CMD_MODEL_WEIGHTS_H
#define CMD_MODEL_WEIGHTS_H

#include "formats/model.h"
#include "ref/model/weights.h"

struct model_weights;

/* m is borrowed until model_weights_close(). map: use the files' bytes in place; without it every tensor is read into memory of
 * its own. Mapping wins: nothing is copied (1.7 GB of an SD1 checkpoint would cost a second of page faults and would count as the
 * program's own memory, which the system cannot drop). Its danger is a file that somebody cuts short meanwhile, which the kernel
 * reports by SIGBUS: here the lost pages then read as zeros, and model_weights_check() tells. */
int model_weights_open(struct model_weights **out, const struct model *m, bool map, struct err *err);
void model_weights_close(struct model_weights *w); /* NULL is fine; after weights_free() */

/* -1 with err filled when a file of w (NULL: of any that was opened so far) was cut short while it was in use: what was computed
 * since is worthless. Cheap: call it after each run of a graph, before its results are used. command_main() asks at the end. */
int model_weights_check(const struct model_weights *w, struct err *err);

/* The source; valid until model_weights_close(). */
const struct weight_source *model_weights_source(const struct model_weights *w);

/* The mapped pages are not needed for a while: they no longer count as this program's memory. They stay with the system while it
 * has room, and come again by themselves when they are read. */
void model_weights_rest(const struct model_weights *w);

#endif
