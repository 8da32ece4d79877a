#include "offload/dnnl/api.h"

#include <stddef.h>

static const dnnl_dims_t dense = {0};

#if DNNL_VERSION_MAJOR >= 3

static dnnl_status_t made(struct api_desc *d, dnnl_status_t status)
{
    d->set = status == dnnl_success;
    return status;
}

dnnl_status_t api_desc_tag(struct api_desc *d, int ndims, const dnnl_dims_t dims, dnnl_data_type_t type, dnnl_format_tag_t tag)
{
    return made(d, dnnl_memory_desc_create_with_tag(&d->md, ndims, dims, type, tag));
}

dnnl_status_t api_desc_strides(struct api_desc *d, int ndims, const dnnl_dims_t dims, dnnl_data_type_t type,
                               const dnnl_dims_t strides)
{
    return made(d, dnnl_memory_desc_create_with_strides(&d->md, ndims, dims, type, strides));
}

void api_desc_free(struct api_desc *d)
{
    if (d->set)
        dnnl_memory_desc_destroy(d->md);
    d->set = 0;
}

api_md api_desc_md(const struct api_desc *d)
{
    return d->set ? d->md : NULL;
}

dnnl_status_t api_matmul(dnnl_primitive_desc_t *pd, dnnl_engine_t engine, const struct api_desc *src,
                         const struct api_desc *weights, const struct api_desc *bias, const struct api_desc *dst,
                         const_dnnl_primitive_attr_t attr)
{
    return dnnl_matmul_primitive_desc_create(pd, engine, src->md, weights->md, api_desc_md(bias), dst->md, attr);
}

dnnl_status_t api_convolution(dnnl_primitive_desc_t *pd, dnnl_engine_t engine, const struct api_desc *src,
                              const struct api_desc *weights, const struct api_desc *bias, const struct api_desc *dst,
                              const dnnl_dims_t strides, const dnnl_dims_t before, const dnnl_dims_t after,
                              const_dnnl_primitive_attr_t attr)
{
    return dnnl_convolution_forward_primitive_desc_create(pd, engine, dnnl_forward_inference, dnnl_convolution_direct, src->md,
                                                          weights->md, api_desc_md(bias), dst->md, strides, dense, before,
                                                          after, attr);
}

dnnl_status_t api_append_sum(dnnl_post_ops_t ops)
{
    return dnnl_post_ops_append_sum(ops, 1, 0, dnnl_data_type_undef);
}

dnnl_status_t api_append_eltwise(dnnl_post_ops_t ops, dnnl_alg_kind_t kind, float alpha)
{
    return dnnl_post_ops_append_eltwise(ops, kind, alpha, 0);
}

#else

dnnl_status_t api_desc_tag(struct api_desc *d, int ndims, const dnnl_dims_t dims, dnnl_data_type_t type, dnnl_format_tag_t tag)
{
    d->set = 1;
    return dnnl_memory_desc_init_by_tag(&d->md, ndims, dims, type, tag);
}

dnnl_status_t api_desc_strides(struct api_desc *d, int ndims, const dnnl_dims_t dims, dnnl_data_type_t type,
                               const dnnl_dims_t strides)
{
    d->set = 1;
    return dnnl_memory_desc_init_by_strides(&d->md, ndims, dims, type, strides);
}

void api_desc_free(struct api_desc *d)
{
    d->set = 0;
}

api_md api_desc_md(const struct api_desc *d)
{
    return d->set ? &d->md : NULL;
}

dnnl_status_t api_matmul(dnnl_primitive_desc_t *pd, dnnl_engine_t engine, const struct api_desc *src,
                         const struct api_desc *weights, const struct api_desc *bias, const struct api_desc *dst,
                         const_dnnl_primitive_attr_t attr)
{
    dnnl_matmul_desc_t desc;
    dnnl_status_t status = dnnl_matmul_desc_init(&desc, &src->md, &weights->md, api_desc_md(bias), &dst->md);

    return status != dnnl_success ? status : dnnl_primitive_desc_create(pd, &desc, attr, engine, NULL);
}

dnnl_status_t api_convolution(dnnl_primitive_desc_t *pd, dnnl_engine_t engine, const struct api_desc *src,
                              const struct api_desc *weights, const struct api_desc *bias, const struct api_desc *dst,
                              const dnnl_dims_t strides, const dnnl_dims_t before, const dnnl_dims_t after,
                              const_dnnl_primitive_attr_t attr)
{
    dnnl_convolution_desc_t desc;
    dnnl_status_t status = dnnl_dilated_convolution_forward_desc_init(&desc, dnnl_forward_inference, dnnl_convolution_direct,
                                                                      &src->md, &weights->md, api_desc_md(bias), &dst->md,
                                                                      strides, dense, before, after);

    return status != dnnl_success ? status : dnnl_primitive_desc_create(pd, &desc, attr, engine, NULL);
}

dnnl_status_t api_append_sum(dnnl_post_ops_t ops)
{
    return dnnl_post_ops_append_sum(ops, 1);
}

dnnl_status_t api_append_eltwise(dnnl_post_ops_t ops, dnnl_alg_kind_t kind, float alpha)
{
    return dnnl_post_ops_append_eltwise(ops, 1, kind, alpha, 0);
}

#endif
