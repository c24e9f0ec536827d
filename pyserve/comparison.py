"""Hold the native engine against fastText's binding."""

import struct
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from pyserve._inference import format_line
from pyserve._native import NativeEngine
from pyserve.model import ModelError, load_binding, load_native, open_source

TOLERANCE = 1e-6
CHUNK = 1000

Pairs = list[tuple[float, str]]
Predict = Callable[[bytes, int, float, str], Pairs]


@dataclass
class Comparison:
    """What came of a comparison.

    Attributes:
        is_fused: whether the binding fuses multiplications and additions, so that last bits may differ.
        texts: how many texts were compared.
        different: on how many the engines differ.
        first_different: the number of the first of them, from 1; None where there is none.
        native_seconds: the time that the native engine took.
        binding_seconds: the time that the binding took.
    """

    is_fused: bool
    texts: int = 0
    different: int = 0
    first_different: int | None = None
    native_seconds: float = 0.0
    binding_seconds: float = 0.0


def compare_engines(path: Path, texts: Iterable[bytes]) -> Comparison:
    """Classify texts with both engines, taking turns, and compare all labels with their confidences.

    Raises:
        ModelError: an engine cannot load the model, or has no answer.
        FormatError: the file is not intact.
        ValueError: there are no texts.
    """
    with open_source(path) as source:
        native, binding = load_native(source).predict, load_binding(source.content).predict
    try:
        return _compare(native, binding, texts)
    except RuntimeError as error:
        raise ModelError(f"{source.name} has no answer to a text: {error}") from None


def _compare(native: Predict, binding: Predict, texts: Iterable[bytes]) -> Comparison:
    """Compare two engines that loaded the same model."""
    found = Comparison(is_fused=is_binding_fused())
    remaining = iter(texts)
    while chunk := [format_line(text.removesuffix(b"\n")) for text in islice(remaining, CHUNK)]:
        found.native_seconds += _measure(native, chunk)
        found.binding_seconds += _measure(binding, chunk)
        for line in chunk:
            found.texts += 1
            if not agree(answer(native, line), answer(binding, line), found.is_fused):
                found.different += 1
                found.first_different = found.first_different or found.texts
    if not found.texts:
        raise ValueError("there are no texts to compare on")
    return found


def answer(predict: Predict, line: bytes) -> Pairs:
    """Return all labels of a line with their confidences."""
    return predict(line, -1, 0.0, "surrogateescape")


def _measure(predict: Predict, lines: list[bytes]) -> float:
    start = time.perf_counter()
    for line in lines:
        predict(line, 1, 0.0, "surrogateescape")
    return time.perf_counter() - start


def agree(native: Pairs, binding: Pairs, is_fused: bool) -> bool:
    """Tell whether two answers are the same, or close enough where the binding is fused."""
    if not is_fused:
        return native == binding
    confidences = {label: confidence for confidence, label in binding}
    return len(native) == len(binding) and all(
        abs(confidence - confidences.get(label, 9.0)) <= TOLERANCE for confidence, label in native
    )


def make_probe() -> bytes:
    """Make a model of one word whose answer tells whether a product is rounded before it is added.

    With x = 1 + 2**-12, the score of the first label is (x * x - (1 + 2**-11)) * 2**20. x * x rounds to 1 + 2**-11, so
    that the score is 0; unrounded it is 2**-4.
    """
    x, scale = 1 + 2**-12, 2.0**20
    entries = ((b"probe", 0), (b"__label__1", 1), (b"__label__2", 1))
    dictionary = b"".join(text + struct.pack("<xqb", 1, kind) for text, kind in entries)
    return b"".join(
        (
            struct.pack("<2i", 793712314, 12),
            struct.pack("<12id", 2, 5, 5, 1, 5, 1, 3, 3, 0, 0, 0, 100, 1e-4),
            struct.pack("<3i2q", 3, 1, 2, 3, -1) + dictionary,
            struct.pack("<?2q2f", False, 1, 2, 1.0, x),
            struct.pack("<?2q4f", False, 2, 2, -(1 + 2**-11) * scale, x * scale, 0.0, 0.0),
        )
    )


def is_binding_fused() -> bool:
    """Tell whether the installed binding was built with fused multiplication and addition (FMA)."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "probe.bin"
        path.write_bytes(make_probe())
        return answer(load_binding(path).predict, b"probe\n") != answer(NativeEngine(path).predict, b"probe\n")
