"""Loads a base model and its tokenizer: embedded, from a folder, or from a hub at a pinned commit.

Safetensors only and never `trust_remote_code`: weights are data here, not programs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from fedslm.config.schema import ModelConfig
from fedslm.errors import ModelError
from fedslm.models.tiny import tiny_path

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseModel:
    """A frozen base model with its tokenizer.

    Attributes:
      model: a `transformers` causal language model, all parameters frozen, in evaluation mode (no dropout).
      tokenizer: its tokenizer, with a padding token.
      model_type: the family, from its configuration.
    """

    model: Any
    tokenizer: Any
    model_type: str


def load_base(config: ModelConfig) -> BaseModel:
    """Loads a model ready for LoRA.

    Raises:
      ModelError: it is not there, has no safetensors weights, or needs code of its own.
    """
    tokenizer = load_tokenizer(config)
    settings = {"use_safetensors": True, "dtype": DTYPES[config.dtype], "output_loading_info": True}
    model, loaded = _guarded(AutoModelForCausalLM, config, **settings)
    if loaded["missing_keys"]:  # transformers would fill them at random, differently at every hospital
        raise ModelError(
            f"model.source={config.source} lacks {len(loaded['missing_keys'])} of the model's weights, "
            f"such as {min(loaded['missing_keys'])}; copy the folder again."
        )
    # Before any adapter is attached: PEFT puts an adapter where its layer is, and one left behind would never learn.
    model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    model.requires_grad_(False)
    model.eval()
    return BaseModel(model=model, tokenizer=tokenizer, model_type=str(model.config.model_type))


def load_tokenizer(config: ModelConfig) -> Any:
    """Loads the tokenizer alone; pads with its end token where it has no padding token."""
    tokenizer = _guarded(AutoTokenizer, config)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model_config(config: ModelConfig) -> Any:
    """Loads `config.json` alone: sizes without weights, for estimates."""
    return _guarded(AutoConfig, config)


def resolve(config: ModelConfig) -> str:
    """The folder or hub id that `from_pretrained` understands.

    Raises:
      ModelError: an unknown embedded name, or a folder that is not there.
    """
    source = config.source
    if source == "embedded:tiny":
        return str(tiny_path())
    if source.startswith("embedded:"):
        raise ModelError(f"model.source={source} is not in the package; it holds embedded:tiny.")
    if source.startswith(("/", ".", "~")) and not (Path(source).expanduser() / "config.json").is_file():
        raise ModelError(f"model.source={source} is not a model folder: it has no config.json.")
    return str(Path(source).expanduser()) if source.startswith("~") else source


def _guarded(loader: Any, config: ModelConfig, **settings: Any) -> Any:
    source = resolve(config)
    try:
        return loader.from_pretrained(source, revision=config.revision or "main", trust_remote_code=False, **settings)
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"model.source={config.source} cannot be loaded: {first_line.rstrip('.')}.") from None
