"""The ServerApp: takes a prepared run folder and runs its plan to the end, from the newest checkpoint it finds."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedslm.errors import ConfigError
from fedslm.governance.plan import Plan
from fedslm.reporting.card import write_card
from fedslm.reporting.events import Announcer, EventLog, Observer
from server.checkpoints import Checkpoint, write_adapter
from server.clear_grid import ClearGrid
from server.rounds import RoundLoop, trained_names
from server.run_folder import RunFolder
from server.strategies import build_strategy

RUN_FOLDER_KEY = "run-folder"
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
      folder: the run folder; None takes the path in the Flower run's configuration, as in a deployment.
      observers: told of every event after the log is.
      after_round: called with every new checkpoint; a simulation scores in it.
      seeded: the run is a simulation with reproducible noise; goes into its record.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        """Runs the plan in the run folder."""
        run_plan(grid, folder or _configured(context), observers=observers, after_round=after_round, seeded=seeded)

    return app


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
    """
    run = RunFolder(path)
    plan, start = run.plan(), run.latest()
    with EventLog(run.events) as log:
        announcer = Announcer(log, *observers)
        started = time.monotonic()
        announcer.emit("run_started", **_described(plan, start, seeded=seeded))
        frozen = {name: array for name, array in start.adapter.items() if name not in trained_names(plan, start)}
        clear = ClearGrid(grid, plan=plan, frozen=frozen, announcer=announcer)
        loop = RoundLoop(
            plan=plan,
            strategy=build_strategy(plan.strategy, min_cohort=plan.min_cohort),
            checkpoints=run.checkpoints(),
            announcer=announcer,
            after_round=None if after_round is None else lambda checkpoint: after_round(announcer, checkpoint),
        )
        if start.round < plan.training.rounds:
            clear.join(timeout_s=min(JOIN_TIMEOUT_S, plan.deadline_s))
        end = loop.run(clear, start)
        write_adapter(run.adapter, end.adapter, run.description())
        write_card(run.adapter, plan, rounds=end.round, seeded=seeded)
        announcer.emit("run_finished", round=end.round, seconds=time.monotonic() - started)
    return end


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
        "seeded": seeded,
        "model": plan.model.name,
        "adapter_parameters": plan.adapter.trained_parameters,
    }


app = build_server_app()
