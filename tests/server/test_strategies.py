"""Flower's linear strategies through the exchange: what they compute, and that a resumed one goes on bit for bit."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import FedAvg
from safetensors.numpy import load_file, save_file

from fedslm.config.schema import (
    FedAdagradConfig,
    FedAdamConfig,
    FedAvgConfig,
    FedAvgMConfig,
    FedProxConfig,
    StrategyConfig,
)
from fedslm.errors import ConfigError, RunError
from fedslm.flower.records import from_array_record, plan_config, to_array_record, update_reply
from fedslm.governance.plan import Plan, PlannedHospital
from fedslm.reporting.events import Announcer
from server.clear_grid import ClearGrid
from server.strategies import build_strategy, require_linear, restore_strategy, strategy_state
from simulations.local_grid import LocalGrid
from tests.builders import toy_plan
from tests.fakes import Arrays, Behaviour, Counting, hospital_app

WEIGHTS = (1.0, 0.5, 0.125)
ROUNDS = 4
CONFIGS: dict[str, StrategyConfig] = {
    "fedavg": FedAvgConfig(name="fedavg"),
    "fedprox": FedProxConfig(name="fedprox", proximal_mu=0.1),
    "fedavgm": FedAvgMConfig(name="fedavgm", server_learning_rate=0.7, server_momentum=0.9),
    "fedadagrad": FedAdagradConfig(name="fedadagrad", eta=0.1, tau=1e-3),
    "fedadam": FedAdamConfig(name="fedadam", eta=0.1, beta_1=0.9, beta_2=0.99, tau=1e-3),
    "fedyogi": FedAdamConfig(name="fedyogi", eta=0.1, beta_1=0.9, beta_2=0.99, tau=1e-3),
}


def plan_for(config: StrategyConfig) -> Plan:
    hospitals = tuple(
        PlannedHospital(name=f"hospital-{number}", declared_population=40, weight=weight)
        for number, weight in enumerate(WEIGHTS)
    )
    return toy_plan(strategy=config, hospitals=hospitals, training={"rounds": ROUNDS}, privacy={"max_sessions": ROUNDS})


def update_of(hospital: int, number: int, trained: Arrays) -> Arrays:
    """Some update that depends on everything it may depend on."""
    noise = np.random.default_rng([hospital, number])
    return {
        name: (0.1 * noise.standard_normal(trained[name].shape) - 0.05 * trained[name]).astype(np.float32)
        for name in sorted(trained)
    }


def hospital(index: int) -> Behaviour:
    def train(message: Message) -> Message:
        number = int(message.content.config_records["config"]["server-round"])  # type: ignore[arg-type]
        return update_reply(
            message, update_of(index, number, from_array_record(message.content.array_records["arrays"]))
        )

    return train


def start() -> Arrays:
    """Not in alphabetical order: FedAvgM pairs arrays by position, so the order must survive the exchange."""
    noise = np.random.default_rng(0)
    return {name: noise.standard_normal((3, 2)).astype(np.float32) for name in ("a", "b.c", "b.a")}


def run(strategy: FedAvg, config: StrategyConfig, arrays: Arrays, numbers: range) -> Arrays:
    """Runs rounds as `server.rounds` does."""
    plan = plan_for(config)
    app = hospital_app({name: hospital(index) for index, name in enumerate(plan.names)})
    network = LocalGrid(app, [{"hospital": name} for name in plan.names])
    grid = ClearGrid(network, plan=plan, frozen={}, announcer=Announcer(), counter=Counting(numbers.start - 1))
    grid.join(timeout_s=10)
    for number in numbers:
        messages = strategy.configure_train(number, to_array_record(arrays), plan_config(plan), grid)
        aggregated, _ = strategy.aggregate_train(number, grid.send_and_receive(messages))
        assert aggregated is not None
        arrays = {name: array.numpy().astype(np.float32) for name, array in aggregated.items()}
    return arrays


def built(name: str) -> FedAvg:
    return build_strategy(CONFIGS[name], min_cohort=2)


def mean_of(arrays: Arrays, number: int) -> Arrays:
    """The weighted mean of the hospitals' adapters, in the plan's order and in float32, as it must come out."""
    total: Arrays = {}
    for index, weight in enumerate(WEIGHTS):
        update = update_of(index, number, arrays)
        for name in arrays:
            term = (arrays[name] + update[name]) * (weight / sum(WEIGHTS))
            total[name] = total[name] + term if name in total else term
    return total


@pytest.mark.parametrize("name", ["fedavg", "fedprox"])
def test_the_weighted_mean_is_exact(name: str) -> None:
    expected = start()
    for number in range(1, ROUNDS + 1):
        expected = mean_of(expected, number)
    found = run(built(name), CONFIGS[name], start(), range(1, ROUNDS + 1))
    assert all(np.array_equal(found[key], expected[key]) for key in expected)


Moments = dict[str, np.ndarray[Any, np.dtype[np.float64]]]
Step = Callable[[np.ndarray[Any, Any], Moments, int], np.ndarray[Any, Any]]


def momentum(delta: np.ndarray[Any, Any], moments: Moments, number: int) -> np.ndarray[Any, Any]:
    moments["m"] = 0.9 * moments["m"] + delta
    return 0.7 * moments["m"]


def adagrad(delta: np.ndarray[Any, Any], moments: Moments, number: int) -> np.ndarray[Any, Any]:
    moments["v"] = moments["v"] + delta**2
    return 0.1 * delta / (np.sqrt(moments["v"]) + 1e-3)


def adam(delta: np.ndarray[Any, Any], moments: Moments, number: int) -> np.ndarray[Any, Any]:
    moments["m"] = 0.9 * moments["m"] + 0.1 * delta
    moments["v"] = 0.99 * moments["v"] + 0.01 * delta**2
    rate = 0.1 * np.sqrt(1 - 0.99 ** (number + 1)) / (1 - 0.9 ** (number + 1))  # Flower counts one round ahead
    return rate * moments["m"] / (np.sqrt(moments["v"]) + 1e-3)


def yogi(delta: np.ndarray[Any, Any], moments: Moments, number: int) -> np.ndarray[Any, Any]:
    moments["m"] = 0.9 * moments["m"] + 0.1 * delta
    moments["v"] = moments["v"] - 0.01 * delta**2 * np.sign(moments["v"] - delta**2)
    return 0.1 * moments["m"] / (np.sqrt(moments["v"]) + 1e-3)


@pytest.mark.parametrize(
    ("name", "step"), [("fedavgm", momentum), ("fedadagrad", adagrad), ("fedadam", adam), ("fedyogi", yogi)]
)
def test_a_strategy_gives_what_its_paper_says(name: str, step: Step) -> None:
    expected = start()
    moments = {key: {"m": np.zeros((3, 2)), "v": np.zeros((3, 2))} for key in expected}
    for number in range(1, ROUNDS + 1):
        mean = mean_of(expected, number)
        for key in expected:
            delta = mean[key].astype(np.float64) - expected[key]
            expected[key] = (expected[key] + step(delta, moments[key], number)).astype(np.float32)
    found = run(built(name), CONFIGS[name], start(), range(1, ROUNDS + 1))
    for key in expected:
        np.testing.assert_allclose(found[key], expected[key], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_restored_strategy_goes_on_bit_for_bit(name: str, tmp_path: Path) -> None:
    whole = run(built(name), CONFIGS[name], start(), range(1, ROUNDS + 1))
    first = built(name)
    halfway = run(first, CONFIGS[name], start(), range(1, 3))
    save_file({key: np.ascontiguousarray(array) for key, array in strategy_state(first).items()}, tmp_path / "state")
    second = built(name)
    restore_strategy(second, load_file(tmp_path / "state"))
    resumed = run(second, CONFIGS[name], halfway, range(3, ROUNDS + 1))
    assert all(np.array_equal(resumed[key], whole[key]) for key in whole)


@pytest.mark.parametrize("name", ["fedavgm", "fedadagrad", "fedadam", "fedyogi"])
def test_the_state_matters(name: str) -> None:
    """Without it the continuation differs, so the test above can fail."""
    whole = run(built(name), CONFIGS[name], start(), range(1, ROUNDS + 1))
    halfway = run(built(name), CONFIGS[name], start(), range(1, 3))
    forgetful = run(built(name), CONFIGS[name], halfway, range(3, ROUNDS + 1))
    assert not all(np.array_equal(forgetful[key], whole[key]) for key in whole)


@pytest.mark.parametrize(("saved", "restored"), [("fedadam", "fedavg"), ("fedavgm", "fedadam"), ("fedyogi", "fedavgm")])
def test_another_strategys_state_is_refused(saved: str, restored: str) -> None:
    one = built(saved)
    run(one, CONFIGS[saved], start(), range(1, 2))
    with pytest.raises(RunError, match="another strategy"):
        restore_strategy(built(restored), strategy_state(one))


def test_an_empty_state_restores_to_the_start() -> None:
    for name in CONFIGS:
        restore_strategy(built(name), strategy_state(built(name)))


class Louder(FedAvg):
    """A variant that changes nothing about the aggregation."""

    def summary(self) -> None:
        print("hello")


class Peeking(FedAvg):
    """A variant that looks at replies."""

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        return super().aggregate_train(server_round, list(replies))


ALLOWED = ("FedAvg", "FedAvgM", "FedProx", "FedAdagrad", "FedAdam", "FedYogi")
KINDS = [kind for kind in vars(flower).values() if isinstance(kind, type) and issubclass(kind, flower.Strategy)]
BARE = [kind for kind in KINDS if not inspect.isabstract(kind)]


@pytest.mark.parametrize("kind", [*BARE, Louder, Peeking], ids=lambda kind: kind.__name__)
def test_only_strategies_that_average_are_for_sums(kind: type[flower.Strategy]) -> None:
    strategy = kind.__new__(kind)  # what it aggregates does not depend on its settings
    if kind.__name__ in (*ALLOWED, "Louder"):
        require_linear(strategy)
        return
    with pytest.raises(
        ConfigError, match=f"{kind.__name__} aggregates in a way of its own, .* only their sum"
    ) as refused:
        require_linear(strategy)
    assert refused.value.exit_code == 2


def test_flower_has_strategies_on_both_sides() -> None:
    names = {kind.__name__ for kind in BARE}
    assert {*ALLOWED, "Krum", "MultiKrum", "Bulyan", "FedMedian", "FedTrimmedAvg", "QFedAvg"} <= names
