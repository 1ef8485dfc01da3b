"""New data are found once, in order, and cost the same whatever came."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from secagg.errors import ConfigError
from secagg_models.online.arrivals import Arrivals, Seen, series_arrivals, text_arrivals
from secagg_models.online.growing import growing_part
from secagg_models.series.batch import SeriesBatch
from secagg_models.series.stream import Series
from secagg_models.text import SourceFile, TokenStream, byte_stream


def encode(files: Sequence[SourceFile]) -> TokenStream:
    return byte_stream("ada", files)


def source(name: str, letter: str, length: int = 40) -> SourceFile:
    return SourceFile(name, letter.encode() * length)


def series(length: int, name: str = "a") -> Series:
    return Series(name, np.arange(length, dtype=np.float32))


def tokens(arrived: Arrivals) -> torch.Tensor:
    assert isinstance(arrived.windows, torch.Tensor)
    return arrived.windows


def values(arrived: Arrivals) -> torch.Tensor:
    assert isinstance(arrived.windows, SeriesBatch)
    return arrived.windows.values


def first_targets(arrived: Arrivals, context: int, count: int) -> list[float]:
    return [float(row[context]) for row in values(arrived)[:count]]


def test_a_file_is_new_once_and_again_when_its_content_changes() -> None:
    files = [source("a.py", "a"), source("b.py", "b")]
    first = text_arrivals(files, Seen(), encode, limit=6, context=9)
    assert first.fresh == 6
    again = text_arrivals(files, first.seen, encode, limit=6, context=9)
    assert again.fresh == 0
    edited = [source("a.py", "c"), files[1]]
    third = text_arrivals(edited, again.seen, encode, limit=6, context=9)
    assert third.fresh == 4
    assert set(tokens(third)[: third.fresh].flatten().tolist()) <= {ord("c") + 3, 1}


def test_whatever_arrives_as_many_windows_are_measured() -> None:
    files = [source("a.py", "a")]
    seen = text_arrivals(files, Seen(), encode, limit=5, context=9).seen
    for more in ([], [source("b.py", "b", 12)], [source("b.py", "b", 900)]):
        arrived = text_arrivals([*files, *more], seen, encode, limit=5, context=9)
        assert tokens(arrived).shape == (5, 10)
    for length in (100, 101, 108, 180):
        found = series_arrivals(
            [series(length)], Seen(lengths={"a": 100}), limit=5, context=32, horizon=8
        )
        assert values(found).shape == (5, 40)


def test_what_does_not_fill_a_window_waits_for_more() -> None:
    old = [source("a.py", "a")]
    seen = text_arrivals(old, Seen(), encode, limit=5, context=9).seen
    little = [*old, source("b.py", "b", 5)]
    waiting = text_arrivals(little, seen, encode, limit=5, context=9)
    assert waiting.fresh == 0
    more = [*little, source("c.py", "c", 6)]
    assert text_arrivals(more, waiting.seen, encode, limit=5, context=9).fresh == 1
    seven = series_arrivals([series(107)], Seen(lengths={"a": 100}), limit=5, context=32, horizon=8)
    assert (seven.fresh, seven.seen.lengths) == (0, {"a": 100})


def test_the_new_end_of_a_series_is_cut_into_windows_in_the_order_of_time() -> None:
    both = [series(120, "a"), series(117, "b")]
    found = series_arrivals(
        both, Seen(lengths={"a": 100, "b": 100}), limit=9, context=32, horizon=8
    )
    assert found.fresh == 4
    assert first_targets(found, 32, 4) == [100, 100, 108, 108]
    assert found.seen.lengths == {"a": 116, "b": 116}


def test_more_than_is_measured_is_spread_over_what_came() -> None:
    found = series_arrivals([series(500)], Seen(), limit=4, context=32, horizon=8)
    starts = first_targets(found, 32, 4)
    assert found.fresh == 4
    assert starts == sorted(starts)
    assert starts[-1] > 350
    assert found.seen.lengths["a"] > 490


def test_what_was_seen_comes_back_from_disk() -> None:
    seen = Seen(frozenset({"00"}), {"a": 3})
    assert Seen.from_json(json.loads(json.dumps(seen.to_json()))) == seen
    with pytest.raises(ConfigError, match="unreadable"):
        Seen.from_json({"files": 3})


def test_series_too_short_to_measure_are_an_error() -> None:
    with pytest.raises(ConfigError, match="history"):
        series_arrivals([series(10)], Seen(), limit=4, context=32, horizon=8)


def test_of_growing_series_only_the_newest_tenth_is_held_out() -> None:
    train_part = growing_part("ada", [series(300)], "train", 8)
    held_out = growing_part("ada", [series(300)], "validation", 8)
    assert (train_part.end, held_out.first, held_out.end) == ((270,), (270,), (300,))
    with pytest.raises(ConfigError, match="too few"):
        growing_part("ada", [series(30)], "train", 8)
