"""Secure aggregation measured for `docs/results.md`: the goal's size, several numbers of hospitals, and the demo's rounds."""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Any

from fedslm.reporting.events import read_events
from simulations.benchmarks.demo import simulate_quietly
from simulations.benchmarks.secagg import Load
from simulations.benchmarks.secagg import measure as measure_session

GOAL = Load(clients=16, params=10_000_000, dropouts=5)
BY_CLIENTS = (4, 16, 64, 255)
WITH_FLOWER = 16
"""Up to so many hospitals Flower's SecAgg+ is measured too; its secret sharing takes minutes with more."""

PAIRS = 4
ROUNDS = 6


def measure() -> dict[str, Any]:
    """The goal's session, and sessions of 1 M parameters without dropouts by number of hospitals."""
    loads = [Load(clients=clients, params=1_000_000, dropouts=0) for clients in BY_CLIENTS]
    return {
        "goal": measure_session(GOAL),
        "by_clients": [measure_session(load, with_flower=load.clients <= WITH_FLOWER) for load in loads],
    }


def masking() -> dict[str, float]:
    """Seconds of the demo's rounds, masked and in the clear, from runs in turn; the first round of each is left out."""
    seconds: dict[str, list[float]] = {"none": [], "masked": []}
    for _ in range(PAIRS):
        for mode, rounds in seconds.items():
            rounds += _rounds(mode)
    clear, masked = statistics.median(seconds["none"]), statistics.median(seconds["masked"])
    return {"pairs": PAIRS, "clear_s": clear, "masked_s": masked, "added": masked / clear - 1}


def _rounds(mode: str) -> list[float]:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "run"
        simulate_quietly(f"secagg={mode}", f"rounds={ROUNDS}", "evaluation.every_rounds=0", f"run_folder={target}")
        events = read_events(target / "events.jsonl")
    return [event.fields["seconds"] for event in events if event.kind == "round_finished"][1:]
