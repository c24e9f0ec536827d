"""What the microbenchmarks share, and the report of where a request's time goes."""

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fasttext_pybind
import pytest

import pyserve
from benchmarks import baseline
from benchmarks.data import PRODUCT_TEXT, REVIEW, encode_form
from benchmarks.machine import read_commit
from pyserve import Classifier, load_model
from pyserve.model import find_model

TEXTS = {"short": PRODUCT_TEXT, "review": REVIEW}


@pytest.fixture(scope="session")
def model_path() -> Path:
    """The model that is measured: PYSERVE_TEST_MODEL, or the best in models/."""
    named = os.environ.get("PYSERVE_TEST_MODEL")
    return Path(named) if named else find_model()


@pytest.fixture(scope="session")
def binding(model_path: Path) -> fasttext_pybind.fasttext:
    """The model in fastText's own binding."""
    model = fasttext_pybind.fasttext()
    model.loadModel(str(model_path))
    return model


@pytest.fixture(scope="session")
def classifier(model_path: Path) -> Classifier:
    return load_model(model_path)


@pytest.fixture(params=TEXTS)
def text(request: pytest.FixtureRequest) -> str:
    """A text of a few words, and a review of average length."""
    return TEXTS[request.param]


@pytest.fixture
def form(text: str) -> bytes:
    return encode_form(text)


@pytest.fixture
def constant_classifier(binding: fasttext_pybind.fasttext, text: str) -> Classifier:
    """A classifier whose engine costs nothing: all that it takes is ours."""
    labels, _ = binding.getLabels("surrogateescape")
    answer = binding.predict(text.encode() + b"\n", 1, 0.0, "strict")
    return Classifier(lambda line, k, threshold, errors: answer, labels)


@pytest.fixture
def call(form: bytes) -> Callable[[Callable[..., Any]], Callable[[], Any]]:
    """Return a function that turns a WSGI application into a call of it with a new environ, as bjoern makes it."""
    template = {
        "REQUEST_METHOD": "POST",
        "PATH_INFO": "/inferreview",
        "CONTENT_TYPE": "application/x-www-form-urlencoded",
        "CONTENT_LENGTH": str(len(form)),
        "HTTP_HOST": "localhost:9000",
        "HTTP_USER_AGENT": "benchmark",
        "HTTP_ACCEPT": "*/*",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "9000",
        "REMOTE_ADDR": "127.0.0.1",
        "SCRIPT_NAME": "",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.errors": io.StringIO(),
        "wsgi.input_terminated": True,
        "wsgi.multithread": False,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: object = None) -> None:
        assert status == "200 OK"

    def prepare(app: Callable[..., Any]) -> Callable[[], Any]:
        def run() -> Any:
            environ = dict(template)
            environ["wsgi.input"] = io.BytesIO(form)
            return app(environ, start_response)

        return run

    return prepare


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--save-baseline", action="store_true", help="save the timings as those of this release")


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say what share of a WSGI call is the model and what share is ours, and how all compares with the last release."""
    session = getattr(config, "_benchmarksession", None)
    summarise_shares(terminalreporter, session)
    timings = {
        bench.name: baseline.Timing(bench.stats.median, bench.stats.q1, bench.stats.q3)
        for bench in (session.benchmarks if session else [])
        if bench.stats.rounds
    }
    if not timings:
        return
    machine = baseline.describe_machine()
    path = baseline.find_baseline(machine)
    if config.getoption("--save-baseline"):
        baseline.save(path, timings, {"version": pyserve.__version__, "commit": read_commit(), **machine})
        terminalreporter.write_line(f"saved as the baseline of {pyserve.__version__}: {path.name}")
    else:
        for line in baseline.report(timings, path):
            terminalreporter.write_line(line, red=line.startswith("REGRESSION"))


def summarise_shares(terminalreporter: pytest.TerminalReporter, session: Any) -> None:
    """Say what share of a WSGI call is the model and what share is ours."""
    medians = {bench.name: bench.stats.median for bench in session.benchmarks if bench.stats.rounds} if session else {}
    for size in TEXTS:
        names = [f"test_request_floor[{size}]", f"test_predict_binding[{size}]", f"test_request_entry[{size}]"]
        if not set(names) <= set(medians):
            continue
        floor, model, call = (1e6 * medians[name] for name in names)
        call -= floor
        terminalreporter.write_line(
            f"one WSGI call, {size} text: {call:.2f} us, of which the model's predict {model:.2f} us "
            f"({100 * model / call:.0f} %) and ours {call - model:.2f} us ({100 * (call - model) / call:.0f} %)"
        )
