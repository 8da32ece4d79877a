#include <string.h>

#include "formats/lora_inside.h"

static bool ends(const char *name, size_t n, const char *with)
{
    size_t m = strlen(with);

    return n >= m && memcmp(name + n - m, with, m) == 0;
}

static const struct {
    const char *end;
    enum lora_role role;
    enum lora_layout layout; /* unless the beginning tells */
} suffixes[] = {
    {".lora_down.weight", LORA_DOWN, LORA_KOHYA},
    {".lora_up.weight", LORA_UP, LORA_KOHYA},
    {".lora_mid.weight", LORA_MID, LORA_KOHYA},
    {".lora_A.weight", LORA_DOWN, LORA_DIFFUSERS},
    {".lora_B.weight", LORA_UP, LORA_DIFFUSERS},
    {".lora_A.default.weight", LORA_DOWN, LORA_PEFT},
    {".lora_B.default.weight", LORA_UP, LORA_PEFT},
    {".lora.down.weight", LORA_DOWN, LORA_DIFFUSERS},
    {".lora.up.weight", LORA_UP, LORA_DIFFUSERS},
    {".lora_linear_layer.down.weight", LORA_DOWN, LORA_DIFFUSERS},
    {".lora_linear_layer.up.weight", LORA_UP, LORA_DIFFUSERS},
    {"_lora.down.weight", LORA_DOWN, LORA_DIFFUSERS_OLD},
    {"_lora.up.weight", LORA_UP, LORA_DIFFUSERS_OLD},
    {"_lora.alpha", LORA_ALPHA, LORA_DIFFUSERS_OLD},
    {".lora.alpha", LORA_ALPHA, LORA_DIFFUSERS},
    {".alpha", LORA_ALPHA, LORA_KOHYA},
};

static const struct {
    const char *begin;
    enum model_part part;
    enum lora_layout layout;
    bool layout_told, te1;
} prefixes[] = {
    {"lora_unet_", MODEL_UNET, LORA_KOHYA, true, false},
    {"lora_te_", MODEL_TEXT_ENCODER, LORA_KOHYA, true, false},
    {"lora_te1_", MODEL_TEXT_ENCODER, LORA_KOHYA, true, true},
    {"model.diffusion_model.", MODEL_UNET, LORA_COMFY, true, false},
    {"diffusion_model.", MODEL_UNET, LORA_COMFY, true, false},
    {"base_model.model.", MODEL_OTHER, LORA_PEFT, true, false},
    {"unet.", MODEL_UNET, LORA_DIFFUSERS, false, false},
    {"text_encoder.", MODEL_TEXT_ENCODER, LORA_DIFFUSERS, false, false},
    {"", MODEL_OTHER, LORA_DIFFUSERS, false, false},
};

/* Old diffusers kept LoRA in attention processors and called the text encoder's projections as the U-Net's. */
static void renew(struct lora_key *k)
{
    static const struct {
        const char *old, *text;
    } attention[] = {{".to_q", ".q_proj"}, {".to_k", ".k_proj"}, {".to_v", ".v_proj"}, {".to_out", ".out_proj"}};
    char *at = strstr(k->module, ".processor.");
    size_t n;

    if (at)
        memmove(at, at + strlen(".processor"), strlen(at + strlen(".processor")) + 1);
    n = strlen(k->module);
    if (k->layout != LORA_DIFFUSERS_OLD)
        return;
    for (size_t i = 0; k->part == MODEL_TEXT_ENCODER && i < 4; i++)
        if (ends(k->module, n, attention[i].old) && n + 2 < sizeof k->module) {
            strcpy(k->module + n - strlen(attention[i].old), attention[i].text);
            return;
        }
    if (ends(k->module, n, ".to_out") && n + 3 < sizeof k->module)
        strcpy(k->module + n, ".0");
}

bool lora_key_parse(const char *name, struct lora_key *out)
{
    size_t n = strlen(name), s = 0, p = 0, from, len;

    while (s < sizeof suffixes / sizeof suffixes[0] && !ends(name, n, suffixes[s].end))
        s++;
    if (s == sizeof suffixes / sizeof suffixes[0])
        return false;
    while (strncmp(name, prefixes[p].begin, strlen(prefixes[p].begin)) != 0)
        p++;
    from = strlen(prefixes[p].begin);
    if (from + strlen(suffixes[s].end) >= n)
        return false;
    len = n - strlen(suffixes[s].end) - from;
    if (len >= sizeof out->module - 8)
        return false;
    *out = (struct lora_key){
        .layout = prefixes[p].layout_told ? prefixes[p].layout : suffixes[s].layout,
        .role = suffixes[s].role,
        .any_part = prefixes[p].part == MODEL_OTHER,
        .te1 = prefixes[p].te1,
        .part = prefixes[p].part == MODEL_OTHER ? MODEL_UNET : prefixes[p].part,
    };
    memcpy(out->module, name + from, len);
    out->module[len] = 0;
    renew(out);
    return true;
}

const char *lora_key_refused(const char *name)
{
    static const struct {
        const char *end, *is;
    } by_end[] = {
        {".hada_w1_a", "a LoHa file; it is not supported, convert it to LoRA with its own tool"},
        {".lokr_w1", "a LoKr file; it is not supported, convert it to LoRA with its own tool"},
        {".lokr_w1_a", "a LoKr file; it is not supported, convert it to LoRA with its own tool"},
        {".dora_scale", "a DoRA file; DoRA is not supported, give a plain LoRA"},
        {".lora_magnitude_vector", "a DoRA file; DoRA is not supported, give a plain LoRA"},
        {".lora_magnitude_vector.weight", "a DoRA file; DoRA is not supported, give a plain LoRA"},
        {".oft_blocks", "an OFT file; it is not supported, give a LoRA"},
        {".oft_diag", "an OFT file; it is not supported, give a LoRA"},
        {".on_input", "an (IA)3 file; it is not supported, give a LoRA"},
        {".a1.weight", "a GLoRA file; it is not supported, give a LoRA"},
        {".lora_B.bias", "a LoRA with biases; they are not supported, give a plain LoRA"},
        {".lora_up.bias", "a LoRA with biases; they are not supported, give a plain LoRA"},
        {".diff", "a file of full differences; it is not supported, give a LoRA"},
        {".diff_b", "a file of bias differences; it is not supported, give a LoRA"},
    };
    static const struct {
        const char *begin, *is;
    } by_begin[] = {
        {"lora_te2_", "an SDXL LoRA; SDXL is not supported, give a LoRA for Stable Diffusion 1.x or 2.x"},
        {"text_encoder_2.", "an SDXL LoRA; SDXL is not supported, give a LoRA for Stable Diffusion 1.x or 2.x"},
        {"lora_unet_double_blocks", "a Flux LoRA; Flux is not supported, give a LoRA for Stable Diffusion 1.x or 2.x"},
        {"lora_unet_single_blocks", "a Flux LoRA; Flux is not supported, give a LoRA for Stable Diffusion 1.x or 2.x"},
        {"lora_unet_joint_blocks", "a Stable Diffusion 3 LoRA; it is not supported, give a LoRA for 1.x or 2.x"},
        {"lora_transformer_", "a LoRA for a transformer model (Stable Diffusion 3, Flux or the like); it is not supported"},
        {"transformer.", "a LoRA for a transformer model (Stable Diffusion 3, Flux or the like); it is not supported"},
    };
    size_t n = strlen(name);
    struct lora_key k;

    for (size_t i = 0; i < sizeof by_end / sizeof by_end[0]; i++)
        if (ends(name, n, by_end[i].end))
            return by_end[i].is;
    if (!lora_key_parse(name, &k))
        return NULL;
    for (size_t i = 0; i < sizeof by_begin / sizeof by_begin[0]; i++)
        if (strncmp(name, by_begin[i].begin, strlen(by_begin[i].begin)) == 0)
            return by_begin[i].is;
    return NULL;
}
