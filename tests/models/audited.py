"""A tiny full model that has learnt its text, its emulator, and text for every part of an audit."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch

from secagg_models import text
from secagg_models.audit import attacks
from secagg_models.audit.attacks import AttackSettings
from secagg_models.audit.run import AuditTexts
from secagg_models.classifier import EncoderClassifier
from secagg_models.emulator import build_emulator
from secagg_models.families import layers_of
from secagg_models.labelled import LabelledStream
from secagg_models.split import Split
from secagg_models.train import Stream
from tests.models import families
from tests.models.emulators import Pair

SETTINGS = AttackSettings(context=16, batch=8, windows=24, precision="float32")
SPLIT = Split.uniform(6, 1, 2)
_WORDS = ("def", "return", "self", "value", "index", "total", "for", "in", "range", "node")


def prose(seed: int, words: tuple[str, ...] = _WORDS, length: int = 1500) -> text.TokenStream:
    """Words of a small vocabulary, each followed by one of two: there is something to learn."""
    generator = np.random.default_rng(seed)
    place, said = 0, []
    for step in generator.integers(1, 3, size=length):
        place = (place + int(step)) % len(words)
        said.append(words[place])
    return text.byte_stream(f"prose {seed}", [text.SourceFile("x", " ".join(said).encode())])


def texts() -> AuditTexts:
    other = _WORDS[::-1]
    return AuditTexts(prose(1), prose(2), (prose(3, other),), (prose(4, other),))


@cache
def _trained() -> Any:
    full = families.build("llama", SPLIT.layers)
    with torch.no_grad():  # deep enough an effect of every layer that dropping some is felt
        for layer in layers_of(full):
            layer.mlp.down_proj.weight *= 4
    attacks.heal(full, prose(0), 1 << 14, SETTINGS, seed=0, factor=3.0)
    return full


def trained_pair() -> Pair:
    """A full model that learnt, and an emulator whose kept layers are copies."""
    full = attacks.own_copy(_trained())
    return Pair("llama", full, build_emulator(full, SPLIT), SPLIT)


def classifier_pair() -> tuple[Pair, AuditTexts]:
    """A classifier that learnt whether a passage has more of one token than of another."""
    full = EncoderClassifier(families.build("bert", SPLIT.layers), ("less", "more"))
    full.eval().requires_grad_(False)
    streams = [passages(seed) for seed in range(3)]
    attacks.heal(full, streams[0], 1 << 12, SETTINGS, seed=0, factor=4.0)
    found = Pair("classifier", full, build_emulator(full, SPLIT), SPLIT)
    held_out: Stream = streams[2]
    return found, AuditTexts(streams[1], held_out, (streams[0],), (held_out,))


def passages(seed: int, count: int = 200) -> LabelledStream:
    generator = np.random.default_rng(seed)
    ids = generator.integers(5, 7, size=(count, 11)).astype(np.int32)
    labels = (ids == 5).sum(1) > 5
    return LabelledStream("passages", ids, np.full(count, 11, np.int32), labels.astype(np.int64))
