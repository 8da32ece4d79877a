/* A folder of several outputs as one: all of it appears, or nothing.
 *
 * The files are written into PATH.tmp.PID; output_folder_commit() gives that folder PATH's name, or, where PATH exists, moves the
 * files into it one by one when all of them are there. An error before leaves PATH as it was.
 */
#ifndef FORMATS_OUTPUT_FOLDER_H
#define FORMATS_OUTPUT_FOLDER_H

#include "ref/base/err.h"

struct output_folder {
    char *path, *temp; /* owned */
};

/* Chooses the temporary name; f->temp is where to write (nothing is made yet: outputs make their folders). */
int output_folder_open(struct output_folder *f, const char *path, struct err *err);

/* Puts everything in place and frees f, also after an error (then what was not moved yet is removed). */
int output_folder_commit(struct output_folder *f, struct err *err);

/* The same as output_folder_abort() after an error: err names PATH where it named the temporary folder. Returns -1. */
int output_folder_fail(struct output_folder *f, struct err *err);

/* Removes what was written and frees f; a zeroed one is fine. */
void output_folder_abort(struct output_folder *f);

#endif
