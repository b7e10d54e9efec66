# What is asked of a system from outside, and the kill points of the test build.


def segment_state(int fd):
    cdef shm_segment s
    cdef int copy = os.dup(fd)
    memset(&s, 0, sizeof(s))
    s.fd = -1
    cdef int status = shm_segment_attach(&s, copy)
    if status == SHM_OK:
        shm_segment_detach(&s)
        return "ready"
    os.close(copy)
    if status == SHM_BUSY:
        return "making" if os.fstat(fd).st_size else "empty"
    return {SHM_CLOSED: "closed", SHM_LAYOUT: "other-layout", SHM_CORRUPTED: "corrupted"}.get(status, "unreadable")


def segment_size(uint32_t max_members, uint64_t memory_limit):
    cdef shm_config config
    memset(&config, 0, sizeof(config))
    config.max_members = max_members
    config.memory_limit = memory_limit
    return shm_segment_size(&config)


cdef extern from *:
    """
    #include <fcntl.h>
    static int shm_life_range_locked(int fd, uint32_t from, uint32_t end)
    {
        struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = from, .l_len = (off_t)end - from};
        return from < end && (fcntl(fd, F_OFD_GETLK, &lock) != 0 || lock.l_type != F_UNLCK);
    }
    """
    bint life_range_locked "shm_life_range_locked"(int fd, uint32_t start, uint32_t end) nogil


cdef extern from *:
    """
    #include <linux/kcmp.h>
    #include <sys/syscall.h>
    #include <unistd.h>
    static long shm_same_file(int a, int b)
    {
        long pid = getpid();
        return syscall(SYS_kcmp, pid, pid, (long)KCMP_FILE, (long)a, (long)b);
    }
    """
    long same_file_number "shm_same_file"(int a, int b) nogil


def same_file(int a, int b):
    """Is one descriptor a duplicate of the other? None: this system does not say."""
    cdef long found = same_file_number(a, b)
    return None if found < 0 else found == 0


def life_locked(int fd, uint32_t max_members):
    return bool(shm_life_any_locked(fd, max_members))


def only_forks_locked(int fd, uint32_t max_members, int segment):
    """Are all life locks that are held those of forked children? They have what they inherited mapped, and need no
    file."""
    cdef shm_segment s
    cdef shm_member_record *r
    cdef uint32_t slot, start = 0
    cdef int copy = os.dup(segment)
    memset(&s, 0, sizeof(s))
    s.fd = -1
    if shm_segment_inspect(&s, copy):
        os.close(copy)
        return False
    others = False
    for slot in range(1, shm_pool_ready(&s, SHM_TABLE_MEMBERS)):
        r = shm_member_at(&s, slot)
        if shm_word_state(r.word) != SHM_MEMBER_FREE and r.kind == SHM_KIND_FORK:
            others = others or life_range_locked(fd, start, slot)
            start = slot + 1
    others = others or life_range_locked(fd, start, max_members + 1)
    shm_segment_detach(&s)
    return not others


def segment_members_alive(int fd):
    cdef shm_segment s
    cdef shm_member_record *r
    cdef uint32_t slot
    cdef int copy = os.dup(fd)
    memset(&s, 0, sizeof(s))
    s.fd = -1
    if shm_segment_inspect(&s, copy):
        os.close(copy)
        return False
    alive = False
    for slot in range(1, shm_pool_ready(&s, SHM_TABLE_MEMBERS)):
        r = shm_member_at(&s, slot)
        if shm_word_state(r.word) == SHM_MEMBER_FREE or r.kind == SHM_KIND_FORK or r.pid <= 0:
            continue
        alive = alive or shm_process_lives(r.pid, r.start_time)
    shm_segment_detach(&s)
    return alive


def process_start_time(int pid):
    return shm_process_start_time(pid)


def process_status(int pidfd):
    cdef uint32_t status = 0
    return status if shm_process_status(pidfd, &status) else None


def say_status(int fd, uint64_t id, str reason, uint32_t wait_status):
    cdef shm_segment s
    cdef int copy = os.dup(fd)
    memset(&s, 0, sizeof(s))
    s.fd = -1
    if shm_segment_inspect(&s, copy):
        os.close(copy)
        return
    shm_member_say_status(&s, id, REASONS.index(reason), wait_status)
    shm_segment_detach(&s)


def kill_point_arm(str name, unsigned after=1, int signal=9):
    cdef bytes text = name.encode()
    if shm_kill_point_arm(text, after, signal):
        raise errors.InvalidArgument(f"no kill point {name!r} in this build")


def kill_point_disarm():
    shm_kill_point_disarm()


def kill_point_passed(str name):
    cdef bytes text = name.encode()
    return shm_kill_point_passed(text)


cdef extern from "<sys/prctl.h>":
    enum:
        PR_SET_NAME, PR_SET_PDEATHSIG
    int prctl(int option, unsigned long argument) nogil


def set_title(bytes title not None):
    prctl(PR_SET_NAME, <unsigned long><uintptr_t>PyBytes_AS_STRING(title))


def end_with_parent(int number):
    prctl(PR_SET_PDEATHSIG, <unsigned long>number)


cdef enum:
    BEYOND_BYTES = 1 << 16       # what is so large is taken from behind all that malloc has in use
    LEAST_BYTES = 24
    MOST_FILLED_BYTES = 8 << 20


def fill_heap():
    """Take, for good, the places that are free between what malloc has in use, from large to small; how many bytes."""
    cdef size_t size = BEYOND_BYTES, filled = 0
    cdef char *end = <char *>malloc(BEYOND_BYTES)
    cdef char *found
    while size >= LEAST_BYTES and filled < MOST_FILLED_BYTES:
        found = <char *>malloc(size)
        if found != NULL and found < end and end - found < 1 << 30:
            filled += size
            continue
        free(found)
        size -= size // 8 if size > 1024 else 16
    free(end)
    return filled
