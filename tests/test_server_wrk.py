"""Signals while wrk asks as fast as the service answers, with every error that wrk counts."""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.server import Server, serve
from tests.support import wait_for

WRK = shutil.which("wrk")
CONNECTIONS = 64
SECONDS = 4
SCRIPT = """
wrk.method = "POST"
wrk.body = "text=great"
wrk.headers["Content-Type"] = "application/x-www-form-urlencoded"
"""

pytestmark = [
    pytest.mark.skipif(WRK is None, reason="needs wrk, which make test installs where it may"),
    pytest.mark.skipif("PYSERVE_SANITIZE" in os.environ, reason="too slow for what is waited for"),
]


@dataclass
class Report:
    """What wrk counted."""

    requests: int = 0
    refused: int = 0  # answers of another status than 200
    errors: int = 0  # of its sockets


@contextmanager
def wrk(server: Server, folder: Path) -> Iterator[Report]:
    """Have wrk ask from when a first answer is there; the report is filled in at the end."""
    script = folder / "ask.lua"
    script.write_text(SCRIPT)
    report = Report()
    url = f"http://127.0.0.1:{server.port}/inferreview"
    command = [str(WRK), "-t1", f"-c{CONNECTIONS}", f"-d{SECONDS}", "-s", str(script), url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            wait_for(lambda: connections_of(server) >= CONNECTIONS // 2, "the load")
            yield report
            output = process.communicate(timeout=60)[0]
        finally:
            process.kill()
    report.requests = sum_up(r"(\d+) requests in", output)
    report.refused = sum_up(r"Non-2xx or 3xx responses: (\d+)", output)
    report.errors = sum_up(r"connect (\d+), read (\d+), write (\d+), timeout (\d+)", output)


def sum_up(pattern: str, output: str) -> int:
    """Add up the numbers of a line of the report, which is left out where they are all 0."""
    found = re.search(pattern, output)
    return sum(int(number) for number in found.groups()) if found else 0


def connections_of(server: Server) -> int:
    """How many descriptors the workers have open, but for those of a worker that nobody asks."""
    return sum(len(os.listdir(f"/proc/{pid}/fd")) for pid in server.workers())


@pytest.mark.parametrize("workers", ["1", "2"])
def test_reload_costs_wrk_nothing(star_model: Path, tmp_path: Path, workers: str) -> None:
    with serve(star_model, "--workers", workers) as server:
        server.wait_for_log(" ready ")
        with wrk(server, tmp_path) as report:
            for turn in (1, 2):
                server.process.send_signal(signal.SIGHUP)
                server.wait_for_log(" reloaded ", turn)
                server.wait_for_log("cause=reloaded", turn * int(workers))
        assert (report.refused, report.errors) == (0, 0)
        assert report.requests > 1000


def test_killed_worker_costs_wrk_its_connections(star_model: Path, tmp_path: Path) -> None:
    with serve(star_model, "--workers", "2") as server:
        server.wait_for_log(" ready ")
        with wrk(server, tmp_path) as report:
            os.kill(server.workers()[0], signal.SIGKILL)
            server.wait_for_log("cause=killed")
        assert report.refused == 0
        assert report.errors <= CONNECTIONS
        assert report.requests > 1000
        assert len(server.workers()) == 2


def test_stop_under_wrk(star_model: Path, tmp_path: Path) -> None:
    """Errors tell nothing here: wrk goes on to the end of its time, and counts that it cannot connect any more."""
    with serve(star_model, "--workers", "2") as server:
        server.wait_for_log(" ready ")
        with wrk(server, tmp_path) as report:
            assert server.stop() == 0
        assert report.refused == 0
        assert report.requests > 0
