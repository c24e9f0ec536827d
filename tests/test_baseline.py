"""The comparison of the microbenchmarks with those of the last release."""

from pathlib import Path

import pytest

from benchmarks import baseline
from benchmarks.baseline import Timing

SAVED = {
    "test_form_ours[short]": Timing(100e-9, 98e-9, 103e-9),
    "test_form_stdlib[short]": Timing(1000e-9, 990e-9, 1010e-9),
    "test_predict_binding[short]": Timing(1300e-9, 1290e-9, 1310e-9),
}


def scale(timings: dict[str, Timing], factor: float, name: str = "test_") -> dict[str, Timing]:
    """Make the timings whose name starts so longer."""
    return {
        key: Timing(one.median * factor, one.q1 * factor, one.q3 * factor) if key.startswith(name) else one
        for key, one in timings.items()
    }


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = baseline.find_baseline({"cpu": "A CPU (R) 3.0", "python": "3.11"}, tmp_path)
    baseline.save(path, SAVED, {"version": "1.2.3", "commit": "abc"})
    return path


def test_baseline_file_is_the_machines(saved: Path) -> None:
    assert saved.name == "baseline-a-cpu-r-3-0-py3-11.json"
    assert baseline.load(saved) == ({"version": "1.2.3", "commit": "abc"}, SAVED)


def test_report_same(saved: Path) -> None:
    lines = baseline.report(SAVED, saved)
    assert lines[-1] == "no regression against 1.2.3 in 3 benchmarks"
    assert "1.00 times (0.95 to 1.05)" in lines[1]


def test_report_regression_in_one_line(saved: Path) -> None:
    lines = baseline.report(scale(SAVED, 1.3, "test_form_ours"), saved)
    assert lines[-1] == "REGRESSION against 1.2.3: test_form_ours[short] 1.30 times"
    assert sum("REGRESSION" in line for line in lines) == 2


def test_report_slower_machine_is_no_regression(saved: Path) -> None:
    lines = baseline.report(scale(SAVED, 1.5), saved)
    assert "takes 1.50 times as long" in lines[0]
    assert lines[-1].startswith("no regression")


def test_report_slower_code_of_others_is_no_regression(saved: Path) -> None:
    assert baseline.report(scale(SAVED, 1.3, "test_form_stdlib"), saved)[-1].startswith("no regression")


def test_report_within_the_spread_is_no_regression(saved: Path) -> None:
    measured = SAVED | {"test_form_ours[short]": Timing(115e-9, 99e-9, 140e-9)}
    assert baseline.report(measured, saved)[-1].startswith("no regression")


def test_report_new_benchmark_is_left_out(saved: Path) -> None:
    assert baseline.report({**SAVED, "test_new": Timing(1, 1, 1)}, saved)[-1].endswith("in 3 benchmarks")


def test_report_without_baseline(tmp_path: Path) -> None:
    (line,) = baseline.report(SAVED, tmp_path / "none.json")
    assert "make bench-baseline" in line
