"""A hospital's scores are its held-out patients', one by one, and nothing else of them."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clients import scores, session
from clients.records import Records, read_records
from clients.scores import score_round
from clients.site import Site
from clients.train import Workbench
from fedslm.data.example import Example
from fedslm.errors import DataError, ModelError
from fedslm.flower.records import TrainRequest
from fedslm.governance.plan import Plan, PlannedScores
from fedslm.privacy import noise
from fedslm.privacy.scores import score_range
from tests.builders import SECAGG
from tests.clients.conftest import Ward, by_peft
from tests.clients.table import NAMES, Table, plan_for
from tests.mutants import CAUGHT, Mutant, mutate
from tests.toys import ANSWERS, SYMPTOMS

CANARY = "zq7Xylophone"
Numbers = np.ndarray[Any, Any]


@pytest.fixture(scope="module")
def bench() -> Workbench:
    return Workbench()


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes the noise out."""
    monkeypatch.setattr(noise, "rounded_gaussian", lambda count, **_: np.zeros(count, dtype=np.int64))


def plan_of(ward: Ward, *, sigma: float = 2.0, records: int = 2) -> Plan:
    privacy = dataclasses.replace(
        ward.plan.privacy,
        mode="local",
        epsilon=8.0,
        noise_multiplier=1.5,
        max_records_per_unit=records,
        scores=PlannedScores(noise_multiplier=sigma),
    )
    return dataclasses.replace(ward.plan, privacy=privacy, secagg=SECAGG, min_cohort=3)


def requested(ward: Ward, **more: Any) -> TrainRequest:
    return ward.shifted(plan=plan_of(ward, **more), by=0.3)


class Held(Workbench):
    """A workbench whose hospital holds out these examples."""

    def __init__(self, *examples: Example) -> None:
        super().__init__()
        self._held = Records(train=(), held_out=examples)

    def records(self, site: Site) -> Records:
        return self._held


def example(patient: str, kind: int = 0, answer: int = 0, **more: Any) -> Example:
    prompt = f"Note : the patient has {SYMPTOMS[kind]} Answer :"
    values = {"prompt": prompt, "completion": ANSWERS[answer], "choices": ANSWERS, "patient_id": patient}
    return Example(**{**values, **more})


def unscaled(found: Numbers, plan: Plan) -> list[float]:
    """Right answers less wrong ones by the patient, and patients."""
    return [float(number) for number in found * plan.largest_population * np.sqrt(2)]


def by_hand(ward: Ward, request: TrainRequest, examples: tuple[Example, ...], records: int) -> list[float]:
    """The same through PEFT, one option at a time."""
    model, tokenizer = by_peft(request)
    patients: dict[str | None, list[float]] = {}
    for each in sorted(examples, key=lambda found: found.rank):
        likely = []
        for choice in each.choices:
            start, option = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (each.prompt, choice))
            logits = model(input_ids=torch.tensor([start + option])).logits[0, len(start) - 1 : -1].log_softmax(-1)
            likely.append(sum(logits[place, token].item() for place, token in enumerate(option)))
        kept = patients.setdefault(each.patient_id, [])
        if len(kept) < records:
            kept.append(float(int(np.argmax(likely)) == each.answer_index))
    shares = [sum(kept) / len(kept) for kept in patients.values()]
    return [sum(2 * share - 1 for share in shares), len(shares)]


@pytest.mark.parametrize("records", [1, 2])
def test_without_noise_it_is_the_brute_force_score(records: int, ward: Ward, bench: Workbench, silent: None) -> None:
    request, site = requested(ward, records=records), ward.sites[0]
    expected = by_hand(ward, request, read_records(site).held_out, records)
    assert expected[1] > 4
    found = unscaled(score_round(request, site, bench), request.plan)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_the_adapter_that_is_scored_is_the_one_that_came(ward: Ward, bench: Workbench, silent: None) -> None:
    found = {
        by: tuple(unscaled(score_round(ward.shifted(plan=plan_of(ward), by=by), ward.sites[0], bench), plan_of(ward)))
        for by in (0.01, 0.3, 1.0)
    }
    assert len({right for right, _ in found.values()}) > 1
    wrong = dataclasses.replace(requested(ward), trained={"other": np.zeros(2, np.float32)})
    with pytest.raises(ModelError):
        score_round(wrong, ward.sites[0], bench)


def a_patient_counts_once() -> None:
    """Four records or one: a patient is one patient, with as many records as the plan allows, always the same."""
    many = [example("ann", kind, kind) for kind in range(4)]
    for bound, size in ((2, 2), (9, 4)):
        kept, *others = scores._by_patient(many, bound)
        assert (len(kept), others) == (size, [])
        assert kept == next(scores._by_patient([*many[::-1], example("bob")], bound))
    assert len(list(scores._by_patient([*many, example("bob")], 1))) == 2


def test_a_patient_counts_once_however_many_records_there_are(ward: Ward, silent: None) -> None:
    a_patient_counts_once()
    request = requested(ward)
    one, four = (
        unscaled(score_round(request, ward.sites[0], Held(*records)), request.plan)
        for records in ([example("ann")], [example("ann", kind, kind) for kind in range(4)])
    )
    assert one[1] == pytest.approx(1.0, abs=1e-6)
    assert four[1] == pytest.approx(1.0, abs=1e-6)
    assert max(abs(one[0]), abs(four[0])) <= 1


def test_nobody_else_changes_what_a_patient_says(ward: Ward, silent: None) -> None:
    """A patient with a very long option beside them would, in one batch, take room from everybody's prompts."""
    request = requested(ward)
    ann = example("ann", 2, 1, prompt="Note : " + "the patient has rash " * 6 + "Answer :")
    long = example("bob", completion="lungs " * 25, choices=("lungs " * 25, "skin"))
    alone, other, both = (
        unscaled(score_round(request, ward.sites[0], Held(*records)), request.plan)
        for records in ([ann], [long], [long, ann])
    )
    np.testing.assert_allclose(np.array(both), np.array(alone) + np.array(other), atol=1e-7)


def test_who_has_no_choices_gives_nothing(ward: Ward, silent: None) -> None:
    request = requested(ward)
    free = example("bob", choices=())
    found = unscaled(score_round(request, ward.sites[0], Held(free, example("ann"))), request.plan)
    assert found[1] == pytest.approx(1.0, abs=1e-6)
    assert unscaled(score_round(request, ward.sites[0], Held(free)), request.plan) == [0.0, 0.0]


def test_a_failure_or_a_number_that_is_none_leaves_no_trace(
    ward: Ward, silent: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    request, whole = requested(ward), scores.score_choices
    people = [example("ann"), example("bob", 1, 1), example("carl", 2, 2)]
    left = unscaled(score_round(request, ward.sites[0], Held(people[0])), request.plan)

    def fail(model: Any, tokenizer: Any, records: Any, **more: Any) -> Any:
        score = whole(model, tokenizer, records, **more)
        if records[0].patient_id == "bob":
            raise RuntimeError(CANARY)
        return score if records[0].patient_id == "ann" else dataclasses.replace(score, loss=float("nan"))

    monkeypatch.setattr(scores, "score_choices", fail)
    with caplog.at_level(logging.DEBUG):
        assert unscaled(score_round(request, ward.sites[0], Held(*people)), request.plan) == left
    assert CANARY not in caplog.text
    monkeypatch.setattr(scores, "score_choices", lambda *_, **__: 1 / 0)
    assert unscaled(score_round(request, ward.sites[0], Held(*people)), request.plan) == [0.0, 0.0]


def test_an_interrupted_process_stops(ward: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(scores, "score_choices", stop)
    with pytest.raises(KeyboardInterrupt):
        score_round(requested(ward), ward.sites[0], Held(example("ann")))


def test_noise_is_fresh_for_every_attempt_and_a_seeded_one_comes_again(ward: Ward, bench: Workbench) -> None:
    request, site = requested(ward), ward.sites[0]
    assert site.simulation_seed is not None
    first, again = (score_round(request, site, bench) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    others = [
        score_round(dataclasses.replace(request, attempt=1), site, bench),
        score_round(dataclasses.replace(request, round=3), site, bench),
        score_round(request, dataclasses.replace(site, simulation_seed=None), bench),
    ]
    assert not any(np.array_equal(first, other) for other in others)
    nobody = score_round(request, site, Held())
    assert (nobody != 0).all()
    assert (abs(nobody) <= score_range(request.plan)).all()


# --- what is masked ---------------------------------------------------------------------------------------------------


def scored_table(folder: Path, patch: pytest.MonkeyPatch) -> Table:
    privacy = {"scores": PlannedScores(noise_multiplier=3.0), "noise_multiplier": 2.0}
    return Table(folder, plan_for(privacy=privacy), patch)


def scores_are_not_weighted() -> None:
    """A session of three hospitals of weights 1, 0.5 and 0.25: updates are summed by weight, scores as they are."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        table = scored_table(Path(folder), patch)
        given = {name: np.array([0.125 * place, 0.25]) for place, name in enumerate(NAMES)}
        patch.setattr("clients.scores.score_round", lambda request, site, bench: given[site.hospital])
        table.join()
        total = table.run(1)
        assert len(total) == table.plan.vector_length == table.plan.adapter.trained_parameters + 2
        np.testing.assert_allclose(total[:-2], table.expected(), atol=1e-6)
        np.testing.assert_allclose(total[-2:], sum(given.values()), atol=1e-6)


def test_scores_ride_behind_the_update_without_a_weight() -> None:
    scores_are_not_weighted()


def test_a_hospital_without_scores_in_hand_sends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = scored_table(tmp_path, monkeypatch)
    monkeypatch.setattr("clients.scores.score_round", lambda request, site, bench: None)
    table.join()
    opened = table.start(1)
    assert set(opened.refused.values()) == {"BOUND_BROKEN"}


def test_a_failing_adapter_or_file_is_a_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise DataError(CANARY)

    table = scored_table(tmp_path, monkeypatch)
    monkeypatch.setattr("clients.scores.score_round", fail)
    table.join()
    assert set(table.start(1).refused.values()) == {"DATA_UNUSABLE"}
    assert all(CANARY not in str(reply) for _, _, reply in table.replies)


MUTANTS = [
    Mutant(
        name="a bound on records in the place of patients",
        function=scores._by_patient,
        old="patients.setdefault(example.patient_id, [])",
        new="patients.setdefault(example.patient_id + example.rank, [])",
        check=a_patient_counts_once,
    ),
    Mutant(
        name="all records of a patient",
        function=scores._by_patient,
        old="[:bound]",
        new="",
        check=a_patient_counts_once,
    ),
    Mutant(
        name="scores weighted like updates",
        function=session.Part._encoded,
        old="np.concatenate([vector, scores])",
        new="np.concatenate([vector, scores * self._plan.hospital(self._agreement.hospital).weight])",
        check=scores_are_not_weighted,
    ),
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_the_check_fails_on_the_mutant(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    mutate(monkeypatch, mutant)
    with pytest.raises(CAUGHT):
        mutant.check()


# --- sides ------------------------------------------------------------------------------------------------------------


def test_a_hospital_with_a_patient_on_both_sides_stays_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = scored_table(tmp_path, monkeypatch)
    sides = Records(train=(example("ann"),), held_out=(example("ann", 1),))
    monkeypatch.setattr("tests.clients.table._NoModel.records", lambda bench, site: sides)
    table.join()
    assert set(table.start(1).refused.values()) == {"DATA_UNUSABLE"}
    assert table.trained == []
    logs = json.dumps([str(reply) for _, _, reply in table.replies])
    assert "ann" not in logs
