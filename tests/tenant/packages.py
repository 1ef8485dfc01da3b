"""Emulator packages of a tiny OPT, honest and hostile; whoever makes them signs what they like."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from secagg.identity import Identity
from secagg_models.base import model_digest
from secagg_models.classifier import EncoderClassifier
from secagg_models.emulator import build_emulator
from secagg_models.package import LoadedModel, write_package
from secagg_models.split import Split
from secagg_wire.signed_manifest import MANIFEST_FILE, SIGNATURE_FILE, write_signed_folder
from tests.models.crafted import Crafting, honest

SPLIT = Split.uniform(6, 1, 2)
OWNER = Identity.generate("acme", os.urandom)
OTHER = Identity.generate("mallory", os.urandom)


@dataclass(frozen=True)
class Package:
    """A folder, and what its maker puts into the manifest."""

    folder: Path
    meta: dict[str, Any]

    def sign(self, identity: Identity | None = OWNER) -> bytes:
        """Make and sign the manifest anew; its digest."""
        for name in (MANIFEST_FILE, SIGNATURE_FILE):
            (self.folder / name).unlink(missing_ok=True)
        meta = self.meta | {"signed": identity is not None}
        return write_signed_folder(self.folder, meta, identity).manifest.digest

    def change(self, name: str, change: Callable[[dict[str, Any]], None]) -> None:
        """Change a JSON file of it."""
        value = json.loads((self.folder / name).read_text())
        change(value)
        (self.folder / name).write_text(json.dumps(value))

    def change_tensors(self, change: Callable[[dict[str, Any]], None]) -> None:
        """Change tensors, as somebody who does not sign can."""
        path = self.folder / "model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, metadata={"format": "pt"})


def make(folder: Path, craft: Crafting | None = None) -> Package:
    """An emulator of an honest model of random weights, or of a crafted one; signed by OWNER."""
    model = honest("opt", layers=6).requires_grad_(False)
    if craft is not None:
        craft(model)
    full = LoadedModel(model, letters(), "causal-lm", model_digest(model.state_dict()))
    emulator = build_emulator(model, SPLIT)
    meta = write_package(folder, full, emulator, SPLIT, distillation=None, signed=True)
    package = Package(folder, meta.to_json())
    package.sign()
    return package


def make_classifier(folder: Path) -> Package:
    """An emulator of an honest classifier over a BERT; signed by OWNER."""
    model = EncoderClassifier(honest("bert", layers=6), ["a", "b", "c"])
    model.train(False).requires_grad_(False)
    full = LoadedModel(model, letters(), "classification", model_digest(model.state_dict()))
    emulator = build_emulator(model, SPLIT)
    meta = write_package(folder, full, emulator, SPLIT, distillation=None, signed=True)
    package = Package(folder, meta.to_json())
    package.sign()
    return package


def letters() -> Any:
    """A tokeniser of bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: i + 3 for i, letter in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    fast: Any = PreTrainedTokenizerFast
    return fast(tokenizer_object=backend)
