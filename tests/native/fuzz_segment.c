/* libFuzzer over everything that is read from a shared segment: make fuzz. The scripts are described in hostile.h. */
#include "hostile.h"

int LLVMFuzzerInitialize(int *count, char ***arguments);
int LLVMFuzzerTestOneInput(const unsigned char *bytes, size_t len_bytes);

int LLVMFuzzerInitialize(int *count, char ***arguments)
{
    (void)count;
    (void)arguments;
    hostile_open();
    return 0;
}

int LLVMFuzzerTestOneInput(const unsigned char *bytes, size_t len_bytes)
{
    hostile_run(bytes, len_bytes);
    return 0;
}
