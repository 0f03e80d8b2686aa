"""Every private `flwr` import of the project, tested against the pinned minors (1.41, 1.42).

Flower's own processes set the identity of a task before an app runs; an in-process runtime must do it itself, or the
constructor of `Message` raises.
"""

from __future__ import annotations

import logging
import os

from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

__all__ = ["Run", "become_task", "quiet"]


def become_task(*, node_id: int = 1, run_id: int = 1) -> None:
    """Gives this process the identity that `flwr.app.Message` asks for, unless a Flower process already has one."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, run_id, node_id


def quiet() -> None:
    """Silences Flower's own progress lines (the table replaces them) and its calls home."""
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
    logging.getLogger("flwr").setLevel(logging.ERROR)
