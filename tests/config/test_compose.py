"""Every file of conf/ composes and validates; everything else is refused in one sentence that says what is allowed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from fedslm.config.compose import GROUPS, changed, choices, compose, config_dir
from fedslm.config.schema import (
    FedAdagradConfig,
    FedAdamConfig,
    FedAvgConfig,
    FedAvgMConfig,
    FedProxConfig,
    StrategyConfig,
)
from fedslm.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
CHOICES = [(group, choice) for group in GROUPS for choice in choices(group)]
NEEDS = {"model=folder": ["model.source=/models/base"]}
STRATEGIES: dict[str, type[StrategyConfig]] = {
    "fedavg": FedAvgConfig,
    "fedavgm": FedAvgMConfig,
    "fedprox": FedProxConfig,
    "fedadagrad": FedAdagradConfig,
    "fedadam": FedAdamConfig,
    "fedyogi": FedAdamConfig,
}


@pytest.mark.parametrize(("group", "choice"), CHOICES, ids=lambda value: str(value))
def test_every_choice_of_every_group_composes(group: str, choice: str) -> None:
    reads_a_file = ": jsonl " in (config_dir() / group / f"{choice}.yaml").read_text().replace("\n", " ")
    needs = ["data.path=rows.jsonl"] if reads_a_file else NEEDS.get(f"{group}={choice}", [])
    assert compose([f"{group}={choice}", *needs]).rounds >= 1


def test_every_file_of_conf_is_a_choice() -> None:
    files = {str(path.relative_to(config_dir())) for path in config_dir().rglob("*.yaml")}
    assert files == {"config.yaml"} | {f"{group}/{choice}.yaml" for group, choice in CHOICES}


def test_a_checkout_reads_its_own_conf() -> None:
    assert config_dir() == ROOT / "conf"
    assert config_dir().is_absolute()


def test_every_strategy_in_the_schema_has_a_file() -> None:
    assert choices("strategy") == sorted(STRATEGIES)


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_is_its_own_kind(name: str) -> None:
    strategy = compose([f"strategy={name}"]).strategy
    assert type(strategy) is STRATEGIES[name]
    assert strategy.name == name


def test_a_composed_config_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        compose().rounds = 5  # type: ignore[misc]


def test_composing_twice_gives_the_same_wherever_one_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = compose(["rounds=5"])
    monkeypatch.chdir(tmp_path)
    assert compose(["rounds=5"]) == first != compose(["rounds=6"])


@pytest.mark.parametrize(
    ("value", "targets"), [("[q_proj,v_proj]", ("q_proj", "v_proj")), ("[q_proj]", ("q_proj",)), ("null", None)]
)
def test_a_list_or_null_arrives_as_written(value: str, targets: tuple[str, ...] | None) -> None:
    assert compose([f"adapter.targets={value}"]).adapter.targets == targets


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("rouns=3", "rouns"),
        ("modell=tiny", "modell"),
        ("+foo=1", "foo is not a setting"),
        ("privacy.epsilonn=3", "privacy.epsilonn"),
        ("rounds=0", "greater than or equal to 1"),
        ("rounds=abc", "valid integer"),
        ("rounds=true", "valid integer"),
        ("rounds=", "valid integer"),
        ("rounds=null", "valid integer"),
        ("rounds=2.5", "valid integer"),
        ("rounds=1,2", "rounds=1,2"),
        ("rounds=3=4", "rounds=3=4"),
        ("rounds='3", "rounds='3"),
        ("seed=-1", "greater than or equal to 0"),
        ("seed=true", "valid integer"),
        ("run_folder=", "at least 1 character"),
        ("strategy.eta=-1", "greater than 0"),
        ("strategy.beta_1=1", "less than 1"),
        ("strategy=krum", "fedadagrad, fedadam, fedavg, fedavgm, fedprox, fedyogi"),
        ("strategy=fedavg strategy.eta=1", "strategy.eta"),
        ("privacy=central", "local, none"),
        ("secagg=on", "choose from: masked, none"),
        ("secagg.colluders=-1", "greater than or equal to 0"),
        ("secagg.honest=1", "greater than or equal to 2"),
        ("secagg.ring_bits=33", "less than or equal to 32"),
        ("secagg.ring_bits=15", "greater than or equal to 16"),
        ("secagg.value_range=0", "greater than 0"),
        ("secagg.step_deadline_s=inf", "finite number"),
        ("privacy.unit=doctor", "'patient' or 'record'"),
        ("privacy.delta=nan", "less than 1"),
        ("privacy.clip_norm=inf", "finite number"),
        ("privacy.sample_rate=1.5", "less than or equal to 1"),
        ("adapter.method=dora", "'ffa' or 'full'"),
        ("adapter.targets=[]", "at least 1 item"),
        ("adapter.targets=[1,2]", "adapter.targets.0=1"),
        ("model=folder", "model.source"),
        ("model.source=null", "valid string"),
        ("model.dtype=float16", "'float32' or 'bfloat16'"),
        ("~privacy=local", "privacy is missing"),
        ("hydra.run.dir=/tmp/x", "hydra.run.dir"),
        ("--rounds 3", "rounds=10"),
        ("rounds", "rounds=10"),
    ],
)
def test_an_unknown_or_impossible_setting_is_one_sentence_and_exit_code_2(override: str, named: str) -> None:
    with pytest.raises(ConfigError) as refused:
        compose(override.split())
    message = str(refused.value)
    assert refused.value.exit_code == 2
    assert named in message
    assert message.endswith(".")
    assert "\n" not in message
    assert "hydra.cc" not in message


@pytest.mark.parametrize("name", ["krum", "MultiKrum", "bulyan", "fedmedian", "fed_trimmed_avg", "qfedavg"])
def test_a_strategy_that_looks_at_single_updates_says_why_it_cannot_be(name: str) -> None:
    with pytest.raises(
        ConfigError, match=r"needs each hospital's update by itself, .* only their sum; choose from: fed"
    ):
        compose([f"strategy={name}"])


def test_updates_are_encrypted_unless_somebody_says_otherwise() -> None:
    assert compose().secagg.mode == "masked"
    assert compose().min_cohort is None  # as few as the promise allows, which the plan works out
    assert compose(["secagg=none"]).secagg.mode == "none"


def test_a_round_may_be_tried_again_unless_somebody_says_otherwise() -> None:
    assert compose().privacy.extra_sessions == compose(["privacy=none"]).privacy.extra_sessions == 3


@pytest.mark.parametrize(
    "override",
    ["+model._target_=os.system", "model={_target_: os.system}", "++_target_=os.system", "data.path={_target_: x}"],
)
def test_no_setting_names_a_python_object(override: str) -> None:
    with pytest.raises(ConfigError, match="Python object"):
        compose([override])


def test_changed_tells_only_what_differs() -> None:
    settings = {"rounds": 30, "privacy": {"epsilon": 3.0, "delta": 1e-6}}
    assert changed(settings, ["rounds=30", "privacy.delta=1e-6"]) == {}
    assert changed(settings, ["rounds=5", "privacy.epsilon=8"]) == {"rounds": (30, 5), "privacy.epsilon": (3.0, 8)}
