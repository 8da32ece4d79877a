/* Any bytes as TOML: a value or an error, never more. What is accepted must survive being written as JSON. */
#include <stdint.h>
#include <stdlib.h>

#include "formats/toml.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct err err = {0};
    json_t *j = toml_parse((const char *)data, size, "fuzz.toml", &err), *again;
    char *text;

    if (!j) {
        if (err.kind != ERR_FAILED || !err.msg[0])
            abort();
        return 0;
    }
    text = json_dumps(j, JSON_COMPACT);
    again = text ? json_loads(text, JSON_REJECT_DUPLICATES | JSON_ALLOW_NUL, NULL) : NULL;
    if (!again || !json_equal(j, again))
        abort();
    free(text);
    json_decref(again);
    json_decref(j);
    return 0;
}
