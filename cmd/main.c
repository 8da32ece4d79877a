#include <stdio.h>

int main(void)
{
    puts("lora");
    return 0;
}
