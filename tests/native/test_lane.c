/* Lanes: messages once and in order, whoever dies, and whatever the other side writes. */
#include "transport/lane.h"

#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>

#include "base/clock.h"
#include "base/killpoint.h"
#include "base/status.h"
#include "check.h"

enum { SLOTS = 7, BYTES = 20, MESSAGES = 30000 };

static struct {
    struct shm_lane_posted *posted;
    struct shm_lane_taken *taken;
    struct shm_lane_board *board;
} m;

/* Of exactly the size that is needed: a step beyond it is seen by the sanitizer, or by a page that is not there. */
static void lay(bool shared)
{
    size_t bytes = shm_lane_bytes(SLOTS, BYTES);
    if (shared) {
        m.posted = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        m.taken = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        m.board = mmap(NULL, sizeof *m.board, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    } else {
        m.posted = calloc(1, bytes);
        m.taken = calloc(1, sizeof *m.taken);
        m.board = calloc(1, sizeof *m.board);
    }
}

static void clear(bool shared)
{
    if (shared) {
        munmap(m.posted, shm_lane_bytes(SLOTS, BYTES));
        munmap(m.taken, 4096);
        munmap(m.board, sizeof *m.board);
    } else {
        free(m.posted);
        free(m.taken);
        free(m.board);
    }
}

static struct shm_lane lane_of(bool posts)
{
    return (struct shm_lane){.posted = m.posted,
                             .taken = m.taken,
                             .board = m.board,
                             .slots = SLOTS,
                             .slot_bytes = BYTES,
                             .posts = posts};
}

static struct shm_lane end_of(bool posts)
{
    struct shm_lane lane = lane_of(posts);
    CHECK_OK(shm_lane_open(&lane));
    return lane;
}

static uint64_t slice_ns = SHM_NS_PER_S / 10;

static void wait_for(struct shm_lane *lane)
{
    struct shm_lane *lanes[] = {lane};
    shm_lane_wait(lanes, 1, m.board, atomic_load(&m.board->bell), slice_ns);
}

static void post(struct shm_lane *lane, uint64_t number)
{
    int status;
    while ((status = shm_lane_post(lane, &number, sizeof number)) == SHM_FULL)
        wait_for(lane);
    CHECK_OK(status);
}

static uint64_t take(struct shm_lane *lane)
{
    uint64_t number = 0;
    uint32_t len = 0;
    int status;
    while ((status = shm_lane_next(lane, &len)) == SHM_EMPTY)
        wait_for(lane);
    CHECK_OK(status);
    CHECK_EQ(len, sizeof number);
    shm_lane_take(lane, &number, len);
    return number;
}

static void messages_come_once_and_in_order_from_another_thread_body(void *unused, int index)
{
    (void)unused;
    struct shm_lane lane = end_of(index == 0);
    for (uint64_t n = 0; n < MESSAGES; n++)
        if (index == 0)
            post(&lane, n);
        else
            CHECK_EQ(take(&lane), n);
}

static void messages_come_once_and_in_order_from_another_thread(void)
{
    lay(false);
    check_threads(2, messages_come_once_and_in_order_from_another_thread_body, NULL);
    struct shm_lane reader = end_of(false);
    CHECK_EQ(shm_lane_depth(&reader), 0);
    clear(false);
}

static void full_and_empty_and_too_large_are_told_and_nothing_changes(void)
{
    lay(false);
    struct shm_lane poster = end_of(true), reader = end_of(false);
    unsigned char body[BYTES + 1] = {0}, into[BYTES];
    uint32_t len;
    CHECK_EQ(shm_lane_next(&reader, &len), SHM_EMPTY);
    CHECK_EQ(shm_lane_post(&poster, body, BYTES + 1), SHM_TOO_LARGE);
    for (uint32_t n = 0; n < SLOTS; n++) {
        body[0] = (unsigned char)n;
        CHECK_OK(shm_lane_post(&poster, body, n ? BYTES - n : 0));
    }
    CHECK_EQ(shm_lane_post(&poster, body, 1), SHM_FULL);
    CHECK_EQ(shm_lane_depth(&reader), SLOTS);
    struct shm_lane again = end_of(true); /* who comes after the poster goes on where he stopped */
    CHECK_EQ(shm_lane_post(&again, body, 1), SHM_FULL);
    for (uint32_t n = 0; n < SLOTS; n++) {
        CHECK_OK(shm_lane_next(&reader, &len));
        CHECK_EQ(len, n ? BYTES - n : 0);
        shm_lane_take(&reader, into, len);
        CHECK(n == 0 || into[0] == n);
    }
    CHECK_EQ(shm_lane_next(&reader, &len), SHM_EMPTY);
    clear(false);
}

/* ---- a hostile peer ---------------------------------------------------------------------------------------- */

static uint64_t random_state = 88172645463325252u;

static uint64_t noise(void)
{
    random_state ^= random_state << 13;
    random_state ^= random_state >> 7;
    random_state ^= random_state << 17;
    return random_state >> (random_state >> 11) % 64;
}

static void whatever_the_other_side_writes_leads_nowhere_else(void)
{
    unsigned char into[BYTES];
    unsigned long spoilt = 0, fine = 0;
    lay(false);
    for (int round = 0; round < 20000; round++) {
        struct shm_lane poster = lane_of(true), reader = lane_of(false);
        uint32_t len = 0;
        /* The reader's memory is his own, the rest is not; then the other way round. */
        atomic_store(&m.taken->head, noise() % 3 ? noise() % 100 : noise());
        atomic_store(&m.posted->tail, atomic_load(&m.taken->head) + (noise() % 3 ? noise() % 9 : noise()));
        for (uint32_t i = 0; i < SLOTS * 64 / 4; i += 16)
            memcpy((unsigned char *)(m.posted + 1) + 4 * i, &(uint32_t){(uint32_t)noise()}, 4);
        if (shm_lane_open(&reader) == 0) {
            atomic_store(&m.posted->tail, reader.position + (noise() % 2 ? noise() % 9 : noise()));
            int status = shm_lane_next(&reader, &len);
            CHECK(status == 0 || status == SHM_EMPTY || status == SHM_CORRUPTED);
            if (status == 0) {
                CHECK(len <= BYTES);
                memset((unsigned char *)(m.posted + 1), 0xFF, 64); /* changed after it was read */
                shm_lane_take(&reader, into, len);
                fine++;
            }
            int64_t depth = shm_lane_depth(&reader);
            CHECK((depth >= 0 && depth <= SLOTS) || depth == SHM_CORRUPTED);
        } else {
            spoilt++;
        }
        if (shm_lane_open(&poster) == 0) {
            atomic_store(&m.taken->head, poster.position - (noise() % 2 ? noise() % 9 : noise()));
            int status = shm_lane_post(&poster, into, noise() % (BYTES + 2));
            CHECK(status == 0 || status == SHM_FULL || status == SHM_CORRUPTED || status == SHM_TOO_LARGE);
        }
    }
    CHECK(spoilt > 100 && fine > 100);
    clear(false);
}

/* ---- waiting ----------------------------------------------------------------------------------------------- */

static void ring_later(void *unused, int index)
{
    (void)unused;
    if (index == 0) {
        struct shm_lane reader = end_of(false);
        struct shm_lane *lanes[] = {&reader};
        uint32_t seen = atomic_load(&m.board->bell);
        uint64_t began = shm_clock_ns();
        while (atomic_load(&m.board->bell) == seen)
            shm_lane_wait(lanes, 1, m.board, seen, 10 * SHM_NS_PER_S);
        CHECK(shm_clock_ns() - began < 5 * SHM_NS_PER_S);
        CHECK_EQ(atomic_load(&m.board->posters[3]), UINT64_C(1001) << 32 | SHM_END_LEFT);
    } else {
        while (!atomic_load(&m.taken->waits))
            shm_clock_relax();
        shm_board_poster(m.board, 3, 1001, SHM_END_LEFT);
    }
}

static void owner_wakes_who_waits_when_an_end_changes(void)
{
    lay(false);
    check_threads(2, ring_later, NULL);
    CHECK_EQ(atomic_load(&m.taken->waits), 0);
    clear(false);
}

/* ---- deaths ------------------------------------------------------------------------------------------------ */

#ifdef SHM_KILL_POINTS
static const char *dies_at;

static void posts_and_dies(void *unused)
{
    (void)unused;
    struct shm_lane poster = end_of(true);
    CHECK_OK(shm_kill_point_arm(dies_at, 2, SIGKILL));
    for (uint64_t n = 0; n < 3; n++)
        post(&poster, n);
}

static void takes_and_dies(void *unused)
{
    (void)unused;
    struct shm_lane reader = end_of(false);
    CHECK_OK(shm_kill_point_arm(dies_at, 2, SIGKILL));
    for (uint64_t n = 0; n < 3; n++)
        CHECK_EQ(take(&reader), n);
}

static int killed(void (*body)(void *))
{
    int status = check_wait(check_fork(body, NULL));
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    return 0;
}

static void message_is_posted_or_not_whenever_its_poster_dies(void)
{
    const struct {
        const char *point;
        int64_t posted;
    } points[] = {{"lane_copy", 1}, {"lane_post", 1}, {"lane_posted", 2}};
    for (size_t i = 0; i < sizeof points / sizeof points[0]; i++) {
        lay(true);
        struct shm_lane reader = end_of(false);
        dies_at = points[i].point;
        CHECK_OK(killed(posts_and_dies));
        CHECK_EQ(shm_lane_depth(&reader), points[i].posted);
        struct shm_lane next = end_of(true);
        post(&next, (uint64_t)points[i].posted);
        for (int64_t n = 0; n <= points[i].posted; n++)
            CHECK_EQ(take(&reader), (uint64_t)n);
        CHECK_EQ(shm_lane_depth(&reader), 0);
        clear(true);
    }
}

static void message_is_taken_or_not_whenever_its_reader_dies(void)
{
    const struct {
        const char *point;
        uint64_t taken;
    } points[] = {{"lane_take", 1}, {"lane_taken", 2}};
    for (size_t i = 0; i < sizeof points / sizeof points[0]; i++) {
        lay(true);
        struct shm_lane poster = end_of(true);
        for (uint64_t n = 0; n < 4; n++)
            post(&poster, n);
        dies_at = points[i].point;
        CHECK_OK(killed(takes_and_dies));
        struct shm_lane next = end_of(false);
        for (uint64_t n = points[i].taken; n < 4; n++)
            CHECK_EQ(take(&next), n);
        CHECK_EQ(shm_lane_depth(&next), 0);
        CHECK_EQ(shm_lane_depth(&poster), 0);
        clear(true);
    }
}

/* Is the parent, whose only thread it is, asleep? */
static bool parent_sleeps(void)
{
    char path[40], text[200] = {0};
    snprintf(path, sizeof path, "/proc/%d/stat", (int)getppid());
    FILE *file = fopen(path, "r");
    CHECK(file && fread(text, 1, sizeof text - 1, file) > 0);
    fclose(file);
    return strstr(text, ") S ");
}

static void dies_before_it_wakes(void *posts)
{
    struct shm_lane lane = end_of(posts != NULL);
    const _Atomic uint32_t *waits = posts ? &m.taken->waits : &m.posted->waits;
    while (!atomic_load(waits) || !parent_sleeps())
        shm_clock_sleep(100000);
    CHECK_OK(shm_kill_point_arm(posts ? "lane_posted" : "lane_taken", 1, SIGKILL));
    if (posts)
        post(&lane, 0);
    else
        CHECK_EQ(take(&lane), 0);
}

/* Nobody else lives who could: neither an owner that sees the end of the line, nor the end of a slice. */
static void kernel_wakes_who_sleeps_when_the_other_dies_before_it_can(void)
{
    slice_ns = 100 * SHM_NS_PER_S;
    for (int posts = 0; posts < 2; posts++) {
        lay(true);
        struct shm_lane lane = end_of(!posts);
        for (uint64_t n = 0; !posts && n < SLOTS; n++)
            post(&lane, n);
        pid_t victim = check_fork(dies_before_it_wakes, posts ? &lane : NULL);
        uint64_t began = shm_clock_ns();
        if (posts)
            CHECK_EQ(take(&lane), 0);
        else
            post(&lane, SLOTS);
        CHECK(shm_clock_ns() - began < 50 * SHM_NS_PER_S);
        CHECK(WIFSIGNALED(check_wait(victim)));
        clear(true);
    }
    slice_ns = SHM_NS_PER_S / 10;
}
#endif

int main(void)
{
    RUN(messages_come_once_and_in_order_from_another_thread);
    RUN(full_and_empty_and_too_large_are_told_and_nothing_changes);
    RUN(whatever_the_other_side_writes_leads_nowhere_else);
    RUN(owner_wakes_who_waits_when_an_end_changes);
#ifdef SHM_KILL_POINTS
    RUN(message_is_posted_or_not_whenever_its_poster_dies);
    RUN(message_is_taken_or_not_whenever_its_reader_dies);
    RUN(kernel_wakes_who_sleeps_when_the_other_dies_before_it_can);
#endif
    return 0;
}
