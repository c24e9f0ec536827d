"""The command line: every option is a flag and an environment variable ``PYSERVE_…``."""

import logging
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click

import pyserve
from pyserve.app import DEFAULT_MAX_BODY, DEFAULT_MAX_TEXTS, create_app
from pyserve.model import (
    DIRECTORY,
    ENGINES,
    STARTER,
    ModelError,
    NoModelError,
    describe_model,
    find_model,
    hash_model,
    is_overwritten,
    load_model,
    rehearse_load,
    verify_model,
    write_model_sidecar,
)
from pyserve.sidecar import show_name

Command = TypeVar("Command", bound=Callable[..., Any])

# An option's variable is PYSERVE_ and its name, whatever the command.
COMMAND = {"context_settings": {"auto_envvar_prefix": "PYSERVE", "show_default": True}}

logger = logging.getLogger("pyserve")

option = partial(click.option, show_envvar=True)

MEGABYTE = 1024 * 1024
MOST = 2**40  # of bytes, texts and the like: beyond any machine, and within the counters of the extensions
DAY = 86_400

Count = partial(click.IntRange, max=MOST)
WholeSeconds = partial(click.IntRange, max=DAY)


class Seconds(click.FloatRange):
    """A number of seconds, at most a day."""

    def __init__(self, least: float) -> None:
        super().__init__(least, DAY)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Refuse NaN, which is neither below nor above a bound."""
        number = super().convert(value, param, ctx)
        if math.isnan(number):
            self.fail(f"{value} is not a number of seconds", param, ctx)
        return number


class Line(click.types.StringParamType):
    """A text; in an environment variable each line is one."""

    envvar_list_splitter = "\n"


class Failure(click.ClickException):
    """Wrong usage, or a model that cannot be served: one line and exit status 2."""

    exit_code = 2


class CheckFailure(Failure):
    """A file is not what it should be."""

    exit_code = 1


class FetchFailure(Failure):
    """Nothing could be downloaded."""

    exit_code = 3


def model_options(command: Command) -> Command:
    """Add the options that say which model answers and how it shows its labels."""
    for decorate in (
        option("--engine", default="binding", type=click.Choice(ENGINES), help="What answers; native is the fast one."),
        option("--label-format", help='How a label is shown, as in "{} star".  [default: "{} star" for numbers]'),
        option(
            "--model",
            type=click.Path(path_type=Path),
            help="A .ftz or .bin file.  [default: models/amazon_review_full.ftz, else models/starter.ftz]",
        ),
    ):
        command = decorate(command)
    return command


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(pyserve.__version__, package_name="pyserve")
def main() -> None:
    """Serve a fastText classifier over HTTP."""


def load(model: Path | None, engine: str, label_format: str | None) -> tuple[Path, pyserve.Classifier]:
    """Load the model that the options name."""
    try:
        path = model or find_model()
        return path, load_model(path, engine=engine, label_format=label_format)
    except ModelError as error:
        raise Failure(str(error)) from None
    except ValueError as error:
        raise Failure(f"--label-format: {error}") from None


def warn_of_starter(name: str) -> None:
    """Say so where the model is the small one that comes with the project."""
    if name == STARTER:
        logger.warning(
            "this is the starter model, trained on generated text and no substitute for a real one; "
            "`pyserve fetch amazon_review_full` gets one"
        )


def parse_address(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, int] | None:
    """Read an address of the form HOST:PORT, an IPv6 host in brackets."""
    if value is None:
        return None
    host, _, port = value.rpartition(":")
    if not (host and port.isascii() and port.isdigit() and int(port) < 65536):
        raise click.BadParameter("must be HOST:PORT, as in 127.0.0.1:9100 or [::1]:9100")
    return host, int(port)


@main.command(**COMMAND)
@model_options
@option("--host", default="127.0.0.1", help="The address to listen on.")
@option("--port", default=9000, type=click.IntRange(0, 65535), help="The port to listen on; 0 takes a free one.")
@option("--unix-socket", type=click.Path(path_type=Path), help="Listen on this Unix socket instead.")
@option("--reuse-port", is_flag=True, help="Give each worker a socket of its own (SO_REUSEPORT).")
@option(
    "--admin-address",
    callback=parse_address,
    metavar="HOST:PORT",
    help="Serve health and metrics here and nowhere else.",
)
@option("--workers", type=click.IntRange(1, 1024), help="How many processes serve.  [default: the usable cores]")
@option("--timeout", default=30, type=WholeSeconds(1), help="Seconds after which a worker that hangs is killed.")
@option("--graceful-timeout", default=30, type=WholeSeconds(1), help="Seconds to answer what was asked, at the end.")
@option("--max-body", default=DEFAULT_MAX_BODY, type=Count(1), help="The most bytes in a request's body.")
@option("--max-texts", default=DEFAULT_MAX_TEXTS, type=Count(1), help="The most texts in a request.")
@option(
    "--max-bodies",
    default=128 * MEGABYTE,
    type=Count(1),
    help="The most bytes of all bodies that a worker is receiving.",
)
@option(
    "--request-timeout",
    default=30.0,
    type=Seconds(0.5),
    help="Seconds for a request to be complete, and for its answer to be taken.",
)
@option("--keep-alive", default=75.0, type=Seconds(0.5), help="Seconds for which a connection may be idle.")
@option("--max-connections", default=10_000, type=Count(1), help="The most connections of a worker.")
@option(
    "--max-growth",
    default=256 * MEGABYTE,
    type=Count(0),
    help="Bytes by which a worker's memory may grow before it is replaced; 0 for no limit.",
)
@option("--log-format", default="text", type=click.Choice(["text", "json"]), help="How a line of the log is written.")
@option("--access-log", default=0, type=Count(0), metavar="N", help="Log one of N requests; 0 logs none.")
def serve(
    model: Path | None,
    engine: str,
    label_format: str | None,
    host: str,
    port: int,
    unix_socket: Path | None,
    reuse_port: bool,
    admin_address: tuple[str, int] | None,
    workers: int | None,
    timeout: int,
    graceful_timeout: int,
    max_body: int,
    max_texts: int,
    max_bodies: int,
    request_timeout: float,
    keep_alive: float,
    max_connections: int,
    max_growth: int,
    log_format: str,
    access_log: int,
) -> None:
    """Answer POST /inferreview until SIGTERM; SIGHUP loads the model anew."""
    from pyserve import log, server
    from pyserve.worker import Limits

    def load_all() -> server.Loaded:
        path, classifier = load(model, engine, label_format)
        try:
            description = describe_model(path, classifier)
        except ModelError as error:
            raise Failure(str(error)) from None
        app = create_app(classifier, max_body=max_body, max_texts=max_texts, description=description)
        return server.Loaded(
            app,
            show_name(path),
            str(description["sha256"]),
            classifier.labels,
            classifier.engine,
            partial(is_overwritten, classifier),
        )

    def load_again() -> server.Loaded:
        try:
            rehearse_load(model or find_model(), engine=engine)
            return load_all()
        except Failure as error:
            raise ModelError(error.message) from None

    loaded = load_all()
    workers = workers or server.count_usable_cores()
    try:
        if unix_socket and reuse_port:
            raise Failure("--reuse-port goes with --host and --port, not with --unix-socket")
        admin_listener = server.listen(*admin_address) if admin_address else None
        if unix_socket:
            listeners = [server.listen_unix(unix_socket)]
        else:
            listeners = [server.listen(host, port, reuse_port=reuse_port)]
            port = listeners[0].getsockname()[1]
            listeners += [server.listen(host, port, reuse_port=True) for _ in range(workers - 1) if reuse_port]
    except server.ServeError as error:
        raise Failure(str(error)) from None
    log.set_up(log_format)
    warn_of_starter(loaded.name)
    options = server.Options(
        workers=workers,
        listeners=listeners,
        admin_listener=admin_listener,
        timeout=timeout,
        limits=Limits(
            max_body=max_body,
            max_bodies=max_bodies,
            request_timeout=request_timeout,
            keep_alive=keep_alive,
            max_connections=min(max_connections, server.raise_descriptor_limit()),
            max_growth=max_growth,
            graceful_timeout=graceful_timeout,
            log_every=access_log,
        ),
        unix_socket=unix_socket,
    )
    server.run(options, loaded, load_again)


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
def predict(
    model: Path | None, engine: str, label_format: str | None, k: int, threshold: float, texts: tuple[str, ...]
) -> None:
    """Answer each TEXT with a line of JSON, as the server would; - reads texts from standard input, one a line.

    An empty text, which the server refuses, is answered as fastText answers an empty line.
    """
    from pyserve._inference import EngineError, format_reply

    _, classifier = load(model, engine, label_format)
    for text in read_texts(texts):
        try:
            click.echo(format_reply(classifier.predict(text, k=k, threshold=threshold)))
        except (EngineError, ValueError) as error:
            raise Failure(str(error)) from None


@main.command(**COMMAND)
@option("--write", is_flag=True, help="Write the sidecar MODEL.json: sha256, size and golden predictions.")
@option("--golden", type=Line(), multiple=True, help="A text for a golden prediction, with --write; may be repeated.")
@option("--against-binding", is_flag=True, help="Hold the native engine's answers against those of the binding.")
@option("--texts", type=click.File("rb"), help="The texts for --against-binding, one a line; - reads them.")
@click.argument("model", type=click.Path(path_type=Path))
def verify(
    model: Path, write: bool, golden: tuple[str, ...], against_binding: bool, texts: Iterable[bytes] | None
) -> None:
    """Check that MODEL is an intact supervised fastText model, and what its sidecar MODEL.json says.

    Exit status: 0 all is well, 1 a check failed, 2 wrong usage, no such file, or a sidecar that cannot be written.
    """
    if golden and not write:
        raise Failure("--golden goes with --write")
    if against_binding != (texts is not None):
        raise Failure("--against-binding and --texts go together")
    try:
        written = write_model_sidecar(model, golden) if write else 0
        found = verify_model(model)
    except NoModelError as error:
        raise Failure(str(error)) from None
    except ModelError as error:
        raise CheckFailure(str(error)) from None
    except OSError as error:
        raise Failure(f"{show_name(model)}.json cannot be written: {error.strerror}") from None
    info = found.info
    name = show_name(model)
    kind = f"{'quantized' if info.quantized else 'not quantized'}, {info.loss}"
    if written:
        sidecar = f"{name}.json written, with {written} golden predictions"
    elif found.golden is None:
        sidecar = "none, --write makes one"
    else:
        sidecar = f"{name}.json agrees: sha256, size, {found.golden} golden predictions"
    click.echo(
        f"{name} is an intact supervised fastText model\n"
        f"  sha256   {found.sha256}\n"
        f"  size     {info.size:,} bytes\n"
        f"  kind     {len(info.labels)} labels, {info.words:,} words, dim {info.dim}, "
        f"word n-grams {info.word_ngrams}, {kind}\n"
        f"  sidecar  {sidecar}"
    )
    if texts is not None:
        compare(model, texts)


def compare(model: Path, texts: Iterable[bytes]) -> None:
    """Say whether the engines agree on every line."""
    from pyserve.comparison import compare_engines

    try:
        found = compare_engines(model, texts)
    except ValueError as error:
        raise CheckFailure(str(error)) from None
    measure = "to 1e-6, since this binding was built with FMA" if found.is_fused else "in every bit"
    if found.first_different is not None:
        raise CheckFailure(
            f"the engines differ on {found.different:,} of {found.texts:,} texts, first in line {found.first_different}"
        )
    native, binding = (seconds * 1e6 / found.texts for seconds in (found.native_seconds, found.binding_seconds))
    click.echo(
        f"  engines  agree {measure} on {found.texts:,} texts; a text takes the native one {native:.2f} us, "
        f"the binding {binding:.2f} us"
    )


def list_published(context: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    """Print the table of published models and end."""
    if not wanted:
        return
    from pyserve.fetch import PUBLISHED

    for model in PUBLISHED:
        known = f"sha256 {model.sha256[:12]}..." if model.sha256 else "sha256 unknown"
        click.echo(f"{model.file:28}{model.size:>8}  {model.licence}  {known:22}  {model.about}")
    context.exit()


@main.command(**COMMAND)
@click.option(
    "--list", is_flag=True, is_eager=True, expose_value=False, callback=list_published, help="List the models and exit."
)
@option(
    "--directory", default=DIRECTORY, type=click.Path(path_type=Path, file_okay=False), help="Where the model goes."
)
@option("--mirror", metavar="URL", help="Fetch from below this address in place of fastText's.")
@option("--sha256", metavar="HEX", help="The digest that the file must have.  [default: the known one, if any]")
@option(
    "--stall-timeout",
    default=10.0,
    type=Seconds(0.1),
    help="Give up when nothing arrives for so many seconds.",
)
@option("--max-time", type=Seconds(0.1), help="Give up after so many seconds in all.")
@click.argument("name")
def fetch(
    directory: Path, mirror: str | None, sha256: str | None, stall_timeout: float, max_time: float | None, name: str
) -> None:
    """Download the model NAME that fastText publishes, check it, and keep it where --directory says.

    Exit status: 0 the model is there, 1 what arrived is not what it should be, 2 wrong usage or a directory that
    cannot be written, 3 nothing was fetched.
    """
    import signal

    from pyserve.fetch import FetchError, fetch_model, find_published

    # A default SIGTERM would end the process without removing what was half downloaded.
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))
    if sha256 is not None and not re.fullmatch("[0-9a-fA-F]{64}", sha256):
        raise Failure("--sha256 takes 64 hexadecimal digits")
    try:
        published = find_published(name)
        digest = sha256.lower() if sha256 else None
        path, is_new = fetch_model(
            published, directory, mirror=mirror, sha256=digest, timeout=stall_timeout, max_time=max_time
        )
    except FetchError as error:
        raise FetchFailure(str(error)) from None
    except ModelError as error:
        raise CheckFailure(f"{error}; it was not kept") from None
    except OSError as error:
        raise Failure(f"the model cannot be written to {directory.name}/: {error.strerror}") from None
    except (LookupError, ValueError) as error:
        raise Failure(str(error.args[0])) from None
    size = path.stat().st_size
    done = f"fetched {path.name}" if is_new else f"{path.name} is there already, and intact"
    click.echo(f"{done}: {size:,} bytes, sha256 {hash_model(path)}, {published.licence}")
