"""Health, metrics and logs of a real server."""

import http.client
import json
import os
import re
import signal
import socket
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.load_client import form_request, load, read_reply, talk
from tests.server import Server, serve
from tests.support import Client, wait_for

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def read_metrics(server: Server, port: int = 0) -> Samples:
    """All samples, by name and labels, as Prometheus' own parser reads them."""
    connection = http.client.HTTPConnection("127.0.0.1", port or server.port, timeout=10)
    connection.request("GET", "/metrics")
    reply = connection.getresponse()
    assert reply.status == 200
    assert reply.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    families = list(text_string_to_metric_families(reply.read().decode()))
    connection.close()
    assert all(family.documentation for family in families)
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples.get((name, tuple(sorted(labels.items()))), 0.0)


def test_counts_are_right(star_model: Path, client: Client) -> None:
    """Every count is what was sent, whichever worker answered."""
    with serve(star_model, "--workers", "2", "--reuse-port") as server:
        server.wait_for_log(" ready ")
        bodies = [b"text=great"] * 30 + [b"text=awful"] * 20 + [b"text=great&text=awful&text=okay"]
        received = 0
        for body in bodies:
            status, reply = server.request(body)
            assert status == 200
            received += len(reply)
        more: list[tuple[bytes, int, dict[str, str]]] = [
            (b"nothing=1", 400, {}),
            (b"text=great", 404, {"path": "/nothing"}),
            (b"text=great", 405, {"method": "PUT"}),
            (b'{"text": "great"}', 200, {"Content-Type": "application/json"}),
        ]
        for body, expected, options in more:
            assert server.request(body, **options)[0] == expected
            bodies.append(body)
        # Of pipelined requests no body counts.
        talk(server.port, form_request(b"great") * 3)

        samples = read_metrics(server)
    assert value(samples, "pyserve_requests_total", route="/inferreview", status="200") == 52
    assert value(samples, "pyserve_requests_total", route="/inferreview", status="400") == 1
    assert value(samples, "pyserve_requests_total", route="/inferreview", status="405") == 1
    assert value(samples, "pyserve_requests_total", route="other", status="404") == 1
    assert value(samples, "pyserve_requests_refused_total", cause="pipelined") == 1
    assert value(samples, "pyserve_texts_total") == 54
    predictions = {labels: count for (name, labels), count in samples.items() if name == "pyserve_predictions_total"}
    assert sum(predictions.values()) == 54
    best = next(iter(json.loads(client(b"text=awful").body)))
    assert predictions[(("label", best),)] == 21
    assert value(samples, "pyserve_predict_duration_seconds_count") == 54
    assert value(samples, "pyserve_request_duration_seconds_count") == 54
    buckets = [count for (name, _), count in samples.items() if name == "pyserve_request_duration_seconds_bucket"]
    assert buckets == sorted(buckets)
    assert buckets[-1] == 54
    assert value(samples, "pyserve_received_bytes_total") == sum(map(len, bodies))
    assert value(samples, "pyserve_sent_bytes_total") > received
    assert value(samples, "pyserve_workers_started_total") == 2
    assert value(samples, "pyserve_workers_ready") == 2
    assert value(samples, "pyserve_ready") == 1
    (info,) = [dict(labels) for (name, labels) in samples if name == "pyserve_model_info"]
    assert info["name"] == "stars.bin"
    assert re.fullmatch("[0-9a-f]{64}", info["sha256"])
    resident = [size for (name, _), size in samples.items() if name == "pyserve_worker_resident_bytes"]
    assert len(resident) == 2
    assert all(1 << 20 < size < 200 << 20 for size in resident)


def test_counts_never_fall(star_model: Path, client: Client) -> None:
    """Not when workers are killed, and not when they are replaced."""
    expected = {b"great": client(b"text=great").body}
    with serve(star_model, "--workers", "2") as server:
        server.wait_for_log(" ready ")
        with load(server.port, expected, 4) as seen:
            before = read_metrics(server)
            for turn in range(1, 4):
                target = seen.right + 100
                wait_for(lambda: seen.right > target, "answers")  # noqa: B023
                wait_for(lambda: len(server.workers()) == 2, "the end of those that were replaced")
                os.kill(server.workers()[0], signal.SIGKILL)
                server.wait_for_log("cause=killed", turn)
                server.process.send_signal(signal.SIGHUP)
                server.wait_for_log(" reloaded ", turn)
                after = read_metrics(server)
                for key, count in before.items():
                    if key[0].endswith(("_total", "_bucket", "_count", "_sum")):
                        assert after.get(key, 0) >= count, key
                before = after
        samples = read_metrics(server)
        assert value(samples, "pyserve_requests_total", route="/inferreview", status="200") >= seen.right
        assert value(samples, "pyserve_workers_ended_total", cause="killed") == 3
        assert value(samples, "pyserve_workers_started_total") >= 8
        assert value(samples, "pyserve_reloads_total", result="success") == 3


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_health(star_model: Path, method: str) -> None:
    with serve(star_model, "--workers", "1") as server:
        server.wait_for_log(" ready ")
        for path, state in (("/livez", b"alive"), ("/readyz", b"ready")):
            body = b'{"status":"%b"}' % state if method == "GET" else b""
            assert server.request(b"", method, path) == (200, body)
            assert server.request(b"", "POST", path)[0] == 405
        assert server.request(b"", method, "/metrics")[0] == 200


def test_not_ready_while_draining(star_model: Path) -> None:
    """A client that holds a connection is told so on it."""
    with serve(star_model, "--workers", "1", "--graceful-timeout", "10") as server:
        server.wait_for_log(" ready ")
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
            request = b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n"
            connection.sendall(request[:20])
            assert server.request(b"", "GET", "/readyz")[0] == 200
            server.process.send_signal(signal.SIGTERM)
            server.wait_for_log("stopping")
            connection.sendall(request[20:])
            with connection.makefile("rb") as stream:
                assert stream.readline() == b"HTTP/1.1 503 Service Unavailable\r\n"
                assert b"draining" in stream.read()


def test_answer_without_a_body_ends_the_connection_while_draining(star_model: Path) -> None:
    """At once, and not as an idle connection later."""
    with serve(star_model, "--workers", "1", "--admin-address", "127.0.0.1:0") as server:
        server.wait_for_log(" ready ")
        admin = int(re.search(r"health and metrics on http://127\.0\.0\.1:(\d+)", server.read_log())[1])  # type: ignore[index]
        with (
            socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection,
            socket.create_connection(("127.0.0.1", server.port), timeout=10) as other,
            socket.create_connection(("127.0.0.1", admin), timeout=10) as watching,
        ):
            other.sendall(b"GET /")  # keeps the worker
            watching.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n")
            connection.sendall(b"HEAD /model HTTP/1.1\r\nHost: x\r\n")
            assert server.request(b"text=great")[0] == 200
            server.process.send_signal(signal.SIGTERM)
            server.wait_for_log("stopping")
            wait_for(server.is_refused, "the end of the listener")
            connection.sendall(b"\r\n")
            received = b""
            while data := connection.recv(65536):
                received += data
            assert b"connection: close\r\n" in received
            watching.sendall(b"\r\n")
            with watching.makefile("rb") as stream:
                assert b'pyserve_connections_closed_total{cause="drained"} 0.0' in read_reply(stream).body
        assert server.process.wait(10) == 0


def test_admin_address(star_model: Path) -> None:
    """Health and metrics are there and nowhere else, and survive the death of all workers and of their own."""
    with serve(star_model, "--workers", "1", "--admin-address", "127.0.0.1:0") as server:
        server.wait_for_log(" ready ")
        admin = int(re.search(r"health and metrics on http://127\.0\.0\.1:(\d+)", server.read_log())[1])  # type: ignore[index]
        for path in ("/livez", "/readyz", "/metrics"):
            assert server.request(b"", "GET", path)[0] == 404
        assert server.request(b"text=great")[0] == 200
        samples = read_metrics(server, admin)
        assert value(samples, "pyserve_requests_total", route="/inferreview", status="200") == 1
        assert b"404" in talk(admin, b"POST /inferreview?text=a HTTP/1.0\r\n\r\n")
        assert value(samples, "pyserve_workers_ready") == 1
        for pid in server.workers():
            os.kill(pid, signal.SIGKILL)
        server.wait_for_log("cause=killed", 2)
        wait_for(lambda: len(server.workers()) == 2, "new workers")
        assert b"200" in talk(admin, b"GET /livez HTTP/1.0\r\n\r\n")
        assert server.stop() == 0


def test_not_ready_without_workers(star_model: Path) -> None:
    """The admin process tells that nobody takes requests, though it does so itself."""
    with serve(star_model, "--workers", "1", "--admin-address", "127.0.0.1:0") as server:
        server.wait_for_log(" ready ")
        admin = int(re.search(r"health and metrics on http://127\.0\.0\.1:(\d+)", server.read_log())[1])  # type: ignore[index]
        assert b" 200 " in talk(admin, b"GET /readyz HTTP/1.0\r\n\r\n")
        started = re.search(r"worker started worker=(\d+) kind=serving", server.read_log())
        assert started
        # Two deaths in a row: the next worker waits, and there is none meanwhile.
        os.kill(int(started[1]), signal.SIGKILL)
        server.wait_for_log("cause=killed", 1)
        server.wait_for_log("kind=serving", 3)
        os.kill(int(re.findall(r"worker started worker=(\d+) kind=serving", server.read_log())[-1]), signal.SIGKILL)
        server.wait_for_log("cause=killed", 2)
        assert b" 503 " in talk(admin, b"GET /readyz HTTP/1.0\r\n\r\n")
        wait_for(lambda: b" 200 " in talk(admin, b"GET /readyz HTTP/1.0\r\n\r\n"), "readiness")


def test_json_log(star_model: Path) -> None:
    with serve(star_model, "--workers", "1", "--log-format", "json", "--access-log", "1") as server:
        server.wait_for_log('"ready"')
        assert server.request(b"text=secret+words", **{"X-Request-ID": "abc"})[0] == 200
        assert server.request(b"", "GET", "/secret?text=secret")[0] == 404
        assert server.stop() == 0
        assert "secret" not in server.read_log()
        lines = [json.loads(line) for line in server.read_log().splitlines()]
    assert all({"time", "level", "pid", "message"} <= set(line) for line in lines)
    access = [line for line in lines if line["message"] == "access"]
    assert [(line["route"], line["status"], line["method"]) for line in access] == [
        ("/inferreview", 200, "POST"),
        ("other", 404, "GET"),
    ]
    assert access[0]["request_id"] == "abc"
    assert access[0]["milliseconds"] >= 0


def test_access_log_is_sampled(star_model: Path) -> None:
    with serve(star_model, "--workers", "1", "--access-log", "10") as server:
        server.wait_for_log(" ready ")
        for _ in range(50):
            assert server.request(b"text=secret")[0] == 200
        server.wait_for_log(" access ", 5)
        assert server.stop() == 0
        assert server.read_log().count(" access ") == 5
        assert "secret" not in server.read_log()


def test_start_and_stop_are_logged(star_model: Path) -> None:
    with serve(star_model, "--workers", "1") as server:
        server.wait_for_log(" ready ")
        assert server.stop() == 0
        for event in ("serving stars.bin", "worker started", "ready workers=1", "stopping", "worker ended", "stopped"):
            assert event in server.read_log()
