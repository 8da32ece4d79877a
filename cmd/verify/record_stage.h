/* One stage of a record (record.h) at work: its graph, with every layer kept. */
#ifndef CMD_VERIFY_RECORD_STAGE_H
#define CMD_VERIFY_RECORD_STAGE_H

#include "cmd/model_weights.h"
#include "ref/graph/run.h"
#include "ref/model/weights.h"

enum record_stage_id { RECORD_TEXT, RECORD_UNET, RECORD_DECODER, RECORD_ENCODER, RECORD_STAGES };

struct record_model {
    struct model *model;
    struct model_weights *source;
    struct weights *w;
    size_t factor, channels; /* of the VAE */
};

struct record_stage {
    const char *key; /* "te", "unet", "decoder", "encoder" */
    struct graph *g;
    struct run *run;
    struct {
        const char *name;
        int value;
    } input[3];
    size_t input_count;
    int out;
    int *layer; /* [layer_count] values of layers, in the order of the graph */
    size_t layer_count;
};

/* Opens a checkpoint that has all three parts. record_model_close() also after an error. */
int record_model_open(struct record_model *m, const char *path, struct err *err);
void record_model_close(struct record_model *m);

/* Builds a stage for pictures of w x h pixels, everything kept, nothing allocated yet. record_stage_close() also after an error. */
int record_stage_open(struct record_stage *s, struct record_model *m, enum record_stage_id id, size_t width, size_t height,
                      struct err *err);
void record_stage_close(struct record_stage *s);

/* Runs it on ops (planned anew) with in[i], the bytes of input i. The layers can be read until the next run or close. */
int record_stage_run(struct record_stage *s, struct record_model *m, const struct ops *ops, const void *const *in, struct err *err);

#endif
