#define _GNU_SOURCE
#include "search.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "base/status.h"

enum { RANGES_MAX = 64, DEPTH_MAX = 6000, FRAMES_MAX = 6000, CHOICES_MAX = 3 * MODEL_FIBERS, SLICES_MAX = 2 };
/* What a pause lasts when nobody else can go on: longer than any limit the core sets to another's work. */
#define PAUSE_NS (2 * SHM_NS_PER_S)
#define SLICE_NS (SHM_NS_PER_S / 2)

int model_bug;
struct shm_segment model_segment;

static struct image image;
struct image *const model = &image;
const struct scene *model_scene;
static unsigned char heap[MODEL_HEAP_BYTES] __attribute__((aligned(64)));
static unsigned char stacks[MODEL_FIBERS][MODEL_STACK_BYTES] __attribute__((aligned(64)));

static int current = -1; /* the fiber that runs; -1: the search, whose steps are nobody's */
static void *search_sp;
static bool failed, learnt;
static uint64_t world_size;
static struct result result;

/* ---- fibers ------------------------------------------------------------------------------------------------ */

/* Save the registers that a call preserves on this stack, and go on with those on the other. x86-64 only. */
void model_switch(void **from, void *to);
__asm__(".text\n"
        ".globl model_switch\n"
        ".type model_switch, @function\n"
        "model_switch:\n"
        "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
        "  movq %rsp, (%rdi)\n"
        "  movq %rsi, %rsp\n"
        "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n"
        "  ret\n"
        ".size model_switch, . - model_switch\n");

static unsigned char *top_of(int fiber)
{
    return stacks[fiber] + MODEL_STACK_BYTES;
}

static bool has_stack(const struct fiber *fiber)
{
    return fiber->state != FIBER_ENDED && fiber->state != FIBER_DEAD;
}

static void yield(void)
{
    struct fiber *self = &image.fibers[current];
    model_switch(&self->sp, search_sp);
}

static void fiber_main(void)
{
    model_scene->program(current);
    image.fibers[current].state = FIBER_ENDED;
    yield();
    abort();
}

static void make_fiber(int fiber)
{
    uint64_t *sp = (uint64_t *)(void *)top_of(fiber) - 2; /* as if fiber_main had been called */
    memset(stacks[fiber], 0, MODEL_STACK_BYTES);
    *sp = (uint64_t)(uintptr_t)fiber_main;
    image.fibers[fiber] = (struct fiber){.sp = sp - 6, .state = FIBER_READY, .function = "start"};
}

static void run(int fiber)
{
    current = fiber;
    model_switch(&search_sp, image.fibers[fiber].sp);
    current = -1;
}

void model_fail(const char *format, ...)
{
    va_list arguments;
    if (failed)
        return;
    failed = true;
    va_start(arguments, format);
    vsnprintf(result.failure, sizeof result.failure, format, arguments);
    va_end(arguments);
}

/* ---- which words are shared -------------------------------------------------------------------------------- */

struct word_use {
    const volatile void *address;
    uint8_t used_beside[MODEL_FIBERS]; /* bit g: fiber f used it while g was alive */
    uint8_t writers, read_after_death; /* bit f: f wrote it; somebody used it when f was dead */
    bool shared;
};

enum { USES = 1 << 14 };
static struct word_use uses[USES];

static struct word_use *use_of(const volatile void *address)
{
    for (size_t i = ((uintptr_t)address >> 2) * UINT64_C(0x9E3779B97F4A7C15) >> 50;; i++) {
        struct word_use *use = &uses[i % USES];
        if (use->address == address || !use->address) {
            use->address = address;
            return use;
        }
    }
}

static uint8_t alive_beside(int fiber)
{
    uint8_t alive = 0;
    for (int g = 0; g < model_scene->fibers; g++)
        if (g != fiber && image.fibers[g].state != FIBER_DEAD)
            alive |= (uint8_t)(1 << g);
    return alive;
}

static void learn(const volatile void *address, bool writes)
{
    struct word_use *use = use_of(address);
    int f = current;
    use->used_beside[f] |= alive_beside(f);
    if (writes)
        use->writers |= (uint8_t)(1 << f);
    for (int g = 0; g < model_scene->fibers; g++) {
        uint8_t g_bit = (uint8_t)(1 << g);
        if (g == f)
            continue;
        if (!use->shared && use->used_beside[f] & g_bit && use->used_beside[g] & 1 << f &&
            use->writers & (g_bit | 1 << f))
            use->shared = learnt = true;
        if (image.fibers[g].state == FIBER_DEAD && !(use->read_after_death & g_bit)) {
            use->read_after_death |= g_bit;
            learnt |= (use->writers & g_bit) != 0;
        }
    }
}

/* ---- steps ------------------------------------------------------------------------------------------------- */

static bool last_is_shared;

static void stand_at(const volatile void *address, bool writes, const char *function, int line, int state)
{
    struct fiber *self = &image.fibers[current];
    self->state = (uint8_t)state;
    self->address = address;
    self->writes = writes;
    self->function = function;
    self->line = line;
    yield();
}

static bool may_die(int fiber)
{
    return image.deaths < (uint32_t)model_scene->deaths && model_scene->mortal >> fiber & 1;
}

void model_step(const volatile void *address, bool writes, const char *function, int line)
{
    if (current < 0)
        return;
    struct word_use *use = use_of(address);
    last_is_shared = use->shared;
    if (use->shared) {
        image.fibers[current].point = POINT_SHARED;
        stand_at(address, writes, function, line, FIBER_READY);
    } else if (writes && use->read_after_death >> current & 1 && may_die(current)) {
        image.fibers[current].point = POINT_MORTAL;
        stand_at(address, writes, function, line, FIBER_READY);
    }
    learn(address, writes);
    last_is_shared = use->shared;
}

void model_point(const char *function, int line)
{
    if (current < 0)
        return;
    image.fibers[current].point = POINT_SHARED;
    stand_at(NULL, true, function, line, FIBER_READY);
}

void model_changed(void)
{
    for (int f = 0; last_is_shared && f < model_scene->fibers; f++)
        if (f != current)
            image.fibers[f].woken = true;
}

void model_tell(void)
{
    for (int f = 0; f < model_scene->fibers; f++)
        if (f != current)
            image.fibers[f].woken = true;
}

uint64_t shm_clock_ns(void)
{
    return image.now_ns;
}

void shm_clock_sleep(uint64_t ns)
{
    (void)ns;
    shm_clock_relax();
}

void shm_clock_relax(void)
{
    if (current < 0)
        return;
    image.fibers[current].woken = false;
    image.fibers[current].point = POINT_SHARED;
    stand_at(NULL, false, "pause", 0, FIBER_PAUSED);
}

void model_wait_for_death(void)
{
    image.fibers[current].point = POINT_SHARED;
    stand_at(NULL, false, "wait for a death", 0, FIBER_IDLE);
}

int model_sem_init(sem_t *semaphore, unsigned value)
{
    memset(semaphore, 0, sizeof *semaphore);
    memcpy(semaphore, &value, sizeof value);
    return 0;
}

static unsigned tokens(const sem_t *semaphore)
{
    unsigned value;
    memcpy(&value, semaphore, sizeof value);
    return value;
}

int model_sem_post(sem_t *semaphore, const char *function, int line)
{
    model_step(semaphore, true, function, line);
    model_sem_init(semaphore, tokens(semaphore) + 1);
    model_changed();
    return 0;
}

int model_sem_trywait(sem_t *semaphore, const char *function, int line)
{
    model_step(semaphore, true, function, line);
    unsigned value = tokens(semaphore);
    if (value == 0)
        return -1;
    model_sem_init(semaphore, value - 1);
    return 0;
}

int model_sem_clockwait(sem_t *semaphore, const struct timespec *until)
{
    if (current < 0) {
        errno = ETIMEDOUT;
        return -1;
    }
    struct fiber *self = &image.fibers[current];
    self->semaphore = semaphore;
    self->until_ns = (uint64_t)until->tv_sec * SHM_NS_PER_S + (uint64_t)until->tv_nsec;
    self->is_slice = self->until_ns == image.now_ns + SLICE_NS;
    self->timed_out = false;
    self->point = POINT_SHARED;
    stand_at(semaphore, true, "sem_clockwait", 0, FIBER_PARKED);
    learn(semaphore, true);
    self->state = FIBER_READY;
    if (self->timed_out) {
        errno = ETIMEDOUT;
        return -1;
    }
    model_sem_init(semaphore, tokens(semaphore) - 1);
    return 0;
}

/* ---- words that are slept on ------------------------------------------------------------------------------- */

static void ring(const volatile void *word, bool all)
{
    for (int f = 0; f < model_scene->fibers; f++) {
        struct fiber *fiber = &image.fibers[f];
        bool sleeps = fiber->state == FIBER_PARKED && !fiber->semaphore && !fiber->rung;
        for (int i = 0; sleeps && i < MODEL_FUTEXES; i++)
            fiber->rung |= fiber->futexes[i] == word;
        if (sleeps && fiber->rung && !all)
            return;
    }
}

void shm_futex_wake(const _Atomic uint32_t *word)
{
    model_step(word, true, __func__, __LINE__);
    ring(word, true);
    model_changed();
}

bool shm_futex_sleep(const struct shm_futex *futexes, uint32_t count, uint64_t ns)
{
    if (current < 0 || count > MODEL_FUTEXES)
        abort();
    struct fiber *self = &image.fibers[current];
    for (uint32_t i = 0; i < count; i++)
        model_step(futexes[i].word, false, __func__, __LINE__);
    for (uint32_t i = 0; i < count; i++)
        if (*(const volatile uint32_t *)(const volatile void *)futexes[i].word != futexes[i].seen)
            return true;
    for (uint32_t i = 0; i < count; i++)
        self->futexes[i] = futexes[i].word;
    self->semaphore = NULL;
    self->rung = self->timed_out = false;
    self->until_ns = image.now_ns + ns;
    self->is_slice = ns == SLICE_NS;
    self->point = POINT_SHARED;
    stand_at(futexes[0].word, false, "futex sleep", 0, FIBER_PARKED);
    self->state = FIBER_READY;
    memset(self->futexes, 0, sizeof self->futexes);
    return true;
}

uintptr_t shm_will_make(const _Atomic uint32_t *word)
{
    if (current < 0)
        return 0;
    uintptr_t before = image.fibers[current].will;
    image.fibers[current].will = (uintptr_t)word;
    return before;
}

void shm_will_revoke(uintptr_t before)
{
    if (current >= 0)
        image.fibers[current].will = before;
}

void *model_allocate(void *old, size_t len_bytes)
{
    if (len_bytes > 4096)
        len_bytes = 256; /* a thread's scratch: messages are small here */
    len_bytes = (len_bytes + 15) & ~(size_t)15;
    if (image.heap_used + len_bytes > MODEL_HEAP_BYTES)
        abort();
    void *new = heap + image.heap_used;
    image.heap_used += (uint32_t)len_bytes;
    memset(new, 0, len_bytes);
    if (old)
        memcpy(new, old, len_bytes / 2); /* grows by doubling */
    return new;
}

/* ---- the state --------------------------------------------------------------------------------------------- */

static struct range {
    unsigned char *at;
    size_t len_bytes;
} ranges[RANGES_MAX];
static int ranges_count;

static void add_range(void *at, size_t len_bytes)
{
    if (ranges_count == RANGES_MAX)
        abort();
    ranges[ranges_count++] = (struct range){at, (len_bytes + 7) & ~(size_t)7};
}

/* The parts of the mapping that are in use, and our own image. */
static void find_ranges(void)
{
    const struct shm_segment *s = &model_segment;
    ranges_count = 0;
    add_range(s->header, sizeof(struct shm_header));
    for (uint32_t t = 0; t < SHM_TABLE_BLOCKS + s->classes; t++) {
        struct shm_pool *pool = shm_pool_of(s, t);
        if (!pool->ready)
            continue;
        if (t == SHM_TABLE_CHUNKS) /* more cells than a scene ever uses: they stay as they are */
            for (uint32_t c = 0; c < pool->ready; c++)
                add_range(shm_pool_item(s, t, c), sizeof(struct shm_chunk) - sizeof(struct shm_cell) * 60);
        else
            add_range(shm_pool_item(s, t, 0), (size_t)pool->ready * pool->item_bytes);
        for (uint32_t i = 0; t >= SHM_TABLE_BLOCKS && i < pool->ready; i++) {
            struct shm_block *block = shm_pool_item(s, t, i);
            if (block->reserved_bytes)
                add_range(s->base + shm_block_offset(s, (t - SHM_TABLE_BLOCKS) << 24 | i),
                          block->reserved_bytes);
        }
    }
    add_range(heap, sizeof heap);
    add_range(&image, sizeof image);
}

struct snapshot {
    size_t room_bytes;
    unsigned char bytes[];
};

/* The image goes last, so that the stack pointers in it are restored before the stacks are. */
static struct snapshot *save(struct snapshot *snapshot)
{
    size_t len_bytes = 0;
    ranges[ranges_count - 2].len_bytes = image.heap_used;
    for (int r = 0; r < ranges_count; r++)
        len_bytes += ranges[r].len_bytes;
    for (int f = 0; f < model_scene->fibers; f++)
        if (has_stack(&image.fibers[f]))
            len_bytes += (size_t)(top_of(f) - (unsigned char *)image.fibers[f].sp);
    if (!snapshot || snapshot->room_bytes < len_bytes) {
        (free)(snapshot);
        snapshot = (malloc)(sizeof *snapshot + 2 * len_bytes);
        if (!snapshot)
            abort();
        snapshot->room_bytes = 2 * len_bytes;
    }
    unsigned char *to = snapshot->bytes;
    for (int r = ranges_count - 1; r >= 0; to += ranges[r].len_bytes, r--)
        memcpy(to, ranges[r].at, ranges[r].len_bytes);
    for (int f = 0; f < model_scene->fibers; f++)
        if (has_stack(&image.fibers[f])) {
            unsigned char *sp = image.fibers[f].sp;
            memcpy(to, sp, (size_t)(top_of(f) - sp));
            to += top_of(f) - sp;
        }
    return snapshot;
}

static void restore(const struct snapshot *snapshot)
{
    const unsigned char *from = snapshot->bytes;
    memcpy(&image, from, sizeof image);
    ranges[ranges_count - 2].len_bytes = image.heap_used;
    for (int r = ranges_count - 1; r >= 0; from += ranges[r].len_bytes, r--)
        memcpy(ranges[r].at, from, ranges[r].len_bytes);
    for (int f = 0; f < model_scene->fibers; f++)
        if (has_stack(&image.fibers[f])) {
            unsigned char *sp = image.fibers[f].sp;
            memcpy(sp, from, (size_t)(top_of(f) - sp));
            from += top_of(f) - sp;
        }
}

/* One multiplication of 64 by 64 bits, folded. */
static inline uint64_t mix(uint64_t h, uint64_t value)
{
    __extension__ typedef unsigned __int128 wide;
    wide product = (wide)(h ^ UINT64_C(0x9E3779B97F4A7C15)) * (value ^ UINT64_C(0xD6E8FEB86659FD93));
    return (uint64_t)product ^ (uint64_t)(product >> 64) ^ h << 1;
}

static uint64_t hash_bytes(uint64_t seed, const unsigned char *at, size_t len_bytes)
{
    uint64_t a = seed, b = seed + 1, c = seed + 2, d = seed + 3, w[8];
    size_t i = 0;
    for (; i + 64 <= len_bytes; i += 64) { /* four chains, so that they run side by side */
        memcpy(w, at + i, 64);
        a = mix(a + w[0], w[1]);
        b = mix(b + w[2], w[3]);
        c = mix(c + w[4], w[5]);
        d = mix(d + w[6], w[7]);
    }
    for (; i + 8 <= len_bytes; i += 8) {
        memcpy(w, at + i, 8);
        a = mix(a, w[0]);
    }
    return mix(mix(mix(a, b), c), d);
}

static uint64_t hash_state(void)
{
    uint64_t hash = 1;
    ranges[ranges_count - 2].len_bytes = image.heap_used;
    for (int r = 0; r < ranges_count; r++)
        hash = hash_bytes(hash, ranges[r].at, ranges[r].len_bytes);
    for (int f = 0; f < model_scene->fibers; f++)
        if (has_stack(&image.fibers[f]))
            hash = hash_bytes(hash, image.fibers[f].sp,
                              (size_t)(top_of(f) - (unsigned char *)image.fibers[f].sp));
    return hash ? hash : 1;
}

/* ---- states seen ------------------------------------------------------------------------------------------- */

static struct seen {
    uint64_t hash;
    int32_t switches;
} *seen;
static size_t seen_room, seen_count;

static struct seen *seen_at(uint64_t hash)
{
    size_t i = hash % seen_room;
    while (seen[i].hash && seen[i].hash != hash)
        i = i + 1 == seen_room ? 0 : i + 1;
    return &seen[i];
}

static void make_room(size_t room)
{
    struct seen *old = seen;
    size_t old_room = seen_room;
    seen = mmap(NULL, room * sizeof *seen, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (seen == MAP_FAILED)
        abort();
    seen_room = room;
    for (size_t i = 0; i < old_room; i++)
        if (old[i].hash)
            *seen_at(old[i].hash) = old[i];
    if (old)
        munmap(old, old_room * sizeof *old);
}

static void forget_all(void)
{
    if (seen)
        munmap(seen, seen_room * sizeof *seen);
    seen = NULL;
    seen_room = 0;
    seen_count = 0;
    make_room(1 << 16);
}

/* True when this state has not been seen with as few switches. */
static bool is_new(uint64_t hash, int switches)
{
    if (seen_count * 2 > seen_room)
        make_room(seen_room * 4);
    struct seen *at = seen_at(hash);
    if (at->hash && at->switches <= switches)
        return false;
    seen_count += at->hash == 0;
    *at = (struct seen){hash, switches};
    return true;
}

/* ---- the search -------------------------------------------------------------------------------------------- */

enum action { RUN, TIMEOUT, CRASH, STOP, SLICE, LONG_PAUSE, RESUME };

struct choice {
    uint8_t action, fiber;
};

struct frame {
    struct snapshot *snapshot;
    struct choice choices[CHOICES_MAX];
    int count, next, last, switches, depth;
};

static struct trace {
    struct choice choice;
    int line;
    const char *function;
    bool writes;
} trace[DEPTH_MAX];
static struct frame frames[FRAMES_MAX];

uint32_t model_slot(int fiber)
{
    return image.members[fiber].slot;
}

bool model_has_ended(int fiber)
{
    return image.fibers[fiber].state == FIBER_ENDED;
}

bool model_is_dead(int fiber)
{
    return image.fibers[fiber].state == FIBER_DEAD;
}

bool model_is_unreaped(uint32_t slot)
{
    shm_word word = *(volatile shm_word *)&shm_member_at(&model_segment, slot)->word;
    return image.dead[slot] == shm_word_count(word) + 1 && shm_word_state(word) != SHM_MEMBER_FREE;
}

static bool any_unreaped(void)
{
    for (uint32_t slot = 1;
         slot < MODEL_SLOTS && slot < shm_pool_of(&model_segment, SHM_TABLE_MEMBERS)->ready; slot++)
        if (model_is_unreaped(slot))
            return true;
    return false;
}

static bool is_woken(const struct fiber *fiber)
{
    return fiber->semaphore ? tokens(fiber->semaphore) > 0 : fiber->rung;
}

static bool can_run(const struct fiber *fiber)
{
    if (fiber->stopped)
        return false;
    switch (fiber->state) {
    case FIBER_READY:
        return true;
    case FIBER_PARKED:
        return is_woken(fiber);
    case FIBER_PAUSED:
        return fiber->woken;
    case FIBER_IDLE:
        return any_unreaped();
    default:
        return false;
    }
}

/* A park that ends at its deadline, not at the end of its slice. */
static bool may_time_out(const struct fiber *fiber)
{
    return fiber->state == FIBER_PARKED && !fiber->stopped && !fiber->is_slice && !is_woken(fiber);
}

/* Nobody can go on by himself: what time alone brings about; -1: it is the end. */
static int when_all_wait(struct choice *choice)
{
    for (int f = 0; f < model_scene->fibers; f++)
        if (image.fibers[f].state == FIBER_PAUSED && !image.fibers[f].stopped) {
            *choice = (struct choice){LONG_PAUSE, (uint8_t)f};
            return 0;
        }
    for (int f = 0; model_scene->slices && f < model_scene->fibers; f++)
        if (image.fibers[f].state == FIBER_PARKED && !image.fibers[f].stopped &&
            image.fibers[f].slices < SLICES_MAX) {
            *choice = (struct choice){SLICE, (uint8_t)f};
            return 0;
        }
    for (int f = 0; f < model_scene->fibers; f++)
        if (image.fibers[f].stopped) {
            *choice = (struct choice){RESUME, (uint8_t)f};
            return 0;
        }
    return -1;
}

static struct snapshot *end;

/* A table that grew, or a block that got its pages, is not part of the state: the scene must make it before. */
static void check_world(void)
{
    uint64_t sum = 0;
    for (uint32_t t = 0; t < SHM_TABLE_COUNT; t++)
        sum += shm_pool_of(&model_segment, t)->ready;
    for (uint32_t c = 0; c < model_segment.classes; c++)
        for (uint32_t i = 0; i < shm_pool_of(&model_segment, SHM_TABLE_BLOCKS + c)->ready; i++)
            sum += *(volatile uint64_t *)&shm_block_at(&model_segment, c << 24 | i)->reserved_bytes;
    if (world_size && sum != world_size)
        model_fail("the scene's world is too small");
    world_size = sum;
}

static int choices_here(struct choice *choices, int last, int switches, int bound)
{
    int count = 0;
    struct fiber *at = last >= 0 ? &image.fibers[last] : NULL;
    bool between = at && at->state == FIBER_READY && at->point == POINT_MORTAL;
    if (between) {
        choices[count++] = (struct choice){RUN, (uint8_t)last};
    } else {
        uint64_t key = hash_state();
        if (bound < MODEL_UNBOUNDED)
            key = mix(key, (uint64_t)last + 2) | 1;
        if (is_new(key, bound < MODEL_UNBOUNDED ? switches : 0)) {
            result.states++;
            if (model_scene->always)
                model_scene->always();
            bool goes_on = at && can_run(at);
            for (int n = 0; n < model_scene->fibers; n++) {
                int f = last >= 0 ? (last + n) % model_scene->fibers : n; /* who runs goes on first */
                struct fiber *fiber = &image.fibers[f];
                if (goes_on && f != last && switches >= bound)
                    continue;
                if (can_run(fiber))
                    choices[count++] = (struct choice){RUN, (uint8_t)f};
                else if (may_time_out(fiber))
                    choices[count++] = (struct choice){TIMEOUT, (uint8_t)f};
            }
            if (count == 0 && when_all_wait(choices) == 0)
                count = 1;
            else if (count == 0) {
                result.ends++;
                end = save(end);
                check_world();
                model_scene->at_end();
                restore(end); /* who stands here may still die */
            }
        }
    }
    bool stands = at && !at->stopped &&
                  (at->state == FIBER_READY || at->state == FIBER_PARKED || at->state == FIBER_PAUSED);
    if (stands && may_die(last))
        choices[count++] = (struct choice){CRASH, (uint8_t)last};
    if (stands && !between && image.stops < (uint32_t)model_scene->stops &&
        model_scene->stoppable >> last & 1)
        choices[count++] = (struct choice){STOP, (uint8_t)last};
    return count;
}

static void forget(int fiber, uint32_t slot)
{
    uintptr_t will = image.fibers[fiber].will;
    if (model_scene->at_crash)
        model_scene->at_crash(fiber);
    image.fibers[fiber] = (struct fiber){.state = FIBER_DEAD};
    /* Only the slot is asked for from here on; less to tell states apart by. */
    image.members[fiber] = (struct shm_member){.slot = slot};
    image.threads[fiber] = (struct shm_thread){.slot = slot};
    if (will && !*(const volatile uint32_t *)will)
        ring((const volatile void *)will, false); /* by the kernel */
}

/* All threads of its process. */
static void crash(int fiber)
{
    uint32_t slot = image.members[fiber].slot;
    shm_word word = *(volatile shm_word *)&shm_member_at(&model_segment, slot)->word;
    image.dead[slot] = shm_word_count(word) + 1;
    image.deaths++;
    for (int f = 0; f < model_scene->fibers; f++)
        if (image.members[f].slot == slot)
            forget(f, slot);
}

static void apply(struct choice choice)
{
    struct fiber *fiber = &image.fibers[choice.fiber];
    switch (choice.action) {
    case TIMEOUT:
    case SLICE:
        fiber->timed_out = true;
        fiber->slices += choice.action == SLICE;
        if (image.now_ns < fiber->until_ns)
            image.now_ns = fiber->until_ns;
        run(choice.fiber);
        break;
    case LONG_PAUSE:
        image.now_ns += PAUSE_NS;
        run(choice.fiber);
        break;
    case RUN:
        run(choice.fiber);
        break;
    case CRASH:
        crash(choice.fiber);
        break;
    case STOP:
        fiber->stopped = true;
        image.stops++;
        break;
    case RESUME:
        fiber->stopped = false;
        break;
    }
}

static void print_trace(int depth)
{
    static const char *const names[] = {
        "", " TIMES OUT", " DIES", " IS STOPPED", "'s slice ends", " has paused for long", " goes on"};
    int same = -1;
    for (int d = 0; d < depth; d++) {
        struct trace *t = &trace[d];
        if (t->choice.action == RUN && t->choice.fiber == same)
            printf(", %s:%d%s", t->function, t->line, t->writes ? "!" : "");
        else
            printf("\n      %c%s: before %s:%d%s", 'A' + t->choice.fiber, names[t->choice.action],
                   t->function, t->line, t->writes ? "!" : "");
        same = t->choice.action == RUN ? t->choice.fiber : -1;
    }
    printf("\n");
}

/* One pass; false: a word turned out to be shared that was not taken for one. */
static bool pass(const struct snapshot *start, int bound, unsigned long states_max, bool verbose)
{
    int frames_count = 0, last = -1, switches = 0, depth = 0;
    forget_all();
    learnt = false;
    result.states = result.steps = result.ends = 0;
    result.passes++;
    restore(start);
    for (;;) {
        struct choice choices[CHOICES_MAX], choice;
        int count = failed ? 0 : choices_here(choices, last, switches, bound);
        if (failed || learnt || result.states > states_max)
            break;
        if (count > 1) {
            if (frames_count == FRAMES_MAX)
                abort();
            struct frame *frame = &frames[frames_count++];
            *frame = (struct frame){.snapshot = save(frame->snapshot),
                                    .count = count,
                                    .next = 1,
                                    .last = last,
                                    .switches = switches,
                                    .depth = depth};
            memcpy(frame->choices, choices, sizeof choices);
            choice = choices[0];
        } else if (count == 1) {
            choice = choices[0];
        } else {
            while (frames_count && frames[frames_count - 1].next == frames[frames_count - 1].count)
                frames_count--;
            if (frames_count == 0)
                break;
            struct frame *frame = &frames[frames_count - 1];
            restore(frame->snapshot);
            last = frame->last;
            switches = frame->switches;
            depth = frame->depth;
            choice = frame->choices[frame->next++];
        }
        const struct fiber *at = &image.fibers[choice.fiber];
        trace[depth++] = (struct trace){choice, at->line, at->function, at->writes};
        if (depth == DEPTH_MAX)
            model_fail("a run without end");
        if (!failed) {
            if (choice.action == RUN && last >= 0 && choice.fiber != last && can_run(&image.fibers[last]))
                switches++;
            apply(choice);
            result.steps++;
            last = choice.action == CRASH || choice.action == STOP ? -1 : choice.fiber;
        }
    }
    if (failed && verbose)
        print_trace(depth);
    return !learnt || failed;
}

/* In scenes in which who is dead has yet to be taken apart, `suspected` says that he has. */
static bool no_death(struct shm_member *self, uint32_t slot)
{
    const struct shm_member_record *record = shm_member_at(self->segment, slot);
    shm_word word = atomic_load(&record->word);
    return image.dead[slot] == shm_word_count(word) + 1 &&
           (!model_scene->lasts || atomic_load(&record->suspected));
}

static void open_thread(struct shm_thread *thread, struct shm_member *member)
{
    if (shm_thread_open(thread, member))
        abort();
    thread->may_spin = false;
    thread->at->thread = thread->place; /* all are one to the kernel */
}

static void join(struct shm_member *member, struct shm_thread *thread)
{
    if (shm_member_join(member, &model_segment, 0, SHM_KIND_ATTACHED, "model", NULL))
        abort();
    member->is_dead = no_death;
    shm_member_attach_transport(member);
    open_thread(thread, member);
}

/* A system as small as the core allows, so that a state is small. */
static void make_world(void)
{
    struct shm_config config = {.uid = 1000, .max_members = 8, .memory_limit = 16 << 10};
    int fd = memfd_create("shmipc-model", MFD_CLOEXEC);
    memset(&image, 0, sizeof image);
    memset(heap, 0, sizeof heap);
    image.now_ns = 1000 * SHM_NS_PER_S;
    if (fd < 0 || shm_segment_format(&model_segment, fd, &config))
        abort();
    struct shm_header *header = model_segment.header;
    header->place_words = model_segment.place_words = 1;
    static const uint32_t steps[SHM_TABLE_BLOCKS] = {
        [SHM_TABLE_MEMBERS] = 8, [SHM_TABLE_PLACES] = 7,  [SHM_TABLE_CHUNKS] = 1, [SHM_TABLE_BOXES] = 2,
        [SHM_TABLE_NAMES] = 1,   [SHM_TABLE_NOTICES] = 2, [SHM_TABLE_LEASES] = 20};
    for (uint32_t t = 0; t < SHM_TABLE_BLOCKS; t++)
        model_segment.tables[t].step = steps[t];
    join(&image.auditor_member, &image.auditor);
    for (int f = 0; f < model_scene->fibers; f++) {
        if (model_scene->threads >> f & 1) {
            image.members[f].slot = image.members[0].slot;
            open_thread(&image.threads[f], &image.members[0]);
        } else {
            join(&image.members[f], &image.threads[f]);
        }
        image.ids[f] = shm_member_id_self(&image.members[f]);
        make_fiber(f);
    }
    model_scene->setup();
    for (uint32_t t = SHM_TABLE_PLACES; t < SHM_TABLE_BLOCKS;
         t++) /* what the scene may still need has its pages */
        if (!header->tables[t].ready && t != SHM_TABLE_CHUNKS)
            shm_pool_grow(&model_segment, t, 0);
    find_ranges();
    world_size = 0;
    check_world();
}

struct result model_search(const struct scene *what, int bound, unsigned long states_max, bool verbose)
{
    struct timespec began, ended;
    model_scene = what;
    result = (struct result){0};
    failed = false;
    memset(uses, 0, sizeof uses);
    clock_gettime(CLOCK_MONOTONIC, &began);
    make_world();
    struct snapshot *start = save(NULL);
    while (!pass(start, bound, states_max, verbose))
        ;
    clock_gettime(CLOCK_MONOTONIC, &ended);
    (free)(start);
    shm_segment_detach(&model_segment);
    result.failed = failed;
    result.exhausted = !failed && result.states <= states_max;
    result.seconds = (double)(ended.tv_sec - began.tv_sec) + (double)(ended.tv_nsec - began.tv_nsec) / 1e9;
    return result;
}
