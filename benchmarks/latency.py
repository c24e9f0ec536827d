"""Latencies of requests at a constant rate: from when each should have been sent, and their percentiles."""

import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from hdrh.histogram import HdrHistogram

LONGEST_MICROSECONDS = 600_000_000
DIGITS = 3
PERCENTILES = (50.0, 90.0, 99.0, 99.9, 99.99, 100.0)


class Request(NamedTuple):
    """A row of h2load's log: when it was sent (microseconds), the status (-1 for none), how long the answer took."""

    start: int
    status: int
    duration: int


class Corrected(NamedTuple):
    """The latencies of the requests that were due in a window of time.

    Attributes:
        latencies: in microseconds, each from when the request was due.
        durations: in microseconds, each from when the request was sent: what a generator that waits would report.
        answered: the answers that came within the window, per second.
        unanswered: requests due in the window that had no answer at its end; their latency is counted to that end.
        failed: answers other than 2xx.
    """

    latencies: list[int]
    durations: list[int]
    answered: float
    unanswered: int
    failed: int


def read_log(path: Path) -> list[Request]:
    """Read a log of h2load; a last line that was cut off by the end of the process is left out."""
    requests = []
    for line in path.read_text().splitlines():
        fields = line.split("\t")
        if len(fields) >= 3 and all(field.lstrip("-").isdigit() for field in fields[:3]):
            requests.append(Request(*(int(field) for field in fields[:3])))
    return requests


def find_due_times(starts: Sequence[int], rate: float, connections: int) -> list[float]:
    """Tell when each request was due.

    Every connection sends at the same interval, and one that had to wait for an answer sends what it missed at once.
    So the n-th request of all is due one interval after the one that is ``connections`` places before it, and how the
    connections lie within an interval shows in whichever interval each place was reached soonest.

    Args:
        starts: when the requests were really sent, in order, in microseconds, all connections being open.
        rate: how many requests all connections together send in a second.
        connections: how many there are.
    """
    interval = connections * 1e6 / rate
    places = [float("inf")] * connections
    for index, start in enumerate(starts):
        turn, place = divmod(index, connections)
        places[place] = min(places[place], start - turn * interval)
    return [places[index % connections] + (index // connections) * interval for index in range(len(starts))]


def correct(
    requests: Iterable[Request], rate: float, connections: int, *, opened: int, begin: int, end: int
) -> Corrected:
    """Correct latencies for coordinated omission: a request waits from when it was due, sent or not.

    Args:
        requests: all that were sent, in any order.
        rate: how many a second were due.
        connections: over how many connections.
        opened: when the last connection was open, in microseconds.
        begin: the begin of the window.
        end: its end, while every connection still has requests to send.
    """
    ordered = sorted(request for request in requests if request.start >= opened)
    due_times = find_due_times([request.start for request in ordered], rate, connections)
    latencies, durations = [], []
    answered = failed = unanswered = 0
    for request, due in zip(ordered, due_times, strict=True):
        finish = request.start + request.duration
        if begin <= finish < end:
            answered += 1
            failed += not 200 <= request.status < 300
        if begin <= due < end:
            durations.append(request.duration)
            latencies.append(round(max(finish - due, request.duration)) if finish < end else round(end - due))
            unanswered += finish >= end
    latest = due_times[-1] if due_times else begin
    while (latest := latest + 1e6 / rate) < end:  # due, and never sent
        if latest >= begin:
            latencies.append(round(end - latest))
            unanswered += 1
    return Corrected(latencies, durations, answered / ((end - begin) / 1e6), unanswered, failed)


def make_histogram(latencies: Iterable[int]) -> HdrHistogram:
    """Count latencies, given in microseconds."""
    histogram = HdrHistogram(1, LONGEST_MICROSECONDS, DIGITS)
    for latency in latencies:
        histogram.record_value(min(max(latency, 1), LONGEST_MICROSECONDS))
    return histogram


def render_percentiles(histogram: HdrHistogram) -> str:
    """Give the percentiles, in milliseconds, in HdrHistogram's text format."""
    file = io.BytesIO()
    histogram.output_percentile_distribution(file, 1000.0)
    return file.getvalue().decode()


def format_percentiles(points: Sequence[tuple[float, float]]) -> str:
    """Give percentiles without counts in the columns of HdrHistogram's text format."""
    lines = [f"{value:12.3f} {at / 100:.12f}" for at, value in points]
    return "\n".join(["       Value     Percentile", "", *lines, ""])


def read_percentiles(lines: Iterable[str]) -> list[tuple[float, float]]:
    """Read HdrHistogram's text format, wherever it begins in a text: pairs of percentile (0 to 100) and value."""
    points = []
    for line in lines:
        fields = line.split()
        if len(fields) in (2, 3, 4) and all(is_number(field) for field in fields):
            points.append((float(fields[1]) * 100, float(fields[0])))
    return points


def is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


def pick(points: Sequence[tuple[float, float]], percentile: float) -> float:
    """Return the value that a percentile has among the points of ``read_percentiles``."""
    for reached, value in points:
        if reached >= percentile - 1e-9:
            return value
    return points[-1][1]


def summarise(points: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Return the percentiles that tables show."""
    return {f"{percentile:g}": pick(points, percentile) for percentile in PERCENTILES}
