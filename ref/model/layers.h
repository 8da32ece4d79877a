/* What the models are written with: a layer by its module path, weights looked up, LoRA attached on the way.
 *
 * Every call gives a graph value named by the path (so layer outputs can be found, profiled and compared), or GRAPH_NONE
 * after the first error, which the graph keeps.
 */
#ifndef REF_MODEL_LAYERS_H
#define REF_MODEL_LAYERS_H

#include "ref/graph/graph.h"
#include "ref/model/weights.h"

/* One LoRA module. Tensors are f32, borrowed as long as the graph: down [rank, in], or [rank, kh, kw, in] for a convolution,
 * up [out, rank]. y = layer(x) + scale * up(down(x)). */
struct layers_lora {
    enum model_part part;
    const char *path; /* canonical module path: down_blocks.0.attentions.0.proj_in */
    const struct tensor *down, *up;
    float scale; /* alpha / rank times the multiplier */
    bool train;  /* its factors are params of the graph */
    /* May be put into the weight, one layer at a time in scratch, where that is cheaper than a branch: where x has many rows.
     * Linear and 1x1 layers that are not trained, one LoRA a layer; the others are branches in any case. */
    bool fold;
    /* Dropout: what down gives is multiplied by an input of the graph, of its own shape or one vector a sample. The value's
     * number goes to *mask_value (GRAPH_NONE before; borrowed until the graph is built). */
    enum { LAYERS_NO_MASK, LAYERS_MASK_EACH, LAYERS_MASK_SAMPLE } mask;
    int *mask_value;
};

struct layers {
    struct graph *g;
    struct weights *w;
    enum model_part part;
    const struct layers_lora *loras; /* [lora_count], may be NULL; any number of them may name the same path */
    size_t lora_count;
};

/* A formatted path, owned by the graph. */
const char *layers_path(struct layers *l, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Whether the model has a module (by its weight). */
bool layers_has(struct layers *l, const char *path);

/* x -> the layer of that path; the bias is used when there is one. */
int layers_linear(struct layers *l, int x, const char *path);
int layers_conv(struct layers *l, int x, size_t stride, size_t pad_before, size_t pad_after, const char *path);
int layers_group_norm(struct layers *l, int x, float eps, const char *path); /* 32 groups */
int layers_layer_norm(struct layers *l, int x, const char *path);            /* eps 1e-5 */

/* The residual block of U-Net and VAE. emb: the activated time embedding [n, c], GRAPH_NONE in a VAE. */
int layers_resnet(struct layers *l, int x, int emb, float eps, const char *path);

/* Nearest upsampling to h x w (each 2s or 2s - 1 of x's sizes s), then the 3x3 convolution path.conv. */
int layers_upsample(struct layers *l, int x, size_t h, size_t w, const char *path);

/* Fails the graph, naming the module, when a LoRA of this part names a layer that was not built. Call after building. */
void layers_check_loras(struct layers *l);

#endif
