"""Flower's linear strategies from the plan, and their state as named arrays, so that a run can be resumed.

A strategy that needs each hospital's update by itself (Krum, median, trimmed mean, q-FedAvg) is not in the table: under
secure aggregation the server has only a sum.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedProx, FedYogi, Strategy

from fedslm.config.schema import FedAdagradConfig, FedAdamConfig, FedAvgMConfig, FedProxConfig, StrategyConfig
from fedslm.errors import ConfigError, RunError
from fedslm.flower.records import ARRAYS, CONFIG

WEIGHT = "weight"
ADAPTIVE = (FedAdam, FedYogi, FedAdagrad)
LINEAR = (FedAvg, FedAvgM, FedProx, *ADAPTIVE)
StateArrays = dict[str, np.ndarray[Any, Any]]


def build_strategy(config: StrategyConfig, *, min_cohort: int) -> FedAvg:
    """Makes the Flower strategy that a plan names; it trains on every node and evaluates on none."""
    common: dict[str, Any] = {
        "fraction_train": 1.0,
        "fraction_evaluate": 0.0,
        "min_train_nodes": min_cohort,
        "min_available_nodes": min_cohort,
        "weighted_by_key": WEIGHT,
        "arrayrecord_key": ARRAYS,
        "configrecord_key": CONFIG,
    }
    match config:
        case FedAvgMConfig():
            rate, momentum = config.server_learning_rate, config.server_momentum
            return FedAvgM(**common, server_learning_rate=rate, server_momentum=momentum)
        case FedProxConfig():
            return FedProx(**common, proximal_mu=config.proximal_mu)
        case FedAdagradConfig():
            return FedAdagrad(**common, eta=config.eta, tau=config.tau)
        case FedAdamConfig():
            kind = FedAdam if config.name == "fedadam" else FedYogi
            return kind(**common, eta=config.eta, beta_1=config.beta_1, beta_2=config.beta_2, tau=config.tau)
        case _:
            return FedAvg(**common)


def require_linear(strategy: Strategy) -> None:
    """Refuses a strategy that does anything with replies but average them, for use under secure aggregation.

    Raises:
      ConfigError: it is none of Flower's averaging strategies, or a variant with an aggregation of its own.
    """
    known = {kind.aggregate_train for kind in LINEAR}
    if not isinstance(strategy, LINEAR) or type(strategy).aggregate_train not in known:
        raise ConfigError(
            f"{type(strategy).__name__} aggregates in a way of its own, which may need each hospital's update by itself, but "
            f"under secure aggregation the coordinator has only their sum; use {', '.join(k.__name__ for k in LINEAR)}."
        )


def strategy_state(strategy: FedAvg) -> StateArrays:
    """Everything a strategy carries from round to round, as arrays named "m/NAME", "v/NAME" or "momentum/INDEX"."""
    if isinstance(strategy, ADAPTIVE):
        moments = {"m": strategy.m_t or {}, "v": strategy.v_t or {}}
        return {f"{kind}/{name}": array for kind, arrays in moments.items() for name, array in arrays.items()}
    if isinstance(strategy, FedAvgM):
        return {f"momentum/{index:05d}": array for index, array in enumerate(strategy.momentum_vector or [])}
    return {}


def restore_strategy(strategy: FedAvg, state: StateArrays) -> None:
    """Puts a saved state back.

    Raises:
      RunError: the state belongs to another strategy.
    """
    kinds = {name.split("/", 1)[0] for name in state}
    expected = (
        {"m", "v"} if isinstance(strategy, ADAPTIVE) else {"momentum"} if isinstance(strategy, FedAvgM) else set()
    )
    if kinds - expected:
        raise RunError(
            "The checkpoint's strategy state belongs to another strategy; resume with the plan it was made with."
        )
    if isinstance(strategy, ADAPTIVE) and state:
        strategy.m_t, strategy.v_t = _named(state, "m"), _named(state, "v")
    if isinstance(strategy, FedAvgM) and state:
        strategy.momentum_vector = [state[name] for name in sorted(state)]


def _named(state: StateArrays, kind: str) -> StateArrays:
    return {name.split("/", 1)[1]: array for name, array in state.items() if name.startswith(f"{kind}/")}
