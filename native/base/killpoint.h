/* Kill points: named places where a test lets the running process die or stop.
 *
 * Each step of a protocol that touches shared memory has one just before it. They exist only in the test build;
 * in the product SHM_KILL_POINT is nothing. A point is armed by name; at its `after`-th passing it raises the
 * signal (SIGKILL or SIGSTOP) in this process, or, in tests whose members are threads, calls a hook that
 * abandons the thread.
 */
#ifndef SHM_KILLPOINT_H
#define SHM_KILLPOINT_H

/* name, what is about to happen; one line for each step of each protocol */
#define SHM_KILL_POINT_TABLE(X)                                                                              \
    X(send_flight)       /* before the flight word of a claim */                                             \
    X(send_claim)        /* before the CAS that claims a slot */                                             \
    X(send_claimed)      /* slot claimed, flight word not yet told so */                                     \
    X(send_tail)         /* before the tail is helped past the claim */                                      \
    X(send_copy)         /* before the body is copied into the slot */                                       \
    X(send_publish)      /* before the exchange that publishes */                                            \
    X(send_published)    /* published, nobody woken yet */                                                   \
    X(send_done)         /* woken, flight word not yet cleared */                                            \
    X(right_flight)      /* before the flight word of the take right */                                      \
    X(right_take)        /* before the CAS that takes the right */                                           \
    X(right_sweep)       /* before each slot that a sweep frees */                                           \
    X(right_sweep_head)  /* before a sweep stores head */                                                    \
    X(right_sweep_count) /* before a sweep stores the count delivered */                                     \
    X(take_call)         /* before a taken request becomes its taker's */                                    \
    X(take_lease)        /* before a taken block's lease changes hands */                                    \
    X(take_lost)         /* before a message that is lost with its receiver is counted */                    \
    X(take_commit)       /* copied out; before the store that frees the slot */                              \
    X(take_head)         /* slot freed, head not yet stored */                                               \
    X(take_count)        /* head stored, count delivered not yet */                                          \
    X(aside_link)        /* before an entry is linked to the set-aside list */                               \
    X(aside_free)        /* linked, slot not yet freed */                                                    \
    X(aside_unlink)      /* before the store that unlinks a delivered entry */                               \
    X(right_release)     /* before the exchange that gives the right back */                                 \
    X(right_released)    /* given back, nobody woken yet */                                                  \
    X(wait_arm)          /* before the place is armed */                                                     \
    X(wait_register)     /* before the place enters a waiter set */                                          \
    X(wait_park)         /* registered, before the semaphore */                                              \
    X(wait_leave)        /* before the place starts to leave */                                              \
    X(wait_deregister)   /* before the place leaves a waiter set */                                          \
    X(wait_pass)         /* out of the set, baton not yet passed */                                          \
    X(wait_idle)         /* baton passed, place not yet idle */                                              \
    X(wake_notify)       /* before the CAS that notifies a place */                                          \
    X(wake_post)         /* notified, semaphore not yet posted */                                            \
    X(cell_register)     /* before a reply cell becomes pending */                                           \
    X(cell_close)        /* before a caller closes its transaction */                                        \
    X(cell_closed)       /* closed, server not yet told */                                                   \
    X(cell_serve)        /* request taken, served_by not yet stored */                                       \
    X(cell_fill)         /* before the CAS that starts a reply */                                            \
    X(cell_copy)         /* before the reply is copied into the cell */                                      \
    X(cell_done)         /* before the CAS that completes a reply */                                         \
    X(cell_bit)          /* done, finished bit not yet set */                                                \
    X(cell_wake)         /* finished bit set, caller not yet woken */                                        \
    X(cell_take)         /* before the caller frees a completed cell */                                      \
    X(block_lock)        /* before the CAS that locks a block */                                             \
    X(block_record)      /* before a lease record changes */                                                 \
    X(block_count)       /* a dead one's lock taken over, holders not yet counted */                         \
    X(block_unlock)      /* before the store that unlocks a block */                                         \
    X(pages_reserve)     /* before a block's pages are reserved */                                           \
    X(pages_count)       /* reserved, not yet counted */                                                     \
    X(trim_count)        /* a free block locked, before its pages are counted no more */                     \
    X(trim_discard)      /* counted no more, not yet given back */                                           \
    X(drop_claim)        /* before what a block or a message held is claimed to be released */               \
    X(drop_clear)        /* claimed, the reference to it not yet cleared */                                  \
    X(member_claim)      /* before a member slot is claimed */                                               \
    X(member_lock)       /* slot claimed, life lock not yet taken */                                         \
    X(member_live)       /* before a member becomes live */                                                  \
    X(member_leave)      /* before a member leaves in order */                                               \
    X(box_make)          /* before a mailbox descriptor is claimed */                                        \
    X(box_open)          /* mailbox made, not yet open to others */                                          \
    X(bus_make)          /* before the record of a bus is claimed */                                         \
    X(bus_open)          /* bus made, not yet open to others */                                              \
    X(bus_right)         /* before the CAS that takes the right to publish */                                \
    X(bus_claim)         /* right taken; before the exchange that ends the oldest frame */                   \
    X(bus_evict)         /* the oldest frame ended, its block not yet released */                            \
    X(bus_refer)         /* before the frame refers to its block */                                          \
    X(bus_fly)           /* before that block's lease is the bus's */                                        \
    X(bus_ready)         /* before the frame is ready */                                                     \
    X(bus_publish)       /* before the exchange of the tail that publishes */                                \
    X(bus_published)     /* published, no reader woken yet */                                                \
    X(bus_release)       /* readers woken; before the right goes back */                                     \
    X(bus_released)      /* given back, no writer woken yet */                                               \
    X(bus_late)          /* before a reader that held up a writer for too long is late */                    \
    X(bus_join)          /* before the CAS that makes somebody a reader */                                   \
    X(bus_joined)        /* reader claimed, not yet counted */                                               \
    X(bus_look)          /* counted, gate not yet looked at */                                               \
    X(bus_hold)          /* before a reader takes a lease of a frame's block */                              \
    X(bus_take)          /* before the CAS that moves a reader's cursor */                                   \
    X(bus_taken)         /* moved, no writer woken yet */                                                    \
    X(bus_count)         /* before a reader is counted at a frame that so many may have */                   \
    X(bus_counted)       /* counted, or not; no writer woken yet */                                          \
    X(bus_leave)         /* before a reader leaves */                                                        \
    X(bus_left)          /* left, no writer woken yet */                                                     \
    X(bus_closing)       /* before the gate is closing */                                                    \
    X(bus_close)         /* no reader seen; before the record is closed */                                   \
    X(bus_closed)        /* record closed, gate not yet */                                                   \
    X(name_claim)        /* before a name entry is claimed */                                                \
    X(name_tentative)    /* before a name becomes visible to rivals */                                       \
    X(name_ready)        /* before a name is ready */                                                        \
    X(notice_arm)        /* before a notice cell is armed */                                                 \
    X(notice_cause)      /* before the cause of the end is kept in a notice cell */                          \
    X(notice_fire)       /* before a notice cell fires */                                                    \
    X(notice_fired)      /* fired, watcher not yet told */                                                   \
    X(link_tentative)    /* before a link becomes visible to rivals */                                       \
    X(link_ready)        /* before a link is armed */                                                        \
    X(link_back)         /* before a link that is not the first of two gives way */                          \
    X(link_again)        /* it gave way, and is not yet free */                                              \
    X(timer_arm)         /* before a timer's cell is claimed */                                              \
    X(timer_fire)        /* before a timer's cell fires */                                                   \
    X(timer_fired)       /* fired, receiver not yet told */                                                  \
    X(timer_take)        /* tick copied out, before the CAS that takes it */                                 \
    X(cell_letter)       /* answered, its bit set, the caller's mailbox not yet told */                      \
    X(reap_dying)        /* before a victim is marked dying */                                               \
    X(reap_root)         /* before a system whose root has ended is closed */                                \
    X(sync_make)         /* before the record of a sync object is claimed */                                 \
    X(sync_open)         /* object made, not yet open to others */                                           \
    X(sync_take)         /* before the CAS that takes an object */                                           \
    X(sync_change)       /* before the CAS that sets, unlocks or releases */                                 \
    X(sync_changed)      /* changed, nobody woken yet */                                                     \
    X(sync_decide)       /* before a wait for all may claim */                                               \
    X(sync_claim)        /* before the CAS that claims an object for a wait for all */                       \
    X(sync_taken)        /* all claimed; before the CAS that takes them */                                   \
    X(sync_fail)         /* before a claim fails */                                                          \
    X(sync_finish)       /* decided; before the CAS that puts a claimed word right */                        \
    X(rw_enter)          /* before the CAS that makes somebody a reader of a lock */                         \
    X(rw_entered)        /* entry claimed, writer not yet looked for */                                      \
    X(rw_leave)          /* before a reader of a lock leaves */                                              \
    X(rw_left)           /* left, writer not yet woken */                                                    \
    X(rw_taken)          /* a writer has come, and readers may be inside */                                  \
    X(pipe_join)         /* before an end of a pipe is open */                                               \
    X(pipe_joined)       /* open, not yet counted among those that were */                                   \
    X(pipe_right)        /* before the CAS that takes the right to read or write */                          \
    X(pipe_copy)         /* before bytes are copied */                                                       \
    X(pipe_commit)       /* copied, not yet counted */                                                       \
    X(pipe_release)      /* before the right goes back */                                                    \
    X(pipe_released)     /* given back, nobody woken yet */                                                  \
    X(pipe_leave)        /* before an end is closed */                                                       \
    X(pipe_left)         /* closed, nobody woken yet */                                                      \
    X(reap_line)         /* before a place of the victim leaves the line of a sync object */                 \
    X(reap_syncs)        /* before what the victim held of sync objects */                                   \
    X(reap_flight)       /* before each flight word of the victim */                                         \
    X(reap_cells)        /* before the victim's reply cells */                                               \
    X(reap_leases)       /* before the victim's leases */                                                    \
    X(reap_places)       /* before the victim's parking places */                                            \
    X(reap_boxes)        /* before the victim's mailboxes and names */                                       \
    X(reap_buses)        /* before what the victim held of buses */                                          \
    X(reap_notices)      /* before the notices of the victim's death */                                      \
    X(reap_retire)       /* before the victim's slot gets a new generation */                                \
    X(notify_set)        /* before a notification's bits are set */                                          \
    X(notify_tell)       /* set, no receiver told yet */                                                     \
    X(notify_take)       /* before the bits are taken */                                                     \
    X(meeting_accept)    /* taken, its sender not yet told that it was accepted */                           \
    X(offer_keep)        /* a queue of offers made, nothing keeps it but its maker */                        \
    X(offer_name)        /* kept, not yet said for whom it is */                                             \
    X(offer_check)       /* said, not yet looked whether he lives */                                         \
    X(offer_tell)        /* offered, its receiver not yet notified */                                        \
    X(offer_again)       /* pulled, not yet notified of what is left */                                      \
    X(offer_drop)        /* a queue of offers closed, not yet let go */                                      \
    X(reap_offers)       /* before what the victim offers, or others offer to it */                          \
    X(port_make)         /* mailbox made, before it becomes a port that is being made */                     \
    X(port_keep)         /* before the lease that keeps the port is told */                                  \
    X(port_open)         /* kept, before the port is its owner's */                                          \
    X(port_opened)       /* its owner's, who has not been looked at since */                                 \
    X(port_priority)     /* before its owner gives a port a priority */                                      \
    X(port_enable)       /* before a port is enabled */                                                      \
    X(port_enabled)      /* enabled, nobody woken yet */                                                     \
    X(port_wake)         /* a message published, before who waits for any port is woken */                   \
    X(port_move)         /* before a port starts to migrate */                                               \
    X(port_empty)        /* before the messages of one that migrates without them are dropped */             \
    X(port_commit)       /* everything told, before the port is its new owner's */                           \
    X(port_moved)        /* the new owner's, who has not been looked at since */                             \
    X(port_remove)       /* before a port starts to go */                                                    \
    X(port_close)        /* going, its mailbox not yet closed */                                             \
    X(port_fail)         /* closed, before the calls that are served through it are failed */                \
    X(port_forget)       /* before the groups forget it */                                                   \
    X(port_unkeep)       /* before its mailbox is kept no more */                                            \
    X(port_gone)         /* before it is gone */                                                             \
    X(port_default)      /* before a port becomes an actor's default port */                                 \
    X(group_make)        /* before the record of a group is claimed */                                       \
    X(group_open)        /* group made, not yet open to others */                                            \
    X(group_insert)      /* before the CAS that inserts a port */                                            \
    X(group_inserted)    /* inserted, not yet looked whether it is there twice, or gone */                   \
    X(group_remove)      /* before the CAS that removes a port */                                            \
    X(group_close)       /* before a group is closed */                                                      \
    X(group_closed)      /* closed, its name not yet free */                                                 \
    X(reap_ports)        /* before the victim's ports */                                                     \
    X(abort_flag)        /* before the CAS that aborts a thread */                                           \
    X(abort_flagged)     /* aborted, not yet woken */                                                        \
    X(abort_take)        /* before a thread's abort is taken */                                              \
    X(abort_mark)        /* before an aborted caller that waits on marks its cell */                         \
    X(abort_marked)      /* marked, server not yet told */                                                   \
    X(abort_tell)        /* before the server of a closed or marked call is told */                          \
    X(abort_told)        /* told, not yet woken */                                                           \
    X(lane_copy)         /* before the bytes of a message are copied into a lane */                          \
    X(lane_post)         /* copied, not yet counted as posted */                                             \
    X(lane_posted)       /* posted, its reader not yet woken */                                              \
    X(lane_take)         /* copied out, not yet counted as taken */                                          \
    X(lane_taken)        /* taken, its poster not yet woken */                                               \
    X(sync_adopt)        /* before a mutex goes to another thread of its holder's process */                 \
    X(keep_lease)        /* before the block of a message that stays is held once more */                    \
    X(box_receives)      /* before a hold of a mailbox says that it receives */                              \
    X(group_unlisted)    /* found by nobody any more, not yet closed for those who have it open */           \
    X(port_drop)         /* before what a port holds, which migrates without, is lost */                     \
    X(port_dropped)      /* also what is claimed, of which nothing has gone yet */                           \
    X(port_name)         /* before a port that another has made becomes an actor's default port */           \
    X(barrier_counted)   /* counted at a barrier, not yet in line */                                         \
    X(vigil_begin)       /* before a native thread says that it lives */                                     \
    X(vigil_end)         /* before a native thread that ends in order says so */                             \
    X(reap_ending)       /* before it is said that a victim's process has yet to be taken apart */           \
    X(remain_give)       /* before a lease of one who leaves goes to the slot of its arrays */               \
    X(remain_live)       /* that slot has them all, and is not yet LIVE */

#ifdef SHM_KILL_POINTS
enum shm_kill_point {
#define SHM_KILL_POINT_ENUM(name) SHM_KILL_##name,
    SHM_KILL_POINT_TABLE(SHM_KILL_POINT_ENUM)
#undef SHM_KILL_POINT_ENUM
        SHM_KILL_POINT_COUNT
};

/* Names in table order. */
extern const char *const shm_kill_point_names[SHM_KILL_POINT_COUNT];
/* Arm `name`: at its `after`-th passing (1: the next) send `signal` to this process. 0, or -1: no such name. */
int shm_kill_point_arm(const char *name, unsigned after, int signal);
void shm_kill_point_disarm(void);
/* How often a point was passed in this process since the last disarm, 0 for an unknown name. */
unsigned long shm_kill_point_passed(const char *name);
/* Called instead of a signal when not NULL, with the point that is armed. */
extern void (*shm_kill_point_hook)(enum shm_kill_point);
void shm_kill_point_pass(enum shm_kill_point point);
#define SHM_KILL_POINT(name) shm_kill_point_pass(SHM_KILL_##name)
#else
#define SHM_KILL_POINT(name) ((void)0)
#endif

#endif
