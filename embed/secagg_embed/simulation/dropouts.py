"""Who falls silent in which step of which round, on purpose.

A tenant that is silent from a step on answers nothing of that step and of those after it, as a
process does that has stopped. `ADVERTISE_KEYS`: it never came. `MASKED_INPUT`: it is in everybody's
masks and its upload never comes, which is the case that recovery is for. `UNMASK`: its upload is in
the sum already.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from secagg.errors import ConfigError, Step

Silent = Mapping[str, Step]
"""Tenant id to the first step that it does not answer."""


@dataclass(frozen=True, slots=True)
class RandomDropouts:
    """A fraction of each round's cohort, each from one of `steps` on, by the simulation's seed."""

    fraction: float
    steps: tuple[Step, ...] = tuple(Step)

    def __post_init__(self) -> None:
        _require_steps(self.steps)
        if not 0 <= self.fraction <= 1 or not self.steps:
            raise ConfigError(
                f"dropouts: a fraction of {self.fraction} at {len(self.steps)} steps; give one "
                "from 0 to 1 and a step at least"
            )

    def require_known(self, tenants: Sequence[str]) -> None:
        """Whoever is there can be drawn."""

    def silent(self, cohort: Sequence[str], seed: int, round_number: int) -> Silent:
        """Who is silent from which step on in this round: the same for the same arguments."""
        draw = np.random.default_rng((seed, round_number, _PURPOSE))
        count = round(self.fraction * len(cohort))
        gone = draw.choice(len(cohort), size=count, replace=False)
        first = draw.integers(len(self.steps), size=count)
        return {
            cohort[who]: self.steps[step]
            for who, step in zip(gone.tolist(), first.tolist(), strict=True)
        }


@dataclass(frozen=True, slots=True)
class ChosenDropouts:
    """These tenants, each from its step on, in every round."""

    tenants: Silent

    def __post_init__(self) -> None:
        _require_steps(self.tenants.values())

    def require_known(self, tenants: Sequence[str]) -> None:
        """Demand that they are tenants of the simulation.

        Raises:
            ConfigError: names those that are not.
        """
        if strangers := sorted(set(self.tenants) - set(tenants)):
            raise ConfigError(f"dropouts: {strangers[:5]} are no tenants of this simulation")

    def silent(self, cohort: Sequence[str], seed: int, round_number: int) -> Silent:
        """Those of them that are in the cohort."""
        return {name: Step(step) for name, step in self.tenants.items() if name in set(cohort)}


Dropouts = RandomDropouts | ChosenDropouts
_PURPOSE = 0xD0


def dropouts_of(given: float | Silent | Dropouts) -> Dropouts:
    """A fraction, or a mapping of tenants to steps, as `Dropouts`.

    Raises:
        ConfigError: neither of them.
    """
    match given:
        case RandomDropouts() | ChosenDropouts():
            return given
        case Mapping():
            return ChosenDropouts(given)
        case float() | int() if not isinstance(given, bool):
            return RandomDropouts(given)
        case _:
            raise ConfigError(
                f"dropouts are {given!r}; give a fraction, or tenants with the first step that "
                "they do not answer"
            )


def _require_steps(given: Iterable[object]) -> None:
    if strange := [one for one in given if one not in tuple(Step)]:
        raise ConfigError(f"dropouts: {strange[0]!r} is no step; give Step.MASKED_INPUT, say")
