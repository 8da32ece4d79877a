#include "formats/names_rules.h"

#include <stddef.h>

#define SAME(x) {x, x}

static const struct names_pair resnet[] = {
    {"norm1", "in_layers.0"},           {"conv1", "in_layers.2"},
    {"time_emb_proj", "emb_layers.1"},  {"norm2", "out_layers.0"},
    {"conv2", "out_layers.3"},          {"conv_shortcut", "skip_connection"},
    {NULL, NULL},
};

static const struct names_pair spatial[] = {
    SAME("norm"),
    SAME("proj_in"),
    SAME("proj_out"),
    SAME("transformer_blocks.#.norm1"),
    SAME("transformer_blocks.#.norm2"),
    SAME("transformer_blocks.#.norm3"),
    SAME("transformer_blocks.#.attn1.to_q"),
    SAME("transformer_blocks.#.attn1.to_k"),
    SAME("transformer_blocks.#.attn1.to_v"),
    SAME("transformer_blocks.#.attn1.to_out.0"),
    SAME("transformer_blocks.#.attn2.to_q"),
    SAME("transformer_blocks.#.attn2.to_k"),
    SAME("transformer_blocks.#.attn2.to_v"),
    SAME("transformer_blocks.#.attn2.to_out.0"),
    SAME("transformer_blocks.#.ff.net.0.proj"),
    SAME("transformer_blocks.#.ff.net.2"),
    {NULL, NULL},
};

/* q, k and v of OpenCLIP are one tensor, attn.in_proj_weight: names.c sees to it. */
static const struct names_pair text_block[] = {
    {"layer_norm1", "ln_1"},
    {"layer_norm2", "ln_2"},
    {"self_attn.q_proj", "attn.in_proj/0"},
    {"self_attn.k_proj", "attn.in_proj/1"},
    {"self_attn.v_proj", "attn.in_proj/2"},
    {"self_attn.out_proj", "attn.out_proj"},
    {"mlp.fc1", "mlp.c_fc"},
    {"mlp.fc2", "mlp.c_proj"},
    {NULL, NULL},
};

static const struct names_pair vae_resnet[] = {
    SAME("norm1"), SAME("conv1"), SAME("norm2"), SAME("conv2"), {"conv_shortcut", "nin_shortcut"}, {NULL, NULL},
};

static const struct names_pair vae_attention[] = {
    {"group_norm", "norm"}, {"to_q", "q"}, {"to_k", "k"}, {"to_v", "v"}, {"to_out.0", "proj_out"}, {NULL, NULL},
};

const struct names_pair names_old_vae_attention[] = {
    {"to_q", "query"}, {"to_k", "key"}, {"to_v", "value"}, {"to_out.0", "proj_attn"}, {NULL, NULL},
};

const struct names_rule names_rules[] = {
    {MODEL_UNET, "time_embedding.linear_1", "time_embed.0", NULL, NUMBERS_SAME},
    {MODEL_UNET, "time_embedding.linear_2", "time_embed.2", NULL, NUMBERS_SAME},
    {MODEL_UNET, "conv_in", "input_blocks.0.0", NULL, NUMBERS_SAME},
    {MODEL_UNET, "down_blocks.#.resnets.#.", "input_blocks.#.0.", resnet, NUMBERS_DOWN},
    {MODEL_UNET, "down_blocks.#.attentions.#.", "input_blocks.#.1.", spatial, NUMBERS_DOWN},
    {MODEL_UNET, "down_blocks.#.downsamplers.0.conv", "input_blocks.#.0.op", NULL, NUMBERS_DOWN_END},
    {MODEL_UNET, "mid_block.resnets.0.", "middle_block.0.", resnet, NUMBERS_SAME},
    {MODEL_UNET, "mid_block.attentions.0.", "middle_block.1.", spatial, NUMBERS_SAME},
    {MODEL_UNET, "mid_block.resnets.1.", "middle_block.2.", resnet, NUMBERS_SAME},
    {MODEL_UNET, "up_blocks.#.resnets.#.", "output_blocks.#.0.", resnet, NUMBERS_UP},
    {MODEL_UNET, "up_blocks.#.attentions.#.", "output_blocks.#.1.", spatial, NUMBERS_UP},
    {MODEL_UNET, "up_blocks.#.upsamplers.0.conv", "output_blocks.#.#.conv", NULL, NUMBERS_UP_END},
    {MODEL_UNET, "conv_norm_out", "out.0", NULL, NUMBERS_SAME},
    {MODEL_UNET, "conv_out", "out.2", NULL, NUMBERS_SAME},

    {MODEL_TEXT_ENCODER, "text_model.embeddings.token_embedding", "token_embedding", NULL, NUMBERS_SAME},
    {MODEL_TEXT_ENCODER, "text_model.embeddings.position_embedding", "positional_embedding/", NULL, NUMBERS_SAME},
    {MODEL_TEXT_ENCODER, "text_model.encoder.layers.#.", "transformer.resblocks.#.", text_block, NUMBERS_SAME},
    {MODEL_TEXT_ENCODER, "text_model.final_layer_norm", "ln_final", NULL, NUMBERS_SAME},

    {MODEL_VAE, "encoder.conv_in", "encoder.conv_in", NULL, NUMBERS_SAME},
    {MODEL_VAE, "encoder.down_blocks.#.resnets.#.", "encoder.down.#.block.#.", vae_resnet, NUMBERS_SAME},
    {MODEL_VAE, "encoder.down_blocks.#.downsamplers.0.conv", "encoder.down.#.downsample.conv", NULL, NUMBERS_SAME},
    {MODEL_VAE, "encoder.mid_block.resnets.0.", "encoder.mid.block_1.", vae_resnet, NUMBERS_SAME},
    {MODEL_VAE, "encoder.mid_block.attentions.0.", "encoder.mid.attn_1.", vae_attention, NUMBERS_SAME},
    {MODEL_VAE, "encoder.mid_block.resnets.1.", "encoder.mid.block_2.", vae_resnet, NUMBERS_SAME},
    {MODEL_VAE, "encoder.conv_norm_out", "encoder.norm_out", NULL, NUMBERS_SAME},
    {MODEL_VAE, "encoder.conv_out", "encoder.conv_out", NULL, NUMBERS_SAME},
    {MODEL_VAE, "quant_conv", "quant_conv", NULL, NUMBERS_SAME},
    {MODEL_VAE, "post_quant_conv", "post_quant_conv", NULL, NUMBERS_SAME},
    {MODEL_VAE, "decoder.conv_in", "decoder.conv_in", NULL, NUMBERS_SAME},
    {MODEL_VAE, "decoder.mid_block.resnets.0.", "decoder.mid.block_1.", vae_resnet, NUMBERS_SAME},
    {MODEL_VAE, "decoder.mid_block.attentions.0.", "decoder.mid.attn_1.", vae_attention, NUMBERS_SAME},
    {MODEL_VAE, "decoder.mid_block.resnets.1.", "decoder.mid.block_2.", vae_resnet, NUMBERS_SAME},
    {MODEL_VAE, "decoder.up_blocks.#.resnets.#.", "decoder.up.#.block.#.", vae_resnet, NUMBERS_FLIP},
    {MODEL_VAE, "decoder.up_blocks.#.upsamplers.0.conv", "decoder.up.#.upsample.conv", NULL, NUMBERS_FLIP},
    {MODEL_VAE, "decoder.conv_norm_out", "decoder.norm_out", NULL, NUMBERS_SAME},
    {MODEL_VAE, "decoder.conv_out", "decoder.conv_out", NULL, NUMBERS_SAME},
    {MODEL_OTHER, NULL, NULL, NULL, NUMBERS_SAME},
};
