"""The sidecar of a model: what the file beside it must be, and what it must answer.

The sidecar of ``reviews.ftz`` is ``reviews.ftz.json``::

    {
      "sha256": "814f71e0eaacfdff736949f6c1175ed835feb0f85976d70dcc9319cdccfca50f",
      "size": 1591105,
      "golden": [
        {"text": "I love this product", "labels": {"__label__5": 0.7544972, "__label__4": 0.2452335}}
      ]
    }

``golden`` holds texts with the model's best labels, named as in the model, and their confidences. A text without
labels is one for which the model has none.
"""

import json
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from pyserve._inference import format_line

Predict = Callable[[bytes, int, float, str], list[tuple[float, str]]]

# Texts that any text classifier can be held to; a model for other texts takes them from its owner.
GOLDEN_TEXTS = (
    "I love this product",
    "Terrible quality, it broke after two days and nobody answers the phone.",
    "It's okay, nothing special, but it does the job.",
    "The quick brown fox jumps over the lazy dog.",
    "Ein ruhiges Zimmer, 3 Nächte: très bien!",
)
# Kept for each text: so many labels, best first, and no confidence so small that the order of equals decides.
GOLDEN_LABELS = 5
LEAST_CONFIDENCE = 0.01
TOLERANCE = 1e-5  # between builds of an engine that fuse multiplication and addition and those that do not
MOST_BYTES = 1 << 20
MANY_DIGITS = 640  # Python's limit for a number may be set, and is at least this


@dataclass(frozen=True)
class Golden:
    """A text with the labels and confidences that the model must give, and where it stands."""

    text: str
    labels: dict[str, float]
    line: int


@dataclass(frozen=True)
class Sidecar:
    """What a sidecar says.

    Attributes:
        name: the sidecar's own file name.
        sha256: the model file's digest in lower-case hexadecimal.
        size: the model file's size in bytes.
        golden: the predictions that the model must make.
        sha256_line: the line of the sidecar that gives ``sha256``.
        size_line: the line that gives ``size``.
    """

    name: str
    sha256: str
    size: int
    golden: tuple[Golden, ...]
    sha256_line: int
    size_line: int

    def check_size(self, size: int) -> None:
        """Hold a model file's size against the sidecar.

        Raises:
            ValueError: it differs.
        """
        if size != self.size:
            raise ValueError(f"{self.name}, line {self.size_line}: the size should be {self.size}, it is {size}")

    def check_sha256(self, sha256: str) -> None:
        """Hold a model file's digest against the sidecar.

        Raises:
            ValueError: it differs.
        """
        if sha256 != self.sha256:
            raise ValueError(
                f"{self.name}, line {self.sha256_line}: the sha256 should be {self.sha256}, it is {sha256}"
            )

    def check_predictions(self, predict: Predict) -> None:
        """Hold a model's answers against the golden ones.

        Raises:
            ValueError: a confidence differs by more than ``TOLERANCE``, or there is none.
        """
        for golden in self.golden:
            try:
                found = ask(predict, golden.text, len(golden.labels) + GOLDEN_LABELS)
            except RuntimeError as error:
                raise ValueError(f"{self.name}, line {golden.line}: the model has no answer: {error}") from None
            for label, confidence in golden.labels.items():
                value = found.get(label, 0.0)
                if not abs(value - confidence) <= TOLERANCE:
                    raise ValueError(
                        f"{self.name}, line {golden.line}: the confidence of {label} should be {confidence:.6f}, "
                        f"it is {value:.6f}"
                    )
            if not golden.labels and any(value >= LEAST_CONFIDENCE + TOLERANCE for value in found.values()):
                raise ValueError(f"{self.name}, line {golden.line}: there should be no label, there are {len(found)}")


def show_name(path: Path) -> str:
    """Return the name of a file, without its directories, as text that can be written anywhere."""
    return re.sub("[\ud800-\udfff]", "\ufffd", path.name or str(path))


def sidecar_path(model: Path) -> Path:
    """Return where the sidecar of a model is, whether there is one or not."""
    return model.with_name(model.name + ".json")


def ask(predict: Predict, text: str, count: int) -> dict[str, float]:
    """Return the best labels for a text, best first."""
    return {label: confidence for confidence, label in predict(format_line(text), count, 0.0, "surrogateescape")}


def write_sidecar(path: Path, sha256: str, size: int, predict: Predict, texts: Iterable[str] = ()) -> int:
    """Write a sidecar, in place of one that is there, and return how many predictions it holds.

    Args:
        path: where it goes.
        sha256: the model file's digest.
        size: its size in bytes.
        predict: the engine that loaded it.
        texts: the texts of the golden predictions; ``GOLDEN_TEXTS`` where there are none.

    Raises:
        OSError: it cannot be written.
    """
    rows = []
    for text in tuple(texts) or GOLDEN_TEXTS:
        best = ask(predict, text, GOLDEN_LABELS).items()
        labels = {label: float(f"{value:.7f}") for label, value in best if value >= LEAST_CONFIDENCE}
        rows.append("    " + json.dumps({"text": text, "labels": labels}, ensure_ascii=False))
    golden = ",\n".join(rows)
    content = f'{{\n  "sha256": "{sha256}",\n  "size": {size},\n  "golden": [\n{golden}\n  ]\n}}\n'
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        # A surrogate, which stands for a byte of a label that is no UTF-8, becomes the JSON escape of itself.
        temporary.write_bytes(content.encode("utf-8", "backslashreplace"))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return len(rows)


def read_golden_texts(path: Path) -> tuple[str, ...]:
    """Return the texts of a sidecar; none where there is none, or what is there is not one."""
    try:
        sidecar = read_sidecar(path)
    except (ValueError, OSError):
        return ()
    return tuple(golden.text for golden in sidecar.golden) if sidecar else ()


def read_sidecar(path: Path) -> Sidecar | None:
    """Read a sidecar; None where there is none.

    Raises:
        ValueError: it is not a sidecar; the message names the line.
        OSError: it cannot be read.
    """
    name = show_name(path)
    try:
        with path.open("rb") as file:
            raw = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        return None
    if len(raw) > MOST_BYTES:
        raise ValueError(f"{name} is larger than {MOST_BYTES} bytes, which no sidecar is")
    try:
        content = raw.decode("utf-8")
        fields = json.loads(content)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{name}, line {line}: it is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{name}, line {error.lineno}: it is not JSON: {error.msg}") from None
    except ValueError:  # of int(): the number of digits is limited
        lines = content.split("\n")
        line = next(number for number, text in enumerate(lines, 1) if re.search(rf"[0-9]{{{MANY_DIGITS}}}", text))
        raise ValueError(f"{name}, line {line}: a number has too many digits") from None
    except RecursionError:
        raise ValueError(f"{name} is nested too deeply") from None
    if not isinstance(fields, dict):
        raise ValueError(f"{name}, line 1: it must be an object with sha256, size and golden")
    unknown = fields.keys() - {"sha256", "size", "golden"}
    if unknown:
        key = min(unknown)
        raise ValueError(
            f"{name}, line {_find_line(content, key)}: {key!r} is not known, known are sha256, size and golden"
        )

    def fail(key: str, allowed: str) -> ValueError:
        return ValueError(f"{name}, line {_find_line(content, key)}: {key} must be {allowed}")

    sha256, size, golden = fields.get("sha256"), fields.get("size"), fields.get("golden", [])
    if not (isinstance(sha256, str) and re.fullmatch("[0-9a-f]{64}", sha256)):
        raise fail("sha256", "64 lower-case hexadecimal digits")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise fail("size", "a number of bytes")
    if not isinstance(golden, list):
        raise fail("golden", "a list of texts with their labels")
    return Sidecar(
        name,
        sha256,
        size,
        tuple(_read_golden(name, content, number, entry) for number, entry in enumerate(golden)),
        _find_line(content, "sha256"),
        _find_line(content, "size"),
    )


def _read_golden(name: str, content: str, number: int, entry: object) -> Golden:
    """Read one golden prediction."""
    line = _find_line(content, "text", number)
    if isinstance(entry, dict) and entry.keys() == {"text", "labels"}:
        text, labels = entry["text"], entry["labels"]
        if (
            isinstance(text, str)
            and isinstance(labels, dict)
            and all(isinstance(value, int | float) and not isinstance(value, bool) for value in labels.values())
        ):
            try:
                return Golden(text, {label: float(value) for label, value in labels.items()}, line)
            except OverflowError:
                raise ValueError(f"{name}, line {line}: a confidence is too large") from None
    raise ValueError(f"{name}, line {line}: a golden prediction must have a text, and labels with their confidences")


def _find_line(content: str, key: str, number: int = 0) -> int:
    """Return the line at which a key stands for the ``number``-th time, counted from 0; 1 where it does not."""
    places = [match.start() for match in re.finditer(re.escape(json.dumps(key)) + r"\s*:", content)]
    return content.count("\n", 0, places[number]) + 1 if number < len(places) else 1
