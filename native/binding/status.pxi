# Statuses to exceptions, seconds to deadlines.

cdef dict STATUS_ERRORS = {
    SHM_EMPTY: errors.MailboxEmpty,
    SHM_FULL: errors.MailboxFull,
    SHM_TIMEOUT: errors.Timeout,
    SHM_PEER_DEAD: errors.PeerDead,
    SHM_CLOSED: errors.Closed,
    SHM_NOT_FOUND: errors.NotFound,
    SHM_NAME_TAKEN: errors.NameTaken,
    SHM_INVALID: errors.InvalidArgument,
    SHM_TOO_LARGE: errors.TooLarge,
    SHM_LIMIT: errors.LimitExceeded,
    SHM_CORRUPTED: errors.Corrupted,
    SHM_LAYOUT: errors.LayoutMismatch,
    SHM_FORKED: errors.ForkedHandle,
    SHM_REFUSED: errors.Aborted,
    SHM_STARVED: errors.Starved,
    SHM_ABORTED: errors.Aborted,
    SHM_DEADLOCK: errors.Deadlock,
    SHM_TOO_SMALL: errors.BufferTooSmall,
    SHM_NO_PORT: errors.NoPort,
    SHM_BUSY: errors.ShmipcError,
    SHM_SYSTEM: errors.ShmipcError,
}


cdef object status_error(int status, str what):
    """The exception for a status; `what` names the object and what was tried."""
    if status == SHM_NO_MEMORY:
        return no_page(what)
    text = shm_status_text(status).decode()
    return STATUS_ERRORS.get(status, errors.ShmipcError)(f"{what}: {text}")


cdef int refuse(int status, str what) except -1:
    raise status_error(status, what)


cdef object no_page(str what):
    """OutOfMemory of a table that could not grow: it asks /dev/shm for pages, no limit of ours is reached."""
    free_bytes = 0
    try:
        v = os.statvfs("/dev/shm")
        free_bytes = v.f_bavail * v.f_frsize
    except OSError:
        pass
    return errors.OutOfMemory(
        f"{what}: a page of shared memory is needed, {free_bytes} bytes are free; make /dev/shm larger",
        needed=4096, free=free_bytes)


cdef object out_of_memory(Member member, uint64_t needed):
    cdef shm_arena_counts s
    shm_arena_statistics(&member.segment, &s)
    free_bytes = s.limit_bytes - s.reserved_bytes if s.limit_bytes > s.reserved_bytes else 0
    try:
        v = os.statvfs("/dev/shm")
        free_bytes = min(free_bytes, v.f_bavail * v.f_frsize)
    except OSError:
        pass
    hint = "raise memory_limit, or make /dev/shm larger"
    cdef uint64_t left = shm_cgroup_free(NULL)
    if left < free_bytes:
        free_bytes = left
        hint = "raise the memory limit of the control group (/dev/shm counts there)"
    return errors.OutOfMemory(
        f"{needed} bytes of shared memory are needed, {free_bytes} are free (limit {s.limit_bytes}); {hint}",
        needed=needed, free=free_bytes)


cdef uint64_t deadline_of(object timeout) except? 1:
    """Absolute nanoseconds: for ever for None, 0 for 0."""
    cdef double seconds
    if timeout is None:
        return SHM_FOREVER
    if isinstance(timeout, bool):
        raise TypeError("timeout must be a number of seconds or None, not bool")
    if type(timeout) is not float and not isinstance(timeout, (int, float)):
        try:
            timeout = timeout.__float__()
        except AttributeError:
            raise TypeError(f"timeout must be a number of seconds or None, not {type(timeout).__name__}") from None
    try:
        seconds = timeout
    except OverflowError:  # an int that no float can hold
        seconds = 1e300 if timeout > 0 else -1
    if isnan(seconds) or seconds < 0:
        raise errors.InvalidArgument(f"timeout is {timeout}; it must be at least 0 seconds, or None to wait")
    if seconds == 0:
        return 0
    if seconds > 1e9:
        return SHM_FOREVER
    return shm_clock_ns() + <uint64_t>ceil(seconds * 1e9)


cdef uint64_t span_of(str what, object seconds) except? 1:
    """Nanoseconds, at least as long."""
    if seconds is None:
        raise TypeError(f"{what} must be a number of seconds, not None")
    if deadline_of(seconds) == 0:
        return 0
    return <uint64_t>ceil(float(min(seconds, 1e9)) * 1e9)


cdef object cause_tuple(uint64_t cause):
    """(reason, exit code, signal) of an exit word."""
    cdef uint32_t reason = (cause >> 16) & 0xF, status = cause & 0xFFFF
    if reason == SHM_EXIT_UNKNOWN or reason >= len(REASONS):
        return "unknown", None, None
    if status & 0x7F:
        return REASONS[reason], None, <int>(status & 0x7F)
    return REASONS[reason], <int>(status >> 8), None


cdef object cause_of(Member member, uint64_t id):
    """The same of that life; waits up to half a second for what its reaper is about to learn."""
    cdef uint64_t cause
    member.inside += 1
    with nogil:
        cause = shm_reap_cause(&member.segment, id)
    member.inside -= 1
    return cause_tuple(cause)


cdef object hint_of(Member member, uint64_t id, str reason, object signal):
    """What else may explain that end, None: nothing. Found out once for each life, when it is first asked for."""
    if reason != "signal" or signal != 9:
        return None
    hint = member.hints.get(id)
    if hint is None:
        hint = oom.HINT if oom.kills.claim() else ""
        while len(member.hints) >= 1024:
            member.hints.pop(next(iter(member.hints)))
        member.hints[id] = hint
    return hint or None


cdef object service_of(Member member, uint64_t call):
    """What the one who died in the service of this call ran, None: he has not said, or it is forgotten."""
    cdef char what[33]
    if shm_look_service(&member.segment, call, what):
        return text_of(what, 33)
    return None


cdef object peer_dead(Member member, uint64_t id, str what, object served=None, object service=None):
    reason, exitcode, signal = cause_of(member, id)
    how = reason if reason != "unknown" else "nobody knows how"
    if signal is not None:
        how += f", signal {signal}"
    elif exitcode is not None:
        how += f", exit code {exitcode}"
    hint = hint_of(member, id, reason, signal)
    text = f"{what}: the process has ended ({how})"
    if service is not None:
        text += f" while it ran {service}"
    if hint is not None:
        text += f"; {hint}"
    return errors.PeerDead(text, reason=reason, exitcode=exitcode, signal=signal, served=served, service=service, hint=hint)
