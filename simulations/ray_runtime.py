"""The same two apps in Flower's simulation engine: Ray actors, for several machines or many cores."""

from __future__ import annotations

import importlib.util
import math
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from clients.site import SITES_FOLDER_VARIABLE
from fedslm.config.schema import RuntimeConfig
from fedslm.errors import ConfigError
from fedslm.flower.compat import run_in_ray
from fedslm.flower.grids import ForwardingGrid


def run_with_ray(server_app: ServerApp, *, sites: Path, nodes: int, runtime: RuntimeConfig) -> None:
    """Runs a federation of the installed ClientApp to its end.

    Args:
      sites: folder with 0.yaml, 1.yaml, ...; told to the actors through the environment they inherit. Flower's own
        errors end there, in flower.log.
    Raises:
      ConfigError: Ray is not installed, or no actor fits on this machine. Whatever the ServerApp raises.
      KeyboardInterrupt: after the ServerApp has stopped, so that nobody else writes to the run folder.
    """
    if importlib.util.find_spec("ray") is None:
        raise ConfigError(
            "runtime=ray needs Ray, which is not installed; pip install 'fedslm[ray]', or use runtime=local."
        )
    cpus = _cpus(runtime, nodes)
    with _environment(SITES_FOLDER_VARIABLE, str(sites.resolve())), _Stoppable(server_app) as stoppable:
        run_in_ray(
            stoppable.app,
            InstalledApp(),
            nodes=nodes,
            cpus_per_client=runtime.cpus_per_client,
            cpus=cpus,
            log_file=sites / "flower.log",
        )


class InstalledApp(ClientApp):
    """Stands for `clients.app.app`, which every actor makes for itself, once.

    Flower pickles the app with every message; with a pickled copy an actor would load its base model every time.
    """

    def __call__(self, message: Message, context: Context) -> Message:
        """Hands the message to this process's own app."""
        from clients.app import app

        return app(message, context)


class StoppedError(Exception):
    """The run was interrupted while its ServerApp was at work in another thread."""


class StoppableGrid(ForwardingGrid):
    """Passes everything on to a grid until it is told to stop; then every call raises.

    Attributes:
      closed: tells the server that no other nodes come than the plan's.
    """

    closed = True

    def __init__(self, grid: Grid, stop: threading.Event) -> None:
        """Wraps `grid`; `stop` ends it from any thread."""
        super().__init__(grid)
        self._stop = stop

    @property
    def _grid(self) -> Grid:
        if self._stop.is_set():
            raise StoppedError
        return super()._grid


class _Stoppable:
    """A ServerApp that Flower runs in a thread of its own, and that has ended when the block has.

    Flower leaves the thread behind when it is interrupted: it would wait for replies until the round's deadline.
    """

    def __init__(self, server_app: ServerApp) -> None:
        self._stop = threading.Event()
        self._ended = threading.Event()
        self._ended.set()
        self.app = ServerApp()
        self.app.main()(self._main(server_app))

    def __enter__(self) -> _Stoppable:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._ended.wait()

    def _main(self, server_app: ServerApp) -> Callable[[Grid, Context], None]:
        def main(grid: Grid, context: Context) -> None:
            self._ended.clear()
            try:
                if not self._stop.is_set():
                    server_app(StoppableGrid(grid, self._stop), context)
            except StoppedError:
                return
            finally:
                self._ended.set()

        return main


def _cpus(runtime: RuntimeConfig, nodes: int) -> int | None:
    """CPUs to give to Ray: no more than all hospitals at once can use, because Ray starts an actor for each share."""
    if "RAY_ADDRESS" in os.environ:
        return None  # a cluster that runs already has its own
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if runtime.cpus_per_client > here:
        raise ConfigError(
            f"runtime.cpus_per_client={runtime.cpus_per_client:g}, but this machine has {here}; lower it."
        )
    return min(here, math.ceil(nodes * runtime.cpus_per_client))


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before
