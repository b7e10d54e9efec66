/* What every C test needs: checks that say where, a forked process, a crowd of threads.
 *
 *     static void take_skips_a_slot_whose_producer_died(void) { CHECK(...); }
 *
 *     int main(void)
 *     {
 *         RUN(take_skips_a_slot_whose_producer_died);
 *         return 0;
 *     }
 *
 * A failed check prints file, line and values and aborts, in whatever thread or process it stands; the parent of
 * a forked process sees that in check_wait(). One alarm ends a program that hangs.
 */
#ifndef CHECK_H
#define CHECK_H

#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK_SECONDS 100 /* below the limit in meson.build, so that the name of the test is printed */
#define CHECK_MAX_THREADS 64

static const char *check_running = "main";

#define CHECK_FAIL(...)                                                                                      \
    do {                                                                                                     \
        fprintf(stderr, "%s:%d: in %s: ", __FILE__, __LINE__, check_running);                                \
        fprintf(stderr, __VA_ARGS__);                                                                        \
        fputc('\n', stderr);                                                                                 \
        abort();                                                                                             \
    } while (0)

#define CHECK(condition)                                                                                     \
    do {                                                                                                     \
        if (!(condition))                                                                                    \
            CHECK_FAIL("not true: %s", #condition);                                                          \
    } while (0)

/* Integers and states. */
#define CHECK_EQ(actual, expected)                                                                           \
    do {                                                                                                     \
        long long check_a = (long long)(actual), check_b = (long long)(expected);                            \
        if (check_a != check_b)                                                                              \
            CHECK_FAIL("%s is %lld (0x%llx), expected %s = %lld (0x%llx)", #actual, check_a,                 \
                       (unsigned long long)check_a, #expected, check_b, (unsigned long long)check_b);        \
    } while (0)

/* A call that returns a status of the core. */
#define CHECK_OK(call) CHECK_EQ(call, 0)

#define CHECK_BYTES(actual, expected, len_bytes)                                                             \
    do {                                                                                                     \
        if (memcmp((actual), (expected), (len_bytes)) != 0)                                                  \
            CHECK_FAIL("%s differs from %s in its first %zu bytes", #actual, #expected,                      \
                       (size_t)(len_bytes));                                                                 \
    } while (0)

#define RUN(test)                                                                                            \
    do {                                                                                                     \
        check_running = #test;                                                                               \
        fprintf(stderr, "%s\n", check_running);                                                              \
        alarm(CHECK_SECONDS);                                                                                \
        test();                                                                                              \
        alarm(0);                                                                                            \
    } while (0)

/* Run `body(argument)` in a forked process, which ends with status 0 when it returns. */
static inline pid_t check_fork(void (*body)(void *), void *argument)
{
    pid_t pid = fork();
    if (pid < 0)
        CHECK_FAIL("fork failed");
    if (pid == 0) {
        alarm(CHECK_SECONDS);
        body(argument);
        _exit(0);
    }
    return pid;
}

/* The wait status of a forked process: 0, or see WIFEXITED and WIFSIGNALED. */
static inline int check_wait(pid_t pid)
{
    int status;
    if (waitpid(pid, &status, 0) != pid)
        CHECK_FAIL("no process %d to wait for", (int)pid);
    return status;
}

struct check_thread {
    void (*body)(void *argument, int index);
    void *argument;
    int index;
    pthread_barrier_t *start;
};

static inline void *check_thread_main(void *opaque)
{
    struct check_thread *self = opaque;
    pthread_barrier_wait(self->start);
    self->body(self->argument, self->index);
    return NULL;
}

/* Run `body(argument, 0 .. count - 1)` in as many threads, which start together; returns when all have ended. */
static inline void check_threads(int count, void (*body)(void *argument, int index), void *argument)
{
    pthread_t threads[CHECK_MAX_THREADS];
    struct check_thread crowd[CHECK_MAX_THREADS];
    pthread_barrier_t start;
    CHECK(count > 0 && count <= CHECK_MAX_THREADS);
    CHECK_OK(pthread_barrier_init(&start, NULL, (unsigned)count));
    for (int i = 0; i < count; i++) {
        crowd[i] = (struct check_thread){.body = body, .argument = argument, .index = i, .start = &start};
        CHECK_OK(pthread_create(&threads[i], NULL, check_thread_main, &crowd[i]));
    }
    for (int i = 0; i < count; i++)
        CHECK_OK(pthread_join(threads[i], NULL));
    CHECK_OK(pthread_barrier_destroy(&start));
}

#endif
