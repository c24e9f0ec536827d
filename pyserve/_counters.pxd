# The counters of all workers, in memory that they share, and how the hot path writes them.
#
# Each worker has a block of its own and is the only one that writes its counters, so an increment is a plain store.

from libc.stdint cimport uint32_t, uint64_t

cdef extern from "ticks.h" nogil:
    const int PYSERVE_HAS_COUNTER
    uint64_t counter_ticks()
    uint64_t clock_nanoseconds()

cdef enum:
    ROUTE_COUNT = 6
    STATUS_COUNT = 12
    BUCKET_COUNT = 19  # the last one has no upper bound
    LABEL_COUNT = 1024  # predictions of further labels are counted together, as the last one
    LABEL_BYTES = 128
    NAME_BYTES = 256
    CAUSE_COUNT = 16

cdef enum Route:
    ROUTE_INFER, ROUTE_MODEL, ROUTE_LIVEZ, ROUTE_READYZ, ROUTE_METRICS, ROUTE_OTHER

cdef enum Refusal:  # the order of _metrics.REFUSED
    PIPELINED, LENGTH, TRANSFER_ENCODING, MEMORY, NO_PATH, NO_LIMITS, HEADER, MALFORMED

cdef enum State:
    STATE_FREE, STATE_BOOTING, STATE_READY, STATE_DRAINING

cdef struct Histogram:
    uint64_t ticks  # the sum of all observations
    uint64_t[BUCKET_COUNT] counts

cdef struct Tally:
    # What a classifier counts.
    uint64_t texts
    Histogram predict
    uint64_t[LABEL_COUNT + 1] predictions

cdef struct Block:
    uint64_t state
    uint64_t pid
    uint64_t retired  # whether the arbiter has told the worker to end; the arbiter writes it
    uint64_t leaving  # why the worker asks to be replaced, as a number of LEAVING, or 0
    uint64_t open_connections
    uint64_t resident_bytes
    uint64_t bytes_in
    uint64_t bytes_out
    Histogram latency
    uint64_t[ROUTE_COUNT][STATUS_COUNT] requests
    uint64_t[CAUSE_COUNT] refused
    uint64_t[CAUSE_COUNT] closed
    Tally tally

cdef struct Ledger:
    # What the arbiter counts and tells.
    uint64_t service  # a State
    uint64_t loaded_at  # seconds since the epoch
    uint64_t workers_started
    uint64_t[CAUSE_COUNT] workers_ended
    uint64_t reloads
    uint64_t failed_reloads
    uint64_t broken_answers
    uint64_t label_count
    char[NAME_BYTES] model_name
    char[NAME_BYTES] model_sha256
    char[LABEL_COUNT][LABEL_BYTES] labels

cdef struct Clock:
    bint counter  # whether ticks are those of the processor's counter, else nanoseconds
    double nanoseconds_per_tick
    uint64_t[BUCKET_COUNT] bounds  # of the histograms, in ticks


cdef struct Recorder:
    # Where a classifier counts, and how.
    const Clock* clock
    Tally* tally
    uint32_t[LABEL_COUNT] numbers  # of the labels, as an index into the tally's predictions


cdef inline uint64_t now_ticks(const Clock* clock) noexcept nogil:
    return counter_ticks() if clock.counter else clock_nanoseconds()


cdef inline void observe(Histogram* histogram, const Clock* clock, uint64_t ticks) noexcept nogil:
    cdef int i = 0
    # SAFETY: the last bound is the largest number there is, so the loop ends within the array.
    while ticks > clock.bounds[i]:
        i += 1
    histogram.counts[i] += 1
    histogram.ticks += ticks


cdef inline int status_index(int status) noexcept nogil:
    if status == 200:
        return 0
    if status == 400:
        return 1
    if status == 404:
        return 2
    if status == 405:
        return 3
    if status == 406:
        return 4
    if status == 408:
        return 5
    if status == 413:
        return 6
    if status == 415:
        return 7
    if status == 500:
        return 8
    if status == 503:
        return 9
    return 10 if status < 500 else 11


cdef inline void record_prediction(Recorder* recorder, uint64_t ticks, Py_ssize_t label) noexcept nogil:
    """Count a prediction that took so long and put this label first, or none where it is negative."""
    cdef Tally* tally = recorder.tally
    tally.texts += 1
    observe(&tally.predict, recorder.clock, ticks)
    if label >= 0:
        # SAFETY: every number is at most LABEL_COUNT, and the predictions are one more.
        tally.predictions[recorder.numbers[label] if label < LABEL_COUNT else LABEL_COUNT] += 1
