# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False, embedsignature=True
# cython: binding=False
"""The binding: what Python sees of the C core. Only this module touches protocol words.

shmipc/_native.pyi describes everything here. Rules: a claimed word never spans Python code; a wait releases the GIL;
arguments are checked before anything is touched. A context (shm_thread) serves until Python code runs or the GIL is
given up, for then another thread may leave the system: after that it is asked for again. Where the GIL is given up
around the core, Member.inside, and for a mailbox Box.inside too, make leaving and releasing wait.
"""

import collections
import copyreg
import faulthandler
import os
import pickle
import signal as _signal
import sys
import threading
import weakref

import cloudpickle

cimport cython
from cpython.buffer cimport (
    PyBUF_ANY_CONTIGUOUS, PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals
from cpython.memoryview cimport PyMemoryView_FromObject
from cpython.object cimport PyObject
from cpython.pythread cimport PyThread_get_thread_ident
from libc.stdint cimport int32_t, int64_t, uint16_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from core cimport *

from shmipc.base import errors, oom

cdef extern from "Python.h":
    object PyMemoryView_FromMemory(char *mem, Py_ssize_t size, int flags)
    enum:
        PyBUF_READ
        PyBUF_WRITE
    PyObject *PyThreadState_GetDict()
    const char *PyUnicode_AsUTF8AndSize(object text, Py_ssize_t *size) except NULL

cdef extern from *:
    """
    #include <stdint.h>
    /* The context of this thread in the member it used last. */
    static __thread struct { uint64_t serial; void *thread; } shm_last;
    /* What this thread is encoding or decoding; borrowed. */
    static __thread PyObject *shm_coding;

    #ifdef SHM_KILL_POINTS
    #include "base/killpoint.h"
    static int kill_points_count(void) { return SHM_KILL_POINT_COUNT; }
    static const char *kill_point_name(int i) { return shm_kill_point_names[i]; }
    #else
    static int kill_points_count(void) { return 0; }
    static const char *kill_point_name(int i) { (void)i; return ""; }
    static int shm_kill_point_arm(const char *n, unsigned a, int s) { (void)n; (void)a; (void)s; return -1; }
    static void shm_kill_point_disarm(void) {}
    static unsigned long shm_kill_point_passed(const char *n) { (void)n; return 0; }
    #endif
    """
    struct last_thread "shm_last_thread":
        pass
    uint64_t last_serial "shm_last.serial"
    void *last_context "shm_last.thread"
    PyObject *coding "shm_coding"
    int kill_points_count() nogil
    const char *kill_point_name(int i) nogil
    int shm_kill_point_arm(const char *name, unsigned after, int signal) nogil
    void shm_kill_point_disarm() nogil
    unsigned long shm_kill_point_passed(const char *name) nogil

cdef extern from "<math.h>":
    bint isnan(double)
    double ceil(double)

KILL_POINTS = tuple([kill_point_name(i).decode() for i in range(kill_points_count())])
LAYOUT = shm_layout_signature()
TAG_BITS = 61
SLOT_DTYPE_HEADER_BYTES = sizeof(shm_slot)

ROOT = SHM_KIND_ROOT
WORKER = SHM_KIND_WORKER
ATTACHED = SHM_KIND_ATTACHED
BOX_ACTOR = SHM_BOX_ACTOR
BOX_SHARED = SHM_BOX_SHARED
BOX_PERSISTENT = SHM_BOX_PERSISTENT
NAME_ACTOR = SHM_NAME_ACTOR
NAME_BOX = SHM_NAME_BOX
NAME_BUS = SHM_NAME_BUS
CAST = SHM_KIND_CAST
CALL = SHM_KIND_CALL
REPLY = SHM_KIND_REPLY
TIMER = SHM_KIND_TIMER
EXIT = SHM_KIND_EXIT
NOTIFY = SHM_KIND_NOTIFY
OFFER_BIT = SHM_BIT_OFFER
OFFER_SLOTS = SHM_OFFER_SLOTS
ANY = -1
RAW = 0
METHOD = 1
TASK = 2
# The runtime's own: not counted when they are lost.
START = 3 | SHM_FLAG_OWN
STOP = 4 | SHM_FLAG_OWN
ORDER = SHM_TAG_ORDER  # the tag of STOP
DEFINE = 5 | SHM_FLAG_OWN
RESULT = 6 | SHM_FLAG_OWN

REASONS = ("unknown", "returned", "exception", "exited", "signal", "killed", "orphaned")

cdef enum:
    F_METHOD = 1
    F_TASK = 2
    F_STOP = 0x8004

cdef object ANYTHING = ANY
cdef uint64_t BODY_LIMIT = 1 << 30

# Given by the floors above, see install().
cdef object make_ref = None
cdef object make_error = None
cdef object pack_error = None
cdef object exit_notice = None
cdef object kinds = tuple(range(6))


def install(*, make_ref, make_error, pack_error, exit_notice, kinds):
    globals_set(make_ref, make_error, pack_error, exit_notice, kinds)


cdef globals_set(ref, error, pack, notice, names):
    global make_ref, make_error, pack_error, exit_notice, kinds
    make_ref, make_error, pack_error, exit_notice, kinds = ref, error, pack, notice, names


include "status.pxi"
include "stacks.pxi"
include "member.pxi"
include "abort.pxi"
include "codec.pxi"
include "look.pxi"
include "box.pxi"
include "bus.pxi"
include "sync.pxi"
include "bell.pxi"
include "waitlist.pxi"
include "port.pxi"
include "call.pxi"
include "serve.pxi"
include "tools.pxi"
include "lane.pxi"
include "duplicate.pxi"
include "semaphore.pxi"
