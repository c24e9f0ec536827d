"""The load generators: how each is called, and how its report is read.

``wrk`` finds the greatest rate. A constant rate comes from ``wrk2`` where that is installed, else from ``h2load``. Of
``h2load`` the log is read: it is ended while every connection still has requests to send, and prints no summary then.
"""

import math
import re
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from benchmarks.data import encode_form
from benchmarks.latency import Corrected, correct, read_log, read_percentiles
from benchmarks.processes import FORM, pin, uninterrupted

OPENING_SECONDS = 1.0
"""What is left out at the beginning of a run at a constant rate: h2load opens a connection every millisecond or so."""

GRACE_SECONDS = 0.5

FILLER = b"via=form"
"""The body where the text is in the query string; h2load takes no empty one."""


class GeneratorError(Exception):
    """A load generator failed; the message says how."""


@dataclass(frozen=True)
class Maximum:
    """What a closed loop reached: requests per second and in all, those that failed, and the generator's load."""

    rate: float
    requests: int
    failed: int
    generator_cpu: float


@dataclass(frozen=True)
class Paced:
    """What came of a constant rate.

    Attributes:
        achieved: answers per second.
        points: pairs of percentile and milliseconds, corrected for coordinated omission; empty where the generator
            gave latencies one by one.
        corrected: the latencies one by one; None where the generator gave percentiles.
        failed: answers that were no 2xx.
        unanswered: requests that were due and had no answer in time; None where the generator does not tell.
        generator_cpu: how busy the generator kept its core, 0 to 1.
    """

    achieved: float
    points: list[tuple[float, float]]
    corrected: Corrected | None
    failed: int
    unanswered: int | None
    generator_cpu: float


def find_tools() -> dict[str, str]:
    """Find the generators on the PATH."""
    return {name: path for name in ("wrk", "wrk2", "h2load") if (path := shutil.which(name))}


def explain_missing(tools: dict[str, str]) -> list[str]:
    """Say, a line each, what cannot be measured and which package would help."""
    lines = []
    if "wrk" not in tools:
        lines.append("wrk is missing, so no greatest rates: sudo apt-get install wrk")
    if "h2load" not in tools and "wrk2" not in tools:
        lines.append("h2load is missing, so no latencies at constant rates: sudo apt-get install nghttp2-client")
    return lines


def write_wrk_script(path: Path, texts: Sequence[str]) -> None:
    """Write a script for wrk and wrk2 that posts the texts as forms, one after the other."""
    bodies = [encode_form(text).decode() for text in texts]
    headers = "".join(f'wrk.headers["{name}"] = "{value}"\n' for name, value in FORM.items())
    script = f'wrk.method = "POST"\n{headers}'
    if len(bodies) == 1:
        # A constant request costs the generator least.
        script += f'wrk.body = "{bodies[0]}"\n'
    else:
        lines = ",\n".join(f'  "{body}"' for body in bodies)
        script += (
            f"local bodies = {{\n{lines}\n}}\nlocal requests, turn = {{}}, 0\n"
            "function init(args)\n"
            "  for index, body in ipairs(bodies) do requests[index] = wrk.format(nil, nil, nil, body) end\n"
            "end\n"
            "function request()\n"
            "  turn = turn % #requests + 1\n"
            "  return requests[turn]\n"
            "end\n"
        )
    path.write_text(script)


def write_h2load_targets(path: Path, url: str, texts: Sequence[str]) -> None:
    """Write the addresses that h2load posts to: it varies addresses only, so each text is in a query string."""
    path.write_text("".join(f"{url}?{encode_form(text).decode()}\n" for text in texts))


def run(command: list[str], seconds: float, *, end_after: float | None = None) -> tuple[str, float]:
    """Run a generator and return its output and how busy it kept its core.

    Args:
        command: its command line.
        seconds: how long it should take; much longer is an error.
        end_after: end it after so many seconds, which is then no error.

    Raises:
        GeneratorError: it failed, or did not end.
    """
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    process: subprocess.Popen[str] | None = None
    ended = False
    try:
        with uninterrupted():
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=-1, stderr=subprocess.STDOUT, text=True
            )
        output, _ = process.communicate(timeout=end_after if end_after is not None else seconds * 3 + 20)
    except subprocess.TimeoutExpired:
        ended = end_after is not None
        process.send_signal(signal.SIGTERM)
        try:
            output, _ = process.communicate(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            output, _ = process.communicate()
        if not ended:
            raise GeneratorError("the load generator did not end in time") from None
    except OSError as error:
        raise GeneratorError(f"the load generator did not start: {error.strerror}") from None
    except BaseException:
        if process:
            process.kill()
            process.wait()
        raise
    elapsed, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if process.returncode != 0 and not ended:
        last = output.strip().splitlines()
        raise GeneratorError(f"the load generator failed: {last[-1] if last else process.returncode}")
    return output, busy / elapsed


def wrk_command(tool: str, url: str, script: Path, connections: int, seconds: float) -> list[str]:
    return [tool, "-t1", f"-c{connections}", f"-d{seconds:g}s", "-s", str(script), url]


def measure_maximum(
    tool: str, url: str, script: Path, *, connections: int, seconds: int, cores: Iterable[int]
) -> Maximum:
    """Drive a server as fast as it answers, with wrk."""
    output, busy = run(pin(cores, wrk_command(tool, url, script, connections, seconds)), seconds)
    found = parse_wrk(output)
    return Maximum(found.rate, found.requests, found.failed, busy)


def wrk2_command(tool: str, url: str, script: Path, rate: float, connections: int, seconds: float) -> list[str]:
    command = wrk_command(tool, url, script, connections, seconds)
    return [*command[:1], f"-R{rate:g}", "--latency", *command[1:]]


def h2load_command(
    tool: str, url: str, *, body: Path, targets: Path | None, log: Path, rate: float, connections: int, seconds: float
) -> list[str]:
    total = connections * max(1, round(rate * seconds / connections))
    paced = ["-n", str(total), "-c", str(connections), "-t", "1", f"--rps={rate / connections:.6f}"]
    stepped = ["-r", "1", "--rate-period=1ms"]
    headers = [part for name, value in FORM.items() for part in ("-H", f"{name.lower()}: {value}")]
    where = ["-i", str(targets)] if targets else [url]
    return [tool, "--h1", *paced, *stepped, "-d", str(body), *headers, f"--log-file={log}", *where]


def measure_paced(
    tools: dict[str, str],
    url: str,
    texts: Sequence[str],
    folder: Path,
    *,
    rate: float,
    connections: int,
    warm_up: float,
    seconds: float,
    cores: Iterable[int],
) -> Paced:
    """Drive a server at a constant rate.

    Args:
        tools: the generators that there are.
        url: where to.
        texts: what to ask, one after the other.
        folder: where scripts and logs may lie.
        rate: how many requests a second, over all connections.
        connections: how many connections.
        warm_up: how long before latencies count, after the connections are open.
        seconds: how long they count.
        cores: where the generator runs.

    Raises:
        GeneratorError: there is no generator, or it failed.
    """
    if "wrk2" in tools:
        script = folder / "paced.lua"
        write_wrk_script(script, texts)
        # It calibrates for ten seconds before latencies count.
        length = math.ceil(10 + seconds)  # it takes whole seconds only
        output, busy = run(pin(cores, wrk2_command(tools["wrk2"], url, script, rate, connections, length)), length)
        found = parse_wrk(output)
        return Paced(found.rate, parse_wrk2(output), None, found.failed, None, busy)
    if "h2load" not in tools:
        raise GeneratorError("neither wrk2 nor h2load is installed")
    log, body, targets = folder / "requests.tsv", folder / "body", None
    log.unlink(missing_ok=True)
    if len(texts) == 1:
        body.write_bytes(encode_form(texts[0]))
    else:
        body.write_bytes(FILLER)
        targets = folder / "targets"
        write_h2load_targets(targets, url, texts)
    length = OPENING_SECONDS + warm_up + seconds
    command = h2load_command(
        tools["h2load"],
        url,
        body=body,
        targets=targets,
        log=log,
        rate=rate,
        connections=connections,
        seconds=length + 2 * GRACE_SECONDS,
    )
    output, busy = run(pin(cores, command), length, end_after=length + GRACE_SECONDS)
    requests = read_log(log) if log.exists() else []
    log.unlink(missing_ok=True)
    if not requests:
        raise GeneratorError("not one request was answered")
    opened = min(request.start for request in requests) + round(OPENING_SECONDS * 1e6)
    begin = opened + round(warm_up * 1e6)
    corrected = correct(requests, rate, connections, opened=opened, begin=begin, end=begin + round(seconds * 1e6))
    if not corrected.latencies:
        raise GeneratorError("no request was due while latencies counted")
    return Paced(corrected.answered, [], corrected, corrected.failed, corrected.unanswered, busy)


class WrkReport(NamedTuple):
    """What wrk prints: requests per second, how many in all, and how many failed."""

    rate: float
    requests: int
    failed: int


def parse_wrk(output: str) -> WrkReport:
    """Read the report of wrk or wrk2.

    Raises:
        GeneratorError: it is no such report.
    """
    rate = re.search(r"^Requests/sec:\s+([\d.]+)", output, re.MULTILINE)
    requests = re.search(r"^\s*(\d+) requests in ", output, re.MULTILINE)
    if not (rate and requests):
        raise GeneratorError("the report has no line Requests/sec")
    failed = 0
    if bad := re.search(r"Non-2xx or 3xx responses:\s+(\d+)", output):
        failed += int(bad[1])
    if errors := re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", output):
        failed += sum(int(count) for count in errors.groups())
    return WrkReport(float(rate[1]), int(requests[1]), failed)


def parse_wrk2(output: str) -> list[tuple[float, float]]:
    """Read the percentiles, corrected by wrk2 itself, of its report: pairs of percentile and milliseconds.

    Raises:
        GeneratorError: it is no such report.
    """
    _, found, spectrum = output.partition("Detailed Percentile spectrum:")
    if not found:
        raise GeneratorError("the report has no percentile spectrum")
    points = read_percentiles(spectrum.partition("#[Mean")[0].splitlines())
    if not points:
        raise GeneratorError("the percentile spectrum is empty")
    return points
