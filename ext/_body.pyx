"""The body of a request, as bjoern fills it and an application reads it.

bjoern keeps a body in memory and has no limit on it. It takes the class of its bodies from ``io.BytesIO`` when its loop
starts, so a loop that starts with ``IO`` below in place of ``io`` builds the bodies of this module: they keep no more
than the limit, and all the bodies of a process no more than the budget. What is over is received, counted and dropped.

bjoern calls ``write`` while a body arrives and ``seek(0)`` when it is complete. It crashes where one of them raises,
and where they return while an exception is set, as bjoern itself leaves one after some requests that it cannot parse.
"""

cimport cython
from cpython.bytes cimport PyBytes_GET_SIZE
from cpython.object cimport PyObject

cdef extern from "Python.h":
    PyObject* PyErr_Occurred()
    void PyErr_Clear()
    const Py_ssize_t PY_SSIZE_T_MAX

cdef Py_ssize_t limit = 1024 * 1024
cdef Py_ssize_t budget = 128 * 1024 * 1024
cdef Py_ssize_t kept_by_all = 0

# The bodies that exist, and the number of them at which they are looked through for those that nobody will ever read.
cdef Py_ssize_t living = 0
cdef Py_ssize_t many = PY_SSIZE_T_MAX
cdef object reclaimer = None
cdef enum:
    STEP = 1000

# The body of the request that was completed last, a borrowed reference. A request without a body gets one when it is
# complete, any other when its first bytes arrive: so a new body counts as complete until something is written to it.
cdef PyObject* completed = NULL
cdef PyObject* completed_before = NULL


cdef inline void forget_exception() noexcept:
    if PyErr_Occurred() != NULL:
        PyErr_Clear()


cdef void reclaim() noexcept:
    global many
    try:
        reclaimer()
    except Exception:
        pass  # bjoern would crash; the next attempt comes soon
    many = living + STEP


@cython.final
@cython.freelist(64)
cdef class Body:
    """A readable stream of the bytes that were written to it, at most as many as the limit."""

    def __cinit__(self):
        global living, completed, completed_before
        living += 1
        completed_before = completed
        completed = <PyObject*>self

    def __dealloc__(self):
        global kept_by_all, living, completed, completed_before
        living -= 1
        kept_by_all -= self._kept
        if completed == <PyObject*>self:
            completed = NULL
        if completed_before == <PyObject*>self:
            completed_before = NULL

    def __len__(self):
        return self._kept

    def write(self, bytes chunk not None):
        global kept_by_all, completed
        cdef Py_ssize_t size = PyBytes_GET_SIZE(chunk)
        forget_exception()
        if completed == <PyObject*>self:
            completed = completed_before
        self.received += size
        if self.over_limit or self.over_budget:
            return size
        if self.received > limit:
            self.over_limit = True
            self.drop()
            return size
        if kept_by_all + size > budget:
            self.over_budget = True
            self.drop()
            return size
        try:
            if self._content is None and self._pieces is None:
                self._content = chunk
            else:
                if self._pieces is None:
                    self._pieces = bytearray(self._content)
                    self._content = None
                self._pieces += chunk
        except MemoryError:
            self.over_budget = True
            self.drop()
            return size
        self._kept += size
        kept_by_all += size
        return size

    def seek(self, Py_ssize_t position, int whence=0):
        global completed
        forget_exception()
        if whence == 0 and position == 0:
            completed = <PyObject*>self
        elif whence == 1:
            position += self._position
        elif whence == 2:
            position += self._kept
        self._position = max(0, position)
        return self._position

    def tell(self):
        return self._position

    def read(self, size=-1):
        cdef bytes content = self.content()
        cdef Py_ssize_t start = min(self._position, PyBytes_GET_SIZE(content))
        cdef Py_ssize_t stop = PyBytes_GET_SIZE(content)
        if size is not None and size >= 0:
            stop = min(stop, start + <Py_ssize_t>min(size, stop))
        self._position = max(self._position, stop)
        if start == 0 and stop == PyBytes_GET_SIZE(content):
            return content
        return content[start:stop]

    def readline(self, size=-1):
        cdef bytes content = self.content()
        cdef Py_ssize_t start = min(self._position, PyBytes_GET_SIZE(content))
        cdef Py_ssize_t stop = content.find(b"\n", start) + 1
        if stop == 0:
            stop = PyBytes_GET_SIZE(content)
        if size is not None and size >= 0:
            stop = min(stop, start + <Py_ssize_t>min(size, stop))
        self._position = max(self._position, stop)
        return content[start:stop]

    def readlines(self, hint=-1):
        cdef list lines = []
        cdef Py_ssize_t size = 0
        for line in self:
            lines.append(line)
            size += PyBytes_GET_SIZE(line)
            if hint is not None and 0 < hint <= size:
                break
        return lines

    def __iter__(self):
        return self

    def __next__(self):
        line = self.readline()
        if not line:
            raise StopIteration
        return line

    cdef bytes content(self):
        """Return all the bytes that were kept, wherever the stream stands."""
        if self._content is None:
            self._content = b"" if self._pieces is None else bytes(self._pieces)
            self._pieces = None
        return self._content

    @staticmethod
    cdef Body last_completed():
        """Return the body of the request that was completed last, or None where that is gone."""
        return None if completed == NULL else <Body>completed

    @staticmethod
    cdef Py_ssize_t count_living() noexcept:
        """Return how many bodies there are; there is one for each request that has not been answered yet."""
        return living

    cdef void drop(self):
        """Forget the bytes, and keep their count."""
        global kept_by_all
        kept_by_all -= self._kept
        self._kept = 0
        self._content = None
        self._pieces = None


@cython.final
cdef class IO:
    """What bjoern takes for the module ``io``."""

    def BytesIO(self):
        forget_exception()
        if living > many:
            reclaim()
        return Body.__new__(Body)


def set_limits(Py_ssize_t body, Py_ssize_t all_bodies) -> None:
    global limit, budget
    limit = body
    budget = max(body, all_bodies)


def set_reclaimer(function) -> None:
    global reclaimer, many
    reclaimer = function
    many = PY_SSIZE_T_MAX if function is None else living + STEP


def kept_bytes() -> int:
    return kept_by_all
