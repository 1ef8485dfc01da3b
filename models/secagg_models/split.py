"""Which layers of the full model an emulator has: edge layers, and the middle ones that stay.

Offsite-Tuning (Xiao, Lin, Han 2023, section 3.2): the first and the last `edge` layers leave as
they are, and of the M middle layers n stay, uniformly at idx = round(i (M - 1)/(n - 1)), or by
importance. Everything that pairs an emulator's tensors with the full model's goes through here, by
layer number and name, never by order.

Which choice protects the weights is not decided here: `secagg owner audit` measures that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from secagg.errors import ConfigError

_KEYS = {"layers", "edge", "kept"}


@dataclass(frozen=True, slots=True)
class Split:
    """The full model has `layers` layers; `edge` at each end, and `kept` (full indices) stay.

    Emulator layer j is full layer j for j < edge, `kept[j - edge]` in the middle, and counts from
    the end after it.
    """

    layers: int
    edge: int
    kept: tuple[int, ...]

    def __post_init__(self) -> None:
        middle = range(self.edge, self.layers - self.edge)
        if self.edge < 1 or len(middle) < 1:
            raise ConfigError(
                f"split: {self.edge} edge layers at each end of {self.layers} layers leave no "
                f"middle; edge can be 1 to {(self.layers - 1) // 2}"
            )
        if not 1 <= len(self.kept) <= len(middle):
            raise ConfigError(
                f"split: {len(self.kept)} of {len(middle)} middle layers cannot be kept; "
                f"keep can be 1 to {len(middle)}"
            )
        if list(self.kept) != sorted(set(self.kept)) or not set(self.kept) <= set(middle):
            raise ConfigError(
                f"split: kept layers must be rising and lie in {middle.start} to {middle.stop - 1}"
            )

    @classmethod
    def uniform(cls, layers: int, edge: int, keep: int) -> Split:
        """The paper's choice: evenly spread over the middle; a single one is its centre."""
        middle = layers - 2 * edge
        _check(layers, edge, keep)
        if keep == 1:
            return cls(layers, edge, (edge + (middle - 1) // 2,))
        chosen = (round(i * (middle - 1) / (keep - 1)) for i in range(keep))
        return cls(layers, edge, tuple(edge + i for i in chosen))

    @classmethod
    def by_importance(cls, scores: Sequence[float], edge: int, keep: int) -> Split:
        """The `keep` middle layers of the highest score; `scores` has one for each middle layer.

        Of equal scores the earlier layer stays.
        """
        layers = len(scores) + 2 * edge
        _check(layers, edge, keep)
        order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
        return cls(layers, edge, tuple(sorted(edge + i for i in order[:keep])))

    @property
    def keep(self) -> int:
        """How many middle layers stay."""
        return len(self.kept)

    @property
    def emulator_layers(self) -> int:
        """How many layers the emulator has."""
        return 2 * self.edge + len(self.kept)

    @property
    def edge_layers(self) -> tuple[int, ...]:
        """The emulator's indices of both edges."""
        return (*range(self.edge), *range(self.edge + self.keep, self.emulator_layers))

    @property
    def middle_layers(self) -> tuple[int, ...]:
        """The emulator's indices of what is between the edges."""
        return tuple(range(self.edge, self.edge + self.keep))

    @property
    def full_layers(self) -> tuple[int, ...]:
        """The full model's index of every emulator layer, in order."""
        return (
            *range(self.edge),
            *self.kept,
            *range(self.layers - self.edge, self.layers),
        )

    @property
    def full_middle_layers(self) -> tuple[int, ...]:
        """The full model's indices of all that is between the edges, kept or not."""
        return tuple(range(self.edge, self.layers - self.edge))

    def full_index(self, layer: int) -> int:
        """The full model's index of an emulator layer.

        Raises:
            ConfigError: the emulator has no such layer.
        """
        if not 0 <= layer < self.emulator_layers:
            raise ConfigError(
                f"split: the emulator has layers 0 to {self.emulator_layers - 1}, not {layer}"
            )
        return self.full_layers[layer]

    def emulator_index(self, full_layer: int) -> int | None:
        """Inverse of `full_index`; None for a layer that was dropped."""
        places = {full: layer for layer, full in enumerate(self.full_layers)}
        return places.get(full_layer)

    def to_json(self) -> dict[str, Any]:
        """JSON values, for a manifest."""
        return {"layers": self.layers, "edge": self.edge, "kept": list(self.kept)}

    @classmethod
    def from_json(cls, value: Any) -> Split:
        """Inverse of `to_json`.

        Raises:
            ConfigError: not these keys with whole numbers, or no split.
        """
        if not isinstance(value, Mapping) or set(value) != _KEYS:
            raise ConfigError(f"split: it has {', '.join(sorted(_KEYS))}, nothing else")
        numbers = value["kept"]
        if not isinstance(numbers, list) or any(
            type(number) is not int for number in (value["layers"], value["edge"], *numbers)
        ):
            raise ConfigError("split: layers and edge are whole numbers, kept is a list of them")
        return cls(value["layers"], value["edge"], tuple(numbers))


class Layers(Protocol):
    """Layers of a full model that a smaller one has, by their numbers in both."""

    def full_index(self, layer: int) -> int:
        """The full model's number of the smaller one's layer."""


def full_name(split: Layers, prefix: str, emulator_name: str) -> str:
    """The full model's name of an emulator's tensor; `prefix` is `families.layer_prefix`.

    Names outside the layers are the same in both. Raises: ConfigError for a layer that the
    emulator has not.
    """
    number, dot, rest = emulator_name.removeprefix(prefix).partition(".")
    if not emulator_name.startswith(prefix) or not dot or not number.isdecimal():
        return emulator_name
    return f"{prefix}{split.full_index(int(number))}.{rest}"


def _check(layers: int, edge: int, keep: int) -> None:
    """The two numbers that people type, before any layer is counted out."""
    middle = layers - 2 * edge
    if edge < 1 or middle < 1:
        raise ConfigError(
            f"edge = {edge}: a model of {layers} layers has no middle then; take 1 to "
            f"{(layers - 1) // 2}"
        )
    if not 1 <= keep <= middle:
        raise ConfigError(
            f"keep = {keep}: there are {middle} middle layers between edges of {edge}; take 1 to "
            f"{middle}, and fewer than that if the emulator is to protect anything"
        )
