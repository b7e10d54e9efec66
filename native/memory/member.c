#define _GNU_SOURCE
#include "memory/member.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/killpoint.h"
#include "base/status.h"

#define JOIN_LIMIT_NS (30 * SHM_NS_PER_S)

#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif
#ifndef MADV_WIPEONFORK
#define MADV_WIPEONFORK 18
#endif

static uint64_t pid_namespace(void)
{
    struct stat st;
    return stat("/proc/self/ns/pid", &st) == 0 ? (uint64_t)st.st_ino : 0;
}

uint64_t shm_process_start_time(int pid)
{
    char path[40], text[512];
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    ssize_t len = read(fd, text, sizeof text - 1);
    close(fd);
    if (len <= 0)
        return 0;
    text[len] = 0;
    char *field = strrchr(text, ')'); /* the command may hold spaces and brackets */
    for (int n = 2; n < 22 && field; n++)
        field = strchr(field + 1, ' ');
    return field ? strtoull(field + 1, NULL, 10) : 0;
}

/* Has the whole process ended? A first thread that is a zombie does not say so: others may go on. */
static bool process_has_ended(int pid)
{
    int fd = (int)syscall(SYS_pidfd_open, pid, 0);
    if (fd < 0)
        return errno == ESRCH;
    struct pollfd polled = {.fd = fd, .events = POLLIN};
    bool ended = poll(&polled, 1, 0) == 1;
    close(fd);
    return ended;
}

bool shm_process_lives(int pid, uint64_t start_time)
{
    return pid > 0 && shm_process_start_time(pid) == start_time && !process_has_ended(pid);
}

bool shm_process_status(int pidfd, uint32_t *wait_status)
{
    struct {
        uint64_t mask, cgroup;
        uint32_t ids[11];
        int32_t exit_code;
    } info = {.mask = 8 /* PIDFD_INFO_EXIT */};
    _Static_assert(sizeof info == 64, "the first version of struct pidfd_info");
    if (ioctl(pidfd, _IOWR(0xFF, 11, char[64]), &info) != 0 || !(info.mask & 8))
        return false;
    *wait_status = (uint32_t)info.exit_code & 0xFFFF;
    return true;
}

/* ---- life locks -------------------------------------------------------------------------------------------- */

/* Locks of forked children that have no member slot lie here, behind those of all members. */
#define SPARE_LOCKS (UINT64_C(1) << 32)
#define SPARE_TRIES (UINT64_C(1) << 16)

static struct flock life_of(uint64_t byte)
{
    return (struct flock){.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = (off_t)byte, .l_len = 1};
}

static bool take_life_lock(int fd, uint64_t byte)
{
    struct flock lock = life_of(byte);
    return fcntl(fd, F_OFD_SETLK, &lock) == 0;
}

/* By word, not by closing: a forked child that has not run yet has a copy of the descriptor. */
static void release_life_lock(int fd, uint64_t byte)
{
    struct flock lock = life_of(byte);
    lock.l_type = F_UNLCK;
    fcntl(fd, F_OFD_SETLK, &lock);
}

static bool life_is_locked(int fd, uint64_t byte)
{
    struct flock lock = life_of(byte);
    return fcntl(fd, F_OFD_GETLK, &lock) != 0 || lock.l_type != F_UNLCK;
}

/* Is the number still that of the life-lock file that was opened at the join? */
static bool has_life_fd(const struct shm_member *self)
{
    struct stat st;
    return self->life_fd >= 0 && fstat(self->life_fd, &st) == 0 && st.st_dev == self->life_device &&
           st.st_ino == self->life_inode;
}

/* Asked of the file that has the name now, through a descriptor of its own: that of the life lock may have been closed
 * behind our back, and its number be another's. */
static bool is_locked(const struct shm_member *self, uint64_t byte)
{
    if (!self->life_path)
        return true;
    int fd = open(self->life_path, O_RDWR | O_CLOEXEC);
    if (fd < 0) /* deleted by hand: everybody's lock is on the old file, if that can still be asked */
        return !has_life_fd(self) || life_is_locked(self->life_fd, byte);
    bool locked = life_is_locked(fd, byte);
    close(fd);
    return locked;
}

bool shm_member_is_locked(const struct shm_member *self, uint32_t slot)
{
    return is_locked(self, slot);
}

uint64_t shm_life_take_spare(int fd)
{
    for (uint64_t i = 0; fd >= 0 && i < SPARE_TRIES; i++)
        if (take_life_lock(fd, SPARE_LOCKS + i))
            return SPARE_LOCKS + i;
    return UINT64_MAX;
}

bool shm_life_spare_is_locked(const struct shm_member *self, uint64_t byte)
{
    return byte == UINT64_MAX || is_locked(self, byte);
}

bool shm_life_any_locked(int fd, uint32_t max_members)
{
    struct flock lock = life_of(0);
    lock.l_len = (off_t)max_members + 1;
    return fcntl(fd, F_OFD_GETLK, &lock) != 0 || lock.l_type != F_UNLCK;
}

int shm_life_take(const char *life_path, uint32_t slot)
{
    int fd = life_path ? open(life_path, O_RDWR | O_CLOEXEC) : -1;
    if (fd >= 0 && !take_life_lock(fd, slot)) {
        close(fd);
        return -1;
    }
    return fd;
}

void shm_member_check_lock(struct shm_member *self, int *fd)
{
    if (!self->life_path)
        return;
    struct stat ours, named;
    bool lost = fstat(*fd, &ours) != 0 || stat(self->life_path, &named) != 0 || ours.st_ino != named.st_ino ||
                ours.st_dev != named.st_dev;
    if (!lost && take_life_lock(*fd, self->slot))
        return; /* taking a lock one already has changes nothing */
    int taken = shm_life_take(self->life_path, self->slot);
    if (taken >= 0)
        *fd = taken; /* the old number may be another's file by now: it is not closed */
}

/* ---- liveness ---------------------------------------------------------------------------------------------- */

bool shm_member_lives(const struct shm_segment *segment, shm_member_id id)
{
    uint32_t slot = id & 0xFFFF;
    if (slot == 0 || !shm_index_ok(segment, SHM_TABLE_MEMBERS, slot))
        return false;
    shm_word word = atomic_load(&shm_member_at(segment, slot)->word);
    uint32_t state = shm_word_state(word);
    return shm_word_count(word) == id >> 16 && (state == SHM_MEMBER_LIVE || state == SHM_MEMBER_JOINING);
}

/* Does any task of `pid` map the file of the segment? What cannot be read counts as mapping. */
static bool maps_segment(int pid, uint64_t segment_inode)
{
    char path[64], line[512];
    snprintf(path, sizeof path, "/proc/%d/maps", pid);
    FILE *maps = fopen(path, "re");
    if (!maps)
        return errno != ENOENT && errno != ESRCH;
    bool found = false, any = false;
    while (!found && fgets(line, sizeof line, maps)) {
        unsigned long long inode = 0;
        unsigned int major = 0, minor = 0;
        any = true;
        if (sscanf(line, "%*s %*s %*s %x:%x %llu", &major, &minor, &inode) == 3)
            found = inode == segment_inode;
    }
    if (ferror(maps))
        found = true;
    fclose(maps);
    (void)any;
    return found;
}

/* What the operating system says about the process of a member record. */
static bool process_is_dead(struct shm_member *self, uint32_t slot, const struct shm_member_record *record,
                            bool joins)
{
    int pid = atomic_load(&record->pid);
    bool locked = shm_member_is_locked(self, slot);
    /* The lock is inherited by those that it forks, who have the arrays too; who has not said its pid never ran. */
    if (record->kind == SHM_KIND_FORK && (locked || pid <= 0))
        return !locked;
    if (record->pid_namespace != shm_member_at(self->segment, self->slot)->pid_namespace) {
        if (locked)
            return false;
        struct timespec pause = {.tv_sec = 2};
        nanosleep(&pause, NULL);
        return !shm_member_is_locked(self, slot);
    }
    if (kill(pid, 0) != 0 && errno == ESRCH)
        return true;
    uint64_t start = shm_process_start_time(pid);
    if (start == 0)
        return kill(pid, 0) != 0; /* gone; or nothing can be read here, which proves nothing */
    if (start != record->start_time || process_has_ended(pid))
        return true;
    if (locked || joins) /* launched and not here yet: it has no lock and maps nothing */
        return false;
    return !maps_segment(pid, self->segment->inode) && !shm_member_is_locked(self, slot);
}

/* A slot was claimed, and not yet described: a moment of its claimer, or his death. A claimer that is a member is
 * answered for by his own reap; of any other we only know how long ago he was first seen here. */
static bool claim_is_abandoned(struct shm_member *self, uint32_t slot, struct shm_member_record *record,
                               shm_word word)
{
    uint64_t now = shm_clock_ns() / 1000000, seen = atomic_load(&record->suspected);
    uint64_t mask = (UINT64_C(1) << 48) - 1, tag = shm_word_count(word) << 48;
    if (shm_word_owner(word))
        return false;
    if ((seen & ~mask) != tag) {
        atomic_compare_exchange_strong(&record->suspected, &seen, tag | (now & mask));
        return false;
    }
    return now - (seen & mask) > JOIN_LIMIT_NS / 1000000 &&
           !(self->life_path && shm_member_is_locked(self, slot));
}

bool shm_member_is_dead(struct shm_member *self, uint32_t slot)
{
    struct shm_member_record *record = shm_member_at(self->segment, slot);
    shm_word word = atomic_load(&record->word);
    switch (shm_word_state(word)) {
    case SHM_MEMBER_DYING:
        if (shm_word_owner(word) != slot)
            return true;
        break; /* leaves by its own hand, and may die at that */
    case SHM_MEMBER_JOINING: {
        if (atomic_load(&record->described) != shm_word_count(word))
            return claim_is_abandoned(self, slot, record, word);
        /* Until it is launched its creator answers for it; then its process does. */
        shm_member_id creator = record->creator;
        if (atomic_load(&record->pid) > 0 && record->start_time)
            break;
        if (creator)
            return !shm_member_lives(self->segment, creator);
        /* Claimed by its own process, which then writes who it is and takes its lock: soon, or it died there. */
        return record->joined_ns && shm_clock_ns() - record->joined_ns > JOIN_LIMIT_NS &&
               !shm_member_is_locked(self, slot);
    }
    case SHM_MEMBER_LIVE:
        break;
    default:
        return false;
    }
    if (slot == self->slot)
        return false;
    if (self->is_dead)
        return self->is_dead(self, slot);
    bool dead = process_is_dead(self, slot, record, shm_word_state(word) == SHM_MEMBER_JOINING);
    return dead && atomic_load(&record->word) == word;
}

bool shm_member_has_ended(struct shm_member *self, uint32_t slot)
{
    const struct shm_member_record *record = shm_member_at(self->segment, slot);
    uint64_t generation = shm_word_count(atomic_load(&record->word));
    if (atomic_load(&record->ending) != generation + 1)
        return true; /* nobody was early */
    if (self->is_dead)
        return self->is_dead(self, slot);
    if (record->pid_namespace != shm_member_at(self->segment, self->slot)->pid_namespace)
        return !shm_member_is_locked(self, slot);
    int pid = atomic_load(&record->pid);
    if (shm_process_start_time(pid) == 0) /* ended; or no descriptor is free to look */
        return kill(pid, 0) != 0 && errno == ESRCH;
    return !shm_process_lives(pid, atomic_load(&record->start_time));
}

/* ---- joining ----------------------------------------------------------------------------------------------- */

static void describe(struct shm_segment *segment, struct shm_member_record *record, uint32_t kind,
                     const char *name, shm_member_id creator)
{
    record->joined_ns = shm_clock_ns();
    atomic_store(&record->pid, 0);
    record->start_time = 0;
    record->pid_namespace = pid_namespace();
    record->kind = kind;
    record->creator = creator;
    record->identity = atomic_fetch_add(&segment->header->next_identity, 1);
    atomic_store(&record->box, 0);
    atomic_store(&record->completions, 0);
    atomic_store(&record->failed_casts, 0);
    atomic_store(&record->main, 0);
    SHM_NOTE(&record->loop, 0);
    SHM_NOTE(&record->door, 0);
    SHM_NOTE(&record->alone, 0);
    atomic_store(&record->ending, 0);
    atomic_store(&record->vigil, 0);
    snprintf(record->name, sizeof record->name, "%.64s", name ? name : "");
    if (!creator) { /* claimed by its own process, which answers for it from now on */
        record->start_time = shm_process_start_time(getpid());
        atomic_store(&record->pid, (int32_t)getpid());
    }
    atomic_store(&record->described, shm_word_count(atomic_load(&record->word)));
}

int64_t shm_member_prepare(struct shm_segment *segment, struct shm_member *creator, uint32_t kind,
                           const char *name)
{
    SHM_KILL_POINT(member_claim);
    uint32_t claimer = creator ? creator->slot : 0;
    int64_t slot = shm_pool_claim(segment, SHM_TABLE_MEMBERS, claimer, SHM_MEMBER_JOINING);
    if (slot < 0)
        return slot;
    struct shm_member_record *record = shm_member_at(segment, (uint32_t)slot);
    describe(segment, record, kind, name, creator ? shm_member_id_self(creator) : 0);
    return (int64_t)shm_member_id_of(atomic_load(&record->word), (uint32_t)slot);
}

static struct shm_member_record *joining(struct shm_segment *segment, shm_member_id id, shm_word *word)
{
    uint32_t slot = id & 0xFFFF;
    if (slot == 0 || !shm_index_ok(segment, SHM_TABLE_MEMBERS, slot))
        return NULL;
    struct shm_member_record *record = shm_member_at(segment, slot);
    *word = atomic_load(&record->word);
    return shm_word_count(*word) == id >> 16 && shm_word_state(*word) == SHM_MEMBER_JOINING ? record : NULL;
}

void shm_member_launched(struct shm_segment *segment, shm_member_id id, int pid)
{
    shm_word word;
    struct shm_member_record *record = joining(segment, id, &word);
    int32_t none = 0;
    if (!record || atomic_load(&record->pid))
        return;
    uint64_t start = shm_process_start_time(pid);
    record->start_time = start ? start : 1; /* gone already: no process has this start time */
    atomic_compare_exchange_strong(&record->pid, &none, pid);
}

void shm_member_forget(struct shm_segment *segment, shm_member_id id)
{
    shm_word word;
    struct shm_member_record *record = joining(segment, id, &word);
    if (record) /* the reaper does the rest, and whoever prepared it is still there to call it */
        atomic_compare_exchange_strong(
            &record->word, &word,
            shm_word_make(shm_word_count(word), shm_word_owner(word), SHM_MEMBER_DYING));
}

static void *make_fork_page(void)
{
    unsigned char *page =
        mmap(NULL, SHM_PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED)
        return NULL;
    if (madvise(page, SHM_PAGE_BYTES, MADV_WIPEONFORK) != 0) {
        munmap(page, SHM_PAGE_BYTES);
        return NULL;
    }
    page[0] = 1;
    return page;
}

int shm_member_join(struct shm_member *member, struct shm_segment *segment, shm_member_id id, uint32_t kind,
                    const char *name, const char *life_path)
{
    *member = (struct shm_member){.segment = segment, .life_fd = -1};
    if (life_path) {
        member->life_fd = open(life_path, O_RDWR | O_CLOEXEC);
        if (member->life_fd < 0)
            return SHM_NOT_FOUND;
        member->life_path = strdup(life_path);
        struct stat st = {0};
        fstat(member->life_fd, &st);
        member->life_device = st.st_dev;
        member->life_inode = st.st_ino;
    }
    bool prepared = id != 0;
    if (!prepared) {
        int64_t claimed = shm_member_prepare(segment, NULL, kind, name);
        if (claimed < 0) {
            shm_member_dispose(member);
            return (int)claimed;
        }
        id = (shm_member_id)claimed;
    }
    shm_word word;
    struct shm_member_record *record = joining(segment, id, &word);
    member->slot = id & 0xFFFF;
    member->record = record;
    SHM_KILL_POINT(member_lock);
    if (!record) {
        shm_member_dispose(member);
        return SHM_PEER_DEAD;
    }
    /* A predecessor in this slot has been reaped, so nobody holds its lock but a forked child that is going. */
    if (life_path && !take_life_lock(member->life_fd, member->slot)) {
        shm_member_forget(segment, id);
        shm_member_dispose(member);
        return SHM_BUSY;
    }
    record->start_time = shm_process_start_time(getpid());
    record->pid_namespace = pid_namespace();
    atomic_store(&record->pid, (int32_t)getpid());
    member->word = shm_word_make(shm_word_count(word), shm_word_owner(word), SHM_MEMBER_LIVE);
    member->fork_page = make_fork_page();
    pthread_mutex_init(&member->lock, NULL);
    SHM_KILL_POINT(member_live);
    if (!atomic_compare_exchange_strong(&record->word, &word, member->word)) {
        shm_member_dispose(member);
        return SHM_PEER_DEAD;
    }
    atomic_fetch_add(&segment->header->member_changes, 1);
    return 0;
}

void shm_member_abandon(struct shm_member *member)
{
    shm_word word = member->word;
    atomic_compare_exchange_strong(&member->record->word, &word,
                                   shm_word_make(shm_word_count(word), SHM_NOBODY, SHM_MEMBER_DYING));
    shm_member_dispose(member);
}

void shm_member_dispose(struct shm_member *member)
{
    if (has_life_fd(member)) {
        release_life_lock(member->life_fd, member->slot);
        close(member->life_fd);
    }
    if (member->fork_page)
        munmap(member->fork_page, SHM_PAGE_BYTES);
    free(member->life_path);
    free(member->free_cells);
    free(member->stuck);
    free(member->lent);
    free(member->chunks);
    *member = (struct shm_member){.life_fd = -1};
}

void shm_member_forked(struct shm_member *member)
{
    if (has_life_fd(member))
        close(member->life_fd); /* else the parent's lock would outlive it here */
    member->life_fd = -1;
    atomic_store(&member->closed, 1);
}

/* ---- cause of an end --------------------------------------------------------------------------------------- */

static void say(_Atomic uint64_t *at, shm_member_id id, uint32_t reason, uint32_t status)
{
    uint64_t generation = id >> 16 & SHM_COUNT_MASK;
    uint64_t old = atomic_load(at);
    while (shm_count_difference(generation, old >> 20) > 0 || (old >> 20 == 0 && generation == 0))
        if (atomic_compare_exchange_weak(at, &old,
                                         generation << 20 | (reason & 0xF) << 16 | (status & 0xFFFF)))
            return;
}

void shm_member_say_status(struct shm_segment *segment, shm_member_id id, uint32_t reason, uint32_t status)
{
    if (shm_index_ok(segment, SHM_TABLE_MEMBERS, id & 0xFFFF))
        say(&shm_member_at(segment, id & 0xFFFF)->exit_status, id, reason, status);
}

void shm_member_say_reason(struct shm_segment *segment, shm_member_id id, uint32_t reason, uint32_t status)
{
    if (shm_index_ok(segment, SHM_TABLE_MEMBERS, id & 0xFFFF))
        say(&shm_member_at(segment, id & 0xFFFF)->exit_reason, id, reason, status);
}

/* How the end looked from outside counts, unless the process ended in order and had said why, or was killed by
 * someone who said so before. */
uint64_t shm_member_cause(const struct shm_segment *segment, shm_member_id id)
{
    uint64_t generation = id >> 16 & SHM_COUNT_MASK;
    if (!shm_index_ok(segment, SHM_TABLE_MEMBERS, id & 0xFFFF))
        return generation << 20;
    const struct shm_member_record *record = shm_member_at(segment, id & 0xFFFF);
    uint64_t status = atomic_load(&record->exit_status), reason = atomic_load(&record->exit_reason);
    bool has_status = status >> 20 == generation && status != 0,
         has_reason = reason >> 20 == generation && reason != 0;
    if (has_status && has_reason) {
        uint32_t seen = status >> 16 & 0xF, said = reason >> 16 & 0xF;
        bool agrees = said == SHM_EXIT_KILLED || said == SHM_EXIT_ORPHANED ? seen == SHM_EXIT_SIGNAL
                                                                           : seen != SHM_EXIT_SIGNAL;
        return agrees ? generation << 20 | (uint64_t)said << 16 | (status & 0xFFFF) : status;
    }
    return has_status ? status : has_reason ? reason : generation << 20;
}

uint32_t shm_member_undelivered(const struct shm_segment *segment, shm_member_id id)
{
    if (!shm_index_ok(segment, SHM_TABLE_MEMBERS, id & 0xFFFF))
        return 0;
    uint64_t field = atomic_load(&shm_member_at(segment, id & 0xFFFF)->undelivered);
    return field >> 32 == (id >> 16 & 0xFFFFFFFF) ? (uint32_t)field : 0;
}

/* ---- threads ----------------------------------------------------------------------------------------------- */

enum { SCRATCH_BYTES = 65536 };

int shm_thread_open(struct shm_thread *self, struct shm_member *member)
{
    *self = (struct shm_thread){.member = member, .segment = member->segment, .slot = member->slot};
    self->scratch = malloc(SCRATCH_BYTES);
    if (!self->scratch)
        return SHM_NO_MEMORY;
    self->scratch_bytes = SCRATCH_BYTES;
    int64_t index = shm_pool_claim(member->segment, SHM_TABLE_PLACES, member->slot, 1);
    if (index < 0) {
        free(self->scratch);
        *self = (struct shm_thread){0};
        return (int)index;
    }
    self->place = (uint32_t)index;
    self->at = shm_place_at(member->segment, self->place);
    self->may_spin = sysconf(_SC_NPROCESSORS_ONLN) > 1;
    self->spin_ns = SHM_SPIN_MAX_NS;
    /* Whoever had the place before may have died inside the semaphore. */
    sem_init(&self->at->semaphore, 1, 0);
    for (int i = 0; i < SHM_PLACE_FLIGHTS; i++)
        atomic_store(&self->at->flights[i].op, SHM_FLIGHT_NONE);
    atomic_store(&self->at->items_count, 0);
    atomic_store(&self->at->looked, 0);
    self->told_seen = atomic_load(&self->at->told);
    shm_serving_end(self);
    self->at->thread = (uint32_t)syscall(SYS_gettid);
    return 0;
}

void shm_thread_close(struct shm_thread *self)
{
    if (self->at) {
        if (self->holds && !atomic_load(&self->member->closed) && self->member->abandon)
            self->member->abandon(self);
        shm_word owner = atomic_load(&self->at->owner);
        if (shm_word_owner(owner) == self->slot && shm_word_state(owner) == 1)
            atomic_store(&self->at->owner, shm_word_next(owner, SHM_NOBODY, 0));
    }
    free(self->scratch);
    *self = (struct shm_thread){0};
}
