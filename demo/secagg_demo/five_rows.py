"""The five rows of Offsite-Tuning over several seeds: what is measured, and what it shows.

    full_zero_shot        the owner's model, as it is
    emulator_zero_shot    what tenants are given, as it is
    full_fine_tuned       every layer of the full model tuned in the same rounds: what giving the
                          model away would have bought
    emulator_fine_tuned   the federation's update in the emulator: what tenants could keep
    plug_in               the federation's update in the full model: what the federation made

and beside them, plugged in as well: `local_only`, each tenant alone on its own text, and
`centralised`, everybody's text in one place. A value is a mean over tenants, each on its own
held-out text.

A seed draws the tuning text, the passages or windows that are measured, LoRA's A and, where the
emulator is distilled by the experiment, the emulator. Intervals are Student's t at 95% over seeds;
differences are paired by seed. They say how the figures vary with what a seed draws; tenants and
the full model are the same in all.

Nothing is trained here: see five_rows_worker.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Final

from secagg.errors import ConfigError
from secagg_models.audit.statistics import Interval, interval

ROWS: Final = (
    "full_zero_shot", "emulator_zero_shot", "full_fine_tuned", "emulator_fine_tuned", "plug_in",
)  # fmt: skip
BESIDE: Final = ("local_only", "centralised")
WANTED_RECOVERY: Final = 0.85

Figures = Mapping[str, Mapping[str, float]]
"""By row, then by tenant."""


@dataclass(frozen=True, slots=True)
class SeedRows:
    """One seed's figures: held-out losses by row and tenant, and accuracies where there are."""

    seed: int
    losses: Figures
    accuracies: Figures
    facts: Mapping[str, Any]
    """What the emulator was: verbatim shares, distillation; and what the run cost."""

    def loss(self, row: str) -> float:
        """A row's loss, mean over tenants."""
        return fmean(self.losses[row].values())

    @property
    def recovery(self) -> float:
        """What share of full fine-tuning's gain the plug-in reaches."""
        zero = self.loss("full_zero_shot")
        return (zero - self.loss("plug_in")) / (zero - self.loss("full_fine_tuned"))


@dataclass(frozen=True, slots=True)
class Summary:
    """Every seed's rows, and the intervals that follow from them."""

    model: str
    unit: str
    seeds: tuple[SeedRows, ...]

    def __post_init__(self) -> None:
        if not self.seeds:
            raise ConfigError("five rows: no seed was run; --seeds is 1 or more")

    @property
    def count(self) -> str:
        """How many seeds, in words."""
        return f"{len(self.seeds)} seed{'s' if len(self.seeds) > 1 else ''}"

    @property
    def losses(self) -> dict[str, Interval]:
        """By row."""
        return {row: interval([s.loss(row) for s in self.seeds]) for row in (*ROWS, *BESIDE)}

    @property
    def accuracies(self) -> dict[str, Interval]:
        """By row; empty where nothing is classified."""
        rows = [row for row in (*ROWS, *BESIDE) if row in self.seeds[0].accuracies]
        return {
            row: interval([fmean(s.accuracies[row].values()) for s in self.seeds]) for row in rows
        }

    @property
    def differences(self) -> dict[str, Interval]:
        """Paired by seed; each is a claim that its loss is above zero."""
        return {
            f"{worse} - plug_in": interval([s.loss(worse) - s.loss("plug_in") for s in self.seeds])
            for worse in ("full_zero_shot", "emulator_fine_tuned")
        }

    @property
    def accuracy_differences(self) -> dict[str, Interval]:
        """What the plug-in's accuracy is above theirs, paired by seed."""
        if not self.accuracies:
            return {}
        return {
            f"plug_in - {worse}": interval(
                [
                    fmean(s.accuracies["plug_in"].values()) - fmean(s.accuracies[worse].values())
                    for s in self.seeds
                ]
            )
            for worse in ("full_zero_shot", "emulator_fine_tuned")
        }

    @property
    def recovery(self) -> Interval:
        """The plug-in's share of full fine-tuning's gain."""
        return interval([s.recovery for s in self.seeds])

    @property
    def holds(self) -> bool:
        """Whether both differences are above zero with their whole intervals."""
        return all(found.low > 0 for found in self.differences.values())

    @property
    def verbatim(self) -> float:
        """The largest share of a shipped middle that is the original's."""
        return max(float(s.facts.get("verbatim_middle_share", 0.0)) for s in self.seeds)

    def verdict(self) -> str:
        """In words, for people."""
        if self.verbatim:
            return (
                f"NO PROTECTION: {self.verbatim:.0%} of the shipped middle is the original's as it "
                f"is; distil longer, or at a higher rate. {self._about_rows()}"
            )
        return self._about_rows()

    def _about_rows(self) -> str:
        if not self.holds:
            short = [name for name, found in self.differences.items() if not found.low > 0]
            return (
                f"NOT SHOWN over {self.count}: the interval of {' and of '.join(short)} "
                "is not above zero. This emulator is not shown to protect: keep fewer middle "
                f"layers, distil less, or take a deeper base; or run more seeds.{self._accuracy()}"
            )
        reached = "reaches" if self.recovery.mean >= WANTED_RECOVERY else "does not reach"
        return (
            f"The plug-in beats the untuned full model and the tuned emulator over "
            f"{self.count}, and {reached} {WANTED_RECOVERY:.0%} of full fine-tuning's "
            f"gain ({self.recovery.mean:.0%})."
        )

    def _accuracy(self) -> str:
        """What accuracies say where losses do not."""
        found = self.accuracy_differences
        if not found or not all(difference.low > 0 for difference in found.values()):
            return ""
        return " In accuracy both orders hold with their whole intervals."

    def to_json(self) -> dict[str, Any]:
        """JSON values: intervals first, then every seed's figures by tenant."""
        return {
            "model": self.model,
            "unit": self.unit,
            "holds": self.holds,
            "verdict": self.verdict(),
            "five_rows": {row: self.losses[row].to_json() for row in ROWS},
            "beside": {row: self.losses[row].to_json() for row in BESIDE},
            "accuracies": _json(self.accuracies),
            "differences": _json(self.differences),
            "accuracy_differences": _json(self.accuracy_differences),
            "recovery": self.recovery.to_json(),
            "seeds": [
                {
                    "seed": s.seed,
                    "losses": {row: dict(values) for row, values in s.losses.items()},
                    "accuracies": {row: dict(values) for row, values in s.accuracies.items()},
                    "facts": dict(s.facts),
                }
                for s in self.seeds
            ],
        }


def joined(seed: int, parts: Sequence[Mapping[str, Any]]) -> SeedRows:
    """One seed's rows out of what its processes measured. Raises: ConfigError if a row lacks."""
    losses: dict[str, Mapping[str, float]] = {}
    accuracies: dict[str, Mapping[str, float]] = {}
    facts: dict[str, Any] = {}
    for part in parts:
        losses |= part["losses"]
        accuracies |= part["accuracies"]
        facts |= part["facts"]
    lacking = [row for row in (*ROWS, *BESIDE) if row not in losses]
    if lacking:
        raise ConfigError(f"five rows, seed {seed}: nothing was measured for {lacking}")
    return SeedRows(seed, losses, accuracies, facts)


def _json(intervals: Mapping[str, Interval]) -> dict[str, Any]:
    return {name: found.to_json() for name, found in intervals.items()}
