/* Output files that are never half written.
 *
 * The bytes go to PATH.tmp.PID beside the target; output_commit() forces them to the disk and renames them over PATH, so
 * that PATH is at all times either the whole old file or the whole new one, whatever happens: an error, a signal, SIGKILL,
 * a full disk, a power cut. Output may therefore equal input. What SIGKILL or a power cut left of PATH.tmp.PID, the next
 * output_open() of the same PATH removes (output_stale.h). The life of an output:
 *
 *     output_open -> [output_reserve] -> output_write_at / output_copy_at, any order, any thread -> output_commit
 *                                                                                             or -> output_abort
 *
 * A link to a file is followed: the file it points to is replaced, the link stays. The new file has the permission bits of
 * the old one, or else those that the umask leaves. Messages name the path and say what to do.
 */
#ifndef FORMATS_OUTPUT_H
#define FORMATS_OUTPUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "ref/base/err.h"

struct output;

/* Creates the temporary file; missing folders of path are made (and stay). Refused: a folder, a device or pipe, an existing
 * file without write permission, a folder one may not write to. *out is freed by output_commit() or output_abort(). */
int output_open(struct output **out, const char *path, struct err *err);

/* Gives the file its final size of nbytes and has the file system set the blocks aside, so that a full disk is known here;
 * the message tells how many bytes were needed and how many are free. Where the file system cannot reserve, only the size
 * is set, and a full disk is known when writing. */
int output_reserve(struct output *o, uint64_t nbytes, struct err *err);

/* Writes data [n] bytes at position `at`. Thread-safe for ranges that do not overlap. */
int output_write_at(struct output *o, uint64_t at, const void *data, size_t n, struct err *err);

/* Writes n bytes at `at` from position from_at of the open file `from`, whose name from_path is for messages; inside the
 * kernel (sharing blocks where the file system can), else through a buffer. Its file offset is not used. A source that ends
 * too early is an error. Thread-safe as output_write_at. */
int output_copy_at(struct output *o, uint64_t at, int from, const char *from_path, uint64_t from_at, uint64_t n,
                   struct err *err);

/* Starts the disk's work on what was written so far, without waiting for it to end; happens by itself every 32 MiB.
 * Thread-safe. */
void output_start(struct output *o);

/* fsync, rename over the target, fsync of its folder. Frees o in any case; after an error the temporary file is gone and an
 * old file is as it was (if only the folder's fsync failed, the new file is in place and the message says so). */
int output_commit(struct output *o, struct err *err);

/* Removes the temporary file and frees o; NULL is fine. */
void output_abort(struct output *o);

/* Writes a whole small file (a report, a log) with the guarantees above. A path that is a device or a pipe (/dev/stdout) is
 * written to directly. */
int output_bytes(const char *path, const void *data, size_t n, struct err *err);
int output_text(const char *path, const char *text, struct err *err);

/* True when both paths lead to the same existing file (links followed, hard links too). */
bool output_same_file(const char *a, const char *b);

/* From here on SIGHUP, SIGINT, SIGQUIT, SIGTERM and SIGPIPE remove all open temporary files before they end the program
 * (signals that were ignored stay ignored), and a file size limit (SIGXFSZ) is an error of the write. main() calls it once;
 * who handles a signal himself later may still do so. */
void output_catch_signals(void);

/* The system calls whose failures cannot be provoked at will: tests replace them one by one. */
struct output_sys {
    ssize_t (*pwrite)(int fd, const void *data, size_t n, off_t at);
    ssize_t (*copy_file_range)(int from, off_t *from_at, int to, off_t *to_at, size_t n, unsigned flags);
    int (*fallocate)(int fd, int mode, off_t at, off_t n);
    int (*fsync)(int fd);
    int (*close)(int fd);
    int (*rename)(const char *from, const char *to);
};
extern struct output_sys output_sys;

#endif
