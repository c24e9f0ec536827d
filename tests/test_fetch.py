"""`pyserve fetch` against a web server of our own that behaves well, badly and not at all."""

import errno
import fcntl
import os
import pty
import re
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pyserve import ModelError
from pyserve.fetch import (
    PUBLISHED,
    STAGING_PREFIX,
    UPSTREAM,
    FetchError,
    fetch_model,
    find_published,
    open_staging,
)
from pyserve.model import hash_model, write_model_sidecar
from tests.server import PYSERVE, clean_environment, run
from tests.support import deadline

UNKNOWN = find_published("yelp_review_full")  # its sha256 is not known
KNOWN = find_published("amazon_review_full")


@dataclass
class Mirror:
    """A web server; ``way`` says how it answers."""

    content: bytes
    way: str = "good"
    pause: float = 0.01
    piece: int = 1
    url: str = ""
    asked: list[str] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        self.asked.append(handler.path)
        half = self.content[: len(self.content) // 2]
        if self.way.isdigit():
            handler.send_error(int(self.way))
            return
        if self.way == "silent":
            self.ended.wait(30)
            return
        handler.send_response(200)
        if self.way != "unmeasured":
            length = len(half) if self.way == "truncated" else len(self.content)
            handler.send_header("Content-Length", str(length))
        handler.end_headers()
        if self.way in ("good", "unmeasured"):
            handler.wfile.write(self.content)
        elif self.way == "page":
            handler.wfile.write(b"<html>please log in</html>".ljust(len(self.content)))
        else:
            handler.wfile.write(half)
            handler.wfile.flush()
        if self.way == "reset":
            linger = b"\1\0\0\0\0\0\0\0"
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        elif self.way == "stalled":
            self.ended.wait(30)
        elif self.way == "trickling":
            for start in range(len(half), len(self.content), self.piece):
                if self.ended.wait(self.pause):
                    break
                handler.wfile.write(self.content[start : start + self.piece])


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture
def mirror(star_model: Path) -> Iterator[Mirror]:
    mirror = Mirror(star_model.read_bytes())

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            try:
                mirror.answer(self)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

        def log_request(self, *_: object) -> None:
            pass

        log_error = log_request

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        mirror.url = f"http://127.0.0.1:{server.server_address[1]}/models"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield mirror
        finally:
            mirror.ended.set()
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("way", ["good", "unmeasured"])
def test_fetch_good_file(mirror: Mirror, tmp_path: Path, way: str) -> None:
    mirror.way = way
    umask = os.umask(0o027)
    try:
        path, is_new = fetch_model(UNKNOWN, tmp_path / "models", mirror=mirror.url + "/")
    finally:
        os.umask(umask)
    assert is_new
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert path.read_bytes() == mirror.content
    assert mirror.asked == ["/models/yelp_review_full.ftz"]
    assert os.listdir(path.parent) == ["yelp_review_full.ftz"]


FAULTS = [
    ("truncated", ModelError, r"yelp_review_full.ftz cannot be served: byte \d+: "),
    ("page", ModelError, "yelp_review_full.ftz cannot be served: byte 0: "),
    ("cut", FetchError, "the connection to 127.0.0.1 was cut before the end"),
    ("reset", FetchError, "127.0.0.1"),
    ("silent", FetchError, "127.0.0.1 sent nothing for 0.3 s"),
    ("stalled", FetchError, "127.0.0.1 sent nothing for 0.3 s"),
    ("404", FetchError, "127.0.0.1 answered with status 404"),
    ("500", FetchError, "127.0.0.1 answered with status 500"),
]


@pytest.mark.parametrize(("way", "kind", "message"), FAULTS)
@pytest.mark.parametrize("had_one", [False, True])
def test_fetch_keeps_nothing_that_is_not_good(
    mirror: Mirror, tmp_path: Path, way: str, kind: type[Exception], message: str, had_one: bool
) -> None:
    mirror.way = way
    old = tmp_path / UNKNOWN.file
    if had_one:
        old.write_bytes(b"damaged")
    with pytest.raises(kind, match=message):
        fetch_model(UNKNOWN, tmp_path, mirror=mirror.url, timeout=0.3)
    assert os.listdir(tmp_path) == ([UNKNOWN.file] if had_one else [])
    assert not had_one or old.read_bytes() == b"damaged"
    mirror.way = "good"
    path, is_new = fetch_model(UNKNOWN, tmp_path, mirror=mirror.url)
    assert is_new
    assert path.read_bytes() == mirror.content


def test_fetch_slow_server_within_a_limit(mirror: Mirror, tmp_path: Path) -> None:
    mirror.way = "trickling"
    with pytest.raises(FetchError, match=r"did not arrive within 0\.5 s"):
        fetch_model(UNKNOWN, tmp_path, mirror=mirror.url, timeout=10, max_time=0.5)
    assert os.listdir(tmp_path) == []


def test_fetch_slow_server_is_waited_for(mirror: Mirror, tmp_path: Path) -> None:
    """The whole takes longer than the time-out, but no piece does."""
    mirror.way = "trickling"
    mirror.piece = len(mirror.content) // 8  # four in the half that trickles
    mirror.pause = 0.25
    path, is_new = fetch_model(UNKNOWN, tmp_path, mirror=mirror.url, timeout=0.8)
    assert is_new
    assert path.read_bytes() == mirror.content


def test_fetch_wrong_checksum(mirror: Mirror, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=rf"the sha256 of {KNOWN.file} should be {KNOWN.sha256}, it is [0-9a-f]{{64}}"):
        fetch_model(KNOWN, tmp_path, mirror=mirror.url)
    with pytest.raises(ModelError, match="should be 0000"):
        fetch_model(UNKNOWN, tmp_path, mirror=mirror.url, sha256="0" * 64)
    assert os.listdir(tmp_path) == []


def test_fetch_right_checksum(mirror: Mirror, tmp_path: Path, star_model: Path) -> None:
    path, _ = fetch_model(KNOWN, tmp_path, mirror=mirror.url, sha256=hash_model(star_model))
    assert path.read_bytes() == mirror.content


def test_fetch_real_model(mirror: Mirror, tmp_path: Path, real_model: Path) -> None:
    mirror.content = real_model.read_bytes()
    path, is_new = fetch_model(KNOWN, tmp_path, mirror=mirror.url)
    assert is_new
    assert hash_model(path) == KNOWN.sha256


def test_fetch_sidecar_holds_for_what_is_fetched(
    mirror: Mirror, tmp_path: Path, star_model: Path, hostile_model: Path
) -> None:
    pinned = Path(shutil.copy(hostile_model, tmp_path / UNKNOWN.file))
    write_model_sidecar(pinned)
    pinned.unlink()
    with pytest.raises(ModelError, match=r"yelp_review_full\.ftz\.json, line \d: the (size|sha256) should be "):
        fetch_model(UNKNOWN, tmp_path, mirror=mirror.url)
    assert os.listdir(tmp_path) == [f"{UNKNOWN.file}.json"]
    mirror.content = hostile_model.read_bytes()
    assert fetch_model(UNKNOWN, tmp_path, mirror=mirror.url)[1]


def test_fetch_leaves_an_intact_file_alone(mirror: Mirror, tmp_path: Path, star_model: Path) -> None:
    shutil.copy(star_model, tmp_path / UNKNOWN.file)
    assert fetch_model(UNKNOWN, tmp_path, mirror=mirror.url) == (tmp_path / UNKNOWN.file, False)
    assert mirror.asked == []


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/", "/some/where", "127.0.0.1", "http://", "file:///tmp"])
def test_fetch_mirror_must_be_an_address_of_the_web(tmp_path: Path, url: str) -> None:
    with pytest.raises(ValueError, match="starts with http:// or https://"):
        fetch_model(UNKNOWN, tmp_path / "models", mirror=url)
    assert os.listdir(tmp_path) == []


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


@pytest.mark.parametrize("host", ["127.0.0.1:{port}", "no-such-host.invalid", "user:secret@127.0.0.1:{port}"])
def test_fetch_without_network(tmp_path: Path, host: str) -> None:
    url = "http://" + host.format(port=closed_port())
    status, out, err = run("fetch", "amazon_review_full", "--directory", str(tmp_path / "models"), "--mirror", url)
    assert (status, out) == (3, "")
    assert err.startswith("Error: cannot fetch amazon_review_full.ftz: ")
    assert "cannot be reached, is there a network?" in err
    assert err.count("\n") == 1
    assert "secret" not in err
    assert os.listdir(tmp_path) == []


def test_fetch_command(mirror: Mirror, tmp_path: Path, star_model: Path) -> None:
    command = ["fetch", "yelp_review_full", "--directory", str(tmp_path), "--mirror", mirror.url]
    size = f"{len(mirror.content):,} bytes, sha256 {hash_model(star_model)}, CC-BY-SA-3.0\n"
    assert run(*command) == (0, f"fetched yelp_review_full.ftz: {size}", "")
    assert run(*command) == (0, f"yelp_review_full.ftz is there already, and intact: {size}", "")


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["nonsense"], 2, "`pyserve fetch --list` lists them"),
        (["../starter"], 2, "`pyserve fetch --list` lists them"),
        (["ag_news", "--sha256", "12"], 2, "64 hexadecimal digits"),
        (["ag_news", "--mirror", "ftp://a"], 2, "http:// or https://"),
        (["ag_news", "--stall-timeout", "0"], 2, "not in the range"),
        ([], 2, "Missing argument"),
    ],
)
def test_fetch_wrong_usage(tmp_path: Path, arguments: list[str], status: int, message: str) -> None:
    found, out, err = run("fetch", "--directory", str(tmp_path), *arguments)
    assert (found, out) == (status, "")
    assert message in err
    assert "Traceback" not in err
    assert os.listdir(tmp_path) == []


def test_fetch_directory_that_cannot_be_written(mirror: Mirror, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    command = ["fetch", "ag_news", "--mirror", mirror.url, "--directory", str(tmp_path / "file" / "models")]
    status, _, err = run(*command)
    assert status == 2
    assert err == f"Error: the model cannot be written to models/: {os.strerror(errno.ENOTDIR)}\n"


def test_fetch_exit_statuses(mirror: Mirror, tmp_path: Path) -> None:
    command = [
        "fetch",
        "yelp_review_full",
        "--stall-timeout",
        "0.3",
        "--directory",
        str(tmp_path),
        "--mirror",
        mirror.url,
    ]
    for way, expected in (("truncated", 1), ("404", 3), ("cut", 3), ("stalled", 3)):
        mirror.way = way
        status, out, err = run(*command)
        assert (way, status, out) == (way, expected, "")
        assert err.startswith("Error: ")
        assert err.count("\n") == 1
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_fetch_interrupted_and_started_again(mirror: Mirror, tmp_path: Path, signum: int) -> None:
    mirror.way = "stalled"
    command = ["fetch", "yelp_review_full", "--directory", str(tmp_path), "--mirror", mirror.url]
    process = subprocess.Popen(
        [*PYSERVE, *command], env=clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    with deadline(20, "the first half of the file") as tick:
        while not any(path.stat().st_size for path in tmp_path.glob(f"{STAGING_PREFIX}*/*")):
            assert process.poll() is None
            tick()
    process.send_signal(signum)
    _, err = process.communicate(timeout=20)
    assert process.returncode not in (0, 3)
    assert b"Traceback" not in err
    left = list(tmp_path.iterdir())
    assert bool(left) == (signum == signal.SIGKILL)
    assert not (tmp_path / UNKNOWN.file).exists()
    mirror.way = "good"
    assert run(*command)[0] == 0
    assert os.listdir(tmp_path) == [UNKNOWN.file]


def test_fetch_leaves_a_download_under_way_alone(mirror: Mirror, tmp_path: Path) -> None:
    with open_staging(tmp_path) as staging:
        (staging / "half").write_bytes(b"half")
        assert fetch_model(UNKNOWN, tmp_path, mirror=mirror.url)[1]
        assert (staging / "half").exists()
        with pytest.raises(BlockingIOError):
            fcntl.flock(os.open(staging, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert os.listdir(tmp_path) == [UNKNOWN.file]


def test_fetch_draws_a_progress_bar_on_a_terminal(mirror: Mirror, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    mirror.way = "stalled"
    command = [
        "fetch",
        "yelp_review_full",
        "--stall-timeout",
        "1",
        "--directory",
        str(tmp_path),
        "--mirror",
        mirror.url,
    ]
    process = subprocess.Popen([*PYSERVE, *command], env=clean_environment(), stdout=theirs, stderr=theirs)
    os.close(theirs)
    seen = b""
    try:
        while chunk := os.read(ours, 4096):
            seen += chunk
    except OSError as error:
        if error.errno != errno.EIO:  # the end of a terminal whose other side has closed
            raise
    finally:
        os.close(ours)
        process.wait(20)
    assert re.search(rb"yelp_review_full\.ftz: +\d+%\|", seen), seen
    assert b"sent nothing for 1 s" in seen


def test_published_table() -> None:
    names = [model.file for model in PUBLISHED]
    assert len(set(names)) == len(names)
    assert UPSTREAM.startswith("https://")
    for model in PUBLISHED:
        assert re.fullmatch(r"[a-z0-9_.]+\.(ftz|bin)", model.file)
        assert re.fullmatch(r"[\d.]+ [kM]B", model.size)
        assert model.sha256 is None or re.fullmatch("[0-9a-f]{64}", model.sha256)
        assert find_published(model.file) is model
    assert find_published("lid.176").file == "lid.176.ftz"


def test_list_names_every_model() -> None:
    status, out, err = run("fetch", "--list")
    assert (status, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()] == [model.file for model in PUBLISHED]


def test_serving_imports_nothing_of_fetching(star_model: Path) -> None:
    script = f"""
import sys
import pyserve.cli, pyserve.server
model = pyserve.load_model({str(star_model)!r})
app = pyserve.create_app(model, description=pyserve.describe_model({str(star_model)!r}, model))
model.answer(b"text=great")
print(sorted({{"pooch", "requests", "urllib3", "tqdm", "pyserve.fetch", "numpy"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"
