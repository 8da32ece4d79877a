/* Inside of lora_*.c: from a tensor's name to what it is in a LoRA; alphas from configs; modules that only have an order. */
#ifndef FORMATS_LORA_INSIDE_H
#define FORMATS_LORA_INSIDE_H

#include "formats/lora_file.h"

enum lora_role { LORA_DOWN, LORA_UP, LORA_MID, LORA_ALPHA };

struct lora_key {
    enum lora_layout layout;
    enum lora_role role;
    bool any_part;          /* PEFT: the name does not tell the part */
    bool te1;
    enum model_part part;
    char module[NAMES_MAX]; /* module path as the file spells it, old attention names renewed */
};

/* Takes a tensor's name apart. False when it is no LoRA tensor's. */
bool lora_key_parse(const char *name, struct lora_key *out);

/* What kind of LoRA-like file that we do not read such a name belongs to, or NULL. */
const char *lora_key_refused(const char *name);

/* Alphas that stand in the header (diffusers' lora_adapter_metadata) or in PEFT's adapter_config.json, put into the modules of
 * `part` that have none. from: for messages. */
int lora_alpha_from_config(struct lora_file *f, enum model_part part, const char *json, const char *from, struct err *err);
int lora_alpha_from_header(struct lora_file *f, struct err *err);

/* Opens the files of a PEFT folder; configs [2] get the texts of their adapter_config.json (in the arena), NULL where the file
 * is missing, in the order of f->file, part_of the part that the folder's name tells or MODEL_OTHER. */
int lora_open_folder(struct lora_file *f, const char *configs[2], enum model_part part_of[2], struct err *err);

/* cloneofsimo: the path of the i-th of n modules of a part, in the order in which that trainer met them. wide: whether the
 * 5th module is the feed-forward one (models of that time) rather than attn2.to_q. False when n fits no known model. */
bool lora_order_path(enum model_part part, size_t n, size_t i, bool wide, char out[NAMES_MAX]);

/* A module's path as PEFT's config and names have it. */
const char *lora_spell_peft_path(const struct lora_out *m);

/* The name of a factor in a layout that is written; index: the module's place in its part. False when the layout has no place
 * for the module. */
bool lora_spell(enum lora_layout layout, const struct lora_out *m, enum lora_role role, size_t index, char *out, size_t size);

#endif
