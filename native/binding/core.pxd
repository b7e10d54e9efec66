# What the binding uses of the core; the headers under native/ say what each does.
from libc.stdint cimport int32_t, int64_t, uint16_t, uint32_t, uint64_t

cdef extern from "base/status.h":
    enum:
        SHM_OK, SHM_EMPTY, SHM_FULL, SHM_TIMEOUT, SHM_INTERRUPTED, SHM_PEER_DEAD, SHM_CLOSED, SHM_NOT_FOUND
        SHM_NAME_TAKEN, SHM_INVALID, SHM_TOO_LARGE, SHM_LIMIT, SHM_NO_MEMORY, SHM_CORRUPTED, SHM_LAYOUT
        SHM_FORKED, SHM_REFUSED, SHM_BUSY, SHM_STARVED, SHM_SYSTEM, SHM_ABORTED, SHM_DEADLOCK, SHM_TOO_SMALL
        SHM_NO_PORT
    const char *shm_status_text(int status) nogil

cdef extern from "base/clock.h":
    uint64_t SHM_FOREVER
    uint64_t shm_clock_ns() nogil
    void shm_clock_sleep(uint64_t ns) nogil

cdef extern from "base/word.h":
    enum:
        SHM_IN_FLIGHT
    uint64_t SHM_COUNT_MASK
    uint64_t shm_word_count(uint64_t word) nogil
    uint32_t shm_word_owner(uint64_t word) nogil
    uint32_t shm_word_state(uint64_t word) nogil
    uint64_t shm_word_make(uint64_t count, uint32_t owner, uint32_t state) nogil

cdef extern from "memory/layout.h":
    enum:
        SHM_CELL_INLINE, SHM_TABLE_MEMBERS, SHM_TABLE_BOXES, SHM_TABLE_PLACES, SHM_TABLE_NOTICES, SHM_TABLE_CHUNKS
        SHM_MEMBER_FREE, SHM_MEMBER_JOINING, SHM_MEMBER_LIVE, SHM_MEMBER_DYING
        SHM_KIND_ROOT, SHM_KIND_WORKER, SHM_KIND_ATTACHED, SHM_KIND_FORK
        SHM_BOX_ACTOR, SHM_BOX_SHARED, SHM_BOX_PERSISTENT, SHM_BOX_BUS, SHM_BOX_OFFERS, SHM_BOX_SYNC, SHM_BOX_OPEN
        SHM_NAME_ACTOR, SHM_NAME_BOX, SHM_NAME_BUS, SHM_NAME_SYNC
        SHM_EXIT_UNKNOWN, SHM_EXIT_SIGNAL, SHM_EXIT_EXITED
        SHM_CELL_ASYNC, SHM_CELL_OWN, SHM_CELL_METHOD, SHM_CELL_LETTER, SHM_TABLE_NAMES, SHM_NOTICE_INLINE
        SHM_WAIT_NOTHING, SHM_WAIT_RECEIVE, SHM_WAIT_SEND, SHM_WAIT_CELL, SHM_WAIT_FINISHED
        SHM_WAIT_FRAME, SHM_WAIT_PUBLISH, SHM_WAIT_MANY
        SHM_WAIT_PORT

    struct shm_header:
        uint32_t uid
        uint32_t max_members
        uint64_t memory_limit
        uint64_t root
        uint64_t reserved_bytes
        uint64_t undelivered
        uint64_t rescued
        uint64_t reaped
        uint64_t next_tag
        uint32_t state
        uint64_t created_ns
        uint64_t keeper
        uint64_t keeper_rounds

    struct shm_member_record:
        uint64_t word
        uint64_t identity
        int32_t pid
        uint32_t kind
        uint64_t start_time
        uint64_t pid_namespace
        uint64_t creator
        uint32_t box
        uint64_t failed_casts
        uint64_t undelivered
        uint64_t joined_ns
        char name[72]
        uint64_t pid_namespace
        uint64_t described
        uint32_t loop
        uint32_t door

    struct shm_box_record:
        uint64_t word
        uint32_t kind
        uint64_t owner

    struct shm_ring:
        uint64_t closed
        uint32_t capacity

    struct shm_slot:
        pass

    struct shm_handle:
        uint32_t lease
        uint32_t birth

    struct shm_block:
        uint32_t handles
        uint64_t len_bytes

    struct shm_lease:
        uint64_t word
        uint64_t block

    struct shm_cell:
        uint64_t word

    struct shm_name_record:
        uint64_t word
        uint32_t kind
        uint32_t object
        uint64_t life
        uint64_t name[9]

    bint shm_box_has_ring(const shm_box_record *record) nogil
    uint64_t shm_layout_signature() nogil

cdef extern from "memory/segment.h":
    struct shm_segment:
        unsigned char *base
        const unsigned char *view
        shm_header *header
        uint64_t bytes
        int fd
        uint32_t classes
        uint32_t max_members
        uint64_t memory_limit

    struct shm_config:
        uint32_t uid
        uint32_t max_members
        uint64_t memory_limit
        uint64_t first_count

    uint64_t shm_segment_size(const shm_config *config) nogil
    int shm_segment_format(shm_segment *segment, int fd, const shm_config *config) nogil
    int shm_segment_inspect(shm_segment *segment, int fd) nogil
    int shm_segment_attach(shm_segment *segment, int fd) nogil
    void shm_segment_detach(shm_segment *segment) nogil
    bint shm_segment_has_fd(const shm_segment *segment) nogil
    uint32_t shm_pool_ready(const shm_segment *segment, uint32_t table) nogil
    bint shm_index_ok(const shm_segment *segment, uint32_t table, uint32_t index) nogil
    bint shm_block_ok(const shm_segment *segment, uint32_t block) nogil
    shm_member_record *shm_member_at(const shm_segment *segment, uint32_t slot) nogil
    shm_box_record *shm_box_at(const shm_segment *segment, uint32_t index) nogil
    shm_lease *shm_lease_at(const shm_segment *segment, uint32_t index) nogil
    shm_name_record *shm_name_at(const shm_segment *segment, uint32_t index) nogil
    shm_block *shm_block_at(const shm_segment *segment, uint32_t block) nogil
    uint64_t shm_block_class_bytes(uint32_t block) nogil
    uint64_t shm_block_offset(const shm_segment *segment, uint32_t block) nogil

cdef extern from "memory/member.h":
    struct shm_member:
        shm_segment *segment
        uint32_t slot
        uint64_t word
        shm_member_record *record
        int life_fd
        char *life_path
        int closed
        uint64_t pokes
        uint64_t tag_next
        uint64_t tag_end

    struct shm_thread:
        shm_member *member
        shm_segment *segment
        uint32_t slot
        uint32_t place
        void *at
        void *scratch
        uint32_t cycle_count
        uint32_t port_mode
        uint64_t serves
        uint64_t took
        uint64_t told_seen
        bint hears_all
        const int *shield
        int (*interrupted)(shm_thread *self) noexcept nogil

    uint64_t shm_member_id_self(const shm_member *member) nogil
    uint64_t shm_member_id_of(uint64_t word, uint32_t slot) nogil
    int64_t shm_member_prepare(shm_segment *segment, shm_member *creator, uint32_t kind, const char *name) nogil
    void shm_member_launched(shm_segment *segment, uint64_t id, int pid) nogil
    void shm_member_forget(shm_segment *segment, uint64_t id) nogil
    int shm_member_join(shm_member *member, shm_segment *segment, uint64_t id, uint32_t kind, const char *name,
                        const char *life_path) nogil
    void shm_member_abandon(shm_member *member) nogil
    void shm_member_dispose(shm_member *member) nogil
    void shm_member_forked(shm_member *member) nogil
    bint shm_member_is_forked(const shm_member *member) nogil
    bint shm_member_lives(const shm_segment *segment, uint64_t id) nogil
    bint shm_life_any_locked(int fd, uint32_t max_members) nogil
    uint64_t shm_process_start_time(int pid) nogil
    bint shm_process_lives(int pid, uint64_t start_time) nogil
    bint shm_process_status(int pidfd, uint32_t *wait_status) nogil
    void shm_member_say_status(shm_segment *segment, uint64_t id, uint32_t reason, uint32_t status) nogil
    void shm_member_say_reason(shm_segment *segment, uint64_t id, uint32_t reason, uint32_t status) nogil
    uint64_t shm_member_cause(const shm_segment *segment, uint64_t id) nogil
    uint32_t shm_member_undelivered(const shm_segment *segment, uint64_t id) nogil
    void shm_member_is_alone(shm_thread *self) nogil
    void shm_serving_begin(shm_thread *self, uint64_t call, const char *what, size_t len) nogil
    void shm_serving_again(shm_thread *self, uint64_t call) nogil
    void shm_serving_end(shm_thread *self) nogil
    int shm_thread_open(shm_thread *self, shm_member *member) nogil
    void shm_thread_close(shm_thread *self) nogil

cdef extern from "memory/cgroup.h":
    uint64_t shm_cgroup_free(const char *root) nogil

cdef extern from "memory/prefault.h":
    int shm_prefault(void *at, uint64_t len_bytes, bint huge, int node) nogil

cdef extern from "memory/arena.h":
    struct shm_arena_counts:
        uint64_t reserved_bytes
        uint64_t used_bytes
        uint64_t limit_bytes
        uint32_t blocks
        uint32_t leases

    struct shm_fork:
        uint64_t id
        int life_fd
    void shm_fork_prepare(shm_member *member, shm_thread *self, shm_fork *fork) nogil
    int shm_fork_add(shm_member *member, shm_thread *self, uint32_t lease, shm_fork *fork) nogil
    int shm_arrays_remain(shm_member *member, shm_thread *self, const uint32_t *leases, uint32_t count,
                          shm_fork *fork) nogil
    void shm_fork_end(shm_fork *fork) nogil
    bint shm_lease_is_lent(shm_member *member, uint32_t lease) nogil
    void shm_lent_look(shm_thread *self) nogil
    void shm_fork_child(shm_segment *segment, uint64_t id) nogil
    int shm_block_take(shm_thread *self, uint64_t len_bytes, uint32_t *lease) nogil
    int shm_block_hold(shm_thread *self, uint32_t block, uint32_t *lease) nogil
    void shm_lease_release(shm_thread *self, uint32_t lease) nogil
    void shm_lease_recycle(shm_thread *self, uint32_t lease) nogil
    void shm_lease_later(shm_member *member, uint32_t lease) nogil
    void shm_lease_retry(shm_thread *self) nogil
    void shm_lease_give(shm_thread *self, uint32_t lease, uint32_t slot) nogil
    void shm_warm_drop(shm_thread *self) nogil
    void shm_arena_trim(shm_thread *self) nogil
    uint32_t shm_lease_block(const shm_segment *segment, uint32_t lease) nogil
    bint shm_lease_find(const shm_segment *segment, uint32_t lease, uint64_t len_bytes, uint32_t *block) nogil
    uint32_t shm_block_holders(const shm_segment *segment, uint32_t block) nogil
    uint32_t shm_lease_birth(const shm_segment *segment, uint32_t lease) nogil
    bint shm_handle_take(shm_thread *self, uint32_t block, uint32_t at, uint32_t *lease) nogil
    void shm_handles_put(shm_thread *self, uint32_t block, const uint32_t *leases, uint32_t count) nogil
    void shm_arena_statistics(const shm_segment *segment, shm_arena_counts *out) nogil

cdef extern from "transport/park.h":
    void shm_wake_own(shm_thread *self) nogil
    void shm_call_back(shm_thread *self, shm_thread *other) nogil

cdef extern from "transport/abort.h":
    enum:
        SHM_ABORT_THREAD, SHM_ABORT_CALL

    uint64_t shm_thread_id_self(const shm_thread *self) nogil
    bint shm_is_shielded(const shm_thread *self) nogil
    bint shm_abort_reached(const shm_thread *self, uint64_t call) nogil
    bint shm_abort_is_pending(const shm_thread *self) nogil
    void shm_abort_answered(shm_thread *self, uint64_t call) nogil
    void shm_serve_begin(shm_thread *self, uint64_t call, uint64_t deadline_ns) nogil
    bint shm_is_serving(const shm_thread *self) nogil
    void shm_serve_taken(shm_thread *self, uint64_t call, uint64_t deadline_ns) nogil
    void shm_serve_end(shm_thread *self) nogil
    uint64_t shm_serves_until(const shm_thread *self) nogil
    int shm_abort_take(shm_thread *self) nogil
    void shm_abort_means_me(shm_thread *self) nogil
    int shm_abort(shm_thread *self, uint64_t id, uint64_t thread) nogil
    void shm_abort_mark(shm_thread *self, uint64_t call) nogil

cdef extern from "transport/ring.h":
    enum:
        SHM_KIND_CAST, SHM_KIND_CALL, SHM_KIND_REPLY, SHM_KIND_TIMER, SHM_KIND_EXIT, SHM_KIND_NOTIFY
        SHM_TOLD_NOTHING, SHM_TOLD_EXIT, SHM_TOLD_LINK, SHM_TOLD_REPLY, SHM_TOLD_BITS
    uint64_t SHM_TAG_ANY
    uint64_t SHM_TAG_MASK
    uint64_t SHM_TAG_ORDER
    uint64_t SHM_SENDER_ANY
    uint32_t SHM_FLAG_OWN
    uint32_t SHM_FLAG_MEETING
    uint32_t SHM_PRIORITY_MAX

    struct shm_message:
        uint64_t header
        uint64_t sender
        uint64_t call
        const void *body
        uint32_t len_bytes
        uint16_t format
        uint16_t flags
        uint32_t lease
        uint32_t told
        const void *annex
        uint32_t annex_bytes
        uint64_t source
        uint64_t group
        uint64_t number
        uint32_t priority
        uint64_t position
        uint64_t deadline_ns
        uint64_t letter
        uint64_t notice
        uint32_t cause
        uint32_t undelivered

    struct shm_filter:
        uint64_t sender
        uint64_t tag
        uint32_t kinds
        const shm_filter *other
        uint64_t too_large
        uint64_t tag_from
        uint64_t tag_until
        uint64_t from_ "from"
        uint64_t until
        uint64_t ends
        bint urgent
        bint keeps
        bint raw

    struct shm_box:
        shm_ring *ring
        uint32_t index
        uint64_t count
        uint64_t owner
        uint32_t lease
        uint64_t capacity
        uint32_t mask
        uint32_t slot_bytes
        uint32_t body_bytes
        uint32_t message_bytes
        uint32_t envelope_at
        uint32_t block
        unsigned char *slots
        void *asides
        unsigned char *bodies
        int released

    uint64_t shm_header_make(uint32_t kind, uint64_t tag) nogil
    bint shm_filter_takes_bits(const shm_filter *filter) nogil
    bint shm_filter_fits(const shm_filter *filter, uint64_t header, uint64_t sender) nogil
    int shm_ring_send(shm_thread *self, shm_box *box, const shm_message *message, bint behind) nogil
    int shm_ring_receive(shm_thread *self, shm_box *box, const shm_filter *filter, shm_message *message,
                         uint64_t *looked) nogil
    uint64_t shm_ring_count(const shm_box *box) nogil

cdef extern from "transport/mailbox.h":
    int shm_box_make(shm_thread *self, shm_box *box, uint32_t kind, uint32_t capacity, uint32_t body_bytes,
                     uint64_t owner) nogil
    void shm_box_fix_length(shm_box *box, uint32_t message_bytes) nogil
    int shm_box_open(shm_thread *self, shm_box *box, uint32_t index, uint64_t count) nogil
    void shm_box_release(shm_thread *self, shm_box *box) nogil
    int shm_box_persist(shm_thread *self, shm_box *box) nogil
    void shm_box_unpersist(shm_thread *self, shm_box *box) nogil
    uint64_t shm_box_undelivered(const shm_segment *segment) nogil
    uint64_t shm_box_close(shm_thread *self, shm_box *box) nogil
    bint shm_box_is_closed(const shm_box *box) nogil
    bint shm_box_is_dead(const shm_segment *segment, const shm_box *box) nogil
    void shm_box_say_receives(shm_thread *self, shm_box *box) nogil
    uint32_t shm_box_receivers(const shm_segment *segment, const shm_box *box) nogil
    int shm_box_notify(shm_thread *self, shm_box *box, uint64_t bits) nogil
    int shm_box_try_send(shm_thread *self, shm_box *box, const shm_message *message) nogil
    int shm_box_send(shm_thread *self, shm_box *box, const shm_message *message, uint64_t deadline_ns) nogil
    int shm_box_receive(shm_thread *self, shm_box *box, const shm_filter *filter, shm_message *message,
                        uint64_t deadline_ns) nogil

    int shm_box_receive_any(shm_thread *self, shm_box **boxes, uint32_t count, shm_message *message, uint32_t *which,
                            uint64_t deadline_ns) nogil

cdef extern from "transport/cell.h":
    struct shm_reply:
        int status
        bint served
        const void *body
        uint32_t len_bytes
        uint16_t format
        uint32_t lease
        uint64_t replier
        uint32_t port

    uint64_t SHM_TAG_GENERATED
    void shm_call_through(shm_thread *self, uint64_t call, uint32_t index) nogil
    void shm_call_label(shm_thread *self, uint64_t call, uint64_t tag) nogil
    void shm_call_limit(shm_thread *self, uint64_t call, uint64_t deadline_ns) nogil
    bint shm_letter_withdraw(shm_thread *self, uint64_t call) nogil
    uint64_t shm_tag_make(shm_thread *self) nogil
    int shm_call_open(shm_thread *self, uint64_t addressee, uint32_t flags, uint64_t *call) nogil
    void shm_call_check(shm_thread *self, uint64_t call, uint64_t addressee) nogil
    bint shm_call_is_done(const shm_segment *segment, uint64_t call) nogil
    bint shm_call_is_sound(const shm_segment *segment, uint64_t call) nogil
    int shm_call_read(shm_thread *self, uint64_t call, shm_reply *reply) nogil
    void shm_call_free(shm_thread *self, uint64_t call) nogil
    int shm_call_wait(shm_thread *self, uint64_t call, uint64_t addressee, uint64_t deadline_ns) nogil
    bint shm_call_cancel(shm_thread *self, uint64_t call) nogil
    void shm_call_look(shm_thread *self) nogil
    uint32_t shm_call_finished(shm_thread *self, uint64_t *calls, uint32_t room) nogil
    int shm_call_wait_finished(shm_thread *self, uint64_t pokes_seen, uint64_t deadline_ns) nogil
    void shm_call_poke(shm_thread *self) nogil
    int shm_call_serve(shm_thread *self, uint64_t call) nogil
    void shm_call_fail(shm_thread *self, uint64_t call) nogil
    bint shm_call_is_open(const shm_segment *segment, uint64_t call, uint32_t slot) nogil
    int shm_call_reply(shm_thread *self, uint64_t call, const void *body, uint32_t len_bytes, uint16_t format,
                       uint32_t lease) nogil

cdef extern from "transport/meeting.h":
    int shm_meeting_accept(shm_thread *self, shm_message *message) nogil
    bint shm_meeting_is_possible(const shm_box *box) nogil
    int shm_meeting_try(shm_thread *self, shm_box *box, uint64_t call) nogil

cdef extern from "transport/offer.h":
    enum:
        SHM_OFFER_SLOTS, SHM_OFFER_BODY_BYTES
    uint64_t SHM_BIT_OFFER
    int shm_offer_send(shm_thread *self, shm_box *to, const shm_message *message) nogil
    int shm_offer_pull(shm_thread *self, shm_box *own, uint64_t sender, shm_message *message) nogil
    int shm_offer_recall(shm_thread *self, uint64_t receiver, shm_message *message) nogil
    int64_t shm_offer_count(shm_thread *self, uint64_t sender, uint64_t receiver) nogil
    uint32_t shm_offer_senders(const shm_thread *self, uint64_t *senders, uint32_t room) nogil

cdef extern from "transport/notice.h":
    int64_t shm_notice_arm(shm_thread *self, shm_box *box, uint64_t target) nogil
    bint shm_notice_disarm(shm_thread *self, uint64_t number) nogil
    int shm_notice_link(shm_thread *self, shm_box *box, uint64_t other, uint32_t other_box, uint64_t other_life) nogil
    bint shm_notice_unlink(shm_thread *self, uint64_t other) nogil
    int64_t shm_notice_set(shm_thread *self, const shm_box *box, const shm_message *message, uint64_t period_ns) nogil

cdef extern from "transport/timer.h":
    struct shm_timers:
        pass

    shm_timers *shm_timers_start(shm_member *member, int *status) nogil
    void shm_timers_stop(shm_timers *timers) nogil
    int shm_timer_schedule(shm_timers *timers, uint64_t number, uint64_t due_ns, uint64_t period_ns) nogil

cdef extern from "transport/names.h":
    struct shm_named:
        uint32_t kind
        uint32_t object
        uint64_t life

    int shm_name_serve(shm_thread *self, const char *name, const shm_named *named) nogil
    int shm_name_lookup(shm_thread *self, const char *name, shm_named *named) nogil
    int shm_name_withdraw(shm_thread *self, const char *name) nogil
    bint shm_name_of(shm_thread *self, uint32_t kind, uint32_t object, uint64_t life, char *name) nogil

cdef extern from "transport/look.h":
    struct shm_activity:
        uint32_t place
        uint32_t thread
        uint64_t serving
        uint64_t serving_since
        char what[33]
        uint32_t wait_kind
        uint32_t object
        uint64_t waits_since
        uint64_t waits_until

    bint shm_look_place(const shm_segment *segment, uint32_t place, uint32_t slot, shm_activity *activity) nogil
    const shm_ring *shm_look_ring(const shm_segment *segment, uint32_t box) nogil
    uint64_t shm_look_depth(const shm_ring *ring) nogil
    uint64_t shm_look_taker(const shm_segment *segment, uint64_t call) nogil
    bint shm_look_service(const shm_segment *segment, uint64_t call, char *what) nogil
    uint32_t shm_look_server(const shm_segment *segment, uint32_t cell) nogil
    int shm_look_open(shm_segment *image, int fd) nogil
    void shm_look_close(shm_segment *image) nogil

cdef extern from "transport/keeper.h":
    uint64_t shm_reap_cause(shm_segment *segment, uint64_t id) nogil
    struct shm_keeper:
        pass

    void shm_member_attach_transport(shm_member *member) nogil
    bint shm_reap(shm_thread *self, uint32_t slot) nogil
    uint32_t shm_reap_all(shm_thread *self) nogil
    void shm_leave(shm_thread *self) nogil
    shm_keeper *shm_keeper_start(shm_member *member, const int *lifelines, uint32_t count, int *status) nogil
    void shm_keeper_open_door(shm_keeper *keeper, void (*visit)(int connection) noexcept nogil) nogil
    void shm_keeper_poke(shm_keeper *keeper) nogil
    void shm_keeper_stop(shm_keeper *keeper) nogil
    void shm_keeper_forked(shm_keeper *keeper) nogil
