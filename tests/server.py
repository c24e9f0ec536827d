"""A real ``pyserve serve`` in a process of its own."""

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

import pytest

from tests.support import FORM, ROUTE, deadline, wait_for

PYSERVE = [str(Path(sys.executable).with_name("pyserve"))]


def clean_environment() -> dict[str, str]:
    """This process's environment without what would change a command's options."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYSERVE_")}


def run(*arguments: str, stdin: bytes = b"", **environment: str) -> tuple[int, str, str]:
    """Run a command. Return its exit status and what it printed on both streams."""
    variables = clean_environment() | environment
    done = subprocess.run(
        [*PYSERVE, *arguments], check=False, input=stdin, capture_output=True, env=variables, timeout=60
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def patch_program(monkeypatch: pytest.MonkeyPatch, directory: Path, changes: str) -> Path:
    """Have the servers of a test run some statements first, to meet what hardly ever happens.

    Return a path at which there is no file yet. The statements have it as ``marker``, to tell when to do what they do.
    """
    script, marker = directory / "changed.py", directory / "marker"
    script.write_text(f"marker = {str(marker)!r}\n{changes}\nfrom pyserve.cli import main\nmain()\n")
    monkeypatch.setattr("tests.server.PYSERVE", [sys.executable, str(script)])
    return marker


@dataclass
class Server:
    """A running server: where it listens, its process, and what it has written."""

    process: subprocess.Popen[bytes]
    log: IO[bytes]
    port: int = 0
    path: str = ""  # of its Unix socket, where it has one

    def read_log(self) -> str:
        """Read what the server wrote, without moving the offset that it shares with this process."""
        return os.pread(self.log.fileno(), 1 << 30, 0).decode()

    def wait_for_log(self, text: str, count: int = 1) -> None:
        """Wait until the server has written a text, or written it that often."""
        try:
            wait_for(lambda: self.read_log().count(text) >= count, f"{text!r} in the log")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.read_log()}") from None

    def workers(self) -> list[int]:
        """The workers' process ids."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in children.split()]

    def connect(self, receive_buffer: int = 0) -> socket.socket:
        """Open a connection, if need be with little room for what is received."""
        connection = socket.socket(socket.AF_UNIX if self.path else socket.AF_INET)
        connection.settimeout(15)
        if receive_buffer:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connection.connect(self.path or ("127.0.0.1", self.port))
        return connection

    def request(self, body: bytes, method: str = "POST", path: str = ROUTE, **headers: str) -> tuple[int, bytes]:
        """Send a request on a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1")
        connection.sock = self.connect()
        try:
            connection.request(method, path, body, {"Content-Type": FORM, **headers})
            reply = connection.getresponse()
            return reply.status, reply.read()
        finally:
            connection.close()

    def is_refused(self) -> bool:
        """Tell whether connections are accepted no more."""
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=10).close()
        except ConnectionRefusedError:
            return True
        return False

    def metric(self, name: str) -> float:
        """The value of a metric, given its name and labels as they are written."""
        _, text = self.request(b"", "GET", "/metrics")
        for line in text.decode().splitlines():
            if line.startswith(name + " "):
                return float(line.rsplit(" ", 1)[1])
        raise AssertionError(f"there is no metric {name}")

    def closed_for(self, cause: str) -> float:
        """How many connections were closed for a cause."""
        return self.metric(f'pyserve_connections_closed_total{{cause="{cause}"}}')

    def refused_for(self, cause: str) -> float:
        """How many requests were refused for a cause."""
        return self.metric(f'pyserve_requests_refused_total{{cause="{cause}"}}')

    def stop(self, signum: int = signal.SIGTERM, seconds: float = 10) -> int:
        """Send a signal and wait for the end. Return the exit status."""
        self.process.send_signal(signum)
        return self.process.wait(seconds)


@contextmanager
def serve(
    model: Path,
    *options: str,
    ready: str = r"serving .* on (?:http://127\.0\.0\.1:(\d+)|unix:(.*))",
    preexec: Callable[[], None] | None = None,
) -> Iterator[Server]:
    """Start a server on a free port, wait until it says that it serves, and kill it at the end."""
    command = [*PYSERVE, "serve", "--model", str(model), "--port", "0", *options]
    with TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=clean_environment(),
            preexec_fn=preexec,  # noqa: PLW1509
        )
        server = Server(process, log)
        try:
            with deadline(30, "the start") as tick:
                while not (match := re.search(ready, server.read_log())):
                    assert process.poll() is None, server.read_log()
                    tick()
            server.port = int(match[1] or 0)
            server.path = match[2] or "" if len(match.groups()) > 1 else ""
            yield server
        finally:
            process.kill()
            process.wait()
