"""Sessions of several mechanisms, composed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from fedslm.privacy.losses import (
    RENYI_ORDERS,
    check_delta,
    cross_checked,
    delta_left,
    discretisation,
    divergence_epsilon,
    step_divergence,
    step_loss,
)
from fedslm.privacy.mechanism import Mechanism, check_sessions

if TYPE_CHECKING:
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

COARSEST_MIX = 1e-5
"""A composition of unlike steps uses no finer grid than this: a large loss on a tiny grid would fill the memory."""

Kind = tuple[float, float]
Part = tuple[Kind, int]


class Composition:
    """Epsilon of sessions under several mechanisms, composed exactly where adding epsilons up would overstate them.

    Made for many rounds of few kinds. A kind is a sample rate and a noise multiplier; its steps are composed at once, and
    the kinds two by two, so that one more round renews only the parts it enters into.

    Guarantees: holds for sessions whose mechanisms were all chosen before the first of them. Where a later one is chosen
    in the light of what an earlier one released, as from plan to plan, epsilons and deltas have to be added instead.
    The order of `add` does not matter.
    """

    __slots__ = ("_interval", "_losses", "_sampler_delta", "_steps")

    def __init__(self) -> None:
        """Starts with nothing done."""
        self._steps: dict[Kind, int] = {}
        self._losses: dict[object, PrivacyLossDistribution] = {}
        self._interval = 0.0
        self._sampler_delta = 0.0

    def add(self, mechanism: Mechanism, *, sessions: int = 1) -> None:
        """Adds sessions of a mechanism; one that releases scores as if every patient were scored and trained on.

        Raises:
          PrivacyError: a negative number of sessions.
        """
        kind = mechanism.sample_rate, mechanism.accounted_noise_multiplier
        if check_sessions(sessions):
            self._steps[kind] = self._steps.get(kind, 0) + mechanism.steps * sessions
            self._sampler_delta += mechanism.sampler_delta(sessions)
        if mechanism.scoring is not None:  # sides hold within a population, and nobody says whose mechanisms these are
            self.add(mechanism.scoring, sessions=sessions)

    def epsilon(self, *, delta: float) -> float:
        """Gives epsilon of everything added; 0.0 for nothing.

        Guarantees: as `EpsilonCurve.epsilon`.

        Raises:
          PrivacyError: a delta outside (0, 1), or as `EpsilonCurve.epsilon`.
        """
        left = delta_left(check_delta(delta), self._sampler_delta)
        if not self._steps:
            return 0.0
        parts = tuple(sorted(self._steps.items()))
        return cross_checked(float(self._loss(parts).get_epsilon_for_delta(left)), self._renyi(delta))

    def _loss(self, parts: tuple[Part, ...]) -> PrivacyLossDistribution:
        """The loss of all parts on one grid, from what is remembered; forgets what is of no use any more."""
        finest = min(discretisation(*kind) for kind, _ in parts)
        interval = finest if len(parts) == 1 else max(finest, COARSEST_MIX)
        known = self._losses if interval == self._interval else {}
        self._interval, self._losses = interval, {}
        return self._compose(parts, known)

    def _compose(
        self, parts: tuple[Part, ...], known: dict[object, PrivacyLossDistribution]
    ) -> PrivacyLossDistribution:
        if len(parts) == 1:
            kind, steps = parts[0]
            step = self._losses[kind] = known.get(kind) or step_loss(*kind, interval=self._interval)
            loss = known.get(parts) or step.self_compose(steps)
        else:
            middle = len(parts) // 2
            left, right = self._compose(parts[:middle], known), self._compose(parts[middle:], known)
            loss = known.get(parts) or left.compose(right)
        self._losses[parts] = loss
        return loss

    def _renyi(self, delta: float) -> float:
        parts = (step_divergence(*kind) * steps for kind, steps in self._steps.items())
        return divergence_epsilon(sum(parts, np.zeros(len(RENYI_ORDERS))), delta)
