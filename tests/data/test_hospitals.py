"""The embedded consortium keeps the promises its module makes."""

from __future__ import annotations

from collections import Counter

import pytest

from fedslm.data import hospitals
from fedslm.data.example import Example
from fedslm.data.hospitals import EmbeddedHospital, build_hospitals, multiple_choice, pooled_test, shuffle_answers
from fedslm.errors import DataError


@pytest.fixture(scope="module")
def full() -> tuple[EmbeddedHospital, ...]:
    return build_hospitals(seed=0)


def _patients(examples: tuple[Example, ...]) -> Counter[str | None]:
    return Counter(example.patient_id for example in examples)


@pytest.mark.parametrize("scale", [1.0, 0.02, 0.0001])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_service_occurs_at_every_hospital_in_both_parts(seed: int, scale: float) -> None:
    for hospital in build_hospitals(seed=seed, scale=scale):
        for part in (hospital.train, hospital.held_out):
            assert {example.completion for example in multiple_choice(part)} == set(hospitals.SERVICES)


def test_no_patient_is_in_two_parts_or_two_hospitals(full: tuple[EmbeddedHospital, ...]) -> None:
    parts = [set(_patients(part)) for hospital in full for part in (hospital.train, hospital.held_out)]
    assert None not in set.union(*parts)
    assert len(set.union(*parts)) == sum(map(len, parts))


def test_patients_have_one_to_twelve_notes_and_mostly_few(full: tuple[EmbeddedHospital, ...]) -> None:
    counts = [count for hospital in full for count in _patients(hospital.train).values()]
    assert min(counts) == 1
    assert 8 <= max(counts) <= hospitals.MAX_NOTES
    assert sum(count <= 2 for count in counts) > len(counts) / 2


def test_notes_of_a_patient_lie_together(full: tuple[EmbeddedHospital, ...]) -> None:
    for hospital in full:
        ids = [example.patient_id for example in hospital.train]
        assert ids == sorted(ids, key=str)


def test_largest_hospital_has_ten_times_the_patients_of_the_smallest(full: tuple[EmbeddedHospital, ...]) -> None:
    sizes = [len(_patients(hospital.train)) for hospital in full]
    assert len(full) == 5
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == 10 * sizes[-1]
    assert sum(sizes) > 5000


def test_names_and_layouts_differ(full: tuple[EmbeddedHospital, ...]) -> None:
    assert len({hospital.name for hospital in full}) == 5
    assert len({hospital.specialty for hospital in full}) == 5
    assert len({hospital.train[0].prompt[:2] for hospital in full}) >= 4


def test_specialties_are_much_of_what_a_hospital_sees(full: tuple[EmbeddedHospital, ...]) -> None:
    for hospital in full:
        answers = [example.completion for example in multiple_choice(hospital.train)]
        assert sum(answer in hospital.specialty for answer in answers) > 0.35 * len(answers)


def test_same_seed_gives_the_same_notes_and_another_seed_others() -> None:
    first, again, other = (build_hospitals(seed=seed, scale=0.05) for seed in (3, 3, 4))
    assert first == again
    prompts = [{example.prompt for hospital in build for example in hospital.train} for build in (first, other)]
    assert len(prompts[0] & prompts[1]) < 0.1 * len(prompts[0])


def test_every_choice_example_has_the_same_choices_and_free_text_none(full: tuple[EmbeddedHospital, ...]) -> None:
    examples = [example for hospital in full for example in hospital.train]
    assert {example.choices for example in examples} == {hospitals.SERVICES, ()}
    assert 0.1 < sum(not example.choices for example in examples) / len(examples) < 0.2


def test_the_answer_follows_from_the_findings_in_the_note(full: tuple[EmbeddedHospital, ...]) -> None:
    for hospital in full:
        for example in hospital.held_out:
            service = next(service for service in hospitals.SERVICES if service in example.completion)
            assert sum(any(word in example.prompt for word in row) for row in hospitals.FINDINGS[service]) >= 2


def test_a_free_text_answer_quotes_a_finding_of_its_note(full: tuple[EmbeddedHospital, ...]) -> None:
    for example in full[1].train:
        if not example.choices:
            assert example.completion.partition(" for ")[2].rstrip(".") in example.prompt


def test_no_words_belong_to_two_services() -> None:
    words = [(word, service) for service, rows in hospitals.FINDINGS.items() for row in rows for word in set(row)]
    assert len(dict(words)) == len(words)
    assert tuple(hospitals.FINDINGS) == hospitals.SERVICES


def test_pooled_test_takes_equally_many_from_each_hospital(full: tuple[EmbeddedHospital, ...]) -> None:
    pooled = pooled_test(full)
    per_hospital = Counter(str(example.patient_id)[:2] for example in pooled)
    assert len(set(per_hospital.values())) == 1
    assert min(per_hospital.values()) >= 200
    assert all(example.choices for example in pooled)
    assert len(pooled_test(full, per_hospital=7)) == 35


def test_shuffled_answers_keep_everything_but_the_link(full: tuple[EmbeddedHospital, ...]) -> None:
    examples = full[4].train
    shuffled = shuffle_answers(examples, seed=5)
    assert shuffled == shuffle_answers(examples, seed=5)
    assert [e.prompt for e in shuffled] == [e.prompt for e in examples]
    assert Counter(e.completion for e in shuffled) == Counter(e.completion for e in examples)
    kept = sum(a.completion == b.completion for a, b in zip(examples, shuffled, strict=True)) / len(examples)
    assert kept < 0.4


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan")])
def test_scale_must_be_positive(scale: float) -> None:
    with pytest.raises(DataError, match="scale"):
        build_hospitals(seed=0, scale=scale)
