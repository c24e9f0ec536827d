"""The process manager: gunicorn's arbiter, embedded, with workers that run bjoern."""

import contextlib
import errno
import gc
import logging
import os
import re
import resource
import signal
import socket
import stat
import struct
import sys
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.errors import HaltServer

from pyserve._metrics import Metrics
from pyserve.log import fill_standard_descriptors
from pyserve.worker import RESERVED_DESCRIPTORS, BjoernWorker, Limits, Service

logger = logging.getLogger("pyserve")

BACKLOG = 1024
SO_ATTACH_FILTER = 26  # of <asm/socket.h>, on all architectures but Alpha, MIPS, PA-RISC and SPARC
SPARE_SLOTS = 32  # for workers that drain while their successors serve
YOUNG = 10.0  # seconds; a worker that dies younger did not do its work
MOST_DELAY = 10.0  # seconds between attempts to start workers that die young
MOST_FAILURES = 5  # attempts after which a service that never got ready gives up, and a reload is undone
BROKEN_ANSWER = re.compile(rb"Client \d+ hit errno \d+")  # bjoern, about a client that went away
POLL = 0.05  # seconds between two looks while workers start or end


class ServeError(OSError):
    """The address cannot be listened on; the message says why."""


def is_never_overwritten() -> bool:
    """Say of a model that lies in memory that nobody writes to it."""
    return False


@dataclass(frozen=True)
class Loaded:
    """A model that was loaded and checked, with the application that serves it.

    Attributes:
        application: the WSGI application.
        name: the model's file name.
        sha256: the checksum of the model's file.
        labels: the model's labels as they are shown.
        engine: what computes the predictions.
        is_overwritten: tells whether the file was changed from which the engine still reads.
    """

    application: Callable[..., Any]
    name: str
    sha256: str
    labels: tuple[str, ...]
    engine: str
    is_overwritten: Callable[[], bool] = is_never_overwritten


@dataclass(frozen=True)
class Options:
    """How to serve.

    Attributes:
        workers: how many processes.
        listeners: the sockets to accept from, one for all workers or one for each.
        admin_listener: a socket for health and metrics alone, or None.
        timeout: seconds after which a worker that hangs is killed.
        limits: what a worker allows.
        unix_socket: the path of the Unix socket to remove in the end, or None.
    """

    workers: int
    listeners: list[socket.socket]
    admin_listener: socket.socket | None
    timeout: int
    limits: Limits
    unix_socket: Path | None = None


def listen(host: str, port: int, *, reuse_port: bool = False) -> socket.socket:
    """Bind a TCP socket; an IPv6 address may have brackets.

    Raises:
        ServeError: the address is in use, is not one of this machine or may not be used.
    """
    fill_standard_descriptors()  # a worker's standard error would take the place of the socket
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        server = socket.create_server(
            (host, port),
            family=family,
            backlog=BACKLOG,
            reuse_port=reuse_port,
            dualstack_ipv6=family == socket.AF_INET6 and socket.has_dualstack_ipv6(),
        )
    except (OSError, OverflowError, UnicodeError) as error:
        if isinstance(error, UnicodeError):
            reason = "the host is not a name that can be looked up"
        elif isinstance(error, OSError) and error.errno and error.errno > 0:
            reason = os.strerror(error.errno)  # create_server() adds the address to strerror
        else:
            reason = getattr(error, "strerror", None) or str(error)
        raise ServeError(f"cannot listen on {shown}: {reason}") from None
    server.setblocking(False)
    # Connections inherit it: an answer is a single write and must not wait for an acknowledgement.
    server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return server


def listen_unix(path: Path) -> socket.socket:
    """Bind a Unix socket; one that a process left behind which is gone is replaced.

    Raises:
        ServeError: the path is in use or may not be used.
    """
    fill_standard_descriptors()
    server = socket.socket(socket.AF_UNIX)
    try:
        if is_abandoned(path):
            path.unlink()
        server.bind(str(path))
    except OSError as error:
        server.close()
        reason = error.strerror or str(error)
        if error.errno == errno.EADDRINUSE and not path.is_socket():
            reason = "the path is taken by something that is no socket"
        raise ServeError(f"cannot listen on the Unix socket {path}: {reason}") from None
    server.listen(BACKLOG)
    server.setblocking(False)
    return server


def is_abandoned(path: Path) -> bool:
    """Tell whether there is a Unix socket that nobody listens on."""
    if not path.exists() or not stat.S_ISSOCK(path.stat().st_mode):
        return False
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(str(path))
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False


def refuse_handshakes(listener: socket.socket) -> None:
    """Let no new connection into a listener's queue, so that it can be emptied and closed without cutting one off.

    A client that tries meanwhile tries again after a second, and finds the port closed.
    """
    if listener.family == socket.AF_UNIX:
        return
    # Classic BPF on the TCP header: load the flags; where SYN is set, drop the packet, else keep it.
    program = array("B")
    for code, jump_true, jump_false, value in [
        (0x30, 0, 0, 13),
        (0x45, 0, 1, 2),
        (0x06, 0, 0, 0),
        (0x06, 0, 0, 2**32 - 1),
    ]:
        program.frombytes(struct.pack("HBBI", code, jump_true, jump_false, value))
    with contextlib.suppress(OSError):
        listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", 4, program.buffer_info()[0]))


def name_signal(number: int) -> str:
    """Return a signal's name; those for a program's own use have none but their number."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def settle_memory() -> None:
    """Free what is garbage, and exempt the rest from collections: in a worker they would copy pages that it shares."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()


def describe_address(listener: socket.socket) -> str:
    """Return where a socket listens, as a person would write it."""
    address = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return f"unix:{address}"
    return "http://[{}]:{}".format(*address) if ":" in address[0] else "http://{}:{}".format(*address)


def count_usable_cores() -> int:
    """Return how many cores this process may use, by its affinity and the quota of its control group."""
    cores = len(os.sched_getaffinity(0))
    quota = read_quota()
    return max(1, min(cores, int(quota))) if quota else cores


def read_quota(root: Path = Path("/sys/fs/cgroup"), proc: Path = Path("/proc/self/cgroup")) -> float | None:
    """Return the cores that the control groups (version 2 or 1) of this process grant, or None for no limit."""
    quotas: list[float] = []
    try:
        groups = [line.split(":", 2) for line in proc.read_text().splitlines()]
    except OSError:
        return None
    for _, controllers, path in groups:
        group = root / path.lstrip("/") if not controllers else root / "cpu" / path.lstrip("/")
        if controllers and "cpu" not in controllers.split(","):
            continue
        for directory in (group, *group.parents):
            with contextlib.suppress(OSError, ValueError, IndexError):
                if controllers:
                    quota = int((directory / "cpu.cfs_quota_us").read_text())
                    period = int((directory / "cpu.cfs_period_us").read_text())
                else:
                    quota, period = map(int, (directory / "cpu.max").read_text().split()[:2])
                if quota > 0:
                    quotas.append(quota / period)
            if directory == root:
                break
    return min(quotas, default=None)


def raise_descriptor_limit() -> int:
    """Allow this process as many descriptors as it may have. Return how many connections that leaves room for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return sys.maxsize if soft == resource.RLIM_INFINITY else max(1, soft - RESERVED_DESCRIPTORS)


class GunicornLog:
    """What gunicorn logs to: its warnings and errors are passed on, its events we log ourselves."""

    def __init__(self, cfg: object) -> None:
        self.cfg = cfg

    def _ignore(self, *args: object, **kwargs: object) -> None:
        pass

    setup = debug = info = access = reopen_files = close_on_exec = _ignore

    def warning(self, message: str, *args: object, **kwargs: object) -> None:
        """Log a warning."""
        logger.warning(message, *args)

    def error(self, message: str, *args: object, **kwargs: object) -> None:
        """Log an error, with the kind of the exception where there is one."""
        if kwargs.get("exc_info"):
            self.exception(message, *args)
        else:
            logger.error(message, *args)

    critical = error

    def exception(self, message: str, *args: object, **kwargs: object) -> None:
        """Log an error without its values: they may hold a user's text."""
        kind, error, _ = sys.exc_info()
        fields = {"exception": kind.__name__ if kind else None}
        if isinstance(error, OSError) and error.strerror:
            fields["reason"] = error.strerror
        logger.error(message, *args, extra=fields)


class Application(BaseApplication):  # type: ignore[misc]
    """The settings of gunicorn, of which nothing is read from files or the command line."""

    def __init__(self, options: Options) -> None:
        self.options = options
        super().__init__()

    def load_config(self) -> None:
        """Set what differs from gunicorn's defaults."""
        settings = {
            "workers": self.options.workers,
            "worker_class": BjoernWorker,
            "logger_class": GunicornLog,
            "timeout": self.options.timeout,
            "graceful_timeout": self.options.limits.graceful_timeout,
            "control_socket_disable": True,
            "worker_tmp_dir": "/dev/shm" if os.access("/dev/shm", os.W_OK | os.X_OK) else None,  # noqa: S108
        }
        for name, value in settings.items():
            self.cfg.set(name, value)

    def load(self) -> Service:
        """Return what is served; it is set before the arbiter starts."""
        raise RuntimeError("nothing was loaded")


class Manager(Arbiter):  # type: ignore[misc]
    """Keeps the workers alive, replaces them one by one on SIGHUP and ends them on SIGTERM or SIGINT.

    A worker is *fresh* while it serves what was loaded last and *outdated* otherwise, and *retired* once it was told to
    end.

    Args:
        options: how to serve.
        load: loads and checks the model anew; raises ValueError with the reason where it cannot be served.
    """

    def __init__(self, options: Options, load: Callable[[], Loaded]) -> None:
        self.options = options
        self.load_model = load
        self.metrics = Metrics(2 * options.workers + SPARE_SLOTS)
        self.generation = 0
        self.stopping = False
        self.was_ready = False
        self.failures = 0  # workers that died young, one after the other
        self.refusals = 0  # attempts to make a process that the system refused, one after the other
        self.next_spawn = 0.0
        self.previous: Service | None = None
        self.is_overwritten = self.previous_is_overwritten = is_never_overwritten
        super().__init__(Application(options))
        self.LISTENERS = list(options.listeners)
        if options.admin_listener:
            self.LISTENERS.append(options.admin_listener)

    # --- What is served

    def serve_loaded(self, loaded: Loaded) -> None:
        """Give what was loaded to the workers that start from now on."""
        from pyserve import health  # its library is loaded once, for all workers

        model = (loaded.name, loaded.sha256, loaded.labels)
        loaded_at = int(time.time())
        numbers = self.metrics.set_model(*model, loaded_at)
        if not self.options.admin_listener:
            health.add_routes(loaded.application.falcon_app, self.metrics)  # type: ignore[attr-defined]
        self.app.callable = Service(loaded.application, tuple(numbers), model, loaded_at)
        self.is_overwritten = loaded.is_overwritten
        settle_memory()

    def make_admin_service(self) -> Service:
        """Return what serves health and metrics alone."""
        import falcon

        from pyserve import health
        from pyserve.app import serialize_error

        app = falcon.App()
        app.set_error_serializer(partial(serialize_error, elsewhere="/livez, /readyz and /metrics are here"))
        health.add_routes(app, self.metrics)
        return Service(app)

    # --- Workers

    def serving(self) -> list[Any]:
        """Return the workers that serve and were not told to end, the oldest first."""
        return sorted(
            (worker for worker in self.WORKERS.values() if not worker.is_admin and not worker.retired_at),
            key=lambda worker: worker.age,
        )

    def is_up(self, worker: Any) -> bool:
        """Tell whether a worker takes requests."""
        return self.metrics.state(worker.slot) == "ready"

    def try_to_spawn(self, is_admin: bool = False) -> None:
        """Start a worker, or note when to try again where the system has no room for it at the moment."""
        try:
            self.spawn_worker(is_admin)
        except (OSError, RuntimeError) as error:
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            self.refusals += 1
            delay = min(MOST_DELAY, 0.25 * 2 ** min(self.refusals - 1, 10))
            self.next_spawn = time.monotonic() + delay
            logger.error("a worker cannot be started: %s", reason, extra={"next_attempt_in_seconds": delay})
            if self.refusals >= MOST_FAILURES and not self.was_ready:
                raise HaltServer("no worker could start", 1) from None
        else:
            self.refusals = 0

    def spawn_worker(self, is_admin: bool = False) -> int:
        """Start a worker. Return its process id.

        Raises:
            OSError: the system refuses a file or a process.
            RuntimeError: too many workers are still on their way down.
        """
        self.worker_age += 1
        worker = BjoernWorker(
            self.worker_age, os.getpid(), self.LISTENERS, self.app, self.timeout / 2.0, self.cfg, GunicornLog(self.cfg)
        )
        worker.metrics = self.metrics
        worker.limits = self.options.limits
        worker.is_admin = is_admin
        worker.generation = self.generation
        worker.born = time.monotonic()
        worker.retired_at = 0.0
        worker.retired_for = ""
        worker.listener = (self.options.admin_listener if is_admin else None) or self.choose_listener()
        with contextlib.ExitStack() as undo:
            undo.callback(worker.tmp.close)
            worker.slot = self.metrics.claim()
            undo.callback(self.metrics.release, worker.slot)
            worker.output, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            undo.callback(os.close, worker.output)
            try:
                worker.pid = self.fork_worker(worker, writing)
            finally:
                os.close(writing)
            undo.pop_all()
        self.WORKERS[worker.pid] = worker
        self.metrics.count_start()
        logger.info("worker started", extra={"worker": worker.pid, "kind": "admin" if is_admin else "serving"})
        return int(worker.pid)

    def fork_worker(self, worker: BjoernWorker, output: int) -> int:
        """Fork a process and have it be a worker. Return its id."""
        # The child must not act on signals before it has handlers of its own: they would be lost.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGQUIT, signal.SIGINT})
        try:
            pid = os.fork()
            if pid == 0:
                self.run_worker(worker, output)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGQUIT, signal.SIGINT})
        return pid

    def is_fresh(self, worker: Any) -> bool:
        """Tell whether a worker serves what was loaded last, and means to stay."""
        return worker.generation == self.generation and not self.leaves(worker)

    def choose_listener(self) -> socket.socket:
        """Return the listener that the fewest of the workers accept from that are there to stay."""
        taken = [worker.listener for worker in self.serving() if self.is_fresh(worker)]
        return min(self.options.listeners, key=taken.count)

    def choose_surplus(self, workers: list[Any]) -> Any:
        """Return the worker that the others can best do without: the oldest on the most crowded listener."""
        taken = [worker.listener for worker in self.serving()]
        return max(workers, key=lambda worker: taken.count(worker.listener))

    def run_worker(self, worker: BjoernWorker, output: int) -> NoReturn:
        """Be a worker until it ends."""
        status = 1
        try:
            os.dup2(output, 2)
            os.close(output)
            for sibling in self.WORKERS.values():
                sibling.tmp.close()
                os.close(sibling.output)
            os.close(worker.output)
            worker.pid = os.getpid()
            if worker.is_admin:
                worker.app.callable = self.make_admin_service()
            worker.init_process()
            status = 0
        except BaseException as error:
            logger.error("a worker failed: %s", error if isinstance(error, OSError) else type(error).__name__)
        finally:
            logging.shutdown()
            os._exit(status if worker.booted else self.WORKER_BOOT_ERROR)

    def manage_workers(self) -> None:
        """Start workers that are missing, and replace outdated ones, one at a time."""
        for worker in self.WORKERS.values():
            self.read_output(worker)
        if self.stopping:
            return
        now = time.monotonic()
        serving = self.serving()
        fresh = [worker for worker in serving if self.is_fresh(worker)]
        outdated = [worker for worker in serving if worker not in fresh]
        starting = [worker for worker in serving if self.metrics.state(worker.slot) == "booting"]
        if not self.was_ready and fresh and not starting and len(fresh) >= self.num_workers:
            self.was_ready = True
            self.metrics.set_service("ready")
            logger.info("ready", extra={"workers": len(fresh)})
        if self.options.admin_listener and not any(worker.is_admin for worker in self.WORKERS.values()):
            if now >= self.next_spawn:
                self.try_to_spawn(is_admin=True)
        elif len(serving) < self.num_workers:
            while now >= self.next_spawn and len(self.serving()) < self.num_workers:
                self.try_to_spawn()
        elif len(serving) > self.num_workers and not starting:
            self.retire(self.choose_surplus(outdated or serving), "reload" if outdated else "fewer")
        elif outdated and len(serving) == self.num_workers and now >= self.next_spawn:
            self.try_to_spawn()
        elif self.previous and not outdated and not starting:
            self.previous, self.previous_is_overwritten = None, is_never_overwritten
            settle_memory()
            self.metrics.count_reload(failed=False)
            logger.info("reloaded", extra={"workers": len(fresh)})
        for worker in list(self.WORKERS.values()):
            if worker.retired_at and now - worker.retired_at > self.cfg.graceful_timeout + 2:
                self.kill_worker(worker.pid, signal.SIGKILL)

    def leaves(self, worker: Any) -> bool:
        """Tell whether a worker asked to be replaced."""
        return bool(self.metrics.leaving(worker.slot))

    def retire(self, worker: Any, reason: str) -> None:
        """Tell a worker to end."""
        worker.retired_at = time.monotonic()
        worker.retired_for = self.metrics.leaving(worker.slot) or reason
        self.metrics.retire(worker.slot)
        self.kill_worker(worker.pid, signal.SIGTERM)

    def is_busy(self) -> bool:
        """Tell whether workers are on their way up or down."""
        serving = self.serving()
        return (
            len(serving) != self.num_workers
            or not self.was_ready
            or self.previous is not None
            or any(self.leaves(worker) or not self.is_up(worker) for worker in serving)
            or any(worker.retired_at for worker in self.WORKERS.values())
        )

    def wait_for_signals(self, timeout: float = 1.0) -> list[int]:
        """Wait for signals, shortly while there is something to do."""
        return list(super().wait_for_signals(POLL if self.is_busy() else timeout))

    def murder_workers(self) -> None:
        """Kill workers that hang."""
        for pid, worker in list(self.WORKERS.items()):
            try:
                silent = time.monotonic() - worker.tmp.last_update()
            except (OSError, ValueError):
                continue
            if silent <= self.timeout:
                continue
            if not worker.aborted:
                worker.aborted = True
                logger.error("worker hangs and is killed", extra={"worker": pid, "silent_seconds": round(silent, 1)})
            self.kill_worker(pid, signal.SIGKILL)

    def kill_worker(self, pid: int, sig: int) -> None:
        """Send a worker a signal; one that is gone is left to be reaped."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, sig)

    def reap_workers(self) -> None:
        """Take note of the workers that ended."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    break
                worker = self.WORKERS.pop(pid, None)
                if worker is not None:
                    self.bury(worker, os.waitstatus_to_exitcode(status))

    def bury(self, worker: Any, exit_code: int) -> None:
        """Log and count a worker that ended, and decide when the next one may start."""
        was_up = self.metrics.state(worker.slot) in {"ready", "draining"}
        worker.retired_for = worker.retired_for or self.metrics.leaving(worker.slot)
        self.metrics.release(worker.slot)
        worker.tmp.close()
        self.read_output(worker)
        os.close(worker.output)
        cause, shown = self.find_cause(worker, exit_code, was_up)
        self.metrics.count_end(cause)
        expected = cause in {"stopped", "reloaded", "replaced"}
        logger.log(
            logging.INFO if expected else logging.ERROR,
            "worker ended",
            extra={
                "worker": worker.pid,
                "cause": cause,
                "exit": shown,
                "kind": "admin" if worker.is_admin else "serving",
            },
        )
        if expected:
            return
        if (was_up or worker.is_admin) and time.monotonic() - worker.born > YOUNG:
            self.failures = 0
        self.failures += 1
        if self.failures > 1:
            delay = min(MOST_DELAY, 0.25 * 2 ** (self.failures - 2))
            self.next_spawn = time.monotonic() + delay
            logger.warning("workers die young, the next one waits", extra={"seconds": delay})
        if self.failures >= MOST_FAILURES and not self.was_ready:
            raise HaltServer("no worker could start", 1)
        if self.previous and not was_up and worker.generation == self.generation and self.failures >= MOST_FAILURES:
            self.undo_reload()
        if exit_code == -signal.SIGBUS and not self.stopping and self.is_overwritten():
            # Every worker to come would inherit what broke this one.
            logger.error("the model file was overwritten while it was served: replace it by rename; loading it anew")
            self.handle_hup()

    def read_output(self, worker: Any) -> None:
        """Log what a worker wrote to its standard error beside the log, and count what bjoern wrote."""
        try:
            output = os.read(worker.output, 65536)
        except BlockingIOError:
            return
        for line in output.splitlines():
            if BROKEN_ANSWER.fullmatch(line):
                self.metrics.count_broken_answer()
            elif line.strip():
                shown = line[:200].decode("utf-8", "replace")
                logger.error("a worker wrote to its standard error", extra={"worker": worker.pid, "line": shown})

    def find_cause(self, worker: Any, exit_code: int, was_up: bool) -> tuple[str, str]:
        """Return why a worker ended, as one of ``_metrics.ENDED``, and how the system put it."""
        shown = name_signal(-exit_code) if exit_code < 0 else f"status {exit_code}"
        if worker.aborted:
            return "timeout", shown
        if exit_code == 0 and self.stopping:
            return "stopped", shown
        if exit_code == 0 and worker.retired_for:
            return ("reloaded" if worker.retired_for == "reload" else "replaced"), shown
        if not was_up and exit_code >= 0:
            return "boot_failed", shown
        # The status 0 of a worker that nobody replaces is that of SIGQUIT.
        return ("killed" if exit_code in {0, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGQUIT} else "crashed"), shown

    # --- Signals

    def handle_hup(self) -> None:
        """Load and check the model anew, and replace the workers where that went well."""
        logger.info("reloading")
        try:
            loaded = self.load_model()
        except ValueError as error:
            self.metrics.count_reload(failed=True)
            logger.error("reload refused, the model of before goes on serving: %s", error)
            return
        except Exception as error:
            self.metrics.count_reload(failed=True)
            logger.error("reload failed, the model of before goes on serving: %s", type(error).__name__)
            return
        if self.previous is None:
            self.previous = self.app.callable
            self.previous_generation = self.generation
            self.previous_is_overwritten = self.is_overwritten
        self.generation += 1
        self.failures = 0
        self.serve_loaded(loaded)

    def undo_reload(self) -> None:
        """Go back to what served before, whose workers are still there."""
        logger.error("reload undone, workers cannot start with the new model: the model of before goes on serving")
        self.metrics.count_reload(failed=True)
        if self.previous and self.previous.model:
            self.metrics.set_model(*self.previous.model, self.previous.loaded_at)
        self.app.callable = self.previous
        self.generation = self.previous_generation
        self.is_overwritten = self.previous_is_overwritten
        self.previous, self.previous_is_overwritten = None, is_never_overwritten
        self.failures = 0

    def handle_ttou(self) -> None:
        """Have one worker less, as long as each listener keeps one."""
        if self.num_workers > len(self.options.listeners):
            super().handle_ttou()

    def handle_term(self) -> NoReturn:
        """End, after what has been asked is answered."""
        raise StopIteration

    handle_int = handle_term

    def handle_quit(self) -> NoReturn:
        """End at once."""
        self.stop(graceful=False)
        raise StopIteration

    def handle_usr1(self) -> None:
        """Do nothing: there are no log files to reopen."""

    handle_usr2 = handle_winch = handle_usr1

    def stop(self, graceful: bool = True) -> None:
        """End all workers within the graceful timeout."""
        if not self.stopping:
            logger.info("stopping", extra={"workers": len(self.WORKERS)})
        self.stopping = True
        self.metrics.set_service("draining")
        for listener in self.LISTENERS:
            refuse_handshakes(listener)
            listener.close()
        self.LISTENERS = []
        if self.options.unix_socket:
            with contextlib.suppress(OSError):
                self.options.unix_socket.unlink()
        limit = time.monotonic() + (self.cfg.graceful_timeout if graceful else 1.0)
        number = signal.SIGTERM if graceful else signal.SIGQUIT
        self.kill_workers(number, admin=False)
        while self.WORKERS and time.monotonic() < limit:
            # Those that tell the others' health end last.
            if all(worker.is_admin for worker in self.WORKERS.values()):
                self.kill_workers(number)
            for sig in Arbiter.wait_for_signals(self, POLL):
                if sig in (signal.SIGINT, signal.SIGQUIT) and number != signal.SIGQUIT:
                    logger.warning("stopping at once")
                    number = signal.SIGQUIT
                    self.kill_workers(number)
                    limit = min(limit, time.monotonic() + 1.0)
            self.reap_workers()
        self.kill_workers(signal.SIGKILL)
        while self.WORKERS:
            self.reap_workers()
            time.sleep(0.01)

    def kill_workers(self, sig: int, admin: bool = True) -> None:
        """Send all workers a signal."""
        for pid, worker in list(self.WORKERS.items()):
            if admin or not worker.is_admin:
                self.kill_worker(pid, sig)

    def halt(self, reason: str | None = None, exit_status: int = 0) -> NoReturn:
        """End the service."""
        self.stop()
        if reason:
            logger.error("giving up: %s", reason)
        logger.info("stopped")
        logging.shutdown()
        sys.exit(exit_status)


def run(options: Options, loaded: Loaded, load: Callable[[], Loaded]) -> NoReturn:
    """Serve until SIGTERM or SIGINT, then exit with status 0.

    Args:
        options: how to serve.
        loaded: what is served at first.
        load: loads and checks the model anew on SIGHUP; raises ValueError with the reason where it cannot be served.
    """
    where = " and ".join(sorted({describe_address(listener) for listener in options.listeners}))
    logger.info(
        "serving %s (%d labels, sha256 %s, %s engine) on %s",
        loaded.name,
        len(loaded.labels),
        loaded.sha256,
        loaded.engine,
        where,
    )
    if options.admin_listener:
        logger.info("health and metrics on %s", describe_address(options.admin_listener))
    manager = Manager(options, load)
    manager.metrics.set_service("booting")
    manager.serve_loaded(loaded)
    manager.run()
    raise AssertionError("the arbiter ends by SystemExit")
