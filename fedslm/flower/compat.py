"""Every private `flwr` import of the project, tested against the pinned minors (1.41, 1.42).

Flower's own processes set the identity of a task before an app runs; an in-process runtime must do it itself, or the
constructor of `Message` raises.
"""

from __future__ import annotations

import logging
import os
import warnings

from flwr.app import Message
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import ServerApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

__all__ = ["CLIENT_APP_RAISED", "Run", "become_task", "quiet", "run_in_ray", "set_message_id"]

CLIENT_APP_RAISED = int(ErrorCode.CLIENT_APP_RAISED_EXCEPTION)


def become_task(*, node_id: int = 1, run_id: int = 1) -> None:
    """Gives this process the identity that `flwr.app.Message` asks for, unless a Flower process already has one."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, run_id, node_id


def quiet() -> None:
    """Silences Flower's own progress lines (the table replaces them) and its calls home."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
    logging.getLogger("flwr").setLevel(logging.ERROR)


def set_message_id(message: Message, identity: str) -> None:
    """Numbers a message, as Flower's grids do when they push it."""
    message.metadata.__dict__["_message_id"] = identity


def run_in_ray(server_app: ServerApp, client_app: ClientApp, *, nodes: int, cpus_per_client: float) -> None:
    """Runs both apps in Flower's simulation engine, quietly; what the ServerApp raises comes out as it was raised."""
    from flwr.simulation import run_simulation

    resources = {"num_cpus": cpus_per_client, "num_gpus": 0.0}
    settings = {"client_resources": resources, "init_args": {"log_to_driver": False, "logging_level": logging.ERROR}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        run_simulation(server_app, client_app, nodes, backend_config=settings)  # type: ignore[arg-type]
