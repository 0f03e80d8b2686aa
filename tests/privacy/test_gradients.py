"""Clipped sums against a loop that knows nothing of batches, hooks or padding; and what must never move them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from scipy import stats
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, OPTConfig

from fedslm.crypto.prg import SecureStream
from fedslm.errors import PrivacyError
from fedslm.privacy.gradients import Batch, PerUnitGradients, mean_gradient, private_gradient
from fedslm.privacy.hooks import ExampleHooks
from tests.privacy.toys import (
    BATCH_UNITS,
    CONFIGS,
    VOCAB,
    build_batch,
    build_mechanism,
    build_model,
    example_gradient,
    looped_sum,
    median_norm,
    ragged,
    relative_error,
)


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


def test_what_a_pass_leaves_half_done_is_forgotten() -> None:
    model = build_model()
    trainable = {name: value for name, value in model.named_parameters() if value.requires_grad}
    with ExampleHooks.on(model, trainable):
        next(iter(trainable.values()))._current_grad_sample = torch.zeros(1)  # type: ignore[attr-defined]
    assert_clean(model)


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
    with pytest.raises(PrivacyError, match="is packed"):  # two examples, numbered in the mask
        Batch(**(parts | {"attention_mask": good.attention_mask * 2}), unit_ids=good.unit_ids)
    twice = torch.full_like(good.labels, -100)
    twice[:, 1], twice[:, 3] = 5, 6
    with pytest.raises(PrivacyError, match="is packed"):  # two completions with a prompt between them
        Batch(**(parts | {"labels": twice}), unit_ids=good.unit_ids)
    with pytest.raises(PrivacyError, match="padded on the left"):
        Batch(**(parts | {"attention_mask": good.attention_mask.flip(1)}), unit_ids=good.unit_ids)
    with pytest.raises(PrivacyError, match="physical_batch_size is 0"):
        PerUnitGradients(build_model(), physical_batch_size=0)
