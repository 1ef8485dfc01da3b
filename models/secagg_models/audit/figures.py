"""The figures that a policy judges, and nothing else: what verdicts can be made of again later.

They stand in `audit.json`, so that a gate judges a stored audit by the policy of today.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from secagg.errors import ConfigError
from secagg_models.audit.statistics import Interval

BUDGET_ORDER: Final = ("quick", "standard", "full")
_INTERVALS: Final = ("gain", "gap", "cosine_excess", "cka_excess")


@dataclass(frozen=True, slots=True)
class Point:
    """One attack at one budget of tokens."""

    attack: str
    tokens: int
    recovery: float | None
    saved: int | None
    at_least: bool


@dataclass(frozen=True, slots=True)
class Figures:
    """None stands for what was not audited. `dropped` counts the layers that stayed with the
    owner."""

    budget: str
    seeds: int
    edges_identical: bool | None = None
    middle_share: float | None = None
    units_share: float | None = None
    layers_share: float | None = None
    gain: Interval | None = None
    gap: Interval | None = None
    upgrade_gap: float | None = None
    points: tuple[Point, ...] = ()
    dropped: int | None = None
    cosine_excess: Interval | None = None
    cka_excess: Interval | None = None
    other_subsets: int | None = None
    closer_copies: int | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        value = asdict(self)
        for name in _INTERVALS:
            found: Interval | None = getattr(self, name)
            value[name] = None if found is None else found.to_json()
        return value

    @classmethod
    def from_json(cls, value: Any) -> Figures:
        """Inverse of `to_json`.

        Raises:
            ConfigError: not such an object.
        """
        try:
            fields: dict[str, Any] = dict(value)
            for name in _INTERVALS:
                found: Mapping[str, Any] | None = fields[name]
                fields[name] = None if found is None else Interval.from_json(found)
            fields["points"] = tuple(Point(**point) for point in fields["points"])
            figures = cls(**fields)
            if figures.budget not in BUDGET_ORDER:
                raise ValueError(figures.budget)
        except (TypeError, KeyError, ValueError) as error:
            raise ConfigError(f"audit: these are no figures of an audit ({error})") from None
        return figures
