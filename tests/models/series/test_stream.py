"""Streams of series: what a window may know, and that it is a function of its arguments."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from secagg.errors import ConfigError
from secagg_models import train
from secagg_models.series.forecaster import Forecaster, ForecasterShape
from secagg_models.series.real import COMPANIES, company_series, held_out_series, pretraining_series
from secagg_models.series.stream import (
    Series,
    SeriesStream,
    real_as_series,
    split_by_time,
    stream_of,
)

SMALL = ForecasterShape(
    width=16, layers=1, heads=2, intermediate=32, patch=4, context=32, horizon=8
)


def counted(*lengths: int) -> list[Series]:
    return [
        Series(f"s{i}", np.arange(length, dtype=np.float32) + 1000 * i)
        for i, length in enumerate(lengths)
    ]


def of(split, horizon: int = 8, *lengths: int) -> SeriesStream:
    return stream_of("company", counted(*(lengths or (100, 60))), split, horizon)


def test_parts_follow_one_another_in_time_and_share_no_target():
    parts = split_by_time(100, 8)
    assert parts == {"train": (31, 70), "validation": (70, 80), "test": (80, 100)}
    assert split_by_time(5000, 24)["train"][0] == 256
    assert split_by_time(40, 8)["train"] == (16, 24)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_targets_lie_in_their_part_and_histories_directly_before_them(split):
    stream = of(split)
    for batch in (stream.windows_at(0, 3, 200, 32), stream.held_out_windows(50, 32)):
        for window in batch.values.numpy():
            known = window[np.isfinite(window)]
            np.testing.assert_array_equal(np.diff(known), 1)
            targets = window[32:] % 1000
            first, end = split_by_time(100 if window[-1] < 1000 else 60, 8)[split]
            assert first <= targets.min()
            assert targets.max() < end


def test_a_window_is_a_function_of_seed_step_and_stream():
    one, other = of("train"), of("train")
    first = one.windows_at(1, 2, 16, 32).values
    torch.testing.assert_close(first, other.windows_at(1, 2, 16, 32).values, equal_nan=True)
    assert not torch.equal(first.nan_to_num(), one.windows_at(1, 3, 16, 32).values.nan_to_num())
    assert not torch.equal(first.nan_to_num(), one.windows_at(2, 2, 16, 32).values.nan_to_num())


def test_windows_are_drawn_from_the_places_that_the_stream_names():
    stream = of("train")
    ends = {(float(w[-1])) for w in stream.windows_at(0, 0, 500, 32).values}
    named = {float(stream.series[row].values[origin + 7]) for row, origin in stream.places()}
    assert ends <= named
    assert len(ends) > len(named) / 2


def test_held_out_windows_are_shared_evenly_and_reach_the_latest_value():
    stream = of("test", 8, 400, 60)
    held_out = stream.held_out_windows(10, 32).values[:, -1]
    assert sorted(int(v) // 1000 for v in held_out) == [0] * 7 + [1] * 3
    assert {399.0, 1059.0} <= set(held_out.tolist())


def test_a_short_history_is_padded_on_the_left():
    batch = of("train", 8, 60).windows_at(0, 0, 64, 64)
    missing = batch.values.isnan()
    assert not missing[:, 64:].any()
    assert (missing[:, :64].int().diff(dim=1) <= 0).all()
    assert (~missing[:, :64]).sum(1).min() >= 16


def test_a_series_too_short_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"series s0 of company: 39 values are too few.* make 40"):
        of("train", 8, 39)
    of("train", 8, 40).windows_at(0, 0, 4, 32)
    for horizon in (0, -3):
        with pytest.raises(ConfigError, match=f"a horizon of {horizon}: at least 1"):
            of("train", horizon, 40)


def test_the_training_loop_measures_a_stream_of_series():
    torch.manual_seed(0)
    model = Forecaster(SMALL)
    stream = of("test")
    measured = train.evaluate(model, stream, context=32, max_windows=6)
    losses = train.item_losses(model, stream.held_out_windows(6, 32)).detach()
    assert measured == pytest.approx(float(losses.mean()), rel=1e-3)


def test_windows_without_a_known_future_count_nothing():
    torch.manual_seed(0)
    model, stream = Forecaster(SMALL), of("test")
    blank = Series("blank", np.full_like(stream.series[0].values, np.nan))
    alone = SeriesStream("one", stream.series[:1], stream.first[:1], stream.end[:1], stream.horizon)
    beside = replace(alone, series=(*alone.series, blank), first=alone.first * 2, end=alone.end * 2)
    whole = train.evaluate(model, alone, context=32, max_windows=3)
    assert train.evaluate(model, beside, context=32, max_windows=6) == pytest.approx(whole)
    nothing = replace(alone, series=(blank,))
    assert np.isnan(train.evaluate(model, nothing, context=32, max_windows=3))


def test_no_series_is_both_pretrained_on_and_held_out():
    seen, unseen = pretraining_series(), held_out_series()
    assert {s.role for s in seen} == {"pretraining"}
    assert {s.role for s in unseen} == {"held-out"}
    contents = {s.values.tobytes() for s in seen}
    assert not contents & {s.values.tobytes() for s in unseen}
    assert not {s.source for s in seen} & {s.source for s in unseen}


def test_companies_own_disjoint_held_out_series_long_enough_to_split():
    owned = [name for datasets in COMPANIES.values() for name in datasets]
    assert len(owned) == len(set(owned))
    for company in COMPANIES:
        series = real_as_series(company_series(company))
        assert stream_of(company, series, "train", 24).windows_at(0, 0, 2, 64).horizon == 24
    with pytest.raises(ConfigError, match="there is none"):
        company_series("nobody")


def test_every_real_series_says_where_it_comes_from():
    for one in pretraining_series() + held_out_series():
        assert one.values.dtype == np.float32
        assert not np.isinf(one.values).any()
        assert np.isfinite(one.values).sum() > 40 or one.dataset in ("fertility", "denmark")
        assert one.season >= 1
        assert one.unit
        assert one.licence
        assert one.source
