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

static int is_map(const Py_buffer *b)
{
    return b->ndim == 2 && b->itemsize == 1 && (b->shape[1] < 2 || b->strides[1] == 1);
}

static PyObject *count_buffers(const Py_buffer *truth, const Py_buffer *predicted)
{
    Py_ssize_t height, width;
    Histogram *h;
    PyObject *result;
    if (!is_map(truth) || !is_map(predicted) || truth->shape[0] != predicted->shape[0] ||
        truth->shape[1] != predicted->shape[1]) {
        PyErr_SetString(PyExc_ValueError, "expected two maps of bytes of one size, rows unbroken");
        return NULL;
    }
    height = truth->shape[0], width = truth->shape[1];
    if ((double)height * (double)width >= 4294967296.0) {
        PyErr_SetString(PyExc_ValueError, "the maps have more pixels than 32 bits count");
        return NULL;
    }
    h = malloc(sizeof *h);
    if (h == NULL)
        return PyErr_NoMemory();
    Py_BEGIN_ALLOW_THREADS
    memset(h->count, 0, sizeof h->count);
    h->codes = 0;
    for (Py_ssize_t row = 0; row < height; row++)
        count_row(h, (const uint8_t *)truth->buf + row * truth->strides[0],
                  (const uint8_t *)predicted->buf + row * predicted->strides[0], width);
    Py_END_ALLOW_THREADS
    result = answer(h);
    free(h);
    return result;
}

static PyObject *count(PyObject *module, PyObject *args)
{
    PyObject *first, *second, *result = NULL;
    Py_buffer truth, predicted;
    (void)module;
    if (!PyArg_ParseTuple(args, "OO", &first, &second))
        return NULL;
    if (PyObject_GetBuffer(first, &truth, PyBUF_STRIDED_RO) < 0)
        return NULL;
    if (PyObject_GetBuffer(second, &predicted, PyBUF_STRIDED_RO) == 0) {
        result = count_buffers(&truth, &predicted);
        PyBuffer_Release(&predicted);
    }
    PyBuffer_Release(&truth);
    return result;
}

static PyMethodDef methods[] = {
    {"count", count, METH_VARARGS,
     "count(truth [H, W] uint8, predicted [H, W] uint8) -> codes (uint16), pixels (uint32)"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_pairs", NULL, 0, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__pairs(void)
{
    return PyModule_Create(&definition);
}
