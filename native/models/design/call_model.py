"""Reply cells (docs/explanation/models.md), every interleaving, with deaths and stops at any step. Rows B4-B15, C4-C12, K6.

Sentence of the design                                     Step here
"register, publish, then seq_cst load of the peer's state" `register`, `publish the request`, `peer state`
"the keeper stores DYING seq_cst, then scans"              `DYING`, `reap: read word`, `reap: CAS`
"PENDING to FILLING(me) to DONE and wakes the caller"      `reply: CAS to FILLING(me)`, `fill 0`, `fill 1`, `reply: CAS to DONE(me)`
"leaves during FILLING makes the cell ABANDONED"           `close: CAS` (keeps the filler's name); `free what was abandoned`
"The server stores served_by, then re-reads the word;      `served_by, forward only`, `re-read the word`;
 the aborter does CAS on the word, then reads served_by"   `close: CAS` by caller or reap, `read served_by`, `wake the server`
"`shmipc.aborted()` is one load"                           `aborted()? one load`
"bitmap of finished cells"; two-step form                  `bitmap of finished cells`, `wait` with two_step
The caller's own park and wake are wait_model.py; here `wait` ends as soon as its condition is true. Run with -v for traces."""

import sys

from engine import (
    FAILED,
    KILLED,
    STOPPED,
    Process,
    Words,
    cas,
    choice,
    explore,
    lazy,
    load,
    local,
    plain,
    put,
    rmw,
    store,
)

# ---- the model ---------------------------------------------------------------------------------------------------------
FREE, PENDING, PENDING_ABORT, FILLING, DONE, ABANDONED = (
    "FREE",
    "PENDING",
    "PENDING_ABORT",
    "FILLING",
    "DONE",
    "ABANDONED",
)
FAILED_DONE = "DONE with PeerDead"  # DONE whose body is the error; set by reap
OPEN = (PENDING, PENDING_ABORT)


def append(a, x):
    return rmw(a, lambda t: ((*t, x), None))


class Call:
    """`calls`: (server, may time out, abortable) in turn; `servers`: a style each: "plain", "twice", "nested", "ignores"."""

    def __init__(
        self,
        calls,
        servers,
        cells=2,
        kills=0,
        stops=0,
        keepers=1,
        abort=False,
        forger=False,
        two_step=False,
        racing=False,
        bugs=(),
        victims="CSK",
    ):
        self.calls, self.styles, self.cells, self.kills, self.stops, self.two_step, self.bugs = (
            calls,
            servers,
            cells,
            kills,
            stops,
            two_step,
            frozenset(bugs),
        )
        w, n = Words(), 1 + len(servers) + keepers
        self.words = w
        self.CELL, self.SERVED = (
            w.words(cells, (0, None, FREE)),
            w.words(cells, (0, None)),
        )  # gen | owner | state; who serves which gen
        self.R0, self.R1 = w.words(cells, None), w.words(cells, None)  # a reply of two words: can be torn
        self.QUEUE, self.TOKEN = (
            w.words(len(servers) + 1, ()),
            w.words(len(servers) + 1, 0),
        )  # mailbox and semaphore of a server
        self.STATE, self.FLAG, self.BITS = (
            w.words(n, "LIVE"),
            w.word(0),
            w.word(()),
        )  # member table; abort flag; finished cells
        self.DEATHS, self.EXEC, self.TOLD = (
            w.word((0,) * (n + 2)),
            w.word(()),
            w.word(()),
        )  # the last two are observations only
        self.processes = [Process("C", self.caller, "C" in victims, True)]
        self.processes += [
            Process(f"S{s}", lambda s=s: self.server(s), "S" in victims, True) for s in range(1, len(servers) + 1)
        ]
        first = 1 + len(servers)
        self.processes += [
            Process(
                f"K{k}",
                lambda k=k: self.keeper(first + k, first + k - 1 if k and not racing else None),
                "K" in victims,
                racing,
            )
            for k in range(keepers)
        ]
        if abort:
            self.processes.append(Process("A", self.aborter))
        if forger:
            self.processes.append(Process("F", lambda: self.forge(n)))

    # the caller's side
    def caller(self):
        told = ()
        for n in range(len(self.calls)):
            one = yield from self.call(*self.calls[n])
            told += (one,)
        return told

    def call(self, server, timed, abortable):
        for c in range(self.cells):
            word = yield "find a free cell", load(self.CELL[c])
            if word[2] == FREE:
                break
        else:
            return None, "no cell free"
        gen, _stop, marked = word[0] + 1, None, False
        yield "register: PENDING(addressee)", store(self.CELL[c], (gen, server, PENDING))
        yield "publish the request", append(self.QUEUE[server], (c, gen))
        if "no peer check" not in self.bugs and (yield "peer state", load(self.STATE[server])) != "LIVE":
            if (yield "close: peer is dead", cas(self.CELL[c], (gen, server, PENDING), (gen, None, FREE))):
                return (c, gen), "PeerDead"
        while True:
            why = yield ("wait", *self.ends_of_wait(c, timed, marked, abortable))
            if why == "bit":  # a finished cell; stale bits are possible, the word decides
                word = yield "finished?", load(self.CELL[c])
                if word[2] in (DONE, FAILED_DONE):
                    break
                continue
            if why not in ("Timeout", "Aborted"):
                break  # the cell is DONE
            if why == "Aborted" and not abortable:  # C7: tell the server, keep waiting
                marked = True
                if (yield "mark the abort", cas(self.CELL[c], (gen, server, PENDING), (gen, server, PENDING_ABORT))):
                    yield from self.tell_server(c, gen)
                continue
            closed = yield from self.close(c, gen)
            if closed:
                if why == "Aborted":
                    yield "consume the flag", store(self.FLAG, 0)
                return (c, gen), why
            break  # DONE came first: the reply counts
        word = yield "read word", load(self.CELL[c])
        a = yield "copy reply 0", load(self.R0[c])
        b = yield "copy reply 1", load(self.R1[c])
        yield "free the cell", store(self.CELL[c], (gen, None, FREE))
        return (c, gen), ("PeerDead" if word[2] == FAILED_DONE else ("reply", a, b))

    def ends_of_wait(self, c, timed, marked, abortable):
        if self.two_step:
            yield rmw(self.BITS, lambda bits: ((), "bit") if bits else None)
            yield lazy(
                lambda mem, buf: (
                    (mem, buf, "bit") if self.stops and mem[self.CELL[c]][2] in (DONE, FAILED_DONE) else None
                )
            )  # W4: the word
        else:
            yield load(self.CELL[c], lambda w: w[2] in (DONE, FAILED_DONE))
        if timed:
            yield choice("Timeout")
        if not marked:
            yield lambda mem, buf: (mem, buf, "Aborted") if mem[self.FLAG] else None

    def close(self, c, gen):
        """Timeout, abort and (by reap) death: True when this closed the transaction, False when DONE came first."""
        while True:
            word = yield "close: read word", load(self.CELL[c])
            if word[0] != gen or word[2] in (DONE, FAILED_DONE, FREE, ABANDONED):
                return False
            new = (gen, None, FREE)
            if word[2] == FILLING:
                new = (gen, None if "abandon without owner" in self.bugs else word[1], ABANDONED)
            if "free while filling" in self.bugs:
                new = (gen, None, FREE)
            if (yield "close: CAS", cas(self.CELL[c], word, new)):
                break
        yield from self.tell_server(c, gen)
        return True

    def tell_server(self, c, gen):
        served = yield "read served_by", load(self.SERVED[c])  # after the CAS: one of the two sees the other
        if served[1] and (served[0] == gen or "served_by bare" in self.bugs):
            yield "wake the server", rmw(self.TOKEN[served[1]], lambda n: (n + 1, None))

    def aborter(self):
        yield "set the abort flag", store(self.FLAG, 1)  # and wakes the thread (wait_model)
        if "third party marks" in self.bugs:  # as written: the aborter does CAS on the word
            word = yield "read the caller's word", load(self.CELL[0])
            if word[2] == PENDING and (
                yield "third party: mark", cas(self.CELL[0], word, (word[0], word[1], PENDING_ABORT))
            ):
                yield from self.tell_server(0, word[0])

    # the server's side
    def server(self, s):
        while True:
            (c, gen), was_open = yield "take a request", self.take(s)
            if "served_by bare" in self.bugs:
                yield "served_by := me", store(self.SERVED[c], (gen, s))
            elif "plain served_by" in self.bugs:
                yield "served_by := me, plain", plain(self.SERVED[c], (gen, s))
            else:
                yield (
                    "served_by, forward only",
                    rmw(self.SERVED[c], lambda old: ((gen, s) if old[0] < gen else old, None)),
                )
            word = yield "re-read the word", load(self.CELL[c])
            if word[0] != gen or word[2] not in OPEN:
                continue  # withdrawn: closed before it was received
            yield "(execute)", local(append(self.EXEC, (c, gen, s, was_open)))
            style = self.styles[s - 1]
            while style == "nested":  # an abortable wait inside the handler
                yield "nested wait", rmw(self.TOKEN[s], lambda n: (n - 1, None) if n else None)
                if "token is abort" in self.bugs:
                    yield (
                        "(abort believed)",
                        lambda mem, buf: (
                            put(mem, self.TOLD, mem[self.TOLD] + ((c, gen, "stale abort"),))
                            if mem[self.CELL[c]] == (gen, s, PENDING)
                            else mem,
                            buf,
                            None,
                        ),
                    )
                    break
                word = yield "aborted()? one load", load(self.CELL[c])
                if word != (gen, s, PENDING):
                    break  # my own transaction, by generation
            for n in range(2 if style == "twice" else 1):
                said = yield from self.reply(s, c, gen, (c, gen))
                yield "(told)", local(append(self.TOLD, (c, gen, said)))
            del c, gen, was_open, word, style, n, said

    def take(self, s):
        def op(mem, buf):  # was_open is an observation, not an access
            if not mem[self.QUEUE[s]]:
                return None
            (c, gen), rest = mem[self.QUEUE[s]][0], mem[self.QUEUE[s]][1:]
            return (
                put(mem, self.QUEUE[s], rest),
                buf,
                ((c, gen), mem[self.CELL[c]][0] == gen and mem[self.CELL[c]][2] in OPEN),
            )

        return op

    def reply(self, me, c, gen, value):
        while True:
            word = yield "reply: read word", load(self.CELL[c])
            if word[2] not in OPEN or ("no gen" not in self.bugs and word[0] != gen):
                return "refused"
            if word[1] != me and "no addressee" not in self.bugs:
                return "refused"
            if (yield "reply: CAS to FILLING(me)", cas(self.CELL[c], word, (word[0], me, FILLING))):
                break
        gen = word[0]
        yield "fill 0", plain(self.R0[c], value)
        yield "fill 1", plain(self.R1[c], value)
        if (yield "reply: CAS to DONE(me)", cas(self.CELL[c], (gen, me, FILLING), (gen, me, DONE))):
            if self.two_step:
                yield "bitmap of finished cells", rmw(self.BITS, lambda bits: ((c,), None))
            return "OK"
        if (yield "read word again", load(self.CELL[c])) == (gen, me, ABANDONED):
            yield "free what was abandoned", store(self.CELL[c], (gen, None, FREE))
        return "refused"

    def forge(self, me):
        for gen in (1, 2):
            said = yield from self.reply(me, 0, gen, "forged")
            yield "(told)", local(append(self.TOLD, (0, gen, "forged " + said)))

    # the keeper
    def keeper(self, k, before):
        if before is not None:
            yield "stand by", load(self.DEATHS, lambda d: d[before])
        while True:
            v = (yield "find a dead member", load(self.DEATHS, lambda d: 1 in d)).index(1)
            if "plain DYING" in self.bugs:
                yield "DYING, plain store", plain(self.STATE[v], "DYING")
            elif "scan, then DYING" not in self.bugs:
                yield "DYING", store(self.STATE[v], "DYING")
            for c in range(self.cells):
                yield from self.mend(c, v, k)
            if "scan, then DYING" in self.bugs:
                yield "DYING", store(self.STATE[v], "DYING")
            yield "reaped", rmw(self.DEATHS, lambda d: (put(d, v, 2), None))
            del v, c

    def mend(self, c, v, k):
        while True:
            gen, owner, state = word = yield "reap: read word", load(self.CELL[c])
            if v == 0:  # the caller died: close it as a timeout would
                if state in (FREE, ABANDONED):  # it may have died between closing and waking
                    if "tell only own" not in self.bugs:
                        yield from self.tell_server(c, gen)
                    return
                new = (gen, owner, ABANDONED) if state == FILLING else (gen, None, FREE)
            elif owner != v or state == FREE:
                return
            elif state in (DONE, FAILED_DONE):  # replier or reaper, dead before the bitmap: say it again
                if self.two_step and "no second bit" not in self.bugs:
                    yield "reap: bitmap", rmw(self.BITS, lambda bits: ((c,), None))
                return
            else:
                new = (
                    (gen, None, FREE)
                    if state == ABANDONED
                    else (gen, v if "reaper unnamed" in self.bugs else k, FAILED_DONE)
                )
            if (yield "reap: CAS", cas(self.CELL[c], word, new)):
                if v == 0 and state in (*OPEN, FILLING):
                    yield from self.tell_server(c, gen)
                if v and self.two_step and state != ABANDONED:
                    yield "reap: bitmap", rmw(self.BITS, lambda bits: ((c,), None))
                return
            elif "no retry" in self.bugs:
                return

    def always(self, state):
        if not state[0][self.FLAG] and any(state[0][a][2] == PENDING_ABORT for a in self.CELL):
            return "a call is marked by an abort that an earlier one consumed"
        return next((f"{x[2]} at {x[:2]}" for x in state[0][self.TOLD] if x[2] in ("stale abort", "forged OK")), None)

    def at_rest(self, state):
        mem, nodes = state[:2]
        told, caller = mem[self.TOLD], nodes[0]
        if caller.request and not (self.stops and caller.request[0] == "wait" and STOPPED in nodes):
            return f"the caller hangs at '{caller.request[0]}'"
        for p, node in enumerate(nodes[1:], 1):
            if node.request and node.request[0] == "nested wait":
                c, gen = [x for x in mem[self.EXEC] if x[2] == p][-1][:2]
                if mem[self.CELL[c]] != (gen, p, PENDING):
                    return "the server never hears that its transaction is closed"
        for c, gen, _s, was_open in mem[self.EXEC]:
            if not was_open:
                return "a withdrawn request was executed"
            if sum(x[:2] == (c, gen) for x in mem[self.EXEC]) > 1:
                return "executed twice"
        for c, gen in {x[:2] for x in told}:
            says = [x[2] for x in told if x[:2] == (c, gen) and not x[2].startswith("forged")]
            if "OK" in says[1:]:
                return "a second reply was accepted"
            out = (
                dict(caller.value).get((c, gen))
                if caller.value and caller.request is None and caller not in (KILLED, STOPPED)
                else None
            )
            if out and says and (says[0] == "OK") != (out == ("reply", (c, gen), (c, gen))):
                return f"server told {says[0]}, caller told {out}"
        if caller not in (KILLED, STOPPED) and caller.request is None:
            for at, out in caller.value:
                if out[0] == "reply" and out[1:] != (at, at):
                    return f"torn or foreign reply {out} to {at}"
                if out == "PeerDead" and KILLED not in nodes[1 : 1 + len(self.styles)]:
                    return "PeerDead, and nobody died"
                if out == "no cell free" and not self.stops:
                    return "no cell free"
        owed = [mem[self.CELL[c]] for c in range(self.cells) if mem[self.CELL[c]][2] != FREE]
        if caller in (KILLED,) or caller.request is None:
            if any(not ((w[1] is not None and nodes[w[1]] is STOPPED) or caller is STOPPED) for w in owed):
                return f"a cell leaks: {owed[0]}"

    def report(self):
        pass


def run(title, *args, expect=None, **kw):
    explore(title, Call(*args, **kw), expect, cycles=False)


WAIT, MAY, KEEP = (
    (1, False, True),
    (1, True, True),
    (1, False, False),
)  # to server 1: for ever; with a deadline; not abortable
MAY2 = (2, True, True)

if __name__ == "__main__":
    print("The protocol, with the mends")
    run(
        "one call; server replies twice; 2 deaths of anyone, two keepers",
        [WAIT],
        ["twice"],
        cells=1,
        kills=2,
        keepers=2,
    )
    run("two calls with deadlines, cells reused; 1 death", [MAY, MAY], ["plain"], kills=1)
    run("two calls with deadlines, two servers, one late", [MAY, MAY2], ["plain", "plain"])
    run("a deadline; 2 deaths of caller, server or keeper", [MAY], ["plain"], cells=1, kills=2, keepers=2)
    run("forged replies against a call with a deadline and its successor", [MAY, WAIT], ["plain"], forger=True)
    run("nested abortable wait, deadline, cell reused by a call to another", [MAY, MAY2], ["nested", "nested"], cells=1)
    run("nested abortable wait; caller or server dies", [MAY, MAY], ["nested"], kills=1)
    run("abort of an abortable call, then a second call", [WAIT, WAIT], ["plain"], abort=True)
    run("abort; server in a nested wait; 1 death", [MAY], ["nested"], abort=True, kills=1)
    run("abort of a call that is not abortable; 1 death", [KEEP], ["plain"], abort=True, kills=1)
    run("server stopped for ever at any step, caller has a deadline", [MAY, MAY], ["plain"], stops=1, victims="")
    run("server or caller stopped for ever, another dies", [MAY], ["plain"], stops=1, kills=1)
    run(
        "two-step form; server replies twice; 2 deaths, two keepers",
        [WAIT],
        ["twice"],
        cells=1,
        kills=2,
        keepers=2,
        two_step=True,
    )
    run("two-step form, two calls; 1 death", [WAIT, WAIT], ["plain"], kills=1, two_step=True)
    run(
        "two calls, two servers, two racing reapers; 1 death",
        [MAY, MAY2],
        ["plain", "plain"],
        kills=1,
        keepers=2,
        racing=True,
        victims="CS",
    )
    run("forger, server replies twice; 2 deaths", [MAY, MAY], ["twice"], kills=2, forger=True, victims="CS")
    run(
        "two racing reapers, one may stop for ever; 2 deaths",
        [MAY],
        ["plain"],
        kills=2,
        stops=1,
        keepers=2,
        racing=True,
        victims="CS",
    )
    run(
        "two-step form, two calls, two racing reapers; 2 deaths",
        [WAIT, WAIT],
        ["plain"],
        kills=2,
        keepers=2,
        racing=True,
        two_step=True,
    )
    run(
        "two-step form, anyone may stop for ever; 1 death",
        [WAIT],
        ["plain"],
        kills=1,
        stops=1,
        keepers=2,
        racing=True,
        two_step=True,
        victims="CS",
    )
    run(
        "abort, deadline, two servers in nested waits; 1 death",
        [MAY, MAY2],
        ["nested", "plain"],
        abort=True,
        kills=1,
        keepers=2,
    )
    print("What the models catch: the design read literally (L), injected bugs (B)")
    run(
        "L: served_by stored without generation",
        [MAY, MAY2],
        ["nested", "nested"],
        cells=1,
        bugs=["served_by bare"],
        expect="never hears",
    )
    run("L: served_by a plain store", [MAY], ["nested"], bugs=["plain served_by"], expect="never hears")
    run(
        "L: a third party marks the word (abort hits the next call)",
        [WAIT, WAIT],
        ["plain"],
        abort=True,
        bugs=["third party marks"],
        expect="marked",
    )
    run(
        "L: PENDING does not name the addressee",
        [WAIT],
        ["plain"],
        forger=True,
        bugs=["no addressee"],
        expect="forged OK",
    )
    run(
        "L: server dies between DONE and the bitmap",
        [WAIT],
        ["plain"],
        kills=1,
        two_step=True,
        bugs=["no second bit"],
        expect="hangs",
    )
    run(
        "L: second reaper dies between DONE and the bitmap, not named in DONE",
        [WAIT, WAIT],
        ["plain"],
        kills=2,
        keepers=2,
        racing=True,
        two_step=True,
        bugs=["reaper unnamed"],
        expect="hangs",
    )
    run(
        "L: caller dies between closing and reading served_by",
        [MAY],
        ["nested"],
        kills=1,
        bugs=["tell only own"],
        expect="never hears",
    )
    run("B: abandon without owner", [MAY], ["plain"], kills=1, bugs=["abandon without owner"], expect="leaks")
    run(
        "B: cell freed while it is being filled",
        [MAY, (2, False, True)],
        ["plain", "plain"],
        bugs=["free while filling"],
        expect="caller told",
    )
    run("B: generation not compared", [MAY, WAIT], ["plain"], bugs=["no gen"], expect="caller told")
    run(
        "B: caller does not look at the peer after publishing",
        [WAIT],
        ["plain"],
        kills=1,
        bugs=["no peer check"],
        expect="hangs",
    )
    run("B: keeper scans, then stores DYING", [WAIT], ["plain"], kills=1, bugs=["scan, then DYING"], expect="hangs")
    run("B: DYING is a plain store", [WAIT], ["plain"], kills=1, bugs=["plain DYING"], expect="hangs")
    run("B: reap does not retry a failed CAS", [MAY], ["plain"], kills=1, bugs=["no retry"], expect="leaks")
    run("B: a token is taken for an abort", [MAY, MAY], ["nested"], bugs=["token is abort"], expect="stale abort")
    if FAILED:
        sys.exit(f"{len(FAILED)} not as expected")
