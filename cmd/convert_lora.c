/* lora convert for LoRA. */
#include <stdlib.h>
#include <string.h>

#include "cmd/convert.h"
#include "cmd/progress.h"
#include "formats/lora_file.h"
#include "ref/base/mem.h"
#include "ref/base/thread.h"

struct job {
    const struct lora_file *in;
    struct lora_out *out; /* [in->count] */
    enum dtype dtype;     /* of the file to be written */
    struct progress *progress;
};

/* Whether the module can be handed on in its own bytes. */
static bool keep_bytes(const struct lora_module *m, enum dtype to)
{
    return !m->mid.entry && m->up.entry->dtype == to && m->down.entry->dtype == to;
}

static bool is_four_dimensional(const struct lora_module *m)
{
    return m->kh > 1 || m->kw > 1 || m->up.entry->shape.ndim == 4 || m->down.entry->shape.ndim == 4;
}

static int read_module(void *ctx, size_t index, struct err *err)
{
    struct job *job = ctx;
    const struct lora_module *m = &job->in->module[index];
    enum dtype t = keep_bytes(m, job->dtype) ? job->dtype : DT_F32;
    size_t columns, up_n, down_n, up_bytes, down_bytes;
    void *up, *down;

    if (!mem_mul(m->in, m->kh * m->kw, &columns) || !mem_mul(m->out, m->rank, &up_n) || !mem_mul(m->rank, columns, &down_n) ||
        !mem_mul(up_n, dtype_size(t), &up_bytes) || !mem_mul(down_n, dtype_size(t), &down_bytes))
        return err_memory(err, ~0ULL, "the factors of a LoRA module");
    up = mem_new(up_bytes, "a LoRA factor", err);
    down = up ? mem_new(down_bytes, "a LoRA factor", err) : NULL;
    job->out[index] = (struct lora_out){.part = m->part,
                                        .path = m->path,
                                        .rank = m->rank,
                                        .out = m->out,
                                        .in = m->in,
                                        .kh = m->kh,
                                        .kw = m->kw,
                                        .conv = is_four_dimensional(m),
                                        .alpha = m->alpha,
                                        .has_alpha = m->has_alpha,
                                        .dtype = t,
                                        .up = up,
                                        .down = down};
    if (!down)
        return -1;
    progress_step(job->progress, 1);
    return t == DT_F32 && !keep_bytes(m, DT_F32) ? lora_module_read_f32(m, up, down, err) : lora_module_read(m, up, down, err);
}

/* The layout that OUT gets when --to does not say. */
static enum lora_layout default_layout(const struct convert_options *o, const struct lora_file *f)
{
    enum lora_layout same;

    if (!convert_is_file_name(o->out))
        return LORA_PEFT;
    if (f->layout != LORA_PEFT && lora_layout_parse(lora_layout_name(f->layout), &same))
        return f->layout;
    return LORA_KOHYA;
}

static int choose_layout(const struct convert_options *o, const struct lora_file *f, enum lora_layout *layout, struct err *err)
{
    static const enum lora_layout of[] = {[CONVERT_DIFFUSERS] = LORA_DIFFUSERS,
                                          [CONVERT_KOHYA] = LORA_KOHYA,
                                          [CONVERT_DIFFUSERS_OLD] = LORA_DIFFUSERS_OLD,
                                          [CONVERT_PEFT] = LORA_PEFT,
                                          [CONVERT_CLONEOFSIMO] = LORA_CLONEOFSIMO};
    bool file = convert_is_file_name(o->out);

    if (o->to == CONVERT_LDM)
        return err_usage(err, "'%s' is a LoRA; --to takes kohya, diffusers, diffusers-old, peft or cloneofsimo for it", o->in);
    *layout = o->to == CONVERT_UNSET ? default_layout(o, f) : of[o->to];
    if (*layout == LORA_PEFT && file)
        return err_usage(err, "the peft layout is a folder, but '%s' is named like a file; leave its suffix out", o->out);
    if (*layout != LORA_PEFT && !file)
        return err_usage(err, "the %s layout is one file; end '%s' with .safetensors", lora_layout_name(*layout), o->out);
    if (o->bin || o->reference_model || o->v_parameterization)
        return err_usage(err, "--bin, --reference_model and --v_parameterization are about checkpoints; '%s' is a LoRA", o->in);
    if ((o->v1 && f->sd2) || (o->v2 && !f->sd2))
        return err_usage(err, "'%s' is a LoRA for Stable Diffusion %s; leave --v%d out", o->in, f->sd2 ? "2.x" : "1.x",
                         o->v1 ? 1 : 2);
    return 0;
}

static int tell(const struct command_run *run, const struct convert_options *o, const struct lora_file *f,
                enum lora_layout layout, const struct lora_write_report *report, struct err *err)
{
    char kind[256];

    for (size_t i = 0; i < f->unknown_count; i++)
        command_warn(run, "module '%s' is left out: no rule knows it", f->unknown[i]);
    if (report->folded)
        command_note(run, "the %s layout has no alpha: alpha / rank is multiplied into lora_up of %zu modules%s",
                     lora_layout_name(layout), report->folded,
                     report->folded_inexact ? " (rounded: not every scale is a power of two)" : ", exactly");
    if (run->json)
        return command_print_json(json_pack("{s:s, s:s, s:I, s:I, s:I, s:I}", "output", o->out, "layout",
                                            lora_layout_name(layout), "modules", (json_int_t)f->count, "left_out",
                                            (json_int_t)f->unknown_count, "alpha_folded", (json_int_t)report->folded,
                                            "alpha_folded_inexact", (json_int_t)report->folded_inexact),
                                  err);
    if (!run->quiet) {
        printf("%s\n", lora_kind_text(f, kind, sizeof kind));
        printf("%s: %zu modules in %s layout\n", o->out, f->count, lora_layout_name(layout));
    }
    return 0;
}

int convert_lora(const struct command_run *run, const struct convert_options *o, struct err *err)
{
    struct lora_file *f = NULL;
    struct job job = {0};
    struct lora_write_options w = {.no_metadata = o->no_metadata};
    struct lora_write_report report = {0};
    int rc = -1;

    if (lora_file_open(&f, o->in, err))
        return -1;
    if (choose_layout(o, f, &w.layout, err))
        goto out;
    job.in = f;
    job.dtype = w.dtype = o->dtype.set ? o->dtype.dtype : f->dtype;
    w.metadata = f->metadata;
    w.n_metadata = f->metadata_count;
    job.out = mem_zero(f->count + 1, sizeof *job.out, "the list of modules", err);
    if (!job.out)
        goto out;
    job.progress = progress_start(run, "reading", f->count, "modules");
    rc = thread_for(f->count, read_module, &job, err);
    progress_end(job.progress);
    if (rc == 0)
        rc = lora_file_write(o->out, job.out, f->count, &w, &report, err);
    if (rc == 0)
        rc = tell(run, o, f, w.layout, &report, err);
out:
    for (size_t i = 0; job.out && i < f->count; i++) {
        free((void *)job.out[i].up);
        free((void *)job.out[i].down);
    }
    free(job.out);
    lora_file_close(f);
    return rc;
}
