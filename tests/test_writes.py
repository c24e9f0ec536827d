"""How answers leave: without a turn of the loop, and whole where the client takes them slowly."""

import json
import os
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
from tests.support import ROUTE, Client, preload

# Counts how often libev tells epoll something.
COUNTER = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/epoll.h>
int calls;
int epoll_ctl(int epoll, int operation, int fd, struct epoll_event *event) {
    int (*next)(int, int, int, struct epoll_event *) = dlsym(RTLD_NEXT, "epoll_ctl");
    calls++;
    return next(epoll, operation, fd, event);
}
"""

# Prints whether the calls of bjoern were replaced, and how often epoll was told something for a number of answers.
ANSWERS = 50
SERVER = f"""
import ctypes, os, socket, sys, threading
import _bjoern
from pyserve._gate import Gate
from pyserve._loop import take_over
from pyserve._metrics import Metrics

calls = ctypes.c_int.in_dll(ctypes.CDLL(None), "calls")

def application(environ, start_response):
    start_response("200 OK", [("content-length", "2")])
    return [b"ok"]

def ask(client):
    client.sendall(b"GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
    while not client.recv(4096).endswith(b"ok"):
        pass

def drive():
    with socket.create_connection(listener.getsockname(), timeout=20) as client:
        ask(client)
        before = calls.value
        for _ in range({ANSWERS} + 1):  # what the last one causes may come after it
            ask(client)
        print(replaced, calls.value - before, flush=True)
        os._exit(0)

replaced = "replace" in sys.argv and take_over(_bjoern.server_run, _bjoern.version)
listener = socket.create_server(("127.0.0.1", 0))
threading.Thread(target=drive, daemon=True).start()
_bjoern.server_run(listener, Gate(application, Metrics(2), 0).handle)
"""


@pytest.mark.parametrize("replace", [False, True])
def test_answers_need_no_turn_of_the_loop(tmp_path: Path, replace: bool) -> None:
    arguments = ["replace"] if replace else []
    library = preload(tmp_path, COUNTER)
    done = subprocess.run(
        [sys.executable, "-c", SERVER, *arguments],
        check=True,
        capture_output=True,
        timeout=60,
        env={**os.environ, "LD_PRELOAD": library},
    )
    replaced, calls = done.stdout.split()
    assert replaced == str(replace).encode()
    # A connection is told to be written to, and then to be read from again, or neither.
    assert int(calls) <= 2 if replace else int(calls) >= 2 * ANSWERS


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
