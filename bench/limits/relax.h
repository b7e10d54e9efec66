/* One turn of a spin loop; after a million turns the core is offered to others, so that one core is enough. */
#ifndef BENCH_RELAX_H
#define BENCH_RELAX_H

#include <sched.h>

static inline void relax(unsigned turn)
{
    if (turn > 1000000u)
        sched_yield();
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

#endif
