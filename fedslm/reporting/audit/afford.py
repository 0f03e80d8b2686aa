"""`fedslm audit plan`: what a plan would cost, how many sessions a budget affords, which noise an epsilon needs.

Nothing is read but numbers: no data, no model, no ledger.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedslm.errors import ConfigError, PrivacyError
from fedslm.governance.plan import Plan
from fedslm.privacy.mechanism import Mechanism
from fedslm.privacy.planned import planned_mechanism
from fedslm.reporting.audit.charts import cost_plot, ticks
from fedslm.reporting.audit.prices import odds, odds_by_noise
from fedslm.reporting.audit.words import delta_words, epsilon_words, one_in_words, share_words

TARGETS = (1.0, 2.0, 4.0, 8.0)
"""Epsilons to answer for besides the one that was asked for."""

_POINTS = 24  # of the plotted curve


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What somebody wants to know the cost of.

    Attributes:
      mechanism: one session.
      sessions: how many of them, at least 1.
      delta: in (0, 1), at most 1/(100 * declared population).
      epsilon: the bound that the noise was to keep, where one was asked for.
    """

    mechanism: Mechanism
    sessions: int
    delta: float
    epsilon: float | None = None

    def __post_init__(self) -> None:
        largest = 1 / (100 * self.mechanism.declared_population)
        if not 0 < self.delta <= largest:
            raise ConfigError(
                f"delta is {self.delta:g}; it has to lie above 0 and be at most {largest:.2g} = 1/(100 * "
                f"{self.mechanism.declared_population}), or one {self.mechanism.unit} could be published in the clear."
            )


def question_of(plan: Plan, hospital: str | None) -> Question | None:
    """What a plan would cost one hospital; None for a plan without privacy, whose cost has no bound.

    Args:
      hospital: None takes the one that declares most, for whom delta has to be smallest.

    Raises:
      ConfigError: the plan does not name the hospital.
    """
    largest = max(plan.hospitals, key=lambda entry: entry.declared_population).name
    name = plan.hospital(hospital or largest).name
    if plan.privacy.mode == "none":
        return None
    mechanism = planned_mechanism(plan, name)
    return Question(
        mechanism=mechanism, sessions=plan.privacy.max_sessions, delta=plan.privacy.delta, epsilon=plan.privacy.epsilon
    )


def noise_for(
    *, epsilon: float, delta: float, sessions: int, sample_rate: float, steps: int, declared_population: int
) -> float:
    """The smallest noise multiplier with which so many sessions of so many steps stay within epsilon.

    Raises:
      PrivacyError: there is none.
    """
    from fedslm.privacy.accounting import calibrate_noise_multiplier  # lazy: a second of import time

    return calibrate_noise_multiplier(
        epsilon=epsilon,
        delta=delta,
        sample_rate=sample_rate,
        steps=steps * sessions,
        declared_population=declared_population,
    )


def answer(question: Question) -> dict[str, Any]:
    """Computes the costs.

    Returns:
      `is_bounded` (true), `unit`, `declared_population`, `sample_rate`, `expected_batch_size`, `steps`, `sessions`, `delta`,
      `noise_multiplier`, `target_epsilon` (null if none was asked for), `epsilon`, `guess`, `recognised` and `by_noise` after
      all sessions; `costs`: `sessions`, `epsilon`, `guess`, `recognised`; `affordable`: `epsilon`, `sessions`; `noise`:
      `epsilon`, `noise_multiplier` (null where none suffices).
    """
    from fedslm.privacy.accounting import EpsilonCurve, affordable_sessions  # lazy: a second of import time

    mechanism, delta = question.mechanism, question.delta
    curve = EpsilonCurve(mechanism, delta=delta)
    epsilon = curve.epsilon(question.sessions)
    targets = sorted({*TARGETS, *([] if question.epsilon is None else [question.epsilon])})
    costs = [(sessions, curve.epsilon(sessions)) for sessions in ticks(question.sessions)]
    return {
        "is_bounded": True,
        "unit": mechanism.unit,
        "declared_population": mechanism.declared_population,
        "sample_rate": mechanism.sample_rate,
        "expected_batch_size": mechanism.expected_batch_size,
        "steps": mechanism.steps,
        "sessions": question.sessions,
        "delta": delta,
        "noise_multiplier": mechanism.noise_multiplier,
        "scores_noise_multiplier": mechanism.scores_noise_multiplier,
        "target_epsilon": question.epsilon,
        "epsilon": epsilon,
        **odds(epsilon, delta),
        "by_noise": odds_by_noise([(mechanism, question.sessions)], pair=(epsilon, delta)),
        "costs": [{"sessions": sessions, "epsilon": cost, **odds(cost, delta)} for sessions, cost in costs],
        "affordable": [
            {"epsilon": each, "sessions": affordable_sessions(mechanism, epsilon=each, delta=delta)} for each in targets
        ],
        "noise": [{"epsilon": each, "noise_multiplier": _noise(question, each)} for each in targets],
    }


def unbounded() -> dict[str, Any]:
    """The answer for a plan without privacy."""
    return {"is_bounded": False, "epsilon": None, **odds(None, 0.0)}


def render(found: Mapping[str, Any]) -> str:
    """The answer for people."""
    if not found["is_bounded"]:
        return (
            "NO BOUND: the plan has privacy=none. No number of sessions, not even one, has an epsilon; what it trains may\n"
            "repeat patients' notes, and a hospital can approve it only with an unlimited budget."
        )
    parts = [_head(found), _costs(found), _affordable(found), _noises(found), _plainly(found)]
    return "\n\n".join(parts)


def plot(path: Path, question: Question) -> None:
    """Writes the plot: epsilon over sessions, to twice as many as were asked for.

    Raises:
      ConfigError: the name ends in neither .png nor .svg, or the file cannot be written.
    """
    from fedslm.privacy.accounting import EpsilonCurve  # lazy: a second of import time

    if path.suffix.lower() not in (".png", ".svg"):
        raise ConfigError(f"--plot={path} ends in {path.suffix or 'nothing'}; name a file that ends in .png or .svg.")
    curve = EpsilonCurve(question.mechanism, delta=question.delta)
    last, cost = 2 * question.sessions, curve.epsilon(question.sessions)
    step = max(1, -(-last // _POINTS))
    counts = sorted({0, *range(step, last + 1, step), *ticks(last), question.sessions})
    cost_plot(
        path,
        [(count, curve.epsilon(count)) for count in counts],
        mark=(question.sessions, cost),
        words=f"{question.sessions:,} sessions: {epsilon_words(cost)}",
        budget=question.epsilon,
        heading=(
            f"Epsilon for each {question.mechanism.unit} at delta {delta_words(question.delta)}, "
            f"noise {question.mechanism.noise_multiplier:.4g}"
        ),
    )


def _noise(question: Question, epsilon: float) -> float | None:
    mechanism = question.mechanism
    if epsilon == question.epsilon:
        return mechanism.noise_multiplier
    try:
        return noise_for(
            epsilon=epsilon,
            delta=question.delta,
            sessions=question.sessions,
            sample_rate=mechanism.sample_rate,
            steps=mechanism.steps,
            declared_population=mechanism.declared_population,
        )
    except PrivacyError:
        return None


def _head(found: Mapping[str, Any]) -> str:
    steps = "1 step" if found["steps"] == 1 else f"{found['steps']:,} steps"
    lines = [
        f"protected   each {found['unit']}, under adding or removing one",
        f"population  {found['declared_population']:,} declared; {share_words(found['sample_rate'])} are drawn in a step, "
        f"{found['expected_batch_size']:,.0f} on average",
        f"sessions    {found['sessions']:,} of {steps} each",
        f"noise       sigma {found['noise_multiplier']:.4f}{_scores(found)}",
        f"cost        epsilon {epsilon_words(found['epsilon'])} at delta {delta_words(found['delta'])} "
        f"({one_in_words(found['delta'])})",
    ]
    return "\n".join(lines)


def _scores(found: Mapping[str, Any]) -> str:
    noise = found["scores_noise_multiplier"]
    return "" if noise is None else f"; on scores of held-out patients {noise:.4f}"


def _costs(found: Mapping[str, Any]) -> str:
    lines = ["What would it cost?", "", "  sessions   epsilon   coin-toss guess right   recognised at 1 % false alarms"]
    for row in found["costs"]:
        guess, seen = share_words(row["guess"]), share_words(row["recognised"])
        lines.append(f"{row['sessions']:>10,}{epsilon_words(row['epsilon']):>10}{guess:>24}{seen:>33}")
    return "\n".join(lines)


def _affordable(found: Mapping[str, Any]) -> str:
    lines = [f"How many sessions can I afford with sigma {found['noise_multiplier']:.4f}?", "", "   epsilon  sessions"]
    lines += [f"{row['epsilon']:>10.4g}{row['sessions'] or 'none':>10}" for row in found["affordable"]]
    return "\n".join(lines)


def _noises(found: Mapping[str, Any]) -> str:
    lines = [f"Which sigma for which epsilon, over {found['sessions']:,} sessions?", "", "   epsilon     sigma"]
    for row in found["noise"]:
        noise = "none" if row["noise_multiplier"] is None else f"{row['noise_multiplier']:.4f}"
        lines.append(f"{row['epsilon']:>10.4g}{noise:>10}")
    return "\n".join(lines)


def _plainly(found: Mapping[str, Any]) -> str:
    unit, tight = found["unit"], found["by_noise"]
    return "\n".join(
        [
            f"In plain words: somebody who would toss a coin over whether one certain {unit} took part guesses right at most",
            f"{share_words(found['guess'])} of the time, whatever else they know; counted from the noise itself, at most "
            f"{share_words(tight['guess'])}.",
            f"Who accuses 1 % of the others wrongly recognises at most {share_words(found['recognised'])} of those who took "
            f"part; from the noise itself {share_words(tight['recognised'])}.",
            "Sessions are attempts at rounds: a round that fails takes another, so plan for some more than rounds.",
        ]
    )
