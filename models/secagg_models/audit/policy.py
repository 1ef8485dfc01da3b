"""The owner's policy over an audit's figures, clause by clause, with what to change on a failure.

A TOML file; what it leaves out keeps the defaults below, and an optional limit that is left out is
no clause. Every clause has a name as in the file (`verbatim.middle_max`), which verdicts carry.

[audit]
budget_min = "quick"          # the least thorough audit that may vouch for a package
seeds_min = 3                 # seeds behind every interval

[verbatim]
middle_max = 0.0              # share of the shipped middle's matrices
units_max = 0.1               # share of it in neurons and heads that stayed as they were
layers_max = 0.4              # share of all layers' parameters, edge layers included

[ordering]
gain_min = 0.0                # full zero-shot less plug-in: the whole interval is above it
gap_min = 0.0                 # tuned emulator less plug-in: likewise

[upgrade]
attacker_tokens = 131072      # attacks with larger budgets are reported, and not judged
recovery_max = 0.5            # of what the full model is better by
# tokens_saved_max = 1000000  # against training from scratch; a clause only where it is given

[recovery]
cosine_excess_max = 0.1       # over the null; the whole interval is below it
cka_excess_max = 0.5          # likewise

[release]
closer_by = 0.005             # a second distillation may not be closer to an original by this

The defaults for upgrade and recovery are starting points: which loss of secrecy an owner can bear
follows from what its model is worth, and from nothing in this file.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final, Literal

from secagg.errors import ConfigError
from secagg_models.audit.figures import BUDGET_ORDER, Figures, Point
from secagg_models.audit.statistics import Interval

Outcome = Literal["pass", "fail", "not run"]


@dataclass(frozen=True, slots=True)
class AuditClauses:
    """How thorough an audit must be."""

    budget_min: str = "quick"
    seeds_min: int = 3


@dataclass(frozen=True, slots=True)
class VerbatimClauses:
    """Shares, 0 to 1."""

    middle_max: float = 0.0
    units_max: float = 0.1
    layers_max: float = 0.4


@dataclass(frozen=True, slots=True)
class OrderingClauses:
    """Held-out nats."""

    gain_min: float = 0.0
    gap_min: float = 0.0


@dataclass(frozen=True, slots=True)
class UpgradeClauses:
    """Recovery as a share of the gap; tokens."""

    attacker_tokens: int = 131072
    recovery_max: float = 0.5
    tokens_saved_max: int | None = None


@dataclass(frozen=True, slots=True)
class RecoveryClauses:
    """Excesses over the null."""

    cosine_excess_max: float = 0.1
    cka_excess_max: float = 0.5


@dataclass(frozen=True, slots=True)
class ReleaseClauses:
    """The subset itself has no setting: it is one for ever."""

    closer_by: float = 0.005


@dataclass(frozen=True, slots=True)
class AuditPolicy:
    """See the module's docstring."""

    audit: AuditClauses = field(default_factory=AuditClauses)
    verbatim: VerbatimClauses = field(default_factory=VerbatimClauses)
    ordering: OrderingClauses = field(default_factory=OrderingClauses)
    upgrade: UpgradeClauses = field(default_factory=UpgradeClauses)
    recovery: RecoveryClauses = field(default_factory=RecoveryClauses)
    release: ReleaseClauses = field(default_factory=ReleaseClauses)

    def __post_init__(self) -> None:
        if self.audit.budget_min not in BUDGET_ORDER:
            raise ConfigError(f"audit policy: audit.budget_min is one of {', '.join(BUDGET_ORDER)}")

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def load_policy(path: Path) -> AuditPolicy:
    """Read a policy file.

    Raises:
        ConfigError: unreadable, or a table or key that there is not, or a value of another type.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"audit policy {path}: cannot be read: {error}") from None
    return policy_of(tables, str(path))


def policy_of(tables: Mapping[str, Any], source: str = "audit policy") -> AuditPolicy:
    """The defaults with these tables over them. Raises: ConfigError, as `load_policy`."""
    policy = AuditPolicy()
    changed = {}
    for name, table in tables.items():
        known = getattr(policy, name, None) if name in {f.name for f in fields(policy)} else None
        if known is None or not isinstance(table, Mapping):
            raise ConfigError(f"{source}: there is no table [{name}]")
        changed[name] = replace(known, **_checked(known, name, table, source))
    return replace(policy, **changed)


def _checked(known: Any, name: str, table: Mapping[str, Any], source: str) -> dict[str, Any]:
    types = {f.name: str(f.type) for f in fields(known)}
    values = {}
    for key, value in table.items():
        if key not in types:
            raise ConfigError(f"{source}: there is no clause {name}.{key}")
        wanted: tuple[type, ...] = (int,)
        if types[key].startswith("float"):
            wanted = (int, float)
        elif types[key] == "str":
            wanted = (str,)
        optional = value is None and "None" in types[key]
        if not optional and (isinstance(value, bool) or not isinstance(value, wanted)):
            raise ConfigError(f"{source}: {name}.{key} is to be of type {types[key]}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{source}: {name}.{key} is to be a finite number")
        values[key] = float(value) if wanted == (int, float) and value is not None else value
    return values


@dataclass(frozen=True, slots=True)
class Verdict:
    """One clause: how it came out, and a sentence with the figure and, on a failure, the cure."""

    clause: str
    outcome: Outcome
    sentence: str


_NOT_RUN: Final = "was not audited; audit again with text and without --weights-only"


def judge(figures: Figures, policy: AuditPolicy) -> tuple[Verdict, ...]:
    """A verdict for every clause."""
    return (
        *_thoroughness(figures, policy.audit),
        *_verbatim(figures, policy.verbatim),
        *_ordering(figures, policy.ordering),
        *_upgrade(figures, policy.upgrade),
        *_recovery(figures, policy.recovery),
        *_release(figures),
    )


def passed(verdicts: tuple[Verdict, ...]) -> bool:
    """Whether every clause passed; one that was not run did not."""
    return all(verdict.outcome == "pass" for verdict in verdicts)


def _thoroughness(figures: Figures, clauses: AuditClauses) -> list[Verdict]:
    order = BUDGET_ORDER
    enough = order.index(figures.budget) >= order.index(clauses.budget_min)
    return [
        _verdict("audit.budget_min", enough,
                 f"the audit had budget {figures.budget!r}, {clauses.budget_min!r} is asked for",
                 f"run it with --budget {clauses.budget_min}"),
        _verdict("audit.seeds_min", figures.seeds >= clauses.seeds_min,
                 f"{figures.seeds} seeds, at least {clauses.seeds_min} are asked for",
                 f"run it with --seeds {clauses.seeds_min}"),
    ]  # fmt: skip


def _verbatim(figures: Figures, clauses: VerbatimClauses) -> list[Verdict]:
    edges = figures.edges_identical
    return [
        _verdict("verbatim.edges", edges is True,
                 f"edge layers are {'' if edges else 'not '}those of the full model",
                 "build the package from this model with `secagg owner emulate`"),
        _at_most("verbatim.middle_max", figures.middle_share, clauses.middle_max,
                 "of the shipped middle's matrices are verbatim",
                 "distil the kept layers (more --steps or a higher rate), so that none stays near "
                 "its original"),
        _at_most("verbatim.units_max", figures.units_share, clauses.units_max,
                 "of the shipped middle lies in neurons and heads that are verbatim",
                 "distil longer or at a higher rate, so that every neuron and head moves"),
        _at_most("verbatim.layers_max", figures.layers_share, clauses.layers_max,
                 "of all layers' parameters can be read off",
                 "take a smaller --edge or a deeper model; edge layers are verbatim by design"),
    ]  # fmt: skip


def _ordering(figures: Figures, clauses: OrderingClauses) -> list[Verdict]:
    return [
        _above("ordering.gain_min", figures.gain, clauses.gain_min,
               "the plug-in is better than the full model untuned by",
               "tune on text that is new to the model (--text), longer, or with more edge layers; "
               "a better emulator (more --steps of distillation) makes the edges fit the model"),
        _above("ordering.gap_min", figures.gap, clauses.gap_min,
               "the plug-in is better than the tuned emulator by",
               "tenants hold as good a model as yours: keep fewer layers (--keep), take a deeper "
               "full model or train it further, or a smaller --edge"),
    ]  # fmt: skip


def _upgrade(figures: Figures, clauses: UpgradeClauses) -> list[Verdict]:
    if figures.upgrade_gap is None:
        verdicts = [Verdict("upgrade.recovery_max", "not run", f"upgrading {_NOT_RUN}")]
        if clauses.tokens_saved_max is not None:
            verdicts.append(Verdict("upgrade.tokens_saved_max", "not run", f"it {_NOT_RUN}"))
        return verdicts
    judged = [p for p in figures.points if p.tokens <= clauses.attacker_tokens]
    verdicts = [_recovered(figures.upgrade_gap, judged, clauses)]
    if clauses.tokens_saved_max is not None:
        verdicts.append(_saved(judged, clauses.tokens_saved_max))
    return verdicts


def _recovered(gap: float, judged: list[Point], clauses: UpgradeClauses) -> Verdict:
    name = "upgrade.recovery_max"
    if gap <= 0:
        return Verdict(
            name, "fail",
            f"the emulator is no worse than the full model ({gap:+.4f} nats): there is no gap to "
            "protect; keep fewer layers (--keep), or take a deeper or better trained model",
        )  # fmt: skip
    if not judged:
        return Verdict(name, "not run", "no attack had a budget of at most attacker_tokens")
    worst = max(judged, key=lambda point: point.recovery or 0.0)
    return _at_most(
        name, worst.recovery, clauses.recovery_max,
        f"of a gap of {gap:.3f} nats is recovered by {worst.attack!r} on {worst.tokens:,} tokens",
        "keep fewer layers (--keep), distil less (--steps), or take a deeper or better trained "
        "model, so that an emulator is further from it",
    )  # fmt: skip


def _saved(judged: list[Point], limit: int) -> Verdict:
    name = "upgrade.tokens_saved_max"
    known = [point for point in judged if point.saved is not None]
    if not known:
        return Verdict(name, "not run", f"training from scratch {_NOT_RUN} (--budget standard)")
    worst = max(known, key=lambda point: point.saved or 0)
    bound = "at least " if worst.at_least else ""
    figure = f"{worst.attack!r} saves {bound}{worst.saved:,} tokens, at most {limit:,} are allowed"
    if worst.at_least and (worst.saved or 0) <= limit:
        return Verdict(name, "not run", f"{figure}; the curve from scratch is too short to tell")
    return _verdict(name, (worst.saved or 0) <= limit, figure, "keep fewer layers (--keep)")


def _recovery(figures: Figures, clauses: RecoveryClauses) -> list[Verdict]:
    if figures.dropped == 0:
        cure = "no layer was dropped; keep fewer layers (--keep)"
        return [Verdict("recovery.cosine_excess_max", "fail", cure),
                Verdict("recovery.cka_excess_max", "fail", cure)]  # fmt: skip
    return [
        _below("recovery.cosine_excess_max", figures.cosine_excess, clauses.cosine_excess_max,
               "in weights, healed layers are more like the dropped ones than the null's by",
               "keep fewer layers (--keep) and distil them further from their originals"),
        _below("recovery.cka_excess_max", figures.cka_excess, clauses.cka_excess_max,
               "in effect, healed layers are more like the dropped ones than the null's by",
               "keep fewer layers (--keep), so that one kept layer stands for several"),
    ]  # fmt: skip


def _release(figures: Figures) -> list[Verdict]:
    if figures.other_subsets is None or figures.closer_copies is None:
        reason = "no release log was read; audit again with --releases"
        return [Verdict("release.one_subset", "not run", reason),
                Verdict("release.closer_by", "not run", reason)]  # fmt: skip
    return [
        _verdict("release.one_subset", figures.other_subsets == 0,
                 f"{figures.other_subsets} earlier packages of this model have another subset",
                 "emulate with the same --edge and the same kept layers as before: different "
                 "subsets add up to the model"),
        _verdict("release.closer_by", figures.closer_copies == 0,
                 f"{figures.closer_copies} earlier packages together with this one come closer to "
                 "the original layers than they did alone",
                 "publish the earlier distillation again; a second one adds to the first"),
    ]  # fmt: skip


def _verdict(clause: str, good: bool, figure: str, cure: str) -> Verdict:
    return Verdict(clause, "pass" if good else "fail", figure if good else f"{figure}; {cure}")


def _at_most(clause: str, value: float | None, limit: float, what: str, cure: str) -> Verdict:
    if value is None:
        return Verdict(clause, "not run", f"{clause} {_NOT_RUN}")
    figure = f"{100 * value:.1f}% {what}; at most {100 * limit:.1f}% are allowed"
    return _verdict(clause, value <= limit, figure, cure)


def _above(clause: str, value: Interval | None, limit: float, what: str, cure: str) -> Verdict:
    return _interval(clause, value, lambda found: found.low > limit, what,
                     f"the whole interval must be above {limit:g}", cure)  # fmt: skip


def _below(clause: str, value: Interval | None, limit: float, what: str, cure: str) -> Verdict:
    return _interval(clause, value, lambda found: found.high <= limit, what,
                     f"the whole interval must be at most {limit:g}", cure)  # fmt: skip


def _interval(
    clause: str, value: Interval | None, good: Callable[[Interval], bool], what: str, rule: str,
    cure: str,
) -> Verdict:  # fmt: skip
    if value is None:
        return Verdict(clause, "not run", f"{clause} {_NOT_RUN}")
    figure = f"{what} {value.mean:+.4f} ({value.low:+.4f} to {value.high:+.4f}); {rule}"
    return _verdict(clause, good(value), figure, cure)
