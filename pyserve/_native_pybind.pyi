"""The native engine behind the interface of fastText's pybind11 binding."""

from collections.abc import Callable
from typing import Final, Protocol

class _Model(Protocol):
    def predict(
        self, text: str | bytes, k: int = 1, threshold: float = 0.0, on_unicode_error: str = "strict"
    ) -> list[tuple[float, str]]:
        """Classify a line as the binding's method of this name does.

        Raises:
            RuntimeError: the model holds what is not a number.
            ValueError: ``k`` is 0 or below -1, and the line has a token that counts.
        """

fasttext: Final[Callable[[str], _Model]]
"""Load a model from a path, to be asked as ``fasttext_pybind.fasttext`` is.

Raises OSError where the file cannot be opened, and ValueError where it is no intact supervised fastText model or the
engine does not take it.
"""
