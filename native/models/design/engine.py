"""The engine of the design models: protocols as generators, every order of their steps, breadth first.

Each `yield label, operation, ...` of a protocol is one access to one shared word. A process's local state is its
suspended frames, so equal states merge, and the runs to a failure are shortest. `plain` stores wait in the process's
store buffer and drain at any later step (TSO); seq_cst operations (rmw and all that is made of it) wait for their own
buffer. The buffer of a killed process drains first.

`--short` ends each search after so many states: what holds, holds so far; a bug may not be found yet. `-v` shows the
run to each failure.
"""

import sys
import time
from array import array

VERBOSE, SHORT = "-v" in sys.argv, "--short" in sys.argv
CAP = 10_000 if SHORT else 3_000_000
FAILED = []


class Words:  # the shared words of one model, by index
    def __init__(self):
        self.initial = []

    def word(self, value):
        self.initial.append(value)
        return len(self.initial) - 1

    def words(self, n, value):
        return tuple(self.word(value) for _ in range(n))


def load(a, when=None):  # `when`: the step is enabled only if the value satisfies it
    def op(mem, buf):
        value = next((v for b, v in reversed(buf) if b == a), mem[a])
        return None if when and not when(value) else (mem, buf, value)

    return op


def rmw(a, f):  # f(old) -> (new, result), or None: not enabled
    def op(mem, buf):
        out = None if buf else f(mem[a])
        return out and ((*mem[:a], out[0], *mem[a + 1 :]), buf, out[1])

    return op


def swap(a, new):
    return rmw(a, lambda old: (new, old))


store = swap  # a seq_cst store


def cas(a, old, new):
    return rmw(a, lambda now: (new, True) if now == old else (now, False))


def plain(a, new):
    return lambda mem, buf: (mem, (*buf, (a, new)), None)


def lazy(op):
    op.lazy = True
    return op  # enabled only when nothing else can move (the 500 ms slice)


def local(op):
    op.local = True
    return op  # commutes with all but its own death: explored alone (ample set)


def choice(value):
    return lambda mem, buf: (mem, buf, value)


class Node:
    def __init__(self, history, request, value):
        self.history, self.request, self.value, self.edges = history, request, value, {}


KILLED, STOPPED = Node((), None, "killed"), Node((), None, "stopped")


class Process:  # a generator function, compiled step by step to an automaton
    def __init__(self, name, make, kill=False, stop=False):
        self.name, self.make, self.kill, self.stop, self.nodes = name, make, kill, stop, {}

    def node(self, history):
        g, request, value = self.make(), None, None
        try:
            request = g.send(None)
            for x in history:
                request = g.send(x)
            key, h = [], g
            while h is not None:
                key.append((h.gi_code.co_name, h.gi_frame.f_lasti, tuple(h.gi_frame.f_locals.items())))
                h = h.gi_yieldfrom
            key = tuple(key)
        except StopIteration as end:
            request, key = None, ("end", end.value)
            value = end.value
        return self.nodes.setdefault(key, Node(history, request, value))

    def after(self, node, result):
        if result not in node.edges:
            node.edges[result] = self.node((*node.history, result))
        return node.edges[result]


def put(t, i, v):
    return (*t[:i], v, *t[i + 1 :])


def steps(model, state):
    mem, nodes, bufs, kills, stops = state
    moves, slices, everyone = [], [], range(len(nodes))
    for p in everyone:
        if nodes[p].request and not bufs[p] and hasattr(nodes[p].request[1], "local"):
            everyone = (p,)
            break
    for p in everyone:
        node, proc = nodes[p], model.processes[p]
        if bufs[p]:
            a, v = bufs[p][0]
            moves.append((f"{proc.name}: drain", (put(mem, a, v), nodes, put(bufs, p, bufs[p][1:]), kills, stops)))
        if node.request is None:
            continue
        for op in node.request[1:]:
            out = op(mem, bufs[p])
            if out is not None:
                bufs2 = bufs if out[1] is bufs[p] else put(bufs, p, out[1])
                to = slices if hasattr(op, "lazy") else moves
                to.append(
                    (
                        f"{proc.name}: {node.request[0]}",
                        (out[0], put(nodes, p, proc.after(node, out[2])), bufs2, kills, stops),
                    )
                )
    moves, faults = moves or slices, []
    for p in everyone if kills or stops else ():
        node, proc = nodes[p], model.processes[p]
        if node.request is None:
            continue
        if kills and proc.kill:
            dead = put(mem, model.DEATHS, put(mem[model.DEATHS], p, 1))
            for a, v in bufs[p]:
                dead = put(dead, a, v)  # proof of death comes after the last store
            faults.append(
                (
                    f"SIGKILL {proc.name} before '{node.request[0]}'",
                    (dead, put(nodes, p, KILLED), put(bufs, p, ()), kills - 1, stops),
                )
            )
        if stops and proc.stop:
            faults.append(
                (
                    f"SIGSTOP {proc.name} before '{node.request[0]}'",
                    (mem, put(nodes, p, STOPPED), bufs, kills, stops - 1),
                )
            )
    return moves, faults


def explore(title, model, expect=None, cycles=True):
    """Search every interleaving; `expect` is part of the violation that an injected bug must show."""
    began = time.time()
    start = (
        tuple(model.words.initial),
        tuple(p.node(()) for p in model.processes),
        ((),) * len(model.processes),
        model.kills,
        model.stops,
    )
    ids, states, parents, edges, bad = {start: 0}, [start], [(None, "start")], [array("I"), array("I")], None
    for n, state in enumerate(states):  # `states` grows while we walk: it is the queue
        moves, faults = steps(model, state)
        bad = model.always(state) or (None if moves else model.at_rest(state))
        if bad:
            break
        if len(states) > CAP:
            if SHORT:
                cycles = False  # not seen to the end
            else:
                bad = f"more than {CAP} states"
            break
        for label, after in moves + faults:
            m = ids.setdefault(after, len(states))
            if m == len(states):
                states.append(after)
                parents.append((n, label))
            edges[0].append(n)
            edges[1].append(m)
    if not bad and cycles:  # peel states without predecessors; what is left is an endless loop
        waiting, heads = array("I", bytes(4 * len(states))), array("I", bytes(4 * (len(states) + 1)))
        for a in edges[0]:
            heads[a + 1] += 1
        for b in edges[1]:
            waiting[b] += 1
        for i in range(len(states)):
            heads[i + 1] += heads[i]
        todo, left = [0], len(states)  # breadth first: the edges of one state lie together
        while todo:
            a = todo.pop()
            left -= 1
            for e in range(heads[a], heads[a + 1]):
                b = edges[1][e]
                waiting[b] -= 1
                if not waiting[b]:
                    todo.append(b)
        if left:
            bad, n = "a run without end (livelock)", max(range(len(states)), key=lambda i: waiting[i] > 0)
    verdict = "HOLDS" if not bad else f"FAILS: {bad}"
    unfinished = SHORT and not bad and len(states) > CAP
    if unfinished:
        verdict = "HOLDS SO FAR"
    ok = (bad is None) if expect is None else unfinished or bool(bad and expect in bad)
    print(
        f"{'ok ' if ok else 'BAD'} {title:72} {len(states):8} states {time.time() - began:5.1f} s  {verdict}",
        flush=True,
    )
    if bad and (VERBOSE or not ok):
        path = []
        while n is not None:
            n, label = parents[n]
            path.append(label)
        print("      " + "\n      ".join(path[-2::-1]))
    model.report()
    FAILED.append(title) if not ok else None
