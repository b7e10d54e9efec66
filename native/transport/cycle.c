/* A circle of calls is found by one of those who wait on it, at the end of a slice.
 *
 *     my cell --addressee--> the thread that alone can answer --parked for--> its cell --addressee--> ... me
 *
 * "Alone can answer": a method call is answered by the thread of its actor's loop, and by no other. Any other call
 * to a process's own mailbox or to a port of its, or one that a process has taken, is answered by some thread of that
 * process: of a port with a handler by that one's. Its main
 * thread says at the end of each slice whether there is any other that runs Python, and for which wait that holds.
 *
 * No false alarm: all is read twice. A place whose word is the same both times was parked in one wait all the while,
 * and a cell whose word is the same was pending in one generation; so there was a moment, between the two readings,
 * at which every thread of the circle waited for the next. Each waits without a deadline: that moment lasts until
 * somebody from outside ends it. Who dies meanwhile is reaped, and his callers get PEER_DEAD.
 *
 * One breaks the circle: the thread whose wait began last, as a rule the call that closed it. The others see the same and
 * go on waiting for it.
 */
#include "transport/cycle.h"

#include "base/clock.h"
#include "transport/port.h"

enum { CYCLE_LIMIT = 256 };

/* One arrow of the circle: a pending cell, and the thread that its answer depends on. */
struct arrow {
    shm_word cell, member, owner, place; /* words */
    shm_word port; /* of one that the call was sent through and that nobody has taken it from */
    uint32_t flags, slot, at, next; /* `at`: index of the place; `next`: the cell it waits for */
    uint64_t since;
};

/* Is this the place of a thread of member `slot` that is parked for a reply, without a deadline? */
static bool is_blocked(const struct shm_thread *self, uint32_t index, struct arrow *arrow)
{
    struct shm_segment *segment = self->segment;
    if (!shm_index_ok(segment, SHM_TABLE_PLACES, index))
        return false;
    struct shm_place *place = shm_place_at(segment, index);
    arrow->at = index;
    arrow->owner = atomic_load(&place->owner);
    arrow->place = atomic_load(&place->word);
    if (shm_word_owner(arrow->owner) != arrow->slot || shm_word_state(arrow->owner) != 1 ||
        shm_word_state(arrow->place) != SHM_PLACE_ARMED || atomic_load(&place->items_count) != 1 ||
        atomic_load(&place->items[0].kind) != SHM_WAIT_CELL ||
        atomic_load(&place->waits_until) != SHM_FOREVER)
        return false;
    arrow->since = atomic_load(&place->waits_since);
    arrow->next = atomic_load(&place->items[0].object);
    if (!shm_index_ok(segment, SHM_TABLE_CHUNKS, arrow->next / SHM_CHUNK_CELLS))
        return false;
    shm_word chunk = atomic_load(&shm_chunk_at(segment, arrow->next / SHM_CHUNK_CELLS)->word);
    return shm_word_owner(chunk) == arrow->slot && shm_word_state(chunk) == 1 &&
           atomic_load(&shm_cell_at(segment, arrow->next)->waiter) == index + 1;
}

/* Was the call sent through a port from which only a thread of its owner that receives can take it? Then that is who the
 * arrow leads to. */
static bool is_of_port(const struct shm_segment *segment, const struct shm_cell *cell, struct arrow *arrow)
{
    uint32_t port = atomic_load(&cell->port);
    if (port == 0 || !shm_index_ok(segment, SHM_TABLE_PORTS, port - 1))
        return false;
    arrow->port = atomic_load(&shm_port_at(segment, port - 1)->word);
    arrow->slot = shm_word_owner(arrow->port);
    uint32_t state = shm_word_state(arrow->port);
    return state == SHM_PORT_DISABLED || state == SHM_PORT_ENABLED;
}

static bool follow(const struct shm_thread *self, uint32_t index, struct arrow *arrow)
{
    struct shm_segment *segment = self->segment;
    if (!shm_index_ok(segment, SHM_TABLE_CHUNKS, index / SHM_CHUNK_CELLS))
        return false;
    struct shm_cell *cell = shm_cell_at(segment, index);
    arrow->cell = atomic_load(&cell->word);
    arrow->slot = shm_word_owner(arrow->cell);
    arrow->port = 0;
    if (arrow->slot == SHM_NOBODY && !is_of_port(segment, cell, arrow))
        return false;
    if (!shm_cell_is_open(arrow->cell) || arrow->slot == SHM_NOBODY ||
        !shm_index_ok(segment, SHM_TABLE_MEMBERS, arrow->slot))
        return false;
    arrow->flags = atomic_load(&cell->flags);
    const struct shm_member_record *record = shm_member_at(segment, arrow->slot);
    arrow->member = atomic_load(&record->word);
    if (shm_word_state(arrow->member) != SHM_MEMBER_LIVE ||
        (arrow->port && shm_port_owner(arrow->port) != shm_member_id_of(arrow->member, arrow->slot)))
        return false;
    uint32_t loop = atomic_load(&record->loop);
    if (arrow->flags & SHM_CELL_METHOD && loop)
        return is_blocked(self, loop - 1, arrow);
    bool is_theirs = arrow->port || arrow->flags & SHM_CELL_OWN ||
                     atomic_load(&cell->served_by) >> 20 == shm_word_count(arrow->cell);
    uint64_t alone = atomic_load(&record->alone);
    return is_theirs && alone & 0xFFFFF && is_blocked(self, (uint32_t)(alone & 0xFFFFF) - 1, arrow) &&
           alone >> 20 == shm_word_count(arrow->place);
}

/* Nothing of the arrow has changed. */
static bool still(const struct shm_thread *self, uint32_t index, const struct arrow *seen)
{
    struct arrow now;
    return follow(self, index, &now) && now.cell == seen->cell && now.member == seen->member &&
           now.owner == seen->owner && now.place == seen->place && now.port == seen->port &&
           now.at == seen->at && now.next == seen->next;
}

uint32_t shm_cycle_find(struct shm_thread *self, shm_call_id call, shm_member_id *members, uint32_t room)
{
    struct arrow arrows[CYCLE_LIMIT];
    uint32_t mine = (uint32_t)(call >> 44), count = 0, cell = mine;
    do {
        if (count == CYCLE_LIMIT || count == room || !follow(self, cell, &arrows[count]))
            return 0;
        for (uint32_t i = 0; i < count; i++)
            if (arrows[i].at == arrows[count].at)
                return 0; /* a circle that this thread only waits for */
        cell = arrows[count].next;
    } while (arrows[count++].at != self->place);
    /* The last arrow leads to this thread. */
    const struct arrow *me = &arrows[count - 1];
    if (cell != mine || shm_word_count(arrows[0].cell) != (call & SHM_COUNT_MASK))
        return 0;
    for (uint32_t i = 0; i < count; i++)
        if (arrows[i].since > me->since || (arrows[i].since == me->since && arrows[i].at > me->at))
            return 0; /* that one parked later */
    for (uint32_t i = 0, from = mine; i < count; from = arrows[i++].next)
        if (!still(self, from, &arrows[i]))
            return 0;
    members[0] = shm_member_id_self(self->member);
    for (uint32_t i = 0; i < count; i++) {
        if (shm_member_is_dead(self->member, arrows[i].slot))
            return 0;
        if (i + 1 < count)
            members[i + 1] = shm_member_id_of(arrows[i].member, arrows[i].slot);
    }
    return count;
}
