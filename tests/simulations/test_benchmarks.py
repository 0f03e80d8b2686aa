"""The results page is drawn from measured figures alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedslm.cli import main
from simulations.benchmarks import utility
from simulations.benchmarks.page import render
from simulations.benchmarks.plots import draw_utility

STAMP = {"date": "2026-01-02", "versions": "Python 3.11, torch 2"}


def summary(federated: float, own: float) -> dict[str, object]:
    row = {"base": 0.1, "single_own": own, "federated_own": federated, "single": 0.3, "test_examples": 10}
    comparison = {"majority": 0.2, "base": 0.1, "single_best": 0.5, "federated": federated, "pooled": 0.9}
    return {"seconds": 200.0, "epsilon": 7.99, "comparison": {**comparison, "by_hospital": {"north": row}}}


def test_the_worst_seed_is_what_counts() -> None:
    result = {"1": summary(0.80, 0.70), "2": summary(0.65, 0.69)}
    page = render({"utility": {"measured": STAMP, "result": {"demo": {"8": result}}}})
    assert "beats the best single hospital by +15.0 points" in page
    assert "own patients by -4.0 points at the least" in page
    assert "from pooled training by -25.0 points" in page
    assert "2026-01-02" in page


def test_accuracy_is_drawn_and_told_by_epsilon(tmp_path: Path) -> None:
    by_epsilon = {"8": {"1": summary(0.8, 0.7), "2": summary(0.6, 0.7)}, "none": {"1": summary(0.9, 0.7)}}
    page = render({"utility": {"measured": STAMP, "result": {"demo": by_epsilon, "heart": by_epsilon}}})
    assert "| none | 1 | 20.0 % (20.0 to 20.0) | 10.0 % (10.0 to 10.0) | 50.0 % (50.0 to 50.0) | 90.0 %" in page
    assert "| 8 | 2 |" in page
    assert "70.0 % (60.0 to 80.0)" in page
    draw_utility({"demo": by_epsilon}, tmp_path / "one.svg")
    draw_utility({"demo": by_epsilon, "heart": by_epsilon}, tmp_path / "two.svg")
    panels = [(tmp_path / f"{name}.svg").read_text().count('id="axes_') for name in ("one", "two")]
    assert panels == [1, 2]


def test_an_interrupted_measurement_of_utility_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ran: list[tuple[str, ...]] = []
    kept: list[str] = []

    def run(*overrides: str) -> dict[str, object]:
        ran.append(overrides)
        return summary(0.5, 0.5)

    monkeypatch.setattr(utility, "run", run)
    known = {"demo": {"8": {seed: summary(0.8, 0.7) for seed in ("1", "2", "3")}}}
    found = utility.measure(tmp_path / "heart.jsonl", known=known, keep=lambda found: kept.append(json.dumps(found)))
    assert len(ran) == len(kept) == 21
    assert {(data, epsilon) for data, by in found.items() for epsilon in by} == {
        (data, epsilon) for data in ("demo", "heart") for epsilon in ("none", "8", "3", "1")
    }
    assert found["demo"]["8"] == known["demo"]["8"]
    assert not any("privacy.epsilon=8" in overrides and "experiment=uci_heart" not in overrides for overrides in ran)
    assert all("compare=true" in overrides for overrides in ran)


def test_the_ledger_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "ledger", "--sessions", "5", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["sessions"] == 5
    assert all(value > 0 for value in found.values())
    page = render({"ledger": {"measured": STAMP, "result": found}})
    assert "5 sessions" in page
    assert main(["bench", "ledger", "--sessions", "0"]) == 2
    assert "--sessions is 0" in capsys.readouterr().err


def test_what_was_not_measured_is_not_on_the_page() -> None:
    result = {"accuracy": 0.19, "majority": 0.2, "majority_own": 0.3, "seconds": 1.0}
    page = render({"control": {"measured": STAMP, "result": result}})
    assert "19.0 %" in page
    assert "pooled training" not in page


def test_what_has_changed_since_is_said_beside_the_figures() -> None:
    result = {"accuracy": 0.19, "majority": 0.2, "majority_own": 0.3, "seconds": 1.0}
    page = render({"control": {"measured": {**STAMP, "note": "Since then more noise."}, "result": result}})
    assert "torch 2. Since then more noise." in page
