/* The order of an epoch, and its batches. */
#include <stdlib.h>
#include <string.h>

#include "cmd/train/dataset_inside.h"

static size_t batches_of(const struct bucket *b)
{
    return (b->shown.samples + b->shown.batch - 1) / b->shown.batch;
}

size_t dataset_batches(const struct dataset *d)
{
    size_t n = 0;

    for (size_t i = 0; i < d->buckets; i++)
        n += batches_of(&d->bucket[i]);
    return n;
}

static int make_room(struct dataset *d, struct err *err)
{
    if (d->slot)
        return 0;
    for (size_t i = 0; i < d->buckets; i++)
        d->slots += d->bucket[i].shown.samples;
    d->places = dataset_batches(d);
    if (d->slots > UINT32_MAX)
        return err_set(err, "%zu samples in an epoch are too many; make the repeats smaller", d->slots);
    d->slot = mem_zero(d->slots, sizeof *d->slot, "the order of an epoch", err);
    d->place = d->slot ? mem_zero(d->places, sizeof *d->place, "the order of an epoch", err) : NULL;
    return d->place ? 0 : -1;
}

/* Every picture as often as its repeats, in random order within its bucket; then the batches of all buckets in random order. */
int dataset_order(struct dataset *d, size_t epoch, struct err *err)
{
    size_t *next, n = 0;
    struct draw draw;

    if (d->order_epoch == epoch)
        return 0;
    d->order_epoch = SIZE_MAX;
    next = mem_zero(d->buckets, sizeof *next, "the order of an epoch", err);
    if (!next || make_room(d, err)) {
        free(next);
        return -1;
    }
    for (size_t i = 0; i < d->pictures; i++)
        for (size_t k = 0; k < d->picture[i].repeats; k++) {
            const struct bucket *b = &d->bucket[d->picture[i].bucket];

            d->slot[b->first + next[d->picture[i].bucket]++] = (struct slot){(uint32_t)i, (uint32_t)k};
        }
    free(next);
    for (size_t i = 0; i < d->buckets; i++) {
        const struct bucket *b = &d->bucket[i];

        draw = draw_begin(d->setup.seed, DRAW_SAMPLES, epoch, i, 0);
        if (!d->plain)
            draw_shuffle(&draw, d->slot + b->first, b->shown.samples, sizeof *d->slot);
        for (size_t at = 0; at < b->shown.samples; at += b->shown.batch) {
            size_t left = b->shown.samples - at;

            d->place[n++] = (struct batch_place){(uint32_t)i, (uint32_t)(b->first + at),
                                                 (uint32_t)(left < b->shown.batch ? left : b->shown.batch)};
        }
    }
    draw = draw_begin(d->setup.seed, DRAW_BATCHES, epoch, 0, 0);
    if (!d->plain)
        draw_shuffle(&draw, d->place, n, sizeof *d->place);
    d->order_epoch = epoch;
    return 0;
}

/* ---- Memory of a batch */

struct inside {
    size_t n, numbers; /* room for samples, for f32 */
    float *number;     /* pixels or latents */
    size_t masks;      /* room for f32 of masks */
    float *mask;
    size_t captions;   /* that are to be freed */
};

static void free_captions(struct dataset_batch *b, struct inside *in)
{
    while (in->captions)
        free((void *)(uintptr_t)b->caption[--in->captions]);
}

void dataset_batch_free(struct dataset_batch *b)
{
    struct inside *in = b->inside;

    if (in) {
        free_captions(b, in);
        free(in->number);
        free(in->mask);
        free(b->caption);
        free(b->weight);
        free(b->reg);
        free(b->picture);
        free(b->repeat);
        free(b->flipped);
        free(in);
    }
    memset(b, 0, sizeof *b);
}

static int grow_samples(struct dataset_batch *b, struct inside *in, size_t n, struct err *err)
{
    if (n <= in->n)
        return 0;
    free(b->caption);
    free(b->weight);
    free(b->reg);
    free(b->picture);
    free(b->repeat);
    free(b->flipped);
    in->n = 0;
    b->caption = mem_zero(n, sizeof *b->caption, "a batch", err);
    b->weight = mem_zero(n, sizeof *b->weight, "a batch", err);
    b->reg = mem_zero(n, sizeof *b->reg, "a batch", err);
    b->picture = mem_zero(n, sizeof *b->picture, "a batch", err);
    b->repeat = mem_zero(n, sizeof *b->repeat, "a batch", err);
    b->flipped = mem_zero(n, sizeof *b->flipped, "a batch", err);
    if (!b->caption || !b->weight || !b->reg || !b->picture || !b->repeat || !b->flipped)
        return -1;
    in->n = n;
    return 0;
}

static int grow(struct dataset_batch *b, size_t n, size_t numbers, size_t masks, struct err *err)
{
    struct inside *in = b->inside;

    if (!in && !(in = b->inside = mem_zero(1, sizeof *in, "a batch", err)))
        return -1;
    free_captions(b, in);
    if (numbers > in->numbers) {
        free(in->number);
        in->numbers = 0;
        in->number = mem_new(numbers * sizeof *in->number, "a batch", err);
        if (!in->number)
            return -1;
        in->numbers = numbers;
    }
    if (masks > in->masks) {
        free(in->mask);
        in->masks = 0;
        in->mask = mem_new(masks * sizeof *in->mask, "a batch", err);
        if (!in->mask)
            return -1;
        in->masks = masks;
    }
    return grow_samples(b, in, n, err);
}

/* ---- */

/* Sample i: pixels, or cached latents, and the mask. each: f32 of one. */
static int fill_sample(struct dataset *d, size_t epoch, size_t i, struct dataset_batch *b, size_t each, struct err *err)
{
    const struct sample_picture *p = &d->picture[b->picture[i]];
    struct inside *in = b->inside;
    size_t f = d->setup.factor;
    float *out = in->number + i * each, *mask = b->mask ? b->mask + i * (b->width / f * (b->height / f)) : NULL;
    struct picture pixels;

    if (d->has_latents) {
        b->flipped[i] = dataset_draws_flip(d, b->picture[i], epoch, b->repeat[i]);
        memcpy(out, b->flipped[i] ? p->latents_flipped : p->latents, each * sizeof *out);
        if (mask)
            dataset_copy_mask(d, b->picture[i], b->flipped[i], mask);
        return 0;
    }
    if (dataset_load(d, b->picture[i], epoch, b->repeat[i], true, &pixels, mask, &b->flipped[i], err))
        return -1;
    dataset_to_floats(&pixels, out);
    picture_free(&pixels);
    return 0;
}

int dataset_batch(struct dataset *d, size_t epoch, size_t index, struct dataset_batch *b, struct err *err)
{
    const struct batch_place *place;
    const struct bucket *bucket;
    struct inside *in;
    size_t each, cells, f = d->setup.factor, step = epoch * dataset_batches(d) + index;

    if (dataset_order(d, epoch, err))
        return -1;
    if (index >= d->places)
        return err_set(err, "there is no batch %zu in an epoch of %zu", index, d->places);
    place = &d->place[index];
    bucket = &d->bucket[place->bucket];
    b->width = bucket->shown.width;
    b->height = bucket->shown.height;
    each = d->has_latents ? b->width / f * (b->height / f) * d->setup.channels : b->width * b->height * 3;
    cells = d->has_masks ? b->width / f * (b->height / f) : 0;
    if (grow(b, place->n, place->n * each, place->n * cells, err))
        return -1;
    in = b->inside;
    b->n = place->n;
    b->pixels = d->has_latents ? NULL : in->number;
    b->latents = d->has_latents ? in->number : NULL;
    b->mask = d->has_masks ? in->mask : NULL;
    for (size_t i = 0; i < b->n; i++) {
        const struct slot *slot = &d->slot[place->first + i];
        const struct subset *s = &d->subset[d->picture[slot->picture].subset];

        b->picture[i] = slot->picture;
        b->repeat[i] = slot->repeat;
        b->reg[i] = s->reg;
        b->weight[i] = s->reg ? (float)d->group[s->group].prior_weight : 1.0f;
        b->caption[i] = dataset_make_caption(d, slot->picture, epoch, slot->repeat, step, err);
        if (!b->caption[i])
            return -1;
        in->captions++;
        if (fill_sample(d, epoch, i, b, each, err))
            return -1;
    }
    return 0;
}

int dataset_caption(struct dataset *d, size_t picture, size_t epoch, size_t repeat, const char **out, struct err *err)
{
    char *text = dataset_make_caption(d, picture, epoch, repeat, epoch * dataset_batches(d), err);

    if (!text)
        return -1;
    free(d->caption);
    *out = d->caption = text;
    return 0;
}
