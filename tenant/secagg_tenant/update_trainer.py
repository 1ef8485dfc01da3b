"""Train an update on private text, and measure versions on held-out private text.

The update is a LoRA adapter or an emulator's whole edge layers, as the version says. The plan's
model digest fixes the manifest, and that fixes base, update and training; here they are held
against this tenant's own pins and limits. Text is read once, split by file; the base is loaded
once, when it is first needed.

A tenant may train only the first columns of B (`training.rank`): what leaves has the same form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from transformers.utils import logging

from secagg.errors import ConfigError, PolicyRefused
from secagg.layout import explain_difference
from secagg.plan import RoundPlan
from secagg_models import lora, train, updates
from secagg_models.base import Base, load_base
from secagg_models.flatten import flatten, unflatten
from secagg_models.text import Corpus, Split, TokenStream, corpus_of_folder, encode
from secagg_models.version import UpdateMeta
from secagg_tenant.config import LoraTraining, Model, PolicyTable
from secagg_tenant.trainer import Contribution, ModelVersion, Progress, Vector


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
        config: LoraTraining,
        model: Model,
        limits: PolicyTable,
        name: str,
        emulator: Callable[[], Base] | None = None,
    ) -> None:
        """`emulator` admits and loads what `model.emulator` names, in place of a base."""
        self._config = config
        self._model = model
        self._emulator = emulator
        self._limits = limits
        self._name = name
        self._attached: _Attached | None = None
        self._streams: dict[str, TokenStream] = {}
        torch.set_num_threads(config.threads)
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # stderr carries the log

    def prepare(self) -> None:
        """Load the base before the first round, while nobody waits: loading holds the interpreter
        for seconds, in which no lease would be renewed, and a wrong base is told at the start.

        Raises:
            ConfigError: the base cannot be loaded, or is not the pinned one.
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
        if meta.base_digest != self._base_digest:
            raise PolicyRefused("base_digest", "another base model than the pinned one")
        if training.steps > limits.max_training_steps:
            reason = f"{training.steps} steps are above {limits.max_training_steps}"
            raise PolicyRefused("max_training_steps", reason)
        if windows > limits.max_training_windows:
            reason = f"{windows} windows are above {limits.max_training_windows}"
            raise PolicyRefused("max_training_windows", reason)
        if plan.layout != layout:
            raise PolicyRefused("layout", explain_difference(layout, plan.layout))
        self._refuse_foreign(update)

    def train(
        self, plan: RoundPlan, version: ModelVersion | None, progress: Progress
    ) -> Contribution:
        """See `Trainer`."""
        if version is None:
            raise ConfigError("there is no model version to train from")
        meta, update = self._read(version)
        model, stream = self._model_with(update), self._stream("train")
        training = replace(meta.training, columns=self._columns(meta))
        train.train_update(
            model, update, [stream], training, lambda done, of, loss: progress(done, of)
        )
        delta = updates.delta_of(updates.state(model, update), update)
        windows = len(stream.ids) // (meta.training.context + 1)
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
        loss = train.evaluate(
            self._model_with(update), self._stream("validation"),
            context=meta.training.context, max_windows=self._config.evaluation_windows,
            precision=meta.training.precision,
        )  # fmt: skip
        return {"validation_nats_per_byte": loss}

    @cached_property
    def _corpus(self) -> Corpus:
        return corpus_of_folder(self._config.text, name=self._name, pattern=self._config.pattern)

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

    def _stream(self, part: Split) -> TokenStream:
        if part not in self._streams:
            files = self._corpus.part(part)
            self._streams[part] = encode(self._name, files, self._base.tokenizer)
        return self._streams[part]

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

    def _read(self, version: ModelVersion) -> tuple[UpdateMeta, updates.Update]:
        try:
            meta = UpdateMeta.from_json(version.manifest.meta)
            data = (version.directory / meta.file).read_bytes()
            return meta, updates.load(data, meta.shape)
        except FileNotFoundError:
            raise PolicyRefused("model", f"the version has no {meta.file}") from None
        except ConfigError as error:
            raise PolicyRefused("model", str(error)) from None
