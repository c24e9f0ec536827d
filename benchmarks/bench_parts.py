"""The parts of a request, each beside its twin in the standard library or in Falcon."""

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs

import pytest
from falcon.uri import parse_query_string
from pytest_benchmark.fixture import BenchmarkFixture

from pyserve import Classifier
from pyserve._inference import format_reply, parse_form, parse_json

PAIRS = [("5 star", 0.754497230052948), ("4 star", 0.24523349106311798)]


@pytest.mark.benchmark(group="parse a form")
class TestForm:
    def test_form_ours(self, benchmark: BenchmarkFixture, form: bytes, text: str) -> None:
        assert benchmark(parse_form, form)[0] == [text.encode() + b"\n"]

    def test_form_falcon(self, benchmark: BenchmarkFixture, form: bytes, text: str) -> None:
        assert benchmark(lambda: parse_query_string(form.decode("ascii"), keep_blank=True, csv=False)) == {"text": text}

    def test_form_stdlib(self, benchmark: BenchmarkFixture, form: bytes, text: str) -> None:
        assert benchmark(lambda: parse_qs(form.decode("ascii"))) == {"text": [text]}


@pytest.mark.benchmark(group="parse JSON")
class TestJson:
    def test_json_ours(self, benchmark: BenchmarkFixture, text: str) -> None:
        body = json.dumps({"text": text}).encode()
        assert benchmark(parse_json, body)[0] == [text.encode() + b"\n"]

    def test_json_stdlib(self, benchmark: BenchmarkFixture, text: str) -> None:
        body = json.dumps({"text": text}).encode()
        assert benchmark(json.loads, body) == {"text": text}


@pytest.mark.benchmark(group="format a reply")
@pytest.mark.parametrize("count", [1, 2])
class TestReply:
    def test_reply_ours(self, benchmark: BenchmarkFixture, count: int) -> None:
        reply = benchmark(format_reply, PAIRS[:count])
        assert json.loads(reply) == pytest.approx(dict(PAIRS[:count]), abs=1e-10)

    def test_reply_stdlib(self, benchmark: BenchmarkFixture, count: int) -> None:
        pairs = PAIRS[:count]
        reply = benchmark(lambda: json.dumps({k: round(v, 10) for k, v in pairs}, separators=(",", ":")).encode())
        assert reply == format_reply(pairs)


@pytest.mark.benchmark(group="predict")
class TestPredict:
    def test_predict_binding(self, benchmark: BenchmarkFixture, binding: Any, text: str) -> None:
        line = text.encode() + b"\n"
        (pair,) = benchmark(lambda: binding.predict(line, 1, 0.0, "strict"))
        assert pair[0] > 0.2

    def test_predict_ours(self, benchmark: BenchmarkFixture, classifier: Classifier, binding: Any, text: str) -> None:
        ((_, confidence),) = benchmark(classifier.predict, text)
        assert confidence == binding.predict(text.encode() + b"\n", 1, 0.0, "strict")[0][0]

    def test_predict_many_ours(self, benchmark: BenchmarkFixture, classifier: Classifier, text: str) -> None:
        replies = benchmark(classifier.predict_many, [text] * 100)
        assert replies == [classifier.predict(text)] * 100


@pytest.mark.benchmark(group="answer")
class TestAnswer:
    def test_answer_form(
        self, benchmark: BenchmarkFixture, classifier: Classifier, form: bytes, answer: Callable[[], bytes]
    ) -> None:
        assert benchmark(classifier.answer, form) == answer()

    def test_answer_json(
        self, benchmark: BenchmarkFixture, classifier: Classifier, text: str, answer: Callable[[], bytes]
    ) -> None:
        body = json.dumps({"text": text}).encode()
        assert benchmark(classifier.answer, body, "application/json") == answer()


@pytest.fixture
def answer(classifier: Classifier, text: str) -> Callable[[], bytes]:
    return lambda: format_reply(classifier.predict(text))
