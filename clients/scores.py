"""Scores the incoming adapter on a hospital's held-out patients, before it trains; only with noise does anything leave.

Each patient is scored alone. In a batch with others the longest record of all would decide how much of each prompt is read,
and the batch's shape the last bits: what a patient says of the adapter is to hang on that patient's records only, so that
nobody else moves it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from clients.site import Site
from clients.streams import SCORES, open_stream
from clients.train import Workbench, load_adapter
from fedslm.data.example import Example
from fedslm.evaluation.choices import score_choices
from fedslm.flower.records import TrainRequest
from fedslm.models.adapters import Adapter
from fedslm.privacy.planned import planned_mechanism
from fedslm.privacy.scores import release_scores, scaled

_log = logging.getLogger(__name__)


def score_round(request: TrainRequest, site: Site, bench: Workbench) -> npt.NDArray[np.float64]:
    """Scores the given global adapter on the held-out patients, and adds the plan's noise.

    A patient who cannot be scored gives nothing, and it does not show.

    Returns:
      The two numbers for the masked vector, float64 (2,); differentially private.
    Raises:
      ModelError: the adapter is not the plan's. DataError: the records cannot be read.
    """
    if site.threads:
        torch.set_num_threads(site.threads)
    plan = request.plan
    patients = list(_by_patient(bench.records(site).held_out, plan.privacy.max_records_per_unit))
    with bench.adapter(plan.model, plan.adapter) as (tokenizer, adapter):
        load_adapter(adapter, request)
        limit = plan.model.max_length_tokens
        found = [_share(records, adapter, tokenizer, max_length_tokens=limit) for records in patients]
    stream = open_stream(site, plan, SCORES, request.round, request.attempt)
    shares = (share for share in found if share is not None)
    return scaled(release_scores(shares, planned_mechanism(plan, site.hospital), stream=stream), plan)


def _by_patient(examples: Sequence[Example], bound: int) -> Iterator[list[Example]]:
    """At most `bound` multiple-choice records of each patient, the same ones in every session."""
    patients: dict[str | None, list[Example]] = {}
    for example in examples:
        if example.choices:
            patients.setdefault(example.patient_id, []).append(example)
    for records in patients.values():
        yield sorted(records, key=lambda example: example.rank)[:bound]


def _share(records: list[Example], adapter: Adapter, tokenizer: Any, *, max_length_tokens: int) -> float | None:
    """One patient's share of right answers; None where it cannot be told."""
    try:
        score = score_choices(
            adapter.model, tokenizer, records, max_length_tokens=max_length_tokens, batch_size=len(records)
        )
    except Exception as error:
        _log.warning("A patient was left out of the scores: %s", type(error).__name__)
        return None
    return score.accuracy if math.isfinite(score.loss) else None
