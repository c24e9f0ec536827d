"""Requests that ask for more than an answer, after which bjoern must not read: ``Expect``, ``Upgrade`` and CONNECT."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.load_client import form_request, read_reply
from tests.server import Server, serve
from tests.support import Client

QUERY = b"POST /inferreview?text=great HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n"
EXPECT = b"Expect: 100-continue\r\n\r\n"
UPGRADE = b"Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
CONNECT = b"CONNECT %b HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
GET = b"GET /model HTTP/1.1\r\nHost: x\r\n\r\n"
REQUEST = form_request(b"great")


@pytest.fixture(scope="module")
def server(star_model: Path) -> Iterator[Server]:
    with serve(star_model, "--workers", "1") as running:
        running.wait_for_log(" ready ")
        yield running
        assert "worker ended" not in running.read_log()
        assert running.stop() == 0


def send_apart(server: Server, parts: list[bytes]) -> bytes:
    """Send segments on a connection, each when the loop has seen the one before, and return all that comes."""
    received = b""
    with server.connect() as connection:
        try:
            for part in parts:
                connection.sendall(part)
                server.request(b"text=great")
                time.sleep(0.01)  # a turn of the loop
            connection.settimeout(1)
            while chunk := connection.recv(65536):
                received += chunk
        except OSError:
            pass
    return received


@pytest.mark.parametrize("target", [b"/model", b"*", b"x:1/model", b"http://x/inferreview?text=great"])
def test_connect_ends_the_connection(server: Server, client: Client, target: bytes) -> None:
    for parts in ([GET], [REQUEST], [REQUEST[:40], GET, REQUEST[40:]]):
        (worker,) = server.workers()
        received = send_apart(server, [CONNECT % target, *parts])
        assert received.count(b"HTTP/1.1 ") <= 1
        assert server.workers() == [worker]
        assert server.request(b"text=great") == (200, client(b"text=great").body)


@pytest.mark.parametrize("ask", [QUERY + EXPECT, QUERY + UPGRADE], ids=["expect", "upgrade"])
def test_answer_from_the_query_ends_the_connection(server: Server, client: Client, ask: bytes) -> None:
    expected = client(b"text=great").body
    for parts in ([], [ask, b"\r\n"], [REQUEST], [REQUEST[:40], GET, REQUEST[40:]]):
        (worker,) = server.workers()
        received = send_apart(server, [ask, *parts])
        head, _, body = received.partition(b"\r\n\r\n")
        assert (body == expected and b"connection: close" in head.lower()) or received == b""  # or a reset
        assert server.workers() == [worker]
        assert server.request(b"text=great") == (200, expected)


@pytest.mark.parametrize("method", [b"HEAD /model", b"OPTIONS /inferreview"])
@pytest.mark.parametrize("header", [EXPECT, UPGRADE], ids=["expect", "upgrade"])
def test_answer_without_a_body_is_given(server: Server, method: bytes, header: bytes) -> None:
    with server.connect() as connection, connection.makefile("rb") as stream:
        connection.sendall(method + b" HTTP/1.1\r\nHost: x\r\n" + header)
        reply = read_reply(stream, has_body=False)
        assert reply.status == 200
        assert reply.closes
        assert stream.read() == b""


def test_upgrade_with_a_body_is_refused(server: Server) -> None:
    head = b"POST /inferreview HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n" + UPGRADE
    with server.connect() as connection, connection.makefile("rb") as stream:
        connection.sendall(head)
        reply = read_reply(stream)
        assert reply.status == 400
        assert b"must not ask for an upgrade" in reply.body
        assert reply.closes
