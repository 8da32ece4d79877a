/* Whole models at a small size: every layer with a LoRA on every module, all gradients, and the plain model with fusions. */
#include "cmd/verify/subject.h"

/* Every layer's output and all gradients of the factors through U-Net and text encoder. */
static int check_training(struct verify *v, struct verify_file *f, json_t *meta, const char *name, struct err *err)
{
    struct subject s;
    int rc = -1;

    if (subject_open(&s, f, meta, name, err) || subject_build(&s, err) || subject_keep_layers(&s, err) ||
        subject_differentiate(&s, err) || subject_start(&s, v->ops, err) || run_graph(s.run, NULL, err))
        goto out;
    if (subject_compare_layers(v, &s, err) || subject_compare_value(v, &s, "loss", "loss", s.loss, err))
        goto out;
    rc = subject_compare_gradients(v, &s, err);
out:
    subject_close(&s);
    return rc ? err_prefix(err, "model %s: ", name) : 0;
}

/* Without LoRA and with all fusions; a VAE with its layers kept. */
static int check_plain(struct verify *v, struct verify_file *f, json_t *meta, const char *name, bool layers, struct err *err)
{
    struct subject s;
    int rc = -1;

    if (subject_open(&s, f, meta, name, err))
        goto out;
    s.layers.lora_count = 0;
    if (subject_build(&s, err))
        goto out;
    if (s.loss != GRAPH_NONE)
        s.input_count--; /* the target goes with the loss, which is pruned away */
    if (layers ? subject_keep_layers(&s, err) : graph_prune(s.g, err))
        goto out;
    if (graph_fuse(s.g, FUSE_ALL, err) || subject_start(&s, v->ops, err) || run_graph(s.run, NULL, err) ||
        subject_compare_value(v, &s, "plain", "without LoRA", s.result, err))
        goto out;
    rc = layers ? subject_compare_layers(v, &s, err) : 0;
out:
    subject_close(&s);
    return rc ? err_prefix(err, "model %s: ", name) : 0;
}

int verify_models(struct verify *v, struct err *err)
{
    static const char *const names[] = {"sd1", "sd2", "encoder", "decoder"};
    struct verify_file f;
    json_t *meta = NULL;
    int rc = -1;

    if (verify_file_open(&f, v, "models.safetensors", err) || !(meta = verify_json(&f, "models", err)))
        goto out;
    for (size_t i = 0; i < 4; i++)
        if ((i < 2 && check_training(v, &f, meta, names[i], err)) || check_plain(v, &f, meta, names[i], i >= 2, err))
            goto out;
    rc = 0;
out:
    json_decref(meta);
    verify_file_close(&f);
    return rc;
}
