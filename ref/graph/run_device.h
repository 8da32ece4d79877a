/* What run_device.c and run_fallback.c share. */
#ifndef REF_GRAPH_RUN_DEVICE_H
#define REF_GRAPH_RUN_DEVICE_H

#include "ref/graph/run_inside.h"

struct run_device {
    const struct ops_device *ops;
    struct tensor *weights; /* [value_count] on the device */
    const void **seen;      /* [value_count] host data that weights[i] is the copy of; NULL: none yet */
    float *params;          /* on the device: [param_count], then the slots' shadow; NULL where they are shared */
    float **shared;         /* [value_count] a param's place in somebody else's block; NULL: in params */
    float *staged;          /* [param_count] on the host, on the way there (alloc_host) */
    char *gathered;         /* values side by side, on the way back (alloc_host) */
    size_t gathered_bytes;
    size_t *param_at;       /* [value_count] place of a param in params */
    size_t param_count;
    void *recording;
    bool warm;        /* one run has been made node by node: what slots prepare on their first call is there */
    bool falls_back;  /* some node runs on the processor, so that nothing can be recorded */
    void *bounce;     /* for a value on its way, in the device's type */
    size_t bounce_bytes;
    char *host;       /* a fallback's tensors, as ref has them */
    size_t host_bytes;
};

/* Elements of a shape that the graph has checked. */
size_t run_device_count(const struct shape *s);

/* src, of type from, to the tensor on the device; the tensor there to dst, of type to. */
int run_device_put(struct run_device *d, const struct tensor *to, enum dtype from, const void *src, struct err *err);
int run_device_get(struct run_device *d, const struct tensor *from, enum dtype to, void *dst, struct err *err);

#endif
