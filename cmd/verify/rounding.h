/* A table of operations that rounds as another arithmetic would: run beside the plain one, it shows on a person's own model what
 * rounding does to each layer, where no oracle has. The limits of a record come from it. */
#ifndef CMD_VERIFY_ROUNDING_H
#define CMD_VERIFY_ROUNDING_H

#include "ref/op/ops.h"

/* *ops = ref's operations whose results, and the matrices of whose products, are rounded to t (bf16 or f16), forward and backward. For f32 each
 * result gets a random error of up to 8 u of the tensor's root mean square instead (u = 2^-24): what another order of summation
 * makes, since the partial sums of n terms in vectors of 16 lanes are off by about sqrt(n / 16) u / 3, and n reaches 23,040.
 * One table is in use at a time: it is the state of this file. */
void rounding_ops(struct ops *ops, enum dtype t);

#endif
