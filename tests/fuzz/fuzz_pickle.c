/* formats/pickle.c: any bytes are a value or an error */
#include <stdlib.h>
#include <string.h>

#include "formats/pickle.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const struct pickle_global globals[] = {
    {"collections.OrderedDict", PICKLE_MAKES_DICT, 0},
    {"torch._utils._rebuild_tensor_v2", PICKLE_VALUE, 1},
    {"numpy.dtype", PICKLE_OBJECT, 2},
    {"torch.FloatStorage", PICKLE_NEVER, 3},
    {0},
};

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct err err = {0};
    struct pickle p;

    if (pickle_parse(&p, data, size, globals, "fuzz", &err) == 0) {
        if (p.used > size || p.root->kind > PICKLE_PERSID)
            abort();
    } else if (err.kind != ERR_FAILED || err.msg[0] == 0) {
        abort();
    }
    if (p.arena.total > 2048 * size + (1 << 20)) /* a constant times the input */
        abort();
    pickle_free(&p);
    return 0;
}
