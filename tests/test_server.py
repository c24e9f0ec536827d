"""A real server answers over real sockets; the application also runs on another WSGI server."""

import json
import signal
import socket
import subprocess
import threading
import wsgiref.simple_server
from collections.abc import Iterator
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from pyserve import Classifier, create_app
from tests.load_client import form_request, read_reply
from tests.server import PYSERVE, Server, clean_environment, serve
from tests.support import ROUTE, Client, deadline


@pytest.fixture(scope="module")
def server(star_model: Path) -> Iterator[Server]:
    with serve(star_model, "--max-body", "100000") as running:
        yield running


def test_serve_form(server: Server, client: Client) -> None:
    assert server.request(b"text=great+love") == (200, client(b"text=great+love").body)


def test_serve_query(server: Server, client: Client) -> None:
    assert server.request(b"", path=f"{ROUTE}?text=great+love") == (200, client(b"text=great+love").body)


def test_serve_json(server: Server, client: Client) -> None:
    headers = {"Content-Type": "application/json"}
    assert server.request(b'{"text": "great"}', **headers) == (200, client(b"text=great").body)


@pytest.mark.parametrize(
    ("body", "method", "path", "code"),
    [
        (b"", "POST", ROUTE, 400),
        (b"text=a", "GET", ROUTE, 405),
        (b"text=a", "POST", "/nothing", 404),
        (b"a" * 100_001, "POST", ROUTE, 413),
    ],
)
def test_serve_errors(server: Server, body: bytes, method: str, path: str, code: int) -> None:
    status, reply = server.request(body, method, path)
    assert status == code
    assert list(json.loads(reply)) == ["Error"]


def test_serve_chunked(server: Server, client: Client) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(
            b"POST /inferreview HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\n"
            b"Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n6\r\ntext=g\r\n4\r\nreat\r\n0\r\n\r\n"
        )
        reply = connection.makefile("rb").read()
    assert reply.endswith(b"\r\n\r\n" + client(b"text=great").body)


def test_serve_many_on_one_connection(server: Server, client: Client) -> None:
    expected = {text: client(b"text=" + text).body for text in (b"great", b"awful", b"okay")}
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        stream = connection.makefile("rb")
        for text in list(expected) * 50:
            connection.sendall(
                b"POST /inferreview HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\ntext=%b" % (len(text) + 5, text)
            )
            assert stream.readline() == b"HTTP/1.1 200 OK\r\n"
            headers = dict(line.rstrip().lower().split(b": ") for line in iter(stream.readline, b"\r\n"))
            assert stream.read(int(headers[b"content-length"])) == expected[text]


def test_serve_unix_socket(star_model: Path, client: Client, tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with serve(star_model, "--unix-socket", str(path)) as server, server.connect() as connection:
        assert server.path == str(path)
        connection.sendall(b"POST /inferreview?text=great HTTP/1.0\r\n\r\n")
        reply = connection.makefile("rb").read()
    assert reply.endswith(client(b"text=great").body)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_serve_stops(star_model: Path, signum: int) -> None:
    with serve(star_model) as server:
        assert server.request(b"text=great")[0] == 200
        assert server.stop(signum) == 0
        assert "Traceback" not in server.read_log()


def test_serve_names_model_and_address_once(server: Server) -> None:
    assert server.read_log().count(f"http://127.0.0.1:{server.port}") == 1
    assert "stars.bin" in server.read_log()


def test_app_on_another_server(classifier: Classifier, client: Client) -> None:
    """The application is plain WSGI."""

    class Quiet(wsgiref.simple_server.WSGIRequestHandler):
        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            pass

    with wsgiref.simple_server.make_server("127.0.0.1", 0, create_app(classifier), handler_class=Quiet) as other:
        thread = threading.Thread(target=other.serve_forever, args=(0.01,))
        thread.start()
        try:
            for body, content_type in [(b"text=great", "application/x-www-form-urlencoded"), (b"great", "text/plain")]:
                request = Request(f"http://127.0.0.1:{other.server_port}{ROUTE}", body, {"Content-Type": content_type})
                with urlopen(request, timeout=10) as reply:  # noqa: S310
                    assert reply.read() == client(b"text=great").body
        finally:
            other.shutdown()
            thread.join()


def test_closed_standard_error(star_model: Path, tmp_path: Path) -> None:
    """A server without standard streams serves, and takes none of its sockets for one."""
    path = tmp_path / "socket"
    command = [*PYSERVE, "serve", "--model", str(star_model), "--workers", "1", "--unix-socket", str(path)]
    process = subprocess.Popen(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command], env=clean_environment())
    try:
        with deadline(20, "the start") as tick, socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            while connection.connect_ex(str(path)):
                assert process.poll() is None
                tick()
            connection.sendall(form_request(b"great"))
            assert read_reply(connection.makefile("rb")).status == 200
        process.terminate()
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
