#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "cmd/prepare/prepare.h"
#include "cmd/train/dataset_inside.h"
#include "formats/output.h"

json_t *prepare_read(const char *in_json, const char *out_json, struct err *err)
{
    struct stat st;
    json_t *all;

    if (!in_json && stat(out_json, &st) == 0 && S_ISREG(st.st_mode))
        in_json = out_json;
    if (in_json)
        return dataset_read_metadata(in_json, err);
    all = json_object();
    if (!all)
        err_memory(err, 64, "metadata");
    return all;
}

/* Python writes the digits of \u00e9 in small letters. */
static void lower_escapes(char *s)
{
    for (; *s; s++) {
        if (*s != '\\')
            continue;
        s++;
        for (int i = 1; *s == 'u' && i <= 4; i++)
            s[i] = s[i] >= 'A' && s[i] <= 'F' ? (char)(s[i] + 32) : s[i];
    }
}

int prepare_write(const char *path, const json_t *all, struct err *err)
{
    char *text = json_dumps(all, JSON_INDENT(2) | JSON_ENSURE_ASCII | JSON_REAL_PRECISION(17));
    int rc;

    if (!text)
        return err_memory(err, 65536, "metadata");
    lower_escapes(text);
    rc = output_text(path, text, err);
    free(text);
    return rc;
}

json_t *prepare_entry(json_t *all, const char *dir, const char *name, bool full_path, char *key, size_t size, struct err *err)
{
    const char *dot = strrchr(name, '.');
    size_t n = full_path ? (size_t)snprintf(key, size, "%s/%s", dir, name)
                         : (size_t)snprintf(key, size, "%.*s", (int)(dot ? (size_t)(dot - name) : strlen(name)), name);
    json_t *one = json_object_get(all, key);

    if (n >= size) {
        err_set(err, "the path '%s/%s' is too long", dir, name);
        return NULL;
    }
    if (!one && json_object_set_new(all, key, json_object()) != 0) {
        err_set(err, "the name '%s' is not UTF-8; rename the picture", name);
        return NULL;
    }
    return one ? one : json_object_get(all, key);
}
