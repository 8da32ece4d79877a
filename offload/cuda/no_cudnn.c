/* In cudnn.c's place where its headers were not there when the program was built. */
#include "offload/cuda/cudnn.h"

bool cudnn_open(char version[32])
{
    version[0] = '\0';
    return false;
}

void cudnn_close(void)
{
}

int cudnn_convolve(const struct kernel_conv *c, size_t post, enum cudnn_kind kind, struct err *err)
{
    (void)c, (void)post, (void)kind, (void)err;
    return 0;
}
