"""Train an update on private data, and measure versions on held-out private data.

Data are text, for a model that continues text, or time series, for a forecaster. The update is a
LoRA adapter, an emulator's whole edge layers, or one block, as the version says. The plan's model
digest fixes the manifest, and that fixes base, update and training; here they are held against this
tenant's own pins and limits. Data are read once, text split by file and series by time; the base is
loaded once, when it is first needed.

A tenant may train only the first columns of B (`training.rank`): what leaves has the same form.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from secagg.errors import ConfigError, PolicyRefused
from secagg.layout import explain_difference
from secagg.plan import RoundPlan
from secagg_models import lora, train, updates
from secagg_models.base import Base, load_base
from secagg_models.block_training import tenant_figures
from secagg_models.block_weights import BlockWeights
from secagg_models.flatten import flatten, unflatten
from secagg_models.online.growing import growing_part
from secagg_models.online.windows import with_truth
from secagg_models.series.batch import SeriesBatch
from secagg_models.series.folder import series_of_folder
from secagg_models.series.forecaster import Forecaster
from secagg_models.series.stream import Series, SeriesStream, stream_of
from secagg_models.text import Corpus, SourceFile, Split, TokenStream, corpus_of_folder, encode
from secagg_models.train import Batch, TrainingConfig
from secagg_models.version import UpdateMeta
from secagg_tenant.config import LoraTraining, Model, PolicyTable, SeriesTraining
from secagg_tenant.trainer import Contribution, ModelVersion, Progress, Vector
from secagg_tenant.window_choice import refuse_unsuited, remember, source_of

PrivateStream = TokenStream | SeriesStream


@dataclass(frozen=True, slots=True, eq=False)
class _Attached:
    """The base with an update of this shape in it, and what of the base it overwrites."""

    shape: updates.UpdateShape
    model: Any
    own: Mapping[str, torch.Tensor]


class UpdateTrainer:
    """See `secagg_tenant.trainer.Trainer`."""

    def __init__(
        self,
        config: LoraTraining | SeriesTraining,
        model: Model,
        limits: PolicyTable,
        name: str,
        emulator: Callable[[], Base] | None = None,
        memory: Path | None = None,
        *,
        growing: bool = False,
    ) -> None:
        """`emulator` admits and loads what `model.emulator` names, in place of a base; `memory` is
        where the surprise band keeps what it knows of this tenant's windows, if anywhere;
        `growing`: of series that keep coming only the newest values are held out."""
        self._growing = growing
        self._config = config
        self._model = model
        self._emulator = emulator
        self._limits = limits
        self._name = name
        self._memory = memory
        self._attached: _Attached | None = None
        self._streams: dict[str, PrivateStream] = {}
        torch.set_num_threads(config.threads)
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # stderr carries the log

    def prepare(self) -> None:
        """Load the base before the first round, while nobody waits: loading holds the interpreter
        for seconds, in which no lease would be renewed, and a wrong base is told at the start.

        Raises:
            ConfigError: the base cannot be loaded, is not the pinned one, or is for other data.
            ProtocolError: the emulator is not admitted.
        """
        self._stream("train")

    def check(self, plan: RoundPlan, version: ModelVersion | None) -> None:
        """See `Trainer`."""
        if version is None:
            raise PolicyRefused("model", "the plan comes without a model version to train from")
        meta, update = self._read(version)
        training, limits, layout = meta.training, self._limits, updates.delta_layout(update)
        windows = training.steps * training.batch
        if training.batch > limits.max_training_batch:
            reason = f"{training.batch} windows a step are above {limits.max_training_batch}"
            raise PolicyRefused("max_training_batch", reason)
        if meta.base_digest != self._base_digest:
            raise PolicyRefused("base_digest", "another base model than the pinned one")
        if training.steps > limits.max_training_steps:
            reason = f"{training.steps} steps are above {limits.max_training_steps}"
            raise PolicyRefused("max_training_steps", reason)
        if windows > limits.max_training_windows:
            reason = f"{windows} windows are above {limits.max_training_windows}"
            raise PolicyRefused("max_training_windows", reason)
        if plan.layout != layout:
            raise PolicyRefused(
                "layout", explain_difference(layout, plan.layout, ("here", "in the plan"))
            )
        self._refuse_late_slot(plan)
        self._refuse_foreign(update)
        refuse_unsuited(self._config, update)

    def train(
        self, plan: RoundPlan, version: ModelVersion | None, progress: Progress
    ) -> Contribution:
        """See `Trainer`."""
        if version is None:
            raise ConfigError("there is no model version to train from")
        meta, update = self._read(version)
        model, stream = self._model_with(update), self._stream("train")
        training = replace(meta.training, columns=self._columns(meta))
        source = source_of(self._config, stream, meta.training.context, self._memory)
        train.train_update(
            model, update, [source], training, lambda done, of, loss: progress(done, of),
            per_window_clip=self._config.per_window_clip,
        )  # fmt: skip
        remember(source, self._memory)
        delta = updates.delta_of(updates.state(model, update), update)
        windows = _windows(stream, meta.training.context)
        weight = min(max(1, windows // meta.weight_unit), plan.max_weight)
        return Contribution(flatten(delta, plan.layout), weight)

    def carry_residual(self, residual: Vector, old: ModelVersion, new: ModelVersion) -> Vector:
        """See `Trainer`."""
        before, after = self._read(old)[1], self._read(new)[1]
        named = unflatten(residual, updates.delta_layout(before))
        carried = updates.carry_residual(named, before, after)
        return flatten(carried, updates.delta_layout(after))

    def evaluate(self, version: ModelVersion) -> Mapping[str, float]:
        """See `Trainer`."""
        if self._config.evaluation_windows == 0:
            return {}
        meta, update = self._read(version)
        if meta.base_digest != self._base_digest:
            return {}
        if isinstance(update, BlockWeights):
            figures = tenant_figures(
                self._model_with(update), update.shape, self._stream("validation"),
                context=meta.training.context, max_windows=self._config.evaluation_windows,
                precision=meta.training.precision,
            )  # fmt: skip
            return {name: _or_worst(figure) for name, figure in figures.items()}
        held_out = self.held_out(version, self._config.evaluation_windows)
        if not with_truth(held_out).any():
            return {}  # the newest values are missing: a loss of 0 would say that all is well
        loss = train.evaluate(
            self._model_with(update), self._stream("validation"),
            context=meta.training.context, max_windows=self._config.evaluation_windows,
            precision=meta.training.precision,
        )  # fmt: skip
        match self._config:
            case LoraTraining():
                return {"validation_nats_per_byte": _or_worst(loss)}
            case SeriesTraining():
                return {"validation_pinball": _or_worst(loss)}

    # ------------------------------------------------------------------ for measuring.py

    @cached_property
    def private(self) -> Corpus | list[Series]:
        """The private data as they were read last."""
        return self._read_private()

    def reread(self, like: ModelVersion | None = None) -> None:
        """Read the private data anew; where that fails, what was read before stays.

        What training would fail on counts as well: a round given up for it would tell of it.

        Raises:
            ConfigError: the data cannot be read, or one part of them is too short.
        """
        context = 1 if like is None else self._read(like)[0].training.context
        before = self.private, self._streams
        self.private, self._streams = self._read_private(), {}
        try:
            parts: tuple[Split, ...] = ("train", "validation")
            for part in parts:
                self._stream(part).held_out_windows(1, context)
        except BaseException:
            self.private, self._streams = before
            raise

    def encoded(self, files: Sequence[SourceFile]) -> TokenStream:
        """Files of this tenant as its model sees them."""
        return encode(self._name, files, self._base.tokenizer)

    @property
    def horizon(self) -> int:
        """How many values a forecaster predicts."""
        return int(self._base.model.shape.horizon)

    def held_out(self, like: ModelVersion, limit: int) -> Batch:
        """At most `limit` validation windows, cut as this version trains."""
        return self._stream("validation").held_out_windows(limit, self.training_of(like).context)

    def takes(self, windows: Batch) -> bool:
        """Whether the base's model takes these windows: those kept may be of another base."""
        model = self._base.model
        match windows, model:
            case SeriesBatch(), Forecaster(shape=shape):
                whole = windows.context % shape.patch == 0 and windows.context <= shape.context
                return whole and windows.horizon == shape.horizon
            case torch.Tensor(), Forecaster():
                return False
            case torch.Tensor(), _:
                return int(windows.max()) < int(model.config.vocab_size)
            case _:
                return False

    def training_of(self, version: ModelVersion) -> TrainingConfig:
        """How a version is trained.

        Raises:
            ConfigError: it is one block alone, which gives no loss of a window.
        """
        meta, update = self._read(version)
        if isinstance(update, BlockWeights):
            raise ConfigError(
                "one block alone gives no losses to compare: 'secagg tenant approve' decides"
            )
        return meta.training

    def model_of(self, version: ModelVersion | None) -> Any:
        """The model as a version has it, or the bare base; until the next call."""
        if version is None:
            return self._bare()
        meta, update = self._read(version)
        if meta.base_digest != self._base_digest:
            raise ConfigError(f"version {version.number} is of another base than the pinned one")
        return updates.ordinary_model(self._model_with(update))

    def _read_private(self) -> Corpus | list[Series]:
        match self._config:
            case LoraTraining(text=text, pattern=pattern):
                return corpus_of_folder(text, name=self._name, pattern=pattern)
            case SeriesTraining(series=series):
                return series_of_folder(series)

    # ------------------------------------------------------------------ base, data and update

    @property
    def _base_digest(self) -> str | None:
        """What is pinned; an admitted emulator's own, since its signed manifest pins that."""
        return self._model.base_digest if self._emulator is None else self._base.digest

    @cached_property
    def _base(self) -> Base:
        if self._emulator is not None:
            return self._emulator()
        base = load_base(self._model.base)
        if base.digest != self._model.base_digest:
            raise ConfigError(
                f"model.base {self._model.base} has digest {base.digest}, not the pinned "
                f"{self._model.base_digest}; get the right base, or pin this one"
            )
        return base

    def _stream(self, part: Split) -> PrivateStream:
        if part not in self._streams:
            self._streams[part] = self._read_stream(part)
        return self._streams[part]

    def _read_stream(self, part: Split) -> PrivateStream:
        model = self._base.model
        self._refuse_other_data(model)
        match self.private:
            case Corpus() as corpus:
                return encode(self._name, corpus.part(part), self._base.tokenizer)
            case series:
                split = growing_part if self._growing else stream_of
                return split(self._name, series, part, model.shape.horizon)

    def _refuse_other_data(self, model: Any) -> None:
        wanted = "series" if isinstance(model, Forecaster) else "lora"
        if self._config.trainer != wanted:
            raise ConfigError(
                f"training.trainer = {self._config.trainer!r} does not fit model.base "
                f"{self._model.base}, which wants {wanted!r}"
            )

    def _model_with(self, update: updates.Update) -> Any:
        """The base with this update in it; PEFT's layers are made once for each shape."""
        attached = self._attached
        if attached is not None and attached.shape == update.shape:
            updates.install(attached.model, update)
            return attached.model
        base = self._bare()
        own = updates.own_tensors(base, update)
        self._attached = _Attached(update.shape, updates.attach(base, update), own)
        return self._attached.model

    def _bare(self) -> Any:
        """The base's model without any update, bit for bit."""
        attached, self._attached = self._attached, None
        if attached is not None:
            updates.detach(attached.model, attached.own)
        return self._base.model

    def _columns(self, meta: UpdateMeta) -> int | None:
        """How many columns of B are trained: the version's, or fewer where this tenant says so."""
        columns = meta.training.columns
        match meta.shape, self._config.rank:
            case lora.LoraShape(rank=rank), int(own):
                return min(own, rank if columns is None else columns)
            case _:
                return columns

    def _refuse_foreign(self, update: updates.Update) -> None:
        attached = self._attached
        fits = attached is not None and attached.shape == update.shape
        try:
            updates.refuse_foreign(attached.model if attached and fits else self._bare(), update)
        except ConfigError as error:
            raise PolicyRefused("model", str(error)) from None

    def _refuse_late_slot(self, plan: RoundPlan) -> None:
        """A contribution that is ready after the first deadline is trained for nothing."""
        deadline = plan.deadlines.advertise_keys_ms / 1000
        if self._config.slot > deadline:
            reason = f"a slot of {self._config.slot} s ends after the first deadline, {deadline} s"
            raise PolicyRefused("training.slot_seconds", reason)

    def _refuse_longer_windows(self, meta: UpdateMeta) -> None:
        """Windows are cut before a model sees them: their length is the owner's to ask, as far as
        the policy lets it (attention takes time and memory by its square)."""
        context, model = meta.training.context, self._base.model
        if context > (most := self._limits.max_training_context):
            reason = f"windows of {context} are above {most}"
            raise PolicyRefused("max_training_context", reason)
        longest: int | None = (
            model.shape.context
            if isinstance(model, Forecaster)
            else getattr(model.config, "max_position_embeddings", None)
        )
        if longest is not None and context > longest:
            raise ConfigError(
                f"windows of {context} are longer than the {longest} that the base model takes"
            )

    def _read(self, version: ModelVersion) -> tuple[UpdateMeta, updates.Update]:
        try:
            meta = UpdateMeta.from_json(version.manifest.meta)
            self._refuse_longer_windows(meta)
            data = (version.directory / meta.file).read_bytes()
            return meta, updates.load(data, meta.shape)
        except FileNotFoundError:
            raise PolicyRefused("model", f"the version has no {meta.file}") from None
        except ConfigError as error:
            raise PolicyRefused("model", str(error)) from None


def _or_worst(figure: float) -> float:
    """What is no number counts as the worst, as in drift detection: a database keeps no NaN."""
    return math.inf if math.isnan(figure) else figure


def _windows(stream: PrivateStream, context: int) -> int:
    """How many windows there are to train on: what a tenant's weight counts."""
    match stream:
        case TokenStream():
            return len(stream.ids) // (context + 1)
        case SeriesStream():
            return len(stream.places())
