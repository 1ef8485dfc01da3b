"""An adapter version as it travels: one safetensors file, and what a manifest says about it.

The manifest's `meta` names the base by digest, the adapter's shape and the whole training
configuration, so that its digest (the plan's model digest) fixes everything that a tenant trains.
Reading is strict: another kind, a missing or unknown key, a tensor that is not finite or an A whose
rows are not orthonormal is refused before anything is trained with it.

Not here: moving versions (secagg_owner publishes, tenants fetch) and hashing files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from secagg.errors import ConfigError
from secagg.layout import Layout
from secagg_models.flatten import layout_of
from secagg_models.lora import Adapter, LoraShape
from secagg_models.train import Schedule, TrainingConfig

KIND: Final = "lora"
ADAPTER_FILE: Final = "adapter.safetensors"
_ORTHONORMAL = 1e-3


@dataclass(frozen=True, slots=True)
class AdapterMeta:
    """What a manifest says about a version.

    `base_digest` is `secagg_models.base.Base.digest`. A tenant's weight is its number of training
    windows divided by `weight_unit`, at least 1 and at most the plan's cap.
    """

    base_digest: str
    shape: LoraShape
    training: TrainingConfig
    weight_unit: int = 1

    def to_json(self) -> dict[str, Any]:
        """JSON values for `Manifest.meta`."""
        return {
            "kind": KIND,
            "base_digest": self.base_digest,
            "shape": asdict(self.shape) | {"targets": list(self.shape.targets)},
            "training": asdict(self.training) | {"betas": list(self.training.betas)},
            "weight_unit": self.weight_unit,
        }

    @classmethod
    def from_json(cls, meta: Mapping[str, Any]) -> AdapterMeta:
        """Inverse of `to_json`.

        Raises:
            ConfigError: another kind, or not these keys with these types.
        """
        if meta.get("kind") != KIND:
            raise ConfigError(
                f"the version is of kind {str(meta.get('kind'))[:40]!r}, not {KIND!r}"
            )
        try:
            found = _read(meta)
            exact = found.to_json() == dict(meta)
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            if isinstance(error, ConfigError):
                raise
            exact = False
        if not exact:
            raise ConfigError(
                "the version's manifest does not describe a LoRA adapter of this kind"
            )
        return found

    def in_round(self, first_step: int) -> AdapterMeta:
        """The same for a later stretch of the schedule."""
        return replace(self, training=replace(self.training, first_step=first_step))


def _read(meta: Mapping[str, Any]) -> AdapterMeta:
    training = dict(meta["training"])
    schedule = Schedule(**training.pop("schedule"))
    betas = training.pop("betas")
    shape = dict(meta["shape"])
    targets = tuple(str(target) for target in shape.pop("targets"))
    config = TrainingConfig(schedule=schedule, betas=(betas[0], betas[1]), **training)
    numbers = (config.lr, config.weight_decay, config.clip_norm, *config.betas)
    if not all(map(math.isfinite, numbers)):
        raise ConfigError("the version's training numbers must be finite")
    unit = meta["weight_unit"]
    if type(unit) is not int or unit < 1:
        raise ConfigError("the version's weight_unit must be a whole number from 1")
    return AdapterMeta(str(meta["base_digest"]), LoraShape(targets=targets, **shape), config, unit)


def save_adapter(adapter: Adapter) -> bytes:
    """The file's bytes: A and B_0 by PEFT's names."""
    return save_tensors({**adapter.a, **adapter.b})


def load_adapter(data: bytes, shape: LoraShape) -> Adapter:
    """Inverse of `save_adapter`.

    Raises:
        ConfigError: no safetensors, other tensors, values that are not finite, or an A whose rows
            are not orthonormal (then a delta could be read off more easily than the plan says).
    """
    try:
        tensors = load_tensors(data)
    except (SafetensorError, ValueError) as error:
        raise ConfigError(f"the adapter file is no safetensors ({type(error).__name__})") from None
    a = {name: tensor for name, tensor in tensors.items() if "lora_A" in name}
    b = {name: tensor for name, tensor in tensors.items() if "lora_B" in name}
    if len(a) + len(b) != len(tensors) or not a:
        raise ConfigError("the adapter file holds other tensors than lora_A and lora_B")
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32 or tensor.ndim != 2 or not bool(tensor.isfinite().all()):
            raise ConfigError(f"the adapter's {name} is not a finite float32 matrix")
    adapter = Adapter(shape, a, b)
    for name, rows in a.items():
        gram = rows.double() @ rows.double().T
        if float((gram - torch.eye(len(rows), dtype=torch.float64)).abs().max()) > _ORTHONORMAL:
            raise ConfigError(f"the adapter's {name} has rows that are not orthonormal")
    return adapter


def delta_layout(adapter: Adapter) -> Layout:
    """The layout of what a tenant exports: B alone."""
    return layout_of(adapter.b)


def carry_residual(
    residual: Mapping[str, torch.Tensor], old: Adapter, new: Adapter
) -> dict[str, torch.Tensor]:
    """A quantisation residual of B under the old A, as one of B under the new A.

    Refactoring keeps the row space, so residual A_old = carried A_new holds exactly.
    """
    carried = {}
    for name, part in residual.items():
        pair = name.replace("lora_B", "lora_A")
        turn = old.a[pair].double() @ new.a[pair].double().T  # (r, r)
        carried[name] = (part.double() @ turn).float()
    return carried
