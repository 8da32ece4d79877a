#include "tests/cuda/kernels.h"

void cases_products(void)
{
}
