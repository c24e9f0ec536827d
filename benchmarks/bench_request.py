"""A whole WSGI call, without a server: the entry, Falcon alone, and what is left of it without the model."""

from collections.abc import Callable
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from pyserve import Classifier, create_app
from pyserve._inference import format_reply

pytestmark = pytest.mark.benchmark(group="one WSGI call")

Call = Callable[[Callable[..., Any]], Callable[[], Any]]


def test_request_floor(benchmark: BenchmarkFixture, call: Call) -> None:
    """An application that does nothing: the cost of the environ."""
    assert benchmark(call(lambda environ, start_response: [b"{}"])) == [b"{}"]


def test_request_constant_engine(
    benchmark: BenchmarkFixture, call: Call, constant_classifier: Classifier, text: str
) -> None:
    expected = [format_reply(constant_classifier.predict(text))]
    assert benchmark(call(create_app(constant_classifier).handle)) == expected


def test_request_entry(benchmark: BenchmarkFixture, call: Call, classifier: Classifier, text: str) -> None:
    assert benchmark(call(create_app(classifier).handle)) == [format_reply(classifier.predict(text))]


def test_request_falcon(benchmark: BenchmarkFixture, call: Call, classifier: Classifier, text: str) -> None:
    assert benchmark(call(create_app(classifier).falcon_app)) == [format_reply(classifier.predict(text))]
