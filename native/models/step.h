/* Seen before everything else by each source of the model build: every shared step of the core becomes a point at
 * which the search may switch to another member, or let this one die.
 *
 * The members of a model are fibers of one thread, so nothing here needs to be atomic; memory is sequentially
 * consistent, whatever order the core asks for. Time stands still until the search moves it, and a semaphore is a
 * number.
 */
#ifndef MODEL_STEP_H
#define MODEL_STEP_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <errno.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <time.h>

/* About to read or write a shared word. */
void model_step(const volatile void *address, bool writes, const char *function, int line);
/* The word has changed. */
void model_changed(void);

#define MODEL_VALUE(p) __typeof__(((void)0, *(p)))

#undef atomic_load_explicit
#define atomic_load_explicit(p, order)                                                                       \
    __extension__({                                                                                          \
        __auto_type model_p = (p);                                                                           \
        model_step(model_p, false, __func__, __LINE__);                                                      \
        (MODEL_VALUE(model_p)) * model_p;                                                                    \
    })
#undef atomic_load
#define atomic_load(p) atomic_load_explicit(p, memory_order_seq_cst)

#undef atomic_exchange_explicit
#define atomic_exchange_explicit(p, value, order)                                                            \
    __extension__({                                                                                          \
        __auto_type model_p = (p);                                                                           \
        MODEL_VALUE(model_p) model_new = (value);                                                            \
        model_step(model_p, true, __func__, __LINE__);                                                       \
        MODEL_VALUE(model_p) model_old = *model_p;                                                           \
        *model_p = model_new;                                                                                \
        model_changed();                                                                                     \
        model_old;                                                                                           \
    })
#undef atomic_exchange
#define atomic_exchange(p, value) atomic_exchange_explicit(p, value, memory_order_seq_cst)

#undef atomic_store_explicit
#define atomic_store_explicit(p, value, order) ((void)atomic_exchange_explicit(p, value, order))
#undef atomic_store
#define atomic_store(p, value) atomic_store_explicit(p, value, memory_order_seq_cst)

#define MODEL_UPDATE(p, operator, value)                                                                     \
    __extension__({                                                                                          \
        __auto_type model_p = (p);                                                                           \
        MODEL_VALUE(model_p) model_operand = (value);                                                        \
        model_step(model_p, true, __func__, __LINE__);                                                       \
        MODEL_VALUE(model_p) model_old = *model_p;                                                           \
        *model_p = model_old operator model_operand;                                                         \
        model_changed();                                                                                     \
        model_old;                                                                                           \
    })
#undef atomic_fetch_add
#define atomic_fetch_add(p, value) MODEL_UPDATE(p, +, value)
#undef atomic_fetch_sub
#define atomic_fetch_sub(p, value) MODEL_UPDATE(p, -, value)
#undef atomic_fetch_or
#define atomic_fetch_or(p, value) MODEL_UPDATE(p, |, value)
#undef atomic_fetch_and
#define atomic_fetch_and(p, value) MODEL_UPDATE(p, &, value)

#undef atomic_compare_exchange_strong
#define atomic_compare_exchange_strong(p, expected, desired)                                                 \
    __extension__({                                                                                          \
        __auto_type model_p = (p);                                                                           \
        __auto_type model_e = (expected);                                                                    \
        MODEL_VALUE(model_p) model_new = (desired);                                                          \
        model_step(model_p, true, __func__, __LINE__);                                                       \
        bool model_same = *model_p == *model_e;                                                              \
        if (model_same) {                                                                                    \
            *model_p = model_new;                                                                            \
            model_changed();                                                                                 \
        } else {                                                                                             \
            *model_e = *model_p;                                                                             \
        }                                                                                                    \
        model_same;                                                                                          \
    })
#undef atomic_compare_exchange_weak
#define atomic_compare_exchange_weak(p, expected, desired)                                                   \
    atomic_compare_exchange_strong(p, expected, desired)

/* ---- bodies, in place of base/killpoint.h ------------------------------------------------------------------ */

/* A claimed word stands before a copy that is no atomic step: others may come between. */
void model_point(const char *function, int line);
#define SHM_KILLPOINT_H
#define SHM_KILL_POINT(name)                                                                                 \
    (__builtin_strcmp(#name, "send_copy") == 0 || __builtin_strcmp(#name, "cell_copy") == 0                  \
         ? model_point(__func__, __LINE__)                                                                   \
         : (void)0)

/* ---- diagnosis, in place of base/word.h --------------------------------------------------------------------- */

/* Nothing is done because of it, so it is no step; and no circle of calls is ever seen, for no wait says its end. */
#define SHM_NOTE(at, value) ((void)(at), (void)(value))

/* ---- time, in place of base/clock.h ------------------------------------------------------------------------ */

#define SHM_CLOCK_H
#define SHM_FOREVER UINT64_MAX
#define SHM_NS_PER_S UINT64_C(1000000000)
#define SHM_SPIN_MAX_NS UINT64_C(100000)

uint64_t shm_clock_ns(void);
#define shm_clock_coarse_ns shm_clock_ns
/* Not scheduled again until another member has changed something, or nobody else can go on. */
void shm_clock_relax(void);
void shm_clock_sleep(uint64_t ns);

static inline struct timespec shm_clock_timespec(uint64_t ns)
{
    return (struct timespec){.tv_sec = (time_t)(ns / SHM_NS_PER_S), .tv_nsec = (long)(ns % SHM_NS_PER_S)};
}

/* ---- words that members sleep on: search.c has the functions ----------------------------------------------- */

#include "base/futex.h"

/* ---- semaphores and private memory ------------------------------------------------------------------------- */

int model_sem_init(sem_t *semaphore, unsigned value);
int model_sem_post(sem_t *semaphore, const char *function, int line);
int model_sem_trywait(sem_t *semaphore, const char *function, int line);
int model_sem_clockwait(sem_t *semaphore, const struct timespec *until);
#define sem_init(semaphore, shared, value) model_sem_init(semaphore, value)
#define sem_post(semaphore) model_sem_post(semaphore, __func__, __LINE__)
#define sem_trywait(semaphore) model_sem_trywait(semaphore, __func__, __LINE__)
#define sem_clockwait(semaphore, clock, until) model_sem_clockwait(semaphore, until)

/* What a member allocates is part of the state. */
void *model_allocate(void *old, size_t len_bytes);
#define malloc(len_bytes) model_allocate(NULL, len_bytes)
#define calloc(count, len_bytes) model_allocate(NULL, (count) * (len_bytes))
#define realloc(old, len_bytes) model_allocate(old, len_bytes)
#define free(old) ((void)(old))

#endif
