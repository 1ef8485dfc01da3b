"""One block of a model as it leaves the owner: embeddings, the block's layers, last norm and head.

What a tenant needs to train one block by itself (Shing, Koyama, Akiba 2025): the block's input is
the clean embeddings and a noisy target, its output goes to the head, and no other layer is run. The
files are those of an emulator package (package.py), read and checked in the same way; the block's
conditioning on the noise level comes with the update (block_weights.py), not with the package.

Nothing is distilled: these layers, the embeddings and the head are the owner's own, verbatim. What
is protected are the layers that stay at home, and only as long as the other blocks stay there too.

Not here: whether a block may leave (secagg_owner.block_gate).
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from secagg.errors import ConfigError
from secagg_models import families
from secagg_models.block_cut import BlockCut
from secagg_models.package import (
    CARD_FILE,
    DescribedModel,
    LoadedModel,
    Task,
    TensorLayout,
    is_digest,
    layout_from_json,
    layout_to_json,
    narrowest_dtype,
    read_model_files,
    task_of,
    write_model_files,
)

KIND: Final = "block-model"


@dataclass(frozen=True, slots=True)
class BlockMeta:
    """What a manifest says about a block; digests are `base.model_digest`, in hex.

    `block_digest` is over the tensors as they load, in float32; `layout` is of the file.
    """

    task: Task
    family: str
    cut: BlockCut
    full_digest: str
    block_digest: str
    layout: Mapping[str, TensorLayout]
    signed: bool

    @property
    def described(self) -> DescribedModel:
        """What loading it is held against."""
        return DescribedModel(
            self.task, self.family, len(self.cut.full_layers), self.layout, self.block_digest
        )

    def to_json(self) -> dict[str, Any]:
        """JSON values for `Manifest.meta`."""
        return {
            "kind": KIND,
            "task": self.task,
            "family": self.family,
            "cut": self.cut.to_json(),
            "full_digest": self.full_digest,
            "block_digest": self.block_digest,
            "layout": layout_to_json(self.layout),
            "signed": self.signed,
        }

    @classmethod
    def from_json(cls, meta: Mapping[str, Any]) -> BlockMeta:
        """Inverse of `to_json`.

        Raises:
            ConfigError: another kind, or not these keys with these types.
        """
        if meta.get("kind") != KIND:
            raise ConfigError(f"the manifest is of kind {str(meta.get('kind'))[:40]!r}, not {KIND}")
        try:
            found = cls(
                meta["task"], meta["family"], BlockCut.from_json(meta["cut"]), meta["full_digest"],
                meta["block_digest"], layout_from_json(meta["layout"]), meta["signed"],
            )  # fmt: skip
            exact = found.to_json() == dict(meta) and found._is_typed()
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            if isinstance(error, ConfigError):
                raise
            exact = False
        if not exact:
            raise ConfigError("the manifest does not describe a block package of this format")
        return found

    def _is_typed(self) -> bool:
        typed = self.described.is_typed() and is_digest(self.full_digest)
        return typed and self.cut.held == "block" and type(self.signed) is bool


@dataclass(frozen=True, slots=True, eq=False)
class LoadedBlock:
    """A block that was read from its package, and what the manifest says about it."""

    model: Any
    tokenizer: Any
    meta: BlockMeta

    @property
    def digest(self) -> str:
        """What an update names as its base."""
        return self.meta.block_digest


def build_block(full_model: Any, cut: BlockCut) -> Any:
    """A copy of the full model with the block's layers only; in evaluation mode, nothing trains.

    Raises: ConfigError if the cut is of another depth.
    """
    depth = len(families.layers_of(full_model))
    if depth != cut.layers:
        raise ConfigError(f"the cut is of {cut.layers} layers and the model has {depth}")
    with families.only_layers(full_model, cut.full_block):
        block = copy.deepcopy(full_model)
    block.train(False).requires_grad_(False)
    return block


def write_block_files(folder: Path, full: LoadedModel, cut: BlockCut, *, signed: bool) -> BlockMeta:
    """Write a block's files into an empty folder, exactly as the full model has them."""
    block = build_block(full.model, cut)
    digest, layout = write_model_files(folder, full, block, narrowest_dtype(block))
    meta = BlockMeta(
        task_of(block), families.family_of(block).name, cut, full.digest, digest, layout, signed
    )
    (folder / CARD_FILE).write_text(card(meta), encoding="utf-8")
    return meta


def read_block_files(folder: Path, names: Collection[str], meta: Mapping[str, Any]) -> LoadedBlock:
    """Load a block whose files `names` were held against the manifest that says `meta`.

    Raises:
        ConfigError: as `read_model_files`.
    """
    said = BlockMeta.from_json(meta)
    model, tokenizer = read_model_files(folder, names, said.described)
    return LoadedBlock(model, tokenizer, said)


def card(meta: BlockMeta) -> str:
    """The package's README: what it is, in words; the manifest has the rest."""
    cut = meta.cut
    first, last = cut.full_block[0], cut.full_block[-1]
    signature = (
        "`manifest.sig.json` is the owner's signature over `manifest.json`."
        if meta.signed
        else "**Unsigned**: nobody vouches for this package. It is for trials alone."
    )
    return (
        f"# Block {cut.block} of {cut.blocks} of a {meta.family} model ({meta.task})\n\n"
        f"Layers {first} to {last} of {cut.layers} as their owner has them, with the embeddings, "
        "the last norm and the head. It is no model that continues text: it is trained as a "
        "denoising block (DiffusionBlocks; Shing, Koyama, Akiba 2025), and the owner puts the "
        f"protected sum of such updates back into the full model.\n\n{signature}\n\n"
        f"Full model `{meta.full_digest}`, this block `{meta.block_digest}` (SHA-256 over "
        "tensors).\n"
    )
