"""What cannot be trained privately, refused by name before the first step."""

from __future__ import annotations

from torch import nn

from fedslm.errors import PrivacyError


def check_trainable(model: nn.Module) -> None:
    """Refuses, by name, a model in which anything trains outside the clipped per-example path.

    Args:
      model: the model with its adapter.

    Raises:
      PrivacyError: modules_to_save, LoRA on embeddings, DoRA, batch norm, non-reentrant gradient checkpointing, a
        trainable parameter that is not the LoRA weight of a linear layer, or none that trains at all.
    """
    owners = {id(p): module for module in model.modules() for p in module.parameters(recurse=False)}
    for name, module in model.named_modules():
        _check_module(name, module)
    trainable = trainable_parameters(model)
    if not trainable:
        raise PrivacyError("The model has no trainable parameter; attach a LoRA adapter before training.")
    for name, parameter in trainable:
        _check_parameter(name, owners[id(parameter)])


def _check_module(name: str, module: nn.Module) -> None:
    """Refuses layers that mix the examples of a batch or that Opacus cannot see through."""
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        raise PrivacyError(
            f"The layer {name} is a batch norm, which mixes the examples of a batch; use a model without one, "
            "or choose privacy=none."
        )
    recompute = getattr(module, "_gradient_checkpointing_func", None)
    reentrant = getattr(recompute, "keywords", {}).get("use_reentrant", False)
    if recompute is not None and getattr(module, "gradient_checkpointing", False) and not reentrant:
        raise PrivacyError(
            f"The layer {name} uses non-reentrant gradient checkpointing, which hides its activations from the "
            "per-example hooks; switch checkpointing off or set use_reentrant=True."
        )


def _check_parameter(name: str, owner: nn.Module) -> None:
    """Refuses a trainable parameter that is not the LoRA weight of a linear layer."""
    refused = {
        "modules_to_save": "modules_to_save, which trains whole layers; leave modules_to_save empty",
        "lora_embedding_": "LoRA on embeddings; take the embedding out of target_modules",
        "lora_magnitude_vector": "DoRA; set use_dora=false",
    }
    for part, reason in refused.items():
        if part in name:
            raise PrivacyError(f"The parameter {name} belongs to {reason}, or choose privacy=none.")
    if not (".lora_A." in name or ".lora_B." in name) or type(owner) is not nn.Linear:
        raise PrivacyError(
            f"The parameter {name} trains but is not the LoRA weight of a linear layer, so its gradient cannot be "
            "clipped per patient; freeze it, or choose privacy=none."
        )


def trainable_parameters(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """What an optimizer would change, by name."""
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
