/* Groups: one address of many ports (layout.h: struct shm_group). Who sends to a group reads its members and sends to
 * one of them, or to all. A group lives until the last who has it open closes it or ends, or until it is destroyed. */
#ifndef SHM_GROUP_H
#define SHM_GROUP_H

#include "transport/port.h"

/* A group as a process has it open: it stays mapped and typed while `lease` is held. */
struct shm_group_view {
    struct shm_group *group;
    uint32_t index;
    uint64_t count; /* of the record's word */
    shm_lease_index lease;
    uint32_t block;
};

/* A new group, into which may insert who knows `key`: 0, NO_MEMORY, LIMIT. */
int shm_group_make(struct shm_thread *self, struct shm_group_view *view, uint64_t key);
/* Open group `index` in the life `count`: 0, NOT_FOUND, BUSY, CORRUPTED. */
int shm_group_open(struct shm_thread *self, struct shm_group_view *view, uint32_t index, uint64_t count);
void shm_group_release(struct shm_thread *self, struct shm_group_view *view);
/* End the group for everybody; its name is free: 0, CLOSED, REFUSED (another key). Who has it open can do it again, should
 * whoever does it die meanwhile. */
int shm_group_destroy(struct shm_thread *self, struct shm_group_view *view, uint64_t key);
bool shm_group_is_closed(const struct shm_group_view *view);

/* A member more; 0 also when it is one: 0, REFUSED (another key), NOT_FOUND (there is no such port), LIMIT, CLOSED. */
int shm_group_insert(struct shm_thread *self, struct shm_group_view *view, uint64_t key, shm_port_id port);
/* A member less: 0, REFUSED, NOT_FOUND (it is none), CLOSED. */
int shm_group_remove(struct shm_thread *self, struct shm_group_view *view, uint64_t key, shm_port_id port);
/* The members that can be sent to, each once, in the order of their places; `ports` has room for SHM_GROUP_PORTS. */
uint32_t shm_group_members(const struct shm_thread *self, const struct shm_group_view *view,
                           shm_port_id *ports);
/* A number that grows: whose turn it is. */
uint64_t shm_group_turn(struct shm_group_view *view);

/* A port is going: no group has it any more. */
void shm_group_forget(struct shm_thread *self, shm_port_id port);
/* The block of a group goes: its name and the record. */
void shm_group_drop(struct shm_thread *self, uint32_t index, uint32_t block);

#endif
