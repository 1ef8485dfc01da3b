"""A tiny model, texts of very different surprise, and one round of training on each."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from secagg_models import lora, train, updates
from secagg_models.selection.choice import SurpriseBand, Uniform
from secagg_models.text import TokenStream

CONTEXT = 15
TRAINING = train.TrainingConfig(
    steps=5, batch=4, context=CONTEXT, lr=0.01, schedule=train.Schedule(10), seed=3,
    precision="float32",
)  # fmt: skip


def streams(windows: int = 60) -> dict[str, TokenStream]:
    """As long as each other, and nothing else in common."""
    generator = np.random.default_rng(1)
    length = windows * (CONTEXT + 1)
    constant = np.full(length, 100)
    noise = generator.integers(3, 259, length)
    mixed = np.where(np.arange(length) // (CONTEXT + 1) % 9 == 0, noise, constant)
    period = 100 + np.arange(length) % 7
    rare = np.where(np.arange(length) // (CONTEXT + 1) % 11 == 0, period, constant)
    texts = {"constant": constant, "noise": noise, "glitches": mixed, "rare": rare}
    return {name: TokenStream(name, ids.astype(np.int32), 1.0) for name, ids in texts.items()}


@dataclass
class Outside:
    """What could be seen of a training from outside: calls, their sizes, operations, the delta."""

    calls: list[tuple[bool, tuple[int, ...]]] = field(default_factory=list)
    operations: int = 0
    form: dict[str, tuple[int, ...]] = field(default_factory=dict)
    trained: int = 0


def round_of(
    model: Any,
    adapter: lora.Adapter,
    source: SurpriseBand | Uniform,
    *,
    operations: bool = False,
    **options: Any,
) -> Outside:
    """Train one round from this source and note what shows; counting operations is slow."""
    outside = Outside()

    def note(_: object, __: object, given: dict[str, Any], ___: object) -> None:
        outside.calls.append((torch.is_grad_enabled(), tuple(given["input_ids"].shape)))

    hook = model.register_forward_hook(note, with_kwargs=True)
    with FlopCounterMode(display=False) if operations else nullcontext() as flops:
        train.train_update(model, adapter, [source], TRAINING, **options)
    hook.remove()
    outside.operations = 0 if flops is None else flops.get_total_flops()
    delta = updates.delta_of(updates.state(model, adapter), adapter)
    outside.form = {name: tuple(part.shape) for name, part in delta.items()}
    outside.trained = len(source.drawn)
    return outside
