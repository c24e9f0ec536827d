from pyserve._inference cimport Classifier


cdef class Entry:
    cdef readonly object falcon_app
    cdef readonly Classifier classifier
    cdef readonly Py_ssize_t max_body
    cdef Py_ssize_t _max_texts

    cdef bytes answer(self, dict environ)
    cdef list headers(self, bytes reply)
