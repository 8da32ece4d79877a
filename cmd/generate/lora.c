#include <stdlib.h>
#include <string.h>

#include "cmd/generate/generate.h"

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
static int check_module(const struct model *m, const struct lora_file *f, const struct lora_module *l, struct err *err)
{
    char name[512], shape[128];
    const struct model_tensor *t;
    size_t all, out, in;

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
    struct tensor *d = new_tensor(&l->arena, down, err), *u = d ? new_tensor(&l->arena, shape_of(2, (int)m->out, (int)m->rank), err) : NULL;
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
    l->item[l->count++] = (struct layers_lora){.part = m->part, .path = path, .down = d, .up = u,
                                               .scale = (float)(m->alpha / (double)m->rank * multiplier), .fold = true};
    return 0;
}

int generate_loras_add(struct generate_loras *l, const struct model *m, const struct generate_lora *from, struct err *err)
{
    struct lora_file *f;
    int rc = 0;

    if (lora_file_open(&f, from->path, err))
        return -1;
    if (f->unknown_count)
        rc = err_set(err, "cannot use '%s': nothing is known about %zu of its modules, such as '%s'", f->path, f->unknown_count,
                     f->unknown[0]);
    for (size_t i = 0; rc == 0 && i < f->count; i++) {
        const struct lora_module *module = &f->module[i];
        double multiplier = module->part == MODEL_TEXT_ENCODER ? from->text_encoder : from->unet;

        rc = check_module(m, f, module, err);
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
