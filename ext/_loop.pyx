"""The event loop of bjoern: when answers are written, and what its connections do."""

from cpython.object cimport PyObject

cdef extern from "bjoern_loop.h" nogil:
    ctypedef struct connection_notes:
        unsigned long long answers
        unsigned long long reads
        bint writing
    void announce "announce_answer"()
    const connection_notes* notes_of(int descriptor)

cdef extern from "bjoern_loop.h":
    bint replace_watcher_calls(PyObject* server_run)


cdef void announce_answer() noexcept nogil:
    announce()


cdef Activity activity_of(int descriptor) noexcept nogil:
    cdef const connection_notes* notes = notes_of(descriptor)
    if notes == NULL:
        return Activity(False, 0, 0, False)
    return Activity(True, notes.answers, notes.reads, notes.writing)


def take_over(server_run, tuple version) -> bool:
    # What the replaced calls rely on is read off this version's source.
    return version == (3, 2, 2) and replace_watcher_calls(<PyObject*>server_run)
