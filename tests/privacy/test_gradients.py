"""Clipped sums against a loop that knows nothing of batches, hooks or padding; and what must never move them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from scipy import stats
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, MistralConfig, OPTConfig, Qwen2Config

from fedslm.crypto.prg import SecureStream
from fedslm.errors import PrivacyError
from fedslm.privacy.gradients import Batch, PerUnitGradients, mean_gradient, private_gradient
from tests.privacy.test_mechanism import build as build_mechanism

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


@pytest.mark.parametrize("family", sorted(CONFIGS))
@pytest.mark.parametrize("ffa", [False, True], ids=["full", "ffa"])
def test_sum_equals_one_example_at_a_time(family: str, ffa: bool) -> None:
    model, batch = build_model(family, ffa=ffa), ragged()
    for clip_norm in (1e6, median_norm(model, batch), 1e-3):
        expected = looped_sum(model, batch, clip_norm)
        for size in (1, 3, 64):
            found = PerUnitGradients(model, physical_batch_size=size).clipped_sum(batch, clip_norm=clip_norm)
            assert relative_error(found.values, expected) < 2e-5
            assert found.dropped_units == 0


def test_unclipped_sum_agrees_to_1e_5() -> None:
    # Without clipping the margin of 1e-5 does not enter, so that the gradients themselves show.
    model, batch = build_model(), ragged()
    found = PerUnitGradients(model).clipped_sum(batch, clip_norm=1e6).values
    assert relative_error(found, looped_sum(model, batch, 1e6)) < 1e-5


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_mode_does_not_matter_and_is_kept(mode: str) -> None:
    model, batch = build_model().train(mode == "train"), ragged()
    before = [module.training for module in model.modules()]
    found = PerUnitGradients(model).clipped_sum(batch, clip_norm=0.5).values
    assert relative_error(found, looped_sum(model, batch, 0.5)) < 2e-5
    assert [module.training for module in model.modules()] == before


def test_lora_on_the_head_is_seen_per_example() -> None:
    model = build_model(target_modules=["q_proj", "lm_head"])
    found = PerUnitGradients(model, physical_batch_size=3).clipped_sum(ragged(), clip_norm=0.5).values
    assert relative_error(found, looped_sum(model, ragged(), 0.5)) < 2e-5


def test_bf16_units_stay_within_the_clip_norm() -> None:
    model = build_model().to(torch.bfloat16)
    for index in range(8):
        found = PerUnitGradients(model).clipped_sum(ragged().select(torch.tensor([index])), clip_norm=0.01)
        assert float(found.values.norm()) <= 0.01


@pytest.mark.parametrize("clip_norm", [0.05, 2.0])
def test_removing_a_patient_moves_the_sum_by_at_most_c(clip_norm: float) -> None:
    # Fails for the batch-mean loss, for clipping a batch's sum and for clipping each record of a patient.
    model, batch = build_model(), ragged()
    engine = PerUnitGradients(model, physical_batch_size=4)
    whole = engine.clipped_sum(batch, clip_norm=clip_norm).values
    moves = []
    for unit in set(BATCH_UNITS):
        without = batch.select((batch.unit_ids != unit).nonzero()[:, 0])
        moves.append(float((whole - engine.clipped_sum(without, clip_norm=clip_norm).values).norm()))
    assert max(moves) <= clip_norm
    assert clip_norm > 1 or max(moves) > 0.999 * clip_norm  # the bound is reached, so the test can fail


def test_other_records_lengths_do_not_change_a_contribution() -> None:
    model = build_model()
    engine = PerUnitGradients(model)
    pair = build_batch([8, 20], [2, 12], [0, 1])
    both = engine.clipped_sum(pair, clip_norm=1e6).values
    alone = [engine.clipped_sum(pair.select(torch.tensor([index])), clip_norm=1e6).values for index in (0, 1)]
    assert relative_error(both, alone[0] + alone[1]) < 1e-5


def test_examples_without_completion_tokens_add_nothing() -> None:
    model = build_model()
    engine = PerUnitGradients(model)
    batch = build_batch([8, 6, 9], [2, 0, 3], [0, 1, 2])
    with_answers = batch.select(torch.tensor([0, 2]))
    found, expected = (engine.clipped_sum(part, clip_norm=1.0).values for part in (batch, with_answers))
    assert torch.equal(found, expected)
    silent = engine.clipped_sum(build_batch([8], [0], [0]), clip_norm=1.0)
    assert float(silent.values.norm()) == 0.0
    assert silent.dropped_units == 0


def refuse_to_run(*_: Any, **__: Any) -> None:
    raise AssertionError("the model ran a forward pass")


def test_an_empty_draw_gives_pure_noise_and_no_forward_pass() -> None:
    model = build_model()
    handle = model.register_forward_pre_hook(refuse_to_run)
    mechanism = build_mechanism(noise_multiplier=2.0)
    step = private_gradient(PerUnitGradients(model), Batch.empty(), mechanism=mechanism, stream=SecureStream(bytes(32)))
    handle.remove()
    noise = torch.cat([value.flatten() for value in step.values.values()]).double()
    # sigma * C / (q * N) = 2 * 0.5 / 64; no noise, half the noise and a realised normaliser of 0 or 1 all fail.
    right = 2.0 * 0.5 / 64
    assert stats.kstest(noise.numpy(), stats.norm(scale=right).cdf).pvalue > 1e-3
    for wrong in (1 / 2, 2 / 3, 3 / 2):
        assert stats.kstest(noise.numpy(), stats.norm(scale=right * wrong).cdf).pvalue < 1e-6


def test_private_gradient_is_sum_plus_noise_over_the_public_batch() -> None:
    model, batch = build_model(), ragged()
    engine = PerUnitGradients(model)
    mechanism = build_mechanism(noise_multiplier=1.5)
    step = private_gradient(engine, batch, mechanism=mechanism, stream=SecureStream(bytes(32)))
    quiet = private_gradient(engine, Batch.empty(), mechanism=mechanism, stream=SecureStream(bytes(32)))
    signal = torch.cat([(step.values[name] - quiet.values[name]).flatten() for name in engine.names]).double()
    # The same key gives the same noise, so the difference is the clipped sum over 64 expected, not 5 drawn, units.
    assert relative_error(signal, looped_sum(model, batch, 0.5) / 64) < 1e-4
    assert {name: value.shape for name, value in step.values.items()} == {
        name: parameter.shape for name, parameter in model.named_parameters() if parameter.requires_grad
    }


def test_where_records_are_protected_each_is_clipped_by_itself() -> None:
    model, batch = build_model(), ragged()
    mechanism = build_mechanism(unit="record", noise_multiplier=1e-9)
    step = private_gradient(PerUnitGradients(model), batch, mechanism=mechanism, stream=SecureStream(bytes(32)))
    found = torch.cat([value.flatten() for value in step.values.values()]).double() * 64
    records = build_batch([12, 5, 9, 20, 7, 4, 15, 6], [3, 1, 6, 9, 2, 3, 1, 4], list(range(8)))
    assert relative_error(found, looped_sum(model, records, 0.5)) < 1e-4


def test_torch_seed_does_not_reach_the_noise() -> None:
    engine = PerUnitGradients(build_model())
    steps = []
    for _ in range(2):
        torch.manual_seed(0)
        steps.append(
            private_gradient(engine, Batch.empty(), mechanism=build_mechanism(), stream=SecureStream.from_os())
        )
    name = engine.names[0]
    assert not torch.equal(steps[0].values[name], steps[1].values[name])


def poison(model: nn.Module, token: int) -> None:
    with torch.no_grad():
        embedding = model.get_input_embeddings()  # type: ignore[operator]
        embedding.weight[token] = float("nan")


@pytest.mark.parametrize("size", [1, 64])
def test_a_unit_that_is_not_finite_contributes_nothing(size: int) -> None:
    model, batch = build_model(), ragged()
    batch.input_ids[batch.input_ids == 11] = 12
    batch.input_ids[2, 1] = 11  # a record of patient 7, who has two more
    poison(model, 11)
    engine = PerUnitGradients(model, physical_batch_size=size)
    found = engine.clipped_sum(batch, clip_norm=0.5)
    others = engine.clipped_sum(batch.select((batch.unit_ids != 7).nonzero()[:, 0]), clip_norm=0.5)
    assert found.dropped_units == 1
    assert torch.isfinite(found.values).all()
    assert relative_error(found.values, others.values) < 1e-5


def test_a_unit_whose_pass_fails_contributes_nothing_and_raises_nothing() -> None:
    model, batch = build_model(), ragged()
    batch.input_ids[3, 0] = VOCAB + 5  # patient 5: no such token
    engine = PerUnitGradients(model)
    found = engine.clipped_sum(batch, clip_norm=0.5)
    others = engine.clipped_sum(batch.select((batch.unit_ids != 5).nonzero()[:, 0]), clip_norm=0.5)
    assert found.dropped_units == 1
    assert relative_error(found.values, others.values) < 1e-5
    assert_clean(model)


def assert_clean(model: nn.Module) -> None:
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module._backward_hooks
        assert not {"activations", "max_batch_len", "autograd_grad_sample_hooks"} & set(vars(module))
    for parameter in model.parameters():
        assert parameter.grad is None
        assert not any("grad_sample" in name or "counter" in name for name in vars(parameter))


def test_the_model_is_left_clean_and_can_be_shared() -> None:
    model, batch = build_model(), ragged()
    first, second = PerUnitGradients(model), PerUnitGradients(model, physical_batch_size=2)
    once = first.clipped_sum(batch, clip_norm=0.5).values
    assert_clean(model)
    mean_gradient(model, batch)
    assert_clean(model)
    second.clipped_sum(batch, clip_norm=0.5)
    assert torch.equal(first.clipped_sum(batch, clip_norm=0.5).values, once)
    assert_clean(model)


def test_a_unit_is_never_divided_between_physical_batches() -> None:
    batch = build_batch([6] * 7, [2] * 7, [4, 4, 4, 4, 4, 2, 1])
    model = build_model()
    found = PerUnitGradients(model, physical_batch_size=2).clipped_sum(batch, clip_norm=0.1).values
    assert relative_error(found, looped_sum(model, batch, 0.1)) < 2e-5


def test_mean_gradient_is_the_plain_mean_of_the_same_loss() -> None:
    model, batch = build_model(), ragged()
    expected = sum(example_gradient(model, batch, index) for index in range(8)) / 8
    for size in (3, 64):
        plain = mean_gradient(model, batch, physical_batch_size=size)
        found = torch.cat([value.flatten() for value in plain.values.values()]).double()
        assert relative_error(found, torch.as_tensor(expected)) < 1e-5
    with torch.no_grad():
        losses = [float(model(**row(batch, index)).loss) for index in range(8)]
    assert plain.loss == pytest.approx(sum(losses) / 8, rel=1e-5)
    empty = mean_gradient(model, Batch.empty())
    assert empty.loss == 0.0
    assert all(not value.any() for value in empty.values.values())


def row(batch: Batch, index: int) -> dict[str, Tensor]:
    length = int(batch.attention_mask[index].sum())
    return {
        "input_ids": batch.input_ids[index : index + 1, :length],
        "labels": batch.labels[index : index + 1, :length],
    }


@pytest.mark.parametrize(
    ("lora", "word"),
    [
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, "LoRA on embeddings"),
        ({"use_dora": True}, "DoRA"),
        ({"trainable_token_indices": [1, 2]}, "trainable_tokens"),
    ],
)
def test_whatever_trains_outside_the_clipped_path_is_refused(lora: dict[str, Any], word: str) -> None:
    with pytest.raises(PrivacyError, match=word):
        PerUnitGradients(build_model(**lora))


def test_a_trainable_base_weight_is_refused_by_name() -> None:
    model = build_model()
    name, parameter = next((n, p) for n, p in model.named_parameters() if "norm" in n)
    parameter.requires_grad = True
    with pytest.raises(PrivacyError, match=name):
        PerUnitGradients(model)


def test_a_model_that_trains_nothing_is_refused() -> None:
    with pytest.raises(PrivacyError, match="no trainable parameter"):
        PerUnitGradients(build_model().requires_grad_(False))


def test_batch_norm_is_refused() -> None:
    model = build_model()
    model.add_module("norm_of_batch", nn.BatchNorm1d(4, affine=False))
    with pytest.raises(PrivacyError, match="norm_of_batch is a batch norm"):
        PerUnitGradients(model)


def test_checkpointing_that_hides_activations_is_refused_and_the_other_kind_is_right() -> None:
    model = build_model().train()
    model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    with pytest.raises(PrivacyError, match="use_reentrant=True"):
        PerUnitGradients(model)
    expected = looped_sum(build_model(), ragged(), 0.5)
    model.gradient_checkpointing_enable({"use_reentrant": True})  # type: ignore[operator]
    model.enable_input_require_grads()  # type: ignore[operator]
    found = PerUnitGradients(model).clipped_sum(ragged(), clip_norm=0.5).values
    assert relative_error(found, expected) < 2e-5


def test_an_adapter_that_is_switched_off_is_refused_by_name() -> None:
    model = build_model()
    engine = PerUnitGradients(model)
    with model.disable_adapter(), pytest.raises(PrivacyError):  # type: ignore[operator]
        engine.clipped_sum(ragged(), clip_norm=1.0)


def test_a_parameter_without_a_gradient_is_refused_by_name() -> None:
    model = build_model()
    model.add_adapter("idle", LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))  # type: ignore[operator]
    for name, parameter in model.named_parameters():
        parameter.requires_grad = "lora_" in name
    with pytest.raises(PrivacyError, match=r"idle.* got no per-example gradient"):
        PerUnitGradients(model).clipped_sum(ragged(), clip_norm=1.0)
    assert_clean(model)


def test_layers_that_flatten_examples_are_refused_by_name() -> None:
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=VOCAB, hidden_size=16, ffn_dim=16, num_hidden_layers=1, num_attention_heads=2, word_embed_proj_dim=16
    )
    base = AutoModelForCausalLM.from_config(config)
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["fc1"], task_type="CAUSAL_LM"))
    with pytest.raises(PrivacyError, match="fc1"):
        PerUnitGradients(model).clipped_sum(ragged(), clip_norm=1.0)
    assert_clean(model)


def test_a_changed_set_of_trainable_parameters_is_refused() -> None:
    model = build_model()
    engine = PerUnitGradients(model)
    next(p for n, p in model.named_parameters() if "lora_A" in n).requires_grad = False
    with pytest.raises(PrivacyError, match="changed"):
        engine.clipped_sum(ragged(), clip_norm=1.0)


def test_an_adapter_larger_than_the_plan_allows_is_refused() -> None:
    mechanism = build_mechanism(max_parameters=10)
    with pytest.raises(PrivacyError, match="allows for 10"):
        private_gradient(
            PerUnitGradients(build_model()), Batch.empty(), mechanism=mechanism, stream=SecureStream(bytes(32))
        )


def test_malformed_batches_are_refused() -> None:
    good = ragged()
    parts = {"input_ids": good.input_ids, "attention_mask": good.attention_mask, "labels": good.labels}
    with pytest.raises(PrivacyError, match="unit id"):
        Batch(**parts, unit_ids=torch.arange(3))
    with pytest.raises(PrivacyError, match="one shape"):
        Batch(**(parts | {"labels": good.labels[:, 1:]}), unit_ids=good.unit_ids)
    with pytest.raises(PrivacyError, match="padded on the left"):
        Batch(**(parts | {"attention_mask": good.attention_mask.flip(1)}), unit_ids=good.unit_ids)
    with pytest.raises(PrivacyError, match="physical_batch_size is 0"):
        PerUnitGradients(build_model(), physical_batch_size=0)
