#include "formats/names.h"

#include <stdio.h>
#include <string.h>

#include "formats/names_rules.h"

enum { NUMBERS = 4, BLOCKS = 64, OPENCLIP_H_USED = 23, SD_LAYERS = 2 };

struct numbers {
    size_t at[NUMBERS], count;
};

/* Reads a decimal number without leading zeros at *s, before end. */
static bool number(const char **s, const char *end, size_t *out)
{
    const char *p = *s;
    size_t v = 0;

    while (p < end && *p >= '0' && *p <= '9' && v < 10000)
        v = v * 10 + (size_t)(*p++ - '0');
    if (p == *s || v >= 10000 || (**s == '0' && p > *s + 1))
        return false;
    *s = p, *out = v;
    return true;
}

/* Matches pattern at *s; on success *s is behind it and its numbers are appended. loose: '_' may stand for '.'. */
static bool match(const char *pattern, const char **s, const char *end, bool loose, struct numbers *n)
{
    const char *p = *s;
    size_t count = n->count;

    for (; *pattern && *pattern != '/'; pattern++) {
        if (*pattern == '#') {
            if (count == NUMBERS || !number(&p, end, &n->at[count++]))
                return false;
        } else if (p < end && (*p == *pattern || (loose && *pattern == '.' && *p == '_'))) {
            p++;
        } else {
            return false;
        }
    }
    *s = p, n->count = count;
    return true;
}

struct found {
    const struct names_rule *rule;
    const struct names_pair *tail; /* NULL when the rule has none */
    struct numbers head, rest;     /* of head and tail, as the side that was matched counts */
};

/* The next rule from `from` on whose canonical or LDM side is the whole path. */
static bool find_rule(const struct names_rule *from, enum model_part part, bool ldm, const char *path, const char *end,
                      bool loose, struct found *out)
{
    for (const struct names_rule *r = from; r->canonical; r++) {
        struct numbers head = {.count = 0}, rest = {.count = 0};
        const char *s = path, *tail_at;

        if (r->part != part || !match(ldm ? r->ldm : r->canonical, &s, end, loose, &head))
            continue;
        *out = (struct found){r, NULL, head, rest};
        if (!r->tail && s == end)
            return true;
        tail_at = s;
        for (const struct names_pair *t = r->tail; t && t->canonical; t++) {
            s = tail_at, rest.count = 0;
            if (match(ldm ? t->ldm : t->canonical, &s, end, loose, &rest) && s == end) {
                out->tail = t, out->rest = rest;
                return true;
            }
        }
    }
    return false;
}

/* Numbers of a canonical head -> of the LDM head. False when they are out of the plan's range. */
static bool numbers_to_ldm(const struct names_plan *p, enum names_numbers how, const struct numbers *c, struct numbers *l)
{
    size_t n = p->unet_layers + 1, level = c->at[0];

    *l = *c; /* levels and layers are small, so nothing overflows */
    if (how == NUMBERS_SAME)
        return true;
    if (level >= NAMES_LEVELS || (how == NUMBERS_FLIP ? level >= p->vae_levels : n * (level + 1) >= BLOCKS))
        return false;
    switch (how) {
    case NUMBERS_DOWN: *l = (struct numbers){{1 + n * level + c->at[1]}, 1}; return c->at[1] < p->unet_layers;
    case NUMBERS_DOWN_END: *l = (struct numbers){{n * (level + 1)}, 1}; return true;
    case NUMBERS_UP: *l = (struct numbers){{n * level + c->at[1]}, 1}; return c->at[1] < n;
    case NUMBERS_UP_END: *l = (struct numbers){{n * level + n - 1, p->up_attention[level] ? 2 : 1}, 2}; return true;
    case NUMBERS_FLIP: l->at[0] = p->vae_levels - 1 - level; return true;
    default: return true;
    }
}

static bool numbers_from_ldm(const struct names_plan *p, enum names_numbers how, const struct numbers *l, struct numbers *c)
{
    size_t n = p->unet_layers + 1, i = l->at[0];

    *c = *l;
    if (how == NUMBERS_SAME)
        return true;
    if (i >= BLOCKS || (how == NUMBERS_FLIP && i >= p->vae_levels))
        return false;
    switch (how) {
    case NUMBERS_DOWN: *c = (struct numbers){{(i - 1) / n, (i - 1) % n}, 2}; return i > 0 && (i - 1) % n < n - 1;
    case NUMBERS_DOWN_END: *c = (struct numbers){{i / n - 1}, 1}; return i > 0 && i % n == 0;
    case NUMBERS_UP: *c = (struct numbers){{i / n, i % n}, 2}; return true;
    case NUMBERS_UP_END: *c = (struct numbers){{i / n}, 1}; return i % n == n - 1 && (l->at[1] == 1 || l->at[1] == 2);
    case NUMBERS_FLIP: c->at[0] = p->vae_levels - 1 - i; return true;
    default: return true;
    }
}

/* Appends a pattern with its numbers put in. False when out [NAMES_MAX] is full. */
static bool put(char *out, size_t *at, const char *pattern, const struct numbers *n)
{
    size_t k = 0;

    for (; *pattern && *pattern != '/'; pattern++) {
        if (NAMES_MAX - *at < 24) /* room for any number and the 0 */
            return false;
        if (*pattern == '#')
            *at += (size_t)snprintf(out + *at, NAMES_MAX - *at, "%zu", n->at[k++]);
        else
            out[(*at)++] = *pattern;
    }
    out[*at] = 0;
    return true;
}

static bool put_text(char *out, size_t *at, const char *text)
{
    return put(out, at, text, &(struct numbers){.count = 0});
}

/* The canonical path of what was found on either side. */
static bool put_canonical(const struct names_plan *p, const struct found *f, bool ldm, char *out, size_t *at)
{
    struct numbers head = f->head;

    if (ldm && !numbers_from_ldm(p, f->rule->numbers, &f->head, &head))
        return false;
    return put(out, at, f->rule->canonical, &head) && (!f->tail || put(out, at, f->tail->canonical, &f->rest));
}

static bool put_ldm(const struct names_plan *p, const struct found *f, char *out, size_t *at)
{
    struct numbers head;

    return numbers_to_ldm(p, f->rule->numbers, &f->head, &head) && put(out, at, f->rule->ldm, &head) &&
           (!f->tail || put(out, at, f->tail->ldm, &f->rest));
}

/* Splits "a.b.weight" into path and leaf; false when the leaf is neither weight nor bias. */
static bool split_leaf(const char *name, const char **path_end, const char **leaf)
{
    const char *dot = strrchr(name, '.');

    if (!dot || (strcmp(dot, ".weight") != 0 && strcmp(dot, ".bias") != 0))
        return false;
    *path_end = dot, *leaf = dot;
    return true;
}

static const char *lacks_text_model(enum model_part part, const char *name)
{
    return part == MODEL_TEXT_ENCODER && strncmp(name, "text_model.", 11) != 0 ? "text_model." : "";
}

/* An old VAE attention name: replaces the last words. */
static bool renew_vae(const char *name, const char *leaf, char out[NAMES_MAX])
{
    for (const struct names_pair *t = names_old_vae_attention; t->canonical; t++) {
        size_t n = strlen(t->ldm), before = (size_t)(leaf - name);

        if (before > n && strncmp(leaf - n, t->ldm, n) == 0 && leaf[-(ptrdiff_t)n - 1] == '.') {
            int got = snprintf(out, NAMES_MAX, "%.*s%s%s", (int)(before - n), name, t->canonical, leaf);
            return got > 0 && got < NAMES_MAX;
        }
    }
    return false;
}

bool names_canonical(enum model_part part, const char *name, char out[NAMES_MAX])
{
    const char *end, *leaf;
    struct found f;
    char renewed[NAMES_MAX];

    if (!split_leaf(name, &end, &leaf) ||
        snprintf(out, NAMES_MAX, "%s%s", lacks_text_model(part, name), name) >= NAMES_MAX)
        return false;
    end = strrchr(out, '.');
    if (find_rule(names_rules, part, false, out, end, false, &f))
        return true;
    if (part != MODEL_VAE || !renew_vae(name, leaf, renewed))
        return false;
    memcpy(out, renewed, sizeof renewed);
    return find_rule(names_rules, part, false, out, strrchr(out, '.'), false, &f);
}

/* OpenCLIP's tensors whose leaf is no leaf. */
static int from_openclip_odd(const struct names_plan *p, const char *name, struct names_slice out[3])
{
    static const char *const which[3] = {"q", "k", "v"};
    struct numbers n = {.count = 0};
    const char *s = name, *end = name + strlen(name);
    const char *leaf;

    if (strcmp(name, "positional_embedding") == 0) {
        out[0] = (struct names_slice){.name = "text_model.embeddings.position_embedding.weight", .slices = 1};
        return 1;
    }
    if (!match("transformer.resblocks.#.attn.in_proj_", &s, end, false, &n) || n.at[0] >= p->text_used)
        return 0;
    leaf = strcmp(s, "weight") == 0 ? "weight" : strcmp(s, "bias") == 0 ? "bias" : NULL;
    if (!leaf)
        return 0;
    for (size_t i = 0; i < 3; i++) {
        snprintf(out[i].name, sizeof out[i].name, "text_model.encoder.layers.%zu.self_attn.%s_proj.%s", n.at[0], which[i], leaf);
        out[i].slice = i, out[i].slices = 3;
    }
    return 3;
}

int names_from_ldm(const struct names_plan *p, enum model_part part, const char *name, struct names_slice out[3])
{
    const char *end, *leaf;
    struct found f;
    size_t at = 0;

    if (part == MODEL_TEXT_ENCODER && !p->openclip) {
        out[0].slice = 0, out[0].slices = 1;
        return names_canonical(part, name, out[0].name) ? 1 : 0;
    }
    if (part == MODEL_TEXT_ENCODER) {
        int n = from_openclip_odd(p, name, out);

        if (n > 0)
            return n;
    }
    if (!split_leaf(name, &end, &leaf))
        return 0;
    for (const struct names_rule *r = names_rules; find_rule(r, part, true, name, end, false, &f); r = f.rule + 1) {
        at = 0;
        if (strchr(f.rule->ldm, '/') || (f.tail && strchr(f.tail->ldm, '/'))) /* an odd one: not under a plain leaf */
            continue;
        if (part == MODEL_TEXT_ENCODER && f.head.count && f.head.at[0] >= p->text_used)
            return 0;
        if (put_canonical(p, &f, true, out[0].name, &at) && put_text(out[0].name, &at, leaf)) {
            out[0].slice = 0, out[0].slices = 1;
            return 1;
        }
    }
    return 0;
}

bool names_to_ldm(const struct names_plan *p, enum model_part part, const char *canonical, struct names_slice *out)
{
    const char *end, *leaf, *mark;
    struct found f;
    size_t at = 0;

    out->slice = 0, out->slices = 1;
    if (!split_leaf(canonical, &end, &leaf) || !find_rule(names_rules, part, false, canonical, end, false, &f))
        return false;
    if (part == MODEL_TEXT_ENCODER && !p->openclip)
        return snprintf(out->name, NAMES_MAX, "%s", canonical) < NAMES_MAX;
    if (!put_ldm(p, &f, out->name, &at))
        return false;
    if (strchr(f.rule->ldm, '/'))
        return true;
    mark = f.tail ? strchr(f.tail->ldm, '/') : NULL;
    if (!mark)
        return put_text(out->name, &at, leaf);
    out->slice = (size_t)(mark[1] - '0'), out->slices = 3;
    return put_text(out->name, &at, "_") && put_text(out->name, &at, leaf + 1);
}

bool names_module(const struct names_plan *p, enum model_part part, const char *key, size_t n, char out[NAMES_MAX])
{
    static const char text_model[] = "text_model.";
    char whole[NAMES_MAX];
    struct found f;

    if (n + sizeof text_model > sizeof whole)
        return false;
    for (int with = 0; with < (part == MODEL_TEXT_ENCODER ? 2 : 1); with++) { /* some files leave text_model out */
        size_t at = 0, length = (size_t)snprintf(whole, sizeof whole, "%s%.*s", with ? text_model : "", (int)n, key);

        if (find_rule(names_rules, part, false, whole, whole + length, true, &f) && put_canonical(p, &f, false, out, &at))
            return true;
    }
    for (const struct names_rule *r = names_rules; find_rule(r, part, true, key, key + n, true, &f); r = f.rule + 1) {
        size_t at = 0;

        if (part == MODEL_UNET && put_canonical(p, &f, true, out, &at))
            return true;
    }
    return false;
}

const char *names_part(enum model_part part)
{
    static const char *const name[MODEL_PARTS] = {"U-Net", "text encoder", "VAE", "other"};

    return name[part];
}

const char *names_ldm_prefix(const struct names_plan *p, enum model_part part)
{
    switch (part) {
    case MODEL_UNET: return "model.diffusion_model.";
    case MODEL_VAE: return "first_stage_model.";
    case MODEL_TEXT_ENCODER: return p->openclip ? "cond_stage_model.model." : "cond_stage_model.transformer.";
    default: return "";
    }
}

/* ---- Learning the plan ---- */

static void grow(size_t *max, size_t v, size_t limit)
{
    if (v < limit && v + 1 > *max)
        *max = v + 1;
}

static void note_unet(struct names_plan *p, const char *s, const char *end, bool loose)
{
    struct numbers n = {.count = 0};
    const char *rest = s;

    if (match("input_blocks.#.#", &rest, end, loose, &n) && n.at[0] < BLOCKS) {
        grow(&p->ldm.inputs, n.at[0], BLOCKS);
        p->ldm.stem = p->ldm.stem || n.at[0] == 0;
        if (n.at[1] == 0 && end - rest >= 3 && strncmp(rest + 1, "op", 2) == 0 && (!p->ldm.first_down || n.at[0] < p->ldm.first_down))
            p->ldm.first_down = n.at[0];
        if (n.at[1] == 1)
            p->ldm.in_attention |= UINT64_C(1) << n.at[0];
        return;
    }
    n.count = 0, rest = s;
    if (match("output_blocks.#.1.", &rest, end, loose, &n) && n.at[0] < BLOCKS && (end - rest < 4 || strncmp(rest, "conv", 4) != 0))
        p->ldm.out_attention |= UINT64_C(1) << n.at[0];
    n.count = 0, rest = s;
    if (match("down_blocks.#.resnets.#.", &rest, end, loose, &n)) {
        grow(&p->unet_levels, n.at[0], NAMES_LEVELS);
        grow(&p->unet_layers, n.at[1], BLOCKS / 2);
    }
    n.count = 0, rest = s;
    if (match("up_blocks.#.attentions.", &rest, end, loose, &n) && n.at[0] < NAMES_LEVELS)
        p->up_attention[n.at[0]] = true;
}

static void note_vae(struct names_plan *p, const char *s, const char *end)
{
    static const char *const level[] = {"encoder.down.#.", "encoder.down_blocks.#.", "decoder.up.#.", "decoder.up_blocks.#."};

    for (size_t i = 0; i < sizeof level / sizeof level[0]; i++) {
        struct numbers n = {.count = 0};
        const char *rest = s;

        if (match(level[i], &rest, end, false, &n))
            grow(&p->vae_levels, n.at[0], NAMES_LEVELS);
    }
}

static void note_text(struct names_plan *p, const char *s, const char *end)
{
    struct numbers n = {.count = 0};
    const char *rest = s;

    if (match("transformer.resblocks.#.", &rest, end, false, &n)) {
        p->openclip = true;
        grow(&p->text_layers, n.at[0], 1000);
    }
    n.count = 0, rest = s;
    if (match("text_model.encoder.layers.#.", &rest, end, false, &n) || match("encoder.layers.#.", &rest, end, false, &n))
        grow(&p->text_layers, n.at[0], 1000);
}

static void note(struct names_plan *p, enum model_part part, const char *s, const char *end, bool loose)
{
    if (part == MODEL_UNET)
        note_unet(p, s, end, loose);
    else if (part == MODEL_VAE)
        note_vae(p, s, end);
    else if (part == MODEL_TEXT_ENCODER)
        note_text(p, s, end);
}

void names_note(struct names_plan *p, enum model_part part, const char *name)
{
    note(p, part, name, name + strlen(name), false);
}

void names_note_loose(struct names_plan *p, enum model_part part, const char *key, size_t n)
{
    note(p, part, key, key + n, true);
}

/* Layers per level from which input blocks have attention, for LoRA files without a downsampler: a run that a gap ends. */
static size_t layers_by_attention(uint64_t bits)
{
    size_t run = 0;

    while (run + 1 < BLOCKS && bits >> (run + 1) & 1)
        run++;
    return run && run + 2 < BLOCKS && bits >> (run + 2) ? run : 0;
}

void names_plan_finish(struct names_plan *p)
{
    p->text_used = p->openclip && p->text_layers > 0 && p->text_layers != OPENCLIP_H_USED ? p->text_layers - 1 : p->text_layers;
    if (p->unet_layers == 0) {
        if (p->ldm.first_down)
            p->unet_layers = p->ldm.first_down - 1;
        else if (p->ldm.stem && p->ldm.inputs > 1) /* a whole U-Net of one level */
            p->unet_layers = p->ldm.inputs - 1;
        else if (layers_by_attention(p->ldm.in_attention))
            p->unet_layers = layers_by_attention(p->ldm.in_attention);
        else
            p->unet_layers = SD_LAYERS;
    }
    if (p->ldm.inputs) {
        p->unet_levels = (p->ldm.inputs + p->unet_layers) / (p->unet_layers + 1);
        for (size_t i = 0; i < BLOCKS; i++)
            if (p->ldm.out_attention >> i & 1 && i / (p->unet_layers + 1) < NAMES_LEVELS)
                p->up_attention[i / (p->unet_layers + 1)] = true;
    }
}
