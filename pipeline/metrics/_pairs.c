/* How often each pair of ids occurs in two 8-bit label maps, in one pass over the pixels.

   Label maps are large areas of one id: eight pixels are compared at once, and counted at once
   where both maps show one id all along them. The interpreter's lock is not held. Python code that
   does the same lies in confusion.py, for where this was not compiled. */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define CODES 65536
#define WORD 8

typedef struct {
    uint32_t count[CODES];
    uint16_t seen[CODES]; /* the codes that occur, in the order in which they came */
    uint32_t codes;
} Histogram;

static inline void add(Histogram *h, uint32_t code, uint32_t pixels)
{
    if (h->count[code] == 0)
        h->seen[h->codes++] = (uint16_t)code;
    h->count[code] += pixels;
}

static inline int uniform(uint64_t word)
{
    return word == ((word >> 8) | (word << 56));
}

static void count_row(Histogram *h, const uint8_t *truth, const uint8_t *predicted, Py_ssize_t width)
{
    Py_ssize_t at = 0;
    uint32_t code = 0, run = 0; /* adding up a run first spares waiting for the counter's store */
    for (; at + WORD <= width; at += WORD) {
        uint64_t t, p;
        memcpy(&t, truth + at, WORD);
        memcpy(&p, predicted + at, WORD);
        if (uniform(t) && uniform(p)) {
            uint32_t own = ((uint32_t)truth[at] << 8) | predicted[at];
            if (own != code) {
                if (run)
                    add(h, code, run);
                code = own, run = 0;
            }
            run += WORD;
        } else {
            for (Py_ssize_t k = at; k < at + WORD; k++)
                add(h, ((uint32_t)truth[k] << 8) | predicted[k], 1);
        }
    }
    if (run)
        add(h, code, run);
    for (; at < width; at++)
        add(h, ((uint32_t)truth[at] << 8) | predicted[at], 1);
}

static PyObject *answer(const Histogram *h)
{
    PyObject *codes = PyBytes_FromStringAndSize((const char *)h->seen, (Py_ssize_t)h->codes * 2);
    PyObject *counts = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)h->codes * 4);
    PyObject *both = NULL;
    if (codes != NULL && counts != NULL) {
        char *out = PyBytes_AsString(counts);
        for (uint32_t k = 0; k < h->codes; k++)
            memcpy(out + 4 * (size_t)k, &h->count[h->seen[k]], 4);
        both = PyTuple_Pack(2, codes, counts);
    }
    Py_XDECREF(codes);
    Py_XDECREF(counts);
    return both;
}

static PyObject *count(PyObject *module, PyObject *args)
{
    Py_buffer truth, predicted;
    Py_ssize_t height, width, stride;
    PyObject *result = NULL;
    (void)module;
    if (!PyArg_ParseTuple(args, "y*y*nnn", &truth, &predicted, &height, &width, &stride))
        return NULL;
    Py_ssize_t pixels = height > 0 ? (height - 1) * stride + width : 0;
    if (height < 0 || width < 0 || stride < width || truth.len != pixels ||
        predicted.len != pixels || (double)height * (double)width >= 4294967296.0) {
        PyErr_SetString(PyExc_ValueError, "the buffers are not of this many rows and columns");
    } else {
        Histogram *h = malloc(sizeof *h);
        if (h == NULL) {
            PyErr_NoMemory();
        } else {
            Py_BEGIN_ALLOW_THREADS
            memset(h->count, 0, sizeof h->count);
            h->codes = 0;
            for (Py_ssize_t row = 0; row < height; row++)
                count_row(h, (const uint8_t *)truth.buf + row * stride,
                          (const uint8_t *)predicted.buf + row * stride, width);
            Py_END_ALLOW_THREADS
            result = answer(h);
            free(h);
        }
    }
    PyBuffer_Release(&truth);
    PyBuffer_Release(&predicted);
    return result;
}

static PyMethodDef methods[] = {
    {"count", count, METH_VARARGS,
     "count(truth, predicted, height, width, stride) -> codes (uint16), pixels (uint32)"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_pairs", NULL, 0, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__pairs(void)
{
    return PyModule_Create(&definition);
}
