from os import PathLike
from typing import Final, final

from pyserve._model_file import ModelInfo

KERNELS: Final[tuple[str, ...]]

def supported_kernels() -> tuple[str, ...]:
    """Return the names of the kernels that this machine can run, the fastest last."""

@final
class NativeEngine:
    """A model that answers without fastText, with the same bits. Threads may share it.

    The file is mapped and checked. Replace it by rename only: one that is overwritten changes under the engine.

    Args:
        path: a ``.ftz`` or ``.bin`` file.
        kernel: one of ``supported_kernels()``, by default the fastest.

    Raises:
        FormatError: it is no intact supervised fastText model.
        OSError: it cannot be opened.
        UnsupportedError: the engine does not take this model.
        ValueError: this machine does not run that kernel.
    """

    def __new__(
        cls, path: str | bytes | PathLike[str] | PathLike[bytes], *, kernel: str | None = None
    ) -> NativeEngine: ...
    @property
    def info(self) -> ModelInfo:
        """What the file says about itself."""

    @property
    def kernel(self) -> str:
        """The name of the kernel in use."""

    def predict(
        self, text: str | bytes, k: int = 1, threshold: float = 0.0, on_unicode_error: str = "strict"
    ) -> list[tuple[float, str]]:
        """Classify a line as fastText's pybind11 binding does, to the last bit.

        What is not a number is an error here in every case; the binding answers ``nan`` to some of them.

        Args:
            text: a line; what stands behind its first line feed is ignored. Without a line feed the token ``</s>`` is
                missing from it, and the answer differs.
            k: how many labels to give at most, -1 for all.
            threshold: the least probability a label must have.
            on_unicode_error: the codec error handler for labels that are not UTF-8.

        Returns:
            Pairs of probability and label, best first.

        Raises:
            RuntimeError: the model holds what is not a number.
            TypeError: ``text`` is neither str nor bytes.
            ValueError: ``k`` is 0 or below -1, and the line has a token that counts.
        """
