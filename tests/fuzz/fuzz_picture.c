/* Any bytes as a picture: whole pixels or an error. Which reader runs, the first bytes tell, so one target has them all. */
#include <stdint.h>
#include <stdlib.h>

#include "formats/picture.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The width and height that a header can claim without data behind them are kept small, or a run would only clear memory. */
static int is_large(const struct picture *p)
{
    return p->width * p->height > 1 << 22;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct picture p;
    struct err err = {0};
    unsigned sum = 0;

    if (picture_decode(&p, data, size, "fuzz", &err)) {
        if (err.kind != ERR_FAILED || !err.msg[0] || p.data)
            abort();
        return 0;
    }
    if (p.orientation < 1 || p.orientation > 8 || (p.channels != 3 && p.channels != 4))
        abort();
    for (size_t i = 0; i < p.width * p.height * p.channels; i++)
        sum += p.data[i];
    if (!is_large(&p) && picture_upright(&p, &err))
        abort();
    picture_lay_over(&p, (uint8_t)sum, 0, 255);
    if (p.channels != 3)
        abort();
    picture_free(&p);
    return 0;
}
