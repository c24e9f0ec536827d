from libc.stdint cimport uint64_t

from pyserve._counters cimport Block

cdef struct Activity:
    # What is known of a client's connection.
    bint known  # nothing is where the loop was not taken over
    uint64_t answers  # written whole
    uint64_t reads  # since the last of them
    bint writing  # whether an answer waits to be taken

cdef void announce_answer() noexcept nogil
cdef Activity activity_of(int descriptor) noexcept nogil
cdef void count_bare_errors(Block* block) noexcept nogil
