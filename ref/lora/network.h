/* The factors that a training changes: all modules of one LoRA, in one block of memory, with their gradients.
 *
 * Modules stand in the order in which sd-scripts makes them (text encoder, then U-Net: down, up, middle blocks), so that the
 * same random numbers go to the same factors: network_init(n, seed) gives what that program's modules have when torch's seed
 * is set just before they are made.
 *
 * down is Kaiming-uniform with a = sqrt(5), which is a bound of 1/sqrt(fan in) (He et al. 2015); up is zero, so that training
 * starts at the base model. A module adds alpha / rank * up(down(x)).
 */
#ifndef REF_LORA_NETWORK_H
#define REF_LORA_NETWORK_H

#include <stdbool.h>
#include <stdint.h>

#include "ref/base/mem.h"
#include "ref/base/part.h"
#include "ref/base/tensor.h"

/* What is wanted of one module. */
struct network_spec {
    enum model_part part;
    const char *path; /* canonical module path; copied */
    size_t out, in, kh, kw;
    bool conv; /* the base weight is 4-D */
    size_t rank;
    double alpha;
    int block;    /* target_block(), -1 none: for learning rates by block */
    size_t group; /* of its learning rate; the caller's */
};

struct network_module {
    struct network_spec spec; /* path owned by the network */
    struct tensor down, up;   /* f32: [rank, in] or [rank, kh, kw, in], [out, rank]; data inside network.params */
    float *ddown, *dup;       /* their gradients, inside network.grads */
};

struct network {
    struct network_module *module; /* [count] */
    size_t count;
    float *params, *grads; /* [size]; each factor starts at a multiple of MEM_ALIGN bytes; what is between them is 0 */
    size_t size, used;     /* used: elements of factors alone */
    double *gram, *norm; /* [threads, cells], [count]: for network_norms(), made by its first call */
    size_t cells;
    struct arena arena;
};

/* Takes memory for modules [n], zeroed. -1: no memory, no module, a rank of 0. network_free(NULL) is fine. */
int network_new(struct network **out, const struct network_spec *specs, size_t n, struct err *err);
void network_free(struct network *n);

void network_init(struct network *n, uint64_t seed);

/* Bytes of factors and gradients. */
size_t network_bytes(const struct network *n);

/* Rounds all factors to f16, as they are kept with full_fp16. */
void network_round_f16(struct network *n);

/* Frobenius norms [count] of what each module adds to its weight, alpha / rank included; by all threads, the same bytes for any
 * number of them. The network's own, until the next call; NULL with err filled. */
const double *network_norms(struct network *n, struct err *err);

/* Cuts every module whose change has a Frobenius norm above `most` to it, by the same factor on up and down (sd-scripts'
 * scale_weight_norms). *scaled: how many; *mean and *largest: of the norms after it. Returns 0 or -1 (no memory). */
int network_limit_norms(struct network *n, double most, size_t *scaled, double *mean, double *largest, struct err *err);

/* The first module whose factors are not all finite, or NULL. */
const struct network_module *network_find_nonfinite(const struct network *n);

#endif
