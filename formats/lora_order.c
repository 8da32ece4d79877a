/* cloneofsimo's files have no names: modules stand in the order in which its trainer walked diffusers' classes. For the U-Net
 * these were all Linear layers in attention and GEGLU blocks, with down blocks before up blocks before the middle (that is
 * how the U-Net's attributes came to be registered), and attn1, GEGLU, attn2 within a block, or attn1, attn2, GEGLU in later
 * diffusers; for the text encoder k, v, q, out of each layer. The trees of SD1 and SD2 have 16 transformer blocks. */
#include <stdio.h>

#include "formats/lora_inside.h"

enum { PER_BLOCK = 9, UNET_BLOCKS = 16, PER_TEXT = 4, SD1_TEXT = 12, SD2_TEXT = 23 };

bool lora_order_path(enum model_part part, size_t n, size_t i, bool wide, char out[NAMES_MAX])
{
    static const char *const early[PER_BLOCK] = {"attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "ff.net.0.proj",
                                                 "attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0"};
    static const char *const late[PER_BLOCK] = {"attn1.to_q", "attn1.to_k", "attn1.to_v", "attn1.to_out.0", "attn2.to_q",
                                                "attn2.to_k", "attn2.to_v", "attn2.to_out.0", "ff.net.0.proj"};
    static const char *const text[PER_TEXT] = {"k_proj", "v_proj", "q_proj", "out_proj"};
    size_t block = i / PER_BLOCK, level;
    char head[64];

    if (i >= n)
        return false;
    if (part == MODEL_TEXT_ENCODER) {
        snprintf(out, NAMES_MAX, "text_model.encoder.layers.%zu.self_attn.%s", i / PER_TEXT, text[i % PER_TEXT]);
        return n == SD1_TEXT * PER_TEXT || n == SD2_TEXT * PER_TEXT;
    }
    level = block < 6 ? block / 2 : (block - 6) / 3 + 1;
    if (block < 6)
        snprintf(head, sizeof head, "down_blocks.%zu.attentions.%zu", level, block % 2);
    else if (block < UNET_BLOCKS - 1)
        snprintf(head, sizeof head, "up_blocks.%zu.attentions.%zu", level, (block - 6) % 3);
    else
        snprintf(head, sizeof head, "mid_block.attentions.0");
    snprintf(out, NAMES_MAX, "%s.transformer_blocks.0.%s", head, (wide ? early : late)[i % PER_BLOCK]);
    return part == MODEL_UNET && n == UNET_BLOCKS * PER_BLOCK;
}
