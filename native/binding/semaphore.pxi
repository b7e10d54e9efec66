# Named semaphores of other programs.

from libc.errno cimport EINTR, ETIMEDOUT, errno
from posix.time cimport CLOCK_MONOTONIC, timespec

cdef extern from "<semaphore.h>" nogil:
    ctypedef struct sem_t:
        pass
    sem_t *SEM_FAILED
    sem_t *sem_open(const char *name, int flags)
    int sem_close(sem_t *semaphore)
    int sem_post(sem_t *semaphore)
    int sem_getvalue(sem_t *semaphore, int *value)
    int sem_clockwait(sem_t *semaphore, int clock, const timespec *until)


cdef class PosixSemaphore:
    """See _native.pyi."""

    cdef sem_t *at

    def __init__(self, str name):
        cdef bytes path = os.fsencode(name)
        cdef sem_t *found = sem_open(path, 0)
        if found == SEM_FAILED:
            raise OSError(errno, os.strerror(errno), name)
        self.close()
        self.at = found

    def __dealloc__(self):
        if self.at != NULL:
            sem_close(self.at)

    cdef sem_t *use(self) except NULL:
        if self.at == NULL:
            raise ValueError("the semaphore is closed")
        return self.at

    def acquire(self, double seconds):
        cdef sem_t *at = self.use()
        cdef timespec until
        cdef uint64_t deadline = shm_clock_ns() + <uint64_t>(max(seconds, 0.0) * 1e9)
        cdef int status, code
        until.tv_sec = deadline // 1000000000
        until.tv_nsec = deadline % 1000000000
        with nogil:
            status = sem_clockwait(at, CLOCK_MONOTONIC, &until)
            code = errno
        if status and code == EINTR:
            PyErr_CheckSignals()
        elif status and code != ETIMEDOUT:
            raise OSError(code, os.strerror(code))
        return status == 0

    def release(self):
        if sem_post(self.use()):
            raise OSError(errno, os.strerror(errno))

    @property
    def value(self):
        cdef int found = 0
        sem_getvalue(self.use(), &found)
        return found

    def close(self):
        if self.at != NULL:
            sem_close(self.at)
            self.at = NULL
