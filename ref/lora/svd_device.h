/* The products of a decomposition on a device (ref/op/ops.h): D goes there once, what it is multiplied with goes there and back. They
 * are calls of the table's own linear operation, so a device needs nothing more than its operations. Everything small - the basis,
 * the projected matrix, the proof - stays on the processor. */
#ifndef REF_LORA_SVD_DEVICE_H
#define REF_LORA_SVD_DEVICE_H

#include "ref/lora/svd_work.h"
#include "ref/op/ops.h"

struct svd_device;

/* ops: of a device with memory of its own and f32 storage; borrowed. Several may share one: their calls take turns. */
int svd_device_new(struct svd_device **out, const struct ops *ops, struct err *err);
void svd_device_free(struct svd_device *v); /* NULL is fine */

/* a->d has changed (or is another matrix): it is copied again before the next product. */
void svd_device_forget(struct svd_device *v);

/* As the functions of svd_work.h. After a failure they give zeros, and svd_device_check() the reason. */
void svd_device_times(struct svd_device *v, const struct svd_matrix *a, const float *x, size_t s, float *y);
void svd_device_times_transposed(struct svd_device *v, const struct svd_matrix *a, const float *y, size_t s, float *x);
void svd_device_times_gram(struct svd_device *v, const struct svd_matrix *a, const float *x, size_t s, float *z);
void svd_device_gram(struct svd_device *v, const struct svd_matrix *a, float *g);

/* 0, or -1 with the first failure since the last call. */
int svd_device_check(struct svd_device *v, struct err *err);

#endif
