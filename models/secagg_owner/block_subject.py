"""One block alone as the owner runs it: tenants train it as a step that removes noise, and every
opened mean is put into the full model, measured in both of its uses, and taken out again.

The ordinary use is the model's own forward pass with this block in it; a block that was trained by
the pure objective may well ruin that, and the figures say so. The other use is the sampler, which
needs the conditioning of all blocks: of those that were not converted yet it is the start, which
changes nothing. Both figures stand beside each other after every round, on the owner's own
held-out data. For time series the sampler's forecasts are not measured here.

What is published, summed and stepped is an update of what tenants hold (update_subject.py): the
package's block, or the whole model, of which a second copy is kept to train in dry runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file

from secagg.errors import ConfigError
from secagg.layout import Layout
from secagg_models.base import Base, load_base, model_digest
from secagg_models.block_cut import BlockCut
from secagg_models.block_training import block_figures
from secagg_models.block_weights import BlockShape, BlockWeights, shape_for
from secagg_models.families import layers_of
from secagg_models.package import load_full_model
from secagg_models.plug_in import plugged_in
from secagg_owner.block_package import BlockPackage, read_block_package
from secagg_owner.config import BlockModel, Config
from secagg_owner.subject import Lineage, Publication
from secagg_owner.update_subject import UpdateSubject

if TYPE_CHECKING:
    import torch


class BlockSubject:
    """See `secagg_owner.subject.Subject`."""

    def __init__(self, model: BlockModel, config: Config) -> None:
        self._model = model
        self._config = config
        self._trained = UpdateSubject(self._base, self._shape, model.seed, config)

    def layout(self) -> Layout:
        """See `Subject`."""
        return self._trained.layout()

    def clip(self) -> float:
        """See `Subject`. The dry run trains the block, as tenants do."""
        return self._trained.clip()

    def publication(self) -> Publication:
        """See `Subject`."""
        return self._trained.publication()

    def lineage(self) -> Lineage:
        """See `Subject`. The digest is of the ordinary model, which has no conditioning."""
        with plugged_in(self._full.model, self._update, self._cut) as plugged:
            digest = model_digest(plugged.state_dict())
        package = "" if self._package is None else self._package.digest.hex()
        return Lineage(self._full.digest, package, digest)

    def step(self, mean: NDArray[np.float64]) -> None:
        """See `Subject`."""
        self._trained.step(mean)

    def evaluate(self) -> Mapping[str, float]:
        """See `Subject`; ordinary pass, what it lost (below 0: gained), the block, the sampler."""
        if self._trained.windows == 0:
            return {}
        base, training = self._base_loss, self._config.training
        with plugged_in(self._full.model, self._update, self._cut) as plugged:
            found = block_figures(
                plugged, self._update, self._other_blocks, self._trained.held_out,
                context=training.context, max_windows=self._trained.windows,
                precision=training.precision,
            )  # fmt: skip
        (name,) = [n for n in found if n in ("nats_per_byte", "pinball")]
        figures = {f"validation_{key}": value for key, value in found.items()}
        return figures | {f"base_{name}": base, f"forgetting_{name}": found[name] - base}

    def save(self) -> bytes:
        """See `Subject`."""
        return self._trained.save()

    def restore(self, data: bytes, rounds_done: int) -> None:
        """See `Subject`."""
        self._trained.restore(data, rounds_done)

    # ------------------------------------------------------------------ the two models

    @property
    def _update(self) -> BlockWeights:
        update = self._trained.current
        if not isinstance(update, BlockWeights):
            raise ConfigError("the saved update is no block; begin with an empty data directory")
        return update

    @cached_property
    def _full(self) -> Base:
        full, package = _load_full(self._model), self._package
        if package is None:
            return full
        meta = package.block.meta
        if full.digest != meta.full_digest:
            raise ConfigError(
                f"model.full {self._model.full} has digest {full.digest}, and the block in "
                f"{self._model.package} was cut from {meta.full_digest}"
            )
        if (meta.cut.blocks, meta.cut.block) != (self._model.blocks, self._model.block):
            raise ConfigError(
                f"the package in {self._model.package} is block {meta.cut.block} of "
                f"{meta.cut.blocks}, and the configuration names block {self._model.block} of "
                f"{self._model.blocks}"
            )
        return full

    @cached_property
    def _cut(self) -> BlockCut:
        depth = len(layers_of(self._full.model))
        held = "all" if self._package is None else "block"
        return BlockCut(depth, self._model.blocks, self._model.block, held)  # type: ignore[arg-type]

    @cached_property
    def _package(self) -> BlockPackage | None:
        return None if self._model.package is None else read_block_package(self._model.package)

    @cached_property
    def _base_loss(self) -> float:
        return self._trained.loss_of(self._full.model)

    @cached_property
    def _other_blocks(self) -> Mapping[str, torch.Tensor]:
        return {} if self._model.conditioning is None else _tensors(self._model.conditioning)

    def _base(self) -> Base:
        """What tenants train."""
        if self._package is None:
            return load_base(self._model.full)
        block = self._package.block
        return Base(block.model, block.tokenizer, block.digest, str(self._model.package))

    def _shape(self) -> BlockShape:
        model = self._model
        return shape_for(
            self._full.model, self._cut, prefix=model.objective != "pure",
            ordinary_weight=model.ordinary_weight if model.objective == "mixed" else 0.0,
            widen=model.widen,
        )  # fmt: skip


def _load_full(model: BlockModel) -> Base:
    if model.package is None:
        return load_base(model.full)
    full = load_full_model(model.full)
    if full.task != "causal-lm":
        raise ConfigError(
            f"model.full {model.full} is for {full.task}; rounds of kind 'block' train models that "
            "continue text, or forecasters without a package"
        )
    return Base(full.model, full.tokenizer, full.digest, model.full)


def _tensors(path: Path) -> dict[str, Any]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"model.conditioning {path} is no safetensors: {error}") from None
