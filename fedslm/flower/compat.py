"""Every private `flwr` import of the project, tested against the pinned minors (1.41, 1.42).

Flower's own processes set the identity of a task before an app runs; an in-process runtime must do it itself, or the
constructor of `Message` raises.
"""

from __future__ import annotations

import importlib
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

from flwr.app import Message
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from flwr.serverapp import ServerApp
from flwr.supercore import telemetry
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedslm.encoding import sha256_hex

if TYPE_CHECKING:
    from flwr.supercore.control.control_http_client import ControlHttpClient

__all__ = [
    "CLIENT_APP_RAISED",
    "Run",
    "become_task",
    "quiet",
    "run_in_ray",
    "run_status",
    "secaggplus",
    "set_message_id",
    "submit_run",
]

CLIENT_APP_RAISED = int(ErrorCode.CLIENT_APP_RAISED_EXCEPTION)


def become_task(*, node_id: int = 1, run_id: int = 1) -> None:
    """Gives this process the identity that `flwr.app.Message` asks for, unless a Flower process already has one."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, run_id, node_id


def quiet() -> None:
    """Silences Flower's own progress lines (the table replaces them) and its calls home, here and in child processes."""
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
    os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
    telemetry.FLWR_TELEMETRY_ENABLED = "0"  # read from the environment when flwr was imported, so before this call
    logging.getLogger("flwr").setLevel(logging.ERROR)


def set_message_id(message: Message, identity: str) -> None:
    """Numbers a message, as Flower's grids do when they push it."""
    message.metadata.__dict__["_message_id"] = identity


def run_in_ray(
    server_app: ServerApp,
    client_app: ClientApp,
    *,
    nodes: int,
    cpus_per_client: float,
    cpus: int | None,
    log_file: Path,
) -> None:
    """Runs both apps in Flower's simulation engine, quietly; what the ServerApp raises comes out as it was raised.

    Args:
      cpus: how many Ray may use; None where it is a cluster that knows by itself.
      log_file: where Flower's own errors go; on a terminal they would tear the table apart.
    """
    from flwr.simulation import run_simulation

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    start = {"log_to_driver": False, "logging_level": logging.ERROR, **({} if cpus is None else {"num_cpus": cpus})}
    settings = {"client_resources": {"num_cpus": cpus_per_client, "num_gpus": 0.0}, "init_args": start}
    with _errors_to(log_file), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run_simulation(server_app, client_app, nodes, backend_config=settings)  # type: ignore[arg-type]


@contextmanager
def _errors_to(path: Path) -> Iterator[None]:
    logger, handler = logging.getLogger("flwr"), logging.FileHandler(path, delay=True)
    before, propagated = list(logger.handlers), logger.propagate
    logger.handlers, logger.propagate = [handler], False
    try:
        yield
    finally:
        logger.handlers, logger.propagate = before, propagated
        handler.close()


def submit_run(
    address: str, bundle: bytes, config: dict[str, bool | float | int | str], *, root_certificates: bytes | None = None
) -> int:
    """Submits a bundle to a SuperLink and returns Flower's number for the run.

    Args:
      address: host:port.
      config: overrides of keys that the bundle has.
      root_certificates: PEM of who signed the SuperLink's certificate; None speaks plain HTTP, for loopback only.
    """
    from flwr.common.serde import fab_to_proto, user_config_to_proto
    from flwr.proto.control_pb2 import StartRunRequest
    from flwr.supercore.fab import Fab

    fab = fab_to_proto(Fab(sha256_hex(bundle), bundle, {}))
    request = StartRunRequest(fab=fab, override_config=user_config_to_proto(config))
    return int(_control(address, root_certificates).StartRun(request).run_id)


def run_status(address: str, run_id: int, *, root_certificates: bytes | None = None) -> str:
    """What became of a run: "pending", "starting", "running", or "finished:" with completed, failed or stopped."""
    from flwr.proto.control_pb2 import ListRunsRequest

    runs = _control(address, root_certificates).ListRuns(ListRunsRequest(run_id=run_id)).run_dict
    status = runs[run_id].status
    return ":".join(part for part in (status.status, status.sub_status) if part)


def _control(address: str, root_certificates: bytes | None) -> ControlHttpClient:
    from flwr.supercore.control.control_http_client import ControlHttpClient
    from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

    return ControlHttpClient.from_server_address(
        address,
        root_certificates is None,
        root_certificates,
        interceptors=[RuntimeVersionHttpInterceptor(component_name="fedslm")],
    )


def secaggplus() -> SimpleNamespace:
    """The functions of Flower's own SecAgg+, client steps and arithmetic, for benchmarks to compare with."""
    from flwr.common import bytes_to_ndarray, ndarrays_to_parameters
    from flwr.common.secure_aggregation import ndarrays_arithmetic as arithmetic
    from flwr.common.secure_aggregation.crypto.shamir import combine_shares
    from flwr.common.secure_aggregation.quantization import dequantize

    # Its package has a function of the module's name, which an ordinary import would find first.
    mod = importlib.import_module("flwr.client.mod.secure_aggregation.secaggplus_mod")
    return SimpleNamespace(
        State=mod.SecAggPlusState,
        Key=mod.Key,
        setup=mod._setup,
        share_keys=mod._share_keys,
        collect_masked_vectors=mod._collect_masked_vectors,
        unmask=mod._unmask,
        generate_shared_key=mod.generate_shared_key,
        bytes_to_private_key=mod.bytes_to_private_key,
        bytes_to_public_key=mod.bytes_to_public_key,
        pseudo_rand_gen=mod.pseudo_rand_gen,
        parameters_addition=arithmetic.parameters_addition,
        parameters_subtraction=arithmetic.parameters_subtraction,
        parameters_mod=arithmetic.parameters_mod,
        get_parameters_shape=arithmetic.get_parameters_shape,
        factor_extract=arithmetic.factor_extract,
        combine_shares=combine_shares,
        dequantize=dequantize,
        bytes_to_ndarray=bytes_to_ndarray,
        ndarrays_to_parameters=ndarrays_to_parameters,
    )
