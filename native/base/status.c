#include "base/status.h"

const char *shm_status_text(int status)
{
    switch (status) {
#define SHM_STATUS_CASE(name, code, text)                                                                    \
    case code:                                                                                               \
        return text;
        SHM_STATUS_TABLE(SHM_STATUS_CASE)
#undef SHM_STATUS_CASE
    default:
        return "unknown status";
    }
}
