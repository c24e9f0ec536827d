"""Fetch the supervised models that fastText publishes.

Only ``pyserve fetch`` imports this module: pooch and what it needs have no place in a serving process.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pooch
import requests
import urllib3
from tqdm import tqdm

from pyserve.model import ModelError, hash_model, inspect_model
from pyserve.sidecar import read_sidecar, show_name, sidecar_path

UPSTREAM = "https://dl.fbaipublicfiles.com/fasttext/supervised-models"
LICENCE = "CC-BY-SA-3.0"
STAGING_PREFIX = ".fetch-"
CHUNK_BYTES = 4096  # written and counted at once: what is slower than one in the time-out counts as silent
POLL_SECONDS = 0.05


class FetchError(OSError):
    """A model could not be downloaded; the message says why."""


@dataclass(frozen=True)
class Published:
    """A model that fastText publishes.

    Attributes:
        file: the last part of its address.
        size: its size as the page says.
        about: what it tells apart.
        licence: an SPDX identifier, or nearly.
        sha256: its digest, where it is known.
    """

    file: str
    size: str
    about: str
    licence: str = LICENCE
    sha256: str | None = None


# Sizes are those of https://fasttext.cc/docs/en/supervised-models.html and .../language-identification.html.
PUBLISHED = (
    Published(
        "amazon_review_full.ftz",
        "1.6 MB",
        "reviews: 1 to 5 stars",
        sha256="814f71e0eaacfdff736949f6c1175ed835feb0f85976d70dcc9319cdccfca50f",
    ),
    Published("amazon_review_full.bin", "462 MB", "reviews: 1 to 5 stars"),
    Published("amazon_review_polarity.ftz", "1.6 MB", "reviews: bad or good"),
    Published("amazon_review_polarity.bin", "471 MB", "reviews: bad or good"),
    Published("yelp_review_full.ftz", "1.5 MB", "reviews: 1 to 5 stars"),
    Published("yelp_review_full.bin", "412 MB", "reviews: 1 to 5 stars"),
    Published("yelp_review_polarity.ftz", "1.5 MB", "reviews: bad or good"),
    Published("yelp_review_polarity.bin", "409 MB", "reviews: bad or good"),
    Published("ag_news.ftz", "1.6 MB", "news: 4 topics"),
    Published("ag_news.bin", "387 MB", "news: 4 topics"),
    Published("sogou_news.ftz", "1.4 MB", "news in Chinese, as pinyin: 5 topics"),
    Published("sogou_news.bin", "402 MB", "news in Chinese, as pinyin: 5 topics"),
    Published("dbpedia.ftz", "1.7 MB", "encyclopedia articles: 14 classes"),
    Published("dbpedia.bin", "427 MB", "encyclopedia articles: 14 classes"),
    Published("yahoo_answers.ftz", "1.6 MB", "questions: 10 topics"),
    Published("yahoo_answers.bin", "494 MB", "questions: 10 topics"),
    Published("lid.176.ftz", "917 kB", "any text: 176 languages"),
    Published("lid.176.bin", "126 MB", "any text: 176 languages"),
)


class DownloadBar(tqdm):  # type: ignore[misc]
    """A progress bar that also ends a download that was given up; not drawn where standard error is no terminal."""

    def __init__(self, name: str, given_up: threading.Event) -> None:
        self._name = name
        self._given_up = given_up
        super().__init__(desc=name, total=1, unit="B", unit_scale=True, ncols=79, disable=None, leave=False)

    def update(self, n: float | None = 1) -> bool | None:
        """Count bytes that have arrived."""
        if self._given_up.is_set():
            raise FetchError(f"cannot fetch {self._name}: given up")
        shown: bool | None = super().update(n)
        return shown


def find_published(name: str) -> Published:
    """Return the published model of this name; without an extension it is the compressed one.

    Raises:
        LookupError: there is none.
    """
    for published in PUBLISHED:
        if name in (published.file, published.file.removesuffix(".ftz")):
            return published
    raise LookupError("there is no published model of that name, `pyserve fetch --list` lists them")


def fetch_model(
    published: Published,
    directory: Path,
    *,
    mirror: str | None = None,
    sha256: str | None = None,
    timeout: float = 10.0,
    max_time: float | None = None,
) -> tuple[Path, bool]:
    """Download a model, check it, and only then give it its name.

    A file of that name that is intact is left alone; one that is not is replaced. What an interrupted download left
    behind is removed by the next one, which starts anew.

    Args:
        published: which one.
        directory: where it goes; made if it is not there.
        mirror: an address to use in place of fastText's; the file's name is appended to it.
        sha256: the digest that it must have, where the table does not know it or the mirror has another file.
        timeout: for how many seconds nothing may arrive.
        max_time: for how many seconds the whole may last; no limit where it is None.

    Returns:
        The file, and whether it was downloaded now.

    Raises:
        FetchError: it could not be downloaded.
        ModelError: what arrived is not what it should be.
        OSError: it cannot be written.
        ValueError: the mirror is no address of the web.
    """
    url = f"{(mirror or UPSTREAM).rstrip('/')}/{published.file}"
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
        raise ValueError("a mirror is an address that starts with http:// or https://")
    expected = sha256 or published.sha256
    target = directory / published.file
    if target.exists():
        with contextlib.suppress(ModelError):
            check_file(target, target, expected)
            return target, False
    is_made = not directory.exists()
    directory.mkdir(parents=True, exist_ok=True)
    try:
        with open_staging(directory) as staging:
            staged = staging / published.file
            download_within(url, staged, timeout, max_time)
            check_file(staged, target, expected)
            with staged.open("rb") as file:
                os.fsync(file.fileno())
                os.fchmod(file.fileno(), 0o666 & ~read_umask())  # temporary files are for their owner alone
            staged.replace(target)
    finally:
        if is_made:
            with contextlib.suppress(OSError):
                directory.rmdir()  # empty, where nothing came of it
    return target, True


def read_umask() -> int:
    """Return the process's umask, which can only be read by setting it."""
    umask = os.umask(0o077)
    os.umask(umask)
    return umask


def check_file(path: Path, target: Path, expected: str | None) -> None:
    """Check a file that is, or is to become, ``target``; a sidecar that already lies there holds for it.

    Raises:
        ModelError: a check failed.
    """
    info = inspect_model(path)
    digest = hash_model(path)
    if expected is not None and digest != expected:
        raise ModelError(f"the sha256 of {path.name} should be {expected}, it is {digest}")
    try:
        sidecar = read_sidecar(sidecar_path(target))
        if sidecar is not None:
            sidecar.check_size(info.size)
            sidecar.check_sha256(digest)
    except ValueError as error:
        raise ModelError(str(error)) from None
    except OSError as error:
        raise ModelError(f"{show_name(sidecar_path(target))} cannot be read: {error.strerror}") from None


def download_within(url: str, path: Path, timeout: float, max_time: float | None) -> None:
    """Download one file, within limits that hold even while the name of a host is looked up.

    Raises:
        FetchError: it could not be downloaded, or not in time. In the latter case the attempt ends by itself, with what
            arrives next, with the connection's own time-out or with the process.
    """
    errors: list[BaseException] = []
    given_up = threading.Event()

    def run() -> None:
        try:
            download(url, path, timeout, given_up)
        except BaseException as error:  # raised below, in the caller's thread
            errors.append(error)

    host = urlsplit(url).hostname
    thread = threading.Thread(target=run, daemon=True)
    started = heard = time.monotonic()
    arrived = 0
    thread.start()
    try:
        while thread.is_alive():
            thread.join(POLL_SECONDS)
            now = time.monotonic()
            size = count_bytes(path.parent)
            if size != arrived:
                arrived, heard = size, now
            if max_time is not None and now - started > max_time:
                raise FetchError(f"cannot fetch {path.name}: it did not arrive within {max_time:g} s")
            # The connection has the same limit; this one also covers several addresses of a host, each tried in turn.
            if now - heard > timeout + 2 * POLL_SECONDS:
                raise FetchError(f"cannot fetch {path.name}: {host} sent nothing for {timeout:g} s")
    finally:
        given_up.set()
    if errors:
        raise errors[0]


def count_bytes(directory: Path) -> int:
    """Return how many bytes the files of a directory hold; they may come and go meanwhile."""
    size = 0
    for path in directory.iterdir():
        with contextlib.suppress(FileNotFoundError):
            size += path.stat().st_size
    return size


def download(url: str, path: Path, timeout: float, given_up: threading.Event) -> None:
    """Download one file.

    Raises:
        FetchError: it could not be downloaded, or nobody waits for it any more.
    """

    def close_later(response: requests.Response, *_: object, **__: object) -> None:
        responses.callback(response.close)

    pooch.get_logger().setLevel("WARNING")
    bar = DownloadBar(path.name, given_up)
    with contextlib.ExitStack() as responses, contextlib.closing(bar):
        downloader = pooch.HTTPDownloader(
            progressbar=bar, chunk_size=CHUNK_BYTES, timeout=timeout, hooks={"response": close_later}
        )
        try:
            pooch.retrieve(url, known_hash=None, fname=path.name, path=path.parent, downloader=downloader)
        except requests.RequestException as error:
            reason = explain(error, urlsplit(url).hostname, timeout)
            raise FetchError(f"cannot fetch {path.name}: {reason}") from None


def explain(error: requests.RequestException, host: str | None, timeout: float) -> str:
    """Say what went wrong, in words and without the address, which may hold a password."""
    if isinstance(error, requests.HTTPError):
        status = "an error" if error.response is None else f"status {error.response.status_code}"
        return f"{host} answered with {status}"
    causes = [error, *error.args]
    if isinstance(error, requests.Timeout) or any(isinstance(c, urllib3.exceptions.ReadTimeoutError) for c in causes):
        return f"{host} sent nothing for {timeout:g} s"
    if isinstance(error, requests.exceptions.SSLError):
        return f"the certificate of {host} was not accepted"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return f"the connection to {host} was cut before the end"
    if isinstance(error, requests.ConnectionError):
        return f"{host} cannot be reached, is there a network?"
    return f"{host} answered what is no answer ({type(error).__name__})"


@contextlib.contextmanager
def open_staging(directory: Path) -> Iterator[Path]:
    """Make a directory for a download, beside the file's final place; it is locked as long as it is in use."""
    with open_directory(directory) as gate:
        fcntl.flock(gate, fcntl.LOCK_EX)
        remove_abandoned(directory)
        staging = Path(tempfile.mkdtemp(prefix=STAGING_PREFIX, dir=directory))
        lock = os.open(staging, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        os.close(lock)


def remove_abandoned(directory: Path) -> None:
    """Remove what killed downloads left behind; those that are still under way hold a lock."""
    for staging in directory.glob(f"{STAGING_PREFIX}*"):
        with contextlib.suppress(OSError), open_directory(staging) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(staging, ignore_errors=True)


@contextlib.contextmanager
def open_directory(path: Path) -> Iterator[int]:
    """Open a directory and yield its descriptor."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
