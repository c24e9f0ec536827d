"""Counters in memory that the arbiter and its workers share.

The memory is mapped before the first fork: a ledger that only the arbiter writes, and a block for each worker that only
this worker writes, but for its state before it runs and after it ended, and for ``retired``. A block outlives its
worker and is handed on, so that the sums never go backwards.
"""

import os
import time

cimport cython
from libc.stdint cimport uint64_t
from libc.string cimport memcpy, memset, strlen
from posix.mman cimport MAP_ANONYMOUS, MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap

from pyserve._counters cimport (
    BUCKET_COUNT, LABEL_BYTES, LABEL_COUNT, NAME_BYTES, PYSERVE_HAS_COUNTER, ROUTE_COUNT, STATUS_COUNT, STATE_BOOTING,
    STATE_FREE, STATE_READY, Block, Clock, Histogram, Ledger, clock_nanoseconds, counter_ticks,
)

# Upper bounds of the histograms' buckets, in seconds.
BOUNDS = (
    1e-6, 2.5e-6, 5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4,
    1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 1e-1, 2.5e-1, 1.0, 10.0,
)  # fmt: skip
ROUTES = ("/inferreview", "/model", "/livez", "/readyz", "/metrics", "other")
STATUSES = ("200", "400", "404", "405", "406", "408", "413", "415", "500", "503", "other", "other_5xx")
# Why a request was refused before it reached a responder.
REFUSED = ("pipelined", "length", "transfer_encoding", "memory", "no_path", "no_limits", "header", "malformed")
# Why a connection was closed that the client might have kept.
CLOSED = ("request_timeout", "idle", "answer_timeout", "body_too_large", "connection_limit", "drained")
# Why a worker ended.
ENDED = ("stopped", "reloaded", "replaced", "timeout", "killed", "crashed", "boot_failed")
# Why a worker asks to be replaced.
LEAVING = ("", "memory", "no_limits", "terminated")
STATES = ("free", "booting", "ready", "draining")


cdef bint has_steady_counter():
    """Tell whether the processor's counter runs at one rate on all cores and in all power states."""
    if not PYSERVE_HAS_COUNTER:
        return False
    try:
        with open("/sys/devices/system/clocksource/clocksource0/current_clocksource") as source:
            return source.read().strip() == "tsc"  # the kernel itself checks and trusts it
    except OSError:
        return False


cdef void calibrate(Clock* clock) except *:
    """Find out how long a tick is, within 0.1 %, in 2 ms."""
    cdef uint64_t ticks, nanoseconds, elapsed
    clock.counter = has_steady_counter()
    clock.nanoseconds_per_tick = 1.0
    if clock.counter:
        nanoseconds = clock_nanoseconds()
        ticks = counter_ticks()
        time.sleep(0.002)
        elapsed = clock_nanoseconds() - nanoseconds
        clock.nanoseconds_per_tick = <double>elapsed / <double>(counter_ticks() - ticks)
    for i, bound in enumerate(BOUNDS):
        clock.bounds[i] = <uint64_t>(bound * 1e9 / clock.nanoseconds_per_tick)
    clock.bounds[BUCKET_COUNT - 1] = <uint64_t>-1


@cython.final
cdef class Metrics:
    def __cinit__(self, int slots):
        cdef size_t page = os.sysconf("SC_PAGE_SIZE")
        cdef size_t first = (sizeof(Ledger) + page - 1) // page * page
        if slots < 1:
            raise ValueError("slots must be at least 1")
        self._stride = (sizeof(Block) + page - 1) // page * page
        self._size = first + <size_t>slots * self._stride
        self._address = mmap(NULL, self._size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0)
        if self._address == MAP_FAILED:
            self._address = NULL
            raise MemoryError
        self.ledger = <Ledger*>self._address
        self.blocks = <Block*>(<char*>self._address + first)
        self.slots = slots
        calibrate(&self.clock)

    def __dealloc__(self):
        if self._address != NULL:
            munmap(self._address, self._size)

    cdef Block* block(self, int slot) except NULL:
        if not 0 <= slot < self.slots:
            raise IndexError("there is no such slot")
        return <Block*>(<char*>self.blocks + <size_t>slot * self._stride)

    # What the arbiter does.

    def claim(self) -> int:
        cdef int slot
        for slot in range(self.slots):
            if self.block(slot).state == STATE_FREE:
                self.block(slot).state = STATE_BOOTING
                self.block(slot).leaving = 0
                self.block(slot).retired = 0
                return slot
        raise RuntimeError("too many workers are still on their way down")

    def release(self, int slot) -> None:
        cdef Block* block = self.block(slot)
        block.state = STATE_FREE
        block.pid = 0
        block.leaving = 0
        block.retired = 0
        block.open_connections = 0
        block.resident_bytes = 0

    def retire(self, int slot) -> None:
        """Tell a worker that it ends because the arbiter says so, and that others take what waits."""
        self.block(slot).retired = 1

    def set_service(self, str state) -> None:
        self.ledger.service = STATES.index(state)

    def set_model(self, str name, str sha256, labels, uint64_t loaded_at=0) -> list:
        """Tell which model is served. Return the numbers under which the predictions of its labels are counted."""
        cdef uint64_t i
        cdef bytes text
        known = {self.ledger.labels[i][:strlen(self.ledger.labels[i])]: i for i in range(self.ledger.label_count)}
        copy_text(self.ledger.model_name, NAME_BYTES, name)
        copy_text(self.ledger.model_sha256, NAME_BYTES, sha256)
        self.ledger.loaded_at = loaded_at or <uint64_t>time.time()
        numbers = []
        for label in labels:
            text = shorten(label, LABEL_BYTES)
            if text not in known:
                if self.ledger.label_count == LABEL_COUNT:
                    numbers.append(LABEL_COUNT)
                    continue
                i = self.ledger.label_count
                copy_text(self.ledger.labels[i], LABEL_BYTES, label)
                known[text] = i
                # The name stands before the count says so: workers read it at any time.
                self.ledger.label_count = i + 1
            numbers.append(known[text])
        return numbers

    def count_start(self) -> None:
        self.ledger.workers_started += 1

    def count_end(self, str cause) -> None:
        self.ledger.workers_ended[ENDED.index(cause)] += 1

    def count_broken_answer(self) -> None:
        self.ledger.broken_answers += 1

    def count_reload(self, bint failed) -> None:
        if failed:
            self.ledger.failed_reloads += 1
        else:
            self.ledger.reloads += 1

    # What both read.

    def state(self, int slot) -> str:
        return STATES[self.block(slot).state]

    def retired(self, int slot) -> bool:
        return self.block(slot).retired != 0

    def leaving(self, int slot) -> str:
        return LEAVING[self.block(slot).leaving]

    def service(self) -> str:
        return STATES[self.ledger.service]

    def is_ready(self) -> bool:
        cdef int slot
        if self.ledger.service != STATE_READY:
            return False
        for slot in range(self.slots):
            if self.block(slot).state == STATE_READY:
                return True
        return False

    def snapshot(self) -> dict:
        """Sum up all workers."""
        cdef int slot, i, k
        cdef Block* block
        cdef Block total
        cdef uint64_t* source
        cdef uint64_t* target = <uint64_t*>&total
        memset(&total, 0, sizeof(Block))
        resident = []
        ready = 0
        for slot in range(self.slots):
            block = self.block(slot)
            source = <uint64_t*>block
            # SAFETY: a Block is made of uint64_t alone.
            for i in range(<int>(sizeof(Block) // sizeof(uint64_t))):
                target[i] += source[i]
            if block.state != STATE_FREE and block.pid:
                resident.append((block.pid, block.resident_bytes))
                ready += block.state == STATE_READY
        labels = [
            self.ledger.labels[i][:strlen(self.ledger.labels[i])].decode("utf-8", "replace")
            for i in range(<int>self.ledger.label_count)
        ]
        predictions = {label: total.tally.predictions[i] for i, label in enumerate(labels)}
        if total.tally.predictions[LABEL_COUNT]:
            predictions["(others)"] = total.tally.predictions[LABEL_COUNT]
        return {
            "requests": {
                (ROUTES[i], STATUSES[k]): total.requests[i][k]
                for i in range(ROUTE_COUNT) for k in range(STATUS_COUNT) if total.requests[i][k]
            },
            "texts": total.tally.texts,
            "predictions": predictions,
            "bytes_in": total.bytes_in,
            "bytes_out": total.bytes_out,
            "latency": summarise(&total.latency, &self.clock),
            "predict": summarise(&total.tally.predict, &self.clock),
            "open_connections": total.open_connections,
            "refused": {cause: total.refused[i] for i, cause in enumerate(REFUSED)},
            "closed": {cause: total.closed[i] for i, cause in enumerate(CLOSED)},
            "broken_answers": self.ledger.broken_answers,
            "workers_started": self.ledger.workers_started,
            "workers_ended": {cause: self.ledger.workers_ended[i] for i, cause in enumerate(ENDED)},
            "workers_ready": ready,
            "ready": self.is_ready(),
            "reloads": {"success": self.ledger.reloads, "failure": self.ledger.failed_reloads},
            "model_name": self.ledger.model_name[:strlen(self.ledger.model_name)].decode("utf-8", "replace"),
            "model_sha256": self.ledger.model_sha256[:strlen(self.ledger.model_sha256)].decode(),
            "model_loaded_at": self.ledger.loaded_at,
            "resident_bytes": resident,
        }


cdef tuple summarise(const Histogram* histogram, const Clock* clock):
    """Return the counts of the buckets, each with those below it, and the sum in seconds."""
    cdef int i
    cdef uint64_t so_far = 0
    cdef list counts = []
    for i in range(BUCKET_COUNT):
        so_far += histogram.counts[i]
        counts.append(so_far)
    return counts, histogram.ticks * clock.nanoseconds_per_tick / 1e9


cdef bytes shorten(str text, Py_ssize_t size):
    """Encode a text into less than ``size`` bytes without NUL."""
    cdef bytes encoded = text.replace("\0", " ").encode("utf-8", "replace")
    if len(encoded) < size:
        return encoded
    return encoded[: size - 4].decode("utf-8", "ignore").encode() + "…".encode()


cdef void copy_text(char* target, Py_ssize_t size, str text) except *:
    cdef bytes encoded = shorten(text, size)
    memcpy(target, <const char*>encoded, len(encoded))
    target[len(encoded)] = 0
