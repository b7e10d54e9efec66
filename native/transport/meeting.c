#include "transport/meeting.h"

#include "base/clock.h"
#include "base/killpoint.h"
#include "base/status.h"

/* A receiver spins before it is seen to wait, and no longer than this. */
#define ARRIVAL_NS UINT64_C(200000)
/* A receiver that was woken has taken the message by then, or does not run. */
#define TAKE_LIMIT_NS UINT64_C(100000000)

int shm_meeting_accept(struct shm_thread *self, struct shm_message *message)
{
    if (message->call == 0)
        return 0;
    if (shm_call_serve(self, message->call))
        return SHM_REFUSED;
    if (!(message->flags & SHM_FLAG_MEETING))
        return 0;
    SHM_KILL_POINT(meeting_accept);
    int status = shm_call_reply(self, message->call, "", 0, SHM_FORMAT_BYTES, 0);
    message->call = 0;
    message->flags &= (uint16_t)~SHM_FLAG_MEETING;
    return status ? SHM_REFUSED : 0;
}

bool shm_meeting_is_possible(const struct shm_box *box)
{
    uint64_t until = shm_clock_ns() + ARRIVAL_NS;
    /* Whoever has declined what is there may wait for just this one; shm_meeting_try ends when he declines it too. */
    while (shm_set_empty(box->receivers)) {
        if (shm_clock_ns() >= until)
            return false;
        shm_clock_relax();
    }
    return true;
}

int shm_meeting_try(struct shm_thread *self, struct shm_box *box, shm_call_id call)
{
    uint64_t until = shm_clock_ns() + TAKE_LIMIT_NS, now;
    do {
        int status = shm_call_wait(self, call, box->owner, shm_clock_ns() + ARRIVAL_NS);
        if (status != SHM_TIMEOUT)
            return status;
        now = shm_clock_ns();
    } while (now < until && shm_ring_is_awaited(self, box));
    return shm_call_cancel(self, call) ? SHM_FULL : 0;
}
