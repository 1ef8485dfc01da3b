"""Measures the base model for its card: `python -m secagg_models.card [--base FOLDER]`.

On the standard library's test files, which pretraining never saw: bits a byte of the model, and of
xz (lzma, preset 9e) told three ways, since a compressor's figure depends on what it may see: each
file alone; all test files as one stream; and the test files after the training text, as what they
add to it. The model reads windows of its context that start without any memory, so its figure is
the worse for that.

Then what is lost when half of the middle layers are dropped uniformly, as an emulator without
distillation would (Xiao, Lin, Han 2023; `split`): with `e` edge layers kept at each end and M in
the middle, n = M / 2 of them stay. Prints JSON; writes nothing.
"""

from __future__ import annotations

import argparse
import json
import lzma
import math
import sys
from collections.abc import Sequence
from typing import Any

import torch

from secagg_models import families, text, train
from secagg_models.base import SHIPPED, load_base
from secagg_models.split import Split

_EDGES = (1, 2, 3)
_PRESET = 9 | lzma.PRESET_EXTREME


def loss_with_layers(model: Any, kept: Sequence[int], windows: torch.Tensor) -> float:
    """Nats per byte with only these layers; the model is whole again afterwards."""
    with families.only_layers(model, kept):
        return loss_on(model, windows)


@torch.no_grad()
def loss_on(model: Any, windows: torch.Tensor) -> float:
    """Mean nats per token over the windows."""
    train.use_fast_attention(model)
    parts = [train.token_loss(model, part).double().sum() for part in torch.split(windows, 32)]
    return float(torch.stack(parts).sum()) / (windows.shape[0] * (windows.shape[1] - 1))


def xz_bits_per_byte(
    files: Sequence[text.SourceFile], context: Sequence[text.SourceFile]
) -> dict[str, float]:
    """The three figures of xz: alone by file, in one stream, and after the training text."""
    size = sum(len(f.content) for f in files)
    together = b"".join(f.content for f in files)
    before = b"".join(f.content for f in context)
    # A dictionary as large as the input, or the training text would be out of reach.
    filters = [{"id": lzma.FILTER_LZMA2, "preset": _PRESET, "dict_size": 64 << 20}]

    def compressed(data: bytes) -> int:
        return len(lzma.compress(data, filters=filters))

    return {
        "each_file_alone": 8 * sum(compressed(f.content) for f in files) / size,
        "one_stream": 8 * compressed(together) / size,
        "after_training_text": 8 * (compressed(before + together) - compressed(before)) / size,
    }


def measure(source: str) -> dict[str, Any]:
    """Everything that the card says in numbers, except the training curve."""
    base, corpus = load_base(source), text.standard_library()
    context = base.model.config.max_position_embeddings
    stream = text.encode("test", corpus.test, base.tokenizer)
    windows = stream.held_out_windows(len(stream.ids), context)
    print(f"{len(windows)} windows of held-out text", file=sys.stderr)
    whole = loss_on(base.model, windows)
    layers = base.model.config.num_hidden_layers
    sample = stream.held_out_windows(512, context)
    dropped = {}
    for edge in _EDGES:
        kept = Split.uniform(layers, edge, (layers - 2 * edge) // 2).full_layers
        dropped[f"{edge}-{layers - 2 * edge}-{edge}"] = {
            "kept": list(kept),
            "nats_per_byte": loss_with_layers(base.model, kept, sample),
        }
    return {
        "digest": base.digest,
        "parameters": sum(p.numel() for p in base.model.parameters()),
        "test_files": len(corpus.test),
        "test_bytes": sum(len(f.content) for f in corpus.test),
        "nats_per_byte": whole,
        "bits_per_byte": whole / math.log(2),
        "xz_bits_per_byte": xz_bits_per_byte(corpus.test, corpus.train),
        "half_of_the_middle_dropped": {"whole": loss_on(base.model, sample), **dropped},
    }


def main() -> None:
    """Parse the arguments, measure, print."""
    parser = argparse.ArgumentParser(prog="secagg_models.card")
    parser.add_argument(
        "--base", default=SHIPPED, help="folder or hub id; default: the shipped one"
    )
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(json.dumps(measure(arguments.base), indent=2))


if __name__ == "__main__":
    main()
