"""The pictures of a measurement, from its JSON."""

import io
import math
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedFormatter, FixedLocator, FuncFormatter, NullLocator
from PIL import Image

from benchmarks.contenders import title_of

Results = dict[str, Any]

PUBLISHED_P99_MS = {5_000: 3.99, 10_000: 7.3, 15_000: 17.9, 20_000: 56.5}
"""The article's own 99th percentiles, of 2018 and a laptop, with 400 connections."""

WORKLOADS = {"short": "'awesome product'", "reviews": "reviews"}
PUBLISHED_GUNICORN_MEDIAN_MS = 7_700.0
"""The article's median of gunicorn with 9 gevent workers at 20,000 requests/s."""

SHOWN_PERCENTILES = (50, 90, 99, 99.9, 99.99)
LAST_PERCENTILE = 99.99
HIGHEST_MS = 3_000.0
LOWEST_MS = 0.3

# The palette of Okabe and Ito, which colour-blind people can tell apart.
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, RED, PINK = (
    *("#000000", "#e69f00", "#56b4e9", "#009e73"),
    *("#d9c800", "#0072b2", "#d55e00", "#cc79a7"),
)
GREY = "#8c8c8c"
RATE_COLOURS = {5_000: SKY, 10_000: GREEN, 15_000: ORANGE, 20_000: RED, 25_000: BLACK}
SERVER_COLOURS = {"pyserve": RED, "native": RED, "article": BLUE, "gunicorn": BLACK, "floor": "#c8c8c8"}


def draw_all(results: Results, folder: Path) -> None:
    """Draw the pictures that the results allow, and remove the others."""
    mpl.rcParams.update({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
    for name, figure in (
        ("maximum.png", draw_maximum(results)),
        ("latency-short.png", draw_latency(results, "short")),
        ("latency-reviews.png", draw_latency(results, "reviews")),
        ("gunicorn.png", draw_gunicorn(results)),
        ("breakdown.png", draw_breakdown(results)),
    ):
        if figure is None:
            (folder / name).unlink(missing_ok=True)
        else:
            save(figure, folder / name)


def save(figure: Figure, path: Path) -> None:
    """Write a picture with few colours, which keeps it small."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120, facecolor="white")
    image = Image.open(file).convert("RGB").quantize(colors=64, dither=Image.Dither.NONE)
    image.save(path, optimize=True)


def spread_percentile(percentile: float) -> float:
    """Place a percentile on an axis where each further nine takes the same room."""
    return -math.log10(1 - min(percentile, LAST_PERCENTILE) / 100)


def prepare_axes(axes: Axes) -> None:
    """Give axes percentiles across and logarithmic milliseconds upwards."""
    axes.set_yscale("log")
    axes.set_xlim(spread_percentile(SHOWN_PERCENTILES[0]), spread_percentile(LAST_PERCENTILE))
    axes.xaxis.set_major_locator(FixedLocator([spread_percentile(one) for one in SHOWN_PERCENTILES]))
    axes.xaxis.set_major_formatter(FixedFormatter([f"{one:g} %" for one in SHOWN_PERCENTILES]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.grid(visible=True, color="#e4e4e4", linewidth=0.8)
    axes.set_xlabel("requests answered within")


def plot_run(axes: Axes, run: Results, colour: str, label: str, style: str = "-") -> None:
    """Add the line of one measurement."""
    points = [
        (spread_percentile(at), value) for at, value in run["spectrum"] if SHOWN_PERCENTILES[0] <= at <= LAST_PERCENTILE
    ]
    axes.plot([at for at, _ in points], [value for _, value in points], style, color=colour, linewidth=1.8, label=label)


def find_runs(results: Results, server: str, workload: str) -> list[Results]:
    return [one for one in results["latency"] if (one["server"], one["workload"]) == (server, workload)]


def draw_latency(results: Results, workload: str) -> Figure | None:
    """Draw a line for each rate, ours beside the article's server on the same machine."""
    servers = [server for server in ("pyserve", "article") if find_runs(results, server, workload)]
    if not servers:
        return None
    figure = Figure(figsize=(9.2, 4.3), layout="constrained")
    figure.get_layout_engine().set(wspace=0.08, rect=(0, 0.01, 0.98, 0.99))
    panels = figure.subplots(1, len(servers), sharey=True, squeeze=False)[0]
    values = [
        value for server in servers for run in find_runs(results, server, workload) for _, value in run["spectrum"]
    ]
    for axes, server in zip(panels, servers, strict=True):
        prepare_axes(axes)
        axes.set_ylim(LOWEST_MS, min(max([*values, 100.0]), HIGHEST_MS) * 1.5)
        for run in find_runs(results, server, workload):
            plot_run(axes, run, RATE_COLOURS[run["rate"]], "", ":" if run["overloaded"] else "-")
        if workload == "short":
            for rate, value in PUBLISHED_P99_MS.items():
                axes.plot(spread_percentile(99), value, "X", color=RATE_COLOURS[rate], markersize=9, clip_on=False)
        axes.set_title(title_of(server), fontweight="bold")
    marks = [Line2D([], [], color=colour, linewidth=1.8, label=f"{rate:,}/s") for rate, colour in RATE_COLOURS.items()]
    if any(run["overloaded"] for server in servers for run in find_runs(results, server, workload)):
        marks.append(Line2D([], [], color=GREY, linewidth=1.8, linestyle=":", label="overloaded"))
    if workload == "short":
        marks.append(Line2D([], [], color=GREY, marker="X", markersize=8, linewidth=0, label="article's p99, 2018"))
    figure.legend(handles=marks, loc="outside lower center", ncols=len(marks), frameon=False, fontsize=9)
    panels[0].set_ylabel("latency, ms")
    connections = results["about"]["connections"]["paced"]
    figure.suptitle(
        f"Latency at constant rates, {WORKLOADS[workload]}, {connections} connections, one core", fontsize=11
    )
    return figure


def draw_gunicorn(results: Results) -> Figure | None:
    """Draw ours beside gunicorn at the rate at which the article shows both."""
    shown = [
        (run, server)
        for server in ("gunicorn", "article", "pyserve")
        for run in find_runs(results, server, "short")
        if run["rate"] == 20_000
    ]
    if not {"gunicorn", "pyserve"} <= {server for _, server in shown}:
        return None
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.subplots()
    prepare_axes(axes)
    for run, server in shown:
        label = title_of(server)
        if run["overloaded"]:
            label += f"\n(overloaded: answers {run['achieved']:,}/s)"
        plot_run(axes, run, SERVER_COLOURS[server], label)
    for percentile, value, colour in (
        (50, PUBLISHED_GUNICORN_MEDIAN_MS, SERVER_COLOURS["gunicorn"]),
        (99, PUBLISHED_P99_MS[20_000], SERVER_COLOURS["article"]),
    ):
        axes.plot(spread_percentile(percentile), value, "X", color=colour, markersize=9, clip_on=False, zorder=3)
    axes.plot([], [], "X", color=GREY, markersize=8, label="2018: gunicorn's median, bjoern's p99")
    axes.set_ylim(LOWEST_MS, 20_000)
    axes.set_ylabel("latency, ms")
    axes.set_title("At 20,000 requests/s, 'awesome product', one core", fontsize=11, fontweight="bold")
    axes.legend(loc="center right", bbox_to_anchor=(1, 0.55), fontsize=9, frameon=False)
    return figure


def draw_maximum(results: Results) -> Figure | None:
    """Draw the greatest rates as multiples of gunicorn's."""
    rates = {(one["server"], one["workload"]): one["rate"] for one in results["maximum"]}
    workloads = [workload for workload in WORKLOADS if ("gunicorn", workload) in rates]
    if not workloads:
        return None
    order = sorted({server for server, _ in rates}, key=lambda server: rates.get((server, workloads[0]), 0))
    titles = [title_of(server) for server in order]
    figure = Figure(figsize=(9.2, 3.8), layout="constrained")
    panels = figure.subplots(1, len(workloads), sharey=True, squeeze=False)[0]
    for axes, workload in zip(panels, workloads, strict=True):
        base = rates["gunicorn", workload]
        shown = [rates.get((server, workload), 0) for server in order]
        colours = [SERVER_COLOURS.get(server, GREY) for server in order]
        bars = axes.barh(titles, [rate / base for rate in shown], color=colours)
        labels = [f"{rate / base:.1f} x   {rate:,}/s" if rate else "not measured" for rate in shown]
        axes.bar_label(bars, labels, padding=4, fontsize=9)
        axes.set_xlim(0, max(shown) / base * 1.7)
        axes.xaxis.set_visible(False)
        axes.spines["bottom"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.set_title(WORKLOADS[workload], fontweight="bold")
    connections = results["about"]["connections"]["maximum"]
    figure.suptitle(f"Greatest rate on one core, as multiples of gunicorn ({connections} connections)", fontsize=11)
    return figure


def draw_breakdown(results: Results) -> Figure | None:
    """Draw what a request's time is made of."""
    parts = results["breakdown"]
    if not parts:
        return None
    figure = Figure(figsize=(9.2, 0.5 * len(parts) + 1.2), layout="constrained")
    axes = figure.subplots()
    names = {"pyserve": "pyserve", "native": "pyserve, native engine", "article": "article's server"}
    parts = sorted(
        parts, key=lambda one: (list(WORKLOADS).index(one["workload"]), list(names).index(one["server"])), reverse=True
    )
    labels = [f"{names[one['server']]}, {WORKLOADS[one['workload']]}" for one in parts]
    beneath = [0.0] * len(parts)
    for key, title, colour, ink in (
        ("floor_us", "plain bjoern, constant answer", "#b8b8b8", "black"),
        ("own_us", "the server's own code, beyond that", RED, "white"),
        ("model_us", "the model's predict", BLUE, "white"),
    ):
        values = [one[key] for one in parts]
        bars = axes.barh(labels, values, left=beneath, color=colour, label=title)
        widest = max(one["total_us"] for one in parts)
        axes.bar_label(
            bars,
            [f"{value:.1f}" if value > widest / 30 else "" for value in values],
            label_type="center",
            color=ink,
            fontsize=9,
        )
        beneath = [start + value for start, value in zip(beneath, values, strict=True)]
    axes.set_xlabel("microseconds of one core for each request")
    axes.tick_params(axis="y", length=0)
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=9.5)
    return figure
