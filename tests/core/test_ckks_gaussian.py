"""Secrets and errors have the distribution that security needs, and the bound that decoding needs.

The table is held against mpmath, the kernel against a bisection in Python integers. The counts of
a million samples from a fixed seed are compared with Bernstein's bound and with Laurent and
Massart's for chi-square: a false alarm has a probability below 2^-40 for each, and every run of
these tests is the same.
"""

import math
from bisect import bisect_right
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from secagg.ckks.gaussian import (
    MAGNITUDE_BITS,
    SAMPLE_BYTES,
    THRESHOLDS,
    GaussianStream,
    _sample_pairs,
    sample_into,
)
from secagg.ckks.parameters import SIGMA, TAIL
from secagg.errors import UsageError
from secagg.prg import CHUNK_BYTES, Keystream, stream_key
from secagg.secret import Seed

mpmath = pytest.importorskip("mpmath")
WHOLE = 1 << MAGNITUDE_BITS
SEED, CONTEXT = Seed(bytes(range(32))), bytes(32)
ALARM_BITS = 40


def densities(most: int) -> list[Any]:
    """exp(-x^2 / (2 SIGMA^2)) for x = 0 .. most - 1, to some 120 digits."""
    width = mpmath.mpf(46) / 10
    return [mpmath.exp(-mpmath.mpf(x * x) / (2 * width * width)) for x in range(most)]


def probabilities() -> list[float]:
    """P[x], x = -TAIL .. TAIL, from the table."""
    counts = [high - low for low, high in pairwise([0, *THRESHOLDS, WHOLE])]
    half = [count / WHOLE / 2 for count in counts]
    return [*reversed(half[1:]), 2 * half[0], *half[1:]]


def by_definition(number: int) -> int:
    """The sample of one 128-bit integer."""
    magnitude = bisect_right(THRESHOLDS, number % WHOLE)
    return -magnitude if number >> MAGNITUDE_BITS else magnitude


def samples_of(numbers: list[int], dtype: Any = np.int32) -> list[int]:
    out = np.empty(len(numbers), dtype)
    keystream = b"".join(number.to_bytes(SAMPLE_BYTES, "little") for number in numbers)
    sample_into(out, np.frombuffer(keystream, "<u8"))
    return out.tolist()  # type: ignore[no-any-return]


def stream(purpose: Any = "errors", *, seed: Seed = SEED, context: bytes = CONTEXT) -> Any:
    return GaussianStream(seed, context=context, purpose=purpose, degree=8192)


def polynomials(count: int) -> NDArray[np.int64]:
    out, source = np.empty((count, 8192), np.int32), stream()
    for number in range(count):
        source.write(number, out[number])
    return out.ravel().astype(np.int64)


# ------------------------------------------------------------------------------------- the table


def test_the_table_is_the_cut_gaussian_to_the_last_of_127_bits() -> None:
    with mpmath.workdps(120):
        density = densities(TAIL + 1)
        total = density[0] + 2 * sum(density[1:])
        up_to = density[0]
        for magnitude, threshold in enumerate(THRESHOLDS):
            assert abs(threshold - up_to / total * WHOLE) <= mpmath.mpf("0.5")
            up_to += 2 * density[magnitude + 1]
        assert mpmath.almosteq(up_to, total)


def test_every_magnitude_has_a_share_of_just_2_to_the_127() -> None:
    counts = [high - low for low, high in pairwise([0, *THRESHOLDS, WHOLE])]
    assert len(counts) == TAIL + 1
    assert sum(counts) == 2**127
    assert min(counts) > 2**34, "the tail's end is no rounding artefact"
    assert counts[1:] == sorted(counts[1:], reverse=True)


def test_what_is_cut_off_is_below_2_to_the_minus_94() -> None:
    with mpmath.workdps(120):
        density = densities(300)
        cut = 2 * sum(density[TAIL + 1 :]) / (density[0] + 2 * sum(density[1:]))
        assert -94.6 < mpmath.log(cut, 2) < -94.5
    assert TAIL >= 11 * SIGMA


# ------------------------------------------------------------------------------------- the kernel


def test_both_sides_of_every_threshold() -> None:
    sides = [threshold + step for threshold in THRESHOLDS for step in (-1, 0, 1)]
    numbers = [number + sign for number in sides for sign in (0, WHOLE)]
    expected = [
        sign * (k + (step >= 0))
        for k in range(TAIL)
        for step in (-1, 0, 1)
        for sign in (1, -1)
    ]  # fmt: skip
    assert samples_of(numbers) == expected
    assert [by_definition(number) for number in numbers] == expected


def test_both_ends_of_u() -> None:
    ends = [0, WHOLE - 1, WHOLE, 2 * WHOLE - 1]
    assert samples_of(ends) == [0, TAIL, 0, -TAIL]
    assert samples_of(ends, np.int8) == [0, TAIL, 0, -TAIL]


words = st.one_of(
    st.integers(0, 2 * WHOLE - 1),
    st.sampled_from(THRESHOLDS).flatmap(
        lambda t: st.sampled_from((1, 1 << 40, 1 << 64, 1 << 90)).map(lambda d: min(t + d, WHOLE))
    ),
    st.sampled_from(THRESHOLDS).map(lambda t: t & ~((1 << 64) - 1)),
)


@given(st.lists(words, max_size=40), st.sampled_from((np.int8, np.int32)))
def test_the_kernel_bisects_the_table(numbers: list[int], dtype: Any) -> None:
    assert samples_of(numbers, dtype) == [by_definition(number) for number in numbers]


@pytest.mark.parametrize("count", [1, 511, 512, 513, 1500])
def test_blocks_of_any_length(count: int) -> None:
    raw = np.empty(2 * count, "<u8")
    Keystream(stream_key(SEED, label="test", context=b"", purpose="blocks", vector=0)).fill(0, raw)
    out = np.empty(count, np.int32)
    sample_into(out, raw)
    numbers = [int(high) << 64 | int(low) for low, high in raw.reshape(-1, 2).tolist()]
    assert out.tolist() == [by_definition(number) for number in numbers]


def test_without_numba_the_samples_are_the_same_and_nothing_overflows() -> None:
    numbers = [0, WHOLE - 1, 2 * WHOLE - 1, *THRESHOLDS[::7], 12345 << 100]
    raw = np.frombuffer(b"".join(n.to_bytes(16, "little") for n in numbers), "<u8")
    out = np.empty(len(numbers), np.int32)
    plain = getattr(_sample_pairs, "py_func", _sample_pairs)
    with np.errstate(all="raise"):
        plain(out, raw.reshape(-1, 2), *_tables())
    assert out.tolist() == [by_definition(number) for number in numbers]


def _tables() -> tuple[Any, Any]:
    from secagg.ckks import gaussian

    return gaussian._HIGH, gaussian._LOW


# ------------------------------------------------------------------------------------- statistics


def test_a_million_samples_have_the_counts_of_the_distribution() -> None:
    found = polynomials(128)
    assert np.abs(found).max() <= TAIL
    seen = np.bincount(found + TAIL, minlength=2 * TAIL + 1)
    level = math.log(2 * 2 * TAIL) + ALARM_BITS * math.log(2)
    for count, chance in zip(seen.tolist(), probabilities(), strict=True):
        spread = len(found) * chance * (1 - chance)
        room = level / 3 + math.sqrt(level**2 / 9 + 2 * spread * level)
        assert abs(count - len(found) * chance) < room


def chi_square(found: NDArray[np.int64], reach: int = 18) -> tuple[float, float]:
    """The statistic over -reach .. reach and both rests, and what it stays below.

    P[chi2_d >= d + 2 sqrt(d x) + 2 x] <= exp(-x): Laurent and Massart, Annals of Statistics 28
    (2000), lemma 1. Every cell expects at least twenty samples, most of them thousands.
    """
    chances = np.array(probabilities())
    middle = slice(TAIL - reach, TAIL + reach + 1)
    seen = np.bincount(found + TAIL, minlength=2 * TAIL + 1)
    cells = [*seen[middle], seen[: TAIL - reach].sum(), seen[TAIL + reach + 1 :].sum()]
    means = [*chances[middle], chances[: TAIL - reach].sum(), chances[TAIL + reach + 1 :].sum()]
    expected = len(found) * np.array(means)
    assert expected.min() > 20
    free, x = len(cells) - 1, ALARM_BITS * math.log(2)
    statistic = float(((np.array(cells) - expected) ** 2 / expected).sum())
    return statistic, free + 2 * math.sqrt(free * x) + 2 * x


def test_chi_square_of_a_million_samples() -> None:
    statistic, most = chi_square(polynomials(128))
    assert statistic < most


def test_chi_square_notices_a_width_one_percent_off_and_a_lost_sign() -> None:
    found = polynomials(128)
    wider = np.rint(np.random.default_rng(0).normal(0, 1.01 * SIGMA, len(found))).astype(np.int64)
    for broken in (wider, np.abs(found), found + (found == 0)):
        statistic, most = chi_square(broken)
        assert statistic > most


def test_moments_of_a_million_samples() -> None:
    """Hoeffding for the mean and the mean square: both are means of bounded values."""
    found = polynomials(128)
    x = (ALARM_BITS + 1) * math.log(2)
    chances = np.array(probabilities())
    places = np.arange(-TAIL, TAIL + 1)
    assert math.isclose((chances * places**2).sum(), SIGMA**2, rel_tol=1e-9)
    assert abs(found.mean()) < 2 * TAIL * math.sqrt(x / (2 * len(found)))
    spread = (chances * places**4).sum() - SIGMA**4
    room = math.sqrt(2 * spread * x / len(found)) + TAIL**2 * x / (3 * len(found))
    assert abs((found**2).mean() - SIGMA**2) < room


def test_neighbouring_samples_do_not_depend_on_each_other() -> None:
    found = polynomials(128).reshape(-1, 2)
    x = (ALARM_BITS + 1) * math.log(2)
    room = math.sqrt(2 * SIGMA**4 * x / len(found)) + TAIL**2 * x / (3 * len(found))
    assert abs((found[:, 0] * found[:, 1]).mean()) < room


# ------------------------------------------------------------------------------------- the stream


@pytest.mark.parametrize("degree", [1, 2048, 8192, 16384])
def test_polynomial_j_is_chunk_j_of_the_keystream(degree: int) -> None:
    source = GaussianStream(SEED, context=CONTEXT, purpose="secret", degree=degree)
    key = stream_key(SEED, label="secagg/gaussian", context=CONTEXT, purpose="secret", vector=0)
    for number in (5, 0, 2**32):
        raw, expected = np.empty(2 * degree, "<u8"), np.empty(degree, np.int32)
        Keystream(key).fill(number, raw)
        sample_into(expected, raw)
        out = np.empty(degree, np.int32)
        source.write(number, out)
        assert np.array_equal(out, expected)


def test_a_restarted_stream_goes_on_with_the_same_samples() -> None:
    first, out, again = stream(), np.empty(8192, np.int8), np.empty(8192, np.int32)
    for number in range(3):
        first.write(number, out)
    stream().write(2, again)
    assert np.array_equal(out, again)


def test_seeds_contexts_purposes_and_numbers_have_their_own_samples() -> None:
    sources = [
        (stream(), 0), (stream(), 1), (stream("secret"), 0),
        (stream(seed=Seed(bytes(32))), 0), (stream(context=bytes(31) + b"1"), 0),
    ]  # fmt: skip
    found = []
    for source, number in sources:
        out = np.empty(8192, np.int32)
        source.write(number, out)
        found.append(out.tobytes())
    assert len(set(found)) == len(found)


def test_what_has_no_samples_is_the_callers_mistake() -> None:
    with pytest.raises(UsageError, match="take 4 words and not 5"):
        sample_into(np.empty(2, np.int32), np.zeros(5, np.uint64))
    with pytest.raises(UsageError, match="8192 coefficients and not 8191"):
        stream().write(0, np.empty(8191, np.int32))
    for degree in (0, CHUNK_BYTES // SAMPLE_BYTES + 1):
        with pytest.raises(UsageError, match="no samples for degree"):
            GaussianStream(SEED, context=CONTEXT, purpose="errors", degree=degree)
