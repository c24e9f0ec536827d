"""When answers leave: at once, and whole where the client takes them slowly."""

import json
import socket
import struct
import subprocess
import sys
from pathlib import Path

import _bjoern
import pytest

from pyserve._loop import take_over
from tests.load_client import form_request, read_reply
from tests.server import serve
from tests.support import ROUTE, Client

# Two requests reach the loop in one turn, while it is held by a third; the second one's application looks whether the
# answer to the first has arrived. Prints that, and whether the calls of bjoern were replaced.
TURN = """
import os, select, socket, sys, threading
import _bjoern
from pyserve._gate import Gate
from pyserve._loop import take_over
from pyserve._metrics import Metrics

holding, go = threading.Event(), threading.Event()
clients, called = [], []

def application(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/hold":
        holding.set()
        go.wait(20)
    elif path in ("/0", "/1"):
        called.append(int(path[1:]))
        if len(called) == 2:
            arrived = bool(select.select([clients[called[0]]], [], [], 0)[0])
            print(replaced, arrived, flush=True)
            os._exit(0)
    start_response("200 OK", [("content-length", "2")])
    return [b"ok"]

def ask(client, path):
    client.sendall(b"GET %b HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n" % path)

def drive():
    for _ in range(3):
        client = socket.create_connection(listener.getsockname(), timeout=20)
        ask(client, b"/")
        while not client.recv(4096).endswith(b"ok"):
            pass
        clients.append(client)
    ask(clients[2], b"/hold")
    holding.wait(20)
    ask(clients[0], b"/0")
    ask(clients[1], b"/1")
    go.set()

replaced = "replace" in sys.argv and take_over(_bjoern.server_run, _bjoern.version)
listener = socket.create_server(("127.0.0.1", 0))
threading.Thread(target=drive, daemon=True).start()
_bjoern.server_run(listener, Gate(application, Metrics(2), 0).handle)
"""


@pytest.mark.parametrize("arguments", [[], ["replace"]])
def test_answer_leaves_before_the_next_request_is_answered(arguments: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", TURN, *arguments], check=True, capture_output=True, timeout=60)
    assert done.stdout.split() == [str(bool(arguments)).encode()] * 2


def test_other_versions_of_bjoern_are_left_alone() -> None:
    assert not take_over(_bjoern.server_run, (3, 2, 3))
    assert not take_over(len, _bjoern.version)
    assert not take_over(Client, _bjoern.version)


def test_answer_taken_slowly_arrives_whole(star_model: Path, client: Client) -> None:
    texts = [b"great" if number % 3 else b"awful" for number in range(80_000)]
    body = b"&".join(b"text=" + text for text in texts)
    expected = {text: json.loads(client(b"text=" + text).body) for text in (b"great", b"awful")}
    with (
        serve(star_model, "--workers", "1", "--max-texts", "80000") as server,
        server.connect(receive_buffer=4096) as connection,
        connection.makefile("rb") as stream,
    ):
        for _ in range(2):
            connection.sendall(b"POST %b HTTP/1.1\r\nContent-Length: %d\r\n\r\n%b" % (ROUTE.encode(), len(body), body))
            # The answer waits in the server meanwhile, and others are answered.
            assert server.request(b"text=great")[0] == 200
            assert json.loads(read_reply(stream).body) == [expected[text] for text in texts]
            connection.sendall(form_request(b"great"))
            assert json.loads(read_reply(stream).body) == expected[b"great"]


def test_clients_that_leave_before_the_answer(star_model: Path) -> None:
    """An answer that nobody takes any more ends its connection, and no other."""
    with serve(star_model, "--workers", "1") as server:
        with (
            server.connect() as steady,
            steady.makefile("rb") as stream,
        ):
            for number in range(300):
                with server.connect() as connection:
                    connection.sendall(form_request(b"great", b"Connection: close\r\n" if number % 2 else b""))
                    # Closed with a reset, before or after the answer was written.
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                steady.sendall(form_request(b"great"))
                assert read_reply(stream).status == 200
        assert "worker ended" not in server.read_log()
        assert server.stop() == 0
