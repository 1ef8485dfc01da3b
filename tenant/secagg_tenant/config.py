"""The tenant's configuration: where the coordinator is, what this tenant agrees to, what it trains.

    coordinator = "coordinator.example:8470"
    keys = "keys"                      # 'secagg keys init' made it
    data = "data"                      # ledger, round keys, adapter versions, audit log

    [policy]                           # the least and the most that a plan may ask
    roster_digest = "..."              # 'secagg keys approve' printed it
    max_colluders = 1
    max_clip = 0.1

    [model]
    base = "shipped"                   # or a local folder, or a hub id
    base_digest = "..."                # pinned; 'secagg owner show-base' prints it
    # emulator = "emulator"            # or instead of a base: a package of 'secagg owner emulate',
    # emulator_digest = "..."          # admitted at every start; its manifest's digest, pinned
    # owner_key = "..."                # the owner's public key, which signs what this tenant takes

    [training]
    trainer = "lora"                   # or "series", for a forecaster as base
    text = "private-text"              # or series = "private-series", a folder of CSV files

Nothing secret stands here. The policy is this tenant's own: the coordinator cannot change it, and
a plan outside it is refused by the clause's name.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from secagg.ckks.parameters import Packing, Security
from secagg.errors import ConfigError
from secagg.plan import COMPLETE_UP_TO, MIN_SURVIVORS, Scheme, Suite
from secagg.policy import Policy
from secagg_models.admission import limits
from secagg_wire.settings import FilePath, HexDigest, Table, load

ENVIRONMENT_PREFIX = "SECAGG_TENANT__"
_Count = Annotated[int, Field(gt=0)]
_Positive = Annotated[float, Field(gt=0)]
_BAND_SLOT = 10.0


class PolicyTable(Table):
    """See `secagg.policy.Policy`, the limits on what is trained, and which versions are accepted.

    `recompute`: how much of the sum that a model version was made from is computed again from the
    survivors' uploads before the version is accepted: "all", "random" (`recompute_leaves` of its
    leaves, and the weight), or "off". `start_versions`: digests of versions that are accepted
    without it, where a training begins anew or began before this tenant was there.
    """

    roster_digest: HexDigest
    max_colluders: Annotated[int, Field(ge=0)] = 1
    min_survivors: Annotated[int, Field(ge=2)] = MIN_SURVIVORS
    min_cohort: Annotated[int, Field(ge=3)] = 3
    min_threshold: _Count = 2
    schemes: tuple[Scheme, ...] = ("masking", "ckks")
    packings: tuple[Packing, ...] = ("coefficients",)
    securities: tuple[Security, ...] = ("quantum",)
    suites: tuple[Suite, ...] = ("x25519-mlkem768",)
    complete_up_to: Annotated[int, Field(ge=0)] = COMPLETE_UP_TO
    sparse_corrupt: Annotated[float, Field(ge=0, le=1)] = 0.1
    committee_corrupt: Annotated[float, Field(ge=0, le=1)] = 1 / 3
    model_digests: tuple[HexDigest, ...] = ()
    layout_digests: tuple[HexDigest, ...] = ()
    max_clip: _Positive = math.inf
    max_weight: _Count = 1 << 40
    max_length: _Count = 1 << 36
    max_training_steps: _Count = 10_000
    max_training_windows: _Count = 1_000_000
    max_training_batch: _Count = 1024
    max_training_context: _Count = 8192
    max_version_bytes: _Count = 1 << 36
    recompute: Literal["all", "random", "off"] = "random"
    recompute_leaves: _Count = 8
    start_versions: tuple[HexDigest, ...] = ()

    def policy(self) -> Policy:
        """What the core checks."""
        return Policy(
            roster_digest=bytes.fromhex(self.roster_digest),
            max_colluders=self.max_colluders,
            min_survivors=self.min_survivors,
            min_cohort=self.min_cohort,
            min_threshold=self.min_threshold,
            schemes=self.schemes,
            packings=self.packings,
            securities=self.securities,
            suites=self.suites,
            complete_up_to=self.complete_up_to,
            sparse_corrupt=self.sparse_corrupt,
            committee_corrupt=self.committee_corrupt,
            model_digests=frozenset(map(bytes.fromhex, self.model_digests)),
            layout_digests=frozenset(map(bytes.fromhex, self.layout_digests)),
            max_clip=self.max_clip,
            max_weight=self.max_weight,
            max_length=self.max_length,
        )


class Model(Table):
    """The base model, loaded here; or the emulator that an owner made of a model of its own.

    `emulator` is a package folder. It is admitted (`secagg tenant admit`) whenever this tenant
    joins: signed by `owner_key`, with the manifest digest `emulator_digest` where that is pinned.
    """

    base: str = "shipped"
    base_digest: HexDigest | None = None
    emulator: FilePath | None = None
    emulator_digest: HexDigest | None = None
    owner_key: HexDigest | None = None

    @model_validator(mode="after")
    def _is_one_or_the_other(self) -> Model:
        if self.emulator is None:
            if self.emulator_digest is not None:
                raise ValueError("emulator_digest is given, and emulator is not")
            return self
        if "base" in self.model_fields_set:
            raise ValueError("base and emulator exclude each other: an emulator is the base")
        if self.owner_key is None:
            raise ValueError("owner_key is needed where emulator is given: it must have signed it")
        return self


def _known_thresholds(values: dict[str, float]) -> dict[str, float]:
    limits.Thresholds.from_json(values)
    return values


Thresholds = Annotated[dict[str, float], AfterValidator(_known_thresholds)]
"""Limits of the admission, by figure (`secagg_models.admission.limits`); others keep theirs."""


class ModelTraining(Table):
    """What every training of a model on private data asks; `name` decides which windows are drawn.

    `rank`: how many columns of B this tenant trains where the plan's rank is higher; it stays here.
    `windows`: drawn uniformly, or by the surprise band with the signal `surprise`; whichever it is,
    as many windows are trained. `per_window_clip`: the largest norm of one window's gradient.
    `slot_seconds`: a contribution is ready at the next multiple of this after its training began,
    so that how long it took does not show; 0: at once. Not given, it is 10 with the surprise band,
    whose bookkeeping takes longer the more windows there are, and 0 otherwise.
    """

    windows: Literal["uniform", "surprise-band"] = "uniform"
    surprise: Literal["loss", "loss-gap", "latent-error"] = "loss"
    per_window_clip: _Positive | None = None
    slot_seconds: Annotated[float, Field(ge=0)] | None = None
    rank: Annotated[int, Field(ge=1)] | None = None
    name: str = ""
    threads: _Count = 1
    evaluation_windows: _Count = 32

    @property
    def slot(self) -> float:
        """Seconds; 0 where a contribution does not wait."""
        if self.slot_seconds is not None:
            return self.slot_seconds
        return _BAND_SLOT if self.windows == "surprise-band" else 0.0


class LoraTraining(ModelTraining):
    """Train on private text: the files under `text` that match `pattern`."""

    trainer: Literal["lora"]
    text: FilePath
    pattern: str = "**/*.py"


class SeriesTraining(ModelTraining):
    """Train a forecaster on private time series: `series` holds one CSV file for each.

    A file has numbers in its columns, a time first where it has one; an empty cell is a missing
    value. Its latest values are held out, the earlier ones are trained on.
    """

    trainer: Literal["series"]
    series: FilePath


class VectorTraining(Table):
    """No training: submit a vector from a file, or one drawn from a seed. For dry runs and tests.

    `file` is a flat float .npy; without it, each round draws values uniformly from
    [-spread, spread] x clip by `numpy.random.default_rng([seed, round])`.
    """

    trainer: Literal["vector"]
    file: FilePath | None = None
    seed: int = 0
    spread: Annotated[float, Field(ge=0, le=10)] = 0.5
    weight: _Count = 1


class OnlineTable(Table):
    """Data that keep coming: read again before each round, watched for drift, versions judged.

    `decide`: who lets a version serve. "measured": this tenant's own figures, where they show that
    it is not worse than the one in use by more than `margin`, and on the remembered windows by more
    than `forget_margin` (shares of the loss, with `confidence` each). "operator": 'secagg tenant
    approve'. The numbers of windows are what is measured each time, whatever has come.
    """

    decide: Literal["measured", "operator"] = "measured"
    margin: Annotated[float, Field(ge=0)] = 0.01
    forget_margin: Annotated[float, Field(ge=0)] = 0.05
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    held_out_windows: _Count = 64
    memory_windows: _Count = 32
    arrival_windows: _Count = 32
    windows_per_false_alarm: Annotated[int, Field(ge=20)] = 2000


class Upload(Table):
    """`max_bytes_per_second` 0 means as fast as the line."""

    max_bytes_per_second: Annotated[int, Field(ge=0)] = 0


class Patience(Table):
    """How long this tenant waits for the coordinator beyond a step's own deadline."""

    silence_seconds: _Positive = 120.0
    call_seconds: _Positive = 60.0


class Demonstration(Table):
    """Writes plaintext beside the round. For demonstrations on public data, and nothing else."""

    encoded_dir: FilePath


class Log(Table):
    """JSON lines on stderr, or in a file."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    file: FilePath | None = None


class Config(Table):
    """The whole file."""

    coordinator: str
    keys: FilePath
    data: FilePath
    policy: PolicyTable
    training: Annotated[
        LoraTraining | SeriesTraining | VectorTraining, Field(discriminator="trainer")
    ]
    model: Model = Model()
    admission: Thresholds = Field(default_factory=dict)
    upload: Upload = Upload()
    patience: Patience = Patience()
    online: OnlineTable | None = None
    demonstration: Demonstration | None = None
    log: Log = Log()

    @model_validator(mode="after")
    def _pins_what_it_trains(self) -> Config:
        pinned = self.model.base_digest is not None or self.model.emulator is not None
        if isinstance(self.training, ModelTraining) and not pinned:
            raise ValueError(
                f"model.base_digest is needed where trainer = '{self.training.trainer}': "
                "'secagg owner show-base BASE' prints it"
            )
        return self

    @model_validator(mode="after")
    def _trains_the_emulator(self) -> Config:
        if self.model.emulator is not None and not isinstance(self.training, LoraTraining):
            raise ValueError("model.emulator is for trainer = 'lora': nothing else trains it")
        return self

    @model_validator(mode="after")
    def _measures_what_it_trains(self) -> Config:
        if self.online is not None and not isinstance(self.training, ModelTraining):
            raise ValueError("[online] is for a trainer with a model: 'vector' measures nothing")
        return self

    @model_validator(mode="after")
    def _names_a_port(self) -> Config:
        host, _, port = self.coordinator.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 1 << 16:
            raise ValueError("coordinator is HOST:PORT")
        return self


def load_config(path: Path, environment: Mapping[str, str] = os.environ) -> Config:
    """Read and check a tenant's configuration file.

    Raises:
        ConfigError: names the key and what is wrong with it.
    """
    return load(Config, path, ENVIRONMENT_PREFIX, environment)


def required_files(config: Config) -> tuple[Path, ...]:
    """What must be there before this tenant can join."""
    emulator = () if config.model.emulator is None else (config.model.emulator,)
    match config.training:
        case LoraTraining(text=text):
            return (text, *emulator)
        case SeriesTraining(series=series):
            return (series, *emulator)
        case VectorTraining(file=file):
            return emulator if file is None else (file, *emulator)


def check_text(config: Config) -> None:
    """Demand that the private data exist, and the emulator where one is named.

    Raises:
        ConfigError: it does not.
    """
    for path in required_files(config):
        if not path.exists():
            emulator = path == config.model.emulator
            key = "model.emulator" if emulator else "training.text, series or file"
            raise ConfigError(f"{path} does not exist; {key} names it")
