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

    def predict(self, text, k=1, threshold=0.0, on_unicode_error="strict") -> list:
        cdef bytes line = text.encode() if isinstance(text, str) else text
        cdef Py_ssize_t most = k
        cdef Py_ssize_t room = len(self._labels) if most < 0 else min(most, len(self._labels))
        cdef Score* scores = <Score*>PyMem_Malloc(max(room, 1) * sizeof(Score))
        cdef Py_ssize_t i, count
        cdef str label
        if scores == NULL:
            raise MemoryError
        try:
            count = self.score(PyBytes_AS_STRING(line), PyBytes_GET_SIZE(line), most, threshold, scores)
            pairs = []
            for i in range(count):
                label = self._labels[scores[i].label]
                if on_unicode_error != "surrogateescape":
                    label = label.encode("utf-8", "surrogateescape").decode("utf-8", on_unicode_error)
                pairs.append((scores[i].confidence, label))
            return pairs
        finally:
            PyMem_Free(scores)
