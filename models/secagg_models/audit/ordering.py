"""Audit 2: whether the plug-in is better than the full model untuned and than the tuned emulator.

A tenant tunes the edge layers against the emulator; the owner plugs them into the full model. That
is worth doing if the plug-in beats the full model's zero-shot loss, and protects something only if
it beats the tuned emulator, which is what the tenant holds anyway. Each seed draws other tuning
text and the differences are paired, so both claims are intervals over seeds. An interval that
includes zero has shown nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from secagg_models import train, updates
from secagg_models.audit import attacks
from secagg_models.audit.attacks import AttackSettings
from secagg_models.audit.statistics import Interval, interval
from secagg_models.edges import EdgesShape
from secagg_models.lora import LoraShape
from secagg_models.plug_in import plugged_in
from secagg_models.split import Split
from secagg_models.train import Schedule, Stream, TrainingConfig
from secagg_models.updates import Update, UpdateShape

_EDGE_RATE_TIMES_WIDTH = 0.128
_LORA_FACTOR = 10.0  # B starts at zero beside an orthonormal A


class Tuning(Protocol):
    """Tunes the edge layers of an emulator in place; returns the tuned emulator and the update."""

    def __call__(
        self, emulator: Any, split: Split, streams: Sequence[Stream], seed: int
    ) -> tuple[Any, Update]: ...


@dataclass(frozen=True, slots=True)
class OrderingRow:
    """Held-out losses after tuning with one seed."""

    seed: int
    tuned_emulator: float
    plug_in: float


@dataclass(frozen=True, slots=True)
class OrderingResult:
    """`gain` is full zero-shot less plug-in, `gap` is tuned emulator less plug-in: both are to be
    above zero."""

    full_zero_shot: float
    emulator_zero_shot: float
    rows: tuple[OrderingRow, ...]
    gain: Interval
    gap: Interval

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self) | {"gain": self.gain.to_json(), "gap": self.gap.to_json()}


def audit_ordering(
    full: Any,
    emulator: Any,
    split: Split,
    streams: Sequence[Stream],
    held_out: Sequence[Stream],
    settings: AttackSettings,
    tune: Tuning,
    *,
    seeds: Sequence[int],
    on_progress: Callable[[str], None] = lambda _: None,
) -> OrderingResult:
    """Tune, plug in and measure once a seed, on held-out parts of the tuning text."""
    zero_shot = attacks.mean_loss(full, held_out, settings)
    emulator_zero_shot = attacks.mean_loss(emulator, held_out, settings)
    rows = []
    for seed in seeds:
        tuned, update = tune(attacks.own_copy(emulator), split, streams, seed)
        tuned_loss = attacks.mean_loss(tuned, held_out, settings)
        with plugged_in(full, update, split) as plugged:
            rows.append(
                OrderingRow(seed, tuned_loss, attacks.mean_loss(plugged, held_out, settings))
            )
        on_progress(f"ordering, seed {seed}")
    return OrderingResult(
        zero_shot,
        emulator_zero_shot,
        tuple(rows),
        interval([zero_shot - row.plug_in for row in rows]),
        interval([row.tuned_emulator - row.plug_in for row in rows]),
    )


@dataclass(frozen=True, slots=True)
class UpdateTuning:
    """Tuning as tenants do it (`train.train_update`), on `tokens` tokens of every stream.

    Without `lora` the edge layers are trained whole; with it, LoRA in them (its `layers` are set
    here). `rate` None stands for one that fits the model's width.
    """

    tokens: int
    settings: AttackSettings
    lora: LoraShape | None = None
    rate: float | None = None
    embeddings: bool = False

    def __call__(
        self, emulator: Any, split: Split, streams: Sequence[Stream], seed: int
    ) -> tuple[Any, Update]:
        """See `Tuning`."""
        shape: UpdateShape = EdgesShape(split.edge_layers, self.embeddings)
        if self.lora is not None:
            shape = replace(self.lora, layers=split.edge_layers)
        update = updates.start(emulator, shape, seed)
        attached = updates.attach(emulator, update)
        train.train_update(attached, update, streams, self._config(emulator, seed))
        trained = updates.delta_of(updates.state(attached, update), update)
        return attached, updates.add_delta(update, trained)

    def _config(self, emulator: Any, seed: int) -> TrainingConfig:
        settings = self.settings
        default = _EDGE_RATE_TIMES_WIDTH / int(emulator.config.hidden_size)
        if self.lora is not None:
            default *= _LORA_FACTOR
        steps = settings.steps(self.tokens)
        return TrainingConfig(
            steps=steps, batch=settings.batch, context=settings.context,
            lr=default if self.rate is None else self.rate,
            schedule=Schedule(steps, min(4, steps // 4), 1.0), seed=seed,
            precision=settings.precision,
        )  # fmt: skip
