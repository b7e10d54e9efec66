#define _GNU_SOURCE
#include "transport/park.h"

#include <errno.h>
#include <sched.h>

#include "base/clock.h"
#include "base/killpoint.h"
#include "base/status.h"
#include "transport/abort.h"

/* A spin looks this long before it asks the scheduler whether somebody else wants the core. */
#define SPIN_QUANTUM_NS UINT64_C(10000)
#define SPIN_MIN_NS UINT64_C(500)
/* A post may be on its way when a slice ends; a condition that stays true so long without one was lost. */
#define RESCUE_GRACE_NS (SHM_NS_PER_S / 5)

/* How many tokens are believed in one wait that come before anybody has notified us: drained one by one. */
#define TOKENS_MAX 4096

/* The semaphore of a place, fit for use. Of a sem_t only the first eight bytes change: how many tokens there are, and
 * how many wait. The rest says among others which futex operation is meant, and the C library ends the process when
 * the kernel refuses that: so it is put right before the C library reads it. */
static sem_t *semaphore_of(struct shm_place *place)
{
#if __SIZEOF_POINTER__ == 8
    union {
        sem_t semaphore;
        uint64_t words[sizeof(sem_t) / 8];
    } fresh = {0};
    _Atomic uint64_t *words = (_Atomic uint64_t *)&place->semaphore;
    sem_init(&fresh.semaphore, 1, 0);
    for (size_t i = 1; i < sizeof(sem_t) / 8; i++)
        if (atomic_load_explicit(&words[i], memory_order_relaxed) != fresh.words[i])
            atomic_store_explicit(&words[i], fresh.words[i], memory_order_relaxed);
#endif
    return &place->semaphore;
}

/* ---- waiter sets ------------------------------------------------------------------------------------------- */

static inline uint32_t words_per_bit(uint32_t words)
{
    return words > 64 ? words / 64 : 1;
}

void shm_set_enter(struct shm_set *set, uint32_t words, uint32_t place, _Atomic uint64_t *ticket)
{
    if (atomic_load(ticket) == 0)
        atomic_store(ticket, atomic_fetch_add(&set->next_ticket, 1) + 1);
    shm_set_join(set, words, place);
}

void shm_set_join(struct shm_set *set, uint32_t words, uint32_t place)
{
    atomic_fetch_or(&set->words[place / 64], UINT64_C(1) << place % 64);
    atomic_fetch_or(&set->summary, UINT64_C(1) << place / 64 / words_per_bit(words));
}

void shm_set_leave(struct shm_set *set, uint32_t words, uint32_t place)
{
    uint32_t per = words_per_bit(words), group = place / 64 / per;
    atomic_fetch_and(&set->words[place / 64], ~(UINT64_C(1) << place % 64));
    bool any = false;
    for (uint32_t w = group * per; w < (group + 1) * per; w++)
        any |= atomic_load(&set->words[w]) != 0;
    if (any) { /* said again, for one that left before us may have died between clearing it and looking */
        atomic_fetch_or(&set->summary, UINT64_C(1) << group);
        return;
    }
    atomic_fetch_and(&set->summary, ~(UINT64_C(1) << group));
    /* One that entered meanwhile set the bit before we cleared it. A waker who saw it cleared is made up for by
     * the baton that we pass after leaving. */
    for (uint32_t w = group * per; w < (group + 1) * per; w++)
        if (atomic_load(&set->words[w])) {
            atomic_fetch_or(&set->summary, UINT64_C(1) << group);
            return;
        }
}

uint32_t shm_set_count(const struct shm_set *set, uint32_t words)
{
    uint32_t count = 0, per = words_per_bit(words);
    for (uint64_t summary = atomic_load(&set->summary); summary; summary &= summary - 1) {
        uint32_t first = (uint32_t)__builtin_ctzll(summary) * per;
        for (uint32_t w = first; w < first + per && w < words; w++)
            count += (uint32_t)__builtin_popcountll(atomic_load(&set->words[w]));
    }
    return count;
}

bool shm_set_has(const struct shm_set *set, uint32_t place)
{
    return atomic_load(&set->words[place / 64]) >> place % 64 & 1;
}

/* The ticket under which `place` waits for this; 0: not for this. */
static uint64_t ticket_of(struct shm_place *place, const struct shm_waitable *waitable)
{
    uint32_t count = atomic_load(&place->items_count);
    if (count && atomic_load(&place->items[0].kind) == SHM_WAIT_MANY)
        return atomic_load(&place->items[0].ticket); /* its bit in the set says that it waits for this */
    for (uint32_t i = 0; i < count && i < SHM_PLACE_ITEMS; i++)
        if (atomic_load(&place->items[i].kind) == waitable->kind &&
            atomic_load(&place->items[i].object) == waitable->object)
            return atomic_load(&place->items[i].ticket);
    return 0;
}

/* The longest waiting place of the set whose ticket is above `after`; -1: none. */
static int64_t next_in_set(struct shm_thread *self, const struct shm_waitable *waitable, uint64_t after,
                           uint64_t *ticket)
{
    struct shm_set *set = waitable->set;
    uint32_t words = waitable->words, per = words_per_bit(words);
    uint64_t summary = atomic_load(&set->summary);
    int64_t found = -1;
    for (uint32_t w = 0; summary && w < words; w++) {
        if (!(summary >> w / per & 1))
            continue;
        uint64_t bits = atomic_load(&set->words[w]);
        while (bits) {
            uint32_t place = w * 64 + (uint32_t)__builtin_ctzll(bits);
            bits &= bits - 1;
            if (!shm_index_ok(self->segment, SHM_TABLE_PLACES, place))
                continue;
            uint64_t t = ticket_of(shm_place_at(self->segment, place), waitable);
            if (t > after && (found < 0 || t < *ticket)) {
                found = place;
                *ticket = t;
            }
        }
    }
    return found;
}

bool shm_set_is_first(struct shm_thread *self, const struct shm_waitable *waitable, uint32_t place)
{
    uint64_t ticket = 0;
    int64_t first = next_in_set(self, waitable, 0, &ticket);
    return first < 0 || first == (int64_t)place;
}

uint64_t shm_set_first_turn(struct shm_thread *self, const struct shm_waitable *waitable)
{
    uint64_t ticket = 0;
    return next_in_set(self, waitable, 0, &ticket) < 0 ? 0 : ticket;
}

/* ---- waking ------------------------------------------------------------------------------------------------ */

static bool notify(struct shm_thread *self, struct shm_place *place, shm_word word)
{
    SHM_KILL_POINT(wake_notify);
    if (!atomic_compare_exchange_strong(&place->word, &word,
                                        shm_word_make(shm_word_count(word), self->slot, SHM_PLACE_NOTIFIED)))
        return false;
    SHM_KILL_POINT(wake_post);
    sem_post(semaphore_of(place));
    return true;
}

/* Whoever was notified last is still about to look: he passes the baton. */
static bool is_on_its_way(struct shm_thread *self, const struct shm_waitable *waitable)
{
    uint32_t index = atomic_load_explicit(&waitable->woken->place, memory_order_relaxed);
    uint64_t ticket = atomic_load_explicit(&waitable->woken->ticket, memory_order_relaxed);
    if (ticket == 0 || !shm_index_ok(self->segment, SHM_TABLE_PLACES, index) ||
        !shm_set_has(waitable->set, index))
        return false;
    struct shm_place *place = shm_place_at(self->segment, index);
    return shm_word_state(atomic_load(&place->word)) == SHM_PLACE_NOTIFIED &&
           ticket_of(place, waitable) == ticket;
}

static void note_woken(const struct shm_waitable *waitable, uint32_t index, uint64_t ticket)
{
    if (!waitable->woken)
        return;
    atomic_store_explicit(&waitable->woken->place, index, memory_order_relaxed);
    atomic_store_explicit(&waitable->woken->ticket, ticket, memory_order_relaxed);
}

bool shm_set_first_is_stopped(struct shm_thread *self, const struct shm_waitable *waitable,
                              struct shm_first *first)
{
    struct shm_first before = *first;
    uint64_t ticket = 0;
    int64_t index = next_in_set(self, waitable, 0, &ticket);
    *first = (struct shm_first){0};
    if (index < 0 || index == (int64_t)self->place)
        return false;
    struct shm_place *place = shm_place_at(self->segment, (uint32_t)index);
    shm_word word = atomic_load(&place->word);
    if (shm_word_state(word) == SHM_PLACE_ARMED && notify(self, place, word))
        note_woken(waitable, (uint32_t)index, ticket);
    *first = (struct shm_first){.turn = ticket, .woken = shm_word_count(word) + 1};
    return shm_word_state(word) != SHM_PLACE_ARMED && first->turn == before.turn &&
           first->woken == before.woken;
}

void shm_wake_set(struct shm_thread *self, const struct shm_waitable *waitable, uint64_t looked)
{
    uint64_t ticket = 0;
    if (waitable->woken && is_on_its_way(self, waitable))
        return;
    /* Each place once at most, whatever the tickets say. */
    for (uint32_t n = shm_pool_ready(self->segment, SHM_TABLE_PLACES); n; n--) {
        int64_t index = next_in_set(self, waitable, ticket, &ticket);
        if (index < 0)
            return;
        struct shm_place *place = shm_place_at(self->segment, (uint32_t)index);
        if (place == self->at && waitable->has_looked)
            continue; /* whoever made something true since then wakes us */
        uint64_t seen = atomic_load(&place->looked);
        if (looked && seen && shm_count_difference(seen - 1, looked) >= 0 && !waitable->in_line)
            continue; /* declined all that is there */
        shm_word word = atomic_load(&place->word);
        uint32_t state = shm_word_state(word);
        if (state == SHM_PLACE_NOTIFIED || (state == SHM_PLACE_ARMED && notify(self, place, word))) {
            note_woken(waitable, (uint32_t)index, ticket);
            return; /* one wake in flight is enough: the woken passes it on */
        }
        if (waitable->in_line)
            return; /* the first is leaving, or woke by itself: he passes the baton */
    }
}

void shm_wake_all(struct shm_thread *self, const struct shm_waitable *waitable)
{
    uint64_t ticket = 0;
    /* Each place once at most, whatever the tickets say. */
    for (uint32_t n = shm_pool_ready(self->segment, SHM_TABLE_PLACES); n; n--) {
        int64_t index = next_in_set(self, waitable, ticket, &ticket);
        if (index < 0)
            return;
        struct shm_place *place = shm_place_at(self->segment, (uint32_t)index);
        shm_word word = atomic_load(&place->word);
        if (shm_word_state(word) == SHM_PLACE_ARMED)
            notify(self, place, word);
    }
}

void shm_wake_one(struct shm_thread *self, const _Atomic uint32_t *one)
{
    uint32_t index = atomic_load(one);
    if (index == 0 || !shm_index_ok(self->segment, SHM_TABLE_PLACES, index - 1))
        return;
    struct shm_place *place = shm_place_at(self->segment, index - 1);
    for (;;) { /* the word may change under us while its thread goes from wait to wait */
        shm_word word = atomic_load(&place->word);
        if (shm_word_state(word) != SHM_PLACE_ARMED || notify(self, place, word))
            return;
    }
}

/* Pass the baton: the condition is read again, and the next is woken when it is true. */
static void wake_next(struct shm_thread *self, const struct shm_waitable *waitable, uint64_t looked)
{
    if (waitable->set && !shm_set_empty(waitable->set) && waitable->is_true(waitable->box))
        shm_wake_set(self, waitable, looked);
}

void shm_wake_own(struct shm_thread *self)
{
    for (uint32_t i = 0; i < shm_pool_ready(self->segment, SHM_TABLE_PLACES); i++) {
        struct shm_place *place = shm_place_at(self->segment, i);
        shm_word owner = atomic_load(&place->owner);
        _Atomic uint32_t one = i + 1;
        if (place != self->at && shm_word_owner(owner) == self->slot && shm_word_state(owner) == 1)
            shm_wake_one(self, &one);
    }
}

void shm_call_back(struct shm_thread *self, struct shm_thread *other)
{
    _Atomic uint32_t one = other->place + 1;
    atomic_store(&other->called, 1);
    shm_wake_one(self, &one);
}

void shm_park_reap_posts(struct shm_thread *self, uint32_t victim, shm_word word)
{
    for (uint32_t i = 0; i < shm_pool_ready(self->segment, SHM_TABLE_PLACES); i++) {
        struct shm_place *place = shm_place_at(self->segment, i);
        shm_word seen = atomic_load(&place->word);
        if (shm_word_state(seen) == SHM_PLACE_NOTIFIED && shm_word_owner(seen) == victim &&
            shm_still_dying(self->segment, victim, word))
            sem_post(semaphore_of(place));
    }
}

/* ---- waiting ----------------------------------------------------------------------------------------------- */

static inline bool goes_on(int status)
{
    return status == SHM_EMPTY || status == SHM_FULL || status == SHM_BUSY;
}

/* Is the thread wanted back? Whoever waits takes the abort, or finds that it has got what it waited for. */
static inline bool is_aborted(const struct shm_thread *self)
{
    return shm_abort_is_pending(self) && !shm_is_shielded(self);
}

int shm_spin(struct shm_thread *self, struct shm_wait *wait, uint64_t limit_ns)
{
    uint64_t start = shm_clock_ns(), asked = start, now = start;
    int status = SHM_EMPTY;
    while (now - start < limit_ns) {
        for (int i = 0; i < 16; i++) {
            if (wait->ready(self, wait->context)) {
                status = wait->attempt(self, wait->context);
                if (!goes_on(status)) {
                    self->spin_ns = SHM_SPIN_MAX_NS;
                    return status;
                }
            }
            shm_clock_relax();
        }
        now = shm_clock_ns();
        if (now - asked > SPIN_QUANTUM_NS) {
            sched_yield();
            asked = shm_clock_ns();
            if (asked - now > SPIN_QUANTUM_NS) { /* others ran: more of us than cores */
                self->spin_ns = SPIN_MIN_NS;
                return status;
            }
            now = asked;
        }
    }
    return status;
}

static void leave(struct shm_thread *self, struct shm_wait *wait)
{
    struct shm_place *place = self->at;
    SHM_KILL_POINT(wait_leave);
    shm_word word = atomic_load(&place->word);
    atomic_exchange(&place->word, shm_word_make(shm_word_count(word), self->slot, SHM_PLACE_LEAVING));
    for (uint32_t i = 0; i < wait->count; i++) {
        struct shm_waitable *w = &wait->waitables[i];
        SHM_KILL_POINT(wait_deregister);
        if (w->set) {
            shm_set_leave(w->set, w->words, self->place);
        } else {
            uint32_t mine = self->place + 1;
            atomic_compare_exchange_strong(w->one, &mine, 0);
        }
    }
    if (wait->leave)
        wait->leave(self, wait->context);
    SHM_KILL_POINT(wait_pass);
    atomic_store(&place->looked, 0);
    if (wait->pass)
        wait->pass(self, wait->context);
    for (uint32_t i = 0; i < wait->count; i++)
        wake_next(self, &wait->waitables[i], 0);
    SHM_KILL_POINT(wait_idle);
    atomic_store(&place->word, shm_word_make(shm_word_count(word), SHM_NOBODY, SHM_PLACE_IDLE));
    atomic_store(&place->items_count, 0);
}

/* One sleep: token, signal, end of the slice. */
static int sleep_until(struct shm_thread *self, uint64_t until_ns)
{
    struct timespec t = shm_clock_timespec(until_ns);
    return sem_clockwait(semaphore_of(self->at), CLOCK_MONOTONIC, &t) == 0 ? 0 : errno;
}

/* Arm the place and enter the sets. `tickets`: the turn in each line, kept when a wait goes on; 0: not yet. */
static shm_word arm(struct shm_thread *self, struct shm_wait *wait, uint64_t *tickets)
{
    struct shm_place *place = self->at;
    for (int n = 0; sem_trywait(&place->semaphore) == 0; n++) /* stale tokens */
        if (n == TOKENS_MAX)
            sem_init(&place->semaphore, 1, 0); /* nobody has posted so often: the number is no number */
    for (uint32_t i = 0; i < wait->count; i++) {
        atomic_store(&place->items[i].ticket,
                     0); /* first: who still sees us in the last wait's set must not mix the two */
        atomic_store(&place->items[i].kind, wait->waitables[i].kind);
        atomic_store(&place->items[i].object, wait->waitables[i].object);
        atomic_store(&place->items[i].ticket, tickets[i]);
    }
    if (wait->enter) {
        if (tickets[0] == 0)
            tickets[0] = SHM_TURN_MANY | (atomic_fetch_add(&self->segment->header->next_turn, 1) + 1);
        atomic_store(&place->items[0].ticket, 0);
        atomic_store(&place->items[0].kind, SHM_WAIT_MANY);
        atomic_store(&place->items[0].object, wait->object);
        atomic_store(&place->items[0].ticket, tickets[0]);
    }
    atomic_store(&place->items_count, wait->enter ? 1 : wait->count);
    atomic_store(&place->looked,
                 0); /* what a receive without a wait looked at was another mailbox, perhaps */
    SHM_NOTE(&place->waits_since, wait->began_ns);
    SHM_NOTE(&place->waits_until, wait->deadline_ns);
    uint64_t generation = shm_word_count(atomic_load(&place->word)) + 1;
    shm_word armed = shm_word_make(generation, SHM_NOBODY, SHM_PLACE_ARMED);
    SHM_KILL_POINT(wait_arm);
    atomic_exchange(&place->word, armed);
    for (uint32_t i = 0; i < wait->count; i++) {
        struct shm_waitable *w = &wait->waitables[i];
        SHM_KILL_POINT(wait_register);
        if (w->set)
            shm_set_enter(w->set, w->words, self->place, &place->items[i].ticket);
        else
            atomic_exchange(w->one, self->place + 1);
        tickets[i] = atomic_load(&place->items[i].ticket);
    }
    if (wait->enter)
        wait->enter(self, wait->context);
    return armed;
}

/* Is there anything to wake this thread for? */
static bool is_due(struct shm_thread *self, struct shm_wait *wait)
{
    return wait->ready(self, wait->context) || is_aborted(self);
}

/* A slice is over and nobody has posted: look after the peer, and whether a wake was lost. */
static void end_slice(struct shm_thread *self, struct shm_wait *wait)
{
    struct shm_place *place = self->at;
    if (self->member->slice)
        self->member->slice(self, wait->peer);
    if (is_due(self, wait) && shm_word_state(atomic_load(&place->word)) == SHM_PLACE_ARMED &&
        sleep_until(self, shm_clock_ns() + RESCUE_GRACE_NS) == ETIMEDOUT && is_due(self, wait) &&
        shm_word_state(atomic_load(&place->word)) == SHM_PLACE_ARMED)
        atomic_fetch_add(&self->segment->header->rescued, 1);
}

static int park(struct shm_thread *self, struct shm_wait *wait)
{
    struct shm_place *place = self->at;
    uint64_t tickets[SHM_PLACE_ITEMS] = {0};
    int status, false_tokens = 0;
    shm_word armed = arm(self, wait, tickets);

    for (;;) {
        status = atomic_load(&self->member->closed) ? SHM_CLOSED : wait->attempt(self, wait->context);
        /* Others rely on a shielded wait: who calls it back, as who aborts it, is heard when it is over. */
        if (goes_on(status) && !shm_is_shielded(self) && atomic_exchange(&self->called, 0))
            status = SHM_INTERRUPTED;
        if (goes_on(status) && is_aborted(self)) /* A1, A2 */
            status = SHM_ABORTED;
        if (!goes_on(status))
            break;
        SHM_KILL_POINT(wait_park);
        uint64_t now = shm_clock_ns();
        if (now >= wait->deadline_ns) {
            status = SHM_TIMEOUT;
            break;
        }
        uint64_t slice = now + SHM_SLICE_NS;
        int error = sleep_until(self, slice < wait->deadline_ns ? slice : wait->deadline_ns);
        if (error == ETIMEDOUT && shm_clock_ns() < wait->deadline_ns) {
            end_slice(self, wait);
            status = wait->slice ? wait->slice(self, wait->context) : 0;
            if (status)
                break;
        }
        if (error && self->interrupted) {
            /* A handler may run for long, and may wait itself: the baton goes on, our turn in the line stays. */
            leave(self, wait);
            if (self->interrupted(self))
                return SHM_INTERRUPTED;
            armed = arm(self, wait, tickets);
            continue;
        }
        bool notified = shm_word_state(atomic_load(&place->word)) == SHM_PLACE_NOTIFIED;
        if (!notified && error == 0 && ++false_tokens == TOKENS_MAX) {
            /* The number is no number, else this would spin until it is used up. Who has posted has notified before,
             * so a token that is lost here is seen in the word. */
            sem_init(&place->semaphore, 1, 0);
            false_tokens = 0;
            notified = shm_word_state(atomic_load(&place->word)) == SHM_PLACE_NOTIFIED;
        }
        if (!notified)
            continue;
        status = wait->attempt(self, wait->context);
        if (goes_on(status) && is_aborted(self))
            status = SHM_ABORTED;
        if (!goes_on(status))
            break;
        armed = shm_word_make(shm_word_count(armed) + 1, SHM_NOBODY, SHM_PLACE_ARMED); /* we have looked */
        atomic_exchange(&place->word, armed);
        /* We declined what is there: the next who has looked less far than we. Never past it: somebody who looked
         * as far, and so never ourselves, or two would wake each other for ever while a claim stands there. */
        uint64_t looked = atomic_load(&place->looked);
        for (uint32_t i = 0; wait->filtered && looked > 1 && i < wait->count; i++)
            if (wait->waitables[i].kind == SHM_WAIT_RECEIVE)
                wake_next(self, &wait->waitables[i], looked - 1);
        /* And who came to stand before us in a line, whom nobody woke while we were on our way. */
        for (struct shm_waitable *line = wait->waitables; line < wait->waitables + wait->count; line++)
            if (line->woken && !shm_set_is_first(self, line, self->place))
                wake_next(self, line, 0);
    }
    leave(self, wait);
    return status;
}

int shm_wait(struct shm_thread *self, struct shm_wait *wait)
{
    int status = wait->attempt(self, wait->context);
    if (!goes_on(status) || wait->deadline_ns == 0)
        return status;
    if (is_aborted(self))
        return SHM_ABORTED;
    uint64_t began = wait->began_ns = shm_clock_ns();
    if (self->may_spin) {
        uint64_t limit = self->spin_ns;
        if (wait->deadline_ns - began < limit)
            limit = wait->deadline_ns > began ? wait->deadline_ns - began : 0;
        status = shm_spin(self, wait, limit);
        if (!goes_on(status))
            return status;
    }
    status = park(self, wait);
    /* Spinning pays when what is waited for comes sooner than a sleep and a wake take. */
    uint64_t took = shm_clock_ns() - began;
    if (took < 2 * SHM_SPIN_MAX_NS)
        self->spin_ns = SHM_SPIN_MAX_NS;
    else if (self->spin_ns > SPIN_MIN_NS)
        self->spin_ns /= 2;
    return status;
}
