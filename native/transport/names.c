#include "transport/names.h"

#include <string.h>

#include "base/clock.h"
#include "base/killpoint.h"
#include "base/status.h"

static uint64_t hash_of(const char *name)
{
    uint64_t hash = UINT64_C(1469598103934665603); /* FNV-1a */
    for (; *name; name++)
        hash = (hash ^ (unsigned char)*name) * UINT64_C(1099511628211);
    return hash;
}

/* Does what the entry names still exist? */
static bool is_valid(struct shm_thread *self, const struct shm_name_record *entry)
{
    if (entry->kind == SHM_NAME_ACTOR)
        return shm_member_lives(self->segment, entry->life);
    uint32_t object = atomic_load(&entry->object);
    if (!shm_index_ok(self->segment, SHM_TABLE_BOXES, object))
        return false;
    shm_word word = atomic_load(&shm_box_at(self->segment, object)->word);
    return shm_word_count(word) == entry->life && shm_word_state(word) == SHM_BOX_OPEN;
}

static void write_name(struct shm_name_record *entry, const char *name)
{
    uint64_t words[SHM_NAME_BYTES / 8] = {0};
    memcpy(words, name, strlen(name));
    for (int i = 0; i < SHM_NAME_BYTES / 8; i++)
        atomic_store_explicit(&entry->name[i], words[i], memory_order_release);
}

/* A NUL ends it, whatever is read while it changes. */
static void read_name(const struct shm_name_record *entry, char *name)
{
    uint64_t words[SHM_NAME_BYTES / 8];
    for (int i = 0; i < SHM_NAME_BYTES / 8; i++)
        words[i] = atomic_load_explicit(&entry->name[i], memory_order_acquire);
    memcpy(name, words, SHM_NAME_BYTES);
    name[SHM_NAME_BYTES - 1] = 0;
}

static bool is_named(const struct shm_name_record *entry, const char *name, uint64_t hash)
{
    char its[SHM_NAME_BYTES];
    if (entry->hash != hash)
        return false;
    read_name(entry, its);
    return strcmp(its, name) == 0;
}

static void free_entry(struct shm_name_record *entry, shm_word word)
{
    atomic_compare_exchange_strong(&entry->word, &word, shm_word_next(word, SHM_NOBODY, SHM_NAME_FREE));
}

/* A rival for the name of entry `mine`, in state at least TENTATIVE; its word, and its index. */
static bool find_rival(struct shm_thread *self, uint32_t mine, const char *name, uint64_t hash,
                       uint32_t *index, shm_word *word)
{
    for (uint32_t i = 0; i < shm_pool_ready(self->segment, SHM_TABLE_NAMES); i++) {
        struct shm_name_record *entry = shm_name_at(self->segment, i);
        *word = atomic_load(&entry->word);
        if (i == mine || shm_word_state(*word) < SHM_NAME_TENTATIVE || !is_named(entry, name, hash))
            continue;
        bool valid = is_valid(self, entry);
        if (atomic_load(&entry->word) != *word) {
            i--; /* it changed while we read it */
            continue;
        }
        if (!valid) {
            free_entry(entry, *word);
            continue;
        }
        *index = i;
        return true;
    }
    return false;
}

int shm_name_serve(struct shm_thread *self, const char *name, const struct shm_named *named)
{
    size_t len = strnlen(name, SHM_NAME_BYTES);
    if (len == 0 || len > 64)
        return SHM_INVALID;
    uint64_t hash = hash_of(name);
    SHM_KILL_POINT(name_claim);
    int64_t mine = shm_pool_claim(self->segment, SHM_TABLE_NAMES, self->slot, SHM_NAME_CLAIMED);
    if (mine < 0)
        return (int)mine;
    struct shm_name_record *entry = shm_name_at(self->segment, (uint32_t)mine);
    shm_word word = atomic_load(&entry->word);
    entry->kind = named->kind;
    entry->object = named->object;
    entry->life = named->life;
    entry->hash = hash;
    atomic_store(&entry->server, shm_member_id_self(self->member));
    write_name(entry, name);
    SHM_KILL_POINT(name_tentative);
    shm_word tentative = shm_word_make(shm_word_count(word), self->slot, SHM_NAME_TENTATIVE);
    atomic_exchange(&entry->word, tentative);
    uint32_t rival;
    shm_word seen;
    while (find_rival(self, (uint32_t)mine, name, hash, &rival, &seen)) {
        if (shm_word_state(seen) == SHM_NAME_READY || rival < (uint32_t)mine) {
            free_entry(entry, tentative);
            return SHM_NAME_TAKEN;
        }
        free_entry(shm_name_at(self->segment, rival),
                   seen); /* it stands behind us, unless it gets ready first */
    }
    SHM_KILL_POINT(name_ready);
    bool ready = atomic_compare_exchange_strong(
        &entry->word, &tentative, shm_word_make(shm_word_count(word), self->slot, SHM_NAME_READY));
    return ready ? 0 : SHM_NAME_TAKEN;
}

static struct shm_name_record *find(struct shm_thread *self, const char *name, shm_word *word)
{
    uint64_t hash = hash_of(name);
    for (uint32_t i = 0; i < shm_pool_ready(self->segment, SHM_TABLE_NAMES); i++) {
        struct shm_name_record *entry = shm_name_at(self->segment, i);
        *word = atomic_load(&entry->word);
        if (shm_word_state(*word) == SHM_NAME_READY && is_named(entry, name, hash) && is_valid(self, entry))
            return entry;
    }
    return NULL;
}

int shm_name_lookup(struct shm_thread *self, const char *name, struct shm_named *named)
{
    for (;;) {
        shm_word word;
        struct shm_name_record *entry = find(self, name, &word);
        if (!entry)
            return SHM_NOT_FOUND;
        *named = (struct shm_named){entry->kind, entry->object, entry->life};
        if (atomic_load(&entry->word) == word)
            return 0;
    }
}

int shm_name_withdraw(struct shm_thread *self, const char *name)
{
    shm_word word;
    struct shm_name_record *entry = find(self, name, &word);
    if (!entry)
        return SHM_NOT_FOUND;
    shm_member_id me = shm_member_id_self(self->member);
    if (entry->kind == SHM_NAME_ACTOR && entry->life != me && atomic_load(&entry->server) != me &&
        shm_member_lives(self->segment, atomic_load(&entry->server)))
        return SHM_REFUSED;
    free_entry(entry, word);
    return 0;
}

bool shm_name_of(struct shm_thread *self, uint32_t kind, uint32_t object, uint64_t life, char *name)
{
    for (uint32_t i = 0; i < shm_pool_ready(self->segment, SHM_TABLE_NAMES); i++) {
        struct shm_name_record *entry = shm_name_at(self->segment, i);
        shm_word word = atomic_load(&entry->word);
        if (shm_word_state(word) != SHM_NAME_READY || entry->kind != kind || entry->object != object ||
            entry->life != life)
            continue;
        read_name(entry, name);
        if (atomic_load(&entry->word) == word)
            return true;
    }
    return false;
}

void shm_name_drop_box(struct shm_thread *self, uint32_t index, uint64_t count)
{
    for (uint32_t i = 0; i < shm_pool_ready(self->segment, SHM_TABLE_NAMES); i++) {
        struct shm_name_record *entry = shm_name_at(self->segment, i);
        shm_word word = atomic_load(&entry->word);
        if (shm_word_state(word) == SHM_NAME_READY && entry->kind != SHM_NAME_ACTOR &&
            entry->object == index && entry->life == count)
            free_entry(entry, word);
    }
}

void shm_name_reap(struct shm_thread *self, uint32_t victim, shm_word word)
{
    for (uint32_t i = 0; i < shm_pool_ready(self->segment, SHM_TABLE_NAMES); i++) {
        struct shm_name_record *entry = shm_name_at(self->segment, i);
        shm_word seen = atomic_load(&entry->word);
        uint32_t state = shm_word_state(seen);
        if (state == SHM_NAME_FREE || !shm_still_dying(self->segment, victim, word))
            continue;
        if (state != SHM_NAME_READY) {
            if (shm_word_owner(seen) == victim)
                free_entry(entry, seen);
            continue;
        }
        /* The name of a mailbox or bus lives as long as that, whoever named it. */
        bool valid = entry->kind == SHM_NAME_ACTOR ? (entry->life & 0xFFFF) != victim && is_valid(self, entry)
                                                   : is_valid(self, entry);
        if (!valid)
            free_entry(entry, seen);
    }
}
