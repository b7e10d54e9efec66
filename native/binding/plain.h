/* Plain values as bytes: what most calls carry, without pickle.
 *
 *     value = tag, then   N none   T true   F false   I int64   D double   B len:16 bytes
 *                         A len:16 ASCII   1, 2, 4 len:16 code points of that many bytes each
 *                         ( count:8 values   { count:8 (key value) ...
 *                         n kind:8 axes:8 length:16 for each axis, elements    an ndarray, see below
 *                         h kind:8 axes:8 flags:8 handle:32 start:64 (length:64 stride:64) for each axis
 *                                                  an ndarray in the block of a handle, only where blocks can go along
 *
 * Exact built-in types only, so that a value comes back as it was: bool apart from int, -0.0, every nan, lone
 * surrogates. Integers of more than 64 bits, lists, sets, dicts and all else are pickle's. So is what refers to one
 * mutable object twice; `{` is written for the keyword arguments of a call alone, which nobody else holds.
 *
 * Putting runs no Python code. Getting makes objects, and so may run the garbage collector: the bytes must not be
 * shared memory, nor anything that other code writes meanwhile.
 */
#ifndef SHM_PLAIN_H
#define SHM_PLAIN_H

#include <Python.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>

enum { SHM_PLAIN_BYTES = 512, SHM_PLAIN_DEPTH = 8, SHM_PLAIN_AXES = 8, SHM_PLAIN_ARRAYS = 16 };

/* ---- small arrays -------------------------------------------------------------------------------------------- */

/* The fields of an ndarray, which numpy keeps where they are for those who were built against an older one. Read only
 * after a trial has shown that they are there, see shm_plain_know_numpy. */
struct shm_ndarray {
    PyObject ob_base;
    char *data;
    int axes;
    Py_ssize_t *shape, *strides;
    PyObject *base, *dtype;
    int flags;
};

enum {
    SHM_ARRAY_C_CONTIGUOUS = 1,
    SHM_ARRAY_F_CONTIGUOUS = 2,
    SHM_ARRAY_OWNS = 4,
    SHM_ARRAY_WRITEABLE = 0x400
};

/* The dtypes that have a number here: numpy's own objects for them, which every array of that type in this byte order
 * refers to. The letters are numpy's, the same in every process of one machine. */
#define SHM_PLAIN_KINDS "?bBhHiIlLqQefdFD"
enum { SHM_PLAIN_KIND_COUNT = sizeof SHM_PLAIN_KINDS - 1 };

/* numpy as far as it is known; all NULL until it is imported. Owned. `readable` is the same type once its fields are
 * known to be where they are looked for. */
static struct {
    PyTypeObject *ndarray, *readable;
    PyObject *dtypes[SHM_PLAIN_KIND_COUNT];
    size_t item_bytes[SHM_PLAIN_KIND_COUNT];
} shm_numpy;

/* Import numpy and say what it is: 0, or -1 with an exception. Set by the module. */
static int (*shm_plain_import)(void);

/* Raised for bytes that are no plain value; set by the module. Borrowed. */
static PyObject *shm_plain_error;

/* Arrays that were written as `h`, to be given their handles: borrowed, each with its record. */
struct shm_plain_arrays {
    uint32_t count;
    struct shm_plain_array {
        struct shm_ndarray *array;
        unsigned char *record;
    } items[SHM_PLAIN_ARRAYS];
};

enum { SHM_PLAIN_FLAGS_AT = 3, SHM_PLAIN_HANDLE_AT = 4, SHM_PLAIN_START_AT = 8, SHM_PLAIN_AXES_AT = 16 };

struct shm_plain_out {
    unsigned char *at, *end;
    struct shm_plain_arrays *arrays; /* NULL: no blocks can go along */
};

struct shm_plain_in {
    const unsigned char *at, *end;
    PyObject *within; /* what knows the handles, NULL: there are none */
};

/* A new reference to the lease that an array in the block of a handle lies in. Set by the module. */
static PyObject *(*shm_plain_lease)(PyObject *within, uint32_t handle, unsigned flags);

static inline bool shm_plain_room(const struct shm_plain_out *out, size_t n)
{
    return (size_t)(out->end - out->at) >= n;
}

static inline bool shm_plain_put_sized(struct shm_plain_out *out, unsigned char tag, size_t count,
                                       const void *data, size_t n)
{
    uint16_t length = (uint16_t)count;
    if (count > UINT16_MAX || !shm_plain_room(out, n + 3))
        return false;
    out->at[0] = tag;
    memcpy(out->at + 1, &length, 2);
    memcpy(out->at + 3, data, n);
    out->at += n + 3;
    return true;
}

static inline bool shm_plain_put_8(struct shm_plain_out *out, unsigned char tag, const void *value)
{
    if (!shm_plain_room(out, 9))
        return false;
    out->at[0] = tag;
    memcpy(out->at + 1, value, 8);
    out->at += 9;
    return true;
}

static inline bool shm_plain_put_tag(struct shm_plain_out *out, unsigned char tag)
{
    if (!shm_plain_room(out, 1))
        return false;
    *out->at++ = tag;
    return true;
}

static inline bool shm_plain_put_count(struct shm_plain_out *out, unsigned char tag, Py_ssize_t count)
{
    if (count > 255 || !shm_plain_room(out, 2))
        return false;
    out->at[0] = tag;
    out->at[1] = (unsigned char)count;
    out->at += 2;
    return true;
}

static inline bool shm_plain_put_text(struct shm_plain_out *out, PyObject *x)
{
#if PY_VERSION_HEX < 0x030c0000
    if (!PyUnicode_IS_READY(x))
        return false;
#endif
    size_t n = (size_t)PyUnicode_GET_LENGTH(x), width = (size_t)PyUnicode_KIND(x);
    unsigned char tag = PyUnicode_IS_ASCII(x) ? 'A' : (unsigned char)('0' + width);
    return n <= SHM_PLAIN_BYTES && shm_plain_put_sized(out, tag, n, PyUnicode_DATA(x), n * width);
}

/* The addresses of an array's first byte and of the one past its last. */
static inline void shm_plain_bounds(const struct shm_ndarray *array, size_t item_bytes, uintptr_t *low,
                                    uintptr_t *high)
{
    *low = *high = (uintptr_t)array->data;
    for (int i = 0; i < array->axes; i++)
        *(array->strides[i] < 0 ? low : high) += (uintptr_t)((array->shape[i] - 1) * array->strides[i]);
    *high += item_bytes;
}

/* To be read from the block of a handle. */
static inline bool shm_plain_put_handle(struct shm_plain_out *out, struct shm_ndarray *array, int kind)
{
    size_t n = SHM_PLAIN_AXES_AT + 16 * (size_t)array->axes;
    if (!out->arrays || out->arrays->count == SHM_PLAIN_ARRAYS || !shm_plain_room(out, n))
        return false;
    for (int i = 0; i < array->axes; i++)
        if (array->shape[i] == 0)
            return false;
    out->arrays->items[out->arrays->count++] = (struct shm_plain_array){array, out->at};
    memset(out->at, 0, SHM_PLAIN_AXES_AT);
    out->at[0] = 'h';
    out->at[1] = (unsigned char)kind;
    out->at[2] = (unsigned char)array->axes;
    out->at += SHM_PLAIN_AXES_AT;
    for (int i = 0; i < array->axes; i++, out->at += 16) {
        int64_t axis[2] = {array->shape[i], array->strides[i]};
        memcpy(out->at, axis, 16);
    }
    return true;
}

/* Is it an ordinary array that owns its bytes, or a view of one? What lies in shared memory has an owner that is no
 * ndarray. */
static inline bool shm_plain_is_ordinary(const struct shm_ndarray *array)
{
    while (array->base && Py_TYPE(array->base) == shm_numpy.readable)
        array = (const void *)array->base;
    return array->base ? Py_TYPE(array->base) == &PyBytes_Type : array->flags & SHM_ARRAY_OWNS;
}

/* Of a common type: its bytes when it is small, ordinary and C-contiguous, else to be read from a block. */
static inline bool shm_plain_put_array(struct shm_plain_out *out, PyObject *x)
{
    struct shm_ndarray *array = (void *)x;
    size_t count = 1, head = 3 + 2 * (size_t)array->axes;
    int kind = 0;
    while (kind < SHM_PLAIN_KIND_COUNT && shm_numpy.dtypes[kind] != array->dtype)
        kind++;
    if (kind == SHM_PLAIN_KIND_COUNT || array->axes > SHM_PLAIN_AXES)
        return false;
    for (int i = 0; i < array->axes; i++) {
        count *= array->shape[i] <= SHM_PLAIN_BYTES ? (size_t)array->shape[i] : SHM_PLAIN_BYTES + 1;
        if (count > SHM_PLAIN_BYTES)
            return shm_plain_put_handle(out, array, kind);
    }
    size_t n = count * shm_numpy.item_bytes[kind];
    if (!(array->flags & SHM_ARRAY_C_CONTIGUOUS) || !shm_plain_is_ordinary(array) ||
        !shm_plain_room(out, head + n))
        return shm_plain_put_handle(out, array, kind);
    out->at[0] = 'n';
    out->at[1] = (unsigned char)kind;
    out->at[2] = (unsigned char)array->axes;
    for (int i = 0; i < array->axes; i++) {
        uint16_t length = (uint16_t)array->shape[i];
        memcpy(out->at + 3 + 2 * i, &length, 2);
    }
    memcpy(out->at + head, array->data, n);
    out->at += head + n;
    return true;
}

/* False: not plain, or no room. */
static bool shm_plain_put_value(struct shm_plain_out *out, PyObject *x, int depth)
{
    PyTypeObject *type = Py_TYPE(x);
    if (type == &PyLong_Type) {
        int overflow;
        long long value = PyLong_AsLongLongAndOverflow(x, &overflow);
        return !overflow && shm_plain_put_8(out, 'I', &value);
    }
    if (type == &PyUnicode_Type)
        return shm_plain_put_text(out, x);
    if (type == &PyFloat_Type) {
        double value = PyFloat_AS_DOUBLE(x);
        return shm_plain_put_8(out, 'D', &value);
    }
    if (x == Py_None)
        return shm_plain_put_tag(out, 'N');
    if (type == &PyBool_Type)
        return shm_plain_put_tag(out, x == Py_True ? 'T' : 'F');
    if (type == &PyBytes_Type)
        return shm_plain_put_sized(out, 'B', (size_t)PyBytes_GET_SIZE(x), PyBytes_AS_STRING(x),
                                   (size_t)PyBytes_GET_SIZE(x));
    if (type == shm_numpy.readable)
        return shm_plain_put_array(out, x);
    if (type != &PyTuple_Type || depth == 0 || !shm_plain_put_count(out, '(', PyTuple_GET_SIZE(x)))
        return false;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(x); i++)
        if (!shm_plain_put_value(out, PyTuple_GET_ITEM(x, i), depth - 1))
            return false;
    return true;
}

/* Learn numpy's types. `trial` is an array of float64, shape (2, 3), that owns its bytes, at `address`; when its fields
 * are not where they should be, arrays are never plain. 0, or -1 with an exception. */
static int shm_plain_know_numpy(PyObject *ndarray, PyObject *make_dtype, PyObject *trial, size_t address)
{
    const struct shm_ndarray *seen = (const void *)trial;
    if (shm_numpy.ndarray)
        return 0;
    for (int kind = 0; kind < SHM_PLAIN_KIND_COUNT; kind++) {
        PyObject *dtype = PyObject_CallFunction(make_dtype, "C", SHM_PLAIN_KINDS[kind]);
        PyObject *item = dtype ? PyObject_GetAttrString(dtype, "itemsize") : NULL;
        if (!item) {
            Py_XDECREF(dtype);
            return -1;
        }
        shm_numpy.item_bytes[kind] = PyLong_AsSize_t(item);
        Py_DECREF(item);
        Py_XSETREF(shm_numpy.dtypes[kind], dtype);
    }
    bool sound = (size_t)seen->data == address && seen->axes == 2 && seen->shape[0] == 2 &&
                 seen->shape[1] == 3 && seen->strides[0] == 24 && seen->strides[1] == 8 &&
                 seen->base == NULL && seen->dtype == shm_numpy.dtypes[13] &&
                 (seen->flags & (SHM_ARRAY_C_CONTIGUOUS | SHM_ARRAY_OWNS)) ==
                     (SHM_ARRAY_C_CONTIGUOUS | SHM_ARRAY_OWNS);
    Py_INCREF(ndarray);
    shm_numpy.ndarray = (PyTypeObject *)ndarray;
    shm_numpy.readable = sound ? shm_numpy.ndarray : NULL;
    return 0;
}

/* The bytes written to `room`, 0: pickle it. */
static inline size_t shm_plain_put(PyObject *x, unsigned char *room, size_t bytes,
                                   struct shm_plain_arrays *arrays)
{
    struct shm_plain_out out = {room, room + (bytes < SHM_PLAIN_BYTES ? bytes : SHM_PLAIN_BYTES), arrays};
    return shm_plain_put_value(&out, x, SHM_PLAIN_DEPTH) ? (size_t)(out.at - room) : 0;
}

/* The same for (name, arguments, keywords), the body of a method call. */
static inline size_t shm_plain_put_call(PyObject *name, PyObject *arguments, PyObject *keywords,
                                        unsigned char *room, size_t bytes, struct shm_plain_arrays *arrays)
{
    struct shm_plain_out out = {room, room + (bytes < SHM_PLAIN_BYTES ? bytes : SHM_PLAIN_BYTES), arrays};
    PyObject *key, *value;
    Py_ssize_t at = 0;
    if (!shm_plain_put_count(&out, '(', 3) || !shm_plain_put_text(&out, name) ||
        !shm_plain_put_value(&out, arguments, SHM_PLAIN_DEPTH) ||
        !shm_plain_put_count(&out, '{', PyDict_GET_SIZE(keywords)))
        return 0;
    while (PyDict_Next(keywords, &at, &key, &value))
        if (!shm_plain_put_value(&out, key, 0) || !shm_plain_put_value(&out, value, SHM_PLAIN_DEPTH))
            return 0;
    return (size_t)(out.at - room);
}

static PyObject *shm_plain_corrupted(void)
{
    if (!PyErr_Occurred())
        PyErr_SetString(shm_plain_error, "the body of a message is no plain value");
    return NULL;
}

/* The bytes of a sized item, NULL: there are fewer. */
static inline const unsigned char *shm_plain_sized(struct shm_plain_in *in, size_t width, size_t *count)
{
    uint16_t length;
    if (in->end - in->at < 2)
        return NULL;
    memcpy(&length, in->at, 2);
    if ((size_t)(in->end - in->at) < 2 + length * width)
        return NULL;
    const unsigned char *data = in->at + 2;
    in->at = data + length * width;
    *count = length;
    return data;
}

static PyObject *shm_plain_get_value(struct shm_plain_in *in, int depth);

static PyObject *shm_plain_get_tuple(struct shm_plain_in *in, int depth)
{
    PyObject *tuple = PyTuple_New(*in->at);
    Py_ssize_t count = *in->at++;
    for (Py_ssize_t i = 0; tuple && i < count; i++) {
        PyObject *item = shm_plain_get_value(in, depth);
        if (!item)
            Py_CLEAR(tuple);
        else
            PyTuple_SET_ITEM(tuple, i, item);
    }
    return tuple;
}

static PyObject *shm_plain_get_dict(struct shm_plain_in *in, int depth)
{
    PyObject *dict = PyDict_New();
    Py_ssize_t count = *in->at++;
    for (Py_ssize_t i = 0; dict && i < count; i++) {
        PyObject *key = shm_plain_get_value(in, 0), *value = key ? shm_plain_get_value(in, depth) : NULL;
        if (!value || PyDict_SetItem(dict, key, value))
            Py_CLEAR(dict);
        Py_XDECREF(key);
        Py_XDECREF(value);
    }
    return dict;
}

static PyObject *shm_plain_get_text(const unsigned char *data, size_t count, unsigned char tag)
{
    if (tag != 'A') {
        uint32_t aligned[SHM_PLAIN_BYTES / 4];
        size_t width = (size_t)(tag - '0');
        if (count * width > sizeof aligned)
            return shm_plain_corrupted();
        memcpy(aligned, data, count * width);
        for (size_t i = 0; width == 4 && i < count; i++)
            if (aligned[i] > 0x10FFFF)
                return shm_plain_corrupted();
        return PyUnicode_FromKindAndData((int)width, aligned, (Py_ssize_t)count);
    }
    for (size_t i = 0; i < count; i++)
        if (data[i] > 127)
            return shm_plain_corrupted();
    PyObject *text = PyUnicode_New((Py_ssize_t)count, 127);
    if (text)
        memcpy(PyUnicode_1BYTE_DATA(text), data, count);
    return text;
}

/* A read-only array over bytes of its own, as any array that is received is read-only. */
static PyObject *shm_plain_get_array(struct shm_plain_in *in)
{
    const unsigned char *data = in->at;
    size_t left = (size_t)(in->end - in->at), count = 1;
    if (left < 2 || data[0] >= SHM_PLAIN_KIND_COUNT || data[1] > SHM_PLAIN_AXES ||
        left < 2 + 2 * (size_t)data[1])
        return shm_plain_corrupted();
    if (!shm_numpy.ndarray && shm_plain_import())
        return NULL;
    PyObject *dtype = shm_numpy.dtypes[data[0]], *array = NULL;
    PyObject *shape = PyTuple_New(data[1]);
    for (int i = 0; shape && i < data[1]; i++) {
        uint16_t length;
        memcpy(&length, data + 2 + 2 * i, 2);
        count *= length;
        if (count > SHM_PLAIN_BYTES)
            count = SHM_PLAIN_BYTES + 1;
        PyObject *number = PyLong_FromLong(length);
        if (!number)
            Py_CLEAR(shape);
        else
            PyTuple_SET_ITEM(shape, i, number);
    }
    size_t n = count * shm_numpy.item_bytes[data[0]];
    if (shape && (count > SHM_PLAIN_BYTES || left - 2 - 2 * (size_t)data[1] < n)) {
        Py_DECREF(shape);
        return shm_plain_corrupted();
    }
    PyObject *bytes =
        shape ? PyBytes_FromStringAndSize((const char *)data + 2 + 2 * data[1], (Py_ssize_t)n) : NULL;
    if (bytes)
        array = PyObject_CallFunctionObjArgs((PyObject *)shm_numpy.ndarray, shape, dtype, bytes, NULL);
    Py_XDECREF(shape);
    Py_XDECREF(bytes);
    in->at += 2 + 2 * (size_t)data[1] + n;
    return array;
}

static PyObject *shm_plain_get_handle(struct shm_plain_in *in)
{
    const unsigned char *data = in->at - 1;
    size_t n = (size_t)(in->end - data);
    if (n < SHM_PLAIN_AXES_AT || data[1] >= SHM_PLAIN_KIND_COUNT || data[2] > SHM_PLAIN_AXES ||
        n < SHM_PLAIN_AXES_AT + 16 * (size_t)data[2] || !in->within)
        return shm_plain_corrupted();
    if (!shm_numpy.ndarray && shm_plain_import())
        return NULL;
    uint32_t handle;
    int64_t start;
    memcpy(&handle, data + SHM_PLAIN_HANDLE_AT, 4);
    memcpy(&start, data + SHM_PLAIN_START_AT, 8);
    PyObject *array = NULL, *lease = shm_plain_lease(in->within, handle, data[SHM_PLAIN_FLAGS_AT]);
    PyObject *shape = PyTuple_New(data[2]), *strides = PyTuple_New(data[2]),
             *offset = PyLong_FromLongLong(start);
    bool sound = lease && shape && strides && offset;
    for (int i = 0; sound && i < data[2]; i++) {
        int64_t axis[2];
        memcpy(axis, data + SHM_PLAIN_AXES_AT + 16 * i, 16);
        PyObject *length = PyLong_FromLongLong(axis[0]), *stride = PyLong_FromLongLong(axis[1]);
        sound = length && stride;
        PyTuple_SET_ITEM(shape, i, length);
        PyTuple_SET_ITEM(strides, i, stride);
    }
    if (sound) /* numpy checks shape, strides and start against the buffer */
        array = PyObject_CallFunctionObjArgs((PyObject *)shm_numpy.ndarray, shape, shm_numpy.dtypes[data[1]],
                                             lease, offset, strides, NULL);
    Py_XDECREF(lease);
    Py_XDECREF(shape);
    Py_XDECREF(strides);
    Py_XDECREF(offset);
    in->at = data + SHM_PLAIN_AXES_AT + 16 * (size_t)data[2];
    return array;
}

/* The next value: a new reference, or NULL with an exception. */
static PyObject *shm_plain_get_value(struct shm_plain_in *in, int depth)
{
    long long number;
    double real;
    size_t count;
    if (in->at >= in->end)
        return shm_plain_corrupted();
    size_t left = (size_t)(in->end - in->at) - 1;
    unsigned char tag = *in->at++;
    const unsigned char *data = in->at;
    switch (tag) {
    case 'N':
        Py_RETURN_NONE;
    case 'T':
        Py_RETURN_TRUE;
    case 'F':
        Py_RETURN_FALSE;
    case 'I':
        if (left < 8)
            break;
        memcpy(&number, data, 8);
        in->at += 8;
        return PyLong_FromLongLong(number);
    case 'D':
        if (left < 8)
            break;
        memcpy(&real, data, 8);
        in->at += 8;
        return PyFloat_FromDouble(real);
    case 'B':
        data = shm_plain_sized(in, 1, &count);
        return data ? PyBytes_FromStringAndSize((const char *)data, (Py_ssize_t)count)
                    : shm_plain_corrupted();
    case 'A':
    case '1':
    case '2':
    case '4':
        data = shm_plain_sized(in, tag == 'A' ? 1 : (size_t)(tag - '0'), &count);
        return data ? shm_plain_get_text(data, count, tag) : shm_plain_corrupted();
    case 'n':
        return shm_plain_get_array(in);
    case 'h':
        return shm_plain_get_handle(in);
    case '(':
        if (left == 0 || depth == 0)
            break;
        return shm_plain_get_tuple(in, depth - 1);
    case '{':
        if (left == 0 || depth == 0)
            break;
        return shm_plain_get_dict(in, depth - 1);
    default:
        break;
    }
    return shm_plain_corrupted();
}

/* The value that these bytes are, all of them. */
static inline PyObject *shm_plain_get(const unsigned char *bytes, size_t n, PyObject *within)
{
    struct shm_plain_in in = {bytes, bytes + n, within};
    PyObject *value = shm_plain_get_value(&in, SHM_PLAIN_DEPTH + 2);
    if (value && in.at != in.end) {
        Py_DECREF(value);
        return shm_plain_corrupted();
    }
    return value;
}

/* A call's body in its parts: a new tuple (arguments), the name borrowed from `known` (name -> the same, interned) or
 * NULL for another, keywords NULL when there are none. 0, or -1 with an exception. */
static inline int shm_plain_get_call(const unsigned char *bytes, size_t n, PyObject *known, PyObject **name,
                                     PyObject **arguments, PyObject **keywords)
{
    struct shm_plain_in in = {bytes, bytes + n, NULL};
    *name = *arguments = *keywords = NULL;
    if (n < 2 || bytes[0] != '(' || bytes[1] != 3) {
        shm_plain_corrupted();
        return -1;
    }
    in.at += 2;
    PyObject *text = shm_plain_get_value(&in, 0);
    if (!text)
        return -1;
    *name = PyDict_GetItemWithError(known, text);
    Py_DECREF(text);
    if (!*name)
        return PyErr_Occurred() ? -1 : 0;
    *arguments = shm_plain_get_value(&in, SHM_PLAIN_DEPTH + 1);
    if (!*arguments)
        return -1;
    bool none = in.end - in.at == 2 && in.at[0] == '{' && in.at[1] == 0;
    if (!none)
        *keywords = shm_plain_get_value(&in, SHM_PLAIN_DEPTH + 1);
    if (!PyTuple_CheckExact(*arguments) ||
        (!none && (!*keywords || !PyDict_CheckExact(*keywords) || in.at != in.end))) {
        Py_CLEAR(*arguments);
        Py_CLEAR(*keywords);
        shm_plain_corrupted();
        return -1;
    }
    return 0;
}

#endif
