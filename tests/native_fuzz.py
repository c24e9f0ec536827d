"""Load damaged copies of a model in the native engine, and classify with those that it takes, without a crash.

All kernels of this machine must answer alike. Arguments: the model, a seed, how many copies, and how many texts. Prints
how many copies were rejected, and how many gave a label.
"""

import random
import struct
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from pyserve import Classifier
from pyserve._native import NativeEngine, supported_kernels
from tests.model_fields import header_fields
from tests.native_recipes import make_limits, make_lines

NUMBERS = (0, 1, -1, 2, 7, 8, 127, 128, 255, 256, 65535, 65536, 2**31 - 1, -(2**31), 2**32, 2**62, -(2**63))


def change_field(rng: random.Random, content: bytearray) -> None:
    """Put another number into a field."""
    offset, size = rng.choice(list(header_fields(bytes(content)).values()))
    code = {1: "<B", 4: "<I", 8: "<Q"}[size]
    (value,) = struct.unpack_from(code, content, offset)
    value = value + rng.choice((-1, 1, 2, 16)) if rng.random() < 0.5 else rng.choice(NUMBERS)
    struct.pack_into(code, content, offset, value % 2 ** (8 * size))


def change_bytes(rng: random.Random, content: bytearray) -> None:
    """Put other bytes somewhere, more often near the start, where the numbers are."""
    for _ in range(rng.choice((1, 1, 2, 5, 50))):
        limit = rng.choice((200, 2000, len(content)))
        content[rng.randrange(min(limit, len(content)))] = rng.choice((0, 1, 0xFF, 0x7F, 0x80, rng.randrange(256)))


def change_cells(rng: random.Random, content: bytearray) -> None:
    """Put numbers that are none, or none that a trained model has, into the matrices."""
    start = header_fields(bytes(content))["quantized"][0]
    for _ in range(rng.choice((1, 20, 500))):
        place = rng.randrange(start, len(content) - 4)
        struct.pack_into("<f", content, place, rng.choice((float("nan"), float("inf"), -1e38, 3e38, 1e-45, 0.0)))


def change_size(rng: random.Random, content: bytearray) -> None:
    """Cut something out, or put something in."""
    start = rng.randrange(len(content))
    if rng.random() < 0.5:
        del content[start : start + rng.choice((1, 4, 8, 100, len(content)))]
    else:
        content[start:start] = rng.randbytes(rng.choice((1, 4, 8, 100)))


def answer(engine: NativeEngine, line: bytes, k: int, threshold: float) -> list[tuple[str, str]] | str:
    """Return what an engine answers, a NaN as one that equals itself, or which error it raises."""
    try:
        return [(confidence.hex(), label) for confidence, label in engine.predict(line, k, threshold, "replace")]
    except (RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"


def main() -> None:
    """Damage, load, and classify."""
    model = Path(sys.argv[1])
    seed, copies, texts = map(int, sys.argv[2:5])
    rng = random.Random(seed)
    intact = model.read_bytes()
    lines = [line for line in make_lines(texts, seed) if len(line) < 6000]
    rejected = answered = 0
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "model"
        for _ in range(copies):
            content = bytearray(intact)
            rng.choice((change_field, change_field, change_bytes, change_cells, change_size))(rng, content)
            path.write_bytes(content)
            try:
                engines = [NativeEngine(path, kernel=kernel) for kernel in supported_kernels()]
            except ValueError:
                rejected += 1
                continue
            labels = engines[0].info.labels
            classifiers = [Classifier(engine, labels, label_format="{}") for engine in engines]
            gave_label = False
            for line in rng.sample(lines, min(texts, len(lines))):
                k, threshold = make_limits(rng, len(labels))
                found = [answer(engine, line, k, threshold) for engine in engines]
                if any(other != found[0] for other in found):
                    sys.exit(f"kernels differ: {found}, k {k}, threshold {threshold}")
                gave_label |= isinstance(found[0], list) and bool(found[0])
                with suppress(RuntimeError, ValueError):
                    rng.choice(classifiers).explain(line)
            answered += gave_label
    print(rejected, answered)
