"""The servers that are compared, and how a person would start each on one core."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

SERVERS = Path(__file__).resolve().parent / "servers"
BIN = Path(sys.executable).parent

Command = Callable[[Path, int], list[str]]


@dataclass(frozen=True)
class Contender:
    """A server under its short name.

    Attributes:
        name: the name in results and options.
        title: the name in tables and pictures.
        command: gives the command line for a model and a port.
        answers: whether it classifies; ``floor`` gives a constant answer instead.
        keeps_alive: whether a connection survives an answer; h2load cannot hold a rate where it does not.
        engine: what predicts in it, where it runs on bjoern and its time can be divided.
        needs: the packages without which it cannot start.
    """

    name: str
    title: str
    command: Command
    answers: bool = True
    keeps_alive: bool = True
    engine: str | None = None
    needs: tuple[str, ...] = ()


def serve_pyserve(model: Path, port: int, workers: int = 1) -> list[str]:
    """Give the command line of ours."""
    return [str(BIN / "pyserve"), "serve", "--model", str(model), "--port", str(port), "--workers", str(workers)]


def serve_native(model: Path, port: int) -> list[str]:
    return [*serve_pyserve(model, port), "--engine", "native"]


def serve_article(model: Path, port: int) -> list[str]:
    return [sys.executable, str(SERVERS / "article.py"), str(model), str(port)]


def serve_floor(model: Path, port: int) -> list[str]:
    return [sys.executable, str(SERVERS / "floor.py"), str(port)]


def serve_gevent(model: Path, port: int) -> list[str]:
    return gunicorn(port, "--workers", "9", "--worker-class", "gevent")


def serve_sync(model: Path, port: int) -> list[str]:
    # Two workers per core and one more, as gunicorn's documentation advises.
    return gunicorn(port, "--workers", "3")


def gunicorn(port: int, *options: str) -> list[str]:
    bind = f"127.0.0.1:{port}"
    return [
        str(BIN / "gunicorn"),
        "--no-control-socket",
        "--log-level",
        "error",
        "--bind",
        bind,
        *options,
        "article:app",
    ]


def serve_granian(model: Path, port: int) -> list[str]:
    options = ["--interface", "wsgi", "--workers", "1", "--http", "1", "--no-ws", "--log-level", "error"]
    return [str(BIN / "granian"), *options, "--port", str(port), "article:app"]


def serve_uwsgi(model: Path, port: int) -> list[str]:
    # Its router holds the connections; without it one kept connection occupies the whole process.
    listen = ["--http", f"127.0.0.1:{port}", "--http-keepalive", "--listen", "1024"]
    process = ["--master", "--processes", "1", "--die-on-term", "--need-app", "--disable-logging"]
    return [str(BIN / "uwsgi"), *listen, *process, "--home", sys.prefix, "--module", "article:app"]


def serve_fastapi(model: Path, port: int) -> list[str]:
    options = ["--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "error"]
    return [str(BIN / "uvicorn"), *options, "--port", str(port), "fastapi_app:app"]


CONTENDERS = (
    Contender("pyserve", "pyserve", serve_pyserve, engine="binding"),
    Contender("native", "pyserve, native engine", serve_native, engine="native"),
    Contender("article", "article's server (bjoern)", serve_article, engine="binding", needs=("ujson",)),
    Contender("granian", "article's app, Granian", serve_granian, needs=("granian", "ujson")),
    Contender("uwsgi", "article's app, uWSGI", serve_uwsgi, needs=("uWSGI", "ujson")),
    Contender("fastapi", "FastAPI, uvicorn, orjson", serve_fastapi, needs=("fastapi", "uvicorn", "orjson")),
    Contender("sync", "article's app, gunicorn sync", serve_sync, keeps_alive=False, needs=("gunicorn", "ujson")),
    Contender("gunicorn", "article's app, gunicorn 9 x gevent", serve_gevent, needs=("gunicorn", "gevent", "ujson")),
    Contender("floor", "plain bjoern, constant answer", serve_floor, answers=False),
)


def title_of(name: str) -> str:
    """Give a server's title, for results that were measured under another one too."""
    return next((one.title for one in CONTENDERS if one.name == name), name)


def environment(model: Path) -> dict[str, str]:
    """Give the environment that every server is started in."""
    # Options of ours that are set here would make it another server.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYSERVE_")}
    return inherited | {
        "BENCHMARK_MODEL": str(model),
        "PYTHONPATH": str(SERVERS),
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
