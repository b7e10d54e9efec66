#include "transport/port.h"

#include "base/clock.h"
#include "base/killpoint.h"
#include "base/status.h"
#include "transport/cell.h"
#include "transport/group.h"

/* How long a poll may wait for another receiver's copy to end, and a migration for a receiver. */
#define BUSY_LIMIT_NS UINT64_C(50000)
#define HOLD_LIMIT_NS (5 * SHM_NS_PER_S)
/* How often a receive from any port chooses again, because another receiver was faster. */
enum { CHOICES = 16 };

/* ---- desks ------------------------------------------------------------------------------------------------- */

static int make_ready(struct shm_segment *segment, uint32_t table, uint32_t index)
{
    for (uint32_t ready; (ready = shm_pool_ready(segment, table)) <= index;) {
        int status = shm_pool_grow(segment, table, ready);
        if (status)
            return status;
    }
    return 0;
}

/* A desk's waiters look for themselves: each that leaves wakes the next. */
static bool passes_baton(const struct shm_box *none)
{
    (void)none;
    return true;
}

struct shm_waitable shm_desk_waiters(const struct shm_segment *segment, uint32_t slot)
{
    return (struct shm_waitable){.kind = SHM_WAIT_PORT,
                                 .object = slot,
                                 .set = (struct shm_set *)(shm_desk_at(segment, slot) + 1),
                                 .words = segment->place_words,
                                 .is_true = passes_baton};
}

int shm_desk_open(struct shm_thread *self, uint64_t *changes)
{
    int status = make_ready(self->segment, SHM_TABLE_DESKS, self->slot);
    if (status == 0)
        *changes = atomic_load(&shm_desk_at(self->segment, self->slot)->changes);
    return status;
}

/* Which ports of the member in `slot` are enabled, or how, is another than before: its waiters begin anew. */
static void tell_desk(struct shm_thread *self, uint32_t slot)
{
    if (!shm_index_ok(self->segment, SHM_TABLE_DESKS, slot))
        return;
    atomic_fetch_add(&shm_desk_at(self->segment, slot)->changes, 1); /* P1, W1 */
    struct shm_waitable waiters = shm_desk_waiters(self->segment, slot);
    if (!shm_set_empty(waiters.set))
        shm_wake_all(self, &waiters);
}

void shm_port_wake(struct shm_thread *self, const struct shm_box *box)
{
    struct shm_segment *segment = self->segment;
    if (!shm_index_ok(segment, SHM_TABLE_PORTS, box->index))
        return;
    shm_word word = atomic_load(&shm_port_at(segment, box->index)->word); /* P1 */
    if (shm_word_state(word) != SHM_PORT_ENABLED ||
        !shm_index_ok(segment, SHM_TABLE_DESKS, shm_word_owner(word)))
        return;
    struct shm_waitable waiters = shm_desk_waiters(segment, shm_word_owner(word));
    if (!shm_set_empty(waiters.set))
        shm_wake_set(self, &waiters, 0);
}

/* ---- what a port is ---------------------------------------------------------------------------------------- */

static inline shm_word word_of(shm_member_id owner, uint32_t state)
{
    return shm_word_make(owner >> 16, owner & 0xFFFF, state);
}

/* The port of an open box; its word is the box's, whose record nobody reuses while it is open. */
static inline struct shm_port *port_of(const struct shm_thread *self, const struct shm_box *box)
{
    return shm_port_at(self->segment, box->index);
}

/* The word, if this member owns the port; else NO_PORT, of a handled one INVALID. */
static int own_word(const struct shm_thread *self, const struct shm_box *box, shm_word *word)
{
    *word = atomic_load(&port_of(self, box)->word);
    uint32_t state = shm_word_state(*word);
    if (shm_port_owner(*word) != shm_member_id_self(self->member) || state < SHM_PORT_DISABLED ||
        state > SHM_PORT_HANDLED)
        return SHM_NO_PORT;
    return state == SHM_PORT_HANDLED ? SHM_INVALID : 0;
}

int shm_port_may_receive(const struct shm_thread *self, const struct shm_box *box)
{
    shm_word word;
    int status = own_word(self, box, &word);
    switch (self->port_mode) {
    case SHM_PORT_ANY:
        return status == 0 && shm_word_state(word) != SHM_PORT_ENABLED ? SHM_NO_PORT : status;
    case SHM_PORT_HANDLER:
        return status == SHM_INVALID ? 0 : SHM_NO_PORT;
    default:
        return status;
    }
}

uint64_t shm_port_count(struct shm_thread *self, const struct shm_box *box)
{
    struct shm_port *port = port_of(self, box);
    uint64_t number = atomic_load(&port->received) + 1;
    atomic_store(&port->received, number);
    return number;
}

bool shm_port_is_there(const struct shm_segment *segment, shm_port_id id)
{
    uint32_t index = (uint32_t)(id & 0xFFFFF) - 1;
    if (!shm_index_ok(segment, SHM_TABLE_PORTS, index))
        return false;
    const struct shm_port *port = shm_port_at(segment, index);
    shm_word word = atomic_load(&port->word);
    uint32_t state = shm_word_state(word);
    return state >= SHM_PORT_DISABLED && state <= SHM_PORT_MOVING &&
           shm_port_id_of(index, atomic_load(&port->life)) == id &&
           shm_member_lives(segment, shm_port_owner(word)) && atomic_load(&port->word) == word;
}

/* ---- removal ----------------------------------------------------------------------------------------------- */

static void change_state(struct shm_port *port, uint64_t life, uint32_t state)
{
    shm_word word = atomic_load(&port->word);
    while (atomic_load(&port->life) == life && shm_word_state(word) != SHM_PORT_GONE &&
           !atomic_compare_exchange_strong(&port->word, &word,
                                           shm_word_make(shm_word_count(word), shm_word_owner(word), state)))
        ;
}

/* It is to be removed, if it is its owner's still for whom somebody has found so: he may have given it away before. */
static bool condemn(struct shm_port *port, uint64_t life, shm_member_id owner)
{
    shm_word word = atomic_load(&port->word);
    while (atomic_load(&port->life) == life && shm_port_owner(word) == owner &&
           shm_word_state(word) != SHM_PORT_GONE)
        if (shm_word_state(word) == SHM_PORT_REMOVING ||
            atomic_compare_exchange_strong(
                &port->word, &word,
                shm_word_make(shm_word_count(word), shm_word_owner(word), SHM_PORT_REMOVING))) /* P3 */
            return true;
    return false;
}

/* Everything that the port of this owner has goes; `box` is open. Each step may be done again, by another. False: it is
 * another's. */
static bool remove_port(struct shm_thread *self, struct shm_box *box, shm_member_id owner)
{
    uint32_t index = box->index;
    uint64_t life = box->count;
    struct shm_port *port = port_of(self, box);
    SHM_KILL_POINT(port_remove);
    if (!condemn(port, life, owner))
        return false;
    SHM_KILL_POINT(port_close);
    shm_box_close(self, box);
    SHM_KILL_POINT(port_fail);
    shm_call_fail_port(self, index, true);
    SHM_KILL_POINT(port_forget);
    shm_group_forget(self, shm_port_id_of(index, life));
    tell_desk(self, shm_word_owner(atomic_load(&port->word)));
    SHM_KILL_POINT(port_unkeep);
    shm_box_unpersist(self, box);
    SHM_KILL_POINT(port_gone);
    change_state(port, life, SHM_PORT_GONE);
    return true;
}

/* The same on behalf of its dead owner. */
static void reap_port(struct shm_thread *self, uint32_t index, uint64_t life, shm_member_id owner)
{
    struct shm_port *port = shm_port_at(self->segment, index);
    struct shm_box box;
    if (shm_box_open_to_mend(self, &box, index, life)) {
        remove_port(self, &box, owner);
        shm_box_release(self, &box);
    } else if (!self->mending_failed && condemn(port, life, owner)) { /* its maker had not kept it yet */
        change_state(port, life, SHM_PORT_GONE);
    }
}

int shm_port_delete(struct shm_thread *self, struct shm_box *box)
{
    struct shm_port *port = port_of(self, box);
    shm_word word;
    do {
        if (own_word(self, box, &word) == SHM_NO_PORT)
            return SHM_NO_PORT;
        if (shm_port_is_default(self->segment, box->index))
            return SHM_INVALID;
    } while (!atomic_compare_exchange_strong(
        &port->word, &word, shm_word_make(shm_word_count(word), shm_word_owner(word), SHM_PORT_REMOVING)));
    remove_port(self, box, shm_member_id_self(self->member));
    return 0;
}

void shm_port_reap(struct shm_thread *self, uint32_t victim, shm_word word)
{
    for (uint32_t i = 0; i < shm_pool_ready(self->segment, SHM_TABLE_PORTS); i++) {
        struct shm_port *port = shm_port_at(self->segment, i);
        uint64_t life = atomic_load(&port->life);
        shm_word seen = atomic_load(&port->word);
        /* Also what was given to one who ended at that moment, by one who ended too: he is nobody any more. */
        if (shm_word_state(seen) == SHM_PORT_GONE || shm_member_lives(self->segment, shm_port_owner(seen)) ||
            !shm_still_dying(self->segment, victim, word))
            continue;
        reap_port(self, i, life, shm_port_owner(seen));
    }
}

/* ---- making ------------------------------------------------------------------------------------------------ */

int shm_port_make(struct shm_thread *self, struct shm_box *box, const struct shm_port_config *config)
{
    struct shm_segment *segment = self->segment;
    shm_member_id me = shm_member_id_self(self->member), owner = config->owner ? config->owner : me;
    if (!shm_member_lives(segment, owner))
        return SHM_PEER_DEAD;
    int status = make_ready(segment, SHM_TABLE_DESKS, owner & 0xFFFF);
    if (status)
        return status;
    status = shm_box_make(self, box, SHM_BOX_PORT, config->capacity, config->body_bytes, 0);
    if (status)
        return status;
    status = make_ready(segment, SHM_TABLE_PORTS, box->index);
    if (status) {
        shm_box_release(self, box);
        return status;
    }
    struct shm_port *port = port_of(self, box);
    SHM_KILL_POINT(port_make);
    atomic_store(&port->life, box->count);
    atomic_store(&port->received, 0);
    atomic_store(&port->site, config->site);
    atomic_store(&port->is_default, config->is_default);
    atomic_store(&port->local, atomic_fetch_add(&shm_desk_at(segment, owner & 0xFFFF)->next_local, 1) + 1);
    atomic_exchange(&port->word, word_of(me, SHM_PORT_MAKING));
    SHM_KILL_POINT(port_keep);
    status = shm_box_keep(self, box);
    if (status) {
        change_state(port, box->count, SHM_PORT_GONE);
        shm_box_release(self, box);
        return status;
    }
    SHM_KILL_POINT(port_open);
    atomic_exchange(&port->word, word_of(owner, SHM_PORT_DISABLED));
    SHM_KILL_POINT(port_opened);
    if (!shm_member_lives(segment, owner)) { /* P2 */
        remove_port(self, box, owner);
        shm_box_release(self, box);
        return SHM_PEER_DEAD;
    }
    return 0;
}

int shm_port_open(struct shm_thread *self, struct shm_box *box, shm_port_id id)
{
    struct shm_segment *segment = self->segment;
    uint32_t index = (uint32_t)(id & 0xFFFFF) - 1;
    if (!shm_port_is_there(segment, id))
        return SHM_NOT_FOUND;
    int status = shm_box_open(self, box, index, atomic_load(&shm_port_at(segment, index)->life));
    if (status == 0 && shm_port_id_of(index, box->count) != id) {
        shm_box_release(self, box);
        return SHM_NOT_FOUND;
    }
    return status;
}

bool shm_port_is_default(const struct shm_segment *segment, uint32_t index)
{
    const struct shm_port *port = shm_port_at(segment, index);
    uint32_t slot = shm_word_owner(atomic_load(&port->word));
    return atomic_load(&port->is_default) && shm_index_ok(segment, SHM_TABLE_DESKS, slot) &&
           atomic_load(&shm_desk_at(segment, slot)->default_port) ==
               shm_port_id_of(index, atomic_load(&port->life));
}

/* A port of `owner` that was made to be its default port, by one who has not said so yet, or died before; 0: none. */
static shm_port_id find_unnamed(const struct shm_segment *segment, shm_member_id owner)
{
    for (uint32_t i = 0; i < shm_pool_ready(segment, SHM_TABLE_PORTS); i++) {
        const struct shm_port *port = shm_port_at(segment, i);
        shm_word word = atomic_load(&port->word);
        shm_port_id id = shm_port_id_of(i, atomic_load(&port->life));
        if (shm_word_state(word) == SHM_PORT_DISABLED && shm_port_owner(word) == owner &&
            atomic_load(&port->is_default) && atomic_load(&port->word) == word &&
            shm_port_is_there(segment, id))
            return id;
    }
    return 0;
}

int shm_port_default(struct shm_thread *self, const struct shm_port_config *config, shm_port_id *id)
{
    struct shm_segment *segment = self->segment;
    struct shm_port_config made = *config;
    made.owner = config->owner ? config->owner : shm_member_id_self(self->member);
    made.is_default = true;
    int status = make_ready(segment, SHM_TABLE_DESKS, made.owner & 0xFFFF);
    if (status)
        return status;
    struct shm_desk *desk = shm_desk_at(segment, made.owner & 0xFFFF);
    for (;;) {
        uint64_t known = atomic_load(&desk->default_port);
        uint32_t index = (uint32_t)(known & 0xFFFFF) - 1;
        if (!shm_member_lives(segment, made.owner))
            return SHM_PEER_DEAD;
        if (shm_port_is_there(segment, known) &&
            shm_port_owner(atomic_load(&shm_port_at(segment, index)->word)) == made.owner) {
            *id = known;
            return 0;
        }
        shm_port_id unnamed = find_unnamed(segment, made.owner);
        if (unnamed) { /* gone or named meanwhile: the next turn finds that */
            SHM_KILL_POINT(port_name);
            atomic_compare_exchange_strong(&desk->default_port, &known, unnamed);
            continue;
        }
        struct shm_box box;
        status = shm_port_make(self, &box, &made);
        if (status)
            return status;
        SHM_KILL_POINT(port_default);
        *id = shm_port_id_of(box.index, box.count);
        bool mine = atomic_compare_exchange_strong(&desk->default_port, &known, *id) || known == *id;
        if (!mine)
            remove_port(self, &box, made.owner ? made.owner : shm_member_id_self(self->member));
        shm_box_release(self, &box);
        if (mine)
            return 0;
    }
}

/* ---- what its owner does with it --------------------------------------------------------------------------- */

static int change_own(struct shm_thread *self, struct shm_box *box, uint32_t state)
{
    struct shm_port *port = port_of(self, box);
    shm_word word;
    do {
        int status = own_word(self, box, &word);
        if (status)
            return status;
        SHM_KILL_POINT(port_enable);
    } while (!atomic_compare_exchange_strong(
        &port->word, &word, shm_word_make(shm_word_count(word), shm_word_owner(word), state)));
    SHM_KILL_POINT(port_enabled);
    tell_desk(self, self->slot);
    return 0;
}

int shm_port_enable(struct shm_thread *self, struct shm_box *box, uint32_t priority)
{
    struct shm_port *port = port_of(self, box);
    shm_word word;
    uint64_t seen;
    do {
        seen = atomic_load(&port->priority); /* P4 */
        int status = own_word(self, box, &word);
        if (status)
            return status;
        SHM_KILL_POINT(port_priority);
    } while (!atomic_compare_exchange_strong(&port->priority, &seen,
                                             ((seen >> 32) + 1) << 32 | priority)); /* P4 */
    int status = make_ready(self->segment, SHM_TABLE_DESKS, self->slot);
    if (status)
        return status;
    return change_own(self, box, SHM_PORT_ENABLED);
}

int shm_port_disable(struct shm_thread *self, struct shm_box *box)
{
    return change_own(self, box, SHM_PORT_DISABLED);
}

/* Who waits there may not receive any more: the handler's thread, or the others. */
static void tell_receivers(struct shm_thread *self, struct shm_box *box)
{
    struct shm_waitable receivers = shm_ring_receivers(box), watchers = shm_ring_watchers(box);
    shm_wake_all(self, &receivers);
    shm_wake_all(self, &watchers);
}

int shm_port_handle(struct shm_thread *self, struct shm_box *box, bool handled)
{
    struct shm_port *port = port_of(self, box);
    shm_word word;
    if (handled) {
        int status = change_own(self, box, SHM_PORT_HANDLED);
        if (status == 0)
            tell_receivers(self, box);
        return status;
    }
    int status = own_word(self, box, &word);
    if (status != SHM_INVALID)
        return status ? status : SHM_INVALID;
    if (!atomic_compare_exchange_strong(
            &port->word, &word, shm_word_make(shm_word_count(word), shm_word_owner(word), SHM_PORT_DISABLED)))
        return SHM_NO_PORT;
    tell_receivers(self, box);
    return 0;
}

/* ---- migration --------------------------------------------------------------------------------------------- */

/* No message is taken from the port afterwards, until shm_ring_let. */
static int hold_back(struct shm_thread *self, struct shm_box *box)
{
    uint64_t until = shm_clock_ns() + HOLD_LIMIT_NS;
    int status;
    while ((status = shm_ring_hold(self, box)) == SHM_BUSY && shm_clock_ns() < until)
        shm_clock_sleep(10000);
    return status;
}

int shm_port_migrate(struct shm_thread *self, struct shm_box *box, shm_member_id to, bool drops,
                     uint64_t *number, uint32_t *local)
{
    struct shm_segment *segment = self->segment;
    struct shm_port *port = port_of(self, box);
    shm_member_id me = shm_member_id_self(self->member);
    shm_word word, moving = word_of(me, SHM_PORT_MOVING);
    int status = own_word(self, box, &word);
    if (status)
        return status;
    if (to == me || shm_port_is_default(segment, box->index))
        return SHM_INVALID;
    if (!shm_member_lives(segment, to))
        return SHM_PEER_DEAD;
    status = make_ready(segment, SHM_TABLE_DESKS, to & 0xFFFF);
    if (status)
        return status;
    do {
        status = own_word(self, box, &word);
        if (status)
            return status;
        SHM_KILL_POINT(port_move);
    } while (!atomic_compare_exchange_strong(&port->word, &word, moving));
    status = hold_back(self, box);
    if (status) { /* a receiver was stopped in the midst, or the ring is none: it stays */
        atomic_compare_exchange_strong(&port->word, &moving, word);
        tell_desk(self, self->slot);
        return status;
    }
    SHM_KILL_POINT(port_empty);
    if (drops) {
        shm_ring_drop_all(self, box, shm_call_fail);
        shm_call_fail_port(self, box->index, false);
    }
    *number = atomic_load(&port->received) + 1;
    atomic_store(&port->received, 0);
    *local = atomic_fetch_add(&shm_desk_at(segment, to & 0xFFFF)->next_local, 1) + 1;
    atomic_store(&port->local, *local);
    SHM_KILL_POINT(port_commit);
    atomic_compare_exchange_strong(&port->word, &moving, word_of(to, SHM_PORT_DISABLED));
    shm_ring_let(self, box);
    SHM_KILL_POINT(port_moved);
    if (!shm_member_lives(segment, to)) { /* P2 */
        remove_port(self, box, to);
        if (shm_port_owner(atomic_load(&port->word)) == to) /* else he has given it away before */
            return SHM_PEER_DEAD;
    }
    tell_receivers(self, box);
    tell_desk(self, self->slot);
    return 0;
}

/* ---- receiving from any ------------------------------------------------------------------------------------ */

struct receiving_any {
    struct shm_box **boxes;
    uint32_t count, *which;
    uint64_t changes;
    struct shm_filter filter;
    struct shm_message *message;
};

/* Has this process given up its hold of one of them? Then the list is to be made anew: another hold of the same port may
 * be what is enabled. */
static bool is_out_of_date(const struct receiving_any *r)
{
    for (uint32_t i = 0; i < r->count; i++)
        if (atomic_load(&r->boxes[i]->released))
            return true;
    return false;
}

/* The port from which the next message is to come; its place among them, or count. */
static uint32_t choose(const struct shm_thread *self, const struct receiving_any *r)
{
    uint32_t found = r->count, urgent = UINT32_MAX;
    uint64_t oldest = UINT64_MAX;
    for (uint32_t i = 0; i < r->count; i++) {
        const struct shm_box *box = r->boxes[i];
        shm_word word;
        if (atomic_load(&box->released) || own_word(self, box, &word) ||
            shm_word_state(word) != SHM_PORT_ENABLED || !shm_ring_readable(self, box, &r->filter, 0))
            continue;
        uint32_t priority = (uint32_t)atomic_load(&port_of(self, box)->priority);
        uint64_t arrived = shm_ring_oldest_ns(self, box);
        if (found < r->count && (priority > urgent || (priority == urgent && arrived >= oldest)))
            continue;
        found = i;
        urgent = priority;
        oldest = arrived;
    }
    return found;
}

static int attempt_any(struct shm_thread *self, void *context)
{
    const struct receiving_any *r = context;
    const struct shm_desk *desk = shm_desk_at(self->segment, self->slot);
    /* A choice that finds nothing has dropped what nobody waits for any more. */
    for (uint32_t choices = 0, dropped = 0; choices < CHOICES && dropped < CHOICES + r->count;) {
        if (atomic_load(&desk->changes) != r->changes || is_out_of_date(r))
            return SHM_INTERRUPTED;
        uint64_t looked = 0;
        uint32_t i = choose(self, r);
        if (i == r->count)
            return SHM_EMPTY;
        self->port_mode = SHM_PORT_ANY;
        int status = shm_ring_receive(self, r->boxes[i], &r->filter, r->message, &looked);
        self->port_mode = SHM_PORT_DIRECT;
        *r->which = i;
        if (status == 0 || status == SHM_TOO_SMALL || status == SHM_CORRUPTED)
            return status;
        if (status == SHM_EMPTY)
            dropped++;
        else
            choices++;
    }
    return SHM_BUSY;
}

static bool ready_any(struct shm_thread *self, void *context)
{
    const struct receiving_any *r = context;
    return choose(self, r) < r->count || is_out_of_date(r) ||
           atomic_load(&shm_desk_at(self->segment, self->slot)->changes) != r->changes;
}

static int check_any(struct shm_thread *self, void *context)
{
    const struct receiving_any *r = context;
    int status = 0;
    for (uint32_t i = 0; i < r->count && status == 0; i++)
        status = shm_ring_check(self, r->boxes[i]);
    return status;
}

int shm_port_receive_any(struct shm_thread *self, struct shm_box **boxes, uint32_t count, uint64_t changes,
                         uint64_t too_large, struct shm_message *message, uint32_t *which,
                         uint64_t deadline_ns)
{
    struct receiving_any any = {
        .boxes = boxes, .count = count, .changes = changes, .message = message, .which = which};
    any.filter = SHM_FILTER_NONE;
    any.filter.too_large = too_large;
    int status = attempt_any(self, &any);
    if (deadline_ns == 0) {
        uint64_t until = shm_clock_ns() + BUSY_LIMIT_NS;
        while (status == SHM_BUSY && shm_clock_ns() < until)
            status = attempt_any(self, &any);
        return status == SHM_BUSY ? SHM_EMPTY : status;
    }
    if (status != SHM_EMPTY && status != SHM_BUSY)
        return status;
    struct shm_waitable waitable = shm_desk_waiters(self->segment, self->slot);
    struct shm_wait wait = {.waitables = &waitable,
                            .count = 1,
                            .deadline_ns = deadline_ns,
                            .attempt = attempt_any,
                            .ready = ready_any,
                            .slice = check_any,
                            .context = &any};
    return shm_wait(self, &wait);
}
