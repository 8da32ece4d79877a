#include "cmd/config.h"

#include <stdlib.h>
#include <string.h>


static json_t *load(const char *path, struct err *err)
{
    json_error_t e;
    json_t *j = json_load_file(path, JSON_REJECT_DUPLICATES, &e);

    if (j)
        return j;
    if (e.line < 0)
        err_usage(err, "cannot read options from '%s': %s", path, e.text);
    else
        err_usage(err, "cannot read options from '%s': line %d: %s; check the JSON", path, e.line, e.text);
    return NULL;
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
