"""The newest sum is whole on the disk or not there."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from fedslm.errors import RunError
from fedslm.privacy.scores import Accuracy
from server.aggregate import Aggregate, AggregateFile
from tests.server.test_checkpoints import full_disk


def aggregate(number: int = 3) -> Aggregate:
    rng = np.random.default_rng(number)
    arrays = {"b": rng.normal(size=(2, 3)).astype(np.float32), "a": rng.normal(size=300).astype(np.float32)}
    return Aggregate(round=number, adapter_sha256="a" * 64, survivors=("x", "y z"), weight=1.75, arrays=arrays)


@pytest.mark.parametrize("accuracy", [None, Accuracy(value=0.625, stddev=0.0625), Accuracy(value=None, stddev=None)])
def test_the_accuracy_is_kept_with_the_sum(accuracy: Accuracy | None, tmp_path: Path) -> None:
    file = AggregateFile(tmp_path / "aggregate.safetensors")
    file.save(dataclasses.replace(aggregate(), accuracy=accuracy))
    found = file.load()
    assert found is not None
    assert found.accuracy == accuracy


def same(one: Aggregate | None, other: Aggregate) -> bool:
    assert one is not None
    facts = [(each.round, each.adapter_sha256, each.survivors, each.weight) for each in (one, other)]
    arrays = all(np.array_equal(one.arrays[name], other.arrays[name]) for name in other.arrays)
    return facts[0] == facts[1] and arrays and set(one.arrays) == set(other.arrays)


def test_what_is_saved_is_read_back_and_replaced_as_a_whole(tmp_path: Path) -> None:
    file = AggregateFile(tmp_path / "aggregate.safetensors")
    assert file.load() is None
    for number in (3, 4):
        file.save(aggregate(number))
        assert same(file.load(), aggregate(number))
    assert [path.name for path in tmp_path.iterdir()] == ["aggregate.safetensors"]


def test_a_full_disk_leaves_the_sum_before(tmp_path: Path) -> None:
    file = AggregateFile(tmp_path / "aggregate.safetensors")
    file.save(aggregate(3))
    with full_disk(100), pytest.raises(RunError, match=r"aggregate of round 4 cannot be written: .*resume"):
        file.save(aggregate(4))
    assert same(file.load(), aggregate(3))


@pytest.mark.parametrize(
    "damage", [lambda data: b"", lambda data: data[:-5], lambda data: b"x" * 100, lambda data: data[:8]]
)
def test_a_damaged_file_is_no_sum(tmp_path: Path, damage: object) -> None:
    path = tmp_path / "aggregate.safetensors"
    AggregateFile(path).save(aggregate())
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    assert AggregateFile(path).load() is None


def shapes() -> dict[str, tuple[int, ...]]:
    return {"a": (300,), "b": (2, 3)}


def test_a_sum_fits_the_adapter_it_was_made_for() -> None:
    assert aggregate().fits(shapes())


@pytest.mark.parametrize(
    "arrays",
    [
        {"a": np.zeros(300, np.float32)},
        {"a": np.zeros(300, np.float32), "c": np.zeros((2, 3), np.float32)},
        {"a": np.zeros(300, np.float32), "b": np.zeros((3, 2), np.float32)},
        {"a": np.zeros(300, np.float64), "b": np.zeros((2, 3), np.float32)},
        {"a": np.zeros(300, np.float32), "b": np.full((2, 3), np.nan, np.float32)},
        {"a": np.full(300, -np.inf, np.float32), "b": np.zeros((2, 3), np.float32)},
    ],
    ids=["missing", "another name", "another shape", "another type", "nan", "inf"],
)
def test_a_sum_of_another_form_does_not_fit(arrays: dict[str, Any]) -> None:
    assert not dataclasses.replace(aggregate(), arrays=arrays).fits(shapes())


@pytest.mark.parametrize("weight", [0.0, -1.0, float("inf"), float("nan")])
def test_a_sum_with_an_impossible_weight_does_not_fit(weight: float) -> None:
    assert not dataclasses.replace(aggregate(), weight=weight).fits(shapes())


@pytest.mark.parametrize(
    "facts",
    ['{"round": Infinity, "adapter_sha256": "a", "survivors": [], "weight": 1}', "[1]", "[" * 100_000],
    ids=["endless", "no object", "deep"],
)
def test_facts_that_are_none_are_no_sum(tmp_path: Path, facts: str) -> None:
    path = tmp_path / "aggregate.safetensors"
    save_file({"a": np.zeros(3, np.float32)}, path, metadata={"aggregate": facts})
    assert AggregateFile(path).load() is None
