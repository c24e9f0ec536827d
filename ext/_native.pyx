"""The native engine: predictions from a mapped model file, equal to the binding's in every bit."""

import os

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Malloc
from libc.stdint cimport int32_t
from libcpp cimport bool
from libcpp.string cimport string
from libcpp.vector cimport vector

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
        size_t work(size_t size, size_t lines) noexcept
        const ModelFile& model()
        const Kernel& kernel()

    cdef cppclass LineView:
        const char* data
        size_t size

    void predict_many(
        const CppEngine& engine, const LineView* lines, size_t number, int32_t k, float threshold, size_t threads,
        CppScore* scores, Py_ssize_t* counts
    ) noexcept
    CppEngine* open_engine(const char* path, const char* kernel, OpenFailure* failure) noexcept

    enum:
        BAD_K "pyserve::BAD_K"
        NOT_A_NUMBER "pyserve::NOT_A_NUMBER"


cdef extern from "native_explain.hpp" namespace "pyserve" nogil:
    cdef cppclass TokenShare:
        string text
        bool known
        double share

    cdef cppclass CppExplanation "pyserve::Explanation":
        double score
        vector[TokenShare] tokens
        size_t ngrams
        size_t ngrams_found

    bool explain_line "pyserve::explain"(
        const CppEngine& engine, const char* text, size_t size, size_t label, CppExplanation* explanation
    ) noexcept


cdef enum:
    # So many cells of matrices take some 30 microseconds: long enough to let other threads run meanwhile.
    LONG_WORK = 65536
    FEW_SCORES = 16
    MANY_SCORES = 65536  # how many answers of a batch are kept until they become objects

KERNELS = ("baseline", "avx2", "avx512")


def supported_kernels() -> tuple:
    return tuple([name for name in KERNELS if choose_kernel(<bytes>name.encode()) != NULL])


cdef inline object bool_of(bool value):
    return True if value else False


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
        cdef bytes wanted
        # SAFETY: os.fsencode() gives bytes or raises; both texts live until open_engine() is done with them.
        cdef const char* name = encoded
        cdef const char* kernel_name = NULL
        cdef OpenFailure failure
        if kernel is not None:
            if kernel not in supported_kernels():
                raise ValueError(f"a kernel must be one of {', '.join(supported_kernels())} on this machine")
            wanted = kernel.encode()
            kernel_name = wanted
        if b"\0" in encoded:
            raise ValueError("a path cannot hold a NUL")
        with nogil:
            self._engine = open_engine(name, kernel_name, &failure)
        if self._engine == NULL:
            raise_failure(&failure, path)
        # SAFETY: from here on _engine is an engine until __dealloc__; where this method raises, nobody gets the object.
        self.info = describe(&(<CppEngine*>self._engine).model())
        self._labels = self.info.labels
        self._labels_are_utf8 = not any("\udc80" <= character <= "\udcff" for character in "".join(self._labels))

    def __dealloc__(self):
        # SAFETY: nothing else deletes it, and no method runs any more; NULL may be deleted.
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
        # SAFETY: the caller holds the object that the line lies in, and the memory of the scores, for the whole call.
        # Score and CppScore are the same: native_output.hpp asserts where their fields lie.
        cdef CppEngine* engine = <CppEngine*>self._engine
        cdef Py_ssize_t count
        cdef int32_t most = <int32_t>min(max(k, -2), 0x7fffffff)
        if engine.work(size, 1) < LONG_WORK:
            count = engine.predict(line, size, most, threshold, <CppScore*>scores)
        else:
            with nogil:
                count = engine.predict(line, size, most, threshold, <CppScore*>scores)
        if count < 0:
            raise_error(count)
        return count

    cdef list score_many(self, list lines, Py_ssize_t k, float threshold, Py_ssize_t threads, list labels):
        """Classify lines; give for each a list of at most k pairs of ``labels`` and confidence, best first.

        k is from 1 to the number of labels. Other Python threads run meanwhile where the texts are long enough.
        """
        cdef CppEngine* engine = <CppEngine*>self._engine
        cdef Py_ssize_t start, size, i, j
        cdef Py_ssize_t most = min(len(lines), max(1, MANY_SCORES // max(1, k)))
        cdef Py_ssize_t number
        cdef int32_t limit = <int32_t>k
        cdef vector[LineView] views
        cdef vector[Py_ssize_t] counts
        cdef object line
        cdef list results = []
        cdef Score* scores
        if k < 1 or labels is None:
            raise ValueError("k must be at least 1, and there must be labels")
        # SAFETY: every line writes at most k scores from i * k on, and a batch has at most "most" lines.
        scores = <Score*>PyMem_Malloc(max(1, most * k) * sizeof(Score))
        if scores == NULL:
            raise MemoryError
        try:
            views.resize(most)
            counts.resize(most)
            for start in range(0, len(lines), max(1, most)):
                number = min(most, len(lines) - start)
                size = 0
                for i in range(number):
                    # SAFETY: the caller's list holds the bytes until the results are read; nobody else has that list.
                    line = lines[start + i]
                    if not isinstance(line, bytes):
                        raise TypeError(f"a line must be bytes, not {type(line).__name__}")
                    views[i].data = PyBytes_AS_STRING(line)
                    views[i].size = PyBytes_GET_SIZE(line)
                    size += PyBytes_GET_SIZE(line)
                if threads == 1 and engine.work(size, number) < LONG_WORK:
                    predict_many(
                        engine[0], views.data(), number, limit, threshold, 1, <CppScore*>scores, counts.data()
                    )
                else:
                    with nogil:
                        predict_many(
                            engine[0], views.data(), number, limit, threshold, threads, <CppScore*>scores, counts.data()
                        )
                for i in range(number):
                    if counts[i] < 0:
                        raise_error(counts[i])
                    results.append([
                        (labels[scores[i * k + j].label], scores[i * k + j].confidence) for j in range(counts[i])
                    ])
            return results
        finally:
            PyMem_Free(scores)

    cdef tuple explain(self, bytes line, Py_ssize_t label):
        """Return the score of a label for a line, its tokens with their shares, and the numbers of n-grams."""
        cdef CppExplanation explanation
        cdef size_t i
        if self.info.loss == "hs":
            raise ValueError("a model with the loss hs has no score for each label that could be explained")
        if line is None or not 0 <= label < len(self._labels):
            raise ValueError("there must be a line, and a label of the model")
        # SAFETY: the label is a row of the output matrix, and the caller holds the line.
        if not explain_line(
            (<CppEngine*>self._engine)[0], PyBytes_AS_STRING(line), PyBytes_GET_SIZE(line), label, &explanation
        ):
            raise MemoryError
        tokens = []
        for i in range(explanation.tokens.size()):
            tokens.append((
                explanation.tokens[i].text.decode("utf-8", "replace"),
                explanation.tokens[i].share,
                bool_of(explanation.tokens[i].known),
            ))
        return explanation.score, tokens, explanation.ngrams, explanation.ngrams_found

    def predict(self, text, Py_ssize_t k=1, float threshold=0.0, str on_unicode_error not None="strict") -> list:
        cdef object line = text.encode() if isinstance(text, str) else text
        cdef Py_ssize_t labels = len(self._labels)
        cdef Py_ssize_t room = min(k, labels) if k >= 0 else labels
        cdef Score[FEW_SCORES] few
        cdef Score* scores = few
        cdef Py_ssize_t i, count
        cdef list pairs = []
        if not isinstance(line, bytes):  # PyBytes_AS_STRING would take anything
            raise TypeError(f"a text must be str or bytes, not {type(text).__name__}")
        if room > FEW_SCORES:
            scores = <Score*>PyMem_Malloc(room * sizeof(Score))
            if scores == NULL:
                raise MemoryError
        try:
            # SAFETY: "line" is bytes and lives until the call returns; "scores" has room for k or for all labels.
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
