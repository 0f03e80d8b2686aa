"""The same work with the SecAgg+ functions of the installed Flower: the yardstick for our own protocol's speed.

Client steps are Flower's own; the coordinator's arithmetic is what its workflow does, with its functions, in its order.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from fedslm.errors import RunError
from fedslm.flower.compat import secaggplus

# The defaults of Flower's SecAggPlusWorkflow.
SETTINGS = {"clipping_range": 8.0, "target_range": 4194304, "mod_range": 4294967296, "max_weight": 1000.0}
NUM_EXAMPLES = 100
TOLERANCE = 1e-4


def measure(*, clients: int, params: int, dropouts: int, threshold: int) -> float:
    """CPU seconds of all clients and of the server together, one after the other.

    Args:
      dropouts: clients that share their keys and then send no vector.
    Raises:
      RunError: what came out is not the mean of what went in.
    """
    flower = secaggplus()
    started = time.process_time()
    states = {nid: _set_up(flower, nid, clients, threshold) for nid in range(1, clients + 1)}
    public = {str(nid): [state.pk1, state.pk2] for nid, state in states.items()}
    inbox = _exchange_shares(flower, states, public)
    active = sorted(states)[dropouts:]
    vector = np.random.default_rng(0).normal(0, 0.01, params).astype(np.float32)
    total = _collect(flower, states, inbox, active, vector)
    mean = _unmask(flower, states, active, total)
    spent = time.process_time() - started
    if np.abs(mean - vector).max() > TOLERANCE:
        raise RunError("Flower's SecAgg+ did not give back the mean; its functions have changed, so do not compare.")
    return spent


def _set_up(flower: Any, nid: int, clients: int, threshold: int) -> Any:
    state = flower.State()
    state.nid = nid
    key = flower.Key
    flower.setup(
        state,
        {
            key.SAMPLE_NUMBER: clients,
            key.SHARE_NUMBER: clients,
            key.THRESHOLD: threshold,
            key.CLIPPING_RANGE: SETTINGS["clipping_range"],
            key.TARGET_RANGE: SETTINGS["target_range"],
            key.MOD_RANGE: SETTINGS["mod_range"],
            key.MAX_WEIGHT: SETTINGS["max_weight"],
        },
    )
    return state


def _exchange_shares(flower: Any, states: dict[int, Any], public: dict[str, list[bytes]]) -> dict[int, dict[str, Any]]:
    key = flower.Key
    inbox: dict[int, dict[str, Any]] = {nid: {key.SOURCE_LIST: [], key.CIPHERTEXT_LIST: []} for nid in states}
    for nid, state in states.items():
        sent = flower.share_keys(state, public)
        for destination, ciphertext in zip(sent[key.DESTINATION_LIST], sent[key.CIPHERTEXT_LIST], strict=True):
            inbox[destination][key.SOURCE_LIST].append(nid)
            inbox[destination][key.CIPHERTEXT_LIST].append(ciphertext)
    return inbox


def _collect(flower: Any, states: dict[int, Any], inbox: dict[int, Any], active: list[int], vector: Any) -> Any:
    """Masks at every active client and adds up, as the vectors come."""
    total = None
    for nid in active:
        parameters = flower.ndarrays_to_parameters([vector])
        sent = flower.collect_masked_vectors(states[nid], inbox[nid], NUM_EXAMPLES, parameters)
        masked = [flower.bytes_to_ndarray(data) for data in sent[flower.Key.MASKED_PARAMETERS]]
        total = masked if total is None else flower.parameters_addition(total, masked)
    return flower.parameters_mod(total, SETTINGS["mod_range"])


def _unmask(flower: Any, states: dict[int, Any], active: list[int], total: Any) -> Any:
    key, dead = flower.Key, sorted(set(states) - set(active))
    shares: dict[int, list[bytes]] = {nid: [] for nid in states}
    for nid in active:
        sent = flower.unmask(states[nid], {key.ACTIVE_NODE_ID_LIST: active, key.DEAD_NODE_ID_LIST: dead})
        for owner, share in zip(sent[key.NODE_ID_LIST], sent[key.SHARE_LIST], strict=True):
            shares[owner].append(share)
    shape = flower.get_parameters_shape(total)
    for nid, held in shares.items():
        secret = flower.combine_shares(held)
        if nid in active:
            total = flower.parameters_subtraction(total, flower.pseudo_rand_gen(secret, SETTINGS["mod_range"], shape))
        else:
            total = _remove_pairs(flower, states, nid, secret, total, shape)
    recovered = flower.parameters_mod(total, SETTINGS["mod_range"])
    ratio, recovered = flower.factor_extract(recovered)
    sums = flower.dequantize(recovered, SETTINGS["clipping_range"], SETTINGS["target_range"])
    # The dequantizer takes one offset away; each of the vectors that were added carries one.
    offset = (len(active) - 1) * SETTINGS["clipping_range"]
    return (sums[0] - offset) * (SETTINGS["target_range"] / ratio)


def _remove_pairs(flower: Any, states: dict[int, Any], nid: int, secret: bytes, total: Any, shape: Any) -> Any:
    for other, state in states.items():
        if other != nid:
            seed = flower.generate_shared_key(
                flower.bytes_to_private_key(secret), flower.bytes_to_public_key(state.pk1)
            )
            mask = flower.pseudo_rand_gen(seed, SETTINGS["mod_range"], shape)
            change = flower.parameters_addition if nid > other else flower.parameters_subtraction
            total = change(total, mask)
    return total
