/* Checkpoints as torch < 1.6 saved them (and still does on request): one pickle after the other, then raw bytes.
 *
 *     magic number | protocol version | system | the object | list of storage keys | storages in that order
 *
 * A storage is an int64 of its element count and its elements, all little-endian whatever the machine. The still older tar
 * archives (torch < 0.2) are recognised and refused. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "formats/torch_tensor.h"

/* 0x1950a86a20f9469cfc6c as the pickle holds it */
static const unsigned char magic[] = {0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19};
static const char *const tar_names[] = {"storages", "tensors", "pickle", "sys_info", NULL};

enum { FIRST_TRY = 1 << 20 };

static bool is_tar(const unsigned char *head, size_t n)
{
    for (size_t i = 0; tar_names[i]; i++)
        if (n > strlen(tar_names[i]) && memcmp(head, tar_names[i], strlen(tar_names[i]) + 1) == 0)
            return true;
    return false;
}

static bool probe(const unsigned char *head, size_t n, uint64_t file_size)
{
    (void)file_size;
    /* any binary pickle: one without the magic number is refused with a better message here. The ninth byte of a
     * safetensors file is '{', which no pickle of ours has there. */
    return (n >= 2 && head[0] == 0x80 && head[1] >= 1 && head[1] <= 5 && (n < 9 || head[8] != '{')) || is_tar(head, n);
}

/* A reader of one pickle after the other, with a window of the file that grows when a pickle does not fit. */
struct reader {
    struct tensor_file *f;
    unsigned char *data; /* [n] from position `start` of the file */
    size_t n;
    uint64_t start, at; /* at: where the next pickle begins */
};

static int fill_window(struct reader *r, size_t want, struct err *err)
{
    uint64_t left = r->f->file_size - r->at;

    free(r->data);
    r->n = left < want ? (size_t)left : want;
    r->start = r->at;
    r->data = mem_new(r->n, "a pickle", err);
    return r->data ? tensor_file_pread(r->f, r->at, r->data, r->n, "a pickle", err) : -1;
}

/* Reads the next pickle. It points into the window, so it is to be freed before the next call, or the window taken over (set
 * r->data to NULL). p is to be freed after a failure too. */
static int next_pickle(struct reader *r, struct pickle *p, struct err *err)
{
    for (size_t want = FIRST_TRY;; want *= 8) {
        size_t skip = r->data ? (size_t)(r->at - r->start) : 0;
        bool whole;

        if (!r->data || skip >= r->n) {
            if (fill_window(r, want, err) != 0)
                return -1;
            skip = 0;
        }
        whole = r->start + r->n == r->f->file_size || r->n - skip >= PICKLE_MAX_BYTES;
        if (pickle_parse(p, r->data + skip, r->n - skip, torch_globals, r->f->path, err) == 0) {
            r->at += p->used;
            return 0;
        }
        if (!p->cut || whole)
            return -1; /* the caller frees p */
        pickle_free(p);
        err->kind = ERR_NONE;
        free(r->data);
        r->data = NULL;
    }
}

/* The three small pickles at the front. */
static int read_front(struct reader *r, struct err *err)
{
    struct pickle p = {0};
    int status = next_pickle(r, &p, err);

    if (status == 0 &&
        (p.root->kind != PICKLE_BIGINT || p.root->text.n != sizeof magic || memcmp(p.root->text.s, magic, sizeof magic) != 0))
        status = err_set(err,
                         "cannot read '%s': it is a pickle, but not one that torch.save() wrote; save it with torch.save() "
                         "or as safetensors",
                         r->f->path);
    pickle_free(&p);
    if (status == 0)
        status = next_pickle(r, &p, err);
    if (status == 0 && (p.root->kind != PICKLE_INT || p.root->i != 1001))
        status = err_set(err,
                         "cannot read '%s': it has an unknown version of torch's legacy format; save it again with a torch of "
                         "today",
                         r->f->path);
    pickle_free(&p);
    if (status == 0)
        status = next_pickle(r, &p, err); /* the system's type sizes: the data does not depend on them */
    pickle_free(&p);
    return status;
}

/* ---- Storages */

struct stored {
    struct torch_id id;
    uint64_t offset;
    bool placed;
};

struct table {
    struct stored *item; /* [count], sorted by key */
    size_t count;
};

static int compare_keys(const char *a, size_t n_a, const char *b, size_t n_b)
{
    int c = memcmp(a, b, n_a < n_b ? n_a : n_b);

    return c ? c : n_a < n_b ? -1 : n_a > n_b;
}

static int by_key(const void *a, const void *b)
{
    const struct stored *x = a, *y = b;

    return compare_keys(x->id.key, x->id.n_key, y->id.key, y->id.n_key);
}

static struct stored *find(const struct table *t, const char *key, size_t n)
{
    const struct stored want = {.id = {.key = key, .n_key = n}};

    return t->count ? bsearch(&want, t->item, t->count, sizeof *t->item, by_key) : NULL;
}

static int damaged(const struct reader *r, const char *what, struct err *err)
{
    return err_set(err, "cannot read '%s': %s; the file is damaged, get it again", r->f->path, what);
}

/* All storages that the object names, each once. They may be named many times, but with one size. */
static int make_table(struct table *t, const struct reader *r, const struct pickle *p, struct err *err)
{
    size_t kept = 0;

    t->item = mem_zero(p->n_persid, sizeof *t->item, "a list of storages", err);
    if (!t->item)
        return -1;
    for (size_t i = 0; i < p->n_persid; i++)
        if (!torch_id_read(&t->item[i].id, p->persid[i]))
            return damaged(r, "a storage is not described as torch does", err);
    qsort(t->item, p->n_persid, sizeof *t->item, by_key);
    for (size_t i = 0; i < p->n_persid; i++) {
        if (kept > 0 && by_key(&t->item[kept - 1], &t->item[i]) == 0) {
            if (t->item[kept - 1].id.nbytes != t->item[i].id.nbytes || t->item[kept - 1].id.element != t->item[i].id.element)
                return damaged(r, "a storage is described twice, with two sizes", err);
            continue;
        }
        t->item[kept++] = t->item[i];
    }
    t->count = kept;
    return 0;
}

/* Walks over the storages as they lie in the file, in the order of keys. */
static int place_storages(struct table *t, const struct reader *r, const struct pickle_value *keys, struct err *err)
{
    uint64_t at = r->at, size = r->f->file_size;

    if (keys->kind != PICKLE_LIST && keys->kind != PICKLE_TUPLE)
        return damaged(r, "its list of storages is no list", err);
    for (size_t i = 0; i < keys->seq.n; i++) {
        const struct pickle_value *key = keys->seq.item[i];
        struct stored *s = key->kind == PICKLE_STR ? find(t, key->text.s, key->text.n) : NULL;
        unsigned char count[8];
        uint64_t numel = 0;

        if (!s || s->placed)
            return damaged(r, "its list of storages names one that is not there, or is there twice", err);
        if (size - at < 8 || s->id.nbytes > size - at - 8)
            return err_set(err,
                           "cannot read '%s': storage %zu of %zu ends past the end of the file, %" PRIu64 " bytes are missing; "
                           "the file was cut short, get it again",
                           r->f->path, i + 1, keys->seq.n,
                           s->id.nbytes > UINT64_MAX - 8 ? UINT64_MAX : s->id.nbytes + 8 - (size - at));
        if (tensor_file_pread(r->f, at, count, 8, "a storage", err) != 0)
            return -1;
        for (int k = 7; k >= 0; k--)
            numel = numel << 8 | count[k];
        if (numel != s->id.nbytes / s->id.element)
            return damaged(r, "a storage has another size than the pickle says", err);
        s->offset = at + 8;
        s->placed = true;
        at += 8 + s->id.nbytes;
    }
    return 0;
}

static int locate(struct tensor_file *f, void *ctx, const struct torch_id *id, struct torch_storage *out, struct err *err)
{
    const struct stored *s = find(ctx, id->key, id->n_key);
    char key[64];

    (void)f;
    if (!s || !s->placed)
        return err_set(err, "its storage '%s' is not in the file; the file is damaged, get it again",
                       pickle_quote(id->key, id->n_key, key, sizeof key));
    *out = (struct torch_storage){.offset = s->offset, .nbytes = s->id.nbytes};
    return 0;
}

static int open_file(struct tensor_file *f, struct err *err)
{
    struct reader r = {.f = f};
    struct pickle object = {0}, keys = {0};
    struct table t = {0};
    unsigned char *object_window = NULL;
    unsigned char head[16] = {0};
    int status = -1;

    if (tensor_file_pread(f, 0, head, f->file_size < 16 ? (size_t)f->file_size : 16, "its beginning", err) != 0)
        return -1;
    if (is_tar(head, sizeof head))
        return err_set(err,
                       "cannot read '%s': it is a tar archive of torch before 0.2; load it with a torch of today and save it "
                       "again",
                       f->path);
    if (read_front(&r, err) != 0 || next_pickle(&r, &object, err) != 0)
        goto out;
    object_window = r.data; /* the object points into it */
    r.data = NULL;
    if (next_pickle(&r, &keys, err) == 0 && make_table(&t, &r, &object, err) == 0 &&
        place_storages(&t, &r, keys.root, err) == 0)
        status = torch_file_fill(f, &object, locate, &t, false, err);
out:
    pickle_free(&object);
    pickle_free(&keys);
    free(t.item);
    free(object_window);
    free(r.data);
    return status;
}

const struct tensor_format format_torch_legacy = {
    .name = "torch legacy",
    .probe = probe,
    .open = open_file,
    .close = torch_file_close,
    .read = torch_file_read,
};
