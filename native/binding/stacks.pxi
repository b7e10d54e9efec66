# The stacks of this process, for whoever asks at its door; see stacks.h.

cdef extern from "stacks.h":
    void shm_stacks_tell(int connection) noexcept nogil
    int shm_stacks_open() nogil
    void shm_stacks_registered() nogil
    bint shm_stacks_are_ours() nogil
    void shm_stacks_close() nogil
    bint shm_stacks_busy() nogil
    void shm_stacks_forked() nogil

cdef extern from *:
    """
    static void shm_stacks_set_look(PyObject *(*look)(void)) { shm_stacks_look = look; }
    """
    void shm_stacks_set_look(object (*look)()) nogil


cdef object look_at_stacks():
    """In the form that faulthandler has; no source is read, and no lock is taken."""
    threads = dict(threading._active)
    lines = []
    for number, frame in sys._current_frames().items():
        thread = threads.get(number)
        name = f" [{thread.name}]" if thread is not None else ""
        lines.append(f"Thread 0x{number:016x}{name} (most recent call first):")
        while frame is not None:
            code = frame.f_code
            lines.append(f'  File "{code.co_filename}", line {frame.f_lineno} in {code.co_name}')
            frame = frame.f_back
        lines.append("")
    return "\n".join(lines).encode("utf-8", "replace")


shm_stacks_set_look(look_at_stacks)


cdef int open_stacks() except -1:
    cdef int file = shm_stacks_open()
    if file < 0:
        return 0
    try:
        faulthandler.register(_signal.SIGURG, file=file, all_threads=True, chain=False)
        shm_stacks_registered()
    except (OSError, RuntimeError, ValueError):
        shm_stacks_close()
    return 0


cdef int close_stacks() except -1:
    """The last system is left."""
    if len(open_members):
        return 0
    if shm_stacks_are_ours():
        faulthandler.unregister(_signal.SIGURG)
    shm_stacks_close()
    return 0


cdef int wait_for_visitors() except -1:
    """Nobody comes any more; those who are here are told, for the interpreter may end next."""
    cdef int waited = 0
    while shm_stacks_busy() and waited < 2000:
        with nogil:
            shm_clock_sleep(1000000)
        waited += 1
    return 0
