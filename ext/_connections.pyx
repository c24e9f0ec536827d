"""The client connections of this process, seen from outside the event loop that serves them.

bjoern has no time-outs and no limits. What a connection does can be read off its descriptor (``TCP_INFO``): how many
bytes came and went, and when. Of a Unix socket, or on an old kernel, the loop tells of reads and answers. A connection
that takes too long is shut down, whereupon bjoern closes it by itself. ``Watch`` is used from a signal handler, which
runs between the callbacks of the loop or within the application's Python code: no descriptor is closed meanwhile.
"""

import json
import os
from time import monotonic

cimport cython
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memset

from pyserve._counters cimport ROUTE_OTHER, Block, status_index
from pyserve._loop cimport Activity, activity_of, count_bare_errors
from pyserve._metrics cimport Metrics

cdef extern from "dirent.h" nogil:
    ctypedef struct DIR
    struct dirent:
        char* d_name
    DIR* opendir(const char* name)
    dirent* readdir(DIR* directory)
    void rewinddir(DIR* directory)
    int closedir(DIR* directory)
    int dirfd(DIR* directory)

cdef extern from "stdlib.h" nogil:
    int atoi(const char* text)

cdef extern from "sys/stat.h" nogil:
    struct stat_t "stat":
        unsigned int st_mode
        uint64_t st_ino
    int fstat(int fd, stat_t* status)
    bint S_ISSOCK(unsigned int mode)

cdef extern from "sys/socket.h" nogil:
    ctypedef unsigned int socklen_t
    int getsockopt(int fd, int level, int name, void* value, socklen_t* size)
    int shutdown(int fd, int how)
    ssize_t send(int fd, const void* data, size_t size, int flags)
    const int SHUT_RD
    const int SHUT_WR
    const int SHUT_RDWR
    const int MSG_DONTWAIT
    const int MSG_NOSIGNAL

cdef extern from "netinet/in.h" nogil:
    const int IPPROTO_TCP

cdef extern from "linux/tcp.h" nogil:
    const int TCP_INFO
    struct tcp_info:
        uint32_t tcpi_unacked
        uint32_t tcpi_notsent_bytes
        uint32_t tcpi_last_data_sent  # milliseconds ago
        uint32_t tcpi_last_data_recv
        uint64_t tcpi_bytes_acked
        uint64_t tcpi_bytes_received
        uint64_t tcpi_bytes_sent  # again and again, where they had to be
        uint64_t tcpi_bytes_retrans
    # What is told must reach so far, as it does since Linux 4.19.
    const socklen_t TOLD_ENOUGH "offsetof(struct tcp_info, tcpi_dsack_dups)"

cdef extern from "sys/epoll.h" nogil:
    ctypedef union epoll_data_t:
        uint64_t u64
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_ctl(int epoll, int operation, int fd, epoll_event* event)
    const int EPOLL_CTL_MOD
    const int EPOLLIN

cdef enum Phase:
    UNKNOWN
    OURS  # no client's: a listener, a log
    OPAQUE  # of which neither the socket nor the loop tells anything
    RECEIVING  # a request is awaited for the first time, or has begun
    IDLE  # nothing came since the last answer
    CLOSING

cdef struct Connection:
    uint64_t inode
    uint64_t seen  # the number of the scan that found it last
    Phase phase
    double since  # when the phase began
    double writing_since  # since when there is something that the client has not taken, or 0
    uint64_t written  # all bytes written to the client, when writing_since was set
    uint64_t asked  # all bytes received from it then
    uint64_t sent  # bytes or, where the loop tells, answers
    uint64_t received
    uint64_t received_before  # when the phase began

cdef enum Cause:  # the order of _metrics.CLOSED
    REQUEST_TIMEOUT, IDLE_TIMEOUT, ANSWER_TIMEOUT, BODY_TOO_LARGE, CONNECTION_LIMIT, DRAINED

# The bytes of "HTTP/1.1 100 Continue" and its empty line; every answer has more.
cdef enum:
    CONTINUE = 25
# Room for a request's header and for what may arrive between two looks.
cdef enum:
    HEADER_ALLOWANCE = 1024 * 1024
# How long a connection must have been idle before it is closed to drain: time for a client to send what it had begun.
cdef double QUIET = 1.0
# How long an incomplete request is left alone at the connection limit.
cdef double PATIENCE = 1.0
cdef double LINGER = 2.0


@cython.final
cdef class Watch:
    cdef public double request_timeout
    cdef public double keep_alive
    cdef public Py_ssize_t max_connections
    cdef public uint64_t max_received
    cdef readonly Py_ssize_t open
    cdef readonly bint paused
    cdef Block* _block
    cdef object _metrics
    cdef object _make_id
    cdef DIR* _directory
    cdef Connection* _connections
    cdef int _size
    cdef uint64_t _scans
    cdef double _draining_since
    cdef int _epoll
    cdef int _listener
    cdef uint64_t _listener_data
    cdef bint _left_listener

    def __cinit__(self):
        self._epoll = -1

    def __init__(self, Metrics metrics not None, int slot, int listener, make_id, *, double request_timeout,
                 double keep_alive, Py_ssize_t max_connections, uint64_t max_body):
        self.request_timeout = request_timeout
        self.keep_alive = keep_alive
        self.max_connections = max_connections
        self.max_received = max_body + HEADER_ALLOWANCE
        self._block = metrics.block(slot)
        self._metrics = metrics
        self._make_id = make_id
        self._listener = listener
        self._directory = opendir("/proc/self/fd")
        if self._directory == NULL:
            raise OSError("cannot read /proc/self/fd")
        # What is open before the loop starts is no client's.
        self._scan(monotonic(), False, True)

    def __dealloc__(self):
        if self._directory != NULL:
            closedir(self._directory)
        free(self._connections)

    def look(self, bint draining=False) -> int:
        """Look at all connections and end those that take too long. Return how many are open."""
        cdef double now = monotonic()
        if draining and self._draining_since == 0:
            self._draining_since = now
        self._scan(now, draining, False)
        if self.open >= self.max_connections:
            self._relieve(now)
        elif self.paused and not draining:
            self._listen(True)
        self._block.open_connections = <uint64_t>self.open
        count_bare_errors(self._block)
        return self.open

    def stop_accepting(self) -> None:
        """Leave new connections in the listener's queue, for other workers."""
        self._listen(False)
        self._left_listener = True

    cdef Connection* _connection(self, int fd) except NULL:
        cdef Connection* grown
        cdef int size
        if fd >= self._size:
            size = max(2 * self._size, fd + 64)
            grown = <Connection*>realloc(self._connections, <size_t>size * sizeof(Connection))
            if grown == NULL:
                raise MemoryError
            memset(grown + self._size, 0, <size_t>(size - self._size) * sizeof(Connection))
            self._connections = grown
            self._size = size
        return &self._connections[fd]

    cdef int _scan(self, double now, bint draining, bint ours) except -1:
        cdef dirent* entry
        cdef stat_t status
        cdef Connection* connection
        cdef int fd
        cdef Py_ssize_t count = 0
        rewinddir(self._directory)
        self._scans += 1
        while True:
            entry = readdir(self._directory)
            if entry == NULL:
                break
            if entry.d_name[0] == c'.':
                continue
            fd = atoi(entry.d_name)
            if fstat(fd, &status) != 0 or not S_ISSOCK(status.st_mode):
                continue
            connection = self._connection(fd)
            if connection.inode != status.st_ino:
                memset(connection, 0, sizeof(Connection))
                connection.inode = status.st_ino
            connection.seen = self._scans
            if ours:
                connection.phase = OURS
            if connection.phase != OURS:
                count += 1
                self._judge(fd, connection, now, draining)
        self.open = count
        return 0

    cdef int _judge(self, int fd, Connection* connection, double now, bint draining) except -1:
        """Bring what is known of a connection up to date, and end it where it has run out of time."""
        if connection.phase == CLOSING:
            if now - connection.since > LINGER:
                shutdown(fd, SHUT_RDWR)
            return 0
        if not self._observe_tcp(fd, connection, now) and not self._observe_loop(fd, connection, now):
            if connection.phase == UNKNOWN:
                connection.phase = OPAQUE
                connection.since = now
            if draining and now - self._draining_since > QUIET:
                # Its client has had time to ask, and to read that the connection is closed after the answer. bjoern
                # still answers what the socket holds, and closes it then.
                self._end(fd, connection, SHUT_RD, DRAINED, now)
            return 0

        if connection.writing_since and now - connection.writing_since > self.request_timeout:
            self._end(fd, connection, SHUT_RDWR, ANSWER_TIMEOUT, now)
        elif connection.phase == RECEIVING and now - connection.since > self.request_timeout:
            if connection.received > connection.received_before and not connection.writing_since:
                self._answer(fd, b"408 Request Timeout",
                             f"the request must be complete within {self.request_timeout:g} seconds")
                self._block.requests[<int>ROUTE_OTHER][status_index(408)] += 1
            self._end(fd, connection, SHUT_RDWR, REQUEST_TIMEOUT, now)
        elif (connection.phase == RECEIVING and connection.received - connection.received_before > self.max_received
                and not connection.writing_since):
            self._answer(fd, b"413 Content Too Large", "the body has too many bytes")
            self._block.requests[<int>ROUTE_OTHER][status_index(413)] += 1
            # What the client still sends is received for a while, so that it gets to read the answer.
            self._end(fd, connection, SHUT_WR, BODY_TOO_LARGE, now)
        elif connection.phase == IDLE and not connection.writing_since:
            if draining and now - connection.since > QUIET:
                self._end(fd, connection, SHUT_RD, DRAINED, now)
            elif now - connection.since > self.keep_alive:
                self._end(fd, connection, SHUT_RD, IDLE_TIMEOUT, now)
        elif draining and connection.received == 0 and now - connection.since > QUIET:
            self._end(fd, connection, SHUT_RD, DRAINED, now)
        return 0

    cdef bint _observe_tcp(self, int fd, Connection* connection, double now) noexcept:
        """Read off what a connection has done. Return whether its socket tells."""
        cdef tcp_info info
        cdef uint64_t grown
        cdef socklen_t size = sizeof(tcp_info)
        if getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size) != 0 or size < TOLD_ENOUGH:
            return False
        if connection.phase == UNKNOWN:
            connection.phase = RECEIVING
            connection.since = now
        grown = info.tcpi_bytes_sent - info.tcpi_bytes_retrans - connection.sent
        connection.sent += grown
        if 0 < grown <= CONTINUE and info.tcpi_bytes_received > connection.received_before:
            # Not an answer: a request has come in part, and the rest was asked for.
            connection.received = info.tcpi_bytes_received
            if connection.phase != RECEIVING:
                connection.phase = RECEIVING
                connection.since = now
        elif grown:
            connection.received_before = connection.received = info.tcpi_bytes_received
            connection.phase = RECEIVING if info.tcpi_last_data_recv < info.tcpi_last_data_sent else IDLE
            connection.since = now - 1e-3 * min(info.tcpi_last_data_recv, info.tcpi_last_data_sent)
        elif info.tcpi_bytes_received != connection.received:
            connection.received = info.tcpi_bytes_received
            if connection.phase == IDLE:
                connection.phase = RECEIVING
                connection.since = now
        if info.tcpi_unacked == 0 and info.tcpi_notsent_bytes == 0:
            connection.writing_since = 0
        elif connection.writing_since == 0 or (
            # A client that goes on asking takes an answer with its next request: there is always one on its way. What
            # it asks for now was not there when the time began, and what was there it has taken.
            info.tcpi_bytes_acked >= connection.written and info.tcpi_bytes_received > connection.asked
        ):
            connection.writing_since = now
            connection.written = info.tcpi_bytes_sent - info.tcpi_bytes_retrans + info.tcpi_notsent_bytes
            connection.asked = info.tcpi_bytes_received
        return True

    cdef bint _observe_loop(self, int fd, Connection* connection, double now) noexcept:
        """Ask the event loop what a connection has done, in reads and answers. Return whether it tells."""
        cdef Activity activity = activity_of(fd)
        if not activity.known:
            return False
        if activity.writing:
            connection.phase = RECEIVING
            connection.since = now
        elif connection.phase == UNKNOWN or activity.answers != connection.sent:
            connection.phase = IDLE if activity.answers and not activity.reads else RECEIVING
            connection.since = now
        elif connection.phase == IDLE and activity.reads:
            connection.phase = RECEIVING
            connection.since = now
        connection.sent = activity.answers
        connection.received = 1 if activity.reads else 0  # of the bytes nothing is known
        if not activity.writing:
            connection.writing_since = 0
        elif connection.writing_since == 0:
            connection.writing_since = now
        return True

    cdef int _end(self, int fd, Connection* connection, int how, Cause cause, double now) except -1:
        shutdown(fd, how)
        connection.phase = CLOSING
        connection.since = now
        self._block.closed[<int>cause] += 1
        return 0

    cdef int _answer(self, int fd, bytes status, str message) except -1:
        """Answer in place of bjoern, which has written nothing for this request."""
        cdef bytes body = json.dumps({"Error": message}).encode()
        cdef bytes answer = (
            b"HTTP/1.1 %b\r\ncontent-length: %d\r\ncontent-type: application/json\r\nx-request-id: %b\r\n"
            b"Connection: close\r\n\r\n%b"
        ) % (status, len(body), self._make_id().encode(), body)
        send(fd, <const char*>answer, len(answer), MSG_DONTWAIT | MSG_NOSIGNAL)
        return 0

    cdef int _relieve(self, double now) except -1:
        """Make room at the connection limit: end those idle longest, then the requests incomplete for longest.

        Then of connections that tell nothing the oldest, and at last the answers that were not taken for longest.
        """
        cdef int fd
        cdef Connection* connection
        cdef list candidates = []
        cdef Py_ssize_t surplus = self.open - self.max_connections * 3 // 4
        if not self._left_listener:
            self._listen(False)
        for fd in range(self._size):
            connection = &self._connections[fd]
            if connection.seen != self._scans:
                continue
            if connection.writing_since:
                if now - connection.writing_since > PATIENCE:
                    candidates.append((3, connection.writing_since, fd))
            elif connection.phase == IDLE:
                candidates.append((0, connection.since, fd))
            elif connection.phase == RECEIVING and now - connection.since > PATIENCE:
                candidates.append((1, connection.since, fd))
            elif connection.phase == OPAQUE and now - connection.since > PATIENCE:
                candidates.append((2, connection.since, fd))
        candidates.sort()
        for _, _, fd in candidates[:surplus]:
            connection = &self._connections[fd]
            # What a connection holds is still answered, unless it is known for an incomplete request.
            at_once = connection.phase == RECEIVING or connection.writing_since
            self._end(fd, connection, SHUT_RDWR if at_once else SHUT_RD, CONNECTION_LIMIT, now)
        return 0

    cdef int _listen(self, bint on) except -1:
        """Switch the listener's events on or off, in the epoll set that libev keeps."""
        cdef epoll_event event
        if self._epoll < 0:
            self._find_epoll()
        event.data.u64 = self._listener_data
        event.events = EPOLLIN if on else 0
        if epoll_ctl(self._epoll, EPOLL_CTL_MOD, self._listener, &event) != 0:
            raise OSError("the event loop does not watch the listener")
        self.paused = not on
        return 0

    def find_loop(self) -> None:
        """Find the event loop's descriptor while there still are free ones."""
        self._find_epoll()

    cdef int _find_epoll(self) except -1:
        for name in os.listdir("/proc/self/fdinfo"):
            try:
                with open(f"/proc/self/fdinfo/{name}") as file:
                    lines = file.read().splitlines()
            except OSError:
                continue
            for line in lines:
                words = line.replace(":", " ").split()
                # tfd: 5 events: 19 data: 100000005 pos:0 ...
                if len(words) >= 6 and words[0] == "tfd" and int(words[1]) == self._listener:
                    self._epoll = int(name)
                    self._listener_data = int(words[5], 16)
                    return 0
        raise OSError("the event loop has no epoll set that watches the listener")
