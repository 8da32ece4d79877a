#include "tests/cuda/kernels.h"

void cases_optim(void)
{
}
