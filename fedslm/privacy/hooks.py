"""Opacus's hooks on a shared model: one gradient per example, for the length of one call."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from opacus.grad_sample.grad_sample_module import GradSampleHooks
from torch import Tensor, nn

from fedslm.errors import PrivacyError


class ExampleHooks:
    """Opacus hooks on one model for the length of one step, with a guard on what they record."""

    def __init__(self, model: nn.Module, trainable: dict[str, nn.Parameter]) -> None:
        self.model = model
        self._trainable = trainable
        self._shape = torch.Size()
        self._layers = [
            (name, module)
            for name, module in model.named_modules()
            if any(parameter.requires_grad for parameter in module.parameters(recurse=False))
        ]

    @classmethod
    @contextmanager
    def on(cls, model: nn.Module, trainable: dict[str, nn.Parameter]) -> Iterator[ExampleHooks]:
        """Attaches the hooks, and removes every trace of them whatever happens."""
        hooks = cls(model, trainable)
        modes = [module.training for _, module in hooks._layers]
        opacus = GradSampleHooks(model, loss_reduction="sum")
        guards = [module.register_forward_hook(hooks._guard(name)) for name, module in hooks._layers]
        try:
            for _, module in hooks._layers:
                module.training = True  # Opacus passes over layers in eval mode; a linear layer ignores the flag
            with warnings.catch_warnings():
                # True and harmless: a first layer's input needs no gradient, and Opacus reads only the output's.
                warnings.filterwarnings("ignore", message="Full backward hook is firing")
                yield hooks
        finally:
            hooks.reset()
            opacus.cleanup()
            for guard in guards:
                guard.remove()
            for (_, module), mode in zip(hooks._layers, modes, strict=True):
                module.training = mode

    def expect(self, batch: Tensor) -> None:
        """Announces the tokens (B, T) of the next pass, whose layout every hooked layer has to keep."""
        self._shape = batch.shape

    def take(self) -> list[Tensor]:
        """Takes the gradients that a backward pass has left: one (B, P) tensor per parameter, as computed.

        Raises:
          PrivacyError: a parameter got none.
        """
        return [self._take(name) for name in self._trainable]

    def reset(self) -> None:
        """Forgets what a finished or failed pass has left on layers and parameters."""
        for _, module in self._layers:
            for attribute in ("activations", "max_batch_len"):
                if hasattr(module, attribute):
                    delattr(module, attribute)
        for parameter in self._trainable.values():
            state: Any = parameter
            state.grad, state.grad_sample, state._forward_counter = None, None, 0
            if hasattr(parameter, "_current_grad_sample"):
                del parameter._current_grad_sample

    def _take(self, name: str) -> Tensor:
        """Takes a parameter's per-example gradients as (B, P), and frees them on the parameter."""
        parameter: Any = self._trainable[name]
        gradients, parameter.grad_sample, parameter.grad = parameter.grad_sample, None, None
        if not isinstance(gradients, Tensor) or len(gradients) != self._shape[0]:
            raise PrivacyError(
                f"The parameter {name} got no per-example gradient, so it cannot be clipped; freeze it, "
                "or choose privacy=none."
            )
        return gradients.flatten(start_dim=1)

    def _guard(self, name: str) -> Any:
        """Makes a forward hook that refuses a layer whose input is not laid out as (examples, tokens, features)."""

        def check(_module: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
            if inputs[0].shape[:-1] != self._shape:
                raise PrivacyError(
                    f"The layer {name} gets several examples' tokens in one row (as in OPT or mixtures of experts), "
                    "so patients cannot be told apart; take it out of target_modules, or use another model."
                )

        return check
