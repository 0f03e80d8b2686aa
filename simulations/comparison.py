"""What training together is worth: base, each hospital alone, federated, and pooled, at the same privacy.

Every contestant runs the same rounds through the same server and client objects; a hospital alone is a federation of
one, and "pooled" is a federation of one hospital that holds everything. Each has a folder of its own below the run's, so
that an interrupted comparison goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clients.app import build_client_app
from clients.site import Site
from clients.train import Workbench
from fedslm.errors import ConfigError
from fedslm.governance.plan import Plan
from fedslm.reporting.events import Announcer, Event
from server.app import run_plan
from server.checkpoints import Checkpoint
from server.planning import alone
from server.run_folder import RunFolder
from simulations.consortium import Consortium, write_sites
from simulations.local_grid import LocalGrid
from simulations.scoring import Scorer

POOLED = "all hospitals pooled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """All that a comparison needs.

    Attributes:
      folder: where the contestants' runs are kept.
      initial: checkpoint 0 of the federated run; all start from it.
      final: its last checkpoint.
    """

    plan: Plan
    consortium: Consortium
    bench: Workbench
    scorer: Scorer
    folder: Path
    settings: dict[str, Any]
    description: dict[str, Any]
    initial: Checkpoint
    final: Checkpoint


def check_comparable(consortium: Consortium) -> None:
    """Refuses a comparison that would fail after hours of training.

    Raises:
      ConfigError: a hospital has no held-out multiple choice to score.
    """
    for name, records in consortium.records.items():
        if not any(example.choices for example in records.held_out):
            raise ConfigError(
                f"compare=true but {name} has no held-out record with choices; set data.columns.choices, raise "
                "data.held_out_fraction, or set compare=false."
            )


def compare(contest: Contest, announcer: Announcer) -> dict[str, Any]:
    """Trains and scores every contestant.

    Returns:
      Accuracies 0 to 1: `base`, `single_best` (with `single_best_hospital`), `federated`, `pooled`, `majority` on the
      pooled test set; `single_own`: each hospital's own model on its own patients; `by_hospital`: see `_by_hospital`.
    """
    sites = [*contest.consortium.sites, contest.consortium.pooled(POOLED)]
    trained: dict[str, Checkpoint] = {}
    on_pooled: dict[str, float] = {}
    for index, site in enumerate(sites, start=1):
        announcer.emit("comparison_started", name=site.hospital, index=index, total=len(sites))
        trained[site.hospital] = _train_alone(contest, site, announcer)
        on_pooled[site.hospital] = _accuracy(contest, trained[site.hospital])
        announcer.emit("comparison_finished", name=site.hospital, accuracy=on_pooled[site.hospital])
    pooled = on_pooled.pop(POOLED)
    best = max(on_pooled, key=lambda name: on_pooled[name])
    by_hospital = {name: _by_hospital(contest, name, trained[name], on_pooled[name]) for name in on_pooled}
    return {
        "base": _accuracy(contest, contest.initial),
        "single_best": on_pooled[best],
        "single_best_hospital": best,
        "single_own": {name: row["single_own"] for name, row in by_hospital.items()},
        "federated": _accuracy(contest, contest.final),
        "pooled": pooled,
        "majority": contest.scorer.majority,
        "test_examples": len(contest.scorer.pooled),
        "by_hospital": by_hospital,
    }


def _by_hospital(contest: Contest, name: str, single: Checkpoint, single_pooled: float) -> dict[str, float]:
    """A hospital's row: base, its own model and the federated one on its own patients, its own on everybody's."""
    own = contest.scorer.own[name]
    score = {
        key: contest.scorer.score(checkpoint.adapter, own).accuracy
        for key, checkpoint in (("base", contest.initial), ("single_own", single), ("federated_own", contest.final))
    }
    return {**score, "single": single_pooled, "test_examples": len(own)}


def _accuracy(contest: Contest, checkpoint: Checkpoint) -> float:
    return contest.scorer.score(checkpoint.adapter, contest.scorer.pooled).accuracy


def _train_alone(contest: Contest, site: Site, announcer: Announcer) -> Checkpoint:
    """Runs one contestant from where its folder stands."""
    names = contest.plan.names if site.hospital == POOLED else (site.hospital,)
    plan = alone(contest.plan, names, population=site.declared_population, name=site.hospital)
    folder = contest.folder / f"{site.hospital.replace(' ', '-')}-{plan.run_id}"
    with RunFolder(folder) as run:
        if (folder / "plan.json").exists():
            run.open()
        else:
            run.create(
                plan, settings=contest.settings, description=contest.description, initial=contest.initial.adapter
            )
        configs = write_sites((site,), folder / "sites")
        grid = LocalGrid(build_client_app(contest.bench), configs)
        return run_plan(grid, folder, observers=(_Relay(announcer, site.hospital, plan.training.rounds),), seeded=True)


@dataclasses.dataclass(frozen=True, slots=True)
class _Relay:
    """Tells the main run's observers how far a contestant is."""

    announcer: Announcer
    name: str
    rounds: int

    def notify(self, event: Event) -> None:
        """Passes on the end of each round."""
        if event.kind == "round_finished":
            self.announcer.emit("comparison_round", name=self.name, round=event.fields["round"], rounds=self.rounds)
