"""The round loop: configure, exchange, aggregate, checkpoint, announce; from the start or from any checkpoint.

It runs any linear Flower strategy through `configure_train` and `aggregate_train`, because a strategy's own `start`
always begins at round 1. Seconds, bytes and epsilon are announced; no loss exists here, because none leaves a hospital.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp.strategy import FedAvg

from fedslm.errors import RunError
from fedslm.flower.records import to_array_record
from fedslm.governance.plan import Plan
from fedslm.privacy.accounting import EpsilonCurve
from fedslm.privacy.planned import planned_mechanism
from fedslm.reporting.events import Announcer
from server.checkpoints import Checkpoint, Checkpoints
from server.strategies import require_linear, restore_strategy, strategy_state


class RoundGrid(Protocol):
    """A grid that runs a whole round when it is asked to send: `ClearGrid` or `SecureGrid`."""

    @property
    def survivors(self) -> tuple[str, ...]:
        """Whose updates are in the last round's mean, in the plan's order."""
        ...

    @property
    def sessions(self) -> int:
        """Sessions started in this run so far, finished or not."""
        ...

    def get_node_ids(self) -> Iterable[int]:
        """The nodes that joined."""
        ...

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Runs a round."""
        ...


class RoundLoop:
    """Runs a plan's rounds on a grid."""

    def __init__(
        self,
        *,
        plan: Plan,
        strategy: FedAvg,
        checkpoints: Checkpoints,
        announcer: Announcer,
        after_round: Callable[[Checkpoint], None] | None = None,
    ) -> None:
        """Couples what a run needs; nothing starts before `run`.

        Args:
          after_round: called with every new checkpoint. A simulation scores the adapter in it, on data it owns.
        Raises:
          ConfigError: the plan is masked, and the strategy needs more than a mean.
        """
        if plan.masked:
            require_linear(strategy)
        self._plan = plan
        self._strategy = strategy
        self._checkpoints = checkpoints
        self._announcer = announcer
        self._after_round = after_round
        self._curve = epsilon_curve(plan)

    def run(self, grid: RoundGrid, start: Checkpoint) -> Checkpoint:
        """Runs the rounds after `start` to the plan's last.

        Raises:
          TooFewHospitalsError: too few hospitals answered a round; the checkpoint before it stands.
          RunError: the aggregate is not finite, or a checkpoint cannot be written.
        """
        restore_strategy(self._strategy, start.strategy)
        checkpoint = start
        for number in range(start.round + 1, self._plan.training.rounds + 1):
            checkpoint = self._round(grid, number, checkpoint)
        return checkpoint

    def _round(self, grid: RoundGrid, number: int, before: Checkpoint) -> Checkpoint:
        started = time.monotonic()
        self._announcer.emit("round_started", round=number)
        trained = self._exchange(grid, number, before)
        after = dataclasses.replace(
            before,
            round=number,
            sessions=grid.sessions,  # attempts that came to nothing have cost as much
            adapter={**before.adapter, **trained},
            strategy=strategy_state(self._strategy),
        )
        self._save(after)
        self._announcer.emit(
            "round_finished",
            round=number,
            seconds=time.monotonic() - started,
            epsilon=None if self._curve is None else self._curve.epsilon(after.sessions),
            survivors=list(grid.survivors),
        )
        if self._after_round is not None:
            self._after_round(after)
        return after

    def _exchange(self, grid: RoundGrid, number: int, before: Checkpoint) -> dict[str, np.ndarray[Any, Any]]:
        trained = {name: before.adapter[name] for name in trained_names(self._plan, before)}
        asked: Any = grid  # Flower wants its own class, and calls `get_node_ids` only
        messages = self._strategy.configure_train(number, to_array_record(trained), ConfigRecord(), asked)
        replies = grid.send_and_receive(messages, timeout=self._plan.deadline_s)
        aggregated, _ = self._strategy.aggregate_train(number, replies)
        return _finite(aggregated, number)

    def _save(self, checkpoint: Checkpoint) -> None:
        started = time.monotonic()
        self._checkpoints.save(checkpoint)
        self._announcer.emit("checkpoint_written", round=checkpoint.round, seconds=time.monotonic() - started)


def trained_names(plan: Plan, checkpoint: Checkpoint) -> list[str]:
    """The names of the arrays that travel: all under "full", the B matrices under "ffa"."""
    return sorted(name for name in checkpoint.adapter if plan.adapter.method == "full" or "lora_A" not in name)


def epsilon_curve(plan: Plan) -> EpsilonCurve | None:
    """Epsilon by sessions under the plan, at the largest hospital (equal at all but for 1e-6); None without privacy."""
    if plan.privacy.mode == "none":
        return None
    largest = max(plan.hospitals, key=lambda hospital: hospital.declared_population)
    return EpsilonCurve(planned_mechanism(plan, largest.name), delta=plan.privacy.delta)


def _finite(aggregated: ArrayRecord | None, number: int) -> dict[str, np.ndarray[Any, Any]]:
    # Flower's adaptive strategies hand back float64 (a NumPy scalar in their learning rate); the adapter is float32.
    with np.errstate(over="ignore"):  # said below, in words
        arrays = {name: array.numpy().astype(np.float32) for name, array in (aggregated or ArrayRecord()).items()}
    if not arrays or not all(np.isfinite(array).all() for array in arrays.values()):
        raise RunError(
            f"The global adapter is not finite after round {number}; lower strategy.eta or training.learning_rate. "
            "The checkpoint before it is intact."
        )
    return arrays
