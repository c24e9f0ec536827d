# The reader in ext/model_file.hpp, for the extension modules that take models from it.

from libc.stdint cimport int32_t, int64_t, uint64_t
from libcpp cimport bool
from libcpp.memory cimport unique_ptr
from libcpp.string cimport string
from libcpp.vector cimport vector


cdef extern from "<string_view>" namespace "std" nogil:
    cdef cppclass string_view:
        const char* data()
        size_t size()


cdef extern from "model_file.hpp" namespace "pyserve" nogil:
    cdef cppclass LossName:
        pass

    cdef cppclass ModelArgs:
        int32_t dim
        int32_t word_ngrams
        LossName loss
        int32_t bucket
        int32_t minn
        int32_t maxn

    cdef cppclass EntryView:
        string_view text
        int64_t count

    cdef cppclass MatrixView:
        bool quantized
        int64_t rows
        int64_t columns
        bool qnorm

    cdef cppclass ModelFile:
        size_t size
        int32_t version
        ModelArgs args
        vector[EntryView] words
        vector[EntryView] labels
        bool qout
        MatrixView input
        MatrixView output
        bool pruned() const

    cdef cppclass OpenModel:
        const ModelFile model

    cdef enum FailureKind "pyserve::OpenFailure::Kind":
        FAILURE_NONE "pyserve::OpenFailure::none"
        FAILURE_FORMAT "pyserve::OpenFailure::format"
        FAILURE_SYSTEM "pyserve::OpenFailure::system"
        FAILURE_MEMORY "pyserve::OpenFailure::memory"
        FAILURE_UNSUPPORTED "pyserve::OpenFailure::unsupported"

    cdef cppclass OpenFailure:
        FailureKind kind
        int code
        uint64_t offset
        string reason

    unique_ptr[OpenModel] open_model(const char* path, OpenFailure* failure) noexcept


cdef object describe(const ModelFile* model)
cdef int raise_failure(const OpenFailure* failure, object path) except -1
