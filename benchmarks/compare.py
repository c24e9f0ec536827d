"""Compare our greatest rate with that of the article's server, in interleaved rounds of one run.

Both servers run on one core and wrk, with 64 connections, on another. Says whether the aims are reached and leaves with
status 1 where one is not.
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
from benchmarks.contenders import CONTENDERS
from benchmarks.data import SHORT_TEXT, generate_reviews
from benchmarks.generators import GeneratorError
from benchmarks.load import WRK_CONNECTIONS, find_model
from benchmarks.processes import Group, ServerError, running

BASE, OURS = "article", "pyserve"
RATIO_AIMS = {"short": 1.75, "reviews": 1.45}
READY_AIM_SECONDS = 0.5
MEMORY_AIM_MB = 45.0


class Round(NamedTuple):
    """What a round found: requests per second, and microseconds of processor time for each."""

    rate: float
    cpu_us: float


def main() -> None:
    """Measure, print and judge."""
    cores = sorted(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="the model that is served [default: the best in models/]")
    parser.add_argument("--rounds", type=int, default=5, help="how often each is measured [%(default)s]")
    parser.add_argument("--seconds", type=int, default=3, help="for how long each time [%(default)s]")
    parser.add_argument("--ours", default=OURS, choices=[OURS, "native"], help="which of ours [%(default)s]")
    options = parser.parse_args()
    model = find_model(options.model)
    tools = generators.find_tools()
    if "wrk" not in tools:
        sys.exit("wrk is missing: sudo apt-get install wrk")
    workloads = {"short": [SHORT_TEXT], "reviews": generate_reviews(model)}
    contenders = {one.name: one for one in CONTENDERS}
    if options.ours not in contenders:
        sys.exit("there is no native engine in this build")
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        try:
            groups = {
                name: stack.enter_context(running(contenders[name], model, cores[:1])) for name in (BASE, options.ours)
            }
            found = measure(groups, workloads, Path(folder), tools["wrk"], options.rounds, options.seconds, cores[-1:])
        except (ServerError, GeneratorError) as error:
            sys.exit(str(error))
        except KeyboardInterrupt:
            sys.exit(130)
        reached = [report_rates(workload, found, options.ours) for workload in workloads]
        ready, memory = groups[options.ours].ready_seconds, groups[options.ours].resident_mb()
    reached.append(report("ready to serve after", ready, "s", READY_AIM_SECONDS))
    reached.append(report("resident memory after the load", memory, "MB", MEMORY_AIM_MB))
    sys.exit(0 if all(reached) else 1)


def measure(
    groups: dict[str, Group],
    workloads: dict[str, list[str]],
    folder: Path,
    wrk: str,
    rounds: int,
    seconds: int,
    load_cores: list[int],
) -> dict[tuple[str, str], list[Round]]:
    """Drive both servers in turn; the first round warms up and does not count."""
    found: dict[tuple[str, str], list[Round]] = {}
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
                    found.setdefault((name, workload), []).append(Round(load.rate, used * 1e6 / load.requests))
    return found


def report_rates(workload: str, found: dict[tuple[str, str], list[Round]], name: str) -> bool:
    """Print the rates of a workload and tell whether the aim is reached."""
    base, ours = ([one.rate for one in found[server, workload]] for server in (BASE, name))
    base_us, ours_us = (statistics.median(one.cpu_us for one in found[server, workload]) for server in (BASE, name))
    ratios = [one / other for one, other in zip(ours, base, strict=True)]
    ratio, aim = statistics.median(ratios), RATIO_AIMS[workload]
    print(
        f"{workload}: article's server {describe(base)}, {name} {describe(ours)} requests/s\n"
        f"{workload}: {ratio:.2f} times (rounds {min(ratios):.2f} to {max(ratios):.2f}), "
        f"aim {aim:.2f}: {'reached' if ratio >= aim else 'NOT reached'}\n"
        f"{workload}: {base_us / ours_us:.2f} times by processor time per request ({base_us:.2f} and {ours_us:.2f} us)"
    )
    return ratio >= aim


def describe(rates: list[float]) -> str:
    return f"{statistics.median(rates):,.0f} ({min(rates):,.0f} to {max(rates):,.0f})"


def report(what: str, value: float, unit: str, aim: float) -> bool:
    """Print a figure that has to stay below its aim, and tell whether it does."""
    print(f"{what} {value:.2f} {unit}, aim below {aim:g} {unit}: {'reached' if value < aim else 'NOT reached'}")
    return value < aim


if __name__ == "__main__":
    main()
