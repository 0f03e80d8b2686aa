"""The bound is tight: with T colluders the split attack fails, with one more it reads one hospital's vector.

The attack: one group of honest hospitals is shown one U3, another group another one, and the colluders sign both.
"""

from __future__ import annotations

import numpy as np
import pytest

from fedslm.crypto.shamir import combine
from fedslm.errors import ConsistencyError
from tests.secagg.adversary import Account, Adversary, Secret
from tests.secagg.session import levels_of

N, PROMISED = 7, 2  # t = 5: fewer than 2t - n = 3 may collude
VICTIM, OTHER = 1, 2
EVERYBODY = tuple(range(1, N + 1))


def opened(colluders: int) -> Adversary:
    """Seven hospitals that masked for everybody; the last `colluders` of them collude."""
    adversary = Adversary(N, promised=PROMISED, colluders=range(N - colluders + 1, N + 1))
    adversary.open(1, dict.fromkeys(adversary.honest, 0))
    for point in adversary.honest:
        others = [other for other in EVERYBODY if other != point]
        deliveries = [adversary.delivery(other, point, 1, 0) for other in others]
        adversary.mask(point, 1, deliveries, context=adversary.accounts[1, 0].terms.context)
    return adversary


def show(adversary: Adversary, survivors: tuple[int, ...], group: tuple[int, ...]) -> None:
    """Shows a group its U3 and asks it to confirm; then collects what it reveals, if enough signed."""
    context, sets = adversary.accounts[1, 0].terms.context, (EVERYBODY, survivors)
    for point in group:
        adversary.confirm(point, 1, sets, context=context)
    for point in group:
        adversary.unmask(point, 1, adversary.confirmations(1, 0, sets), context=context)


def seeds_from(account: Account, secrets: list[Secret]) -> dict[Secret, bytes]:
    """What the adversary takes for the seeds: those its colluders have, the others from all the shares it holds."""
    inside = {secret: bool({secret.u, secret.v} & account.colluders) for secret in secrets}
    return {secret: account.seeds[secret] if inside[secret] else combine(account.held[secret]) for secret in secrets}


def guess(adversary: Adversary) -> np.ndarray:
    """The victim's vector, as far as the adversary can compute it."""
    account = adversary.accounts[1, 0]
    return account.sum_of([VICTIM], seeds_from(account, sorted(account.masks[VICTIM])))


def test_with_one_colluder_too_many_the_split_reads_one_hospital() -> None:
    adversary = opened(PROMISED + 1)  # honest: 1 to 4, colluders: 5, 6, 7
    show(adversary, (1, 2, 5, 6, 7), (1, 2))
    show(adversary, (1, 3, 4, 5, 6, 7), (3, 4))
    account = adversary.accounts[1, 0]
    assert np.array_equal(guess(adversary), levels_of(account.terms, VICTIM))
    assert frozenset({VICTIM}) in account.openable()  # and the account that the fuzzer relies on says so
    assert len(list(adversary.leaks())) > 1


@pytest.mark.parametrize("groups", [((1, 2, 3), (4, 5)), ((1, 2), (3, 4, 5)), ((1, 3, 5), (2, 4))])
def test_with_as_many_colluders_as_promised_the_split_fails(groups: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    adversary = opened(PROMISED)  # honest: 1 to 5, colluders: 6, 7
    first, second = groups
    refusals = 0
    for survivors, group in (((1, 2, 3, 5, 6, 7), first), ((1, 3, 4, 5, 6, 7), second)):
        here = tuple(point for point in group if point in survivors)
        try:
            show(adversary, survivors, here)
        except ConsistencyError:
            refusals += 1
    assert refusals >= 1  # of two groups among five, one has fewer than three
    assert list(adversary.leaks()) == []
    assert not np.array_equal(guess(adversary), levels_of(adversary.accounts[1, 0].terms, VICTIM))


def test_with_as_many_colluders_as_promised_one_agreed_set_gives_its_sum_and_nothing_less() -> None:
    adversary = opened(PROMISED)
    show(adversary, (1, 2, 3, 6, 7), (1, 2, 3))
    account = adversary.accounts[1, 0]
    assert account.openable() == [frozenset({1, 2, 3})]
    seeds = seeds_from(account, sorted({secret for point in (1, 2, 3) for secret in account.masks[point]}))
    total = account.sum_of([1, 2, 3], seeds)
    assert np.array_equal(total, sum(levels_of(account.terms, point) for point in (1, 2, 3)))
    assert not np.array_equal(guess(adversary), levels_of(account.terms, VICTIM))
    assert not account.knows(Secret(VICTIM, OTHER))
