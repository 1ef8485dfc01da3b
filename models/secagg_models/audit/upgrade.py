"""Audit 3: how far an attacker with text of its own raises the emulator, by its budget of tokens.

heal       train the whole emulator;
duplicate  repeat its middle layers up to the full depth, then train all of it;
outputs    train the emulator towards the outputs of the full model as well, where the attacker
           may query that.

Recovery is (emulator - attacked) / (emulator - full) in held-out loss: 0 is the emulator, 1 the
full model; below 0 the attack has made it worse, and the attacker keeps what it had. Tokens saved
say what the package is worth to the attacker: how many tokens a model of the same architecture
needs from scratch to reach the same loss, less the budget. Where the curve from scratch ends above
that loss, the figure is a lower bound.

On labelled passages an attack also learns the task, which the full model untuned may do badly;
there the full model is trained on the same tokens first, and recovery is towards that.

The attacker's text must share no file with the held-out text: the caller splits it so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from secagg_models.audit import attacks
from secagg_models.audit.attacks import AttackSettings
from secagg_models.labelled import LabelledStream
from secagg_models.split import Split
from secagg_models.train import Stream

Attack = Literal["heal", "duplicate", "outputs"]
ATTACKS: tuple[Attack, ...] = ("heal", "duplicate", "outputs")
_POINTS_FROM_SCRATCH = 4


@dataclass(frozen=True, slots=True)
class UpgradePoint:
    """One attack at one budget. `saved` is None where no curve from scratch was made; it is a
    lower bound where `at_least`."""

    attack: Attack
    tokens: int
    loss: float
    recovery: float | None
    saved: int | None = None
    at_least: bool = False


@dataclass(frozen=True, slots=True)
class ScratchCurve:
    """Held-out loss of fresh weights by tokens trained on; `depth` in layers."""

    depth: int
    points: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class UpgradeResult:
    """Losses are held-out nats (a byte, or a passage). `full_loss` is the full model's, on labelled
    passages after training on the largest budget."""

    full_loss: float
    emulator_loss: float
    points: tuple[UpgradePoint, ...]
    scratch: tuple[ScratchCurve, ...]

    @property
    def gap(self) -> float:
        """What the full model is better by."""
        return self.emulator_loss - self.full_loss

    @property
    def worst(self) -> UpgradePoint:
        """The attack that comes closest to the full model."""
        return min(self.points, key=lambda point: point.loss)

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self) | {"gap": self.gap}


def audit_upgrade(
    full: Any,
    emulator: Any,
    split: Split,
    attacker: Stream,
    held_out: Stream,
    settings: AttackSettings,
    *,
    budgets: Sequence[int],
    scratch_tokens: int = 0,
    scratch_depths: Sequence[int] = (),
    names: Sequence[Attack] = ATTACKS,
    seed: int = 1,
    on_progress: Callable[[str], None] = lambda _: None,
) -> UpgradeResult:
    """Run every attack at every budget of tokens.

    `scratch_depths` says for which depths (of the emulator, of the full model) a curve from scratch
    up to `scratch_tokens` is made.
    """
    references = {
        tokens: _reference(full, attacker, held_out, settings, tokens, seed) for tokens in budgets
    }
    emulator_loss = attacks.loss_of(emulator, held_out, settings)
    curves = []
    for depth in scratch_depths if scratch_tokens else ():
        start = emulator if depth == split.emulator_layers else full
        curves.append(_curve(start, depth, attacker, held_out, settings, scratch_tokens, seed))
        on_progress(f"from scratch at {depth} layers")
    points = []
    for name in names:
        depth = split.layers if name == "duplicate" else split.emulator_layers
        curve = next((curve for curve in curves if curve.depth == depth), None)
        for tokens in budgets:
            loss = _attacked(
                name, full, emulator, split, attacker, held_out, settings, tokens, seed
            )
            points.append(_point(name, tokens, loss, references[tokens], emulator_loss, curve))
            on_progress(f"{name} on {tokens:,} tokens")
    return UpgradeResult(references[max(budgets)], emulator_loss, tuple(points), tuple(curves))


def _reference(
    full: Any, attacker: Stream, held_out: Stream, settings: AttackSettings, tokens: int, seed: int
) -> float:
    """What recovery is measured towards; see the module's docstring."""
    untuned = attacks.loss_of(full, held_out, settings)
    if not isinstance(attacker, LabelledStream):
        return untuned
    tuned = attacks.own_copy(full)
    attacks.heal(tuned, attacker, tokens, settings, seed=seed)
    return min(untuned, attacks.loss_of(tuned, held_out, settings))


def _attacked(
    name: Attack, full: Any, emulator: Any, split: Split, attacker: Stream, held_out: Stream,
    settings: AttackSettings, tokens: int, seed: int,
) -> float:  # fmt: skip
    """The best held-out loss over the rates."""
    losses = []
    for factor in settings.rates:
        match name:
            case "duplicate":
                model, teacher = attacks.duplicated(emulator, split), None
            case "heal":
                model, teacher = attacks.own_copy(emulator), None
            case "outputs":
                model, teacher = attacks.own_copy(emulator), full
        attacks.heal(model, attacker, tokens, settings, seed=seed, factor=factor, teacher=teacher)
        losses.append(attacks.loss_of(model, held_out, settings))
    return min(losses)


def _point(
    name: Attack, tokens: int, loss: float, full_loss: float, emulator_loss: float,
    curve: ScratchCurve | None,
) -> UpgradePoint:  # fmt: skip
    gap = emulator_loss - full_loss
    recovery = (emulator_loss - loss) / gap if gap > 0 else None
    if curve is None:
        return UpgradePoint(name, tokens, loss, recovery)
    needed, at_least = tokens_from_scratch(curve.points, loss)
    return UpgradePoint(name, tokens, loss, recovery, needed - tokens, at_least)


def _curve(
    start: Any, depth: int, attacker: Stream, held_out: Stream, settings: AttackSettings,
    tokens: int, seed: int,
) -> ScratchCurve:  # fmt: skip
    """One run a point, each with a whole schedule, at 1/8, 1/4, 1/2 and all of the tokens."""
    points = []
    for halvings in reversed(range(_POINTS_FROM_SCRATCH)):
        budget = max(1, tokens >> halvings)
        model = attacks.from_scratch(start, attacker, budget, settings, seed=seed)
        points.append((budget, attacks.loss_of(model, held_out, settings)))
    return ScratchCurve(depth, tuple(points))


def tokens_from_scratch(points: Sequence[tuple[int, float]], loss: float) -> tuple[int, bool]:
    """How many tokens the curve takes to this loss, and whether that is only a lower bound.

    Between points the loss is taken to be linear in the logarithm of the tokens; above the first
    point, as reached there.
    """
    best = math.inf
    before: tuple[int, float] | None = None
    for tokens, reached in points:
        if reached <= loss:
            if before is None or before[1] <= reached:
                return tokens, False
            share = (before[1] - loss) / (before[1] - reached)
            found = math.log(before[0]) + share * (math.log(tokens) - math.log(before[0]))
            return round(math.exp(found)), False
        if reached < best:
            best, before = reached, (tokens, reached)
    return points[-1][0], True
