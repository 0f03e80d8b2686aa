"""`fedslm audit plan`: what it costs, how much a budget affords, which noise is needed; as the accountant says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fedslm.cli import main
from fedslm.governance.plan import PlannedHospital
from fedslm.privacy.accounting import EpsilonCurve, calibrate_noise_multiplier
from fedslm.privacy.mechanism import Mechanism
from fedslm.reporting.audit.afford import Question, plot
from fedslm.reporting.audit.charts import ticks
from fedslm.reporting.audit.odds import guess
from tests.builders import UNPRIVATE, masked_plan

Run = Callable[..., tuple[int, str, str]]
SHAPE = "--population 400 --sample-rate 0.05 --steps 2"
MECHANISM = Mechanism(
    unit="patient", sample_rate=0.05, clip_norm=1.0, noise_multiplier=1.25, steps=2, declared_population=400
)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.chdir(tmp_path)

    def call(line: str) -> tuple[int, str, str]:
        code = main(["audit", "plan", *line.split()])
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No noise is calibrated: that takes seconds, and is not what most tests look at."""
    monkeypatch.setattr("fedslm.reporting.audit.afford.noise_for", lambda **_: 1.25)
    monkeypatch.setattr("fedslm.reporting.audit.afford.TARGETS", (1.0, 4.0))


@pytest.mark.usefixtures("quick")
def test_the_costs_are_the_accountants(run: Run) -> None:
    code, out, err = run(f"{SHAPE} --sessions 12 --sigma 1.25 --json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    curve = EpsilonCurve(MECHANISM, delta=1e-6)
    assert [row["sessions"] for row in found["costs"]] == [1, 2, 5, 10, 12]
    for row in found["costs"]:
        assert row["epsilon"] == curve.epsilon(row["sessions"])
        assert row["guess"] == guess(row["epsilon"], 1e-6)
    assert found["epsilon"] == found["costs"][-1]["epsilon"]
    assert found["by_noise"]["guess"] < found["guess"]
    for row in found["affordable"]:
        assert curve.epsilon(row["sessions"]) <= row["epsilon"] < curve.epsilon(row["sessions"] + 1)


def test_the_noise_is_the_accountants(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedslm.reporting.audit.afford.TARGETS", (2.0,))
    found = json.loads(run(f"{SHAPE} --sessions 12 --epsilon 3 --delta 1e-5 --json")[1])
    shape = {"sample_rate": 0.05, "steps": 24, "declared_population": 400}
    assert found["noise_multiplier"] == calibrate_noise_multiplier(epsilon=3.0, delta=1e-5, **shape)
    assert found["epsilon"] <= 3.0
    assert [row["epsilon"] for row in found["noise"]] == [2.0, 3.0]
    assert found["noise"][1]["noise_multiplier"] == found["noise_multiplier"]
    noises = [row["noise_multiplier"] for row in found["noise"]]
    assert noises == sorted(noises, reverse=True)
    assert next(row["sessions"] for row in found["affordable"] if row["epsilon"] == 3.0) == 12


@pytest.mark.usefixtures("quick")
def test_people_get_the_answers_in_words(run: Run) -> None:
    code, out, _ = run(f"{SHAPE} --sessions 12 --sigma 1.25")
    assert code == 0
    for words in (
        "each patient",
        "What would it cost?",
        "How many sessions can I afford",
        "Which sigma",
        "In plain words",
    ):
        assert words in out
    assert max(len(line) for line in out.splitlines()) <= 120


@pytest.mark.usefixtures("quick")
def test_a_plan_answers_for_itself(run: Run, tmp_path: Path) -> None:
    hospitals = (
        PlannedHospital(name="small", declared_population=100, weight=1.0),
        PlannedHospital(name="large", declared_population=400, weight=1.0),
        PlannedHospital(name="other", declared_population=200, weight=1.0),
    )
    plan = masked_plan(hospitals=hospitals, privacy={"delta": 1e-5, "epsilon": 9.0})
    (tmp_path / "plan.json").write_bytes(plan.to_bytes())
    found = json.loads(run("--plan plan.json --json")[1])
    assert (found["declared_population"], found["sessions"], found["delta"]) == (400, 3, 1e-5)
    assert (found["noise_multiplier"], found["target_epsilon"]) == (1.5, 9.0)
    small = json.loads(run("--plan plan.json --hospital small --json")[1])
    assert small["declared_population"] == 100
    code, _, err = run("--plan plan.json --hospital nobody")
    assert code == 2
    assert "nobody" in err


def test_a_plan_without_privacy_has_no_bound(run: Run, tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_bytes(masked_plan(privacy=UNPRIVATE).to_bytes())
    code, out, _ = run("--plan plan.json")
    assert code == 0
    assert out.startswith("NO BOUND")
    assert json.loads(run("--plan plan.json --json")[1]) == {
        "is_bounded": False,
        "epsilon": None,
        "guess": 1.0,
        "recognised": 1.0,
    }
    code, _, err = run("--plan plan.json --plot plot.png")
    assert code == 2
    assert "nothing to draw" in err


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("name", "start"), [("plot.png", b"\x89PNG"), ("PLOT.SVG", b"<?xml")])
def test_the_plot_is_written_and_the_same_each_time(run: Run, tmp_path: Path, name: str, start: bytes) -> None:
    code, out, _ = run(f"{SHAPE} --sessions 2 --sigma 1.25 --plot {name}")
    assert code == 0
    assert f"Wrote {name}." in out
    first = (tmp_path / name).read_bytes()
    assert first.startswith(start)
    plot(tmp_path / name, Question(mechanism=MECHANISM, sessions=2, delta=1e-6))
    assert (tmp_path / name).read_bytes() == first


@pytest.mark.parametrize(
    ("line", "named"),
    [
        (f"{SHAPE} --sessions 12", "found neither"),
        (f"{SHAPE} --sessions 12 --epsilon 3 --sigma 1", "found both"),
        ("--sample-rate 0.05 --steps 2 --sessions 12 --sigma 1", "--population is missing"),
        (f"{SHAPE} --sessions 0 --sigma 1", "--sessions=0"),
        (f"{SHAPE} --sessions many --sigma 1", "--sessions=many"),
        (f"{SHAPE} --sessions 12 --sigma -1", "--sigma=-1"),
        (f"{SHAPE} --sessions 12 --sigma nan", "--sigma=nan"),
        (f"{SHAPE} --sessions 12 --sigma 1 --delta 0.01", "2.5e-05 = 1/(100 * 400)"),
        (f"{SHAPE} --sessions 12 --epsilon 1e-9", "No noise multiplier"),
        (f"{SHAPE} --sessions 12 --sigma 1 --plot plot.pdf", "plot.pdf ends in .pdf"),
        (f"{SHAPE} --sessions 12 --sigma 1 --plot gone/plot.png", "gone/plot.png cannot be written"),
        ("--plan gone.json", "gone.json cannot be read"),
        (f"{SHAPE} --plan plan.json", "--population and --plan are both given"),
        (f"{SHAPE} --sessions 12 --sigma 1 --budget 3", "There is no option '--budget' here"),
        (f"{SHAPE} --sessions 12 --sigma 1 word", "found word"),
        (f"{SHAPE} --sessions 12 --sigma 1 --hospital north", "--hospital is of a plan"),
    ],
)
def test_wrong_use_is_one_sentence(run: Run, line: str, named: str) -> None:
    code, out, err = run(line)
    assert (code, out) == (2, "")
    assert named in err
    assert err.count("\n") == 1


def test_an_action_has_to_be_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", "--help"]) == 0
    assert "usage: fedslm audit plan" in capsys.readouterr().out
    assert main(["audit"]) == 2
    assert "plan or verify or report" in capsys.readouterr().err


@pytest.mark.parametrize(("count", "expected"), [(1, (1,)), (2, (1, 2)), (7, (1, 2, 5, 7)), (10, (1, 2, 5, 10))])
def test_a_table_has_round_numbers_and_the_one_asked_for(count: int, expected: tuple[int, ...]) -> None:
    assert ticks(count) == expected
