/* lora convert for checkpoints. */
#include <string.h>

#include "cmd/convert.h"
#include "cmd/progress.h"
#include "formats/model_write.h"

struct step {
    struct progress *progress;
    const struct command_run *run;
    size_t done;
};

static void step(void *ctx, size_t done, size_t total)
{
    struct step *s = ctx;

    if (!s->progress)
        s->progress = progress_start(s->run, "converting", total, "bytes");
    progress_step(s->progress, done - s->done);
    s->done = done;
}

static int check(const struct convert_options *o, const struct model *m, bool file, struct err *err)
{
    if (o->to >= CONVERT_KOHYA)
        return err_usage(err, "'%s' is a checkpoint; --to takes ldm or diffusers for it", o->in);
    if (o->to == CONVERT_DIFFUSERS && file)
        return err_usage(err, "the diffusers layout is a folder, but '%s' is named like a file; leave its suffix out", o->out);
    if (o->to == CONVERT_LDM && !file)
        return err_usage(err, "the ldm layout is one file; end '%s' with .safetensors or .ckpt", o->out);
    if ((o->v1 || o->v2) && model_expect_v2(m, o->v2, err))
        return -1;
    if (o->bin && file)
        return err_usage(err, "--bin is about the files in a folder; '%s' is one file whose suffix says its kind", o->out);
    return 0;
}

static void tell(const struct command_run *run, const struct convert_options *o, const struct model *m, bool file,
                 double seconds, const struct model_write_report *report)
{
    char kind[256];

    if (report->left_out)
        command_note(run, "%zu tensors of the source have no place in this layout (EMA copies and the like) and are left out",
                     report->left_out);
    if (!report->tokenizer)
        command_note(run, "the folder has no tokenizer: the source has none, and its text encoder does not have CLIP's "
                          "49,408 tokens; give --reference_model DIR to copy one");
    if (report->made_last_block)
        command_note(run,
                     "the text encoder's last block, which Stable Diffusion 2 does not use, is written as a copy of the one "
                     "before it");
    if (!file && m->arch == MODEL_SD2 && m->prediction == MODEL_PREDICTION_UNKNOWN && !o->v_parameterization)
        command_note(run, "the file does not say what the U-Net predicts; the folder's scheduler says epsilon: give "
                          "--v_parameterization for a model that predicts the velocity, as the 768-pixel ones do");
    if (run->quiet || run->json)
        return;
    printf("%s\n", model_kind_text(m, kind, sizeof kind));
    printf("%s: %zu tensors in %s layout, %.1f s\n", o->out, report->tensors, file ? "ldm" : "diffusers", seconds);
}

int convert_model(const struct command_run *run, const struct convert_options *o, struct err *err)
{
    bool file = convert_is_file_name(o->out);
    struct model_write_options w = {.layout = file ? MODEL_LDM : MODEL_DIFFUSERS,
                                    .cast = o->dtype.set,
                                    .dtype = o->dtype.dtype,
                                    .bin = o->bin,
                                    .no_metadata = o->no_metadata,
                                    .tokenizer_from = o->reference_model,
                                    .step = step};
    struct model_write_report report = {0};
    struct step s = {.run = run};
    struct model *m = NULL;
    double seconds;
    int rc = -1;

    if (model_open(&m, o->in, err))
        return -1;
    if (check(o, m, file, err))
        goto out;
    if (o->v_parameterization)
        w.prediction = MODEL_V;
    w.step_ctx = &s;
    rc = model_write(m, o->out, &w, &report, err);
    seconds = progress_end(s.progress);
    if (rc == 0)
        tell(run, o, m, file, seconds, &report);
    if (rc == 0 && run->json)
        rc = command_print_json(json_pack("{s:s, s:s, s:I, s:I, s:b}", "output", o->out, "layout", file ? "ldm" : "diffusers",
                                          "tensors", (json_int_t)report.tensors, "left_out", (json_int_t)report.left_out,
                                          "tokenizer", (int)report.tokenizer),
                                err);
out:
    model_close(m);
    return rc;
}
