"""Data with a rare regime and with glitches: planted ones, and real ones.

Planted: sequences of two common Markov chains over 48 symbols, few of a third chain (the rare
regime) and few of independent uniform symbols (glitches, which nothing can learn). Real: Python
files of an installed package, few windows of font metrics (the rare regime), few of the bytes of
images (glitches). Either way a model starts from training that saw only what is common.

Kinds are known here and nowhere else: neither the selection nor the training is told.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import LlamaConfig, LlamaForCausalLM

from secagg_models import train
from secagg_models.text import SourceFile, Split, TokenStream, byte_stream, split_by_file

COMMON, RARE, GLITCH = "common", "rare", "glitch"
KINDS: Final = (COMMON, RARE, GLITCH)
SYMBOLS: Final = 48
PLANTED_CONTEXT: Final = 31
REAL_CONTEXT: Final = 128

_SUCCESSORS = 4
_NOISE = 0.02
_PRETRAINING = 4000
_Rows = NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class World:
    """A tenant's windows and held-out ones, (n, context + 1) each, with each window's kind (n,)."""

    context: int
    tuning: _Rows
    kinds: NDArray[np.int64]
    held_out: _Rows
    held_out_kinds: NDArray[np.int64]
    shares: Mapping[str, float]

    @property
    def stream(self) -> TokenStream:
        """What the tenant trains on."""
        return TokenStream("tenant", self.tuning.ravel(), 1.0)

    @property
    def rare_stream(self) -> TokenStream:
        """The rare windows alone: for the specialist that says how well they can be predicted."""
        rare = self.tuning[self.kinds == KINDS.index(RARE)]
        return TokenStream("specialist", rare.ravel(), 1.0)


@dataclass(frozen=True, slots=True, eq=False)
class Chains:
    """The regimes of a planted world: two common chains and a rare one."""

    matrices: tuple[NDArray[np.float64], ...]
    generator: np.random.Generator

    @classmethod
    def drawn(cls, seed: int) -> Chains:
        """Each symbol is followed by one of four, mostly."""
        generator = np.random.default_rng([seed, 6])
        return cls(tuple(_chain(generator) for _ in range(3)), generator)

    def windows(self, count: int, rare: float, glitch: float) -> tuple[_Rows, NDArray[np.int64]]:
        """So many windows, their kinds drawn with these shares."""
        half = (1 - rare - glitch) / 2
        source = self.generator.choice(4, count, p=[half, half, rare, glitch])
        rows = self.generator.integers(0, SYMBOLS, (count, PLANTED_CONTEXT + 1)).astype(np.int32)
        for number, matrix in enumerate(self.matrices):
            here = np.flatnonzero(source == number)
            rows[here] = _walk(matrix, self.generator, len(here))
        return rows, np.maximum(source - 1, 0)


def planted(chains: Chains, *, rare: float = 0.04, glitch: float = 0.03) -> World:
    """A planted world of 1500 windows to tune on and 3000 held out."""
    tuning, kinds = chains.windows(1500, rare, glitch)
    held_out, held_out_kinds = chains.windows(3000, rare, glitch)
    shares = {COMMON: 1 - rare - glitch, RARE: rare, GLITCH: glitch}
    return World(PLANTED_CONTEXT, tuning, kinds, held_out, held_out_kinds, shares)


def planted_start(chains: Chains, seed: int, steps: int = 200) -> Any:
    """A small Llama trained on the common chains alone: where everybody starts."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=SYMBOLS, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=2,
            max_position_embeddings=PLANTED_CONTEXT + 1,
        )
    )  # fmt: skip
    rows = torch.from_numpy(chains.windows(_PRETRAINING, 0.0, 0.0)[0].astype(np.int64))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.01 * min(1.0, 1.05 - step / steps)
        batch = rows[torch.from_numpy(chains.generator.integers(0, len(rows), 32))]
        optimizer.zero_grad()
        train.token_loss(model, batch, "float32").mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model.requires_grad_(False)


def real(seed: int, *, rare: float = 0.05, glitch: float = 0.03) -> World:
    """Python of numpy with few tables of font metrics and few pieces of images."""
    generator = np.random.default_rng([seed, 8])
    parts: dict[Split, tuple[_Rows, ...]] = {
        part: tuple(_cut(kind, part) for kind in KINDS) for part in ("train", "test")
    }
    shares = {COMMON: 1 - rare - glitch, RARE: rare, GLITCH: glitch}
    tuning, kinds = _mixed(parts["train"], [round(1000 * shares[k]) for k in KINDS], generator)
    held_out, held_out_kinds = _mixed(parts["test"], [64, 48, 16], generator)
    return World(REAL_CONTEXT, tuning, kinds, held_out, held_out_kinds, shares)


def _cut(kind: str, part: Split) -> _Rows:
    package, suffix = {
        COMMON: ("numpy", ".py"), RARE: ("matplotlib", ".afm"), GLITCH: ("matplotlib", ".png"),
    }[kind]  # fmt: skip
    found = [p for p in metadata.files(package) or [] if p.suffix == suffix]
    files = [SourceFile(str(p), Path(str(p.locate())).read_bytes()) for p in sorted(found)[:400]]
    corpus = split_by_file(kind, files, validation_share=0.2, test_share=0.3)
    ids = byte_stream(kind, corpus.part(part)).ids
    whole = len(ids) // (REAL_CONTEXT + 1)
    return ids[: whole * (REAL_CONTEXT + 1)].reshape(whole, REAL_CONTEXT + 1)


def _mixed(
    parts: tuple[_Rows, ...], counts: list[int], generator: np.random.Generator
) -> tuple[_Rows, NDArray[np.int64]]:
    drawn = [
        rows[generator.choice(len(rows), min(count, len(rows)), replace=False)]
        for rows, count in zip(parts, counts, strict=True)
    ]
    kinds = np.repeat(np.arange(len(drawn)), [len(rows) for rows in drawn])
    order = generator.permutation(len(kinds))
    return np.concatenate(drawn)[order], kinds[order]


def _chain(generator: np.random.Generator) -> NDArray[np.float64]:
    matrix = np.full((SYMBOLS, SYMBOLS), _NOISE / SYMBOLS)
    for row in matrix:
        chosen = generator.choice(SYMBOLS, _SUCCESSORS, replace=False)
        row[chosen] += (1 - _NOISE) * generator.dirichlet(np.ones(_SUCCESSORS))
    return np.asarray(matrix / matrix.sum(1, keepdims=True))


def _walk(matrix: NDArray[np.float64], generator: np.random.Generator, count: int) -> _Rows:
    bounds, at = matrix.cumsum(1), generator.integers(0, SYMBOLS, count)
    steps = []
    for _ in range(PLANTED_CONTEXT + 1):
        steps.append(at)
        at = (generator.random((count, 1)) > bounds[at]).sum(1).clip(max=SYMBOLS - 1)
    return np.stack(steps, 1).astype(np.int32)
