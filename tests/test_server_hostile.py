"""Raw bytes at the socket: what is refused, what is answered, and that nothing shakes the server."""

import json
import random
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.load_client import Reply, form_request, plain, read_reply
from tests.server import Server, serve
from tests.support import Client, resident_bytes, wait_for

GET = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
HEAD = b"POST /inferreview HTTP/1.1\r\nHost: x\r\n"


@pytest.fixture(scope="module")
def server(star_model: Path) -> Iterator[Server]:
    with serve(star_model, "--workers", "1", "--request-timeout", "5", "--keep-alive", "5") as running:
        running.wait_for_log(" ready ")
        yield running
        assert running.stop() == 0
        assert "Traceback" not in running.read_log()


def exchange(server: Server, *parts: bytes) -> list[Reply]:
    """Send bytes on a connection of its own, then half-close it. Return the answers that come."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        for part in parts:
            connection.sendall(part)
        connection.shutdown(socket.SHUT_WR)
        with connection.makefile("rb") as stream:
            replies = []
            while stream.peek(1):
                replies.append(read_reply(stream))
            return replies


def error_of(reply: Reply) -> str:
    document = json.loads(reply.body)
    assert list(document) == ["Error"]
    assert re.fullmatch(rb"[A-Za-z0-9._-]+", reply.headers[b"x-request-id"][0])
    return document["Error"]


@pytest.mark.parametrize(
    "sent",
    [
        form_request(b"great") * 2,
        form_request(b"great") + form_request(b"awful"),
        form_request(b"great") * 50,
        GET * 2,
        GET + form_request(b"great"),
        form_request(b"great") + GET,
        *(form_request(b"great") + form_request(b"awful")[:size] for size in (1, 5, 20, 60, 80)),
        *(GET + form_request(b"awful")[:size] for size in (1, 5, 20, 60, 80)),
        form_request(b"great") + b"G",
        form_request(b"great") + b"\r\n" + GET,
    ],
)
def test_pipelined_requests_are_refused(server: Server, sent: bytes) -> None:
    (reply,) = exchange(server, sent)
    assert reply.status == 400
    assert "pipelining" in error_of(reply)
    assert reply.closes


def test_requests_in_pieces_are_answered_each(server: Server, client: Client) -> None:
    """A pipelining client whose requests arrive apart gets every answer, in order."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        stream = connection.makefile("rb")
        for text in (b"great", b"awful", b"fine") * 10:
            request = form_request(text)
            for cut in (10, 40, len(request) - 1):
                connection.sendall(request[:cut])
                request = request[cut:]
            connection.sendall(request)
            assert read_reply(stream).body == client(b"text=" + text).body


@pytest.mark.parametrize(
    ("head", "body", "message"),
    [
        (b"Content-Length: 3\r\nContent-Length: 6\r\n\r\n", b"text=a", "Content-Length"),
        (b"Content-Length: 6\r\nContent-Length: 6\r\n\r\n", b"text=a", "Content-Length"),
        (b"Content-Length: 18446744073709551622\r\n\r\n", b"text=a", "Content-Length"),
        (b"Content-Length: 6 6\r\n\r\n", b"text=a", None),
        (b"Content-Length : 6\r\n\r\n", b"text=a", "colon"),
        (b"Transfer-Encoding : chunked\r\nContent-Length: 6\r\n\r\n", b"6\r\ntext=a\r\n0\r\n\r\n", "colon"),
        (b"Transfer-Encoding  : gzip\r\nContent-Length: 6\r\n\r\n", b"text=a", "colon"),
        (b"Accept : */*\r\nContent-Length: 6\r\n\r\n", b"text=a", "colon"),
        (b"Nothing\r\nContent-Length: 6\r\n\r\n", b"text=a", "Content-Length"),
        (b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n", b"6\r\ntext=a\r\n0\r\n\r\n", "Transfer-Encoding"),
        (b"Transfer-Encoding: chunked\r\nContent-Length: 6\r\n\r\n", b"6\r\ntext=a\r\n0\r\n\r\n", "Transfer-Encoding"),
        (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", b"0\r\n\r\n", None),
        (b"Transfer-Encoding: gzip\r\nContent-Length: 6\r\n\r\n", b"text=a", "Transfer-Encoding"),
        (b"Transfer-Encoding: identity\r\n\r\n", b"", "Transfer-Encoding"),
    ],
)
def test_contradicting_lengths_are_refused(server: Server, head: bytes, body: bytes, message: str | None) -> None:
    (reply,) = exchange(server, HEAD + head + body) or [None]
    if message is None:  # bjoern refuses it by itself, or never sees the end of it
        assert reply is None or reply.status == 400
    else:
        assert reply.status == 400
        assert message in error_of(reply)
        assert reply.closes


@pytest.mark.parametrize("name", [b"abc-1.2_3", b"A" * 128])
def test_request_id_is_taken_over(server: Server, name: bytes) -> None:
    (reply,) = exchange(server, form_request(b"great", b"X-Request-ID: %b\r\n" % name))
    assert reply.headers[b"x-request-id"] == [name]
    (reply,) = exchange(server, b"GET /nothing HTTP/1.1\r\nX-Request-ID: %b\r\n\r\n" % name)
    assert reply.status == 404
    assert reply.headers[b"x-request-id"] == [name]


@pytest.mark.parametrize("name", [b"a b", b"<script>", b"A" * 129, b"caf\xe9", b"\x01"])
def test_request_id_that_is_not_sane_is_replaced(server: Server, name: bytes) -> None:
    (reply,) = exchange(server, b"GET /nothing HTTP/1.1\r\nX-Request-ID: %b\r\n\r\n" % name)
    assert error_of(reply)
    assert reply.headers[b"x-request-id"] != [name]


def test_success_has_no_request_id_of_ours(server: Server) -> None:
    (reply,) = exchange(server, form_request(b"great"))
    assert b"x-request-id" not in reply.headers


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /livez HTTP/1.0\r\n\r\n", 200),
        (b"POST /inferreview HTTP/1.0\r\nContent-Length: 6\r\n\r\ntext=a", 200),
        (b"GET /" + b"%41" * 100 + b" HTTP/1.1\r\n\r\n", 404),
        (b"GET /\xc3\xa9%00%ff HTTP/1.1\r\n\r\n", 400),
        (b"GET /%zz HTTP/1.1\r\n\r\n", 400),
        (b"GET /% HTTP/1.1\r\n\r\n", 400),
        (b"GET /" + b"a" * 85_000 + b" HTTP/1.1\r\n\r\n", 400),
        (b"GET /livez HTTP/1.1\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(10_000)) + b"\r\n", 400),
        (b"GET /livez HTTP/1.1\r\nX: " + b"y" * 100_000 + b"\r\n\r\n", 400),
        (b"CONNECT x:1 HTTP/1.1\r\n\r\n", 400),
        (b"BREW /inferreview HTTP/1.1\r\n\r\n", 400),
        (b"GET /livez HTTP/9.9\r\n\r\n", 200),
        (b"GET /livez HTTP/1.1\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n", 200),
        (b"OPTIONS * HTTP/1.1\r\n\r\n", 404),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)) * 2, 400),  # a TLS hello
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"\x00" * 1000, 400),
        (b"\r\n" * 1000 + GET, 200),
        (HEAD + b"Expect: 100-continue\r\nContent-Length: 10\r\n\r\ntext=great", 200),
        (HEAD + b"Expect: nothing\r\nContent-Length: 10\r\n\r\ntext=great", 417),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 2000 + b"0\r\n\r\n", 400),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
    ],
    ids=lambda value: repr(value[:30]) if isinstance(value, bytes) else str(value),
)
def test_odd_requests(server: Server, client: Client, sent: bytes, status: int) -> None:
    received = talk_then_half_close(server, sent)
    assert int(received.split()[1]) == status
    if status >= 400:
        head, _, body = received.partition(b"\r\n\r\n")
        assert list(json.loads(body)) == ["Error"]
        assert b"content-length: %d\r\n" % len(body) in head
    assert server.request(b"text=great") == (200, client(b"text=great").body)


def test_malformed_requests_are_counted(server: Server) -> None:
    before = server.refused_for("malformed")
    for _ in range(3):
        assert b"well-formed" in talk_then_half_close(server, b"\0" * 100)
    wait_for(lambda: server.refused_for("malformed") >= before + 3, "the count")


@pytest.mark.parametrize(
    "sent", [b"", b"G", b"GET / HTT", b"GET /livez\r\n", HEAD, form_request(b"great")[:-1], b"\r\n"]
)
def test_half_requests_are_dropped(server: Server, client: Client, sent: bytes) -> None:
    assert talk_then_half_close(server, sent) == b""
    assert server.request(b"text=great") == (200, client(b"text=great").body)


def talk_then_half_close(server: Server, sent: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        received = b""
        try:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            while chunk := connection.recv(65536):
                received += chunk
        except OSError:  # closed before all was read
            pass
        return received


def test_expect_without_a_body_ends_the_connection_for_the_client(server: Server) -> None:
    replies = exchange(server, b"POST /inferreview?text=great HTTP/1.1\r\nExpect: 100-continue\r\n\r\n")
    assert replies[0].status == 200
    assert replies[0].closes


def test_reset_connections(server: Server, client: Client) -> None:
    """Clients that go away with a reset, before and after they have asked."""
    for sent in (b"", GET, form_request(b"great"), form_request(b"great")[:-3]):
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                connection.sendall(sent)
    assert server.request(b"text=great") == (200, client(b"text=great").body)


@plain
@pytest.mark.parametrize(
    "sent",
    [
        form_request(b"great" * 100) * 20,
        form_request(b"great" * 100) * 20 + form_request(b"awful")[:50],
        GET * 20 + form_request(b"awful")[:-1],
        form_request(b"great" * 100) * 20 + b"\0",
        form_request(b"a" * 100_000) + GET,
    ],
    ids=["whole", "half", "half-body", "garbage", "long"],
)
def test_lost_requests_leave_nothing_behind(server: Server, sent: bytes) -> None:
    """bjoern forgets the environs of the requests that it loses; they are found and freed."""
    (worker,) = server.workers()
    sizes = []
    for _ in range(3):
        for _ in range(800):
            talk_then_half_close(server, sent)
        sizes.append(resident_bytes(worker))
    assert min(sizes[1:]) - sizes[0] < 2 << 20  # 800 times 20 environs are 20 MB


SEEDS = [
    form_request(b"great"),
    form_request(b"great", b"Content-Type: application/x-www-form-urlencoded\r\n"),
    form_request(b"great", b"Content-Type: application/json\r\n"),
    form_request(b"great", b"X-Request-ID: abc\r\nConnection: keep-alive\r\n"),
    HEAD + b'Content-Type: application/json\r\nContent-Length: 17\r\n\r\n{"text": "great"}',
    HEAD + b"Transfer-Encoding: chunked\r\n\r\n6\r\ntext=a\r\n4\r\n&k=2\r\n0\r\nX: y\r\n\r\n",
    HEAD + b"Expect: 100-continue\r\nContent-Length: 6\r\n\r\ntext=a",
    b"POST /inferreview?text=a&k=3&threshold=0.5 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /inferreview?text=a HTTP/1.0\r\nHost: x\r\n\r\n",
    b"HEAD /readyz HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\n\r\n",
    b"OPTIONS /inferreview HTTP/1.1\r\nAccept: */*\r\n\r\n",
    GET,
    b"GET /model HTTP/1.1\r\nCookie: a=b\r\n\r\n",
]
PIECES = [
    b"\r\n", b"\n", b"\r", b"\0", b"%", b"%zz", b"%00", b" ", b":", b"Content-Length: 5\r\n", b"Content-Length: -1\r\n",
    b"Transfer-Encoding: chunked\r\n", b"Connection: close\r\n", b"Expect: 100-continue\r\n", b"Upgrade: x\r\n",
    b"99999999999999999999", b"ffffffffffffffff\r\n", b"\xff\xfe", b"GET / HTTP/1.1\r\n\r\n", b"A" * 300, b"_", b";",
]  # fmt: skip


def mutate(random_source: random.Random) -> bytes:
    """Return a request with a few faults."""
    data = bytearray(random_source.choice(SEEDS))
    for _ in range(random_source.randint(0, 4)):
        at = random_source.randrange(len(data) + 1)
        kind = random_source.randrange(7)
        if kind == 0:
            data[at:at] = random_source.choice(PIECES)
        elif kind == 1:
            del data[at : at + random_source.randint(1, 10)]
        elif kind == 2 and at < len(data):
            data[at] = random_source.randrange(256)
        elif kind == 3:
            data[at:] = random_source.choice(SEEDS)[random_source.randrange(40) :]
        elif kind == 4:
            data[at:at] = data[max(0, at - random_source.randint(1, 60)) : at]
        elif kind == 5 and at < len(data):
            data[at] ^= 1 << random_source.randrange(8)
        else:
            data += random_source.choice(SEEDS)[: random_source.randint(1, 200)]
        data = data or bytearray(b"G")
    return bytes(data)


def attack(server: Server, count: int, seed: int) -> tuple[int, int]:
    """Send that many mutated requests. Return how many were answered and how many of them with 200."""
    source = random.Random(seed)
    answered = good = 0
    for _ in range(count):
        sent = mutate(source)
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
            received = b""
            try:
                cut = source.randrange(len(sent)) if source.random() < 0.3 else len(sent)
                connection.sendall(sent[:cut])
                if cut < len(sent):
                    connection.sendall(sent[cut:])
                connection.shutdown(socket.SHUT_WR)
                while chunk := connection.recv(65536):
                    received += chunk
            except OSError:
                pass
        if received:
            assert re.match(rb"HTTP/1\.1 (100|200|400|404|405|406|411|413|415|417|500|503) ", received), (
                sent,
                received,
            )
            answered += 1
            good += received.startswith(b"HTTP/1.1 200")
    return answered, good


def attack_while_others_are_served(server: Server, client: Client, count: int) -> None:
    """Attack from two sides, with requests in between whose answers must be right."""
    (worker,) = server.workers()
    expected = client(b"text=great").body
    totals: list[tuple[int, int]] = []

    def run(seed: int) -> None:
        totals.append(attack(server, count // 2, seed))

    threads = [threading.Thread(target=run, args=(seed,), daemon=True) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    checked = 0
    while any(thread.is_alive() for thread in threads):
        assert server.request(b"text=great") == (200, expected)
        checked += 1
        threads[0].join(0.01)
    answered, good = map(sum, zip(*totals, strict=True))
    assert len(totals) == 2
    assert checked > 10
    assert count / 10 < good < answered <= count
    assert server.workers() == [worker]
    # bjoern's own errors and failures of the application are the only lines a client can cause.
    lost = [line for line in server.read_log().splitlines() if " ERROR " in line and "failed" not in line]
    assert not lost


def test_fuzz(server: Server, client: Client) -> None:
    attack_while_others_are_served(server, client, 10_000)


@plain
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_fuzz_long(star_model: Path, client: Client) -> None:
    with serve(star_model, "--workers", "1") as server:
        server.wait_for_log(" ready ")
        attack_while_others_are_served(server, client, 20_000)
        (worker,) = server.workers()
        before = resident_bytes(worker)
        attack_while_others_are_served(server, client, 200_000)
        grown = resident_bytes(worker) - before
        print(f"grown by {grown} bytes over 200,000 mutated requests")
        assert grown < 2 * 1024 * 1024
        wait_for(lambda: server.request(b"", "GET", "/readyz")[0] == 200, "readiness")
