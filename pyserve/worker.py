"""A bjoern event loop as a gunicorn worker; the only importer of bjoern.

bjoern does the work, and what it lacks is added from outside: bodies with a limit (``_body``), a gate in front of the
application (``_gate``), answers written without a turn of the loop (``_loop``) and limits on its connections
(``_connections``), which are looked after on a timer signal; its handler runs between the callbacks of the loop or
within the application's Python code.
"""

import logging
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import FrameType, TracebackType

import _bjoern
from gunicorn.workers.base import Worker

from pyserve import _body
from pyserve._connections import Watch
from pyserve._gate import ConnectionDone, Gate, sweep_lost
from pyserve._loop import take_over
from pyserve._metrics import LEAVING, Metrics

logger = logging.getLogger("pyserve")

TICK = 0.25  # seconds between two looks at the connections
DRAIN_TICK = 0.1  # the same while draining; bjoern handles signals ten times a second
SETTLING = 0.15  # seconds in which a handshake ends that has begun
MOST_START = 10.0  # seconds for the loop to start
HOUSEKEEPING = 2.0  # seconds between two looks at the memory
PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")
# Descriptors that are no connections: listeners, logs, the event loop and what a library may open.
RESERVED_DESCRIPTORS = 32


@dataclass(frozen=True)
class Limits:
    """What a worker allows its clients, and itself.

    Attributes:
        max_body: bytes in a request's body.
        max_bodies: bytes in all bodies that a worker holds at a time.
        request_timeout: seconds for a request to be complete, and for an answer to be taken.
        keep_alive: seconds for which a connection may be idle.
        max_connections: connections of a worker.
        max_growth: bytes by which a worker's memory may grow before it is replaced; 0 for no limit.
        graceful_timeout: seconds for a worker to answer what has been asked before it ends.
        log_every: of how many requests one is logged; 0 logs none.
    """

    max_body: int
    max_bodies: int
    request_timeout: float
    keep_alive: float
    max_connections: int
    max_growth: int
    graceful_timeout: float
    log_every: int


@dataclass(frozen=True)
class Service:
    """What a worker serves.

    Attributes:
        application: the WSGI application.
        label_numbers: the numbers under which predictions are counted.
        model: the model's file name, checksum and labels, or None where there is no model.
        loaded_at: when the model was loaded, in seconds since the epoch.
    """

    application: Callable[..., Iterable[bytes]]
    label_numbers: tuple[int, ...] = ()
    model: tuple[str, str, tuple[str, ...]] | None = None
    loaded_at: int = 0


class BjoernWorker(Worker):  # type: ignore[misc]
    """A process that runs one bjoern loop.

    The arbiter sets ``metrics``, ``slot``, ``limits`` and ``listener`` before it forks.
    """

    metrics: Metrics
    slot: int
    limits: Limits
    listener: socket.socket
    is_admin = False

    def init_signals(self) -> None:
        """Set the handlers; they run on bjoern's tick and must not raise."""
        for number in self.SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)  # nobody reads gunicorn's pipe
        for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH):
            signal.signal(number, signal.SIG_IGN)
        self.stopping_since = 0.0
        signal.signal(signal.SIGTERM, self.handle_terminate)
        signal.signal(signal.SIGQUIT, self.handle_quit)
        signal.signal(signal.SIGALRM, self.handle_alarm)
        # A terminal sends SIGINT to all processes, and bjoern would end its loop: when to end is the arbiter's to say.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGQUIT})

    def run(self) -> None:
        """Serve until the worker is told to end and has answered what it was asked."""
        service: Service = self.wsgi
        limits = self.limits
        for other in self.sockets:
            if other is not self.listener:
                other.close()  # it must not outlive those who accept from it
        sys.excepthook = report
        self.gate = Gate(
            service.application,
            self.metrics,
            self.slot,
            label_numbers=service.label_numbers,
            limited=True,
            log_every=0 if self.is_admin else limits.log_every,
        )
        _body.set_limits(limits.max_body, limits.max_bodies)
        _body.set_reclaimer(sweep_lost)
        self.watch = Watch(
            self.metrics,
            self.slot,
            self.listener.fileno(),
            self.gate.make_id,
            request_timeout=limits.request_timeout,
            keep_alive=limits.keep_alive,
            max_connections=limits.max_connections,
            max_body=limits.max_body,
        )
        self.memory = os.open("/proc/self/statm", os.O_RDONLY | os.O_CLOEXEC)
        self.private_at_start = 0
        self.next_housekeeping = 0.0
        self.loop_found = False
        self.started = time.monotonic()
        self.closed_listener = False
        self.settling_since = 0.0

        os.environ["LIBEV_FLAGS"] = "4"  # epoll, which Watch knows how to pause
        self.io = sys.modules["io"]
        sys.modules["io"] = _body.IO()  # type: ignore[assignment]
        signal.setitimer(signal.ITIMER_REAL, 0.01, TICK)
        self.notify()
        if not take_over(_bjoern.server_run, _bjoern.version):
            logger.warning(
                "this build of bjoern is not known: answers wait for a turn of its loop, and Unix sockets have no "
                "time-outs; bjoern 3.2.2, linked to libev 4, has neither fault"
            )
        _bjoern.server_run(self.listener, self.gate.handle)  # until go_on_draining() ends the process

    def handle_terminate(self, number: int, frame: FrameType | None) -> None:
        """Begin to drain."""
        if not self.stopping_since:
            self.stopping_since = time.monotonic()
            if self.booted:
                signal.setitimer(signal.ITIMER_REAL, 0.001, DRAIN_TICK)

    def handle_quit(self, number: int, frame: FrameType | None) -> None:
        """End at once."""
        os._exit(0)

    def handle_alarm(self, number: int, frame: FrameType | None) -> None:
        """Look after the connections, the memory and the orders."""
        try:
            self.tick()
        except Exception as error:
            logger.error("a worker's housekeeping failed: %s: %s", type(error).__name__, error)

    def tick(self) -> None:
        """Do what is due."""
        now = time.monotonic()
        self.notify()
        if not self.loop_found:
            try:
                self.watch.find_loop()
            except OSError:
                if now - self.started < MOST_START:
                    return  # on a busy machine the timer may be faster than the loop
                raise
            # The loop runs: it has its bodies' class and watches the listener.
            sys.modules["io"] = self.io
            self.loop_found = True
            self.gate.begin(serves=not self.is_admin)
        if os.getppid() != self.ppid and not self.stopping_since:
            logger.error("the arbiter is gone, the worker ends")
            self.stopping_since = now
        if self.stopping_since and not self.gate.draining:
            self.gate.drain()
            if not self.metrics.retired(self.slot) and self.metrics.service() != "draining":
                # Somebody else told it to end: with a successor, or with the whole service, which is told next.
                self.gate.ask_to_leave(LEAVING.index("terminated"))
        connections = self.watch.look(self.gate.draining)
        self.gate.sweep()
        if now >= self.next_housekeeping:
            self.next_housekeeping = now + HOUSEKEEPING
            self.keep_house()
        if self.gate.draining:
            self.go_on_draining(now, connections)

    def go_on_draining(self, now: float, connections: int) -> None:
        """Stop accepting once the listener's queue is empty, and end once the last connection is closed."""
        overdue = now - self.stopping_since > max(0.2, self.limits.graceful_timeout - 1.0)
        if not self.closed_listener and (overdue or self.is_replaced() or self.is_settled(now)):
            self.watch.stop_accepting()
            self.listener.close()
            self.closed_listener = True
        if overdue:
            logger.warning("a worker ends with connections open", extra={"connections": connections})
            os._exit(0)
        if connections == 0 and self.closed_listener:
            logging.shutdown()
            os._exit(0)

    def is_replaced(self) -> bool:
        """Tell whether the service goes on without this worker, so that others take the queued connections."""
        return self.metrics.retired(self.slot) and self.metrics.service() == "ready" and os.getppid() == self.ppid

    def is_settled(self, now: float) -> bool:
        """Tell whether the handshakes are over that had begun when the arbiter let no more begin, and none waits.

        While the arbiter does not know of the end, handshakes begin, and what nobody accepts it resets when it ends.
        """
        if self.metrics.service() != "draining" and os.getppid() == self.ppid:
            return False
        self.settling_since = self.settling_since or now
        return now - self.settling_since > SETTLING and not has_waiting(self.listener)

    def keep_house(self) -> None:
        """Tell the memory, and ask for a replacement where there is too much of it."""
        resident, shared = (int(pages) * PAGE_SIZE for pages in os.pread(self.memory, 256, 0).split()[1:3])
        self.gate.tell_resident(resident)
        private = resident - shared
        if not self.private_at_start:
            self.private_at_start = private
        growth = private - self.private_at_start
        if 0 < self.limits.max_growth < growth and not self.metrics.leaving(self.slot):
            logger.warning("a worker has grown too large and is replaced", extra={"grown_bytes": growth})
            self.gate.ask_to_leave(LEAVING.index("memory"))


def has_waiting(listener: socket.socket) -> bool:
    """Tell whether a connection waits in a listener's queue."""
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    return bool(poll.poll(0))


def report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Log what an application raised into bjoern; a message may quote a user's text, so only its type."""
    if kind is ConnectionDone:
        return
    logger.error("an application failed: %s", kind.__name__)
