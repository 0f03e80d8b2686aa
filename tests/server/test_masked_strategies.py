"""Flower's own strategies, started by Flower's own `start`, give under secure aggregation what they give without it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedProx, FedYogi

from fedslm.flower.records import ARRAYS, to_array_record
from fedslm.governance.plan import Plan
from fedslm.reporting.events import Announcer
from server.aggregate import AggregateFile
from server.receipts import ReceiptFile
from server.secure_grid import SecureGrid
from server.sessions import SessionCounter
from simulations.local_grid import LocalGrid
from tests.builders import masked_plan, toy_hospitals
from tests.fakes import Arrays
from tests.masked import charter_of, masked_app, masked_hospitals

ROUNDS = 3
WEIGHTS = (1.0, 0.5, 0.25, 0.75)
START = {"b": np.linspace(-1, 1, 4, dtype=np.float32), "a": np.ones((2, 3), np.float32)}
STRATEGIES: dict[str, Callable[..., FedAvg]] = {
    "FedAvg": FedAvg,
    "FedAvgM": lambda **options: FedAvgM(**options, server_learning_rate=0.7, server_momentum=0.9),
    "FedProx": lambda **options: FedProx(**options, proximal_mu=0.1),
    "FedAdagrad": lambda **options: FedAdagrad(**options, eta=0.1, tau=1e-2),
    "FedAdam": lambda **options: FedAdam(**options, eta=0.1, tau=1e-2),
    "FedYogi": lambda **options: FedYogi(**options, eta=0.1, tau=1e-2),
}


def plan() -> Plan:
    members = tuple(
        dataclasses.replace(member, weight=weight) for member, weight in zip(toy_hospitals(4), WEIGHTS, strict=True)
    )
    sizes = {"hospitals": members, "adapter": {"trained_parameters": 10}, "training": {"rounds": ROUNDS}}
    return masked_plan(**sizes, secagg={"colluders": 1})


def update_of(index: int, number: int, trained: Arrays) -> Arrays:
    """An update that depends on everything it may depend on."""
    rng = np.random.default_rng([index, number])
    return {
        name: (rng.normal(0, 0.1, array.shape) - 0.1 * array).astype(np.float32)
        for name, array in sorted(trained.items())
    }


def unmasked_app() -> ClientApp:
    """The same hospitals as any Flower app has them: the whole model and its weight go to the server."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        index = int(context.node_config["index"])  # type: ignore[arg-type]
        number = int(message.content.config_records["config"]["server-round"])  # type: ignore[arg-type]
        received = message.content.array_records[ARRAYS]
        trained = {name: array.numpy().astype(np.float32) for name, array in received.items()}
        update = update_of(index, number, trained)
        arrays = to_array_record({name: trained[name] + update[name] for name in trained})
        metrics = MetricRecord({"num-examples": WEIGHTS[index]})
        return Message(RecordDict({ARRAYS: arrays, "metrics": metrics}), reply_to=message)

    return app


class Ordered(LocalGrid):
    """Replies in the order of nodes, whoever was sampled first: Flower adds floats in the order of replies."""

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        return super().send_and_receive(sorted(messages, key=lambda message: message.metadata.dst_node_id))


def secure(folder: Path) -> SecureGrid:
    hospitals = masked_hospitals(plan(), update_of)
    grid = SecureGrid(
        LocalGrid(masked_app(hospitals), [{"hospital": name} for name in plan().names]),
        charter=charter_of(plan()),
        frozen={"A": np.ones(3, np.float32)},
        announcer=Announcer(),
        counter=SessionCounter(folder / "sessions.json"),
        aggregates=AggregateFile(folder / "aggregate.safetensors"),
        receipts=ReceiptFile(folder / "receipts.jsonl"),
    )
    grid.join(timeout_s=60)
    return grid


def trained(strategy: FedAvg, grid: LocalGrid | SecureGrid) -> ArrayRecord:
    return strategy.start(grid, to_array_record(START), num_rounds=ROUNDS).arrays  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", STRATEGIES)
def test_masked_and_unmasked_give_the_same_adapter(name: str, tmp_path: Path) -> None:
    build = STRATEGIES[name]
    masked = trained(build(fraction_evaluate=0.0), secure(tmp_path))
    clear = trained(build(fraction_evaluate=0.0), Ordered(unmasked_app(), [{"index": n} for n in range(4)]))
    assert list(masked) == list(clear) == list(START)
    for key in START:
        np.testing.assert_allclose(masked[key].numpy(), clear[key].numpy(), atol=2e-6)
        assert not np.allclose(masked[key].numpy(), START[key], atol=1e-2)
