"""The update is what the plan's steps say, from the plan's adapter, and from nobody else's."""

from __future__ import annotations

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clients import train
from clients.records import read_records
from clients.site import Site
from clients.streams import STEP, open_stream
from clients.train import Units, Workbench, draw, train_round
from fedslm.crypto.prg import SecureStream
from fedslm.data.example import Example
from fedslm.errors import DataError, ModelError
from fedslm.flower.records import TrainRequest
from fedslm.governance.plan import Plan
from fedslm.privacy.gradients import Batch
from fedslm.privacy.planned import planned_mechanism
from tests.clients.conftest import Ward, by_peft


def changed(plan: Plan, part: str, **values: Any) -> Plan:
    return dataclasses.replace(plan, **{part: dataclasses.replace(getattr(plan, part), **values)})


@pytest.fixture(scope="module")
def bench() -> Workbench:
    return Workbench()


def gradient_by_hand(ward: Ward, site: Site, request: TrainRequest) -> dict[str, np.ndarray[Any, Any]]:
    """The gradient of the mean over examples of the mean loss per answer token, one example at a time, through PEFT."""
    model, tokenizer = by_peft(request)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_B" in name)
    examples = read_records(site).train
    for example in examples:
        prompt, answer = (
            tokenizer(text, add_special_tokens=False)["input_ids"] for text in (example.prompt, example.completion)
        )
        logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        (torch.nn.functional.cross_entropy(logits, torch.tensor(answer)) / len(examples)).backward()
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {name.replace(".default.", "."): parameter.grad.numpy() for name, parameter in trained.items()}


@pytest.mark.parametrize("physical_batch_size", [3, 1000])
def test_one_step_without_privacy_is_plain_gradient_descent(
    ward: Ward, bench: Workbench, physical_batch_size: int
) -> None:
    site = dataclasses.replace(ward.sites[0], physical_batch_size=physical_batch_size)
    request = ward.shifted(plan=changed(ward.plan, "training", learning_rate=0.5))
    update, expected = train_round(request, site, bench), gradient_by_hand(ward, site, request)
    assert set(update) == set(expected) == set(request.trained)
    for name, gradient in expected.items():
        np.testing.assert_allclose(update[name], -0.5 * gradient, rtol=1e-3, atol=2e-7)
        assert update[name].dtype == np.float32
    assert max(np.abs(gradient).max() for gradient in expected.values()) > 1e-4


def test_the_pull_of_fedprox_is_towards_the_global_adapter(ward: Ward, bench: Workbench) -> None:
    def update(steps: int, mu: float) -> dict[str, np.ndarray[Any, Any]]:
        plan = changed(ward.plan, "training", local_steps=steps, proximal_mu=mu, learning_rate=0.5)
        return train_round(ward.shifted(plan=plan), ward.sites[0], bench)

    one, two, pulled = update(1, 0.0), update(2, 0.0), update(2, 0.3)
    for name in one:
        np.testing.assert_array_equal(update(1, 0.3)[name], one[name])  # at the start there is nothing to pull back
        # The second step is -0.5 * (gradient + 0.3 * (where one step led)), and the gradients are equal.
        np.testing.assert_allclose(pulled[name], two[name] - 0.5 * 0.3 * one[name], rtol=1e-3, atol=2e-7)
    assert any(not np.array_equal(pulled[name], two[name]) for name in two)


def test_hospitals_on_one_workbench_do_not_influence_each_other(ward: Ward) -> None:
    private = dataclasses.replace(
        changed(ward.plan, "privacy", mode="local", epsilon=5.0, noise_multiplier=1.0, sample_rate=0.5)
    )
    for plan in (ward.plan, private):
        request = ward.shifted(plan=plan)
        shared = Workbench()
        forth = [train_round(request, site, shared) for site in ward.sites]
        back = [train_round(request, site, shared) for site in reversed(ward.sites)][::-1]
        alone = [train_round(request, site, Workbench()) for site in ward.sites]
        for name in request.trained:
            for other in (back, alone):
                for first, second in zip(forth, other, strict=True):
                    np.testing.assert_array_equal(first[name], second[name])
            assert not np.array_equal(forth[0][name], forth[1][name])


def test_hospitals_that_train_at_the_same_time_do_not_influence_each_other(ward: Ward) -> None:
    private = changed(ward.plan, "privacy", mode="local", epsilon=5.0, noise_multiplier=1.0, sample_rate=0.5)
    request, shared = ward.shifted(plan=private), Workbench()
    work = [site for site in ward.sites for _ in range(3)]
    in_turn = [train_round(request, site, Workbench()) for site in work]
    with ThreadPoolExecutor(max_workers=4) as pool:
        at_once = list(pool.map(lambda site: train_round(request, site, shared), work))
    for first, second in zip(in_turn, at_once, strict=True):
        for name in request.trained:
            np.testing.assert_array_equal(first[name], second[name])


def test_borrowed_adapters_share_the_frozen_weights_and_nothing_else(ward: Ward, bench: Workbench) -> None:
    plan = ward.plan
    with bench.adapter(plan.model, plan.adapter) as (_, one), bench.adapter(plan.model, plan.adapter) as (_, two):
        pairs = list(zip(one.model.named_parameters(), two.model.named_parameters(), strict=True))
        shared = {name for (name, first), (_, second) in pairs if first is second}
        assert shared == {name for (name, _), _ in pairs if "lora_" not in name}
        one.load({name: array + 1 for name, array in one.arrays(trained=True).items()})
        for name, array in two.arrays(trained=True).items():
            assert not np.array_equal(array, one.arrays(trained=True)[name])


def test_the_request_is_left_as_it_came(ward: Ward, bench: Workbench) -> None:
    request = ward.shifted()
    copies = {name: array.copy() for name, array in request.trained.items()}
    train_round(request, ward.sites[0], bench)
    for name, array in copies.items():
        np.testing.assert_array_equal(request.trained[name], array)


def bent(arrays: dict[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
    name = sorted(arrays)[0]
    return {**arrays, name: arrays[name] + np.float32(1e-3)}


def test_only_the_plans_adapter_is_trained(ward: Ward, bench: Workbench) -> None:
    first, later = ward.request(), ward.shifted()
    train_round(first, ward.sites[0], bench)
    refused = [
        ("frozen half", dataclasses.replace(first, frozen=bent(first.frozen))),
        ("frozen half", dataclasses.replace(later, frozen=bent(later.frozen))),
        ("frozen half", dataclasses.replace(later, frozen={})),
        ("initial adapter", dataclasses.replace(first, trained=bent(first.trained))),
        ("arrays are not those", dataclasses.replace(later, trained=dict(list(later.trained.items())[1:]))),
        ("arrays are not those", dataclasses.replace(later, trained={**later.trained, "x": np.zeros(1, np.float32)})),
        ("shape", dataclasses.replace(later, trained={name: array[:1] for name, array in later.trained.items()})),
    ]
    for message, request in refused:
        with pytest.raises(ModelError, match=message):
            train_round(request, ward.sites[0], bench)


def test_a_deployed_hospital_draws_from_the_operating_system(
    ward: Ward, bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    deployed = dataclasses.replace(ward.sites[0], simulation_seed=None)
    plan = changed(ward.plan, "privacy", mode="local", epsilon=5.0, noise_multiplier=1.0)

    def update() -> dict[str, np.ndarray[Any, Any]]:
        torch.manual_seed(0)
        np.random.seed(0)
        return train_round(ward.shifted(plan=plan), deployed, bench)

    first, second = update(), update()
    assert all(not np.array_equal(first[name], second[name]) for name in first)
    asked: list[int] = []
    monkeypatch.setattr("os.urandom", lambda count: asked.append(count) or bytes(count))
    open_stream(deployed, plan, STEP, 1, 0, 0)
    assert asked == [32]


def test_another_attempt_at_a_round_draws_afresh_and_the_same_one_the_same(ward: Ward, bench: Workbench) -> None:
    plan = changed(ward.plan, "privacy", mode="local", epsilon=5.0, noise_multiplier=1.0)
    request = ward.shifted(plan=plan)
    first, again, other = (
        train_round(dataclasses.replace(request, attempt=attempt), ward.sites[0], bench) for attempt in (0, 0, 1)
    )
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
        assert not np.array_equal(first[name], other[name])


class Letters:
    """A tokenizer of one token a character."""

    pad_token_id = 0
    eos_token_id = None

    def __call__(self, text: list[str], *, add_special_tokens: bool) -> dict[str, list[list[int]]]:
        return {"input_ids": [[ord(letter) for letter in one] for one in text]}


PRIVATE = {"mode": "local", "epsilon": 5.0, "noise_multiplier": 1.0}


def drawn(units: Units, plan: Plan, stream: SecureStream, tokenizer: Letters | None = None) -> Batch:
    """One draw as a hospital makes it: by the plan's mechanism."""
    sampler = planned_mechanism(plan, "hospital-0").sampler
    return draw(units, sampler, stream, tokenizer or Letters(), max_length_tokens=plan.model.max_length_tokens)


def toy_units(patients: int, records: int) -> Units:
    examples = (Example(prompt="ab", completion="c"),) * (patients * records)
    return Units(examples=examples, records_of=list(np.arange(patients * records).reshape(patients, records)))


def test_patients_are_drawn_independently_at_the_plans_rate(ward: Ward) -> None:
    plan = changed(ward.plan, "privacy", **PRIVATE, sample_rate=0.25, max_records_per_unit=1)
    stream, units = SecureStream(bytes(32)), toy_units(400, 1)
    sizes = np.array([len(drawn(units, plan, stream)) for _ in range(400)])
    # Binomial(400, 1/4): mean 100, variance 75. A batch of fixed size would have variance 0; 5 standard errors each.
    assert abs(sizes.mean() - 100) < 5 * np.sqrt(75 / 400)
    assert 75 * (1 - 5 * np.sqrt(2 / 400)) < sizes.var() < 75 * (1 + 5 * np.sqrt(2 / 400))


def test_a_patient_gives_at_most_the_plans_number_of_records(ward: Ward) -> None:
    for cap in (1, 2, 5):
        plan = changed(ward.plan, "privacy", **PRIVATE, sample_rate=1.0, max_records_per_unit=cap)
        owners = drawn(toy_units(30, 3), plan, SecureStream(bytes(32))).unit_ids
        assert torch.bincount(owners).tolist() == [min(cap, 3)] * 30


def test_an_empty_draw_is_a_batch(ward: Ward) -> None:
    plan = changed(ward.plan, "privacy", **PRIVATE, sample_rate=1e-9)
    assert len(drawn(toy_units(3, 1), plan, SecureStream(bytes(32)))) == 0


class Choosy(Letters):
    """A tokenizer that cannot read one of the texts."""

    def __call__(self, text: list[str], *, add_special_tokens: bool) -> dict[str, list[list[int]]]:
        if any("bad" in one for one in text):
            raise TypeError("TextEncodeInput must be ...")
        return super().__call__(text, add_special_tokens=add_special_tokens)


def test_a_record_that_cannot_be_read_gives_nothing_and_does_not_show(ward: Ward) -> None:
    plan = changed(ward.plan, "privacy", **PRIVATE, sample_rate=1.0)
    examples = tuple(Example(prompt=prompt, completion="c") for prompt in ("ab", "bad", "abcd"))
    units = Units(examples=examples, records_of=[np.array([row]) for row in range(3)])
    batch = drawn(units, plan, SecureStream(bytes(32)), Choosy())
    answered = (batch.labels != -100).any(dim=1)
    assert dict(zip(batch.unit_ids.tolist(), answered.tolist(), strict=True)) == {0: True, 1: False, 2: True}


def test_an_adapter_that_stands_still_ends_the_first_step(
    ward: Ward, bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = changed(changed(ward.plan, "privacy", **PRIVATE), "training", local_steps=3)
    taken: list[int] = []
    monkeypatch.setattr(torch.optim.SGD, "step", lambda _self: taken.append(1))
    with pytest.raises(ModelError, match="did not move"):
        train_round(ward.shifted(plan=plan), ward.sites[0], bench)
    assert len(taken) == 1


def test_the_patient_as_unit_needs_ids_at_the_hospital_too(ward: Ward, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "the patient has fever", "completion": "lungs", "options": ["lungs", "skin"]}\n')
    source = dataclasses.replace(ward.sites[0].sources[0], path=str(rows), hospital=None, held_out_fraction=0.0)
    site = dataclasses.replace(ward.sites[0], sources=(source,))
    with pytest.raises(DataError, match="1 training rows of hospital-0 have no patient id"):
        train_round(ward.request(), site, Workbench())
    assert train_round(ward.request(), dataclasses.replace(site, unit="record"), Workbench())


# --- records as units, a patient's records bounded -----------------------------------------------------------------------


def recorded(ward: Ward, folder: Path, rows: list[tuple[str | None, str]]) -> Site:
    """A site with the record as unit and the given (patient, prompt) rows, none of them held out."""
    lines = [
        {"prompt": prompt, "completion": "lungs", "options": ["lungs", "skin"], "patient_id": patient}
        for patient, prompt in rows
    ]
    path = folder / f"{len(list(folder.iterdir()))}.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = dataclasses.replace(ward.sites[0].sources[0], path=str(path), hospital=None, held_out_fraction=0.0)
    return dataclasses.replace(ward.sites[0], sources=(source,), unit="record")


def kept(site: Site, bound: int | None) -> set[str]:
    units = Workbench().units(site, max_records_per_patient=bound)
    assert all(len(rows) == 1 for rows in units.records_of)
    return {units.examples[int(rows[0])].prompt for rows in units.records_of}


ROWS: list[tuple[str | None, str]] = [(f"p{n % 4}", f"note {n} of them") for n in range(22)]


@pytest.mark.parametrize("bound", [1, 2, 5, 6])
def test_at_most_so_many_records_of_a_patient_are_trained_on(ward: Ward, tmp_path: Path, bound: int) -> None:
    chosen = kept(recorded(ward, tmp_path, ROWS), bound)
    sizes = [sum(prompt in chosen for patient, prompt in ROWS if patient == f"p{n}") for n in range(4)]
    assert sizes == [min(bound, size) for size in (6, 6, 5, 5)]


def test_without_a_bound_every_record_is_trained_on(ward: Ward, tmp_path: Path) -> None:
    assert kept(recorded(ward, tmp_path, ROWS), None) == {prompt for _, prompt in ROWS}


def test_a_patients_choice_depends_on_that_patients_records_only(ward: Ward, tmp_path: Path) -> None:
    mine = {prompt for patient, prompt in ROWS if patient == "p1"}
    whole = kept(recorded(ward, tmp_path, ROWS), 2) & mine
    for others in ([], [("p2", "another"), ("p0", "and another")], [row for row in ROWS if row[0] != "p1"][::-1]):
        own = [row for row in ROWS if row[0] == "p1"]
        for rows in (own + others, others + own, own[::-1] + others):
            assert kept(recorded(ward, tmp_path, rows), 2) & mine == whole


def test_the_choice_is_not_the_first_ones(ward: Ward, tmp_path: Path) -> None:
    rows: list[tuple[str | None, str]] = [(f"p{n % 50}", f"note {n} of them") for n in range(500)]
    chosen = kept(recorded(ward, tmp_path, rows), 1)
    places = np.bincount([number // 50 for number, (_, prompt) in enumerate(rows) if prompt in chosen], minlength=10)
    assert places.max() < 15  # of 50 patients with 10 notes each


def test_a_bound_on_patients_needs_their_ids(ward: Ward, tmp_path: Path) -> None:
    site = recorded(ward, tmp_path, [*ROWS, (None, "whose is this")])
    assert len(kept(site, None)) == 23
    with pytest.raises(DataError, match=r"1 training rows of hospital-0 have no patient id.*max_records_per_patient=2"):
        Workbench().units(site, max_records_per_patient=2)
    plan = changed(ward.plan, "privacy", unit="record", max_records_per_unit=1, max_records_per_patient=2)
    with pytest.raises(DataError, match="no patient id"):
        train_round(ward.request(plan=plan), site, Workbench())


def test_a_round_trains_on_the_bounded_records(ward: Ward, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    whole = train.draw
    monkeypatch.setattr(
        train, "draw", lambda *args, **kwargs: seen.append(len(args[0].records_of)) or whole(*args, **kwargs)
    )
    plan = changed(ward.plan, "privacy", unit="record", max_records_per_unit=1, max_records_per_patient=3)
    train_round(ward.request(plan=plan), recorded(ward, tmp_path, ROWS), Workbench())
    assert seen == [12]
