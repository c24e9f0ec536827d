"""Find, verify and load a model; the only importer of fastText."""

import contextlib
import hashlib
import logging
import os
import signal
import stat
import time
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from pyserve._inference import Classifier
from pyserve._model_file import FormatError, ModelInfo, UnsupportedError, inspect
from pyserve._native import NativeEngine
from pyserve.sidecar import Sidecar, read_golden_texts, read_sidecar, show_name, sidecar_path, write_sidecar

DIRECTORY = Path("models")
PREFERRED = "amazon_review_full.ftz"
STARTER = "starter.ftz"
ENGINES = ("binding", "native", "auto")

logger = logging.getLogger("pyserve")

# What tells a file from another one at the same path, and from itself after a change: device, inode, size in bytes, and
# when content and inode were changed, in nanoseconds. The last cannot be set back.
Identity: TypeAlias = tuple[int, int, int, int, int]

# Up to so many bytes a file is copied into memory before it is read, so that who writes into it meanwhile does no harm.
COPIED_BYTES = 64 << 20
# A file that was changed less than so many nanoseconds ago may change again without another time stamp.
SETTLED = 1_000_000_000

# The sha256 of the file that was hashed last.
_hashes: dict[Identity, str] = {}


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


def load_model(path: str | os.PathLike[str], *, engine: str = "binding", label_format: str | None = None) -> Classifier:
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
    with open_source(path) as source:
        opened = _load_source(source, engine)
        predict = opened.model if isinstance(opened.model, NativeEngine) else opened.model.predict
        classifier = Classifier(predict, opened.info.labels, label_format=label_format)
        origin = _Origin(source.path, source.identity, opened.info, source.sha256)
        if classifier.engine == "native" and source.sha256 is None:  # it reads from the file for as long as it lives
            origin.descriptor = os.dup(source.descriptor)
            weakref.finalize(classifier, os.close, origin.descriptor)
    _origins[classifier] = origin
    return classifier


def rehearse_load(path: str | os.PathLike[str], *, engine: str = "binding") -> None:
    """Load a file that is too large to be copied in a process of its own, which may end where it is overwritten.

    What else is wrong is left to ``load_model`` to tell.

    Raises:
        ModelError: that process was ended by a signal.
    """
    try:
        if os.stat(path).st_size <= COPIED_BYTES:
            return
    except (OSError, ValueError):
        return
    child = os.fork()
    if child == 0:
        try:
            logging.disable()
            with open_source(path) as source:
                _load_source(source, engine)
        finally:
            os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status < 0:
        raise ModelError(
            f"{show_name(Path(path))} cannot be served: a signal ({signal.strsignal(-status)}) ended the attempt "
            "to load it; was it overwritten meanwhile?"
        )


def is_overwritten(classifier: Classifier) -> bool:
    """Tell whether the file that a classifier reads from was written to or cut short since it was loaded."""
    origin = _origins.get(classifier)
    if origin is None or origin.descriptor is None:
        return False
    status = os.fstat(origin.descriptor)
    # Not the time of the inode's change: it changes, too, where the file is replaced by rename, which does no harm.
    return (status.st_size, status.st_mtime_ns) != origin.identity[2:4]


def inspect_model(path: str | os.PathLike[str]) -> ModelInfo:
    """Check the structure of a model file, without loading it.

    Raises:
        ModelError: it is missing or not an intact supervised model; the message says at which byte.
    """
    with open_source(path) as source:
        return _inspect_source(source)


def verify_model(path: Path) -> Verification:
    """Check everything about a model file that can be checked.

    Raises:
        ModelError: a check failed.
    """
    with open_source(path) as source:
        info = _inspect_source(source)
        sidecar = _read_sidecar(source)
        if sidecar is not None and sidecar.golden:
            _load_source(source, "binding")
        return Verification(info, source.hash(), None if sidecar is None else len(sidecar.golden))


def write_model_sidecar(path: Path, texts: Iterable[str] = ()) -> int:
    """Write the sidecar of a model from the model itself, and return how many golden predictions it holds.

    Args:
        path: the model.
        texts: the texts of the golden predictions; where there are none, those of the sidecar that it replaces, or some
            for any classifier of texts.

    Raises:
        ModelError: the file is not an intact supervised model.
        OSError: the sidecar cannot be written.
    """
    with open_source(path) as source:
        opened = _load_source(source, "binding", with_sidecar=False)
        sha256 = source.hash()
    try:
        texts = tuple(texts) or read_golden_texts(sidecar_path(path))
        return write_sidecar(sidecar_path(path), sha256, opened.info.size, opened.model.predict, texts)
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"{source.name} has no answer to a golden text: {error}") from None


def describe_model(path: str | os.PathLike[str], classifier: Classifier) -> dict[str, object]:
    """Describe a model for those who ask the service which one it serves; nothing here tells where the file is.

    It describes what was loaded, whatever is at the path by now.

    Args:
        path: the file that the classifier was loaded from.
        classifier: what ``load_model`` made of it.

    Raises:
        ModelError: the classifier was not loaded from there, or the file is too large to be hashed while it is loaded
            and is no longer the one that was.
    """
    path = _take_path(path)
    origin = _origins.get(classifier)
    if origin is None or origin.path != path:
        raise ModelError(f"this classifier was not loaded from {show_name(path)}")
    sha256 = origin.sha256
    if sha256 is None:
        with open_source(path) as source:
            sha256 = source.hash()
            if source.identity != origin.identity:
                raise ModelError(f"{source.name} is no longer the file that was loaded")
    return {
        "name": show_name(path),
        "sha256": sha256,
        "size": origin.info.size,
        "labels": list(classifier.labels),
        "dim": origin.info.dim,
        "word_ngrams": origin.info.word_ngrams,
        "quantized": origin.info.quantized,
        "loss": origin.info.loss,
        "engine": classifier.engine,
        "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def hash_model(path: str | os.PathLike[str]) -> str:
    """Return the sha256 of a model file, in hexadecimal; computed once for a large file that does not change.

    Raises:
        ModelError: it cannot be read.
    """
    with open_source(path) as source:
        return source.hash()


@dataclass(frozen=True)
class Source:
    """A model file that is open, or the copy of a small one.

    Attributes:
        path: where the file is.
        identity: what it was when it was opened.
        descriptor: of the file or the copy.
        sha256: the digest of the copy; None where there is none.
    """

    path: Path
    identity: Identity
    descriptor: int
    sha256: str | None

    @property
    def name(self) -> str:
        """The file's name, without its directories."""
        return show_name(self.path)

    @property
    def content(self) -> Path:
        """Where to read, whatever is at ``path`` by now."""
        return Path(f"/proc/self/fd/{self.descriptor}")

    def hash(self) -> str:
        """Return the sha256.

        Raises:
            ModelError: the file cannot be read or changed meanwhile.
        """
        if self.sha256 is not None:
            return self.sha256
        if self.identity not in _hashes:
            digest = hashlib.sha256()
            with self.content.open("rb") as file:
                while chunk := file.read(1 << 20):
                    digest.update(chunk)
            self.check_unchanged()
            _hashes.clear()
            if time.time_ns() - self.identity[4] < SETTLED:
                return digest.hexdigest()
            _hashes[self.identity] = digest.hexdigest()
        return _hashes[self.identity]

    def check_unchanged(self) -> None:
        """Hold what is at the path against what was opened.

        Raises:
            ModelError: it is another file, or was written to.
        """
        if _identify(os.stat(self.path)) != self.identity:
            raise ModelError(f"{self.name} changed while it was being loaded")


@contextlib.contextmanager
def open_source(path: str | os.PathLike[str]) -> Iterator[Source]:
    """Open a model file, and copy it where it is small: readers meet no byte that changes, and no end that moves.

    Raises:
        ModelError: it is missing, is no regular file or cannot be read, here or by who uses it.
    """
    path = _take_path(path)
    name = show_name(path)
    with contextlib.ExitStack() as stack:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO must not block
            stack.callback(os.close, descriptor)
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                what = "a directory" if stat.S_ISDIR(status.st_mode) else "no regular file"
                raise ModelError(f"{name} cannot be served: it is {what}")
            identity = _identify(status)
            sha256 = None
            if status.st_size <= COPIED_BYTES:
                original, descriptor = descriptor, os.memfd_create("model", os.MFD_CLOEXEC)
                stack.callback(os.close, descriptor)
                sha256 = _copy(original, descriptor, status.st_size)
                if _identify(os.fstat(original)) != identity:
                    raise ModelError(f"{name} changed while it was being loaded")
            yield Source(path, identity, descriptor, sha256)
        except FileNotFoundError:
            raise NoModelError(f"there is no model file {name}") from None
        except OSError as error:
            raise ModelError(f"{name} cannot be read: {error.strerror}") from None


@dataclass
class _Origin:
    """The file that a classifier was loaded from, as it was then, and its descriptor where it is still read from."""

    path: Path
    identity: Identity
    info: ModelInfo
    sha256: str | None
    descriptor: int | None = None


_origins: weakref.WeakKeyDictionary[Classifier, _Origin] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class _Opened:
    """A model that an engine has loaded."""

    model: Any
    info: ModelInfo


def _take_path(path: str | os.PathLike[str]) -> Path:
    """Return a path that the system can be asked for."""
    try:
        encoded = os.fsencode(path)
    except UnicodeEncodeError:
        raise ModelError("the path of a model cannot be written in the encoding of this system's file names") from None
    if b"\0" in encoded:
        raise ModelError("the path of a model cannot hold a NUL")
    return Path(path)


def _identify(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _copy(original: int, copy: int, size: int) -> str:
    """Copy a file of which a size is known. Return the copy's sha256."""
    digest = hashlib.sha256()
    with open(copy, "wb", closefd=False) as file:
        while size > 0 and (chunk := os.read(original, min(size, 1 << 20))):
            digest.update(chunk)
            file.write(chunk)
            size -= len(chunk)
    return digest.hexdigest()


def load_binding(path: Path) -> Any:
    """Load an intact model in fastText's binding, without any check."""
    import fasttext_pybind

    model = fasttext_pybind.fasttext()
    model.loadModel(os.fsencode(path))  # as bytes, since a name need not be UTF-8
    return model


def load_native(source: Source) -> NativeEngine:
    """Load a model in the native engine.

    Raises:
        FormatError: it is not intact.
        ModelError: the engine does not take it; the message says why.
        OSError: it cannot be opened.
    """
    try:
        return NativeEngine(source.content)
    except UnsupportedError as error:
        raise ModelError(f"the native engine does not take {source.name}: {error}") from None


def _load_engine(source: Source, engine: str) -> Any:
    """Load an intact model in an engine."""
    if engine == "binding":
        return load_binding(source.content)
    try:
        return load_native(source)
    except ModelError as error:
        if engine == "native":
            raise
        logger.warning("%s; the binding answers", error)
        return load_binding(source.content)


def _inspect_source(source: Source) -> ModelInfo:
    """Check the structure of a model file."""
    try:
        return inspect(source.content)
    except FormatError as error:
        raise ModelError(f"{source.name} cannot be served: {error}") from None


def _load_source(source: Source, engine: str, *, with_sidecar: bool = True) -> _Opened:
    """Check a model file, load it in an engine, and check what it answers."""
    info = _inspect_source(source)
    sidecar = _read_sidecar(source) if with_sidecar else None
    try:
        model = _load_engine(source, engine)
    except ModelError:
        raise
    except (MemoryError, RuntimeError, ValueError) as error:
        reason = "there is not enough memory" if isinstance(error, MemoryError) else type(error).__name__
        raise ModelError(f"fastText cannot load {source.name}: {reason}") from None
    source.check_unchanged()
    if sidecar is not None:
        try:
            sidecar.check_predictions(model.predict)
        except (RuntimeError, ValueError) as error:
            raise ModelError(str(error)) from None
    return _Opened(model, info)


def _read_sidecar(source: Source) -> Sidecar | None:
    """Read the sidecar of a model and hold the file against it; None where there is none."""
    path = sidecar_path(source.path)
    try:
        sidecar = read_sidecar(path)
    except OSError as error:
        raise ModelError(f"{show_name(path)} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ModelError(str(error)) from None
    if sidecar is not None:
        try:
            sidecar.check_size(source.identity[2])
            sidecar.check_sha256(source.hash())
        except ModelError:
            raise
        except ValueError as error:
            raise ModelError(str(error)) from None
    return sidecar
