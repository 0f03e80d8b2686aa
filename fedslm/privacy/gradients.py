"""Clipped sums of per-unit LoRA gradients, on any causal language model with a PEFT adapter.

Opacus hooks record one gradient per example; the examples of a unit are added, the sum is clipped, the clipped units
are added in float64. Hooks live for one call: afterwards the model carries nothing of them, so that simulated hospitals
can share it. Loss, padding and batching are shared with the non-private path (`mean_gradient`).

The loss is the mean over the completion tokens of *one example*, summed over examples. The `loss` that transformers
returns averages over the batch, which lets one record's length change another record's weight (measured: sensitivity
1.2 C), so it is never used.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fedslm.errors import PrivacyError
from fedslm.privacy.hooks import ExampleHooks
from fedslm.privacy.noise import CLIP_MARGIN
from fedslm.privacy.refusals import check_trainable, trainable_parameters

if TYPE_CHECKING:
    from fedslm.crypto.prg import SecureStream
    from fedslm.privacy.mechanism import Mechanism

IGNORED = -100
"""Label of a token that the loss leaves out, as in transformers."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Tokenised examples, padded on the right, and the privacy unit each belongs to.

    Attributes:
      input_ids: int64 (B, T).
      attention_mask: int64 (B, T), 1 on tokens and 0 on the padding after them.
      labels: int64 (B, T), the token itself where it belongs to the completion, else -100; not shifted.
      unit_ids: int64 (B,), equal for the examples of one unit; any numbers.

    Raises:
      PrivacyError: shapes that do not agree, padding on the left, where positions would depend on other records, or
        packing: several examples in one row, which would share one gradient and read each other.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    unit_ids: Tensor

    def __post_init__(self) -> None:
        shape = self.input_ids.shape
        if len(shape) != 2 or self.attention_mask.shape != shape or self.labels.shape != shape:
            raise PrivacyError("A batch needs input_ids, attention_mask and labels of one shape (B, T); pad alike.")
        if self.unit_ids.shape != shape[:1]:
            raise PrivacyError("A batch needs one unit id for each of its examples; pass unit_ids of shape (B,).")
        if self._is_packed():
            raise PrivacyError(
                "A batch is packed, with several examples in one row, so patients cannot be told apart; switch packing off "
                "and give each example a row."
            )
        if bool((self.attention_mask[:, 1:] > self.attention_mask[:, :-1]).any()):
            raise PrivacyError("A batch is padded on the left; pad it on the right, so that positions start at 0.")

    def _is_packed(self) -> bool:
        """Packers number a row's examples in its mask, or leave each its own completion."""
        answered = self.labels != IGNORED
        starts = answered[:, 1:] & ~answered[:, :-1]
        completions = starts.sum(dim=1) + answered[:, :1].sum(dim=1)
        return bool((self.attention_mask > 1).any() or (completions > 1).any())

    def __len__(self) -> int:
        return len(self.unit_ids)

    @classmethod
    def empty(cls) -> Batch:
        """What an empty draw gives: no examples."""
        nothing = torch.zeros((0, 1), dtype=torch.int64)
        return cls(input_ids=nothing, attention_mask=nothing, labels=nothing, unit_ids=nothing[:, 0])

    def select(self, index: Tensor) -> Batch:
        """Takes some examples and cuts the columns in which all of them are padding."""
        mask = self.attention_mask[index]
        width = max(1, int(mask.sum(dim=1).max())) if len(index) else 1
        return Batch(
            input_ids=self.input_ids[index, :width],
            attention_mask=mask[:, :width],
            labels=self.labels[index, :width],
            unit_ids=self.unit_ids[index],
        )

    def to(self, device: torch.device) -> Batch:
        """Moves the tokens to a device; the unit ids stay where they are."""
        return replace(
            self,
            input_ids=self.input_ids.to(device),
            attention_mask=self.attention_mask.to(device),
            labels=self.labels.to(device),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ClippedSum:
    """The sum over units of their clipped gradients, before noise. Private: it never leaves the hospital.

    Attributes:
      values: float64 (parameters,) on the CPU, in the order of `PerUnitGradients.names`.
      dropped_units: units whose gradient was not finite or failed, and which contributed nothing.
    """

    values: Tensor
    dropped_units: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivateGradient:
    """One noised gradient.

    Attributes:
      values: parameter name -> float32 tensor of the parameter's shape, on the CPU; differentially private.
      dropped_units: as in `ClippedSum`; private, for the local log only.
    """

    values: dict[str, Tensor]
    dropped_units: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MeanGradient:
    """One plain gradient, without any privacy.

    Attributes:
      values: parameter name -> float32 tensor of the parameter's shape, on the CPU.
      loss: mean over the examples of their mean loss per completion token, in nats.
    """

    values: dict[str, Tensor]
    loss: float


class PerUnitGradients:
    """Computes clipped sums for one model. Checks it once; leaves it clean after every call.

    Args:
      model: a causal language model with a PEFT LoRA adapter, in train or eval mode.
      physical_batch_size: examples in one forward pass. A unit is never divided, so memory follows the larger of this
        and the cap on records per unit.

    Raises:
      PrivacyError: something trains outside the clipped path; the message names it.
    """

    def __init__(self, model: nn.Module, *, physical_batch_size: int = 64) -> None:
        if physical_batch_size < 1:
            raise PrivacyError(f"physical_batch_size is {physical_batch_size}; it has to be at least 1.")
        check_trainable(model)
        self._model = model
        self._size = physical_batch_size
        self._trainable = dict(trainable_parameters(model))

    @property
    def names(self) -> tuple[str, ...]:
        """Trainable parameters in the order of the flat vector."""
        return tuple(self._trainable)

    @property
    def parameter_count(self) -> int:
        """Length of the flat vector."""
        return sum(parameter.numel() for parameter in self._trainable.values())

    def clipped_sum(self, batch: Batch, *, clip_norm: float) -> ClippedSum:
        """Sums the clipped gradients of the batch's units, without noise.

        Args:
          batch: the examples of one draw, all records of a unit together; may be empty.
          clip_norm: bound C > 0 on a unit, over all trainable tensors together.

        Returns:
          The sum and how many units were dropped.

        Guarantees: each unit contributes at most C in L2 norm: its norm is taken on exactly the tensor that is added,
        in float64 over fp32 gradients, and clipped to C (1 - 1e-5). A unit whose gradient is not finite, or whose
        pass fails, contributes nothing and raises nothing. An empty batch runs no forward pass. Other units' records
        change a unit's contribution only by floating-point rounding.

        Raises:
          PrivacyError: the set of trainable parameters changed, or one got no per-example gradient.
        """
        # By identity: comparing tensors with == would compare their entries.
        if [id(value) for _, value in trainable_parameters(self._model)] != [*map(id, self._trainable.values())]:
            raise PrivacyError("The trainable parameters changed after they were checked; build the engine anew.")
        total = torch.zeros(self.parameter_count, dtype=torch.float64)
        dropped = 0
        if len(batch):
            with ExampleHooks.on(self._model, self._trainable) as hooks:
                for physical in _physical_batches(batch, self._size):
                    dropped += _add_batch(self._model, hooks, physical, total, clip_norm * (1.0 - CLIP_MARGIN))
        return ClippedSum(values=total, dropped_units=dropped)

    def named(self, flat: Tensor) -> dict[str, Tensor]:
        """Cuts a flat vector into named float32 tensors of the parameters' shapes."""
        pieces = torch.split(flat.to(torch.float32), [parameter.numel() for parameter in self._trainable.values()])
        return {
            name: piece.view(parameter.shape)
            for piece, (name, parameter) in zip(pieces, self._trainable.items(), strict=True)
        }


def private_gradient(
    engine: PerUnitGradients, batch: Batch, *, mechanism: Mechanism, stream: SecureStream
) -> PrivateGradient:
    """Makes one DP step's gradient: clip each unit, sum, add noise, divide by the public expected batch size.

    Args:
      engine: the model's gradients.
      batch: one Poisson draw of units; where the mechanism protects records, each example is its own unit.
      mechanism: clip norm, noise and normaliser.
      stream: source of the noise.

    Returns:
      The noised gradient by name.

    Guarantees: one Gaussian mechanism of `mechanism.event`. An empty draw gives pure noise; nothing about the data can
    stop the step.

    Raises:
      PrivacyError: more trainable parameters than the mechanism allows for, or a model that cannot be trained this way.

    Source: Abadi et al. 2016, arXiv 1607.00133, Alg. 1.
    """
    if mechanism.unit == "record":
        batch = replace(batch, unit_ids=torch.arange(len(batch)))
    clipped = engine.clipped_sum(batch, clip_norm=mechanism.clip_norm)
    released = mechanism.release(clipped.values.numpy(), stream=stream)
    return PrivateGradient(values=engine.named(torch.from_numpy(released)), dropped_units=clipped.dropped_units)


def mean_gradient(model: nn.Module, batch: Batch, *, physical_batch_size: int = 64) -> MeanGradient:
    """The non-private counterpart: the mean gradient of the same loss over the drawn examples.

    Args:
      model: any causal language model with trainable parameters.
      batch: the examples; may be empty, which gives zeros.
      physical_batch_size: examples in one forward pass.

    Returns:
      Gradient and loss; no clipping, no noise, no guarantee.
    """
    names, parameters = zip(*trainable_parameters(model), strict=True)
    totals = [torch.zeros(parameter.shape) for parameter in parameters]
    loss = 0.0
    for physical in _physical_batches(batch, physical_batch_size):
        partial = summed_loss(model, physical.to(parameters[0].device))
        loss += partial.item()
        for total, gradient in zip(totals, torch.autograd.grad(partial, parameters), strict=True):
            total += gradient.cpu()
    count = max(1, len(batch))
    values = {name: total.div_(count) for name, total in zip(names, totals, strict=True)}
    return MeanGradient(values=values, loss=loss / count)


def summed_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Sums over examples their mean loss per completion token.

    Args:
      model: a causal language model on the batch's device.
      batch: examples, each with at least one completion token.

    Returns:
      A scalar, in nats, with its graph.

    Guarantees: an example's term depends on no other example.
    """
    targets = batch.labels[:, 1:].masked_fill(batch.attention_mask[:, 1:] == 0, IGNORED)
    rows, columns = (targets != IGNORED).nonzero(as_tuple=True)
    weights = (targets != IGNORED).sum(dim=1).to(torch.float32).reciprocal()[rows]
    logits = _logits_at(model, batch, rows, columns).float()
    losses = nn.functional.cross_entropy(logits, targets[rows, columns], reduction="none")
    return losses @ weights


def _add_batch(model: nn.Module, hooks: ExampleHooks, batch: Batch, total: Tensor, bound: float) -> int:
    """Adds a physical batch to the total; returns how many units contributed nothing.

    Whether a pass fails may depend on the data, so a failure must not show: the units are tried one by one, and the
    ones that fail count as dropped. Only faults of the model, which are the same for all data, are raised.
    """
    try:
        part, dropped = _clip(_unit_gradients(model, hooks, batch), bound)
    except PrivacyError:
        raise
    except Exception as error:
        hooks.reset()
        units = torch.unique(batch.unit_ids)
        if len(units) == 1:
            _log.warning("A unit was left out of a step: %s", type(error).__name__)
            return 1
        alone = (batch.select((batch.unit_ids == unit).nonzero()[:, 0]) for unit in units)
        return sum(_add_batch(model, hooks, one, total, bound) for one in alone)
    total += part  # whole or not at all: nothing of a pass that failed half-way is left in it
    return dropped


def _unit_gradients(model: nn.Module, hooks: ExampleHooks, batch: Batch) -> list[Tensor]:
    """Gives the gradients of the batch's units: one (units, P) tensor per parameter, fp32 or as computed."""
    hooks.expect(batch.input_ids)
    units, slots = torch.unique(batch.unit_ids, return_inverse=True)
    summed_loss(model, batch.to(trainable_parameters(model)[0][1].device)).backward()  # type: ignore[no-untyped-call]
    return [_by_unit(gradient, slots, len(units)) for gradient in hooks.take()]


def _clip(gradients: list[Tensor], bound: float) -> tuple[Tensor, int]:
    """Scales each unit's row to norm `bound` at most, over all tensors together, and adds the rows up.

    Returns:
      The sum, float64 on the CPU, and how many units were left out because they are not finite.
    """
    squares = torch.stack([torch.linalg.vector_norm(_exact(g), dim=1).square() for g in gradients])
    norms = squares.sum(dim=0).sqrt()
    finite = torch.isfinite(norms)
    weights = torch.where(finite, bound / norms, 0.0).clamp(max=1.0)[finite]
    if not bool(finite.all()):  # 0 * NaN is NaN, so bad rows are left out, not weighted
        gradients = [gradient[finite] for gradient in gradients]
    return torch.cat([(weights @ _exact(gradient)).cpu() for gradient in gradients]), int((~finite).sum())


def _exact(gradient: Tensor) -> Tensor:
    """Converts to float64, where squares and scaled sums of fp32 numbers are exact but for a last rounding.

    One tensor at a time, so that the copy stays small. Apple's GPUs have no float64; the CPU takes over there.
    """
    return (gradient.cpu() if gradient.device.type == "mps" else gradient).to(torch.float64)


def _by_unit(gradients: Tensor, slots: Tensor, units: int) -> Tensor:
    """Adds the rows (B, P) that share a slot, giving (units, P) in fp32, in any order; as they are where each has one."""
    if units == len(gradients):
        return gradients
    sums = torch.zeros((units, gradients.shape[1]), dtype=torch.float32, device=gradients.device)
    return sums.index_add_(0, slots.to(gradients.device), gradients.float())


def _physical_batches(batch: Batch, size: int) -> Iterator[Batch]:
    """Divides a batch into parts of whole units, at most `size` examples each, units of like length together.

    Examples without a completion token have no loss and are left out. A unit larger than `size` gets a part of its own.
    """
    targets = (batch.labels[:, 1:] != IGNORED) & (batch.attention_mask[:, 1:] == 1)
    batch = batch.select(targets.any(dim=1).nonzero()[:, 0])
    if not len(batch):
        return
    _, slots, counts = torch.unique(batch.unit_ids, return_inverse=True, return_counts=True)
    lengths = batch.attention_mask.sum(dim=1)
    longest = torch.zeros_like(counts).scatter_reduce_(0, slots, lengths, "amax")
    by_length = longest.argsort(stable=True)
    rank = torch.empty_like(by_length)
    rank[by_length] = torch.arange(len(rank))
    order = rank[slots].argsort(stable=True)
    for part in torch.split(order, _part_sizes(counts[by_length].tolist(), size)):
        yield batch.select(part)


def _part_sizes(counts: list[int], size: int) -> list[int]:
    """Fills parts greedily with whole units of the given numbers of examples."""
    sizes = [0]
    for count in counts:
        if sizes[-1] and sizes[-1] + count > size:
            sizes.append(0)
        sizes[-1] += count
    return sizes


def _logits_at(model: nn.Module, batch: Batch, rows: Tensor, columns: Tensor) -> Tensor:
    """Computes the logits (N, V) at the given places only.

    The vocabulary is the widest layer of a small model and most places carry no label, so the hidden states are
    gathered before the head; what a model does after the head (soft caps, scaling) still happens. A head that trains
    itself sees everything, because its per-example gradients need the batch dimension.
    """
    find_head: Any = getattr(model, "get_output_embeddings", None)
    head = find_head() if find_head else None
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "use_cache": False}
    if head is None or any(parameter.requires_grad for parameter in head.parameters()):
        return _tensor(model(**inputs).logits[rows, columns])

    def gather(_module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
        return (args[0][rows, columns].unsqueeze(0),)

    handle = head.register_forward_pre_hook(gather)
    try:
        return _tensor(model(**inputs).logits[0])
    finally:
        handle.remove()


def _tensor(value: Any) -> Tensor:
    """Tells the type checker what an untyped library returned."""
    return value  # type: ignore[no-any-return]
