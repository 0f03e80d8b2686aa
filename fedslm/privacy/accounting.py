"""What a mechanism costs: epsilon after so many sessions, and the noise that a wanted epsilon needs.

Privacy loss distributions decide (Google's dp_accounting, add/remove neighbours, pessimistic estimate). Renyi DP, an
independent bound, checks every figure; privacy random variables (Opacus) give a third opinion where one is asked for.
Everything is read from the `Mechanism`; nothing here sees data, tensors or a config.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from fedslm.errors import PrivacyError
from fedslm.privacy.losses import (
    RENYI_ORDERS,
    check_delta,
    cross_checked,
    delta_left,
    discretisation,
    divergence_epsilon,
    patient_step_loss,
    step_divergence,
    step_loss,
)
from fedslm.privacy.mechanism import DEFAULT_MAX_PARAMETERS, MAX_NOISE_MULTIPLIER, Mechanism, check_sessions
from fedslm.privacy.prv import run_prv
from fedslm.privacy.sampling import check_count, check_sample_rate

if TYPE_CHECKING:
    from collections.abc import Callable

    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

MIN_NOISE_MULTIPLIER = 0.2
"""Calibration looks no lower: epsilon is beyond any meaning there."""

MAX_SESSIONS = 1 << 20
"""`affordable_sessions` looks no further."""


class EpsilonCurve:
    """Epsilon as a function of the number of sessions, for one mechanism and delta.

    The loss distribution of a single step is made once; each number of sessions is one self-composition of it (about
    40 ms at the reference setting), remembered afterwards.

    Args:
      mechanism: what is repeated. Where it releases scores as well, epsilon is the larger of the two costs: a patient is
        held out or trained on.
      delta: in (0, 1).

    Raises:
      PrivacyError: a delta outside (0, 1).
    """

    __slots__ = ("_delta", "_known", "_mechanism", "_scoring", "_step")

    def __init__(self, mechanism: Mechanism, *, delta: float) -> None:
        self._mechanism = mechanism
        self._delta = check_delta(delta)
        self._step = _step(mechanism)
        self._scoring = None if mechanism.scoring is None else EpsilonCurve(mechanism.scoring, delta=delta)
        self._known: dict[int, float] = {0: 0.0}

    def epsilon(self, sessions: int) -> float:
        """Gives epsilon after that many sessions; 0.0 after none.

        Guarantees: at most the Renyi bound plus 0.02, so a fault in the discretisation cannot pass unseen.

        Raises:
          PrivacyError: a negative number of sessions, so many that the samplers' own error reaches delta / 100, or two
            accountants that contradict each other.
        """
        if check_sessions(sessions) not in self._known:
            mechanism, steps = self._mechanism, self._mechanism.steps * sessions
            found = _compose(self._step, steps, delta_left(self._delta, mechanism.sampler_delta(sessions)))
            divergence = step_divergence(mechanism.sample_rate, mechanism.accounted_noise_multiplier) * steps
            trained = cross_checked(found, divergence_epsilon(divergence, self._delta))
            held_out = 0.0 if self._scoring is None else self._scoring.epsilon(sessions)
            self._known[sessions] = max(trained, held_out)
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
    return EpsilonCurve(mechanism, delta=delta).epsilon(sessions)


def renyi_epsilon(mechanism: Mechanism, *, sessions: int, delta: float) -> float:
    """Bounds the epsilon of that many sessions by Renyi DP: looser than `epsilon_spent`, and found another way.

    Raises:
      PrivacyError: values out of range.

    Source: Mironov et al. 2019, arXiv 1908.10530.
    """
    from dp_accounting import rdp

    check_delta(delta)
    if check_sessions(sessions) == 0:
        return 0.0
    accountant = rdp.RdpAccountant(RENYI_ORDERS)
    accountant.compose(mechanism.event(sessions))
    trained = float(accountant.get_epsilon(delta))
    scoring = mechanism.scoring
    return trained if scoring is None else max(trained, renyi_epsilon(scoring, sessions=sessions, delta=delta))


def prv_epsilon(mechanism: Mechanism, *, sessions: int, delta: float, timeout_s: float = 60.0) -> float | None:
    """Bounds the epsilon of that many sessions by a third accountant, which takes seconds and may give up.

    Args:
      timeout_s: wall-clock seconds, after which its process is killed; starting it takes about five of them.

    Returns:
      Epsilon, at most about 0.01 above the exact one; None where the accountant gave up, which says nothing about the
      mechanism.

    Raises:
      PrivacyError: values out of range.

    Source: Gopi, Lee and Wutschitz 2021, arXiv 2106.02848.
    """
    check_delta(delta)
    if check_sessions(sessions) == 0:
        return 0.0
    trained = run_prv(
        sample_rate=mechanism.sample_rate,
        noise_multiplier=mechanism.accounted_noise_multiplier,
        steps=mechanism.steps * sessions,
        delta=delta,
        timeout_s=timeout_s,
    )
    if trained is None or mechanism.scoring is None:
        return trained
    return max(trained, gaussian_epsilon(mechanism.scoring.accounted_noise_multiplier, times=sessions, delta=delta))


def gaussian_epsilon(noise_multiplier: float, *, times: int, delta: float) -> float:
    """Computes the epsilon of a plain Gaussian mechanism, repeated, in closed form: what scores cost, without any grid.

    Source: Balle and Wang 2018, arXiv 1805.06530, theorem 8; repetitions are one Gaussian of sqrt(times) less noise.
    """
    import dp_accounting

    return float(dp_accounting.get_epsilon_gaussian(noise_multiplier / math.sqrt(times), delta))


def patient_epsilon(mechanism: Mechanism, *, sessions: int, delta: float, records: int) -> float:
    """Computes what the sessions cost a patient, all records together, where the mechanism protects single records.

    Args:
      mechanism: with the record as unit.
      records: k, the most records of one patient that a hospital trains on; enforced where they are read.
      delta: in (0, 1), for the patient as it is.

    Returns:
      Epsilon at delta with respect to adding or removing a patient with at most k records.

    Guarantees: never an underestimate; k = 1 gives `epsilon_spent`.

    Raises:
      PrivacyError: values out of range, or a mechanism that protects the patient anyway.

    Source: Charles et al. 2024, arXiv 2407.07737, section 4.
    """
    if mechanism.unit != "record":
        raise PrivacyError(
            f"The mechanism protects the {mechanism.unit} with all records, whatever their number ({records} were given); "
            "its own epsilon is the patient's."
        )
    check_count("records", records)
    left = delta_left(check_delta(delta), mechanism.sampler_delta(sessions))
    if sessions == 0:
        return 0.0
    kind = mechanism.sample_rate, mechanism.accounted_noise_multiplier
    # A patient's loss grows with k, so a wider grid does (it costs below 1e-3); on the finest one k = 16 takes half a minute.
    loss = patient_step_loss(*kind, records=records, interval=discretisation(*kind) * math.sqrt(records))
    return _compose(loss, mechanism.steps * sessions, left)


def affordable_sessions(mechanism: Mechanism, *, epsilon: float, delta: float) -> int:
    """Counts the sessions that stay within epsilon at delta.

    Returns:
      The largest such number, at most 2^20; 0 where not even one does.

    Raises:
      PrivacyError: an epsilon that is not above 0, or a delta outside (0, 1).
    """
    _check_epsilon(epsilon)
    curve = EpsilonCurve(mechanism, delta=delta)
    low, high = 0, 1
    while high <= MAX_SESSIONS and curve.epsilon(high) <= epsilon:
        low, high = high, 2 * high
    while high - low > 1 and low < MAX_SESSIONS:
        middle = (low + high) // 2
        low, high = (middle, high) if curve.epsilon(middle) <= epsilon else (low, middle)
    return low


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
      PrivacyError: values out of range, no noise multiplier up to 1000 suffices, or two accountants contradict each other.
    """
    _check_epsilon(epsilon)
    check_count("steps", steps)
    check_sample_rate(sample_rate)
    check_delta(delta)

    def mechanism(ticks: int) -> Mechanism:
        return Mechanism(
            unit="patient",
            sample_rate=sample_rate,
            clip_norm=1.0,
            noise_multiplier=ticks / 10_000,
            steps=steps,
            declared_population=declared_population,
            max_parameters=max_parameters,
        )

    def cost(ticks: int) -> float:
        candidate = mechanism(ticks)
        return _compose(_step(candidate), steps, delta_left(delta, candidate.sampler_delta(1)))

    found = _smallest_tick(cost, epsilon, steps)
    epsilon_spent(mechanism(found), sessions=1, delta=delta)  # what is planned with passes both accountants
    return found / 10_000


def calibrate_scores_noise(*, epsilon: float, delta: float, sessions: int) -> float:
    """Finds the smallest noise multiplier on scores of held-out patients that keeps all sessions within epsilon.

    Returns:
      A `Mechanism.scores_noise_multiplier`, rounded up to 4 decimals.

    Guarantees: a held-out patient costs at most `epsilon`, by loss distributions checked against the Renyi bound.

    Raises:
      PrivacyError: as `calibrate_noise_multiplier`.
    """
    return calibrate_noise_multiplier(
        epsilon=epsilon, delta=delta, sample_rate=1.0, steps=sessions, declared_population=1, max_parameters=2
    )


def _check_epsilon(epsilon: float) -> None:
    if not (math.isfinite(epsilon) and epsilon > 0.0):
        raise PrivacyError(f"epsilon is {epsilon}; it has to be finite and above 0, so set one such as 4.0.")


def _smallest_tick(cost: Callable[[int], float], epsilon: float, steps: int) -> int:
    """The smallest noise multiplier within epsilon, in ten-thousandths, by doubling and then halving the interval."""
    low, high, highest = round(MIN_NOISE_MULTIPLIER * 10_000) - 1, 10_000, round(MAX_NOISE_MULTIPLIER * 10_000)
    while cost(high) > epsilon:
        if high == highest:
            raise PrivacyError(
                f"No noise multiplier up to {MAX_NOISE_MULTIPLIER:g} keeps {steps} steps within epsilon {epsilon}; "
                "allow a larger epsilon, fewer rounds or steps, or a smaller sample_rate."
            )
        low, high = high, min(2 * high, highest)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if cost(middle) <= epsilon else (middle, high)
    return high


def _step(mechanism: Mechanism) -> PrivacyLossDistribution:
    kind = mechanism.sample_rate, mechanism.accounted_noise_multiplier
    return step_loss(*kind, interval=discretisation(*kind))


def _compose(step: PrivacyLossDistribution, times: int, delta: float) -> float:
    return float(step.self_compose(times).get_epsilon_for_delta(delta))
