"""Show the last measurement: the pictures, and the README's section between its markers.

python -m benchmarks.report [--check]
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from benchmarks.contenders import title_of

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "README.md"
BEGIN = "<!-- load: begin; `make load-report` writes what is between these two lines -->"
END = "<!-- load: end -->"
ARTICLE = "https://alexpnt.github.io/2018/01/06/fast-inference-falcon-bjoern"

Results = dict[str, Any]

OURS = ("pyserve", "native")

PICTURES = {
    "maximum.png": "Greatest rate of each server, as multiples of gunicorn",
    "latency-short.png": "Latency by percentile at constant rates, short text",
    "latency-reviews.png": "Latency by percentile at constant rates, reviews",
    "gunicorn.png": "Latency by percentile at 20,000 requests/s, beside gunicorn",
    "breakdown.png": "Where the time of a request goes",
}


def main() -> None:
    """Write the section, or check it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only tell whether the README shows the results")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where load.json is [%(default)s]")
    parser.add_argument("--readme", type=Path, default=README, help="what to write into [%(default)s]")
    options = parser.parse_args()
    try:
        results = json.loads((options.results / "load.json").read_text())
    except OSError:
        sys.exit("there is no load.json, make load writes it")
    if options.check:
        if options.readme.read_text() != place(options.readme.read_text(), render(results, options.results)):
            sys.exit("README.md does not show the results of load.json, make load-report does that")
        return
    from benchmarks.pictures import draw_all

    draw_all(results, options.results)
    options.readme.write_text(place(options.readme.read_text(), render(results, options.results)))


def place(readme: str, section: str) -> str:
    """Put the section between the markers.

    Raises:
        ValueError: a marker is missing.
    """
    before, found, rest = readme.partition(BEGIN)
    _, ended, after = rest.partition(END)
    if not (found and ended):
        raise ValueError("the README lacks the markers of the performance section")
    return f"{before}{BEGIN}\n\n{section}\n{END}{after}"


def render(results: Results, folder: Path = RESULTS) -> str:
    """Write the section, with the pictures that are in a folder."""
    lines = [introduce(results), ""]
    for workload in results["about"]["workloads"]:
        lines += [*render_table(results, workload), ""]
    lines += [*render_pictures(folder), *render_scaling(results), *render_notes(results)]
    return "\n".join(lines).rstrip() + "\n"


def introduce(results: Results) -> str:
    """Say what was measured, on what and how."""
    about = results["about"]
    machine, versions = about["machine"], about["versions"]
    connections = about["connections"]
    cores = "Each server has one core, and the load generator another."
    if machine["server_core"] == machine["load_core"]:
        cores = "Each server shares one core with the load generator."
    rounds = "in one round"
    if about["rounds"] > 1:
        rounds = f"the median of {about['rounds']} rounds ± half their range"
    parts = [
        f"Measured on {about['date'][:10]} at commit `{about['commit']}` by `make load`:",
        f"{machine['cpu']}, {machine['cores']} cores, {machine['kernel']}, Python {about['python']},",
        f"bjoern {versions['bjoern']}, Falcon {versions['falcon']}, fasttext {versions['fasttext']},",
        f"`{about['model']['name']}`. {cores}",
        f"The article's server is that of [2018]({ARTICLE}), written anew on today's packages",
        f"([source](benchmarks/servers/article.py)). Greatest rates: `wrk` with {connections['maximum']} connections,",
        f"{rounds}. Latencies: `{about['paced_by']}` at constant rates over",
        f"{connections['paced']} connections, counted from when a request was due, which corrects for coordinated",
        "omission.",
    ]
    return " ".join(parts)


def render_table(results: Results, workload: str) -> list[str]:
    """Write the table of a workload, the fastest server first."""
    rates = {one["server"]: one for one in results["maximum"] if one["workload"] == workload}
    paced = {one["server"]: one for one in results["latency"] if one["workload"] == workload and one["rate"] == 20_000}
    capacity = {(one["server"], one["limit_ms"]): one for one in results["capacity"] if one["workload"] == workload}
    base = rates.get("gunicorn", {}).get("rate")
    described = results["about"]["workloads"][workload]
    what = "The article's text, `awesome product`:"
    if workload == "reviews":
        what = (
            f"{described['texts']} reviews of {described['median']:.0f} characters in the median and "
            f"{described['mean']:.0f} in the mean, generated from the model's vocabulary:"
        )
    columns = [
        *("server", "greatest rate, requests/s", "times gunicorn", "p99 at 20,000/s"),
        *("p99 < 60 ms up to", "p99 < 5 ms up to", "memory"),
    ]
    lines = [what, "", f"| {' | '.join(columns)} |", "|---" + "|---:" * (len(columns) - 1) + "|"]
    servers = results["servers"]
    for server in sorted(servers, key=lambda one: -rates.get(one, {}).get("rate", 0)):
        cells = [
            title_of(server),
            show_rate(rates.get(server)),
            f"{rates[server]['rate'] / base:.1f}" if base and server in rates else "",
            show_latency(paced.get(server)),
            show_capacity(capacity.get((server, 60))),
            show_capacity(capacity.get((server, 5))),
            f"{servers[server]['memory_mb']:.0f} MB" if "memory_mb" in servers[server] else "",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def show_rate(found: Results | None) -> str:
    """Show a greatest rate and its spread over the rounds."""
    if not found:
        return ""
    spread = (max(found["rounds"]) - min(found["rounds"])) / 2 / found["rate"] * 100
    return f"{found['rate']:,}" + (f" ± {spread:.0f} %" if len(found["rounds"]) > 1 else "")


def show_latency(run: Results | None) -> str:
    if not run:
        return ""
    return "overloaded" if run["overloaded"] else f"{run['percentiles']['99']:.1f} ms"


def show_capacity(found: Results | None) -> str:
    if not found:
        return ""
    return ("≥ " if found["generator_limits"] else "") + f"{found['rate']:,}"


def rate_of(run: Results) -> int:
    return int(run["rate"])


def render_pictures(folder: Path) -> list[str]:
    """Write the links to the pictures that could be drawn."""
    lines = []
    for name, title in PICTURES.items():
        if (folder / name).is_file():
            lines += [f"![{title}]({os.path.relpath(folder / name, ROOT)})", ""]
    return lines


def render_scaling(results: Results) -> list[str]:
    """Write what more workers bring."""
    runs = results["scaling"]
    if not runs:
        return []
    lines = ["| workers | workload | requests/s | times one worker | cores used by the servers | by the generator |"]
    lines.append("|---:|---|---:|---:|---:|---:|")
    first = {one["workload"]: one["rate"] for one in runs if one["workers"] == 1}
    for one in sorted(runs, key=lambda run: (run["workload"] != "short", run["workers"])):
        times = f"{one['rate'] / first[one['workload']]:.2f}" if one["workload"] in first else ""
        lines.append(
            f"| {one['workers']} | {one['workload']} | {one['rate']:,.0f} | {times} | {one['server_cpu']:.2f} "
            f"| {one['generator_cpu']:.2f} |"
        )
    if any(one["shares_core"] for one in runs):
        cores = results["about"]["machine"]["cores"]
        lines += [
            "",
            f"With {cores} workers on {cores} cores the generator has no core of its own: what it takes, they lack.",
        ]
    return [*lines, ""]


def render_notes(results: Results) -> list[str]:
    """Write what a reader has to know to read the figures rightly."""
    about, servers = results["about"], results["servers"]
    notes = []
    if any("memory_mb" in one for one in servers.values()):
        notes.append(
            "Memory, after the load, is the proportional share (PSS): a page counts once among the processes "
            "that map it."
        )
    if "gunicorn" in servers:
        notes.append("9 gevent workers were the article's choice, for 4 cores.")
    if "sync" in servers:
        notes.append(
            "gunicorn's sync workers close the connection after each answer, so over kept connections no rate "
            "can be held."
        )
    if any(one["server"] in OURS for one in results["breakdown"]):
        notes.append(
            "pyserve replaces parts of bjoern, so a request may take it less time than plain bjoern, which is no "
            "lower bound. Its own share of that time is what plain bjoern's and the model's leave; where they leave "
            "nothing, it is shown as 0 and plain bjoern's share as less than was measured."
        )
        notes.append(
            "The model's share is what it takes in a tight loop. What it takes longer between requests, when others "
            "have used the caches, counts as the server's own."
        )
    if results["capacity"]:
        limit = min(one["limit_ms"] for one in results["capacity"])
        notes.append(
            f"A rate that was held with a 99th percentile above {limit} ms was tried twice, and the better try counts."
        )
        if any(one["generator_limits"] for one in results["capacity"]):
            notes.append("`≥` marks where the generator, and not the server, came to its limit.")
    if about["paced_by"] == "h2load" and results["latency"]:
        busiest = max(results["latency"], key=lambda one: one["generator_cpu"])
        notes.append(
            f"h2load, logging every request, kept its core busy for {busiest['generator_cpu'] * 100:.0f} % "
            f"at most, at {busiest['rate']:,} requests/s."
        )
        still = min((one for one in results["latency"] if one["server"] == "floor"), key=rate_of, default=None)
        if still:
            notes.append(
                "It sends a request up to a millisecond late, which counts as latency: of plain bjoern's median, "
                f"{still['percentiles']['50']:.2f} ms at {still['rate']:,} requests/s, all but "
                f"{still['uncorrected']['50']:.2f} ms is the generator's."
            )
        notes.append("It varies addresses only: with it a review is in the query string, with `wrk` in the body.")
    saturated = sorted({one["server"] for one in results["maximum"] if one["generator_cpu"] > 0.9})
    if saturated:
        titles = "; ".join(title_of(server) for server in saturated)
        notes.append(f"wrk itself was at its limit, so these servers' greatest rates may be higher: {titles}.")
    for failure in results["failures"]:
        notes.append(
            f"Not measured: {title_of(failure['server'])}, {failure['doing']}: {failure['reason'].rstrip('.')}."
        )
    if about["extent"] == "quick":
        notes.append("This was a first look (`--quick`): short runs, once each.")
    load = about["machine"]["load_average_before"]
    if load > 0.5:
        notes.append(f"The machine was not quiet: its load average was {load} before the measurement.")
    return [f"- {note}" for note in notes]


if __name__ == "__main__":
    main()
