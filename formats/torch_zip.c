/* Checkpoints as torch >= 1.6 saves them: a zip archive of FOLDER/data.pkl, FOLDER/data/0 ... (the storages, uncompressed and
 * aligned), FOLDER/version and FOLDER/byteorder. Archives packed again by other tools (deflated) are read too. */
#include <stdlib.h>
#include <string.h>

#include "formats/torch_tensor.h"
#include "formats/torch_zip.h"

static bool probe(const unsigned char *head, size_t n, uint64_t file_size)
{
    (void)file_size;
    return n >= 4 && (memcmp(head, "PK\3\4", 4) == 0 || memcmp(head, "PK\5\6", 4) == 0);
}

struct archive {
    struct zip zip;
    const char *folder; /* "archive/", with its slash; may be empty */
};

static const struct zip_entry *find(struct tensor_file *f, const struct archive *a, const char *name, size_t n, struct err *err)
{
    char *full = arena_printf(&f->arena, err, "%s%.*s", a->folder, (int)n, name);

    return full ? zip_find(&a->zip, full) : NULL;
}

/* The folder is that of the one data.pkl. */
static int find_folder(struct tensor_file *f, struct archive *a, struct err *err)
{
    static const char tail[] = "data.pkl";
    const size_t n_tail = sizeof tail - 1;

    for (size_t i = 0; i < a->zip.count; i++) {
        const char *name = a->zip.entry[i].name;
        size_t n = strlen(name);

        if (n < n_tail || strcmp(name + n - n_tail, tail) != 0 || (n > n_tail && name[n - n_tail - 1] != '/'))
            continue;
        if (a->folder)
            return err_set(err, "cannot read '%s': its zip archive has several data.pkl; give an archive of one checkpoint",
                           f->path);
        a->folder = arena_printf(&f->arena, err, "%.*s", (int)(n - n_tail), name);
        if (!a->folder)
            return -1;
    }
    if (!a->folder)
        return err_set(err,
                       "cannot read '%s': it is a zip archive, but not one that torch saved (there is no data.pkl in it); "
                       "unpack it and give the checkpoint",
                       f->path);
    if (find(f, a, "constants.pkl", 13, err))
        return err_set(err,
                       "cannot read '%s': it is a TorchScript program, not a checkpoint; save its state_dict() with "
                       "torch.save()",
                       f->path);
    return 0;
}

/* A small entry as bytes, freed by the caller. */
static unsigned char *read_entry(struct tensor_file *f, const struct zip_entry *e, size_t max, struct err *err)
{
    unsigned char *data;

    if (e->size > max) {
        err_set(err, "cannot read '%s': zip entry '%s' is too large to be what it says; the file is damaged, get it again",
                f->path, e->name);
        return NULL;
    }
    data = mem_new((size_t)e->size, "a zip entry", err);
    if (data && zip_read(f, e, data, err) != 0) {
        free(data);
        data = NULL;
    }
    return data;
}

/* Files older than torch 2.1 have no byteorder and are little-endian. */
static int read_byteorder(struct tensor_file *f, const struct archive *a, bool *swap, struct err *err)
{
    const struct zip_entry *e = find(f, a, "byteorder", 9, err);
    unsigned char *text = e ? read_entry(f, e, 64, err) : NULL;
    int status = 0;

    *swap = false;
    if (!e)
        return 0;
    if (!text)
        return -1;
    if (e->size == 3 && memcmp(text, "big", 3) == 0)
        *swap = true;
    else if (e->size != 6 || memcmp(text, "little", 6) != 0)
        status = err_set(
            err, "cannot read '%s': its byteorder is neither 'little' nor 'big'; the file is damaged, get it again", f->path);
    free(text);
    return status;
}

static int locate(struct tensor_file *f, void *ctx, const struct torch_id *id, struct torch_storage *out, struct err *err)
{
    const struct archive *a = ctx;
    char key[64], name[80];
    const struct zip_entry *e;
    int n = -1;

    pickle_quote(id->key, id->n_key, key, sizeof key);
    if (id->n_key < sizeof key - 4 && !memchr(id->key, 0, id->n_key)) {
        memcpy(name, "data/", 5);
        memcpy(name + 5, id->key, id->n_key);
        n = (int)(5 + id->n_key);
    }
    e = n < 0 ? NULL : find(f, a, name, (size_t)n, err);
    if (!e)
        return err_set(err, "its storage '%s' is not in the archive; the file is damaged, get it again", key);
    *out = (struct torch_storage){.offset = e->offset, .nbytes = e->size, .packed = e->deflated ? e : NULL};
    return 0;
}

/* An archive may begin with other bytes (a script that unpacks it); what is no archive at all deserves a better word. */
static int open_archive(struct tensor_file *f, struct archive *a, struct err *err)
{
    unsigned char head[4] = {0};
    size_t n = f->file_size < 4 ? (size_t)f->file_size : 4;

    if (tensor_file_pread(f, 0, head, n, "its beginning", err) != 0)
        return -1;
    if (zip_open(&a->zip, f, err) == 0)
        return 0;
    if (probe(head, n, f->file_size) || !strstr(err->msg, "no directory"))
        return -1;
    return err_set(err,
                   "cannot read '%s': its content is neither a zip archive nor a pickle of torch, as its name promises; get "
                   "it again",
                   f->path);
}

static int open_file(struct tensor_file *f, struct err *err)
{
    struct archive a = {0};
    const struct zip_entry *e;
    unsigned char *data = NULL;
    struct pickle p = {0};
    bool swap;
    int status = -1;

    if (open_archive(f, &a, err) != 0 || find_folder(f, &a, err) != 0 || read_byteorder(f, &a, &swap, err) != 0)
        return -1;
    e = find(f, &a, "data.pkl", 8, err);
    data = e ? read_entry(f, e, PICKLE_MAX_BYTES, err) : NULL;
    if (data && pickle_parse(&p, data, (size_t)e->size, torch_globals, f->path, err) == 0)
        status = torch_file_fill(f, &p, locate, &a, swap, err);
    pickle_free(&p);
    free(data);
    return status;
}

static const char *const suffixes[] = {".ckpt", ".pt", ".pth", ".bin", NULL};

const struct tensor_format format_torch_zip = {
    .name = "torch zip",
    .suffixes = suffixes,
    .probe = probe,
    .open = open_file,
    .close = torch_file_close,
    .read = torch_file_read,
    .writer = &torch_zip_writer,
};
