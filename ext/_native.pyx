"""The native engine: predictions from a mapped model file, equal to the binding's in every bit."""

import os

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.stdint cimport int32_t

from pyserve._model_file cimport ModelFile, OpenFailure, describe, raise_failure


cdef extern from "native_dispatch.hpp" namespace "pyserve" nogil:
    cdef cppclass Kernel:
        const char* name

    const Kernel* choose_kernel(const char* name)


cdef extern from "native_engine.hpp" namespace "pyserve" nogil:
    cdef cppclass CppScore "pyserve::Score":  # the same as Score
        pass

    cdef cppclass CppEngine "pyserve::NativeEngine":
        Py_ssize_t predict(const char* text, size_t size, int32_t k, float threshold, CppScore* scores) noexcept
        const ModelFile& model()
        const Kernel& kernel()

    CppEngine* open_engine(const char* path, const char* kernel, OpenFailure* failure) noexcept

    enum:
        BAD_K "pyserve::BAD_K"
        NOT_A_NUMBER "pyserve::NOT_A_NUMBER"


cdef enum:
    # A text of this many bytes takes some 20 microseconds: long enough to let other threads run meanwhile.
    LONG_LINE = 8192
    FEW_SCORES = 16

KERNELS = ("baseline", "avx2", "avx512")


def supported_kernels() -> tuple:
    return tuple([name for name in KERNELS if choose_kernel(<bytes>name.encode()) != NULL])


cdef int raise_error(Py_ssize_t code) except -1:
    if code == BAD_K:
        raise ValueError("k needs to be 1 or higher!")
    if code == NOT_A_NUMBER:
        raise RuntimeError("Encountered NaN.")
    raise MemoryError


@cython.final
cdef class NativeEngine:
    def __cinit__(self, path, *, kernel=None):
        cdef bytes encoded = os.fsencode(path)
        cdef bytes wanted = b"" if kernel is None else kernel.encode()
        cdef const char* name = encoded
        cdef const char* kernel_name = NULL
        cdef OpenFailure failure
        if kernel is not None and kernel not in supported_kernels():
            raise ValueError(f"a kernel must be one of {', '.join(supported_kernels())} on this machine")
        if kernel is not None:
            kernel_name = wanted
        if b"\0" in encoded:
            raise ValueError("a path cannot hold a NUL")
        with nogil:
            self._engine = open_engine(name, kernel_name, &failure)
        if self._engine == NULL:
            raise_failure(&failure, path)
        self.info = describe(&(<CppEngine*>self._engine).model())
        self._labels = self.info.labels
        self._labels_are_utf8 = not any("\udc80" <= character <= "\udcff" for character in "".join(self._labels))

    def __dealloc__(self):
        cdef CppEngine* engine = <CppEngine*>self._engine
        del engine

    @property
    def kernel(self):
        return (<CppEngine*>self._engine).kernel().name.decode()

    def __repr__(self):
        return f"<{type(self).__name__} ({self.kernel}) of {self.info!r}>"

    cdef Py_ssize_t score(
        self, const char* line, Py_ssize_t size, Py_ssize_t k, float threshold, Score* scores
    ) except -1:
        """Put the at most k best labels of a line into ``scores``, best first. Return how many they are.

        The line ends at its first line feed. ``scores`` has room for k or for all labels, whatever is less.
        """
        cdef CppEngine* engine = <CppEngine*>self._engine
        cdef Py_ssize_t count
        cdef int32_t most = <int32_t>min(max(k, -2), 0x7fffffff)
        if size < LONG_LINE:
            count = engine.predict(line, size, most, threshold, <CppScore*>scores)
        else:
            with nogil:
                count = engine.predict(line, size, most, threshold, <CppScore*>scores)
        if count < 0:
            raise_error(count)
        return count

    def predict(self, text, Py_ssize_t k=1, float threshold=0.0, str on_unicode_error="strict") -> list:
        cdef bytes line = text.encode() if isinstance(text, str) else text
        cdef Py_ssize_t labels = len(self._labels)
        cdef Py_ssize_t room = min(k, labels) if k >= 0 else labels
        cdef Score[FEW_SCORES] few
        cdef Score* scores = few
        cdef Py_ssize_t i, count
        cdef list pairs = []
        if room > FEW_SCORES:
            scores = <Score*>PyMem_Malloc(room * sizeof(Score))
            if scores == NULL:
                raise MemoryError
        try:
            count = self.score(PyBytes_AS_STRING(line), PyBytes_GET_SIZE(line), k, threshold, scores)
            for i in range(count):
                pairs.append((scores[i].confidence, self._show_label(scores[i].label, on_unicode_error)))
            return pairs
        finally:
            if scores != few:
                PyMem_Free(scores)

    cdef str _show_label(self, Py_ssize_t number, str on_unicode_error):
        cdef str label = self._labels[number]
        if self._labels_are_utf8 or on_unicode_error == "surrogateescape":
            return label
        return label.encode("utf-8", "surrogateescape").decode("utf-8", on_unicode_error)
