"""The event loop of bjoern: when answers are written, and what its connections do."""

from cpython.object cimport PyObject
from libc.stdint cimport uint64_t

from pyserve._counters cimport MALFORMED, ROUTE_OTHER, Block, status_index

cdef extern from "bjoern_loop.h" nogil:
    ctypedef struct connection_notes:
        unsigned long long answers
        unsigned long long reads
        bint writing
    void announce "announce_answer"()
    const connection_notes* notes_of(int descriptor)
    unsigned long long take_bare_error(int which, int* status)
    const int BARE_ERRORS

cdef extern from "bjoern_loop.h":
    bint replace_watcher_calls(PyObject* server_run)


cdef void announce_answer() noexcept nogil:
    announce()


cdef Activity activity_of(int descriptor) noexcept nogil:
    cdef const connection_notes* notes = notes_of(descriptor)
    if notes == NULL:
        return Activity(False, 0, 0, False)
    return Activity(True, notes.answers, notes.reads, notes.writing)


cdef void count_bare_errors(Block* block) noexcept nogil:
    cdef int which, status
    cdef uint64_t number
    for which in range(BARE_ERRORS):
        number = take_bare_error(which, &status)
        if status < 500:  # else what failed is in the log
            block.requests[<int>ROUTE_OTHER][status_index(status)] += number
            block.refused[<int>MALFORMED] += number


def take_over(server_run, tuple version) -> bool:
    # What the replaced calls rely on is read off this version's source.
    return version == (3, 2, 2) and replace_watcher_calls(<PyObject*>server_run)
