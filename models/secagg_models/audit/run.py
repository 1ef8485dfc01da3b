"""All five audits of one package, within a budget, and the report of them.

"quick" takes about a minute on one core for a byte model of 12 layers and width 128, "standard"
about ten, "full" hours: larger budgets of attackers, curves from scratch, a grid of rates. What a
budget could not afford is not in the report, and the policy treats it as not run.

Audits 2 to 4 need text; without any (an encoder that has no task) only 1 and 5 are made.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final

from secagg.errors import ConfigError
from secagg_models.audit import matching
from secagg_models.audit.attacks import AttackSettings
from secagg_models.audit.figures import BUDGET_ORDER, Figures, Point
from secagg_models.audit.ordering import OrderingResult, Tuning, UpdateTuning, audit_ordering
from secagg_models.audit.policy import AuditPolicy, Verdict, judge, passed
from secagg_models.audit.recovery import RecoveryResult, audit_recovery
from secagg_models.audit.release import Release, ReleaseResult, audit_release, release_of
from secagg_models.audit.upgrade import UpgradeResult, audit_upgrade
from secagg_models.audit.verbatim import VerbatimResult, audit_verbatim
from secagg_models.labelled import LabelledStream
from secagg_models.split import Split
from secagg_models.train import Stream


@dataclass(frozen=True, slots=True)
class AuditBudget:
    """Tokens by part; `scratch` names depths for curves from scratch: "emulator", "full"."""

    name: str
    settings: AttackSettings
    tuning_tokens: int
    upgrade_tokens: tuple[int, ...]
    recovery_tokens: int
    scratch_tokens: int = 0
    scratch: tuple[str, ...] = ()


BUDGETS: Final[Mapping[str, AuditBudget]] = {
    budget.name: budget
    for budget in (
        AuditBudget("quick", AttackSettings(windows=24), 1 << 14, (1 << 12, 1 << 15), 1 << 12),
        AuditBudget(
            "standard", AttackSettings(batch=8, windows=64), 1 << 16, (1 << 15, 1 << 17, 1 << 18),
            1 << 16, 1 << 18, ("emulator",),
        ),
        AuditBudget(
            "full", AttackSettings(batch=16, rates=(0.5, 1.0, 2.0), windows=128), 1 << 17,
            (1 << 17, 1 << 20, 1 << 22), 1 << 20, 1 << 23, ("emulator", "full"),
        ),
    )
}  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class AuditTexts:
    """`attacker` trains attackers and `held_out` measures them; `tuning` tunes edge layers and
    `tuning_held_out` measures that. No file is on both sides."""

    attacker: Stream
    held_out: Stream
    tuning: tuple[Stream, ...]
    tuning_held_out: tuple[Stream, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Audited:
    """The package in question. Digests in hex; `emulators` has earlier packages' models too."""

    full: Any
    emulator: Any
    split: Split
    manifest_digest: str
    full_digest: str
    earlier: tuple[Release, ...] | None = ()
    emulators: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What was found. Parts that were not audited are None."""

    split: Split
    manifest_digest: str
    full_digest: str
    figures: Figures
    policy: AuditPolicy
    verdicts: tuple[Verdict, ...]
    verbatim: VerbatimResult
    release: ReleaseResult | None
    released: Release
    ordering: OrderingResult | None
    upgrade: UpgradeResult | None
    recovery: RecoveryResult | None
    seconds: Mapping[str, float]
    texts: Mapping[str, Any]

    @property
    def passes(self) -> bool:
        """Whether every clause passed."""
        return passed(self.verdicts)

    def to_json(self) -> dict[str, Any]:
        """JSON values: the contents of `audit.json`."""
        parts = {
            name: None if (part := getattr(self, name)) is None else part.to_json()
            for name in ("verbatim", "ordering", "upgrade", "recovery", "release")
        }
        return {
            "format": "secagg-audit/1",
            "manifest_digest": self.manifest_digest,
            "full_digest": self.full_digest,
            "split": self.split.to_json(),
            "passes": self.passes,
            "verdicts": [
                {"clause": v.clause, "outcome": v.outcome, "sentence": v.sentence}
                for v in self.verdicts
            ],
            "policy": self.policy.to_json(),
            "figures": self.figures.to_json(),
            "results": parts,
            "released": self.released.to_json(),
            "seconds": dict(self.seconds),
            "texts": dict(self.texts),
        }


def run_audits(
    package: Audited,
    texts: AuditTexts | None,
    policy: AuditPolicy,
    budget: AuditBudget,
    *,
    seeds: int = 3,
    tune: Tuning | None = None,
    about_texts: Mapping[str, Any] | None = None,
    on_progress: Callable[[str], None] = lambda _: None,
) -> AuditReport:
    """Run what the budget and the texts allow, and judge it.

    Raises:
        ConfigError: SciPy is missing, or the emulator is not of this split.
    """
    matching.require_scipy()
    if budget.name not in BUDGET_ORDER:
        raise ConfigError(f"--budget is one of {', '.join(BUDGET_ORDER)}")
    clock = _Clock(on_progress)
    with clock.part("verbatim"):
        verbatim = audit_verbatim(package.full, package.emulator, package.split)
    released = release_of(
        package.full, package.split, verbatim,
        manifest_digest=package.manifest_digest, full_digest=package.full_digest,
    )  # fmt: skip
    with clock.part("release"):
        release = _release(package, released, policy)
    measured = _Measured(None, None, None)
    if texts is not None:
        measured = _measure(package, texts, budget, tuple(range(1, seeds + 1)), tune, clock)
    figures = _figures(budget, seeds, package.split, verbatim, release, measured)
    return AuditReport(
        package.split, package.manifest_digest, package.full_digest, figures, policy,
        judge(figures, policy), verbatim, release, released, measured.ordering, measured.upgrade,
        measured.recovery, clock.seconds, about_texts or {},
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Measured:
    ordering: OrderingResult | None
    upgrade: UpgradeResult | None
    recovery: RecoveryResult | None


class _Clock:
    def __init__(self, on_progress: Callable[[str], None]) -> None:
        self.seconds: dict[str, float] = {}
        self.tell = on_progress

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 2)
        self.tell(f"{name}: {self.seconds[name]:.1f} s")


def _release(package: Audited, released: Release, policy: AuditPolicy) -> ReleaseResult | None:
    if package.earlier is None:
        return None
    emulators = {**package.emulators, package.manifest_digest: package.emulator}
    return audit_release(
        released, package.earlier, full=package.full, emulators=emulators,
        closer_by=policy.release.closer_by,
    )  # fmt: skip


def _measure(
    package: Audited,
    texts: AuditTexts,
    budget: AuditBudget,
    seeds: Sequence[int],
    tune: Tuning | None,
    clock: _Clock,
) -> _Measured:
    full, emulator, split = package.full, package.emulator, package.split
    settings = settings_for(full, budget, texts.attacker)
    tuning = tune or UpdateTuning(budget.tuning_tokens, settings)
    with clock.part("ordering"):
        ordering = audit_ordering(
            full, emulator, split, texts.tuning, texts.tuning_held_out, settings, tuning,
            seeds=seeds, on_progress=clock.tell,
        )  # fmt: skip
    depths = {"emulator": split.emulator_layers, "full": split.layers}
    with clock.part("upgrade"):
        upgrade = audit_upgrade(
            full, emulator, split, texts.attacker, texts.held_out, settings,
            budgets=budget.upgrade_tokens, scratch_tokens=budget.scratch_tokens,
            scratch_depths=[depths[name] for name in budget.scratch], on_progress=clock.tell,
        )  # fmt: skip
    with clock.part("recovery"):
        recovery = audit_recovery(
            full, emulator, split, texts.attacker, texts.held_out, settings,
            tokens=budget.recovery_tokens, seeds=seeds, on_progress=clock.tell,
        )  # fmt: skip
    return _Measured(ordering, upgrade, recovery)


def settings_for(full: Any, budget: AuditBudget, stream: Stream) -> AttackSettings:
    """The budget's, within the model's memory (RoBERTa counts positions from above its pad).

    Labelled passages are shorter than windows of text, so a step takes more of them.
    """
    wanted = budget.settings
    longest = getattr(full.config, "max_position_embeddings", None)
    unused = int(full.config.pad_token_id) + 1 if full.config.model_type == "roberta" else 0
    context = wanted.context if longest is None else min(wanted.context, int(longest) - unused)
    if not isinstance(stream, LabelledStream):
        return replace(wanted, context=context)
    context = max(2, min(context, stream.ids.shape[1]))
    more = max(1, wanted.context // context)
    return replace(
        wanted, context=context, batch=wanted.batch * more, windows=wanted.windows * more
    )


def _figures(
    budget: AuditBudget,
    seeds: int,
    split: Split,
    verbatim: VerbatimResult,
    release: ReleaseResult | None,
    measured: _Measured,
) -> Figures:
    figures = Figures(
        budget=budget.name, seeds=seeds, edges_identical=verbatim.edges_identical,
        middle_share=verbatim.middle_share, units_share=verbatim.units_share,
        layers_share=verbatim.layers_share, dropped=len(split.full_middle_layers) - split.keep,
    )  # fmt: skip
    if release is not None:
        figures = replace(
            figures, other_subsets=len(release.others), closer_copies=len(release.closer),
            layers_share=max(verbatim.layers_share, release.layers_share),
        )  # fmt: skip
    if (ordering := measured.ordering) is not None:
        figures = replace(figures, gain=ordering.gain, gap=ordering.gap)
    if (upgrade := measured.upgrade) is not None:
        points = tuple(
            Point(p.attack, p.tokens, p.recovery, p.saved, p.at_least) for p in upgrade.points
        )
        figures = replace(figures, upgrade_gap=upgrade.gap, points=points)
    if (recovery := measured.recovery) is not None:
        figures = replace(
            figures, cosine_excess=recovery.cosine_excess, cka_excess=recovery.cka_excess
        )
    return figures
