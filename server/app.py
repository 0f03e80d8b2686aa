"""The ServerApp: takes a prepared run folder and runs its plan to the end, from the newest checkpoint it finds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedslm.errors import ConfigError, RunError
from fedslm.flower.bundle import RUN_FOLDER_KEY
from fedslm.governance.plan import Plan
from fedslm.reporting.card import write_card
from fedslm.reporting.events import Announcer, EventLog, Observer
from fedslm.reporting.promise import bound_words
from server.aggregate import AggregateFile
from server.checkpoints import Checkpoint, write_adapter
from server.clear_grid import ClearGrid
from server.receipts import ReceiptFile
from server.rounds import RoundLoop, trained_names
from server.run_folder import RunFolder
from server.secure_grid import SecureGrid
from server.sessions import SessionCounter
from server.strategies import build_strategy
from server.summary import record_failure, summarise

JOIN_TIMEOUT_S = 300.0

AfterRound = Callable[[Announcer, Checkpoint], None]


def build_server_app(
    *,
    folder: Path | None = None,
    observers: Sequence[Observer] = (),
    after_round: AfterRound | None = None,
    seeded: bool = False,
) -> ServerApp:
    """Makes the app.

    Args:
      folder: the run folder, which the caller has locked; None takes and locks the one that the Flower run's
        configuration names, as in a deployment.
      observers: told of every event after the log is.
      after_round: called with every new checkpoint; a simulation scores in it.
      seeded: the run is a simulation with reproducible noise; goes into its record.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        """Runs the plan in the run folder."""
        if folder is None:
            serve(grid, _configured(context), observers=observers)
        else:
            run_plan(grid, folder, observers=observers, after_round=after_round, seeded=seeded)

    return app


def serve(grid: Grid, path: Path, *, observers: Sequence[Observer] = ()) -> Checkpoint:
    """`run_plan` in a process of its own, as in a deployment: takes the folder's lock, and puts a failure on record.

    Raises:
      ConfigError: there is no run in the folder, or another process has it. Otherwise as `run_plan`.
    """
    with RunFolder(path) as run:
        run.open()
        started = time.monotonic()
        try:
            end = run_plan(grid, path, observers=observers)
        except Exception as error:
            command = f"submit the run folder {path} again"
            record_failure(run, observers, error, resume_command=command, seeded=False, started=started)
            raise
        run.write_summary(summarise(run, end, status="finished", seeded=False, started=started))
        return end


def run_plan(
    grid: Grid,
    path: Path,
    *,
    observers: Sequence[Observer] = (),
    after_round: AfterRound | None = None,
    seeded: bool = False,
) -> Checkpoint:
    """Joins the hospitals, runs the rounds that are left, and writes the final adapter.

    Raises:
      TooFewHospitalsError, RunError: see `RoundLoop.run`; every event up to then is in the log.
      RosterError, SignatureError: the plan is masked, and its roster or its signature is not the coordinator's.
    """
    run = RunFolder(path)
    plan, start = run.plan(), run.latest()
    with EventLog(run.events) as log:
        announcer = Announcer(log, *observers)
        started = time.monotonic()
        announcer.emit("run_started", **_described(plan, start, seeded=seeded))
        exchange = _round_grid(grid, run, start, announcer)
        loop = RoundLoop(
            plan=plan,
            strategy=build_strategy(plan.strategy, min_cohort=plan.min_cohort),
            checkpoints=run.checkpoints(),
            announcer=announcer,
            after_round=None if after_round is None else lambda checkpoint: after_round(announcer, checkpoint),
        )
        if start.round < plan.training.rounds:
            exchange.join(timeout_s=min(JOIN_TIMEOUT_S, plan.deadline_s))
        end = loop.run(exchange, start)
        _write_result(run, plan, end, seeded=seeded)
        announcer.emit("run_finished", round=end.round, seconds=time.monotonic() - started)
    return end


def _round_grid(grid: Grid, run: RunFolder, start: Checkpoint, announcer: Announcer) -> ClearGrid | SecureGrid:
    """The grid that the plan calls for: one that sees every update, or one that sees only their sum."""
    plan = run.plan()
    frozen = {name: array for name, array in start.adapter.items() if name not in trained_names(plan, start)}
    counter = SessionCounter(run.sessions, at_least=start.sessions)
    if not plan.masked:
        return ClearGrid(grid, plan=plan, frozen=frozen, announcer=announcer, counter=counter)
    return SecureGrid(
        grid,
        charter=run.charter(),
        frozen=frozen,
        announcer=announcer,
        counter=counter,
        aggregates=AggregateFile(run.aggregate),
        receipts=ReceiptFile(run.receipts),
        finished=start.sessions,
    )


def _write_result(run: RunFolder, plan: Plan, end: Checkpoint, *, seeded: bool) -> None:
    try:
        write_adapter(run.adapter, end.adapter, run.description())
        write_card(run.adapter, plan, rounds=end.round, seeded=seeded)
    except OSError as error:
        raise RunError(
            f"The adapter {run.adapter} cannot be written: {error.strerror}; make room on the disk and resume."
        ) from None


def _configured(context: Context) -> Path:
    value = context.run_config.get(RUN_FOLDER_KEY)
    if not value:
        raise ConfigError(f"The Flower run names no {RUN_FOLDER_KEY}; submit it with the folder of a prepared run.")
    return Path(str(value))


def _described(plan: Plan, start: Checkpoint, *, seeded: bool) -> dict[str, object]:
    privacy = plan.privacy
    return {
        "run_id": plan.run_id,
        "plan_sha256": plan.sha256,
        "hospitals": list(plan.names),
        "rounds": plan.training.rounds,
        "first_round": start.round + 1,
        "privacy": {
            "mode": privacy.mode,
            "epsilon": privacy.epsilon,
            "delta": privacy.delta,
            "unit": privacy.unit,
            "noise_multiplier": privacy.noise_multiplier,
        },
        "masked": plan.masked,
        "bound": bound_words(plan),
        "seeded": seeded,
        "model": plan.model.name,
        "adapter_parameters": plan.adapter.trained_parameters,
    }


app = build_server_app()
