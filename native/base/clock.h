/* Monotonic time in nanoseconds, absolute deadlines, and the pause of a spinning core. */
#ifndef SHM_CLOCK_H
#define SHM_CLOCK_H

#include <stdint.h>
#include <time.h>

#define SHM_FOREVER UINT64_MAX
#define SHM_NS_PER_S UINT64_C(1000000000)
#define SHM_SPIN_MAX_NS UINT64_C(100000)

static inline uint64_t shm_clock_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * SHM_NS_PER_S + (uint64_t)t.tv_nsec;
}

/* The same clock a few milliseconds late, for a fifth of the price. */
static inline uint64_t shm_clock_coarse_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &t);
    return (uint64_t)t.tv_sec * SHM_NS_PER_S + (uint64_t)t.tv_nsec;
}

static inline struct timespec shm_clock_timespec(uint64_t ns)
{
    return (struct timespec){.tv_sec = (time_t)(ns / SHM_NS_PER_S), .tv_nsec = (long)(ns % SHM_NS_PER_S)};
}

static inline void shm_clock_sleep(uint64_t ns)
{
    struct timespec t = shm_clock_timespec(ns);
    nanosleep(&t, NULL);
}

static inline void shm_clock_relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield" ::: "memory");
#endif
}

#endif
