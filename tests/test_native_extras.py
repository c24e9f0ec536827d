"""What the native engine gives beyond predictions: batches in threads, explanations, a pybind11 module."""

import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fasttext_pybind
import pytest

from pyserve import Classifier, load_model
from pyserve._inference import EngineError, format_line
from pyserve._native import NativeEngine
from pyserve._native_pybind import fasttext
from pyserve.comparison import make_probe
from tests.native_recipes import RECIPES, craft, make_limits, make_lines
from tests.support import load_binding

EXPLAINED = [name for name, recipe in RECIPES.items() if recipe.loss != "hs"]


@pytest.fixture
def nan_model(tmp_path: Path) -> Path:
    """A model that answers with what is not a number."""
    content = bytearray(make_probe())
    content[-4:] = b"\xff\xff\xff\xff"
    path = tmp_path / "nan.bin"
    path.write_bytes(content)
    return path


@pytest.fixture
def reluctant_threads() -> Iterator[None]:
    """Python threads that give way only where they release the GIL themselves."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.parametrize("threads", [1, 2, 7])
def test_batch_is_its_texts(train_recipe: Callable[[str], Path], threads: int) -> None:
    classifier = load_model(train_recipe("many-labels"), engine="native")
    texts = list(make_lines(500))
    for k, threshold in ((1, 0.0), (3, 0.001), (2700, 0.0)):
        some = texts[: 60 if k > 100 else None]
        expected = [classifier.predict(text, k=k, threshold=threshold) for text in some]
        assert classifier.predict_many(some, k=k, threshold=threshold, threads=threads) == expected
    assert classifier.predict_many([], threads=threads) == []


@pytest.mark.parametrize("threads", [0, 257, 1.0, True, None])
def test_batch_takes_a_number_of_threads(train_recipe: Callable[[str], Path], threads: Any) -> None:
    with pytest.raises(ValueError, match="1 to 256"):
        load_model(train_recipe("words"), engine="native").predict_many(["good"], threads=threads)


def test_batch_in_threads_needs_the_native_engine(train_recipe: Callable[[str], Path]) -> None:
    with pytest.raises(ValueError, match="native engine"):
        load_model(train_recipe("words")).predict_many(["good"], threads=2)


def test_batch_fails_as_a_text_does(nan_model: Path) -> None:
    engine = NativeEngine(nan_model)
    classifier = Classifier(engine, engine.info.labels)
    with pytest.raises(EngineError, match="NaN"):
        classifier.predict("probe")
    with pytest.raises(EngineError, match="NaN"):
        classifier.predict_many(["probe"] * 3)


@contextmanager
def counting_thread() -> Iterator[Callable[[], int]]:
    """Run a thread that counts its rounds. Give a function that returns how many there were since the context began."""
    rounds = 0
    done = threading.Event()

    def count() -> None:
        nonlocal rounds
        while not done.is_set():
            rounds += 1
            time.sleep(0)

    counter = threading.Thread(target=count)
    counter.start()
    try:
        while not rounds:
            time.sleep(0)
        before = rounds
        yield lambda: rounds - before
    finally:
        done.set()
        counter.join()


def test_batch_lets_other_threads_run(train_recipe: Callable[[str], Path], reluctant_threads: None) -> None:
    classifier = load_model(train_recipe("five-grams-subwords"), engine="native")
    texts = ["good book with a great plot " * 100] * 1000
    with counting_thread() as rounds:
        classifier.predict_many(texts)
        progress = rounds()
    assert progress > 0


def test_short_text_of_a_wide_model_lets_other_threads_run(tmp_path: Path, reluctant_threads: None) -> None:
    path = tmp_path / "model"
    path.write_bytes(craft([(b"good", 1)], [(b"__label__%d" % i, 1) for i in range(1500)], dim=100))
    engine = NativeEngine(path)
    with counting_thread() as rounds:
        calls = 0
        while not rounds() and calls < 5000:
            engine.predict("good book\n")
            calls += 1
        progress = rounds()
    assert progress > 0


def test_threads_share_an_engine(train_recipe: Callable[[str], Path]) -> None:
    classifier = load_model(train_recipe("packed-pruned"), engine="native")
    texts = list(make_lines(300))
    expected = [classifier.predict(text, k=4) for text in texts]
    wrong: list[bytes] = []

    def work() -> None:
        wrong.extend(
            text for text, pairs in zip(texts, expected, strict=True) if classifier.predict(text, k=4) != pairs
        )

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("name", EXPLAINED)
def test_explanation_adds_up_to_the_score(train_recipe: Callable[[str], Path], name: str) -> None:
    path = train_recipe(name)
    binding = load_binding(path)
    engine = NativeEngine(path)
    classifier = Classifier(engine, engine.info.labels, label_prefix="")
    hidden = fasttext_pybind.Vector(engine.info.dim)
    has_weights = not (engine.info.quantized and engine.info.qout)
    weights = memoryview(binding.getOutputMatrix()) if has_weights else None
    explained = 0
    for line in make_lines(60):
        if len(line) > 5000:
            continue
        found = classifier.explain(line)
        pairs = classifier.predict(line)
        assert [(found.label, found.confidence)] == (pairs or [(None, 0.0)])
        assert sum(token.share for token in found.tokens) == pytest.approx(found.score, rel=1e-9, abs=1e-12)
        assert found.words_known <= len(found.tokens)
        assert found.ngrams_known <= found.ngrams
        if not pairs or weights is None:
            continue
        binding.getSentenceVector(hidden, format_line(line))
        number = classifier.labels.index(pairs[0][0])
        score = sum(memoryview(hidden)[j] * weights[number, j] for j in range(engine.info.dim))
        assert found.score == pytest.approx(score, rel=1e-4, abs=1e-4)
        explained += 1
    assert explained > 20 or not has_weights


def test_explanation_of_words(train_recipe: Callable[[str], Path]) -> None:
    path = train_recipe("words")
    binding = load_binding(path)
    weights = memoryview(binding.getOutputMatrix())
    classifier = load_model(path, engine="native")
    found = classifier.explain("good nonsense book __label__1 good")
    assert [(token.token, token.known) for token in found.tokens] == [
        ("good", True),
        ("nonsense", False),
        ("book", True),
        ("good", True),
        ("</s>", True),
    ]
    assert (found.words_known, found.ngrams, found.ngrams_known) == (4, 0, 0)
    row = fasttext_pybind.Vector(4)
    number = classifier.labels.index(str(found.label))
    for token in found.tokens:
        share = 0.0
        if token.known:
            binding.getInputVector(row, binding.getWordId(token.token))
            share = sum(memoryview(row)[j] * weights[number, j] for j in range(4)) / 4
        assert token.share == pytest.approx(share, rel=1e-5, abs=1e-7)


def test_explanation_counts_ngrams(train_recipe: Callable[[str], Path]) -> None:
    whole = load_model(train_recipe("bigrams"), engine="native").explain("good book and film")
    assert (len(whole.tokens), whole.ngrams, whole.ngrams_known) == (5, 4, 4)
    pruned = load_model(train_recipe("packed-words-only"), engine="native").explain("good book and film")
    assert (pruned.ngrams, pruned.ngrams_known) == (0, 0)
    five = load_model(train_recipe("five-grams-subwords"), engine="native").explain("good book and film")
    assert five.ngrams == 4 + 3 + 2 + 1


def test_explanation_where_there_is_none(train_recipe: Callable[[str], Path], nan_model: Path) -> None:
    with pytest.raises(ValueError, match="native"):
        load_model(train_recipe("words")).explain("good")
    with pytest.raises(ValueError, match="hs"):
        load_model(train_recipe("hs-bigrams"), engine="native").explain("good")
    engine = NativeEngine(nan_model)
    with pytest.raises(EngineError, match="NaN"):
        Classifier(engine, engine.info.labels).explain("probe")
    empty = Classifier(engine, engine.info.labels).explain("nothing that it knows")
    assert (empty.label, empty.confidence, empty.score, empty.words_known) == (None, 0.0, 0.0, 0)
    assert [token.share for token in empty.tokens] == [0.0] * 5  # the end of the line is one


@pytest.mark.parametrize("name", ["bigrams", "packed-pruned", "hs-subwords", "other-prefix"])
def test_pybind_module_like_binding(train_recipe: Callable[[str], Path], name: str) -> None:
    path = train_recipe(name)
    binding = load_binding(path)
    native = fasttext(str(path))
    rng = random.Random(3)
    for line in make_lines(500):
        k, threshold = make_limits(rng, 9)
        answers = []
        for model in (binding, native):
            try:
                answers.append(model.predict(line, k, threshold, "strict"))
            except ValueError as error:
                answers.append(str(error))
        assert answers[0] == answers[1]
    assert native.predict("good book\n") == binding.predict("good book\n", 1, 0.0, "strict")


def test_pybind_module_fails_clearly(tmp_path: Path, nan_model: Path) -> None:
    with pytest.raises(FileNotFoundError):
        fasttext(str(tmp_path / "missing"))
    noise = tmp_path / "noise"
    noise.write_bytes(b"noise" * 10)
    with pytest.raises(ValueError, match="byte 0: this is no fastText model"):
        fasttext(str(noise))
    with pytest.raises(RuntimeError, match="NaN"):
        fasttext(str(nan_model)).predict("probe\n")


def test_labels_that_are_not_utf8(train_recipe: Callable[[str], Path], tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(train_recipe("words").read_bytes().replace(b"__label__0\0", b"__label__\xff\0"))
    binding = load_binding(path)
    for predict in (NativeEngine(path).predict, fasttext(str(path)).predict):
        for errors in ("replace", "surrogateescape", "ignore"):
            assert predict("good\n", -1, 0.0, errors) == binding.predict("good\n", -1, 0.0, errors)
        with pytest.raises(UnicodeDecodeError):
            predict("good\n", -1, 0.0, "strict")
