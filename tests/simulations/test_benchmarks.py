"""The results page is drawn from measured figures alone."""

from __future__ import annotations

from simulations.benchmarks.page import render

STAMP = {"date": "2026-01-02", "versions": "Python 3.11, torch 2"}


def summary(federated: float, own: float) -> dict[str, object]:
    row = {"base": 0.1, "single_own": own, "federated_own": federated, "single": 0.3, "test_examples": 10}
    comparison = {"majority": 0.2, "base": 0.1, "single_best": 0.5, "federated": federated, "pooled": 0.9}
    return {"seconds": 200.0, "epsilon": 7.99, "comparison": {**comparison, "by_hospital": {"north": row}}}


def test_the_worst_seed_is_what_counts() -> None:
    result = {"1": summary(0.80, 0.70), "2": summary(0.65, 0.69)}
    page = render({"demo": {"measured": STAMP, "result": result}})
    assert "beats the best single hospital by +15.0 points" in page
    assert "own patients by -4.0 points at the least" in page
    assert "from pooled training by -25.0 points" in page
    assert "2026-01-02" in page


def test_what_was_not_measured_is_not_on_the_page() -> None:
    result = {"accuracy": 0.19, "majority": 0.2, "majority_own": 0.3, "seconds": 1.0}
    page = render({"control": {"measured": STAMP, "result": result}})
    assert "19.0 %" in page
    assert "demo" not in page


def test_what_has_changed_since_is_said_beside_the_figures() -> None:
    result = {"accuracy": 0.19, "majority": 0.2, "majority_own": 0.3, "seconds": 1.0}
    page = render({"control": {"measured": {**STAMP, "note": "Since then more noise."}, "result": result}})
    assert "torch 2. Since then more noise." in page
