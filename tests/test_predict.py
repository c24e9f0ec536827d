"""Predictions are those of fastText for the same line."""

import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyserve import Classifier, load_model
from pyserve._inference import EngineError, format_line
from tests.support import expected_line, load_binding

PIECES = [
    *("great", "awful", "love", "it", "is", "really", "not", "café", "naïve", "日本語", "😀", "\U0010ffff", "e\u0301"),
    *("\n", "\r\n", "\t", "\v", "\f", "\0", " ", "  ", "\u00a0", "\u2028", "\x1c", "\x85"),
    *("</s>", "<s>", " </s> ", "a</s>", "</s>b", "__label__5", "__label__", " __label__9x ", "\ud800", "\udfff"),
    *("x" * 3000, "%", "+", "&text=", '"', "\\", "{}", "!?.,", "GREAT"),
]


def make_texts(count: int) -> list[str]:
    """Texts that are unkind to a tokeniser, the same on every run."""
    chance = random.Random(20180401)
    texts = ["", "\n", "\n\n", " ", "\0", "</s>", "</s>\n</s>", "__label__1", "word " * 20_000, "w" * 100_000]
    while len(texts) < count:
        joint = chance.choice(["", " ", " ", " "])
        texts.append(joint.join(chance.choices(PIECES, k=chance.randint(1, 12))))
    return texts


def expected_pairs(model: Any, text: str, k: int, threshold: float) -> list[tuple[str, float]]:
    pairs = model.predict(expected_line(text), k, threshold, "strict")
    return [(label.removeprefix("__label__") + " star", confidence) for confidence, label in pairs]


@pytest.mark.parametrize(("text", "label"), [("great love", "5 star"), ("awful waste", "1 star"), ("okay", "3 star")])
def test_predict_learned(classifier: Classifier, text: str, label: str) -> None:
    assert classifier.predict(text)[0][0] == label


def test_predict_like_binding(classifier: Classifier, star_model: Path) -> None:
    model = load_binding(star_model)
    texts = make_texts(4000)
    for number, text in enumerate(texts):
        k, threshold = 1 + number % 5, (number % 7) / 10
        assert classifier.predict(text, k=k, threshold=threshold) == expected_pairs(model, text, k, threshold), text
    assert classifier.predict_many(texts, k=5) == [expected_pairs(model, text, 5, 0.0) for text in texts]


def test_predict_like_binding_real(real_classifier: Classifier, real_model: Path) -> None:
    model = load_binding(real_model)
    for text in make_texts(4000):
        assert real_classifier.predict(text, k=5) == expected_pairs(model, text, 5, 0.0), text


@given(text=st.text())
def test_predict_any_text(classifier: Classifier, text: str) -> None:
    assert format_line(text) == expected_line(text)
    pairs = classifier.predict(text, k=5)
    assert len(pairs) == 5
    assert pairs == sorted(pairs, key=lambda pair: -pair[1])


def test_predict_like_command_line(classifier: Classifier, star_model: Path) -> None:
    command = shutil.which("fasttext")
    if command is None:
        pytest.skip("needs the fasttext command (Debian package fasttext)")
    # The command prints nothing for a line without words, so leave none without.
    texts = [text for text in make_texts(3000) if classifier.predict(text)]
    lines = b"".join(expected_line(text) for text in texts)
    done = subprocess.run(
        [command, "predict-prob", str(star_model), "-", "5"], input=lines, capture_output=True, check=True, timeout=60
    )
    printed = done.stdout.decode().splitlines()
    assert len(printed) == len(texts)
    for text, line in zip(texts, printed, strict=True):
        fields = line.split(" ")
        pairs = classifier.predict(text, k=5)
        assert [label.removesuffix(" star") for label, _ in pairs] == [
            label.removeprefix("__label__") for label in fields[0::2]
        ], text
        # The command prints six significant digits.
        for (_, confidence), number in zip(pairs, fields[1::2], strict=True):
            assert f"{confidence:g}" == f"{float(number):g}", text


def test_predict_article(real_classifier: Classifier) -> None:
    assert real_classifier.answer(b"text=I+love+this+product") == b'{"5 star":0.7544972301}'
    assert real_classifier.labels == ("2 star", "1 star", "5 star", "3 star", "4 star")


def test_predict_end_token_does_not_cut(real_classifier: Classifier) -> None:
    whole = real_classifier.predict("great book </s> terrible awful waste")
    assert whole == real_classifier.predict("great book terrible awful waste")
    assert whole != real_classifier.predict("great book")


def test_predict_subclass_of_str(classifier: Classifier) -> None:
    class Text(str):
        __slots__ = ()

    for text in ("great love", "café \ud800"):
        assert classifier.predict(Text(text)) == classifier.predict(text)
        assert classifier.predict_many([Text(text)]) == [classifier.predict(text)]


def test_predict_bytes_is_utf8(classifier: Classifier) -> None:
    assert classifier.predict("café great".encode()) == classifier.predict("café great")


@pytest.mark.parametrize("k", [0, -1, 6, 10**30, True, 1.0, "1", None])
def test_predict_wrong_k(classifier: Classifier, k: Any) -> None:
    with pytest.raises(ValueError, match="param 'k' must be an integer from 1 to 5"):
        classifier.predict("great", k=k)
    with pytest.raises(ValueError, match="param 'k' must be an integer from 1 to 5"):
        classifier.predict_many([], k=k)


@pytest.mark.parametrize("threshold", [-0.1, 1.0001, float("nan"), float("inf"), "0.5", None, True])
def test_predict_wrong_threshold(classifier: Classifier, threshold: Any) -> None:
    with pytest.raises(ValueError, match="param 'threshold' must be a number from 0 to 1"):
        classifier.predict("great", threshold=threshold)


@pytest.mark.parametrize("text", [None, 1, ["great"], bytearray(b"great")])
def test_predict_wrong_type(classifier: Classifier, text: Any) -> None:
    with pytest.raises(TypeError, match="a text must be str or bytes, not"):
        classifier.predict(text)


def test_predict_many_of_one_text(classifier: Classifier) -> None:
    with pytest.raises(TypeError, match="a list of texts"):
        classifier.predict_many("great")


def test_labels_hostile(hostile_classifier: Classifier) -> None:
    assert set(hostile_classifier.labels) == {
        '"quoted"', "back\\slash", "tab\x1bescape", "日本語", "{}", "</script>", "__label__", "a,b:c",
    }  # fmt: skip


def test_label_format(star_model: Path) -> None:
    assert load_model(star_model, label_format="stars: {}!").predict("great")[0][0] == "stars: 5!"


@pytest.mark.parametrize("label_format", ["", "star", "{} {}", "{0}", "{name}"])
def test_label_format_wrong(star_model: Path, label_format: str) -> None:
    with pytest.raises(ValueError, match=r"must hold \{\} once"):
        load_model(star_model, label_format=label_format)


def test_label_not_utf8() -> None:
    classifier = Classifier(lambda *_: [(0.5, "__label__\udcff")], ["__label__\udcff", "__label__\udcfe"])
    assert classifier.answer(b"text=a") == '{"\ufffd":0.5}'.encode()


@pytest.mark.parametrize(
    ("labels", "message"), [([], "at least one label"), (["__label__a", "__label__a"], "must be distinct")]
)
def test_labels_wrong(labels: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Classifier(lambda *_: [], labels)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("Encountered NaN."), "RuntimeError: Encountered NaN."),
        (MemoryError("std::bad_alloc"), "MemoryError: std::bad_alloc"),
        (TypeError("incompatible arguments: b'secret text'"), "TypeError"),
    ],
)
def test_engine_fails(error: Exception, message: str) -> None:
    def fail(*_: object) -> list[tuple[float, str]]:
        raise error

    with pytest.raises(EngineError) as caught:
        Classifier(fail, ["__label__a"]).predict("secret text")
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("pairs", "error"),
    [
        ([(0.5, "__label__a"), (0.5, "__label__a")], EngineError),
        ([(float("nan"), "__label__a")], EngineError),
    ],
)
def test_engine_answers_wrongly(pairs: list[tuple[float, str]], error: type[Exception]) -> None:
    with pytest.raises(error):
        Classifier(lambda *_: pairs, ["__label__a"]).answer(b"text=a")
