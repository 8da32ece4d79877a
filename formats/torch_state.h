/* What torch's pickles mean: which of their values are tensors, and under which names they form a state dict.
 *
 * The state dict of a checkpoint is, in this order: the root itself when tensors stand directly in it; the value of
 * "state_dict"; that of another usual wrapper (params_ema before params, model, module ...) when nothing beside it holds
 * tensors but known extras (optimizer states); else the root. Dictionaries inside it give dotted names; items of lists and
 * tuples are named by their numbers, so a bare list of tensors has "0", "1", ... Values that are no tensors, and keys that
 * are no strings, are passed over, as are extras beside the state dict, whatever they hold.
 */
#ifndef FORMATS_TORCH_STATE_H
#define FORMATS_TORCH_STATE_H

#include "formats/pickle.h"
#include "ref/base/dtype.h"

/* Metadata of a file in torch's formats, both read and written: under which key of the root the tensors stand (none: the
 * root itself), and the integers beside them. Writers of other formats leave them out. */
#define TORCH_META_ROOT  "ckpt.root_key" /* "state_dict" for a checkpoint that sd-scripts and web UIs expect */
#define TORCH_META_EPOCH "ckpt.epoch"
#define TORCH_META_STEP  "ckpt.global_step"

/* The rows of pickle_parse() for everything torch.save writes around tensors. `what` of a row is one of these, and for the
 * first three its low byte an enum dtype, or an element size where we have no type for it. */
enum torch_what {
    TORCH_INERT = 0,
    TORCH_STORAGE = 0x100,    /* a storage class of a type that we have */
    TORCH_DTYPE = 0x200,      /* torch.float32 ... */
    TORCH_ODD = 0x300,        /* a storage class of elements that we have no type for: low byte = their size */
    TORCH_BYTES = 0x400,      /* UntypedStorage: the type stands with the tensor */
    TORCH_REBUILD = 0x500,    /* _rebuild_tensor(_v2)(storage, offset, size, stride, ...) */
    TORCH_REBUILD_V3 = 0x600, /* ... (storage, offset, size, stride, requires_grad, hooks, dtype, metadata) */
    TORCH_WRAPPER = 0x700,    /* Parameter and _rebuild_parameter: the tensor is the first argument */
    TORCH_TYPED = 0x800,      /* _rebuild_from_type_v2(function, type, arguments, state) */
    TORCH_SIZE = 0x900,       /* torch.Size(tuple) */
    TORCH_WHAT = 0xff00,      /* mask */
};

extern const struct pickle_global torch_globals[]; /* ends with a NULL name */

/* `what` of a global or of a call, without the low byte; TORCH_INERT for every other value. */
enum torch_what torch_what(const struct pickle_value *v);

/* The tensor under its wrappers: a row of _rebuild_tensor* and the tuple of its arguments. False when v is no tensor. */
bool torch_tensor_args(const struct pickle_value *v, const struct pickle_global **row, const struct pickle_value **args);

struct torch_named {
    const char *name;                /* UTF-8, in the arena */
    const struct pickle_global *row; /* who rebuilds it */
    const struct pickle_value *args; /* from what */
};

struct torch_state {
    struct torch_named *tensor; /* [count], in the order of the pickle; freed by torch_state_free() */
    size_t count;
    const char *root_key;            /* of the wrapper, or NULL; in the arena */
    const struct pickle_value *root; /* of the whole pickle */
};

/* Finds the state dict in p. Names go to the arena. An error when no tensor is there, or when the walk meets names that
 * cannot be (a zero byte, more than 1,000 bytes), more than 64 levels, or parts that hold themselves. Returns 0 or -1; s is
 * to be given to torch_state_free() in both cases. */
int torch_state_find(struct torch_state *s, const struct pickle *p, const char *path, struct arena *arena, struct err *err);
void torch_state_free(struct torch_state *s);

#endif
