/* Training on a device against torch: a case of golden/train.safetensors or train8.safetensors, run on a device: the model's weights and the factors follow
 * from names (golden_model.h); latents, noise, timesteps, captions, masks and weights are read. train_more.safetensors is the same with a
 * masked loss, weighted captions and a LoRA in the base model. */
#ifndef CMD_VERIFY_TRAINING_SUBJECT_H
#define CMD_VERIFY_TRAINING_SUBJECT_H

#include "cmd/train/train_graph.h"
#include "cmd/verify/golden_model.h"
#include "cmd/verify/verify.h"
#include "ref/diffusion/schedule.h"
#include "ref/optim/optim.h"

enum { TRAINING_STEPS = 10 };

/* The golden file and its metadata; all golden tensors are read into file's arena. */
struct training_file {
    struct verify_file file;
    json_t *cases, *tensors; /* options by case; shapes of the model by part and name */
    json_t *error, *rms;     /* what torch's own runs in f32, bf16, f16 were off by: by tensor, by case; NULL in train8 */
};

int training_file_open(struct training_file *f, const struct verify *v, const char *name, struct err *err);
void training_file_close(struct training_file *f); /* zeroed is fine */

struct training {
    const char *name; /* "eps" */
    json_t *options;  /* of the case, borrowed */
    struct training_file *f;
    const struct ops *ops;
    struct golden_model source;
    struct weight_source door;
    struct weights *weights;
    struct network *net, *under; /* under: of the base model, with the same modules; NULL: none */
    struct layers_lora *base;    /* [under->count] */
    struct train_setup setup;
    struct train_graph graph;
    struct schedule schedule;
    struct optim *optim;
    const float **grads; /* [2 modules in use], as the optimizer has them */
    bool on_device;      /* the optimizer is, where the device has one */
    float *scratch;      /* for train_graph_gradients() */
    float scale;         /* of the loss while it runs backward */
    size_t n, per;       /* samples, numbers of one */
};

/* The network of the case's modules, factors not set yet; conv_dim 0: no windows. */
int training_network(struct network **out, const json_t *tensors, bool text, double dim, double alpha, double conv_dim,
                     double conv_alpha, struct err *err);

/* `optimizer` as optim_new() names it. *t is zeroed here; training_close() frees what it holds, also after an error. */
int training_open(struct training *t, struct training_file *f, const char *name, const struct ops *ops, bool checkpoint, float scale,
                  const char *optimizer, struct err *err);
void training_close(struct training *t);

/* Forward and backward of step `step`: *loss, and net->grads = the gradients (not scaled). */
int training_step(struct training *t, size_t step, float *loss, struct err *err);

/* Clips and applies the gradients, with the case's rates. */
int training_update(struct training *t, struct err *err);

/* "eps/losses" of key "losses", and a number of the case's options. */
void training_key(const struct training *t, const char *key, char name[400]);
double training_option(const struct training *t, const char *key);

/* Ten steps (or the first alone, where no factors are stored) of a case of train.safetensors, with AdamW: a row for each of losses,
 * gradients of the first step and factors after the last. */
int training_compare(struct verify *v, struct training_file *f, const char *name, bool checkpoint, struct err *err);

#endif
