"""The load measurements: percentiles, the correction for coordinated omission, reports, servers, and the README."""

import json
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import compare, data, generators, load, processes, report
from benchmarks.contenders import CONTENDERS, Contender
from benchmarks.generators import GeneratorError
from benchmarks.latency import Request, correct, make_histogram, pick, read_log, read_percentiles, render_percentiles
from benchmarks.processes import ServerError, members, running
from tests.support import wait_for

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = Path(__file__).resolve().parent / "samples"


def read_sample(name: str) -> str:
    return (SAMPLES / name).read_text()


# ---- percentiles


def test_percentiles_uniform() -> None:
    histogram = make_histogram(range(1, 100_001))
    for percentile in (50, 90, 99, 99.9):
        assert histogram.get_value_at_percentile(percentile) == pytest.approx(percentile * 1000, rel=0.001)


def test_percentiles_as_text() -> None:
    points = read_percentiles(render_percentiles(make_histogram(range(1, 100_001))).splitlines())
    assert points[0][0] == 0.0
    assert points[-1] == (100.0, pytest.approx(100, rel=0.001))
    for percentile, milliseconds in points:
        assert milliseconds == pytest.approx(percentile, rel=0.001, abs=0.002)
    assert pick(points, 99) == min(value for reached, value in points if reached >= 99)


def test_percentiles_exponential() -> None:
    generator = random.Random(1)
    values = [round(generator.expovariate(1 / 2000)) + 1 for _ in range(50_000)]
    exact = statistics.quantiles(values, n=1000, method="inclusive")
    histogram = make_histogram(values)
    for percentile in (50, 90, 99, 99.9):
        assert histogram.get_value_at_percentile(percentile) == pytest.approx(
            exact[round(percentile * 10) - 1], rel=0.01
        )


def test_percentiles_beyond_range() -> None:
    histogram = make_histogram([0, 10**12])
    assert histogram.get_total_count() == 2


# ---- coordinated omission


SECOND = 1_000_000


def simulate(
    rate: float, connections: int, seconds: float, answer_at: "Clock", service: float = 100.0
) -> list[Request]:
    """Write the log of a generator that waits for each answer and then sends at once what it missed."""
    interval = connections * 1e6 / rate
    requests = []
    for number in range(connections):
        free = 0.0
        for turn in range(int(seconds * 1e6 / interval)):
            due = turn * interval + number * interval / connections
            sent = max(due, free)
            free = answer_at(sent, service)
            requests.append(Request(round(sent), 200, round(free - sent)))
    return sorted(requests, key=lambda request: request.start + request.duration)


class Clock:
    """Tells when an answer comes of a server that is deaf for a while."""

    def __init__(self, deaf_from: float, deaf_until: float) -> None:
        self.deaf_from, self.deaf_until = deaf_from, deaf_until

    def __call__(self, sent: float, service: float) -> float:
        return (self.deaf_until if self.deaf_from <= sent < self.deaf_until else sent) + service


def test_correct_steady_load() -> None:
    requests = simulate(1000, 20, 5, Clock(0, 0))
    found = correct(requests, 1000, 20, opened=0, begin=SECOND, end=4 * SECOND)
    assert (len(found.latencies), found.unanswered, found.failed) == (3000, 0, 0)
    assert found.answered == 1000
    assert set(found.latencies) <= {100, 101}
    assert set(found.durations) == {100}


def test_correct_stall() -> None:
    # Deaf for half a second of four: an eighth of all requests is due in it, and waits for a quarter of a second or so.
    requests = simulate(1000, 20, 6, Clock(2 * SECOND, 2.5 * SECOND))
    found = correct(requests, 1000, 20, opened=0, begin=SECOND, end=5 * SECOND)
    assert sum(latency > 1000 for latency in found.latencies) == pytest.approx(500, abs=25)
    assert make_histogram(found.latencies).get_value_at_percentile(99) == pytest.approx(460_000, rel=0.05)
    # What was sent only after the stall seems to have met none: that is the omission.
    assert sum(duration > 1000 for duration in found.durations) == 20
    assert make_histogram(found.durations).get_value_at_percentile(99) < 1000


def test_correct_overload() -> None:
    # One connection, whose answers take twice as long as requests are apart: after 4 s the delay has grown to 2 s.
    requests = simulate(100, 1, 8, Clock(0, 0), service=20_000)
    found = correct(requests, 100, 1, opened=0, begin=0, end=4 * SECOND)
    assert found.answered == pytest.approx(50, abs=1)
    assert len(found.latencies) == 400
    assert found.unanswered == pytest.approx(200, abs=2)
    assert max(found.latencies) == pytest.approx(2 * SECOND, rel=0.02)


def test_correct_counts_what_was_never_sent() -> None:
    # Answers stop for good after two seconds.
    requests = [request for request in simulate(1000, 20, 4, Clock(0, 0)) if request.start < 2 * SECOND]
    found = correct(requests, 1000, 20, opened=0, begin=SECOND, end=3 * SECOND)
    assert found.unanswered == pytest.approx(1000, abs=2)
    assert max(found.latencies) == pytest.approx(SECOND, rel=0.01)


def test_correct_counts_failures() -> None:
    requests = [
        request._replace(status=500 if index % 10 == 0 else 200)
        for index, request in enumerate(simulate(1000, 20, 3, Clock(0, 0)))
    ]
    assert correct(requests, 1000, 20, opened=0, begin=SECOND, end=2 * SECOND).failed == pytest.approx(100, abs=2)


STALL_SECONDS = 0.6


@contextmanager
def stalling_server(stall_after: float) -> Iterator[int]:
    """Serve a constant answer, and nobody for a while: the whole server waits, as one in a long collection does."""
    gate, begun, stalled = threading.Lock(), threading.Event(), threading.Event()
    listener = socket.create_server(("127.0.0.1", 0), backlog=100)

    def stall() -> None:
        begun.wait()
        if not stalled.wait(stall_after):
            with gate:
                stalled.wait(STALL_SECONDS)

    def answer(connection: socket.socket) -> None:
        with connection:
            head = b""
            while part := connection.recv(4096):
                head += part
                if b"\r\n\r\n" not in head:
                    continue
                top, _, body = head.partition(b"\r\n\r\n")
                length = re.search(rb"content-length: *(\d+)", top, re.IGNORECASE)
                if length and len(body) < int(length[1]):
                    continue
                head = b""
                begun.set()
                with gate:
                    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer_quietly, args=(connection,), daemon=True).start()

    def answer_quietly(connection: socket.socket) -> None:
        with suppress(OSError):
            answer(connection)

    threads = [threading.Thread(target=stall, daemon=True), threading.Thread(target=accept, daemon=True)]
    for thread in threads:
        thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        stalled.set()
        begun.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def drive(port: int, rate: float, connections: int, seconds: float) -> list[Request]:
    """Send at a constant rate over kept connections, each waiting for its answer, and log it."""
    requests: list[Request] = []
    interval, begin = connections / rate, time.perf_counter() + 0.1
    message = b"POST /inferreview HTTP/1.1\r\nHost: test\r\nContent-Length: 6\r\n\r\ntext=a"

    def send(number: int) -> None:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            for turn in range(int(seconds / interval)):
                due = begin + number * interval / connections + turn * interval
                if (wait := due - time.perf_counter()) > 0:
                    time.sleep(wait)
                sent = time.perf_counter()
                connection.sendall(message)
                connection.recv(4096)
                requests.append(Request(round((sent - begin) * 1e6), 200, round((time.perf_counter() - sent) * 1e6)))

    threads = [threading.Thread(target=send, args=(number,)) for number in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return requests


def check_stall_shows(latencies: list[int], rate: float) -> None:
    """Hold that half the requests due in the stall waited longer than half of it, and that p99 says so."""
    half = STALL_SECONDS / 2
    assert sum(latency > half * 1e6 for latency in latencies) > 0.8 * half * rate
    assert make_histogram(latencies).get_value_at_percentile(99) > 0.8 * STALL_SECONDS * 1e6


def test_correct_stalling_server() -> None:
    with stalling_server(stall_after=1.0) as port:
        requests = drive(port, rate=200, connections=10, seconds=3.5)
    found = correct(requests, 200, 10, opened=0, begin=SECOND // 2, end=3 * SECOND)
    check_stall_shows(found.latencies, 200)
    # Each connection was caught once; what it sent after that seems to have met no stall.
    assert sum(duration > STALL_SECONDS / 2 * 1e6 for duration in found.durations) <= 10


def test_h2load_stalling_server(tmp_path: Path) -> None:
    tools = {name: path for name, path in generators.find_tools().items() if name == "h2load"}
    if not tools:
        pytest.skip("needs h2load, of Debian's package nghttp2-client")
    with stalling_server(stall_after=2.0) as port:
        found = generators.measure_paced(
            tools,
            f"http://127.0.0.1:{port}/inferreview",
            [data.SHORT_TEXT],
            tmp_path,
            rate=200,
            connections=10,
            warm_up=0.3,
            seconds=2.5,
            cores=[0],
        )
    assert found.corrected is not None
    check_stall_shows(found.corrected.latencies, 200)


# ---- reports of the generators


def test_parse_wrk() -> None:
    assert generators.parse_wrk(read_sample("wrk.txt")) == generators.WrkReport(80533.36, 88578, 0)


def test_parse_wrk_errors() -> None:
    assert generators.parse_wrk(read_sample("wrk-errors.txt")) == generators.WrkReport(301.53, 302, 32 + 112)


def test_parse_wrk2() -> None:
    output = read_sample("wrk2.txt")
    assert generators.parse_wrk(output) == generators.WrkReport(19950.13, 399012, 0)
    points = generators.parse_wrk2(output)
    assert [pick(points, percentile) for percentile in (50, 99, 99.9, 100)] == [1.162, 5.466, 7.999, 19.871]


def test_read_log_cut_off() -> None:
    requests = read_log(SAMPLES / "h2load.tsv")
    assert len(requests) == 5  # and a sixth line that was cut off
    assert requests[0] == Request(1795462421156763, 200, 3222)


@pytest.mark.parametrize("parse", [generators.parse_wrk, generators.parse_wrk2])
def test_parse_other_text(parse: Callable[[str], object]) -> None:
    with pytest.raises(GeneratorError):
        parse("unable to connect to 127.0.0.1:9000 Connection refused")


def test_missing_tools_name_packages() -> None:
    lines = "\n".join(generators.explain_missing({}))
    assert "apt-get install wrk" in lines
    assert "apt-get install nghttp2-client" in lines
    assert not generators.explain_missing({"wrk": "wrk", "wrk2": "wrk2"})


def test_failing_generator_says_why() -> None:
    with pytest.raises(GeneratorError, match="no such thing"):
        generators.run(["sh", "-c", "echo no such thing; exit 3"], 1)


# ---- servers


def contender(*command: str, **options: bool) -> Contender:
    return Contender(
        "fake", "fake", lambda model, port: [part.replace("PORT", str(port)) for part in command], **options
    )


def test_server_that_ends_is_reported(star_model: Path) -> None:
    fake = contender(sys.executable, "-c", "import sys; sys.exit('no such model')")
    with pytest.raises(ServerError, match="ended with status 1: no such model"), running(fake, star_model, [0]):
        pass


def test_server_that_answers_wrongly_is_refused(star_model: Path) -> None:
    fake = contender(sys.executable, str(ROOT / "benchmarks/servers/floor.py"), "PORT")
    with pytest.raises(ServerError, match="something else"), running(fake, star_model, [0]):
        pass


def test_server_stops_with_its_children(star_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "STOP_SECONDS", 0.5)  # the shell's child is deaf to SIGTERM
    script = f"trap '' TERM; sleep 60 & exec {sys.executable} {ROOT}/benchmarks/servers/floor.py PORT"
    fake = contender("sh", "-c", script, answers=False)
    with running(fake, star_model, [0]) as group:
        assert len(members(group.leader)) == 2
        assert group.memory_mb() > 1
        leader = group.leader
    assert members(leader) == []


def test_pyserve_answers_correctly(star_model: Path) -> None:
    ours = next(one for one in CONTENDERS if one.name == "pyserve")
    with running(ours, star_model, [0]) as group:
        status, reply = processes.ask(group.port, data.encode_form("great"))
    assert status == 200
    assert list(json.loads(reply)) == ["5 star"]


def test_interrupt_leaves_nothing(star_model: Path) -> None:
    if not generators.find_tools():
        pytest.skip("needs wrk or h2load")
    mark = f"BENCHMARK_MARK={uuid.uuid4()}"
    command = ["env", mark, sys.executable, "-m", "benchmarks.load", "--quick", "--servers", "floor,pyserve"]
    with subprocess.Popen(
        [*command, "--model", str(star_model)], cwd=ROOT, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if re.search(r"greatest rate|requests/s", line):
                break
        wait_for(lambda: count_marked(mark) > 1, "the server")
        process.send_signal(signal.SIGINT)
        process.stderr.read()
        assert process.wait(30) == 130
    assert count_marked(mark) == 0


def count_marked(mark: str) -> int:
    """Count the processes that have a mark in their environment."""
    found = 0
    for entry in Path("/proc").iterdir():
        try:
            found += entry.name.isdigit() and mark.encode() in (entry / "environ").read_bytes()
        except OSError:
            continue
    return found


# ---- capacity


def test_bisect_finds_limit() -> None:
    tried = []

    def probe(rate: int) -> load.Probe:
        tried.append(rate)
        return load.Probe(rate, 3.0 if rate <= 31_000 else 80.0 if rate < 50_000 else float("inf"), rate / 100_000)

    found, above = load.bisect(probe, 60, 70_000, 0.05)
    assert found == pytest.approx(31_000, rel=0.06)
    assert found <= 31_000 < above.rate
    assert len(tried) <= 8


def test_bisect_goes_beyond_a_guess_that_was_too_low() -> None:
    found, above = load.bisect(lambda rate: load.Probe(rate, 1.0 if rate < 25_000 else 100.0, 0.1), 60, 10_000, 0.05)
    assert found == pytest.approx(25_000, rel=0.06)
    assert above is not None


def test_bisect_ends_where_nothing_fails() -> None:
    found, above = load.bisect(lambda rate: load.Probe(rate, 1.0, 0.1), 60, 10_000, 0.05)
    assert found > 30_000
    assert above is None


def test_bisect_none_is_low_enough() -> None:
    found, above = load.bisect(lambda rate: load.Probe(rate, 100.0, 0.1), 60, 1000, 0.05)
    assert found == 0
    assert above is not None


# ---- inputs


def test_reviews_are_reproducible_and_distinct(star_model: Path) -> None:
    reviews = data.generate_reviews(star_model, 300)
    assert reviews == data.generate_reviews(star_model, 300)
    assert len(set(reviews)) == 300
    assert reviews != data.generate_reviews(star_model, 300, seed=1)


def test_reviews_have_lengths_of_amazon_reviews(star_model: Path) -> None:
    lengths = [len(review) for review in data.generate_reviews(star_model, 3000)]
    assert statistics.median(lengths) == pytest.approx(data.MEDIAN_LENGTH, rel=0.05)
    assert statistics.fmean(lengths) == pytest.approx(data.MEAN_LENGTH, rel=0.05)
    assert max(lengths) <= data.LONGEST


def test_reviews_use_the_models_words(star_model: Path) -> None:
    vocabulary = set(data.read_vocabulary(star_model)[0])
    words = re.findall(r"\w+", " ".join(data.generate_reviews(star_model, 100)).lower())
    assert set(words) <= vocabulary


# ---- the README


RESULTS = report.RESULTS / "load.json"


@pytest.mark.parametrize(
    ("total", "shares"),
    [(12.5, (10.0, 1.5, 1.0)), (11.0, (9.5, 1.5, 0.0)), (9.0, (7.5, 1.5, 0.0))],
    ids=["above plain bjoern", "model and plain bjoern are more", "below plain bjoern"],
)
def test_breakdown_adds_up(total: float, shares: tuple[float, float, float]) -> None:
    results = {
        "maximum": [
            {"server": server, "workload": "short", "cpu_us": microseconds}
            for server, microseconds in (("floor", 10.0), ("pyserve", total), ("granian", 25.0))
        ],
        "model_us": {"binding": {"short": 1.5}},
    }
    (part,) = load.break_down(results)
    assert (part["server"], part["workload"], part["total_us"]) == ("pyserve", "short", total)
    assert (part["floor_us"], part["model_us"], part["own_us"]) == shares
    assert sum(shares) == total


@pytest.fixture
def results() -> report.Results:
    """The committed results, to be changed."""
    return json.loads(RESULTS.read_text())


def test_report_says_that_plain_bjoern_is_no_bound(results: report.Results) -> None:
    text = report.render(results)
    assert "| plain bjoern, constant answer |" in text
    assert "floor" not in text
    assert "no lower bound" in text


def test_report_notes_only_what_was_measured(results: report.Results) -> None:
    text = report.render(results)
    assert "9 gevent workers" in text
    assert "sync workers" in text
    assert "was tried twice" in text
    for name in ("gunicorn", "sync"):
        del results["servers"][name]
    results |= {"capacity": [], "breakdown": [], "latency": []}
    text = report.render(results)
    for word in ("gevent", "sync", "was tried twice", "no lower bound", "h2load, logging", "varies addresses"):
        assert word not in text


def test_report_marks_the_generators_limit_of_either_tool(results: report.Results) -> None:
    results["about"]["paced_by"] = "wrk2"
    results["capacity"][0]["generator_limits"] = True
    assert "`≥` marks" in report.render(results)


@pytest.mark.parametrize(("rounds", "said"), [(1, "in one round."), (3, "the median of 3 rounds ± half their range.")])
def test_report_says_how_often_was_measured(results: report.Results, rounds: int, said: str) -> None:
    results["about"]["rounds"] = rounds
    assert said in report.introduce(results)


@pytest.mark.parametrize(("load_core", "said"), [(0, "shares one core with"), (1, "has one core, and")])
def test_report_says_who_has_which_core(results: report.Results, load_core: int, said: str) -> None:
    results["about"]["machine"] |= {"server_core": 0, "load_core": load_core}
    assert f"Each server {said}" in report.introduce(results)


def test_report_links_only_pictures_that_are_there(results: report.Results, tmp_path: Path) -> None:
    assert "![" not in report.render(results, tmp_path)
    (tmp_path / "maximum.png").touch()
    (link,) = re.findall(r"!\[[^]]+\]\(([^)]+)\)", report.render(results, tmp_path))
    assert (ROOT / link).resolve() == (tmp_path / "maximum.png").resolve()


def test_report_links_every_picture_that_is_drawn(results: report.Results, tmp_path: Path) -> None:
    pictures = pytest.importorskip("benchmarks.pictures", reason="needs matplotlib, which make load installs")
    (tmp_path / "gunicorn.png").touch()
    results["latency"] = [one for one in results["latency"] if one["server"] != "gunicorn"]
    pictures.draw_all(results, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(report.PICTURES) - {"gunicorn.png"}


def test_readme_shows_the_results() -> None:
    readme = report.README.read_text()
    assert report.place(readme, report.render(json.loads(RESULTS.read_text()))) == readme


def test_readme_check_notices_a_difference(tmp_path: Path) -> None:
    changed = tmp_path / "README.md"
    changed.write_text(
        re.sub(r"(?<=\| pyserve \| )\d", "9", report.README.read_text()).replace("times gunicorn", "times")
    )
    command = [sys.executable, "-m", "benchmarks.report", "--check", "--readme", str(changed)]
    found = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (
        1,
        "README.md does not show the results of load.json, make load-report does that\n",
    )


def test_readme_pictures_are_there_and_small() -> None:
    names = re.findall(r"!\[[^]]+\]\((benchmarks/results/[^)]+)\)", report.README.read_text())
    assert len(names) >= 5
    for name in names:
        size = (ROOT / name).stat().st_size
        assert 0 < size < 100_000, name


def test_results_hold_raw_percentiles() -> None:
    for run in json.loads(RESULTS.read_text())["latency"]:
        points = read_percentiles((report.RESULTS / run["file"]).read_text().splitlines())
        for percentile in (50.0, 90.0, 99.0, 99.9):
            before = max(value for reached, value in points if reached <= percentile)
            shown = run["percentiles"][f"{percentile:g}"]
            # Of a short run's few answers, the next in rank may be some percent away.
            assert before * 0.95 <= shown <= pick(points, percentile) * 1.05, run["file"]


def test_results_hold_no_path_of_a_machine() -> None:
    text = RESULTS.read_text()
    assert not re.search(r"/(home|root|tmp|work|usr)/", text)


# ---- beside the article's server alone


@pytest.fixture
def compared() -> compare.Rounds:
    rounds = [compare.Round(100.0, 10.0, 0.5), compare.Round(110.0, 9.0, 0.5)]
    return {(workload, name): rounds for workload in ("short", "reviews") for name in compare.COMPARED}


def test_compare_calls_plain_bjoern_no_floor(compared: compare.Rounds, capsys: pytest.CaptureFixture[str]) -> None:
    compare.print_rates("reviews", compared)
    for aim in compare.AIMS:
        compare.judge(aim, compared)
    text = capsys.readouterr().out
    assert "reviews: pyserve, native engine: 1.00 times the rate of plain bjoern, constant answer (rounds" in text
    assert "floor" not in text


def test_compare_says_where_wrk_was_at_its_limit(compared: compare.Rounds, capsys: pytest.CaptureFixture[str]) -> None:
    compared["short", "floor"] = [compare.Round(100.0, 10.0, 0.99)]
    compare.print_rates("short", compared)
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "wrk itself was at its limit" in line)
    assert "plain bjoern, constant answer" in line


# ---- a whole run


def write_tool(folder: Path, name: str, script: str) -> str:
    tool = folder / name
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    return str(tool)


@pytest.fixture
def session(star_model: Path, tmp_path: Path) -> load.Session:
    """A session with a server that works, one that does not start, and generators that repeat a stored report."""
    floor = next(one for one in CONTENDERS if one.name == "floor")
    broken = Contender(
        "broken", "broken", lambda model, port: [sys.executable, "-c", "raise SystemExit('out of order')"]
    )
    return load.Session(
        extent=replace(load.QUICK, paced_servers={"short": None}, capacity_servers={}, maximum_warm_up=0),
        model=star_model,
        contenders=[broken, floor],
        workloads={"short": [data.SHORT_TEXT]},
        tools={
            "wrk": write_tool(tmp_path, "wrk", f"cat {SAMPLES}/wrk.txt"),
            "wrk2": write_tool(tmp_path, "wrk2", f"cat {SAMPLES}/wrk2.txt"),
        },
        server_core=0,
        load_core=0,
        folder=tmp_path,
        output=tmp_path / "results",
    )


def test_run_records_failures_and_goes_on(session: load.Session) -> None:
    load.measure(session)
    load.write(session)
    results = json.loads((session.output / "load.json").read_text())
    assert {(one["server"], one["reason"]) for one in results["failures"]} == {
        ("broken", "ended with status 1: out of order")
    }
    assert [(one["server"], one["rate"]) for one in results["maximum"]] == [("floor", 80533)]
    assert [(one["server"], one["rate"], one["percentiles"]["99"]) for one in results["latency"]] == [
        ("floor", rate, 5.466) for rate in load.RATES
    ]
    assert [one["rate"] for one in results["latency"] if one["overloaded"]] == [25_000]
    assert (session.output / results["latency"][-1]["file"]).name == "floor-short-25000.hgrm"
    assert results["about"]["paced_by"] == "wrk2"
    assert "benchmarks/servers/floor.py" in results["servers"]["floor"]["command"]
    assert "Not measured: broken, greatest rate: ended with status 1: out of order." in report.render(results)


def test_run_without_wrk_measures_latency(session: load.Session) -> None:
    del session.tools["wrk"]
    session.contenders.pop(0)
    load.measure(session)
    assert session.results["maximum"] == []
    assert len(session.results["latency"]) > 1
    assert "| plain bjoern, constant answer |  |  | 5.5 ms |" in report.render(session.results)
    # Memory is what the greatest rates leave, so without them there is none.
    assert "memory_mb" not in session.results["servers"]["floor"]
    assert "Memory" not in report.render(session.results)
    assert "apt-get install wrk" in generators.explain_missing(session.tools)[0]


def test_run_without_h2load_measures_rates(session: load.Session) -> None:
    del session.tools["wrk2"]
    session.contenders.pop(0)
    load.measure(session)
    assert session.results["latency"] == []
    assert len(session.results["maximum"]) == 1


def test_server_names_missing_packages(star_model: Path) -> None:
    fake = Contender("fake", "fake", lambda model, port: ["true"], needs=("no-such-package",))
    with pytest.raises(ServerError, match="needs no-such-package"), running(fake, star_model, [0]):
        pass


@pytest.mark.parametrize("quick", [True, False], ids=["quick", "full"])
@pytest.mark.parametrize("paced_by", ["h2load", "wrk2"])
def test_plan_keeps_to_the_promised_minutes(
    session: load.Session, monkeypatch: pytest.MonkeyPatch, paced_by: str, quick: bool
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(2)))
    session.tools = {"wrk": "wrk", paced_by: paced_by}
    session.contenders = list(CONTENDERS)
    session.workloads = {"short": [], "reviews": []}
    session.extent = load.choose_extent(session.tools, quick=quick)
    assert sum(seconds for seconds, _ in load.plan_phases(session)) < session.extent.minutes * 60
    assert session.extent.minutes == (3 if quick else 30)


@pytest.mark.parametrize("seconds", [1, 1.5, 5.0])
def test_wrk2_is_given_whole_seconds(session: load.Session, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    commands = []

    def note(command: list[str], seconds: float) -> tuple[str, float]:
        commands.append(command)
        return read_sample("wrk2.txt"), 0.5

    monkeypatch.setattr(generators, "run", note)
    load.pace(session, processes.Group(1, 9000, 0.1), "short", 1000, seconds)
    ((duration,),) = [[part for part in command if part.startswith("-d")] for command in commands]
    assert re.fullmatch(r"-d\d+s", duration)
    assert int(duration[2:-1]) >= 10 + seconds


def test_memory_is_taken_after_the_greatest_rates_alone(session: load.Session, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = iter(range(1, 100))
    monkeypatch.setattr(processes.Group, "memory_mb", lambda group: float(next(figures)))
    session.contenders.pop(0)
    load.measure(session)
    assert session.results["latency"]
    assert session.results["servers"]["floor"]["memory_mb"] == 1.0
    assert "Memory, after the load, is the proportional share (PSS)" in report.render(session.results)


def test_end_says_what_shows_the_results(tmp_path: Path) -> None:
    assert load.explain_output(load.RESULTS).endswith("load.json; make load-report shows it in README.md")
    quick = load.explain_output(load.RESULTS / "quick")
    assert re.search(r'; make load-report ARGS="--results \S*benchmarks/results/quick" shows it', quick)
