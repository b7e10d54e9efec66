# Descriptors of our own, each made and kept in one step.

cdef extern from "<fcntl.h>" nogil:
    enum:
        F_DUPFD_CLOEXEC, O_CLOEXEC
    int open_again "open"(const char *path, int flags)
    int fcntl_number "fcntl"(int fd, int command, int least)

cdef extern from "<sys/socket.h>" nogil:
    enum:
        MSG_DONTWAIT, MSG_NOSIGNAL
    ssize_t socket_recv "recv"(int fd, void *into, size_t len, int flags)
    ssize_t socket_send "send"(int fd, const void *content, size_t len, int flags)

cdef extern from "<unistd.h>" nogil:
    int close_number "close"(int fd)


cdef int fail_of_system() except -1:
    raise OSError(errno, os.strerror(errno))


@cython.final
cdef class Duplicate:
    """See _native.pyi. A signal handler that raises behind its making finds no number that nobody closes."""
    cdef readonly int number

    def __cinit__(self, int number, int flags=-1):
        cdef bytes path = b"/proc/self/fd/%d" % number
        self.number = -1
        if flags < 0:
            self.number = fcntl_number(number, F_DUPFD_CLOEXEC, 0)
        else:
            self.number = open_again(path, flags | O_CLOEXEC)
        if self.number < 0:
            fail_of_system()

    def __dealloc__(self):
        if self.number >= 0:
            close_number(self.number)

    def close(self):
        cdef int number = self.number
        self.number = -1
        if number >= 0 and close_number(number):
            fail_of_system()

    def receive(self, Py_ssize_t size):
        body = PyBytes_FromStringAndSize(NULL, size)
        cdef void *into = PyBytes_AS_STRING(body)
        cdef ssize_t count
        with nogil:
            count = socket_recv(self.number, into, size, MSG_DONTWAIT)
        if count < 0:
            fail_of_system()
        return body if count == size else body[:count]

    def send(self, content):
        cdef Py_buffer view
        cdef ssize_t count
        PyObject_GetBuffer(content, &view, PyBUF_SIMPLE)
        try:
            with nogil:
                count = socket_send(self.number, view.buf, view.len, MSG_DONTWAIT | MSG_NOSIGNAL)
            if count < 0:
                fail_of_system()
        finally:
            PyBuffer_Release(&view)
        return count
