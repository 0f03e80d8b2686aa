"""The same two apps in Flower's simulation engine: Ray actors, for several GPUs or machines."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from clients.site import SITES_FOLDER_VARIABLE
from fedslm.config.schema import RuntimeConfig
from fedslm.errors import ConfigError
from fedslm.flower.compat import run_in_ray


def run_with_ray(
    server_app: ServerApp, client_app: ClientApp, *, sites: Path, nodes: int, runtime: RuntimeConfig
) -> None:
    """Runs a federation to its end.

    Args:
      sites: folder with 0.yaml, 1.yaml, ...; told to the actors through the environment they inherit.
    Raises:
      ConfigError: Ray is not installed. Whatever the ServerApp raises.
    """
    if importlib.util.find_spec("ray") is None:
        raise ConfigError(
            "runtime=ray needs Ray, which is not installed; pip install 'fedslm[ray]', or use runtime=local."
        )
    os.environ[SITES_FOLDER_VARIABLE] = str(sites.resolve())
    try:
        run_in_ray(server_app, client_app, nodes=nodes, cpus_per_client=runtime.cpus_per_client)
    finally:
        os.environ.pop(SITES_FOLDER_VARIABLE, None)
