"""Offsite-Tuning as the owner runs it: tenants train edge layers of the emulator, and every opened
mean is plugged into the full model, measured, and taken out again.

What is published, summed and stepped is an update of the emulator (update_subject.py); the full
model is only measured and named by digest, before and after. Figures are on the owner's own
held-out text: the plug-in, the full model without it (what it forgets or gains), and the emulator
with it, which should be worse than the plug-in or the emulator protects nothing.

Models that continue text only: a classifier's rounds want labels, which an owner's folder of text
does not have.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from secagg.errors import ConfigError
from secagg.layout import Layout
from secagg_models.base import Base, model_digest
from secagg_models.edges import EdgesShape, outside_names
from secagg_models.lora import LoraShape
from secagg_models.package import LoadedModel, load_full_model
from secagg_models.plug_in import plugged_in
from secagg_models.split import Split
from secagg_models.updates import UpdateShape
from secagg_owner.config import Config, OffsiteModel
from secagg_owner.emulator_package import EmulatorPackage, read_emulator_package
from secagg_owner.subject import Lineage, Publication
from secagg_owner.update_subject import UpdateSubject


class OffsiteSubject:
    """See `secagg_owner.subject.Subject`."""

    def __init__(self, model: OffsiteModel, config: Config) -> None:
        self._model = model
        self._windows = config.text.windows
        self._trained = UpdateSubject(self._emulator_as_base, self._shape, model.seed, config)

    def layout(self) -> Layout:
        """See `Subject`."""
        return self._trained.layout()

    def clip(self) -> float:
        """See `Subject`. The dry run trains the emulator, as tenants do."""
        return self._trained.clip()

    def publication(self) -> Publication:
        """See `Subject`."""
        return self._trained.publication()

    def lineage(self) -> Lineage:
        """See `Subject`."""
        with plugged_in(self._full.model, self._trained.current, self._split) as plugged:
            digest = model_digest(plugged.state_dict())
        return Lineage(self._full.digest, self._package.digest.hex(), digest)

    def step(self, mean: NDArray[np.float64]) -> None:
        """See `Subject`."""
        self._trained.step(mean)

    def evaluate(self) -> Mapping[str, float]:
        """See `Subject`; nats per byte, and what the plug-in forgets (below 0: it gains)."""
        if self._windows == 0:
            return {}
        base = self._base_loss
        with plugged_in(self._full.model, self._trained.current, self._split) as plugged:
            loss = self._trained.loss_of(plugged)
        return {
            "validation_nats_per_byte": loss,
            "base_nats_per_byte": base,
            "forgetting_nats_per_byte": loss - base,
            "emulator_nats_per_byte": self._trained.loss_of(self._trained.trained_model()),
        }

    def save(self) -> bytes:
        """See `Subject`."""
        return self._trained.save()

    def restore(self, data: bytes, rounds_done: int) -> None:
        """See `Subject`."""
        self._trained.restore(data, rounds_done)

    # ------------------------------------------------------------------ the two models

    @cached_property
    def _full(self) -> LoadedModel:
        full = load_full_model(self._model.full)
        made_from = self._package.emulator.meta.full_digest
        if full.digest != made_from:
            raise ConfigError(
                f"model.full {self._model.full} has digest {full.digest}, and the emulator in "
                f"{self._model.emulator} was made from {made_from}"
            )
        if full.task != "causal-lm":
            raise ConfigError(
                f"model.full {self._model.full} is for {full.task}; rounds of kind 'offsite' train "
                "models that continue text"
            )
        return full

    @cached_property
    def _base_loss(self) -> float:
        return self._trained.loss_of(self._full.model)

    @cached_property
    def _package(self) -> EmulatorPackage:
        return read_emulator_package(self._model.emulator)

    @property
    def _split(self) -> Split:
        return self._package.emulator.meta.split

    def _emulator_as_base(self) -> Base:
        emulator = self._package.emulator
        digest = emulator.meta.emulator_digest
        return Base(emulator.model, emulator.tokenizer, digest, str(self._model.emulator))

    def _shape(self) -> UpdateShape:
        model, layers = self._model, self._split.edge_layers
        match model.update:
            case "lora":
                outside = outside_names(self._package.emulator.model) if model.embeddings else ()
                return LoraShape(model.rank, model.scaling, model.targets, layers, outside)
            case "edges":
                return EdgesShape(layers, model.embeddings)
