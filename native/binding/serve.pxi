# Serving: what a loop does with each call, without a Message for it. An actor's method calls, a pool's tasks.

cdef extern from "Python.h":
    object PyObject_Call(object callable, object args, PyObject *kwargs)
    void Py_XDECREF(PyObject *o)

cdef enum:
    BREATH = 64  # calls after which other threads of the process get the GIL, should no handler have given it up


cdef Message message_of(Member member, shm_message *m, object body):
    """A received message whose body was read."""
    cdef Message message = Message.__new__(Message)
    message.member = member
    message.number = m.header >> 61
    message.tag = m.header & SHM_TAG_MASK or None
    message.sender_id = m.sender
    message.flags = m.flags
    message.call = m.call
    message.until = m.deadline_ns
    message.body = body
    message.is_error = m.told == SHM_TOLD_REPLY and m.cause
    message.box, message.life = own_index(member)
    return message


cdef Message coming(Member member, shm_message *m, object body):
    """A message that the loop in Python serves."""
    cdef Message message = message_of(member, m, body)
    note(message)
    return message


cdef int note_name(Member member, uint64_t call, object name) except -1:
    """Say that this thread serves a call by what has this name."""
    cdef Py_ssize_t size = 0
    cdef const char *text = PyUnicode_AsUTF8AndSize(name, &size)
    if can_act(member):
        shm_serving_begin(context(member), call, text, size)
    return 0


cdef object name_of_function(object function):
    name = getattr(function, "__qualname__", None)
    return name if type(name) is str else type(function).__name__


cdef int answer_served(Member member, shm_message *m, object value, object fail) except -1:
    """Reply with a value, or with the error of one that does not pickle; a caller that left is no error."""
    try:
        answer(member, m.call, m.sender, value, -1)
    except (errors.Aborted, errors.PeerDead) as error:
        if shm_call_is_open(&member.segment, m.call, member.c.slot):  # it was the value's own
            fail(message_of(member, m, None), error)
    except SystemExit:
        raise
    except BaseException as error:
        fail(message_of(member, m, None), error)
    return 0


cdef int breathe(uint32_t *served) except -1:
    """Between two calls: signal handlers run, and now and then other threads."""
    PyErr_CheckSignals()
    served[0] += 1
    if served[0] % BREATH == 0:
        with nogil:
            pass
    return 0


cdef object plain_part(Member member, shm_message *m, unsigned char *copy):
    """Copy a plain body from where it was received; False: it is another."""
    if m.format != PLAIN or m.lease or m.told or m.len_bytes > PLAIN_BYTES:
        return False
    memcpy(copy, m.body, m.len_bytes)
    return True


cdef int check_kind(Member member, shm_message *m) except -1:
    if m.header >> 61 >= <uint64_t>len(kinds):
        if m.lease:
            release_later(member, m.lease - 1)
        raise UnreadableBody(f"a message of kind {m.header >> 61}")
    return 0


def serve_calls(Box box, instance, dict known, deferred, fail):
    """Serve method calls of `instance` until something else comes: that message; or None, when one was deferred. `known` are
    its public methods, each name with itself as value; fail(message, error) answers with an error."""
    cdef shm_message m
    cdef shm_filter f
    cdef uint64_t deadline = SHM_FOREVER
    cdef unsigned char copy[PLAIN_BYTES]
    cdef PyObject *found
    cdef PyObject *arguments
    cdef PyObject *keywords
    cdef Member member = box.member
    cdef shm_thread *t
    cdef uint32_t served = 0
    cdef tuple args
    set_filter(&f, ANYTHING, -1, ANYTHING)
    last = failed = None  # whose name this thread's place shows
    while not deferred:
        breathe(&served)
        t = box.use()
        shm_serving_end(t)
        shm_serve_end(t)
        if box.fetch(&f, &m, None, &deadline, deferred, True):
            return None
        check_kind(member, &m)
        found = arguments = keywords = NULL
        args = kwargs = None
        if m.call and m.flags == F_METHOD and plain_part(member, &m, copy):
            try:
                plain_get_call(copy, m.len_bytes, known, &found, &arguments, &keywords)
            except Exception as error:
                answer_error(member, m.call, m.sender, error)
                continue
            if found == NULL:
                return coming(member, &m, plain_get(copy, m.len_bytes))
            name = <object>found
            args = <tuple>arguments
            Py_XDECREF(arguments)
            if keywords != NULL:
                kwargs = <object>keywords
                Py_XDECREF(keywords)
        else:
            body = body_of(member, &m, True)
            if body is GONE:
                continue
            if not (m.call and m.flags == F_METHOD and (<tuple>body)[0] in known):
                return coming(member, &m, body)
            name, args, kwargs = <tuple>body
            body = None
        if can_act(member):
            shm_serve_begin(context(member), m.call, m.deadline_ns)
        if name is last:
            if can_act(member):
                shm_serving_again(context(member), m.call)
        else:
            note_name(member, m.call, name)
            last = name
        try:
            value = PyObject_Call(getattr(instance, name), args, keywords if kwargs is None else <PyObject *>kwargs)
        except SystemExit:
            raise
        except BaseException as error:
            failed = error
        args = kwargs = None  # who is answered can count on it: its arrays are not held here any more
        if failed is None:
            answer_served(member, &m, value, fail)
            value = None  # it may hold arrays
        else:
            fail(message_of(member, &m, None), failed)
            failed = None
    return None


def serve_tasks(Box own, Box tasks, instance, dict known, deferred, fail):
    """Serve a pool's tasks until something else comes: that message; or None, when one was deferred. `known`
    are the functions by their heads, see runtime/tasks.py; `instance`, unless None, is each task's first argument."""
    cdef shm_message m
    cdef shm_box *boxes[2]
    cdef uint32_t which = 0, served = 0
    cdef unsigned char copy[PLAIN_BYTES]
    cdef Member member = own.member
    cdef shm_thread *t
    cdef int status
    cdef tuple args
    boxes[0], boxes[1] = &own.c, &tasks.c
    last = failed = None  # whose name this thread's place shows
    while not deferred:
        breathe(&served)
        t = own.use()
        tasks.use()
        shm_serving_end(t)
        shm_serve_end(t)
        status = shm_box_receive_any(t, boxes, 2, &m, &which, 0)
        if status == SHM_EMPTY or status == SHM_BUSY:
            own.go_in()
            tasks.go_in()
            with nogil:
                status = shm_box_receive_any(t, boxes, 2, &m, &which, SHM_FOREVER)
            own.come_out(t)
            tasks.come_out(t)
        if status == SHM_INTERRUPTED:
            raise_interrupt()
            continue
        if status == SHM_ABORTED:
            continue  # it served nothing
        if status:
            refuse(status, "a receive")
        if m.call and shm_meeting_accept(t, &m) != SHM_OK:
            if m.lease:
                shm_lease_recycle(t, m.lease - 1)
            continue
        check_kind(member, &m)
        if m.call and m.flags == F_TASK and plain_part(member, &m, copy):
            try:
                got = plain_get(copy, m.len_bytes)
            except Exception as error:
                answer_error(member, m.call, m.sender, error)
                continue
        else:
            got = body_of(member, &m, True)
            if got is GONE:
                continue
        if not (m.call and m.flags == F_TASK):
            return coming(member, &m, got)
        head, items, kwargs, chunk = got
        function = known.get(head)
        if function is None or chunk is not None:
            return coming(member, &m, got)
        args = items if instance is None else (instance, *items)
        got = items = None
        if can_act(member):
            shm_serve_begin(context(member), m.call, m.deadline_ns)
        if function is last:
            if can_act(member):
                shm_serving_again(context(member), m.call)
        else:
            note_name(member, m.call, name_of_function(function))
            last = function
        try:
            value = PyObject_Call(function, args, <PyObject *>kwargs if kwargs else NULL)
        except SystemExit:
            raise
        except BaseException as error:
            failed = error
        args = kwargs = None
        if failed is None:
            answer_served(member, &m, value, fail)
            value = None
        else:
            fail(message_of(member, &m, None), failed)
            failed = None
        function = None
    return None
