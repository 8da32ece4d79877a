#include "formats/diffusers.h"

#include <stdio.h>
#include <string.h>

#define VERSION "0.21.4" /* any diffusers since then reads what is written here */

static size_t dim_of(const struct model *m, enum model_part part, int dim, const char *name)
{
    const struct model_tensor *t = model_find(m, part, name);

    return t && t->shape.ndim > dim ? t->shape.dim[dim] : 0;
}

static json_t *number(size_t n)
{
    return json_integer((json_int_t)n);
}

/* The largest divisor of all widths up to 32. */
static size_t norm_groups(const json_t *widths)
{
    size_t g = 32;

    for (size_t i = 0; i < json_array_size(widths); i++)
        while (g > 1 && json_integer_value(json_array_get(widths, i)) % (json_int_t)g != 0)
            g /= 2;
    return g;
}

static size_t or_one(size_t n)
{
    return n ? n : 1;
}

/* U-Net: widths, block types and heads by level. */
static json_t *unet_config(const struct model *m, int proj_dims)
{
    json_t *widths = json_array(), *down = json_array(), *up = json_array(), *heads = json_array(), *all;
    size_t levels = m->plan.unet_levels;
    char name[128];

    for (size_t i = 0; i < levels; i++) {
        size_t width;

        snprintf(name, sizeof name, "down_blocks.%zu.resnets.0.conv1.weight", i);
        width = dim_of(m, MODEL_UNET, 0, name);
        json_array_append_new(widths, number(width));
        json_array_append_new(heads, number(or_one(width / 64)));
        snprintf(name, sizeof name, "down_blocks.%zu.attentions.0.proj_in.weight", i);
        json_array_append_new(down, json_string(model_find(m, MODEL_UNET, name) ? "CrossAttnDownBlock2D" : "DownBlock2D"));
        snprintf(name, sizeof name, "up_blocks.%zu.attentions.0.proj_in.weight", i);
        json_array_append_new(up, json_string(model_find(m, MODEL_UNET, name) ? "CrossAttnUpBlock2D" : "UpBlock2D"));
    }
    if (m->arch != MODEL_SD2 || m->head_dim_hint) {
        json_decref(heads);
        heads = json_integer(m->head_dim_hint ? m->head_dim_hint : 8);
    }
    all = json_pack("{s:s, s:s, s:s, s:b, s:f, s:f, s:i, s:b, s:i, s:i, s:b}", "_class_name", "UNet2DConditionModel",
                    "_diffusers_version", VERSION, "act_fn", "silu", "center_input_sample", 0, "mid_block_scale_factor", 1.0,
                    "norm_eps", 1e-5, "downsample_padding", 1, "flip_sin_to_cos", 1, "freq_shift", 0, "sample_size",
                    m->arch == MODEL_SD2 ? 96 : 64, "use_linear_projection", proj_dims == 2);
    json_object_set_new(all, "norm_num_groups", number(norm_groups(widths)));
    json_object_set_new(all, "block_out_channels", widths);
    json_object_set_new(all, "down_block_types", down);
    json_object_set_new(all, "up_block_types", up);
    json_object_set_new(all, "attention_head_dim", heads);
    json_object_set_new(all, "in_channels", number(m->in_channels));
    json_object_set_new(all, "out_channels", number(dim_of(m, MODEL_UNET, 0, "conv_out.weight")));
    json_object_set_new(all, "layers_per_block", number(m->plan.unet_layers));
    json_object_set_new(all, "cross_attention_dim", number(m->context_width));
    return all;
}

static json_t *vae_config(const struct model *m)
{
    json_t *widths = json_array(), *down = json_array(), *up = json_array(), *all;
    size_t layers = 0;
    char name[128];

    for (size_t i = 0; i < m->plan.vae_levels; i++) {
        snprintf(name, sizeof name, "encoder.down_blocks.%zu.resnets.0.conv1.weight", i);
        json_array_append_new(widths, number(dim_of(m, MODEL_VAE, 0, name)));
        json_array_append_new(down, json_string("DownEncoderBlock2D"));
        json_array_append_new(up, json_string("UpDecoderBlock2D"));
    }
    do
        snprintf(name, sizeof name, "encoder.down_blocks.0.resnets.%zu.conv1.weight", layers);
    while (model_find(m, MODEL_VAE, name) && ++layers);
    all = json_pack("{s:s, s:s, s:s, s:i, s:f}", "_class_name", "AutoencoderKL", "_diffusers_version", VERSION, "act_fn", "silu",
                    "sample_size", m->arch == MODEL_SD2 ? 768 : 512, "scaling_factor", 0.18215);
    json_object_set_new(all, "norm_num_groups", number(norm_groups(widths)));
    json_object_set_new(all, "block_out_channels", widths);
    json_object_set_new(all, "down_block_types", down);
    json_object_set_new(all, "up_block_types", up);
    json_object_set_new(all, "in_channels", number(dim_of(m, MODEL_VAE, 1, "encoder.conv_in.weight")));
    json_object_set_new(all, "out_channels", number(dim_of(m, MODEL_VAE, 0, "decoder.conv_out.weight")));
    json_object_set_new(all, "latent_channels", number(dim_of(m, MODEL_VAE, 1, "decoder.conv_in.weight")));
    json_object_set_new(all, "layers_per_block", number(layers));
    return all;
}

static json_t *text_config(const struct model *m)
{
    bool sd2 = m->arch == MODEL_SD2;
    size_t width = dim_of(m, MODEL_TEXT_ENCODER, 1, "text_model.embeddings.token_embedding.weight");
    json_t *all = json_pack("{s:[s], s:s, s:s, s:f, s:f, s:f, s:f, s:i, s:i, s:i}", "architectures", "CLIPTextModel", "model_type",
                            "clip_text_model", "hidden_act", sd2 ? "gelu" : "quick_gelu", "attention_dropout", 0.0,
                            "initializer_factor", 1.0, "initializer_range", 0.02, "layer_norm_eps", 1e-5, "bos_token_id", 0,
                            "eos_token_id", 2, "pad_token_id", 1);

    json_object_set_new(all, "hidden_size", number(width));
    json_object_set_new(all, "intermediate_size",
                        number(dim_of(m, MODEL_TEXT_ENCODER, 0, "text_model.encoder.layers.0.mlp.fc1.weight")));
    json_object_set_new(all, "max_position_embeddings",
                        number(dim_of(m, MODEL_TEXT_ENCODER, 0, "text_model.embeddings.position_embedding.weight")));
    json_object_set_new(all, "vocab_size",
                        number(dim_of(m, MODEL_TEXT_ENCODER, 0, "text_model.embeddings.token_embedding.weight")));
    json_object_set_new(all, "num_attention_heads", number(or_one(width / 64)));
    json_object_set_new(all, "num_hidden_layers", number(m->text_layers));
    json_object_set_new(all, "projection_dim", number(sd2 ? 512 : 768));
    return all;
}

json_t *diffusers_config(const struct model *m, enum model_part part, int proj_dims)
{
    return part == MODEL_UNET ? unet_config(m, proj_dims) : part == MODEL_VAE ? vae_config(m) : text_config(m);
}

json_t *diffusers_scheduler(enum model_arch arch, enum model_prediction prediction)
{
    return json_pack("{s:s, s:s, s:f, s:f, s:s, s:i, s:b, s:b, s:i, s:b, s:n, s:s}", "_class_name",
                     arch == MODEL_SD2 ? "DDIMScheduler" : "PNDMScheduler", "_diffusers_version", VERSION, "beta_start", 0.00085,
                     "beta_end", 0.012, "beta_schedule", "scaled_linear", "num_train_timesteps", 1000, "set_alpha_to_one", 0,
                     "skip_prk_steps", 1, "steps_offset", 1, "clip_sample", 0, "trained_betas", "prediction_type",
                     prediction == MODEL_V ? "v_prediction" : "epsilon");
}

json_t *diffusers_index(const struct model *m, bool tokenizer)
{
    const char *class = m->in_channels == 9 ? "StableDiffusionInpaintPipeline" : "StableDiffusionPipeline";
    json_t *all = json_pack("{s:s, s:s, s:[n,n], s:[n,n], s:b, s:[s,s]}", "_class_name", class, "_diffusers_version", VERSION,
                            "feature_extractor", "safety_checker", "requires_safety_checker", 0, "scheduler", "diffusers",
                            m->arch == MODEL_SD2 ? "DDIMScheduler" : "PNDMScheduler");

    if (tokenizer)
        json_object_set_new(all, "tokenizer", json_pack("[s,s]", "transformers", "CLIPTokenizer"));
    if (m->has[MODEL_TEXT_ENCODER])
        json_object_set_new(all, "text_encoder", json_pack("[s,s]", "transformers", "CLIPTextModel"));
    if (m->has[MODEL_UNET])
        json_object_set_new(all, "unet", json_pack("[s,s]", "diffusers", "UNet2DConditionModel"));
    if (m->has[MODEL_VAE])
        json_object_set_new(all, "vae", json_pack("[s,s]", "diffusers", "AutoencoderKL"));
    return all;
}
