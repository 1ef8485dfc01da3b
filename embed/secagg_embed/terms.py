"""What whoever starts rounds decides once for a run, and a fresh number for each round."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

from secagg.choice import choose_scheme
from secagg.encoding import Quantiser
from secagg.errors import ConfigError
from secagg.identity import Roster
from secagg.layout import Layout
from secagg.plan import RoundPlan, Suite
from secagg_embed.exchange import CoordinatedRound
from secagg_embed.tensors import Tensors, layout_of, model_digest, require_finite_model


@dataclass(frozen=True, slots=True)
class Terms:
    """How deltas become a sum; every tenant's policy has the last word on it.

    `clip`: a coordinate of a delta beyond +-clip is cut, so choose it from a dry run on data of
    your own. `value_bits` (4 to 32): levels between -clip and clip. `max_weight`: the largest
    weight of a tenant (number of examples); what exceeds it counts as much as it. `scheme` "auto"
    takes the cheaper one (`secagg.choice`). `max_colluders` and `min_survivors` have
    `RoundPlan.create`'s defaults, and `dropout` is the fraction that is expected to fall silent.
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
        if not isinstance(self.max_weight, int):
            raise ConfigError(f"max_weight is {self.max_weight!r}; weights are whole numbers")

    def plan(
        self,
        roster: Roster,
        layout: Layout,
        model_digest: bytes,
        *,
        round_number: int,
        cohort: tuple[str, ...] | None = None,
    ) -> RoundPlan:
        """The plan of one round over `cohort` (default: the whole roster).

        Raises:
            ConfigError: no honest tenant could accept such a plan; the message says why.
        """
        make = partial(
            RoundPlan.create,
            roster,
            round_number=round_number,
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
        roster: Roster,
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
        layout, digest = layout_of(tensors), model_digest(tensors, settings)
        require_finite_model(tensors, layout)
        plan = self.plan(roster, layout, digest, round_number=round_number, cohort=cohort)
        return CoordinatedRound(plan, roster)


def next_round_number(last: int, now_s: float) -> int:
    """A number above `last` and above those of earlier runs: the second of the Unix clock.

    A tenant refuses a number that its key has used, and one that is 2^32 or more above it. Runs
    that keep nothing between them can still tell a number that nobody used: the time.
    """
    return max(last + 1, int(now_s))
