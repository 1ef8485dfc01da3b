"""Quantising is unbiased and exact at its ends; the ring never wraps; lost error is fed back."""

import hashlib
import math
from typing import Any

import numpy as np
import pytest
from Crypto.Cipher import AES
from Crypto.Util import Counter
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from secagg.encoding import (
    Quantiser,
    Room,
    RoundingStream,
    from_ring,
    require_finite,
    ring_bits_needed,
    to_ring,
)
from secagg.errors import ConfigError, UsageError
from secagg.packing import pack, unpack
from secagg.prg import CHUNK_BYTES, stream_key, word_dtype
from secagg.secret import RoundingSeed

clips = st.floats(1e-20, 1e20)
widths = st.integers(4, 32)
words = st.integers(0, 2**32 - 1)


def uniform(count: int, label: str = "uniform") -> NDArray[np.uint32]:
    """Fixed random words."""
    return np.frombuffer(hashlib.shake_256(label.encode()).digest(4 * count), "<u4")


def u32(*values: int) -> NDArray[np.uint32]:
    return np.array(values, np.uint32)


@given(clips, widths, words)
def test_both_ends_and_zero_are_exact_whatever_the_random_word(
    clip: float, value_bits: int, word: int
) -> None:
    quantiser = Quantiser(clip, value_bits)
    levels = quantiser.levels(np.array([-clip, 0.0, clip]), 1.0, u32(word, word, word))
    assert levels.tolist() == [-quantiser.max_level, 0, quantiser.max_level]
    assert levels.dtype == np.int32


@given(clips, widths, words, st.data())
def test_whole_levels_are_exact(
    clip: float, value_bits: int, word: int, data: st.DataObject
) -> None:
    quantiser = Quantiser(clip, value_bits)
    level = data.draw(st.integers(-quantiser.max_level, quantiser.max_level))
    assert quantiser.levels(np.array([level * quantiser.scale]), 1.0, u32(word)).tolist() == [level]


@given(
    clips,
    widths,
    st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=20),
    st.floats(0, 1),
    words,
)
def test_no_finite_value_leaves_the_range_or_its_two_neighbouring_levels(
    clip: float, value_bits: int, values: list[float], factor: float, word: int
) -> None:
    quantiser = Quantiser(clip, value_bits)
    levels = quantiser.levels(np.array(values), factor, np.full(len(values), word, np.uint32))
    assert (np.abs(levels.astype(np.int64)) <= quantiser.max_level).all()
    for value, level in zip(values, levels.tolist(), strict=True):
        exact = max(-clip, min(value * factor, clip)) / quantiser.scale
        assert abs(level - exact) < 1 + 2.0**-15


@pytest.mark.parametrize("value_bits", [4, 8, 16, 20, 21, 32])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rounding_is_unbiased(value_bits: int, dtype: type[Any]) -> None:
    quantiser, count = Quantiser(1.0, value_bits), 200_000
    step = dtype(quantiser.scale)
    for part in (0.001, 0.25, 0.5, 0.9):
        value = dtype(dtype(part) * step)
        levels = quantiser.levels(np.full(count, value), 1.0, uniform(count))
        exact = float(value) / quantiser.scale
        deviation = math.sqrt(exact * (1 - exact) / count)
        assert set(np.unique(levels)) <= {0, 1}
        assert abs(levels.mean() - exact) < 4 * deviation
        assert abs(quantiser.levels(np.full(count, -value), 1.0, uniform(count)).mean() + exact) < (
            4 * deviation
        )


def test_rounding_errors_of_ordinary_values_average_out() -> None:
    quantiser, count = Quantiser(1.0, 8), 100_000
    values = np.sin(np.arange(count)).astype(np.float32)
    levels = quantiser.levels(values, 0.7, uniform(count))
    errors = quantiser.decode(levels.astype(np.int64)) - 0.7 * values.astype(np.float64)
    assert np.abs(errors).max() < quantiser.scale * (1 + 1e-6)
    assert abs(errors.mean()) < 4 * quantiser.scale / math.sqrt(6 * count)


def test_levels_leave_their_input_alone() -> None:
    values = np.array([0.5, -3.0], np.float64)
    Quantiser(1.0, 16).levels(values, 0.5, u32(0, 0))
    assert values.tolist() == [0.5, -3.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_counted_and_never_shown(bad: float) -> None:
    values = np.full(70_001, 0.123456789)
    values[[3, 66_000, 70_000]] = bad
    with pytest.raises(UsageError, match="3 of 70001 values") as refused:
        require_finite(values)
    assert "0.123" not in str(refused.value)
    with pytest.raises(UsageError):
        Quantiser(1.0, 16).levels(values, 1.0, uniform(70_001))


@pytest.mark.parametrize("factor", [-0.1, 1.1, math.nan, math.inf])
def test_factors_outside_0_to_1_are_refused(factor: float) -> None:
    with pytest.raises(UsageError):
        Quantiser(1.0, 16).levels(np.zeros(1), factor, u32(0))


@pytest.mark.parametrize(
    ("clip", "value_bits"),
    [(1.0, 3), (1.0, 33), (0.0, 16), (-1.0, 16), (math.nan, 16), (math.inf, 16), (1e-31, 16)],
)
def test_impossible_quantisers_are_refused(clip: float, value_bits: int) -> None:
    with pytest.raises(ConfigError):
        Quantiser(clip, value_bits)


def test_saturation_counts_what_lies_beyond_the_clip() -> None:
    values = np.zeros(70_000, np.float32)
    values[[0, 1, 69_999]] = [1.5, -1.5, 1.0]
    assert Quantiser(1.0, 16).saturated(values, 1.0) == 2
    assert Quantiser(1.0, 16).saturated(values, 0.5) == 0


@given(st.integers(8, 64), st.data())
def test_the_ring_keeps_every_value_up_to_both_its_ends(
    ring_bits: int, data: st.DataObject
) -> None:
    half = 1 << (ring_bits - 1)
    levels = data.draw(st.lists(st.integers(-half, half - 1), max_size=20))
    levels += [-half, -half + 1, -1, 0, 1, half - 1]
    ring = to_ring(np.array(levels, np.int64), ring_bits)
    assert ring.dtype == word_dtype(ring_bits)
    assert from_ring(ring, ring_bits).tolist() == levels
    assert (
        from_ring(unpack(pack(ring, ring_bits), ring_bits, len(ring)), ring_bits).tolist() == levels
    )


@given(st.integers(4, 32), st.integers(1, 300))
def test_sums_at_both_ends_never_wrap(value_bits: int, n: int) -> None:
    ring_bits = ring_bits_needed(value_bits, n, 4)
    top = Quantiser(1.0, value_bits).max_level
    for level in (-top, top):
        ring = to_ring(np.array([level], np.int64), ring_bits).astype(np.uint64)
        assert from_ring(ring * np.uint64(n), ring_bits).tolist() == [n * level]
        assert 2 * n * abs(level) <= (1 << ring_bits) >> 4


@pytest.mark.parametrize(
    ("value_bits", "n", "guard_bits", "bits"),
    [(16, 10, 4, 24), (8, 10, 4, 16), (16, 100, 4, 27), (16, 1, 4, 20), (8, 256, 4, 20),
     (8, 257, 4, 21), (32, 2**28, 4, 64)],
)  # fmt: skip
def test_ring_widths_are_value_plus_cohort_plus_guard(
    value_bits: int, n: int, guard_bits: int, bits: int
) -> None:
    assert ring_bits_needed(value_bits, n, guard_bits) == bits


@pytest.mark.parametrize("given_", [(16, 0, 4), (16, 10, 3), (0, 10, 4), (32, 2**28 + 1, 4)])
def test_impossible_rings_are_refused(given_: tuple[int, int, int]) -> None:
    with pytest.raises(ConfigError):
        ring_bits_needed(*given_)


SEED, CONTEXT = RoundingSeed(bytes(range(32))), b"\x07" * 32


def rounding_bytes(vector: int, chunk: int, size: int) -> bytes:
    key = stream_key(
        SEED, label="secagg/rounding", context=CONTEXT, purpose="rounding", vector=vector
    )
    counter = Counter.new(32, prefix=chunk.to_bytes(12), initial_value=2)
    return AES.new(key.expose(), AES.MODE_CTR, counter=counter).encrypt(bytes(size))


@pytest.mark.parametrize("chunk", [0, 1, 1000])
@pytest.mark.parametrize("count", [0, 1, 65_535, 65_536, 65_537, 131_072])
def test_chunk_c_of_the_rounding_words_is_keystream_chunks_2c_and_2c_plus_1(
    chunk: int, count: int
) -> None:
    drawn = RoundingStream(SEED, CONTEXT, 1).words(chunk, count).tobytes()
    both = rounding_bytes(1, 2 * chunk, CHUNK_BYTES) + rounding_bytes(1, 2 * chunk + 1, CHUNK_BYTES)
    assert drawn == both[: 4 * count]


def test_a_restart_rounds_every_chunk_as_before() -> None:
    values, quantiser = np.linspace(-1, 1, 1000), Quantiser(1.0, 8)
    stream = RoundingStream(SEED, CONTEXT, 0)
    before = [quantiser.levels(values, 1.0, stream.words(chunk, 1000)) for chunk in range(4)]
    restarted = RoundingStream(SEED, CONTEXT, 0)
    for chunk in (3, 1):
        again = quantiser.levels(values, 1.0, restarted.words(chunk, 1000))
        assert np.array_equal(again, before[chunk])
    assert not np.array_equal(before[0], before[1])


def test_a_chunk_has_at_most_131072_rounding_words() -> None:
    with pytest.raises(UsageError):
        RoundingStream(SEED, CONTEXT, 0).words(0, 131_073)


def test_room_that_is_used_again_changes_no_level() -> None:
    room, rng = Room(100), np.random.default_rng(1)
    for count in (100, 7, 0, 100):
        values, words = rng.uniform(-2, 2, count), rng.integers(0, 2**32, count, np.uint32)
        alone = Quantiser(1.0, 16).levels(values, 0.9, words)
        assert np.array_equal(Quantiser(1.0, 16).levels(values, 0.9, words, room), alone)


@pytest.mark.parametrize("edge", [1.0, np.nextafter(1.0, 2), -1.0, np.nextafter(-1.0, -2)])
def test_values_at_the_clip_and_just_beyond_it_have_its_level(edge: float) -> None:
    for values in (np.array([edge]), np.array([edge, 1e300, -1e300])):
        levels = Quantiser(1.0, 16).levels(values, 1.0, np.full(len(values), 2**32 - 1, np.uint32))
        assert levels[0] == np.sign(edge) * 32767
