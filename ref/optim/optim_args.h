/* Names and arguments of optimizers as text. For optim.c. */
#ifndef REF_OPTIM_OPTIM_ARGS_H
#define REF_OPTIM_OPTIM_ARGS_H

#include "ref/optim/optim_kind.h"

/* The optimizer of that name (any case), or NULL with err filled (a usage error that lists them). */
const struct optim_kind *optim_find(const char *name, struct err *err);

/* Fills *v with the defaults, then with args [n]. 0, or -1: usage error. */
int optim_parse(const struct optim_kind *k, const char *const *args, size_t n, struct optim_values *v, struct err *err);

/* "weight_decay=0.01, betas=(0.9,0.999), eps=1e-08" */
void optim_print_args(const struct optim_kind *k, const struct optim_values *v, char *text, size_t size);

#endif
