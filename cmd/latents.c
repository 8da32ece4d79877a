#include "cmd/latents.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cmd/model_weights.h"
#include "ref/base/mem.h"
#include "ref/base/thread.h"
#include "ref/graph/run.h"
#include "ref/model/vae.h"

#define LATENT_SCALE 0.18215f /* what SD1 and SD2 multiply the VAE's latents with (Rombach et al. 2022, D.1) */

enum { LEAST_TILE = 8 }; /* latents: smaller ones would be all edge */

struct latents {
    struct model *model;
    struct model_weights *source;
    struct weights *w;
    const struct ops *ops;
    size_t factor, channels, limit, tile; /* tile: latents a side that the caller asked for; 0: none */
    /* The graph in memory: of one tile, or of a whole picture. h and w are in latents. */
    struct graph *g;
    struct run *run;
    struct vae vae;
    bool encode;
    size_t h, w_tile;
    /* What was decided for the last size of picture. */
    bool known, known_encode;
    size_t known_h, known_w, tile_h, tile_w, bytes;
};

int latents_open(struct latents **out, const char *path, const struct ops *ops, struct err *err)
{
    struct latents *l = *out = mem_zero(1, sizeof *l, "a VAE", err);

    if (!l)
        return -1;
    l->ops = ops;
    l->limit = SIZE_MAX;
    if (model_open(&l->model, path, err) || model_need(l->model, MODEL_VAE, err) ||
        model_weights_open(&l->source, l->model, true, err) || weights_new(&l->w, model_weights_source(l->source), err) ||
        vae_config(l->w, &l->factor, &l->channels, err)) {
        latents_close(l);
        *out = NULL;
        return -1;
    }
    return 0;
}

void latents_rest(struct latents *l)
{
    run_free(l->run);
    graph_free(l->g);
    l->run = NULL;
    l->g = NULL;
}

void latents_close(struct latents *l)
{
    if (!l)
        return;
    latents_rest(l);
    weights_free(l->w);
    model_weights_close(l->source);
    model_close(l->model);
    free(l);
}

void latents_release(struct latents *l)
{
    latents_rest(l);
    weights_release(l->w, MODEL_VAE);
    model_weights_rest(l->source);
}

void latents_bytes(const struct latents *l, size_t *owned, size_t *mapped)
{
    weights_bytes(l->w, owned, mapped);
}

size_t latents_factor(const struct latents *l)
{
    return l->factor;
}

size_t latents_channels(const struct latents *l)
{
    return l->channels;
}

void latents_limit(struct latents *l, size_t bytes)
{
    l->limit = bytes;
    l->known = false;
}

void latents_tile(struct latents *l, size_t pixels)
{
    l->tile = pixels ? pixels / l->factor : 0;
    if (pixels && l->tile < LEAST_TILE)
        l->tile = LEAST_TILE;
    l->known = false;
}

/* ---- Graphs ---- */

/* Of h x w latents. */
static int build(struct latents *l, bool encode, size_t h, size_t w, struct graph **g, struct vae *vae, struct err *err)
{
    struct layers layers = {.w = l->w, .part = MODEL_VAE};

    layers.g = *g = graph_new(err);
    if (!*g || (encode ? vae_build_encoder(&layers, 1, h * l->factor, w * l->factor, vae, err)
                       : vae_build_decoder(&layers, 1, h, w, vae, err)))
        return -1;
    return graph_fuse(*g, FUSE_ALL, err);
}

/* What the arena of one tile takes. */
static int arena_of(struct latents *l, bool encode, size_t h, size_t w, size_t *bytes, struct err *err)
{
    struct graph *g = NULL;
    struct plan *plan = NULL;
    struct vae vae;
    int rc = build(l, encode, h, w, &g, &vae, err);

    if (rc == 0)
        rc = plan_new(&plan, g, l->ops, thread_count(), err);
    if (rc == 0)
        *bytes = plan->arena;
    plan_free(plan);
    graph_free(g);
    return rc;
}

/* The buffers that tiles need: one tile's input and output, and the sum of the outputs is the caller's. */
static size_t tile_floats(const struct latents *l, bool encode, size_t h, size_t w)
{
    size_t pixels = h * w * l->factor * l->factor * 3;

    return pixels + h * w * l->channels * (encode ? 2 : 1);
}

/* Chooses tile_h and tile_w for pictures of h x w latents: the whole picture, or the largest square that the limit allows. */
static int choose_tile(struct latents *l, bool encode, size_t h, size_t w, struct err *err)
{
    static const size_t sides[] = {128, 96, 64, 48, 32};
    size_t at = 0, th = h, tw = w, bytes;

    if (l->known && l->known_encode == encode && l->known_h == h && l->known_w == w)
        return 0;
    if (l->tile) {
        th = l->tile < h ? l->tile : h;
        tw = l->tile < w ? l->tile : w;
    }
    for (;;) {
        if (arena_of(l, encode, th, tw, &bytes, err))
            return -1;
        if (th < h || tw < w)
            bytes += tile_floats(l, encode, th, tw) * sizeof(float);
        while (at < sizeof sides / sizeof *sides && sides[at] >= (th > tw ? th : tw))
            at++;
        if (bytes <= l->limit || at == sizeof sides / sizeof *sides)
            break;
        th = sides[at] < h ? sides[at] : h;
        tw = sides[at] < w ? sides[at] : w;
    }
    l->tile_h = th;
    l->tile_w = tw;
    l->bytes = bytes;
    l->known = true;
    l->known_encode = encode;
    l->known_h = h;
    l->known_w = w;
    return 0;
}

/* The graph of the chosen tile, ready to run. */
static int enter(struct latents *l, bool encode, struct err *err)
{
    if (l->run && l->encode == encode && l->h == l->tile_h && l->w_tile == l->tile_w)
        return 0;
    latents_rest(l);
    if (build(l, encode, l->tile_h, l->tile_w, &l->g, &l->vae, err) || run_new(&l->run, l->g, l->ops, err) ||
        weights_load(l->w, err)) {
        latents_rest(l);
        return -1;
    }
    l->encode = encode;
    l->h = l->tile_h;
    l->w_tile = l->tile_w;
    return 0;
}

int latents_forecast(struct latents *l, bool encode, size_t height, size_t width, size_t *bytes, bool *tiled, struct err *err)
{
    size_t owned, mapped, h = height / l->factor, w = width / l->factor;

    if (choose_tile(l, encode, h, w, err))
        return -1;
    weights_bytes(l->w, &owned, &mapped);
    *bytes = l->bytes + owned + mapped;
    if (tiled)
        *tiled = l->tile_h < h || l->tile_w < w;
    return 0;
}

/* ---- Running ---- */

/* Runs the graph once; a result that is not finite is sought layer by layer. in [its size], out [n_out]. */
static int run_once(struct latents *l, const float *in, float *out, size_t n_out, struct err *err)
{
    struct run_options search = {.check_nan = true};

    if (run_write(l->run, l->vae.in, in, err) || run_graph(l->run, NULL, err) || run_read(l->run, l->vae.out, out, err))
        return -1;
    if (dtype_find_nonfinite(out, DT_F32, n_out) == n_out)
        return 0;
    if (run_write(l->run, l->vae.in, in, err) == 0 && run_graph(l->run, &search, err) == 0)
        err_set(err, "the output is not finite");
    return err_prefix(err, "the VAE '%s' fails: ", l->model->path);
}

/* Where tile i of n begins, for tiles of `tile` in a length of `all`: evenly spread. */
static size_t tile_start(size_t i, size_t n, size_t tile, size_t all)
{
    return n == 1 ? 0 : i * (all - tile) / (n - 1);
}

/* How many tiles overlap by a quarter or more. */
static size_t tile_count(size_t tile, size_t all)
{
    size_t step = tile - tile / 4;

    return all <= tile ? 1 : (all - tile + step - 1) / step + 1;
}

/* Tiles along one axis: where they lie, and by what their places count. */
struct axis {
    size_t all, tile, count, scale; /* latents; tiles; places a latent */
};

/* Not yet divided by the sum: rises from the edge over a quarter of the tile, unless the edge is the picture's. */
static float raw_weight(const struct axis *a, size_t i, size_t x)
{
    float edge = (float)(a->tile / 4 * a->scale), weight = 1;

    if (i > 0)
        weight = fminf(weight, ((float)x + 0.5f) / edge);
    if (i + 1 < a->count)
        weight = fminf(weight, ((float)(a->tile * a->scale - x) - 0.5f) / edge);
    return weight;
}

/* weight [tile * scale] of tile i's places: those of all tiles at a place of the picture sum to 1. */
static void tile_weights(const struct axis *a, size_t i, float *weight)
{
    size_t start = tile_start(i, a->count, a->tile, a->all) * a->scale, n = a->tile * a->scale;

    for (size_t x = 0; x < n; x++) {
        float sum = 0;

        for (size_t k = 0; k < a->count; k++) {
            size_t other = tile_start(k, a->count, a->tile, a->all) * a->scale;

            if (start + x >= other && start + x < other + n)
                sum += raw_weight(a, k, start + x - other);
        }
        weight[x] = raw_weight(a, i, x) / sum;
    }
}

/* One tile: a place of it is `scale` wide for each latent, of c numbers. */
struct side {
    float *all, *tile;
    size_t width, scale, c; /* width of `all` in latents */
};

static void take_tile(const struct latents *l, const struct side *s, size_t y0, size_t x0)
{
    size_t row = l->tile_w * s->scale * s->c;

    for (size_t y = 0; y < l->tile_h * s->scale; y++)
        memcpy(s->tile + y * row, s->all + ((y0 * s->scale + y) * s->width + x0) * s->scale * s->c, row * sizeof(float));
}

/* Adds a tile at (y0, x0) [latents], its places weighted by the products of row [high] and column [wide]. */
static void add_tile(const struct latents *l, const struct side *s, size_t y0, size_t x0, const float *row, const float *column)
{
    size_t high = l->tile_h * s->scale, wide = l->tile_w * s->scale;

    for (size_t y = 0; y < high; y++) {
        float *to = s->all + ((y0 * s->scale + y) * s->width + x0) * s->scale * s->c;
        const float *from = s->tile + y * wide * s->c;

        for (size_t x = 0; x < wide; x++)
            for (size_t k = 0; k < s->c; k++)
                to[x * s->c + k] += row[y] * column[x] * from[x * s->c + k];
    }
}

static int run_tiles(struct latents *l, struct side in, struct side out, size_t h, size_t w, struct err *err)
{
    struct axis rows = {h, l->tile_h, tile_count(l->tile_h, h), out.scale};
    struct axis columns = {w, l->tile_w, tile_count(l->tile_w, w), out.scale};
    size_t n_in = l->tile_h * l->tile_w * in.scale * in.scale * in.c,
           n_out = l->tile_h * l->tile_w * out.scale * out.scale * out.c;
    float *row, *column;
    int rc = 0;

    in.tile = mem_new((n_in + n_out + (l->tile_h + l->tile_w) * out.scale) * sizeof(float), "a tile of a picture", err);
    if (!in.tile)
        return -1;
    out.tile = in.tile + n_in;
    row = out.tile + n_out;
    column = row + l->tile_h * out.scale;
    memset(out.all, 0, h * w * out.scale * out.scale * out.c * sizeof(float));
    for (size_t i = 0; rc == 0 && i < rows.count; i++) {
        tile_weights(&rows, i, row);
        for (size_t j = 0; rc == 0 && j < columns.count; j++) {
            size_t y0 = tile_start(i, rows.count, l->tile_h, h), x0 = tile_start(j, columns.count, l->tile_w, w);

            take_tile(l, &in, y0, x0);
            rc = run_once(l, in.tile, out.tile, n_out, err);
            tile_weights(&columns, j, column);
            if (rc == 0)
                add_tile(l, &out, y0, x0, row, column);
        }
    }
    free(in.tile);
    return rc;
}

/* Pictures of h x w latents. in and out: `scale` and c of each side. */
static int run_all(struct latents *l, bool encode, const float *in, float *out, size_t n, size_t h, size_t w, struct err *err)
{
    size_t f = l->factor, pixels = h * w * f * f * 3, small = h * w * l->channels;
    struct side from = {.width = w, .scale = encode ? f : 1, .c = encode ? 3 : l->channels};
    struct side to = {.width = w, .scale = encode ? 1 : f, .c = encode ? 2 * l->channels : 3};
    size_t n_in = encode ? pixels : small, n_out = encode ? 2 * small : pixels;

    if (choose_tile(l, encode, h, w, err) || enter(l, encode, err))
        return -1;
    for (size_t i = 0; i < n; i++) {
        from.all = (float *)(uintptr_t)(in + i * n_in); /* only read */
        to.all = out + i * n_out;
        if (l->tile_h == h && l->tile_w == w ? run_once(l, from.all, to.all, n_out, err) : run_tiles(l, from, to, h, w, err))
            return -1;
    }
    return 0;
}

int latents_moments(struct latents *l, const float *pixels, size_t n, size_t height, size_t width, float *moments,
                    struct err *err)
{
    if (height % l->factor || width % l->factor || !height || !width)
        return err_set(err, "cannot encode %zu x %zu pixels; sides are multiples of %zu", width, height, l->factor);
    return run_all(l, true, pixels, moments, n, height / l->factor, width / l->factor, err);
}

void latents_sample(const struct latents *l, const float *moments, const float *noise, float *latents, size_t count)
{
    size_t c = l->channels;

    for (size_t i = 0; i < count; i++)
        for (size_t k = 0; k < c; k++) {
            float x = moments[i * 2 * c + k], log = moments[(i * 2 + 1) * c + k];

            if (noise)
                x += expf(0.5f * fminf(fmaxf(log, -30), 20)) * noise[i * c + k];
            latents[i * c + k] = x * LATENT_SCALE;
        }
}

int latents_encode(struct latents *l, const float *pixels, size_t n, size_t height, size_t width, const float *noise,
                   float *latents, struct err *err)
{
    size_t count = n * (height / l->factor) * (width / l->factor);
    float *moments = mem_new(count * 2 * l->channels * sizeof *moments, "latents", err);
    int rc = moments ? latents_moments(l, pixels, n, height, width, moments, err) : -1;

    if (rc == 0)
        latents_sample(l, moments, noise, latents, count);
    free(moments);
    return rc;
}

int latents_decode(struct latents *l, const float *latents, size_t n, size_t h, size_t w, float *pixels, struct err *err)
{
    size_t count = n * h * w * l->channels;
    float *own = mem_new(count * sizeof *own, "latents", err);
    int rc;

    if (!own)
        return -1;
    for (size_t i = 0; i < count; i++)
        own[i] = latents[i] / LATENT_SCALE;
    rc = run_all(l, false, own, pixels, n, h, w, err);
    free(own);
    return rc;
}

/* ---- Pictures ---- */

void latents_from_picture(const struct picture *p, float *pixels)
{
    size_t n = p->width * p->height;

    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < 3; k++)
            pixels[i * 3 + k] = 2 * ((float)p->data[i * p->channels + k] / 255) - 1;
}

int latents_to_picture(const float *pixels, size_t height, size_t width, struct picture *out, struct err *err)
{
    size_t n = height * width * 3;

    if (picture_new(out, width, height, 3, err))
        return -1;
    for (size_t i = 0; i < n; i++) {
        float v = pixels[i] / 2 + 0.5f;

        v = v < 0 ? 0 : v > 1 ? 1 : v;
        out->data[i] = (uint8_t)rintf(v * 255);
    }
    return 0;
}
