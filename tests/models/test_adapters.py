"""An adapter and its named arrays are one thing, under PEFT's own names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from peft import get_peft_model_state_dict

from fedslm.config.schema import AdapterConfig, ModelConfig
from fedslm.errors import ModelError
from fedslm.models.adapters import Adapter, describe, peft_name
from fedslm.models.loading import BaseModel, load_base


def attached(toys: Path, *, method: str = "ffa", targets: tuple[str, ...] | None = None) -> tuple[BaseModel, Adapter]:
    base = load_base(ModelConfig(name="toy", source=str(toys / "model"), max_length_tokens=32))
    return base, Adapter(base, AdapterConfig(method=method, rank=4, alpha=16, targets=targets))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def adapter(toys: Path) -> Adapter:
    made = attached(toys)[1]
    made.initialise(bytes(32))
    return made


def everything(adapter: Adapter) -> dict[str, np.ndarray]:
    return {**adapter.arrays(trained=True), **adapter.arrays(trained=False)}


def test_names_are_pefts_own(adapter: Adapter) -> None:
    state = get_peft_model_state_dict(adapter.model)
    assert {name: tuple(value.shape) for name, value in state.items()} == {
        name: array.shape for name, array in everything(adapter).items()
    }
    assert {peft_name(name) for name, _ in adapter.model.named_parameters() if "lora_" in name} == set(state)


def test_arrays_come_back_as_they_went_in(adapter: Adapter) -> None:
    rng = np.random.default_rng(0)
    given = {name: rng.normal(size=array.shape).astype(np.float32) for name, array in everything(adapter).items()}
    adapter.load(given)
    for name, array in everything(adapter).items():
        np.testing.assert_array_equal(array, given[name])
        assert array.dtype == np.float32


def test_arrays_are_copies_both_ways(adapter: Adapter) -> None:
    given = {name: np.ones_like(array) for name, array in everything(adapter).items()}
    adapter.load(given)
    for array in (*given.values(), *everything(adapter).values()):
        array += 1
    assert all((array == 1).all() for array in everything(adapter).values())


def test_names_not_given_stay_as_they_are(adapter: Adapter) -> None:
    before = everything(adapter)
    changed = sorted(before)[0]
    adapter.load({changed: before[changed] + 1})
    after = everything(adapter)
    assert [name for name in before if not np.array_equal(before[name], after[name])] == [changed]


def test_ffa_freezes_every_a_and_the_base(toys: Path) -> None:
    base, adapter = attached(toys)
    trainable = {name for name, parameter in adapter.model.named_parameters() if parameter.requires_grad}
    assert trainable
    assert all("lora_B" in name for name in trainable)
    assert all("lora_A" in name for name in adapter.arrays(trained=False))
    assert {peft_name(name) for name in trainable} == set(adapter.trained) == set(adapter.arrays(trained=True))
    assert not base.model.training


def test_full_trains_both_matrices(toys: Path) -> None:
    adapter = attached(toys, method="full")[1]
    assert adapter.arrays(trained=False) == {}
    assert {"lora_A", "lora_B"} == {name.split(".")[-2] for name in adapter.trained}


def test_the_initial_adapter_follows_from_its_seed_alone(toys: Path, adapter: Adapter) -> None:
    def initial(seed: bytes, torch_seed: int) -> dict[str, np.ndarray]:
        torch.manual_seed(torch_seed)
        adapter.initialise(seed)
        return everything(adapter)

    first, again, other = initial(bytes(32), 0), initial(bytes(32), 1), initial(b"\1" * 32, 0)
    fresh = attached(toys)[1]
    fresh.initialise(bytes(32))
    for name, array in first.items():
        np.testing.assert_array_equal(array, again[name])
        np.testing.assert_array_equal(array, everything(fresh)[name])
        assert np.array_equal(array, other[name]) is ("lora_B" in name)
        assert array.any() == ("lora_A" in name)
    assert len({array.tobytes() for name, array in first.items() if "lora_A" in name}) == len(first) // 2


def test_the_initial_a_is_uniform_within_pefts_bound(adapter: Adapter) -> None:
    adapter.initialise(bytes(32))
    values = np.concatenate(
        [array.ravel() * np.sqrt(array.shape[1]) for name, array in everything(adapter).items() if "lora_A" in name]
    )
    assert np.abs(values).max() <= 1
    # Uniform on (-1, 1): variance 1/3, fourth moment 1/5; five standard errors.
    assert abs(values.mean()) < 5 * np.sqrt(1 / 3 / values.size)
    assert abs((values**2).mean() - 1 / 3) < 5 * np.sqrt((1 / 5 - 1 / 9) / values.size)


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda name, array: {"base_model.x": array}, "no array 'base_model.x'"),
        (lambda name, array: {name: array[:1]}, "has shape"),
        (lambda name, array: {name: array.T}, "has shape"),
        (lambda name, array: {name: np.where(array == array, np.nan, 0)}, "not finite"),
        (lambda name, array: {name: np.full_like(array, np.inf)}, "not finite"),
    ],
    ids=["unknown name", "short", "transposed", "NaN", "infinite"],
)
def test_arrays_that_do_not_fit_are_refused(adapter: Adapter, spoil: object, named: str) -> None:
    name, array = sorted(everything(adapter).items())[0]
    with pytest.raises(ModelError, match=named):
        adapter.load(spoil(name, array))  # type: ignore[operator]


def test_targets_that_match_nothing_are_refused_by_name(toys: Path) -> None:
    with pytest.raises(ModelError, match=r"adapter\.targets=\['nowhere'\]"):
        attached(toys, targets=("nowhere",))


def test_chosen_targets_are_the_only_ones(toys: Path) -> None:
    adapter = attached(toys, targets=("q_proj",))[1]
    assert adapter.targets == ("q_proj",)
    assert all(".q_proj." in name for name in everything(adapter))


def test_the_description_is_what_peft_reads(toys: Path, tmp_path: Path) -> None:
    import json

    from peft import LoraConfig

    (tmp_path / "adapter_config.json").write_text(json.dumps(describe("base", rank=4, alpha=16, targets=("q_proj",))))
    read = LoraConfig.from_pretrained(tmp_path)
    assert (read.r, read.lora_alpha, read.target_modules, read.lora_dropout) == (4, 16, {"q_proj"}, 0.0)
