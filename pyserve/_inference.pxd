# What the WSGI entry calls without a detour through Python.

from pyserve._counters cimport Recorder
from pyserve._native cimport NativeEngine, Score

cdef struct Span:
    const unsigned char* data
    Py_ssize_t size


cdef class Classifier:
    cdef object __weakref__
    cdef readonly tuple labels
    cdef object _predict
    cdef NativeEngine _native  # called directly in place of _predict where there is one
    cdef dict _label_numbers
    cdef list _prefixes
    cdef Py_ssize_t _longest_prefix
    cdef Recorder* recorder  # where predictions are counted, or NULL; not owned

    cdef bytes answer_form(self, bytes form, bytes query, Py_ssize_t max_texts)
    cdef bytes answer_line(self, const char* line, Py_ssize_t size, Py_ssize_t k, double threshold)
    cdef Py_ssize_t score(
        self, const char* line, Py_ssize_t size, Py_ssize_t k, double threshold, Score* scores
    ) except -1
    cdef bytes _answer_value(self, Span value, Py_ssize_t k, double threshold)
    cdef bytes _answer_document(self, dict document, bytes query, Py_ssize_t max_texts)
    cdef bytes _answer_lines(self, list lines, Py_ssize_t k, double threshold)
    cdef list _predict_line(self, bytes line, Py_ssize_t k, double threshold)
    cdef Py_ssize_t _read_k(self, str value) except -1
    cdef double _read_threshold(self, str value) except -1
    cdef Py_ssize_t _check_k(self, object k) except -1
    cdef double _check_threshold(self, object threshold) except -1
