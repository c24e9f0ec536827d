from os import PathLike
from typing import Final, final

LOSS_NAMES: Final[dict[int, str]]
__pyx_capi__: Final[dict[str, object]]

class FormatError(ValueError):
    """A file that is no intact supervised fastText model.

    The message says at which byte, what was found and what is allowed.

    Attributes:
        offset: the byte of the file at which the fault is.
    """

    offset: int
    def __init__(self, reason: str, offset: int) -> None: ...

class UnsupportedError(ValueError):
    """An intact model that the native engine does not take; the message says why."""

@final
class ModelInfo:
    """What a model file says about itself; made by `inspect` only, and immutable.

    Attributes:
        size: the file's size in bytes.
        version: version of the file format, 11 or 12.
        dim: number of columns of both matrices.
        labels: all labels as the file has them, their prefix included; bytes that are no UTF-8 are surrogates.
        words: number of words in the dictionary.
        word_ngrams: longest word n-gram, 1 or less for none.
        minn: shortest subword.
        maxn: longest subword, 0 for none.
        bucket: number of buckets that n-grams and subwords are hashed into.
        loss: `hs`, `ns`, `softmax` or `ova`.
        quantized: whether the input matrix is quantized.
        qout: whether the flag for a quantized output matrix is set; it counts for quantized models only.
        qnorm: whether the norms of the input matrix's rows are quantized by themselves.
        pruned: whether only a selection of the n-grams has rows.
        input_shape: rows and columns of the input matrix.
        output_shape: rows and columns of the output matrix.
    """

    @property
    def size(self) -> int: ...
    @property
    def version(self) -> int: ...
    @property
    def dim(self) -> int: ...
    @property
    def labels(self) -> tuple[str, ...]: ...
    @property
    def words(self) -> int: ...
    @property
    def word_ngrams(self) -> int: ...
    @property
    def minn(self) -> int: ...
    @property
    def maxn(self) -> int: ...
    @property
    def bucket(self) -> int: ...
    @property
    def loss(self) -> str: ...
    @property
    def quantized(self) -> bool: ...
    @property
    def qout(self) -> bool: ...
    @property
    def qnorm(self) -> bool: ...
    @property
    def pruned(self) -> bool: ...
    @property
    def input_shape(self) -> tuple[int, int]: ...
    @property
    def output_shape(self) -> tuple[int, int]: ...

def inspect(path: str | bytes | PathLike[str] | PathLike[bytes]) -> ModelInfo:
    """Check the structure of a whole model file and describe it.

    The file is mapped, not read: the time goes with the size of the dictionary, not with that of the matrices.

    Args:
        path: the file.

    Returns:
        What the file says about itself.

    Raises:
        FormatError: it is no intact supervised fastText model.
        OSError: it cannot be opened.
    """
