"""A LoRA adapter on a base model, and the same adapter as named float32 arrays.

Names are PEFT's own state-dict keys, so that what the server averages is, saved, what `PeftModel.from_pretrained` loads.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model

from fedslm.config.schema import AdapterConfig
from fedslm.crypto.prg import SecureStream, derive_key
from fedslm.errors import ModelError
from fedslm.models.families import default_targets
from fedslm.models.loading import BaseModel

Arrays = dict[str, np.ndarray[Any, np.dtype[np.float32]]]


class Adapter:
    """A LoRA adapter attached to one base model; arrays are swapped in and out, the base stays.

    Guarantees:
      `trained` and `frozen` together hold every LoRA array; under "ffa" every `lora_A` is frozen.
      Loading arrays copies them, so an adapter never shares memory with its caller.
    """

    def __init__(self, base: BaseModel, config: AdapterConfig) -> None:
        """Attaches LoRA to `base.model` in place.

        Raises:
          ModelError: no module matches the targets.
        """
        self.targets = config.targets or default_targets(base.model_type)
        self.model = _attach(base, config, self.targets)
        self._parameters = {peft_name(name): value for name, value in self.model.named_parameters() if "lora_" in name}
        for name, parameter in self._parameters.items():
            parameter.requires_grad_(config.method == "full" or "lora_A" not in name)

    def twin(self) -> Adapter:
        """A second adapter on a second model that shares this one's frozen weights, so that both can work at once.

        Only while nothing runs on this one: hooks of a running step would be copied too.
        """
        shared = {id(weight): weight for weight in (*self.model.parameters(), *self.model.buffers())}
        own = {id(parameter) for parameter in self._parameters.values()}
        other = copy.copy(self)
        other.model = copy.deepcopy(self.model, {key: weight for key, weight in shared.items() if key not in own})
        other._parameters = {
            peft_name(name): value for name, value in other.model.named_parameters() if "lora_" in name
        }
        return other

    @property
    def trained(self) -> dict[str, torch.nn.Parameter]:
        """The parameters that training changes, by PEFT name, sorted."""
        return {name: value for name, value in self._sorted() if value.requires_grad}

    def arrays(self, *, trained: bool) -> Arrays:
        """Copies the trained (or the frozen) parameters out as float32."""
        return {name: _to_numpy(value) for name, value in self._sorted() if value.requires_grad is trained}

    def load(self, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Copies arrays in, by name; names not given stay as they are.

        Raises:
          ModelError: an unknown name, another shape, or a value that is not finite.
        """
        for name, array in arrays.items():
            self._check(name, array)
            with torch.no_grad():
                self._parameters[name].copy_(torch.from_numpy(np.array(array, dtype=np.float32)))

    def initialise(self, seed: bytes) -> None:
        """Draws A uniformly in +-1/sqrt(inputs) (PEFT's own Kaiming bound) from an AES stream and sets B to zero.

        torch's generators differ between versions; this one does not, so a seed means one adapter for ever.
        """
        for name, parameter in self._sorted():
            self.load({name: _initial(name, tuple(parameter.shape), seed)})

    def _sorted(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        return iter(sorted(self._parameters.items()))

    def _check(self, name: str, array: np.ndarray[Any, Any]) -> None:
        if name not in self._parameters:
            raise ModelError(f"The adapter has no array '{name}'; it belongs to another model or other LoRA targets.")
        expected = tuple(self._parameters[name].shape)
        if array.shape != expected:
            raise ModelError(
                f"The adapter's array '{name}' has shape {array.shape}, expected {expected}; ranks or models differ."
            )
        if not np.isfinite(array).all():
            raise ModelError(f"The adapter's array '{name}' is not finite; lower the learning rate and resume.")


def describe(
    base_name: str, *, rank: int, alpha: float, targets: tuple[str, ...], fan_in_fan_out: bool = False
) -> dict[str, Any]:
    """The `adapter_config.json` of an adapter, without needing torch."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": list(targets),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": fan_in_fan_out,
        "inference_mode": True,
    }


def _attach(base: BaseModel, config: AdapterConfig, targets: tuple[str, ...]) -> Any:
    settings = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        target_modules=list(targets),
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
        fan_in_fan_out=base.model_type == "gpt2",
    )
    try:
        model = get_peft_model(base.model, settings)
    except ValueError:
        raise ModelError(
            f"adapter.targets={list(targets)} match no module of this {base.model_type} model; name modules it has."
        ) from None
    model.eval()
    return model


def peft_name(name: str) -> str:
    """A parameter's name as PEFT writes it into files, without the adapter's own name."""
    return name.replace(".default.", ".")


def _to_numpy(parameter: torch.Tensor) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.array(parameter.detach().to(torch.float32).cpu().numpy(), dtype=np.float32)


def _initial(name: str, shape: tuple[int, ...], seed: bytes) -> np.ndarray[Any, np.dtype[np.float32]]:
    if "lora_A" not in name:
        return np.zeros(shape, dtype=np.float32)
    stream = SecureStream(derive_key(seed, label="initial-adapter", context=name.encode()))
    bound = 1 / np.sqrt(shape[-1])
    values = (2 * stream.uniform(int(np.prod(shape))) - 1) * bound
    return np.asarray(values.reshape(shape), dtype=np.float32)
