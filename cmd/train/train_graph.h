/* One training step as a graph: noised latents and a caption go in, the loss and the gradients of all factors come out. A graph
 * belongs to one shape of batch (samples, size, length of captions); the model's weights and the factors are shared.
 *
 * With LoRA on the text encoder, that is part of the graph and token ids go in; without, text embeddings do (text.h).
 */
#ifndef CMD_TRAIN_TRAIN_GRAPH_H
#define CMD_TRAIN_TRAIN_GRAPH_H

#include "ref/graph/run.h"
#include "ref/lora/network.h"
#include "ref/model/layers.h"
#include "ref/optim/optim.h"

enum train_loss { LOSS_L2, LOSS_HUBER, LOSS_SMOOTH_L1 };

/* What is the same for all graphs of a run. */
struct train_setup {
    struct weights *w;
    const struct ops *ops;
    const struct network *net;
    const struct layers_lora *base; /* [base_count] LoRAs that belong to the model, not trained; none for layers that clip_skip leaves out */
    size_t base_count;
    bool text_trained; /* the text encoder is in the graph */
    bool weighted;     /* its context is multiplied by an input */
    bool sd2;          /* how chunks of long captions are joined, see text.h */
    size_t text_layers, clip_skip; /* 0 or 1: the last layer's output */
    bool checkpoint;   /* gradient checkpointing */
    bool huber;        /* the loss takes a width a sample */
    bool masked;       /* the prediction is multiplied by an input before the loss; the target comes so */
    enum { DROP_NONE, DROP_SAMPLE, DROP_EACH } dropout; /* no masks, one vector a sample, or one value an activation */
};

struct train_shape {
    size_t n;      /* samples */
    size_t h, w;   /* of the latents */
    size_t chunks; /* of 77 tokens, of a caption */
};

/* A step; the loss alone, without dropout; or what the model without LoRA makes of its inputs. */
enum train_graph_kind { TRAIN_STEP, TRAIN_LOSS, TRAIN_PRIOR };

struct train_graph {
    struct train_shape shape;
    enum train_graph_kind kind;
    struct graph *g;
    struct run *run;
    int latents, timestep, target, weight; /* inputs [n, h, w, c], [n]; [n, h, w, c], [n], or GRAPH_NONE in TRAIN_PRIOR */
    int delta;    /* [n] of huber, or GRAPH_NONE */
    int loss_mask; /* [n, h, w, c] square roots of the loss's mask, or GRAPH_NONE */
    int ids;      /* [n * chunks, 77] i32, or GRAPH_NONE */
    int rows;     /* [n, tokens] i32: which rows of the text encoder's output make the context; GRAPH_NONE with one chunk */
    int emphasis; /* [n, tokens, width] of weighted captions, or GRAPH_NONE */
    int context;  /* [n, tokens, width] f32 an input when the text encoder is not trained, else GRAPH_NONE */
    int seed;     /* gradient of the loss, []; GRAPH_NONE without gradients */
    int out, loss; /* kept: in TRAIN_PRIOR the prediction, else the loss */
    int *ddown, *dup, *mask; /* [net->count] GRAPH_NONE where there is none */
    int *values; /* [2 net->count] and where their gradients go or lie, for train_graph_gradients() and train_graph_gather() */
    void **to;
    const void **from;
    struct layers_lora *loras;
    size_t lora_count;
};

/* Whether clip_skip leaves a text encoder of so many layers the one that path is in. */
bool train_graph_keeps(size_t text_layers, size_t clip_skip, const char *path);

/* Whether module i of the network has a layer in the graph: not in text layers that clip_skip leaves out. */
bool train_graph_has(const struct train_setup *s, const struct network_module *m);

/* Tokens of the context that captions of so many chunks give: 77, 152, 227. */
size_t train_tokens(size_t chunks);

/* Builds the list (no memory for activations yet). *t is zeroed by the caller; train_graph_free() frees what it holds, also after
 * an error. */
int train_graph_build(struct train_graph *t, const struct train_setup *s, const struct train_shape *shape,
                      enum train_graph_kind kind, struct err *err);
void train_graph_free(struct train_graph *t);

/* After a run: net->grads = the gradients of this run, or += when it is not the first. scratch [net->size] f32, zeroed once before
 * its first use; not used for the first. */
int train_graph_gradients(struct train_graph *t, const struct network *net, bool first, float *scratch, struct err *err);

/* The same for an optimizer on the graph's device, whose tensors are the graph's factors in the network's order: they stay there. */
int train_graph_gather(struct train_graph *t, const struct network *net, struct optim *o, bool first, struct err *err);

#endif
