"""The microbenchmarks of the last release on this machine, and how those of today compare."""

import json
import platform
import re
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import read_cpu

RESULTS = Path(__file__).resolve().parent / "results"

REGRESSION = 1.10
"""How much slower, beyond the spread of both, counts as a regression."""

FOREIGN = re.compile(r"_(stdlib|binding|floor)\b|^test_form_falcon\b")
"""The benchmarks of code that is not ours: how these differ is how the machine differs."""


@dataclass(frozen=True)
class Timing:
    """What a benchmark took, in seconds: the median and the quartiles."""

    median: float
    q1: float
    q3: float


@dataclass(frozen=True)
class Change:
    """How a benchmark compares with its baseline: the ratio of medians, and the least and the most it may be."""

    name: str
    ratio: float
    low: float
    high: float

    @property
    def regressed(self) -> bool:
        """Tell whether code of ours is slower by more than the spread."""
        return self.low > 1 and self.ratio > REGRESSION and not FOREIGN.search(self.name)


def describe_machine() -> dict[str, str]:
    """Say what must be the same for timings to be comparable."""
    return {"cpu": read_cpu(), "python": ".".join(platform.python_version_tuple()[:2])}


def find_baseline(machine: dict[str, str], folder: Path = RESULTS) -> Path:
    """Return where the baseline of a machine is kept, whether there is one or not."""
    slug = re.sub(r"[^a-z0-9]+", "-", f"{machine['cpu']} py{machine['python']}".lower()).strip("-")
    return folder / f"baseline-{slug}.json"


def save(path: Path, timings: dict[str, Timing], about: dict[str, Any]) -> None:
    """Save timings as the baseline."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(asdict(timing))}" for name, timing in sorted(timings.items()))
    path.write_text(f'{{\n "about": {json.dumps(about)},\n "timings": {{\n{rows}\n }}\n}}\n')


def load(path: Path) -> tuple[dict[str, Any], dict[str, Timing]]:
    """Load a baseline: what it says about itself, and its timings."""
    content = json.loads(path.read_text())
    return content["about"], {name: Timing(**timing) for name, timing in content["timings"].items()}


def compare(measured: dict[str, Timing], saved: dict[str, Timing]) -> tuple[float, list[Change]]:
    """Compare timings with a baseline.

    Returns:
        How much slower the machine itself was, by the benchmarks of code that is not ours, and how each benchmark
        changed beyond that.
    """
    common = [name for name in measured if name in saved]
    foreign = [measured[name].median / saved[name].median for name in common if FOREIGN.search(name)]
    machine = statistics.median(foreign) if foreign else 1.0
    changes = []
    for name in common:
        now, before = measured[name], saved[name]
        changes.append(
            Change(
                name,
                now.median / before.median / machine,
                now.q1 / before.q3 / machine,
                now.q3 / before.q1 / machine,
            )
        )
    return machine, changes


def report(measured: dict[str, Timing], path: Path) -> list[str]:
    """Say in lines how timings compare with the baseline in a file; the last line is the verdict."""
    if not path.is_file():
        return ["there is no baseline of this machine: make bench-baseline saves one"]
    about, saved = load(path)
    machine, changes = compare(measured, saved)
    lines = [
        f"compared with {about['version']} ({about['commit']}); code that is not ours takes {machine:.2f} times as "
        "long, which is taken out as the machine's:"
    ]
    width = max((len(change.name) for change in changes), default=0)
    for change in changes:
        mark = "  REGRESSION" if change.regressed else ""
        lines.append(
            f"  {change.name:<{width}}  {change.ratio:5.2f} times ({change.low:.2f} to {change.high:.2f}){mark}"
        )
    slower = [f"{change.name} {change.ratio:.2f} times" for change in changes if change.regressed]
    if slower:
        lines.append(f"REGRESSION against {about['version']}: {', '.join(slower)}")
    else:
        lines.append(f"no regression against {about['version']} in {len(changes)} benchmarks")
    return lines
