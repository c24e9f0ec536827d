"""The command line: every option is a flag and an environment variable ``PYSERVE_…``."""

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click

import pyserve
from pyserve.app import DEFAULT_MAX_BODY, DEFAULT_MAX_TEXTS, create_app
from pyserve.model import ModelError, find_model, load_model

Command = TypeVar("Command", bound=Callable[..., Any])

# An option's variable is PYSERVE_ and its name, whatever the command.
COMMAND = {"context_settings": {"auto_envvar_prefix": "PYSERVE", "show_default": True}}

option = partial(click.option, show_envvar=True)


class Failure(click.ClickException):
    """Wrong usage, or a model that cannot be served: one line and exit status 2."""

    exit_code = 2


def model_options(command: Command) -> Command:
    """Add the options that say which model answers and how it shows its labels."""
    for decorate in (
        option("--label-format", help='How a label is shown, as in "{} star".  [default: "{} star" for numbers]'),
        option("--model", type=click.Path(path_type=Path), help="A .ftz or .bin file.  [default: the best in models/]"),
    ):
        command = decorate(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(pyserve.__version__, package_name="pyserve")
def main() -> None:
    """Serve a fastText classifier over HTTP."""


def load(model: Path | None, label_format: str | None) -> tuple[Path, pyserve.Classifier]:
    """Load the model that the options name."""
    try:
        path = model or find_model()
        return path, load_model(path, label_format=label_format)
    except ModelError as error:
        raise Failure(str(error)) from None
    except ValueError as error:
        raise Failure(f"--label-format: {error}") from None


@main.command(**COMMAND)
@model_options
@option("--host", default="127.0.0.1", help="The address to listen on.")
@option("--port", default=9000, type=click.IntRange(0, 65535), help="The port to listen on; 0 takes a free one.")
@option("--unix-socket", type=click.Path(path_type=Path), help="Listen on this Unix socket instead.")
@option("--workers", default=1, type=click.IntRange(1, 1), help="How many processes serve.")
@option("--max-body", default=DEFAULT_MAX_BODY, type=click.IntRange(1), help="The most bytes in a request's body.")
@option("--max-texts", default=DEFAULT_MAX_TEXTS, type=click.IntRange(1), help="The most texts in a request.")
def serve(
    model: Path | None,
    label_format: str | None,
    host: str,
    port: int,
    unix_socket: Path | None,
    workers: int,
    max_body: int,
    max_texts: int,
) -> None:
    """Answer POST /inferreview until SIGTERM."""
    from pyserve import server

    path, classifier = load(model, label_format)
    try:
        listener = server.listen_unix(unix_socket) if unix_socket else server.listen(host, port)
    except server.ServeError as error:
        raise Failure(str(error)) from None
    where = f"unix:{unix_socket}" if unix_socket else "http://{}:{}".format(*listener.getsockname()[:2])
    click.echo(f"serving {path.name} ({len(classifier.labels)} labels) on {where}", err=True)
    server.run(listener, create_app(classifier, max_body=max_body, max_texts=max_texts))


def read_texts(texts: tuple[str, ...]) -> Iterator[str | bytes]:
    """Yield the texts of the command line, and for ``-`` each line of standard input."""
    for text in texts:
        if text == "-":
            for line in sys.stdin.buffer:
                yield line.removesuffix(b"\n")
        else:
            yield text


@main.command(**COMMAND)
@model_options
@option("-k", "--k", default=1, type=click.IntRange(1), help="How many labels to give, best first.")
@option("--threshold", default=0.0, type=click.FloatRange(0, 1), help="The least confidence a label must have.")
@click.argument("texts", nargs=-1, required=True, metavar="TEXT...")
def predict(model: Path | None, label_format: str | None, k: int, threshold: float, texts: tuple[str, ...]) -> None:
    """Answer each TEXT with a line of JSON, as the server would; - reads texts from standard input, one a line."""
    from pyserve._inference import format_reply

    _, classifier = load(model, label_format)
    for text in read_texts(texts):
        try:
            click.echo(format_reply(classifier.predict(text, k=k, threshold=threshold)))
        except ValueError as error:
            raise Failure(str(error)) from None
