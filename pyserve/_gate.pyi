"""What every request passes under bjoern, on its way to the application and back."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, final

from pyserve._metrics import Metrics

class ConnectionDone(Exception):  # noqa: N818
    """Raised into bjoern to have a connection closed after its answer; not an error."""

@final
class Closing:
    """A response of one chunk, after which bjoern closes the connection."""

    def __iter__(self) -> Iterator[bytes]: ...
    def __next__(self) -> bytes: ...

@final
class StartResponse:
    """The ``start_response`` of an application behind the gate; notes the status and adds headers."""

    @property
    def status(self) -> int:
        """The status that the application gave."""

    @property
    def started(self) -> bool:
        """Whether the application gave one."""

    def __call__(self, status: str, headers: Iterable[tuple[str, str]], exc_info: Any = None) -> Any: ...

@final
class Gate:
    """The WSGI application that bjoern calls.

    Args:
        application: what answers; an ``Entry`` is called without a detour.
        metrics: where requests are counted.
        slot: this worker's in the metrics.
        label_numbers: the numbers under which predictions are counted, one for each label of the classifier.
        log_every: of how many requests one is logged; 0 logs none.
        limited: whether a request whose body has no limit is refused.
    """

    @property
    def application(self) -> Callable[..., Iterable[bytes]]:
        """What answers."""

    @property
    def draining(self) -> bool:
        """Whether each connection is closed after its next answer."""

    def __init__(
        self,
        application: Callable[..., Iterable[bytes]],
        metrics: Metrics,
        slot: int,
        *,
        label_numbers: Sequence[int] = (),
        log_every: int = 0,
        limited: bool = False,
    ) -> None: ...
    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]: ...
    def handle(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Answer a request; the same as calling the object, without the cost of its ``tp_call``."""

    def begin(self, serves: bool = True) -> None:
        """Tell that this process runs, and whether it takes the requests that the service is for."""

    def drain(self) -> None:
        """Close each connection after its next answer."""

    def ask_to_leave(self, reason: int) -> None:
        """Ask the arbiter for a replacement, for one of ``_metrics.LEAVING``."""

    def tell_resident(self, size: int) -> None:
        """Tell how many bytes of memory this worker has."""

    def make_id(self) -> str:
        """Make a request id."""

    def sweep(self) -> int:
        """Do the same where there are more environs than connections."""

def sweep_lost() -> int:
    """Free the environs that bjoern has lost on connections that are closed. Return how many there were."""
