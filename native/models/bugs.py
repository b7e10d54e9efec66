"""Copy the core's sources for the models: the same, and with bugs that can be switched on.

    bugs.py SOURCE COPY     one source; `model_bug` says at run time which bug is on, 0: none
    bugs.py --table COPY    the table of the bugs, for main.c

Each bug replaces text that stands exactly once in its source. When it does not any more the build fails, so that the
table is kept true to the code. The sources themselves know nothing of it.
"""

import sys
from pathlib import Path
from typing import NamedTuple


class Bug(NamedTuple):
    name: str
    source: str
    text: str
    replacement: str  # BUG stands for "this one is on"
    scene: str  # that finds it
    bound: int  # of the switches it takes
    failure: str  # part of what is said


BUGS = [
    Bug(
        "claim without its position in the flight word",
        "ring.c",
        "atomic_store_explicit(&flight->position, tail, memory_order_release);",
        "if (!BUG) atomic_store_explicit(&flight->position, tail, memory_order_release);",
        "post-death",
        0,
        "is never skipped",
    ),
    Bug(
        "admission by head, not by the count delivered",
        "ring.c",
        "return position - atomic_load_explicit(&box->ring->delivered,",
        "return position - atomic_load_explicit(BUG ? &box->ring->head : &box->ring->delivered,",
        "aside",
        1,
        "more messages than the mailbox holds",
    ),
    Bug(
        "a sweep leaves linked slots",
        "ring.c",
        "if (lap_ahead(box, atomic_load(&slot->word), position) == 0)\n",
        "if (!BUG && lap_ahead(box, atomic_load(&slot->word), position) == 0)\n",
        "aside-death",
        0,
        "is delivered twice",
    ),
    Bug(
        "a slot is freed before its message is linked",
        "ring.c",
        "SHM_KILL_POINT(aside_link);",
        "if (BUG) atomic_store(&slot->word, slot_word(box, head, SHM_NOBODY, SHM_SLOT_FREE));",
        "aside-death",
        0,
        "is lost",
    ),
    Bug(
        "who looks at a message that was set aside takes it off the list",
        "ring.c",
        "                if (filter->keeps)\n                    return status;\n",
        "                if (!BUG && filter->keeps)\n                    return status;\n",
        "looks",
        1,
        "is lost",
    ),
    Bug(
        "a refused sender does not sweep",
        "ring.c",
        "if (shm_word_state(atomic_load(&box->ring->right)) == SHM_RIGHT_UNSWEPT)\n        status",
        "if (!BUG && shm_word_state(atomic_load(&box->ring->right)) == SHM_RIGHT_UNSWEPT)\n        status",
        "post-death",
        0,
        "sleeps for ever",
    ),
    Bug(
        "giving the right back wakes nobody",
        "ring.c",
        "wake_after_release(self, box, false);",
        "if (!BUG) wake_after_release(self, box, false);",
        "post",
        0,
        "sleeps for ever",
    ),
    Bug(
        "a publish wakes nobody",
        "ring.c",
        "shm_wake_set(self, &receivers, tail + 1);",
        "if (!BUG) shm_wake_set(self, &receivers, tail + 1);",
        "post",
        1,
        "sleeps for ever",
    ),
    Bug(
        "no look after registering",
        "park.c",
        "status = atomic_load(&self->member->closed) ? SHM_CLOSED : wait->attempt(self, wait->context);",
        "status = atomic_load(&self->member->closed) ? SHM_CLOSED : BUG ? SHM_EMPTY "
        ": wait->attempt(self, wait->context);",
        "post",
        1,
        "sleeps for ever",
    ),
    Bug(
        "who is not the first of a line keeps the wake",
        "park.c",
        "if (line->woken && !shm_set_is_first",
        "if (!BUG && line->woken && !shm_set_is_first",
        "turns",
        1,
        "sleeps for ever",
    ),
    Bug(
        "who leaves a set passes no baton",
        "park.c",
        "wake_next(self, &wait->waitables[i], 0);",
        "if (!BUG) wake_next(self, &wait->waitables[i], 0);",
        "late",
        2,
        "sleeps for ever",
    ),
    Bug(
        "reap does not post again",
        "keeper.c",
        "shm_park_reap_posts(self, victim, word);",
        "if (!BUG) shm_park_reap_posts(self, victim, word);",
        "post-death",
        0,
        "sleeps for ever",
    ),
    Bug(
        "reap of a waiter passes no baton",
        "keeper.c",
        "shm_wake_set(self, &waitable, 0);",
        "if (!BUG) shm_wake_set(self, &waitable, 0);",
        "takers-death",
        0,
        "sleeps for ever",
    ),
    Bug(
        "who answers does not free what the caller abandoned",
        "cell.c",
        "shm_word abandoned = shm_word_make(generation, self->slot, SHM_CELL_ABANDONED);",
        "shm_word abandoned = shm_word_make(generation, self->slot, BUG ? SHM_CELL_DONE : SHM_CELL_ABANDONED);",
        "call-late",
        1,
        "a reply cell is left in use",
    ),
    Bug(
        "reap fails a call and does not tell its caller",
        "cell.c",
        "if (state != SHM_CELL_ABANDONED)\n                tell_caller(self, index);",
        "if (!BUG && state != SHM_CELL_ABANDONED)\n                tell_caller(self, index);",
        "call-death",
        0,
        "sleeps",
    ),
    Bug(
        "a reply is not told",
        "cell.c",
        "shm_word_make(generation, self->slot, SHM_CELL_DONE))) {\n        tell_caller",
        "shm_word_make(generation, self->slot, SHM_CELL_DONE))) {\n        if (!BUG) tell_caller",
        "call",
        0,
        "sleeps",
    ),
    Bug(
        "a notice fires by a store",
        "notice.c",
        "if (!atomic_compare_exchange_strong(&notice->word, &armed, fired) && armed != fired)",
        "if (BUG ? (atomic_store(&notice->word, fired), false) "
        ": !atomic_compare_exchange_strong(&notice->word, &armed, fired) && armed != fired)",
        "notice-reapers",
        1,
        "two notices",
    ),
    Bug(
        "a notice is delivered at once",
        "ring.c",
        "|| has_older(box, filter, target) ||",
        "|| (!BUG && has_older(box, filter, target)) ||",
        "notice",
        0,
        "comes after the notice",
    ),
    Bug(
        "a notice does not wait for the ticks of the dead",
        "ring.c",
        "has_older_tick(self, box, filter, target) ||",
        "(!BUG && has_older_tick(self, box, filter, target)) ||",
        "notice-tick",
        0,
        "comes after the notice",
    ),
    Bug(
        "a link that gave way to none is given up",
        "notice.c",
        "if (linked)",
        "if (BUG || linked)",
        "link-death",
        1,
        "the end of a link is lost",
    ),
    Bug(
        "a later link that is not armed yet is left to stand behind ours",
        "notice.c",
        "            put_back(rival, seen);\n            continue;",
        "            if (BUG) break;\n            put_back(rival, seen);\n            continue;",
        "link",
        2,
        "linked 2 times",
    ),
    Bug(
        "who arms a notice does not look at whom it watches",
        "notice.c",
        "if (!shm_member_lives(self->segment, target))",
        "if (!BUG && !shm_member_lives(self->segment, target))",
        "notice",
        0,
        "a notice is lost",
    ),
    Bug(
        "reap takes the count of a dead locker, not the records",
        "arena.c",
        "unlock(block, mine, count_holders(segment, index));",
        "unlock(block, mine, BUG ? holders_of(locked) : count_holders(segment, index));",
        "share-death",
        0,
        "holders",
    ),
    Bug(
        "a block is locked by a store",
        "arena.c",
        "if (atomic_compare_exchange_weak(&block->word, &word, *locked))\n",
        "if (BUG ? (atomic_store(&block->word, *locked), true) "
        ": atomic_compare_exchange_weak(&block->word, &word, *locked))\n",
        "share",
        2,
        "holders",
    ),
    Bug(
        "two reapers release one lease",
        "arena.c",
        "if (atomic_compare_exchange_strong(&shm_lease_at(self->segment, lease)->word, &word,",
        "if (BUG || atomic_compare_exchange_strong(&shm_lease_at(self->segment, lease)->word, &word,",
        "share-reapers",
        1,
        "mailboxes are left in use at the end",
    ),
    Bug(
        "who reaps does not ask whether the process is taken apart yet",
        "member.c",
        "if (atomic_load(&record->ending) != generation + 1)",
        "if (BUG || atomic_load(&record->ending) != generation + 1)",
        "share-ending",
        0,
        "before its process was taken apart",
    ),
    Bug(
        "a reader does not look again when it has the block",
        "bus.c",
        "if (atomic_load(&frame->word) != ready) { /* B2 */",
        "if (!BUG && atomic_load(&frame->word) != ready) {",
        "bus",
        2,
        "shows 9",
    ),
    Bug(
        "a frame is written over before its word says so",
        "bus.c",
        "atomic_exchange(&frame->word, shm_word_make(p, self->slot, SHM_FRAME_CLAIMED)); /* B2 */",
        "if (!BUG) atomic_exchange(&frame->word, shm_word_make(p, self->slot, SHM_FRAME_CLAIMED));",
        "bus",
        1,
        "shows",
    ),
    Bug(
        "publishing a frame wakes nobody",
        "bus.c",
        "SHM_KILL_POINT(bus_published);\n    wake_readers(self, view);",
        "if (!BUG) wake_readers(self, view);",
        "bus",
        1,
        "sleeps for ever",
    ),
    Bug(
        "a reader that has moved wakes no writer",
        "bus.c",
        "if (shm_word_state(word) != SHM_READER_LOSES)\n        wake_writers(self, view);",
        "if (!BUG && shm_word_state(word) != SHM_READER_LOSES) wake_writers(self, view);",
        "bus-patience",
        1,
        "sleeps for ever",
    ),
    Bug(
        "the right to publish of a dead one stays",
        "bus.c",
        "if (shm_word_state(right) == SHM_PUBLISH_HELD && shm_word_owner(right) == victim &&",
        "if (!BUG && shm_word_state(right) == SHM_PUBLISH_HELD && shm_word_owner(right) == victim &&",
        "bus-death",
        0,
        "never free again",
    ),
    Bug(
        "a frame for one is not counted",
        "bus.c",
        "if (shm_word_owner(taken) >= limit)\n            return false;",
        "if (!BUG && shm_word_owner(taken) >= limit) return false;",
        "bus-once",
        1,
        "delivered twice",
    ),
    Bug(
        "bits are taken by a load and a store",
        "ring.c",
        "uint64_t bits = atomic_exchange(&ring->bits, 0);",
        "uint64_t bits = BUG ? atomic_load(&ring->bits) : atomic_exchange(&ring->bits, 0); "
        "if (BUG) atomic_store(&ring->bits, 0);",
        "notify",
        2,
        "a bit is lost",
    ),
    Bug(
        "reap does not tell of a dead one's bits",
        "keeper.c",
        "} else if (op == SHM_FLIGHT_NOTIFY &&",
        "} else if (!BUG && op == SHM_FLIGHT_NOTIFY &&",
        "notify-death",
        0,
        "sleeps for ever",
    ),
    Bug(
        "setting an event wakes nobody",
        "sync.c",
        "        else\n            shm_wake_set(self, &line, 0);",
        "        else if (!BUG)\n            shm_wake_set(self, &line, 0);",
        "event",
        1,
        "sleeps for ever",
    ),
    Bug(
        "a dead one who stood in line stays there",
        "sync.c",
        "            shm_reap_leave(self, place, owner, set);",
        "            if (!BUG) shm_reap_leave(self, place, owner, set);",
        "event-death",
        0,
        "sleeps for ever",
    ),
    Bug(
        "the mutex of a dead one stays his",
        "sync.c",
        "if ((word & 0xF) == SHM_SYNC_HELD && shm_sync_slot(word) == victim &&",
        "if (!BUG && (word & 0xF) == SHM_SYNC_HELD && shm_sync_slot(word) == victim &&",
        "mutex-death",
        0,
        "never free again",
    ),
    Bug(
        "a wait for all takes what others have let fail",
        "sync.c",
        "return atomic_compare_exchange_strong(decision_at(self->segment, self->place), &decision, taken);",
        "return BUG ? (atomic_store(decision_at(self->segment, self->place), taken), true) : "
        "atomic_compare_exchange_strong(decision_at(self->segment, self->place), &decision, taken);",
        "all-stop",
        1,
        "what was taken is there",
    ),
    Bug(
        "who looks takes a claim for a take",
        "sync.c",
        "return (decision & 0xF) == SHM_DECISION_TAKEN ? shm_sync_taken(view, old, 0) : old;",
        "return BUG || (decision & 0xF) == SHM_DECISION_TAKEN ? shm_sync_taken(view, old, 0) : old;",
        "all",
        2,
        "an event is missing",
    ),
    Bug(
        "the claims of a dead one stay",
        "sync.c",
        "    if ((word & 0xF) != SHM_SYNC_CLAIMED)\n        return;",
        "    if (BUG || (word & 0xF) != SHM_SYNC_CLAIMED)\n        return;",
        "all-death",
        0,
        "a claim is left",
    ),
    Bug(
        "closing a call does not tell its server",
        "cell.c",
        "shm_abort_tell(self, shm_call_cell(call), shm_call_generation(call));",
        "if (!BUG) shm_abort_tell(self, shm_call_cell(call), shm_call_generation(call));",
        "abort-late",
        0,
        "sleeps for ever though it is aborted",
    ),
    Bug(
        "reap of a caller does not tell its server",
        "cell.c",
        "if (!shm_cell_is_done(seen))\n                shm_abort_tell(",
        "if (!BUG && !shm_cell_is_done(seen))\n                shm_abort_tell(",
        "abort-late-death",
        0,
        "sleeps for ever though it is aborted",
    ),
    Bug(
        "an aborted thread is not woken",
        "abort.c",
        "SHM_KILL_POINT(abort_flagged);\n            shm_wake_one(self, &one);",
        "if (!BUG) shm_wake_one(self, &one);",
        "abort",
        0,
        "sleeps for ever though it is aborted",
    ),
    Bug(
        "reap does not wake whom the dead one has aborted",
        "abort.c",
        "if (atomic_load(&shm_place_at(self->segment, index)->abort))\n",
        "if (!BUG && atomic_load(&shm_place_at(self->segment, index)->abort))\n",
        "abort-death",
        0,
        "sleeps for ever though it is aborted",
    ),
    Bug(
        "who waits does not look whether it is aborted",
        "park.c",
        "if (goes_on(status) && is_aborted(self)) /* A1, A2 */",
        "if (!BUG && goes_on(status) && is_aborted(self))",
        "abort",
        1,
        "sleeps for ever though it is aborted",
    ),
    Bug(
        "an abort is told, and stays",
        "abort.c",
        "atomic_store_explicit(&self->serves, 0, memory_order_relaxed);\n        taken |= SHM_ABORT_CALL;",
        "if (!BUG) atomic_store_explicit(&self->serves, 0, memory_order_relaxed);\n        taken |= SHM_ABORT_CALL;",
        "abort-late",
        0,
        "is not told once",
    ),
    Bug(
        "marking a call does not tell its server",
        "abort.c",
        "SHM_KILL_POINT(abort_marked);\n    shm_abort_tell(self, index, generation);",
        "if (!BUG) shm_abort_tell(self, index, generation);",
        "abort-shielded",
        0,
        "sleeps for ever though it is aborted",
    ),
    Bug(
        "a request that is marked is not taken",
        "ring.c",
        "if (shm_word_count(word) != (call & SHM_COUNT_MASK) || !shm_cell_is_open(word))",
        "if (shm_word_count(word) != (call & SHM_COUNT_MASK) || !shm_cell_is_open(word) ||\n"
        "            (BUG && shm_word_state(word) != SHM_CELL_PENDING))",
        "abort-shielded",
        1,
        "waits for a reply that never comes",
    ),
    Bug(
        "a mutex is adopted by a store",
        "sync.c",
        "    return atomic_compare_exchange_strong(&view->sync->word, &word,\n"
        "                                          shm_sync_next(word, shm_sync_held(self), SHM_SYNC_HELD))\n",
        "    return (BUG ? (atomic_store(&view->sync->word,\n"
        "                                shm_sync_next(word, shm_sync_held(self), SHM_SYNC_HELD)), 1)\n"
        "        : atomic_compare_exchange_strong(&view->sync->word, &word,\n"
        "                                          shm_sync_next(word, shm_sync_held(self), SHM_SYNC_HELD)))\n",
        "adopt-twice",
        1,
        "have adopted at once",
    ),
    Bug(
        "who adopts a mutex does not say that it holds one",
        "sync.c",
        "    self->holds = true; /* first: a thread that ends abandons what it has */\n",
        "    if (!BUG) self->holds = true;\n",
        "adopt",
        1,
        "never free again",
    ),
    Bug(
        "who makes room wakes none of those who look on",
        "ring.c",
        "    wake_watchers(self, box);\n    if (box->envelope_at && (everybody",
        "    if (!BUG) wake_watchers(self, box);\n    if (box->envelope_at && (everybody",
        "room",
        1,
        "sleeps for ever",
    ),
    Bug(
        "who leaves a line tells none of those who wait for room",
        "mailbox.c",
        "if (!shm_set_empty(s->box->watchers) && shm_ring_has_room(s->box))",
        "if (!BUG && !shm_set_empty(s->box->watchers) && shm_ring_has_room(s->box))",
        "room-line",
        1,
        "sleeps for ever",
    ),
    Bug(
        "reap of one in line tells none of those who wait for room",
        "keeper.c",
        "if (kind == SHM_WAIT_SEND) /* the line is shorter */",
        "if (!BUG && kind == SHM_WAIT_SEND)",
        "room-line-death",
        1,
        "sleeps for ever",
    ),
    Bug(
        "who reads a pipe wakes none of those who look on for room",
        "pipe.c",
        "    if (!shm_set_empty(view->watchers))\n        shm_wake_all(self, &watchers);",
        "    if (!BUG && !shm_set_empty(view->watchers))\n        shm_wake_all(self, &watchers);",
        "room-pipe",
        1,
        "sleeps for ever",
    ),
    Bug(
        "a message in a lane wakes nobody",
        "lane.c",
        "if (atomic_load(&lane->taken->waits))",
        "if (!BUG && atomic_load(&lane->taken->waits))",
        "lane",
        1,
        "sleeps for ever",
    ),
    Bug(
        "who posts to a lane makes no will",
        "lane.c",
        "shm_will_make(&lane->board->knell);",
        "BUG ? 0 : shm_will_make(&lane->board->knell);",
        "lane-death",
        1,
        "sleeps for ever",
    ),
    Bug(
        "who takes from a lane makes no will",
        "lane.c",
        "shm_will_make(&lane->taken->knell);",
        "BUG ? 0 : shm_will_make(&lane->taken->knell);",
        "lane-death",
        1,
        "sleeps for ever",
    ),
    Bug(
        "who sleeps on a lane does not say so",
        "lane.c",
        "        say(lanes[i], 1);\n",
        "        if (!BUG) say(lanes[i], 1);\n",
        "lane",
        1,
        "sleeps for ever",
    ),
]


def copy_of(source: Path) -> str:
    text = source.read_text()
    for number, bug in enumerate(BUGS, 1):
        if bug.source != source.name:
            continue
        if text.count(bug.text) != 1:
            sys.exit(
                f"{source}: bug {bug.name!r} replaces text that stands there {text.count(bug.text)} times, not once"
            )
        text = text.replace(bug.text, bug.replacement.replace("BUG", f"(model_bug == {number})"))
    return f'extern int model_bug;\n#line 1 "{source.name}"\n{text}'


def table() -> str:
    rows = (f'    {{"{bug.name}", "{bug.scene}", {bug.bound}, "{bug.failure}"}},\n' for bug in BUGS)
    return "".join(rows)


def main() -> None:
    source, copy = sys.argv[1:]
    Path(copy).write_text(table() if source == "--table" else copy_of(Path(source)))


if __name__ == "__main__":
    main()
