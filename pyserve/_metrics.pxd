from pyserve._counters cimport Block, Clock, Ledger


cdef class Metrics:
    cdef Ledger* ledger
    cdef Block* blocks
    cdef readonly int slots
    cdef Clock clock
    cdef void* _address
    cdef size_t _size
    cdef size_t _stride

    cdef Block* block(self, int slot) except NULL
