"""What a mechanism costs: epsilon after so many sessions, and the noise that a wanted epsilon needs.

Privacy loss distributions decide (Google's dp_accounting, add/remove neighbours, pessimistic estimate); Renyi DP, an
independent bound, checks them. Everything is read from the `Mechanism`; nothing here sees data, tensors or a config.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from fedslm.errors import PrivacyError
from fedslm.privacy.mechanism import (
    DEFAULT_MAX_PARAMETERS,
    Mechanism,
    check_count,
    check_sample_rate,
    check_sessions,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

CROSS_CHECK_MARGIN = 0.02
"""By how much the loss distribution may exceed the Renyi bound before the result is refused."""

MAX_NOISE_MULTIPLIER = 1000.0
MIN_NOISE_MULTIPLIER = 0.2
"""Calibration looks between these: above, nothing is learned; below, epsilon is beyond any meaning."""

_RENYI_ORDERS = (1.5, 1.75, *(n / 2 for n in range(4, 24)), *range(12, 64), 72, 96, 128, 192, 256, 384, 512, 1024)


class EpsilonCurve:
    """Epsilon as a function of the number of sessions, for one mechanism and delta.

    The loss distribution of a single step is made once; each number of sessions is one self-composition of it (about
    40 ms at the reference setting), remembered afterwards.

    Args:
      mechanism: what is repeated.
      delta: in (0, 1).

    Raises:
      PrivacyError: a delta outside (0, 1).
    """

    __slots__ = ("_delta", "_known", "_mechanism", "_step")

    def __init__(self, mechanism: Mechanism, *, delta: float) -> None:
        self._mechanism = mechanism
        self._delta = check_delta(delta)
        self._step = _step_loss(mechanism.sample_rate, mechanism.accounted_noise_multiplier)
        self._known: dict[int, float] = {0: 0.0}

    def epsilon(self, sessions: int) -> float:
        """Gives epsilon after that many sessions; 0.0 after none.

        Raises:
          PrivacyError: a negative number of sessions, or so many that the samplers' own error reaches delta / 100.
        """
        if check_sessions(sessions) not in self._known:
            delta = _delta_left(self._delta, self._mechanism.sampler_delta(sessions))
            self._known[sessions] = _compose(self._step, self._mechanism.steps * sessions, delta)
        return self._known[sessions]


def epsilon_spent(mechanism: Mechanism, *, sessions: int, delta: float) -> float:
    """Computes the epsilon of that many sessions.

    Args:
      mechanism: what was run.
      sessions: how many sessions were booked, at least 0.
      delta: in (0, 1).

    Returns:
      Epsilon at delta under add/remove neighbours, rounded against us by the discretisation; 0.0 for 0 sessions.

    Guarantees: at most the Renyi bound plus 0.02, so a fault in the discretisation cannot pass unseen.

    Raises:
      PrivacyError: values out of range, or the two accountants contradict each other.

    Source: Doroshenko et al. 2022, arXiv 2207.04380; Mironov et al. 2019, arXiv 1908.10530.
    """
    epsilon = EpsilonCurve(mechanism, delta=delta).epsilon(sessions)
    bound = _renyi_epsilon(mechanism, sessions=sessions, delta=delta)
    if not epsilon <= bound + CROSS_CHECK_MARGIN:
        raise PrivacyError(
            f"Two accountants disagree: the loss distribution gives epsilon {epsilon:.4f}, above the Renyi bound "
            f"{bound:.4f} + {CROSS_CHECK_MARGIN}; use another noise_multiplier or sample_rate, and report this."
        )
    return epsilon


def calibrate_noise_multiplier(
    *,
    epsilon: float,
    delta: float,
    sample_rate: float,
    steps: int,
    declared_population: int,
    max_parameters: int = DEFAULT_MAX_PARAMETERS,
) -> float:
    """Finds the smallest noise multiplier with which the whole plan stays within epsilon.

    Args:
      epsilon: target above 0, for all sessions together.
      delta: in (0, 1).
      sample_rate: q in (0, 1].
      steps: DP steps of all sessions together (steps a session times the maximum number of sessions).
      declared_population: as in the mechanism.
      max_parameters: as in the mechanism.

    Returns:
      The noise multiplier, rounded up to 4 decimals.

    Guarantees: a mechanism with the returned value and these settings costs at most `epsilon`.

    Raises:
      PrivacyError: values out of range, or no noise multiplier up to 1000 suffices.
    """
    if not (math.isfinite(epsilon) and epsilon > 0.0):
        raise PrivacyError(f"epsilon is {epsilon}; it has to be finite and above 0, so set one such as 4.0.")
    check_count("steps", steps)
    check_sample_rate(sample_rate)
    check_delta(delta)

    def cost(ticks: int) -> float:
        candidate = Mechanism(
            unit="patient",
            sample_rate=sample_rate,
            clip_norm=1.0,
            noise_multiplier=ticks / 10_000,
            steps=steps,
            declared_population=declared_population,
            max_parameters=max_parameters,
        )
        return EpsilonCurve(candidate, delta=delta).epsilon(1)

    return _smallest_tick(cost, epsilon, steps) / 10_000


def check_delta(delta: float) -> float:
    """Returns delta, or refuses one outside (0, 1).

    Raises:
      PrivacyError: as said.
    """
    if not 0.0 < delta < 1.0:
        raise PrivacyError(f"delta is {delta}; it has to lie in (0, 1), at most 1/(100 * population), such as 1e-6.")
    return delta


def _smallest_tick(cost: Callable[[int], float], epsilon: float, steps: int) -> int:
    """The smallest noise multiplier within epsilon, in ten-thousandths, by doubling and then halving the interval."""
    low, high = round(MIN_NOISE_MULTIPLIER * 10_000) - 1, 10_000
    while cost(high) > epsilon:
        low, high = high, 2 * high
        if high > MAX_NOISE_MULTIPLIER * 10_000:
            raise PrivacyError(
                f"No noise multiplier up to {MAX_NOISE_MULTIPLIER:g} keeps {steps} steps within epsilon {epsilon}; "
                "allow a larger epsilon, fewer rounds or steps, or a smaller sample_rate."
            )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if cost(middle) <= epsilon else (middle, high)
    return high


def _step_loss(sample_rate: float, noise_multiplier: float) -> PrivacyLossDistribution:
    """The privacy loss distribution of one Poisson-sampled Gaussian step."""
    from dp_accounting.pld import privacy_loss_distribution  # lazy: a second of import time

    return privacy_loss_distribution.from_gaussian_mechanism(
        noise_multiplier,
        sampling_prob=sample_rate,
        value_discretization_interval=_discretisation(sample_rate, noise_multiplier),
        pessimistic_estimate=True,
    )


def _discretisation(sample_rate: float, noise_multiplier: float) -> float:
    """Chooses the grid of the loss: 1e-3, or the power of ten at most half a step's typical loss where that is smaller.

    A step whose loss is far below the interval is rounded up to it, soundly but wastefully: q = 5e-4, sigma = 2 and
    20 000 steps gave 0.245 at 1e-3 (above the Renyi bound of 0.191) and 0.143 at 1e-4.
    """
    typical = sample_rate * math.sqrt(math.expm1(min(noise_multiplier**-2, 50.0)))
    return min(1e-3, max(1e-7, 10.0 ** math.floor(math.log10(typical / 2.0))))


def _compose(step: PrivacyLossDistribution, times: int, delta: float) -> float:
    return float(step.self_compose(times).get_epsilon_for_delta(delta))


def _delta_left(delta: float, sampler: float) -> float:
    """What remains of delta for the mechanism after the samplers' own error."""
    if sampler >= delta / 100:
        raise PrivacyError(
            f"Random number generation alone may cost {sampler:.1e} of delta {delta:.1e}, more than a hundredth; "
            "plan fewer steps, a smaller max_parameters, or a larger delta."
        )
    return delta - sampler


def _renyi_epsilon(mechanism: Mechanism, *, sessions: int, delta: float) -> float:
    from dp_accounting import rdp

    accountant = rdp.RdpAccountant(_RENYI_ORDERS)
    accountant.compose(mechanism.event(sessions))
    return float(accountant.get_epsilon(delta))
