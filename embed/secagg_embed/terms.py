"""What whoever starts rounds decides once for a run, and a fresh number for each round."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from numbers import Integral, Real
from pathlib import Path
from typing import Literal

from secagg.choice import choose_scheme
from secagg.encoding import Quantiser
from secagg.errors import ConfigError
from secagg.identity import Roster
from secagg.layout import Layout
from secagg.plan import RoundPlan, Suite
from secagg_embed.exchange import CoordinatedRound
from secagg_embed.folder import as_roster
from secagg_embed.tensors import Tensors, layout_of, model_digest, require_finite_model

_SCHEMES = ("masking", "ckks", "auto")


@dataclass(frozen=True, slots=True)
class Terms:
    """How deltas become a sum; every tenant's policy has the last word on it.

    `clip`: a coordinate of a delta beyond +-clip is cut, so choose it from a dry run on data of
    your own. `value_bits` (4 to 32): levels between -clip and clip. `max_weight`: the largest
    weight of a tenant (number of examples); what exceeds it counts as much as it. `scheme` "auto"
    takes the cheaper one (`secagg.choice`). `max_colluders` and `min_survivors` have
    `RoundPlan.create`'s defaults, and `dropout` is the fraction that is expected to fall silent.

    Raises:
        ConfigError: one of them is of another kind, or out of its range.
    """

    clip: float
    value_bits: int = 16
    max_weight: int = 1
    scheme: Literal["masking", "ckks", "auto"] = "masking"
    suite: Suite = "x25519-mlkem768"
    max_colluders: int | None = None
    min_survivors: int | None = None
    dropout: float = 0.1

    def __post_init__(self) -> None:
        for name in ("value_bits", "max_weight", "max_colluders", "min_survivors"):
            if (given := getattr(self, name)) is not None or name in ("value_bits", "max_weight"):
                object.__setattr__(self, name, whole(name, given))
        for name in ("clip", "dropout"):
            object.__setattr__(self, name, _real(name, getattr(self, name)))
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout is {self.dropout}; give a fraction, from 0 to below 1")
        if self.scheme not in _SCHEMES:
            raise ConfigError(f"scheme is {self.scheme!r}; choose of {list(_SCHEMES)}")
        Quantiser(self.clip, self.value_bits)

    def plan(
        self,
        roster: Roster | Path | str,
        layout: Layout,
        model_digest: bytes,
        *,
        round_number: int,
        cohort: tuple[str, ...] | None = None,
    ) -> RoundPlan:
        """The plan of one round over `cohort` (default: the whole `roster`, which may be a file).

        Raises:
            ConfigError: no honest tenant could accept such a plan; the message says why.
        """
        if isinstance(cohort, str):
            raise ConfigError(f"the cohort is {cohort!r}; give a tuple of names")
        make = partial(
            RoundPlan.create,
            as_roster(roster),
            round_number=whole("round_number", round_number),
            layout=layout,
            quantiser=Quantiser(self.clip, self.value_bits),
            model_digest=model_digest,
            cohort=cohort,
            max_colluders=self.max_colluders,
            min_survivors=self.min_survivors,
            max_weight=self.max_weight,
            dropout=self.dropout,
            suite=self.suite,
        )
        if self.scheme == "auto":
            return choose_scheme(make, dropout=self.dropout).plan
        return make(scheme=self.scheme)

    def round(
        self,
        roster: Roster | Path | str,
        tensors: Tensors,
        *,
        round_number: int,
        cohort: tuple[str, ...] | None = None,
        settings: bytes = b"",
    ) -> CoordinatedRound:
        """A round in which tenants train these tensors, ready to `begin`.

        `settings`: what else you tell them to train with (`model_digest`).

        Raises:
            ConfigError: as `plan`, or there is nothing in `tensors` to average.
        """
        known = as_roster(roster)
        layout, digest = layout_of(tensors), model_digest(tensors, settings)
        require_finite_model(tensors, layout)
        plan = self.plan(known, layout, digest, round_number=round_number, cohort=cohort)
        return CoordinatedRound(plan, known)


def require_terms(given: object) -> None:
    """Demand `Terms` where an adapter is made, and not in the middle of its first round.

    Raises:
        ConfigError: it is something else.
    """
    if not isinstance(given, Terms):
        raise ConfigError(f"terms is a {type(given).__name__}; give Terms(clip=..., ...)")


def next_round_number(last: int, now_s: float) -> int:
    """A number above `last` and above those of earlier runs: the second of the Unix clock.

    A tenant refuses a number that its key has used, and one that is 2^32 or more above it. Runs
    that keep nothing between them can still tell a number that nobody used: the time.
    """
    return max(last + 1, int(now_s))


def whole(name: str, given: object) -> int:
    """The whole number that a setting has to be, NumPy's too.

    Raises:
        ConfigError: it is none.
    """
    if isinstance(given, bool) or not isinstance(given, Integral):
        raise ConfigError(f"{name} is {given!r}; give a whole number")
    return int(given)


def _real(name: str, given: object) -> float:
    if isinstance(given, bool) or not isinstance(given, Real):
        raise ConfigError(f"{name} is {given!r}; give a number")
    return float(given)
