"""What several test modules need and pytest does not provide."""

import io
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import fasttext_pybind

from pyserve import Classifier, create_app

FORM = "application/x-www-form-urlencoded"
ROUTE = "/inferreview"

# What fastText takes for white space, and what is none before or behind an end token.
END_TOKEN = re.compile(r"(?<![^ \n\r\t\v\f\0])</s>(?![^ \n\r\t\v\f\0])")


def expected_line(text: str) -> bytes:
    """The line that fastText should read for a text, by the rules and not by our code."""
    text = re.sub(r"[\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", text)
    text = END_TOKEN.sub("    ", text.replace("\n", " "))
    return text.encode() + b"\n"


def train(path: Path, words_by_label: dict[str, str], **options: Any) -> Path:
    """Train a small supervised model on generated lines and save it."""
    lines = []
    for label, words in words_by_label.items():
        parts = words.split()
        for i in range(60):
            lines.append(f"{label} {parts[i % len(parts)]} it is {parts[(i * 3 + 1) % len(parts)]} really")
    text = path.with_suffix(".txt")
    text.write_text("\n".join(lines) + "\n")
    args = fasttext_pybind.args()
    settings = {
        "input": str(text),
        "model": fasttext_pybind.model_name.supervised,
        "loss": fasttext_pybind.loss_name.softmax,
        "label": "__label__",
        "dim": 8,
        "epoch": 20,
        "lr": 0.5,
        "minCount": 1,
        "minn": 0,
        "maxn": 0,
        "bucket": 1000,
        "thread": 12,  # with fewer, fastText 0.9.3 leaves rows uninitialised
        "verbose": 0,
    }
    for name, value in {**settings, **options}.items():
        setattr(args, name, value)
    model = fasttext_pybind.fasttext()
    fasttext_pybind.train(model, args)
    model.saveModel(str(path))
    return path


def load_binding(path: Path) -> fasttext_pybind.fasttext:
    """Load a model in the binding itself, the oracle of predictions."""
    model = fasttext_pybind.fasttext()
    model.loadModel(str(path))
    return model


@dataclass(frozen=True)
class Reply:
    """A response of a WSGI application."""

    status: str
    headers: list[tuple[str, str]]
    body: bytes

    @property
    def code(self) -> int:
        return int(self.status.split()[0])

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)


def make_environ(
    body: bytes = b"",
    content_type: str | None = FORM,
    *,
    method: str = "POST",
    path: str = ROUTE,
    query: str = "",
    **more: Any,
) -> dict[str, Any]:
    """Make an environ as bjoern does: what the request lacks is missing."""
    environ: dict[str, Any] = {"REQUEST_METHOD": method, "SCRIPT_NAME": "", "PATH_INFO": path, "QUERY_STRING": query}
    setup_testing_defaults(environ)
    environ["wsgi.input"] = io.BytesIO(body)
    environ["wsgi.input_terminated"] = True
    environ["CONTENT_LENGTH"] = str(len(body))
    environ["CONTENT_TYPE"] = content_type
    environ.update(more)
    return {key: value for key, value in environ.items() if value is not None}


def call(app: Callable[..., Any], environ: dict[str, Any]) -> Reply:
    """Call a WSGI application."""
    started: list[Any] = []
    chunks = app(environ, lambda status, headers, exc_info=None: started.append((status, headers)))
    body = b"".join(chunks)
    (status, headers) = started[-1]
    return Reply(status, headers, body)


@dataclass
class Client:
    """Sends requests to an application made for a classifier."""

    classifier: Classifier
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.app = create_app(self.classifier, **self.options)

    def __call__(self, body: bytes = b"", content_type: str | None = FORM, **more: Any) -> Reply:
        return call(self.app, make_environ(body, content_type, **more))


@contextmanager
def deadline(seconds: float, what: str) -> Iterator[Callable[[], None]]:
    """Give a function that a polling loop calls on each round; it fails the test when the time is over."""
    end = time.monotonic() + seconds

    def tick() -> None:
        assert time.monotonic() < end, f"{what} took longer than {seconds} s"
        time.sleep(0.01)

    yield tick


def wait_for(condition: Callable[[], object], what: str, seconds: float = 20) -> None:
    """Wait until a condition holds; the test fails when it does not in time."""
    with deadline(seconds, what) as tick:
        while not condition():
            tick()


def resident_bytes(pid: int | str = "self") -> int:
    """The resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def preload(folder: Path, source: str) -> str:
    """Compile C functions that take the place of a library's. Return a value of LD_PRELOAD for a process with them."""
    path = folder / "preloaded.c"
    path.write_text(source)
    library = path.with_suffix(".so")
    compiler = os.environ.get("CXX", "g++")
    subprocess.run([compiler, "-xc", "-shared", "-fPIC", "-o", library, path, "-ldl"], check=True)
    return f"{os.environ.get('LD_PRELOAD', '')} {library}".strip()
