/* How each layout that is written calls a factor. */
#include <stdio.h>
#include <string.h>

#include "formats/lora_inside.h"

static const char *last_words(const char *path, const char *end)
{
    size_t n = strlen(path), m = strlen(end);

    return n > m && strcmp(path + n - m, end) == 0 ? path + n - m : NULL;
}

static bool fits(int n, size_t size)
{
    return n > 0 && (size_t)n < size;
}

/* diffusers' own training scripts write lora.down, lora.up and lora_linear_layer.* in attention and PEFT's words elsewhere; its loader
 * looks at the first name of the U-Net and then reads only one kind. PEFT's words everywhere are read whole. */
static bool spell_diffusers(const struct lora_out *m, bool up, char *out, size_t size)
{
    return fits(snprintf(out, size, "%s.%s.%s.weight", m->part == MODEL_UNET ? "unet" : "text_encoder", m->path,
                         up ? "lora_B" : "lora_A"), size);
}

/* From transformers 5 on, a text encoder's modules have no "text_model." in front, and PEFT goes by modules' names. */
const char *lora_spell_peft_path(const struct lora_out *m)
{
    static const char old[] = "text_model.";

    return m->part == MODEL_TEXT_ENCODER && strncmp(m->path, old, sizeof old - 1) == 0 ? m->path + sizeof old - 1 : m->path;
}

static bool spell_old(const struct lora_out *m, bool up, char *out, size_t size)
{
    static const struct {
        const char *unet, *text, *old;
    } layer[] = {
        {".to_q", ".q_proj", "to_q"}, {".to_k", ".k_proj", "to_k"}, {".to_v", ".v_proj", "to_v"}, {".to_out.0", ".out_proj", "to_out"},
    };

    for (int i = 0; i < 4; i++) {
        const char *at = last_words(m->path, m->part == MODEL_UNET ? layer[i].unet : layer[i].text);

        if (at)
            return fits(snprintf(out, size, "%s.%.*s.%s%s_lora.%s.weight", m->part == MODEL_UNET ? "unet" : "text_encoder",
                                 (int)(at - m->path), m->path, m->part == MODEL_UNET ? "processor." : "", layer[i].old,
                                 up ? "up" : "down"), size);
    }
    return false;
}

static bool spell_kohya(const struct lora_out *m, enum lora_role role, char *out, size_t size)
{
    static const char *const words[] = {[LORA_DOWN] = ".lora_down.weight", [LORA_UP] = ".lora_up.weight", [LORA_ALPHA] = ".alpha"};
    const char *prefix = m->part == MODEL_UNET ? "lora_unet_" : "lora_te_";

    if (!fits(snprintf(out, size, "%s%s%s", prefix, m->path, words[role]), size))
        return false;
    for (char *p = out; p < out + strlen(prefix) + strlen(m->path); p++)
        *p = *p == '.' ? '_' : *p;
    return true;
}

bool lora_spell(enum lora_layout layout, const struct lora_out *m, enum lora_role role, size_t index, char *out, size_t size)
{
    bool up = role == LORA_UP;

    switch (layout) {
    case LORA_KOHYA: return spell_kohya(m, role, out, size);
    case LORA_DIFFUSERS: return spell_diffusers(m, up, out, size);
    case LORA_DIFFUSERS_OLD: return spell_old(m, up, out, size);
    case LORA_PEFT:
        return fits(snprintf(out, size, "base_model.model.%s.%s.weight", lora_spell_peft_path(m), up ? "lora_B" : "lora_A"), size);
    case LORA_CLONEOFSIMO:
        return fits(snprintf(out, size, "%s:%zu:%s", m->part == MODEL_UNET ? "unet" : "text_encoder", index, up ? "up" : "down"), size);
    default: return false;
    }
}
