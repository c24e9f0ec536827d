"""Check a fastText model file and say what it holds, without loading it. The format is described in model_file.hpp."""

import os

cimport cython
from libcpp.memory cimport unique_ptr

LOSS_NAMES = {1: "hs", 2: "ns", 3: "softmax", 4: "ova"}


class FormatError(ValueError):
    """A file that is no intact supervised fastText model; the message says what was found and what is allowed."""

    def __init__(self, reason, offset):
        super().__init__(reason)
        self.offset = offset

    def __reduce__(self):
        return type(self), (self.args[0], self.offset)


class UnsupportedError(ValueError):
    """An intact model that the native engine does not take; the message says why."""


cdef int raise_failure(const OpenFailure* failure, object path) except -1:
    """Raise what open_model() reported as a Python exception."""
    if failure.kind == FAILURE_FORMAT:
        raise FormatError(failure.reason.decode("ascii"), failure.offset)
    if failure.kind == FAILURE_SYSTEM:
        raise OSError(failure.code, os.strerror(failure.code), path)
    if failure.kind == FAILURE_UNSUPPORTED:
        raise UnsupportedError(failure.reason.decode("ascii"))
    raise MemoryError


@cython.final
cdef class ModelInfo:
    """What a model file says about itself; made by inspect() only."""

    cdef readonly Py_ssize_t size
    cdef readonly int version
    cdef readonly int dim
    cdef readonly tuple labels
    cdef readonly Py_ssize_t words
    cdef readonly int word_ngrams
    cdef readonly int minn
    cdef readonly int maxn
    cdef readonly int bucket
    cdef readonly str loss
    cdef readonly bint quantized
    cdef readonly bint qout
    cdef readonly bint qnorm
    cdef readonly bint pruned
    cdef readonly tuple input_shape
    cdef readonly tuple output_shape

    def __cinit__(self, *args, **kwargs):
        if not _may_create:
            raise TypeError("a ModelInfo is made by inspect()")

    def __repr__(self):
        kind = "quantized " if self.quantized else ""
        return (
            f"<ModelInfo {kind}{self.loss} model, {len(self.labels)} labels, {self.words} words, dim {self.dim}, "
            f"word n-grams {self.word_ngrams}, {self.size} bytes>"
        )


cdef bint _may_create = False


cdef object describe(const ModelFile* model):
    """Copy what the reader found into a Python object."""
    global _may_create
    cdef size_t i
    _may_create = True
    cdef ModelInfo info = ModelInfo.__new__(ModelInfo)
    _may_create = False
    info.size = model.size
    info.version = model.version
    info.dim = model.args.dim
    labels = []
    for i in range(model.labels.size()):
        # SAFETY: the view points into the mapped file, which the caller keeps open; decoding copies it.
        labels.append(
            model.labels[i].text.data()[:model.labels[i].text.size()].decode("utf-8", "surrogateescape")
        )
    info.labels = tuple(labels)
    info.words = model.words.size()
    info.word_ngrams = model.args.word_ngrams
    info.minn = model.args.minn
    info.maxn = model.args.maxn
    info.bucket = model.args.bucket
    info.loss = LOSS_NAMES[<int>model.args.loss]
    info.quantized = model.input.quantized
    info.qout = model.qout
    info.qnorm = model.input.qnorm
    info.pruned = model.pruned()
    info.input_shape = (model.input.rows, model.input.columns)
    info.output_shape = (model.output.rows, model.output.columns)
    return info


def inspect(path):
    cdef bytes encoded = os.fsencode(path)
    if b"\0" in encoded:
        raise ValueError("a path cannot hold a NUL")
    cdef const char* name = encoded
    cdef OpenFailure failure
    cdef unique_ptr[OpenModel] opened
    with nogil:
        opened = open_model(name, &failure)
    if opened.get() == NULL:
        raise_failure(&failure, path)
    return describe(&opened.get().model)
