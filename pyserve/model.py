"""Find, verify and load a model; the only importer of fastText."""

import hashlib
import logging
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyserve._inference import Classifier
from pyserve._model_file import FormatError, ModelInfo, UnsupportedError, inspect
from pyserve._native import NativeEngine
from pyserve.sidecar import Sidecar, read_sidecar, show_name, sidecar_path, write_sidecar

DIRECTORY = Path("models")
PREFERRED = "amazon_review_full.ftz"
STARTER = "starter.ftz"
ENGINES = ("binding", "native", "auto")

logger = logging.getLogger("pyserve")

# The sha256 of the file that was hashed last, by what _identify returned.
_hashes: dict[tuple[int, int, int, int], str] = {}


class ModelError(ValueError):
    """A file cannot be served; the message says why."""


class NoModelError(ModelError):
    """There is no such file."""


@dataclass(frozen=True)
class Verification:
    """What is known of a model file that passed every check.

    Attributes:
        info: what the file says about itself.
        sha256: its digest, in hexadecimal.
        golden: how many golden predictions were held against it; None where it has no sidecar.
    """

    info: ModelInfo
    sha256: str
    golden: int | None


def find_model(directory: Path = DIRECTORY) -> Path:
    """Return the model that is served where nobody names one: the real one, else the starter.

    Raises:
        NoModelError: there is neither.
    """
    for name in (PREFERRED, STARTER):
        path = directory / name
        if path.is_file():
            return path
    raise NoModelError(
        f"there is no model in {directory.name}/: get one with `pyserve fetch amazon_review_full`, "
        "or name one with --model"
    )


def load_model(path: str | Path, *, engine: str = "binding", label_format: str | None = None) -> Classifier:
    """Verify and load a supervised fastText model.

    The file's structure is checked before fastText reads it, since fastText loads a damaged one without a word. Where
    the model has a sidecar, the file's size and sha256 and the golden predictions are checked too.

    Args:
        path: a ``.ftz`` or ``.bin`` file.
        engine: what answers: ``binding``, fastText's own; ``native``, ours, which maps the file and gives the same
            bits faster; ``auto``, the native one unless it does not take the model, which is logged.
        label_format: how a label is shown, with one ``{}`` for its name; by default ``"{} star"`` where all labels are
            numbers, else ``"{}"``.

    Raises:
        ModelError: the file is missing, is not an intact supervised fastText model, is not what its sidecar says, or
            the native engine does not take it.
        ValueError: there is no such engine.
    """
    if engine not in ENGINES:
        raise ValueError(f"an engine must be one of {', '.join(ENGINES)}")
    opened = _open_model(Path(path), engine)
    predict = opened.model if isinstance(opened.model, NativeEngine) else opened.model.predict
    return Classifier(predict, opened.info.labels, label_format=label_format)


def inspect_model(path: Path) -> ModelInfo:
    """Check the structure of a model file, without loading it.

    Raises:
        ModelError: it is missing or not an intact supervised model; the message says at which byte.
    """
    try:
        return inspect(path)
    except FormatError as error:
        raise ModelError(f"{show_name(path)} cannot be served: {error}") from None
    except FileNotFoundError:
        raise NoModelError(f"there is no model file {show_name(path)}") from None
    except OSError as error:
        raise ModelError(f"{show_name(path)} cannot be read: {error.strerror}") from None


def verify_model(path: Path) -> Verification:
    """Check everything about a model file that can be checked.

    Raises:
        ModelError: a check failed.
    """
    info = inspect_model(path)
    sidecar = _read_sidecar(path)
    if sidecar is not None and sidecar.golden:
        _open_model(path, "binding")
    return Verification(info, hash_model(path), None if sidecar is None else len(sidecar.golden))


def write_model_sidecar(path: Path, texts: Iterable[str] = ()) -> int:
    """Write the sidecar of a model from the model itself, and return how many golden predictions it holds.

    Raises:
        ModelError: the file is not an intact supervised model.
        OSError: the sidecar cannot be written.
    """
    opened = _open_model(path, "binding", with_sidecar=False)
    return write_sidecar(sidecar_path(path), hash_model(path), opened.info.size, opened.model.predict, texts)


def describe_model(path: str | Path, classifier: Classifier) -> dict[str, object]:
    """Describe a model for those who ask the service which one it serves; nothing here tells where the file is.

    Args:
        path: the file that the classifier was loaded from.
        classifier: gives the labels as they are shown.

    Raises:
        ModelError: the file is no longer the one that was loaded.
    """
    path = Path(path)
    info = inspect_model(path)
    return {
        "name": show_name(path),
        "sha256": hash_model(path),
        "size": info.size,
        "labels": list(classifier.labels),
        "dim": info.dim,
        "word_ngrams": info.word_ngrams,
        "quantized": info.quantized,
        "loss": info.loss,
        "engine": classifier.engine,
        "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def hash_model(path: Path) -> str:
    """Return the sha256 of a model file, in hexadecimal; computed once for a file that does not change.

    Raises:
        ModelError: it cannot be read.
    """
    try:
        identity = _identify(path)
        if identity not in _hashes:
            digest = hashlib.sha256()
            with path.open("rb") as file:
                while chunk := file.read(1 << 20):
                    digest.update(chunk)
            _hashes.clear()
            _hashes[identity] = digest.hexdigest()
        return _hashes[identity]
    except OSError as error:
        raise ModelError(f"{show_name(path)} cannot be read: {error.strerror}") from None


@dataclass(frozen=True)
class _Opened:
    """A model that an engine has loaded, with what was checked against."""

    model: Any
    info: ModelInfo
    sidecar: Sidecar | None


def _identify(path: Path) -> tuple[int, int, int, int]:
    """Return what tells a file from another one at the same path, and from itself after a change."""
    status = os.stat(path)
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def load_binding(path: Path) -> Any:
    """Load an intact model in fastText's binding, without any check."""
    import fasttext_pybind

    model = fasttext_pybind.fasttext()
    model.loadModel(os.fsencode(path))  # as bytes, since a name need not be UTF-8
    return model


def load_native(path: Path) -> NativeEngine:
    """Load a model in the native engine.

    Raises:
        FormatError: it is not intact.
        ModelError: the engine does not take it; the message says why.
        OSError: it cannot be opened.
    """
    try:
        return NativeEngine(path)
    except UnsupportedError as error:
        raise ModelError(f"the native engine does not take {show_name(path)}: {error}") from None


def _load_engine(path: Path, engine: str) -> Any:
    """Load an intact model in an engine."""
    if engine == "binding":
        return load_binding(path)
    try:
        return load_native(path)
    except ModelError as error:
        if engine == "native":
            raise
        logger.warning("%s; the binding answers", error)
        return load_binding(path)


def _open_model(path: Path, engine: str, *, with_sidecar: bool = True) -> _Opened:
    """Check a model file, load it in an engine, and check what it answers."""
    try:
        before = _identify(path)
        info = inspect_model(path)
        sidecar = _read_sidecar(path) if with_sidecar else None
        model = _load_engine(path, engine)
        after = _identify(path)
    except FileNotFoundError:
        raise NoModelError(f"there is no model file {show_name(path)}") from None
    except OSError as error:
        raise ModelError(f"{show_name(path)} cannot be read: {error.strerror}") from None
    except ModelError:
        raise
    except (MemoryError, RuntimeError, ValueError) as error:
        reason = "there is not enough memory" if isinstance(error, MemoryError) else type(error).__name__
        raise ModelError(f"fastText cannot load {show_name(path)}: {reason}") from None
    if after != before:
        raise ModelError(f"{show_name(path)} changed while it was being loaded")
    if sidecar is not None:
        try:
            sidecar.check_predictions(model.predict)
        except ValueError as error:
            raise ModelError(str(error)) from None
    return _Opened(model, info, sidecar)


def _read_sidecar(path: Path) -> Sidecar | None:
    """Read the sidecar of a model and hold the file against it; None where there is none."""
    try:
        sidecar = read_sidecar(sidecar_path(path))
        if sidecar is not None:
            sidecar.check_size(path.stat().st_size)
            sidecar.check_sha256(hash_model(path))
    except OSError as error:
        raise ModelError(f"{show_name(sidecar_path(path))} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ModelError(str(error)) from None
    return sidecar
