"""The embedded model loads, is what its card says, knows the format and not the task."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from fedslm.data.hospitals import FINDINGS, SERVICES, ask_service, build_hospitals, pooled_test
from fedslm.models.tiny import tiny_path
from simulations import pretrain_tiny


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(tiny_path())


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_path(), use_safetensors=True).eval()


def _next_tokens(model: Any, tokenizer: Any, prompts: list[str]) -> torch.Tensor:
    """Probabilities of the token after each prompt: (prompts, vocabulary)."""
    batch = tokenizer(prompts, padding=True, padding_side="right", return_tensors="pt")
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return torch.softmax(logits[torch.arange(len(prompts)), batch["attention_mask"].sum(dim=1) - 1], dim=-1)


def _service_ids(tokenizer: Any) -> list[int]:
    return [tokenizer(service)["input_ids"][0] for service in SERVICES]


def test_folder_is_small_and_holds_no_pickle() -> None:
    files = [path for path in tiny_path().iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 4_000_000
    assert not [path for path in files if path.suffix in {".bin", ".pt", ".pth", ".pkl"}]


def test_parameters_context_and_type(model: Any, tokenizer: Any) -> None:
    assert 500_000 < model.num_parameters() < 1_100_000
    assert model.config.max_position_embeddings >= 256
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert len(tokenizer) == model.config.vocab_size <= 2048


def test_special_tokens_agree(model: Any, tokenizer: Any) -> None:
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert model.config.pad_token_id == tokenizer.pad_token_id
    assert model.config.eos_token_id == model.generation_config.eos_token_id == tokenizer.eos_token_id


@pytest.mark.parametrize("text", ["67M c/o CP x2h.\n", "- dyspnoea\n- ", "naïve £5 日本 \t x", "  two  spaces"])
def test_tokenizer_round_trips(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_prompt_and_answer_split_as_their_concatenation(tokenizer: Any) -> None:
    for example in pooled_test(build_hospitals(seed=0, scale=0.01), per_hospital=5):
        apart = tokenizer(example.prompt)["input_ids"] + tokenizer(example.completion)["input_ids"]
        assert tokenizer(example.prompt + example.completion)["input_ids"] == apart


def test_every_service_is_one_token_so_choices_compare_fairly(tokenizer: Any) -> None:
    assert {len(tokenizer(service)["input_ids"]) for service in SERVICES} == {1}


def test_card_states_the_hash_of_the_weights() -> None:
    stated = re.search(r"SHA-256 `([0-9a-f]{64})`", (tiny_path() / "README.md").read_text(encoding="utf-8"))
    assert stated is not None
    assert stated[1] == hashlib.sha256((tiny_path() / "model.safetensors").read_bytes()).hexdigest()


def test_base_model_knows_the_format_but_not_the_task(model: Any, tokenizer: Any) -> None:
    examples = pooled_test(build_hospitals(seed=11, scale=0.01), per_hospital=40)
    services = _service_ids(tokenizer)
    shares = _next_tokens(model, tokenizer, [example.prompt for example in examples])[:, services]
    assert shares.sum(dim=1).mean() > 0.5  # more on the eight services than on all 1528 other tokens
    right = sum(int(share.argmax()) == e.answer_index for share, e in zip(shares, examples, strict=True))
    assert right / len(examples) < 0.3


def test_base_model_reads_a_service_that_is_named(model: Any, tokenizer: Any) -> None:
    prompt = ask_service("67M c/o hives x2h, CP. Seen by urology.")
    best = int(_next_tokens(model, tokenizer, [prompt]).argmax())
    assert best == _service_ids(tokenizer)[SERVICES.index("urology")]


def test_generation_ends(model: Any, tokenizer: Any) -> None:
    ids = torch.tensor([tokenizer(ask_service("40F c/o hives x3h, acne. NKDA."))["input_ids"]])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False)[0, ids.shape[1] :]
    assert out[-1] == tokenizer.eos_token_id


def test_pretraining_text_never_ties_a_finding_to_its_service() -> None:
    """A finding meets its own service no more often than chance: one in eight."""
    rng = Random(1)
    own = {word: service for service, rows in FINDINGS.items() for row in rows for word in row}
    met = [
        own[word] == service
        for prompt, answer in (pretrain_tiny.draw_document(rng) for _ in range(8000))
        for service in SERVICES
        if service in (prompt + answer).lower()
        for word in own
        if len(word) > 6 and word in prompt
    ]
    assert len(met) > 1000
    assert 0.09 < sum(met) / len(met) < 0.16


def test_miniature_pretraining_writes_a_model_that_loads(tmp_path: Path) -> None:
    recipe = pretrain_tiny.Recipe(steps=2, batch=4, hidden=32, layers=1, intermediate=32, vocabulary=400, threads=1)
    threads = torch.get_num_threads()
    try:
        pretrain_tiny.make_model(tmp_path, recipe)
    finally:
        torch.set_num_threads(threads)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).num_parameters() < 50_000
    assert (tmp_path / "README.md").read_text(encoding="utf-8").startswith("---")
