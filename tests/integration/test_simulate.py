"""A whole federation on one machine: what it writes, how it goes on after a break, and how it ends when it cannot."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import fedslm
from fedslm.cli import main
from fedslm.config.compose import compose
from fedslm.reporting.events import Event, read_events
from server.run_folder import RunFolder
from simulations.consortium import gather
from simulations.run import RunResult, simulate

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[2]
CANARY = "zq7Xylophone"
Settings = Callable[..., list[str]]


class Once:
    """A view that does something at the first event that fits."""

    def __init__(self, act: Callable[[Event], None], *, kind: str, number: int | None = None) -> None:
        self.seen: list[Event] = []
        self._act: Callable[[Event], None] | None = act
        self._kind, self._number = kind, number

    def __enter__(self) -> Once:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def notify(self, event: Event) -> None:
        self.seen.append(event)
        if self._act and event.kind == self._kind and self._number in (None, event.fields.get("round")):
            act, self._act = self._act, None
            act(event)


def interrupt(_: Event) -> None:
    raise KeyboardInterrupt


def adapter(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def differing(one: Path, other: Path) -> list[str]:
    first, second = adapter(one), adapter(other)
    assert set(first) == set(second)
    return [name for name in first if not np.array_equal(first[name], second[name])]


def summary(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "summary.json").read_text()))


def kinds(folder: Path) -> list[str]:
    return [event.kind for event in read_events(folder / "events.jsonl")]


def values(path: Path) -> str:
    """Every byte of every file below a folder, but the hospitals' local log."""
    return b"".join(
        file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file() and file.name != "incidents.log"
    ).decode(errors="replace")


@pytest.fixture(scope="module")
def private(toys: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """One run with privacy, which several tests look at."""
    from tests.toys import toy_overrides

    folder = tmp_path_factory.mktemp("private") / "run"
    return fedslm.simulate(toy_overrides(toys, f"run_folder={folder}"))


def start(arguments: list[str], folder: Path, **settings: Any) -> subprocess.Popen[str]:
    """Starts the command as a shell would."""
    return subprocess.Popen(
        [sys.executable, "-m", "fedslm", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **settings,
    )


def wait_for(path: Path, process: subprocess.Popen[str], *, timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


# --- a run that goes well ---------------------------------------------------------------------------------------------


def test_a_run_tells_its_story_in_order(private: RunResult) -> None:
    story = [event.kind for event in private.events]
    one_session = ["session_started", *["hospital_trained"] * 3, *["hospital_masked"] * 3]
    one_round = ["round_started", *one_session, "checkpoint_written", "round_finished", "scored"]
    assert story == ["run_started", *["hospital_joined"] * 3, *one_round * 3, "run_finished"]
    assert tuple(read_events(private.folder / "events.jsonl")) == private.events
    assert [event.time for event in private.events] == sorted(event.time for event in private.events)
    epsilons = [event.fields["epsilon"] for event in private.events if event.kind == "round_finished"]
    assert epsilons == sorted(epsilons)
    assert 0 < epsilons[0] < epsilons[-1] <= 20


def test_the_summary_says_what_was_guaranteed_and_what_was_not(private: RunResult) -> None:
    found = summary(private.folder)
    assert found == dict(private.summary)
    assert found["status"] == "finished"
    assert 15 < found["epsilon"] < 20  # 20 after the sessions that were not needed
    assert found["sessions"] == 3
    assert (found["delta"], found["unit"], found["privacy"], found["rounds"]) == (1e-5, "patient", "local", 3)
    assert found["masked"] is True
    assert "1 may drop out" in found["bound"]
    assert found["notice"].startswith("Updates are encrypted")
    assert found["seeded"] is True
    assert found["seconds"] > 0
    assert 50e6 < found["peak_rss_bytes"] < 100e9
    assert found["hospitals"] == ["hospital-0", "hospital-1", "hospital-2"]


def test_the_adapter_loads_with_peft_and_changes_the_model(private: RunResult, toys: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    ids = torch.tensor([[13, 15, 16, 17, 18, 4]])
    base = AutoModelForCausalLM.from_pretrained(toys / "model")
    before = base(input_ids=ids).logits.detach()
    after = PeftModel.from_pretrained(base, private.adapter)(input_ids=ids).logits.detach()
    assert (after - before).abs().max() > 1e-3


def test_the_model_card_says_what_the_adapter_must_not_be_taken_for(private: RunResult) -> None:
    card = (private.adapter / "README.md").read_text()
    assert "epsilon 20, delta 1e-05" in card
    assert "seeded simulation" in card
    assert "Not a medical device" in card
    assert "Secure aggregation: on. The coordinator read only sums of updates" in card


def test_nothing_on_disk_is_a_patients_text(private: RunResult) -> None:
    assert "the patient has" not in values(private.folder)


def test_only_the_json_is_on_stdout(unprivate: Settings, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["simulate", "--json", *unprivate("rounds=1")]) == 0
    out, _ = capfd.readouterr()
    assert json.loads(out) == summary(tmp_path / "run")


def test_a_run_without_privacy_says_so_loudly(
    unprivate: Settings, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for flags in ([], ["--quiet"]):
        folder = tmp_path / f"run{len(flags)}"
        assert main(["simulate", *flags, *unprivate("rounds=1", f"run_folder={folder}")]) == 0
        out, _ = capfd.readouterr()
        assert "PRIVACY OFF" in out
    found = summary(folder)
    assert (found["privacy"], found["epsilon"], found["noise_multiplier"]) == ("none", None, 0.0)
    assert "Privacy: NONE" in (folder / "adapter" / "README.md").read_text()


def test_a_run_in_the_clear_says_so_loudly(
    unprivate: Settings, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["simulate", *unprivate("rounds=1", "secagg=none")]) == 0
    out, _ = capfd.readouterr()
    assert "NOT ENCRYPTED: the coordinator could read each hospital's update." in out
    run = tmp_path / "run"
    assert summary(run)["masked"] is False
    assert "NOT encrypted" in summary(run)["notice"]
    assert "OFF. The coordinator could read every hospital's update." in (run / "adapter" / "README.md").read_text()
    assert not list(run.rglob("roster.json"))  # its ledgers have keys, and nobody to show them to


@pytest.mark.parametrize("strategy", ["fedavg", "fedavgm", "fedprox", "fedadagrad", "fedadam", "fedyogi"])
def test_every_strategy_runs(strategy: str, unprivate: Settings) -> None:
    result = simulate(unprivate(f"strategy={strategy}", "rounds=2", "training=local_sgd", "training.local_steps=2"))
    assert result.summary["status"] == "finished"
    assert any(array.any() for name, array in adapter(result.folder).items() if "lora_B" in name)


@pytest.mark.parametrize(("method", "halves"), [("ffa", 1), ("full", 2)])
def test_ffa_sends_one_matrix_and_full_sends_both(method: str, halves: int, unprivate: Settings) -> None:
    result = simulate(unprivate(f"adapter={method}", "adapter.rank=4", "rounds=2"))
    arrays = adapter(result.folder)
    sent = [name for name in arrays if method == "full" or "lora_B" in name]
    (bytes_up,) = {event.fields["bytes_up"] for event in result.events if event.kind == "hospital_masked"}
    numbers = 4 * sum(arrays[name].size for name in sent)
    assert numbers <= bytes_up <= numbers + 100
    initial = load_file(result.folder / "checkpoints" / "round-00000" / "adapter_model.safetensors")
    moved = [name for name in arrays if not np.array_equal(arrays[name], initial[name])]
    assert {name.split(".")[-2] for name in moved} == set(["lora_B", "lora_A"][:halves])


def test_a_run_learns_what_can_be_learned_and_nothing_from_shuffled_answers(
    unprivate: Settings, tmp_path: Path
) -> None:
    last = {}
    for shuffled in ("false", "true"):
        more = (
            f"data.shuffle_labels={shuffled}",
            f"run_folder={tmp_path / shuffled}",
            "rounds=20",
            "strategy.eta=0.05",
        )
        result = simulate(unprivate(*more, "adapter.rank=16", "privacy.sample_rate=1", "evaluation.every_rounds=0"))
        last[shuffled] = [event.fields["accuracy"] for event in result.events if event.kind == "scored"]
    assert len(last["false"]) == 1
    assert last["false"][0] > 0.9
    assert last["true"][0] < 0.6


def test_the_comparison_has_its_keys_and_can_be_asked_for_later(unprivate: Settings, tmp_path: Path) -> None:
    first = simulate(unprivate("rounds=2"))
    assert "comparison" not in first.summary
    found = simulate([f"resume={first.folder}", "compare=true"]).summary["comparison"]
    assert {"base", "single_best", "single_own", "federated", "pooled", "majority"} <= set(found)
    assert all(0 <= found[key] <= 1 for key in ("base", "single_best", "federated", "pooled", "majority"))
    assert set(found["single_own"]) == set(first.summary["hospitals"])
    compared = [event.fields["name"] for event in read_events(first.folder / "events.jsonl") if "name" in event.fields]
    assert {"hospital-0", "hospital-1", "hospital-2", "all hospitals pooled"} == set(compared)
    assert summary(first.folder)["comparison"] == found


def test_hospitals_pooled_are_trained_at_the_delta_that_so_many_patients_need(settings: Settings) -> None:
    overrides = settings("rounds=1", "compare=true", "evaluation.every_rounds=0")
    largest = 1 / (100 * max(gather(compose(overrides)).population.values()))
    result = simulate([*overrides, f"privacy.delta={largest!r}"])
    assert 0 <= result.summary["comparison"]["pooled"] <= 1
    plans = [RunFolder(path.parent).plan() for path in result.folder.glob("comparison/*/plan.json")]
    deltas = {plan.names[0]: plan.privacy.delta for plan in plans}
    assert deltas.pop("all hospitals pooled") < largest
    assert sorted(deltas.values())[-1] == largest


def test_a_plan_is_printed_per_hospital_and_runs_nothing(
    settings: Settings, capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plan", "--json", *settings()]) == 0
    found = json.loads(capfd.readouterr().out)
    assert set(found["hospitals"]) == {"hospital-0", "hospital-1", "hospital-2"}
    for row in found["hospitals"].values():
        assert {"epsilon", "noise_multiplier", "bytes_up", "bytes_down", "memory_bytes", "seconds"} <= set(row)
        assert 0 < row["epsilon"] <= 20
        assert row["bytes_up"] > 3 * 4 * found["adapter_parameters"]
        assert row["bytes_down"] > row["bytes_up"]
    assert list(tmp_path.iterdir()) == []


def test_the_plan_that_is_printed_is_the_plan_that_runs(
    private: RunResult, settings: Settings, capfd: pytest.CaptureFixture[str]
) -> None:
    main(["plan", "--json", *settings()])
    assert json.loads(capfd.readouterr().out)["plan_sha256"] == private.summary["plan_sha256"]


# --- the same run again -----------------------------------------------------------------------------------------------


def test_a_seed_means_one_adapter(private: RunResult, settings: Settings, tmp_path: Path) -> None:
    torch.manual_seed(99)
    again = simulate(settings())
    other = simulate(settings("seed=2", f"run_folder={tmp_path / 'other'}"))
    assert differing(private.folder, again.folder) == []
    assert differing(private.folder, other.folder)
    assert again.summary["plan_sha256"] == private.summary["plan_sha256"] != other.summary["plan_sha256"]


@pytest.mark.parametrize("kind", ["round_finished", "checkpoint_written", "hospital_trained", "round_started"])
def test_an_interrupted_run_ends_bit_for_bit_where_an_unbroken_one_does(
    kind: str, unprivate: Settings, tmp_path: Path
) -> None:
    whole = simulate(unprivate("rounds=4", "privacy.sample_rate=0.5", f"run_folder={tmp_path / 'whole'}"))
    with pytest.raises(KeyboardInterrupt):
        simulate(unprivate("rounds=4", "privacy.sample_rate=0.5"), view=Once(interrupt, kind=kind, number=2))
    run = tmp_path / "run"
    assert summary(run)["status"] == "interrupted"
    assert kinds(run)[-1] == "run_interrupted"
    resumed = simulate([f"resume={run}"])
    assert resumed.summary["status"] == "finished"
    assert differing(whole.folder, run) == []
    done = 2 if kind in ("round_finished", "checkpoint_written") else 1
    assert [event.fields["first_round"] for event in resumed.events if event.kind == "run_started"] == [1, done + 1]


def test_a_killed_private_run_ends_bit_for_bit_where_an_unbroken_one_does(settings: Settings, tmp_path: Path) -> None:
    whole = simulate(settings("rounds=4", f"run_folder={tmp_path / 'whole'}"))
    run = tmp_path / "run"
    process = start(["simulate", *settings("rounds=4")], tmp_path)
    wait_for(run / "checkpoints" / "round-00002", process)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (run / "adapter").exists()
    resumed = simulate([f"resume={run}"])
    assert differing(whole.folder, run) == []
    assert resumed.summary["epsilon"] == whole.summary["epsilon"]


@pytest.mark.parametrize("flags", [[], ["--json"], ["--quiet"]], ids=str)
def test_ctrl_c_ends_with_130_and_says_how_to_go_on(flags: list[str], unprivate: Settings, tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = start(["simulate", *flags, *unprivate("rounds=10000", "evaluation.every_rounds=0")], tmp_path)
    wait_for(run / "checkpoints" / "round-00002", process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert f"fedslm simulate resume={run}" in out + err
    assert "Traceback" not in err
    assert "json" not in str(flags) or out == ""
    assert summary(run)["status"] == "interrupted"
    assert summary(run)["rounds"] >= 2


def test_a_resumed_run_keeps_its_plan(unprivate: Settings, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    first = simulate(unprivate("rounds=1"))
    assert main(["simulate", f"resume={first.folder}", "rounds=5", "adapter.rank=8"]) == 2
    err = capfd.readouterr().err
    assert "rounds is 1 in the run, 5 asked" in err
    assert "adapter.rank is 4 in the run, 8 asked" in err
    assert summary(first.folder)["status"] == "finished"


def test_resuming_a_finished_run_changes_nothing(unprivate: Settings) -> None:
    first = simulate(unprivate("rounds=1"))
    before = {name: array.copy() for name, array in adapter(first.folder).items()}
    again = simulate([f"resume={first.folder}"])
    assert again.summary["status"] == "finished"
    assert all(np.array_equal(array, before[name]) for name, array in adapter(again.folder).items())


def test_there_is_nothing_to_resume_where_no_run_is(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for folder in (tmp_path / "missing", tmp_path):
        assert main(["simulate", f"resume={folder}"]) == 2
        assert f"{folder} holds no run" in capfd.readouterr().err
    assert main(["simulate", "resume="]) == 2


def test_a_folder_holds_one_run(unprivate: Settings, capfd: pytest.CaptureFixture[str]) -> None:
    first = simulate(unprivate("rounds=1"))
    before = values(first.folder)
    assert main(["simulate", *unprivate("rounds=1")]) == 2
    assert "holds a run already" in capfd.readouterr().err
    with RunFolder(first.folder) as other:
        other.open()
        assert main(["simulate", f"resume={first.folder}"]) == 2
        assert "Another process is running" in capfd.readouterr().err
    assert values(first.folder) == before


# --- a run that does not go well --------------------------------------------------------------------------------------


def failing(names: set[str], error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes some hospitals' training raise."""
    from clients import train

    whole = train.train_round

    def train_round(request: Any, site: Any, bench: Any) -> Any:
        if site.hospital in names:
            raise error
        return whole(request, site, bench)

    monkeypatch.setattr(train, "train_round", train_round)


def test_a_hospital_that_fails_drops_out_and_the_round_goes_on(
    unprivate: Settings, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    failing({"hospital-1"}, ValueError(CANARY), monkeypatch)
    assert main(["simulate", *unprivate("rounds=2")]) == 0
    out, err = capfd.readouterr()
    assert "hospital-1" in out
    assert "FAILED" in out
    events = read_events(tmp_path / "run" / "events.jsonl")
    dropped = [event.fields for event in events if event.kind == "hospital_dropped"]
    assert [dict(fields) for fields in dropped] == [
        {"round": number, "hospital": "hospital-1", "code": "FAILED", "step": "train"} for number in (1, 2)
    ]
    survivors = {event.fields["survivors"] for event in events if event.kind == "round_finished"}
    assert survivors == {("hospital-0", "hospital-2")}
    assert summary(tmp_path / "run")["status"] == "finished"
    assert CANARY not in out + err + values(tmp_path / "run")
    assert CANARY in (tmp_path / "run" / "sites" / "incidents.log").read_text()


def test_a_hospital_that_fails_leaves_the_others_as_they_are(
    unprivate: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    one_round = (
        "rounds=1",
        "strategy=fedavg",
        "min_cohort=1",
        "secagg=none",
        "privacy.sample_rate=1",
        "privacy.max_records_per_unit=2",
    )

    def without(*names: str) -> Path:
        run = tmp_path / "-".join(names)
        with monkeypatch.context() as patch:
            failing(set(names), ValueError(), patch)
            return simulate(unprivate(*one_round, f"run_folder={run}")).folder

    both, first, third = (
        without(*names) for names in (["hospital-1"], ["hospital-1", "hospital-2"], ["hospital-0", "hospital-1"])
    )
    weights = {hospital.name: hospital.weight for hospital in RunFolder(both).plan().hospitals}
    w0, w2 = weights["hospital-0"], weights["hospital-2"]
    for name, array in adapter(both).items():
        mean = (w0 * adapter(first)[name] + w2 * adapter(third)[name]) / (w0 + w2)
        np.testing.assert_allclose(array, mean, rtol=1e-4, atol=1e-7)
    assert differing(both, first)


def test_too_few_hospitals_end_the_run_with_4(
    unprivate: Settings, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    failing({"hospital-0", "hospital-1", "hospital-2"}, RuntimeError(CANARY), monkeypatch)
    assert main(["simulate", *unprivate()]) == 4
    out, err = capfd.readouterr()
    assert "hospital-0 (FAILED in train), hospital-1 (FAILED in train), hospital-2 (FAILED in train)" in err
    assert summary(tmp_path / "run")["status"] == "failed"
    assert kinds(tmp_path / "run")[-1] == "run_failed"
    assert CANARY not in out + err + values(tmp_path / "run")


def test_a_run_that_failed_for_want_of_hospitals_goes_on_when_they_are_back(
    unprivate: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = simulate(unprivate(f"run_folder={tmp_path / 'whole'}"))
    with monkeypatch.context() as patch:
        failing({"hospital-0", "hospital-1"}, RuntimeError(), patch)
        assert main(["simulate", *unprivate()]) == 4
    simulate([f"resume={tmp_path / 'run'}"])
    assert differing(whole.folder, tmp_path / "run") == []


def write_rows(path: Path, hospitals: dict[str, int], **changes: Any) -> str:
    rows = [
        {
            "prompt": "the patient has fever",
            "completion": "lungs",
            "options": ["lungs", "skin"],
            "hospital": hospital,
            "patient_id": f"{hospital}-{number}",
            **changes,
        }
        for hospital, patients in hospitals.items()
        for number in range(patients)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"data.path={path}"


@pytest.mark.parametrize(
    ("hospitals", "changes", "more", "code", "sentence"),
    [
        ({"north": 9}, {}, [], 2, "hospitals in the data is 1"),
        ({}, {}, [], 2, "hospitals in the data is 0"),
        ({"a": 9, "b": 9, "c": 9}, {}, ["min_cohort=4"], 2, "min_cohort=4 but the data has 3 hospitals"),
        ({"a": 9, "b": 9}, {}, [], 2, "needs at least 3 hospitals, there are 2"),
        ({"a": 9, "b": 1, "c": 9}, {}, ["data.held_out_fraction=0.99"], 1, "has no records to train on"),
        (
            {"a": 9, "b": 9, "c": 9},
            {"patient_id": None},
            [],
            1,
            "have no patient id, and the privacy unit is the patient",
        ),
        ({"a": 9, "Zürich": 9}, {}, [], 2, "hospital column, 6 characters long, is not a name"),
        ({"a": 9, CANARY * 9: 9}, {}, [], 2, "hospital column, 108 characters long, is not a name"),
        ({"a": 9, "b": 9, "": 9}, {}, [], 2, "hospital column, 0 characters long, is not a name"),
        ({"a": 9, "b": 9, "c": 9}, {"prompt": "  ", "note": CANARY}, [], 1, "line 1: An example has an empty prompt"),
        (
            {"a": 9, "b": 9, "c": 9},
            {"completion": CANARY},
            [],
            1,
            "line 1: The answer is not among the row's 2 choices",
        ),
        ({"a": 9, "b": 9, "c": 9}, {"options": CANARY}, [], 1, "line 1: column 'options' must be a list"),
        ({"a": 9, "b": 9, "c": 9}, {}, ["data.columns.choices=null", "compare=true"], 2, "compare=true"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_data_that_cannot_be_used_is_one_sentence(
    hospitals: dict[str, int],
    changes: dict[str, Any],
    more: list[str],
    code: int,
    sentence: str,
    unprivate: Settings,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", hospitals, **changes)
    assert main(["simulate", *unprivate(rows, *more)]) == code
    out, err = capfd.readouterr()
    assert sentence in err
    assert err.startswith("fedslm: ")
    assert "Traceback" not in err
    assert err.count("\n") == 1
    assert CANARY not in out + err
    assert not (tmp_path / "run").exists()


def test_delta_above_what_the_population_allows_is_refused(
    settings: Settings, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", *settings("privacy.delta=0.01")]) == 2
    assert "privacy.delta=0.01 is above" in capfd.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_record_that_turns_bad_during_a_run_stays_at_the_hospital(
    unprivate: Settings, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", {"a": 9, "b": 9, "c": 9})

    def spoil(_: Event) -> None:
        with (tmp_path / "rows.jsonl").open("a") as file:
            file.write(f'{{"prompt": "{CANARY}\n')

    view = Once(spoil, kind="run_started")
    with pytest.raises(fedslm.errors.FedSLMError) as stopped:
        simulate(unprivate(rows), view=view)
    assert stopped.value.exit_code == 4
    codes = {event.fields["code"] for event in view.seen if event.kind == "hospital_dropped"}
    assert codes == {"DATA_UNUSABLE"}
    assert CANARY not in repr(view.seen) + "".join(capfd.readouterr()) + str(stopped.value)
    assert CANARY not in values(tmp_path / "run")
    assert "line 28 is not JSON" in (tmp_path / "run" / "sites" / "incidents.log").read_text()


@pytest.mark.parametrize(
    ("overrides", "code", "named"),
    [
        (["secagg=none", "training.learning_rate=1e30", "strategy=fedavg"], 1, "round 1 gives no finite loss"),
        (
            ["secagg=none", "training.learning_rate=1e30", "strategy=fedavg", "evaluation.every_rounds=0"],
            4,
            "0 of 3 hospitals",
        ),
        (["secagg=none", "training.learning_rate=1e39", "strategy=fedavg"], 4, "0 of 3 hospitals answered"),
        (["training.learning_rate=1e30", "strategy=fedavg"], 4, "hospital-0 (OUT_OF_RANGE in train)"),
        (["strategy.eta=1e39"], 1, "not finite after round 1; lower strategy.eta"),
    ],
    ids=lambda value: str(value),
)
def test_numbers_that_run_away_end_in_a_sentence(
    overrides: list[str], code: int, named: str, unprivate: Settings, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["simulate", *unprivate(*overrides)]) == code
    err = capfd.readouterr().err
    assert named in err
    assert "Traceback" not in err
    assert summary(tmp_path / "run")["status"] == "failed"
    last = RunFolder(tmp_path / "run").latest()
    assert all(np.isfinite(array).all() for array in last.adapter.values())


def test_a_disk_that_fills_up_ends_in_a_sentence_and_can_be_gone_on_from(
    unprivate: Settings, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from tests.server.test_checkpoints import full_disk

    whole = simulate(unprivate(f"run_folder={tmp_path / 'whole'}"))
    with full_disk(6000):
        assert main(["simulate", "--json", *unprivate("rounds=3")]) == 1
    err = capfd.readouterr().err
    assert "cannot be written" in err
    assert "Traceback" not in err
    if (tmp_path / "run" / "plan.json").exists():
        simulate([f"resume={tmp_path / 'run'}"])
        assert differing(whole.folder, tmp_path / "run") == []
