#include "cmd/lora_meta.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct metadata_item *find(const struct lora_meta *m, const char *key)
{
    for (size_t i = 0; i < m->count; i++)
        if (strcmp(m->item[i].key, key) == 0)
            return &m->item[i];
    return NULL;
}

const char *lora_meta_get(const struct lora_meta *m, const char *key)
{
    const struct metadata_item *item = find(m, key);

    return item ? item->value : NULL;
}

int lora_meta_set(struct lora_meta *m, const char *key, const char *value, struct err *err)
{
    struct metadata_item *item = find(m, key);

    if (!value) {
        if (item)
            *item = m->item[--m->count];
        return 0;
    }
    if (!item) {
        if (mem_grow(&m->item, &m->cap, m->count, sizeof *m->item, "metadata", err))
            return -1;
        item = &m->item[m->count];
        item->key = arena_str(&m->arena, key, err);
        if (!item->key)
            return -1;
        item->value = NULL;
    }
    item->value = arena_str(&m->arena, value, err);
    if (!item->value)
        return -1;
    if (item == &m->item[m->count])
        m->count++;
    return 0;
}

void lora_meta_free(struct lora_meta *m)
{
    free(m->item);
    arena_free(&m->arena);
    *m = (struct lora_meta){0};
}

static const char *value_in(const struct lora_file *f, const char *key)
{
    for (size_t i = 0; i < f->metadata_count; i++)
        if (strcmp(f->metadata[i].key, key) == 0)
            return f->metadata[i].value;
    return NULL;
}

static bool same_in_all(struct lora_file *const *files, size_t n, const struct metadata_item *item)
{
    for (size_t i = 1; i < n; i++) {
        const char *value = value_in(files[i], item->key);

        if (!value || strcmp(value, item->value) != 0)
            return false;
    }
    return true;
}

/* into {"folder": {"tag": count}} += from, of the same form; what is of another form is left out. */
static void add_tags(json_t *into, json_t *from)
{
    const char *folder, *tag;
    json_t *tags, *count;

    json_object_foreach(from, folder, tags)
    {
        json_t *to = json_object_get(into, folder);

        if (!json_is_object(tags))
            continue;
        if (!to) {
            to = json_object();
            json_object_set_new(into, folder, to);
        }
        json_object_foreach(tags, tag, count)
        {
            if (json_is_integer(count))
                json_object_set_new(to, tag,
                                    json_integer(json_integer_value(count) + json_integer_value(json_object_get(to, tag))));
        }
    }
}

static int common_tags(struct lora_meta *m, struct lora_file *const *files, size_t n, struct err *err)
{
    json_t *sum = json_object();
    char *text = NULL;
    int rc = 0;

    for (size_t i = 0; i < n; i++) {
        const char *value = value_in(files[i], "ss_tag_frequency");
        json_t *tags = value ? json_loads(value, 0, NULL) : NULL;

        if (json_is_object(tags))
            add_tags(sum, tags);
        json_decref(tags);
    }
    if (json_object_size(sum)) {
        text = json_dumps(sum, JSON_COMPACT);
        rc = text ? lora_meta_set(m, "ss_tag_frequency", text, err) : err_memory(err, 4096, "tag frequencies");
    }
    free(text);
    json_decref(sum);
    return rc;
}

int lora_meta_common(struct lora_meta *m, struct lora_file *const *files, size_t n, struct err *err)
{
    for (size_t i = 0; i < files[0]->metadata_count; i++) {
        const struct metadata_item *item = &files[0]->metadata[i];

        if (strncmp(item->key, "sshs_", 5) != 0 && same_in_all(files, n, item) && lora_meta_set(m, item->key, item->value, err))
            return -1;
    }
    return n > 1 ? common_tags(m, files, n, err) : 0;
}

/* The common value of a figure over the modules that are (not) k x k convolutions: its text, "Dynamic", or NULL for none. */
static const char *common_figure(const struct lora_out *modules, size_t n, bool conv, bool alpha, char *buf, size_t size)
{
    const char *text = NULL;
    double first = 0;

    for (size_t i = 0; i < n; i++) {
        double v = alpha ? modules[i].alpha : (double)modules[i].rank;

        if ((modules[i].kh * modules[i].kw > 1) != conv)
            continue;
        if (text && v != first)
            return "Dynamic";
        first = v;
        snprintf(buf, size, "%.9g", v);
        text = buf;
    }
    return text;
}

int lora_meta_network(struct lora_meta *m, const struct lora_out *modules, size_t n, bool sd2, struct err *err)
{
    char dim[32], alpha[32], conv_dim[32], conv_alpha[32], args[128];
    const char *d = common_figure(modules, n, false, false, dim, sizeof dim);
    const char *a = common_figure(modules, n, false, true, alpha, sizeof alpha);
    const char *cd = common_figure(modules, n, true, false, conv_dim, sizeof conv_dim);
    const char *ca = common_figure(modules, n, true, true, conv_alpha, sizeof conv_alpha);

    snprintf(args, sizeof args, "{\"conv_dim\": \"%s\", \"conv_alpha\": \"%s\"}", cd ? cd : "", ca ? ca : "");
    if (lora_meta_set(m, "ss_network_module", "networks.lora", err) || lora_meta_set(m, "ss_network_dim", d ? d : cd, err) ||
        lora_meta_set(m, "ss_network_alpha", a ? a : ca, err) || (cd && lora_meta_set(m, "ss_network_args", args, err)))
        return -1;
    return lora_meta_get(m, "ss_v2") ? 0 : lora_meta_set(m, "ss_v2", sd2 ? "True" : "False", err);
}
