cdef class Body:
    cdef readonly Py_ssize_t received
    cdef readonly bint over_limit
    cdef readonly bint over_budget
    cdef bytes _content
    cdef bytearray _pieces
    cdef Py_ssize_t _kept
    cdef Py_ssize_t _position

    cdef bytes content(self)
    cdef void drop(self)

    @staticmethod
    cdef Body last_completed()

    @staticmethod
    cdef Py_ssize_t count_living() noexcept
