"""The event loop of bjoern: when answers are written, and what its connections do."""

from collections.abc import Callable
from typing import Any, Final

__pyx_capi__: Final[dict[str, object]]

def take_over(server_run: Callable[..., Any], version: tuple[int, ...]) -> bool:
    """Have answers that are announced written in the loop's turn, not in its next, and what connections do noted.

    Args:
        server_run: bjoern's function of that name.
        version: bjoern's version.

    Returns:
        Whether it was done; a bjoern that is not known, or was built otherwise, is left as it is.
    """
