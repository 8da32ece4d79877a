/* oneDNN's two C interfaces under one name: version 2 (Debian 12) has memory descriptors as structs and operation descriptors
 * beside primitive descriptors, version 3 (Ubuntu 24.04) has both opaque and made in one call. Only api.c knows which. */
#ifndef OFFLOAD_DNNL_API_H
#define OFFLOAD_DNNL_API_H

#include <dnnl.h>

#if DNNL_VERSION_MAJOR >= 3
typedef const_dnnl_memory_desc_t api_md;
#else
typedef const dnnl_memory_desc_t *api_md;
#endif

/* An owned descriptor; zero it first, api_desc_free() takes a zeroed one. */
struct api_desc {
    dnnl_memory_desc_t md;
    int set;
};

dnnl_status_t api_desc_tag(struct api_desc *d, int ndims, const dnnl_dims_t dims, dnnl_data_type_t type, dnnl_format_tag_t tag);
dnnl_status_t api_desc_strides(struct api_desc *d, int ndims, const dnnl_dims_t dims, dnnl_data_type_t type,
                               const dnnl_dims_t strides);
void api_desc_free(struct api_desc *d);
api_md api_desc_md(const struct api_desc *d); /* NULL when it is not set */

/* dst = src * weights + bias; bias may be unset */
dnnl_status_t api_matmul(dnnl_primitive_desc_t *pd, dnnl_engine_t engine, const struct api_desc *src,
                         const struct api_desc *weights, const struct api_desc *bias, const struct api_desc *dst,
                         const_dnnl_primitive_attr_t attr);
dnnl_status_t api_convolution(dnnl_primitive_desc_t *pd, dnnl_engine_t engine, const struct api_desc *src,
                              const struct api_desc *weights, const struct api_desc *bias, const struct api_desc *dst,
                              const dnnl_dims_t strides, const dnnl_dims_t before, const dnnl_dims_t after,
                              const_dnnl_primitive_attr_t attr);

dnnl_status_t api_append_sum(dnnl_post_ops_t ops);
dnnl_status_t api_append_eltwise(dnnl_post_ops_t ops, dnnl_alg_kind_t kind, float alpha);

#endif
