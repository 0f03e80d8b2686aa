"""Hydra at the edge: `conf/` and overrides in, one frozen `FederationConfig` out. The only module that imports Hydra.

Plain YAML is composed and frozen objects are built by hand, because Hydra 1.3 rejects frozen dataclasses and `Literal`
in schemas. No `_target_` is ever instantiated.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fedslm.config.checks import check
from fedslm.config.schema import FederationConfig, build
from fedslm.errors import ConfigError

GROUPS = (
    "model",
    "adapter",
    "data",
    "training",
    "privacy",
    "secagg",
    "strategy",
    "runtime",
    "evaluation",
    "experiment",
)

NOT_A_SUM = frozenset(
    {"krum", "multikrum", "bulyan", "fedmedian", "fedtrimmedavg", "qfedavg", "fedxgbbagging", "fedxgbcyclic"}
)
"""Strategies of Flower that look at every update by itself."""


def config_dir() -> Path:
    """Where `conf/` lies: inside the installed package, or beside it in a checkout. Always absolute."""
    package = Path(__file__).resolve().parent.parent
    for candidate in (package / "conf", package.parent / "conf"):
        if (candidate / "config.yaml").is_file():
            return candidate
    raise ConfigError(f"The configuration files are missing beside {package}; install fedslm again.")


def compose(overrides: Sequence[str] = ()) -> FederationConfig:
    """Composes the defaults with `overrides` and checks the result.

    Args:
      overrides: Hydra overrides, e.g. `["privacy=none", "rounds=5"]`.
    Raises:
      ConfigError: an unknown setting or value, an impossible one, or a contradiction.
    """
    config = build(FederationConfig, compose_values(overrides))
    check(config)
    return config


def compose_values(overrides: Sequence[str]) -> dict[str, Any]:
    """The composed settings as plain dicts, lists and scalars (what `config.yaml` of a run holds)."""
    _refuse_options(overrides)
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir=str(config_dir()), version_base="1.3"):
            composed = hydra_compose(config_name="config", overrides=list(overrides))
        values = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_one_sentence(error)) from None
    return {str(key): value for key, value in dict(values).items()}  # type: ignore[arg-type]


def changed(settings: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, tuple[Any, Any]]:
    """What overrides would change in settings that are already composed.

    Only what an override names is looked at: "privacy=none" names the whole group, "privacy.epsilon=3" one value.

    Returns:
      Dotted name -> (value now, value asked), for those that differ.
    Raises:
      ConfigError: an override names a setting that these settings do not have.
    """
    _refuse_options(overrides)
    parts = [override.partition("=") for override in overrides]
    pairs = {name: (_lookup(settings, name), _asked(name, text)) for name, _, text in parts}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _lookup(settings: Mapping[str, Any], name: str) -> Any:
    found: Any = settings
    for part in name.split("."):
        if not isinstance(found, Mapping) or part not in found:
            raise ConfigError(f"'{name}' is not a setting of this run; its config.yaml lists them.")
        found = found[part]
    return found


def _asked(name: str, text: str) -> Any:
    # A group is composed by itself; a single value is compared with the run's own, whatever group it chose.
    if name in GROUPS:
        return compose_values([f"{name}={text}"])[name]
    return OmegaConf.to_object(OmegaConf.from_dotlist([f"value={text}"]))["value"]  # type: ignore[index, call-overload]


def _refuse_options(overrides: Sequence[str]) -> None:
    for override in overrides:
        if override.startswith("-") or "=" not in override:
            raise ConfigError(
                f"'{override}' is not a setting; settings look like rounds=10 (fedslm simulate --help lists them)."
            )
        if override.lstrip("+~").startswith(("hydra.", "hydra/")):
            raise ConfigError(
                f"'{override}' sets Hydra itself, which has no say here; use run_folder for the run's place."
            )
        if "_target_" in override:
            raise ConfigError(f"'{override}' names a Python object; no setting of FedSLM does.")


def _one_sentence(error: Exception) -> str:
    """Hydra's messages run over several lines and quote its own syntax; keep what a user needs."""
    if isinstance(error, OverrideParseException):
        return f"'{error.override}' cannot be read; write NAME=VALUE, and a list as NAME=[A,B]."
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    missing = re.search(r"Could not find '(\w+)/([^']*)'", lines[0])
    if missing:
        return _no_such_choice(*missing.groups())
    if len(lines) > 1 and lines[0].startswith("Could not override"):
        return f"{lines[0].rstrip('.')}: there is no such setting (fedslm simulate --help lists them)."
    return " ".join(lines[:2]).rstrip(".") + "."


def _no_such_choice(group: str, chosen: str) -> str:
    allowed = f"choose from: {', '.join(choices(group))}."
    if group == "strategy" and re.sub("[^a-z]", "", chosen.lower()) in NOT_A_SUM:
        return (
            f"strategy={chosen} needs each hospital's update by itself, but under secure aggregation the coordinator has "
            f"only their sum; {allowed}"
        )
    return f"{group}={chosen} is not a choice; {allowed}"


def choices(group: str) -> list[str]:
    """The files of one group, e.g. `choices("privacy") == ["local", "none"]`."""
    return sorted(path.stem for path in (config_dir() / group).glob("*.yaml"))
