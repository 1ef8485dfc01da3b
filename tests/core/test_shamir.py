"""Any t shares open the secret; t - 1 shares fit every secret equally well."""

import os
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secagg.errors import ConfigError, MalformedMessage, UsageError
from secagg.secret import MaskKeyShare, MaskSeed, SelfMaskSeed, SelfMaskShare
from secagg.shamir import PRIME, SHARE_BYTES, Interpolation, parse_share, split

seeds = st.binary(min_size=32, max_size=32)


@st.composite
def deals(draw: st.DrawFn) -> tuple[list[int], int]:
    """Holders' indices and a threshold."""
    indices = draw(st.lists(st.integers(0, 2000), min_size=1, max_size=12, unique=True))
    return indices, draw(st.integers(1, len(indices)))


def lagrange(points: Sequence[tuple[int, int]], at: int) -> int:
    """The polynomial through `points`, at `at`: the textbook formula, nothing shared."""
    total = 0
    for x, y in points:
        term = y
        for other, _ in points:
            if other != x:
                term = term * (at - other) * pow(x - other, -1, PRIME) % PRIME
        total += term
    return total % PRIME


def as_points(shares: dict[int, MaskKeyShare]) -> list[tuple[int, int]]:
    return [(index + 1, int.from_bytes(share.expose())) for index, share in shares.items()]


@given(seeds, deals(), st.data())
def test_any_threshold_shares_in_any_order_open_the_secret(
    secret: bytes, deal: tuple[list[int], int], data: st.DataObject
) -> None:
    indices, threshold = deal
    shares = split(MaskSeed(secret), indices, threshold, MaskKeyShare, os.urandom)
    chosen = data.draw(st.permutations(indices))[: data.draw(st.integers(threshold, len(indices)))]
    assert Interpolation(chosen).at_zero([shares[index] for index in chosen]) == secret


@given(seeds, seeds, deals())
def test_one_share_less_is_consistent_with_every_other_secret(
    secret: bytes, other: bytes, deal: tuple[list[int], int]
) -> None:
    indices, threshold = deal
    shares = split(MaskSeed(secret), indices, threshold, MaskKeyShare, os.urandom)
    *known, last = indices[:threshold]
    points = [(0, int.from_bytes(other)), *as_points({index: shares[index] for index in known})]
    missing = lagrange(points, last + 1).to_bytes(SHARE_BYTES)
    completed = [*(shares[index] for index in known), parse_share(missing, MaskKeyShare)]
    assert Interpolation([*known, last]).at_zero(completed) == other


@given(seeds, deals())
def test_shares_lie_on_a_polynomial_of_degree_below_the_threshold(
    secret: bytes, deal: tuple[list[int], int]
) -> None:
    indices, threshold = deal
    points = as_points(split(MaskSeed(secret), indices, threshold, MaskKeyShare, os.urandom))
    for x, y in points[threshold:]:
        assert lagrange(points[:threshold], x) == y
    assert lagrange(points[:threshold], 0) == int.from_bytes(secret)


@pytest.mark.parametrize(("n", "threshold"), [(256, 171), (300, 70)])
def test_large_deals_open_from_the_last_holders(n: int, threshold: int) -> None:
    secret = os.urandom(32)
    shares = split(SelfMaskSeed(secret), range(n), threshold, SelfMaskShare, os.urandom)
    last = range(n - threshold, n)
    assert Interpolation(last).at_zero([shares[index] for index in last]) == secret


def test_a_single_share_is_spread_over_the_whole_field() -> None:
    quarters = [0, 0, 0, 0]
    for _ in range(2000):
        share = split(MaskSeed(bytes(32)), [0, 1], 2, MaskKeyShare, os.urandom)[0]
        quarters[int.from_bytes(share.expose()) * 4 // PRIME] += 1
    assert all(350 < count < 650 for count in quarters)  # 7 standard deviations


def polynomial(coefficients: Sequence[int], x: int) -> int:
    """Its value modulo p, lowest coefficient first: power by power."""
    return sum(c * pow(x, power, PRIME) for power, c in enumerate(coefficients)) % PRIME


def dealt(coefficients: Sequence[int], indices: Sequence[int]) -> dict[int, int]:
    """What `split` makes of a polynomial whose coefficients are given, lowest first."""
    constant, *rest = coefficients
    stream = b"".join(c.to_bytes(SHARE_BYTES) for c in reversed(rest))
    shares = split(
        SelfMaskSeed(constant.to_bytes(32)),
        indices,
        len(coefficients),
        SelfMaskShare,
        lambda size: stream.ljust(size, b"\0"),
    )
    return {index: int.from_bytes(share.expose()) for index, share in shares.items()}


limbs = st.sampled_from([0, 1, 2**31, 2**32 - 1])
edges = st.lists(limbs, min_size=8, max_size=8).map(
    lambda row: sum(limb << 32 * place for place, limb in enumerate(row))
)
elements = edges | st.integers(0, PRIME - 1) | st.integers(PRIME - 600, PRIME - 1)


@given(
    seeds.map(int.from_bytes) | edges,
    st.lists(elements, max_size=40),
    st.sampled_from([1, 2, 7, 10, 15, 16, 30]),
    st.data(),
)
def test_shares_are_the_values_of_the_polynomial(
    constant: int, rest: list[int], bits: int, data: st.DataObject
) -> None:
    size = len(rest) + 1
    most = min(2**bits, 2**30 - 1)
    index = st.integers(0, most - 1) | st.integers(max(0, most - size), most - 1)
    drawn = data.draw(st.lists(index, max_size=5))
    indices = list(dict.fromkeys([most - 1, *drawn, *range(size)]))
    shares = dealt([constant, *rest], indices)
    assert shares == {i: polynomial([constant, *rest], i + 1) for i in indices}


@pytest.mark.parametrize("most", [1, 2, 3, 7, 31, 1000, 1023, 2**15 - 1, 2**30 - 1])
def test_the_largest_coefficients_and_points_do_not_overflow(most: int) -> None:
    coefficients = [2**256 - 1, *[PRIME - 1] * 70]
    indices = list(dict.fromkeys([most - 1, *range(71)]))
    shares = dealt(coefficients, indices)
    assert shares == {i: polynomial(coefficients, i + 1) for i in indices}


def test_coefficients_come_by_rejection_of_what_is_not_below_p() -> None:
    draws = [PRIME, 2**257 - 1, (127 << 257) + PRIME - 1, 5]  # the 7 top bits are cut off first
    stream = iter(b"".join(draw.to_bytes(SHARE_BYTES) for draw in draws))
    shares = split(
        MaskSeed(bytes(32)),
        [0, 1, 2],
        3,
        MaskKeyShare,
        lambda size: bytes(next(stream) for _ in range(size)),
    )
    assert as_points(shares) == [(x, ((PRIME - 1) * x * x + 5 * x) % PRIME) for x in (1, 2, 3)]


def test_equal_randomness_deals_equal_shares() -> None:
    randomness = bytes(range(256)).__getitem__
    deal = [
        split(MaskSeed(bytes(32)), [3, 1], 2, MaskKeyShare, lambda n: randomness(slice(n)))
        for _ in range(2)
    ]
    assert deal[0] == deal[1]


@pytest.mark.parametrize(
    ("indices", "threshold"),
    [([0, 1, 1], 2), ([-1, 0], 1), ([2**30 - 1], 1), ([0, 1], 3), ([0, 1], 0), ([], 1)],
)
def test_impossible_deals_are_refused(indices: list[int], threshold: int) -> None:
    with pytest.raises(ConfigError):
        split(MaskSeed(bytes(32)), indices, threshold, MaskKeyShare, os.urandom)


@pytest.mark.parametrize("indices", [[], [2, 2], [-1], [2**30 - 1]])
def test_impossible_interpolations_are_refused(indices: list[int]) -> None:
    with pytest.raises(ConfigError):
        Interpolation(indices)


def test_another_number_of_shares_is_the_callers_mistake() -> None:
    with pytest.raises(UsageError):
        Interpolation([0, 1]).at_zero([MaskKeyShare(bytes(SHARE_BYTES))])


@given(st.binary(max_size=40))
def test_a_share_is_33_bytes_below_p(data: bytes) -> None:
    if len(data) == SHARE_BYTES and int.from_bytes(data) < PRIME:
        assert parse_share(data, MaskKeyShare).expose() == data
    else:
        with pytest.raises(MalformedMessage):
            parse_share(data, MaskKeyShare)


@pytest.mark.parametrize("value", [PRIME, PRIME + 1, 2**257, 2**264 - 1])
def test_shares_from_p_upwards_are_refused(value: int) -> None:
    with pytest.raises(MalformedMessage):
        parse_share(value.to_bytes(SHARE_BYTES), SelfMaskShare)


@pytest.mark.parametrize("value", [0, 1, 2**256, PRIME - 1])
def test_zero_and_every_other_field_element_is_a_valid_share(value: int) -> None:
    assert len(parse_share(value.to_bytes(SHARE_BYTES), SelfMaskShare)) == SHARE_BYTES


@pytest.mark.parametrize("value", [2**256, PRIME - 1])
def test_a_value_that_no_dealer_shares_opens_to_none(value: int) -> None:
    share = parse_share(value.to_bytes(SHARE_BYTES), SelfMaskShare)
    assert Interpolation([0]).at_zero([share]) is None


def test_p_is_prime_and_the_first_above_every_seed() -> None:
    def passes(n: int) -> bool:
        """Miller-Rabin, the first twelve primes as bases."""
        odd, twos = n - 1, 0
        while odd % 2 == 0:
            odd, twos = odd // 2, twos + 1
        for base in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37):
            powers = [pow(base, odd << k, n) for k in range(twos)]
            if powers[0] != 1 and n - 1 not in powers:
                return False
        return True

    assert [k for k in range(1, 298, 2) if passes(2**256 + k)] == [297]
