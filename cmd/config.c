#include "cmd/config.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "cmd/command.h"
#include "formats/output.h"
#include "formats/toml.h"

/* Options are short; a checkpoint named by mistake is not read to its end. */
enum { MOST_BYTES = 1 << 20 };

static char *read_whole(const char *path, size_t *n, struct err *err)
{
    FILE *f = fopen(path, "rb");
    char *text = f ? mem_new(MOST_BYTES + 1, "a file of options", err) : NULL;

    *n = 0;
    if (!f)
        err_usage(err, "cannot read options from '%s': %s", path, strerror(errno));
    else if (text && ((*n = fread(text, 1, MOST_BYTES + 1, f)) > MOST_BYTES || ferror(f))) {
        err_usage(err, "cannot read options from '%s': %s", path, ferror(f) ? strerror(errno) : "it is larger than 1 MiB");
        free(text);
        text = NULL;
    }
    if (f)
        fclose(f);
    return text;
}

static json_t *load(const char *path, struct err *err)
{
    size_t n, len = strlen(path);
    char *text = read_whole(path, &n, err);
    json_error_t e;
    json_t *j = NULL;

    if (!text)
        return NULL;
    if (len > 5 && strcmp(path + len - 5, ".toml") == 0)
        j = toml_parse(text, n, path, err);
    else if (!(j = json_loadb(text, n, JSON_REJECT_DUPLICATES, &e)))
        err_usage(err, "cannot read '%s': line %d: %s; options are JSON, or TOML in a file named .toml", path, e.line, e.text);
    if (!j)
        err->kind = ERR_USAGE; /* a file of options is part of the command line */
    free(text);
    return j;
}

int config_read(struct option_values *tables, size_t n_tables, const char *command, const char *path, struct err *err)
{
    json_t *j = load(path, err);
    const char *of;
    int rc;

    if (!j)
        return -1;
    of = json_string_value(json_object_get(j, "command"));
    if (of && strcmp(of, command) != 0)
        rc = err_usage(err, "'%s' holds the options of 'lora %s', not of 'lora %s'", path, of, command);
    else
        rc = option_from_json(tables, n_tables, j, path, err);
    json_decref(j);
    return rc;
}

/* The fewest digits, 15 to 17, with which every number of v reads back as itself: 0.8, not 0.80000000000000004. */
static size_t digits_for(const json_t *v)
{
    size_t most = 15, i;
    const char *key;
    json_t *x;
    char text[64];

    if (json_is_object(v)) {
        json_object_foreach((json_t *)v, key, x)
        {
            size_t d = digits_for(x);
            most = d > most ? d : most;
        }
    } else if (json_is_array(v)) {
        json_array_foreach(v, i, x)
        {
            size_t d = digits_for(x);
            most = d > most ? d : most;
        }
    } else if (json_is_real(v)) {
        for (; most < 17; most++) {
            snprintf(text, sizeof text, "%.*g", (int)most, json_real_value(v));
            if (strtod(text, NULL) == json_real_value(v))
                break;
        }
    }
    return most;
}

int command_write_options(const struct command_run *run, const char *output, struct err *err)
{
    json_t *j = option_to_json(run->values, err), *all = NULL;
    char *text = NULL, *path = NULL;
    size_t n = strlen(output);
    int rc = -1;

    if (!j)
        return -1;
    while (n > 1 && output[n - 1] == '/')
        n--;
    path = malloc(n + sizeof ".options.json");
    all = json_pack("{s:s, s:s}", "command", run->command->name, "version", COMMAND_VERSION);
    if (!path || !all || json_object_update(all, j) ||
        (run->compat && json_object_set_new(all, "compat", json_string("v0.3.0"))) ||
        !(text = json_dumps(all, JSON_INDENT(2) | JSON_REAL_PRECISION(digits_for(all))))) {
        err_memory(err, 4096, "the options file");
        goto out;
    }
    memcpy(path, output, n);
    strcpy(path + n, ".options.json");
    n = strlen(text);
    text[n] = '\n'; /* in the place of its end */
    rc = output_bytes(path, text, n + 1, err);
    if (rc)
        err_prefix(err, "'%s' is written, but not the options it was made with: ", output);
out:
    free(path);
    free(text);
    json_decref(all);
    json_decref(j);
    return rc;
}
