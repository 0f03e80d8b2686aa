"""Examples to token ids. The loss is taken on the completion; truncation shortens the prompt, never the answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from fedslm.data.example import Example


class Tokenizer(Protocol):
    """The part of a `transformers` tokenizer that is used here."""

    eos_token_id: int | None

    def __call__(self, text: list[str], *, add_special_tokens: bool) -> Any:
        """Maps texts to `{"input_ids": [[int, ...], ...]}`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenisedExample:
    """Token ids of one example.

    Attributes:
      input_ids: int64, shape (T,), prompt then completion.
      completion_start: index of the completion's first token; the loss covers input_ids[completion_start:].
    """

    input_ids: np.ndarray[Any, np.dtype[np.int64]]
    completion_start: int


def tokenise(examples: Sequence[Example], tokenizer: Tokenizer, *, max_length_tokens: int) -> list[TokenisedExample]:
    """Tokenises prompts with the model's special tokens and completions without, ending free text with the end token.

    A prompt that is too long loses tokens at its start, so that the question at its end and the answer stay. An answer
    that is itself too long is cut at its end. Nothing is ever refused here: whether it were would depend on the draw.
    """
    if not examples:
        return []
    prompts = tokenizer([example.prompt for example in examples], add_special_tokens=True)["input_ids"]
    answers = tokenizer([example.completion for example in examples], add_special_tokens=False)["input_ids"]
    ends = [_end(example, tokenizer) for example in examples]
    return [
        _join(prompt, answer + end, max_length_tokens)
        for prompt, answer, end in zip(prompts, answers, ends, strict=True)
    ]


def _end(example: Example, tokenizer: Tokenizer) -> list[int]:
    # A choice is scored by its own tokens alone; free text must also learn where to stop.
    return [] if example.choices or tokenizer.eos_token_id is None else [tokenizer.eos_token_id]


def _join(prompt: list[int], answer: list[int], max_length_tokens: int) -> TokenisedExample:
    answer = answer[: max_length_tokens - 1]
    kept = prompt[len(answer) - max_length_tokens :]
    return TokenisedExample(input_ids=np.array(kept + answer, dtype=np.int64), completion_start=len(kept))
