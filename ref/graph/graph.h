/* A computation as a list: values, and nodes that make values from values. Built once per shape, transformed, planned
 * (plan.h), then run any number of times (run.h) without an allocation.
 *
 * Building cannot fail call by call: the first error is kept in the graph, every later call does nothing and returns
 * GRAPH_NONE, and graph_check() reports it with the layer's name in front. So a model reads as its formula does:
 *
 *     h = graph_linear(g, x, w, b, "mlp.fc1");
 *     h = graph_unary(g, OP_gelu, h, "mlp.act");
 *
 * The order of the transforms is: build, fuse (what has a backward), differentiate, checkpoint, fuse (the rest), plan.
 */
#ifndef REF_GRAPH_GRAPH_H
#define REF_GRAPH_GRAPH_H

#include "ref/base/mem.h"
#include "ref/op/op.h"

#define GRAPH_NONE (-1) /* no value: an absent optional input, or the result after an error */

enum value_kind {
    VALUE_INPUT,  /* written by the caller before each run, in the arena */
    VALUE_WEIGHT, /* frozen; memory borrowed from the model */
    VALUE_PARAM,  /* trainable (f32); memory borrowed from the caller, who changes it between runs */
    VALUE_ACT,    /* made by a forward node */
    VALUE_GRAD,   /* made by a backward node, or a sum of gradients */
};

struct graph_value {
    const char *name; /* module path of the layer that made it, or the weight's or input's name; owned by the graph */
    enum value_kind kind;
    enum dtype dtype;
    struct shape shape;
    const struct tensor *source; /* weights and params: where the data is, looked at in each run */
    int node;                    /* index of the node that makes it, GRAPH_NONE for inputs, weights and params */
    bool keep;                   /* its memory is not reused before the end of the run */
};

/* Forward: in -> out. Backward: in, out, dout -> din. Unused places are GRAPH_NONE. A backward node names all values of its
 * forward, for their shapes, but reads the data only of those in reads_in and reads_out. */
struct graph_node {
    enum op_id op;
    bool backward;
    struct op_attr attr;
    int in[OP_MAX_IN], out[OP_MAX_OUT], dout[OP_MAX_OUT], din[OP_MAX_IN];
    unsigned reads_in, reads_out; /* backward: bit i: the data of in[i], out[i] is read */
    const char *layer; /* module path, owned by the graph */
    int block;         /* 1, 2, .. between block marks, 0 outside; what gradient checkpointing drops together */
};

struct graph {
    struct graph_value *values;
    size_t value_count, value_cap;
    struct graph_node *nodes;
    size_t node_count, node_cap;
    int block, blocks; /* block being built; how many there are */
    struct arena names;
    struct err err; /* the first error of building */
};

/* Returns an empty graph, freed with graph_free() (NULL is fine), or NULL with err filled. */
struct graph *graph_new(struct err *err);
void graph_free(struct graph *g);

/* 0, or -1 with err filled by the first error of building. */
int graph_check(const struct graph *g, struct err *err);

/* Values from outside. Names are copied; *t is borrowed and must outlive the graph, its data may still be NULL. The same t
 * always gives the same value, so a layer used twice has one gradient. */
int graph_input(struct graph *g, const char *name, enum dtype dtype, const struct shape *shape);
int graph_weight(struct graph *g, const char *name, const struct tensor *t);
int graph_param(struct graph *g, const char *name, const struct tensor *t);

/* Appends a node: in [OP_MAX_IN] with GRAPH_NONE for absent ones. layer (copied) names its output. Returns output 0. */
int graph_add_node(struct graph *g, enum op_id op, const struct op_attr *attr, const int in[OP_MAX_IN], const char *layer);

/* The common ones; attr fields as parameters. b, residual: GRAPH_NONE when absent. */
int graph_linear(struct graph *g, int x, int w, int b, const char *layer);
int graph_conv2d(struct graph *g, int x, int w, int b, size_t stride, size_t pad_before, size_t pad_after, const char *layer);
int graph_group_norm(struct graph *g, int x, int gamma, int beta, size_t groups, float eps, const char *layer);
int graph_layer_norm(struct graph *g, int x, int gamma, int beta, float eps, const char *layer);
int graph_attention(struct graph *g, int q, int k, int v, size_t heads, bool causal, const char *layer);
int graph_lora(struct graph *g, int base, int x, int down, int up, float scale, const char *layer);
int graph_unary(struct graph *g, enum op_id op, int x, const char *layer);
int graph_binary(struct graph *g, enum op_id op, int a, int b, const char *layer);

/* Marks what is between them as one block for gradient checkpointing. Blocks do not nest. */
void graph_block_begin(struct graph *g);
void graph_block_end(struct graph *g);

/* Keeps the value's memory until the end of the run, so that the caller can read it. */
void graph_keep(struct graph *g, int value);

/* The shape of a value; an empty one after an error. */
struct shape graph_shape(const struct graph *g, int value);

/* The last forward value of that name (a layer's output), or GRAPH_NONE. */
int graph_find(const struct graph *g, const char *name);

/* Appends the backward of `loss` (one element), only for what leads to a param or to an input in wanted [wanted_count]. On
 * success grads[v] for each value v (count: graph value_count before the call; the caller gives the array) is the value that
 * holds its gradient, or GRAPH_NONE; gradients of params and wanted inputs are kept. */
int graph_differentiate(struct graph *g, int loss, const int *wanted, size_t wanted_count, int *grads, struct err *err);

/* Drops what the blocks made and recomputes it just before the block's backward: memory for about a third more time. The
 * gradients are the same bytes. Call after graph_differentiate(). */
int graph_checkpoint(struct graph *g, struct err *err);

/* Fusions: each takes two nodes whose intermediate value nobody else needs and puts one in their place. Before
 * graph_differentiate() only FUSE_NORM_SILU and FUSE_RESIDUAL may be used (the backward knows them); after it, all. Values
 * that a caller wants to see must be kept before. One GEMM for q, k and v is not among them: it would need a copy of three
 * weights that are mapped from a file, to save one pass over x. */
enum graph_fusion {
    FUSE_NORM_SILU = 1,       /* group norm, SiLU */
    FUSE_LINEAR_ACT = 2,      /* linear, then GELU, quick GELU or SiLU */
    FUSE_RESIDUAL = 4,        /* linear or conv2d, then the addition of something of the same shape */
    FUSE_ALL = 7,
};
int graph_fuse(struct graph *g, unsigned which, struct err *err);

/* Removes the nodes that lead to no kept value. Value numbers stay. */
int graph_prune(struct graph *g, struct err *err);

/* For transforms and planners: which values a node reads the data of, and which it writes. Return how many; a value may be
 * listed twice. graph_renumber() sets values[].node after nodes were moved. */
enum { GRAPH_MAX_READS = OP_MAX_IN + 2 * OP_MAX_OUT };
int graph_list_reads(const struct graph_node *n, int list[GRAPH_MAX_READS]);
int graph_list_writes(const struct graph_node *n, int list[OP_MAX_IN]);
void graph_renumber(struct graph *g);

/* Appends an empty value or node; for transforms. GRAPH_NONE or -1 with g->err filled when memory is short. */
int graph_new_value(struct graph *g, enum value_kind kind, const char *name, enum dtype dtype, const struct shape *shape);
int graph_append(struct graph *g, const struct graph_node *n);
void graph_clear_node(struct graph_node *n, enum op_id op, const char *layer, int block);

/* Fills c with shapes and dtypes (data NULL) of node n's tensors; store [OP_MAX_IN * 2 + OP_MAX_OUT * 2] holds them. For ops'
 * scratch(), flops() and op_bytes(). */
void graph_call(const struct graph *g, const struct graph_node *n, struct op_call *c, struct tensor *store);

#endif
