"""Passages with labels: deterministic batches, truncation that keeps its ends."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from secagg.errors import ConfigError
from secagg_models.labelled import LabelledStream

BEGIN, END = 101, 102


def stream(count: int = 20, longest: int = 9) -> LabelledStream:
    generator = np.random.default_rng(3)
    lengths = generator.integers(3, longest + 1, size=count).astype(np.int32)
    ids = np.zeros((count, longest), np.int32)
    for row, length in enumerate(lengths):
        ids[row, :length] = [BEGIN, *generator.integers(1, 90, size=length - 2), END]
    return LabelledStream("s", ids, lengths, np.arange(count) % 3)


def test_a_steps_batch_is_a_function_of_seed_step_and_name() -> None:
    one, again = (stream().windows_at(1, 4, 6, 9) for _ in range(2))
    assert torch.equal(one.input_ids, again.input_ids)
    assert torch.equal(one.labels, again.labels)
    other = stream().windows_at(1, 5, 6, 9)
    assert one.labels.tolist() != other.labels.tolist()


def test_held_out_passages_are_always_the_same_and_spread_over_all() -> None:
    few = stream().held_out_windows(5, 9)
    assert few.labels.tolist() == [0, 1, 2, 0, 1]  # items 0, 4, 8, 12, 16
    assert len(stream().held_out_windows(500, 9)) == 20


def test_truncation_keeps_the_first_and_the_last_special_token() -> None:
    batch = stream().held_out_windows(20, 4)
    assert batch.input_ids.shape == (20, 4)
    for ids, mask in zip(batch.input_ids, batch.attention_mask, strict=True):
        text = ids[mask.bool()].tolist()
        assert (text[0], text[-1]) == (BEGIN, END)


def test_padding_is_masked_and_nothing_else_is() -> None:
    whole = stream()
    batch = whole.held_out_windows(20, 9)
    assert batch.attention_mask.sum(1).tolist() == whole.lengths.tolist()
    assert not batch.input_ids[batch.attention_mask == 0].any()


def test_pieces_of_a_batch_are_the_batch() -> None:
    batch = stream().held_out_windows(20, 9)
    parts = batch.split(7)
    assert [len(part) for part in parts] == [7, 7, 6]
    assert torch.equal(torch.cat([part.labels for part in parts]), batch.labels)


def test_text_without_passages_is_refused() -> None:
    empty = stream().subset(np.array([], np.int64))
    with pytest.raises(ConfigError, match="no passage"):
        empty.windows_at(0, 0, 2, 9)
    with pytest.raises(ConfigError, match="one of each"):
        LabelledStream("s", np.zeros((2, 3), np.int32), np.ones(2, np.int32), np.zeros(3, np.int64))
