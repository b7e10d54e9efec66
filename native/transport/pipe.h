/* A pipe: a stream of bytes in shared memory, with any number of readers and writers.
 *
 * One reads and one writes at a time: who has the right, for as long as it takes to copy one part. Bytes count as written, or
 * as read, when all of a part is copied and the number is stored: a death before leaves the pipe as it was. Each end that
 * is open is an entry that names its member, so that the death of the last writer is the end of the stream.
 */
#ifndef SHM_PIPE_H
#define SHM_PIPE_H

#include "transport/sync.h"

enum { SHM_PIPE_ATOMIC = 4096, SHM_PIPE_PART = 1 << 18 };

/* Open an end, SHM_ENTRY_READER or SHM_ENTRY_WRITER: 0, or LIMIT. */
int shm_pipe_join(struct shm_thread *self, struct shm_sync_view *view, uint32_t what, uint32_t *entry);
/* Close it: 0, or REFUSED: it is not the caller's. */
int shm_pipe_leave(struct shm_thread *self, struct shm_sync_view *view, uint32_t entry);
/* Is there room for so many bytes, or nobody any more who reads? Loads only. */
bool shm_pipe_has_room(const struct shm_sync_view *view, uint64_t least);
uint32_t shm_pipe_count(const struct shm_sync_view *view, uint32_t what);

/* Read what is there, at least one byte and at most `len`: 0 and *done, which is 0 at the end of the stream; EMPTY, TIMEOUT,
 * CLOSED, CORRUPTED, INTERRUPTED. */
int shm_pipe_read(struct shm_thread *self, struct shm_sync_view *view, void *into, uint64_t len,
                  uint64_t *done, uint64_t deadline_ns);
/* Write all, adding to *done what was: 0; FULL, TIMEOUT, CLOSED, CORRUPTED, INTERRUPTED; PEER_DEAD: nobody has it open for
 * reading any more. SHM_PIPE_ATOMIC bytes or less, and not more than the pipe holds, are written at once or not at all. */
int shm_pipe_write(struct shm_thread *self, struct shm_sync_view *view, const void *from, uint64_t len,
                   uint64_t *done, uint64_t deadline_ns);

#endif
