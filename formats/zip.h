/* Reading zip archives (PKWARE's APPNOTE 6.3.10): stored and deflated entries, zip64, other bytes before the archive.
 *
 * zip_open() checks the whole directory against the file before anything is used: positions, sizes, names, each local header
 * against its row, no two entries sharing bytes, no name twice. Refused: encryption, several disks, other methods, sizes
 * that deflate cannot reach. After that an entry's bytes are known to lie inside the file.
 */
#ifndef FORMATS_ZIP_H
#define FORMATS_ZIP_H

#include "formats/tensor_file.h"

struct zip_entry {
    const char *name; /* in the file's arena */
    uint64_t header;  /* position of its local header in the file */
    uint64_t offset;  /* position of its bytes, stored or packed */
    uint64_t packed;  /* how many there are in the file */
    uint64_t size;    /* and how many once inflated; the same when stored */
    uint32_t crc;     /* CRC-32 of the inflated bytes; torch can be told to leave it out, then it is 0 */
    bool deflated;
};

struct zip {
    const struct zip_entry *entry; /* [count], sorted by name; in the file's arena */
    size_t count;
};

/* Reads the directory of an open file (path, fd, file_size set). Returns 0 or -1. */
int zip_open(struct zip *z, struct tensor_file *f, struct err *err);

/* The entry of that name, or NULL. */
const struct zip_entry *zip_find(const struct zip *z, const char *name);

/* Reads a whole entry into dst [e->size] and checks its CRC. Thread-safe. Reading stored bytes directly, at e->offset, is
 * allowed and checks no CRC. */
int zip_read(const struct tensor_file *f, const struct zip_entry *e, void *dst, struct err *err);

#endif
