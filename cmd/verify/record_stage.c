#include "cmd/verify/record_stage.h"

#include <stdlib.h>
#include <string.h>

#include "formats/tokenizer.h"
#include "ref/model/clip.h"
#include "ref/model/unet.h"
#include "ref/model/vae.h"

static const char *const keys[RECORD_STAGES] = {"te", "unet", "decoder", "encoder"};
static const enum model_part parts[RECORD_STAGES] = {MODEL_TEXT_ENCODER, MODEL_UNET, MODEL_VAE, MODEL_VAE};

int record_model_open(struct record_model *m, const char *path, struct err *err)
{
    *m = (struct record_model){0};
    if (model_open(&m->model, path, err) || model_weights_open(&m->source, m->model, true, err) ||
        weights_new(&m->w, model_weights_source(m->source), err))
        return -1;
    for (size_t i = 0; i < 3; i++)
        if (model_need(m->model, parts[i], err))
            return -1;
    return vae_config(m->w, &m->factor, &m->channels, err);
}

void record_model_close(struct record_model *m)
{
    weights_free(m->w);
    model_weights_close(m->source);
    model_close(m->model);
    *m = (struct record_model){0};
}

static void add_input(struct record_stage *s, const char *name, int value)
{
    s->input[s->input_count].name = name;
    s->input[s->input_count++].value = value;
}

static int build(struct record_stage *s, struct record_model *m, enum record_stage_id id, size_t width, size_t height, struct err *err)
{
    struct layers l = {.g = s->g, .w = m->w, .part = parts[id]};
    size_t h = height / m->factor, w = width / m->factor;
    struct clip clip;
    struct unet unet;
    struct vae vae;

    if (id == RECORD_TEXT) {
        if (clip_build(&l, NULL, 1, TOKEN_CHUNK, &clip, err))
            return -1;
        add_input(s, "ids", clip.ids);
        s->out = clip.out;
    } else if (id == RECORD_UNET) {
        if (unet_build(&l, NULL, 1, h, w, GRAPH_NONE, TOKEN_CHUNK, &unet, err))
            return -1;
        add_input(s, "latents", unet.latents);
        add_input(s, "timestep", unet.timestep);
        add_input(s, "context", unet.context);
        s->out = unet.out;
    } else {
        bool decoder = id == RECORD_DECODER;

        if (decoder ? vae_build_decoder(&l, 1, h, w, &vae, err) : vae_build_encoder(&l, 1, h * m->factor, w * m->factor, &vae, err))
            return -1;
        add_input(s, decoder ? "latents" : "pictures", vae.in);
        s->out = vae.out;
    }
    return graph_check(s->g, err);
}

/* What graph_find() finds: the last value of each name. */
static int keep_layers(struct record_stage *s, struct err *err)
{
    s->layer = mem_zero(s->g->node_count, sizeof *s->layer, "layers", err);
    if (!s->layer)
        return -1;
    for (size_t i = 0; i < s->g->node_count; i++) {
        int value = s->g->nodes[i].out[0];

        if (graph_find(s->g, s->g->values[value].name) != value)
            continue;
        graph_keep(s->g, value);
        s->layer[s->layer_count++] = value;
    }
    return 0;
}

int record_stage_open(struct record_stage *s, struct record_model *m, enum record_stage_id id, size_t width, size_t height,
                      struct err *err)
{
    *s = (struct record_stage){.key = keys[id], .g = graph_new(err)};
    return s->g && build(s, m, id, width, height, err) == 0 ? keep_layers(s, err) : -1;
}

void record_stage_close(struct record_stage *s)
{
    run_free(s->run);
    graph_free(s->g);
    free(s->layer);
    *s = (struct record_stage){0};
}

int record_stage_run(struct record_stage *s, struct record_model *m, const struct ops *ops, const void *const *in, struct err *err)
{
    struct run_options options = {.check_nan = true};

    run_free(s->run);
    s->run = NULL;
    if (weights_load(m->w, err) || run_new(&s->run, s->g, ops, err))
        return -1;
    for (size_t i = 0; i < s->input_count; i++)
        if (run_write(s->run, s->input[i].value, in[i], err))
            return -1;
    return run_graph(s->run, &options, err) ? -1 : model_weights_check(m->source, err);
}
