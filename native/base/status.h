/* Status codes of the core, and one table of code, name and text.
 *
 * Every core function returns 0 or a negative code. Full, empty and timed out are answers, not errors to log.
 * The binding turns a code into the exception of the same name in shmipc/base/errors.py.
 */
#ifndef SHM_STATUS_H
#define SHM_STATUS_H

#define SHM_STATUS_TABLE(X)                                                                                  \
    X(OK, 0, "success")                                                                                      \
    X(EMPTY, -1, "no message matches")                                                                       \
    X(FULL, -2, "the mailbox holds as many undelivered messages as its capacity")                            \
    X(TIMEOUT, -3, "the deadline passed")                                                                    \
    X(INTERRUPTED, -4, "a signal arrived while waiting")                                                     \
    X(PEER_DEAD, -5, "the peer is dead")                                                                     \
    X(CLOSED, -6, "the object or its system is closed")                                                      \
    X(NOT_FOUND, -7, "no such name or object")                                                               \
    X(NAME_TAKEN, -8, "the name is taken by a living owner")                                                 \
    X(INVALID, -9, "invalid argument")                                                                       \
    X(TOO_LARGE, -10, "larger than the limit")                                                               \
    X(LIMIT, -11, "a table of the system is full")                                                           \
    X(NO_MEMORY, -12, "shared memory is exhausted")                                                          \
    X(CORRUPTED, -13, "shared memory holds impossible values")                                               \
    X(LAYOUT, -14, "the segment has another layout")                                                         \
    X(FORKED, -15, "the handle belongs to the parent of this forked process")                                \
    X(REFUSED, -16, "the request is no longer open, or is not yours to answer")                              \
    X(BUSY, -17, "held by another for the moment")                                                           \
    X(STARVED, -18, "nothing that is queued matches and no other message can get in")                        \
    X(SYSTEM, -19, "the operating system refused")                                                           \
    X(ABORTED, -20, "the wait was aborted")                                                                  \
    X(DEADLOCK, -21, "a cycle of calls waits for itself")                                                    \
    X(TOO_SMALL, -22, "the message is larger than the buffer")                                               \
    X(NO_PORT, -40, "the port is gone, or is another actor's")

enum shm_status {
#define SHM_STATUS_ENUM(name, code, text) SHM_##name = (code),
    SHM_STATUS_TABLE(SHM_STATUS_ENUM)
#undef SHM_STATUS_ENUM
};

/* The text of a code, for messages; never NULL. */
const char *shm_status_text(int status);

#endif
