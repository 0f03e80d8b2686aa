"""Randomness is the operating system's, or, in a simulation, a stream for every place that is never used twice."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from clients.site import RecordSource, Site
from clients.streams import ROUNDING, STEP, open_stream
from tests.builders import toy_plan

SITE = Site(
    hospital="hospital-0",
    sources=(RecordSource(kind="embedded"),),
    unit="patient",
    declared_population=40,
    simulation_seed=1,
)


def test_a_simulations_stream_is_used_once() -> None:
    plan, other = toy_plan(), toy_plan(nonce="f" * 32)
    opened = [
        open_stream(SITE, plan, STEP, 1, 0, 0),
        open_stream(SITE, plan, STEP, 2, 0, 0),
        open_stream(SITE, plan, STEP, 1, 1, 0),
        open_stream(SITE, plan, STEP, 1, 0, 1),
        open_stream(SITE, plan, ROUNDING, 1, 0, 0),
        open_stream(SITE, plan, ROUNDING, 1, 0),
        open_stream(dataclasses.replace(SITE, hospital="hospital-1"), plan, STEP, 1, 0, 0),
        open_stream(SITE, other, STEP, 1, 0, 0),
        open_stream(dataclasses.replace(SITE, simulation_seed=2), plan, STEP, 1, 0, 0),
    ]
    assert len({int(stream.uint64(1)[0]) for stream in opened}) == len(opened)
    again = open_stream(SITE, plan, STEP, 1, 0, 0).uint64(4)
    np.testing.assert_array_equal(open_stream(SITE, plan, STEP, 1, 0, 0).uint64(4), again)


def test_without_a_seed_every_stream_comes_from_the_operating_system(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr("os.urandom", lambda count: asked.append(count) or bytes(count))
    for purpose in (STEP, ROUNDING):
        open_stream(dataclasses.replace(SITE, simulation_seed=None), toy_plan(), purpose, 1, 0, 0)
    assert asked == [32, 32]
    open_stream(SITE, toy_plan(), STEP, 1, 0, 0)
    assert asked == [32, 32]
