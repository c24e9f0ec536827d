"""The native engine and the binding, taking turns on the same texts in one process.

Run ``python -m benchmarks.bench_native [MODEL]``: for each kernel of this machine, the time of a call from Python in
microseconds (the median over rounds, and the fastest round), and the ratio of the medians to the binding's.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import fasttext_pybind
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.data import SHORT_TEXT, generate_reviews
from pyserve._native import NativeEngine, supported_kernels
from pyserve.model import find_model

REVIEWS = 999
Predict = Callable[[bytes, int, float, str], list[tuple[float, str]]]


def make_lines(model: Path) -> dict[str, list[bytes]]:
    """Make the lines of each case: many distinct reviews, since few would teach the processor their branches."""
    return {
        "review": [review.encode() + b"\n" for review in generate_reviews(model, REVIEWS)],
        "two words": [SHORT_TEXT.encode() + b"\n"] * REVIEWS,
    }


def predict_all(predict: Predict, lines: list[bytes]) -> list[list[tuple[float, str]]]:
    return [predict(line, 1, 0.0, "strict") for line in lines]


def measure(predict: Predict, lines: list[bytes], expected: list[list[tuple[float, str]]]) -> float:
    """Return the microseconds of a call."""
    start = time.perf_counter()
    for line in lines:
        predict(line, 1, 0.0, "strict")
    took = time.perf_counter() - start
    assert predict_all(predict, lines) == expected
    return took / len(lines) * 1e6


@pytest.fixture(scope="session", params=["review", "two words"])
def lines(request: pytest.FixtureRequest, model_path: Path) -> list[bytes]:
    return make_lines(model_path)[request.param]


@pytest.mark.benchmark(group="predict 999 texts")
class TestEngines:
    @pytest.mark.parametrize("kernel", supported_kernels())
    def test_engine_native(
        self,
        benchmark: BenchmarkFixture,
        model_path: Path,
        binding: fasttext_pybind.fasttext,
        lines: list[bytes],
        kernel: str,
    ) -> None:
        engine = NativeEngine(model_path, kernel=kernel)
        assert benchmark(predict_all, engine.predict, lines) == predict_all(binding.predict, lines)

    def test_engine_binding(
        self, benchmark: BenchmarkFixture, binding: fasttext_pybind.fasttext, lines: list[bytes]
    ) -> None:
        assert all(benchmark(predict_all, binding.predict, lines))


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the native engine beside the binding.")
    parser.add_argument("model", nargs="?", type=Path, default=None)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    model = arguments.model or find_model()
    binding = fasttext_pybind.fasttext()
    binding.loadModel(str(model))
    predicts = {"binding": binding.predict}
    predicts |= {kernel: NativeEngine(model, kernel=kernel).predict for kernel in supported_kernels()}
    print(f"{model.name}, {arguments.rounds} rounds of {REVIEWS} texts, one call each")
    for case, lines in make_lines(model).items():
        expected = predict_all(binding.predict, lines)
        took: dict[str, list[float]] = {name: [] for name in predicts}
        for _ in range(arguments.rounds):
            for name, predict in predicts.items():
                took[name].append(measure(predict, lines, expected))
        base = statistics.median(took["binding"])
        size = statistics.mean(map(len, lines))
        print(f"{case} ({size:.0f} bytes)")
        for name, times in took.items():
            median = statistics.median(times)
            ratio = statistics.median(b / t for b, t in zip(took["binding"], times, strict=True))
            print(
                f"  {name:10}{median:8.2f} us  (fastest {min(times):.2f})  {base / median:6.2f}x, by round {ratio:.2f}x"
            )


if __name__ == "__main__":
    main()
