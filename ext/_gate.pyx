"""What every request passes under bjoern, on its way to the application and back.

bjoern calls an application with whatever its parser holds. Of requests that arrive together it passes only the last,
and where the next one has begun, a half of that; lengths that contradict each other it lets through. The gate answers
such a request with 400 and closes the connection: what the connection holds after it cannot be told apart any more.

How a lost request is noticed: bjoern makes one ``str`` of a connection's address and puts it into the environ of each
of its requests. At a call, the connection and the environ own it, and nobody else; a third owner is an environ that was
never passed on. An environ without the address is one that is not complete.

How a connection is closed: bjoern closes it where the iteration of a response fails, after what it has already taken.
Only after an ``Expect`` it reads on, in a state in which it may crash: so such a connection is cut off at its
descriptor, too.
"""

import gc
import logging
import os
import sys

from pyserve import _metrics

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.dict cimport PyDict_GetItem
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF
from libc.stdint cimport uint64_t
from libc.stdlib cimport calloc, free

from pyserve._body cimport Body
from pyserve._counters cimport (
    HEADER, LABEL_COUNT, LENGTH, MEMORY, NO_LIMITS, NO_PATH, PIPELINED, ROUTE_INFER, ROUTE_OTHER, STATE_DRAINING,
    STATE_READY, TRANSFER_ENCODING, Block, Recorder, Route, now_ticks, observe, status_index,
)
from pyserve._inference cimport Classifier
from pyserve._loop cimport announce_answer
from pyserve._metrics cimport Metrics
from pyserve._resource cimport Entry

cdef extern from "Python.h":
    Py_ssize_t Py_REFCNT(PyObject* value) nogil
    PyObject* PyErr_Occurred()
    void PyErr_Clear()

    int PyDict_Next(PyObject* mapping, Py_ssize_t* position, PyObject** key, PyObject** value)
    Py_ssize_t PyUnicode_GET_LENGTH(PyObject* text)
    Py_UCS4 PyUnicode_READ_CHAR(PyObject* text, Py_ssize_t index)

cdef extern from "sys/socket.h" nogil:
    int shutdown(int fd, int how)
    ssize_t send(int fd, const void* data, size_t size, int flags)
    const int SHUT_RD
    const int MSG_DONTWAIT
    const int MSG_NOSIGNAL

cdef extern from "bjoern_request.h":
    int client_descriptor(PyObject* start_response, const PyObject* address)
    bint has_taken_all(int descriptor) nogil
    void cut_off(int descriptor) nogil

logger = logging.getLogger("pyserve")
access_logger = logging.getLogger("pyserve.access")

cdef tuple CLOSE = ("connection", "close")
cdef str REQUEST_ID = "x-request-id"
cdef str STATUS_OK = "200 OK"
cdef dict ROUTE_NUMBERS = {name: number for number, name in enumerate(_metrics.ROUTES[:-1])}
cdef frozenset ID_CHARACTERS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.")
cdef enum:
    ID_LENGTH = 128
# Environs that may be alive beyond one for each connection before the lost ones are looked for.
cdef enum:
    SLACK = 16


class ConnectionDone(Exception):
    """Raised into bjoern to have a connection closed after its answer; not an error."""


@cython.final
cdef class Closing:
    """A response of one chunk, after which bjoern closes the connection."""

    cdef bytes _chunk
    cdef int _descriptor  # of a connection that must not be read from any more, or -1

    def __cinit__(self, bytes chunk not None, int descriptor=-1):
        self._chunk = chunk
        self._descriptor = descriptor

    def __iter__(self):
        return self

    def __next__(self):
        cdef bytes chunk = self._chunk
        if chunk is None:
            if self._descriptor >= 0:
                cut_off(self._descriptor)
            raise ConnectionDone
        self._chunk = None
        return chunk


@cython.final
cdef class StartResponse:
    """The ``start_response`` of an application behind the gate; notes the status and adds headers."""

    cdef object _start_response
    cdef list _headers  # to add
    cdef list _sent
    cdef str _request_id
    cdef bint _always_identify
    cdef readonly int status
    cdef readonly bint started
    cdef str _status_line

    cdef void write_head(self, int descriptor) except *:
        """Write the answer's head in place of bjoern, as that of the connection's last answer."""
        cdef bytes head = "".join([
            f"HTTP/1.1 {self._status_line}\r\n",
            *(f"{name}: {value}\r\n" for name, value in self._sent),
            "\r\n",
        ]).encode("latin-1")
        send(descriptor, PyBytes_AS_STRING(head), <size_t>PyBytes_GET_SIZE(head), MSG_DONTWAIT | MSG_NOSIGNAL)

    def __call__(self, str status not None, headers, exc_info=None):
        headers = list(headers)
        self.status = int(status[:3])
        if self._request_id is not None and (self._always_identify or self.status >= 400):
            headers.append((REQUEST_ID, self._request_id))
        headers.extend(self._headers)
        self.started = True
        self._status_line = status
        self._sent = headers
        if exc_info is None:
            return self._start_response(status, headers)
        return self._start_response(status, headers, exc_info)


cdef inline PyObject* lookup(dict environ, str key):
    """Return a borrowed reference to the value of a key, or NULL."""
    return PyDict_GetItem(environ, key)


cdef inline object value_of(dict environ, str key):
    """Return the value of a key, or None."""
    cdef PyObject* value = PyDict_GetItem(environ, key)
    return None if value == NULL else <object>value


cdef bint has_loose_name(dict environ) noexcept:
    """Tell whether there was a space between a header's name and its colon, which hides the header (RFC 9112, 5.1)."""
    cdef Py_ssize_t position = 0
    cdef PyObject* key
    while PyDict_Next(<PyObject*>environ, &position, &key, NULL):
        # SAFETY: the keys of bjoern's environ are str, and none is empty.
        if PyUnicode_READ_CHAR(key, PyUnicode_GET_LENGTH(key) - 1) == c' ':
            return True
    return False


@cython.final
@cython.no_gc_clear  # __dealloc__ needs the classifier
cdef class Gate:
    cdef readonly object application
    cdef readonly bint draining
    cdef bint _limited  # whether every body must be one of ours
    cdef Entry _entry
    cdef Classifier _classifier  # where this gate watches its predictions
    cdef Metrics _metrics
    cdef Block* _block
    cdef Recorder* _recorder
    cdef str _id_prefix
    cdef uint64_t _ids
    cdef uint64_t _log_every
    cdef uint64_t _log_next

    def __cinit__(self):
        self._recorder = NULL

    def __init__(self, application, Metrics metrics not None, int slot, *, label_numbers=(), uint64_t log_every=0,
                 bint limited=False):
        self.application = application
        self._limited = limited
        self._metrics = metrics
        self._block = metrics.block(slot)
        self._id_prefix = os.urandom(8).hex()
        self._log_every = log_every
        self._log_next = log_every
        if isinstance(application, Entry):
            self._entry = application
            self._watch_predictions(label_numbers)

    def __dealloc__(self):
        if self._recorder != NULL:
            if self._classifier is not None and self._classifier.recorder == self._recorder:
                self._classifier.recorder = NULL
            free(self._recorder)

    cdef void _watch_predictions(self, label_numbers) except *:
        cdef int i
        self._recorder = <Recorder*>calloc(1, sizeof(Recorder))
        if self._recorder == NULL:
            raise MemoryError
        self._recorder.clock = &self._metrics.clock
        self._recorder.tally = &self._block.tally
        for i, number in enumerate(label_numbers[:LABEL_COUNT]):
            if not 0 <= number <= LABEL_COUNT:
                raise ValueError("a label's number is out of range")
            self._recorder.numbers[i] = number
        if len(label_numbers) < min(len(self._entry.classifier.labels), LABEL_COUNT):
            raise ValueError("every label needs a number")
        self._classifier = self._entry.classifier
        self._classifier.recorder = self._recorder

    def begin(self, bint serves=True) -> None:
        """Tell that this process runs, and whether it takes the requests that the service is for."""
        self._block.pid = os.getpid()
        if serves:
            self._block.state = STATE_READY

    def drain(self) -> None:
        """Close each connection after its next answer."""
        self.draining = True
        self._block.state = STATE_DRAINING

    def ask_to_leave(self, uint64_t reason) -> None:
        self._block.leaving = reason

    def tell_resident(self, uint64_t size) -> None:
        self._block.resident_bytes = size

    def make_id(self) -> str:
        """Make a request id."""
        self._ids += 1
        return f"{self._id_prefix}-{self._ids:x}"

    def __call__(self, environ, start_response):
        return self.handle(environ, start_response)

    def handle(self, dict environ not None, start_response):
        """Answer a request; the same as calling the object, without the cost of its ``tp_call``."""
        cdef uint64_t start = now_ticks(&self._metrics.clock)
        cdef PyObject* address = lookup(environ, "REMOTE_ADDR")
        cdef Block* block = self._block
        cdef bytes reply
        cdef PyObject* stream
        cdef list headers
        if PyErr_Occurred() != NULL:
            PyErr_Clear()  # bjoern leaves one behind after requests that it could not parse
        # The connection's own reference and the environ's.
        if address == NULL or Py_REFCNT(address) > 2:
            return self._refuse_pipelined(environ, start_response, address)
        if has_loose_name(environ):
            return self._refuse(
                start_response, "400 Bad Request", "there must be no space before the colon of a header", HEADER,
                ROUTE_OTHER, self.make_id(),
            )
        if (
            self._entry is None
            or lookup(environ, "HTTP_TRANSFER_ENCODING") != NULL
            or lookup(environ, "HTTP_EXPECT") != NULL
            or lookup(environ, "HTTP_UPGRADE") != NULL
        ):
            return self._pass_on(environ, start_response, start)
        reply = self._entry.answer(environ)
        if reply is None:
            return self._pass_on(environ, start_response, start)
        headers = self._entry.headers(reply)
        if lookup(environ, "HTTP_X_REQUEST_ID") != NULL:
            request_id = self._taken_over(environ)
            if request_id is not None:
                headers.append((REQUEST_ID, request_id))
        if self.draining:
            headers.append(CLOSE)
        stream = lookup(environ, "wsgi.input")
        if type(<object>stream) is Body:
            block.bytes_in += <uint64_t>(<Body>stream).received
        elif self._limited:
            return self._refuse_unlimited(start_response, ROUTE_INFER)
        start_response(STATUS_OK, headers)
        block.requests[<int>ROUTE_INFER][0] += 1
        block.bytes_out += <uint64_t>PyBytes_GET_SIZE(reply)
        start = now_ticks(&self._metrics.clock) - start
        observe(&block.latency, &self._metrics.clock, start)
        if self._log_every:
            self._log_next -= 1
            if self._log_next == 0:
                self._log_access(environ, 200, ROUTE_INFER, PyBytes_GET_SIZE(reply), start, None)
        if self.draining:
            return Closing(reply)
        announce_answer()
        return [reply]

    cdef str _taken_over(self, dict environ):
        """Return the request's own id, or None where it has none that can be taken over."""
        value = value_of(environ, "HTTP_X_REQUEST_ID")
        if type(value) is str and 0 < len(value) <= ID_LENGTH and ID_CHARACTERS.issuperset(value):
            return value
        return None

    cdef object _pass_on(self, dict environ, start_response, uint64_t start):
        """Let the application behind the hot route answer, where the request may be answered at all."""
        cdef Route route = ROUTE_NUMBERS.get(value_of(environ, "PATH_INFO"), ROUTE_OTHER)
        cdef StartResponse begin
        cdef bytes reply = b""
        cdef bint close = self.draining
        cdef bint tainted = False
        cdef int descriptor = -1
        cdef Py_ssize_t size = 0
        cdef Body body = None
        cdef str taken = self._taken_over(environ)
        cdef str request_id = taken or self.make_id()
        stream = value_of(environ, "wsgi.input")
        if lookup(environ, "PATH_INFO") == NULL:
            return self._refuse(start_response, "400 Bad Request", "a request needs a path", NO_PATH, route, request_id)
        if type(stream) is Body:
            body = stream
            self._block.bytes_in += <uint64_t>body.received
            refusal = self._contradiction(environ, body)
            if refusal is not None:
                return self._refuse(start_response, refusal[0], refusal[1], refusal[2], route, request_id)
            # Of "100 Continue" bjoern makes a state that outlives an answer to a request without a body, and of an
            # upgrade or CONNECT one that outlives the request.
            if lookup(environ, "HTTP_UPGRADE") != NULL or value_of(environ, "REQUEST_METHOD") == "CONNECT" or (
                lookup(environ, "HTTP_EXPECT") != NULL
                and (body.received == 0 or lookup(environ, "HTTP_TRANSFER_ENCODING") != NULL)
            ):
                close = tainted = True
                descriptor = client_descriptor(<PyObject*>start_response, lookup(environ, "REMOTE_ADDR"))
            # An environ that is kept must not look like a lost request.
            environ["REMOTE_ADDR"] = (value_of(environ, "REMOTE_ADDR") + " ")[:-1]
        elif self._limited:
            return self._refuse_unlimited(start_response, route)
        environ["pyserve.request_id"] = request_id
        begin = StartResponse.__new__(StartResponse)
        begin._start_response = start_response
        begin._request_id = request_id
        begin._always_identify = taken is not None
        begin._headers = [CLOSE] if close else []
        try:
            response = (self._entry.falcon_app if self._entry is not None else self.application)(environ, begin)
            if type(response) is not list:
                # bjoern takes a list of one chunk as it is; what is not, becomes one.
                parts = list(response)
                if hasattr(response, "close"):
                    response.close()
                response = parts
            reply = response[0] if len(response) == 1 else b"".join(response)
        except Exception as error:
            if begin.started:
                raise
            logger.error("a request failed: %s", type(error).__name__, extra={"request_id": request_id})
            reply = b'{"Error":"An internal server error has occurred"}'
            begin("500 Internal Server Error", [("content-length", str(len(reply))),
                                                ("content-type", "application/json")])
        size = PyBytes_GET_SIZE(reply)
        self._block.requests[<int>route][status_index(begin.status)] += 1
        self._block.bytes_out += <uint64_t>size
        start = now_ticks(&self._metrics.clock) - start
        if route == ROUTE_INFER:
            observe(&self._block.latency, &self._metrics.clock, start)
        if self._log_every:
            self._log_next -= 1
            if self._log_next == 0:
                self._log_access(environ, begin.status, route, size, start, request_id)
        if tainted and descriptor >= 0 and (size == 0 or not has_taken_all(descriptor)):
            if size == 0 and has_taken_all(descriptor):
                begin.write_head(descriptor)  # bjoern would write it too late
            cut_off(descriptor)
        if close and size:
            return Closing(reply, descriptor)
        if close and not tainted:
            # An iteration without a chunk would be a failure to bjoern: it finds the connection ended after the answer.
            descriptor = client_descriptor(<PyObject*>start_response, NULL)
            if descriptor >= 0:
                shutdown(descriptor, SHUT_RD)
        if not close:
            announce_answer()
        return [reply]

    cdef tuple _contradiction(self, dict environ, Body body):
        """Return a status, a message and a cause where the request's framing is no good, else None."""
        cdef str coding = value_of(environ, "HTTP_TRANSFER_ENCODING")
        cdef str length = value_of(environ, "CONTENT_LENGTH")
        if coding is not None:
            if length is not None:
                return ("400 Bad Request", "Content-Length and Transfer-Encoding must not be given together",
                        TRANSFER_ENCODING)
            if coding.strip().lower() != "chunked":
                return ("400 Bad Request", "the only Transfer-Encoding allowed is chunked, given once",
                        TRANSFER_ENCODING)
        elif length is None:
            if body.received:
                return "400 Bad Request", "a body needs a Content-Length", LENGTH
        elif lookup(environ, "HTTP_UPGRADE") != NULL and not body.received and length.strip(" \t0"):
            # bjoern's parser takes what follows the header for another protocol's.
            return "400 Bad Request", "a request with a body must not ask for an upgrade", LENGTH
        else:
            length = length.rstrip(" \t")
            if not (length.isascii() and length.isdigit() and len(length) < 20 and int(length) == body.received):
                return "400 Bad Request", "Content-Length must be given once, as the size of the body", LENGTH
        if body.over_budget:
            return "503 Service Unavailable", "too many bodies are in memory, please try again later", MEMORY
        return None

    cdef object _refuse_pipelined(self, dict environ, start_response, PyObject* address):
        if address != NULL:
            collect_lost(<object>address, environ)
        else:
            # What was completed last is the request before the one that has begun.
            before = address_of(Body.last_completed())
            if before is not None:
                collect_lost(before, environ)
        return self._refuse(
            start_response, "400 Bad Request",
            "pipelining is not supported: send the next request after the answer to this one", PIPELINED,
            ROUTE_OTHER, self.make_id(),
        )

    cdef object _refuse_unlimited(self, start_response, Route route):
        """Refuse a request whose body has no limit, and have this process replaced by one that has limits."""
        logger.error("a worker has no limit on bodies and is replaced")
        self.ask_to_leave(_metrics.LEAVING.index("no_limits"))
        return self._refuse(start_response, "500 Internal Server Error", "An internal server error has occurred",
                            NO_LIMITS, route, self.make_id())

    cdef object _refuse(self, start_response, str status, str message, int cause, Route route, str request_id):
        """Answer with an error and have the connection closed."""
        cdef bytes reply = b'{"Error":"%b"}' % message.encode()
        cdef int descriptor = client_descriptor(<PyObject*>start_response, NULL)
        if descriptor >= 0 and not has_taken_all(descriptor):
            # The answer might wait, and bjoern read on meanwhile.
            cut_off(descriptor)
        try:
            start_response(status, [
                ("content-length", str(PyBytes_GET_SIZE(reply))),
                ("content-type", "application/json"),
                (REQUEST_ID, request_id),
                CLOSE,
            ])
        except TypeError:
            # bjoern has not finished the answer before this request; it writes a 500 of its own, to nobody.
            if descriptor >= 0:
                cut_off(descriptor)
            raise ConnectionDone from None
        self._block.refused[cause] += 1
        self._block.requests[<int>route][status_index(int(status[:3]))] += 1
        self._block.bytes_out += <uint64_t>PyBytes_GET_SIZE(reply)
        return Closing(reply, descriptor)

    cdef void _log_access(self, dict environ, int status, Route route, Py_ssize_t size, uint64_t ticks,
                          str request_id) except *:
        cdef double milliseconds = ticks * self._metrics.clock.nanoseconds_per_tick / 1e6
        self._log_next = self._log_every
        fields = {
            "remote": value_of(environ, "REMOTE_ADDR"),
            "method": value_of(environ, "REQUEST_METHOD"),
            "route": _metrics.ROUTES[<int>route],  # the path is the client's text
            "status": status,
            "bytes": size,
            "milliseconds": round(milliseconds, 3),
        }
        request_id = request_id or self._taken_over(environ)
        if request_id:
            fields["request_id"] = request_id
        access_logger.info("access", extra=fields)

    def sweep(self) -> int:
        """Free the environs that bjoern has lost on connections that are closed. Return how many there were."""
        if Body.count_living() <= <Py_ssize_t>self._block.open_connections + SLACK:
            return 0
        return sweep_lost()


cdef list young_dicts():
    """Return the dicts made lately, those of the requests of this moment among them."""
    return [item for item in gc.get_objects(generation=0) if type(item) is dict]


cdef object address_of(Body body):
    """Return the address in the environ that a body belongs to, or None where there is none."""
    if body is not None:
        for environ in young_dicts():
            if environ.get("wsgi.input") is body:
                return environ.get("REMOTE_ADDR")
    return None


cdef int release(list owners) except -1:
    """Drop the reference of its own that bjoern left to each of the environs."""
    cdef int released = 0
    cdef Py_ssize_t i
    for i in range(len(owners)):
        # SAFETY: the list's reference and the lost one; with any other number the environ is not lost, and one that an
        # application got, which may keep it, is none of these.
        if sys.getrefcount(owners[i]) == 3:
            Py_DECREF(owners[i])
            released += 1
    return released


cdef int collect_lost(object address, dict environ) except -1:
    """Free the environs of a connection's lost requests, given the address that they share."""
    cdef list lost = [
        item for item in young_dicts()
        if item is not environ and item.get("REMOTE_ADDR") is address and "pyserve.request_id" not in item
    ]
    return release(lost)


def sweep_lost() -> int:
    cdef dict environs = {}
    cdef int released = 0
    for item in gc.get_objects():
        if (
            type(item) is dict and type(item.get("wsgi.input")) is Body and "REMOTE_ADDR" in item
            and "pyserve.request_id" not in item
        ):
            environs.setdefault(id(item["REMOTE_ADDR"]), []).append(item)
    item = None
    for owners in environs.values():
        # While the connection lives, it owns the address as well. getrefcount() adds one of its own.
        if sys.getrefcount(owners[0]["REMOTE_ADDR"]) == len(owners) + 1:
            released += release(owners)
    return released
