#define _GNU_SOURCE
#include "transport/keeper.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/killpoint.h"
#include "base/status.h"
#include "memory/ending.h"
#include "transport/abort.h"
#include "transport/bus.h"
#include "transport/door.h"
#include "transport/group.h"
#include "transport/offer.h"
#include "transport/sync.h"
#include "transport/vigil.h"

#define KEEPER_ROUND_MS 200
#define WATCH_ROUND_MS 500
#define CAUSE_LIMIT_NS (SHM_NS_PER_S / 2)
#define CAUSE_PAUSE_NS 100000
#define REAPER_LIMIT_MS 1000
#define ENDING_LIMIT_NS (SHM_NS_PER_S / 200) /* for the other threads of a process, of which one has ended */
#define ENDING_PAUSE_NS 50000
#define ORPHANS_LIMIT_NS SHM_NS_PER_S /* that a root which leaves waits for the workers it has killed */

#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif
#ifndef SYS_close_range
#define SYS_close_range 436
#endif
#ifndef CLOSE_RANGE_UNSHARE
#define CLOSE_RANGE_UNSHARE (1U << 1)
#endif
#ifndef SYS_pidfd_send_signal
#define SYS_pidfd_send_signal 424
#endif

/* ---- reap -------------------------------------------------------------------------------------------------- */

/* Somebody else reaps this one and is at it: leave him, unless he is dead or has been at it for long. */
static bool is_being_reaped(struct shm_thread *self, struct shm_member_record *record)
{
    uint64_t now = shm_clock_ns() / 1000000, seen = atomic_load(&record->reaper);
    uint32_t reaper = (uint32_t)(seen >> 48);
    uint64_t since = seen & ((UINT64_C(1) << 48) - 1);
    if (reaper && reaper != self->slot && now - since < REAPER_LIMIT_MS &&
        shm_index_ok(self->segment, SHM_TABLE_MEMBERS, reaper) &&
        shm_word_state(atomic_load(&shm_member_at(self->segment, reaper)->word)) == SHM_MEMBER_LIVE)
        return true;
    return !atomic_compare_exchange_strong(&record->reaper, &seen, (uint64_t)self->slot << 48 | now);
}

static void reap_flight(struct shm_thread *self, uint32_t victim, shm_word word,
                        const struct shm_flight *flight)
{
    uint32_t op = atomic_load(&flight->op), object = atomic_load(&flight->object);
    if (op == SHM_FLIGHT_BLOCK) {
        shm_arena_reap_flight(self, victim, word, flight);
    } else if (op == SHM_FLIGHT_FILL) {
        shm_call_reap_flight(self, victim, word, flight);
    } else if (op == SHM_FLIGHT_NOTIFY && shm_index_ok(self->segment, SHM_TABLE_BOXES, object)) {
        shm_box_tell(self, object, shm_word_count(atomic_load(&shm_box_at(self->segment, object)->word)));
    } else if (op == SHM_FLIGHT_ABORT) {
        shm_abort_reap_flight(self, flight);
    } else if (op != SHM_FLIGHT_NONE && shm_index_ok(self->segment, SHM_TABLE_BOXES, object)) {
        struct shm_box box;
        uint64_t count = shm_word_count(atomic_load(&shm_box_at(self->segment, object)->word));
        if (!shm_box_open_to_mend(self, &box, object, count))
            return;
        shm_ring_reap_flight(self, &box, victim, word, flight);
        shm_box_drain_closed(self, &box); /* what was accepted behind the claim, if its receiver has gone */
        shm_box_release(self, &box);
    }
}

void shm_reap_leave(struct shm_thread *self, uint32_t index, shm_word owner,
                    const struct shm_waitable *waitable)
{
    struct shm_place *place = shm_place_at(self->segment, index);
    shm_set_leave(waitable->set, waitable->words, index);
    if (atomic_load(&place->owner) == owner)
        return;
    /* Another reaper was faster, and the place is somebody's again: put the bit back and have him look. */
    _Atomic uint32_t one = index + 1;
    atomic_fetch_or(&waitable->set->words[index / 64], UINT64_C(1) << index % 64);
    atomic_fetch_or(&waitable->set->summary, ~UINT64_C(0));
    shm_wake_one(self, &one);
}

static void reap_wait_on_bus(struct shm_thread *self, uint32_t index, shm_word owner, uint32_t kind,
                             uint32_t object)
{
    struct shm_bus_view view;
    if (!shm_bus_open_to_mend(self, &view, object,
                              shm_word_count(atomic_load(&shm_box_at(self->segment, object)->word))))
        return;
    struct shm_waitable waitable = kind == SHM_WAIT_FRAME ? shm_bus_readers(&view) : shm_bus_writers(&view);
    shm_reap_leave(self, index, owner, &waitable);
    shm_bus_release(self, &view);
}

/* The place leaves a set on behalf of its dead thread, and the baton goes on. */
static void reap_wait(struct shm_thread *self, uint32_t index, shm_word owner,
                      const struct shm_wait_item *item)
{
    struct shm_box box;
    uint32_t kind = atomic_load(&item->kind), object = atomic_load(&item->object);
    if (kind == SHM_WAIT_PORT && shm_index_ok(self->segment, SHM_TABLE_DESKS, object)) {
        struct shm_waitable desk = shm_desk_waiters(self->segment, object);
        shm_reap_leave(self, index, owner, &desk);
        shm_wake_set(self, &desk, 0);
        return;
    }
    if (!shm_index_ok(self->segment, SHM_TABLE_BOXES, object))
        return;
    if (kind == SHM_WAIT_FRAME || kind == SHM_WAIT_PUBLISH)
        reap_wait_on_bus(self, index, owner, kind, object);
    if ((kind != SHM_WAIT_RECEIVE && kind != SHM_WAIT_SEND) ||
        !shm_box_open_to_mend(self, &box, object,
                              shm_word_count(atomic_load(&shm_box_at(self->segment, object)->word))))
        return;
    struct shm_waitable waitable =
        kind == SHM_WAIT_RECEIVE ? shm_ring_receivers(&box) : shm_ring_senders(&box);
    shm_reap_leave(self, index, owner, &waitable);
    shm_wake_set(self, &waitable, 0);
    struct shm_waitable watchers = shm_ring_watchers(&box);
    if (kind == SHM_WAIT_SEND) /* the line is shorter */
        shm_wake_all(self, &watchers);
    shm_box_release(self, &box);
}

static void reap_places(struct shm_thread *self, uint32_t victim, shm_word word)
{
    for (uint32_t i = 0; i < shm_pool_ready(self->segment, SHM_TABLE_PLACES); i++) {
        struct shm_place *place = shm_place_at(self->segment, i);
        shm_word owner = atomic_load(&place->owner), state = atomic_load(&place->word);
        if (place == self->at || shm_word_owner(owner) != victim || shm_word_state(owner) == 0 ||
            !shm_still_dying(self->segment, victim, word))
            continue;
        if (shm_word_state(state) != SHM_PLACE_IDLE) {
            uint32_t count = atomic_load(&place->items_count);
            for (uint32_t n = 0; n < count && n < SHM_PLACE_ITEMS; n++)
                reap_wait(self, i, owner, &place->items[n]);
            if (self->mending_failed)
                continue; /* the place still says what is to be done */
            atomic_compare_exchange_strong(&place->word, &state,
                                           shm_word_make(shm_word_count(state), SHM_NOBODY, SHM_PLACE_IDLE));
        }
        atomic_compare_exchange_strong(&place->owner, &owner, shm_word_next(owner, SHM_NOBODY, 0));
    }
}

/* Member slots that the victim had claimed for another and not yet described: whoever comes by reaps them. */
static void reap_claims_of_slots(struct shm_thread *self, uint32_t victim, shm_word word)
{
    for (uint32_t slot = 1; slot < shm_pool_ready(self->segment, SHM_TABLE_MEMBERS); slot++) {
        struct shm_member_record *record = shm_member_at(self->segment, slot);
        shm_word seen = atomic_load(&record->word);
        if (shm_word_state(seen) == SHM_MEMBER_JOINING && shm_word_owner(seen) == victim &&
            atomic_load(&record->described) != shm_word_count(seen) &&
            shm_still_dying(self->segment, victim, word))
            atomic_compare_exchange_strong(&record->word, &seen,
                                           shm_word_make(shm_word_count(seen), SHM_NOBODY, SHM_MEMBER_DYING));
    }
}

/* Is it known that this claim succeeded? Of a right, who takes a block knows. */
static bool is_known_claim(const struct shm_flight *flight)
{
    uint32_t op = atomic_load(&flight->op);
    return op == SHM_FLIGHT_CLAIMED || (op == SHM_FLIGHT_RIGHT && atomic_load(&flight->lease));
}

static void reap_flights(struct shm_thread *self, uint32_t victim, shm_word word, bool claimed)
{
    for (uint32_t i = 0; i < shm_pool_ready(self->segment, SHM_TABLE_PLACES); i++) {
        struct shm_place *place = shm_place_at(self->segment, i);
        if (place == self->at || shm_word_owner(atomic_load(&place->owner)) != victim)
            continue;
        for (int f = SHM_PLACE_FLIGHTS - 1; f >= 0; f--) { /* inner steps first */
            if (is_known_claim(&place->flights[f]) != claimed)
                continue;
            SHM_KILL_POINT(reap_flight);
            reap_flight(self, victim, word, &place->flights[f]);
        }
    }
}

/* Everything the member `victim`, whose word is `word` (DYING), has left; its leases only when its process has `ended`.
 * False: a table was full, nothing is lost, and it must be done again. */
static bool reap_steps(struct shm_thread *self, uint32_t victim, shm_word word, bool ended)
{
    struct shm_segment *segment = self->segment;
    self->mending_failed = false;
    if (atomic_load(&segment->header->root) == shm_member_id_of(word, victim)) {
        SHM_KILL_POINT(reap_root);
        atomic_store(&segment->header->state, SHM_SEGMENT_CLOSED);
    }
    /* Claims that are known to have succeeded go first: another thread of the victim may have stored the same position,
     * or tried for the same right, and lost, and must not be taken for the claimer. */
    reap_flights(self, victim, word, true);
    reap_flights(self, victim, word, false);
    if (self->mending_failed)
        return false;
    SHM_KILL_POINT(reap_cells);
    shm_call_reap(self, victim, word);
    SHM_KILL_POINT(reap_syncs);
    shm_sync_reap(self, victim, word);
    if (self->mending_failed)
        return false;
    SHM_KILL_POINT(reap_places);
    shm_park_reap_posts(self, victim, word);
    reap_places(self, victim, word);
    if (self->mending_failed)
        return false;
    SHM_KILL_POINT(reap_boxes);
    shm_box_reap(self, victim, word);
    SHM_KILL_POINT(reap_buses);
    shm_bus_reap(self, victim, word);
    SHM_KILL_POINT(reap_offers);
    shm_offer_reap(self, victim, word);
    SHM_KILL_POINT(reap_ports);
    shm_port_reap(self, victim, word);
    shm_name_reap(self, victim, word);
    SHM_KILL_POINT(reap_leases);
    if (ended)
        shm_arena_reap_leases(self, victim, word);
    SHM_KILL_POINT(reap_notices);
    shm_notice_reap(self, victim, word);
    reap_claims_of_slots(self, victim, word);
    shm_word keeper = atomic_load(&segment->header->keeper);
    if (shm_word_owner(keeper) == victim && shm_word_state(keeper))
        atomic_compare_exchange_strong(&segment->header->keeper, &keeper,
                                       shm_word_next(keeper, SHM_NOBODY, 0));
    return !self->mending_failed;
}

static bool retire(struct shm_thread *self, uint32_t victim, shm_word word)
{
    struct shm_member_record *record = shm_member_at(self->segment, victim);
    SHM_KILL_POINT(reap_retire);
    if (!shm_still_dying(self->segment, victim, word))
        return true;
    atomic_store(&record->reaper, 0);
    return atomic_compare_exchange_strong(&record->word, &word,
                                          shm_word_make(shm_word_count(word), SHM_NOBODY, SHM_MEMBER_FREE));
}

/* Slots of members that were all seen dead before any of them is reaped: they share one wait for their causes. */
struct dead {
    uint64_t words[SHM_MAX_MEMBERS / 64 + 1];
    const int *pidfds;          /* by slot, -1: none; NULL: none at all */
    const shm_word *opened_for; /* whom each of them is of */
};

static bool is_known(uint64_t cause)
{
    return (cause >> 16 & 0xF) != SHM_EXIT_UNKNOWN;
}

/* Say how the process of `id`, which has ended, did, if the kernel tells already: only once it was waited for, which a
 * busy machine may put off for some milliseconds. */
static void ask_kernel(struct shm_segment *segment, shm_member_id id, const struct dead *dead)
{
    uint32_t status, slot = id & 0xFFFF;
    if (dead->pidfds && dead->pidfds[slot] >= 0 && shm_word_count(dead->opened_for[slot]) == id >> 16 &&
        shm_process_status(dead->pidfds[slot], &status))
        shm_member_say_status(segment, id, status & 0x7F ? SHM_EXIT_SIGNAL : SHM_EXIT_EXITED, status);
}

uint64_t shm_reap_cause(struct shm_segment *segment, shm_member_id id)
{
    uint64_t until = shm_clock_ns() + CAUSE_LIMIT_NS, cause;
    while (!is_known(cause = shm_member_cause(segment, id)) && shm_clock_ns() < until &&
           shm_index_ok(segment, SHM_TABLE_MEMBERS, id & 0xFFFF)) {
        shm_word word = atomic_load(&shm_member_at(segment, id & 0xFFFF)->word);
        if (shm_word_count(word) != id >> 16 || shm_word_state(word) != SHM_MEMBER_DYING)
            break;
        shm_clock_sleep(CAUSE_PAUSE_NS);
    }
    return cause;
}

/* Reap `slot`, which was seen dead; how it ended is known a moment later, from the kernel or from whoever waits for the
 * process, and is waited for until `until`. */
static bool reap_by(struct shm_thread *self, uint32_t slot, const struct dead *dead, uint64_t until)
{
    struct shm_segment *segment = self->segment;
    struct shm_member_record *record = shm_member_at(segment, slot);
    shm_word word = atomic_load(&record->word);
    if (shm_word_state(word) == SHM_MEMBER_FREE)
        return true;
    if (slot == self->slot || !shm_member_is_dead(self->member, slot) || is_being_reaped(self, record))
        return false;
    shm_word dying = shm_member_dying(word, slot);
    shm_member_id id = shm_member_id_of(dying, slot);
    ask_kernel(segment, id, dead);
    SHM_KILL_POINT(reap_dying);
    if (word != dying && !atomic_compare_exchange_strong(&record->word, &word, dying))
        return shm_word_state(word) == SHM_MEMBER_FREE;
    while (record->kind == SHM_KIND_WORKER && atomic_load(&record->pid) > 1 &&
           !is_known(shm_member_cause(segment, id)) && shm_clock_ns() < until) {
        shm_clock_sleep(CAUSE_PAUSE_NS);
        ask_kernel(segment, id, dead);
    }
    bool ended = shm_member_has_ended(self->member, slot);
    if (!reap_steps(self, slot, dying, ended) || !ended) {
        atomic_store(&record->reaper, 0);
        return false; /* the next round tries again */
    }
    atomic_fetch_add(&segment->header->reaped, 1);
    return retire(self, slot, dying);
}

bool shm_reap(struct shm_thread *self, uint32_t slot)
{
    const struct dead alone = {0};
    return reap_by(self, slot, &alone, shm_clock_ns() + CAUSE_LIMIT_NS);
}

/* Say that this life is reaped before its process was taken apart; false: it is another's by now. */
static bool say_ending(struct shm_member_record *record, shm_word word)
{
    uint64_t mine = shm_word_count(word) + 1, seen = atomic_load(&record->ending);
    while (shm_count_difference(mine, seen) > 0)
        if (atomic_compare_exchange_weak(&record->ending, &seen, mine))
            return true;
    return seen == mine;
}

bool shm_reap_ending(struct shm_thread *self, uint32_t slot, shm_word word, uint32_t wait_status)
{
    struct shm_member_record *record = shm_member_at(self->segment, slot);
    if (shm_word_state(word) != SHM_MEMBER_LIVE || slot == self->slot || is_being_reaped(self, record))
        return false;
    shm_word dying = shm_member_dying(word, slot);
    shm_member_say_status(self->segment, shm_member_id_of(word, slot),
                          wait_status & 0x7F ? SHM_EXIT_SIGNAL : SHM_EXIT_EXITED, wait_status);
    SHM_KILL_POINT(reap_ending);
    bool found = say_ending(record, word); /* first: whoever finds it DYING asks */
    SHM_KILL_POINT(reap_dying);
    found = found && atomic_compare_exchange_strong(&record->word, &word, dying);
    if (found)
        reap_steps(self, slot, dying, false);
    atomic_store(&record->reaper, 0);
    return found;
}

static void add_dead(struct dead *dead, uint32_t slot)
{
    dead->words[slot / 64] |= UINT64_C(1) << slot % 64;
}

static uint32_t reap_dead(struct shm_thread *self, const struct dead *dead)
{
    uint32_t reaped = 0;
    uint64_t until = shm_clock_ns() + CAUSE_LIMIT_NS;
    for (uint32_t i = 0; i < sizeof dead->words / sizeof dead->words[0]; i++)
        for (uint64_t bits = dead->words[i]; bits; bits &= bits - 1)
            reaped += reap_by(self, i * 64 + (uint32_t)__builtin_ctzll(bits), dead, until);
    return reaped;
}

uint32_t shm_reap_all(struct shm_thread *self)
{
    struct dead dead = {0};
    for (uint32_t slot = 1; slot < shm_pool_ready(self->segment, SHM_TABLE_MEMBERS); slot++)
        if (slot != self->slot && shm_member_is_dead(self->member, slot))
            add_dead(&dead, slot);
    return reap_dead(self, &dead);
}

static int pidfd_open(int pid)
{
    int fd = (int)syscall(SYS_pidfd_open, pid, 0);
    if (fd >= 0)
        fcntl(fd, F_SETFD, FD_CLOEXEC);
    return fd;
}

/* The root has ended. A worker that is stopped cannot end itself: its siblings do it, or the root that leaves. */
static void kill_workers(struct shm_thread *self)
{
    struct shm_segment *segment = self->segment;
    for (uint32_t slot = 1; slot < shm_pool_ready(segment, SHM_TABLE_MEMBERS); slot++) {
        struct shm_member_record *record = shm_member_at(segment, slot);
        int pid = atomic_load(&record->pid);
        shm_word word = atomic_load(&record->word);
        if (slot == self->slot || record->kind != SHM_KIND_WORKER || pid <= 1 || pid == getpid() ||
            record->pid_namespace != self->member->record->pid_namespace ||
            shm_word_state(word) != SHM_MEMBER_LIVE)
            continue;
        int fd = pidfd_open(pid);
        if (fd >= 0 && shm_process_start_time(pid) == record->start_time) {
            shm_member_say_reason(segment, shm_member_id_of(word, slot), SHM_EXIT_ORPHANED, SIGKILL);
            syscall(SYS_pidfd_send_signal, fd, SIGKILL, NULL, 0);
        }
        if (fd >= 0)
            close(fd);
    }
}

/* The root leaves in order, and with it its system: what others have started ends now, and leaves nothing behind. */
/* It lives, or it is dead and the kernel has its life lock still: then the last to leave would find somebody there. */
static bool holds_its_slot(struct shm_member *member, uint32_t slot)
{
    uint32_t state = shm_word_state(atomic_load(&shm_member_at(member->segment, slot)->word));
    return state == SHM_MEMBER_LIVE || (state == SHM_MEMBER_DYING && !shm_member_has_ended(member, slot));
}

static void end_workers(struct shm_thread *self)
{
    struct shm_segment *segment = self->segment;
    uint64_t until = shm_clock_ns() + ORPHANS_LIMIT_NS;
    kill_workers(self);
    for (uint32_t slot = 1; slot < shm_pool_ready(segment, SHM_TABLE_MEMBERS); slot++) {
        struct shm_member_record *record = shm_member_at(segment, slot);
        if (slot == self->slot || record->kind != SHM_KIND_WORKER)
            continue;
        while (holds_its_slot(self->member, slot) && !shm_reap(self, slot) && shm_clock_ns() < until)
            shm_clock_sleep(1000000);
    }
}

void shm_leave(struct shm_thread *self)
{
    struct shm_member *member = self->member;
    struct shm_segment *segment = self->segment;
    uint32_t slot = self->slot;
    /* Its own hand is at it: nobody else reaps it before its process is proven dead. */
    shm_word word = member->word, dying = shm_word_make(shm_word_count(word), slot, SHM_MEMBER_DYING);
    SHM_KILL_POINT(member_leave);
    atomic_store(&member->closed, 1);
    shm_warm_drop(self);
    shm_lent_leave(self);
    if (!atomic_compare_exchange_strong(&member->record->word, &word, dying))
        return;
    bool ended = reap_steps(self, slot, dying, true);
    if (atomic_load(&segment->header->root) == shm_member_id_of(dying, slot))
        end_workers(self);
    shm_lease_retry(self);
    ended &= member->stuck_count == 0;
    self->holds = false; /* they were given up with the rest */
    shm_thread_close(self);
    struct shm_member_record *record = shm_member_at(segment, slot);
    SHM_KILL_POINT(reap_retire);
    atomic_store(&record->reaper, 0);
    /* What could not be ended, because another was stopped in the midst of it, is for those who stay: as of one who
     * is proven dead. */
    atomic_compare_exchange_strong(
        &record->word, &dying,
        shm_word_make(shm_word_count(dying), SHM_NOBODY, ended ? SHM_MEMBER_FREE : SHM_MEMBER_DYING));
}

/* Set as shm_member.slice: a wait has lasted another half second. */
static void slice(struct shm_thread *self, uint32_t peer)
{
    struct shm_member *member = self->member;
    if (peer && peer != self->slot && shm_index_ok(self->segment, SHM_TABLE_MEMBERS, peer))
        shm_reap(self, peer);
    uint64_t rounds = atomic_load(&self->segment->header->keeper_rounds);
    if (rounds == member->rounds_seen)
        shm_reap_all(self); /* the keeper stands still: its work is done by whoever waits */
    member->rounds_seen = rounds;
    shm_call_look(self);
}

/* Set as shm_member.drop_box. */
static void drop_box(struct shm_thread *self, uint32_t index, uint32_t block)
{
    if (index & SHM_BLOCK_BUS)
        shm_bus_drop(self, index & ~SHM_BLOCK_BUS, block);
    else if (index & SHM_BLOCK_SYNC)
        shm_sync_drop(self, index & ~SHM_BLOCK_SYNC, block);
    else if (index & SHM_BLOCK_GROUP)
        shm_group_drop(self, index & ~SHM_BLOCK_GROUP, block);
    else
        shm_box_drop(self, index, block);
}

void shm_member_attach_transport(struct shm_member *member)
{
    member->drop_box = drop_box;
    member->slice = slice;
    member->abandon = shm_sync_abandon;
}

/* ---- the native thread ------------------------------------------------------------------------------------- */

struct shm_keeper {
    struct shm_member *member;
    struct shm_thread self;
    pthread_t thread;
    struct shm_vigil vigil;
    struct shm_listener *listener; /* to the others' vigils, while it is the keeper */
    bool has_listened;             /* it was started, or could not be */
    /* The thread has a descriptor table of its own: os.closerange in the program closes nothing here, and no number is
     * another file's by the time it is polled. Only the end of the pipe that pokes it is in the program's table. */
    int poked, poke;
    uint64_t poke_device, poke_inode;
    int life_fd;
    bool shares; /* the kernel, or a filter, allows no table of its own */
    sem_t started;
    _Atomic int stop;
    int *lifelines;
    uint32_t lifelines_count;
    int door; /* listens, in the table of the thread; -1: not yet, or none */
    void (*_Atomic visit)(int connection);
    bool has_tried; /* to open it */
    /* of the member in each slot: its pidfd, and the word it was opened for */
    int *pidfds;
    shm_word *words;
    struct pollfd *polled;
    uint32_t room;
};

static void forget_pidfd(struct shm_keeper *keeper, uint32_t slot)
{
    if (keeper->pidfds[slot] >= 0)
        close(keeper->pidfds[slot]);
    keeper->pidfds[slot] = -1;
}

static bool make_room(struct shm_keeper *keeper, uint32_t slots)
{
    if (slots <= keeper->room)
        return true;
    int *pidfds = realloc(keeper->pidfds, slots * sizeof *pidfds);
    if (pidfds)
        keeper->pidfds = pidfds;
    shm_word *words = realloc(keeper->words, slots * sizeof *words);
    if (words)
        keeper->words = words;
    struct pollfd *polled = realloc(keeper->polled, (slots + 2 + keeper->lifelines_count) * sizeof *polled);
    if (polled)
        keeper->polled = polled;
    if (!pidfds || !words || !polled)
        return false;
    for (uint32_t i = keeper->room; i < slots; i++)
        keeper->pidfds[i] = -1;
    keeper->room = slots;
    return true;
}

/* Watch every member by a pidfd (the keeper), or only the keeper (everybody else). */
static void watch_members(struct shm_keeper *keeper, bool keeps, uint32_t keeper_slot)
{
    struct shm_segment *segment = keeper->member->segment;
    struct dead dead = {0};
    shm_member_id heard[SHM_LISTENER_ROOM];
    uint32_t slots = shm_pool_ready(segment, SHM_TABLE_MEMBERS), heard_count = 0;
    if (!make_room(keeper, slots))
        return;
    for (uint32_t slot = 1; slot < slots; slot++) {
        struct shm_member_record *record = shm_member_at(segment, slot);
        shm_word word = atomic_load(&record->word);
        uint32_t state = shm_word_state(word);
        bool wanted = slot != keeper->self.slot && (keeps || slot == keeper_slot) && state != SHM_MEMBER_FREE;
        if (keeper->pidfds[slot] >= 0 &&
            (!wanted || shm_word_count(keeper->words[slot]) != shm_word_count(word)))
            forget_pidfd(keeper, slot);
        if (!wanted)
            continue;
        int pid = record->kind == SHM_KIND_FORK
                      ? 0
                      : atomic_load(&record->pid); /* a fork lives as long as its lock */
        bool ends = state == SHM_MEMBER_DYING && keeper->pidfds[slot] >= 0 &&
                    !shm_member_has_ended(keeper->member, slot); /* its pidfd tells when it has */
        if ((state == SHM_MEMBER_DYING && !ends) || (pid <= 0 && keeps)) {
            add_dead(&dead, slot);
        } else if (keeper->pidfds[slot] < 0 && pid > 0) {
            int fd = pidfd_open(pid);
            if (fd < 0 || shm_process_start_time(pid) != record->start_time) {
                if (fd >= 0)
                    close(fd);
                if (keeps)
                    add_dead(&dead, slot);
                continue;
            }
            keeper->pidfds[slot] = fd;
            keeper->words[slot] = word;
        }
        if (keeper->pidfds[slot] >= 0 && heard_count < SHM_LISTENER_ROOM)
            heard[heard_count++] = shm_member_id_of(word, slot);
    }
    if (keeps && keeper->listener)
        shm_listener_hear(keeper->listener, heard, heard_count);
    reap_dead(&keeper->self, &dead);
}

/* The native thread of another has ended, and with it most likely the process, whose memory the kernel may take long to
 * give back: reap it now if it is certain that no thread of it runs. */
static void reap_if_ending(struct shm_thread *self, shm_member_id id)
{
    uint32_t slot = id & 0xFFFF, status;
    const struct shm_member_record *record = shm_member_at(self->segment, slot);
    uint64_t until = shm_clock_ns() + ENDING_LIMIT_NS;
    for (;;) {
        shm_word word = atomic_load(&record->word);
        if (shm_word_count(word) != id >> 16 || shm_word_state(word) != SHM_MEMBER_LIVE ||
            record->pid_namespace != self->member->record->pid_namespace)
            return;
        enum shm_ending ending = shm_process_ending(atomic_load(&record->pid), record->start_time, &status);
        if (ending == SHM_ENDING_SURE)
            shm_reap_ending(self, slot, word, status);
        if (ending != SHM_ENDING_SOON || shm_clock_ns() >= until)
            return;
        shm_clock_sleep(ENDING_PAUSE_NS);
    }
}

static void reap_heard(struct shm_keeper *keeper)
{
    shm_member_id ended[SHM_LISTENER_ROOM];
    uint32_t count = keeper->listener ? shm_listener_take(keeper->listener, ended) : 0;
    for (uint32_t i = 0; i < count; i++)
        reap_if_ending(&keeper->self, ended[i]);
}

static bool root_has_ended(struct shm_keeper *keeper)
{
    shm_member_id root = atomic_load(&keeper->member->segment->header->root);
    return root && (!shm_member_lives(keeper->member->segment, root) ||
                    shm_member_is_dead(keeper->member, root & 0xFFFF));
}

/* A lifeline has ended, the creator's or the root's: this process must not outlive it. */
static void die_orphaned(struct shm_keeper *keeper)
{
    if (root_has_ended(keeper))
        kill_workers(&keeper->self);
    shm_member_say_reason(keeper->member->segment, shm_member_id_self(keeper->member), SHM_EXIT_ORPHANED,
                          SIGKILL);
    kill(getpid(), SIGKILL);
}

static bool try_to_keep(struct shm_keeper *keeper, uint32_t *holder)
{
    struct shm_header *header = keeper->member->segment->header;
    shm_word word = atomic_load(&header->keeper);
    *holder = shm_word_owner(word);
    if (shm_word_state(word) == 1) {
        if (*holder == keeper->self.slot)
            return true;
        struct shm_member_record *record = shm_member_at(keeper->member->segment, *holder);
        if (shm_index_ok(keeper->member->segment, SHM_TABLE_MEMBERS, *holder) &&
            shm_word_state(atomic_load(&record->word)) == SHM_MEMBER_LIVE &&
            !shm_member_is_dead(keeper->member, *holder))
            return false;
    }
    return atomic_compare_exchange_strong(&header->keeper, &word, shm_word_next(word, keeper->self.slot, 1));
}

/* Who has executed another program still has his pidfd, but not his lock; and some pidfds could not be had. */
static void look_behind_pidfds(struct shm_keeper *keeper)
{
    struct shm_segment *segment = keeper->member->segment;
    for (uint32_t slot = 1; slot < shm_pool_ready(segment, SHM_TABLE_MEMBERS); slot++) {
        bool watched = slot < keeper->room && keeper->pidfds[slot] >= 0;
        if (slot != keeper->self.slot && shm_word_state(atomic_load(&shm_member_at(segment, slot)->word)) &&
            !(watched && shm_member_is_locked(keeper->member, slot)))
            shm_reap(&keeper->self, slot);
    }
}

/* The root has ended, and the system with it. */
static bool has_ended(const struct shm_keeper *keeper)
{
    return atomic_load(&keeper->member->segment->header->state) == SHM_SEGMENT_CLOSED;
}

static int by_number(const void *a, const void *b)
{
    return *(const int *)a - *(const int *)b;
}

/* Leave the descriptors of the program to it: a copy of a pipe's end kept here would keep the pipe open. */
static void take_own_table(struct shm_keeper *keeper)
{
    int kept[12], count = 0;
    kept[count++] = keeper->poked;
    kept[count++] = keeper->poke; /* so that the pipe has a writer when the program has closed it */
    kept[count++] = keeper->life_fd;
    kept[count++] = keeper->member->segment->fd;
    for (uint32_t i = 0; i < keeper->lifelines_count; i++)
        kept[count++] = keeper->lifelines[i];
    qsort(kept, (size_t)count, sizeof *kept, by_number);
    keeper->shares = syscall(SYS_close_range, kept[count - 1] + 1, ~0U, CLOSE_RANGE_UNSHARE) != 0;
    for (int i = 0, from = 0; i < count && !keeper->shares; i++) {
        if (kept[i] > from)
            syscall(SYS_close_range, from, kept[i] - 1, 0);
        if (kept[i] >= from)
            from = kept[i] + 1;
    }
}

/* The descriptors that only the thread needs, in the table of the caller. */
static void close_lifelines(struct shm_keeper *keeper)
{
    close(keeper->poked);
    for (uint32_t i = 0; i < keeper->lifelines_count; i++)
        close(keeper->lifelines[i]);
}

static bool has_poke(const struct shm_keeper *keeper)
{
    struct stat st;
    return fstat(keeper->poke, &st) == 0 && st.st_dev == keeper->poke_device &&
           st.st_ino == keeper->poke_inode;
}

static void forget_pidfds(struct shm_keeper *keeper)
{
    for (uint32_t slot = 0; slot < keeper->room; slot++)
        forget_pidfd(keeper, slot);
}

/* In the table of the thread, where the program cannot close it, and no child of a fork inherits it. */
static void open_door(struct shm_keeper *keeper)
{
    uint32_t number;
    keeper->has_tried = true;
    keeper->door = shm_door_open(&number);
    if (keeper->door >= 0)
        atomic_store(&keeper->member->record->door, number + 1);
}

/* Reap those whose pidfds, from the entry `first` of what was polled on, say that they have ended. */
static void reap_polled(struct shm_keeper *keeper, uint32_t first, uint32_t end)
{
    struct dead dead = {.pidfds = keeper->pidfds, .opened_for = keeper->words};
    for (uint32_t i = first, slot = 1; slot < keeper->room && i < end; slot++) {
        if (keeper->pidfds[slot] < 0 || keeper->polled[i].fd != keeper->pidfds[slot])
            continue;
        if (keeper->polled[i++].revents & POLLIN)
            add_dead(&dead, slot);
    }
    reap_dead(&keeper->self, &dead);
    bool all = true;
    for (uint32_t slot = 1; slot < keeper->room; slot++) {
        if (!(dead.words[slot / 64] >> slot % 64 & 1))
            continue;
        shm_word word = atomic_load(&shm_member_at(keeper->member->segment, slot)->word);
        bool gone = shm_word_count(word) != shm_word_count(keeper->words[slot]) ||
                    shm_word_state(word) == SHM_MEMBER_FREE;
        if (gone)
            forget_pidfd(keeper, slot);
        all &= gone;
    }
    if (!all)
        shm_clock_sleep(1000000); /* another is at it */
}

static void *run(void *argument)
{
    struct shm_keeper *keeper = argument;
    struct shm_segment *segment = keeper->member->segment;
    uint64_t checked = 0;
    bool told = false;
    struct shm_idle idle = {0};
    take_own_table(keeper);
    shm_vigil_begin(&keeper->vigil, &keeper->member->record->vigil);
    sem_post(&keeper->started);
    while (!atomic_load(&keeper->stop)) {
        uint32_t holder = 0, slots = 0;
        bool keeps = try_to_keep(keeper, &holder);
        if (keeps && !keeper->has_listened) {
            keeper->has_listened = true;
            keeper->listener = shm_listener_start(segment, keeper->poke);
        }
        watch_members(keeper, keeps, holder);
        if (keeps)
            atomic_fetch_add(&segment->header->keeper_rounds, 1);
        shm_lease_retry(&keeper->self);
        if (atomic_load(&keeper->visit) && !keeper->has_tried)
            open_door(keeper);
        uint32_t kind = atomic_load(&keeper->member->record->kind);
        if (kind == SHM_KIND_WORKER && has_ended(keeper))
            die_orphaned(keeper); /* the root has left in order, and did not see this worker */
        if (!told && kind == SHM_KIND_ATTACHED && has_ended(keeper)) {
            told = true;
            atomic_store(&keeper->member->closed, 1);
            shm_wake_own(&keeper->self);
        }
        uint64_t now = shm_clock_ns();
        if (now - checked > SHM_NS_PER_S) {
            shm_member_check_lock(keeper->member,
                                  keeper->shares ? &keeper->member->life_fd : &keeper->life_fd);
            if (keeps)
                look_behind_pidfds(keeper);
            shm_lent_look(&keeper->self);
            shm_arena_idle(&keeper->self, &idle, keeps);
            checked = now;
        }
        keeper->polled[slots++] = (struct pollfd){.fd = keeper->poked, .events = POLLIN};
        for (uint32_t i = 0; i < keeper->lifelines_count; i++)
            keeper->polled[slots++] = (struct pollfd){.fd = keeper->lifelines[i], .events = POLLIN};
        keeper->polled[slots++] = (struct pollfd){.fd = keeper->door, .events = POLLIN};
        uint32_t first = slots;
        for (uint32_t slot = 1; slot < keeper->room; slot++)
            if (keeper->pidfds[slot] >= 0)
                keeper->polled[slots++] =
                    (struct pollfd){.fd = keeper->pidfds[slot], .events = POLLIN, .revents = 0};
        int ready = poll(keeper->polled, slots, keeps ? KEEPER_ROUND_MS : WATCH_ROUND_MS);
        if (ready <= 0)
            continue;
        char pokes[64];
        if (keeper->polled[0].revents & POLLIN && read(keeper->poked, pokes, sizeof pokes) < 0 &&
            errno == EBADF)
            break;
        for (uint32_t i = 1; i < first - 1; i++)
            if (keeper->polled[i].revents & POLLIN)
                die_orphaned(keeper);
        reap_heard(keeper);
        if (keeper->polled[first - 1].revents & POLLIN) {
            int connection = shm_door_accept(keeper->door);
            if (connection >= 0)
                atomic_load (&keeper->visit)(connection);
        }
        reap_polled(keeper, first, slots);
    }
    for (uint32_t c = 0; c < sizeof idle.words / sizeof idle.words[0]; c++)
        free(idle.words[c]);
    if (keeper->listener)
        shm_listener_stop(keeper->listener);
    shm_vigil_end(&keeper->vigil, &keeper->member->record->vigil);
    forget_pidfds(keeper);
    if (keeper->door >= 0)
        close(keeper->door);
    if (!keeper->shares)
        syscall(SYS_close_range, 0, ~0U,
                0); /* a thread that was joined may hold its table, and locks, for a while */
    return NULL;
}

struct shm_keeper *shm_keeper_start(struct shm_member *member, const int *lifelines, uint32_t count,
                                    int *status)
{
    *status = SHM_SYSTEM;
    struct shm_keeper *keeper = calloc(1, sizeof *keeper);
    if (!keeper)
        return NULL;
    keeper->member = member;
    keeper->lifelines_count = count;
    keeper->door = -1;
    keeper->lifelines = calloc(count ? count : 1, sizeof *lifelines);
    keeper->life_fd = member->life_fd;
    sem_init(&keeper->started, 0, 0);
    int ends[2] = {-1, -1};
    struct stat st = {0};
    if (pipe2(ends, O_CLOEXEC | O_NONBLOCK) == 0)
        fstat(ends[1], &st);
    keeper->poked = ends[0];
    keeper->poke = ends[1];
    keeper->poke_device = st.st_dev;
    keeper->poke_inode = st.st_ino;
    if (!keeper->lifelines || keeper->poke < 0 || count > 8)
        goto failed;
    int opened = shm_thread_open(&keeper->self, member);
    if (opened) {
        *status = opened;
        goto failed;
    }
    keeper->self.may_spin = false;
    for (uint32_t i = 0; i < count; i++)
        keeper->lifelines[i] = lifelines[i];
    if (!make_room(keeper, 1))
        goto failed;
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int error = pthread_create(&keeper->thread, NULL, run, keeper);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (error == 0) {
        while (sem_wait(&keeper->started) != 0)
            ;
        if (!keeper->shares)
            close_lifelines(keeper);
        return keeper;
    }
failed:
    if (keeper->self.at)
        shm_thread_close(&keeper->self);
    if (keeper->poke >= 0) {
        close(keeper->poked);
        close(keeper->poke);
    }
    free(keeper->lifelines);
    free(keeper->pidfds);
    free(keeper->words);
    free(keeper->polled);
    free(keeper);
    return NULL;
}

void shm_keeper_poke(struct shm_keeper *keeper)
{
    ssize_t written = has_poke(keeper) ? write(keeper->poke, "p", 1) : 0;
    (void)written; /* full: it is poked already */
}

void shm_keeper_open_door(struct shm_keeper *keeper, void (*visit)(int connection))
{
    atomic_store(&keeper->visit, visit);
    shm_keeper_poke(keeper);
}

void shm_keeper_stop(struct shm_keeper *keeper)
{
    atomic_store(&keeper->stop, 1);
    shm_keeper_poke(keeper);
    pthread_join(keeper->thread, NULL);
    shm_word word = atomic_load(&keeper->member->segment->header->keeper);
    if (shm_word_owner(word) == keeper->self.slot && shm_word_state(word))
        atomic_compare_exchange_strong(&keeper->member->segment->header->keeper, &word,
                                       shm_word_next(word, SHM_NOBODY, 0));
    shm_thread_close(&keeper->self);
    if (keeper->shares)
        close_lifelines(keeper);
    if (has_poke(keeper))
        close(keeper->poke);
    sem_destroy(&keeper->started);
    free(keeper->lifelines);
    free(keeper->pidfds);
    free(keeper->words);
    free(keeper->polled);
    free(keeper);
}

void shm_keeper_forked(struct shm_keeper *keeper)
{
    if (keeper->shares) {
        forget_pidfds(keeper);
        close_lifelines(keeper);
        if (keeper->door >= 0)
            close(keeper->door);
    }
    if (has_poke(keeper))
        close(keeper->poke);
}
