/* The namespace of a system. */
#ifndef SHM_NAMES_H
#define SHM_NAMES_H

#include "transport/mailbox.h"

struct shm_named {
    uint32_t kind;
    uint32_t object;
    uint64_t life;
};

/* Give `name` (1 to 64 bytes) to an object of this member: 0, NAME_TAKEN, LIMIT, NO_MEMORY, INVALID. The name of
 * an actor goes with its member; that of a mailbox or bus with that. */
int shm_name_serve(struct shm_thread *self, const char *name, const struct shm_named *named);
int shm_name_lookup(struct shm_thread *self, const char *name, struct shm_named *named);
/* Take a name away: 0 or NOT_FOUND; REFUSED: it is another actor's, and given by another who lives. */
int shm_name_withdraw(struct shm_thread *self, const char *name);
/* The name of an object, if any. */
bool shm_name_of(struct shm_thread *self, uint32_t kind, uint32_t object, uint64_t life, char *name);

/* A mailbox or bus, in the life `count`, is gone: its names go. */
void shm_name_drop_box(struct shm_thread *self, uint32_t index, uint64_t count);
/* For reap: names of the victim, and claims it left half made. */
void shm_name_reap(struct shm_thread *self, uint32_t victim, shm_word word);

#endif
