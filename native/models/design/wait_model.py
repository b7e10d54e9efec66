"""The wait protocol (W1, W2, W4 of docs/explanation/waiting.md), every interleaving, with deaths and stops at any step.

Sentence of the design                                     Step here
W1 "The store that makes a condition true is a seq_cst     `publish` (RMW), then `wake: ...`
   read-modify-write, followed by a load of the set"
W1 "A waiter registers with a RMW, re-reads, parks"        `arm`, `register`, `look: ...`, `park`
W2 "CAS ARMED to NOTIFIED(me), then posts"                 `wake: CAS ...`, `wake: post`
W2 "Reap posts again every place NOTIFIED by the dead"     `reap: post again`
W2 "Whoever leaves NOTIFIED ... wakes the next"            MEND: whoever leaves the SET: `leave`, `deregister`, `wake: ...`, `idle`
"at most one wake in flight per waitable, baton"           wake_next returns at the first place that is NOTIFIED
the design: "flight words"                                   MEND: kept until the wake is done; `reap: flight word` repeats it
W4 slice                                                   a lazy end of `park`: only when nothing else can move
There is no slice otherwise: a waiter asleep on a true condition at rest would be `rescued`. Run with -v for traces of the bugs."""

import sys

from engine import FAILED, KILLED, Process, Words, cas, choice, explore, lazy, load, local, plain, put, rmw, store, swap

# ---- the model ---------------------------------------------------------------------------------------------------------
IDLE, ARMED, NOTIFIED, LEAVING = "IDLE", "ARMED", "NOTIFIED", "LEAVING"


def take_first(w, wants):
    def f(x):
        at = next((n for n, k in enumerate(x[1]) if k in wants), None)
        return (x, None) if at is None else ((x[0], x[1][:at] + x[1][at + 1 :]), (w, x[1][at]))

    return f


class Wait:
    """`waiters`: (waits of each round, wants, how many rounds have a deadline); `puts`: per waker the items (waitable, kind) it adds."""

    def __init__(
        self,
        waiters,
        puts,
        waitables=1,
        kills=0,
        stops=0,
        keepers=1,
        fifo=False,
        filters=False,
        racing=False,
        bugs=(),
        victims="WPK",
    ):
        self.waiters, self.fifo, self.filters, self.bugs, self.kills, self.stops = (
            waiters,
            fifo,
            filters,
            frozenset(bugs),
            kills,
            stops,
        )
        n, m, self.words, self.most = len(waiters), len(puts), Words(), 0
        self.ITEMS = self.words.words(waitables, (0, ()))  # (tail, the items undelivered): the condition
        self.SET = self.words.words(waitables, ())  # the waiter set: ((place, gen), ...), oldest first
        self.PLACE = self.words.words(n, (0, IDLE, None))  # the word gen | waker | state
        self.LIST = self.words.words(n, ())  # what the place waits for
        self.SEM, self.SEEN = self.words.words(n, 0), self.words.words(n, 0)
        self.FLIGHT = self.words.words(n + m + keepers, None)  # flight words: the waitable whose wake is owed
        self.DEATHS = self.words.word((0,) * (n + m + keepers))  # 0 alive, 1 dead (pidfd, life lock), 2 reaped
        self.processes = [Process(f"W{i}", lambda i=i: self.waiter(i, *waiters[i]), "W" in victims) for i in range(n)]
        self.processes += [
            Process(f"P{j}", lambda j=j: self.waker(n + j, tuple(puts[j])), "P" in victims, True) for j in range(m)
        ]
        self.processes += [
            Process(
                f"K{k}",
                lambda k=k: self.keeper(n + m + k, n + m + k - 1 if k and not racing else None),
                "K" in victims,
                racing,
            )
            for k in range(keepers)
        ]

    def wake_next(self, w, me):
        """W2: wake one waiter of w, unless nothing is there or a wake is in flight already."""
        tail, items = yield "wake: re-read condition", load(self.ITEMS[w])
        if not items:
            return
        waiting = yield "wake: load waiter set", load(self.SET[w])
        for j, gen in waiting[:1] if self.fifo else waiting:  # in a fair line only the first may act: wake nobody else
            if (
                self.filters
                and "no seen" not in self.bugs
                and (yield "wake: has it looked so far?", load(self.SEEN[j])) >= tail
            ):
                continue
            word = yield "wake: load place", load(self.PLACE[j])
            if "no gen" not in self.bugs and word[0] != gen:
                continue  # it waits for something else by now
            if word[1] == NOTIFIED:
                return  # at most one wake in flight; the woken passes it on
            if word[1] != ARMED:
                continue
            if not (yield "wake: CAS ARMED to NOTIFIED", cas(self.PLACE[j], word, (word[0], NOTIFIED, me))):
                continue
            yield "wake: post", rmw(self.SEM[j], lambda n: (n + 1, None))
            return

    def waker(self, me, puts):
        for n in range(len(puts)):  # by index: equal items must not look like one place
            w, kind = puts[n]
            yield "flight word", local(store(self.FLIGHT[me], None if "no flight" in self.bugs else w))
            if "plain publish" in self.bugs:
                yield "publish, plain store", plain(self.ITEMS[w], (1, (kind,)))
            else:
                yield "publish", rmw(self.ITEMS[w], lambda x: ((x[0] + 1, x[1] + (kind,)), None))  # W1
            yield from self.wake_next(w, me)
            yield "flight word cleared", local(store(self.FLIGHT[me], None))

    def look(self, i, waits, wants):
        """One look at the conditions: what was taken, or None."""
        for w in waits:
            if self.fifo:
                line = yield "look: load the line", load(self.SET[w])
                if line and line[0][0] != i:
                    continue  # a sender that finds parked senders queues behind them
            tail, items = yield "look: re-read condition", load(self.ITEMS[w])
            if any(k in wants for k in items):
                item = yield "take", rmw(self.ITEMS[w], take_first(w, wants))
                if item:
                    return item
            elif self.filters:
                yield "remember how far I looked", store(self.SEEN[i], tail)
        return None

    def waiter(self, i, rounds, wants, timed):
        taken = ()
        for gen in range(1, len(rounds) + 1):
            got = yield from self.wait_any(i, gen, rounds[gen - 1], wants, gen <= timed)
            taken += (got,)
        return taken

    def wait_any(self, i, gen, waits, wants, timed):
        item = yield from self.look(i, waits, wants)  # nothing is registered when it is true at once
        if item:
            return item
        if "no drain" not in self.bugs:
            yield "drain stale tokens", store(self.SEM[i], 0)
        yield "list", local(store(self.LIST[i], waits))
        yield "arm", store(self.PLACE[i], (gen, ARMED, None))
        for w in waits:
            if "plain register" in self.bugs:
                yield "register, plain store", plain(self.SET[w], ((i, gen),))
            else:
                yield "register", rmw(self.SET[w], lambda s: ((*s, (i, gen)), None))  # W1
        while True:
            if "no re-read" not in self.bugs:
                item = yield from self.look(i, waits, wants)  # W1: re-read after registering
                if item:
                    break
            if (yield ("park", *self.ends_of_park(i, waits, wants, timed))) == "gave up":
                break
            word = yield "what woke me?", load(self.PLACE[i])
            if word[1] == NOTIFIED:  # else a token left over: park again
                item = yield from self.look(i, waits, wants)
                if item:
                    break
                if "pass first" in self.bugs:
                    for w in waits:
                        yield from self.wake_next(w, i)
                yield "re-arm", store(self.PLACE[i], (gen, ARMED, None))
                if (
                    self.filters and "pass first" not in self.bugs
                ):  # nothing for me: the next that has not looked so far
                    for w in waits:
                        yield from self.wake_next(w, i)
        old = yield "leave", swap(self.PLACE[i], (gen, IDLE if "idle first" in self.bugs else LEAVING, None))
        for w in waits:
            yield "deregister", rmw(self.SET[w], lambda s: (tuple(e for e in s if e[0] != i), None))
        notified = old[1] == NOTIFIED
        if (
            "never pass" in self.bugs
            or ("as written" in self.bugs and not notified)
            or ("unconsumed only" in self.bugs and (item or not notified))
        ):
            waits = ()
        for w in waits:
            yield from self.wake_next(w, i)  # whoever leaves the set passes the baton
        yield "idle", store(self.PLACE[i], (gen, IDLE, None))
        return item

    def ends_of_park(self, i, waits, wants, timed):
        yield rmw(self.SEM[i], lambda n: (n - 1, "token") if n else None)
        if timed:
            yield choice("gave up")  # timeout, abort, Ctrl-C: at any moment
        for w in waits if self.stops else ():  # W4: a slice that finds the condition true
            yield lazy(load(self.ITEMS[w], lambda x: any(k in wants for k in x[1])))

    def keeper(self, k, before):
        if before is not None:
            yield "stand by", load(self.DEATHS, lambda d: d[before])
        while True:
            dead = yield "find a dead member", load(self.DEATHS, lambda d: 1 in d)
            v = dead.index(1)
            yield from self.reap(k, v)
            del dead, v

    def reap(self, k, v):
        if "no re-post" not in self.bugs:  # W2: reap posts again every place NOTIFIED by the dead
            for j in range(len(self.waiters)):
                if (yield "reap: NOTIFIED by the dead?", load(self.PLACE[j]))[1:] == (NOTIFIED, v):
                    yield "reap: post again", rmw(self.SEM[j], lambda n: (n + 1, None))
        if v < len(self.waiters):
            word = yield "reap: the dead one's place", load(self.PLACE[v])
            if word[1] != IDLE:
                waits = yield "reap: its list", load(self.LIST[v])
                for w in waits:
                    yield "reap: deregister", rmw(self.SET[w], lambda s: (tuple(e for e in s if e[0] != v), None))
                for w in () if "reap keeps baton" in self.bugs else waits:
                    yield from self.wake_next(w, k)
                yield "reap: place idle", rmw(self.PLACE[v], lambda x: ((x[0], IDLE, None), None))
        owed = yield "reap: flight word", load(self.FLIGHT[v])
        if owed is not None:
            yield from self.wake_next(owed, k)
        yield "reap: done", rmw(self.DEATHS, lambda d: (put(d, v, 2), None))

    def always(self, state):
        self.most = max(self.most, max(state[0][a] for a in self.SEM))

    def at_rest(self, state):
        mem, nodes = state[:2]
        for i, (_rounds, wants, timed) in enumerate(self.waiters):
            if nodes[i].request is None:
                continue
            waits, timed = mem[self.LIST[i]], mem[self.PLACE[i]][0] <= timed
            if nodes[i].request[0] != "park":
                return f"W{i} is stuck at '{nodes[i].request[0]}'"
            if timed:
                return f"W{i} has a deadline and never returns"
            for w in waits:
                live = [j for j, _ in mem[self.SET[w]] if nodes[j] is not KILLED]
                if any(k in wants for k in mem[self.ITEMS[w]][1]) and (not self.fifo or live[:1] == [i]):
                    return f"W{i} sleeps for ever on a true condition"
        if 1 in mem[self.DEATHS] and any(nodes[-k].request for k in (1,) if self.kills):
            return "a dead member is never reaped"

    def report(self):
        self.tokens = self.most


A, A2, B = (
    (((0,),), "a", 0),
    (((0,), (0,)), "a", 0),
    (((0,),), "b", 0),
)  # takes one a; two a in turn; one b; all for ever
T = (((0,),), "a", 1)  # as A, with a deadline (or an abort, Ctrl-C)
ANY, ANYT, ON1 = (((0, 1),), "a", 0), (((0, 1),), "a", 1), (((1,),), "a", 0)


def run(title, *args, expect=None, cycles=True, **kw):
    model = Wait(*args, **kw)
    explore(title, model, expect, cycles)
    return model


if __name__ == "__main__":
    a, aa, a_a, ba = [[(0, "a")]], [[(0, "a"), (0, "a")]], [[(0, "a")], [(0, "a")]], [[(0, "b"), (0, "a")]]
    asleep = "sleeps for ever"
    print("The protocol, with the mends")
    run("1 waiter, 1 waker, keeper; 1 death", [A], a, kills=1)
    run("1 waiter, 1 waker, two keepers in turn; 2 deaths", [A], a, kills=2, keepers=2)
    run(
        "1 waiter, 1 waker, two racing reapers, one may stop; 1 death",
        [A],
        a,
        kills=1,
        keepers=2,
        stops=1,
        racing=True,
        victims="WP",
    )
    run("2 waiters, 1 waker, two racing reapers; 1 death", [A, A], a, kills=1, keepers=2, racing=True, victims="WP")
    run("2 waiters, 2 items of 1 waker; 1 death of a waiter", [A, A], aa, kills=1, victims="W")
    run("2 waiters, 2 items of 1 waker; 1 death of the waker or the keeper", [A, A], aa, kills=1, victims="PK")
    run("waiter, waiter with deadline, 2 wakers", [A, T], a_a)
    run("waiter, waiter with deadline, 1 waker; 1 death", [A, T], a, kills=1)
    run("wait-any of two, a waiter on each, 1 waker", [ANY, A, ON1], [[(0, "a"), (1, "a")]], waitables=2)
    run("wait-any with deadline, waiter on one; 1 death", [ANYT, A], [[(0, "a"), (1, "a")]], waitables=2, kills=1)
    run("filters: one wants a, one wants b; puts b, a", [A, B], ba, filters=True)
    run("filters: 1 death", [A, B], [[(0, "b")]], filters=True, kills=1)
    run("fair line of senders, 2 places freed; 1 death", [A, A], aa, fifo=True, kills=1)
    run("fair line, first has a deadline; 1 death", [T, A], a, fifo=True, kills=1)
    run("a waker stopped for ever: the 500 ms slice finds it", [A, T], a_a, stops=1, victims="")
    with_drain = [run(f"tokens: {n} waits in turn", [(((0,),) * n, "a", 0)], [[(0, "a")] * n]).most for n in (2, 3, 4)]
    print("What the models catch: the design read literally (L), injected bugs (B)")
    run(
        "L: baton only from NOTIFIED; fair line, leaver was ARMED",
        [A, A],
        aa,
        fifo=True,
        bugs=["as written"],
        expect=asleep,
    )
    run("L: baton only when nothing was consumed", [A, A], aa, bugs=["unconsumed only"], expect=asleep)
    run(
        "L: the waker dies between publish and its wake, no flight word",
        [A],
        a,
        kills=1,
        victims="P",
        bugs=["no flight"],
        expect=asleep,
    )
    run(
        "L: reap of a NOTIFIED waiter does not pass the baton",
        [A, A],
        a,
        kills=1,
        victims="W",
        bugs=["reap keeps baton"],
        expect=asleep,
    )
    run(
        "L: place IDLE before the baton is passed, then death",
        [A, A],
        aa,
        kills=1,
        victims="W",
        bugs=["idle first"],
        expect=asleep,
    )
    run(
        "L: filter mismatch passes on before it re-arms",
        [A, B],
        [[(0, "c"), (0, "b")]],
        filters=True,
        bugs=["pass first"],
        expect=asleep,
    )
    moves_on = [(((0,), (1,)), "a", 1), A]  # W0 gives up on 0, then waits for 1 with the same place
    run(
        "L: late waker, set without generations, baton only from NOTIFIED",
        moves_on,
        a,
        waitables=2,
        bugs=["no gen", "as written"],
        expect=asleep,
    )
    run(
        "   the same, but whoever leaves the set passes on: generations not needed",
        moves_on,
        a,
        waitables=2,
        bugs=["no gen"],
    )
    run("   without a fair line, baton only from NOTIFIED is enough", [A, A], aa, bugs=["as written"])
    without = [
        run(
            f"L: stale tokens not drained, {n} waits in turn",
            [(((0,),) * n, "a", 0)],
            [[(0, "a")] * n],
            bugs=["no drain"],
        ).most
        for n in (2, 3, 4)
    ]
    print(f"      most tokens in 2, 3, 4 waits: drained before arming {with_drain}, not drained {without}")
    run("B: publish is a plain store", [A], a, bugs=["plain publish"], expect=asleep)
    run("B: registration is a plain store", [A], a, bugs=["plain register"], expect=asleep)
    run("B: no re-read after registering", [A], a, bugs=["no re-read"], expect=asleep)
    run("B: the woken never passes the baton", [A, A], aa, bugs=["never pass"], expect=asleep)
    run(
        "B: baton to one that has looked already",
        [A, A],
        [[(0, "b")]],
        filters=True,
        bugs=["no seen"],
        expect="livelock",
    )
    run("B: reap does not post again", [A], a, kills=1, victims="P", bugs=["no re-post"], expect=asleep)
    if FAILED:
        sys.exit(f"{len(FAILED)} not as expected")
