/* The bare ring for Python: Ring() maps it, fork shares it, put(bytes) and get() -> bytes move 64 bytes.
 * Neither releases the GIL nor looks at signals: nothing is in the way, which is the point of a limit. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <sys/mman.h>

#include "ring.h"

typedef struct {
    PyObject_HEAD struct ring *ring;
} Ring;

static PyObject *ring_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    if (PyTuple_GET_SIZE(args) || (kwargs && PyDict_GET_SIZE(kwargs))) {
        PyErr_SetString(PyExc_TypeError, "Ring() takes no arguments");
        return NULL;
    }
    int flags = MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE;
    void *memory = mmap(NULL, sizeof(struct ring), PROT_READ | PROT_WRITE, flags, -1, 0);
    if (memory == MAP_FAILED)
        return PyErr_SetFromErrno(PyExc_OSError);
    Ring *self = (Ring *)type->tp_alloc(type, 0);
    if (!self) {
        munmap(memory, sizeof(struct ring));
        return NULL;
    }
    self->ring = memory;
    return (PyObject *)self;
}

static void ring_dealloc(PyObject *object)
{
    munmap(((Ring *)object)->ring, sizeof(struct ring));
    Py_TYPE(object)->tp_free(object);
}

static PyObject *ring_put_bytes(PyObject *object, PyObject *body)
{
    if (!PyBytes_CheckExact(body) || PyBytes_GET_SIZE(body) != RING_BODY_BYTES) {
        PyErr_Format(PyExc_TypeError, "put() takes bytes of length %d", (int)RING_BODY_BYTES);
        return NULL;
    }
    ring_put(((Ring *)object)->ring, PyBytes_AS_STRING(body));
    Py_RETURN_NONE;
}

static PyObject *ring_get_bytes(PyObject *object, PyObject *Py_UNUSED(ignored))
{
    struct ring *ring = ((Ring *)object)->ring;
    PyObject *body = PyBytes_FromStringAndSize(ring_peek(ring), RING_BODY_BYTES);
    if (body)
        ring_drop(ring);
    return body;
}

static PyMethodDef ring_methods[] = {
    {"put", ring_put_bytes, METH_O, "put(body): copy 64 bytes in, spinning while the ring is full."},
    {"get", ring_get_bytes, METH_NOARGS,
     "get() -> bytes: copy 64 bytes out, spinning while the ring is empty."},
    {NULL, NULL, 0, NULL},
};

static PyTypeObject ring_type = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "bench_ring.Ring",
    .tp_doc = "One producer, one consumer, 1024 cells of 64 bytes, shared by fork.",
    .tp_basicsize = sizeof(Ring),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = ring_new,
    .tp_dealloc = ring_dealloc,
    .tp_methods = ring_methods,
};

static struct PyModuleDef ring_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "bench_ring",
    .m_doc = "The bare ring, driven from Python.",
    .m_size = -1,
};

PyMODINIT_FUNC PyInit_bench_ring(void)
{
    if (PyType_Ready(&ring_type))
        return NULL;
    PyObject *module = PyModule_Create(&ring_module);
    if (module && PyModule_AddObjectRef(module, "Ring", (PyObject *)&ring_type)) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
