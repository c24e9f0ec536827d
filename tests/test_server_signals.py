"""Signals under load: every error that a client meets is counted."""

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import struct
import threading
from pathlib import Path

import pytest

from pyserve.comparison import make_probe
from pyserve.model import hash_model
from tests.load_client import Load, form_request, load, plain, read_reply
from tests.server import Server, patch_program, serve
from tests.support import Client, resident_bytes, wait_for


@pytest.fixture
def expected(client: Client) -> dict[bytes, bytes]:
    return {text: client(b"text=" + text).body for text in (b"great", b"awful", b"okay+fine", b"love+it", b"broken")}


def wait_for_answers(seen: Load, more: int = 50) -> None:
    target = seen.right + more
    wait_for(lambda: seen.right >= target or seen.errors, "answers")


@pytest.mark.parametrize("options", [["--workers", "1"], ["--workers", "2"], ["--workers", "2", "--reuse-port"]])
def test_reload_under_load_loses_nothing(star_model: Path, expected: dict[bytes, bytes], options: list[str]) -> None:
    with serve(star_model, *options) as server:
        server.wait_for_log(" ready ")
        before = set(server.workers())
        with load(server.port, expected) as seen:
            for turn in (1, 2):
                wait_for_answers(seen)
                server.process.send_signal(signal.SIGHUP)
                server.wait_for_log(" reloaded ", turn)
                server.wait_for_log("cause=reloaded", turn * len(before))
            wait_for_answers(seen)
        assert not seen.errors
        assert not seen.refused_connections
        assert seen.closes
        assert not before & set(server.workers())
        assert server.stop() == 0


def write_large_model(path: Path) -> None:
    """Write a model of 80 MB whose input matrix is a hole of the file."""
    rows, dim = 200_000, 100
    args = struct.pack("<12id", dim, 5, 5, 1, 5, 2, 3, 3, rows - 1, 0, 0, 100, 1e-4)
    dictionary = struct.pack("<3i2q", 3, 1, 2, 10, -1) + b"word" + struct.pack("<xqb", 5, 0)
    dictionary += b"".join(label + struct.pack("<xqb", 5, 1) for label in (b"__label__a", b"__label__b"))
    temporary = path.with_name("temporary")
    with temporary.open("wb") as file:
        file.write(struct.pack("<2i", 793712314, 12) + args + dictionary + struct.pack("<?2q", False, rows, dim))
        file.seek(4 * rows * dim, os.SEEK_CUR)
        file.write(struct.pack("<?2q", False, 2, dim) + struct.pack("<f", 0.5) * 2 * dim)
    temporary.replace(path)


def test_every_listener_keeps_a_worker(star_model: Path) -> None:
    """With a socket for each worker, new connections are answered after every change of the workers."""
    with serve(star_model, "--workers", "2", "--reuse-port") as server:
        server.wait_for_log(" ready ")

        def check() -> None:
            # The kernel spreads connections by their ports: sixteen miss one of two sockets once in 30,000 times.
            for _ in range(16):
                assert server.request(b"text=great")[0] == 200

        check()
        for turn in (1, 2):
            server.process.send_signal(signal.SIGHUP)
            server.wait_for_log("cause=reloaded", 2 * turn)
            check()
        server.process.send_signal(signal.SIGTTIN)
        wait_for(lambda: len(server.workers()) == 3, "one more")
        for _ in range(3):
            server.process.send_signal(signal.SIGTTOU)
        server.wait_for_log("cause=replaced")
        check()
        os.kill(server.workers()[0], signal.SIGKILL)
        server.wait_for_log("cause=killed")
        check()
        assert len(server.workers()) == 2


REFUSED_FORKS = """
import errno, os
fork = os.fork
def refuse():
    if os.path.exists(marker):
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return fork()
os.fork = refuse
"""


def test_refused_process_ends_nothing(star_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no process can be made, those that there are go on serving, until one can."""
    marker = patch_program(monkeypatch, tmp_path, REFUSED_FORKS)
    with serve(star_model, "--workers", "2") as server:
        server.wait_for_log(" ready ")
        before = server.workers()
        marker.touch()
        server.process.send_signal(signal.SIGHUP)
        server.wait_for_log("a worker cannot be started: Resource temporarily unavailable", 3)
        assert server.workers() == before
        assert server.request(b"text=great")[0] == 200
        marker.unlink()
        server.wait_for_log(" reloaded ")
        wait_for(lambda: not set(before) & set(server.workers()), "the end of the workers of before")
        # The parent still acts on signals.
        assert server.stop() == 0


def test_refused_processes_at_the_start_end_it(
    star_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch_program(monkeypatch, tmp_path, REFUSED_FORKS).touch()
    with serve(star_model, "--workers", "1") as server:
        assert server.process.wait(20) == 1
        assert "giving up: no worker could start" in server.read_log()


def test_more_reloads_than_places_end_nothing(
    star_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers that wait for half a request each hold a place; the next reload waits for one."""
    patch_program(monkeypatch, tmp_path, "import pyserve.server\npyserve.server.SPARE_SLOTS = 1")
    with serve(star_model, "--workers", "1", "--graceful-timeout", "4") as server, contextlib.ExitStack() as held:
        server.wait_for_log(" ready ")
        turn = 0
        while "a worker cannot be started: too many workers" not in server.read_log():
            connection = held.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=10))
            connection.sendall(form_request(b"great")[:-1])
            assert server.request(b"text=great")[0] == 200
            turn += 1
            assert turn < 10
            server.process.send_signal(signal.SIGHUP)
            wait_for(
                lambda: server.read_log().count(" reloaded ") >= turn or "cannot be" in server.read_log(),  # noqa: B023
                "the reload",
            )
        server.wait_for_log(" reloaded ", turn)
        assert server.request(b"text=great")[0] == 200


@plain
def test_reloads_keep_the_arbiter_small(star_model: Path) -> None:
    """The model and the application of before are freed."""
    with serve(star_model, "--workers", "1") as server:
        server.wait_for_log(" ready ")
        sizes = []
        for turn in range(1, 16):
            server.process.send_signal(signal.SIGHUP)
            server.wait_for_log(" reloaded ", turn)
            sizes.append(resident_bytes(server.process.pid))
        assert sizes[-1] - sizes[4] < 512 << 10


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_stop_under_load_answers_what_was_asked(star_model: Path, expected: dict[bytes, bytes], signum: int) -> None:
    with serve(star_model, "--workers", "2") as server:
        server.wait_for_log(" ready ")
        with load(server.port, expected) as seen:
            wait_for_answers(seen)
            assert server.stop(signum) == 0
            wait_for(lambda: seen.refused_connections, "the end of the listener")
        assert not seen.errors
        assert seen.closes
        assert "cause=stopped" in server.read_log()


def test_stop_of_the_workers_first_loses_nothing(star_model: Path, expected: dict[bytes, bytes]) -> None:
    """A group of processes gets the signal in any order; what connects meanwhile is answered."""
    with serve(star_model, "--workers", "2") as server:
        server.wait_for_log(" ready ")
        with load(server.port, expected, 12) as seen:
            wait_for_answers(seen)
            closes = seen.closes
            for pid in server.workers():
                os.kill(pid, signal.SIGTERM)
            # The workers have begun to drain before the arbiter knows.
            wait_for(lambda: seen.closes >= closes + 12, "draining")
            assert server.stop() == 0
            wait_for(lambda: seen.refused_connections, "the end of the listener")
        assert not seen.errors
        assert "ERROR" not in server.read_log()


def test_worker_that_is_told_to_end_is_replaced(star_model: Path, expected: dict[bytes, bytes]) -> None:
    """Its successor is there before it leaves, and nothing is lost."""
    with serve(star_model, "--workers", "1") as server:
        server.wait_for_log(" ready ")
        (before,) = server.workers()
        with load(server.port, expected) as seen:
            wait_for_answers(seen)
            os.kill(before, signal.SIGTERM)
            server.wait_for_log(f"worker ended worker={before} cause=replaced")
            wait_for_answers(seen)
        assert not seen.errors
        assert not seen.refused_connections
        (after,) = server.workers()
        os.kill(after, signal.SIGQUIT)
        server.wait_for_log(f"worker ended worker={after} cause=killed")
        wait_for(server.workers, "a worker")
        assert server.request(b"text=great")[0] == 200


def test_reload_with_damaged_model_changes_nothing(
    star_model: Path, expected: dict[bytes, bytes], tmp_path: Path
) -> None:
    model = tmp_path / "served.bin"
    intact = star_model.read_bytes()
    model.write_bytes(intact)
    with serve(model, "--workers", "2") as server:
        server.wait_for_log(" ready ")
        before = server.workers()
        with load(server.port, expected) as seen:
            wait_for_answers(seen)
            for turn, damaged in enumerate([intact[:4], intact[:100], intact[:-1], b"", b"no model"], 1):
                model.write_bytes(damaged)
                server.process.send_signal(signal.SIGHUP)
                server.wait_for_log("reload refused", turn)
                wait_for_answers(seen)
            model.unlink()
            server.process.send_signal(signal.SIGHUP)
            server.wait_for_log("reload refused", 6)
            wait_for_answers(seen)
            assert server.workers() == before
            model.write_bytes(intact)
            server.process.send_signal(signal.SIGHUP)
            server.wait_for_log(" reloaded ")
            wait_for_answers(seen)
        assert not seen.errors
        status, text = server.request(b"", "GET", "/metrics")
        assert status == 200
        assert b'pyserve_reloads_total{result="failure"} 6.0' in text
        assert b'pyserve_reloads_total{result="success"} 1.0' in text


@pytest.mark.parametrize("damage", ["confidence", "digits", "nan"])
def test_reload_with_damaged_sidecar_changes_nothing(star_model: Path, tmp_path: Path, damage: str) -> None:
    model = tmp_path / "served.bin"
    shutil.copy(star_model, model)
    with serve(model, "--workers", "1") as server:
        server.wait_for_log(" ready ")
        before = server.workers()
        if damage == "nan":
            model.write_bytes(make_probe()[:-16] + struct.pack("<4f", *[float("nan")] * 4))
        number = "0.5" if damage == "nan" else "9" * (400 if damage == "confidence" else 5000)
        golden = f'{{"text": "probe", "labels": {{"__label__1": {number}}}}}'
        model.with_name("served.bin.json").write_text(
            f'{{"sha256": "{hash_model(model)}", "size": {model.stat().st_size}, "golden": [{golden}]}}'
        )
        server.process.send_signal(signal.SIGHUP)
        server.wait_for_log("reload refused, the model of before goes on serving: served.bin.json, line 1: ")
        assert server.workers() == before
        assert server.request(b"text=great")[0] == 200
        assert b'pyserve_reloads_total{result="failure"} 1.0' in server.request(b"", "GET", "/metrics")[1]


@pytest.mark.parametrize("engine", ["binding", "native"])
def test_reloads_while_the_model_is_overwritten(star_model: Path, tmp_path: Path, engine: str) -> None:
    """Whatever a reload meets, the arbiter survives it."""
    model = tmp_path / "served.bin"
    content = star_model.read_bytes()
    model.write_bytes(content)
    done = threading.Event()

    def overwrite() -> None:
        while not done.is_set():
            model.write_bytes(content)

    with serve(model, "--workers", "1", "--engine", engine) as server:
        server.wait_for_log(" ready ")
        thread = threading.Thread(target=overwrite)
        thread.start()
        try:
            for turn in range(1, 41):
                server.process.send_signal(signal.SIGHUP)
                server.wait_for_log(" reloading", turn)
                assert server.process.poll() is None, server.read_log()
        finally:
            done.set()
            thread.join()
        assert server.request(b"text=great")[0] == 200
        assert "SIGBUS" not in server.read_log()


def test_truncated_model_of_the_native_engine_is_served_on(star_model: Path, tmp_path: Path) -> None:
    model = tmp_path / "served.bin"
    shutil.copy(star_model, model)
    with serve(model, "--workers", "1", "--engine", "native") as server:
        server.wait_for_log(" ready ")
        expected = server.request(b"text=great")
        os.truncate(model, 0)
        (worker,) = server.workers()
        os.kill(worker, signal.SIGKILL)
        server.wait_for_log("cause=killed")
        assert server.request(b"text=great") == expected
        assert "SIGBUS" not in server.read_log()


@plain
def test_large_model_of_the_native_engine_that_was_truncated_is_loaded_anew(tmp_path: Path) -> None:
    """A model that is mapped, since it is too large to be copied: a row that was cut off ends a worker by SIGBUS."""
    model = tmp_path / "large.bin"
    write_large_model(model)
    with serve(model, "--workers", "1", "--engine", "native") as server:
        server.wait_for_log(" ready ")
        expected = server.request(b"text=word+word")
        assert expected[0] == 200
        os.truncate(model, 4096)
        with contextlib.suppress(OSError, http.client.HTTPException):
            server.request(b"text=word+word")
        server.wait_for_log("the model file was overwritten while it was served")
        server.wait_for_log("reload refused")
        write_large_model(model)
        with contextlib.suppress(OSError, http.client.HTTPException):
            server.request(b"text=word+word")
        server.process.send_signal(signal.SIGHUP)
        server.wait_for_log(" reloaded ")
        assert server.request(b"text=word+word") == expected


FAILED_STARTS = """
import os
from pyserve import worker
run = worker.BjoernWorker.run
def fail(self):
    if os.path.exists(marker):
        os._exit(1)
    run(self)
worker.BjoernWorker.run = fail
"""


def test_reload_that_no_worker_survives_is_undone(
    star_model: Path, hostile_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that passes every check, but with which no worker starts: all is as before."""
    marker = patch_program(monkeypatch, tmp_path, FAILED_STARTS)
    model = tmp_path / "served.bin"
    model.write_bytes(star_model.read_bytes())
    with serve(model, "--workers", "2") as server:
        server.wait_for_log(" ready ")

        def describe() -> list[bytes]:
            lines = server.request(b"", "GET", "/metrics")[1].splitlines()
            return [line for line in lines if line.startswith(b"pyserve_model_")]

        before = server.workers(), describe(), server.request(b"text=great")
        marker.touch()
        replacement = tmp_path / "new.bin"
        replacement.write_bytes(hostile_model.read_bytes())
        replacement.replace(model)
        server.process.send_signal(signal.SIGHUP)
        server.wait_for_log("reload undone")
        assert (server.workers(), describe(), server.request(b"text=great")) == before
        assert b'pyserve_reloads_total{result="failure"} 1.0' in server.request(b"", "GET", "/metrics")[1]
        marker.unlink()
        server.process.send_signal(signal.SIGHUP)
        server.wait_for_log(" reloaded ")
        assert describe() != before[1]


def test_killed_worker_is_replaced(star_model: Path, expected: dict[bytes, bytes]) -> None:
    with serve(star_model, "--workers", "2") as server:
        server.wait_for_log(" ready ")
        victim, survivor = server.workers()
        with load(server.port, expected) as seen:
            wait_for_answers(seen)
            os.kill(victim, signal.SIGKILL)
            server.wait_for_log("cause=killed")
            wait_for(lambda: len(server.workers()) == 2 and victim not in server.workers(), "a new worker")
            target = seen.right + 50
            wait_for(lambda: seen.right >= target, "answers")
        # The connections of the killed worker are cut off, and that is all.
        assert sum(seen.errors.values()) <= 8
        assert all("Connection" in error for error in seen.errors), seen.errors
        assert not seen.refused_connections
        assert survivor in server.workers()


def test_worker_killed_by_a_signal_without_a_name_is_replaced(star_model: Path, client: Client) -> None:
    with serve(star_model, "--workers", "1") as server:
        server.wait_for_log(" ready ")
        os.kill(*server.workers(), signal.SIGRTMIN + 6)
        server.wait_for_log("exit=signal 40")
        wait_for(server.workers, "the next worker")
        assert server.request(b"text=great") == (200, client(b"text=great").body)
        assert server.stop() == 0


def test_hanging_worker_is_killed_and_replaced(star_model: Path) -> None:
    with serve(star_model, "--workers", "1", "--timeout", "1") as server:
        server.wait_for_log(" ready ")
        (victim,) = server.workers()
        os.kill(victim, signal.SIGSTOP)
        server.wait_for_log("cause=timeout")
        wait_for(lambda: server.workers() not in ([victim], []), "a new worker")
        assert server.request(b"text=great")[0] == 200


@plain
def test_what_a_crashing_worker_writes_is_logged(star_model: Path) -> None:
    with serve(star_model, "--workers", "1", "--log-format", "json") as server:
        server.wait_for_log('"ready"')
        (worker,) = server.workers()
        with open(f"/proc/{worker}/fd/2", "wb", buffering=0) as output:
            output.write(b"terminate called\nClient 7 hit errno 32\n")
        server.wait_for_log('"line": "terminate called"')
        assert b"pyserve_answers_broken_total 1.0" in server.request(b"", "GET", "/metrics")[1]
        os.kill(worker, signal.SIGSEGV)
        server.wait_for_log('"cause": "crashed", "exit": "SIGSEGV"')
        assert all(json.loads(line) for line in server.read_log().splitlines())
        assert "errno" not in server.read_log()


def test_workers_that_die_young_do_not_spin(star_model: Path) -> None:
    with serve(star_model, "--workers", "1") as server:
        server.wait_for_log(" ready ")
        for death in range(1, 5):
            wait_for(server.workers, "a worker")
            os.kill(server.workers()[0], signal.SIGKILL)
            server.wait_for_log("worker ended", death)
        assert "workers die young, the next one waits seconds=1.0" in server.read_log()
        assert server.request(b"text=great")[0] == 200


def test_stop_cuts_off_what_takes_too_long(star_model: Path) -> None:
    with (
        serve(star_model, "--graceful-timeout", "2") as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection,
    ):
        connection.sendall(form_request(b"great")[:-2])
        assert server.request(b"text=great")[0] == 200
        assert server.stop(seconds=5) == 0
        assert connection.recv(100) == b""


def test_stop_waits_for_a_request_that_has_begun(star_model: Path, client: Client) -> None:
    with serve(star_model, "--workers", "1") as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
            request = form_request(b"great")
            connection.sendall(request[:-2])
            assert server.request(b"text=great")[0] == 200
            server.process.send_signal(signal.SIGTERM)
            wait_for(server.is_refused, "the end of the listener")
            connection.sendall(request[-2:])
            reply = read_reply(connection.makefile("rb"))
        assert (reply.status, reply.body) == (200, client(b"text=great").body)
        assert reply.closes
        assert server.process.wait(10) == 0


def test_stop_closes_idle_connections(star_model: Path) -> None:
    with serve(star_model, "--workers", "1") as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
            connection.sendall(form_request(b"great"))
            stream = connection.makefile("rb")
            assert read_reply(stream).status == 200
            server.process.send_signal(signal.SIGTERM)
            assert stream.read() == b""
        assert server.process.wait(10) == 0


def test_second_interrupt_stops_at_once(star_model: Path) -> None:
    with (
        serve(star_model) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection,
    ):
        connection.sendall(form_request(b"great")[:-2])
        assert server.request(b"text=great")[0] == 200
        server.process.send_signal(signal.SIGINT)
        server.wait_for_log("stopping")
        assert server.stop(signal.SIGINT, seconds=5) == 0


def kill_arbiter(server: Server) -> None:
    """Kill the arbiter, and wait until its workers have ended by themselves."""
    workers = server.workers()
    assert workers
    server.process.kill()
    server.process.wait()
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), "the end of the workers")


def test_workers_end_with_their_arbiter(star_model: Path) -> None:
    with serve(star_model, "--workers", "2") as server:
        server.wait_for_log(" ready ")
        kill_arbiter(server)


def test_unix_socket_reloads_and_leaves_nothing_behind(star_model: Path, client: Client, tmp_path: Path) -> None:
    path = tmp_path / "socket"

    def ask() -> bytes:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(str(path))
            connection.sendall(form_request(b"great"))
            return read_reply(connection.makefile("rb")).body

    with serve(star_model, "--unix-socket", str(path)) as server:
        server.wait_for_log(" ready ")
        assert ask() == client(b"text=great").body
        server.process.send_signal(signal.SIGHUP)
        server.wait_for_log(" reloaded ")
        assert ask() == client(b"text=great").body
        kill_arbiter(server)
    assert path.exists()
    with serve(star_model, "--unix-socket", str(path)) as server:
        server.wait_for_log(" ready ")
        assert ask() == client(b"text=great").body
        assert server.stop() == 0
    assert not path.exists()


def test_unix_socket_loses_nothing(star_model: Path, expected: dict[bytes, bytes], tmp_path: Path) -> None:
    """Neither to reloads nor to the end, and a request that has begun is answered."""
    path = tmp_path / "socket"
    with serve(star_model, "--workers", "2", "--unix-socket", str(path)) as server:
        server.wait_for_log(" ready ")
        with load(path, expected, pause=0.01) as seen, socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            for turn in range(1, 4):
                wait_for_answers(seen)
                server.process.send_signal(signal.SIGHUP)
                server.wait_for_log("cause=reloaded", 2 * turn)
            assert not seen.errors
            connection.connect(str(path))
            connection.sendall(form_request(b"great")[:-2])
            # Whoever accepts takes the first that waits: this is one that came later.
            wait_for_answers(seen)
            closes = seen.closes
            server.process.send_signal(signal.SIGTERM)
            wait_for(lambda: seen.closes > closes, "draining")
            connection.sendall(form_request(b"great")[-2:])
            assert read_reply(connection.makefile("rb")).body == expected[b"great"]
            assert server.process.wait(10) == 0
        assert not seen.errors


@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_ipv6(star_model: Path, client: Client, host: str) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    with serve(star_model, "--host", host, ready=r"serving .* on http://\[::1\]:(\d+)") as server:
        with socket.create_connection(("::1", server.port), timeout=10) as connection:
            connection.sendall(form_request(b"great"))
            assert read_reply(connection.makefile("rb")).body == client(b"text=great").body
        assert server.stop() == 0


def test_all_addresses(star_model: Path, client: Client) -> None:
    """``::`` listens on IPv4 as well."""
    if not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    with serve(star_model, "--host", "::", ready=r"serving .* on http://\[::\]:(\d+)") as server:
        assert server.request(b"text=great") == (200, client(b"text=great").body)
