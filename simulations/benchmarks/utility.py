"""What privacy costs in accuracy: the demo and UCI heart at epsilon none, 8, 3 and 1, over three seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from simulations.benchmarks.demo import run

SEEDS = ("1", "2", "3")
EPSILONS = {
    "8": ("privacy.epsilon=8",),
    "none": ("privacy=none",),
    "3": ("privacy.epsilon=3",),
    "1": ("privacy.epsilon=1",),
}
DEMO, HEART = "demo", "heart"

Found = dict[str, dict[str, dict[str, Any]]]


def measure(heart: Path | None, *, known: Mapping[str, Any], keep: Callable[[Found], None]) -> Found:
    """Runs each comparison that is not known yet, each in a process of its own; it takes over an hour.

    Args:
      heart: JSON lines made by `python -m simulations.uci_heart`; None leaves that consortium out.
      known: what an interrupted measurement has found.
      keep: called with all that is found, after every run.
    Returns:
      consortium ("demo", "heart") -> epsilon -> seed -> summary, as in `summary.json`.
    """
    found: Found = {data: {epsilon: dict(runs) for epsilon, runs in by.items()} for data, by in known.items()}
    settings: dict[str, tuple[str, ...]] = {DEMO: (), HEART: ("experiment=uci_heart", f"data.path={heart}")}
    for data, epsilon, seed in _order(has_heart=heart is not None):
        runs = found.setdefault(data, {}).setdefault(epsilon, {})
        if seed not in runs:
            runs[seed] = run(*settings[data], f"seed={seed}", "compare=true", *_privacy(data, epsilon))
            keep(found)
    return found


def _order(*, has_heart: bool) -> list[tuple[str, str, str]]:
    consortia = (DEMO, HEART) if has_heart else (DEMO,)
    return [(data, epsilon, seed) for data in consortia for epsilon in EPSILONS for seed in SEEDS]


def _privacy(data: str, epsilon: str) -> tuple[str, ...]:
    """Without privacy a hospital draws as much in a step as with it: only clipping and noise go."""
    if epsilon != "none":
        return EPSILONS[epsilon]
    return (*EPSILONS[epsilon], f"privacy.sample_rate={0.5 if data == HEART else 0.02}")
