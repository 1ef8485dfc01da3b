"""LoRA as the owner keeps it: draw the first adapter, publish, take the mean, refactor, measure.

Between rounds mean(B) A is refactored by SVD (FedSVD) into the next A and B_0. The clip comes from
one round of training on the owner's own text: `clip_margin` times the largest coordinate of that
delta, so that it depends on no tenant's data.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.utils import logging

from secagg.errors import ConfigError
from secagg.layout import Layout
from secagg_models import lora, train, updates
from secagg_models.base import Base, load_base
from secagg_models.flatten import flatten, unflatten
from secagg_models.text import Corpus, corpus_of_folder, encode, standard_library
from secagg_models.version import ADAPTER_FILE, UpdateMeta
from secagg_owner.config import Config, LoraModel
from secagg_owner.subject import Lineage, Publication
from secagg_wire.manifest import Manifest

_NAME = "owner"


class LoraSubject:
    """See `secagg_owner.subject.Subject`."""

    def __init__(self, model: LoraModel, config: Config) -> None:
        self._model = model
        self._config = config
        self._shape = lora.LoraShape(model.rank, model.scaling, model.targets)
        self._rounds_done = 0
        self._attached: Any = None
        torch.set_num_threads(config.training.threads)
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # stderr carries the log
        self._adapter: lora.Adapter | None = None

    def layout(self) -> Layout:
        """See `Subject`."""
        return updates.delta_layout(self._current)

    def clip(self) -> float:
        """See `Subject`."""
        configured = self._config.round.clip
        if configured != "auto":
            return configured
        adapter = self._current
        stream = encode(_NAME, self._corpus.train, self._base.tokenizer)
        train.train_update(self._with(adapter), adapter, [stream], self._meta.training)
        delta = lora.delta_of(lora.trainable_state(self._attached), adapter)
        largest = float(np.abs(flatten(delta, updates.delta_layout(adapter))).max())
        if not largest > 0:
            raise ConfigError("the dry run changed nothing; set round.clip, or train with a rate")
        return largest * self._config.round.clip_margin

    def publication(self) -> Publication:
        """See `Subject`."""
        contents = {ADAPTER_FILE: updates.save(self._current)}
        return Publication(Manifest.of(contents, self._meta.to_json()), contents)

    def lineage(self) -> Lineage:
        """See `Subject`. Tenants have the same base, so nothing is plugged into another model."""
        return Lineage(self._base.digest)

    def step(self, mean: NDArray[np.float64]) -> None:
        """See `Subject`."""
        delta = unflatten(mean, updates.delta_layout(self._current))
        self._adapter = lora.next_round(self._current, delta, self._config.round.server_rate)
        self._rounds_done += 1

    def evaluate(self) -> Mapping[str, float]:
        """See `Subject`."""
        if self._config.text.windows == 0:
            return {}
        loss = train.evaluate(
            self._with(self._current),
            encode(_NAME, self._corpus.validation, self._base.tokenizer),
            context=self._config.training.context, max_windows=self._config.text.windows,
            precision=self._config.training.precision,
        )  # fmt: skip
        return {"validation_nats_per_byte": loss}

    def save(self) -> bytes:
        """See `Subject`."""
        return updates.save(self._current)

    def restore(self, data: bytes, rounds_done: int) -> None:
        """See `Subject`."""
        self._adapter = updates.load(data, self._shape)
        self._rounds_done = rounds_done

    @property
    def _current(self) -> lora.Adapter:
        if self._adapter is None:
            self._adapter = lora.draw_adapter(self._base.model, self._shape, self._model.seed)
        return self._adapter

    @property
    def _meta(self) -> UpdateMeta:
        """What the next round trains: its stretch of the schedule over all rounds."""
        training, rounds = self._config.training, self._config.round.rounds
        schedule = train.Schedule(
            training.steps * rounds, training.warmup_steps, training.decay_share,
            training.final_share,
        )  # fmt: skip
        stretch = train.TrainingConfig(
            steps=training.steps, batch=training.batch, context=training.context, lr=training.lr,
            schedule=schedule, seed=training.seed, first_step=self._rounds_done * training.steps,
            weight_decay=training.weight_decay, clip_norm=training.clip_norm,
            precision=training.precision,
        )  # fmt: skip
        return UpdateMeta(self._base.digest, self._shape, stretch, self._config.round.weight_unit)

    @cached_property
    def _base(self) -> Base:
        return load_base(self._model.base)

    @cached_property
    def _corpus(self) -> Corpus:
        text = self._config.text
        if text.path is None:
            return standard_library()
        return corpus_of_folder(text.path, name=_NAME, pattern=text.pattern)

    def _with(self, adapter: lora.Adapter) -> Any:
        if self._attached is None:
            self._attached = lora.attach(self._base.model, adapter)
        else:
            lora.install(self._attached, adapter)
        return self._attached
