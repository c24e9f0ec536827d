"""Memory over a million requests."""

import threading
from pathlib import Path

import pytest

from tests.load_client import form_request, plain, read_reply
from tests.server import serve
from tests.support import Client, resident_bytes

TEXTS = [b"great", b"awful+awful", b"okay", b"love" * 50, b"%F0%9F%98%80+fine", b"a" * 3000]


@plain
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_memory_is_flat_over_a_million_requests(star_model: Path, client: Client) -> None:
    """Good requests, errors of each kind in between, on connections that are kept and on new ones."""
    expected = {text: client(b"text=" + text).body for text in TEXTS}
    bad = [
        (b"GET /inferreview HTTP/1.1\r\nHost: x\r\n\r\n", 405),
        (b"POST /nothing HTTP/1.1\r\nHost: x\r\n\r\n", 404),
        (b"POST /inferreview HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", 400),
        (b"POST /inferreview HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 1\r\n\r\na", 415),
        (b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n", 200),
        (form_request(b"great") * 3, 400),
    ]
    failures: list[str] = []

    def ask(count: int) -> None:
        requests = [(form_request(text), expected[text]) for text in TEXTS]
        asked = 0
        try:
            while asked < count:
                with server.connect() as connection, connection.makefile("rb") as stream:
                    for _ in range(400):
                        for request, reply in requests:
                            connection.sendall(request)
                            if read_reply(stream).body != reply:
                                failures.append("a wrong answer")
                    for request, status in bad:
                        connection.sendall(request)
                        if read_reply(stream).status != status:
                            failures.append(f"not {status}")
                    asked += 400 * len(requests) + len(bad)
        except OSError as error:
            failures.append(repr(error))

    def ask_from_two_sides(count: int) -> None:
        threads = [threading.Thread(target=ask, args=(count // 2,), daemon=True) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures

    with serve(star_model, "--workers", "1") as server:
        server.wait_for_log(" ready ")
        (worker,) = server.workers()
        ask_from_two_sides(50_000)
        before = resident_bytes(worker)
        ask_from_two_sides(1_000_000)
        grown = resident_bytes(worker) - before
        print(f"grown by {grown} bytes over 1,000,000 requests")
        assert server.workers() == [worker]
        assert grown <= 1 << 20
