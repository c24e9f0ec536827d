"""Start a server on cores of its own, demand a correct answer of it, and stop it with all its children."""

import contextlib
import http.client
import importlib.metadata
import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO

from benchmarks.contenders import Contender, environment
from benchmarks.data import PRODUCT_TEXT, SHORT_TEXT, encode_form

HOST = "127.0.0.1"
START_SECONDS = 30.0
STOP_SECONDS = 10.0
POLL_SECONDS = 0.02
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
FORM = {"Content-Type": "application/x-www-form-urlencoded"}


class ServerError(Exception):
    """A server did not start or answered wrongly; the message says which."""


@dataclass(frozen=True)
class Group:
    """The processes of a running server."""

    leader: int
    port: int
    ready_seconds: float

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}/inferreview"

    def cpu_seconds(self) -> float:
        """Sum the processor time that its living processes have used."""
        return sum(cpu_seconds(pid) for pid in members(self.leader))

    def memory_mb(self) -> float:
        """Sum its proportional share (PSS): a page counts once among the processes that map it."""
        return sum(memory_kb(pid, "Pss") for pid in members(self.leader)) / 1024

    def resident_mb(self) -> float:
        """Tell the memory of the largest of its processes, shared pages included (RSS)."""
        return max(memory_kb(pid, "Rss") for pid in members(self.leader)) / 1024


def read_stat(pid: int) -> list[str]:
    """Read /proc/PID/stat from its third field on; empty where the process is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return []


def members(group: int) -> list[int]:
    """List the living processes of a process group."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (stat := read_stat(int(entry))) and stat[2] == str(group) and stat[0] not in "ZX":
            found.append(int(entry))
    return found


def cpu_seconds(pid: int) -> float:
    stat = read_stat(pid)
    return (int(stat[11]) + int(stat[12])) / CLOCK_TICKS if stat else 0.0


def memory_kb(pid: int, kind: str) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(f"{kind}:"):
                return int(line.split()[1])
    return 0


def is_installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def find_port(first: int = 9500, last: int = 9599) -> int:
    """Find a port that nobody listens on."""
    for port in range(first, last + 1):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    raise ServerError(f"no port from {first} to {last} is free")


def pin(cores: Iterable[int], command: list[str]) -> list[str]:
    """Give the command that runs another one on the given cores, and ends it should this process die."""
    numbers = ",".join(str(core) for core in cores)
    return ["setpriv", "--pdeathsig", "TERM", "taskset", "--cpu-list", numbers, *command]


@contextlib.contextmanager
def running(contender: Contender, model: Path, cores: Iterable[int]) -> Iterator[Group]:
    """Run a server for the length of a with block.

    Args:
        contender: which.
        model: the model it serves.
        cores: the cores that it may use.

    Raises:
        ServerError: it did not start in time, or its first answers are wrong.
    """
    missing = [package for package in contender.needs if not is_installed(package)]
    if missing:
        raise ServerError(f"needs {' and '.join(missing)}, which make load installs")
    port = find_port()
    process: subprocess.Popen[bytes] | None = None
    with tempfile.TemporaryFile() as output:
        begun = time.perf_counter()
        try:
            with uninterrupted():
                process = start(pin(cores, contender.command(model, port)), environment(model), output)
            wait_for_answer(process, port, output)
            ready = time.perf_counter() - begun
            if contender.answers:
                check_answers(port, model)
            yield Group(process.pid, port, ready)
        finally:
            if process:
                with uninterrupted():
                    stop(process)


def start(command: list[str], variables: dict[str, str], output: IO[bytes]) -> subprocess.Popen[bytes]:
    """Start a server in a process group of its own."""
    try:
        return subprocess.Popen(
            command,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as error:
        raise ServerError(f"did not start: {error.strerror}") from None


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold back what would end the run until the block is over, so that no process is started or stopped by half."""
    caught: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        caught.append(number)

    handlers = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if caught:
        raise KeyboardInterrupt


def wait_for_answer(process: subprocess.Popen[bytes], port: int, output: IO[bytes]) -> None:
    """Wait until a server answers with status 200."""
    deadline = time.monotonic() + START_SECONDS
    reason = "nothing listened"
    while time.monotonic() < deadline:
        if process.poll() is not None:
            output.seek(0)
            lines = output.read().decode(errors="replace").strip().splitlines()
            raise ServerError(f"ended with status {process.returncode}: {lines[-1] if lines else 'no output'}")
        try:
            status, _ = ask(port, encode_form(PRODUCT_TEXT))
        except (OSError, http.client.HTTPException):
            time.sleep(POLL_SECONDS)
            continue
        if status == http.HTTPStatus.OK:
            return
        reason = f"status {status}"
        time.sleep(POLL_SECONDS)
    raise ServerError(f"gave no answer within {START_SECONDS:.0f} s: {reason}")


def ask(port: int, body: bytes, target: str = "/inferreview") -> tuple[int, bytes]:
    """Send one request and return status and body of its answer."""
    connection = http.client.HTTPConnection(HOST, port, timeout=5)
    try:
        connection.request("POST", target, body, FORM)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def check_answers(port: int, model: Path) -> None:
    """Compare answers, to a form and to a query, with what the model itself says.

    Raises:
        ServerError: one differs.
    """
    import fasttext_pybind

    engine = fasttext_pybind.fasttext()
    engine.loadModel(str(model))
    for text in (PRODUCT_TEXT, SHORT_TEXT):
        ((confidence, label),) = engine.predict(text.encode() + b"\n", 1, 0.0, "strict")
        name = label.removeprefix("__label__")
        form = encode_form(text)
        for body, target in ((form, "/inferreview"), (b"", f"/inferreview?{form.decode()}")):
            status, reply = ask(port, body, target)
            if status != http.HTTPStatus.OK:
                raise ServerError(f"answered with status {status}")
            ((said_label, said_confidence),) = json.loads(reply).items()
            if said_label.removesuffix(" star") != name or abs(said_confidence - confidence) > 1e-5:
                raise ServerError("answered something else than the model says")


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a server and all its processes, gently and then by force."""
    group = process.pid
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, number)
        deadline = time.monotonic() + STOP_SECONDS
        while time.monotonic() < deadline:
            process.poll()
            if not members(group):
                process.wait()
                return
            time.sleep(POLL_SECONDS)
