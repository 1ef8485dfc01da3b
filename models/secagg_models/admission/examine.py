"""The whole admission of a loaded model: every figure against its limit, clause by clause."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from secagg.errors import ConfigError
from secagg_models.admission.behaviour import measure_behaviour
from secagg_models.admission.limits import LIMITS, Thresholds
from secagg_models.admission.report import Check, Worst, checks_of
from secagg_models.admission.weights import check_finite, measure_weights, transformer_of

CLAUSES = ("finite", *dict.fromkeys(limit.clause for limit in LIMITS))
"""What `examine` checks, in order."""
_BATCH, _CONTEXT, _LEAST = 8, 48, 8


def examine(
    model: Any,
    text: torch.Tensor | None = None,
    thresholds: Thresholds | None = None,
    *,
    seed: int,
) -> tuple[Check, ...]:
    """Check a model's tensors and behaviour.

    `text` is a flat run of this tenant's token ids; without it the model sees random tokens alone.
    `seed` draws those: whoever made the model must not know it before.
    """
    finite = check_finite(model)
    if not finite.passed:
        return (finite,)
    generator = torch.Generator().manual_seed(seed)
    worst = Worst()
    was_training = model.training
    model.train(False)
    try:
        measure_weights(model, worst, generator)
        measure_behaviour(model, samples_of(model, text, generator), worst)
    finally:
        model.train(was_training)
    return (finite, *checks_of(worst.figures(thresholds or Thresholds())))


def samples_of(
    model: Any, text: torch.Tensor | None, generator: torch.Generator
) -> Mapping[str, torch.Tensor]:
    """What the model is run on: (B, T) token ids by name.

    Raises:
        ConfigError: the model's context is too short for that.
    """
    config = transformer_of(model).config
    # RoBERTa's and OPT's positions start behind the padding token's.
    context = min(_CONTEXT, config.max_position_embeddings - 2)
    if context < _LEAST:
        raise ConfigError(f"the model's context of {context} tokens is too short to be examined")
    shape = (_BATCH, context)
    samples = {"random tokens": torch.randint(3, config.vocab_size, shape, generator=generator)}
    if text is not None and len(text) >= context * 2:
        samples["own text"] = _cut(text, context)
    return samples


def _cut(text: torch.Tensor, context: int) -> torch.Tensor:
    """At most a batch of windows, evenly spread."""
    rows = min(_BATCH, len(text) // context)
    starts = torch.arange(rows) * (len(text) // rows)
    return text.long()[starts[:, None] + torch.arange(context)]
