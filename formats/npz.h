/* NumPy's .npz files (a zip archive of .npy arrays), which sd-scripts keeps latents in.
 *
 * Read: stored and deflated archives, .npy versions 1 to 3, little-endian numbers of the types below in C order. Written: what
 * np.savez writes, as stored entries, the same bytes each time. Source: numpy.lib.format's description of the format.
 */
#ifndef FORMATS_NPZ_H
#define FORMATS_NPZ_H

#include <stddef.h>

#include "ref/base/err.h"
#include "ref/base/tensor.h"

struct npz_array {
    const char *name; /* without ".npy": "arr_0" for np.savez(path, x) */
    enum dtype dtype; /* f16 f32 f64, i8 .. u64, bool */
    struct shape shape;
    void *data; /* in row-major order */
};

/* Owns its arrays when it was read. */
struct npz {
    struct npz_array *array;
    size_t count;
    struct arena *arena;
};

/* Reads the whole file; what is in it is checked before memory is taken. Returns 0 or -1; npz_free() after 0. */
int npz_read(struct npz *out, const char *path, struct err *err);
void npz_free(struct npz *n);

const struct npz_array *npz_find(const struct npz *n, const char *name); /* NULL when there is none */

/* Writes arrays [n], never half (formats/output.h). Types: those above. Below 4 GiB in all. */
int npz_write(const char *path, const struct npz_array *array, size_t n, struct err *err);

#endif
