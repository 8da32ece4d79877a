/* Metadata of a LoRA that was made from others: what web UIs read, without paths. */
#ifndef CMD_LORA_META_H
#define CMD_LORA_META_H

#include "formats/lora_file.h"
#include "ref/base/mem.h"

struct lora_meta {
    struct arena arena;
    struct metadata_item *item; /* [count], owned by the arena */
    size_t count, cap;
};

/* Sets a key (replacing its value), copying both. value NULL: removes it. Returns 0 or -1. */
int lora_meta_set(struct lora_meta *m, const char *key, const char *value, struct err *err);
const char *lora_meta_get(const struct lora_meta *m, const char *key); /* NULL: not there */
void lora_meta_free(struct lora_meta *m);

/* What n files agree on: every key that has the same value in all of them, and the union of their tag frequencies (whose
 * counts are added up). Hashes (sshs_*) are left out: they belong to the bytes of a file. */
int lora_meta_common(struct lora_meta *m, struct lora_file *const *files, size_t n, struct err *err);

/* ss_network_module, ss_network_dim and ss_network_alpha ("Dynamic" where modules differ), ss_network_args for convolutions,
 * ss_v2 (unless known), for modules [n] about to be written. */
int lora_meta_network(struct lora_meta *m, const struct lora_out *modules, size_t n, bool sd2, struct err *err);

#endif
