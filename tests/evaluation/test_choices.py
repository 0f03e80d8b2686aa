"""Scores by the shared prompt are the scores of every option read in full, one at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen2Config

from fedslm.data.example import Example
from fedslm.errors import DataError
from fedslm.evaluation import choices as module
from fedslm.evaluation.choices import majority_rate, score_choices

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
CONFIGS = {
    "llama": LlamaConfig(vocab_size=97, max_position_embeddings=64, num_key_value_heads=2, **SIZES),
    "qwen2": Qwen2Config(vocab_size=97, max_position_embeddings=64, num_key_value_heads=2, **SIZES),
    "gpt2": GPT2Config(vocab_size=97, n_positions=64, n_embd=32, n_layer=2, n_head=4),
}


class Letters:
    """A tokenizer of one token a character; token 0 is for padding only."""

    pad_token_id = 0
    eos_token_id = 1

    def __call__(self, text: list[str], *, add_special_tokens: bool) -> dict[str, list[list[int]]]:
        start = [2] if add_special_tokens else []
        return {"input_ids": [start + [3 + ord(letter) % 94 for letter in one] for one in text]}


def examples(count: int = 9, *, seed: int = 0, longest: int = 6) -> list[Example]:
    """Ragged prompts; two to five options of one to `longest` letters."""
    rng = np.random.default_rng(seed)

    def text(length: int) -> str:
        return "".join(chr(97 + letter) for letter in rng.integers(0, 26, length))

    made = []
    for _ in range(count):
        drawn = {text(int(rng.integers(1, longest + 1))) for _ in range(int(rng.integers(2, 6)))}
        options = tuple(sorted(drawn | {"z", "zy"}))  # a set's order, and with it the answers, changes by the process
        answer = options[int(rng.integers(len(options)))]
        made.append(Example(prompt=text(int(rng.integers(1, 30))), completion=answer, choices=options))
    return made


@pytest.fixture(scope="module", params=CONFIGS)
def model(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(CONFIGS[request.param]).eval()
    for parameter in made.parameters():  # livelier than the default, so that options differ
        parameter.data *= 8
    return made


def likeliest(model: Any, example: Example) -> str:
    """The choice that counts as right, one option at a time."""
    right = [
        choice
        for choice in example.choices
        if brute_force(model, [replace(example, completion=choice)], max_length_tokens=64)[0] == 1
    ]
    assert len(right) == 1
    return right[0]


def brute_force(model: Any, items: list[Example], *, max_length_tokens: int) -> tuple[float, float]:
    """One option in one forward pass, no padding, no cache."""
    right, losses = 0, []
    for example in items:
        options = Letters()(list(example.choices), add_special_tokens=False)["input_ids"]
        prompt = Letters()([example.prompt], add_special_tokens=True)["input_ids"][0]
        prompt = prompt[-(max_length_tokens - max(len(option) for each in items for option in ids_of(each))) :]
        sums = []
        for option in options:
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([prompt + option])).logits[0].float().log_softmax(-1)
            places = range(len(prompt) - 1, len(prompt) + len(option) - 1)
            sums.append(sum(float(logits[place, token]) for place, token in zip(places, option, strict=True)))
        right += int(np.argmax(sums)) == example.answer_index
        losses.append(-sums[example.answer_index] / len(options[example.answer_index]))
    return right / len(items), float(np.mean(losses))


def ids_of(example: Example) -> list[list[int]]:
    return Letters()(list(example.choices), add_special_tokens=False)["input_ids"]


def test_scores_are_those_of_one_option_at_a_time(model: Any) -> None:
    items = examples()
    accuracy, loss = brute_force(model, items, max_length_tokens=64)
    for batch_size in (1, 4, 100):
        score = score_choices(model, Letters(), items, max_length_tokens=64, batch_size=batch_size)
        assert score.accuracy == pytest.approx(accuracy)
        assert score.loss == pytest.approx(loss, rel=1e-4)
        assert score.examples == len(items)
    assert np.isfinite(loss)


def test_accuracy_counts_the_likeliest_options(model: Any) -> None:
    items = [replace(example, completion=likeliest(model, example)) for example in examples()]
    assert score_choices(model, Letters(), items, max_length_tokens=64, batch_size=4).accuracy == 1.0
    wrong = [
        replace(example, completion=next(choice for choice in example.choices if choice != example.completion))
        for example in items
    ]
    mixed = [*items[:3], *wrong[3:]]
    assert score_choices(model, Letters(), mixed, max_length_tokens=64, batch_size=4).accuracy == pytest.approx(3 / 9)


@pytest.mark.parametrize("longest", [1, 6])
def test_a_shared_prompt_changes_no_likelihood(model: Any, longest: int) -> None:
    batch = module._Batch.of(examples(longest=longest), Letters(), max_length_tokens=64)
    assert module._takes_cache(model)
    with torch.no_grad():
        shared, full = module._with_shared_prompt(batch, model), module._in_full(batch, model)
    torch.testing.assert_close(shared, full, rtol=1e-4, atol=1e-4)
    assert len(shared) == sum(batch.counts)


def test_a_prompt_that_is_too_long_loses_its_start(model: Any) -> None:
    items = examples()
    accuracy, loss = brute_force(model, items, max_length_tokens=16)
    score = score_choices(model, Letters(), items, max_length_tokens=16, batch_size=100)
    assert (score.accuracy, score.loss) == (pytest.approx(accuracy), pytest.approx(loss, rel=1e-4))
    assert score.loss != pytest.approx(brute_force(model, items, max_length_tokens=64)[1], rel=1e-3)


def test_the_padding_token_and_the_company_do_not_matter(model: Any) -> None:
    class Padded(Letters):
        pad_token_id = 5

    items = examples()
    first = score_choices(model, Letters(), items, max_length_tokens=64, batch_size=100)
    assert score_choices(model, Padded(), items, max_length_tokens=64, batch_size=100).loss == pytest.approx(first.loss)
    assert score_choices(model, Letters(), items[::-1], max_length_tokens=64, batch_size=2).loss == pytest.approx(
        first.loss, rel=1e-5
    )


def test_free_text_is_passed_over_and_nothing_to_score_is_refused(model: Any) -> None:
    free = Example(prompt="a", completion="b")
    items = examples(3)
    with_free = score_choices(model, Letters(), [free, *items], max_length_tokens=64, batch_size=2)
    assert with_free == score_choices(model, Letters(), items, max_length_tokens=64, batch_size=2)
    with pytest.raises(DataError, match="None of the examples"):
        score_choices(model, Letters(), [free], max_length_tokens=64, batch_size=2)


def test_an_option_that_does_not_fit_is_refused(model: Any) -> None:
    with pytest.raises(DataError, match="max_length_tokens=4"):
        score_choices(model, Letters(), examples(), max_length_tokens=4, batch_size=2)


def test_the_majority_is_the_commonest_answer() -> None:
    def answered(completion: str) -> Example:
        return Example(prompt="p", completion=completion, choices=("a", "b", "c"))

    rated = [answered(letter) for letter in "abbcb"]
    assert majority_rate(rated) == 0.6
    assert majority_rate([*rated, Example(prompt="p", completion="free")]) == 0.6
    assert majority_rate([]) == 0.0
