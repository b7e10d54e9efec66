"""The mailbox ring as an executable design (docs/explanation/models.md): every state of small mailboxes, with every death.

`python native/models/design/ring_model.py [-v: a shortest run to each failure] [--short] [--full: larger searches]`. A breadth-first search lets any process
take its next shared-memory access, or die, in every order ("stopped" is "not scheduled for a while"). The steps, and the
sentence each stands for; MEND marks what the design did not say:
sender    tail, word     read tail, then the slot: "`tail` is a hint that anyone may help forward, by CAS only; the slot word
          help, bump     is the truth": CAS tail, t to t+1
          admit          "position t is admitted iff `t - delivered < capacity`"; the flight word, "stored before each claim"
          claim          "FREE --claim(CAS, names the producer)--> CLAIMED"
          publish        "publish(exchange)--> READY"
          full           parked; "a stale read only refuses". MEND 1: on an UNSWEPT right takes it, sweeps, gives it back
receiver  idle           "Every receive holds the mailbox's take right" (CAS); "a filtered receiver parks without the right
                         and remembers how far it has looked" (pos)
          sweep*         "the next holder frees every slot whose position is linked and recomputes head and `delivered`"
          look           oldest match set aside (MEND 2: one unlinking store is the commit), else the slot at head: "copy out,
                         then store FREE, lap+1: the commit"; or SKIP --> FREE; or "link the entry, which carries its position,
          unslot         then free the slot"
          head_, count_  "the head, the set-aside list and the count are written only by its holder"
          give_back      "the right goes back by a seq_cst exchange"
          starve         "Starved". MEND 3: not prevented by filtered receivers parked after looking at everything
reaper    begin, retire  "DYING" by CAS on the member's (generation, state), or join; "the slot with a new generation" by CAS
          read_ prove_   "reads the word it mends, proves its owner dead (member word again: same generation, DYING), and does
          cas_           CAS from the value read": the claim in the flight word to SKIP, the right to UNSWEPT (MEND 1)
          (any reaper may die, or stop for good, at any step and any number of times: another takes its place)
Merged without loss: a read that nobody can spoil with the access after it. Laps are unbounded, the right's counter is modelled
by its effect, parking is perfect (wait_model.py), memory sequentially consistent. The asserts are the safety properties; and from
every state a good end must be reachable: all published delivered, senders through, the dead reaped, nobody waiting in vain.
"""

import itertools
import sys
import time
from array import array
from collections import namedtuple
from types import SimpleNamespace

State = namedtuple("State", "tail head delivered right slots aside done published procs reapers deaths")
Proc = namedtuple("Proc", "life gen pc pos count flight")  # pos: in hand, or looked so far; count: sent or received
Reaper = namedtuple("Reaper", "pc victim gen pos")
FREE, CLAIMED, READY, SKIP = "FREE", "CLAIMED", "READY", "SKIP"
IDLE, DIES, REST = Reaper("begin", -1, 0, -1), -2, ("end", "starved")
SENDING = {"tail", "word", "help", "admit", "claim", "bump", "publish", "full"}
MENDED = {"senders sweep", "starve together"}
DEFAULTS = {
    "slots": 2,
    "capacity": 2,
    "deaths": 1,
    "mortal": (),
    "reuse": (),
    "reapers": 2,
    "reaped_right": "UNSWEPT",
    "quota": None,
}
SHORT = 10_000 if "--short" in sys.argv else None  # end each search after so many states
C = SimpleNamespace()  # the mailbox, processes and bugs under test


class World:  # one state, thawed so that one step can change it; a slot is (lap, state, owner, message)
    __slots__ = State._fields

    def __init__(self, s):
        (
            self.tail,
            self.head,
            self.delivered,
            self.right,
            self.slots,
            self.aside,
            self.done,
            self.published,
            self.procs,
            self.reapers,
            self.deaths,
        ) = s
        self.slots, self.procs, self.reapers = list(self.slots), list(self.procs), list(self.reapers)

    def freeze(self):
        return State(
            self.tail,
            self.head,
            self.delivered,
            self.right,
            tuple(self.slots),
            self.aside,
            self.done,
            self.published,
            tuple(self.procs),
            tuple(sorted(self.reapers)),
            self.deaths,
        )  # reapers are alike

    def word(self, pos):
        return self.slots[pos % C.slots]

    def store(self, pos, state, owner=-1, message=-1):
        self.slots[pos % C.slots] = (pos // C.slots + (state == FREE), state, owner, message)

    def set_right(self, state, owner=-1):
        self.right = (state, owner)
        if "right without counter" not in C.flags:  # any CAS from an older value will fail: straight to its end
            self.reapers = [
                r._replace(pc="retire") if r.pc in ("prove_right", "cas_right") else r for r in self.reapers
            ]

    def link(self, message):
        self.aside += ((self.head, message),)

    def go(self, i, pc, **fields):
        self.procs[i] = self.procs[i]._replace(pc=pc, **fields)

    def linked_unfreed(self):
        return [pos for pos, _ in self.aside if self.word(pos)[0] == pos // C.slots]

    def true_head(self):
        head = self.head
        while self.word(head)[0] > head // C.slots:
            head += 1
        return head

    def undelivered(self):
        linked = {pos for pos, _ in self.aside}
        return len(linked) + sum(w[1] != FREE and w[0] * C.slots + k not in linked for k, w in enumerate(self.slots))


def matches(i, message):
    return C.filters[i] in (None, C.tags[message])


def sender(m, i, p):
    pc, pos, word = p.pc, p.pos, m.word(p.pos)
    lap = pos // C.slots
    if pc == "tail":
        m.go(i, "word", pos=m.tail)
    elif pc == "word":
        m.go(i, "full" if word[0] < lap else "admit" if word[:2] == (lap, FREE) else "help")
    elif pc in ("help", "bump"):
        if m.tail == pos or "tail stored" in C.flags:
            m.tail = pos + 1
        m.go(i, "tail", pos=0) if pc == "help" else m.go(i, "publish", flight=pos)
    elif pc == "admit":
        full = pos - (m.head if "admit by head" in C.flags else m.delivered) >= C.capacity
        m.go(i, "full" if full else "claim", flight=-1 if full or "flight after claim" in C.flags else pos)
    elif pc == "claim":
        if word[:2] != (lap, FREE):
            return m.go(i, "tail", pos=0, flight=-1)
        m.store(pos, CLAIMED, i)
        m.go(i, "bump")
    elif pc == "publish":
        assert word[:3] == (lap, CLAIMED, i), "live claim taken"
        messages = C.sends[i][p.gen]
        m.store(pos, READY, -1, messages[p.count])
        m.published |= 1 << messages[p.count]
        m.go(i, "end" if p.count + 1 == len(messages) else "tail", pos=0, count=p.count + 1, flight=-1)
    elif pos - m.delivered < C.capacity or m.tail != pos:  # full
        m.go(i, "tail", pos=0)
    elif m.right[0] == "UNSWEPT" and "senders sweep" in C.flags:
        m.set_right("HELD", i)
        m.go(i, "sweep")
    else:
        return False


def starving(m, i):  # full, all set aside, nothing matches, and no other receiver can make room
    if C.filters[i] is None or len(m.aside) < C.capacity or m.word(m.head)[1] != FREE:
        return False
    done = [
        q.pc in REST
        or (
            "starve together" in C.flags
            and q.life == "live"
            and q.pc == "idle"
            and C.filters[j] is not None
            and q.pos == m.head
        )
        for j, q in enumerate(m.procs)
        if j != i and j >= C.senders
    ]
    return all(done) and not any(matches(i, message) for _, message in m.aside)


def deliver(m, i, pos, message):
    assert m.right == ("HELD", i), "taken without the right"
    assert m.published >> message & 1, "a message is delivered that was never published"
    assert not m.done >> message & 1, "a message is delivered twice"
    ring = [(w[0] * C.slots + k, w) for k, w in enumerate(m.slots)]
    assert not [q for q, other in m.aside if q < pos and matches(i, other)], "an older message set aside is passed over"
    assert not [q for q, w in ring if q < pos and (w[1] == CLAIMED or (w[1] == READY and matches(i, w[3])))], (
        "... in the ring"
    )
    m.done |= 1 << message


def holder(m, i, p):  # whoever holds the take right, or wants it
    pc, head, word, late = p.pc, m.head, m.word(m.head), "free before link" in C.flags
    if pc == "idle":
        (state, owner), ring = m.right, m.word(m.true_head())[1]
        dead = state == "HELD" and C.reaped_right == "left" and m.procs[owner].life != "live"
        if (state == "HELD" and not dead) or not (
            ("wake on unswept" in C.flags and (dead or state == "UNSWEPT"))
            or ring in (READY, SKIP)
            or ("no starve wake" not in C.flags and starving(m, i))
            or any(q >= p.pos and matches(i, n) for q, n in m.aside)
        ):
            return False
        m.set_right("HELD", i)
        m.go(i, "sweep" if dead or state == "UNSWEPT" else "look")
    elif pc == "sweep":
        if m.linked_unfreed():
            return m.store(m.linked_unfreed()[0], FREE)
        m.head = m.true_head()
        m.go(i, "sweep_count")
    elif pc == "sweep_count":
        assert head - len(m.aside) >= m.delivered, "`delivered` shrinks"
        m.delivered = head - len(m.aside)
        m.go(i, "give_back" if i < C.senders else "look")
    elif pc == "look":
        first = [e for e in m.aside if e[0] >= p.pos and matches(i, e[1])]
        state = word[1] if word[0] == head // C.slots else FREE
        if first:
            deliver(m, i, *first[0])
            m.aside = tuple(e for e in m.aside if e != first[0])
            m.go(i, "count_done", pos=0, count=p.count + 1)
        elif state == READY and matches(i, word[3]):
            m.store(head, FREE)
            deliver(m, i, head, word[3])
            m.go(i, "head_done", pos=0, count=p.count + 1)
        elif state == READY:
            m.store(head, FREE) if late else m.link(word[3])
            m.go(i, "unslot", pos=word[3] if late else p.pos)
        elif state == SKIP:
            m.store(head, FREE)
            m.go(i, "head_skip")
        else:
            m.go(i, "starve" if starving(m, i) else "give_back", pos=head if C.filters[i] else 0)
    elif pc == "unslot":
        m.link(p.pos) if late else m.store(head, FREE)
        m.go(i, "head_aside", pos=0 if late else p.pos)
    elif pc in ("head_done", "head_aside", "head_skip"):
        m.head += 1
        m.go(i, {"head_done": "count_done", "head_aside": "look", "head_skip": "count_skip"}[pc])
    elif pc in ("count_done", "count_skip"):
        m.delivered += 1
        m.go(i, "give_back" if pc == "count_done" else "look")
    else:  # give_back, starve
        assert m.right == ("HELD", i), "right taken from a live holder"
        m.set_right("FREE")
        after = "starved" if pc == "starve" else "end" if p.count >= C.quota[i] else "idle"
        count = p.count if C.quota[i] < 9 else 0
        m.go(i, "tail" if i < C.senders else after, pos=p.pos if after == "idle" else 0, count=count)


def reaper(m, k, victim):
    pc, v, gen, pos = r = m.reapers[k]
    owner, early = m.procs[max(v, victim)], "proof before read" in C.flags
    proven = owner.gen == gen and owner.life == "dying"
    if victim == DIES:  # or stops for good; another takes its place
        r = IDLE
    elif pc == "begin":
        m.procs[victim] = owner._replace(life="dying")
        r = Reaper("prove_claim" if early else "read_claim", victim, owner.gen, -1)
    elif pc == "read_claim":
        mine = owner.flight >= 0 and m.word(owner.flight)[:3] == (owner.flight // C.slots, CLAIMED, v)
        pc = "read_right" if not mine else "cas_claim" if early else "prove_claim"
        r = r._replace(pc=pc, pos=owner.flight if mine else -1)
    elif pc in ("prove_claim", "prove_right"):
        r = (
            r._replace(pc="read_claim" if early and pc == "prove_claim" else pc.replace("prove", "cas"))
            if proven
            else IDLE
        )
    elif pc == "cas_claim":
        if m.word(pos)[:3] == (pos // C.slots, CLAIMED, v):
            m.store(pos, SKIP)
        r = r._replace(pc="read_right", pos=-1)
    elif pc == "read_right":
        mine = m.right == ("HELD", v) and C.reaped_right not in ("left", "untagged")
        r = r._replace(pc="prove_right" if mine else "retire")
    elif pc == "cas_right":
        kept = C.reaped_right == "kept"  # variant: the reaper itself holds the right while it sweeps
        if m.right == ("HELD", v):
            m.set_right(*("HELD", 99) if kept else (C.reaped_right,))
        r = r._replace(pc="swept" if kept else "retire")
    elif pc == "swept":
        m.set_right("UNSWEPT")
        r = r._replace(pc="retire")
    else:  # retire; a new member attaches at once where `reuse` says so
        if proven:
            m.procs[v] = born(v, gen + 1) if v in C.reuse else Proc("gone", gen + 1, "end", 0, 0, -1)
        r = IDLE
    m.reapers[k] = r


def born(i, gen):
    works = len(C.sends[i]) > gen if i < C.senders else C.quota[i] > 0
    return Proc("live", gen, ("tail" if i < C.senders else "idle") if works else "end", 0, 0, -1)


def die(m, i, p):
    m.procs[i] = Proc("dead", p.gen, "-", 0, 0, p.flight)
    m.deaths += 1


def successors(s):
    moves = []
    for i, p in enumerate(s.procs):
        if p.life == "live" and p.pc not in REST:
            moves.append((sender if p.pc in SENDING else holder, i, p, p.pc))
            if s.deaths < C.deaths and i in C.mortal and not (p.pc == "idle" and i in C.reuse):
                moves.append((die, i, p, p.pc))
    for r, k in {r: k for k, r in enumerate(s.reapers)}.items():  # reapers are alike
        moves += (
            [(reaper, k, v, v) for v, p in enumerate(s.procs) if p.life in ("dead", "dying")]
            if r.pc == "begin"
            else [(reaper, k, -1, r.pc), (reaper, k, DIES, "DIES before " + r.pc)]
        )
    m = World(s)
    for act, i, argument, label in moves:
        if act(m, i, argument) is not False:
            yield (act.__name__, i, label), m.freeze()
            m = World(s)


def good(s):  # nothing is left to do, and nobody waits for what should come
    if s.right[0] == "HELD" or any(r != IDLE for r in s.reapers) or any(p.life in ("dead", "dying") for p in s.procs):
        return False
    waiting = [i for i, p in enumerate(s.procs) if p.pc == "idle"]
    full, taker = World(s).undelivered() >= C.capacity, any(C.filters[i] is None for i in waiting)
    missed = [n for n in range(len(C.tags)) if s.published & ~s.done & 1 << n and any(matches(i, n) for i in waiting)]
    return (
        not missed
        and (taker or not (full and waiting))
        and all(
            p.pc == "end" or (p.pc == "full" and full and not taker if i < C.senders else p.pc in ("idle", "starved"))
            for i, p in enumerate(s.procs)
        )
    )


def explore():
    start = State(
        0,
        0,
        0,
        ("FREE", -1),
        ((0, FREE, -1, -1),) * C.slots,
        (),
        0,
        0,
        tuple(born(i, 0) for i in range(len(C.filters))),
        (IDLE,) * C.reapers,
        0,
    )
    number, order, parent, edges, ends = {start: 0}, [start], array("q", [-1]), array("q"), array("q", [0])
    for at, s in enumerate(order):  # the list grows while it is walked
        if SHORT and at > SHORT:
            return "holds so far", -1, order, parent
        try:
            m = World(s)
            assert m.undelivered() <= C.capacity, "more undelivered than capacity"
            swept = not m.linked_unfreed() and m.true_head() == s.head and s.delivered == s.head - len(s.aside)
            assert swept or s.right[0] != "FREE", "FREE but not swept"
            for _, t in successors(s):
                if t not in number:
                    number[t] = len(order)
                    order.append(t)
                    parent.append(at)
                edges.append(number[t])
        except AssertionError as v:
            return str(v), at, order, parent
        ends.append(len(edges))
    fine, changed = bytearray(map(good, order)), True
    while changed:  # which states can still reach a good end?
        changed = False
        for n in range(len(order) - 1, -1, -1):
            if not fine[n] and any(fine[e] for e in edges[ends[n] : ends[n + 1]]):
                fine[n] = changed = True
    lost = [n for n, f in enumerate(fine) if not f]
    at = next((n for n in lost if ends[n] == ends[n + 1]), lost[0] if lost else -1)  # rather a dead end to show
    return "no good end can be reached" if lost else "holds", at, order, parent


def run(title, expect, flags=MENDED, plus=None, **options):
    d = dict(DEFAULTS, **options)
    senders, receivers = len(d["sends"]), len(d["filters"])
    d["filters"], d["quota"] = [None] * senders + d["filters"], [0] * senders + (d["quota"] or [9] * receivers)
    C.__dict__.update(d, senders=senders, flags=flags | {plus})
    began = time.time()
    verdict, at, order, parent = explore()
    right = verdict in (expect, "holds so far")
    print(
        "%-72s %8d states %5.1f s  %s" % (title, len(order), time.time() - began, verdict),
        "" if right else "UNEXPECTED",
    )
    if at >= 0 and ("-v" in sys.argv or not right):
        path = [at]
        while parent[path[0]] >= 0:
            path.insert(0, parent[path[0]])
        for a, b in itertools.pairwise(path):
            print("    ", *next(label for label, t in successors(order[a]) if t == order[b]))
        print("     ends in", order[at])
    return right


def main():
    stuck, every = "no good end can be reached", (0, 1, 2, 3)
    two = {"sends": [[[0, 1]], [[2, 3]]], "filters": ["b", None], "tags": "abab", "mortal": every, "reuse": every}
    pair = {
        "sends": [[[0, 1], [2], [3]]],
        "filters": ["b", None],
        "tags": "abab",
        "mortal": (0, 1, 2),
        "reuse": (0, 1, 2),
    }
    takers = {"sends": [[[0, 1]]], "filters": ["b", None], "tags": "ab", "mortal": (1, 2), "reuse": (1, 2)}
    claims = {"sends": [[[0], [1]], [[2]]], "filters": [None], "tags": "aaa", "mortal": (0, 1), "reuse": (0, 1)}
    parked = {"sends": [[[0, 1, 2]]], "filters": ["b", None], "tags": "aab", "mortal": (1, 2)}
    absent = {"sends": [[[0, 1, 2]]], "filters": [None, None], "tags": "aaa", "mortal": (1,), "quota": [9, 0]}
    others = {"sends": [[[0, 1, 2]]], "filters": ["b", "c"], "tags": "aaa"}
    tests = [
        ("mended: 2 senders x 2, filtered + unfiltered receiver, no death", "holds", dict(two, deaths=0)),
        ("the same, 3 slots", "holds", dict(two, deaths=0, slots=3)),
        ("the same, 2 slots, 2 deaths, reused, 1 reaper at a time", "holds", dict(two, deaths=2, reapers=1)),
        ("the same, 2 slots, 1 death, reused, 2 racing reapers", "holds", two),
        ("1 sender x 2 (+ 1), 2 receivers, 2 deaths, 2 racing reapers", "holds", dict(pair, deaths=2)),
        ("2 senders x 1 (+ 1), 1 receiver, 2 senders' deaths, 2 racing reapers", "holds", dict(claims, deaths=2)),
        ("a receiver dies for good, the other is parked or Starved", "holds", parked),
        ("the only receiver in a receive dies for good, the other is busy", "holds", absent),
        ("full, and two filtered receivers that match nothing", "holds", others),
        ("as written: reap leaves the right to the next holder; slot reused", stuck, dict(takers, reaped_right="left")),
        ("reap frees the right", "FREE but not swept", dict(takers, reaped_right="FREE")),
        ("the reaper holds the right while it sweeps, and stops there", stuck, dict(takers, reaped_right="kept")),
        (
            "only receivers sweep; a filtered one is parked, a sender waits",
            stuck,
            dict(parked, flags={"starve together"}),
        ),
        (
            "the same, reap wakes parked receivers; none is",
            stuck,
            dict(absent, flags={"starve together", "wake on unswept"}),
        ),
        ("Starved only when no other thread is receiving", stuck, dict(others, flags={"senders sweep"})),
        ("ending or reaping a receive does not wake the filtered ones", stuck, dict(parked, plus="no starve wake")),
        ("bug: slot freed before the message is linked", stuck, dict(takers, plus="free before link")),
        ("bug: take right without an owner", stuck, dict(takers, reaped_right="untagged")),
        ("bug: take right without a counter", "taken without the right", dict(takers, plus="right without counter")),
        ("bug: owner proven dead before the word is read", "live claim taken", dict(claims, plus="proof before read")),
        ("bug: flight word stored after the claim", stuck, dict(claims, plus="flight after claim")),
        ("bug: admission by head", "more undelivered than capacity", dict(parked, plus="admit by head")),
        (
            "no bug: tail stored, not CASed (a hint that lags is helped again)",
            "holds",
            dict(claims, deaths=2, plus="tail stored"),
        ),
    ]
    if "--full" in sys.argv:
        again = dict(two, sends=[[[0, 1], [4]], [[2, 3], [5]]], tags="ababba")
        tests += [
            ("FULL: 2 x 2 (+ 1), 1 death, 2 racing reapers, %d slots" % n, "holds", dict(again, slots=n))
            for n in (2, 3)
        ]
    sys.exit(not all(run(title, expect, **options) for title, expect, options in tests))


if __name__ == "__main__":
    main()
