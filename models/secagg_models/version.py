"""A version of an update as it travels: one safetensors file, and what a manifest says about it.

The manifest's `meta` names the base by digest (an emulator is a base like any other), the update's
kind and shape and the whole training configuration, so that its digest (the plan's model digest)
fixes everything that a tenant trains. Three kinds: "lora", "edges" and "block". Reading is strict:
another kind, a missing or unknown key, a number that is not finite is refused before anything is
trained.

Not here: the file's tensors (updates.py), moving versions (secagg_owner publishes, tenants fetch),
hashing files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from secagg.errors import ConfigError
from secagg_models.block_weights import BlockShape
from secagg_models.edges import EdgesShape
from secagg_models.lora import LoraShape
from secagg_models.train import Schedule, TrainingConfig
from secagg_models.updates import UpdateShape

ADAPTER_FILE: Final = "adapter.safetensors"
EDGES_FILE: Final = "edges.safetensors"
BLOCK_FILE: Final = "block.safetensors"
KINDS: Final[Mapping[str, type[UpdateShape]]] = {
    "lora": LoraShape, "edges": EdgesShape, "block": BlockShape,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class UpdateMeta:
    """What a manifest says about a version.

    `base_digest` is `secagg_models.base.Base.digest`. A tenant's weight is its number of training
    windows divided by `weight_unit`, at least 1 and at most the plan's cap.
    """

    base_digest: str
    shape: UpdateShape
    training: TrainingConfig
    weight_unit: int = 1

    def __post_init__(self) -> None:
        columns = self.training.columns
        match self.shape:
            case LoraShape(rank=rank) if columns is None or 1 <= columns <= rank:
                pass
            case EdgesShape() | BlockShape() if columns is None:
                pass
            case _:
                raise ConfigError(f"the version trains {columns} columns, which it does not have")

    @property
    def kind(self) -> str:
        """As manifests write it."""
        match self.shape:
            case LoraShape():
                return "lora"
            case EdgesShape():
                return "edges"
            case BlockShape():
                return "block"

    @property
    def file(self) -> str:
        """The name of the version's one file."""
        match self.shape:
            case LoraShape():
                return ADAPTER_FILE
            case EdgesShape():
                return EDGES_FILE
            case BlockShape():
                return BLOCK_FILE

    def to_json(self) -> dict[str, Any]:
        """JSON values for `Manifest.meta`."""
        return {
            "kind": self.kind,
            "base_digest": self.base_digest,
            "shape": _shape_to_json(self.shape),
            "training": asdict(self.training) | {"betas": list(self.training.betas)},
            "weight_unit": self.weight_unit,
        }

    @classmethod
    def from_json(cls, meta: Mapping[str, Any]) -> UpdateMeta:
        """Inverse of `to_json`.

        Raises:
            ConfigError: another kind, or not these keys with these types.
        """
        if str(meta.get("kind")) not in KINDS:
            known = ", ".join(map(repr, KINDS))
            raise ConfigError(
                f"the version is of kind {str(meta.get('kind'))[:40]!r}, none of {known}"
            )
        try:
            found = _read(meta)
            exact = _same(found.to_json(), dict(meta))
        except (TypeError, KeyError, ValueError, AttributeError, ArithmeticError) as error:
            if isinstance(error, ConfigError):
                raise
            exact = False
        if not exact:
            raise ConfigError(
                f"the version's manifest does not describe an update of kind {meta['kind']!r}"
            )
        return found

    def in_round(self, first_step: int) -> UpdateMeta:
        """The same for a later stretch of the schedule."""
        return replace(self, training=replace(self.training, first_step=first_step))


def _read(meta: Mapping[str, Any]) -> UpdateMeta:
    training = dict(meta["training"])
    schedule = Schedule(**training.pop("schedule"))
    betas = training.pop("betas")
    config = TrainingConfig(schedule=schedule, betas=(betas[0], betas[1]), **training)
    numbers = (config.lr, config.weight_decay, config.clip_norm, *config.betas)
    if not all(map(math.isfinite, numbers)):
        raise ConfigError("the version's training numbers must be finite")
    unit = meta["weight_unit"]
    if type(unit) is not int or unit < 1:
        raise ConfigError("the version's weight_unit must be a whole number from 1")
    shape = _shape_of(meta["kind"], dict(meta["shape"]))
    return UpdateMeta(str(meta["base_digest"]), shape, config, unit)


def _shape_to_json(shape: UpdateShape) -> dict[str, Any]:
    """Lists for tuples; without what is empty, as before there were layers."""
    values = {n: list(v) if isinstance(v, tuple) else v for n, v in asdict(shape).items()}
    return {name: value for name, value in values.items() if value != []}


def _shape_of(kind: str, values: dict[str, Any]) -> UpdateShape:
    layers = values.get("layers", [])
    if isinstance(layers, list) and any(type(layer) is not int for layer in layers):
        raise ConfigError("the version's layers must be whole numbers")
    if any(type(name) is not str for n in ("targets", "extra") for name in values.get(n, [])):
        raise ConfigError("the version's targets and extra tensors must be names")
    tuples: dict[str, Any] = {
        name: tuple(v) if isinstance(v, list) else v for name, v in values.items()
    }
    return KINDS[kind](**tuples)


def _same(written: object, given: object) -> bool:
    """Equal in values and in types: JSON's 1, 1.0 and true are equal to Python."""
    match written, given:
        case dict(), dict():
            return written.keys() == given.keys() and all(
                _same(written[key], given[key]) for key in written
            )
        case list(), list():
            return len(written) == len(given) and all(map(_same, written, given))
        case _:
            return type(written) is type(given) and written == given
