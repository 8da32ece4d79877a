/* A temporary folder and whole files for tests. Every function stops the test when the system refuses. */
#ifndef TESTS_LIB_SCRATCH_H
#define TESTS_LIB_SCRATCH_H

#include <stddef.h>

/* Makes an empty folder; its path is valid until the program ends. scratch_remove() removes it with all it holds. */
const char *scratch_new(void);
void scratch_remove(const char *folder);

/* "FOLDER/NAME", in one of a few rotating buffers: copy what must last. */
const char *scratch_path(const char *folder, const char *name);

/* The whole file, terminated by a 0 that *n does not count; freed by the caller. */
unsigned char *scratch_read(const char *path, size_t *n);
void scratch_write(const char *path, const void *data, size_t n);

/* Entries in the folder, '.' and '..' not counted. */
size_t scratch_count(const char *folder);

#endif
