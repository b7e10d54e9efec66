/* The Python stacks of this process, for whoever asks at its door, by threads of their own.
 *
 * First with the interpreter's lock, as any Python thread would look: that is safe while the program runs. When the
 * lock does not come free within a second, somebody holds it in C code and no Python frame changes, and the same
 * is done without it, by faulthandler: its handler of SIGURG, a signal that is ignored by default, writes into a file
 * without a name. A thread made for that raises the signal in itself, so no wait of another is disturbed.
 *
 * The handler knows the file by its number. In the program's descriptor table that is a file which nobody reads; the
 * thread has a table of its own, in which the number is a file of its own.
 */
#ifndef SHM_STACKS_H
#define SHM_STACKS_H

#include <Python.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define STACKS_WAIT_S 1
#define STACKS_SEND_S 2
#define STACKS_VISITORS 4
#define STACKS_BYTES (1 << 20)

/* A question to the interpreter; freed by the second of the two who have it. */
struct shm_question {
    pthread_mutex_t lock;
    pthread_cond_t told;
    int holders, answered;
    char *text;
    size_t len_bytes;
};

static pthread_mutex_t shm_stacks_lock = PTHREAD_MUTEX_INITIALIZER; /* of the number below */
static int shm_stacks_file = -1;
static ino_t shm_stacks_inode;
static struct sigaction shm_stacks_handler;
static _Atomic int shm_stacks_asking; /* a thread waits for the interpreter's lock, one at most */
static _Atomic int shm_stacks_visitors;
static PyObject *(*shm_stacks_look)(void); /* bytes, or NULL; needs the interpreter's lock */

static void shm_question_drop(struct shm_question *q)
{
    pthread_mutex_lock(&q->lock);
    int left = --q->holders;
    pthread_mutex_unlock(&q->lock);
    if (left)
        return;
    pthread_cond_destroy(&q->told);
    pthread_mutex_destroy(&q->lock);
    free(q->text);
    free(q);
}

static void *shm_stacks_ask(void *argument)
{
    struct shm_question *q = argument;
    char *text = NULL;
    size_t len_bytes = 0;
    PyGILState_STATE state = PyGILState_Ensure();
    PyObject *told = shm_stacks_look();
    if (told && PyBytes_Check(told) && (text = malloc((size_t)PyBytes_GET_SIZE(told) + 1))) {
        len_bytes = (size_t)PyBytes_GET_SIZE(told);
        memcpy(text, PyBytes_AS_STRING(told), len_bytes);
    }
    Py_XDECREF(told);
    PyErr_Clear();
    PyGILState_Release(state);
    pthread_mutex_lock(&q->lock);
    q->text = text;
    q->len_bytes = len_bytes;
    q->answered = 1;
    pthread_cond_signal(&q->told);
    pthread_mutex_unlock(&q->lock);
    shm_question_drop(q);
    atomic_store(&shm_stacks_asking, 0);
    return NULL;
}

static int shm_stacks_detached(void *(*run)(void *), void *argument)
{
    pthread_t thread;
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int error = pthread_create(&thread, NULL, run, argument);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (error == 0)
        pthread_detach(thread);
    return error;
}

static void shm_stacks_send(int connection, const char *text, size_t len_bytes)
{
    while (len_bytes) {
        ssize_t sent = send(connection, text, len_bytes, MSG_NOSIGNAL);
        if (sent <= 0)
            return;
        text += sent;
        len_bytes -= (size_t)sent;
    }
}

/* Ask the interpreter; 0: it did not answer in time. */
static int shm_stacks_with_lock(int connection)
{
    if (atomic_exchange(&shm_stacks_asking, 1))
        return 0; /* somebody waits for the lock already */
    struct shm_question *q = calloc(1, sizeof *q);
    if (!q) {
        atomic_store(&shm_stacks_asking, 0);
        return 0;
    }
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&q->lock, NULL);
    pthread_cond_init(&q->told, &monotonic);
    pthread_condattr_destroy(&monotonic);
    q->holders = 2;
    if (shm_stacks_detached(shm_stacks_ask, q)) {
        atomic_store(&shm_stacks_asking, 0);
        shm_question_drop(q);
        shm_question_drop(q);
        return 0;
    }
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += STACKS_WAIT_S;
    pthread_mutex_lock(&q->lock);
    while (!q->answered && pthread_cond_timedwait(&q->told, &q->lock, &until) == 0)
        ;
    int answered = q->answered && q->text;
    pthread_mutex_unlock(&q->lock); /* an answer stays as it is */
    if (answered) {
        shm_stacks_send(connection, "lock free\n", 10);
        shm_stacks_send(connection, q->text, q->len_bytes);
    }
    shm_question_drop(q);
    return answered;
}

/* What the handler wrote, in a thread of its own; the text is the caller's to free. */
struct shm_dump {
    char *text;
    ssize_t len_bytes;
};

static void *shm_stacks_dump(void *argument)
{
    struct shm_dump *dump = argument;
    struct sigaction now;
    sigset_t urgent;
    pthread_mutex_lock(&shm_stacks_lock);
    int number = shm_stacks_file;
    pthread_mutex_unlock(&shm_stacks_lock);
    if (number < 0 || sigaction(SIGURG, NULL, &now) != 0 || now.sa_handler == SIG_DFL ||
        now.sa_handler != shm_stacks_handler.sa_handler || unshare(CLONE_FILES) != 0)
        return NULL;
    int file = memfd_create("shmipc-stacks", MFD_CLOEXEC);
    if (file < 0 || dup2(file, number) < 0)
        return NULL; /* the table goes with the thread */
    sigemptyset(&urgent);
    sigaddset(&urgent, SIGURG);
    pthread_sigmask(SIG_UNBLOCK, &urgent, NULL);
    pthread_kill(pthread_self(), SIGURG); /* handled before it returns */
    pthread_sigmask(SIG_BLOCK, &urgent, NULL);
    dump->len_bytes = pread(file, dump->text, STACKS_BYTES, 0);
    return NULL;
}

static void shm_stacks_without_lock(int connection)
{
    struct shm_dump dump = {.text = malloc(STACKS_BYTES)};
    pthread_t thread;
    if (!dump.text)
        return;
    if (pthread_create(&thread, NULL, shm_stacks_dump, &dump) == 0)
        pthread_join(thread, NULL);
    shm_stacks_send(connection, "lock held\n", 10);
    if (dump.len_bytes > 0)
        shm_stacks_send(connection, dump.text, (size_t)dump.len_bytes);
    free(dump.text);
}

static void *shm_stacks_answer(void *argument)
{
    int connection = (int)(intptr_t)argument;
    struct timeval limit = {.tv_sec = STACKS_SEND_S};
    setsockopt(connection, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    if (!shm_stacks_with_lock(connection))
        shm_stacks_without_lock(connection);
    close(connection);
    atomic_fetch_sub(&shm_stacks_visitors, 1);
    return NULL;
}

/* Called by the native thread, which goes on at once; owns the connection. */
static void shm_stacks_tell(int connection)
{
    if (atomic_fetch_add(&shm_stacks_visitors, 1) >= STACKS_VISITORS ||
        shm_stacks_detached(shm_stacks_answer, (void *)(intptr_t)connection)) {
        close(connection);
        atomic_fetch_sub(&shm_stacks_visitors, 1);
    }
}

/* ---- the file ---------------------------------------------------------------------------------------------- */

/* A file for the handler of SIGURG; -1 when the program has a handler of its own, or there is a file already. */
static int shm_stacks_open(void)
{
    struct sigaction now;
    if (shm_stacks_file >= 0 || sigaction(SIGURG, NULL, &now) != 0 || now.sa_handler != SIG_DFL)
        return -1;
    struct stat st = {0};
    shm_stacks_file = memfd_create("shmipc-stacks", MFD_CLOEXEC);
    if (shm_stacks_file >= 0 && fstat(shm_stacks_file, &st) == 0)
        shm_stacks_inode = st.st_ino;
    return shm_stacks_file;
}

static void shm_stacks_registered(void)
{
    sigaction(SIGURG, NULL, &shm_stacks_handler);
}

/* Is the handler still ours? */
static int shm_stacks_are_ours(void)
{
    struct sigaction now;
    return shm_stacks_file >= 0 && sigaction(SIGURG, NULL, &now) == 0 &&
           now.sa_handler == shm_stacks_handler.sa_handler;
}

/* The program may have closed the number, and it be another's. */
static void shm_stacks_drop(void)
{
    struct stat st;
    if (shm_stacks_file >= 0 && fstat(shm_stacks_file, &st) == 0 && st.st_ino == shm_stacks_inode)
        close(shm_stacks_file);
    shm_stacks_file = -1;
}

static void shm_stacks_close(void)
{
    pthread_mutex_lock(&shm_stacks_lock);
    shm_stacks_drop();
    pthread_mutex_unlock(&shm_stacks_lock);
}

/* Do visitors have threads here? They are to be waited for before the interpreter ends. */
static int shm_stacks_busy(void)
{
    return atomic_load(&shm_stacks_asking) || atomic_load(&shm_stacks_visitors);
}

/* In a forked child: the threads are not here any more, and the file is the parent's. */
static void shm_stacks_forked(void)
{
    pthread_mutex_init(&shm_stacks_lock, NULL);
    shm_stacks_drop();
    atomic_store(&shm_stacks_asking, 0);
    atomic_store(&shm_stacks_visitors, 0);
}

#endif
