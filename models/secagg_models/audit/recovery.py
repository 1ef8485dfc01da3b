"""Audit 4: whether an attack brings back the layers that never left, and not just their effect.

The attack repeats the emulator's middle up to the full depth and heals it on the attacker's text.
What it arrives at is held against every dropped layer of the full model in two ways: the cosine of
the weights, neurons and heads in the best order; and linear CKA (Kornblith et al. 2019,
arXiv:1905.00414) of what the layers add to the residual stream, on held-out text. (The stream
itself is alike between any two such models, as embeddings and edges are the same.) Each dropped
layer takes its best partner among the layers at and next to its place.

Both numbers are above zero for models that have nothing in common, so each is reported as an
excess over a null: the same attack with the same tokens, its middle redrawn at random before
healing. A copy has a cosine excess near one; an excess that its interval does not tell from zero
says that this attack found no weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from secagg_models import train
from secagg_models.audit import attacks, matching
from secagg_models.audit.attacks import AttackSettings
from secagg_models.audit.statistics import Interval, interval
from secagg_models.families import layers_of
from secagg_models.labelled import LabelledBatch
from secagg_models.split import Split
from secagg_models.train import Stream

_MOST_VECTORS = 4096


@dataclass(frozen=True, slots=True)
class Likeness:
    """Of attacked layers with one dropped layer, for one seed."""

    full_layer: int
    seed: int
    cosine: float
    cosine_null: float
    cka: float
    cka_null: float


@dataclass(frozen=True, slots=True)
class RecoveryResult:
    """Excesses over the null, as intervals over seeds; None where no layer was dropped."""

    tokens: int
    likenesses: tuple[Likeness, ...]
    cosine_excess: Interval | None
    cka_excess: Interval | None

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "tokens": self.tokens,
            "likenesses": [asdict(likeness) for likeness in self.likenesses],
            "cosine_excess": None if self.cosine_excess is None else self.cosine_excess.to_json(),
            "cka_excess": None if self.cka_excess is None else self.cka_excess.to_json(),
        }


def audit_recovery(
    full: Any,
    emulator: Any,
    split: Split,
    attacker: Stream,
    held_out: Stream,
    settings: AttackSettings,
    *,
    tokens: int,
    seeds: Sequence[int],
    on_progress: Callable[[str], None] = lambda _: None,
) -> RecoveryResult:
    """Attack once a seed, with a null beside each."""
    dropped = [layer for layer in split.full_middle_layers if layer not in split.kept]
    if not dropped:
        return RecoveryResult(tokens, (), None, None)
    truth = _measured(full, split, held_out, settings)
    found: list[Likeness] = []
    for seed in seeds:
        attacked = attacks.duplicated(emulator, split)
        null = attacks.randomised(attacked, seed, split.full_middle_layers)
        sides = []
        for model in (attacked, null):
            attacks.heal(model, attacker, tokens, settings, seed=seed)
            sides.append(_measured(model, split, held_out, settings))
        found += [_likeness(layer, seed, truth, *sides) for layer in dropped]
        on_progress(f"hidden layers, seed {seed}")
    return RecoveryResult(
        tokens,
        tuple(found),
        interval([_mean_excess(found, seed, "cosine") for seed in seeds]),
        interval([_mean_excess(found, seed, "cka") for seed in seeds]),
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Measured:
    """A model's middle layers by the full model's index: weights, and what they add."""

    matrices: Mapping[int, matching.Matrices]
    added: Mapping[int, torch.Tensor]


def _measured(model: Any, split: Split, held_out: Stream, settings: AttackSettings) -> _Measured:
    heads = matching.Heads.of(model)
    modules = layers_of(model)
    middle = split.full_middle_layers
    matrices = {layer: matching.matrices_of(modules[layer], heads) for layer in middle}
    return _Measured(matrices, hidden_activations(model, middle, held_out, settings))


@torch.no_grad()
def hidden_activations(
    model: Any, layers: Sequence[int], stream: Stream, settings: AttackSettings
) -> dict[int, torch.Tensor]:
    """What each layer adds at (at most some thousand) places of held-out text: (n, D) float32."""
    count = max(1, min(settings.windows, _MOST_VECTORS // settings.context))
    batch = stream.held_out_windows(count, settings.context)
    with attacks.recorded(model, layers) as seen:
        train.item_losses(model, batch, "float32")
    if isinstance(batch, LabelledBatch):
        real = batch.attention_mask.bool()
        return {layer: torch.cat(parts)[real] for layer, parts in seen.items()}
    return {layer: torch.cat(parts).flatten(0, 1) for layer, parts in seen.items()}


def _likeness(
    layer: int, seed: int, truth: _Measured, attacked: _Measured, null: _Measured
) -> Likeness:
    near = [place for place in truth.matrices if abs(place - layer) <= 1]
    cosines, ckas = (
        [max(measure(side, place, truth, layer) for place in near) for side in (attacked, null)]
        for measure in (_aligned_cosine, _cka_between)
    )
    return Likeness(layer, seed, cosines[0], cosines[1], ckas[0], ckas[1])


def _aligned_cosine(side: _Measured, place: int, truth: _Measured, layer: int) -> float:
    """The mean over matrices, each weighing as many parameters as it has."""
    original = truth.matrices[layer]
    aligned = matching.align(side.matrices[place], original)
    total = sum(rows.numel() for rows in original.rows.values())
    parts = (
        matching.cosine(aligned.rows[name], rows) * rows.numel() / total
        for name, rows in original.rows.items()
    )
    return math.fsum(parts)


def _cka_between(side: _Measured, place: int, truth: _Measured, layer: int) -> float:
    return linear_cka(side.added[place], truth.added[layer])


def linear_cka(left: torch.Tensor, right: torch.Tensor) -> float:
    """Linear centred kernel alignment of two (n, D) sets of activations: 0 to 1."""
    a, b = left.double() - left.double().mean(0), right.double() - right.double().mean(0)
    scale = float((a.T @ a).norm() * (b.T @ b).norm())
    return float((a.T @ b).norm() ** 2) / scale if scale > 0 else 0.0


def _mean_excess(found: Sequence[Likeness], seed: int, measure: str) -> float:
    own = [likeness for likeness in found if likeness.seed == seed]
    excesses = (
        float(getattr(likeness, measure) - getattr(likeness, f"{measure}_null")) for likeness in own
    )
    return math.fsum(excesses) / len(own)
