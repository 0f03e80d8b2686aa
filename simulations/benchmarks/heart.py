"""UCI heart disease: four real hospitals, rows as text, yes or no; at epsilon none and 8."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from simulations.benchmarks.demo import run

SEEDS = (1,)
PRIVACY = {"none": ("privacy=none",), "8": ("privacy.epsilon=8",)}


def measure(path: Path) -> dict[str, Any]:
    """Runs the preset with its comparison.

    Args:
      path: JSON lines made by `python -m simulations.uci_heart`.
    Returns:
      epsilon ("none", "8") -> seed -> summary.
    """
    return {
        epsilon: {
            str(seed): run("experiment=uci_heart", f"data.path={path}", f"seed={seed}", "compare=true", *overrides)
            for seed in SEEDS
        }
        for epsilon, overrides in PRIVACY.items()
    }
