"""Whatever would train outside the clipped path is refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from fedslm.errors import PrivacyError
from fedslm.privacy.gradients import PerUnitGradients
from tests.privacy.toys import build_model, looped_sum, ragged, relative_error


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
