/* Devices: a backend is a plug-in, a shared library that takes over some operations of the table (ref/op/ops.h).
 *
 * It lies as lora-NAME.so in a folder of plug-ins and exports one function, offload_plugin(). It is opened when a device is
 * asked for and not before, so one program serves machines that have its library and machines that do not. What a backend
 * leaves alone, or a call it cannot take, runs in ref: a slot of the backend passes such a call on to the table it was given.
 *
 * A plug-in is built with the program and for it: both must agree on the contract (version) and on the sizes of its structs
 * and table (layout), else it is refused.
 */
#ifndef OFFLOAD_OFFLOAD_H
#define OFFLOAD_OFFLOAD_H

#include "ref/op/ops.h"

enum { OFFLOAD_VERSION = 3 };

/* Changes whenever struct op_call, its attributes, tensors or the list of ops do. */
#define OFFLOAD_LAYOUT \
    (sizeof(struct ops) << 32 | sizeof(struct op_call) << 20 | sizeof(struct op_attr) << 8 | sizeof(struct tensor))

/* How a device with memory of its own keeps frozen weights: in the type it computes in, or in blocks of 64 with a factor each. */
enum offload_base { OFFLOAD_BASE_PLAIN, OFFLOAD_BASE_INT8, OFFLOAD_BASE_NF4 };

struct offload_options {
    enum dtype arithmetic; /* DT_BF16, DT_F16 or DT_F32: what products are computed in; DT_COUNT: the backend's best */
    bool tf32;             /* with DT_F32: factors of products may be rounded to TF32 */
    enum offload_base base;
    int index;             /* which of several devices of the kind; -1: the backend's choice */
    int threads;           /* thread_count() of the program: it has thread.c's state, a plug-in has not */
};

/* What an opened backend can do. */
struct offload_info {
    char text[160];        /* library with its version, and hardware, for people: "oneDNN 2.6.3, AVX-512 and bf16" */
    enum dtype arithmetic; /* the one in use */
    bool tf32;
    size_t memory, free;   /* bytes of a device that has memory of its own, else 0 */
    bool same_bytes;       /* results do not depend on the number of threads */
};

/* The row that a plug-in exports. */
struct offload_plugin {
    unsigned version; /* OFFLOAD_VERSION */
    size_t layout;    /* OFFLOAD_LAYOUT */
    const char *name;
    /* Overrides slots of *ops, which holds ref's; ref is borrowed until close(). Fills *info. 0, or -1 with err. */
    int (*open)(const struct ops *ref, const struct offload_options *options, struct ops *ops, struct offload_info *info,
                struct err *err);
    void (*close)(void); /* after an open() that worked */
};

#define OFFLOAD_SYMBOL "offload_plugin"
typedef const struct offload_plugin *offload_plugin_fn(void);

struct offload {
    struct ops ops; /* for run_new() */
    struct offload_info info;
    char note[512]; /* auto: why it is not the better device that the program has a plug-in for; else empty */
    struct ops ref;
    const struct offload_plugin *plugin; /* NULL: cpu */
    void *library;
};

/* Opens a device: "cpu" (ref alone, always there; in bf16 where the processor has it), "auto" (a GPU where there is one, else cpu), or a plug-in by its name. Behind
 * a name may follow, each after a colon and in any order: arithmetic (f32, tf32, bf16, fp16), how frozen weights are kept (int8,
 * nf4), and which of several devices (a number): "cuda:bf16:1". "auto:bf16" and the like: where auto is cpu, what it cannot do is
 * left out. `folder` is where plug-ins are looked for; NULL: `plugins` beside the program, then ../lib/lora. The error says what
 * is missing and what to do. Close it after the last run; then it is zeroed. */
int offload_open(struct offload *o, const char *device, const char *folder, struct err *err);
void offload_close(struct offload *o);

/* Whether there is a plug-in of that name to be opened. */
bool offload_has(const char *name, const char *folder);

#endif
