#include "ref/model/clip.h"

struct build {
    struct layers *l;
    size_t heads;
    enum op_id act;
};

/* x + out_proj(causal attention(norm(x))), then + fc2(act(fc1(norm(x)))) */
static int block(const struct build *b, int x, const char *path)
{
    struct layers *l = b->l;
    int h = layers_layer_norm(l, x, layers_path(l, "%s.layer_norm1", path));
    int q = layers_linear(l, h, layers_path(l, "%s.self_attn.q_proj", path));
    int k = layers_linear(l, h, layers_path(l, "%s.self_attn.k_proj", path));
    int v = layers_linear(l, h, layers_path(l, "%s.self_attn.v_proj", path));

    h = graph_attention(l->g, q, k, v, b->heads, true, layers_path(l, "%s.self_attn.attention", path));
    h = layers_linear(l, h, layers_path(l, "%s.self_attn.out_proj", path));
    x = graph_binary(l->g, OP_add, h, x, layers_path(l, "%s.self_attn.residual", path));
    h = layers_layer_norm(l, x, layers_path(l, "%s.layer_norm2", path));
    h = layers_linear(l, h, layers_path(l, "%s.mlp.fc1", path));
    h = graph_unary(l->g, b->act, h, layers_path(l, "%s.mlp.activation_fn", path));
    h = layers_linear(l, h, layers_path(l, "%s.mlp.fc2", path));
    return graph_binary(l->g, OP_add, h, x, path);
}

static int embed(struct layers *l, int ids, const struct tensor **table)
{
    const char *names[] = {"text_model.embeddings.token_embedding.weight", "text_model.embeddings.position_embedding.weight"};
    int in[OP_MAX_IN] = {ids, GRAPH_NONE, GRAPH_NONE, GRAPH_NONE, GRAPH_NONE, GRAPH_NONE};

    for (int i = 0; i < 2; i++) {
        const struct tensor *t = weights_matrix(l->w, l->part, names[i], &l->g->err);

        if (!t)
            return GRAPH_NONE;
        if (i == 0)
            *table = t;
        in[i + 1] = graph_weight(l->g, names[i], t);
    }
    return graph_add_node(l->g, OP_embedding, NULL, in, "text_model.embeddings");
}

/* How many layers to run; 0 after an error. */
static size_t depth(struct layers *l, const struct clip_options *o, struct err *err)
{
    size_t layers = 0, skip = o->clip_skip > 1 ? o->clip_skip - 1 : 0;

    while (layers_has(l, layers_path(l, "text_model.encoder.layers.%zu.layer_norm1", layers)))
        layers++;
    if (layers == 0)
        err_set(err, "the text encoder has no layers; give a model that holds one");
    else if (skip >= layers)
        err_set(err, "clip_skip %zu leaves nothing of a text encoder of %zu layers; use 1 to %zu", o->clip_skip, layers, layers);
    return skip < layers ? layers - skip : 0;
}

int clip_build(struct layers *l, const struct clip_options *options, size_t n, size_t tokens, struct clip *out,
               struct err *err)
{
    struct clip_options o = options ? *options : (struct clip_options){0};
    struct shape s = {2, {n, tokens}};
    const struct tensor *table = NULL;
    struct build b = {.l = l};
    size_t layers = depth(l, &o, err), width;
    int x;

    if (layers == 0)
        return -1;
    out->ids = graph_input(l->g, "ids", DT_I32, &s);
    x = embed(l, out->ids, &table);
    if (graph_check(l->g, err) < 0)
        return -1;
    width = table->shape.dim[1];
    b.heads = o.heads ? o.heads : width / 64;
    b.act = o.act == ACT_NONE ? (width == 1024 ? OP_gelu : OP_quick_gelu) : o.act == ACT_GELU ? OP_gelu : OP_quick_gelu;
    for (size_t i = 0; i < layers; i++) {
        graph_block_begin(l->g);
        x = block(&b, x, layers_path(l, "text_model.encoder.layers.%zu", i));
        graph_block_end(l->g);
    }
    out->out = layers_layer_norm(l, x, "text_model.final_layer_norm");
    graph_keep(l->g, out->out);
    layers_check_loras(l);
    return graph_check(l->g, err);
}
