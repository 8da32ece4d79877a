/* One model of golden/models.safetensors at work: text encoder, U-Net and loss in one graph, or a half of a VAE, with a LoRA on
 * every module it can reach. Each field is public: tests change one before they build. */
#ifndef CMD_VERIFY_SUBJECT_H
#define CMD_VERIFY_SUBJECT_H

#include "cmd/verify/golden_model.h"
#include "cmd/verify/verify.h"
#include "ref/graph/run.h"
#include "ref/model/layers.h"

struct subject_lora {
    char path[128];
    struct tensor down, up;
};

struct subject {
    const char *name; /* "sd1", "sd2", "encoder", "decoder" */
    struct verify_file *f;
    json_t *meta; /* of this model, borrowed */
    struct golden_model source;
    struct weight_source door;
    struct weights *weights;
    struct subject_lora *loras; /* [lora_count] */
    struct layers_lora *attached;
    size_t lora_count;
    struct graph *g;
    struct layers layers;
    struct run *run;
    int result, loss; /* values; GRAPH_NONE without a loss */
    struct {
        const char *name; /* of the golden tensor MODEL/in/NAME */
        int value;
    } inputs[4];
    size_t input_count;
    int *grads; /* after subject_differentiate(): for each value */
};

/* meta: the file's "models". f and meta are borrowed until subject_close(). */
int subject_open(struct subject *s, struct verify_file *f, json_t *meta, const char *name, struct err *err);
void subject_close(struct subject *s);

/* Emits the graph: by name, the text encoder with U-Net and loss, or a half of the VAE. */
int subject_build(struct subject *s, struct err *err);
int subject_differentiate(struct subject *s, struct err *err);

/* Keeps the output of every layer that the file has. */
int subject_keep_layers(struct subject *s, struct err *err);

/* Loads the weights, plans, writes the inputs. */
int subject_start(struct subject *s, const struct ops *ops, struct err *err);

/* The value of a factor's gradient: side 0 down, 1 up. GRAPH_NONE: it has none. */
int subject_gradient(const struct subject *s, size_t lora, int side);

/* Compare after a run: the result without LoRA or the loss ("plain", "loss"), all layers, all gradients with their slopes. */
int subject_compare_value(struct verify *v, struct subject *s, const char *key, const char *kind, int value, struct err *err);
int subject_compare_layers(struct verify *v, struct subject *s, struct err *err);
int subject_compare_gradients(struct verify *v, struct subject *s, struct err *err);

#endif
