/* ref/lora/target.c: which modules LoRA reaches, their keys and blocks */
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ref/lora/target.h"
#include "tests/lib/names_golden.h"

static void count(const char *structure, size_t got[5])
{
    struct names_golden g = names_golden_read(structure);

    memset(got, 0, 5 * sizeof *got);
    for (size_t i = 0; i < g.count; i++)
        if (g.line[i].part != MODEL_OTHER)
            got[target_of(g.line[i].part, g.line[i].name, &g.line[i].shape, NULL)]++;
    free(g.line);
}

static void test_counts(void **state)
{
    size_t n[5];

    (void)state;
    count("sd1", n); /* the published counts: 264 modules; 22 residual blocks and 6 samplers with LoCon */
    assert_int_equal(n[TARGET_LINEAR], 192);
    assert_int_equal(n[TARGET_TEXT], 72);
    assert_int_equal(n[TARGET_CONV], 2 * 22 + 6);
    count("sd2", n);
    assert_int_equal(n[TARGET_LINEAR], 192);
    assert_int_equal(n[TARGET_TEXT], 138);
}

static void test_one(void **state)
{
    static const struct {
        enum model_part part;
        const char *name;
        enum target_class class;
    } row[] = {
        {MODEL_UNET, "down_blocks.0.attentions.1.proj_in.weight", TARGET_LINEAR},
        {MODEL_UNET, "mid_block.attentions.0.transformer_blocks.0.ff.net.2.weight", TARGET_LINEAR},
        {MODEL_UNET, "mid_block.attentions.0.transformer_blocks.0.ff.net.2.bias", TARGET_NONE},
        {MODEL_UNET, "mid_block.attentions.0.transformer_blocks.0.norm1.weight", TARGET_NONE},
        {MODEL_UNET, "mid_block.attentions.0.norm.weight", TARGET_NONE},
        {MODEL_UNET, "up_blocks.3.resnets.2.conv1.weight", TARGET_CONV},
        {MODEL_UNET, "up_blocks.3.resnets.2.conv_shortcut.weight", TARGET_CONV1},
        {MODEL_UNET, "up_blocks.3.resnets.2.time_emb_proj.weight", TARGET_CONV1},
        {MODEL_UNET, "up_blocks.0.upsamplers.0.conv.weight", TARGET_CONV},
        {MODEL_UNET, "down_blocks.0.downsamplers.0.conv.weight", TARGET_CONV},
        {MODEL_UNET, "conv_in.weight", TARGET_NONE},
        {MODEL_UNET, "time_embedding.linear_1.weight", TARGET_NONE},
        {MODEL_TEXT_ENCODER, "text_model.encoder.layers.11.mlp.fc1.weight", TARGET_TEXT},
        {MODEL_TEXT_ENCODER, "text_model.embeddings.token_embedding.weight", TARGET_NONE},
        {MODEL_VAE, "encoder.mid_block.attentions.0.to_q.weight", TARGET_NONE},
        {MODEL_OTHER, "down_blocks.0.attentions.1.proj_in.weight", TARGET_NONE},
    };
    struct shape s = shape_of(4, 8, 6, 3, 5);
    struct target t;
    char key[128];

    (void)state;
    for (size_t i = 0; i < sizeof row / sizeof row[0]; i++)
        if (target_of(row[i].part, row[i].name, &s, &t) != row[i].class)
            fail_msg("%s", row[i].name);
    assert_int_equal(target_of(MODEL_UNET, row[5].name, &s, &t), TARGET_CONV);
    assert_true(t.conv && t.out == 8 && t.in == 6 && t.kh == 3 && t.kw == 5);
    assert_int_equal(t.path_length, strlen("up_blocks.3.resnets.2.conv1"));
    assert_string_equal(target_kohya_key(MODEL_UNET, "mid_block.attentions.0.proj_in", key, sizeof key),
                        "lora_unet_mid_block_attentions_0_proj_in");
    assert_string_equal(target_kohya_key(MODEL_TEXT_ENCODER, "text_model.encoder.layers.0.mlp.fc1", key, sizeof key),
                        "lora_te_text_model_encoder_layers_0_mlp_fc1");
    assert_null(target_kohya_key(MODEL_VAE, "x", key, sizeof key));
    assert_null(target_kohya_key(MODEL_UNET, "mid_block", key, 19));
}

static void test_blocks(void **state)
{
    static const struct {
        const char *path, *block;
    } row[] = {
        {"conv_in", "IN00"},
        {"down_blocks.0.attentions.0.proj_in", "IN01"},
        {"down_blocks.0.attentions.1.proj_in", "IN02"},
        {"down_blocks.0.downsamplers.0.conv", "IN03"},
        {"down_blocks.2.attentions.1.transformer_blocks.0.attn1.to_q", "IN08"},
        {"down_blocks.2.downsamplers.0.conv", "IN09"},
        {"down_blocks.3.resnets.1.conv1", "IN11"},
        {"mid_block.attentions.0.proj_in", "MID"},
        {"up_blocks.0.resnets.0.conv1", "OUT00"},
        {"up_blocks.0.upsamplers.0.conv", "OUT02"},
        {"up_blocks.1.attentions.0.proj_in", "OUT03"},
        {"up_blocks.3.attentions.2.proj_in", "OUT11"},
        {"conv_out", "OUT11"},
    };
    double in[26], out[TARGET_BLOCKS];
    struct err err = {0};

    (void)state;
    for (size_t i = 0; i < sizeof row / sizeof row[0]; i++)
        assert_string_equal(target_block_name(target_block(MODEL_UNET, row[i].path, 2)), row[i].block);
    assert_int_equal(target_block(MODEL_TEXT_ENCODER, "text_model.encoder.layers.3.mlp.fc1", 2), TARGET_BASE);
    assert_int_equal(target_block(MODEL_VAE, "encoder.conv_in", 2), -1);
    assert_int_equal(target_block(MODEL_UNET, "down_blocks.4.resnets.0.conv1", 2), -1);
    for (int i = 0; i < 26; i++)
        in[i] = i + 10;
    assert_int_equal(target_block_weights(in, 17, out, &err), 0);
    assert_true(out[TARGET_BASE] == 10 && out[TARGET_IN00] == 1 && out[TARGET_IN00 + 1] == 11 && out[TARGET_IN00 + 8] == 16 &&
                out[TARGET_MID] == 17 && out[TARGET_OUT00 + 2] == 1 && out[TARGET_OUT00 + 3] == 18 && out[25] == 26);
    assert_int_equal(target_block_weights(in, 12, out, &err), 0);
    assert_true(out[TARGET_IN00 + 4] == 11 && out[TARGET_MID] == 15 && out[TARGET_OUT00 + 5] == 21 && out[25] == 1);
    assert_int_equal(target_block_weights(in, 20, out, &err), 0);
    assert_true(out[TARGET_IN00] == 11 && out[TARGET_IN00 + 8] == 19 && out[TARGET_MID] == 20 && out[TARGET_OUT00 + 8] == 29);
    assert_int_equal(target_block_weights(in, 26, out, &err), 0);
    assert_memory_equal(in, out, sizeof in);
    assert_int_equal(target_block_weights(in, 13, out, &err), -1);
    assert_int_equal(err.kind, ERR_USAGE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_counts), cmocka_unit_test(test_one), cmocka_unit_test(test_blocks)};

    return cmocka_run_group_tests(tests, NULL, NULL);
}
