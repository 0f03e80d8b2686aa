"""Scores adapters on held-out patients. Only a simulation can: its harness owns every hospital's records.

It reads the records itself, with the hospitals' own readers; nothing is scored through messages.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from clients.train import Workbench
from fedslm.data.example import Example
from fedslm.errors import RunError
from fedslm.evaluation.choices import Score, majority_rate, score_choices
from fedslm.governance.plan import Plan
from fedslm.reporting.events import Announcer
from server.checkpoints import Checkpoint
from simulations.consortium import Consortium


class Scorer:
    """The held-out patients of a consortium, and one workbench to score adapters on."""

    def __init__(self, plan: Plan, consortium: Consortium, bench: Workbench, *, batch_size: int) -> None:
        """Keeps the multiple-choice items of every hospital's held-out patients."""
        self._plan = plan
        self._bench = bench
        self._batch_size = batch_size
        self.own = {name: _choices(records.held_out) for name, records in consortium.records.items()}
        self.pooled = tuple(example for examples in self.own.values() for example in examples)

    @property
    def majority(self) -> float | None:
        """Accuracy of the commonest answer on the pooled test set; None where no item has choices."""
        return majority_rate(self.pooled) if self.pooled else None

    @property
    def majority_own(self) -> float | None:
        """Accuracy, on the pooled test set, of each hospital's own commonest answer; None where no item has choices."""
        if not self.pooled:
            return None
        right = sum(majority_rate(examples) * len(examples) for examples in self.own.values())
        return right / len(self.pooled)

    def score(self, adapter: Mapping[str, np.ndarray[Any, Any]], examples: Sequence[Example]) -> Score:
        """Scores one adapter, given as all its arrays, on some of the held-out examples."""
        limits = {"max_length_tokens": self._plan.model.max_length_tokens, "batch_size": self._batch_size}
        with self._bench.adapter(self._plan.model, self._plan.adapter) as (tokenizer, attached):
            attached.load(adapter)
            return score_choices(attached.model, tokenizer, examples, **limits)


class RoundScorer:
    """Scores every so many rounds on a fixed, even sample of the pooled test set, and announces it."""

    def __init__(self, scorer: Scorer, *, every_rounds: int, max_examples: int, last_round: int) -> None:
        """Chooses the sample: every k-th item, so that every hospital is in it."""
        stride = max(1, -(-len(scorer.pooled) // max_examples))
        self._scorer = scorer
        self._sample = scorer.pooled[::stride]
        self._every_rounds = every_rounds
        self._last_round = last_round

    def __call__(self, announcer: Announcer, checkpoint: Checkpoint) -> None:
        """Scores the checkpoint's adapter if its round is due.

        Raises:
          RunError: the loss is not finite; later rounds could not make it so.
        """
        is_due = self._every_rounds and checkpoint.round % self._every_rounds == 0
        if not self._sample or not (is_due or checkpoint.round == self._last_round):
            return
        started = time.monotonic()
        score = self._scorer.score(checkpoint.adapter, self._sample)
        if not math.isfinite(score.loss):
            raise RunError(
                f"The adapter of round {checkpoint.round} gives no finite loss; start a new run with a lower "
                "training.learning_rate or strategy.eta."
            )
        seconds = time.monotonic() - started
        announcer.emit("scored", round=checkpoint.round, loss=score.loss, accuracy=score.accuracy, seconds=seconds)


def _choices(examples: Sequence[Example]) -> tuple[Example, ...]:
    return tuple(example for example in examples if example.choices)
