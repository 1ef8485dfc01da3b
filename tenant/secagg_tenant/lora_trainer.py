"""Train a LoRA adapter on private text, and measure versions on held-out private text.

The plan's model digest fixes the manifest, and that fixes base, adapter and training; here they are
held against this tenant's own pins and limits. Text is read once, split by file; the base is loaded
once, when it is first needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from transformers.utils import logging

from secagg.errors import ConfigError, PolicyRefused
from secagg.layout import explain_difference
from secagg.plan import RoundPlan
from secagg_models import lora, train
from secagg_models.base import Base, load_base
from secagg_models.flatten import flatten, layout_of, unflatten
from secagg_models.text import Corpus, Split, TokenStream, corpus_of_folder, encode
from secagg_models.version import (
    ADAPTER_FILE,
    AdapterMeta,
    carry_residual,
    delta_layout,
    load_adapter,
)
from secagg_tenant.config import LoraTraining, Model, PolicyTable
from secagg_tenant.trainer import Contribution, ModelVersion, Progress, Vector


class LoraTrainer:
    """See `secagg_tenant.trainer.Trainer`."""

    def __init__(self, config: LoraTraining, model: Model, limits: PolicyTable, name: str) -> None:
        self._config = config
        self._model = model
        self._limits = limits
        self._name = name
        self._attached: Any = None
        self._streams: dict[str, TokenStream] = {}
        torch.set_num_threads(config.threads)
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # stderr carries the log

    def prepare(self) -> None:
        """Load the base before the first round, while nobody waits: loading holds the interpreter
        for seconds, in which no lease would be renewed, and a wrong base is told at the start.

        Raises:
            ConfigError: the base cannot be loaded, or is not the pinned one.
        """
        self._stream("train")

    def check(self, plan: RoundPlan, version: ModelVersion | None) -> None:
        """See `Trainer`."""
        if version is None:
            raise PolicyRefused("model", "the plan comes without a model version to train from")
        meta, adapter = self._read(version)
        training, limits, layout = meta.training, self._limits, delta_layout(adapter)
        windows = training.steps * training.batch
        if meta.base_digest != self._model.base_digest:
            raise PolicyRefused("base_digest", "another base model than the pinned one")
        if training.steps > limits.max_training_steps:
            reason = f"{training.steps} steps are above {limits.max_training_steps}"
            raise PolicyRefused("max_training_steps", reason)
        if windows > limits.max_training_windows:
            reason = f"{windows} windows are above {limits.max_training_windows}"
            raise PolicyRefused("max_training_windows", reason)
        if plan.layout != layout:
            raise PolicyRefused("layout", explain_difference(layout, plan.layout))

    def train(
        self, plan: RoundPlan, version: ModelVersion | None, progress: Progress
    ) -> Contribution:
        """See `Trainer`."""
        if version is None:
            raise ConfigError("there is no model version to train from")
        meta, adapter = self._read(version)
        model, stream = self._model_with(adapter), self._stream("train")
        train.train_lora(
            model, adapter, [stream], meta.training, lambda done, of, loss: progress(done, of)
        )
        delta = lora.delta_of(lora.trainable_state(model), adapter)
        windows = len(stream.ids) // (meta.training.context + 1)
        weight = min(max(1, windows // meta.weight_unit), plan.max_weight)
        return Contribution(flatten(delta, plan.layout), weight)

    def carry_residual(self, residual: Vector, old: ModelVersion, new: ModelVersion) -> Vector:
        """See `Trainer`."""
        before, after = self._read(old)[1], self._read(new)[1]
        layout = delta_layout(after)
        carried = carry_residual(unflatten(residual, delta_layout(before)), before, after)
        if layout_of(carried) != layout:
            raise ConfigError("the residual is of another layout")
        return flatten(carried, layout)

    def evaluate(self, version: ModelVersion) -> Mapping[str, float]:
        """See `Trainer`."""
        if self._config.evaluation_windows == 0:
            return {}
        meta, adapter = self._read(version)
        if meta.base_digest != self._model.base_digest:
            return {}
        loss = train.evaluate(
            self._model_with(adapter), self._stream("validation"),
            context=meta.training.context, max_windows=self._config.evaluation_windows,
            precision=meta.training.precision,
        )  # fmt: skip
        return {"validation_nats_per_byte": loss}

    @cached_property
    def _corpus(self) -> Corpus:
        return corpus_of_folder(self._config.text, name=self._name, pattern=self._config.pattern)

    @cached_property
    def _base(self) -> Base:
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

    def _model_with(self, adapter: lora.Adapter) -> Any:
        """The base with this adapter in it; PEFT's layers are made once for each shape."""
        shape, model = adapter.shape, self._attached
        if model is not None and model[0] == shape:
            lora.install(model[1], adapter)
            return model[1]
        if model is not None:
            model[1].unload()
        self._attached = (shape, lora.attach(self._base.model, adapter))
        return self._attached[1]

    def _read(self, version: ModelVersion) -> tuple[AdapterMeta, lora.Adapter]:
        try:
            meta = AdapterMeta.from_json(version.manifest.meta)
            data = (version.directory / ADAPTER_FILE).read_bytes()
            return meta, load_adapter(data, meta.shape)
        except FileNotFoundError:
            raise PolicyRefused("model", f"the version has no {ADAPTER_FILE}") from None
        except ConfigError as error:
            raise PolicyRefused("model", str(error)) from None
