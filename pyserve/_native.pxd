# What the classifier calls without a detour through Python. Plain C, so that C and C++ modules can use it.

cdef struct Score:
    Py_ssize_t label  # its number in the model
    float confidence


cdef class NativeEngine:
    cdef void* _engine
    cdef tuple _labels
    cdef bint _labels_are_utf8
    cdef readonly object info

    cdef Py_ssize_t score(
        self, const char* line, Py_ssize_t size, Py_ssize_t k, float threshold, Score* scores
    ) except -1
    cdef str _show_label(self, Py_ssize_t number, str on_unicode_error)
    cdef list score_many(self, list lines, Py_ssize_t k, float threshold, Py_ssize_t threads, list labels)
    cdef tuple explain(self, bytes line, Py_ssize_t label)
