"""The client connections of this process, seen from outside the event loop that serves them."""

from collections.abc import Callable
from typing import final

from pyserve._metrics import Metrics

@final
class Watch:
    """Limits in time and number on the connections of a bjoern loop.

    Everything that is a socket and was not open yet when the watch was made is a client's.

    Args:
        metrics: where what happens is counted.
        slot: this worker's in the metrics.
        listener: the descriptor of the listening socket.
        make_id: makes the request id of an answer.
        request_timeout: seconds within which a request must be complete and an answer must be taken.
        keep_alive: seconds for which a connection may be idle.
        max_connections: how many connections may be open; more are left in the listener's queue.
        max_body: bytes that a body may have.

    Raises:
        OSError: ``/proc`` is not there.
    """

    request_timeout: float
    keep_alive: float
    max_connections: int
    max_received: int

    @property
    def open(self) -> int:
        """How many connections were open at the last look."""

    @property
    def paused(self) -> bool:
        """Whether new connections are left in the listener's queue."""

    def __init__(
        self,
        metrics: Metrics,
        slot: int,
        listener: int,
        make_id: Callable[[], str],
        *,
        request_timeout: float,
        keep_alive: float,
        max_connections: int,
        max_body: int,
    ) -> None: ...
    def find_loop(self) -> None:
        """Find the event loop's descriptor while there still are free ones."""

    def look(self, draining: bool = False) -> int:
        """Look at all connections and end those that take too long. Return how many are open."""

    def stop_accepting(self) -> None:
        """Leave new connections in the listener's queue, for other workers."""
