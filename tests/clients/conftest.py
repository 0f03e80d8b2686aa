"""Three hospitals of toy rows and a plan in the clear for them, made once, and all that a hospital needs to train a round."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from flwr.app import Context, Message, RecordDict

from clients.site import SIMULATION_KEY, SITE_FILE_KEY, Site
from fedslm.config.compose import compose
from fedslm.flower.compat import become_task
from fedslm.flower.records import ARRAYS, CONFIG, FROZEN, TrainRequest, plan_config, to_array_record
from fedslm.governance.plan import Plan
from server.planning import Draft, draft_plan
from simulations.consortium import gather
from simulations.identities import without_roster
from tests.clients.table import Table, plan_for
from tests.conftest import without_privacy
from tests.toys import toy_overrides


@dataclasses.dataclass(frozen=True)
class Ward:
    """A drafted plan without privacy or masks, and its hospitals' sites."""

    draft: Draft
    sites: tuple[Site, ...]

    @property
    def plan(self) -> Plan:
        return self.draft.plan

    def request(self, *, number: int = 1, plan: Plan | None = None) -> TrainRequest:
        initial = self.draft.initial
        trained = {name: array for name, array in initial.items() if "lora_B" in name}
        frozen = {name: array for name, array in initial.items() if "lora_A" in name}
        return TrainRequest(plan=plan or self.plan, round=number, trained=trained, frozen=frozen)

    def shifted(self, *, plan: Plan | None = None, by: float = 0.02) -> TrainRequest:
        """A request for round 2, whose adapter is no longer the initial one."""
        first = self.request(number=2, plan=plan)
        rng = np.random.default_rng(0)
        moved = {name: rng.normal(0, by, array.shape).astype(np.float32) for name, array in first.trained.items()}
        return dataclasses.replace(first, trained=moved)


@pytest.fixture(scope="session")
def ward(toys: Path) -> Ward:
    plain = [*without_privacy(toy_overrides(toys)), "secagg=none"]
    config = compose([*plain, "privacy.sample_rate=1", "privacy.max_records_per_unit=2"])
    consortium = gather(config)
    return Ward(draft=draft_plan(config, consortium.population, seed=1), sites=consortium.sites)


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Table:
    """Three hospitals that have joined a masked plan with privacy; no model."""
    opened = Table(tmp_path, plan_for(), monkeypatch)
    opened.join()
    return opened


def node(folder: Path, site: Site) -> Context:
    """A node's context whose site file holds `site`, with keys and a state folder where it has none."""
    folder.mkdir(parents=True, exist_ok=True)
    (site,) = without_roster((site,), folder) if site.identity is None else (site,)
    path = folder / "site.yaml"
    values = dataclasses.asdict(site)
    path.write_text(yaml.safe_dump({**values, "sources": [dict(source) for source in values["sources"]]}))
    config: dict[str, Any] = {SITE_FILE_KEY: str(path), SIMULATION_KEY: "true"}
    return Context(run_id=1, node_id=1, node_config=config, state=RecordDict(), run_config={})


def train_message(request: TrainRequest, *, message_type: str = "train") -> Message:
    """What the server sends for a request."""
    become_task()
    config = plan_config(request.plan)
    config["server-round"] = request.round
    content = RecordDict(
        {ARRAYS: to_array_record(request.trained), FROZEN: to_array_record(request.frozen), CONFIG: config}
    )
    return Message(content, 1, message_type)


def by_peft(request: TrainRequest) -> tuple[Any, Any]:
    """The model a request is about, in eval mode, and its tokenizer, through PEFT itself."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    planned, source = request.plan.adapter, request.plan.model.source
    shape = LoraConfig(r=planned.rank, lora_alpha=planned.alpha, target_modules=list(planned.targets))
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(source), shape).eval()
    tokenizer = AutoTokenizer.from_pretrained(source)
    for name, parameter in model.named_parameters():
        given = {**request.trained, **request.frozen}.get(name.replace(".default.", "."))
        if given is not None:
            parameter.data = torch.from_numpy(given.copy())
    return model, tokenizer
