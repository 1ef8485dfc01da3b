"""Which layers of the full model a block is, and which of them tenants hold beside it.

A block is one of `blocks` runs of consecutive layers, as in DiffusionBlocks (Shing, Koyama, Akiba
2025). Tenants either have the whole model ("all"), or a model of this block's layers alone
("block"; block_package.py). Everything that pairs their tensors with the full model's goes through
here, by layer number and name, as `split.Split` does for emulators.

Not here: which block has which noise levels (blocks/noise.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from secagg.errors import ConfigError
from secagg_models.blocks.partition import partition

Held = Literal["all", "block"]
_KEYS: Final = {"layers", "blocks", "block", "held"}
_MAX_LAYERS: Final = 4096
"""Far above any model's: layers are counted out one by one, before any model is looked at."""


@dataclass(frozen=True, slots=True)
class BlockCut:
    """Block `block` of `blocks` of a full model with `layers` layers, and what tenants hold."""

    layers: int
    blocks: int
    block: int
    held: Held

    def __post_init__(self) -> None:
        if self.layers > _MAX_LAYERS:
            raise ConfigError(f"{self.layers} layers: at most {_MAX_LAYERS}")
        if not 1 <= self.blocks <= self.layers:
            raise ConfigError(
                f"{self.blocks} blocks of {self.layers} layers: take 1 to {self.layers}"
            )
        if not 0 <= self.block < self.blocks:
            raise ConfigError(f"block {self.block}: there are blocks 0 to {self.blocks - 1}")
        if self.held not in get_args(Held):
            raise ConfigError(f"held {self.held!r}: one of {', '.join(get_args(Held))}")

    @property
    def full_block(self) -> tuple[int, ...]:
        """The block's layers, by the full model's numbers."""
        return tuple(partition(self.layers, self.blocks)[self.block])

    @property
    def full_layers(self) -> tuple[int, ...]:
        """The full model's number of every layer that tenants hold, in order."""
        match self.held:
            case "all":
                return tuple(range(self.layers))
            case "block":
                return self.full_block

    @property
    def trained(self) -> tuple[int, ...]:
        """The block's layers, by the numbers of what tenants hold."""
        return tuple(self.full_layers.index(layer) for layer in self.full_block)

    def full_index(self, layer: int) -> int:
        """The full model's number of a layer that tenants hold.

        Raises:
            ConfigError: they hold no such layer.
        """
        if not 0 <= layer < len(self.full_layers):
            raise ConfigError(
                f"block: tenants hold layers 0 to {len(self.full_layers) - 1}, not {layer}"
            )
        return self.full_layers[layer]

    def to_json(self) -> dict[str, Any]:
        """JSON values, for a manifest."""
        return {
            "layers": self.layers, "blocks": self.blocks, "block": self.block, "held": self.held,
        }  # fmt: skip

    @classmethod
    def from_json(cls, value: Any) -> BlockCut:
        """Inverse of `to_json`.

        Raises:
            ConfigError: not these keys with whole numbers, or no such block.
        """
        if not isinstance(value, Mapping) or set(value) != _KEYS:
            raise ConfigError(f"block cut: it has {', '.join(sorted(_KEYS))}, nothing else")
        if any(type(value[name]) is not int for name in ("layers", "blocks", "block")):
            raise ConfigError("block cut: layers, blocks and block are whole numbers")
        return cls(value["layers"], value["blocks"], value["block"], value["held"])
