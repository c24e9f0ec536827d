"""A closed-loop client in this process's threads; it honours ``Connection: close`` and counts every error."""

import itertools
import os
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pytest

from tests.support import ROUTE

plain = pytest.mark.skipif("PYSERVE_SANITIZE" in os.environ, reason="ASan keeps freed memory and handles SIGSEGV")


def form_request(text: bytes, extra: bytes = b"") -> bytes:
    """A request as bytes."""
    return b"POST %b HTTP/1.1\r\nHost: x\r\n%bContent-Length: %d\r\n\r\ntext=%b" % (
        ROUTE.encode(),
        extra,
        len(text) + 5,
        text,
    )


@dataclass
class Reply:
    status: int
    headers: dict[bytes, list[bytes]]
    body: bytes

    @property
    def closes(self) -> bool:
        return any(value.lower() == b"close" for value in self.headers.get(b"connection", []))


def read_reply(stream: BinaryIO, has_body: bool = True) -> Reply:
    """Read one answer, or raise ConnectionError where there is none."""
    line = stream.readline()
    if not line:
        raise ConnectionError("closed without an answer")
    headers: dict[bytes, list[bytes]] = {}
    while (header := stream.readline()) not in {b"\r\n", b""}:
        name, _, value = header.rstrip(b"\r\n").partition(b": ")
        headers.setdefault(name.lower(), []).append(value)
    length = int(headers.get(b"content-length", [b"0"])[0]) if has_body else 0
    body = stream.read(length)
    if len(body) != length:
        raise ConnectionError("closed within an answer")
    return Reply(int(line.split()[1]), headers, body)


def talk(port: int, *parts: bytes, seconds: float = 10) -> bytes:
    """Send bytes on a connection of its own. Return all that comes until the server closes it."""
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
        for part in parts:
            connection.sendall(part)
        received = b""
        try:
            while chunk := connection.recv(65536):
                received += chunk
        except ConnectionResetError:
            pass
        return received


class Load:
    """What the clients saw: answers that were right, and everything else by name."""

    def __init__(self, address: int | Path, expected: dict[bytes, bytes], pause: float = 0) -> None:
        self.right = 0
        self.closes = 0
        self.refused_connections = 0
        self.errors: Counter[str] = Counter()
        self.end = threading.Event()
        self._address = address
        self._pause = pause
        self._expected = expected
        self._lock = threading.Lock()

    def connect(self) -> socket.socket:
        """Connect to a port of this machine or to a Unix socket."""
        if isinstance(self._address, int):
            return socket.create_connection(("127.0.0.1", self._address), timeout=10)
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(10)
        try:
            connection.connect(str(self._address))
        except OSError:
            connection.close()
            raise
        return connection

    def run(self, start: int) -> None:
        """Send requests, on one connection after the other."""
        texts = itertools.islice(itertools.cycle(self._expected), start, None)
        while not self.end.is_set():
            try:
                connection = self.connect()
            except (ConnectionRefusedError, FileNotFoundError):
                self.refused_connections += 1
                self.end.wait(0.02)
                continue
            with connection, connection.makefile("rb") as stream:
                try:
                    while not self.end.is_set():
                        text = next(texts)
                        connection.sendall(form_request(text))
                        if self.count(text, read_reply(stream)):
                            break
                        if self._pause:
                            self.end.wait(self._pause)
                except OSError as error:
                    with self._lock:
                        self.errors[repr(error)] += 1

    def count(self, text: bytes, reply: Reply) -> bool:
        """Count an answer. Return whether it says that the connection is closed after it."""
        with self._lock:
            if reply.status == 200 and reply.body == self._expected[text]:
                self.right += 1
            else:
                self.errors[f"status {reply.status}, {reply.body!r} for {text!r}"] += 1
            self.closes += reply.closes
        return reply.closes


@contextmanager
def load(address: int | Path, expected: dict[bytes, bytes], clients: int = 8, pause: float = 0) -> Iterator[Load]:
    """Send requests, one after the other on each connection, until the end of the context."""
    seen = Load(address, expected, pause)
    threads = [threading.Thread(target=seen.run, args=(number,), daemon=True) for number in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        seen.end.set()
        for thread in threads:
            thread.join(15)
        assert not any(thread.is_alive() for thread in threads), "a client hangs"
