# Calls: one request, one reply cell, one outcome.

# Who waits for a future looks so often whether it can still come true.
cdef uint64_t LOOK_NS = 1000000000
cdef double FOLLOW = 0.1  # seconds
cdef object ERROR_TYPES = (errors.MailboxFull, errors.Timeout)


cdef object reply_value(Member member, shm_thread *t, uint64_t call, uint64_t addressee, bint *failed):
    """The value or the error of a call that is done; frees its cell. What interrupts the reading is raised."""
    cdef shm_reply r
    cdef int status = shm_call_read(t, call, &r)
    failed[0] = True
    if status:
        shm_call_free(t, call)
        return status_error(status, "a reply")
    if r.status:
        shm_call_free(t, call)
        if r.port:
            return port_failed(member, &r, call)
        if r.served and not shm_member_lives(&member.segment, r.replier):
            addressee = r.replier
        if r.status == SHM_CLOSED and (addressee == 0 or shm_member_lives(&member.segment, addressee)):
            return errors.Closed("the mailbox was closed before the call was taken")
        return peer_dead(member, addressee, "the call", r.served, service_of(member, call) if r.served else None)
    # What is inline is copied before the cell is freed, and before Python code runs.
    cdef object data
    cdef uint16_t format = r.format
    cdef unsigned char copy[SHM_CELL_INLINE]
    try:
        if r.lease == 0 and format == PLAIN:
            memcpy(copy, r.body, r.len_bytes)
            shm_call_free(t, call)
            value = plain_get(copy, r.len_bytes)
        elif r.lease == 0:
            data = PyBytes_FromStringAndSize(<const char *>r.body, r.len_bytes)
            shm_call_free(t, call)
            if format == BYTES:
                failed[0] = False
                return data
            if format == ERROR:
                return make_error(data)
            value = c_loads(data)
        else:
            shm_call_free(t, call)
            value = decode(member, format, r.body, r.len_bytes, r.lease)
            if format == ERROR:
                return make_error(value)
    except Exception as error:
        return make_error(error)
    failed[0] = False
    return value


cdef int discard(shm_thread *t, uint64_t call) except -1:
    """Nobody wants the outcome of a call any more: it is withdrawn; a reply that was first goes."""
    cdef shm_reply r
    if shm_call_cancel(t, call) or not shm_call_is_done(t.segment, call):
        return 0
    if shm_call_read(t, call, &r) == SHM_OK and r.lease:
        shm_lease_recycle(t, r.lease - 1)
    shm_call_free(t, call)
    return 0


cdef inline uint64_t key_of(uint64_t call):
    """Of a future: the call, its cell in the low bits. Generations are much the same, and would all hash alike."""
    return call << 20 | call >> 44


cdef inline int now_and_then(Member member) except -1:
    """Replies to futures that nobody asks for are not to pile up, nor calls that are over: ended every so many calls."""
    member.submits += 1
    if member.submits & 31 == 0 and member.futures:
        drain(member)
        if member.submits & 1023 == 0:
            expire(member)
    return 0


cdef shm_thread *open_call(Box box, uint32_t form, bint method, uint64_t *call, uint64_t deadline,
                           object timeout, object body=None) except NULL:
    """A reply cell. As many calls in flight as a process may have: who waits for the outcomes of his own futures until
    the deadline gets one when one comes free. `timeout`, `body`: what a Timeout says."""
    cdef int status
    cdef shm_thread *t = context(box.member)
    if box.c.owner == shm_member_id_self(&box.member.c) and box.kind() == SHM_BOX_ACTOR:
        raise errors.InvalidArgument("a call to oneself would never end; use send or cast")
    cdef uint32_t kind = form  # 0, SHM_CELL_ASYNC or SHM_CELL_LETTER
    if box.kind() == SHM_BOX_ACTOR:
        kind |= SHM_CELL_OWN | SHM_CELL_METHOD if method else SHM_CELL_OWN
    status = shm_call_open(t, box.c.owner, kind, call)
    if status == SHM_LIMIT and box.member.futures:
        try:
            while status == SHM_LIMIT and box.member.futures:
                expire(box.member)
                status = shm_call_open(context(box.member), box.c.owner, kind, call)
                if status != SHM_LIMIT:
                    break
                if deadline == 0:
                    if not drain(box.member):
                        break
                elif shm_clock_ns() >= deadline:
                    raise errors.Timeout(
                        f"no other call ended {within_words(timeout)}, and no more may be in flight", message=body)
                else:
                    wait_for_completions(box.member, min(deadline, shm_clock_ns() + LOOK_NS), None)
                t = context(box.member)
                check_abort(t)
                status = shm_call_open(t, box.c.owner, kind, call)
        finally:
            hand_on(box.member)
        t = context(box.member)
    if status == SHM_NO_MEMORY:
        raise out_of_memory(box.member, 16448)
    if status:
        refuse(status, "a call")
    if box.c.envelope_at:
        shm_call_through(t, call[0], box.c.index)
    return t


cdef inline void put_marks(shm_message *m, const shm_message *marks):
    m.source, m.group, m.annex, m.annex_bytes = marks.source, marks.group, marks.annex, marks.annex_bytes


cdef object call_box(Box box, object body, int flags, object timeout, uint64_t tag, Method method, tuple args,
                     dict kwargs, const shm_message *marks=NULL, bint nowait=False):
    """A call to its end, with a body, or of a method with its arguments. `marks`: see PortBox.mark. `nowait`: MailboxFull when
    there is no room now."""
    cdef shm_thread *t
    cdef shm_message m
    cdef unsigned char room[PLAIN_BYTES]
    cdef uint64_t call, until, deadline = deadline_of(timeout)
    cdef Member member = box.member
    cdef int status
    cdef bint failed
    if deadline == 0:
        raise errors.InvalidArgument("timeout is 0; a call needs time for an answer (use submit to poll)")
    t = box.use()
    check_abort(t)
    until = until_served(t)
    if until < deadline:
        deadline, timeout = until, None
    now_and_then(member)
    if method is None:
        kept = encode(member, body, &m, box.c.body_bytes, room, deadline)
    else:
        kept = encode_call(member, method, args, kwargs, &m, box.c.body_bytes, room, deadline)
    if marks != NULL:
        put_marks(&m, marks)
    elif box.c.envelope_at:
        (<PortBox>box).mark(&m, None, None)
    try:
        open_call(box, 0, flags == F_METHOD, &call, 0 if nowait else deadline, timeout)
    except BaseException:
        not_sent(member, &m)
        raise
    m.header = shm_header_make(SHM_KIND_CAST if flags == SHM_FLAG_MEETING else SHM_KIND_CALL, tag)
    m.call = call
    m.deadline_ns = deadline
    m.flags = flags
    try:
        box.deliver(&m, 0 if nowait else timeout, body if flags == SHM_FLAG_MEETING else None, 0 if nowait else deadline)
    except BaseException:
        if can_act(member):
            discard(context(member), call)
        raise
    shm_call_check(context(member), call, box.c.owner)
    while True:
        t = context(member)
        member.inside += 1
        with nogil:
            status = shm_call_wait(t, call, box.c.owner, deadline)
        member.inside -= 1
        if status == SHM_OK:
            break
        if status == SHM_CLOSED:
            raise errors.Closed("the system was closed while the call waited")
        if status == SHM_CORRUPTED:
            refuse(status, "a call")
        if status == SHM_DEADLOCK:
            error = deadlock(member, t)
            if can_act(member) and shm_call_cancel(context(member), call):
                raise error
            continue  # the reply was first, after all
        if status == SHM_ABORTED:
            if shm_call_cancel(t, call):
                raise_abort(t)
                raise errors.Aborted("the call was aborted")
            continue  # the reply was first: the abort is the next wait's
        if status == SHM_INTERRUPTED:
            try:
                raise_interrupt()
            except BaseException:
                if can_act(member):
                    discard(context(member), call)
                raise
            continue
        if shm_call_cancel(t, call):
            where = answerer(member, call, box.c.owner)
            if box.kind() != SHM_BOX_ACTOR:
                where += f"; it was sent to {describe_box(box)}"
            raise errors.Timeout(f"no reply {within_words(timeout)} from {where}")
        if not shm_call_is_sound(&member.segment, call):  # neither open nor done: what the cell holds is not ours
            refuse(SHM_CORRUPTED, "a call")
    value = reply_value(member, t, call, box.c.owner, &failed)
    if failed:
        try:
            raise value
        finally:
            value = None
    return value


cdef object not_met(Box box, str why):
    """Nobody took a message that was to be taken now: perhaps the addressee has ended."""
    if shm_box_is_dead(&box.member.segment, &box.c):
        return peer_dead(box.member, box.c.owner, "the owner of the mailbox")
    return errors.WouldBlock(why)


cdef int meet_now(Box box, object body, uint64_t tag) except -1:
    """A rendezvous with whoever waits on the mailbox at the moment; else nothing was sent, MailboxFull."""
    cdef shm_thread *t
    cdef shm_message m
    cdef unsigned char room[PLAIN_BYTES]
    cdef uint64_t call
    cdef Member member = box.member
    cdef int status
    cdef bint failed
    box.use()
    kept = encode(member, body, &m, box.c.body_bytes, room)
    try:
        t = open_call(box, 0, False, &call, 0, 0)
    except BaseException:
        not_sent(member, &m)
        raise
    m.header = shm_header_make(SHM_KIND_CAST, tag)
    m.call = call
    m.flags = SHM_FLAG_MEETING
    if not shm_box_is_closed(&box.c) and not shm_meeting_is_possible(&box.c):
        discard(t, call)
        not_sent(member, &m)
        raise not_met(box, "nobody waits for a message there")
    try:
        box.deliver(&m, 0, body, 0)
    except BaseException:
        if can_act(member):
            discard(context(member), call)
        raise
    shm_call_check(context(member), call, box.c.owner)
    while True:
        if not box.opened:
            if can_act(member):
                discard(context(member), call)
            raise errors.Closed("the mailbox was closed in this process meanwhile")
        t = context(member)
        box.go_in()
        shield_by(1)  # it is over in a moment
        with nogil:
            status = shm_meeting_try(t, &box.c, call)
        shield_by(-1)
        box.come_out(t)
        if status == SHM_INTERRUPTED:
            try:
                raise_interrupt()
            except BaseException:
                if can_act(member):
                    discard(context(member), call)
                raise
            continue
        if status == SHM_FULL:
            raise not_met(box, "who waited for a message there did not take it")
        if status:
            refuse(status, "a rendezvous")
        break
    value = reply_value(member, t, call, box.c.owner, &failed)
    if failed:
        raise value
    return 0


cdef object submit_box(Box box, object body, int flags, object timeout, uint64_t tag, Method method, tuple args,
                       dict kwargs, const shm_message *marks=NULL, bint nowait=False):
    """A call that a future stands for; arguments as of call_box. `nowait`: MailboxFull when there is no room now."""
    cdef shm_thread *t
    cdef shm_message m
    cdef unsigned char room[PLAIN_BYTES]
    cdef uint64_t call, until, limit
    cdef Member member = box.member
    cdef Future future = Future.__new__(Future)
    if timeout is not None:
        future.deadline = deadline_of(timeout)
        if future.deadline == 0:
            raise errors.InvalidArgument("timeout is 0; a call needs time for an answer")
    else:
        future.deadline = SHM_FOREVER
    limit = future.deadline
    until = until_served(box.use())
    if until < future.deadline:  # on this side only: what is served may be over before that, and this go on
        future.deadline, timeout = until, None
    now_and_then(member)
    if method is None:
        kept = encode(member, body, &m, box.c.body_bytes, room, future.deadline)
    else:
        kept = encode_call(member, method, args, kwargs, &m, box.c.body_bytes, room, future.deadline)
    if marks != NULL:
        put_marks(&m, marks)
    elif box.c.envelope_at:
        (<PortBox>box).mark(&m, None, None)
    try:
        t = open_call(box, SHM_CELL_ASYNC, flags == F_METHOD, &call, 0 if nowait else future.deadline, timeout)
    except BaseException:
        not_sent(member, &m)
        raise
    if limit != SHM_FOREVER:
        shm_call_limit(t, call, limit)
    m.header = shm_header_make(SHM_KIND_CALL, tag)
    m.call = call
    m.deadline_ns = limit
    m.flags = flags
    future.member = member
    future.call = call
    future.addressee = box.c.owner
    member.futures[key_of(call)] = future
    cdef int status = shm_box_try_send(t, &box.c, &m) if box.opened else SHM_CLOSED
    if status != SHM_OK:
        try:
            if status == SHM_FULL:
                drain(member)  # replies make room for requests, when their server waits for us
            box.deliver(&m, 0 if nowait else timeout, None, 0 if nowait else future.deadline)
        except BaseException:
            if can_act(member) and shm_call_cancel(context(member), call):
                member.futures.pop(key_of(call), None)
            raise
        t = context(member)
    shm_call_check(t, call, box.c.owner)
    return future


cdef int ask_box(Box box, object body, uint64_t tag, object timeout) except -1:
    """The request of a call whose answer is received like a message."""
    cdef shm_thread *t
    cdef shm_message m
    cdef unsigned char room[PLAIN_BYTES]
    cdef uint64_t call
    cdef Member member = box.member
    cdef uint64_t deadline = deadline_of(timeout)
    box.use()
    kept = encode(member, body, &m, box.c.body_bytes, room, deadline)
    try:
        t = open_call(box, SHM_CELL_LETTER, False, &call, deadline, timeout, body)
    except BaseException:
        not_sent(member, &m)
        raise
    shm_call_label(t, call, tag)
    m.header = shm_header_make(SHM_KIND_CALL, tag)
    m.call = call
    m.flags = 0
    try:
        box.deliver(&m, timeout, body, deadline)
    except BaseException:
        if can_act(member) and shm_letter_withdraw(context(member), call):
            discard(context(member), call)
        raise
    shm_call_check(context(member), call, box.c.owner)
    return 0


# ---- completion ------------------------------------------------------------------------------------------------

cdef extern from *:
    """
    /* Of a call that is done: the format of its reply when it can be read without running Python code, else -1. */
    static int shm_reply_quiet_format(const struct shm_segment *segment, shm_call_id call)
    {
        struct shm_cell *cell = shm_cell_at(segment, shm_call_cell(call));
        return shm_word_state(atomic_load(&cell->word)) == SHM_CELL_DONE && !atomic_load(&cell->lease) ? cell->format : -1;
    }
    /* Report calls once more that shm_call_finished has reported. */
    static void shm_call_again(const struct shm_segment *segment, const shm_call_id *calls, uint32_t count)
    {
        for (uint32_t i = 0; i < count; i++) {
            uint32_t cell = shm_call_cell(calls[i]);
            atomic_fetch_or(&shm_chunk_at(segment, cell / SHM_CHUNK_CELLS)->finished,
                            UINT64_C(1) << cell % SHM_CHUNK_CELLS);
        }
    }
    static _Thread_local int shm_code_depth;
    static int shm_code_enter(int by) { return shm_code_depth += by; }
    """
    int reply_quiet_format "shm_reply_quiet_format"(const shm_segment *segment, uint64_t call) nogil
    void report_again "shm_call_again"(const shm_segment *segment, const uint64_t *calls, uint32_t count) nogil
    int code_depth "shm_code_enter"(int by) nogil

cdef enum:
    DEEPEST = 8  # completions inside completions, after which a thread completes only what it waits for itself


cdef int drain(Member member, Future wanted=None) except -1:
    """Complete the futures of calls that are done; how many. Callbacks and unpickling are code of others, which may
    itself wait for futures, of this thread or of another. So before it runs this thread holds nothing back: the lead
    is given up, and the calls that it was told of are reported again."""
    cdef uint64_t calls[64]
    cdef uint64_t again
    cdef uint32_t n, i, room = 64
    cdef Future future
    cdef bint runs_code
    cdef int format, completed = 0
    cdef shm_thread *t = context(member)
    while True:
        while member.aside and code_depth(0) < DEEPEST:
            again = member.aside.pop()
            report_again(&member.segment, &again, 1)
        n = shm_call_finished(t, calls, room)
        runs_code = False
        for i in range(n):
            future = member.futures.get(key_of(calls[i]))
            if future is None:
                continue
            format = reply_quiet_format(&member.segment, calls[i])
            runs_code = future.callbacks is not None or not (format == PLAIN or format == BYTES)
            if runs_code:
                report_again(&member.segment, &calls[i + 1], n - i - 1)
                room = 1
                if code_depth(0) >= DEEPEST and future is not wanted:
                    member.aside.append(calls[i])
                    break
                give_up_lead(member)
            if member.futures.pop(key_of(calls[i]), None) is not None:
                complete_call(member, t, future)
            completed += 1
            if not can_act(member):
                return completed  # left meanwhile, which completes the others
            t = context(member)
            if runs_code:
                break
        if n < room and not runs_code:
            return completed


cdef int complete_call(Member member, shm_thread *t, Future future) except -1:
    """The call is done, and its future is no more among those that wait: it gets its outcome, whatever comes."""
    cdef bint failed
    trouble = None
    code_depth(1)
    future.reader = PyThread_get_thread_ident()
    try:
        value = reply_value(member, t, future.call, future.addressee, &failed)
    except BaseException as error:  # a signal handler's, for one
        trouble = error
        value, failed = errors.Aborted(f"the reply was lost: {type(error).__name__} interrupted its reading"), True
    future.reader = 0
    try:
        future.complete(value, failed)
    except BaseException as error:
        trouble = error
    code_depth(-1)
    if trouble is not None:
        raise trouble
    return 0


cdef int give_up_lead(Member member) except -1:
    """Before this thread runs code of others: who waits for the lead, takes it."""
    if member.leading and member.leader == PyThread_get_thread_ident():
        member.leading = 0
        member.leader_wants = None
        hand_on(member)
    return 0


cdef int follow(Member member, lock, uint64_t deadline, bint own) except -1:
    """Wait for the lock until the deadline; for a future of its own (`own`) also until this thread is aborted."""
    cdef double left
    cdef shm_thread *t
    while True:
        left = -1 if deadline == SHM_FOREVER else max(0.0, (<double>deadline - <double>shm_clock_ns()) / 1e9)
        if own and not 0 <= left <= FOLLOW:
            left = FOLLOW  # nobody wakes a follower for an abort
        if lock.acquire(True, left) or shm_clock_ns() >= deadline or not can_act(member):
            return 0
        t = context(member)
        if own and shm_abort_is_pending(t) and not shm_is_shielded(t):
            return 0


cdef int wait_for_completions(Member member, uint64_t deadline, Future wanted, bint watching=False) except -1:
    """Wait until some future was completed, one that is wanted is done, or the deadline passed. One thread waits for
    the member's finished calls; the others wait for it. Who will wait no more hands on, see hand_on(). `watching`: for
    the futures that somebody watches, so no longer than until the first of them is due."""
    cdef uint64_t pokes, turn
    cdef int status
    cdef unsigned long me = PyThread_get_thread_ident()
    cdef shm_thread *t = context(member)
    if member.leading and member.leader != me:
        lock = threading.Lock()
        lock.acquire()
        entry = (wanted, lock)
        member.followers.append(entry)
        if not (member.leading and (wanted is None or not wanted.is_done)):
            lock.release()
        if watching and member.due < deadline:
            deadline = member.due
        try:
            follow(member, lock, deadline, wanted is not None)
        finally:
            try:
                member.followers.remove(entry)
            except ValueError:
                pass
        return 0
    # A thread that leads already, and has come here from code that ran meanwhile, does not wait for itself.
    member.leads += 1
    turn = member.leading = member.leads
    member.leader = me
    member.leader_wants = None
    try:
        pokes = member.c.pokes
        if drain(member, wanted) and wanted is None:
            return 0
        t = context(member)
        if member.leading != turn or (wanted is not None and wanted.is_done):
            return 0
        if watching and member.due < deadline:
            deadline = member.due
        member.leader_wants = wanted
        member.asleep = True
        member.inside += 1
        with nogil:
            status = shm_call_wait_finished(t, pokes, deadline)
        member.inside -= 1
        if member.leading == turn:
            member.asleep = False
            member.leader_wants = None
        if status == SHM_INTERRUPTED:
            give_up_lead(member)
            raise_interrupt()
        if can_act(member):
            drain(member, wanted)
    finally:
        if member.leading == turn:
            member.leading = 0
            member.leader_wants = None
    return 0


cdef uint64_t lend_lead(Member member) except? 0:
    """A signal handler is about to run inside the wait of the thread that leads; its turn, or 0: it does not."""
    cdef uint64_t turn = member.leading
    if not turn or not member.asleep or member.leader != PyThread_get_thread_ident():
        return 0
    member.leading = 0
    member.asleep = False
    hand_on(member)
    return turn


cdef bint take_lead_back(Member member, uint64_t turn, object wanted, uint64_t completed) except -1:
    """After the handler; False: another leads, or something was completed, so the wait is over."""
    if member.leading or member.completed != completed:
        return False
    member.leading = turn
    member.leader = PyThread_get_thread_ident()
    member.leader_wants = wanted
    member.asleep = True
    return True


cdef int hand_on(Member member) except -1:
    """A thread waits for completions no more. When nobody leads, the first follower that still waits does."""
    if member.leading:
        return 0
    for wanted, lock in list(member.followers):
        if wanted is None or not (<Future>wanted).is_done:
            try:
                lock.release()
                return 0
            except RuntimeError:
                pass  # on its way already; should it not lead, it hands on
    return 0


cdef fail_futures(Member member, shm_thread *t):
    """Nobody completes these any more: the system is closed, and t its last context; or it is about to be."""
    cdef Future future
    cdef bint failed, leaving = member.c.closed
    trouble = None
    if not leaving:
        drain(member)
    for key, entry in list(member.futures.items()):
        future = entry
        if not leaving:
            if not can_act(member):
                break
            t = context(member)
        if member.futures.pop(key, None) is None:
            continue
        if not shm_call_cancel(t, future.call) and shm_call_is_done(&member.segment, future.call):
            value = reply_value(member, t, future.call, future.addressee, &failed)
        else:
            value, failed = errors.Closed("the system was closed before the call was answered"), True
        try:
            future.complete(value, failed)
        except BaseException as error:
            trouble = error
    if trouble is not None:
        raise trouble


def _drain_for_others(reference):
    """The thread that completes futures which are awaited, or have callbacks. While there is none it leaves the lead
    to those who wait for a result themselves."""
    cdef Member member
    while True:
        member = reference()
        if member is None or member.closed or member.forked:
            return
        wake = member.drainer_wake
        try:
            if member.watched > 0:
                wait_for_completions(member, shm_clock_ns() + 500000000, None, True)
                if member.due <= shm_clock_ns():
                    expire(member)
                wake = None
        except errors.ShmipcError:
            return
        except Exception:
            raise
        except BaseException:  # SystemExit, for one; there are other futures
            log.exception("a callback of a future, or the reading of its reply, ended in an exception")
            wake = None
        finally:
            if wake is not None:
                hand_on(member)
        member = None
        if wake is not None:
            wake.wait(1.0)
            wake.clear()


cdef expire(Member member):
    """Time out what is due, end what cannot end otherwise, and find out when the next watched future is due."""
    cdef Future future
    cdef uint64_t now = shm_clock_ns()
    cdef list late = []
    member.due = SHM_FOREVER
    for key, entry in list(member.futures.items()):
        future = entry
        if future.deadline <= now:
            late.append(future)
        elif member.futures.get(key) is future and not shm_call_is_sound(&member.segment, future.call):
            del member.futures[key]  # what its reply cell holds is no reply, nor a wait for one: it is left as it is
            future.complete(status_error(SHM_CORRUPTED, "a call"), True)
        elif future.callbacks is not None and future.deadline < member.due:
            member.due = future.deadline
    trouble = None
    for entry in late:
        try:
            (<Future>entry).time_out()
        except BaseException as error:
            trouble = error
    if trouble is not None:
        raise trouble


cdef int watch_until(Member member, uint64_t deadline) except -1:
    """A future is watched that is due then: whoever watches is not to sleep longer."""
    if deadline >= member.due:
        return 0
    member.due = deadline
    if member.asleep and member.leader_wants is None and can_act(member):
        shm_call_poke(context(member))
    for wanted, lock in list(member.followers):
        if wanted is None:
            try:
                lock.release()
            except RuntimeError:
                pass
    return 0


cdef start_drainer(Member member):
    if member.drainer_wake is None:
        wake = threading.Event()
        if member.drainer_wake is None:  # another thread may have been here meanwhile
            member.drainer_wake = wake
    member.drainer_wake.set()
    if member.drainer is None or not member.drainer.is_alive():
        member.drainer = threading.Thread(target=_drain_for_others, args=(weakref.ref(member),), daemon=True,
                                          name="shmipc completions")
        member.drainer.start()


import concurrent.futures as _concurrent
import logging as _logging

cdef object CancelledError = _concurrent.CancelledError
cdef object log = _logging.getLogger("shmipc")


cdef class Future:
    cdef Member member       # None: completed by set_result and set_exception
    cdef uint64_t call, addressee, deadline
    cdef bint is_done, failed, was_cancelled
    cdef object value
    cdef list callbacks
    cdef object lock         # for futures without a member
    cdef unsigned long reader  # the thread that reads the reply
    cdef object __weakref__

    def __init__(self):
        self.deadline = SHM_FOREVER

    cdef complete(self, value, bint failed):
        if self.is_done:
            return
        self.value = value
        self.failed = failed
        self.is_done = True
        if self.member is not None:
            self.member.completed += 1
        if self.lock is not None:
            self.lock.release()
        if self.member is not None and self.member.asleep and can_act(self.member) and (
                self.member.leader_wants is None or self.member.leader_wants is self):
            shm_call_poke(context(self.member))  # the leader does not see what another has drained
        if self.member is not None and self.member.followers:
            for wanted, lock in list(self.member.followers):
                if wanted is self or wanted is None:
                    try:
                        lock.release()
                    except RuntimeError:
                        pass
        if self.callbacks is not None:
            callbacks, self.callbacks = self.callbacks, None
            if self.member is not None:
                self.member.watched -= 1
            trouble = None
            for fn in callbacks:
                try:
                    self.run(fn)
                except BaseException as error:
                    trouble = error  # the others run all the same
            if trouble is not None:
                raise trouble

    cdef run(self, fn):
        try:
            fn(self)
        except Exception:
            log.exception("a callback of a future failed")

    cdef time_out(self):
        """The deadline given at submit has passed: close the transaction, unless the reply was first."""
        if self.is_done or self.member is None:
            return
        if shm_call_cancel(context(self.member), self.call):
            self.member.futures.pop(key_of(self.call), None)
            try:
                where = answerer(self.member, self.call, self.addressee)
            except Exception:  # whoever waits is told all the same
                where = "the server"
            self.complete(errors.Timeout(f"no reply in time from {where}"), True)
            return
        shm_call_look(context(self.member))
        drain(self.member)
        if (not self.is_done and self.member.futures.get(key_of(self.call)) is self
                and not shm_call_is_sound(&self.member.segment, self.call)):
            del self.member.futures[key_of(self.call)]  # see expire()
            self.complete(status_error(SHM_CORRUPTED, "a call"), True)

    cdef int abort(self) except -1:
        """The thread that waits for it is aborted: so is the call, unless the reply was first. False: nothing to do."""
        cdef shm_thread *t = context(self.member)
        if not shm_abort_is_pending(t):
            return False
        if shm_is_shielded(t):
            shm_abort_mark(t, self.call)
            return False
        if shm_call_cancel(t, self.call):
            self.member.futures.pop(key_of(self.call), None)
            self.complete(aborted(shm_abort_take(t)), True)
        else:
            drain(self.member, self)
            if not self.is_done:  # another thread reads the reply
                with nogil:
                    shm_clock_sleep(100000)
        return True

    cdef int wait(self, timeout) except -1:
        cdef uint64_t deadline = deadline_of(timeout), until
        if self.is_done:
            return 0
        if self.member is None:
            if self.lock is None:
                self.lock = threading.Lock()
                self.lock.acquire()
            left = -1 if deadline == SHM_FOREVER else (0 if deadline == 0 else timeout)
            if self.lock.acquire(True, left):
                self.lock.release()
        else:
            drain(self.member, self)
            try:
                while not self.is_done:
                    if self.reader and self.reader == PyThread_get_thread_ident():
                        raise errors.Deadlock("the result was asked for by what is needed to unpickle it")
                    if deadline != 0 and self.abort():
                        continue
                    now = shm_clock_ns()
                    if now >= self.deadline:
                        self.time_out()
                        if not self.is_done:  # another thread reads the reply
                            with nogil:
                                shm_clock_sleep(100000)
                        continue
                    if now >= deadline:
                        break
                    until = min(deadline, self.deadline, now + LOOK_NS)
                    wait_for_completions(self.member, until, self)
                    if not self.is_done and shm_clock_ns() >= now + LOOK_NS:
                        self.member.check()
                        shm_call_look(context(self.member))  # who leads may be held up by code of others
                        drain(self.member, self)
                        expire(self.member)
            finally:
                hand_on(self.member)
        if not self.is_done:
            where = ""
            if can_act(self.member):
                where = f" from {answerer(self.member, self.call, self.addressee)}"
            raise errors.Timeout(f"the result did not come within {timeout} s{where}")
        return 0

    def result(self, timeout=None):
        if not self.is_done:
            self.wait(timeout)
        elif timeout is not None:
            deadline_of(timeout)
        if self.was_cancelled:
            raise CancelledError()
        if self.failed:
            try:
                raise self.value
            finally:
                self = None
        return self.value

    def exception(self, timeout=None):
        if not self.is_done:
            self.wait(timeout)
        elif timeout is not None:
            deadline_of(timeout)
        if self.was_cancelled:
            raise CancelledError()
        return self.value if self.failed else None

    def done(self):
        if not self.is_done and self.member is not None and not self.member.closed and not self.member.forked:
            drain(self.member)
            if shm_clock_ns() >= self.deadline:
                self.time_out()
        return bool(self.is_done)

    def running(self):
        return not self.done()

    def cancelled(self):
        return bool(self.was_cancelled)

    def cancel(self):
        """Close the transaction: True, unless the result was first. A server that works on it is told."""
        if self.done():
            return bool(self.was_cancelled)
        if self.member is not None:
            self.member.check()
            if not shm_call_cancel(context(self.member), self.call):
                drain(self.member)
                return bool(self.was_cancelled)
            self.member.futures.pop(key_of(self.call), None)
        self.was_cancelled = True
        self.complete(None, True)
        return True

    def add_done_callback(self, fn):
        if self.is_done:
            self.run(fn)
            return
        if self.callbacks is None:
            self.callbacks = []
            if self.member is not None:
                self.member.watched += 1
        self.callbacks.append(fn)
        if self.member is not None:
            watch_until(self.member, self.deadline)
            start_drainer(self.member)

    def set_result(self, value):
        self.complete(value, False)

    def set_exception(self, error):
        self.complete(error, True)

    def __await__(self):
        if not self.is_done:
            import asyncio
            loop = asyncio.get_running_loop()
            waiter = loop.create_future()

            def tell(_):
                loop.call_soon_threadsafe(_wake_waiter, waiter)

            self.add_done_callback(tell)
            try:
                yield from waiter.__await__()
            except asyncio.CancelledError:
                self.cancel()
                raise
        return self.result()

    def __repr__(self):
        state = "pending" if not self.is_done else "cancelled" if self.was_cancelled else "failed" if self.failed else "done"
        return f"<Future {state}>"


def _wake_waiter(waiter):
    if not waiter.done():
        waiter.set_result(None)


# ---- methods of refs -------------------------------------------------------------------------------------------

cdef class Method:
    cdef object target       # keeps the ref alive
    cdef readonly str name
    cdef object open_box
    cdef Box box

    def __init__(self, target, str name, open_box):
        self.target = target
        self.name = name
        self.open_box = open_box

    cdef Box mailbox(self):
        if self.box is None or self.box.is_closed():
            self.box = self.open_box()
        return self.box

    cdef object open_within(self, timeout):
        """The mailbox is open afterwards; what is left of the timeout."""
        cdef uint64_t began
        if timeout is None or self.box is not None and not self.box.is_closed():
            self.mailbox()
            return timeout
        if deadline_of(timeout) == 0:
            raise errors.InvalidArgument("timeout is 0; a call needs time for an answer")
        began = shm_clock_ns()
        self.box = self.open_box(timeout)
        return max(1e-9, timeout - (shm_clock_ns() - began) / 1e9)

    def __call__(self, *args, **kwargs):
        return call_box(self.mailbox(), None, F_METHOD, None, 0, self, args, kwargs)

    def call(self, *args, timeout=None, **kwargs):
        left = self.open_within(timeout)
        return call_box(self.mailbox(), None, F_METHOD, left, 0, self, args, kwargs)

    def cast(self, *args, **kwargs):
        self.mailbox().post_call(self, args, kwargs)

    def submit(self, *args, timeout=None, **kwargs):
        left = self.open_within(timeout)
        return submit_box(self.mailbox(), None, F_METHOD, left, 0, self, args, kwargs)

    def options(self, *, timeout=None):
        deadline_of(timeout)

        def call(*args, **kwargs):
            left = self.open_within(timeout)
            return call_box(self.mailbox(), None, F_METHOD, left, 0, self, args, kwargs)

        return call

    def __repr__(self):
        return f"<method {self.name} of {self.target!r}>"
