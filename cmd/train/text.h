/* Captions to what the U-Net looks at, as sd-scripts v0.3.0 does it (library/train_util.py, get_input_ids and
 * get_hidden_states): 75 tokens a chunk, each chunk encoded with its own begin and end marker, then joined without the inner
 * markers: begin, 75 tokens of each chunk, the last chunk's end.
 *
 * The ids of a caption are kept once it was seen, so nothing is allocated for it again.
 *
 * Where the text encoder is not trained, a caption's embedding is computed once and kept while there is room.
 */
#ifndef CMD_TRAIN_TEXT_H
#define CMD_TRAIN_TEXT_H

#include "cmd/train/train_graph.h"
#include "formats/tokenizer.h"

struct text_options {
    size_t chunks;    /* 1, 2, 3 */
    bool sd2;         /* padding is "!" */
    bool weighted;    /* brackets in captions weigh (formats/prompt.h); else they are text */
    size_t clip_skip;
    size_t most;      /* bytes that kept embeddings may take */
    const struct layers_lora *loras; /* [lora_count] of the text encoder, borrowed */
    size_t lora_count;
};

struct text;

/* w, ops are borrowed. encode: embeddings will be asked for; else only ids. */
int text_open(struct text **out, struct weights *w, const struct ops *ops, const struct text_options *o, bool encode,
              struct err *err);
void text_close(struct text *t); /* NULL is fine */

/* ids [chunks, 77] of one caption; what does not fit is cut off. Returns 0 or -1 (memory; with weights, also brackets that cannot
 * be understood). */
int text_ids(struct text *t, const char *caption, int32_t *ids, struct err *err);

/* weights [tokens, width]: what the context of a caption is multiplied with, the same number across a token; as sd-scripts does, the
 * mean is not restored. */
int text_weights(struct text *t, const char *caption, float *weights, size_t width, struct err *err);

/* rows [n, tokens]: which rows of the encoder's output [n * chunks, 77] make the contexts of n captions. */
void text_rows(size_t chunks, size_t n, int32_t *rows);

/* Floats of one embedding: tokens times width. 0 without encode. */
size_t text_size(const struct text *t);

/* context [tokens, width] of one caption, computed or remembered. */
int text_embed(struct text *t, const char *caption, float *context, struct err *err);

/* Bytes that encoding needs beside the weights, and what may be kept. */
size_t text_bytes(const struct text *t);

#endif
