"""Toy models, ragged batches and a mechanism for the tests of privacy, and the loop that the engine has to equal."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MistralConfig, Qwen2Config

from fedslm.privacy.gradients import Batch
from fedslm.privacy.mechanism import Mechanism


def build_mechanism(**changes: Any) -> Mechanism:
    """The setting of the reference figures: N 2000, B 64, 31 steps an epoch."""
    fields: dict[str, Any] = {
        "unit": "patient",
        "sample_rate": 0.032,
        "clip_norm": 0.5,
        "noise_multiplier": 1.0,
        "steps": 31,
        "declared_population": 2000,
    }
    return Mechanism(**(fields | changes))


VOCAB = 40
SIZES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": partial(LlamaConfig, vocab_size=VOCAB, max_position_embeddings=32, **SIZES),
    "qwen2": partial(Qwen2Config, vocab_size=VOCAB, max_position_embeddings=32, **SIZES),
    "mistral": partial(MistralConfig, vocab_size=VOCAB, max_position_embeddings=32, **SIZES),
    "gpt2": partial(GPT2Config, vocab_size=VOCAB, n_positions=32, n_embd=16, n_layer=2, n_head=2),
}
CONFIGS["gpt2"].keywords.update(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)  # type: ignore[attr-defined]


def build_model(family: str = "llama", *, ffa: bool = False, **lora: Any) -> nn.Module:
    torch.manual_seed(3)
    base = AutoModelForCausalLM.from_config(CONFIGS[family]())
    settings: dict[str, Any] = {"r": 2, "target_modules": "all-linear", "init_lora_weights": False}
    model: nn.Module = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **(settings | lora)))
    if ffa:
        for name, parameter in model.named_parameters():
            if "lora_A" in name:
                parameter.requires_grad = False
    return model


def build_batch(lengths: list[int], completions: list[int], units: list[int], *, seed: int = 0) -> Batch:
    """Examples of given lengths whose last tokens are the completion, with rubbish in the padding."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), max(lengths) + 3)
    tokens = torch.randint(1, VOCAB, shape, generator=generator)
    places = torch.arange(shape[1])
    ends = torch.tensor(lengths)[:, None]
    answered = (places < ends) & (places >= ends - torch.tensor(completions)[:, None])
    return Batch(
        input_ids=tokens,
        attention_mask=(places < ends).long(),
        labels=tokens.masked_fill(~answered, -100),
        unit_ids=torch.tensor(units),
    )


BATCH_UNITS = [7, 3, 7, 5, 3, 9, 7, 1]


def ragged() -> Batch:
    return build_batch([12, 5, 9, 20, 7, 4, 15, 6], [3, 1, 6, 9, 2, 3, 1, 4], BATCH_UNITS)


def flat_gradient(model: nn.Module, loss: Tensor) -> Tensor:
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, trainable)]).double()


def example_gradient(model: nn.Module, batch: Batch, index: int) -> Tensor:
    """One example, unpadded, alone: the loss is transformers' own mean over its completion tokens."""
    length = int(batch.attention_mask[index].sum())
    tokens, labels = batch.input_ids[index : index + 1, :length], batch.labels[index : index + 1, :length]
    return flat_gradient(model, model(input_ids=tokens, labels=labels).loss)


def looped_sum(model: nn.Module, batch: Batch, clip_norm: float) -> Tensor:
    total = torch.zeros(sum(p.numel() for p in model.parameters() if p.requires_grad), dtype=torch.float64)
    for unit in set(batch.unit_ids.tolist()):
        members = (batch.unit_ids == unit).nonzero()[:, 0].tolist()
        gradient = sum((example_gradient(model, batch, index) for index in members), torch.zeros_like(total))
        total += gradient * min(1.0, clip_norm / float(gradient.norm()))
    return total


def median_norm(model: nn.Module, batch: Batch) -> float:
    norms = [float(example_gradient(model, batch, index).norm()) for index in range(len(batch))]
    return float(torch.tensor(norms).median())


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())
