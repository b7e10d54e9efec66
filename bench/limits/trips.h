/* What the two round-trip programs share: two pinned processes, a gap, percentiles, one line of JSON.
 *
 * Arguments: near_core far_core warm_up trips gap_us gap, where gap is "none", "busy" (the near side keeps its
 * core) or "sleep" (it gives it up). Percentiles are nearest rank, in nanoseconds.
 */
#ifndef BENCH_TRIPS_H
#define BENCH_TRIPS_H

#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct plan {
    int near_core, far_core;
    long warm_up, trips;
    int64_t gap_ns;
    enum { GAP_NONE, GAP_BUSY, GAP_SLEEP } gap;
};

struct usage {
    int64_t cpu_ns, parks;
};

static inline int64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

static inline void wait_gap(const struct plan *plan)
{
    if (plan->gap == GAP_SLEEP) {
        struct timespec gap = {plan->gap_ns / 1000000000, plan->gap_ns % 1000000000};
        nanosleep(&gap, NULL);
    } else if (plan->gap == GAP_BUSY) {
        int64_t until = now_ns() + plan->gap_ns;
        while (now_ns() < until)
            ;
    }
}

static void die(const char *what)
{
    perror(what);
    exit(1);
}

static struct plan read_plan(int count, char **words)
{
    if (count != 7) {
        fprintf(stderr, "usage: %s near_core far_core warm_up trips gap_us none|busy|sleep\n", words[0]);
        exit(2);
    }
    struct plan plan = {
        .near_core = atoi(words[1]),
        .far_core = atoi(words[2]),
        .warm_up = atol(words[3]),
        .trips = atol(words[4]),
        .gap_ns = atol(words[5]) * 1000,
        .gap = !strcmp(words[6], "busy")    ? GAP_BUSY
               : !strcmp(words[6], "sleep") ? GAP_SLEEP
                                            : GAP_NONE,
    };
    return plan;
}

static void pin(int core)
{
    cpu_set_t cores;
    CPU_ZERO(&cores);
    CPU_SET(core, &cores);
    if (sched_setaffinity(0, sizeof cores, &cores))
        die("sched_setaffinity");
}

static struct usage own_usage(void)
{
    struct rusage spent;
    getrusage(RUSAGE_SELF, &spent);
    return (struct usage){
        (spent.ru_utime.tv_sec + spent.ru_stime.tv_sec) * INT64_C(1000000000) +
            (spent.ru_utime.tv_usec + spent.ru_stime.tv_usec) * INT64_C(1000),
        spent.ru_nvcsw,
    };
}

static void *map_shared(size_t bytes)
{
    void *memory =
        mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (memory == MAP_FAILED)
        die("mmap");
    return memory;
}

static int compare_ns(const void *left, const void *right)
{
    int64_t a = *(const int64_t *)left, b = *(const int64_t *)right;
    return (a > b) - (a < b);
}

static int64_t rank_ns(const int64_t *sorted, long count, long per_mille)
{
    long rank = (count * per_mille + 999) / 1000 - 1;
    return sorted[rank < 0 ? 0 : rank];
}

static void print_result(const struct plan *plan, int64_t *samples, struct usage near, struct usage far)
{
    double sum = 0, trips = (double)plan->trips;
    for (long trip = 0; trip < plan->trips; trip++)
        sum += (double)samples[trip];
    qsort(samples, (size_t)plan->trips, sizeof *samples, compare_ns);
    printf(
        "{\"p50\": %lld, \"p99\": %lld, \"p99.9\": %lld, \"mean\": %.1f, \"trips\": %ld, \"near_cpu\": %.1f, "
        "\"far_cpu\": %.1f, \"near_parks\": %.4f, \"far_parks\": %.4f}\n",
        (long long)rank_ns(samples, plan->trips, 500), (long long)rank_ns(samples, plan->trips, 990),
        (long long)rank_ns(samples, plan->trips, 999), sum / trips, plan->trips, (double)near.cpu_ns / trips,
        (double)far.cpu_ns / trips, (double)near.parks / trips, (double)far.parks / trips);
}

/* Run `near` here and `far` in a child; each gets the shared memory, the plan and a number of trips. */
static int run_trips(int count, char **words, size_t shared_bytes, void (*prepare)(void *),
                     void (*near)(void *, const struct plan *, long, int64_t *), void (*far)(void *, long))
{
    struct plan plan = read_plan(count, words);
    void *shared = map_shared(shared_bytes);
    struct usage *far_usage = map_shared(sizeof *far_usage);
    int64_t *samples =
        calloc((size_t)(plan.trips > plan.warm_up ? plan.trips : plan.warm_up), sizeof *samples);
    if (!samples)
        die("calloc");
    prepare(shared);
    pid_t parent = getpid(), child = fork();
    if (child < 0)
        die("fork");
    if (!child) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent)
            _exit(1);
        pin(plan.far_core);
        far(shared, plan.warm_up);
        struct usage before = own_usage();
        far(shared, plan.trips);
        struct usage after = own_usage();
        *far_usage = (struct usage){after.cpu_ns - before.cpu_ns, after.parks - before.parks};
        _exit(0);
    }
    pin(plan.near_core);
    near(shared, &plan, plan.warm_up, samples);
    struct usage before = own_usage();
    near(shared, &plan, plan.trips, samples);
    struct usage after = own_usage();
    int status;
    if (waitpid(child, &status, 0) < 0 || status)
        die("far process");
    print_result(&plan, samples, (struct usage){after.cpu_ns - before.cpu_ns, after.parks - before.parks},
                 *far_usage);
    return 0;
}

#endif
