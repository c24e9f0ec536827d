"""The body of a request, as bjoern fills it and an application reads it."""

from collections.abc import Callable, Iterator
from typing import final

@final
class Body:
    """A readable stream of the bytes that were written to it, at most as many as the limit."""

    @property
    def received(self) -> int:
        """How many bytes came, kept or not."""

    @property
    def over_limit(self) -> bool:
        """Whether the body had more bytes than one may have; none of them was kept."""

    @property
    def over_budget(self) -> bool:
        """Whether all bodies together had more bytes than they may have; none of this one was kept."""

    def __len__(self) -> int: ...
    def write(self, chunk: bytes) -> int:
        """Append bytes, or drop all of them once there are too many. Never raises; returns the size of the chunk."""

    def seek(self, position: int, whence: int = 0) -> int:
        """Move to a position, as ``io.BytesIO`` does."""

    def tell(self) -> int:
        """Return the position."""

    def read(self, size: int | None = -1) -> bytes:
        """Read at most ``size`` bytes, by default all that are left."""

    def readline(self, size: int | None = -1) -> bytes:
        """Read up to a line feed, at most ``size`` bytes."""

    def readlines(self, hint: int | None = -1) -> list[bytes]:
        """Read the lines that are left, or as many as make ``hint`` bytes."""

    def __iter__(self) -> Iterator[bytes]: ...
    def __next__(self) -> bytes: ...

@final
class IO:
    """What bjoern takes for the module ``io``."""

    def BytesIO(self) -> Body:  # noqa: N802
        """Return a new, empty body."""

def set_limits(body: int, all_bodies: int) -> None:
    """Set how many bytes one body and all bodies of this process together may keep."""

def set_reclaimer(function: Callable[[], object] | None) -> None:
    """Set what is called whenever there are 1,000 more bodies, to find those that nobody will ever read."""

def kept_bytes() -> int:
    """Return how many bytes all bodies of this process keep now."""
