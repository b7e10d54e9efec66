#include "scenes.h"

#include <string.h>

#include "base/status.h"
#include "transport/pipe.h"

/* ---- what every scene is made of --------------------------------------------------------------------------- */

static struct shm_box *box_of(int fiber)
{
    return &model->boxes[fiber][0];
}

static const struct shm_filter all = {.sender = SHM_SENDER_ANY, .tag = SHM_TAG_ANY, .kinds = ~0u};

static struct shm_filter by_tag(uint64_t tag)
{
    return (struct shm_filter){.sender = SHM_SENDER_ANY, .tag = tag, .kinds = ~0u};
}

static void must(int status, const char *what)
{
    if (status)
        model_fail("%s: %d", what, status);
}

/* The auditor, who is no fiber, makes a mailbox and everybody opens it. Its ring stands just before the end of a lap. */
static void make_box(int which, uint32_t capacity, uint32_t kind, shm_member_id owner)
{
    struct shm_thread *self = &model->auditor;
    struct shm_box *box = &model->auditor_boxes[which];
    uint64_t number = 0, looked = 0;
    struct shm_message message = {.body = &number, .len_bytes = 8}, out;
    must(shm_box_make(self, box, kind, capacity, 8, owner), "the scene's mailbox");
    for (uint32_t i = 0; i < SHM_MIN_SLOTS - 1; i++) {
        must(shm_ring_send(self, box, &message, false), "a first message");
        must(shm_ring_receive(self, box, &all, &out, &looked), "a first message comes");
    }
    for (int f = 0; f < model_scene->fibers; f++)
        must(shm_box_open(&model->threads[f], &model->boxes[f][which], box->index, box->count), "open");
}

static void make_shared(uint32_t capacity)
{
    make_box(0, capacity, SHM_BOX_SHARED, 0);
}

static int send_by(int fiber, struct shm_box *box, uint64_t number, uint64_t tag, uint64_t deadline_ns)
{
    struct shm_message message = {
        .header = shm_header_make(SHM_KIND_CAST, tag), .body = &number, .len_bytes = 8};
    model->waits[fiber] = (struct waits){.kind = WAITS_ROOM, .box = box};
    int status = shm_box_send(&model->threads[fiber], box, &message, deadline_ns);
    model->waits[fiber].kind = WAITS_NOTHING;
    model->tags[number] = (uint8_t)tag;
    model->sent[number] = (uint8_t)(1 - status);
    return status;
}

static void note_received(int fiber, uint64_t number)
{
    if (number >= MODEL_MESSAGES) {
        model_fail("a message that nobody sent: %llu", (unsigned long long)number);
        return;
    }
    if (++model->got[number] > 1)
        model_fail("message %llu is delivered twice", (unsigned long long)number);
    if (fiber >= 0)
        model->order[fiber][model->received[fiber]++] = (int8_t)number;
    if (fiber >= 0)
        memset(model->threads[fiber].scratch, 0xFF, 8);
}

static uint64_t number_in(const struct shm_message *message)
{
    uint64_t number = MODEL_MESSAGES;
    if (message->len_bytes == 8)
        memcpy(&number, message->body, 8);
    return number;
}

static int receive_by(int fiber, struct shm_box *box, const struct shm_filter *filter,
                      struct shm_message *message, uint64_t deadline_ns)
{
    model->waits[fiber] = (struct waits){.kind = WAITS_MESSAGE, .box = box, .filter = *filter};
    int status = shm_box_receive(&model->threads[fiber], box, filter, message, deadline_ns);
    model->waits[fiber].kind = WAITS_NOTHING;
    return status;
}

static int receive_number(int fiber, const struct shm_filter *filter, uint64_t deadline_ns)
{
    struct shm_message message;
    int status = receive_by(fiber, box_of(fiber), filter, &message, deadline_ns);
    if (status == 0)
        note_received(fiber, number_in(&message));
    return status;
}

static void reap_one(int fiber, uint32_t slot)
{
    model->now_ns += 2 * SHM_NS_PER_S; /* who has been at it is taken for slow: both go on at once */
    struct shm_member_record *record = shm_member_at(&model_segment, slot);
    if (model_scene->lasts)
        shm_reap_ending(&model->threads[fiber], slot, atomic_load(&record->word), 9);
    if (!shm_reap(&model->threads[fiber], slot))
        shm_clock_relax();
    while (model_scene->lasts && !atomic_load(&record->suspected))
        shm_clock_relax(); /* two that try again and again would never let the kernel go on */
}

/* A member that does nothing but reap. */
static void reaper(int fiber)
{
    for (;;) {
        model_wait_for_death();
        for (uint32_t slot = 1; slot < MODEL_SLOTS; slot++)
            if (slot != model_slot(fiber) && model_is_unreaped(slot))
                reap_one(fiber, slot);
    }
}

/* ---- what is in a mailbox ---------------------------------------------------------------------------------- */

static const struct shm_slot *slot_of(const struct shm_box *box, uint64_t i)
{
    return (const struct shm_slot *)(const void *)(box->slots + i * box->slot_bytes);
}

static const struct shm_slot *aside_body(const struct shm_box *box, uint32_t entry)
{
    return (const struct shm_slot *)(const void *)(box->bodies + (uint64_t)entry * box->slot_bytes);
}

struct inventory {
    uint32_t undelivered, ready, matching;
    uint32_t numbers; /* bit mask */
};

static bool fits(const struct shm_filter *filter, uint64_t header)
{
    return filter->tag == SHM_TAG_ANY || filter->tag == (header & SHM_TAG_MASK);
}

/* Read past all protocol: messages linked, and slots that are not free and not linked. */
static struct inventory inventory_of(const struct shm_box *box, const struct shm_filter *filter)
{
    struct inventory in = {0};
    uint64_t linked[MODEL_MESSAGES];
    uint32_t links = 0;
    for (uint32_t e = *(volatile uint32_t *)&box->ring->aside_first; e && links < MODEL_MESSAGES;
         e = *(volatile uint32_t *)&box->asides[e - 1].next) {
        const struct shm_slot *body = aside_body(box, e - 1);
        linked[links++] = box->asides[e - 1].position;
        in.undelivered++;
        in.ready++;
        in.matching += fits(filter, body->header);
        in.numbers |= 1u << (body->body[0] & 15);
    }
    for (uint64_t i = 0; i <= box->mask; i++) {
        const struct shm_slot *slot = slot_of(box, i);
        shm_word word = *(const volatile shm_word *)&slot->word;
        if (shm_word_state(word) == SHM_SLOT_FREE)
            continue;
        uint64_t position = shm_word_count(word) << box->shift | i;
        bool is_linked = false;
        for (uint32_t l = 0; l < links; l++)
            is_linked |= linked[l] == position;
        if (is_linked)
            continue;
        in.undelivered++;
        if (shm_word_state(word) != SHM_SLOT_READY)
            continue;
        in.ready++;
        in.matching += fits(filter, slot->header);
        in.numbers |= 1u << (slot->body[0] & 15);
    }
    return in;
}

static void never_too_many(void)
{
    const struct shm_box *box = &model->auditor_boxes[0];
    if (inventory_of(box, &all).undelivered > box->capacity)
        model_fail("more messages than the mailbox holds");
}

/* ---- ends -------------------------------------------------------------------------------------------------- */

static bool has_something(const struct waits *waits, int fiber)
{
    const struct shm_bus_view *view = &model->buses[fiber];
    uint64_t tail = view->bus ? *(volatile uint64_t *)&view->bus->tail : 0;
    if (waits->kind == WAITS_FRAME)
        return *(volatile uint64_t *)&view->readers[model->readers[fiber].index].cursor != tail;
    if (waits->kind == WAITS_PUBLISH) {
        if (shm_word_state(*(volatile shm_word *)&view->bus->right) != SHM_PUBLISH_FREE)
            return false;
        for (uint32_t i = 0; i < view->config.readers; i++)
            if (shm_word_state(*(volatile shm_word *)&view->readers[i].word) == SHM_READER_BLOCKS &&
                *(volatile uint64_t *)&view->readers[i].cursor + view->config.frames <= tail)
                return false;
        return true;
    }
    if (waits->kind == WAITS_SYNC) {
        bool all = true;
        for (int i = 0; i < 2; i++)
            if (waits->syncs >> i & 1)
                all &= shm_sync_is_available(&model->threads[fiber], &model->syncs[fiber][i],
                                             *(volatile uint64_t *)&model->syncs[fiber][i].sync->word);
        return all;
    }
    if (waits->kind == WAITS_LANE) {
        const struct shm_lane *lane = &model->lanes[fiber];
        return shm_lane_depth(lane) != (lane->posts ? lane->slots : 0);
    }
    if (waits->kind == WAITS_ANY)
        return model_scene->is_there(fiber);
    struct inventory in = inventory_of(waits->box, &waits->filter);
    if (waits->kind == WAITS_MESSAGE)
        return in.matching > 0 || *(volatile uint64_t *)&waits->box->ring->bits;
    return in.undelivered < waits->box->capacity;
}

/* Who still waits must have nothing to wait for. */
static void judge_waits(void)
{
    for (int f = 0; f < model_scene->fibers; f++)
        if (model->fibers[f].state == FIBER_PARKED && shm_abort_is_pending(&model->threads[f]) &&
            !shm_is_shielded(&model->threads[f]))
            model_fail("%c sleeps for ever though it is aborted", 'A' + f);
    for (int f = 0; f < model_scene->fibers; f++) {
        const struct fiber *fiber = &model->fibers[f];
        const struct waits *waits = &model->waits[f];
        if (fiber->state == FIBER_ENDED || fiber->state == FIBER_DEAD || fiber->state == FIBER_IDLE)
            continue;
        if (fiber->state != FIBER_PARKED || waits->kind == WAITS_NOTHING) {
            model_fail("%c is stuck", 'A' + f);
        } else if (waits->kind == WAITS_REPLY) {
            shm_word word =
                *(volatile shm_word *)&shm_cell_at(&model_segment, shm_call_cell(waits->call))->word;
            if (!shm_cell_is_open(word))
                model_fail("%c sleeps though its call is done", 'A' + f);
            else
                model_fail("%c waits for a reply that never comes", 'A' + f);
        } else if (has_something(waits, f)) {
            model_fail("%c sleeps for ever on a true condition", 'A' + f);
        }
    }
}

/* Whom nobody has reaped when only slices do. */
static void reap_the_rest(void)
{
    for (uint32_t slot = 1; slot < MODEL_SLOTS; slot++)
        if (slot < shm_pool_ready(&model_segment, SHM_TABLE_MEMBERS) && model_is_unreaped(slot)) {
            if (!model_scene->slices)
                model_fail("a dead member is never reaped");
            model->now_ns += 2 * SHM_NS_PER_S;
            shm_reap(&model->auditor, slot);
        }
}

/* Everybody leaves, or is taken for dead where he waits: nothing may be left. */
static void audit(void)
{
    struct shm_thread *self = &model->auditor;
    const struct shm_segment *s = &model_segment;
    uint32_t rescued = (uint32_t)atomic_load(&s->header->rescued);
    if (rescued && !model_scene->stops && !model_scene->slices)
        model_fail("a wait was rescued by its slice");
    for (int f = 0; f < model_scene->fibers; f++) {
        struct shm_member *member = &model->members[f];
        if (model_is_dead(f) || model_scene->threads >> f & 1)
            continue;
        if (model_has_ended(f)) {
            for (int b = 0; b < 2; b++)
                if (model->boxes[f][b].ring)
                    shm_box_release(&model->threads[f], &model->boxes[f][b]);
            shm_bus_release(&model->threads[f], &model->buses[f]);
            for (int i = 0; i < 2; i++)
                shm_sync_release(&model->threads[f], &model->syncs[f][i]);
            shm_leave(&model->threads[f]);
            continue;
        }
        model->dead[member->slot] = shm_word_count(member->word) + 1;
        atomic_store(&shm_member_at(&model_segment, member->slot)->suspected, 1); /* see `lasts` */
        model->now_ns += 2 * SHM_NS_PER_S;
        if (!shm_reap(self, member->slot))
            model_fail("a reap at the end fails");
    }
    for (int b = 0; b < 2; b++)
        if (model->auditor_boxes[b].ring)
            shm_box_release(self, &model->auditor_boxes[b]);
    shm_bus_release(self, &model->auditor_bus);
    for (int i = 0; i < 2; i++)
        shm_sync_release(self, &model->auditor_syncs[i]);
    shm_leave(self);
    static const char *const names[SHM_TABLE_BLOCKS] = {"members", "places",  "chunks", "mailboxes",
                                                        "names",   "notices", "leases"};
    for (uint32_t t = 0; t < SHM_TABLE_BLOCKS + s->classes; t++)
        for (uint32_t i = 0; i < shm_pool_ready(s, t); i++)
            if (shm_word_state(atomic_load((_Atomic shm_word *)shm_pool_item(s, t, i))))
                model_fail("%s are left in use at the end", t < SHM_TABLE_BLOCKS ? names[t] : "blocks");
    for (uint32_t i = 0; i < shm_pool_ready(s, SHM_TABLE_CHUNKS) * SHM_CHUNK_CELLS; i++)
        if (shm_word_state(atomic_load(&shm_cell_at(s, i)->word)) != SHM_CELL_FREE)
            model_fail("a reply cell is left in use at the end");
}

/* A message that was taken and not yet told to anybody is lost with its taker. */
static void note_dead_hands(int fiber)
{
    uint64_t number;
    memcpy(&number, model->threads[fiber].scratch, 8);
    if (number < MODEL_MESSAGES && !model->got[number] &&
        !(inventory_of(&model->auditor_boxes[0], &all).numbers >> number & 1))
        model->in_dead_hands[number] = 1;
}

static void clear_hands(void)
{
    for (int f = 0; f < model_scene->fibers; f++)
        memset(model->threads[f].scratch, 0xFF, 8);
}

/* A claim that nobody will publish any more. */
static void judge_claims(const struct shm_box *box)
{
    for (uint64_t i = 0; i <= box->mask; i++)
        if (shm_word_state(*(const volatile shm_word *)&slot_of(box, i)->word) == SHM_SLOT_CLAIMED)
            model_fail("a claim of the dead is never skipped");
}

/* Nothing lost, nothing twice, nothing overtaken, nothing that was refused. */
static void judge_messages(void)
{
    struct shm_message message;
    uint64_t looked = 0;
    judge_waits();
    reap_the_rest();
    judge_claims(&model->auditor_boxes[0]);
    while (shm_ring_receive(&model->auditor, &model->auditor_boxes[0], &all, &message, &looked) == 0)
        note_received(-1, number_in(&message));
    for (int n = 0; n < MODEL_MESSAGES; n++) {
        if (model->sent[n] == 1 && !model->got[n] && !model->in_dead_hands[n])
            model_fail("message %d is lost", n);
        if (model->sent[n] > 1 && model->got[n])
            model_fail("message %d is delivered though it was refused", n);
        if (model->got[n] && model->in_dead_hands[n])
            model_fail("message %d, taken by a dead receiver, comes again", n);
    }
    for (int f = 0; f < model_scene->fibers; f++)
        for (int i = 1; i < model->received[f]; i++)
            for (int j = 0; j < i; j++) {
                int before = model->order[f][j], after = model->order[f][i];
                if (before / 4 == after / 4 && model->tags[before] == model->tags[after] && before > after)
                    model_fail("message %d overtakes %d", before, after);
            }
    audit();
}

/* ---- ring -------------------------------------------------------------------------------------------------- */

/* Two senders, a receiver, a reaper; one message fits. */
static void setup_ring(void)
{
    make_shared(1);
    clear_hands();
}

static void run_ring(int f)
{
    if (f == 0)
        send_by(f, box_of(f), 0, 0, SHM_FOREVER), send_by(f, box_of(f), 1, 0, SHM_FOREVER);
    else if (f == 1)
        send_by(f, box_of(f), 4, 0, SHM_FOREVER);
    else if (f == 2)
        for (int n = 0; n < 3; n++)
            receive_number(f, &all, SHM_FOREVER);
    else
        reaper(f);
}

static void run_post(int f)
{
    if (f == 0)
        send_by(f, box_of(f), 0, 0, SHM_FOREVER), send_by(f, box_of(f), 1, 0, SHM_FOREVER);
    else if (f == 1)
        for (int n = 0; n < 2; n++)
            receive_number(f, &all, SHM_FOREVER);
    else
        reaper(f);
}

static void setup_post(void)
{
    make_shared(1);
    clear_hands();
}

/* A sender, two receivers of one message each. */
static void setup_takers(void)
{
    make_shared(2);
    clear_hands();
}

static void run_takers(int f)
{
    if (f == 0)
        send_by(f, box_of(f), 0, 0, SHM_FOREVER), send_by(f, box_of(f), 1, 0, SHM_FOREVER);
    else if (f < 3)
        receive_number(f, &all, SHM_FOREVER);
    else
        reaper(f);
}

/* ---- set aside --------------------------------------------------------------------------------------------- */

/* One receives by tag and sets the other's message aside; whoever comes after him takes that. */
static void run_aside(int f)
{
    struct shm_filter second = by_tag(2);
    if (f == 0)
        send_by(f, box_of(f), 0, 1, SHM_FOREVER), send_by(f, box_of(f), 1, 2, SHM_FOREVER),
            send_by(f, box_of(f), 2, 1, SHM_FOREVER);
    else if (f == 1)
        receive_number(f, &second, SHM_FOREVER), receive_number(f, &all, SHM_FOREVER);
    else if (f == 2)
        receive_number(f, &all, SHM_FOREVER);
    else
        reaper(f);
}

/* One looks at the most urgent message, which stays, and then takes it; another takes what he finds. */
static void run_looks(int f)
{
    struct shm_filter looks = all, urgent = all;
    struct shm_message message;
    looks.urgent = looks.keeps = urgent.urgent = true;
    if (f == 0)
        send_by(f, box_of(f), 0, 1, SHM_FOREVER), send_by(f, box_of(f), 1, 2, SHM_FOREVER);
    else if (f == 1)
        receive_by(f, box_of(f), &looks, &message, 0), receive_number(f, &urgent, SHM_FOREVER);
    else if (f == 2)
        receive_number(f, &all, SHM_FOREVER);
    else
        reaper(f);
}

/* ---- waiting ----------------------------------------------------------------------------------------------- */

/* Full from the start. One sender gives up at its deadline, the other waits in line behind it or before it. */
static void setup_line(void)
{
    struct shm_message message = {.header = shm_header_make(SHM_KIND_CAST, 0), .len_bytes = 8};
    uint64_t number = 8;
    message.body = &number;
    make_shared(1);
    must(shm_ring_send(&model->auditor, &model->auditor_boxes[0], &message, false),
         "the message that fills it");
    model->sent[number] = 1;
    clear_hands();
}

static void run_line(int f)
{
    if (f == 0)
        send_by(f, box_of(f), 0, 0, model->now_ns + 1000000);
    else if (f == 1)
        send_by(f, box_of(f), 4, 0, SHM_FOREVER);
    else if (f == 2)
        receive_number(f, &all, SHM_FOREVER), receive_number(f, &all, SHM_FOREVER);
    else
        reaper(f);
}

/* Two in line; a third takes what room he finds, though they wait, for he has turns left. */
static void run_turns(int f)
{
    if (f == 3) {
        shm_ring_grant_turns(&model->threads[f]);
        send_by(f, box_of(f), 9, 0, 0);
    } else if (f == 2) {
        for (int n = 0; n < 3; n++)
            receive_number(f, &all, SHM_FOREVER);
    } else {
        send_by(f, box_of(f), f ? 4 : 0, 0, SHM_FOREVER);
    }
}

/* One waits for a message until its deadline, the other for ever; one message comes. */
static void run_late(int f)
{
    if (f == 0)
        receive_number(f, &all, model->now_ns + 1000000);
    else if (f == 1)
        receive_number(f, &all, SHM_FOREVER);
    else if (f == 2)
        send_by(f, box_of(f), 0, 0, SHM_FOREVER);
    else
        reaper(f);
}

/* One waits for either of two mailboxes, another for the second; each mailbox gets a message. */
static void setup_any(void)
{
    make_shared(1);
    make_box(1, 1, SHM_BOX_SHARED, 0);
    clear_hands();
}

static void run_any(int f)
{
    struct shm_box *two[] = {&model->boxes[f][0], &model->boxes[f][1]};
    struct shm_message message;
    uint32_t which;
    if (f == 0) {
        model->waits[f] = (struct waits){.kind = WAITS_MESSAGE, .box = two[0], .filter = all};
        must(shm_box_receive_any(&model->threads[f], two, 2, &message, &which, SHM_FOREVER), "receive any");
        model->waits[f].kind = WAITS_NOTHING;
        note_received(f, number_in(&message));
    } else if (f == 1) {
        must(receive_by(f, two[1], &all, &message, SHM_FOREVER), "receive");
        note_received(f, number_in(&message));
    } else {
        send_by(f, two[1], 0, 0, SHM_FOREVER);
        send_by(f, two[0], 1, 0, SHM_FOREVER);
    }
}

/* At the end the first may have taken the second's message: then the second still waits, with nothing to take. */
static void judge_any(void)
{
    struct shm_message message;
    uint64_t looked = 0;
    judge_waits();
    reap_the_rest();
    for (int b = 0; b < 2; b++)
        while (shm_ring_receive(&model->auditor, &model->auditor_boxes[b], &all, &message, &looked) == 0)
            note_received(-1, number_in(&message));
    for (int n = 0; n < 2; n++)
        if (!model->got[n])
            model_fail("message %d is lost", n);
    if (!model_has_ended(0))
        model_fail("who waits for either mailbox sleeps though both had something");
    audit();
}

/* ---- calls ------------------------------------------------------------------------------------------------- */

enum { NOTE_OUTCOMES, NOTE_TOLD, NOTE_ANSWERED = 4, NOTE_EXECUTED = 8, NOTE_OUTCOME = 12 };

static bool is_failure_of_the_dead(int status)
{
    return model_is_dead(1) &&
           (status == SHM_PEER_DEAD || status == SHM_CLOSED); /* dead, or his mailbox was drained */
}

/* One call from begin to end; what came of it. */
static int call_once(int f, uint64_t number, bool async, uint64_t deadline_ns)
{
    struct shm_thread *self = &model->threads[f];
    shm_member_id server = model->ids[1];
    shm_call_id call;
    struct shm_reply reply;
    must(shm_call_open(self, server, async, &call), "open a call");
    struct shm_message message = {
        .header = shm_header_make(SHM_KIND_CALL, 0), .call = call, .body = &number, .len_bytes = 8};
    model->waits[f] = (struct waits){.kind = WAITS_ROOM, .box = box_of(f)};
    int sent = shm_box_send(self, box_of(f), &message, SHM_FOREVER);
    model->waits[f].kind = WAITS_NOTHING;
    if (sent && shm_call_cancel(self, call))
        return sent;
    model->waits[f] = (struct waits){.kind = WAITS_REPLY, .call = call};
    shm_call_check(self, call, server);
    int status = 0;
    if (async) {
        shm_call_id done = 0;
        while (done != call) {
            must(shm_call_wait_finished(self, 0, deadline_ns), "wait for finished calls");
            if (shm_call_finished(self, &done, 1) == 0)
                done = 0;
        }
    } else {
        status = shm_call_wait(self, call, server, deadline_ns);
    }
    model->waits[f].kind = WAITS_NOTHING;
    if (status && shm_call_cancel(self, call))
        return status;
    must(shm_call_read(self, call, &reply), "read a reply");
    if (reply.status == 0 && (reply.len_bytes != 16 || memcmp(reply.body, &number, 8) != 0 ||
                              memcmp((const char *)reply.body + 8, &number, 8) != 0))
        model_fail("a torn reply, or another's");
    shm_call_free(self, call);
    return reply.status;
}

static void serve(int f)
{
    struct shm_thread *self = &model->threads[f];
    for (;;) {
        struct shm_message message;
        if (receive_by(f, box_of(f), &all, &message, SHM_FOREVER))
            return;
        uint64_t number = number_in(&message), body[2] = {number, number};
        if (shm_call_serve(self, message.call))
            continue;
        if (++model->notes[NOTE_EXECUTED + number] > 1)
            model_fail("a request is executed twice");
        int first = shm_call_reply(self, message.call, body, 16, 0, 0);
        int second = shm_call_reply(self, message.call, body, 16, 0, 0);
        if (second != SHM_REFUSED)
            model_fail("a second reply is accepted");
        if (first && first != SHM_REFUSED)
            model_fail("a reply is answered %d", first);
    }
}

static void setup_call(void)
{
    shm_call_id call;
    make_box(0, 1, SHM_BOX_ACTOR, model->ids[1]);
    must(shm_call_open(&model->threads[0], model->ids[1], false, &call),
         "a first call"); /* the cells are there */
    shm_call_cancel(&model->threads[0], call);
}

static void run_call(int f)
{
    if (f == 0)
        for (uint64_t n = 0; n < 2; n++) {
            int status = call_once(f, n, false, SHM_FOREVER);
            model->notes[NOTE_OUTCOMES]++;
            if (status && !is_failure_of_the_dead(status))
                model_fail("a call ends with %d", status);
        }
    else if (f == 1)
        serve(f);
    else
        reaper(f);
}

static void run_async(int f)
{
    if (f == 0) {
        int status = call_once(f, 0, true, SHM_FOREVER);
        model->notes[NOTE_OUTCOMES] += 2;
        if (status && !is_failure_of_the_dead(status))
            model_fail("a call ends with %d", status);
    } else if (f == 1) {
        serve(f);
    } else {
        reaper(f);
    }
}

/* The first call has a deadline; the second uses the same cell, or another when the first was left while it was filled. */
static void run_late_call(int f)
{
    if (f == 0) {
        int first = call_once(f, 0, false, model->now_ns + 1000000);
        model->notes[NOTE_OUTCOMES]++;
        int second = call_once(f, 1, false, SHM_FOREVER);
        model->notes[NOTE_OUTCOMES]++;
        if (first && first != SHM_TIMEOUT && !is_failure_of_the_dead(first))
            model_fail("a call with a deadline ends with %d", first);
        if (second && !is_failure_of_the_dead(second))
            model_fail("a call ends with %d", second);
    } else if (f == 1) {
        serve(f);
    } else {
        reaper(f);
    }
}

static void judge_calls(void)
{
    struct shm_message message;
    uint64_t looked = 0;
    judge_waits();
    reap_the_rest();
    if (!model_is_dead(0) && model->notes[NOTE_OUTCOMES] != 2)
        model_fail("a call has no outcome");
    for (uint32_t i = 0; i < 4; i++) /* the caller has ended or was reaped, and nobody fills any more */
        if (shm_word_state(*(volatile shm_word *)&shm_cell_at(&model_segment, i)->word) != SHM_CELL_FREE)
            model_fail("a reply cell is left in use");
    while (shm_ring_receive(&model->auditor, &model->auditor_boxes[0], &all, &message, &looked) == 0)
        ;
    audit();
}

/* ---- aborts ------------------------------------------------------------------------------------------------ */

enum { CALL_REPLIED = 1, CALL_FAILED, CALL_CLOSED, NEVER_ANSWERED = 2 };

static const int shielded = 1;

/* A calls B; the second mailbox never gets anything. */
static void setup_abort(void)
{
    setup_call();
    make_box(1, 1, SHM_BOX_SHARED, 0);
    for (int f = 0; f < 2; f++)
        shm_abort_means_me(&model->threads[f]);
}

static void setup_shielded_abort(void)
{
    setup_abort();
    model->threads[0].shield = &shielded;
}

/* One call; what it has come to is compared at the end with what its server was told. */
static int call_and_note(int f, uint64_t number, uint64_t deadline_ns)
{
    int status = call_once(f, number, false, deadline_ns);
    model->notes[NOTE_OUTCOMES]++;
    model->notes[NOTE_OUTCOME + number] = status == 0                      ? CALL_REPLIED
                                          : is_failure_of_the_dead(status) ? CALL_FAILED
                                                                           : CALL_CLOSED;
    return status;
}

/* B waits in the service of each request for what never comes, until it is told; the later ones it answers at once. */
static void serve_until_aborted(int f)
{
    struct shm_thread *self = &model->threads[f];
    for (;;) {
        struct shm_message message, none;
        int status = 0;
        shm_serve_end(self);
        if (receive_by(f, box_of(f), &all, &message, SHM_FOREVER))
            return;
        uint64_t number = number_in(&message), body[2] = {number, number};
        if (shm_call_serve(self, message.call))
            continue;
        shm_serve_begin(self, message.call, 0);
        if (++model->notes[NOTE_EXECUTED + number] > 1)
            model_fail("a request is executed twice");
        if (number < NEVER_ANSWERED)
            status = receive_by(f, &model->boxes[f][1], &all, &none, SHM_FOREVER);
        shm_word word = *(volatile shm_word *)&shm_cell_at(&model_segment, shm_call_cell(message.call))->word;
        if (number < NEVER_ANSWERED && status != SHM_ABORTED)
            model_fail("a nested wait ends with %d", status);
        if (status == SHM_ABORTED && shm_word_count(word) == shm_call_generation(message.call) &&
            shm_word_state(word) == SHM_CELL_PENDING)
            model_fail("an abort reaches a call whose caller waits");
        if (status == SHM_ABORTED && (shm_abort_take(self) != SHM_ABORT_CALL || shm_abort_take(self)))
            model_fail("an abort is not told once");
        int said = shm_call_reply(self, message.call, body, 16, 0, 0);
        if (said && said != SHM_REFUSED)
            model_fail("a reply is answered %d", said);
        model->notes[NOTE_ANSWERED + number] = said == 0;
    }
}

static void abort_by(int f, int whom)
{
    int status = shm_abort(&model->threads[f], model->ids[whom], 0);
    if (status && !(status == SHM_PEER_DEAD && (model_is_dead(whom) || model_has_ended(whom))))
        model_fail("an abort ends with %d", status);
}

static void serve_abort_or_reap(int f)
{
    if (f == 1)
        serve_until_aborted(f);
    else if (f == 2)
        abort_by(f, 0);
    else
        reaper(f);
}

/* A's first call is ended by nothing but C's abort, or a death; the second is answered. */
static void run_abort(int f)
{
    if (f) {
        serve_abort_or_reap(f);
        return;
    }
    int first = call_and_note(f, 0, SHM_FOREVER);
    if (first != SHM_ABORTED && !is_failure_of_the_dead(first))
        model_fail("an aborted call ends with %d", first);
    if (first == SHM_ABORTED && shm_abort_take(&model->threads[f]) != SHM_ABORT_THREAD)
        model_fail("an abort is lost");
    int second = call_and_note(f, NEVER_ANSWERED, SHM_FOREVER);
    if (second && !(second == SHM_ABORTED && first != SHM_ABORTED) && !is_failure_of_the_dead(second))
        model_fail("a call after an abort ends with %d", second);
}

/* Both calls are answered at once, and the abort comes when it comes: it ends one of them, or is there at the end. */
static void run_abort_race(int f)
{
    struct shm_thread *self = &model->threads[f];
    if (f) {
        serve_abort_or_reap(f);
        return;
    }
    for (uint64_t n = NEVER_ANSWERED; n < NEVER_ANSWERED + 2; n++) {
        int status = call_and_note(f, n, SHM_FOREVER);
        if (status && status != SHM_ABORTED)
            model_fail("a call ends with %d", status);
        if (status == SHM_ABORTED && shm_abort_take(self) != SHM_ABORT_THREAD)
            model_fail("an abort is lost");
        model->notes[NOTE_TOLD] += status == SHM_ABORTED;
    }
}

/* A waits on, and gets the answer that B gives when it is told; the abort is still there. */
static void run_shielded_abort(int f)
{
    struct shm_thread *self = &model->threads[f];
    if (f) {
        serve_abort_or_reap(f);
        return;
    }
    int outcome = call_and_note(f, 0, SHM_FOREVER);
    model->notes[NOTE_OUTCOMES]++;
    if (outcome && !is_failure_of_the_dead(outcome))
        model_fail("a shielded call ends with %d", outcome);
    self->shield = NULL;
    if (outcome == 0 && !shm_abort_is_pending(self))
        model_fail("an abort is lost");
}

/* The first call's time is over while B serves it; the same cell is used by the next. */
static void run_timed_out(int f)
{
    if (f) {
        f == 1 ? serve_until_aborted(f) : reaper(f);
        return;
    }
    int first = call_and_note(f, 0, model->now_ns + 1000000);
    if (first != SHM_TIMEOUT && !is_failure_of_the_dead(first))
        model_fail("a call with a deadline ends with %d", first);
    int second = call_and_note(f, NEVER_ANSWERED, SHM_FOREVER);
    if (second && !is_failure_of_the_dead(second))
        model_fail("a call ends with %d", second);
}

/* Both sides say the same of each call; and whom a dead aborter has not reached, waits. */
static void judge_aborts(void)
{
    bool nobody_aborts = model_scene->fibers > 3 && model_is_dead(2) && !model_has_ended(0) &&
                         !model_is_dead(0) && !shm_abort_is_pending(&model->threads[0]);
    for (uint64_t n = 0; n < 4; n++) {
        uint64_t outcome = model->notes[NOTE_OUTCOME + n], answered = model->notes[NOTE_ANSWERED + n];
        if (outcome == CALL_REPLIED && !answered && !model_is_dead(1))
            model_fail("a reply came, and nobody gave it");
        if (outcome == CALL_CLOSED && answered)
            model_fail("a reply was accepted, and its caller is told otherwise");
    }
    if (!nobody_aborts) {
        judge_calls();
        return;
    }
    reap_the_rest();
    audit();
}

static void judge_abort_race(void)
{
    if (model->notes[NOTE_TOLD] + shm_abort_is_pending(&model->threads[0]) != 1)
        model_fail("an abort is told %d times", (int)model->notes[NOTE_TOLD]);
    judge_aborts();
}

/* Two abort A, which receives three times until its deadline. */
static void setup_abort_of_receive(void)
{
    make_box(0, 1, SHM_BOX_SHARED, 0);
    shm_abort_means_me(&model->threads[0]);
}

static void run_abort_of_receive(int f)
{
    struct shm_thread *self = &model->threads[f];
    struct shm_message message;
    if (f) {
        abort_by(f, 0);
        return;
    }
    for (int n = 0; n < 3; n++) {
        int status = receive_by(f, box_of(f), &all, &message, model->now_ns + 1000000);
        if (status == SHM_ABORTED && (shm_abort_take(self) != SHM_ABORT_THREAD))
            model_fail("an abort is lost");
        if (status != SHM_ABORTED && status != SHM_TIMEOUT)
            model_fail("a receive ends with %d", status);
        model->notes[NOTE_TOLD] += status == SHM_ABORTED;
    }
}

static void judge_abort_of_receive(void)
{
    uint64_t told = model->notes[NOTE_TOLD] + shm_abort_is_pending(&model->threads[0]);
    if (told < 1 || told > 2)
        model_fail("two aborts are told %d times", (int)told);
    judge_waits();
    reap_the_rest();
    audit();
}

/* ---- notices ----------------------------------------------------------------------------------------------- */

/* A watches B, who sends two and dies at any step, or lives on; two reap at once. */
static void setup_notice(void)
{
    make_box(0, 2, SHM_BOX_ACTOR, model->ids[0]);
    clear_hands();
}

static void run_notice(int f)
{
    struct shm_thread *self = &model->threads[f];
    if (f == 0) {
        shm_member_id watched = model->ids[1];
        int64_t number = shm_notice_arm(self, box_of(f), watched);
        if (number <= 0)
            model_fail("a notice cannot be armed");
        for (;;) {
            struct shm_message message;
            if (receive_by(f, box_of(f), &all, &message, SHM_FOREVER))
                return;
            if (message.header >> 61 != SHM_KIND_EXIT) {
                note_received(f, number_in(&message));
                if (model->notes[0])
                    model_fail("a message of the dead comes after the notice");
                continue;
            }
            if (message.notice != (uint64_t)number || message.sender != watched)
                model_fail("another's notice");
            if (model->notes[0]++)
                model_fail("two notices of one death");
            if (!model_is_dead(1))
                model_fail("a notice of the living");
        }
    } else if (f == 1) {
        send_by(f, box_of(f), 0, 0, SHM_FOREVER);
        send_by(f, box_of(f), 1, 0, SHM_FOREVER);
    } else {
        reaper(f);
    }
}

static void judge_notice(void)
{
    if (model_is_dead(1) && !model_is_dead(0) && model->notes[0] != 1)
        model_fail("a notice is lost");
    judge_waits();
    reap_the_rest();
    for (int n = 0; n < 2; n++)
        if (model->sent[n] == 1 && !model->got[n] && !model_is_dead(0))
            model_fail("message %d is lost", n);
    audit();
}

/* B sets a tick off instead of its first message. */
static void run_notice_tick(int f)
{
    struct shm_thread *self = &model->threads[f];
    uint64_t number = 0;
    struct shm_message message = {
        .header = shm_header_make(SHM_KIND_TIMER, 0), .body = &number, .len_bytes = 8};
    if (f != 1) {
        run_notice(f);
        return;
    }
    int64_t timer = shm_notice_set(self, box_of(f), &message, 0);
    if (timer <= 0)
        model_fail("a timer cannot be set");
    if (shm_notice_tick(self, (uint64_t)timer, 1))
        model_fail("a timer cannot go off");
    model->sent[0] = 1;
    send_by(f, box_of(f), 1, 0, SHM_FOREVER);
}

/* A and B link each other at once, and wait for the other's end. */
static void setup_link(void)
{
    for (int f = 0; f < 2; f++)
        make_box(f, 2, SHM_BOX_ACTOR, model->ids[f]);
    clear_hands();
}

static void run_link(int f)
{
    struct shm_thread *self = &model->threads[f];
    struct shm_box *mine = &model->boxes[f][f];
    const struct shm_box *others = &model->boxes[f][1 - f];
    shm_member_id other = model->ids[1 - f];
    if (f > 1) {
        reaper(f);
        return;
    }
    int status = shm_notice_link(self, mine, other, others->index, others->count);
    if (status != 0 && status != SHM_REFUSED)
        model_fail("a link cannot be made: %d", status);
    model->sent[f] = 1;
    uint64_t first = 0;
    for (;;) {
        struct shm_message message;
        if (receive_by(f, mine, &all, &message, SHM_FOREVER))
            return;
        if (message.told != SHM_TOLD_LINK || message.sender != other)
            model_fail("another's notice");
        if (model->notes[f]++ && (status || message.notice == first || model->notes[f] > 2))
            model_fail("two notices of one link"); /* the other's may have ended, and then ours was made */
        first = message.notice;
        if (!model_is_dead(1 - f))
            model_fail("a notice of the living");
    }
}

static void judge_link(void)
{
    int links = 0;
    for (uint32_t i = 0; i < shm_pool_ready(&model_segment, SHM_TABLE_NOTICES); i++)
        links += shm_word_state(atomic_load(&shm_notice_at(&model_segment, i)->word)) == SHM_NOTICE_ARMED;
    if (!model_is_dead(0) && !model_is_dead(1) && links != 1)
        model_fail("two are linked %d times", links);
    for (int f = 0; f < 2; f++)
        if (model_is_dead(1 - f) && !model_is_dead(f) && (!model->sent[f] || model->notes[f] == 0))
            model_fail("the end of a link is lost");
    judge_waits();
    reap_the_rest();
    audit();
}

/* ---- notifications ----------------------------------------------------------------------------------------- */

enum { NOTE_SET, NOTE_SEEN };

/* A sets two bits, one after the other, while B receives until it has seen both. */
static void run_notify(int f)
{
    struct shm_thread *self = &model->threads[f];
    if (f == 0) {
        for (uint64_t bit = 1; bit <= 2; bit *= 2) {
            must(shm_ring_notify(self, box_of(f), bit), "a notification");
            model->notes[NOTE_SET] |= bit;
        }
    } else if (f == 1) {
        while (model->notes[NOTE_SEEN] != 3) {
            struct shm_message message;
            if (receive_by(f, box_of(f), &all, &message, SHM_FOREVER))
                return;
            if (message.header >> 61 != SHM_KIND_NOTIFY || message.notice == 0)
                model_fail("a notification without bits");
            model->notes[NOTE_SEEN] |= message.notice;
        }
    } else {
        reaper(f);
    }
}

static void judge_notify(void)
{
    const struct shm_box *box = &model->auditor_boxes[0];
    uint64_t left = *(volatile uint64_t *)&box->ring->bits;
    if (!model_is_dead(1) && model->notes[NOTE_SET] & ~(model->notes[NOTE_SEEN] | left))
        model_fail("a bit is lost");
    judge_waits();
    reap_the_rest();
    audit();
}

/* ---- blocks ------------------------------------------------------------------------------------------------ */

static void take_and_release_blocks(int count)
{
    struct shm_thread *self = &model->auditor;
    shm_lease_index leases[3];
    for (int i = 0; i < count; i++)
        must(shm_block_take(self, 100, &leases[i]), "a block");
    for (int i = 0; i < count; i++)
        shm_lease_release(self, leases[i]);
}

/* A block travels in a message; whoever receives it releases it. */
static void setup_block(void)
{
    make_shared(1);
    take_and_release_blocks(1);
}

static void run_block(int f)
{
    struct shm_thread *self = &model->threads[f];
    struct shm_message message = {.header = shm_header_make(SHM_KIND_CAST, 0), .len_bytes = 8};
    if (f == 0) {
        shm_lease_index lease;
        must(shm_block_take(self, 100, &lease), "a block");
        uint64_t number = 7;
        memcpy(model_segment.base + shm_block_offset(&model_segment, shm_lease_block(&model_segment, lease)),
               &number, 8);
        message.lease = lease + 1;
        model->waits[f] = (struct waits){.kind = WAITS_ROOM, .box = box_of(f)};
        int status = shm_box_send(self, box_of(f), &message, SHM_FOREVER);
        model->waits[f].kind = WAITS_NOTHING;
        if (status)
            model_fail("a block is not sent: %d", status);
    } else if (f == 1) {
        if (receive_by(f, box_of(f), &all, &message, SHM_FOREVER))
            return;
        uint64_t number = 0;
        memcpy(&number,
               model_segment.base + (size_t)((const unsigned char *)message.body - model_segment.view), 8);
        if (!message.lease || number != 7)
            model_fail("the block is not what was sent");
        else
            shm_lease_release(self, message.lease - 1);
    } else {
        reaper(f);
    }
}

/* The mailbox goes with its last holder, with a block still in it. */
static void judge_block(void)
{
    judge_waits();
    reap_the_rest();
    audit();
}

/* A and B hold one block; each takes another hold on it and releases both. */
static void setup_share(void)
{
    shm_lease_index lease;
    make_shared(1);
    must(shm_block_take(&model->threads[0], 100, &lease), "a block");
    model->notes[0] = lease;
    must(shm_block_hold(&model->threads[1], shm_lease_block(&model_segment, lease), &lease), "a hold");
    model->notes[1] = lease;
}

static void run_share(int f)
{
    struct shm_thread *self = &model->threads[f];
    if (f >= 2)
        reaper(f);
    shm_lease_index mine = (shm_lease_index)model->notes[f], more;
    must(shm_block_hold(self, shm_lease_block(&model_segment, mine), &more), "another hold");
    shm_lease_release(self, mine);
    shm_lease_release(self, more);
}

/* The holders a block counts are the records that name it, when nobody has it locked. */
static void holders_are_counted(void)
{
    const struct shm_segment *s = &model_segment;
    for (uint32_t i = 0; i < shm_pool_ready(s, SHM_TABLE_BLOCKS); i++) {
        shm_word word = *(volatile shm_word *)&shm_block_at(s, i)->word;
        uint32_t holders = 0;
        for (uint32_t l = 0; l < shm_pool_ready(s, SHM_TABLE_LEASES); l++) {
            const struct shm_lease *lease = shm_lease_at(s, l);
            holders += shm_word_state(*(const volatile shm_word *)&lease->word) == SHM_LEASE_HELD &&
                       (uint32_t)*(const volatile uint64_t *)&lease->block == i + 1;
        }
        if (shm_word_state(word) != SHM_BLOCK_LOCKED && (shm_word_count(word) & 0x3FFFFF) != holders)
            model_fail("a block counts %u holders and has %u", (unsigned)(shm_word_count(word) & 0x3FFFFF),
                       holders);
    }
}

static void judge_share(void)
{
    judge_waits();
    reap_the_rest();
    audit();
}

/* ---- one who is dead, and whose process is taken apart later ------------------------------------------------ */

/* What the kernel does. */
static void take_apart(void)
{
    model_wait_for_death();
    for (uint32_t slot = 1; slot < MODEL_SLOTS; slot++)
        if (model_is_unreaped(slot))
            atomic_store(&shm_member_at(&model_segment, slot)->suspected, 1);
}

static void run_share_ending(int f)
{
    if (f == 3)
        take_apart();
    else
        run_share(f);
}

static void run_call_ending(int f)
{
    if (f == 3)
        take_apart();
    else
        run_call(f);
}

/* Its slot, whose life lock it has until then, is nobody else's; nor are blocks into which the kernel may write for it. */
static void kept_until_taken_apart(void)
{
    for (int f = 0; f < model_scene->fibers; f++) {
        const struct shm_member_record *record = shm_member_at(&model_segment, model_slot(f));
        if (model_is_dead(f) && !*(const volatile uint64_t *)&record->suspected &&
            shm_word_state(*(const volatile shm_word *)&record->word) == SHM_MEMBER_FREE)
            model_fail("a slot is given away before its process was taken apart");
    }
    holders_are_counted();
}

/* ---- buses ------------------------------------------------------------------------------------------------- */

/* The auditor makes a bus that keeps one frame, and fiber 0 has two blocks to publish, with their numbers in them. */
static void make_bus(uint32_t consume_after)
{
    struct shm_bus_config config = {
        .frames = 1, .readers = 2, .frame_bytes = 8, .consume_after = consume_after};
    must(shm_bus_make(&model->auditor, &model->auditor_bus, &config), "the scene's bus");
    for (int f = 0; f < model_scene->fibers; f++)
        must(shm_bus_open(&model->threads[f], &model->buses[f], model->auditor_bus.index,
                          model->auditor_bus.count),
             "open");
    for (uint64_t n = 0; n < 2; n++) {
        shm_lease_index lease;
        must(shm_block_take(&model->threads[0], 8, &lease), "a block");
        memcpy(model_segment.base + shm_block_offset(&model_segment, shm_lease_block(&model_segment, lease)),
               &n, 8);
        model->notes[n] = lease;
    }
    shm_lease_index more;
    must(shm_block_take(&model->threads[0], 8, &more), "a block whose pages are there");
    shm_lease_release(&model->threads[0], more);
}

static void subscribe(int f, uint64_t patience_ns)
{
    must(shm_bus_subscribe(&model->threads[f], &model->buses[f], patience_ns, &model->readers[f], 0),
         "subscribe");
}

static void setup_bus(void)
{
    make_bus(0);
    subscribe(1, 0);
}

static void setup_patience(void)
{
    make_bus(0);
    subscribe(1, SHM_BUS_MAX_PATIENCE_NS);
}

static void setup_once(void)
{
    make_bus(1);
    subscribe(1, 0);
    subscribe(2, 0);
}

static void publish_by(int f, uint64_t n)
{
    model->waits[f].kind = WAITS_PUBLISH;
    int status = shm_bus_publish(&model->threads[f], &model->buses[f], (shm_lease_index)model->notes[n], 0, 8,
                                 SHM_FOREVER);
    model->waits[f].kind = WAITS_NOTHING;
    if (status)
        model_fail("publishing ends with %d", status);
}

/* One frame; whose it is, once its block is held. */
static void read_by(int f)
{
    struct shm_taken taken;
    uint64_t number;
    model->waits[f].kind = WAITS_FRAME;
    int status =
        shm_bus_receive(&model->threads[f], &model->buses[f], &model->readers[f], 8, &taken, SHM_FOREVER);
    model->waits[f].kind = WAITS_NOTHING;
    if (status) {
        model_fail("reading ends with %d", status);
        return;
    }
    memcpy(&number,
           model_segment.base +
               shm_block_offset(&model_segment, shm_lease_block(&model_segment, taken.lease)),
           8);
    if (number != taken.position)
        model_fail("frame %llu shows %llu", (unsigned long long)taken.position, (unsigned long long)number);
    note_received(f, number);
    shm_lease_release(&model->threads[f], taken.lease);
}

/* A block that nobody holds any more is used for something else. */
static void use_another_block(int f)
{
    shm_lease_index lease;
    uint64_t other = 9;
    must(shm_block_take(&model->threads[f], 8, &lease), "another block");
    memcpy(model_segment.base + shm_block_offset(&model_segment, shm_lease_block(&model_segment, lease)),
           &other, 8);
    shm_lease_recycle(&model->threads[f], lease);
}

/* A publishes two, B reads until it has been told of both. */
static void run_bus(int f)
{
    const struct shm_subscription *reader = &model->readers[1];
    if (f == 0)
        publish_by(f, 0), publish_by(f, 1), use_another_block(f);
    else if (f == 1)
        while (model->received[1] + reader->missed + reader->skipped < 2)
            read_by(f);
    else
        reaper(f);
}

/* A publishes one, B and C read, and it is for one of them. */
static void run_once(int f)
{
    if (f == 0)
        publish_by(f, 0);
    else if (f <= 2)
        read_by(f);
    else
        reaper(f);
}

/* Whatever has happened, the bus takes another frame, and nobody who lives was told less than was published. */
static void judge_bus(void)
{
    struct shm_bus_view *view = &model->auditor_bus;
    shm_lease_index lease;
    judge_waits();
    reap_the_rest();
    uint64_t tail = *(volatile uint64_t *)&view->bus->tail;
    if (!model_is_dead(0) && !view->config.consume_after && tail != 2)
        model_fail("%llu frames were published", (unsigned long long)tail);
    for (int f = 1; f < model_scene->fibers && model->readers[f].count; f++) {
        uint64_t told = model->received[f] + model->readers[f].missed + model->readers[f].skipped;
        if (!model_is_dead(f) && told != tail)
            model_fail("%c was told of %llu frames of %llu", 'A' + f, (unsigned long long)told,
                       (unsigned long long)tail);
        if (!model_is_dead(f))
            shm_bus_unsubscribe(&model->threads[f], &model->buses[f], &model->readers[f]);
    }
    must(shm_block_take(&model->auditor, 8, &lease), "a block at the end");
    if (shm_word_state(*(volatile shm_word *)&view->bus->right) != SHM_PUBLISH_FREE)
        model_fail("the right to publish is never free again");
    else
        must(shm_bus_publish(&model->auditor, view, lease, 0, 8, 0), "publishing at the end");
    audit();
}

/* ---- sync objects ------------------------------------------------------------------------------------------ */

static void make_sync(int which, uint32_t kind, uint32_t flags, uint32_t initial)
{
    struct shm_sync_config config = {.kind = kind, .flags = flags, .initial = initial, .max = 2};
    struct shm_sync_view *view = &model->auditor_syncs[which];
    must(shm_sync_make(&model->auditor, view, &config), "the scene's object");
    for (int f = 0; f < model_scene->fibers; f++)
        must(shm_sync_open(&model->threads[f], &model->syncs[f][which], view->index, view->count), "open");
}

/* Take one of them; what was taken is noted in notes[fiber], a bit each. */
static void take_by(int f, int which)
{
    bool abandoned;
    model->waits[f] = (struct waits){.kind = WAITS_SYNC, .syncs = 1U << which};
    int status = shm_sync_wait(&model->threads[f], &model->syncs[f][which], &abandoned, SHM_FOREVER);
    model->waits[f].kind = WAITS_NOTHING;
    if (status)
        model_fail("a wait ends with %d", status);
    model->notes[f] |= 1U << which;
}

static void take_both_by(int f)
{
    struct shm_source sources[] = {{.kind = SHM_SOURCE_SYNC, .sync = &model->syncs[f][0]},
                                   {.kind = SHM_SOURCE_SYNC, .sync = &model->syncs[f][1]}};
    model->waits[f] = (struct waits){.kind = WAITS_SYNC, .syncs = 3};
    int status = shm_waitset_all(&model->threads[f], sources, 2, SHM_FOREVER);
    model->waits[f].kind = WAITS_NOTHING;
    if (status)
        model_fail("a wait for all ends with %d", status);
    model->notes[f] |= 3;
}

static uint64_t word_of(int which)
{
    return *(volatile uint64_t *)&model->auditor_syncs[which].sync->word;
}

/* Two wait for an auto-reset event; one sets it, twice when the first has taken it. */
static void setup_event(void)
{
    make_sync(0, SHM_SYNC_EVENT, SHM_SYNC_AUTO, 0);
}

static void run_event(int f)
{
    if (f == 0) {
        shm_event_set(&model->threads[0], &model->syncs[0][0]);
        shm_event_set(&model->threads[0], &model->syncs[0][0]);
    } else if (f < 3) {
        take_by(f, 0);
    } else {
        reaper(f);
    }
}

static void judge_event(void)
{
    judge_waits();
    reap_the_rest();
    audit();
}

/* Each locks, is alone, and unlocks. */
static void setup_mutex(void)
{
    make_sync(0, SHM_SYNC_MUTEX, 0, 0);
}

static void run_mutex(int f)
{
    if (f >= 2)
        reaper(f);
    take_by(f, 0);
    if (model->notes[8]++)
        model_fail("two hold the mutex");
    model_point(__func__, __LINE__);
    model->notes[8]--;
    model->notes[f] = 0;
    must(shm_mutex_unlock(&model->threads[f], &model->syncs[f][0]), "unlock");
}

static void forget_holder(int f)
{
    if (model->notes[f])
        model->notes[8] = 0;
}

/* The mutex of a dead one is had by the next. */
static void judge_mutex(void)
{
    bool abandoned;
    judge_waits();
    reap_the_rest();
    if (shm_sync_wait(&model->auditor, &model->auditor_syncs[0], &abandoned, 0))
        model_fail("the mutex is never free again");
    else
        must(shm_mutex_unlock(&model->auditor, &model->auditor_syncs[0]), "unlock at the end");
    audit();
}

/* An event and a semaphore are there. One takes both at once; another takes the semaphore alone: then the first has
 * nothing, and the event must be there. */
static void setup_all(void)
{
    make_sync(0, SHM_SYNC_EVENT, SHM_SYNC_AUTO, 1);
    make_sync(1, SHM_SYNC_SEMAPHORE, 0, 1);
}

static void run_all(int f)
{
    uint32_t previous;
    bool abandoned;
    if (f >= 2)
        reaper(f);
    if (f == 0) {
        take_both_by(0);
    } else if (shm_sync_wait(&model->threads[1], &model->syncs[1][1], &abandoned, 0) == 0) {
        if (shm_sync_wait(&model->threads[1], &model->syncs[1][0], &abandoned, 0))
            model_fail("an event is missing that nobody has taken");
        else
            shm_event_set(&model->threads[1], &model->syncs[1][0]);
        must(shm_semaphore_release(&model->threads[1], &model->syncs[1][1], 1, &previous), "release");
    }
}

/* Both are taken, or none; and whose it is nobody doubts. */
static void judge_all(void)
{
    judge_waits();
    reap_the_rest();
    uint64_t event = word_of(0), semaphore = word_of(1);
    if ((event & 0xF) == SHM_SYNC_CLAIMED || (semaphore & 0xF) == SHM_SYNC_CLAIMED)
        model_fail("a claim is left");
    else if (!model_is_dead(1) && ((event & 0xF) == SHM_SYNC_SET) != (shm_sync_value(semaphore) == 1))
        model_fail("one of two was taken");
    if (model_has_ended(0) && (event & 0xF) == SHM_SYNC_SET && !model_is_dead(1))
        model_fail("what was taken is there");
    audit();
}

/* Two take both of two mutexes at once. */
static void setup_both(void)
{
    make_sync(0, SHM_SYNC_EVENT, SHM_SYNC_AUTO, 1);
    make_sync(1, SHM_SYNC_EVENT, SHM_SYNC_AUTO, 1);
}

static void run_both(int f)
{
    if (f >= 2)
        reaper(f);
    take_both_by(f);
    if (model->notes[8]++)
        model_fail("two have both");
    model_point(__func__, __LINE__);
    model->notes[8]--;
    shm_event_set(&model->threads[f], &model->syncs[f][0]);
    model->notes[f] = 0;
    shm_event_set(&model->threads[f], &model->syncs[f][1]);
}

static void judge_both(void)
{
    judge_waits();
    reap_the_rest();
    if (word_of(0) % 16 != SHM_SYNC_SET || word_of(1) % 16 != SHM_SYNC_SET)
        model_fail("an event that was set again is not");
    audit();
}

/* ---- a mutex that goes from thread to thread --------------------------------------------------------------- */

enum { NOTE_TAKEN = 8, NOTE_ADOPTED };

static void must_have(int f)
{
    uint64_t word = word_of(0);
    if ((word & 0xF) != SHM_SYNC_HELD || shm_sync_slot(word) != model->threads[f].slot ||
        shm_sync_place(word) != model->threads[f].place)
        model_fail("%c is told that it has the mutex, and has not", 'A' + f);
}

static void have_a_while(int f)
{
    must_have(f);
    model_point(__func__, __LINE__);
    must_have(f);
}

static bool adopt_by(int f)
{
    while (!model->notes[NOTE_TAKEN])
        shm_clock_relax();
    int status = shm_mutex_adopt(&model->threads[f], &model->syncs[f][0]);
    if (status != 0 && status != SHM_REFUSED)
        model_fail("an adoption ends with %d", status);
    return status == 0;
}

/* B takes the mutex, says so, and ends; C of the same process adopts it, and ends too, without unlocking. A is the process.
 * D, of another, locks and unlocks. */
static void run_adopt(int f)
{
    if (f == 1) {
        take_by(f, 0);
        must_have(f);
        model->notes[NOTE_TAKEN] = 1;
        model_tell();
        shm_thread_close(&model->threads[f]);
    } else if (f == 2) {
        if (adopt_by(f))
            have_a_while(f);
        shm_thread_close(&model->threads[f]);
    } else if (f == 3) {
        take_by(f, 0);
        have_a_while(f);
        must(shm_mutex_unlock(&model->threads[f], &model->syncs[f][0]), "unlock");
    } else if (f == 4) {
        reaper(f);
    }
}

/* B has it; C and D of the same process adopt it at once: one of them has it, and it alone can unlock. */
static void run_adopt_twice(int f)
{
    if (f == 1) {
        take_by(f, 0);
        model->notes[NOTE_TAKEN] = 1;
        model_tell();
    } else if (f > 1) {
        model->notes[NOTE_ADOPTED] += adopt_by(f);
        model->notes[f] = 3;
    }
}

static void judge_adopt(void)
{
    judge_waits();
    reap_the_rest();
    if (!model_has_ended(3) && !model_is_dead(3))
        model_fail("the mutex is never free again");
    audit();
}

static void judge_adopt_twice(void)
{
    uint32_t unlocked = 0;
    judge_waits();
    if (!model->notes[NOTE_ADOPTED])
        model_fail("none of two has adopted it");
    if (word_of(0) >> 38 !=
        1 + model->notes[NOTE_ADOPTED]) /* when it was taken, and each time it was adopted */
        model_fail("two have adopted at once what one had");
    for (int f = 1; f < 4; f++)
        unlocked += shm_mutex_unlock(&model->threads[f], &model->syncs[f][0]) == 0;
    if (unlocked != 1)
        model_fail("%u threads could unlock it", unlocked);
    audit();
}

/* ---- waits for room, as a completion queue's --------------------------------------------------------------- */

enum { NOTE_SENT = 8, NOTE_RUNG, NOTE_HEARD };

/* A mailbox of one, which is full, and an event, the queue's bell. */
static void setup_room(void)
{
    setup_line();
    make_sync(0, SHM_SYNC_EVENT, SHM_SYNC_AUTO, 0);
}

static bool try_to_send(int f, uint64_t number)
{
    model->sent[number] = 0;
    int status = send_by(f, box_of(f), number, 0, 0);
    if (status && status != SHM_FULL)
        model_fail("a send ends with %d", status);
    return status == 0;
}

static void look_by(int f, struct shm_source *sources, uint32_t count)
{
    model->waits[f].kind = WAITS_ANY;
    int status = shm_waitset_look(&model->threads[f], sources, count, SHM_FOREVER);
    model->waits[f].kind = WAITS_NOTHING;
    if (status)
        model_fail("a look ends with %d", status);
}

/* Each round: hear what was said, attempt, and wait for both at once. */
static void run_queue(int f)
{
    struct shm_source sources[] = {{.kind = SHM_SOURCE_SYNC, .sync = &model->syncs[f][0]},
                                   {.kind = SHM_SOURCE_ROOM, .box = box_of(f)}};
    for (;;) {
        shm_event_reset(&model->threads[f], &model->syncs[f][0]); /* before what was said is read */
        model->notes[NOTE_HEARD] = model->notes[NOTE_RUNG];
        if (!model->notes[NOTE_SENT])
            model->notes[NOTE_SENT] = try_to_send(f, 0);
        if (model->notes[NOTE_SENT] && model->notes[NOTE_HEARD])
            return;
        look_by(f, sources, model->notes[NOTE_SENT] ? 1 : 2);
    }
}

static bool room_is_there(int f)
{
    (void)f;
    return (model->notes[NOTE_RUNG] && !model->notes[NOTE_HEARD] && word_of(0) % 16 == SHM_SYNC_SET) ||
           (!model->notes[NOTE_SENT] &&
            inventory_of(&model->auditor_boxes[0], &all).undelivered < model->auditor_boxes[0].capacity);
}

static void run_room(int f)
{
    if (f == 0) {
        run_queue(f);
    } else if (f == 1) {
        receive_number(f, &all, SHM_FOREVER), receive_number(f, &all, SHM_FOREVER);
    } else if (f == 2) {
        model->notes[NOTE_RUNG] = 1;
        shm_event_set(&model->threads[f], &model->syncs[f][0]);
    } else {
        reaper(f);
    }
}

/* One stands in line until its deadline, and another only waits for room. */
static void run_room_line(int f)
{
    model->notes[NOTE_RUNG] = model->notes[NOTE_HEARD] = 1;
    if (f == 0)
        run_queue(f);
    else if (f == 1)
        send_by(f, box_of(f), 4, 0, model->now_ns + 1000000);
    else if (f == 2)
        receive_number(f, &all, SHM_FOREVER);
    else
        reaper(f);
}

/* A pipe of two bytes, full; one waits for room for two, another reads them one by one. */
static void setup_room_of_pipe(void)
{
    struct shm_sync_config config = {.kind = SHM_SYNC_PIPE, .entries = 2, .bytes = 2};
    struct shm_sync_view *view = &model->auditor_syncs[0];
    uint32_t entry;
    uint64_t done = 0;
    must(shm_sync_make(&model->auditor, view, &config), "the scene's pipe");
    for (int f = 0; f < model_scene->fibers; f++)
        must(shm_sync_open(&model->threads[f], &model->syncs[f][0], view->index, view->count), "open");
    must(shm_pipe_join(&model->threads[0], &model->syncs[0][0], SHM_ENTRY_WRITER, &entry), "the writer");
    must(shm_pipe_join(&model->threads[1], &model->syncs[1][0], SHM_ENTRY_READER, &entry), "the reader");
    must(shm_pipe_write(&model->threads[0], &model->syncs[0][0], "01", 2, &done, 0), "what fills it");
}

static void run_room_of_pipe(int f)
{
    struct shm_sync_view *view = &model->syncs[f][0];
    struct shm_source source = {.kind = SHM_SOURCE_ROOM, .sync = view, .least = 2};
    uint64_t done = 0;
    int status;
    if (f > 1)
        reaper(f);
    if (f == 0) {
        while ((status = shm_pipe_write(&model->threads[f], view, "23", 2, &done, 0)) == SHM_FULL)
            look_by(f, &source, 1);
        if (status && !(status == SHM_PEER_DEAD && model_is_dead(1)))
            model_fail("a write ends with %d", status);
        return;
    }
    for (char expected = '0'; expected < '2'; expected++) {
        char byte = 0;
        must(shm_pipe_read(&model->threads[f], view, &byte, 1, &done, 0), "a read");
        if (byte != expected)
            model_fail("byte %c comes in the place of %c", byte, expected);
    }
}

/* The other reads until there is room, or is dead. */
static bool pipe_is_there(int f)
{
    return f == 0;
}

static void judge_room_of_pipe(void)
{
    judge_waits();
    reap_the_rest();
    audit();
}

/* ---- lanes ------------------------------------------------------------------------------------------------- */

/* Of one slot, in memory of their own. Nobody tells who has an end, as if their owner was stopped. */
static void setup_lane(void)
{
    struct shm_lane lane = {.posted = calloc(1, shm_lane_bytes(1, 8)),
                            .taken = calloc(1, sizeof(struct shm_lane_taken)),
                            .board = calloc(1, sizeof(struct shm_lane_board)),
                            .slots = 1,
                            .slot_bytes = 8};
    for (int f = 0; f < 2; f++) {
        model->lanes[f] = lane;
        model->lanes[f].posts = f == 0;
        must(shm_lane_open(&model->lanes[f]), "open a lane");
    }
}

static void sleep_on_lane(int f)
{
    struct shm_lane *lanes[] = {&model->lanes[f]};
    const struct shm_lane_board *board = lanes[0]->board;
    model->waits[f].kind = WAITS_LANE;
    shm_lane_wait(lanes, 1, board, atomic_load(&board->bell), SHM_NS_PER_S / 2);
    model->waits[f].kind = WAITS_NOTHING;
}

static void run_lane(int f)
{
    struct shm_lane *lane = &model->lanes[f];
    int status;
    if (f > 1)
        reaper(f);
    for (uint64_t n = 0; n < 2; n++) {
        uint64_t number = n;
        uint32_t len = 0;
        while ((status = f == 0 ? shm_lane_post(lane, &number, 8) : shm_lane_next(lane, &len)) ==
               (f == 0 ? SHM_FULL : SHM_EMPTY))
            sleep_on_lane(f);
        must(status, "a step on a lane");
        if (f == 1)
            shm_lane_take(lane, &number, len);
        if (number != n || (f == 1 && len != 8))
            model_fail("message %llu comes in the place of %llu", (unsigned long long)number,
                       (unsigned long long)n);
    }
}

static void judge_lane(void)
{
    judge_waits();
    reap_the_rest();
    if (!model->deaths && (!model_has_ended(0) || !model_has_ended(1)))
        model_fail("a message is lost in a lane");
    audit();
}

#define FOR_EVER MODEL_UNBOUNDED
const struct scene model_scenes[] = {
    {"post", "a sender, a receiver, a mailbox of one", 2, setup_post, run_post, never_too_many,
     judge_messages, .bound = FOR_EVER, .full = FOR_EVER},
    {"post-death", "the same, one of them dies", 3, setup_post, run_post, never_too_many, judge_messages,
     note_dead_hands, .mortal = 3, .deaths = 1, .bound = 0, .full = 3},
    {"post-reaper", "the same, a reaper dies too, another goes on", 4, setup_post, run_post, never_too_many,
     judge_messages, note_dead_hands, .mortal = 7, .deaths = 2, .bound = -1, .full = 0},
    {"post-slice", "the same, one dies, and only slices reap", 2, setup_post, run_post, never_too_many,
     judge_messages, note_dead_hands, .mortal = 3, .deaths = 1, .slices = true, .bound = 1, .full = FOR_EVER},
    {"post-stop", "the same, one is stopped until nobody else can go on", 2, setup_post, run_post,
     never_too_many, judge_messages, note_dead_hands, .stoppable = 3, .stops = 1, .bound = 1,
     .full = FOR_EVER},
    {"ring", "two senders, a receiver, a mailbox of one", 3, setup_ring, run_ring, never_too_many,
     judge_messages, .bound = 1, .full = 3},
    {"ring-death", "the same, one of them dies", 4, setup_ring, run_ring, never_too_many, judge_messages,
     note_dead_hands, .mortal = 7, .deaths = 1, .bound = 0, .full = 1},
    {"takers", "a sender, two receivers", 3, setup_takers, run_takers, never_too_many, judge_messages,
     .bound = 1, .full = FOR_EVER},
    {"takers-death", "the same, one of them dies", 4, setup_takers, run_takers, never_too_many,
     judge_messages, note_dead_hands, .mortal = 7, .deaths = 1, .bound = 0, .full = 2},
    {"aside", "a sender, a receiver with a filter, one without", 3, setup_takers, run_aside, never_too_many,
     judge_messages, .bound = 1, .full = 3},
    {"aside-death", "the same, one of them dies", 4, setup_takers, run_aside, never_too_many, judge_messages,
     note_dead_hands, .mortal = 7, .short_mortal = 2, .deaths = 1, .bound = 0, .full = 1},
    {"looks", "a sender, one who looks and takes the most urgent, a receiver", 3, setup_takers, run_looks,
     never_too_many, judge_messages, .bound = 1, .full = 2},
    {"looks-death", "the same, one of them dies", 4, setup_takers, run_looks, never_too_many, judge_messages,
     note_dead_hands, .mortal = 7, .deaths = 1, .bound = -1, .full = 0},
    {"line", "two senders in line, one with a deadline", 3, setup_line, run_line, never_too_many,
     judge_messages, .bound = 0, .full = 3},
    {"line-death", "the same, one of them dies", 4, setup_line, run_line, never_too_many, judge_messages,
     note_dead_hands, .mortal = 7, .short_mortal = 1, .deaths = 1, .bound = 0, .full = 1},
    {"turns", "two senders in line, and one who has turns left", 4, setup_line, run_turns, never_too_many,
     judge_messages, .bound = 1, .full = 2},
    {"late", "two receivers, one with a deadline, one message", 3, setup_takers, run_late, never_too_many,
     judge_messages, .bound = 1, .full = FOR_EVER},
    {"late-death", "the same, one of them dies", 4, setup_takers, run_late, never_too_many, judge_messages,
     note_dead_hands, .mortal = 7, .deaths = 1, .bound = 0, .full = 2},
    {"any", "one waits for two mailboxes, another for the second", 3, setup_any, run_any, never_too_many,
     judge_any, .bound = 1, .full = 3},
    {"call", "two calls", 2, setup_call, run_call, NULL, judge_calls, .bound = FOR_EVER, .full = FOR_EVER},
    {"call-death", "the same, caller or server dies", 3, setup_call, run_call, NULL, judge_calls, .mortal = 3,
     .deaths = 1, .bound = 0, .full = 2},
    {"call-late", "a call with a deadline, then one without", 2, setup_call, run_late_call, NULL, judge_calls,
     .bound = 1, .full = FOR_EVER},
    {"call-late-death", "the same, caller or server dies", 3, setup_call, run_late_call, NULL, judge_calls,
     .mortal = 3, .deaths = 1, .bound = 0, .full = 2},
    {"call-async", "a call that is waited for with others", 2, setup_call, run_async, NULL, judge_calls,
     .bound = FOR_EVER, .full = FOR_EVER},
    {"call-async-death", "the same, caller or server dies", 3, setup_call, run_async, NULL, judge_calls,
     .mortal = 3, .deaths = 1, .bound = 0, .full = 3},
    {"abort", "a caller is aborted, then calls again", 3, setup_abort, run_abort, NULL, judge_aborts,
     .bound = 1, .full = FOR_EVER},
    {"abort-death", "the same, caller, server or aborter dies", 4, setup_abort, run_abort, NULL, judge_aborts,
     .mortal = 7, .deaths = 1, .bound = 0, .full = 1},
    {"abort-race", "two calls that are answered, and an abort", 3, setup_abort, run_abort_race, NULL,
     judge_abort_race, .bound = 1, .full = FOR_EVER},
    {"abort-shielded", "a caller is aborted that waits on", 3, setup_shielded_abort, run_shielded_abort, NULL,
     judge_aborts, .bound = 1, .full = FOR_EVER},
    {"abort-shielded-death", "the same, one of them dies", 4, setup_shielded_abort, run_shielded_abort, NULL,
     judge_aborts, .mortal = 7, .deaths = 1, .bound = 0, .full = 1},
    {"abort-late", "a call's time is over while it is served", 2, setup_abort, run_timed_out, NULL,
     judge_aborts, .bound = 1, .full = FOR_EVER},
    {"abort-late-death", "the same, caller or server dies", 3, setup_abort, run_timed_out, NULL, judge_aborts,
     .mortal = 3, .deaths = 1, .bound = 0, .full = 2},
    {"abort-receive", "two abort one that receives until its deadline", 3, setup_abort_of_receive,
     run_abort_of_receive, NULL, judge_abort_of_receive, .bound = 1, .full = FOR_EVER},
    {"notice", "one watches another, who sends two and dies", 3, setup_notice, run_notice, NULL, judge_notice,
     .mortal = 2, .deaths = 1, .bound = 0, .full = 3},
    {"notice-reapers", "the same, two reap at once", 4, setup_notice, run_notice, NULL, judge_notice,
     .mortal = 2, .deaths = 1, .bound = 0, .full = 1},
    {"notice-tick", "one watches another, whose tick goes off, and who sends and dies", 3, setup_notice,
     run_notice_tick, NULL, judge_notice, .mortal = 2, .deaths = 1, .bound = 0, .full = 2},
    {"link", "two link each other", 2, setup_link, run_link, NULL, judge_link, .bound = 2, .full = FOR_EVER},
    {"link-death", "the same, one of them dies", 3, setup_link, run_link, NULL, judge_link, .mortal = 3,
     .short_mortal = 1, .deaths = 1, .bound = 0, .full = 2},
    {"notify", "two bits, a receiver", 2, setup_post, run_notify, NULL, judge_notify, .bound = FOR_EVER,
     .full = FOR_EVER},
    {"notify-death", "the same, one of them dies", 3, setup_post, run_notify, NULL, judge_notify, .mortal = 3,
     .deaths = 1, .bound = 0, .full = 2},
    {"block", "a block in a message", 2, setup_block, run_block, holders_are_counted, judge_block,
     .bound = FOR_EVER, .full = FOR_EVER},
    {"block-death", "the same, one of them dies", 3, setup_block, run_block, holders_are_counted, judge_block,
     .mortal = 3, .deaths = 1, .bound = 0, .full = 3},
    {"share", "two hold a block, hold it again, let go", 2, setup_share, run_share, holders_are_counted,
     judge_share, .bound = FOR_EVER, .full = FOR_EVER},
    {"share-death", "the same, one of them dies", 3, setup_share, run_share, holders_are_counted, judge_share,
     .mortal = 3, .deaths = 1, .bound = 0, .full = 3},
    {"share-dead-reaper", "the same, a reaper dies too, another goes on", 4, setup_share, run_share,
     holders_are_counted, judge_share, .mortal = 5, .deaths = 2, .bound = 0, .full = 1},
    {"share-reapers", "the same, two reap at once", 4, setup_share, run_share, holders_are_counted,
     judge_share, .mortal = 3, .deaths = 1, .bound = 0, .full = 1},
    {"share-ending", "one of them dies, and is taken apart later", 4, setup_share, run_share_ending,
     kept_until_taken_apart, judge_share, .mortal = 3, .deaths = 1, .lasts = true, .bound = 0, .full = 1},
    {"share-ending-reapers", "the same, two reap at once", 5, setup_share, run_share_ending,
     kept_until_taken_apart, judge_share, .mortal = 3, .deaths = 1, .lasts = true, .bound = -1, .full = 0},
    {"call-ending", "a server dies, and is taken apart later", 4, setup_call, run_call_ending,
     kept_until_taken_apart, judge_calls, .mortal = 2, .deaths = 1, .lasts = true, .bound = 0, .full = 1},
    {"bus", "two frames, a bus of one, a reader", 2, setup_bus, run_bus, holders_are_counted, judge_bus,
     .bound = 2, .full = FOR_EVER},
    {"bus-death", "the same, one of them dies", 3, setup_bus, run_bus, holders_are_counted, judge_bus,
     .mortal = 3, .deaths = 1, .bound = 0, .full = 2},
    {"bus-patience", "the same, the reader is waited for", 2, setup_patience, run_bus, holders_are_counted,
     judge_bus, .bound = 1, .full = FOR_EVER},
    {"bus-patience-death", "the same, one of them dies", 3, setup_patience, run_bus, holders_are_counted,
     judge_bus, .mortal = 3, .deaths = 1, .bound = 0, .full = 2},
    {"bus-once", "a frame for one of two readers", 3, setup_once, run_once, holders_are_counted, judge_bus,
     .bound = 1, .full = 3},
    {"event", "one sets an event twice, two wait", 3, setup_event, run_event, NULL, judge_event, .bound = 1,
     .full = FOR_EVER},
    {"event-death", "the same, one of them dies", 4, setup_event, run_event, NULL, judge_event, .mortal = 7,
     .deaths = 1, .bound = 0, .full = 2},
    {"mutex", "two lock and unlock", 2, setup_mutex, run_mutex, NULL, judge_mutex, .bound = FOR_EVER,
     .full = FOR_EVER},
    {"mutex-death", "the same, one of them dies", 3, setup_mutex, run_mutex, NULL, judge_mutex, forget_holder,
     .mortal = 3, .deaths = 1, .bound = 0, .full = 3},
    {"all", "one waits for both of two, another takes one", 2, setup_all, run_all, NULL, judge_all,
     .bound = 2, .full = FOR_EVER},
    {"all-death", "the same, one of them dies", 3, setup_all, run_all, NULL, judge_all, .mortal = 3,
     .deaths = 1, .bound = 0, .full = 2},
    {"all-stop", "the same, one is stopped until nobody else can go on", 2, setup_all, run_all, NULL,
     judge_all, .stoppable = 3, .stops = 1, .bound = 1, .full = FOR_EVER},
    {"all-both", "two wait for both of two", 2, setup_both, run_both, NULL, judge_both, .bound = 2,
     .full = 4},
    {"adopt", "a mutex goes to another thread, and both end", 4, setup_mutex, run_adopt, NULL, judge_adopt,
     .threads = 6, .bound = 1, .full = FOR_EVER},
    {"adopt-death", "the same, either process dies", 5, setup_mutex, run_adopt, NULL, judge_adopt,
     .threads = 6, .mortal = 14, .deaths = 1, .bound = 0, .full = 2},
    {"adopt-twice", "two threads adopt a mutex at once", 4, setup_mutex, run_adopt_twice, NULL,
     judge_adopt_twice, .threads = 14, .bound = FOR_EVER, .full = FOR_EVER},
    {"room", "one waits for room and for a bell, one receives", 3, setup_room, run_room, NULL, judge_messages,
     .is_there = room_is_there, .bound = 1, .full = FOR_EVER},
    {"room-death", "the same, one of them dies", 4, setup_room, run_room, NULL, judge_messages,
     note_dead_hands, room_is_there, .mortal = 7, .short_mortal = 2, .deaths = 1, .bound = 0, .full = 2},
    {"room-line", "one waits for room, one stands in line until late", 3, setup_room, run_room_line, NULL,
     judge_messages, .is_there = room_is_there, .bound = 1, .full = FOR_EVER},
    {"room-line-death", "the same, one of them dies", 4, setup_room, run_room_line, NULL, judge_messages,
     note_dead_hands, room_is_there, .mortal = 7, .short_mortal = 2, .deaths = 1, .bound = 0, .full = 2},
    {"room-pipe", "one waits for room in a pipe, one reads it", 2, setup_room_of_pipe, run_room_of_pipe, NULL,
     judge_room_of_pipe, .is_there = pipe_is_there, .bound = FOR_EVER, .full = FOR_EVER},
    {"room-pipe-death", "the same, one of them dies", 3, setup_room_of_pipe, run_room_of_pipe, NULL,
     judge_room_of_pipe, NULL, pipe_is_there, .mortal = 3, .deaths = 1, .bound = 0, .full = 3},
    {"lane", "one posts two messages to a lane of one, one takes", 2, setup_lane, run_lane, NULL, judge_lane,
     .bound = FOR_EVER, .full = FOR_EVER},
    {"lane-death", "the same, one of them dies, and nobody tells", 3, setup_lane, run_lane, NULL, judge_lane,
     .mortal = 3, .deaths = 1, .bound = 2, .full = FOR_EVER},
};
const int model_scenes_count = (int)(sizeof model_scenes / sizeof model_scenes[0]);
