/* Plain values as bytes: what most calls carry, without pickle.
 *
 *     value = tag, then   N none   T true   F false   I int64   D double   B len:16 bytes
 *                         A len:16 ASCII   1, 2, 4 len:16 code points of that many bytes each
 *                         ( count:8 values   { count:8 (key value) ...
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

enum { SHM_PLAIN_BYTES = 512, SHM_PLAIN_DEPTH = 8 };

/* Raised for bytes that are no plain value; set by the module. Borrowed. */
static PyObject *shm_plain_error;

/* What is written: `at` is NULL once it did not fit, or was not plain. */
struct shm_plain_out {
    unsigned char *at, *end;
};

struct shm_plain_in {
    const unsigned char *at, *end;
};

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
    if (type != &PyTuple_Type || depth == 0 || !shm_plain_put_count(out, '(', PyTuple_GET_SIZE(x)))
        return false;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(x); i++)
        if (!shm_plain_put_value(out, PyTuple_GET_ITEM(x, i), depth - 1))
            return false;
    return true;
}

/* The bytes written to `room`, 0: pickle it. */
static inline size_t shm_plain_put(PyObject *x, unsigned char *room, size_t bytes)
{
    struct shm_plain_out out = {room, room + (bytes < SHM_PLAIN_BYTES ? bytes : SHM_PLAIN_BYTES)};
    return shm_plain_put_value(&out, x, SHM_PLAIN_DEPTH) ? (size_t)(out.at - room) : 0;
}

/* The same for (name, arguments, keywords), the body of a method call. */
static inline size_t shm_plain_put_call(PyObject *name, PyObject *arguments, PyObject *keywords,
                                        unsigned char *room, size_t bytes)
{
    struct shm_plain_out out = {room, room + (bytes < SHM_PLAIN_BYTES ? bytes : SHM_PLAIN_BYTES)};
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
static inline PyObject *shm_plain_get(const unsigned char *bytes, size_t n)
{
    struct shm_plain_in in = {bytes, bytes + n};
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
    struct shm_plain_in in = {bytes, bytes + n};
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
