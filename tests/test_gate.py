"""The gate by itself: what it passes on, what it refuses, what it counts and what it adds."""

import gc
import json
import sys
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import falcon
import pytest

from pyserve import Classifier, create_app, load_model
from pyserve._body import IO
from pyserve._gate import Closing, ConnectionDone, Gate, sweep_lost
from pyserve._metrics import Metrics
from tests.support import FORM, ROUTE

Environ = dict[str, Any]


class CycleResource:
    def __init__(self, gate: Gate) -> None:
        self.gate = gate

    def on_get(self, req: falcon.Request, resp: falcon.Response) -> None:
        raise AssertionError("nobody asks")


class Caller:
    """Calls a gate as bjoern does, and owns the address as a connection does."""

    def __init__(self, classifier: Classifier) -> None:
        self.metrics = Metrics(2)
        numbers = self.metrics.set_model("stars.bin", "0" * 64, classifier.labels)
        self.gate = Gate(create_app(classifier), self.metrics, 0, label_numbers=numbers)
        self.address = ".".join(["127", "0", "0", "1"])

    def environ(self, body: bytes = b"text=great", **more: str) -> Environ:
        stream = IO().BytesIO()
        if body:
            stream.write(body)
            stream.seek(0)
        environ = {
            "REQUEST_METHOD": "POST",
            "PATH_INFO": ROUTE,
            "CONTENT_TYPE": FORM,
            "CONTENT_LENGTH": str(len(body)),
            "SERVER_PROTOCOL": "HTTP/1.1",
            "SERVER_NAME": "127.0.0.1",
            "SERVER_PORT": "9000",
            "SCRIPT_NAME": "",
            "REMOTE_ADDR": self.address,
            "wsgi.input": stream,
            "wsgi.input_terminated": True,
            "wsgi.url_scheme": "http",
            "wsgi.errors": None,
            "wsgi.version": (1, 0),
            **more,
        }
        return {name: value for name, value in environ.items() if value != ""}

    def __call__(self, environ: Environ) -> tuple[int, dict[str, str], Any]:
        answers: list[tuple[str, dict[str, str]]] = []
        response = self.gate.handle(environ, lambda status, headers: answers.append((status, dict(headers))))
        ((status, headers),) = answers
        return int(status[:3]), headers, response

    def count(self, name: str) -> Any:
        return self.metrics.snapshot()[name]


@pytest.fixture
def caller(classifier: Classifier) -> Iterable[Caller]:
    return Caller(classifier)


def body_of(response: Any) -> bytes:
    """The bytes of a response; one that closes the connection ends with an exception."""
    if isinstance(response, list):
        return b"".join(response)
    assert isinstance(response, Closing)
    first = next(response)
    with pytest.raises(ConnectionDone):
        next(response)
    return first


def test_gate_passes_on(caller: Caller, classifier: Classifier) -> None:
    expected = classifier.answer(b"text=great")
    assert caller.count("texts") == 1
    status, headers, response = caller(caller.environ())
    assert status == 200
    assert body_of(response) == expected
    assert headers == {"content-length": str(len(body_of(response))), "content-type": "application/json"}
    assert caller.count("requests") == {(ROUTE, "200"): 1}
    assert caller.count("bytes_in") == len(b"text=great")
    assert caller.count("bytes_out") == len(body_of(response))
    assert caller.count("texts") == caller.count("predict")[0][-1] == 2
    assert caller.count("latency")[0][-1] == 1


@pytest.mark.parametrize("complete", [True, False])
def test_gate_refuses_what_follows_a_lost_request(caller: Caller, complete: bool) -> None:
    lost = caller.environ()
    environ = caller.environ()
    if not complete:
        del environ["REMOTE_ADDR"], environ["REQUEST_METHOD"]
    status, headers, response = caller(environ)
    assert status == 400
    assert "pipelining" in json.loads(body_of(response))["Error"]
    assert headers["connection"] == "close"
    assert caller.count("refused")["pipelined"] == 1
    assert lost["PATH_INFO"] == ROUTE  # it has an owner, so it was not freed


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ({"CONTENT_LENGTH": "1010"}, "length"),
        ({"CONTENT_LENGTH": "9"}, "length"),
        ({"CONTENT_LENGTH": "\xb2"}, "length"),
        ({"CONTENT_LENGTH": "+10"}, "length"),
        ({"CONTENT_LENGTH": "1" * 30}, "length"),
        ({"CONTENT_LENGTH": ""}, "length"),
        ({"HTTP_TRANSFER_ENCODING": "chunked"}, "transfer_encoding"),
        ({"HTTP_TRANSFER_ENCODING": "gzip", "CONTENT_LENGTH": ""}, "transfer_encoding"),
        ({"PATH_INFO": ""}, "no_path"),
    ],
)
def test_gate_refuses_contradictions(caller: Caller, change: dict[str, str], cause: str) -> None:
    status, headers, response = caller(caller.environ(**change))
    assert status == 400
    assert list(json.loads(body_of(response))) == ["Error"]
    assert headers["x-request-id"]
    assert caller.count("refused")[cause] == 1


@pytest.mark.parametrize("change", [{}, {"CONTENT_LENGTH": "10 "}, {"CONTENT_LENGTH": "010"}])
def test_gate_takes_lengths_that_are_right(caller: Caller, change: dict[str, str]) -> None:
    assert caller(caller.environ(**change))[0] == 200


@pytest.mark.parametrize("change", [{}, {"CONTENT_TYPE": "text/plain"}, {"PATH_INFO": "/nothing"}])
def test_draining_gate_closes(caller: Caller, change: dict[str, str]) -> None:
    caller.gate.drain()
    _, headers, response = caller(caller.environ(**change))
    assert headers["connection"] == "close"
    assert isinstance(response, Closing)
    assert body_of(response)


def test_gate_survives_applications_that_fail(caller: Caller) -> None:
    def fail(environ: Environ, start_response: Callable[..., Any]) -> list[bytes]:
        raise RuntimeError("secret")

    gate = Gate(fail, caller.metrics, 1)
    answers: list[Any] = []
    response = gate.handle(caller.environ(), lambda *answer: answers.append(answer))
    assert answers[0][0].startswith("500")
    assert b"secret" not in b"".join(response)
    assert caller.count("requests") == {(ROUTE, "500"): 1}


def test_gate_joins_what_an_application_yields(caller: Caller) -> None:
    def application(environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        start_response("200 OK", [])
        yield b"a"
        yield b"b"

    assert Gate(application, caller.metrics, 1).handle(caller.environ(), lambda *answer: None) == [b"ab"]


def test_kept_environ_is_not_taken_for_a_lost_one(caller: Caller) -> None:
    kept = caller.environ(CONTENT_TYPE="text/plain")
    assert caller(kept)[0] == 200
    assert caller(caller.environ())[0] == 200


def test_sweep_leaves_owned_environs_alone(caller: Caller) -> None:
    owned = [caller.environ() for _ in range(100)]
    assert sweep_lost() == 0
    assert all(environ["PATH_INFO"] == ROUTE for environ in owned)


def test_sweep_leaves_kept_environs_alone(caller: Caller) -> None:
    """An application may keep an environ; its connection may be gone."""
    kept = [caller.environ(PATH_INFO="/nothing")]
    caller.gate.handle(kept[0], lambda *answer: None)
    before = sys.getrefcount(kept[0])
    assert sweep_lost() == 0
    after = sys.getrefcount(kept[0])
    assert after == before


def test_gate_in_a_cycle_leaves_the_classifier_usable(star_model: Path) -> None:
    classifier = load_model(star_model)
    caller = Caller(classifier)
    caller.gate.application.falcon_app.add_route("/cycle", CycleResource(caller.gate))
    expected = classifier.answer(b"text=great")
    assert caller.count("texts") == 1
    freed = weakref.ref(caller)
    del caller
    gc.collect()
    assert freed() is None
    assert classifier.answer(b"text=great") == expected


def test_snapshot_sums_all_slots(classifier: Classifier) -> None:
    caller = Caller(classifier)
    second = Gate(create_app(classifier), caller.metrics, 1, label_numbers=range(len(classifier.labels)))
    for gate in (caller.gate, second, second):
        gate.handle(caller.environ(PATH_INFO="/nothing"), lambda *answer: None)
    assert caller.count("requests") == {("other", "404"): 3}


def test_labels_keep_their_numbers_over_reloads() -> None:
    metrics = Metrics(1)
    assert metrics.set_model("a", "", ["x", "y"]) == [0, 1]
    assert metrics.set_model("b", "", ["y", "z", "x"]) == [1, 2, 0]
    many = [f"label {number}" for number in range(2000)]
    numbers = metrics.set_model("c", "", many)
    assert numbers[:3] == [3, 4, 5]
    assert max(numbers) == 1024
    assert len(set(numbers)) == 1024 - 3 + 1
    long = ["é" * 500, "é" * 500 + "x", "with\0nul"]
    assert len(Metrics(1).set_model("d", "", long)) == 3


def test_slots_are_handed_on() -> None:
    metrics = Metrics(2)
    assert [metrics.claim(), metrics.claim()] == [0, 1]
    with pytest.raises(RuntimeError, match="too many workers"):
        metrics.claim()
    metrics.release(0)
    assert metrics.claim() == 0
    with pytest.raises(IndexError):
        metrics.release(2)
    with pytest.raises(ValueError, match="at least 1"):
        Metrics(0)
