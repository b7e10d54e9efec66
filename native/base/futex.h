/* Words that processes sleep on, in memory that they share: the kernel's futexes.
 *
 * A will: a word of which the kernel wakes one sleeper when the calling thread ends, at whatever instruction. It is the
 * pending operation of the thread's robust list, which the C library has registered and uses itself only within the calls
 * that lock and unlock a robust mutex; the kernel wakes for it if the low 30 bits of the word are 0. Such a word is 0 for
 * ever, and who sleeps on others sleeps on it too. Where the C library has no such list there is no will.
 */
#ifndef SHM_FUTEX_H
#define SHM_FUTEX_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

enum { SHM_FUTEX_MAX = 128 };

struct shm_futex {
    const _Atomic uint32_t *word;
    uint32_t seen;
};

/* Wake all who sleep on it. */
void shm_futex_wake(const _Atomic uint32_t *word);
/* Sleep, ns at most, until somebody wakes one of the words, SHM_FUTEX_MAX at most; not at all when one of them is not what
 * was seen. May return at any time. False: the kernel cannot (before Linux 5.16), or may not. */
bool shm_futex_sleep(const struct shm_futex *futexes, uint32_t count, uint64_t ns);

/* Make a will in place of the thread's last, which is returned to be given to `revoke`. For a few steps, in which the
 * thread calls nothing that makes one. */
uintptr_t shm_will_make(const _Atomic uint32_t *word);
void shm_will_revoke(uintptr_t before);
#endif
