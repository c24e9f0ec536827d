"""The native engine answers what the binding answers, to the last bit."""

import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyserve import Classifier, ModelError, load_model
from pyserve._model_file import FormatError, inspect
from pyserve._native import KERNELS, NativeEngine, supported_kernels
from pyserve.comparison import agree, compare_engines, is_binding_fused, make_probe
from tests.native_recipes import MODELS, craft, make_limits, make_lines
from tests.support import load_binding

Predict = Callable[[bytes, int, float, str], list[tuple[float, str]]]


def answer(predict: Predict, line: bytes, k: int, threshold: float) -> object:
    """Return what an engine answers, or which error it raises."""
    try:
        return predict(line, k, threshold, "surrogateescape")
    except (RuntimeError, ValueError) as error:
        return type(error), str(error)


def compare(path: Path, lines: int, seed: int = 5) -> int:
    """Hold all kernels that run here against the binding. Return how many lines had labels for an answer, no error."""
    binding = load_binding(path)
    engines = [NativeEngine(path, kernel=kernel) for kernel in supported_kernels()]
    rng = random.Random(seed)
    is_fused = is_binding_fused()
    answered = 0
    for line in make_lines(lines, seed):
        k, threshold = make_limits(rng, len(engines[0].info.labels))
        expected = answer(binding.predict, line, k, threshold)
        answered += isinstance(expected, list) and bool(expected)
        for engine in engines:
            found = answer(engine.predict, line, k, threshold)
            if is_fused and isinstance(found, list) and isinstance(expected, list):
                assert k not in (-1, len(engine.info.labels)) or threshold > 0 or agree(found, expected, is_fused)
            else:
                assert found == expected, (engine.kernel, line[:200], k, threshold)
    return answered


def test_kernels_of_this_machine() -> None:
    assert supported_kernels()[0] == "baseline"
    assert set(supported_kernels()) <= set(KERNELS)


@pytest.mark.parametrize("kernel", KERNELS)
def test_kernel_is_compared(train_recipe: Callable[[str], Path], kernel: str) -> None:
    if kernel not in supported_kernels():
        pytest.skip(f"this processor does not run the kernel {kernel}: no test compares it")
    assert NativeEngine(train_recipe("bigrams"), kernel=kernel).kernel == kernel


@pytest.mark.parametrize("name", MODELS)
def test_like_binding(train_recipe: Callable[[str], Path], name: str) -> None:
    assert compare(train_recipe(name), 2000) > 700


def test_like_binding_real(real_model: Path) -> None:
    assert compare(real_model, 2000) > 1000


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", MODELS)
def test_like_binding_at_length(train_recipe: Callable[[str], Path], name: str) -> None:
    assert compare(train_recipe(name), 50_000, seed=6) > 17_000


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


@pytest.mark.parametrize("text", [None, 1, 1.5, [b"good"], bytearray(b"good\n"), memoryview(b"good\n")])
def test_engine_takes_texts_only(train_recipe: Callable[[str], Path], text: Any) -> None:
    engine = NativeEngine(train_recipe("bigrams"))
    with pytest.raises(TypeError, match=f"a text must be str or bytes, not {type(text).__name__}"):
        engine.predict(text)


def test_engine_takes_kinds_of_texts(train_recipe: Callable[[str], Path]) -> None:
    class Text(bytes):
        pass

    class Odd(str):
        __slots__ = ()

        def encode(self, *args: object) -> Any:
            return None

    engine = NativeEngine(train_recipe("bigrams"))
    assert engine.predict(Text(b"good\n")) == engine.predict("good\n") == engine.predict(b"good\n")
    with pytest.raises(TypeError, match="not Odd"):
        engine.predict(Odd("good\n"))
    with pytest.raises(TypeError, match="on_unicode_error"):
        engine.predict("good\n", on_unicode_error=None)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        NativeEngine(None)  # type: ignore[arg-type]
    for kernel in (b"baseline", 1, ""):
        with pytest.raises(ValueError, match="a kernel must be one of"):
            NativeEngine(train_recipe("bigrams"), kernel=kernel)  # type: ignore[arg-type]


def test_score_that_is_no_number_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "nan.bin"
    content = craft([(b"good", 1)], [(b"__label__0", 1), (b"__label__1", 1)], dim=1)
    path.write_bytes(content[:-4] + struct.pack("<f", float("nan")))
    for kernel in supported_kernels():
        with pytest.raises(RuntimeError, match="NaN"):
            NativeEngine(path, kernel=kernel).predict("good", -1)


def test_probe_tells_a_fused_binding(tmp_path: Path) -> None:
    probe = tmp_path / "probe.bin"
    probe.write_bytes(make_probe())
    first, second = NativeEngine(probe).predict(b"probe\n", -1)
    assert first[0] == second[0]
    if is_binding_fused():
        pytest.skip("the installed binding was built with FMA: the engines were compared to 1e-6 only")
    first, second = load_binding(probe).predict(b"probe\n", -1, 0.0, "strict")
    assert first[0] == second[0]


def test_engines_agree_to_a_tolerance() -> None:
    pairs = [(0.75, "a"), (0.25, "b")]
    near = [(0.75 + 5e-7, "a"), (0.25 - 5e-7, "b")]
    assert agree(pairs, pairs, False)
    assert not agree(pairs, near, False)
    assert agree(pairs, near, True)
    assert not agree(pairs, [(0.75, "a"), (0.26, "b")], True)
    assert not agree(pairs, pairs[:1], True)


def test_compare_engines(train_recipe: Callable[[str], Path]) -> None:
    texts = [line.replace(b"\n", b" ") for line in make_lines(200)]
    found = compare_engines(train_recipe("packed-pruned"), texts)
    assert (found.texts, found.different, found.first_different) == (len(texts), 0, None)
    with pytest.raises(ValueError, match="no texts"):
        compare_engines(train_recipe("packed-pruned"), [])


def test_compare_engines_sees_a_difference(
    train_recipe: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = load_binding(train_recipe("bigrams"))
    monkeypatch.setattr("pyserve.comparison.load_binding", lambda path: other)
    monkeypatch.setattr("pyserve.comparison.is_binding_fused", lambda: False)
    found = compare_engines(train_recipe("packed-pruned"), [b"\x00", b"good book", b"good"])
    assert (found.texts, found.first_different) == (3, 1)


@pytest.mark.parametrize("engine", ["binding", "native", "auto"])
def test_load_model_with_engine(train_recipe: Callable[[str], Path], engine: str) -> None:
    classifier = load_model(train_recipe("packed-pruned"), engine=engine)
    assert classifier.engine == ("binding" if engine == "binding" else "native")
    reference = load_model(train_recipe("packed-pruned"))
    for line in make_lines(200):
        assert classifier.predict(line, k=4) == reference.predict(line, k=4)


def test_load_model_with_unknown_engine(train_recipe: Callable[[str], Path]) -> None:
    with pytest.raises(ValueError, match="binding, native, auto"):
        load_model(train_recipe("words"), engine="onnx")


def test_engine_that_does_not_take_the_model(
    train_recipe: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(path: Path) -> None:
        raise ModelError(f"the native engine does not take {path.name}: no table could be built")

    monkeypatch.setattr("pyserve.model.load_native", refuse)
    with pytest.raises(ModelError, match=r"does not take words\.model: no table"):
        load_model(train_recipe("words"), engine="native")
    assert load_model(train_recipe("words"), engine="auto").engine == "binding"
    assert "no table could be built; the binding answers" in caplog.text
