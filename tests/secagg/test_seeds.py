"""Seeds: what commits to them, what they become, and which of them are ever revealed."""

from __future__ import annotations

import itertools

from fedslm.crypto.prg import SecureStream
from fedslm.secagg.seeds import PAIR, SELF, commitment, cut_pairs, mask_key

CONTEXT, SEED = bytes(range(32)), bytes(range(32, 64))


def test_only_pairs_that_a_dropout_cut_are_revealed() -> None:
    for n in range(3, 7):
        for sharers in itertools.combinations(range(1, 7), n):
            for survivors in itertools.chain(*(itertools.combinations(sharers, size) for size in range(n + 1))):
                found = list(cut_pairs(sharers, survivors))
                assert found == sorted(set(found))
                assert set(found) == {(min(v, w), max(v, w)) for v in survivors for w in set(sharers) - set(survivors)}


def variants() -> list[tuple[str, bytes, int, int, bytes]]:
    return [
        (SELF, CONTEXT, 1, 2, SEED),
        (PAIR, CONTEXT, 1, 2, SEED),
        (PAIR, CONTEXT[:-1] + b"x", 1, 2, SEED),
        (PAIR, CONTEXT, 2, 1, SEED),
        (PAIR, CONTEXT, 1, 3, SEED),
        (PAIR, CONTEXT, 1, 2, SEED[:-1] + b"x"),
    ]


def test_a_commitment_and_a_key_depend_on_everything() -> None:
    assert len({commitment(*variant) for variant in variants()}) == len(variants())
    assert len({mask_key(*variant) for variant in variants()}) == len(variants())


def test_a_key_is_no_commitment() -> None:
    assert {mask_key(*variant) for variant in variants()}.isdisjoint({commitment(*variant) for variant in variants()})


def test_every_bit_of_a_seed_changes_the_mask() -> None:
    flipped = [(int.from_bytes(SEED, "big") ^ 1 << bit).to_bytes(32, "big") for bit in range(256)]
    masks = {SecureStream(mask_key(PAIR, CONTEXT, 1, 2, seed)).uint64(1)[0] for seed in (SEED, *flipped)}
    assert len(masks) == 257
