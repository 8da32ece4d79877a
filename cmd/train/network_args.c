/* --network_args: key=value, as networks.lora of sd-scripts reads them. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cmd/train/train.h"

enum { BLOCKS = 25, SIDE = 12 };

struct args {
    const struct string_list *list;
    struct err *err;
};

static const char *const keys[] = {
    "conv_dim", "conv_alpha", "rank_dropout", "module_dropout", "block_dims", "block_alphas", "conv_block_dims", "conv_block_alphas",
    "down_lr_weight", "mid_lr_weight", "up_lr_weight", "block_lr_zero_threshold", "loraplus_lr_ratio", "loraplus_unet_lr_ratio",
    "loraplus_text_encoder_lr_ratio",
};

static int check_keys(const struct string_list *list, struct err *err)
{
    for (size_t i = 0; i < list->count; i++) {
        const char *item = list->item[i], *equals = strchr(item, '='), *near;
        char name[64];
        bool known = false;

        if (!equals)
            return err_usage(err, "--network_args '%s' is not KEY=VALUE", item);
        snprintf(name, sizeof name, "%.*s", (int)(equals - item), item);
        for (size_t k = 0; k < sizeof keys / sizeof *keys; k++)
            known |= strcmp(name, keys[k]) == 0;
        near = known ? NULL : option_nearest(name, keys, sizeof keys / sizeof *keys);
        if (!known)
            return err_usage(err, "--network_args has no '%s'%s%s%s; 'lora train --help' lists them", name, near ? "; did you mean '" : "",
                             near ? near : "", near ? "'?" : "");
    }
    return 0;
}

/* The value behind key=, the last one counts; NULL when it is not given. */
static const char *value_of(const struct string_list *list, const char *key)
{
    size_t n = strlen(key);

    for (size_t i = list->count; i-- > 0;)
        if (strncmp(list->item[i], key, n) == 0 && list->item[i][n] == '=')
            return list->item[i] + n + 1;
    return NULL;
}

/* Numbers between commas, at most `most`; an empty one is 0. Returns how many, or -1. */
static int numbers(const char *key, const char *text, double least, double largest, double *out, size_t most, struct err *err)
{
    size_t n = 0;

    for (;; text++) {
        char *end;
        double x = strtod(text, &end);

        if (end == text)
            x = 0;
        text = end + strspn(end, " ");
        if ((*text && *text != ',') || !(x >= least && x <= largest))
            return err_usage(err, "--network_args %s: '%s' is no number from %g to %g", key, text, least, largest);
        if (n == most)
            return err_usage(err, "--network_args %s has more than %zu numbers", key, most);
        out[n++] = x;
        if (!*text)
            return (int)n;
    }
}

static int one(const struct string_list *list, const char *key, double least, double largest, double *out, struct err *err)
{
    const char *text = value_of(list, key);

    return text ? numbers(key, text, least, largest, out, 1, err) : 0;
}

/* All 25 blocks. Returns 1 when given, 0 when not, -1. */
static int blocks(const struct string_list *list, const char *key, double least, double largest, double out[BLOCKS], struct err *err)
{
    const char *text = value_of(list, key);
    int n = text ? numbers(key, text, least, largest, out, BLOCKS, err) : 0;

    if (!text || n < 0)
        return n;
    if (n != BLOCKS)
        return err_usage(err, "--network_args %s has %d numbers; give %d: IN00-IN11, MID, OUT00-OUT11", key, n, BLOCKS);
    return 1;
}

/* A curve over the blocks of one side, "sine+0.25", or numbers; what is missing at the end is 1. */
static int side(const char *key, const char *text, double out[SIDE], struct err *err)
{
    static const char *const curves[] = {"cosine", "sine", "linear", "reverse_linear", "zeros"};
    size_t n = strcspn(text, "+");
    int count;

    for (int c = 0; c < 5; c++) {
        double base = text[n] ? strtod(text + n + 1, NULL) : 0;

        if (strlen(curves[c]) != n || strncmp(curves[c], text, n) != 0)
            continue;
        for (int i = 0; i < SIDE; i++) {
            double x = (double)(c == 0 || c == 3 ? SIDE - 1 - i : i) / (SIDE - 1);

            out[i] = base + (c < 2 ? sin(3.14159265358979323846 * x / 2) : c < 4 ? x : 0);
        }
        return 0;
    }
    count = numbers(key, text, 0, 1e6, out, SIDE, err);
    for (int i = count < 0 ? SIDE : count; i < SIDE; i++)
        out[i] = 1;
    return count < 0 ? -1 : 0;
}

static int block_rates(struct train_network_args *a, const struct string_list *list, struct err *err)
{
    const char *down = value_of(list, "down_lr_weight"), *mid = value_of(list, "mid_lr_weight"), *up = value_of(list, "up_lr_weight");
    double threshold = 0;

    for (int i = 0; i < BLOCKS; i++)
        a->block_lr[i] = 1;
    if ((down && side("down_lr_weight", down, a->block_lr, err)) ||
        (mid && numbers("mid_lr_weight", mid, 0, 1e6, a->block_lr + SIDE, 1, err) < 0) ||
        (up && side("up_lr_weight", up, a->block_lr + SIDE + 1, err)) ||
        one(list, "block_lr_zero_threshold", 0, 1e6, &threshold, err) < 0)
        return -1;
    for (int i = 0; i < BLOCKS; i++)
        if (a->block_lr[i] <= threshold)
            a->block_lr[i] = 0;
    return 0;
}

static int ranks(struct train_network_args *a, const struct string_list *list, struct err *err)
{
    double dims[BLOCKS], conv_dims[BLOCKS], dim = 0, conv_alpha = 0;
    int by_block, by_alpha, conv_by_block, conv_by_alpha;

    if (one(list, "conv_dim", 1, 65536, &dim, err) < 0)
        return -1;
    a->conv_dim = (size_t)dim;
    conv_alpha = dim;
    if (one(list, "conv_alpha", 1e-6, 1e6, &conv_alpha, err) < 0)
        return -1;
    a->conv_alpha = conv_alpha;
    by_block = blocks(list, "block_dims", 0, 65536, dims, err);
    by_alpha = by_block < 0 ? -1 : blocks(list, "block_alphas", 0, 1e6, a->block_alpha, err);
    conv_by_block = by_alpha < 0 ? -1 : blocks(list, "conv_block_dims", 0, 65536, conv_dims, err);
    conv_by_alpha = conv_by_block < 0 ? -1 : blocks(list, "conv_block_alphas", 0, 1e6, a->conv_block_alpha, err);
    if (conv_by_alpha < 0)
        return -1;
    a->by_block = by_block || by_alpha;
    a->conv_by_block = conv_by_block || conv_by_alpha;
    for (int i = 0; i < BLOCKS; i++) {
        a->block_dim[i] = by_block ? (size_t)dims[i] : a->dim;
        a->conv_block_dim[i] = conv_by_block ? (size_t)conv_dims[i] : a->conv_dim;
        if (!by_alpha)
            a->block_alpha[i] = by_block ? (double)a->block_dim[i] * a->alpha / (double)a->dim : a->alpha;
        if (!conv_by_alpha)
            a->conv_block_alpha[i] = conv_by_block ? (double)a->conv_block_dim[i] : a->conv_alpha;
    }
    return 0;
}

int train_network_args(struct train_network_args *a, const struct train_options *o, struct err *err)
{
    const struct string_list *list = &o->network_args;
    double plus = 0;

    *a = (struct train_network_args){.dim = o->network_dim, .alpha = o->network_alpha};
    if (check_keys(list, err) || ranks(a, list, err) || block_rates(a, list, err))
        return -1;
    if (one(list, "rank_dropout", 0, 0.99, &a->rank_dropout, err) < 0 ||
        one(list, "module_dropout", 0, 0.99, &a->module_dropout, err) < 0 ||
        one(list, "loraplus_lr_ratio", 0, 1e6, &plus, err) < 0)
        return -1;
    a->plus_unet = a->plus_text = plus;
    if (one(list, "loraplus_unet_lr_ratio", 0, 1e6, &a->plus_unet, err) < 0 ||
        one(list, "loraplus_text_encoder_lr_ratio", 0, 1e6, &a->plus_text, err) < 0)
        return -1;
    return 0;
}
