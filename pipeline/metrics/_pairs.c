/* How often each pair of ids occurs in two 8-bit label maps, in one pass over the pixels.

   Label maps are large areas of one id: 64 pixels at a time are compared with their right
   neighbours, and what is counted are the runs between changes. The interpreter's lock is not held.
   Python code that does the same lies in confusion.py, for where this was not compiled. */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define IDS 256
#define BLOCK 64

#if defined(__GNUC__) && defined(__x86_64__)
#include <immintrin.h>
#define HAS_AVX2 1
#endif

typedef struct {
    uint8_t used[IDS];         /* which ids of truth occurred: other rows hold no counts yet */
    uint32_t count[IDS][IDS];
} Histogram;

static inline void add(Histogram *h, uint8_t truth, uint8_t predicted, uint32_t pixels)
{
    if (!h->used[truth]) {
        memset(h->count[truth], 0, sizeof h->count[truth]);
        h->used[truth] = 1;
    }
    h->count[truth][predicted] += pixels;
}

static inline int lowest(uint64_t bits)
{
#if defined(__GNUC__)
    return __builtin_ctzll(bits);
#else
    int at = 0;
    while (!(bits >> at & 1))
        at++;
    return at;
#endif
}

/* Bit k: pixel k and the next differ in one of the maps. */
typedef uint64_t (*Changes)(const uint8_t *truth, const uint8_t *predicted);

static inline uint64_t changes_plain(const uint8_t *truth, const uint8_t *predicted)
{
    const uint64_t low = 0x7f7f7f7f7f7f7f7f;
    uint64_t bits = 0;
    for (int k = 0; k < BLOCK; k += 8) {
        uint64_t t, p, t1, p1, x;
        memcpy(&t, truth + k, 8), memcpy(&t1, truth + k + 1, 8);
        memcpy(&p, predicted + k, 8), memcpy(&p1, predicted + k + 1, 8);
        x = (t ^ t1) | (p ^ p1);
        if (x) {
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
            x = __builtin_bswap64(x);
#endif
            x = ((((x & low) + low) | x) & ~low) >> 7; /* the lowest bit of each byte that is set */
            bits |= ((x * 0x0102040810204080) >> 56) << k;
        }
    }
    return bits;
}

static inline __attribute__((always_inline)) void count_span(Histogram *h, const uint8_t *truth,
                                                             const uint8_t *predicted,
                                                             Py_ssize_t size, Changes changes)
{
    Py_ssize_t at = 0, start = 0; /* of the run that is not counted yet */
    for (; at + BLOCK < size; at += BLOCK) {
        uint64_t bits = changes(truth + at, predicted + at);
        while (bits) {
            Py_ssize_t last = at + lowest(bits);
            add(h, truth[last], predicted[last], (uint32_t)(last + 1 - start));
            start = last + 1;
            bits &= bits - 1;
        }
    }
    for (; at + 1 < size; at++)
        if (truth[at] != truth[at + 1] || predicted[at] != predicted[at + 1]) {
            add(h, truth[at], predicted[at], (uint32_t)(at + 1 - start));
            start = at + 1;
        }
    if (size)
        add(h, truth[size - 1], predicted[size - 1], (uint32_t)(size - start));
}

static void span_plain(Histogram *h, const uint8_t *truth, const uint8_t *predicted,
                       Py_ssize_t size)
{
    count_span(h, truth, predicted, size, changes_plain);
}

#ifdef HAS_AVX2
__attribute__((target("avx2"))) static inline uint32_t
same_avx2(const uint8_t *truth, const uint8_t *predicted)
{
    __m256i t = _mm256_loadu_si256((const __m256i *)truth);
    __m256i t1 = _mm256_loadu_si256((const __m256i *)(truth + 1));
    __m256i p = _mm256_loadu_si256((const __m256i *)predicted);
    __m256i p1 = _mm256_loadu_si256((const __m256i *)(predicted + 1));
    __m256i same = _mm256_and_si256(_mm256_cmpeq_epi8(t, t1), _mm256_cmpeq_epi8(p, p1));
    return (uint32_t)_mm256_movemask_epi8(same);
}

__attribute__((target("avx2"))) static inline uint64_t changes_avx2(const uint8_t *truth,
                                                                    const uint8_t *predicted)
{
    uint64_t first = same_avx2(truth, predicted), second = same_avx2(truth + 32, predicted + 32);
    return ~(first | second << 32);
}

__attribute__((target("avx2,bmi,bmi2"))) static void span_avx2(Histogram *h, const uint8_t *truth,
                                                           const uint8_t *predicted,
                                                           Py_ssize_t size)
{
    count_span(h, truth, predicted, size, changes_avx2);
}
#endif

static void (*count_pixels)(Histogram *, const uint8_t *, const uint8_t *, Py_ssize_t) = span_plain;

/* Maps whose rows lie one or no byte apart (as in an inflated PNG) are counted as one row; what
   lies between the rows is taken off again. */
static void count_map(Histogram *h, const Py_buffer *truth, const Py_buffer *predicted)
{
    const uint8_t *t = truth->buf, *p = predicted->buf;
    Py_ssize_t height = truth->shape[0], width = truth->shape[1];
    Py_ssize_t gap = height > 1 ? truth->strides[0] - width : 0;
    if (height > 1 && (gap < 0 || gap > 1 || predicted->strides[0] != truth->strides[0])) {
        for (Py_ssize_t row = 0; row < height; row++)
            count_pixels(h, t + row * truth->strides[0], p + row * predicted->strides[0], width);
        return;
    }
    count_pixels(h, t, p, height * (width + gap) - gap);
    if (gap)
        for (Py_ssize_t k = width; k < height * (width + 1) - 1; k += width + 1)
            h->count[t[k]][p[k]]--;
}

static PyObject *answer(const Histogram *h)
{
    uint32_t codes = 0;
    PyObject *both[2], *result = NULL;
    for (int t = 0; t < IDS; t++)
        if (h->used[t])
            for (int p = 0; p < IDS; p++)
                codes += h->count[t][p] != 0;
    both[0] = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)codes * 2);
    both[1] = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)codes * 4);
    if (both[0] != NULL && both[1] != NULL) {
        char *code = PyBytes_AsString(both[0]), *pixels = PyBytes_AsString(both[1]);
        for (int t = 0; t < IDS; t++)
            for (int p = 0; h->used[t] && p < IDS; p++)
                if (h->count[t][p]) {
                    uint16_t own = (uint16_t)(t << 8 | p);
                    memcpy(code, &own, 2), memcpy(pixels, &h->count[t][p], 4);
                    code += 2, pixels += 4;
                }
        result = PyTuple_Pack(2, both[0], both[1]);
    }
    Py_XDECREF(both[0]);
    Py_XDECREF(both[1]);
    return result;
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
    if ((double)height * ((double)width + 1) >= 4294967296.0) {
        PyErr_SetString(PyExc_ValueError, "the maps have more pixels than 32 bits count");
        return NULL;
    }
    h = malloc(sizeof *h);
    if (h == NULL)
        return PyErr_NoMemory();
    Py_BEGIN_ALLOW_THREADS
    memset(h->used, 0, sizeof h->used);
    count_map(h, truth, predicted);
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
     "count(truth [H, W] uint8, predicted [H, W] uint8) -> codes (uint16, ascending), pixels "
     "(uint32)"},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_pairs", NULL, 0, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__pairs(void)
{
#ifdef HAS_AVX2
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2"))
        count_pixels = span_avx2;
#endif
    return PyModule_Create(&definition);
}
