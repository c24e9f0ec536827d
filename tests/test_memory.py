"""Nothing is leaked, whether requests are answered or refused."""

import gc
import os
from collections.abc import Callable

import pytest

from pyserve import Classifier
from pyserve._inference import EngineError, parse_form
from tests.support import FORM, Client, resident_bytes

pytestmark = pytest.mark.skipif("PYSERVE_SANITIZE" in os.environ, reason="ASan keeps freed memory for a while")

JSON = "application/json"
ROUNDS = 100_000


def grows(action: Callable[[], object], rounds: int) -> int:
    """How many bytes of resident memory an action leaves behind, after a warm-up."""
    for _ in range(rounds // 10):
        action()
    gc.collect()
    before = resident_bytes()
    for _ in range(rounds):
        action()
    gc.collect()
    return resident_bytes() - before


def raising(action: Callable[[], object], error: type[Exception]) -> Callable[[], None]:
    def run() -> None:
        try:
            action()
        except error:
            return
        raise AssertionError("nothing was raised")

    return run


@pytest.mark.parametrize(
    "body",
    [b"text=great", b"text=great&k=5&threshold=0.01", b"text=a&text=b", b"text=caf%C3%A9+%FF", b"text=" + b"a+" * 2500],
    ids=["one", "parameters", "two", "repaired", "long"],
)
def test_memory_answers(classifier: Classifier, body: bytes) -> None:
    rounds = ROUNDS if len(body) < 1000 else ROUNDS // 50
    assert grows(lambda: classifier.answer(body), rounds) < 1024 * 1024


@pytest.mark.parametrize(
    ("body", "content_type", "error"),
    [
        (b"", FORM, ValueError),
        (b"text=a&k=9", FORM, ValueError),
        (b"text=a&threshold=x", FORM, ValueError),
        (b"text=a&text=", FORM, ValueError),
        (b"text=a&k=1&k=1", FORM, ValueError),
        (b"&".join([b"text=a"] * 1001), FORM, ValueError),
        (b"{", JSON, ValueError),
        (b'{"text": 1}', JSON, ValueError),
        (b"a", "image/png", LookupError),
    ],
    ids=lambda value: value[:20] if isinstance(value, bytes) else None,
)
def test_memory_refusals(classifier: Classifier, body: bytes, content_type: str, error: type[Exception]) -> None:
    action = raising(lambda: classifier.answer(body, content_type), error)
    assert grows(action, ROUNDS if len(body) < 1000 else ROUNDS // 20) < 1024 * 1024


def test_memory_engine_fails() -> None:
    def fail(*_: object) -> list[tuple[float, str]]:
        raise RuntimeError("no")

    classifier = Classifier(fail, ["__label__a"])
    assert grows(raising(lambda: classifier.answer(b"text=a"), EngineError), ROUNDS) < 1024 * 1024
    wrong = Classifier(lambda *_: [(0.5, "no label")], ["__label__a"])
    assert grows(raising(lambda: wrong.answer(b"text=a&k=1"), KeyError), ROUNDS) < 1024 * 1024


@pytest.mark.parametrize(
    ("body", "content_type", "method", "path"),
    [
        (b"text=great", FORM, "POST", "/inferreview"),
        (b'{"text": ["great", "awful"]}', JSON, "POST", "/inferreview"),
        (b"", FORM, "POST", "/inferreview"),
        (b"text=great", "image/png", "POST", "/inferreview"),
        (b"", None, "GET", "/inferreview"),
        (b"", None, "GET", "/nothing"),
        (b"a" * 2000, FORM, "POST", "/inferreview"),
    ],
)
def test_memory_requests(classifier: Classifier, body: bytes, content_type: str | None, method: str, path: str) -> None:
    client = Client(classifier, {"max_body": 1000})
    assert grows(lambda: client(body, content_type, method=method, path=path), ROUNDS) < 1024 * 1024


def test_memory_parse_form_objects() -> None:
    """No object outlives a call that fails."""
    action = raising(lambda: parse_form(b"text=a&text=b&text="), ValueError)
    action()
    gc.collect()
    before = len(gc.get_objects())
    for _ in range(1000):
        action()
    assert len(gc.get_objects()) - before < 10
