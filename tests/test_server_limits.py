"""Time-outs and limits, each against a real server and clients that do not behave."""

import contextlib
import json
import os
import resource
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.load_client import form_request, load, plain, read_reply
from tests.server import Server, patch_program, serve
from tests.support import Client, deadline, preload, resident_bytes, wait_for

HEAD = b"POST /inferreview HTTP/1.1\r\nHost: x\r\n"


@contextlib.contextmanager
def many(server: Server, count: int, sent: bytes) -> Iterator[list[socket.socket]]:
    """Open connections that have sent the same bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, count + 200)), hard))
    connections: list[socket.socket] = []
    try:
        for _ in range(count):
            connection = server.connect()
            connections.append(connection)
            if sent:
                connection.sendall(sent)
        yield connections
    finally:
        for connection in connections:
            connection.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# Of a kernel before Linux 4.19: less is told of a connection.
OLD_KERNEL = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
int getsockopt(int fd, int level, int name, void *value, socklen_t *size) {
    int (*next)(int, int, int, void *, socklen_t *) = dlsym(RTLD_NEXT, "getsockopt");
    if (level == IPPROTO_TCP && name == TCP_INFO && *size > 104) *size = 104;
    return next(fd, level, name, value, size);
}
"""


@pytest.fixture(scope="module", params=["tcp", "unix", "old kernel"])
def impatient(
    star_model: Path, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("impatient")
    options = ["--workers", "1", "--request-timeout", "1.5", "--keep-alive", "1"]
    with contextlib.ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            if request.param == "unix":
                options += ["--unix-socket", str(folder / "socket")]
            elif request.param == "old kernel":
                patch.setenv("LD_PRELOAD", preload(folder, OLD_KERNEL))
            running = stack.enter_context(serve(star_model, *options))
        running.wait_for_log(" ready ")
        yield running


@pytest.mark.parametrize("sent", [b"GET /livez HT", HEAD, form_request(b"great")[:-1]])
def test_incomplete_request_is_cut_off(impatient: Server, sent: bytes) -> None:
    with impatient.connect() as connection:
        connection.sendall(sent)
        with connection.makefile("rb") as stream:
            reply = read_reply(stream)
            assert stream.read() == b""
    assert reply.status == 408
    assert "within 1.5 seconds" in json.loads(reply.body)["Error"]
    assert reply.headers[b"x-request-id"]
    assert reply.closes


def test_silent_connection_is_closed(impatient: Server) -> None:
    with impatient.connect() as connection:
        assert connection.recv(100) == b""


def test_dripping_request_is_cut_off(impatient: Server) -> None:
    """A byte now and then does not help."""
    with impatient.connect() as connection, deadline(15, "the cut") as tick:
        connection.setblocking(False)
        connection.sendall(HEAD)
        received = b""
        while b"408 Request Timeout" not in received:
            tick()
            with contextlib.suppress(BlockingIOError, BrokenPipeError):
                connection.send(b"X")
            with contextlib.suppress(BlockingIOError):
                received += connection.recv(65536)


@pytest.mark.parametrize("earlier", [0, 1])
def test_request_that_was_told_to_continue_is_cut_off(star_model: Path, earlier: int) -> None:
    """``100 Continue`` does not make an incomplete request an idle connection."""
    with serve(star_model, "--workers", "1", "--request-timeout", "1", "--keep-alive", "60") as server:
        server.wait_for_log(" ready ")
        with server.connect() as connection, connection.makefile("rb") as stream:
            for _ in range(earlier):
                connection.sendall(form_request(b"great"))
                assert read_reply(stream).status == 200
                # A look at more connections is one at this answer, too.
                with many(server, 5, b""):
                    wait_for(lambda: server.metric("pyserve_connections_open") >= 6, "a look")
            connection.sendall(HEAD + b"Expect: 100-continue\r\nContent-Length: 100\r\n\r\n")
            assert stream.readline() == b"HTTP/1.1 100 Continue\r\n"
            assert stream.readline() == b"\r\n"
            assert read_reply(stream).status == 408
            assert stream.read() == b""
        assert server.closed_for("request_timeout") == 1


def test_second_request_is_cut_off_too(impatient: Server) -> None:
    with impatient.connect() as connection, connection.makefile("rb") as stream:
        connection.sendall(form_request(b"great"))
        assert read_reply(stream).status == 200
        connection.sendall(HEAD)
        # One that begins within the clock's tick of the answer before it is closed like an idle connection.
        assert stream.read()[:12] in {b"HTTP/1.1 408", b""}


def test_idle_connection_is_closed(impatient: Server) -> None:
    with impatient.connect() as connection, connection.makefile("rb") as stream:
        connection.sendall(form_request(b"great"))
        assert read_reply(stream).status == 200
        assert stream.read() == b""
    wait_for(lambda: impatient.closed_for("idle") >= 1, "the count")


def test_busy_connection_is_kept(impatient: Server, client: Client) -> None:
    """One that goes on asking outlives every time-out."""
    end = time.monotonic() + 2.5
    with impatient.connect() as connection, connection.makefile("rb") as stream:
        while time.monotonic() < end:
            connection.sendall(form_request(b"great"))
            assert read_reply(stream).body == client(b"text=great").body


@pytest.mark.skipif(not hasattr(socket, "TCP_QUICKACK"), reason="needs delayed acknowledgements")
def test_answers_on_their_way_cut_nobody_off(impatient: Server) -> None:
    """Clients that acknowledge an answer with their next request are busy, though one is always on its way."""
    if impatient.path:
        pytest.skip("a Unix socket has no acknowledgements")
    cut = impatient.closed_for("answer_timeout")
    end = time.monotonic() + 5
    lost: list[str] = []

    def ask(pause: float) -> None:
        try:
            with impatient.connect() as connection, connection.makefile("rb") as stream:
                while time.monotonic() < end:
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
                    connection.sendall(form_request(b"great"))
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
                    assert read_reply(stream).status == 200
                    time.sleep(pause)  # what a client does between two requests
        except OSError as error:
            lost.append(repr(error))

    clients = [threading.Thread(target=ask, args=(0.02 + 0.001 * number,)) for number in range(20)]
    for client in clients:
        client.start()
    for client in clients:
        client.join(20)
    assert not lost
    assert impatient.closed_for("answer_timeout") == cut


@pytest.mark.parametrize("listener", [[], ["--unix-socket", "socket"]])
def test_answer_that_is_not_taken_is_cut_off(
    star_model: Path, listener: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--workers", "1", "--request-timeout", "1.5", "--max-texts", "100000", *listener]
    with serve(star_model, *options) as server:
        with server.connect(receive_buffer=4096) as connection:
            body = b"&".join([b"text=a"] * 100_000)
            connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
            wait_for(lambda: server.closed_for("answer_timeout") == 1, "the cut")
        assert server.request(b"text=great")[0] == 200


@pytest.mark.parametrize("event", ["reload", "stop", "connection limit"])
def test_answer_that_is_taken_slowly_is_not_cut_off(star_model: Path, event: str) -> None:
    """Neither by a worker that ends nor at the connection limit."""
    texts = 100_000
    options = ["--workers", "1", "--max-texts", str(texts), "--max-connections", "10"]
    with serve(star_model, *options) as server, server.connect(receive_buffer=4096) as connection:
        body = b"&".join([b"text=a"] * texts)
        connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        with connection.makefile("rb") as stream:
            assert stream.peek(1)
            if event == "reload":
                server.process.send_signal(signal.SIGHUP)
                server.wait_for_log(" reloaded ")
            elif event == "stop":
                server.process.send_signal(signal.SIGTERM)
            with contextlib.ExitStack() as held:
                for _ in range(9 if event == "connection limit" else 0):
                    held.enter_context(server.connect())
                time.sleep(4)  # longer than what an idle connection is given
            assert len(json.loads(read_reply(stream).body)) == texts


def test_worker_at_the_connection_limit_ends(star_model: Path) -> None:
    options = ["--workers", "1", "--max-connections", "4", "--request-timeout", "3"]
    with serve(star_model, *options) as server, contextlib.ExitStack() as held:
        server.wait_for_log(" ready ")
        for _ in range(4):
            held.enter_context(server.connect()).sendall(HEAD)
        server.process.send_signal(signal.SIGHUP)
        server.wait_for_log("cause=reloaded")
        assert "housekeeping" not in server.read_log()


def test_body_over_the_limit(star_model: Path) -> None:
    with serve(star_model, "--workers", "1", "--max-body", "1000") as server:
        for body, status in [(b"text=" + b"a" * 995, 200), (b"text=" + b"a" * 996, 413), (b"a" * 300_000, 413)]:
            assert server.request(body)[0] == status
        with server.connect() as connection, connection.makefile("rb") as stream:
            chunk = b"1000\r\n" + b"a" * 0x1000 + b"\r\n"
            connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 10 + b"0\r\n\r\n")
            assert read_reply(stream).status == 413


EARLY_ALARM = """
import os, signal, _bjoern
run = _bjoern.server_run
def run_late(*arguments):
    os.kill(os.getpid(), signal.SIGALRM)
    run(*arguments)
_bjoern.server_run = run_late
"""


def test_timer_before_the_loop_lifts_no_limit(
    star_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that the system lets wait just before its loop starts has the same limits."""
    patch_program(monkeypatch, tmp_path, EARLY_ALARM)
    with serve(star_model, "--workers", "1", "--max-body", "1000") as server:
        server.wait_for_log(" ready ")
        assert server.request(b"text=" + b"a" * 995)[0] == 200
        assert server.request(b"text=" + b"a" * 996)[0] == 413
        assert "ERROR" not in server.read_log()


FIRST_WITHOUT_LIMITS = """
import io, os, sys, _bjoern
run = _bjoern.server_run
def run_wrongly(*arguments):
    if not os.path.exists(marker):
        open(marker, "w").close()
        sys.modules["io"] = io
    run(*arguments)
_bjoern.server_run = run_wrongly
"""


def test_worker_without_limits_answers_nothing(
    star_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker whose bodies are not limited, for whatever reason, is replaced."""
    patch_program(monkeypatch, tmp_path, FIRST_WITHOUT_LIMITS)
    with serve(star_model, "--workers", "1") as server:
        server.wait_for_log(" ready ")
        for method in ("POST", "GET"):
            assert server.request(b"text=great" * (method == "POST"), method)[0] == 500
        server.wait_for_log("cause=replaced")
        assert server.request(b"text=great")[0] == 200
        assert server.refused_for("no_limits") == 2


def send_gigabytes(server: Server, gigabytes: int) -> bytes:
    """Send a body of that size. Return what came before the server closed the connection."""
    block = b"a" * (1 << 20)
    received = b""
    with server.connect() as connection:
        connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % (gigabytes << 30))
        with contextlib.suppress(OSError):
            for _ in range(gigabytes << 10):
                connection.sendall(block)
        with contextlib.suppress(OSError):
            while data := connection.recv(65536):
                received += data
    return received


@plain
def test_huge_body_is_cut_off(star_model: Path) -> None:
    """2 GB are sent: the connection is closed long before all came, and the memory stays as it is."""
    with serve(star_model, "--workers", "1") as server:
        assert server.request(b"text=great")[0] == 200
        (worker,) = server.workers()
        before = resident_bytes(worker)
        received = send_gigabytes(server, 2)
        assert received == b"" or b" 413 " in received  # a reset may overtake the answer
        assert resident_bytes(worker) - before < 8 << 20
        assert server.closed_for("body_too_large") == 1
        assert server.request(b"text=great")[0] == 200


@plain
def test_announced_body_costs_nothing(star_model: Path) -> None:
    with serve(star_model, "--workers", "1") as server:
        assert server.request(b"text=great")[0] == 200
        (worker,) = server.workers()
        before = resident_bytes(worker)
        with many(server, 200, HEAD + b"Content-Length: 2147483648\r\n\r\ntext=a"):
            assert server.request(b"text=great")[0] == 200
            assert resident_bytes(worker) - before < 8 << 20


@plain
def test_bodies_of_all_connections_are_limited(star_model: Path) -> None:
    options = ["--workers", "1", "--max-body", "1000000", "--max-bodies", "3000000"]
    with serve(star_model, *options) as server:
        (worker,) = wait_for_workers(server, 1)
        before = resident_bytes(worker)
        body = b"text=" + b"a" * 899_995
        head = HEAD + b"Content-Length: %d\r\n\r\n" % len(body)
        with many(server, 20, head) as connections:
            for connection in connections:
                connection.sendall(body[:-1])
            assert server.request(b"text=great")[0] in {200, 503}
            assert resident_bytes(worker) - before < 16 << 20
            codes = []
            for connection in connections:
                connection.sendall(body[-1:])
                with connection.makefile("rb") as stream:
                    codes.append(read_reply(stream).status)
        assert set(codes) == {200, 503}
        assert server.request(b"text=great")[0] == 200


def wait_for_workers(server: Server, count: int) -> list[int]:
    server.wait_for_log(" ready ")
    wait_for(lambda: len(server.workers()) == count, "the workers")
    return server.workers()


@pytest.mark.parametrize("sent", [b"", b"POST /inferreview HT", HEAD + b"Content-Length: 100\r\n\r\ntext=a"])
def test_slow_clients_hinder_nobody(star_model: Path, client: Client, sent: bytes) -> None:
    """A thousand connections that dawdle, while good requests are answered."""
    expected = {b"great": client(b"text=great").body, b"awful": client(b"text=awful").body}
    with serve(star_model, "--workers", "1", "--request-timeout", "2") as server:
        server.wait_for_log(" ready ")
        with many(server, 1000, sent) as slow, load(server.port, expected, 4) as seen:
            wait_for(lambda: server.metric("pyserve_connections_open") >= 1000, "all slow connections")
            wait_for(lambda: seen.right > 500, "good answers")
            wait_for(lambda: server.closed_for("request_timeout") >= 1000, "the cut")
            for connection in slow[::100]:
                with contextlib.suppress(ConnectionResetError):
                    assert b"408" in (data := connection.recv(1000)) or data == b""
        assert not seen.errors


@pytest.mark.parametrize("sent", [form_request(b"great"), b"POST /infer", b""], ids=["idle", "incomplete", "silent"])
def test_connection_limit(star_model: Path, sent: bytes) -> None:
    """At the limit room is made, idle connections first, and new clients are served."""
    with serve(star_model, "--workers", "1", "--max-connections", "50") as server:
        server.wait_for_log(" ready ")
        with many(server, 200, sent):
            for _ in range(20):
                assert server.request(b"text=great")[0] == 200
            wait_for(lambda: server.closed_for("connection_limit") >= 100, "the relief")
            wait_for(lambda: server.metric("pyserve_connections_open") < 50, "room")


def set_few_descriptors() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))


@plain
def test_descriptor_limit(star_model: Path) -> None:
    """With few descriptors there are fewer connections, clients are served, and the loop does not spin."""
    with serve(star_model, "--workers", "1", preexec=set_few_descriptors) as server:
        (worker,) = wait_for_workers(server, 1)
        with many(server, 300, b"POST /infer"):
            spent, started = cpu_seconds(worker), time.monotonic()
            for _ in range(5):
                assert server.request(b"text=great")[0] == 200
            wait_for(lambda: server.closed_for("connection_limit") >= 200, "room for all")
            assert cpu_seconds(worker) - spent < (time.monotonic() - started) / 2


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@plain
def test_worker_over_its_memory_is_replaced(star_model: Path, client: Client) -> None:
    """Bodies in memory make the worker too large; the one that follows serves without a gap."""
    expected = {b"great": client(b"text=great").body}
    options = ["--workers", "1", "--max-growth", "20000000", "--max-body", "10000000", "--graceful-timeout", "5"]
    with serve(star_model, *options) as server:
        (worker,) = wait_for_workers(server, 1)
        with load(server.port, expected, 4) as seen:
            wait_for(lambda: seen.right > 50, "answers")
            name = f'pyserve_worker_resident_bytes{{pid="{worker}"}}'
            wait_for(lambda: server.metric(name) > 0, "the first look at the memory")
            with many(server, 5, HEAD + b"Content-Length: 9000000\r\n\r\ntext=" + b"a" * 8_000_000):
                server.wait_for_log("has grown too large")
                server.wait_for_log("cause=replaced")
            wait_for(lambda: worker not in server.workers(), "the new worker")
            target = seen.right + 50
            wait_for(lambda: seen.right > target, "answers")
        assert not seen.errors
        assert not seen.refused_connections
        assert server.metric('pyserve_workers_ended_total{cause="replaced"}') == 1


def test_unix_socket_is_served_at_the_connection_limit(star_model: Path, tmp_path: Path) -> None:
    """Connections of which nothing is known do not keep others out for ever."""
    path = tmp_path / "socket"
    options = [
        "--workers",
        "1",
        "--max-connections",
        "20",
        "--unix-socket",
        str(path),
        "--admin-address",
        "127.0.0.1:0",
    ]
    ready = r"health and metrics on http://127\.0\.0\.1:(\d+)"
    with contextlib.ExitStack() as held, serve(star_model, *options, ready=ready) as server:
        server.wait_for_log(" ready ")
        for _ in range(25):
            connection = held.enter_context(socket.socket(socket.AF_UNIX))
            connection.connect(str(path))
            connection.sendall(form_request(b"great")[:-1])
        wait_for(lambda: server.metric("pyserve_connections_open") >= 20, "the limit")
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(str(path))
            connection.sendall(form_request(b"great"))
            assert read_reply(connection.makefile("rb")).status == 200
