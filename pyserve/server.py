"""Serve a WSGI application with bjoern, until a signal ends it."""

import contextlib
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from types import FrameType

BACKLOG = 1024


class ServeError(OSError):
    """The address cannot be listened on; the message says why."""


def listen(host: str, port: int) -> socket.socket:
    """Bind a TCP socket.

    Raises:
        ServeError: the address is in use, is not one of this machine or may not be used.
    """
    try:
        return socket.create_server((host, port), backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ServeError(f"cannot listen on {host}:{port}: {reason}") from None


def listen_unix(path: Path) -> socket.socket:
    """Bind a Unix socket.

    Raises:
        ServeError: the path is in use or may not be used.
    """
    server = socket.socket(socket.AF_UNIX)
    try:
        server.bind(str(path))
    except OSError as error:
        server.close()
        raise ServeError(f"cannot listen on the Unix socket {path}: {error.strerror}") from None
    server.listen(BACKLOG)
    return server


def run(server: socket.socket, app: Callable[..., object]) -> None:
    """Serve until SIGTERM or SIGINT; open connections are answered first."""
    import _bjoern

    def handle_terminate(signum: int, frame: FrameType | None) -> None:
        # bjoern ends its loop, once its connections are closed, on SIGINT only.
        os.kill(os.getpid(), signal.SIGINT)

    signal.signal(signal.SIGTERM, handle_terminate)
    server.setblocking(False)
    with contextlib.suppress(KeyboardInterrupt):
        _bjoern.server_run(server, app)
