#include "tests/demo/pair.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "formats/tensor_writer.h"
#include "ref/base/mem.h"
#include "ref/base/rng.h"

enum { CHANNELS = 64, LEVELS = 4, LAYERS = 2, CONTEXT = 96, TEXT_LAYERS = 12, TOKENS = 49408, CHANGE_RANK = 24 };

static const size_t channels[LEVELS] = {CHANNELS, 2 * CHANNELS, 4 * CHANNELS, 4 * CHANNELS};

struct list {
    struct tensor_spec *spec;
    size_t n, cap;
    struct arena arena;
    struct err *err;
    bool failed;
};

/* Adds PREFIX.LEAF with a shape of ndim sizes; errors are kept for the end. */
static void add(struct list *l, const char *prefix, const char *leaf, struct shape shape)
{
    char *name = arena_printf(&l->arena, l->err, "%s.%s", prefix, leaf);

    if (!name || mem_grow(&l->spec, &l->cap, l->n, sizeof *l->spec, "the tensors of the demonstration", l->err)) {
        l->failed = true;
        return;
    }
    l->spec[l->n++] = (struct tensor_spec){name, DT_F16, shape};
}

static void add_layer(struct list *l, const char *prefix, const char *layer, size_t out, size_t in, size_t kernel)
{
    char path[256];

    snprintf(path, sizeof path, "%s.%s", prefix, layer);
    if (in == 0) /* a norm */
        add(l, path, "weight", shape_of(1, (int)out));
    else if (kernel == 0)
        add(l, path, "weight", shape_of(2, (int)out, (int)in));
    else
        add(l, path, "weight", shape_of(4, (int)out, (int)in, (int)kernel, (int)kernel));
    add(l, path, "bias", shape_of(1, (int)out));
}

static void add_residual(struct list *l, const char *p, size_t in, size_t out)
{
    add_layer(l, p, "in_layers.0", in, 0, 0);
    add_layer(l, p, "in_layers.2", out, in, 3);
    add_layer(l, p, "emb_layers.1", out, 4 * CHANNELS, 0);
    add_layer(l, p, "out_layers.0", out, 0, 0);
    add_layer(l, p, "out_layers.3", out, out, 3);
    if (in != out)
        add_layer(l, p, "skip_connection", out, in, 1);
}

static void add_attention(struct list *l, const char *p, size_t c)
{
    static const char *const qkv[] = {"to_q.weight", "to_k.weight", "to_v.weight"};
    char block[256], attn[300];

    add_layer(l, p, "norm", c, 0, 0);
    add_layer(l, p, "proj_in", c, c, 1);
    snprintf(block, sizeof block, "%s.transformer_blocks.0", p);
    for (int a = 1; a <= 2; a++) {
        snprintf(attn, sizeof attn, "%s.attn%d", block, a);
        for (size_t k = 0; k < 3; k++)
            add(l, attn, qkv[k], shape_of(2, (int)c, a == 2 && k > 0 ? CONTEXT : (int)c));
        add_layer(l, attn, "to_out.0", c, c, 0);
    }
    add_layer(l, block, "ff.net.0.proj", 8 * c, c, 0);
    add_layer(l, block, "ff.net.2", c, 4 * c, 0);
    add_layer(l, block, "norm1", c, 0, 0);
    add_layer(l, block, "norm2", c, 0, 0);
    add_layer(l, block, "norm3", c, 0, 0);
    add_layer(l, p, "proj_out", c, c, 1);
}

#define UNET "model.diffusion_model"

static void add_down(struct list *l, size_t *skip, size_t *n_skip, size_t *at)
{
    char p[128];
    int block = 1;

    for (size_t level = 0; level < LEVELS; level++) {
        for (int j = 0; j < LAYERS; j++, block++) {
            snprintf(p, sizeof p, UNET ".input_blocks.%d.0", block);
            add_residual(l, p, *at, channels[level]);
            skip[(*n_skip)++] = *at = channels[level];
            snprintf(p, sizeof p, UNET ".input_blocks.%d.1", block);
            if (level + 1 < LEVELS)
                add_attention(l, p, *at);
        }
        if (level + 1 < LEVELS) {
            snprintf(p, sizeof p, UNET ".input_blocks.%d.0", block++);
            add_layer(l, p, "op", *at, *at, 3);
            skip[(*n_skip)++] = *at;
        }
    }
}

static void add_up(struct list *l, const size_t *skip, size_t n_skip, size_t at)
{
    char p[128];
    int block = 0;

    for (size_t level = LEVELS; level-- > 0;)
        for (int j = 0; j <= LAYERS; j++, block++) {
            bool attention = level + 1 < LEVELS;

            snprintf(p, sizeof p, UNET ".output_blocks.%d.0", block);
            add_residual(l, p, at + skip[--n_skip], channels[level]);
            at = channels[level];
            snprintf(p, sizeof p, UNET ".output_blocks.%d.1", block);
            if (attention)
                add_attention(l, p, at);
            snprintf(p, sizeof p, UNET ".output_blocks.%d.%d", block, attention ? 2 : 1);
            if (level > 0 && j == LAYERS)
                add_layer(l, p, "conv", at, at, 3);
        }
}

static void add_unet(struct list *l)
{
    size_t skip[LEVELS * (LAYERS + 1)] = {CHANNELS}, n_skip = 1, at = CHANNELS;

    add_layer(l, UNET, "time_embed.0", 4 * CHANNELS, CHANNELS, 0);
    add_layer(l, UNET, "time_embed.2", 4 * CHANNELS, 4 * CHANNELS, 0);
    add_layer(l, UNET, "input_blocks.0.0", CHANNELS, 4, 3);
    add_down(l, skip, &n_skip, &at);
    add_residual(l, UNET ".middle_block.0", at, at);
    add_attention(l, UNET ".middle_block.1", at);
    add_residual(l, UNET ".middle_block.2", at, at);
    add_up(l, skip, n_skip, at);
    add_layer(l, UNET, "out.0", CHANNELS, 0, 0);
    add_layer(l, UNET, "out.2", 4, CHANNELS, 3);
}

static void add_text_encoder(struct list *l)
{
    static const char *const attention[] = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"};
    const char *text = "cond_stage_model.transformer.text_model";
    char p[128];

    snprintf(p, sizeof p, "%s.embeddings", text);
    add(l, p, "token_embedding.weight", shape_of(2, TOKENS, CONTEXT));
    add(l, p, "position_embedding.weight", shape_of(2, 77, CONTEXT));
    for (int i = 0; i < TEXT_LAYERS; i++) {
        snprintf(p, sizeof p, "%s.encoder.layers.%d", text, i);
        add_layer(l, p, "layer_norm1", CONTEXT, 0, 0);
        for (size_t k = 0; k < 4; k++)
            add_layer(l, p, attention[k], CONTEXT, CONTEXT, 0);
        add_layer(l, p, "layer_norm2", CONTEXT, 0, 0);
        add_layer(l, p, "mlp.fc1", 4 * CONTEXT, CONTEXT, 0);
        add_layer(l, p, "mlp.fc2", CONTEXT, 4 * CONTEXT, 0);
    }
    add_layer(l, text, "final_layer_norm", CONTEXT, 0, 0);
}

/* Whether LoRA reaches the weight: what is inside attention blocks and the text encoder's layers, but the norms. */
static bool is_target(const struct tensor_spec *s)
{
    return s->shape.ndim >= 2 && (strstr(s->name, ".transformer_blocks.") || strstr(s->name, ".proj_in.") ||
                                  strstr(s->name, ".proj_out.") || strstr(s->name, ".self_attn.") || strstr(s->name, ".mlp."));
}

/* x [rows, columns] += the change: sum of 0.7^i u_i v_i', u_i and v_i of about unit length, and noise. */
static int change(float *x, size_t rows, size_t columns, struct rng *r, struct err *err)
{
    float *u = mem_new((rows + columns) * sizeof *u, "the change of a weight", err), *v, *noise;
    double sigma = 0.05 * sqrt((double)rows);

    if (!u)
        return -1;
    v = u + rows;
    for (int i = 0; i < CHANGE_RANK; i++, sigma *= 0.7) {
        rng_normal(r, u, rows);
        rng_normal(r, v, columns);
        for (size_t a = 0; a < rows; a++)
            for (size_t b = 0; b < columns; b++)
                x[a * columns + b] += (float)(sigma / sqrt((double)rows * (double)columns)) * u[a] * v[b];
    }
    free(u);
    noise = mem_new(rows * columns * sizeof *noise, "the noise of a weight", err);
    if (!noise)
        return -1;
    rng_normal(r, noise, rows * columns);
    for (size_t i = 0; i < rows * columns; i++)
        x[i] += 0.0005f / sqrtf((float)columns) * noise[i];
    free(noise);
    return 0;
}

/* Weights of the size that networks start with; norms are 1, biases small. */
static int write_one(struct tensor_writer *base, struct tensor_writer *tuned, const struct tensor_spec *s, size_t i,
                     struct err *err)
{
    size_t n = 0, rows = s->shape.dim[0];
    float *x = NULL;
    uint16_t *half = NULL;
    struct rng r;
    int rc = -1;

    if (!shape_numel(&s->shape, &n) || !(x = mem_new(n * sizeof *x, "a weight", err)))
        return -1;
    rng_seed(&r, 1000 + i);
    rng_normal(&r, x, n);
    for (size_t k = 0; k < n; k++)
        x[k] = s->shape.ndim == 1 ? (strstr(s->name, "norm") && strstr(s->name, ".weight") ? 1.0f : 0.01f * x[k])
                                  : x[k] / sqrtf((float)(n / rows));
    half = mem_new(n * sizeof *half, "a weight", err);
    if (!half)
        goto out;
    dtype_convert(half, DT_F16, x, DT_F32, n);
    if (tensor_writer_put(base, i, half, err) || (is_target(s) && change(x, rows, n / rows, &r, err)))
        goto out;
    dtype_convert(half, DT_F16, x, DT_F32, n);
    rc = tensor_writer_put(tuned, i, half, err);
out:
    free(half);
    free(x);
    return rc;
}

int pair_write(const char *base_path, const char *tuned_path, struct err *err)
{
    struct list l = {.err = err};
    struct tensor_writer *base = NULL, *tuned = NULL;
    int rc = -1;

    add_unet(&l);
    add_text_encoder(&l);
    if (l.failed || tensor_writer_open(&base, base_path, NULL, l.spec, l.n, NULL, 0, err) ||
        tensor_writer_open(&tuned, tuned_path, NULL, l.spec, l.n, NULL, 0, err))
        goto out;
    for (size_t i = 0; i < l.n; i++)
        if (write_one(base, tuned, &l.spec[i], i, err))
            goto out;
    rc = tensor_writer_commit(base, err);
    base = NULL;
    if (rc == 0) {
        rc = tensor_writer_commit(tuned, err);
        tuned = NULL;
    }
out:
    tensor_writer_abort(base);
    tensor_writer_abort(tuned);
    free(l.spec);
    arena_free(&l.arena);
    return rc;
}
