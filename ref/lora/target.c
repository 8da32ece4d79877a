#include "ref/lora/target.h"

#include <stdio.h>
#include <string.h>

/* Matches pattern at the beginning of s [n]: '#' is a number, kept in num. Returns bytes matched, 0 for none. */
static size_t match(const char *pattern, const char *s, size_t n, size_t *num, size_t max)
{
    size_t at = 0, count = 0;

    for (; *pattern; pattern++) {
        if (*pattern == '#') {
            size_t from = at, v = 0;

            while (at < n && s[at] >= '0' && s[at] <= '9' && v < 10000)
                v = v * 10 + (size_t)(s[at++] - '0');
            if (at == from || v >= 10000)
                return 0;
            if (count < max)
                num[count++] = v;
        } else if (at < n && s[at] == *pattern) {
            at++;
        } else {
            return 0;
        }
    }
    return at;
}

static bool matches_whole(const char *const *patterns, const char *s, size_t n)
{
    for (; *patterns; patterns++)
        if (n > 0 && match(*patterns, s, n, NULL, 0) == n)
            return true;
    return false;
}

static const char *const spatial[] = {
    "proj_in",
    "proj_out",
    "transformer_blocks.#.attn1.to_q",
    "transformer_blocks.#.attn1.to_k",
    "transformer_blocks.#.attn1.to_v",
    "transformer_blocks.#.attn1.to_out.0",
    "transformer_blocks.#.attn2.to_q",
    "transformer_blocks.#.attn2.to_k",
    "transformer_blocks.#.attn2.to_v",
    "transformer_blocks.#.attn2.to_out.0",
    "transformer_blocks.#.ff.net.0.proj",
    "transformer_blocks.#.ff.net.2",
    NULL,
};
static const char *const convs[] = {"conv1", "conv2", NULL};
static const char *const conv1s[] = {"conv_shortcut", "time_emb_proj", NULL};
static const char *const samplers[] = {"down_blocks.#.downsamplers.0.conv", "up_blocks.#.upsamplers.0.conv", NULL};
static const char *const text[] = {
    "text_model.encoder.layers.#.self_attn.q_proj",
    "text_model.encoder.layers.#.self_attn.k_proj",
    "text_model.encoder.layers.#.self_attn.v_proj",
    "text_model.encoder.layers.#.self_attn.out_proj",
    "text_model.encoder.layers.#.mlp.fc1",
    "text_model.encoder.layers.#.mlp.fc2",
    NULL,
};

enum target_class target_of_path(enum model_part part, const char *path, size_t n)
{
    static const char *const attentions[] = {"down_blocks.#.attentions.#.", "mid_block.attentions.#.", "up_blocks.#.attentions.#."};
    static const char *const resnets[] = {"down_blocks.#.resnets.#.", "mid_block.resnets.#.", "up_blocks.#.resnets.#."};

    if (part == MODEL_TEXT_ENCODER)
        return matches_whole(text, path, n) ? TARGET_TEXT : TARGET_NONE;
    if (part != MODEL_UNET)
        return TARGET_NONE;
    for (int i = 0; i < 3; i++) {
        size_t at = match(attentions[i], path, n, NULL, 0);

        if (at > 0)
            return matches_whole(spatial, path + at, n - at) ? TARGET_LINEAR : TARGET_NONE;
        at = match(resnets[i], path, n, NULL, 0);
        if (at > 0)
            return matches_whole(convs, path + at, n - at)    ? TARGET_CONV
                   : matches_whole(conv1s, path + at, n - at) ? TARGET_CONV1
                                                              : TARGET_NONE;
    }
    return matches_whole(samplers, path, n) ? TARGET_CONV : TARGET_NONE;
}

enum target_class target_of(enum model_part part, const char *name, const struct shape *shape, struct target *out)
{
    static const char leaf[] = ".weight";
    size_t n = strlen(name);
    struct target t = {.class = TARGET_NONE};

    if (n > sizeof leaf - 1 && strcmp(name + n - (sizeof leaf - 1), leaf) == 0 && (shape->ndim == 2 || shape->ndim == 4)) {
        t.path_length = n - (sizeof leaf - 1);
        t.class = target_of_path(part, name, t.path_length);
        t.conv = shape->ndim == 4;
        t.out = shape->dim[0], t.in = shape->dim[1];
        t.kh = t.conv ? shape->dim[2] : 1, t.kw = t.conv ? shape->dim[3] : 1;
    }
    if (out)
        *out = t;
    return t.class;
}

const char *target_kohya_key(enum model_part part, const char *path, char *buf, size_t size)
{
    const char *prefix = part == MODEL_UNET ? "lora_unet_" : part == MODEL_TEXT_ENCODER ? "lora_te_" : NULL;
    int n = prefix ? snprintf(buf, size, "%s%s", prefix, path) : -1;

    if (n < 0 || (size_t)n >= size)
        return NULL;
    for (char *p = buf; *p; p++)
        if (*p == '.')
            *p = '_';
    return buf;
}

int target_block(enum model_part part, const char *path, size_t layers)
{
    size_t len = strlen(path), n = layers + 1, num[2] = {0, 0}, i;
    bool in = true;

    if (part == MODEL_TEXT_ENCODER)
        return TARGET_BASE;
    if (part != MODEL_UNET)
        return -1;
    if (match("mid_block.", path, len, NULL, 0))
        return TARGET_MID;
    if (match("conv_in", path, len, NULL, 0) || match("time_embedding.", path, len, NULL, 0))
        return TARGET_IN00;
    if (match("conv_out", path, len, NULL, 0) || match("conv_norm_out", path, len, NULL, 0))
        return TARGET_BLOCKS - 1;
    if (match("down_blocks.#.resnets.#.", path, len, num, 2) || match("down_blocks.#.attentions.#.", path, len, num, 2))
        i = 1 + n * num[0] + num[1];
    else if (match("down_blocks.#.downsamplers.", path, len, num, 2))
        i = n * (num[0] + 1);
    else if (match("up_blocks.#.resnets.#.", path, len, num, 2) || match("up_blocks.#.attentions.#.", path, len, num, 2))
        i = n * num[0] + num[1], in = false;
    else if (match("up_blocks.#.upsamplers.", path, len, num, 2))
        i = n * num[0] + n - 1, in = false;
    else
        return -1;
    return i >= 12 ? -1 : in ? TARGET_IN00 + (int)i : TARGET_OUT00 + (int)i;
}

const char *target_block_name(int block)
{
    static const char *const name[TARGET_BLOCKS] = {
        "BASE",  "IN00",  "IN01",  "IN02",  "IN03",  "IN04",  "IN05",  "IN06",  "IN07",
        "IN08",  "IN09",  "IN10",  "IN11",  "MID",   "OUT00", "OUT01", "OUT02", "OUT03",
        "OUT04", "OUT05", "OUT06", "OUT07", "OUT08", "OUT09", "OUT10", "OUT11",
    };

    return block >= 0 && block < TARGET_BLOCKS ? name[block] : "none";
}

int target_block_weights(const double *values, size_t n, double out[TARGET_BLOCKS], struct err *err)
{
    /* Which blocks each list gives, in the order BASE, IN00-IN11, MID, OUT00-OUT11. */
    static const struct {
        size_t n;
        const char *given;
    } list[] = {
        {12, "1" "000011011000" "1" "111111000000"},
        {17, "1" "011011011000" "1" "000111111111"},
        {20, "1" "111111111000" "1" "111111111000"},
        {26, "1" "111111111111" "1" "111111111111"},
    };

    for (size_t l = 0; l < sizeof list / sizeof list[0]; l++) {
        size_t next = 0;

        if (list[l].n != n)
            continue;
        for (int b = 0; b < TARGET_BLOCKS; b++)
            out[b] = list[l].given[b] == '1' ? values[next++] : 1;
        return 0;
    }
    return err_usage(err, "%zu block weights were given; give 12, 17, 20 or 26 values (BASE first, see 'lora help merge')", n);
}
