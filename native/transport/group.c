#include "transport/group.h"

#include <string.h>

#include "base/killpoint.h"
#include "base/status.h"
#include "transport/names.h"
#include "transport/record.h"

static struct shm_group *group_in(const struct shm_segment *segment, uint32_t block)
{
    return (struct shm_group *)(segment->base + shm_block_offset(segment, block));
}

/* ---- life -------------------------------------------------------------------------------------------------- */

int shm_group_make(struct shm_thread *self, struct shm_group_view *view, uint64_t key)
{
    struct shm_making made;
    int status = shm_record_begin(self, &made, sizeof(struct shm_group));
    if (status)
        return status;
    struct shm_group *group = group_in(self->segment, made.block);
    memset(group, 0, sizeof *group); /* a block's bytes are whatever its last user left */
    group->key = key;
    SHM_KILL_POINT(group_make);
    status = shm_record_claim(self, &made, SHM_BOX_GROUP, SHM_BLOCK_GROUP, shm_member_id_self(self->member),
                              &group->box, &group->box_count);
    if (status)
        return status;
    *view = (struct shm_group_view){
        .group = group, .index = made.index, .count = made.count, .lease = made.lease, .block = made.block};
    SHM_KILL_POINT(group_open);
    shm_record_open(self, &made);
    return 0;
}

int shm_group_open(struct shm_thread *self, struct shm_group_view *view, uint32_t index, uint64_t count)
{
    shm_lease_index lease;
    uint32_t block;
    int status = shm_block_pin(self, index, count, SHM_BLOCK_GROUP, &lease, &block);
    if (status)
        return status;
    *view = (struct shm_group_view){.group = group_in(self->segment, block),
                                    .index = index,
                                    .count = count,
                                    .lease = lease,
                                    .block = block};
    if (shm_block_class_bytes(block) >= sizeof(struct shm_group))
        return 0;
    shm_group_release(self, view);
    return SHM_CORRUPTED;
}

void shm_group_release(struct shm_thread *self, struct shm_group_view *view)
{
    if (view->group)
        shm_lease_release(self, view->lease);
    view->group = NULL;
}

bool shm_group_is_closed(const struct shm_group_view *view)
{
    return atomic_load(&view->group->closed) != 0;
}

/* May this be done to the group? 0, CLOSED, REFUSED. */
static int check(const struct shm_group_view *view, uint64_t key)
{
    if (shm_group_is_closed(view))
        return SHM_CLOSED;
    return SHM_ONCE(view->group->key) == key ? 0 : SHM_REFUSED;
}

int shm_group_destroy(struct shm_thread *self, struct shm_group_view *view, uint64_t key)
{
    int status = check(view, key);
    if (status)
        return status;
    struct shm_box_record *record = shm_box_at(self->segment, view->index);
    shm_word word = atomic_load(&record->word);
    /* The record first: whoever is killed after it leaves a name that is free, and a group that can be destroyed again. */
    SHM_KILL_POINT(group_close);
    if (shm_word_count(word) == view->count && shm_word_state(word) == SHM_BOX_OPEN)
        atomic_compare_exchange_strong(&record->word, &word,
                                       shm_word_make(view->count, shm_word_owner(word), SHM_BOX_CLOSED));
    SHM_KILL_POINT(group_unlisted);
    atomic_exchange(&view->group->closed, 1);
    SHM_KILL_POINT(group_closed);
    shm_name_drop_box(self, view->index, view->count); /* nobody finds it by its name since it is closed */
    return 0;
}

void shm_group_drop(struct shm_thread *self, uint32_t index, uint32_t block)
{
    struct shm_segment *segment = self->segment;
    if (!shm_index_ok(segment, SHM_TABLE_BOXES, index))
        return;
    uint64_t count = SHM_ONCE(group_in(segment, block)->box_count);
    shm_name_drop_box(self, index, count);
    struct shm_box_record *record = shm_box_at(segment, index);
    shm_word word = atomic_load(&record->word);
    if (shm_word_count(word) == count && atomic_load(&record->place_of_ring) == (uint64_t)block + 1)
        atomic_compare_exchange_strong(&record->word, &word, shm_word_make(count, SHM_NOBODY, SHM_BOX_FREE));
}

/* ---- members ----------------------------------------------------------------------------------------------- */

/* Take the port out of every place where it stands; was it in one? */
static bool take_out(struct shm_group *group, shm_port_id port)
{
    bool found = false;
    if (port == 0) /* an empty place */
        return false;
    for (uint32_t i = 0; i < SHM_GROUP_PORTS; i++) {
        uint64_t seen = port;
        if (atomic_load(&group->members[i]) != port)
            continue;
        SHM_KILL_POINT(group_remove);
        found |= atomic_compare_exchange_strong(&group->members[i], &seen, 0);
    }
    return found;
}

int shm_group_insert(struct shm_thread *self, struct shm_group_view *view, uint64_t key, shm_port_id port)
{
    struct shm_group *group = view->group;
    int status = check(view, key);
    if (status)
        return status;
    if (!shm_port_is_there(self->segment, port))
        return SHM_NOT_FOUND;
    uint32_t mine = SHM_GROUP_PORTS;
    for (uint32_t i = 0; i < SHM_GROUP_PORTS; i++)
        if (atomic_load(&group->members[i]) == port)
            return 0;
    for (uint32_t i = 0; i < SHM_GROUP_PORTS && mine == SHM_GROUP_PORTS; i++) {
        uint64_t empty = 0;
        if (atomic_load(&group->members[i]) != 0)
            continue;
        SHM_KILL_POINT(group_insert);
        if (atomic_compare_exchange_strong(&group->members[i], &empty, port)) /* P3 */
            mine = i;
    }
    if (mine == SHM_GROUP_PORTS)
        return SHM_LIMIT;
    SHM_KILL_POINT(group_inserted);
    uint64_t seen = port;
    for (uint32_t i = 0; i < mine; i++)
        if (atomic_load(&group->members[i]) == port) { /* another was inserting it too */
            atomic_compare_exchange_strong(&group->members[mine], &seen, 0);
            break;
        }
    if (!shm_port_is_there(self->segment, port)) {
        take_out(group, port);
        return SHM_NOT_FOUND;
    }
    return 0;
}

int shm_group_remove(struct shm_thread *self, struct shm_group_view *view, uint64_t key, shm_port_id port)
{
    (void)self;
    int status = check(view, key);
    if (status)
        return status;
    return take_out(view->group, port) ? 0 : SHM_NOT_FOUND;
}

uint32_t shm_group_members(const struct shm_thread *self, const struct shm_group_view *view,
                           shm_port_id *ports)
{
    uint32_t count = 0;
    for (uint32_t i = 0; i < SHM_GROUP_PORTS; i++) {
        shm_port_id port = atomic_load(&view->group->members[i]);
        bool known = port == 0 || !shm_port_is_there(self->segment, port);
        for (uint32_t n = 0; n < count && !known; n++)
            known = ports[n] == port;
        if (!known)
            ports[count++] = port;
    }
    return count;
}

uint64_t shm_group_turn(struct shm_group_view *view)
{
    return atomic_fetch_add(&view->group->turn, 1);
}

void shm_group_forget(struct shm_thread *self, shm_port_id port)
{
    struct shm_segment *segment = self->segment;
    for (uint32_t i = 0; i < shm_pool_ready(segment, SHM_TABLE_BOXES); i++) {
        struct shm_box_record *record = shm_box_at(segment, i);
        shm_word word = atomic_load(&record->word);
        struct shm_group_view view;
        if (shm_word_state(word) < SHM_BOX_OPEN || record->kind != SHM_BOX_GROUP)
            continue;
        int status = shm_group_open(self, &view, i, shm_word_count(word));
        if (status == 0) {
            take_out(view.group, port);
            shm_group_release(self, &view);
        } /* else who reads it sees that the port is gone; its place stays taken, until the group goes */
    }
}
