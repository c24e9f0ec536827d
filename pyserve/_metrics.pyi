"""Counters in memory that the arbiter and its workers share."""

from collections.abc import Iterable
from typing import Any, final

from typing_extensions import Self

BOUNDS: tuple[float, ...]
ROUTES: tuple[str, ...]
STATUSES: tuple[str, ...]
REFUSED: tuple[str, ...]
CLOSED: tuple[str, ...]
ENDED: tuple[str, ...]
LEAVING: tuple[str, ...]
STATES: tuple[str, ...]

@final
class Metrics:
    """The shared counters; made before the first fork.

    Args:
        slots: the most workers that may live at the same time.
    """

    @property
    def slots(self) -> int:
        """The most workers that may live at the same time."""

    def __new__(cls, slots: int) -> Self: ...
    def claim(self) -> int:
        """Take a free slot for a worker that is about to start, with the counts of those that had it before."""

    def release(self, slot: int) -> None:
        """Give back the slot of a worker that ended; its counts stay."""

    def retire(self, slot: int) -> None:
        """Tell a worker that it ends because the arbiter says so, and that others take what waits."""
    def set_service(self, state: str) -> None:
        """Tell the state of the whole service, one of ``STATES``."""

    def set_model(self, name: str, sha256: str, labels: Iterable[str], loaded_at: int = 0) -> list[int]:
        """Tell which model is served. Return the numbers under which the predictions of its labels are counted."""

    def count_start(self) -> None:
        """Count a worker that starts."""

    def count_end(self, cause: str) -> None:
        """Count a worker that ended, by one of ``ENDED``."""

    def count_broken_answer(self) -> None:
        """Count an answer that its client went away from."""

    def count_reload(self, failed: bool) -> None:
        """Count a reload."""

    def state(self, slot: int) -> str:
        """Return the state of the worker in a slot."""

    def retired(self, slot: int) -> bool:
        """Tell whether the arbiter told a worker to end."""
    def leaving(self, slot: int) -> str:
        """Return why the worker in a slot asks to be replaced, or nothing where it does not."""

    def service(self) -> str:
        """Return the state of the whole service."""

    def is_ready(self) -> bool:
        """Tell whether the service takes requests."""

    def snapshot(self) -> dict[str, Any]:
        """Sum up all workers."""
