"""The newest sum is whole on the disk or not there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedslm.errors import RunError
from server.aggregate import Aggregate, AggregateFile
from tests.server.test_checkpoints import full_disk


def aggregate(number: int = 3) -> Aggregate:
    rng = np.random.default_rng(number)
    arrays = {"b": rng.normal(size=(2, 3)).astype(np.float32), "a": rng.normal(size=300).astype(np.float32)}
    return Aggregate(round=number, adapter_sha256="a" * 64, survivors=("x", "y z"), weight=1.75, arrays=arrays)


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
