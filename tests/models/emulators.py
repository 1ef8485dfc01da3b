"""Full models of several families with their emulators, and updates of both kinds for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from secagg_models import updates
from secagg_models.classifier import EncoderClassifier
from secagg_models.edges import EdgesShape
from secagg_models.emulator import build_emulator
from secagg_models.lora import LoraShape
from secagg_models.split import Split
from tests.models import families

TARGETS = {
    "llama": ("q_proj", "down_proj"),
    "qwen3": ("v_proj", "gate_proj"),
    "gpt2": ("c_attn", "c_proj"),
    "opt": ("q_proj", "fc1"),
    "classifier": ("query", "dense"),
}
KINDS = ("lora", "edges")


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """A full model, its emulator, and how one became the other."""

    family: str
    full: Any
    emulator: Any
    split: Split

    def shape(self, kind: str, rank: int = 3) -> updates.UpdateShape:
        """Of an update in the edge layers."""
        if kind == "edges":
            return EdgesShape(self.split.edge_layers)
        return LoraShape(rank, 2.0, TARGETS[self.family], self.split.edge_layers)

    def start(self, kind: str, rank: int = 3) -> updates.Update:
        return updates.start(self.emulator, self.shape(kind, rank), seed=7)


def pair(family: str, split: Split | None = None) -> Pair:
    split = split or Split.uniform(5, 1, 2)
    if family == "classifier":
        full = EncoderClassifier(families.build("bert", split.layers), ("a", "b", "c")).eval()
    else:
        full = families.build(family, split.layers)
    full.requires_grad_(False)
    return Pair(family, full, build_emulator(full, split), split)


def moved(update: updates.Update, seed: int, size: float = 0.05) -> updates.Update:
    """The update after a round in which something was learnt: random numbers will do."""
    return updates.next_round(update, noise(update, seed, size))


def noise(update: updates.Update, seed: int, size: float = 0.05) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: size * torch.randn(update.trained[name].shape, generator=generator)
        for name in sorted(update.trained)
    }
