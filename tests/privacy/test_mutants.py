"""Faults that void the guarantee and look like working code. Each is put into the product, and a check has to notice.

A mutant changes the source of one function of the product for the length of a test. Its check has to pass on the code as
it is (it is run there once) and to fail on the mutant. The checks drive `clients.train`, the way that hospitals train,
wherever the fault shows there.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant
from scipy import stats

from clients import streams, train
from clients.site import RecordSource, Site
from clients.train import Units
from fedslm.crypto.prg import SecureStream
from fedslm.data.example import Example
from fedslm.governance.plan import Plan
from fedslm.models.adapters import peft_name
from fedslm.privacy import gradients, noise, sampling
from fedslm.privacy.accounting import EpsilonCurve, epsilon_spent
from fedslm.privacy.composition import Composition
from fedslm.privacy.gradients import PerUnitGradients
from fedslm.privacy.mechanism import Mechanism
from fedslm.privacy.planned import planned_mechanism
from tests.builders import toy_plan
from tests.mutants import CAUGHT, Mutant, mutate
from tests.privacy.toys import build_batch, build_model, looped_sum, ragged, relative_error

Flat = npt.NDArray[np.float64]


class Letters:
    """A tokenizer of one token a letter, within the toy model's vocabulary."""

    pad_token_id = 0
    eos_token_id = None

    def __call__(self, text: list[str], *, add_special_tokens: bool) -> dict[str, list[list[int]]]:
        return {"input_ids": [[ord(letter) - 96 for letter in one] for one in text]}


def site(*, seed: int | None = 5, unit: str = "patient") -> Site:
    source = RecordSource(kind="embedded")
    return Site(hospital="hospital-0", sources=(source,), unit=unit, declared_population=40, simulation_seed=seed)


def plan(*, steps: int = 1, **privacy: Any) -> Plan:
    """One hospital's plan in the clear: C 0.5, sigma 1.5, 40 declared patients, plain descent with rate 1."""
    return toy_plan(privacy={"clip_norm": 0.5, **privacy}, training={"local_steps": steps})


def patients(count: int, *, records: int = 1) -> Units:
    texts = [Example(prompt="abcdefgh"[: 2 + n % 6], completion="xyz"[: 1 + n % 3]) for n in range(count * records)]
    return Units(examples=tuple(texts), records_of=list(np.arange(count * records).reshape(count, records)))


def update(agreed: Plan, units: Units, *, where: Site | None = None, number: int = 1) -> Flat:
    """What one session of a hospital changes in the adapter, as one vector in the engine's order."""
    model = build_model()
    trained = {peft_name(name): value for name, value in model.named_parameters() if value.requires_grad}
    before = [value.detach().clone() for value in trained.values()]
    adapter: Any = SimpleNamespace(model=model, trained=trained)
    request: Any = SimpleNamespace(plan=agreed, round=number, attempt=0)
    train._take_steps(adapter, units, request, where or site(), Letters())
    moves = (value.detach() - old for value, old in zip(trained.values(), before, strict=True))
    return torch.cat([move.flatten() for move in moves]).double().numpy()


@contextmanager
def counted(owner: type, name: str) -> Iterator[list[Any]]:
    """Collects what a method returns."""
    seen: list[Any] = []
    method = getattr(owner, name)

    def spy(*args: Any, **kwargs: Any) -> Any:
        seen.append(method(*args, **kwargs))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, spy)
        yield seen


# --- the checks ----------------------------------------------------------------------------------------------------------


def noise_is_all_there() -> None:
    """Sessions without anybody drawn move the adapter by noise of sigma C sqrt(steps) / (q N), by Kolmogorov-Smirnov."""
    agreed = plan(steps=4, sample_rate=1e-9)
    found = update(agreed, patients(8)) * (1e-9 * 40) / (1.5 * 0.5 * 2.0)
    assert stats.kstest(found, "norm").pvalue > 1e-3


def units_are_clipped_one_by_one() -> None:
    """The sum is that of a loop which clips one patient after the other."""
    model, batch = build_model(), ragged()
    engine = PerUnitGradients(model)
    for clip_norm in (0.05, 0.5):
        whole = engine.clipped_sum(batch, clip_norm=clip_norm).values
        assert relative_error(whole, looped_sum(model, batch, clip_norm)) < 2e-5


def nobody_moves_the_sum_by_more_than_the_bound() -> None:
    """One patient with a long answer beside others with short ones, and a C that only that patient reaches."""
    model, batch = build_model(), build_batch([20, 6, 6, 6, 6], [15, 1, 1, 1, 1], [0, 1, 2, 3, 4])
    engine = PerUnitGradients(model)
    alone = [batch.select(torch.tensor([row])) for row in range(5)]
    norms = [float(engine.clipped_sum(one, clip_norm=1e6).values.norm()) for one in alone]
    clip_norm = max(norms)
    whole = engine.clipped_sum(batch, clip_norm=clip_norm).values
    for row in range(5):
        without = batch.select(torch.tensor([other for other in range(5) if other != row]))
        moved = float((whole - engine.clipped_sum(without, clip_norm=clip_norm).values).norm())
        assert moved <= clip_norm


def normaliser_is_public() -> None:
    """Eight patients found where forty are declared: the clipped sum is divided by the forty expected."""
    agreed = plan(sample_rate=1.0)
    signal = update(agreed, patients(8)) - update(agreed, patients(0))  # the same key, so the same noise
    batch = train.draw(
        patients(8), planned_mechanism(agreed, "hospital-0").sampler, stream(), Letters(), max_length_tokens=32
    )
    expected = -looped_sum(build_model(), batch, 0.5) / 40
    assert relative_error(torch.from_numpy(signal), expected) < 1e-3


def stream() -> SecureStream:
    return SecureStream(bytes(32))


def draws(found: int, *, steps: int) -> Flat:
    """How many patients each step draws of those found, at the planned rate of 1/4."""
    sampler = planned_mechanism(plan(sample_rate=0.25), "hospital-0").sampler
    source, units = stream(), patients(found)
    return np.array(
        [len(train.draw(units, sampler, source, Letters(), max_length_tokens=32)) for _ in range(steps)],
        dtype=np.float64,
    )


def draw_sizes_spread_as_they_are_accounted() -> None:
    """Binomial(40, 1/4): variance 7.5, to within five standard errors."""
    spread = draws(40, steps=600).var()
    assert 7.5 * (1 - 5 * np.sqrt(2 / 600)) < spread < 7.5 * (1 + 5 * np.sqrt(2 / 600))


def rate_is_the_planned_one() -> None:
    """Of 160 patients, four times as many as declared, a quarter is drawn: 40 on average, and not 10."""
    assert abs(draws(160, steps=300).mean() - 40) < 5 * np.sqrt(30 / 300)


def every_step_is_noised_and_accounted() -> None:
    """Half the draws are empty; the releases are as many as the accountant counts, and cost what another one finds."""
    agreed = plan(steps=8, sample_rate=0.08)
    mechanism = planned_mechanism(agreed, "hospital-0")
    with counted(Mechanism, "release") as releases:
        for number in (1, 2, 3):  # each session builds its engine anew
            update(agreed, patients(8), number=number)
    assert len(releases) == mechanism.event(3).count == 24
    expected = pytest.approx(priced(0.08, mechanism.accounted_noise_multiplier, len(releases)), abs=1e-6)
    assert epsilon_spent(mechanism, sessions=3, delta=1e-5) == expected
    one_by_one = Composition()
    for _ in range(3):
        one_by_one.add(mechanism)
    assert one_by_one.epsilon(delta=1e-5) == expected


@functools.cache
def priced(rate: float, sigma: float, steps: int) -> float:
    """Epsilon at 1e-5 by an accountant that knows no `Mechanism`."""
    step = PoissonSampledDpEvent(rate, GaussianDpEvent(sigma))
    accountant = PLDAccountant(value_discretization_interval=1e-3).compose(SelfComposedDpEvent(step, steps))
    return float(accountant.get_epsilon(1e-5))


def a_deployment_cannot_be_repeated() -> None:
    """Two sessions after equal seeds of every generator that has one."""
    found = []
    for _ in range(2):
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        found.append(update(plan(), patients(3), where=site(seed=None)))
    assert not np.array_equal(*found)


def a_patient_counts_once() -> None:
    """Patients of three records at a cap of two: a patient's two records share one bound, and the third is left out."""
    agreed = plan(sample_rate=1.0, max_records_per_unit=2, clip_norm=0.05, noise_multiplier=1e-9)
    moved = np.linalg.norm(update(agreed, patients(1, records=3))) * 40
    assert 0.99 * 0.05 < moved <= 1.001 * 0.05  # the adapter is fp32
    sampler = planned_mechanism(agreed, "hospital-0").sampler
    batch = train.draw(patients(5, records=3), sampler, stream(), Letters(), max_length_tokens=32)
    assert torch.bincount(batch.unit_ids).tolist() == [2] * 5


def a_patients_records_are_bounded() -> None:
    examples = tuple(Example(prompt=f"note {n}", completion="c", patient_id=f"p{n % 2}") for n in range(9))
    assert len(train._units(examples, site(unit="record"), 3).records_of) == 6


# --- the mutants ---------------------------------------------------------------------------------------------------------


MUTANTS = [
    Mutant(
        name="no noise",
        function=noise.noised_sum,
        old="scale=noise_multiplier * 2.0**GRID_BITS",
        new="scale=0.0",
        check=noise_is_all_there,
    ),
    Mutant(
        name="half the noise",
        function=noise.noised_sum,
        old="scale=noise_multiplier * 2.0**GRID_BITS",
        new="scale=noise_multiplier * 2.0 ** (GRID_BITS - 1)",
        check=noise_is_all_there,
    ),
    Mutant(
        name="the noise of one step in every step",
        function=train._take_steps,
        old="request.attempt, number)",
        new="request.attempt, 0)",
        check=noise_is_all_there,
    ),
    Mutant(
        name="clip per batch",
        function=gradients._clip,
        old="norms = squares.sum(dim=0).sqrt()",
        new="norms = torch.cat([_exact(g).sum(dim=0) for g in gradients]).norm().expand(len(gradients[0]))",
        check=units_are_clipped_one_by_one,
    ),
    Mutant(
        name="clip per parameter",
        function=gradients._clip,
        old="norms = squares.sum(dim=0).sqrt()",
        new="norms = squares.max(dim=0).values.sqrt()",
        check=units_are_clipped_one_by_one,
    ),
    Mutant(
        name="batch-mean loss",
        function=gradients.summed_loss,
        old="(targets != IGNORED).sum(dim=1).to(torch.float32).reciprocal()[rows]",
        new="torch.full((len(rows),), len(batch) / len(rows))",
        check=nobody_moves_the_sum_by_more_than_the_bound,
    ),
    Mutant(
        name="realised batch as normaliser",
        function=gradients.private_gradient,
        old="released = mechanism.release(clipped.values.numpy(), stream=stream)",
        new="released = mechanism.release(clipped.values.numpy(), stream=stream)\n"
        "    released = released * mechanism.expected_batch_size / max(1, len(batch.unit_ids.unique()))",
        check=normaliser_is_public,
    ),
    Mutant(
        name="shuffled instead of Poisson sampling",
        function=sampling.PoissonSampler.draw,
        old="drawn = coins < threshold",
        new="drawn = coins.argsort().argsort() < round(self.sample_rate * units)",
        check=draw_sizes_spread_as_they_are_accounted,
    ),
    Mutant(
        name="empty draw not noised",
        function=train._take_steps,
        old="gradient = routine.gradient(batch, stream)",
        new="if not len(batch):\n            continue\n        gradient = routine.gradient(batch, stream)",
        check=every_step_is_noised_and_accounted,
    ),
    Mutant(
        name="empty draw drawn again",
        function=train._take_steps,
        old="gradient = routine.gradient(batch, stream)",
        new="routine.gradient(batch, stream)\n"
        "        while not len(batch):\n"
        "            batch = draw(units, routine.sampler, stream, tokenizer, max_length_tokens=32)\n"
        "        gradient = routine.gradient(batch, stream)",
        check=every_step_is_noised_and_accounted,
    ),
    Mutant(
        name="empty draw not counted",
        function=EpsilonCurve.epsilon,
        old="self._mechanism.steps * sessions",
        new="round(self._mechanism.steps * sessions * (1 - (1 - self._mechanism.sample_rate) ** 8))",
        check=every_step_is_noised_and_accounted,
    ),
    Mutant(
        name="engine rebuilt so that epsilon restarts",
        function=EpsilonCurve.epsilon,
        old="self._mechanism.steps * sessions",
        new="self._mechanism.steps",
        check=every_step_is_noised_and_accounted,
    ),
    Mutant(
        name="the composition forgets what was added",
        function=Composition.add,
        old="self._steps.get(kind, 0) + ",
        new="",
        check=every_step_is_noised_and_accounted,
    ),
    Mutant(
        name="seeded generator in a deployment: torch's",
        function=streams.open_stream,
        old="return SecureStream.from_os()",
        new="return SecureStream(bytes(__import__('torch').randint(0, 256, (32,)).tolist()))",
        check=a_deployment_cannot_be_repeated,
    ),
    Mutant(
        name="seeded generator in a deployment: a fixed seed",
        function=streams.open_stream,
        old="return SecureStream.from_os()",
        new="site = __import__('dataclasses').replace(site, simulation_seed=0)",
        check=a_deployment_cannot_be_repeated,
    ),
    Mutant(
        name="q computed from the data",
        function=train.draw,
        old="drawn = sampler.draw(len(units.records_of), stream=stream)",
        new="rate = min(1.0, 10 / len(units.records_of))\n"
        "    drawn = dataclasses.replace(sampler, sample_rate=rate).draw(len(units.records_of), stream=stream)",
        check=rate_is_the_planned_one,
    ),
    Mutant(
        name="a patient's records clipped one by one",
        function=gradients.private_gradient,
        old='if mechanism.unit == "record":',
        new="if True:",
        check=a_patient_counts_once,
    ),
    Mutant(
        name="all records of a patient in a step",
        function=train.draw,
        old="sampler.choose(units.records_of[unit], stream=stream)",
        new="units.records_of[unit]",
        check=a_patient_counts_once,
    ),
    Mutant(
        name="a patient's records not bounded",
        function=train._bounded,
        old="[:bound]",
        new="",
        check=a_patients_records_are_bounded,
    ),
]


@functools.cache
def passes(check: Callable[[], None]) -> None:
    check()


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_the_check_passes_on_the_code_and_fails_on_the_mutant(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    passes(mutant.check)
    mutate(monkeypatch, mutant)
    with pytest.raises(CAUGHT):
        mutant.check()
