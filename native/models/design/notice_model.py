"""Exit notices, with the ring below them (docs/explanation/models.md), every interleaving, deaths and stops. Rows K3-K6.

Sentence of the design                                     Step here
"preallocated cell ... CAS ARMED to FIRED(reason, tail)"   `ARMED to FIRED(tail)`, by any reaper, or by a watcher that arms late
"first helped past all slots that are not FREE"            MEND: help_tail compares laps
"Order: DYING, ring claims, ... notices"                   `DYING`, `reap: CLAIMED to SKIP`, `reap: read cell`
"once no message of the dead that its filter matches,      receive: cell read first, then the set-aside list, then the slots,
 READY or set aside, lies below"                           then `look past the claimed slot`, `deliver notice`
"register, publish, then load of the peer's state"         `arm`, `peer state`
"dead between slot CAS and tail CAS"                       SIGKILL before `tail CAS`, with both orders of tail CAS and publish
Run with -v for traces of the bugs."""

import sys

from engine import FAILED, STOPPED, Process, Words, cas, explore, load, local, put, rmw, store

# ---- the model ---------------------------------------------------------------------------------------------------------
FREE, CLAIMED, READY, SKIP, ARMED, FIRED = "FREE", "CLAIMED", "READY", "SKIP", "ARMED", "FIRED"
S, O = 1, 2  # member slots of the one that dies and of another sender


class Notice:
    """R watches S and receives. `phases` of R: "m" monitor S, "n" monitor O, "d" demonitor, else the filter of one receive:
    the kinds of message it matches, and x for exit notices. `mine`, `others`: kinds that S and O send; `again`: kinds that a
    new member in S's slot sends after the reap."""

    def __init__(
        self,
        phases,
        mine="",
        others="",
        again="",
        slots=2,
        kills=1,
        stops=0,
        keepers=2,
        racing=True,
        tail_first=True,
        bugs=(),
        victims="S",
    ):
        self.phases, self.n, self.kills, self.stops, self.tail_first, self.bugs = (
            phases,
            slots,
            kills,
            stops,
            tail_first,
            frozenset(bugs),
        )
        w = Words()
        self.words = w
        self.SLOT = w.words(slots, (0, None, FREE, None))  # lap | owner | state, and the message
        self.TAIL, self.CELL, self.TARGET = (
            w.word(0),
            w.word((0, FREE, None)),
            w.word(None),
        )  # gen | state | tail; whom it watches
        self.STATE, self.LOG = w.words(3, "LIVE"), w.word(())  # the last is an observation only
        self.DEATHS = w.word((0,) * (3 + keepers + 1))
        self.processes = [
            Process("R", self.watcher, "R" in victims),
            Process("S", lambda: self.sender(S, "S", mine), "S" in victims),
            Process("O", lambda: self.sender(O, "O", others), "O" in victims, True),
        ]
        self.processes += [
            Process(
                f"K{k}",
                lambda k=k: self.keeper(3 + k, None if racing or not k else 2 + k),
                "K" in victims,
                racing and keepers > 1,
            )
            for k in range(keepers)
        ]
        self.processes.append(Process("S'", lambda: self.successor(again)))

    def sender(self, me, name, kinds):
        for n in range(len(kinds)):
            while True:
                t = yield "read tail", load(self.TAIL)
                word = yield "read slot (or park: full)", load(self.SLOT[t % self.n], lambda w: w[0] >= t // self.n)
                if word[0] == t // self.n and word[2] == FREE:
                    if (yield "claim", cas(self.SLOT[t % self.n], word, (t // self.n, me, CLAIMED, None))):
                        break
                else:
                    yield "help the tail", cas(self.TAIL, t, t + 1)
            if self.tail_first:
                yield "tail CAS", cas(self.TAIL, t, t + 1)
            yield "publish", store(self.SLOT[t % self.n], (t // self.n, me, READY, (name, n, kinds[n])))
            if not self.tail_first:
                yield "tail CAS", cas(self.TAIL, t, t + 1)
        yield "live on", load(self.TAIL, lambda t: False)

    def successor(self, kinds):
        if not kinds:
            return
        yield "start in S's slot", load(self.DEATHS, lambda d: d[S] == 2)
        yield from self.sender(S, "S'", kinds)

    def help_tail(self):
        """The tail, past every position that was claimed: its slot is of a later lap, or of this lap and not FREE."""
        while True:
            t = yield "help: read tail", load(self.TAIL)
            if "no help" in self.bugs:
                return t
            lap, _, state, _ = yield "help: read slot", load(self.SLOT[t % self.n])
            if "literal help" in self.bugs:
                if state == FREE:
                    return t
            elif lap < t // self.n or (lap == t // self.n and state == FREE):
                return t
            yield "help: tail CAS", cas(self.TAIL, t, t + 1)

    def fire(self, word):
        tail = yield from self.help_tail()
        yield (
            "ARMED to FIRED(tail)",
            rmw(
                self.CELL,
                lambda now: (
                    ((now[0], FIRED, tail), None)
                    if now == word or ("no gen" in self.bugs and now[1] == ARMED) or "fire by store" in self.bugs
                    else (now, None)
                ),
            ),
        )

    def keeper(self, k, before):
        if before is not None:
            yield "stand by", load(self.DEATHS, lambda d: d[before])
        while True:
            v = (yield "find a dead member", load(self.DEATHS, lambda d: 1 in d)).index(1)
            if v < 3:
                yield "DYING", store(self.STATE[v], "DYING")
                for i in range(self.n):  # ring claims come before notices
                    word = yield "reap: read slot", load(self.SLOT[i])
                    if word[1:3] == (v, CLAIMED):
                        yield "reap: CLAIMED to SKIP", cas(self.SLOT[i], word, (word[0], v, SKIP, None))
                word = yield "reap: read cell", load(self.CELL)  # the word first, then the target it was armed for
                target = yield "reap: read target", load(self.TARGET)
                if word[1] == ARMED and target == v:
                    yield from self.fire(word)
            yield "reaped", rmw(self.DEATHS, lambda d: (put(d, v, 2), None))
            v = word = target = None

    def watcher(self):
        head, aside = 0, ()
        for n in range(len(self.phases)):
            f = self.phases[n]
            if f in "mn":
                yield from self.monitor(S if f == "m" else O)
            elif f == "d":
                yield from self.demonitor()
            else:
                head, aside = yield from self.receive(f, head, aside)

    def monitor(self, target):
        yield "target", store(self.TARGET, target)
        word = yield "arm", rmw(self.CELL, lambda old: ((old[0] + 1, ARMED, None), (old[0] + 1, ARMED, None)))
        if "no peer check" not in self.bugs and (yield "peer state", load(self.STATE[target])) != "LIVE":
            yield from self.fire(word)

    def demonitor(self):
        yield "demonitor", rmw(self.CELL, lambda old: ((old[0], FREE, None), None))  # FIRED: dropped

    def receive(self, f, head, aside):
        """One receive under the take right; returns the new head and set-aside list (both in shared memory in the design)."""
        while True:
            cell = None if "slots first" in self.bugs else (yield "read the cell, then the slots", load(self.CELL))
            for at in range(len(aside)):
                if aside[at][2] in f:
                    yield "(received)", local(rmw(self.LOG, lambda l: ((*l, aside[at]), None)))
                    return head, aside[:at] + aside[at + 1 :]
            if "at once" in self.bugs and cell[1] == FIRED and "x" in f:
                yield "deliver notice", self.deliver(cell, f, aside)
                return head, aside
            while True:
                lap, _, state, message = yield "look at head", load(self.SLOT[head % self.n])
                if lap != head // self.n or state in (FREE, CLAIMED):
                    break
                if state == READY and message[2] in f:
                    yield "take: free the slot", store(self.SLOT[head % self.n], (lap + 1, None, FREE, None))
                    yield "(received)", local(rmw(self.LOG, lambda l: ((*l, message), None)))
                    return head + 1, aside
                if state == READY:
                    aside += (message,)
                yield "set aside or skip: free the slot", store(self.SLOT[head % self.n], (lap + 1, None, FREE, None))
                head += 1
            lap = state = message = at = None
            if "slots first" in self.bugs:
                cell = yield "read the cell after the slots", load(self.CELL)
            if cell[1] == FIRED and "x" in f:
                behind = False  # a live sender's CLAIMED slot ends the walk: look past it
                for at in range(
                    head, head if "slots first" in self.bugs else head + self.n if "no tail" in self.bugs else cell[2]
                ):
                    lap, owner, state, message = yield "look past the claimed slot", load(self.SLOT[at % self.n])
                    if lap == at // self.n and state == READY and self.dead_ones(owner, message) and message[2] in f:
                        behind = True
                if not behind:
                    if (yield "deliver notice", self.deliver(cell, f, aside)):
                        return head, aside
                    continue
                behind = lap = state = message = owner = at = None
            yield "park", lambda mem, buf: (mem, buf, None) if self.ready(mem, f, head) else None
            cell = None

    def deliver(self, cell, f, aside):
        def op(mem, buf):
            if mem[self.CELL] != cell:
                return mem, buf, False
            left = [w[3] for w in (mem[a] for a in self.SLOT) if w[2] == READY] + list(aside)
            early = any(m[0] == "S" and m[2] in f for m in left)  # observation
            mem = put(mem, self.LOG, mem[self.LOG] + (("EXIT too early" if early else "EXIT", mem[self.TARGET], f),))
            return put(mem, self.CELL, (cell[0], FREE, None)), buf, True

        return op

    def dead_ones(self, owner, message):  # slot and generation are in the header; owner:16 is the slot only
        return owner == S if "by slot" in self.bugs else message[0] == "S"

    def ready(self, mem, f, head):  # would another look get further? (the wake: wait_model)
        lap, _, state, _ = mem[self.SLOT[head % self.n]]
        if lap == head // self.n and state in (READY, SKIP):
            return True
        _gen, state, tail = mem[self.CELL]
        bound = head + self.n if "no tail" in self.bugs else tail
        return (
            state == FIRED
            and "x" in f
            and not any(
                w[0] == at // self.n and w[2] == READY and self.dead_ones(w[1], w[3]) and w[3][2] in f
                for at in range(head, bound)
                for w in [mem[self.SLOT[at % self.n]]]
            )
        )

    def always(self, state):
        mem, exits = state[0], [x for x in state[0][self.LOG] if x[0].startswith("EXIT")]
        if any(x[0] != "EXIT" for x in exits):
            return "notice before a message of the dead"
        if len(exits) > self.phases.count("m") + self.phases.count("n"):
            return "two notices"
        for x in exits:
            if not mem[self.DEATHS][x[1]]:
                return "notice for a live member"

    def at_rest(self, state):
        mem, nodes = state[:2]
        words = [mem[a] for a in self.SLOT]
        if nodes[0].request is None:
            return None  # R has received all it wanted (or is dead)
        if nodes[0].request[0] != "park":
            return f"R hangs at '{nodes[0].request[0]}'"
        f, held = self.waits_for(nodes[0]), any(w[2] == CLAIMED and nodes[w[1]] is STOPPED for w in words)
        if (
            "x" in f
            and mem[self.CELL][1] == FIRED
            and not any(w[2] == READY and w[3][0] == "S" and w[3][2] in f for w in words)
        ):
            return "a notice is withheld for ever"
        if mem[self.CELL][1] == ARMED and mem[self.DEATHS][mem[self.TARGET]] == 2:
            return "a notice is lost"
        if held:
            return None  # M2: what was claimed behind a stopped sender waits
        if any(w[2] == READY and w[3][2] in f for w in words):
            return "a message is lost"
        if any(p.request and p.request[0].startswith("read slot") for p in nodes[1:3] + nodes[-1:]):
            return "a sender waits for ever"
        if any(w[2] == CLAIMED for w in words):
            return "a dead claim is never skipped"

    def waits_for(self, node):
        log = list(node.history)
        g = self.watcher()
        g.send(None)
        for x in log:
            g.send(x)
        return g.gi_frame.f_locals["f"]

    def report(self):
        pass


def run(title, *args, expect=None, **kw):
    explore(title, Notice(*args, **kw), expect)


if __name__ == "__main__":
    print("The protocol, with the mends")
    for first in (True, False):
        order = "tail CAS before publish" if first else "publish before tail CAS"
        run(f"S sends two, two racing reapers; {order}", ("m", "ax", "ax", "ax"), mine="aa", tail_first=first)
        run(
            f"S and O send, ring of 2 wraps; {order}",
            ("m", "ax", "ax", "ax", "ax"),
            mine="aa",
            others="a",
            keepers=1,
            tail_first=first,
        )
        run(
            f"filters: first b or exit, then all; {order}",
            ("m", "bx", "bx", "abx"),
            mine="ab",
            tail_first=first,
            slots=3,
        )
    run("reapers die in turn", ("m", "ax", "ax"), mine="a", kills=3, keepers=3, racing=False, victims="SK")
    run("two racing reapers, one stops for ever", ("m", "ax", "ax"), mine="a", stops=1)
    run(
        "O stopped at any step, S dies; S' follows in S's slot",
        ("m", "ax", "ax", "ax"),
        mine="a",
        others="a",
        again="a",
        stops=1,
        keepers=1,
        slots=3,
    )
    run("demonitor, then monitor another, reaper late", ("m", "d", "n", "ax", "ax"), mine="a", keepers=2)
    run("both senders die", ("m", "ax", "ax", "ax"), mine="a", others="a", kills=2, keepers=1, victims="SO")
    print("What the models catch: the design read literally (L), injected bugs (B)")
    run(
        "L: tail helped past all that is not FREE, laps not compared",
        ("m", "ax", "ax", "ax", "ax"),
        mine="aa",
        others="a",
        keepers=1,
        bugs=["literal help"],
        expect="",
    )
    run(
        "L: slots walked, then the cell read, slots not walked again",
        ("m", "ax", "ax"),
        mine="a",
        bugs=["slots first"],
        expect="before a message",
    )
    run("B: notice delivered at once", ("m", "ax", "ax"), mine="a", bugs=["at once"], expect="before a message")
    run(
        "B: tail not helped, O stopped in its claim",
        ("m", "ax", "ax"),
        mine="a",
        others="a",
        stops=1,
        keepers=1,
        tail_first=False,
        slots=3,
        bugs=["no help"],
        expect="before a message",
    )
    late = {"mine": "a", "others": "a", "again": "a", "stops": 1, "keepers": 1, "slots": 3}
    run(
        "L: the dead known by slot number, watcher fires late, O stopped",
        ("m", "ax", "ax", "ax"),
        bugs=["by slot"],
        expect="withheld",
        **late,
    )
    run("   by generation, and FIRED without the tail: also right", ("m", "ax", "ax", "ax"), bugs=["no tail"], **late)
    run(
        "B: FIRED by a store, two reapers",
        ("m", "ax", "ax", "ax"),
        mine="a",
        bugs=["fire by store"],
        expect="two notices",
    )
    run(
        "B: no generation in the cell, reaper late",
        ("m", "d", "n", "ax", "ax"),
        mine="a",
        bugs=["no gen"],
        expect="live member",
    )
    run(
        "B: watcher does not look at the peer after arming",
        ("m", "ax", "ax"),
        mine="a",
        bugs=["no peer check"],
        expect="lost",
    )
    if FAILED:
        sys.exit(f"{len(FAILED)} not as expected")
