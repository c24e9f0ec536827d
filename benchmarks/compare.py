"""Compare greatest rates with those of the article's server and of plain bjoern, in interleaved rounds of one run.

Every server runs on one core and wrk, with 64 connections, on another. Prints rates and ratios, says which aims are
reached and leaves with status 1 where one is not.

pyserve replaces parts of bjoern. So plain bjoern with a constant answer is a measure, and no bound; and beside our
application on plain bjoern stands what guards and counters cost less what the replaced parts save, not their cost.
"""

import argparse
import os
import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from benchmarks import generators
from benchmarks.contenders import CONTENDERS, SERVERS, Contender
from benchmarks.data import SHORT_TEXT, generate_reviews
from benchmarks.generators import GeneratorError
from benchmarks.load import SATURATED, WRK_CONNECTIONS, find_model
from benchmarks.processes import Group, ServerError, running

READY_AIM_SECONDS = 0.5
MEMORY_AIM_MB = 45.0


class Aim(NamedTuple):
    """A ratio of two servers' rates that is to be reached."""

    workload: str
    server: str
    base: str
    ratio: float


AIMS = (
    Aim("short", "pyserve", "article", 1.75),
    Aim("reviews", "pyserve", "article", 1.45),
    Aim("short", "native", "article", 1.75),
    Aim("reviews", "native", "article", 3.3),
    Aim("reviews", "native", "floor", 0.65),
    Aim("short", "pyserve", "bare", 0.97),
    Aim("reviews", "pyserve", "bare", 0.97),
)


def serve_bare(model: Path, port: int) -> list[str]:
    return [sys.executable, str(SERVERS / "bare.py"), str(model), str(port)]


BARE = Contender("bare", "pyserve's application, plain bjoern", serve_bare)
SERVED = {one.name: one for one in (*CONTENDERS, BARE)}
COMPARED = ("floor", "article", "bare", "pyserve", "native")


class Round(NamedTuple):
    """What a round found: requests per second, microseconds of processor time for each, and how busy wrk was."""

    rate: float
    cpu_us: float
    generator_cpu: float


Rounds = dict[tuple[str, str], list[Round]]


def main() -> None:
    """Measure, print and judge."""
    cores = sorted(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="the model that is served [default: the best in models/]")
    parser.add_argument("--rounds", type=int, default=5, help="how often each is measured [%(default)s]")
    parser.add_argument("--seconds", type=int, default=3, help="for how long each time [%(default)s]")
    options = parser.parse_args()
    model = find_model(options.model)
    tools = generators.find_tools()
    if "wrk" not in tools:
        sys.exit("wrk is missing: sudo apt-get install wrk")
    workloads = {"short": [SHORT_TEXT], "reviews": generate_reviews(model)}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        try:
            groups = {name: stack.enter_context(running(SERVED[name], model, cores[:1])) for name in COMPARED}
            found = measure(groups, workloads, Path(folder), tools["wrk"], options.rounds, options.seconds, cores[-1:])
        except (ServerError, GeneratorError) as error:
            sys.exit(str(error))
        except KeyboardInterrupt:
            sys.exit(130)
        ready, memory = groups["pyserve"].ready_seconds, groups["pyserve"].resident_mb()
    for workload in workloads:
        print_rates(workload, found)
    reached = [judge(aim, found) for aim in AIMS]
    reached.append(report("ready to serve after", ready, "s", READY_AIM_SECONDS))
    reached.append(report("resident memory of a process after the load", memory, "MB", MEMORY_AIM_MB))
    sys.exit(0 if all(reached) else 1)


def measure(
    groups: dict[str, Group],
    workloads: dict[str, list[str]],
    folder: Path,
    wrk: str,
    rounds: int,
    seconds: int,
    load_cores: list[int],
) -> Rounds:
    """Drive the servers in turn; the first round warms up and does not count."""
    found: Rounds = {}
    for workload, texts in workloads.items():
        script = folder / f"{workload}.lua"
        generators.write_wrk_script(script, texts)
        for turn in range(rounds + 1):
            for name, group in groups.items():
                used = group.cpu_seconds()
                load = generators.measure_maximum(
                    wrk,
                    group.url,
                    script,
                    connections=WRK_CONNECTIONS,
                    seconds=seconds if turn else 1,
                    cores=load_cores,
                )
                used = group.cpu_seconds() - used
                if load.failed or not load.requests:
                    raise GeneratorError(f"{name} answered {load.failed} requests with an error or not at all")
                if turn:
                    each = Round(load.rate, used * 1e6 / load.requests, load.generator_cpu)
                    found.setdefault((workload, name), []).append(each)
    return found


def print_rates(workload: str, found: Rounds) -> None:
    """Print what the servers reach with a workload: medians, and the range over the rounds."""
    for name in COMPARED:
        rates = [one.rate for one in found[workload, name]]
        cpu_us = statistics.median(one.cpu_us for one in found[workload, name])
        busy = statistics.median(one.generator_cpu for one in found[workload, name])
        limited = "; wrk itself was at its limit, so the rate may be higher" if busy > SATURATED else ""
        spread = f"{min(rates):,.0f} to {max(rates):,.0f}"
        print(
            f"{workload:8} {SERVED[name].title:36} {statistics.median(rates):9,.0f} requests/s ({spread}), "
            f"{cpu_us:.2f} us of processor time each{limited}"
        )


def judge(aim: Aim, found: Rounds) -> bool:
    """Print the ratio of two servers, the median over the rounds, and tell whether the aim is reached."""
    ours, base = found[aim.workload, aim.server], found[aim.workload, aim.base]
    ratios = [one.rate / beside.rate for one, beside in zip(ours, base, strict=True)]
    by_time = statistics.median(one.cpu_us for one in base) / statistics.median(one.cpu_us for one in ours)
    ratio = statistics.median(ratios)
    server, other = SERVED[aim.server].title, SERVED[aim.base].title
    print(
        f"{aim.workload}: {server}: {ratio:.2f} times the rate of {other} "
        f"(rounds {min(ratios):.2f} to {max(ratios):.2f}; by processor time {by_time:.2f}), "
        f"aim {aim.ratio:.2f}: {verdict(ratio >= aim.ratio)}"
    )
    return ratio >= aim.ratio


def report(what: str, value: float, unit: str, aim: float) -> bool:
    """Print a figure that has to stay below its aim, and tell whether it does."""
    print(f"{what} {value:.2f} {unit}, aim below {aim:g} {unit}: {verdict(value < aim)}")
    return value < aim


def verdict(reached: bool) -> str:
    return "reached" if reached else "NOT reached"


if __name__ == "__main__":
    main()
