"""A base model is data: safetensors from a named place, and never code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fedslm.config.compose import compose
from fedslm.config.schema import ModelConfig
from fedslm.errors import ConfigError, ModelError
from fedslm.models.families import TARGETS, default_targets
from fedslm.models.loading import load_base, load_model_config, load_tokenizer, resolve


def config(source: Path | str, **changes: Any) -> ModelConfig:
    return ModelConfig(**{"name": "toy", "source": str(source), "max_length_tokens": 32, **changes})


@pytest.fixture
def folder(toys: Path, tmp_path: Path) -> Path:
    """A copy of the toy model that a test may spoil."""
    return Path(shutil.copytree(toys / "model", tmp_path / "model"))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_base_is_frozen_and_still(folder: Path) -> None:
    base = load_base(config(folder))
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert not base.model.training
    assert base.model_type == "llama"
    assert next(base.model.parameters()).dtype == torch.float32


def test_a_tokenizer_without_padding_pads_with_its_end(folder: Path) -> None:
    edit(folder / "tokenizer_config.json", pad_token=None)
    tokenizer = load_tokenizer(config(folder))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id is not None


def test_sizes_are_read_without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert load_model_config(config(folder)).hidden_size == 32


def test_pickled_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"x": torch.zeros(1)}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_base(config(folder))


@pytest.mark.parametrize("source", ["/nowhere/at/all", "./nowhere", "~/nowhere-at-all"])
def test_a_missing_folder_is_named(source: str) -> None:
    with pytest.raises(ModelError, match=r"is not a model folder: it has no config\.json"):
        load_base(config(source))


def test_an_unknown_embedded_model_is_named() -> None:
    with pytest.raises(ModelError, match="embedded:huge is not in the package"):
        load_base(config("embedded:huge"))
    assert Path(resolve(config("embedded:tiny"))).is_dir()


def test_a_hub_model_without_a_commit_is_refused_before_it_is_looked_for() -> None:
    with pytest.raises(ConfigError, match=r"model\.revision=null"):
        compose(["model.source=someone/model"])


def test_a_hub_model_that_cannot_be_reached_is_one_sentence() -> None:
    with pytest.raises(ModelError, match=r"model\.source=someone/no-such-model cannot be loaded: .*") as refused:
        load_base(config("someone/no-such-model", revision="0" * 40))
    assert "\n" not in str(refused.value)


def hostile(folder: Path, file: str, **changes: Any) -> Path:
    """Makes the folder ask for its own code, which would leave a mark when it is run."""
    mark = folder.parent / "executed"
    (folder / "code_of_mine.py").write_text(
        f"from pathlib import Path\nPath({str(mark)!r}).write_text('')\n"
        "from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast\n"
        "class Mine(LlamaConfig): model_type = 'mine'\nclass MineModel(LlamaForCausalLM): config_class = Mine\n"
        "class MineTokenizer(PreTrainedTokenizerFast): pass\n"
    )
    edit(folder / file, **changes)
    return mark


@pytest.mark.parametrize("model_type", ["mine", "llama"])
def test_a_models_own_code_is_never_run(folder: Path, model_type: str) -> None:
    auto_map = {"AutoConfig": "code_of_mine.Mine", "AutoModelForCausalLM": "code_of_mine.MineModel"}
    mark = hostile(folder, "config.json", auto_map=auto_map, model_type=model_type)
    if model_type == "mine":
        with pytest.raises(ModelError, match="cannot be loaded"):
            load_base(config(folder))
    else:  # a family that transformers knows: its own class is used, and the folder's is left alone
        assert type(load_base(config(folder)).model).__module__.startswith("transformers.models.llama")
    assert not mark.exists()


def test_a_tokenizers_own_code_is_never_run(folder: Path) -> None:
    auto_map = {"AutoTokenizer": [None, "code_of_mine.MineTokenizer"]}
    mark = hostile(folder, "tokenizer_config.json", auto_map=auto_map, tokenizer_class="MineTokenizer")
    try:
        tokenizer = load_tokenizer(config(folder))
    except ModelError:
        tokenizer = None
    assert type(tokenizer).__name__ != "MineTokenizer"
    assert not mark.exists()


@pytest.mark.parametrize("damage", [b"", b"not safetensors", b"\xff" * 100], ids=["empty", "text", "bytes"])
def test_damaged_weights_are_one_sentence(folder: Path, damage: bytes) -> None:
    (folder / "model.safetensors").write_bytes(damage)
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_base(config(folder))


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json"])
def test_a_damaged_file_is_one_sentence(folder: Path, file: str) -> None:
    (folder / file).write_text("{")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_base(config(folder))


def test_weights_that_are_missing_are_not_made_up(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 1 of the model's weights, such as .*up_proj"):
        load_base(config(folder))


def test_weights_that_do_not_fit_are_refused(folder: Path) -> None:
    edit(folder / "config.json", hidden_size=64)
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_base(config(folder))


def test_a_family_without_defaults_is_told_what_to_set() -> None:
    assert set(default_targets("llama")) == set(TARGETS["llama"])
    with pytest.raises(ModelError, match=r"'mamba' has no default LoRA targets; set adapter\.targets"):
        default_targets("mamba")
