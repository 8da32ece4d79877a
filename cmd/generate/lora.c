#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cmd/generate/generate.h"

/* ---- One file in the engine's form ---- */

/* The engine's convolutions are channels-last: [r, c, kh, kw] -> [r, kh, kw, c]. */
static void repack(float *to, const float *from, size_t r, size_t c, size_t pixels)
{
    for (size_t i = 0; i < r; i++)
        for (size_t k = 0; k < c; k++)
            for (size_t p = 0; p < pixels; p++)
                to[(i * pixels + p) * c + k] = from[(i * c + k) * pixels + p];
}

static struct tensor *new_tensor(struct arena *a, struct shape shape, struct err *err)
{
    struct tensor *t = arena_alloc(a, sizeof *t, err);
    size_t bytes;

    if (!t)
        return NULL;
    if (!shape_nbytes(&shape, DT_F32, &bytes)) {
        err_memory(err, ~0ull, "a LoRA");
        return NULL;
    }
    *t = (struct tensor){.dtype = DT_F32, .shape = shape, .data = arena_alloc(a, bytes, err)};
    return t->data ? t : NULL;
}

/* The layer must be there and have the module's sizes. */
static int check_module(const struct model *m, const struct lora_file *f, const struct lora_module *l, size_t rank,
                        struct err *err)
{
    char name[512], shape[128];
    const struct model_tensor *t;
    size_t all, out, in;

    if (rank && l->rank != rank)
        return err_usage(err, "'%s': module '%s' has rank %zu, --network_dim says %zu; leave it out, the file tells", f->path,
                         l->key, l->rank, rank);
    snprintf(name, sizeof name, "%s.weight", l->path);
    t = model_find(m, l->part, name);
    if (!t)
        return err_set(err, "'%s' does not fit '%s': module '%s' has no layer there; is it for another kind of model?", f->path,
                       m->path, l->key);
    out = t->shape.dim[0];
    if (!shape_numel(&t->shape, &all) || all % out)
        return err_set(err, "cannot use '%s': the shape of '%s' is impossible", m->path, name);
    in = l->in * l->kh * l->kw;
    if (out != l->out || all / out != in)
        return err_set(err, "'%s' does not fit '%s': module '%s' is %zu x %zu, the layer %s; is it for another kind of model?",
                       f->path, m->path, l->key, l->out, in, shape_print(&t->shape, shape, sizeof shape));
    return 0;
}

static int add_module(struct generate_loras *l, const struct lora_module *m, double multiplier, struct err *err)
{
    bool conv = m->kh * m->kw > 1;
    struct shape down = conv ? (struct shape){4, {m->rank, m->kh, m->kw, m->in}} : (struct shape){2, {m->rank, m->in}};
    struct tensor *d = new_tensor(&l->arena, down, err),
                  *u = d ? new_tensor(&l->arena, shape_of(2, (int)m->out, (int)m->rank), err) : NULL;
    char *path = u ? arena_str(&l->arena, m->path, err) : NULL;
    size_t n = m->rank * m->in * m->kh * m->kw;
    float *plain = NULL;

    if (!path || mem_grow(&l->item, &l->cap, l->count, sizeof *l->item, "LoRA modules", err))
        return -1;
    if (conv && !(plain = mem_new(n * sizeof *plain, "a LoRA", err)))
        return -1;
    if (lora_module_read_f32(m, u->data, conv ? plain : d->data, err)) {
        free(plain);
        return -1;
    }
    if (conv)
        repack(d->data, plain, m->rank, m->in, m->kh * m->kw);
    free(plain);
    l->item[l->count++] = (struct layers_lora){.part = m->part,
                                               .path = path,
                                               .down = d,
                                               .up = u,
                                               .scale = (float)(m->alpha / (double)m->rank * multiplier),
                                               .fold = true};
    return 0;
}

int generate_loras_add(struct generate_loras *l, const struct model *m, const char *path, double text_encoder, double unet,
                       size_t rank, struct err *err)
{
    struct lora_file *f;
    int rc = 0;

    if (lora_file_open(&f, path, err))
        return -1;
    if (f->unknown_count)
        rc = err_set(err, "cannot use '%s': nothing is known about %zu of its modules, such as '%s'", f->path, f->unknown_count,
                     f->unknown[0]);
    for (size_t i = 0; rc == 0 && i < f->count; i++) {
        const struct lora_module *module = &f->module[i];
        double multiplier = module->part == MODEL_TEXT_ENCODER ? text_encoder : unet;

        rc = check_module(m, f, module, rank, err);
        if (rc == 0 && multiplier != 0)
            rc = add_module(l, module, multiplier, err);
    }
    lora_file_close(f);
    return rc;
}

void generate_loras_free(struct generate_loras *l)
{
    free(l->item);
    arena_free(&l->arena);
    memset(l, 0, sizeof *l);
}

/* ---- Those in use: the command line's, and behind them the prompt's ---- */

struct loras_in_use {
    struct generate_loras all;
    size_t fixed;                   /* modules of the command line */
    const struct prompt_line *line; /* whose LoRAs are behind them; NULL: none */
    struct generate_loras prompt;   /* memory of the prompt's */
};

/* FILE or FILE:X; a colon that no number follows belongs to the name. */
static int add_option(struct work *w, const char *text, struct err *err)
{
    char *path = mem_str(text, err), *at = path ? strrchr(path, ':') : NULL, *end;
    double multiplier = 1;
    int rc;

    if (!path)
        return -1;
    if (at && at[1]) {
        double x = strtod(at + 1, &end);

        if (!*end && x - x == 0) {
            *at = 0;
            multiplier = x;
        }
    }
    rc = generate_loras_add(&w->loras->all, w->pipe.model, path, multiplier, multiplier, 0, err);
    free(path);
    return rc;
}

static int check_options(const struct generate_options *o, struct err *err)
{
    size_t n = o->network_weights.count;

    for (size_t i = 0; i < o->network_module.count; i++)
        if (strcmp(o->network_module.item[i], "networks.lora") != 0)
            return err_usage(err, "--network_module '%s' is not possible; only networks.lora is", o->network_module.item[i]);
    if (o->network_module.count > n)
        return err_usage(err, "--network_module names %zu networks, --network_weights %zu files; give a file for each",
                         o->network_module.count, n);
    if (o->network_mul.count > n)
        return err_usage(err, "--network_mul has %zu numbers for %zu files of --network_weights; give one for each",
                         o->network_mul.count, n);
    if (o->network_dim.count > n)
        return err_usage(err, "--network_dim has %zu numbers for %zu files of --network_weights; it can be left out",
                         o->network_dim.count, n);
    return 0;
}

int loras_open(struct work *w, struct err *err)
{
    const struct generate_options *o = w->o;

    if (check_options(o, err))
        return -1;
    w->loras = mem_zero(1, sizeof *w->loras, "LoRAs", err);
    if (!w->loras)
        return -1;
    for (size_t i = 0; i < o->network_weights.count; i++) {
        double x = i < o->network_mul.count ? o->network_mul.item[i] : 1;

        if (generate_loras_add(&w->loras->all, w->pipe.model, o->network_weights.item[i], x, x,
                               i < o->network_dim.count ? (size_t)o->network_dim.item[i] : 0, err))
            return -1;
    }
    for (size_t i = 0; i < o->lora.count; i++)
        if (add_option(w, o->lora.item[i], err))
            return -1;
    w->loras->fixed = w->loras->all.count;
    generate_pipe_loras(&w->pipe, &w->loras->all);
    return 0;
}

void loras_close(struct loras_in_use *l)
{
    if (!l)
        return;
    generate_loras_free(&l->all);
    generate_loras_free(&l->prompt);
    free(l);
}

/* The file that a name in a prompt means: in the folder, with or without its ending; freed by the caller. */
static char *find(const struct work *w, const char *name, struct err *err)
{
    static const char *const endings[] = {"", ".safetensors", ".pt", ".ckpt"};
    struct arena a = {0};
    char *found = NULL;

    for (size_t i = 0; !found && i < sizeof endings / sizeof *endings; i++) {
        char *path = arena_printf(&a, err, "%s/%s%s", w->o->lora_dir, name, endings[i]);

        if (!path)
            break;
        if (access(path, R_OK) == 0)
            found = mem_str(path, err);
    }
    if (!found && err->kind == ERR_NONE)
        err_set(err, "there is no LoRA '%s' in '%s'; name the folder with --lora_dir, or give the file with --lora", name,
                w->o->lora_dir);
    arena_free(&a);
    return found;
}

int loras_check(struct work *w, const struct prompt_line *p, struct err *err)
{
    for (size_t i = 0; i < p->loras; i++) {
        char *path = find(w, p->lora[i].name, err);

        if (!path)
            return err_prefix(err, "prompt '%.60s': ", p->text);
        free(path);
    }
    return 0;
}

bool loras_same(const struct prompt_line *a, const struct prompt_line *b)
{
    if (a == b)
        return true;
    if (a->loras != b->loras)
        return false;
    for (size_t i = 0; i < a->loras; i++)
        if (strcmp(a->lora[i].name, b->lora[i].name) != 0 || a->lora[i].text_encoder != b->lora[i].text_encoder ||
            a->lora[i].unet != b->lora[i].unet)
            return false;
    return true;
}

/* Puts the modules of l->prompt behind those of the command line. */
static int append(struct loras_in_use *l, struct err *err)
{
    for (size_t i = 0; i < l->prompt.count; i++) {
        if (mem_grow(&l->all.item, &l->all.cap, l->all.count, sizeof *l->all.item, "LoRA modules", err))
            return -1;
        l->all.item[l->all.count++] = l->prompt.item[i];
    }
    return 0;
}

size_t loras_bytes(const struct loras_in_use *l)
{
    return l->all.arena.total;
}

int loras_use(struct work *w, const struct prompt_line *p, struct err *err)
{
    struct loras_in_use *l = w->loras;
    int rc = 0;

    if (l->line ? loras_same(l->line, p) : p->loras == 0)
        return 0;
    generate_pipe_rest(&w->pipe);
    batch_forget(w);
    l->all.count = l->fixed;
    l->line = NULL;
    generate_loras_free(&l->prompt);
    for (size_t i = 0; rc == 0 && i < p->loras; i++) {
        char *path = find(w, p->lora[i].name, err);

        rc = path ? generate_loras_add(&l->prompt, w->pipe.model, path, p->lora[i].text_encoder, p->lora[i].unet, 0, err) : -1;
        free(path);
    }
    if (rc == 0)
        rc = append(l, err);
    if (rc == 0 && p->loras)
        l->line = p;
    if (rc)
        l->all.count = l->fixed;
    generate_pipe_loras(&w->pipe, &l->all);
    return rc;
}
