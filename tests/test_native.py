"""The native engine answers what the binding answers, to the last bit."""

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fasttext_pybind
import pytest

from pyserve import Classifier
from pyserve._model_file import FormatError, inspect
from pyserve._native import KERNELS, NativeEngine, supported_kernels
from tests.native_recipes import RECIPES, make_limits, make_lines
from tests.trained_models import train

Predict = Callable[[bytes, int, float, str], list[tuple[float, str]]]


@pytest.fixture(scope="session")
def train_recipe(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    directory = tmp_path_factory.mktemp("native")

    def train_once(name: str) -> Path:
        path = directory / f"{name}.model"
        return path if path.exists() else train(path, RECIPES[name])

    return train_once


def load_binding(path: Path) -> Any:
    model = fasttext_pybind.fasttext()
    model.loadModel(str(path))
    return model


def answer(predict: Predict, line: bytes, k: int, threshold: float) -> object:
    """Return what an engine answers, or which error it raises."""
    try:
        return predict(line, k, threshold, "surrogateescape")
    except (RuntimeError, ValueError) as error:
        return type(error), str(error)


def compare(path: Path, lines: int, seed: int = 5, kernels: tuple[str, ...] = KERNELS) -> int:
    """Hold all kernels against the binding. Return how many lines had an answer."""
    binding = load_binding(path)
    engines = [NativeEngine(path, kernel=kernel) for kernel in kernels if kernel in supported_kernels()]
    rng = random.Random(seed)
    answered = 0
    for line in make_lines(lines, seed):
        k, threshold = make_limits(rng, len(engines[0].info.labels))
        expected = answer(binding.predict, line, k, threshold)
        answered += bool(expected)
        for engine in engines:
            assert answer(engine.predict, line, k, threshold) == expected, (engine.kernel, line[:200], k, threshold)
    return answered


def test_kernels_of_this_machine() -> None:
    assert supported_kernels()[0] == "baseline"
    assert set(supported_kernels()) <= set(KERNELS)


@pytest.mark.parametrize("name", RECIPES)
def test_like_binding(train_recipe: Callable[[str], Path], name: str) -> None:
    assert compare(train_recipe(name), 2000) > 1000


def test_like_binding_real(real_model: Path) -> None:
    assert compare(real_model, 2000) > 1000


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", RECIPES)
def test_like_binding_at_length(train_recipe: Callable[[str], Path], name: str) -> None:
    assert compare(train_recipe(name), 50_000, seed=6) > 25_000


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_like_binding_real_at_length(real_model: Path) -> None:
    assert compare(real_model, 50_000, seed=6) > 25_000


def test_classifier_of_native_engine(real_model: Path, real_classifier: Classifier) -> None:
    engine = NativeEngine(real_model)
    native = Classifier(engine, engine.info.labels)
    assert (native.engine, real_classifier.engine) == ("native", "binding")
    for line in make_lines(500):
        assert native.predict(line, k=5) == real_classifier.predict(line, k=5)
        body = b"text=" + line.replace(b"&", b"").replace(b"%", b"") + b"x"
        assert native.answer(body) == real_classifier.answer(body)


def test_classifier_of_native_engine_needs_its_labels(train_recipe: Callable[[str], Path]) -> None:
    engine = NativeEngine(train_recipe("bigrams"))
    with pytest.raises(ValueError, match="in their order"):
        Classifier(engine, reversed(engine.info.labels))


def test_engine_of_a_damaged_file(train_recipe: Callable[[str], Path], tmp_path: Path) -> None:
    damaged = tmp_path / "model"
    damaged.write_bytes(train_recipe("bigrams").read_bytes()[:-1])
    with pytest.raises(FormatError):
        NativeEngine(damaged)
    with pytest.raises(FileNotFoundError):
        NativeEngine(tmp_path / "missing")


def test_engine_takes_known_kernels_only(train_recipe: Callable[[str], Path]) -> None:
    path = train_recipe("bigrams")
    with pytest.raises(ValueError, match="baseline"):
        NativeEngine(path, kernel="sse9")
    assert NativeEngine(path).kernel == supported_kernels()[-1]
    assert NativeEngine(os.fsencode(path)).info.size == inspect(path).size
