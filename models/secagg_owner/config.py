"""The owner's configuration: what is trained, how rounds are planned, and what is measured.

coordinator = "coordinator.example:8470"
keys = "keys"
data = "data"                      # model versions, rounds' results

[model]
kind = "offsite"                   # or "lora", "edges" (tenants have the base), "block" (one block
                                   # alone), "vector" (no model)
full = "shipped"                   # or a local folder, or a hub id; it never leaves
emulator = "emulator"              # from 'secagg owner emulate'; tenants have it too
update = "lora"                    # or "edges": the edge layers whole
rank = 16

[training]
steps = 16                         # optimiser steps of one round
lr = 0.01

[round]
rounds = 3
clip = "auto"                      # from a dry run on the owner's own text
scheme = "auto"                    # or "masking", or "ckks"

[text]
path = "owner-text"                # without it: this Python's standard library

[series]                           # in place of [text] where the base is a forecaster
path = "owner-series"              # a folder of CSV files; without it: the public pretraining ones
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from secagg.ckks.parameters import Packing, Security
from secagg.plan import Deadlines, Scheme, Suite
from secagg_wire.settings import FilePath, Table, load

ENVIRONMENT_PREFIX = "SECAGG_OWNER__"
_Count = Annotated[int, Field(gt=0)]
_Positive = Annotated[float, Field(gt=0)]
_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class VectorModel(Table):
    """Tenants submit flat vectors of their own; nothing is published. For dry runs and tests."""

    kind: Literal["vector"]
    length: _Count
    clip: _Positive = 1.0


class LoraModel(Table):
    """B-only LoRA on a causal language model or a forecaster; A is drawn from `seed`, broadcast."""

    kind: Literal["lora"]
    base: str = "shipped"
    rank: _Count = 16
    scaling: _Positive = 1.0
    targets: tuple[str, ...] = _LINEAR
    seed: int = 1


class EdgesModel(Table):
    """Whole layers of a base that everybody has: all of them, or those that `layers` lists; with
    `embeddings` also what lies outside the layers. Summed tensor by tensor, as an emulator's edges.
    """

    kind: Literal["edges"]
    base: str = "shipped"
    layers: tuple[Annotated[int, Field(ge=0)], ...] = ()
    embeddings: bool = True


class OffsiteModel(Table):
    """Tenants train the edge layers of an emulator; the full model stays here.

    `emulator` is what `secagg owner emulate` wrote. `update` is what is trained and summed: a LoRA
    adapter in the edge layers (`rank`, `scaling`, `targets` and `seed` are its), or these layers
    whole. `audit_policy` is the TOML file that its audit is held against before anything leaves;
    without one the defaults hold.
    """

    kind: Literal["offsite"]
    full: str = "shipped"
    emulator: FilePath
    audit_policy: FilePath | None = None
    update: Literal["lora", "edges"] = "lora"
    embeddings: bool = False
    rank: _Count = 16
    scaling: _Positive = 1.0
    targets: tuple[str, ...] = _LINEAR
    seed: int = 1


class BlockModel(Table):
    """Tenants train one block of the model by itself, as a step that removes noise.

    `package` is what `secagg owner block` wrote: tenants then hold nothing but embeddings, this
    block and the head, and the objective is "pure". Without it they have the model `full`, and
    "prefix" (after the layers before the block) or "mixed" (with `ordinary_weight` times the
    ordinary loss, which keeps the ordinary pass alive) are possible too.

    `conditioning` is a safetensors file with what other blocks learnt of the noise level
    (`conditioning.safetensors` of `secagg owner plug-in`); the sampler needs it, this block starts
    without it.
    `audit_policy` is as for emulators; of it a block is held against `verbatim.layers_max`.
    """

    kind: Literal["block"]
    full: str = "shipped"
    package: FilePath | None = None
    audit_policy: FilePath | None = None
    blocks: _Count = 3
    block: Annotated[int, Field(ge=0)] = 0
    objective: Literal["pure", "prefix", "mixed"] = "pure"
    ordinary_weight: _Positive = 1.0
    widen: Annotated[float, Field(ge=0)] = 0.05
    conditioning: FilePath | None = None
    seed: int = 1

    @model_validator(mode="after")
    def _trains_what_tenants_hold(self) -> BlockModel:
        if self.block >= self.blocks:
            raise ValueError(f"block {self.block}: there are blocks 0 to {self.blocks - 1}")
        if self.package is not None and self.objective != "pure":
            raise ValueError(
                f"objective {self.objective!r} needs the layers outside the block, and tenants "
                "hold the package alone; take 'pure', or leave package out"
            )
        return self


class Training(Table):
    """What every tenant does in one round; the schedule runs over all rounds."""

    steps: _Count = 16
    batch: _Count = 8
    context: _Count = 256
    lr: _Positive = 0.01
    warmup_steps: Annotated[int, Field(ge=0)] = 4
    decay_share: Annotated[float, Field(gt=0, le=1)] = 0.5
    final_share: Annotated[float, Field(gt=0, le=1)] = 0.1
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    clip_norm: _Positive = 1.0
    seed: int = 1
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    threads: _Count = 1


class DeadlineSeconds(Table):
    """How long each step may take; training happens in the first."""

    advertise_keys: _Positive = 600.0
    share_keys: _Positive = 60.0
    acknowledge: _Positive = 60.0
    masked_input: _Positive = 600.0
    consistency_check: _Positive = 60.0
    unmask: _Positive = 60.0

    def deadlines(self) -> Deadlines:
        """As the plan has them."""
        return Deadlines(
            *(
                max(1, round(seconds * 1000))
                for seconds in (
                    self.advertise_keys, self.share_keys, self.acknowledge, self.masked_input,
                    self.consistency_check, self.unmask,
                )
            )
        )  # fmt: skip


class Round(Table):
    """How rounds are planned. What is left out follows from the cohort (see `secagg plan`).

    `recompute` says how much of an opened sum is computed again from the survivors' uploads before
    it is used: "all", "random" (`recompute_leaves` of its leaves and the weight), or "off".

    `scheme` is how deltas are protected: by "masking", by one-time CKKS keys ("ckks"), or by
    whichever of the two costs less in a cohort like this ("auto"; the log says why). `packing` and
    `security` are of "ckks": "slots" makes the sum a ciphertext that SEAL goes on with, and
    "quantum" or "classical" is the attacker that 128 bits are held against. `unit_costs` names a
    file that `secagg bench units` printed on a machine like the tenants', for "auto".
    """

    rounds: _Count = 1
    cohort: tuple[str, ...] = ()
    value_bits: Annotated[int, Field(ge=4, le=32)] = 16
    clip: _Positive | Literal["auto"] = "auto"
    clip_margin: _Positive = 2.0
    max_weight: _Count = 1
    weight_unit: _Count = 1
    server_rate: _Positive = 1.0
    recompute: Literal["all", "random", "off"] = "all"
    recompute_leaves: _Count = 8
    max_colluders: Annotated[int, Field(ge=0)] | None = None
    share_threshold: _Count | None = None
    min_survivors: _Count | None = None
    suite: Suite = "x25519-mlkem768"
    scheme: Scheme | Literal["auto"] = "masking"
    packing: Packing = "coefficients"
    security: Security = "quantum"
    unit_costs: FilePath | None = None
    neighbours: _Count | None = None
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    wait_for_tenants: Annotated[int, Field(ge=0)] | None = None
    wait_seconds: Annotated[float, Field(ge=0)] = 300.0
    on_abort: Literal["stop", "next"] = "stop"
    deadlines: DeadlineSeconds = DeadlineSeconds()


class Text(Table):
    """The owner's own text: its training part for the dry run, its validation part to measure."""

    path: FilePath | None = None
    pattern: str = "**/*.py"
    windows: Annotated[int, Field(ge=0)] = 32


class Series(Table):
    """The owner's own time series, in place of `Text` where the base is a forecaster.

    `path` is a folder of CSV files; without it, the real series of the shipped base's pretraining.
    """

    path: FilePath | None = None
    windows: Annotated[int, Field(ge=0)] = 64


class Log(Table):
    """JSON lines on stderr, or in a file."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    file: FilePath | None = None


class Config(Table):
    """The whole file."""

    coordinator: str
    keys: FilePath
    data: FilePath
    model: Annotated[
        LoraModel | EdgesModel | OffsiteModel | BlockModel | VectorModel,
        Field(discriminator="kind"),
    ]
    training: Training = Training()
    round: Round = Round()
    text: Text = Text()
    series: Series = Series()
    log: Log = Log()

    @model_validator(mode="after")
    def _names_a_port(self) -> Config:
        host, _, port = self.coordinator.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 1 << 16:
            raise ValueError("coordinator is HOST:PORT")
        return self


def load_config(path: Path, environment: Mapping[str, str] = os.environ) -> Config:
    """Read and check an owner's configuration file.

    Raises:
        ConfigError: names the key and what is wrong with it.
    """
    return load(Config, path, ENVIRONMENT_PREFIX, environment)


def required_files(config: Config) -> tuple[Path, ...]:
    """What must be there before a round can be opened."""
    wanted: list[Path | None] = [config.text.path, config.series.path, config.round.unit_costs]
    match config.model:
        case OffsiteModel(emulator=emulator):
            wanted.append(emulator)
        case BlockModel(package=package, conditioning=conditioning):
            wanted += [package, conditioning]
        case _:
            pass
    return tuple(path for path in wanted if path is not None)
