"""What tenants train, as the owner keeps it: draw the first, publish, take the mean, measure.

An update is a LoRA adapter or whole edge layers (secagg_models.updates). Between rounds mean(B) A
is refactored by SVD (FedSVD) into the next A and B_0; edge layers are moved by their mean. The clip
comes from one round of training on the owner's own data: `clip_margin` times the largest coordinate
of that delta, so that it depends on no tenant's. Data are text, or time series where the base is a
forecaster.

`base` is the model that tenants train: one that everybody has, or an emulator
(offsite_subject.py, where the full model comes in).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.utils import logging

from secagg.errors import ConfigError
from secagg.layout import Layout, explain_difference
from secagg_models import train, updates
from secagg_models.base import Base, load_base
from secagg_models.edges import EdgesShape
from secagg_models.families import layers_of
from secagg_models.flatten import flatten, unflatten
from secagg_models.lora import LoraShape
from secagg_models.series.folder import series_of_folder
from secagg_models.series.forecaster import Forecaster
from secagg_models.series.real import pretraining_series
from secagg_models.series.stream import (
    Series,
    SeriesStream,
    real_as_series,
    split_by_time,
    stream_of,
)
from secagg_models.text import (
    Corpus,
    Split,
    TokenStream,
    corpus_of_folder,
    encode,
    standard_library,
)
from secagg_models.version import UpdateMeta
from secagg_owner.config import Config, EdgesModel, LoraModel
from secagg_owner.subject import Lineage, Publication
from secagg_wire.manifest import Manifest

_NAME = "owner"


class UpdateSubject:
    """See `secagg_owner.subject.Subject`."""

    def __init__(
        self, base: Callable[[], Base], shape: Callable[[], updates.UpdateShape], seed: int,
        config: Config,
    ) -> None:  # fmt: skip
        self._load = base
        self._wanted = shape
        self._seed = seed
        self._config = config
        self._rounds_done = 0
        self._attached: Any = None
        self._update: updates.Update | None = None
        torch.set_num_threads(config.training.threads)
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # stderr carries the log

    @classmethod
    def of_lora(cls, model: LoraModel, config: Config) -> UpdateSubject:
        """LoRA on a base that tenants have."""
        shape = LoraShape(model.rank, model.scaling, model.targets)
        return cls(lambda: load_base(model.base), lambda: shape, model.seed, config)

    @classmethod
    def of_edges(cls, model: EdgesModel, config: Config) -> UpdateSubject:
        """Whole layers of a base that tenants have."""
        base = cache(lambda: load_base(model.base))

        def shape() -> EdgesShape:
            layers = model.layers or tuple(range(len(layers_of(base().model))))
            return EdgesShape(layers, model.embeddings)

        return cls(base, shape, 0, config)

    @property
    def current(self) -> updates.Update:
        """What the next round starts from."""
        return self._start if self._update is None else self._update

    def layout(self) -> Layout:
        """See `Subject`."""
        return updates.delta_layout(self.current)

    def clip(self) -> float:
        """See `Subject`."""
        configured = self._config.round.clip
        if configured != "auto":
            return configured
        update, model = self.current, self.trained_model()
        train.train_update(model, update, [self._stream("train")], self._meta.training)
        delta = updates.delta_of(updates.state(model, update), update)
        largest = float(np.abs(flatten(delta, updates.delta_layout(update))).max())
        if not largest > 0:
            raise ConfigError("the dry run changed nothing; set round.clip, or train with a rate")
        return largest * self._config.round.clip_margin

    def publication(self) -> Publication:
        """See `Subject`."""
        contents = {self._meta.file: updates.save(self.current)}
        return Publication(Manifest.of(contents, self._meta.to_json()), contents)

    def lineage(self) -> Lineage:
        """See `Subject`. Tenants have the same base: nothing is plugged into another model."""
        return Lineage(self.base.digest)

    def step(self, mean: NDArray[np.float64]) -> None:
        """See `Subject`."""
        delta = unflatten(mean, updates.delta_layout(self.current))
        rate = self._config.round.server_rate
        self._update = updates.next_round(self.current, delta, rate)
        self._rounds_done += 1

    def evaluate(self) -> Mapping[str, float]:
        """See `Subject`."""
        if self.windows == 0:
            return {}
        figure = "pinball" if isinstance(self.held_out, SeriesStream) else "nats_per_byte"
        return {f"validation_{figure}": self.loss_of(self.trained_model())}

    def save(self) -> bytes:
        """See `Subject`."""
        return updates.save(self.current)

    def restore(self, data: bytes, rounds_done: int) -> None:
        """See `Subject`."""
        update = updates.load(data, self._start.shape)
        ours, theirs = updates.delta_layout(self._start), updates.delta_layout(update)
        if ours != theirs:
            raise ConfigError(
                "the saved update is not the one that the configuration describes: "
                f"{explain_difference(ours, theirs, ('configured', 'saved'))}"
            )
        self._update = update
        self._rounds_done = rounds_done

    def trained_model(self) -> Any:
        """The base with the present update in it."""
        if self._attached is None:
            self._attached = updates.attach(self.base.model, self.current)
        else:
            updates.install(self._attached, self.current)
        return self._attached

    def loss_of(self, model: Any) -> float:
        """Loss of a model on the owner's own held-out data: nats per byte of text, or pinball."""
        training = self._config.training
        return train.evaluate(
            model, self.held_out, context=training.context,
            max_windows=self.windows, precision=training.precision,
        )  # fmt: skip

    @cached_property
    def base(self) -> Base:
        """What tenants train."""
        return self._load()

    @property
    def windows(self) -> int:
        """How many held-out windows figures are measured on; 0: none are."""
        forecasts = isinstance(self.base.model, Forecaster)
        return self._config.series.windows if forecasts else self._config.text.windows

    @cached_property
    def held_out(self) -> TokenStream | SeriesStream:
        """The owner's own validation data."""
        return self._stream("validation")

    def _stream(self, part: Split) -> TokenStream | SeriesStream:
        model = self.base.model
        if isinstance(model, Forecaster):
            return stream_of(_NAME, self._series(model.shape.horizon), part, model.shape.horizon)
        return encode(_NAME, self._corpus.part(part), self.base.tokenizer)

    @cached_property
    def _start(self) -> updates.Update:
        # From the bare model: `trained_model` changes it.
        return updates.start(self.base.model, self._wanted(), self._seed)

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
        unit = self._config.round.weight_unit
        return UpdateMeta(self.base.digest, self.current.shape, stretch, unit)

    def _series(self, horizon: int) -> list[Series]:
        if self._config.series.path is not None:
            return series_of_folder(self._config.series.path)
        # Yearly ones are too short for three parts.
        return [s for s in real_as_series(pretraining_series()) if _splits(s, horizon)]

    @cached_property
    def _corpus(self) -> Corpus:
        text = self._config.text
        if text.path is None:
            return standard_library()
        return corpus_of_folder(text.path, name=_NAME, pattern=text.pattern)


def _splits(series: Series, horizon: int) -> bool:
    try:
        split_by_time(len(series.values), horizon)
    except ConfigError:
        return False
    return True
