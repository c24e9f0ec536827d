"""Measure the servers under load: greatest rate, latency at constant rates, capacity, scaling, and where time goes.

    python -m benchmarks.load --quick | --full

Every server runs on one core and the load generator on another. Results go to benchmarks/results; ``report.py`` makes
the pictures and the README's section of them.
"""

import argparse
import contextlib
import datetime
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from tqdm import tqdm

from benchmarks import generators
from benchmarks.contenders import BIN, CONTENDERS, SERVERS, Contender, serve_pyserve
from benchmarks.data import SHORT_TEXT, generate_reviews
from benchmarks.generators import GeneratorError
from benchmarks.latency import format_percentiles, make_histogram, pick, render_percentiles, summarise
from benchmarks.machine import read_commit, read_cpu
from benchmarks.processes import Group, ServerError, running
from pyserve._native import NativeEngine

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"

WRK_CONNECTIONS = 64
PACED_CONNECTIONS = 400
RATES = (5_000, 10_000, 15_000, 20_000, 25_000)
COMPARED_RATE = 20_000
"""The rate at which the article shows gunicorn; measured even where a server was overloaded before."""

LIMITS_MS = (60, 5)
OVERLOADED = 0.98
"""A server that answers less than this part of a constant rate cannot hold it."""

SATURATED = 0.9
"""How busy the generator's core may be before the generator, and not the server, may be what is measured."""

PACKAGES = (
    *("pyserve", "bjoern", "falcon", "fasttext", "numpy", "ujson", "orjson", "gunicorn", "gevent", "granian"),
    *("uWSGI", "fastapi", "starlette", "uvicorn", "uvloop", "httptools", "Cython", "hdrhistogram"),
)
SHOWN_SPECTRUM = (0, 25, 50, 60, 70, 80, 90, 95, 97.5, 99, 99.5, 99.75, 99.9, 99.95, 99.975, 99.99, 99.995, 99.999, 100)


@dataclass(frozen=True)
class Extent:
    """How much is measured, and for how long (seconds); all of it in less than some minutes."""

    name: str
    minutes: int
    rounds: int
    maximum_seconds: int
    maximum_warm_up: int
    paced_seconds: float
    paced_warm_up: float
    probe_seconds: float
    precision: float
    model_rounds: int
    paced_servers: dict[str, tuple[str, ...] | None]
    capacity_servers: dict[str, tuple[str, ...] | None]

    def covers(self, servers: dict[str, tuple[str, ...] | None], workload: str, contender: Contender) -> bool:
        """Tell whether a server is measured with a workload; None stands for all of them."""
        if workload not in servers or not contender.keeps_alive:
            return False
        chosen = servers[workload]
        return chosen is None or contender.name in chosen


QUICK = Extent(
    name="quick",
    minutes=3,
    rounds=1,
    maximum_seconds=1,
    maximum_warm_up=1,
    paced_seconds=1.5,
    paced_warm_up=0.5,
    probe_seconds=1.0,
    precision=0.2,
    model_rounds=3,
    paced_servers={"short": ("pyserve", "article", "gunicorn"), "reviews": ("pyserve",)},
    capacity_servers={"short": ("pyserve",)},
)
FULL = Extent(
    name="full",
    minutes=30,
    rounds=3,
    maximum_seconds=3,
    maximum_warm_up=1,
    paced_seconds=5.0,
    paced_warm_up=1.0,
    probe_seconds=2.0,
    precision=0.06,
    model_rounds=15,
    paced_servers={"short": None, "reviews": None},
    capacity_servers={
        "short": ("pyserve", "native", "article", "granian", "uwsgi", "fastapi", "gunicorn"),
        "reviews": ("pyserve", "native", "article", "granian", "gunicorn"),
    },
)
# Each of wrk2's runs takes ten seconds more, so it measures fewer servers in the same time.
WITH_WRK2 = {
    "quick": replace(QUICK, paced_servers={"short": ("pyserve",)}, capacity_servers={}),
    "full": replace(
        FULL,
        paced_servers={"short": None, "reviews": ("pyserve", "native", "article", "gunicorn")},
        capacity_servers={"short": ("pyserve", "article"), "reviews": ("pyserve",)},
    ),
}


class Progress:
    """A bar that counts planned seconds, so that the time left is the plan's."""

    def __init__(self, total: float) -> None:
        form = "{desc:<46.46} {percentage:3.0f}% |{bar:24}| {elapsed} gone, {remaining} left"
        self._interactive = sys.stderr.isatty()
        self._bar = tqdm(total=total, bar_format=form, disable=not self._interactive, leave=False)
        self._total, self._done = total, 0.0
        self._begun = time.monotonic()

    @contextlib.contextmanager
    def step(self, label: str, seconds: float) -> Iterator[None]:
        """Show what is done now and, afterwards, that its planned seconds are over."""
        self._bar.set_description_str(label)
        if not self._interactive:
            left = max(self._total - self._done, 0) / 60
            print(f"{time.monotonic() - self._begun:5.0f} s  {label} (about {left:.0f} min left)", file=sys.stderr)
        try:
            yield
        finally:
            self.skip(seconds)

    def skip(self, seconds: float) -> None:
        """Count planned seconds that are not needed."""
        self._done += seconds
        self._bar.update(min(seconds, max(self._bar.total - self._bar.n, 0)))

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        self._bar.write(line, file=sys.stderr)

    def close(self) -> None:
        self._bar.close()


@dataclass
class Session:
    """What a measurement needs, and what it has found."""

    extent: Extent
    model: Path
    contenders: list[Contender]
    workloads: dict[str, list[str]]
    tools: dict[str, str]
    server_core: int
    load_core: int
    folder: Path
    output: Path
    progress: Progress = field(init=False)
    results: dict[str, Any] = field(default_factory=dict)
    percentiles: dict[str, str] = field(default_factory=dict)

    def failed(self, contender: Contender, doing: str, error: Exception) -> None:
        """Record that something could not be measured, and go on."""
        self.results["failures"].append({"server": contender.name, "doing": doing, "reason": str(error)})
        self.progress.say(f"{contender.title}: {doing}: {error}")

    def shorten(self, command: Sequence[str]) -> str:
        """Give a command line without the paths of this machine."""
        line = " ".join(command)
        for path, name in (
            (sys.executable, "python"),
            (f"{BIN}/", ""),
            (str(SERVERS), "benchmarks/servers"),
            (str(self.model), self.model.name),
            (f"{self.folder}/", ""),
            (sys.prefix, ".venv"),
            (f"{ROOT}/", ""),
        ):
            line = line.replace(path, name)
        return line


def main() -> None:
    """Run the measurements."""
    options = parse_options()
    signal.signal(signal.SIGTERM, interrupt)
    output = options.output or (RESULTS / "quick" if options.quick else RESULTS)
    tools = generators.find_tools()
    extent = choose_extent(tools, quick=options.quick)
    for line in generators.explain_missing(tools):
        print(line, file=sys.stderr)
    if not tools:
        sys.exit("there is no load generator, so nothing can be measured")
    chosen = [one for one in CONTENDERS if not options.servers or one.name in options.servers.split(",")]
    if not chosen:
        sys.exit(f"--servers: no such server, there are {', '.join(one.name for one in CONTENDERS)}")
    with tempfile.TemporaryDirectory(prefix="pyserve-load-") as folder:
        session = Session(
            extent=extent,
            model=options.model,
            contenders=chosen,
            workloads={"short": [SHORT_TEXT], "reviews": generate_reviews(options.model)},
            tools=tools,
            server_core=options.server_core,
            load_core=options.load_core,
            folder=Path(folder),
            output=output,
        )
        try:
            measure(session)
        except KeyboardInterrupt:
            print("interrupted; no results were written", file=sys.stderr)
            sys.exit(130)
    write(session)
    print(explain_output(output), file=sys.stderr)


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    cores = sorted(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    extent = parser.add_mutually_exclusive_group()
    extent.add_argument("--quick", action="store_true", help=f"a first look, in under {QUICK.minutes} minutes")
    extent.add_argument(
        "--full", action="store_true", help=f"everything, in under {FULL.minutes} minutes (the default)"
    )
    parser.add_argument("--model", type=Path, help="the model that is served [default: the best in models/]")
    parser.add_argument("--servers", help="only these, by name and separated by commas")
    parser.add_argument("--output", type=Path, help="where results go [default: benchmarks/results, or quick/ in it]")
    parser.add_argument("--server-core", type=int, default=cores[0], help="where the server runs [%(default)s]")
    parser.add_argument("--load-core", type=int, default=cores[-1], help="where the load comes from [%(default)s]")
    options = parser.parse_args()
    options.model = find_model(options.model)
    return options


def choose_extent(tools: Iterable[str], *, quick: bool) -> Extent:
    """Choose how much is measured with the tools that there are."""
    extent = QUICK if quick else FULL
    return WITH_WRK2[extent.name] if "wrk2" in tools else extent


def explain_output(output: Path) -> str:
    """Say where the results are, and what shows them in the README."""
    folder = os.path.relpath(output)
    show = "make load-report"
    if output.resolve() != RESULTS:
        show += f' ARGS="--results {folder}"'
    return f"wrote {folder}/load.json; {show} shows it in README.md"


def find_model(path: Path | None) -> Path:
    """Return the model that is served, or say that there is none."""
    from pyserve.model import ModelError, find_model

    try:
        path = path or find_model(ROOT / "models")
    except ModelError as error:
        sys.exit(str(error))
    if not path.is_file():
        sys.exit(f"there is no model file {path.name}")
    return path.absolute()


def interrupt(signum: int, frame: FrameType | None) -> None:
    """Leave as on Ctrl-C, so that every server is stopped."""
    raise KeyboardInterrupt


def measure(session: Session) -> None:
    """Measure everything that the tools allow."""
    session.results |= {
        "about": describe(session),
        "servers": {},
        "maximum": [],
        "latency": [],
        "capacity": [],
        "scaling": [],
        "breakdown": [],
        "failures": [],
    }
    plan = plan_phases(session)
    session.progress = Progress(sum(seconds for seconds, _ in plan))
    begun = time.monotonic()
    try:
        for _, phase in plan:
            phase(session)
    finally:
        session.progress.close()
    session.results["about"]["minutes"] = round((time.monotonic() - begun) / 60, 1)
    session.results["breakdown"] = break_down(session.results)


def plan_phases(session: Session) -> list[tuple[float, Callable[[Session], None]]]:
    """List what the tools allow, and how many seconds each should take."""
    plan: list[tuple[float, Callable[[Session], None]]] = [(plan_model(session), measure_model)]
    if "wrk" in session.tools:
        plan += [(plan_maximum(session), measure_maximum), (plan_scaling(session), measure_scaling)]
    if "h2load" in session.tools or "wrk2" in session.tools:
        plan += [(plan_latency(session), measure_latency)]
    return plan


# ---- what is measured on


def describe(session: Session) -> dict[str, Any]:
    """Say what is measured, on what and with what."""
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {
        "extent": session.extent.name,
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": read_commit(),
        "machine": {
            "cpu": read_cpu(),
            "cores": os.cpu_count(),
            "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
            "kernel": f"{platform.system()} {platform.release().partition('-')[0]}",
            "server_core": session.server_core,
            "load_core": session.load_core,
            "load_average_before": round(os.getloadavg()[0], 2),
        },
        "python": platform.python_version(),
        "versions": versions,
        "tools": {name: read_tool_version(name, path) for name, path in session.tools.items()},
        "paced_by": "wrk2" if "wrk2" in session.tools else "h2load",
        "model": {
            "name": session.model.name,
            "bytes": session.model.stat().st_size,
            "sha256": hashlib.sha256(session.model.read_bytes()).hexdigest(),
        },
        "workloads": {name: describe_workload(texts) for name, texts in session.workloads.items()},
        "connections": {"maximum": WRK_CONNECTIONS, "paced": PACED_CONNECTIONS},
        "seconds": {"maximum": session.extent.maximum_seconds, "paced": session.extent.paced_seconds},
        "rounds": session.extent.rounds,
    }


def describe_workload(texts: list[str]) -> dict[str, float]:
    lengths = [len(text) for text in texts]
    return {
        "texts": len(texts),
        "median": statistics.median(lengths),
        "mean": round(statistics.fmean(lengths), 1),
        "longest": max(lengths),
    }


def read_tool_version(name: str, path: str) -> str:
    """Return the first line that a generator says of its version; wrk leaves with status 1 after it."""
    done = subprocess.run(
        [path, "--version" if name == "h2load" else "-v"], capture_output=True, text=True, check=False
    )
    lines = (done.stdout + done.stderr).strip().splitlines()
    return lines[0].partition(" Copyright")[0] if lines else "unknown"


# ---- the model alone


def plan_model(session: Session) -> float:
    return 2.0 + session.extent.model_rounds * 0.1


def measure_model(session: Session) -> None:
    """Time the prediction alone, in this process and on the server's core."""
    engines = load_engines(session.model)
    allowed = os.sched_getaffinity(0)
    found: dict[str, dict[str, float]] = {engine: {} for engine in engines}
    with session.progress.step("the model alone", plan_model(session)):
        os.sched_setaffinity(0, {session.server_core})
        try:
            for name, texts in session.workloads.items():
                lines = [text.encode() + b"\n" for text in texts]
                lines *= max(1, 1000 // len(lines))
                for engine, predict in engines.items():
                    found[engine][name] = round(time_calls(predict, lines, session.extent.model_rounds), 3)
        finally:
            os.sched_setaffinity(0, allowed)
    session.results["model_us"] = found


def load_engines(path: Path) -> dict[str, Callable[..., object]]:
    """Load what predicts: fastText's binding, and our own engine where it takes the model."""
    import fasttext_pybind

    model = fasttext_pybind.fasttext()
    model.loadModel(str(path))
    engines: dict[str, Callable[..., object]] = {"binding": model.predict}
    with contextlib.suppress(ValueError):
        engines["native"] = NativeEngine(path).predict
    return engines


def time_calls(predict: Callable[..., object], lines: list[bytes], rounds: int) -> float:
    """Return the median, over rounds, of the processor time that a prediction takes in the mean, in microseconds."""
    means = []
    for _ in range(rounds + 1):  # the first round warms up
        begun = time.process_time()
        for line in lines:
            predict(line, 1, 0.0, "strict")
        means.append((time.process_time() - begun) / len(lines) * 1e6)
    return statistics.median(means[1:])


# ---- the greatest rate


def plan_maximum(session: Session) -> float:
    extent = session.extent
    each = 2.5 + len(session.workloads) * (extent.maximum_warm_up + extent.maximum_seconds)
    return extent.rounds * len(session.contenders) * each


def measure_maximum(session: Session) -> None:
    """Find the greatest rate of each server, in rounds that go through all of them."""
    extent = session.extent
    rounds: dict[tuple[str, str], list[dict[str, float]]] = {}
    each = plan_maximum(session) / extent.rounds / len(session.contenders)
    for turn in range(extent.rounds):
        for contender in session.contenders:
            with session.progress.step(f"greatest rate, round {turn + 1}: {contender.name}", each):
                try:
                    with running(contender, session.model, [session.server_core]) as group:
                        drive(session, contender, group, rounds)
                except (ServerError, GeneratorError) as error:
                    session.failed(contender, "greatest rate", error)
    for (name, workload), found in rounds.items():
        rates = [one["rate"] for one in found]
        session.results["maximum"].append(
            {
                "server": name,
                "workload": workload,
                "rate": round(statistics.median(rates)),
                "rounds": [round(rate) for rate in rates],
                "failed": sum(one["failed"] for one in found),
                "generator_cpu": round(statistics.median(one["generator_cpu"] for one in found), 2),
                "server_cpu": round(statistics.median(one["server_cpu"] for one in found), 2),
                "cpu_us": round(statistics.median(one["cpu_us"] for one in found), 3),
                "command": session.shorten(wrk_line(session)),
            }
        )


def wrk_line(session: Session) -> list[str]:
    url = "http://127.0.0.1:PORT/inferreview"
    seconds = session.extent.maximum_seconds
    return generators.wrk_command("wrk", url, session.folder / "maximum.lua", WRK_CONNECTIONS, seconds)


def drive(
    session: Session, contender: Contender, group: Group, rounds: dict[tuple[str, str], list[dict[str, float]]]
) -> None:
    """Drive a running server with each workload, as fast as it answers."""
    script = session.folder / "maximum.lua"
    for workload, texts in session.workloads.items():
        generators.write_wrk_script(script, texts)
        rounds.setdefault((contender.name, workload), []).append(
            drive_once(session, group, script, [session.load_core])
        )
    describe_server(session, contender, group)
    # Taken here alone, so that every server has had the same load before.
    session.results["servers"][contender.name]["memory_mb"] = round(group.memory_mb(), 1)


def describe_server(session: Session, contender: Contender, group: Group) -> None:
    """Record, once, how a server was started and how soon it answered."""
    if contender.name not in session.results["servers"]:
        session.results["servers"][contender.name] = {
            "command": session.shorten(contender.command(session.model, 9000)),
            "ready_seconds": round(group.ready_seconds, 2),
        }


def drive_once(session: Session, group: Group, script: Path, cores: list[int]) -> dict[str, float]:
    """Warm a server up, and measure its greatest rate."""
    extent, wrk = session.extent, session.tools["wrk"]
    if extent.maximum_warm_up:
        generators.measure_maximum(
            wrk, group.url, script, connections=WRK_CONNECTIONS, seconds=extent.maximum_warm_up, cores=cores
        )
    before, begun = group.cpu_seconds(), time.perf_counter()
    found = generators.measure_maximum(
        wrk, group.url, script, connections=WRK_CONNECTIONS, seconds=extent.maximum_seconds, cores=cores
    )
    used = group.cpu_seconds() - before
    server_cpu = used / (time.perf_counter() - begun)
    if not found.requests or found.failed > found.rate * extent.maximum_seconds / 100:
        raise GeneratorError(f"{found.failed} of its answers were errors or never came")
    return {
        "rate": found.rate,
        "failed": found.failed,
        "generator_cpu": found.generator_cpu,
        "server_cpu": server_cpu,
        "cpu_us": used * 1e6 / found.requests,
    }


# ---- more workers


def count_workers(session: Session) -> list[int]:
    """List the numbers of workers that the machine has cores for."""
    if not any(one.name == "pyserve" for one in session.contenders):
        return []
    cores = len(os.sched_getaffinity(0))
    return sorted({1, *(2**power for power in range(8) if 2**power <= cores), cores})


def plan_scaling(session: Session) -> float:
    return len(count_workers(session)) * plan_maximum(session) / session.extent.rounds / len(session.contenders)


def measure_scaling(session: Session) -> None:
    """Find the greatest rate of ours with more and more workers, the generator free to run on all cores."""
    cores = sorted(os.sched_getaffinity(0))
    contender = next((one for one in session.contenders if one.name == "pyserve"), None)
    script = session.folder / "scaling.lua"
    counts = count_workers(session)
    for workers in counts:
        with session.progress.step(f"{workers} worker{'s' * (workers > 1)}", plan_scaling(session) / len(counts)):
            assert contender is not None
            scaled = replace(contender, command=partial(serve_pyserve, workers=workers))
            try:
                with running(scaled, session.model, cores[:workers]) as group:
                    for workload, texts in session.workloads.items():
                        generators.write_wrk_script(script, texts)
                        # Where all cores serve, the generator has to share the last one.
                        load_cores = cores[workers:] or cores[-1:]
                        found = drive_once(session, group, script, load_cores)
                        session.results["scaling"].append(
                            {
                                "workers": workers,
                                "workload": workload,
                                "shares_core": not cores[workers:],
                                **{name: round(value, 2) for name, value in found.items()},
                            }
                        )
            except (ServerError, GeneratorError) as error:
                session.failed(contender, f"{workers} workers", error)


# ---- latency at constant rates, and capacity


def plan_latency(session: Session) -> float:
    return sum(
        plan_latency_of(session, workload, contender)
        for contender in session.contenders
        for workload in session.workloads
    )


def plan_run(session: Session, seconds: float) -> float:
    warm_up = 10 if "wrk2" in session.tools else generators.OPENING_SECONDS + session.extent.paced_warm_up
    return warm_up + seconds + generators.GRACE_SECONDS + 0.3


def plan_capacity(session: Session) -> float:
    # Each limit halves what is left until it is small enough, and a try or two are repeated.
    probes = 1 + len(LIMITS_MS) * round(math.log2(1 / session.extent.precision))
    return probes * plan_run(session, session.extent.probe_seconds)


def plan_latency_of(session: Session, workload: str, contender: Contender) -> float:
    extent, total = session.extent, 0.0
    if extent.covers(extent.paced_servers, workload, contender):
        total += 2.0 + len(RATES) * plan_run(session, extent.paced_seconds)
    if extent.covers(extent.capacity_servers, workload, contender):
        total += plan_capacity(session)
    return total


def measure_latency(session: Session) -> None:
    """Measure latency at each rate, and then how high the rate may be."""
    extent = session.extent
    for workload in session.workloads:
        for contender in session.contenders:
            if not plan_latency_of(session, workload, contender):
                continue
            try:
                with running(contender, session.model, [session.server_core]) as group:
                    session.progress.skip(2.0)
                    if extent.covers(extent.paced_servers, workload, contender):
                        measure_rates(session, contender, group, workload)
                    if extent.covers(extent.capacity_servers, workload, contender):
                        measure_capacity(session, contender, group, workload)
                    describe_server(session, contender, group)
            except (ServerError, GeneratorError) as error:
                session.failed(contender, f"latency with {workload}", error)


def measure_rates(session: Session, contender: Contender, group: Group, workload: str) -> None:
    """Measure a running server at each rate; beyond the first that it cannot hold, only at the one that is compared."""
    overloaded = False
    for rate in RATES:
        seconds = plan_run(session, session.extent.paced_seconds)
        if overloaded and rate != COMPARED_RATE:
            session.progress.skip(seconds)
            continue
        with session.progress.step(f"{contender.name}, {workload}, {rate:,} requests/s", seconds):
            name = f"{contender.name}-{workload}-{rate}.hgrm"
            run = measure_rate(session, group, workload, rate, name)
            overloaded = overloaded or run["overloaded"]
            session.results["latency"].append({"server": contender.name, "workload": workload, **run})


def measure_rate(session: Session, group: Group, workload: str, rate: int, name: str) -> dict[str, Any]:
    """Measure a running server at one rate, and keep its percentiles under a file's name."""
    before, begun = group.cpu_seconds(), time.perf_counter()
    paced = pace(session, group, workload, rate, session.extent.paced_seconds)
    server_cpu = (group.cpu_seconds() - before) / (time.perf_counter() - begun)
    uncorrected = None
    points, text = paced.points, format_percentiles(paced.points)
    if paced.corrected:
        histogram = make_histogram(paced.corrected.latencies)
        text = render_percentiles(histogram)
        points = [(at, histogram.get_value_at_percentile(at) / 1000) for at in SHOWN_SPECTRUM]
        sent = make_histogram(paced.corrected.durations)
        uncorrected = {f"{at:g}": sent.get_value_at_percentile(at) / 1000 for at in (50, 99)}
    session.percentiles[name] = text
    return {
        "rate": rate,
        "achieved": round(paced.achieved),
        "overloaded": paced.achieved < rate * OVERLOADED,
        "percentiles": summarise(points),
        "spectrum": [[at, pick(points, at)] for at in SHOWN_SPECTRUM],
        "uncorrected": uncorrected,
        "failed": paced.failed,
        "unanswered": paced.unanswered,
        "file": f"percentiles/{name}",
        "generator_cpu": round(paced.generator_cpu, 2),
        "server_cpu": round(server_cpu, 2),
    }


def pace(session: Session, group: Group, workload: str, rate: float, seconds: float) -> generators.Paced:
    return generators.measure_paced(
        session.tools,
        group.url,
        session.workloads[workload],
        session.folder,
        rate=rate,
        connections=PACED_CONNECTIONS,
        warm_up=session.extent.paced_warm_up,
        seconds=seconds,
        cores=[session.load_core],
    )


@dataclass(frozen=True)
class Probe:
    """A try at one rate: the 99th percentile in milliseconds, infinite where the rate was not held."""

    rate: int
    p99: float
    generator_cpu: float


def measure_capacity(session: Session, contender: Contender, group: Group, workload: str) -> None:
    """Find the highest rate at which the 99th percentile stays under each limit, by bisection."""
    highest = find_highest(session, contender, workload)
    probes: dict[int, Probe] = {}

    def try_rate(rate: int) -> Probe:
        with session.progress.step(f"{contender.name}, {workload}, capacity: {rate:,} requests/s", planned):
            paced = pace(session, group, workload, rate, session.extent.probe_seconds)
        points = paced.points
        if paced.corrected:
            histogram = make_histogram(paced.corrected.latencies)
            points = [(99.0, histogram.get_value_at_percentile(99) / 1000)]
        held = paced.achieved >= rate * OVERLOADED and not paced.failed
        return Probe(rate, pick(points, 99) if held else float("inf"), paced.generator_cpu)

    def probe(rate: int) -> Probe:
        if rate not in probes:
            probes[rate] = try_rate(rate)
            if LIMITS_MS[-1] < probes[rate].p99 < float("inf"):
                # A hiccup of the machine looks the same, but does not come twice.
                probes[rate] = min(probes[rate], try_rate(rate), key=lambda one: one.p99)
        return probes[rate]

    planned = plan_run(session, session.extent.probe_seconds)
    spare = plan_capacity(session)
    for limit in LIMITS_MS:
        found, above = bisect(probe, limit, highest, session.extent.precision)
        session.results["capacity"].append(
            {
                "server": contender.name,
                "workload": workload,
                "limit_ms": limit,
                "rate": found,
                "generator_limits": above is not None and above.generator_cpu > SATURATED,
                "probes": [
                    [one.rate, None if one.p99 == float("inf") else one.p99, round(one.generator_cpu, 2)]
                    for one in sorted(probes.values(), key=lambda one: one.rate)
                ],
            }
        )
    session.progress.skip(max(spare - planned * len(probes), 0.0))


def find_highest(session: Session, contender: Contender, workload: str) -> int:
    """Return a rate that a server cannot hold by what is known of it."""
    for one in session.results["maximum"]:
        if (one["server"], one["workload"]) == (contender.name, workload):
            return int(one["rate"] * 1.1)
    return 200_000


def bisect(probe: Callable[[int], Probe], limit_ms: float, highest: int, precision: float) -> tuple[int, Probe | None]:
    """Find the highest rate that keeps the 99th percentile under a limit.

    Args:
        probe: tries a rate.
        limit_ms: the limit.
        highest: a rate that is too high by what is known; higher ones are tried where none fails.
        precision: how near the answer must be, as a part of it.

    Returns:
        The rate, rounded to hundreds, 0 where none was low enough; and the lowest probe that failed.
    """
    low, high, failing = 0, max(highest, 100), None
    while True:
        rate = max(round((low + high) / 200) * 100, 100)
        if high - low <= max(precision * high, highest / 100, 100) or rate in (low, high):
            if failing or not low or high >= 4 * highest:
                return low, failing
            high = round(high * 1.5)  # it was not too high after all
            continue
        found = probe(rate)
        if found.p99 < limit_ms:
            low = rate
        else:
            high, failing = rate, found


# ---- where a request's time goes


def break_down(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Divide a request's processor time: what plain bjoern takes, what the model takes, and the rest: the server's own.

    A server that replaces parts of bjoern may take less than plain bjoern: then nothing is left as its own.
    """
    engines = {one.name: one.engine for one in CONTENDERS}
    times = {(one["server"], one["workload"]): one["cpu_us"] for one in results["maximum"]}
    parts = []
    for (server, workload), total in times.items():
        floor, engine = times.get(("floor", workload)), engines.get(server)
        if floor and engine in results["model_us"]:
            model = results["model_us"][engine][workload]
            floor = min(floor, total - model)
            parts.append(
                {
                    "server": server,
                    "workload": workload,
                    "total_us": round(total, 2),
                    "floor_us": round(floor, 2),
                    "model_us": round(model, 2),
                    "own_us": round(total - floor - model, 2) or 0.0,
                }
            )
    return parts


# ---- writing


def write(session: Session) -> None:
    """Write the results, and put away those of the last time."""
    percentiles = session.output / "percentiles"
    percentiles.mkdir(parents=True, exist_ok=True)
    for old in percentiles.glob("*.hgrm"):
        old.unlink()
    for name, text in session.percentiles.items():
        (percentiles / name).write_text(text)
    (session.output / "load.json").write_text(json.dumps(session.results, indent=1) + "\n")


if __name__ == "__main__":
    main()
