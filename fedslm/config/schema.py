"""The settings of a run as frozen, self-validating groups, one for each folder of `conf/`.

Values live in the YAML files of `conf/`; this module says which are allowed. It is the lowest layer: it imports nothing
of the project but the errors, and no Hydra, so that a hospital can validate without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from fedslm.errors import ConfigError

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1, strict=True)]  # strict: true is not 1
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9 _.-]{0,63}$"
Name = Annotated[str, Field(pattern=NAME_PATTERN)]

STRICT = ConfigDict(extra="forbid", strict=False, hide_input_in_errors=False)

PrivacyUnit = Literal["patient", "record"]


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class ModelConfig:
    """The shared base model.

    Attributes:
      source: "embedded:tiny", a folder on this machine, or a hub id; safetensors only, no remote code.
      revision: commit of a hub id, 40 hex digits; required for one: whoever moves a branch could give every hospital
        other weights.
      max_length_tokens: prompt and completion together; a public constant.
    """

    name: Name
    source: str
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None = None
    max_length_tokens: Annotated[int, Field(ge=16)]
    dtype: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        if not self.source.startswith(("embedded:", "/", ".", "~")) and self.revision is None:
            raise ConfigError(
                f"model.source={self.source} has model.revision=null; name a commit so that every hospital loads the same "
                "weights (a local folder starts with / or ./)."
            )


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class AdapterConfig:
    """The LoRA adapter. `ffa` freezes A and trains B (arXiv 2403.12313); `full` trains both.

    Attributes:
      alpha: LoRA's scale is alpha / rank.
      targets: module names to adapt; None takes the model family's own (see `fedslm/models/families.py`).
    """

    method: Literal["ffa", "full"]
    rank: Annotated[int, Field(ge=1, le=1024)]
    alpha: Positive
    targets: Annotated[tuple[str, ...], Field(min_length=1)] | None = None


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class ColumnMap:
    """Which column of a row holds what.

    Attributes:
      prompt: the text to read.
      completion: the text to answer; with `choices`, the right one or its 0-based index.
      choices: a column holding the list of options, or None for free text.
      patient_id: whom the row is about; needed when the privacy unit is the patient.
      hospital: in a simulation, which hospital holds the row.
    """

    prompt: str
    completion: str
    choices: str | None = None
    patient_id: str | None = None
    hospital: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class DataConfig:
    """Where a simulation's records come from.

    Attributes:
      kind: "embedded" for the synthetic consortium in the package, "jsonl" for a file of rows.
      path: the file, for kind "jsonl".
      held_out_fraction: share of each hospital's patients that is never trained on.
      scale: shrinks the embedded consortium (1 is its full size); for tests.
      shuffle_labels: replaces every answer by that of another record: a control that must not be learnable.
    """

    kind: Literal["embedded", "jsonl"]
    path: str | None = None
    columns: ColumnMap | None = None
    held_out_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    scale: Annotated[float, Field(gt=0, le=10)] = 1.0
    shuffle_labels: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class TrainingConfig:
    """What a hospital does in one round.

    Attributes:
      local_steps: optimizer steps a round.
      learning_rate: of the local optimizer, in units of the update.
      weights: a hospital's share in the mean: "population" (its declared size) or "uniform". Public constants.
      physical_batch_size: records in memory at once; changes speed and memory, never the result's privacy.
    """

    local_steps: Count
    learning_rate: Positive
    optimizer: Literal["sgd", "adam"]
    weights: Literal["population", "uniform"]
    physical_batch_size: Count


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class PrivacyConfig:
    """The guarantee that is bought, or `mode: none`, which gives none and says so everywhere.

    Attributes:
      epsilon, delta: the bound for the whole run with respect to one `unit`, under adding or removing it.
      clip_norm: L2 bound C on one unit's gradient over all trained parameters.
      sample_rate: probability with which each patient is drawn in a step.
      max_records_per_unit: at most so many records of one patient enter a step.
      max_records_per_patient: where the record is the unit, hospitals train on so many of one patient's at most, and
        the patient's epsilon is stated too; None keeps all, and then a patient has no epsilon.
      extra_sessions: sessions paid for beyond the rounds. A session is one attempt at a round; a round that lost too
        many hospitals, or was interrupted, takes another.
      scores: "dp" has every hospital score the incoming adapter on its held-out patients and release the result, noised
        and within the masked sum; with "none" no score leaves a hospital.
    """

    mode: Literal["local", "none"]
    epsilon: Positive | None
    delta: Annotated[float, Field(gt=0, lt=1)]
    unit: PrivacyUnit
    clip_norm: Positive
    sample_rate: Fraction
    max_records_per_unit: Count
    max_records_per_patient: Count | None = None
    extra_sessions: Annotated[int, Field(ge=0)] = 0
    scores: Literal["none", "dp"] = "none"


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class SecAggConfig:
    """Secure aggregation: `masked`, or `none`, which lets the coordinator read every update and says so everywhere.

    Attributes:
      colluders: hospitals that may side with the coordinator without anybody's update being read; None takes
        floor((n - 1) / 3) of the plan's n hospitals.
      honest: at least so many honest hospitals are in every sum that is read.
      ring_bits: bits of a number on the wire.
      value_range: values of an update lie within plus or minus this.
      step_deadline_s: how long the coordinator waits in each step after the training.
    """

    mode: Literal["masked", "none"]
    colluders: Annotated[int, Field(ge=0, strict=True)] | None = None
    honest: Annotated[int, Field(ge=2, strict=True)] = 2
    ring_bits: Annotated[int, Field(ge=16, le=32, strict=True)] = 32
    value_range: Positive = 4.0
    step_deadline_s: Positive = 45.0


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class FedAvgConfig:
    """Weighted mean of the hospitals' adapters (arXiv 1602.05629)."""

    name: Literal["fedavg"]


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class FedAvgMConfig:
    """FedAvg with momentum at the server (arXiv 1909.06335)."""

    name: Literal["fedavgm"]
    server_learning_rate: Positive
    server_momentum: Decay


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class FedProxConfig:
    """FedAvg with a pull towards the global adapter in local training (arXiv 1812.06127)."""

    name: Literal["fedprox"]
    proximal_mu: NonNegative


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class FedAdagradConfig:
    """Adagrad at the server (arXiv 2003.00295)."""

    name: Literal["fedadagrad"]
    eta: Positive
    tau: Positive


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class FedAdamConfig:
    """Adam or Yogi at the server (arXiv 2003.00295): `eta` is the server's learning rate, `tau` its adaptivity."""

    name: Literal["fedadam", "fedyogi"]
    eta: Positive
    beta_1: Decay
    beta_2: Decay
    tau: Positive


StrategyConfig = Annotated[
    FedAvgConfig | FedAvgMConfig | FedProxConfig | FedAdagradConfig | FedAdamConfig, Field(discriminator="name")
]


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class RuntimeConfig:
    """Where a simulation's clients run.

    Attributes:
      name: "local" in this process, "ray" in Flower's simulation engine.
      parallel: local only; hospitals trained at the same time, 0 for one a core (one on a GPU).
      threads: torch threads of each hospital; 0 shares the cores out.
      cpus_per_client: Ray only; how many clients run at once follows from it.
    """

    name: Literal["local", "ray"]
    parallel: Annotated[int, Field(ge=0)] = 0
    threads: Annotated[int, Field(ge=0)] = 1
    cpus_per_client: Positive = 1.0


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class EvaluationConfig:
    """How a simulation, whose harness owns all the data, scores the global adapter.

    Attributes:
      every_rounds: score after every so many rounds; 0 only at the end.
      max_examples: pooled held-out examples scored after a round (the closing comparison takes all).
    """

    every_rounds: Annotated[int, Field(ge=0)]
    max_examples: Count
    batch_size: Count


@dataclass(frozen=True, slots=True, kw_only=True, config=STRICT)
class FederationConfig:
    """Everything that `fedslm simulate` and `fedslm plan` take.

    Attributes:
      rounds: rounds of federation.
      seed: makes the simulation reproducible: data, initial adapter, sampling and noise. A deployment has none.
      min_cohort: fewer hospitals than this in a round stop the run with exit code 4; None is the fewest that make sense.
      deadline_s: how long the server waits for a round's replies.
      compare: also train each hospital alone and on pooled data, and print the comparison.
      run_folder: where the run is written; None makes a new folder under `runs/`.
    """

    rounds: Count
    seed: Annotated[int, Field(ge=0, strict=True)]
    min_cohort: Count | None
    deadline_s: Positive
    compare: bool
    run_folder: Annotated[str, Field(min_length=1)] | None
    model: ModelConfig
    adapter: AdapterConfig
    data: DataConfig
    training: TrainingConfig
    privacy: PrivacyConfig
    secagg: SecAggConfig
    strategy: StrategyConfig
    runtime: RuntimeConfig
    evaluation: EvaluationConfig


MAX_MASKED_HOSPITALS = 255  # a hospital is a point of GF(2^8) other than 0
MIN_MASKED_HOSPITALS = 3  # of two, each reads the other's update: it is the sum less its own


def check_masking(*, hospitals: int, min_cohort: int, colluders: int, honest: int) -> None:
    """Refuses a secure aggregation whose promise contradicts itself at some number of hospitals it may run with.

    With n hospitals in a session, t = floor((n + colluders) / 2) + 1 of them reconstruct, so that colluders < 2t - n, and
    no sum over fewer than max(t, colluders + honest) is read. Both are at most n for every n from `min_cohort` on exactly
    when colluders + honest <= min_cohort.

    Raises:
      ConfigError: naming the numbers that do not go together.
    """
    if hospitals < MIN_MASKED_HOSPITALS:
        raise ConfigError(
            f"Secure aggregation needs at least {MIN_MASKED_HOSPITALS} hospitals, there are {hospitals}: of two, each "
            "could read the other's update; add hospitals, or set secagg=none, which lets the coordinator read updates."
        )
    if hospitals > MAX_MASKED_HOSPITALS:
        raise ConfigError(
            f"Secure aggregation takes at most {MAX_MASKED_HOSPITALS} hospitals, there are {hospitals}; "
            "split the consortium, or set secagg=none, which lets the coordinator read updates."
        )
    if min_cohort < MIN_MASKED_HOSPITALS:
        raise ConfigError(
            f"secagg=masked but min_cohort={min_cohort}; a sum of fewer than {MIN_MASKED_HOSPITALS} hides nobody: "
            f"set min_cohort={MIN_MASKED_HOSPITALS} or more, or secagg=none, which lets the coordinator read updates."
        )
    if colluders + honest > min_cohort:
        raise ConfigError(
            f"secagg.colluders={colluders} with secagg.honest={honest} needs {colluders + honest} hospitals in every sum, "
            f"but min_cohort={min_cohort}; set min_cohort={colluders + honest}, or a lower secagg.colluders."
        )


MIN_SCORE_RING_BITS = 24  # with fewer the rounding of a score would be coarser than its noise


def check_scores(*, mode: str, unit: str, ring_bits: int | None) -> None:
    """Refuses to release scores of held-out patients where their cost or their secrecy could not be promised.

    Args:
      mode, unit: of the privacy.
      ring_bits: of the secure aggregation; None where updates are in the clear.
    Raises:
      ConfigError: naming the setting that does not go with privacy.scores=dp.
    """
    if mode != "local":
        raise ConfigError(
            f"privacy.scores=dp but privacy={mode}, which bounds nothing; set privacy=local, or privacy.scores=none."
        )
    if unit != "patient":
        raise ConfigError(
            f"privacy.scores=dp but privacy.unit={unit}; scores are bounded and noised by the patient: set "
            "privacy.unit=patient, or privacy.scores=none."
        )
    if ring_bits is None:
        raise ConfigError(
            "privacy.scores=dp but secagg=none; scores leave a hospital only within a masked sum: set secagg=masked, or "
            "privacy.scores=none."
        )
    if ring_bits < MIN_SCORE_RING_BITS:
        raise ConfigError(
            f"privacy.scores=dp but secagg.ring_bits={ring_bits}, too coarse for a score; set secagg.ring_bits="
            f"{MIN_SCORE_RING_BITS} or more, or privacy.scores=none."
        )


Group = TypeVar("Group")


def build(group: type[Group], values: Mapping[str, Any], *, where: str = "") -> Group:
    """Makes a frozen group from plain values.

    Args:
      where: prefix for the setting names in messages, e.g. "site.yaml: ".
    Raises:
      ConfigError: the first unknown, missing or impossible value, by its dotted name.
    """
    try:
        return TypeAdapter(group).validate_python(dict(values))
    except ValidationError as error:
        raise ConfigError(where + explain(error)) from None


def explain(error: ValidationError) -> str:
    """One sentence on the first thing wrong: dotted name, value found, what is allowed."""
    first = error.errors(include_url=False)[0]
    name = ".".join(str(part) for part in first["loc"] if not _is_union_tag(part, error))
    if first["type"] == "missing":
        return f"{name} is missing; it needs a value."
    if first["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{name} is not a setting; remove it or correct its spelling."
    return f"{name}={_shown(first['input'])} is not allowed: {first['msg'].lower()}."


def _is_union_tag(part: int | str, error: ValidationError) -> bool:
    # pydantic puts the chosen strategy's tag into the path ("strategy.fedadam.eta"); the user wrote strategy.eta.
    return isinstance(part, str) and part in {"fedavg", "fedavgm", "fedprox", "fedadagrad", "fedadam", "fedyogi"}


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
