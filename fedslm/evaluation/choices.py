"""Multiple choice by log-likelihood: the option whose tokens the model finds likeliest, summed, is its answer.

The prompt is read once and its key-value cache shared by all options, which makes eight options cost little more than
one. A model without position ids or a cache (Mamba) reads every option in full; both ways agree and a test shows it.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedslm.data.example import Example
from fedslm.errors import DataError


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What a model scored on some examples.

    Attributes:
      accuracy: share of right answers, 0 to 1.
      loss: mean over examples of the right answer's mean negative log-likelihood per token, in nats.
      examples: how many were scored.
    """

    accuracy: float
    loss: float
    examples: int


def score_choices(
    model: nn.Module, tokenizer: Any, examples: Sequence[Example], *, max_length_tokens: int, batch_size: int
) -> Score:
    """Scores multiple-choice examples; free-text ones are passed over.

    Args:
      max_length_tokens: prompt and option together; prompts lose tokens at their start.
      batch_size: prompts in one forward pass.
    Raises:
      DataError: no example has choices.
    """
    items = sorted((example for example in examples if example.choices), key=lambda example: len(example.prompt))
    if not items:
        raise DataError("None of the examples to score has choices; accuracy needs multiple choice.")
    right, loss = 0, 0.0
    for start in range(0, len(items), batch_size):
        part = items[start : start + batch_size]
        batch = _Batch.of(part, tokenizer, max_length_tokens=max_length_tokens)
        likelihoods = batch.likelihoods(model)
        for example, options, lengths in zip(part, likelihoods, batch.option_lengths, strict=True):
            right += int(options.argmax()) == example.answer_index
            loss -= float(options[example.answer_index]) / lengths[example.answer_index]
    return Score(accuracy=right / len(items), loss=loss / len(items), examples=len(items))


def majority_rate(examples: Sequence[Example]) -> float:
    """The accuracy of always giving the commonest answer."""
    answers = [example.completion for example in examples if example.choices]
    return max(answers.count(answer) for answer in set(answers)) / len(answers) if answers else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Batch:
    """Prompts and options as token ids; options of all prompts in one flat list."""

    prompts: list[list[int]]
    options: list[list[int]]
    counts: list[int]
    pad_id: int

    @classmethod
    def of(cls, examples: Sequence[Example], tokenizer: Any, *, max_length_tokens: int) -> _Batch:
        texts = [choice for example in examples for choice in example.choices]
        options = tokenizer(texts, add_special_tokens=False)["input_ids"]
        room = max_length_tokens - max(len(option) for option in options)
        if room < 1:
            raise DataError(f"An option does not fit model.max_length_tokens={max_length_tokens}; raise it.")
        prompts = tokenizer([example.prompt for example in examples], add_special_tokens=True)["input_ids"]
        counts = [len(example.choices) for example in examples]
        return cls(prompts=[p[-room:] for p in prompts], options=options, counts=counts, pad_id=tokenizer.pad_token_id)

    @property
    def option_lengths(self) -> list[list[int]]:
        lengths = iter(len(option) for option in self.options)
        return [[next(lengths) for _ in range(count)] for count in self.counts]

    @torch.no_grad()
    def likelihoods(self, model: nn.Module) -> Iterator[Tensor]:
        """For each prompt, the summed log-likelihood of each of its options: tensors (options,)."""
        way = _with_shared_prompt if _takes_cache(model) else _in_full
        yield from torch.split(way(self, model), self.counts)

    @property
    def owners(self) -> list[int]:
        """For each option, the index of its prompt."""
        return [index for index, count in enumerate(self.counts) for _ in range(count)]


def _takes_cache(model: nn.Module) -> bool:
    inner: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    return {"position_ids", "past_key_values"} <= set(inspect.signature(inner.forward).parameters)


def _with_shared_prompt(batch: _Batch, model: nn.Module) -> Tensor:
    device = next(model.parameters()).device
    ids, mask = _padded(batch.prompts, batch.pad_id, device)
    lengths = mask.sum(dim=1)
    read = model(input_ids=ids, attention_mask=mask, use_cache=True)
    owners = torch.tensor(batch.owners, device=device)
    first = read.logits[torch.arange(len(ids), device=device), lengths - 1].float().log_softmax(dim=-1)[owners]
    options, option_mask = _padded(batch.options, batch.pad_id, device)
    total: Tensor = first.gather(1, options[:, :1])[:, 0]
    if options.shape[1] == 1:
        return total
    cache = read.past_key_values
    cache.batch_select_indices(owners)
    positions = lengths[owners, None] + torch.arange(options.shape[1] - 1, device=device)
    whole_mask = torch.cat([mask[owners], option_mask[:, :-1]], dim=1)
    going_on = {"attention_mask": whole_mask, "position_ids": positions, "past_key_values": cache, "use_cache": True}
    rest = model(input_ids=options[:, :-1], **going_on).logits.float().log_softmax(dim=-1)
    later = rest.gather(2, options[:, 1:, None])[..., 0]
    total += (later * option_mask[:, 1:]).sum(dim=1)
    return total


def _in_full(batch: _Batch, model: nn.Module) -> Tensor:
    device = next(model.parameters()).device
    prompts = [batch.prompts[owner] for owner in batch.owners]
    ids, mask = _padded([p + o for p, o in zip(prompts, batch.options, strict=True)], batch.pad_id, device)
    likely = model(input_ids=ids, attention_mask=mask).logits[:, :-1].float().log_softmax(dim=-1)
    chosen = likely.gather(2, ids[:, 1:, None])[..., 0]
    starts = torch.tensor([len(prompt) for prompt in prompts], device=device)
    is_option = torch.arange(1, ids.shape[1], device=device)[None] >= starts[:, None]
    total: Tensor = (chosen * is_option * mask[:, 1:]).sum(dim=1)
    return total


def _padded(sequences: list[list[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    width = max(len(sequence) for sequence in sequences)
    ids = torch.tensor([sequence + [pad_id] * (width - len(sequence)) for sequence in sequences], device=device)
    mask = torch.tensor([[1] * len(sequence) + [0] * (width - len(sequence)) for sequence in sequences], device=device)
    return ids, mask
