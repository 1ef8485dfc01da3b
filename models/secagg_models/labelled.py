"""Labelled text: short passages with a class each, cut into batches as token windows are.

A `LabelledStream` stands where a `TokenStream` does, so one training loop serves both tasks: its
windows are a function of (seed, step, stream) and its held-out items are the same at every call.
An item is a whole passage, truncated to the context; batches are padded on the right to their
longest item.

Sampling is uniform over items and deterministic given a seed, which rules data and training only.
Deliberately not here: where passages come from and which class they have (minilm.py, or a caller).
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from secagg.errors import ConfigError


@dataclass(frozen=True, slots=True, eq=False)
class LabelledBatch:
    """(B, T) int64 token ids and mask (1 for text, 0 for padding), and (B,) int64 classes."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> LabelledBatch:
        """The same batch on a device."""
        return LabelledBatch(
            self.input_ids.to(device), self.attention_mask.to(device), self.labels.to(device)
        )

    def split(self, size: int) -> list[LabelledBatch]:
        """Consecutive pieces of at most `size` items."""
        parts = (self.input_ids, self.attention_mask, self.labels)
        return [
            LabelledBatch(*pieces)
            for pieces in zip(*(torch.split(part, size) for part in parts), strict=True)
        ]


@dataclass(frozen=True, slots=True, eq=False)
class LabelledStream:
    """Encoded passages: (items, longest) int32 ids, (items,) lengths and classes.

    Every item begins and ends with the tokeniser's special tokens; truncation keeps both.
    """

    name: str
    ids: NDArray[np.int32]
    lengths: NDArray[np.int32]
    labels: NDArray[np.int64]
    pad: int = 0

    def __post_init__(self) -> None:
        if not len(self.ids) == len(self.lengths) == len(self.labels):
            raise ConfigError(
                f"text {self.name}: {len(self.ids)} passages, {len(self.lengths)} lengths and "
                f"{len(self.labels)} labels; there must be one of each per passage"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def windows_at(self, seed: int, step: int, batch: int, context: int) -> LabelledBatch:
        """The items of one step, drawn with replacement: a pure function of its arguments."""
        self._refuse_empty()
        generator = np.random.default_rng([seed, step, zlib.crc32(self.name.encode())])
        return self._cut(generator.integers(0, len(self), size=batch), context)

    def held_out_windows(self, limit: int, context: int) -> LabelledBatch:
        """At most `limit` items, evenly spread, always the same."""
        self._refuse_empty()
        count = min(limit, len(self))
        return self._cut(np.arange(count) * len(self) // count, context)

    def subset(self, rows: NDArray[np.int64]) -> LabelledStream:
        """The stream of these items only, under the same name."""
        return LabelledStream(
            self.name, self.ids[rows], self.lengths[rows], self.labels[rows], self.pad
        )

    def _refuse_empty(self) -> None:
        if not len(self):
            raise ConfigError(f"text {self.name}: it has no passage; give it more files")

    def _cut(self, rows: NDArray[np.int64], context: int) -> LabelledBatch:
        if context < 2:
            raise ConfigError(f"text {self.name}: context {context}; a passage needs at least 2")
        lengths = np.minimum(self.lengths[rows], context)
        ids = self.ids[rows][:, : int(lengths.max())].astype(np.int64)
        mask = np.arange(ids.shape[1]) < lengths[:, None]
        cut = np.flatnonzero(self.lengths[rows] > context)
        ids[cut, lengths[cut] - 1] = self.ids[rows[cut], self.lengths[rows[cut]] - 1]
        return LabelledBatch(
            torch.from_numpy(np.where(mask, ids, self.pad)),
            torch.from_numpy(mask.astype(np.int64)),
            torch.from_numpy(self.labels[rows].astype(np.int64)),
        )


def encode_labelled(
    name: str, passages: Sequence[str], labels: Sequence[int], tokenizer: Any, longest: int
) -> LabelledStream:
    """Passages through a model's own tokeniser, with its special tokens, at most `longest`."""
    rows = (
        tokenizer(list(passages), truncation=True, max_length=longest)["input_ids"]
        if passages
        else []
    )
    lengths = np.array([len(row) for row in rows], np.int32)
    pad = int(tokenizer.pad_token_id or 0)
    ids = np.full((len(rows), int(lengths.max(initial=0))), pad, np.int32)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = row
    return LabelledStream(name, ids, lengths, np.array(labels, np.int64), pad)
