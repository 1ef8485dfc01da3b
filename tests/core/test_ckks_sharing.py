"""Keys shared over 2^31 - 1: who learns what, which dealings pass, and which sums open.

Polynomials are evaluated here by Python's integers, power by power: nothing is shared with the
kernels under test.
"""

import copy
import hashlib
import math
import os
import pickle
import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import pytest
from Crypto.Cipher import AES
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from secagg.canonical import Writer
from secagg.ckks import field
from secagg.ckks.decoding import wrong_places
from secagg.ckks.field import PRIME, Elements, canonical, centred, lagrange, product, uniform
from secagg.ckks.ntt import ring
from secagg.ckks.sharing import (
    CHECKS,
    Dealing,
    Opened,
    Unopenable,
    add_shares,
    challenge,
    check_polynomial,
    encode_check,
    holds,
    open_sums,
    pack_elements,
    parse_check,
    parse_elements,
    split,
)
from secagg.errors import ConfigError, MalformedMessage
from secagg.packing import pack
from secagg.prg import Keystream, stream_key
from secagg.secret import Seed

N, BOUND = 16, 51
Secret = NDArray[np.int32]

elements = st.sampled_from([0, 1, 2, PRIME - 2, PRIME - 1]) | st.integers(0, PRIME - 1)
seeds = st.binary(min_size=32, max_size=32).map(Seed)
secrets = st.lists(st.integers(-BOUND, BOUND), min_size=N, max_size=N).map(
    lambda row: np.array(row, np.int32)
)


@st.composite
def deals(draw: st.DrawFn, most: int = 9) -> tuple[list[int], int]:
    """Holders' indices and a threshold."""
    holders = draw(st.lists(st.integers(0, 300), min_size=1, max_size=most, unique=True))
    return holders, draw(st.integers(1, len(holders)))


def value(coefficients: Sequence[int], x: int) -> int:
    return sum(int(c) * pow(x, power, PRIME) for power, c in enumerate(coefficients)) % PRIME


def through(points: Sequence[tuple[int, int]]) -> list[int]:
    """The coefficients of the polynomial of degree below len(points) through them: Newton's way."""
    found, vanishing = [0] * len(points), [1] + [0] * len(points)
    for x, y in points:
        factor = (y - value(found, x)) * pow(value(vanishing, x), -1, PRIME) % PRIME
        found = [(c + factor * v) % PRIME for c, v in zip(found, vanishing, strict=False)]
        shifted = [0, *vanishing[:-1]]
        vanishing = [(s - x * v) % PRIME for s, v in zip(shifted, vanishing, strict=True)]
    return found


def dealing_of(polynomials: Elements, holders: Sequence[int]) -> Dealing:
    """What a dealer hands out that chose these polynomials, of whatever degree."""
    shares = [[value(f, holder + 1) for f in polynomials.T.tolist()] for holder in holders]
    return Dealing(np.array(shares, np.uint32), polynomials)


def random_elements(*shape: int) -> Elements:
    return canonical(np.frombuffer(os.urandom(8 * math.prod(shape)), np.uint64).reshape(shape))


def key_sums(dealing: Dealing, holders: Sequence[int]) -> dict[int, Elements]:
    return {j: add_shares([share]) for j, share in zip(holders, dealing.shares, strict=True)}


def opened(result: Opened | Unopenable) -> Opened:
    assert isinstance(result, Opened), result
    return result


# ---------------------------------------------------------------------------- sharing


@given(secrets, deals(), seeds, st.data())
def test_any_threshold_shares_in_any_order_open_the_secret(
    secret: Secret, deal: tuple[list[int], int], seed: Seed, data: st.DataObject
) -> None:
    holders, threshold = deal
    sums = key_sums(split(secret, holders, threshold, seed, b"round"), holders)
    chosen = data.draw(st.permutations(holders))[: data.draw(st.integers(threshold, len(holders)))]
    result = opened(open_sums({j: sums[j] for j in chosen}, threshold, BOUND))
    assert result.secret.tolist() == secret.tolist()
    assert result.wrong == ()


@given(secrets, deals(), seeds)
def test_shares_are_the_values_of_the_dealers_polynomials(
    secret: Secret, deal: tuple[list[int], int], seed: Seed
) -> None:
    holders, threshold = deal
    dealing = split(secret, holders, threshold, seed, b"round")
    assert dealing.polynomials.shape == (threshold, N + CHECKS)
    assert centred(dealing.polynomials[0, :N]).tolist() == secret.tolist()
    expected = dealing_of(dealing.polynomials, holders)
    assert dealing.shares.tolist() == expected.shares.tolist()


@given(secrets, secrets, deals(), seeds)
def test_one_share_less_is_consistent_with_every_other_secret_in_exactly_one_way(
    secret: Secret, other: Secret, deal: tuple[list[int], int], seed: Seed
) -> None:
    """The t - 1 shares and the candidate are t values: one polynomial of degree t - 1 has them.

    Dealings of a secret are uniform over its polynomials, so the candidates are equally likely.
    """
    holders, threshold = deal
    known = split(secret, holders, threshold, seed, b"round").shares[: threshold - 1]
    candidates = [
        through(
            [(0, int(first)), *((j + 1, int(y)) for j, y in zip(holders, column, strict=False))]
        )
        for first, column in zip(canonical(other), known.T, strict=False)
    ]
    again = dealing_of(np.array(candidates, np.uint32).T, holders)
    assert np.array_equal(again.shares[: threshold - 1], known[:, :N])
    sums = dict(zip(holders, again.shares, strict=True))
    assert opened(open_sums(sums, threshold, BOUND)).secret.tolist() == other.tolist()


def test_a_single_share_of_zero_is_spread_over_the_whole_field() -> None:
    zeros = np.zeros(1 << 16, np.int32)
    share = split(zeros, [0, 1], 2, Seed(bytes(32)), b"").shares[0, : len(zeros)]
    counts = np.bincount(share >> 27, minlength=16)
    assert abs(counts - 4096).max() < 620  # 10 standard deviations
    assert len(np.unique(share)) > 65_000  # 65,535 are expected


def test_equal_seeds_deal_equal_shares_and_any_other_argument_different_ones() -> None:
    secret = np.arange(N, dtype=np.int32)
    first = split(secret, [0, 1, 2], 2, Seed(bytes(32)), b"a").shares
    assert np.array_equal(first, split(secret, [0, 1, 2], 2, Seed(bytes(32)), b"a").shares)
    assert not (first == split(secret, [0, 1, 2], 2, Seed(bytes(32)), b"b").shares).any()
    assert not (first == split(secret, [0, 1, 2], 2, Seed(b"\1" * 32), b"a").shares).any()
    assert not (first == split(secret, [0, 1, 2], 3, Seed(bytes(32)), b"a").shares).any()
    assert not (first[:2] == split(secret, [0, 1], 2, Seed(bytes(32)), b"a").shares).any()


@given(st.lists(secrets, min_size=1, max_size=5), deals(), seeds)
def test_sums_of_many_dealers_shares_open_to_the_sum_of_their_secrets(
    chosen: list[Secret], deal: tuple[list[int], int], seed: Seed
) -> None:
    holders, threshold = deal
    dealings = [
        split(secret, holders, threshold, seed, bytes([dealer]))
        for dealer, secret in enumerate(chosen)
    ]
    sums = {
        j: add_shares([dealing.shares[place] for dealing in dealings])
        for place, j in enumerate(holders)
    }
    result = opened(open_sums(sums, threshold, BOUND * len(chosen)))
    assert result.secret.tolist() == sum(chosen).tolist()  # type: ignore[union-attr]


def test_thousands_of_the_largest_elements_add_up() -> None:
    share = np.full(N + CHECKS, PRIME - 1, np.uint32)
    assert add_shares([share] * 5000).tolist() == [PRIME - 5000] * N


@pytest.mark.parametrize(
    ("holders", "threshold"),
    [([0, 1, 1], 2), ([-1, 0], 1), ([2**30 - 1], 1), ([0, 1], 3), ([0, 1], 0), ([], 1)],
)
def test_impossible_deals_are_refused(holders: list[int], threshold: int) -> None:
    with pytest.raises(ConfigError):
        split(np.zeros(N, np.int32), holders, threshold, Seed(bytes(32)), b"")


def test_a_dealing_shows_nothing_of_itself() -> None:
    assert repr(split(np.zeros(N, np.int32), [0], 1, Seed(bytes(32)), b"")) == "Dealing()"


# ---------------------------------------------------------------------------- degree check


@given(secrets, deals(), seeds)
def test_every_holder_of_an_honest_dealing_accepts(
    secret: Secret, deal: tuple[list[int], int], seed: Seed
) -> None:
    holders, threshold = deal
    dealing = split(secret, holders, threshold, seed, b"round")
    rho = challenge(b"round", 3, [bytes(32)] * len(holders), N)
    check = parse_check(encode_check(check_polynomial(dealing, rho)), threshold)
    assert all(
        holds(share, j, rho, check) for j, share in zip(holders, dealing.shares, strict=True)
    )


@given(secrets, deals(), seeds, st.integers(0, N + CHECKS - 1), st.integers(1, PRIME - 1))
def test_a_share_with_one_changed_element_is_refused(
    secret: Secret, deal: tuple[list[int], int], seed: Seed, place: int, change: int
) -> None:
    holders, threshold = deal
    dealing = split(secret, holders, threshold, seed, b"round")
    rho = challenge(b"round", 3, [bytes(32)] * len(holders), N)
    share = dealing.shares[0].copy()
    share[place] = (int(share[place]) + change) % PRIME
    assert not holds(share, holders[0], rho, check_polynomial(dealing, rho))


def test_a_share_held_under_another_index_is_refused() -> None:
    dealing = split(np.zeros(N, np.int32), range(4), 3, Seed(os.urandom(32)), b"")
    rho = challenge(b"", 0, [bytes(32)], N)
    assert not holds(dealing.shares[1], 2, rho, check_polynomial(dealing, rho))


@given(deals(), st.integers(0, N - 1), st.integers(1, 3), st.data())
def test_a_dealing_of_higher_degree_is_refused_by_all_but_fewer_than_its_length(
    deal: tuple[list[int], int], place: int, more: int, data: st.DataObject
) -> None:
    """Whatever t coefficients are published, no more than t - 1 + `more` points fit by chance.

    Here the dealer publishes what serves as many holders as it can: the polynomial through the
    combined values of t of them.
    """
    holders, threshold = deal
    polynomials = random_elements(threshold + more, N + CHECKS)
    polynomials[threshold:] = 0
    polynomials[-1, place] = data.draw(st.integers(1, PRIME - 1))
    dealing = dealing_of(polynomials, holders)
    rho = challenge(b"round", 0, [bytes(32)], N)
    combined = check_polynomial(dealing, rho)
    served = holders[:threshold]
    check = np.array(
        [
            through([(j + 1, value(column, j + 1)) for j in served])
            for column in combined.T.tolist()
        ],
        np.uint32,
    ).T
    pairs = list(zip(holders, dealing.shares, strict=True))
    accepting = [j for j, share in pairs if holds(share, j, rho, check)]
    assert set(served) <= set(accepting)
    assert len(accepting) <= threshold - 1 + more
    truncated = combined[:threshold]
    assert not any(holds(share, j, rho, truncated) for j, share in pairs)


@given(secrets, secrets, deals(), seeds)
def test_the_degree_check_and_one_share_less_fit_every_other_secret_in_exactly_one_way(
    secret: Secret, other: Secret, deal: tuple[list[int], int], seed: Seed
) -> None:
    """What is published says nothing either: the blinding makes up for any other polynomials.

    For the candidate's polynomials f', the blinding U - sum rho f' is the only one that gives U,
    and it takes the values that the t - 1 holders have.
    """
    holders, threshold = deal
    dealing = split(secret, holders, threshold, seed, b"round")
    rho = challenge(b"round", 0, [bytes(32)] * len(holders), N)
    check = check_polynomial(dealing, rho)
    known = dealing.shares[: threshold - 1]
    candidate = np.zeros_like(dealing.polynomials)
    for k in range(N):
        seen = [(j + 1, int(y)) for j, y in zip(holders, known[:, k], strict=False)]
        candidate[:, k] = through([(0, int(other[k]) % PRIME), *seen])
    for r in range(CHECKS):
        for m in range(threshold):
            rest = sum(int(a) * int(b) for a, b in zip(rho[r], candidate[m, :N], strict=True))
            candidate[m, N + r] = (int(check[m, r]) - rest) % PRIME
    again = dealing_of(candidate, holders)
    assert np.array_equal(check_polynomial(again, rho), check)
    assert np.array_equal(again.shares[: threshold - 1], known)


def test_the_published_polynomial_of_a_known_secret_is_spread_over_the_whole_field() -> None:
    rho = challenge(b"", 0, [], N)
    values = [
        check_polynomial(split(np.zeros(N, np.int32), [0], 1, Seed(os.urandom(32)), b""), rho)
        for _ in range(1000)
    ]
    counts = np.bincount(np.concatenate(values).ravel() >> 29, minlength=4)
    assert abs(counts - 1000).max() < 280  # 10 standard deviations


def test_the_challenge_follows_from_all_that_it_binds() -> None:
    commitments = [bytes([j]) * 32 for j in range(3)]
    first = challenge(b"context", 1, commitments, N)
    assert first.shape == (CHECKS, N)
    assert first.max() < PRIME
    for other in (
        challenge(b"other", 1, commitments, N),
        challenge(b"context", 2, commitments, N),
        challenge(b"context", 1, commitments[::-1], N),
        challenge(b"context", 1, commitments[:2], N),
    ):
        assert not (first == other).any()


def test_the_challenge_is_what_its_description_says() -> None:
    commitments = [bytes([j]) * 32 for j in range(3)]
    writer = Writer().tag("secagg/ckks-sharing").tag("degree check").blob(b"context").u32(7).u32(3)
    for commitment in commitments:
        writer.blob(commitment)
    info = Writer().tag("secagg/ckks-sharing").blob(b"").tag("degree check").u32(0).finish()
    key = HKDF(SHA256(), 32, None, info).derive(hashlib.sha256(writer.finish()).digest())
    cipher = AES.new(key, AES.MODE_CTR, nonce=bytes(12), initial_value=2)
    words = np.frombuffer(cipher.encrypt(bytes(16 * N)), "<u4") & PRIME
    assert challenge(b"context", 7, commitments, N).ravel().tolist() == words.tolist()


# ---------------------------------------------------------------------------- opening


@st.composite
def openings(draw: st.DrawFn) -> tuple[list[int], int, list[int]]:
    """r = t + 2e holders (or one more), the threshold, and at most e wrong ones."""
    threshold, most = draw(st.integers(1, 7)), draw(st.integers(1, 4))
    count = threshold + 2 * most + draw(st.integers(0, 1))
    holders = draw(st.lists(st.integers(0, 300), min_size=count, max_size=count, unique=True))
    return holders, threshold, holders[: draw(st.integers(1, most))]


@given(secrets, openings(), seeds, st.data())
def test_as_many_wrong_sums_as_can_be_told_are_left_out_and_no_honest_one(
    secret: Secret, opening: tuple[list[int], int, list[int]], seed: Seed, data: st.DataObject
) -> None:
    holders, threshold, liars = opening
    sums = key_sums(split(secret, holders, threshold, seed, b"round"), holders)
    for liar in liars:
        places = data.draw(st.lists(st.integers(0, N - 1), min_size=1, max_size=3, unique=True))
        change = data.draw(st.integers(1, PRIME - 1))
        sums[liar][places] = (sums[liar][places].astype(np.int64) + change) % PRIME
    result = opened(open_sums(sums, threshold, BOUND))
    assert result.secret.tolist() == secret.tolist()
    assert result.wrong == tuple(sorted(liars))


@given(secrets, openings(), seeds)
def test_liars_who_agree_on_another_secret_are_found_all_the_same(
    secret: Secret, opening: tuple[list[int], int, list[int]], seed: Seed
) -> None:
    holders, threshold, liars = opening
    sums = key_sums(split(secret, holders, threshold, seed, b"round"), holders)
    lie = key_sums(split(secret + 1, holders, threshold, seed, b"lie"), holders)
    result = opened(open_sums(sums | {j: lie[j] for j in liars}, threshold, BOUND))
    assert result.secret.tolist() == secret.tolist()
    assert result.wrong == tuple(sorted(liars))


@given(secrets, openings(), seeds)
def test_one_wrong_sum_too_many_is_noticed(
    secret: Secret, opening: tuple[list[int], int, list[int]], seed: Seed
) -> None:
    holders, threshold, _ = opening
    sums = key_sums(split(secret, holders, threshold, seed, b"round"), holders)
    for liar in holders[: (len(holders) - threshold) // 2 + 1]:
        sums[liar] = random_elements(N)
    assert open_sums(sums, threshold, BOUND) is Unopenable.INCONSISTENT


@given(secrets, st.integers(1, 8), seeds, st.integers(1, PRIME - 1))
def test_one_more_than_the_threshold_notices_a_wrong_sum(
    secret: Secret, threshold: int, seed: Seed, change: int
) -> None:
    holders = range(threshold + 1)
    sums = key_sums(split(secret, holders, threshold, seed, b"round"), holders)
    sums[0][N - 1] = (int(sums[0][N - 1]) + change) % PRIME
    assert open_sums(sums, threshold, BOUND) is Unopenable.INCONSISTENT


def test_a_wrong_sum_among_exactly_the_threshold_is_noticed_by_its_size_alone() -> None:
    secret = np.zeros(N, np.int32)
    sums = key_sums(split(secret, range(3), 3, Seed(os.urandom(32)), b""), range(3))
    sums[0] = random_elements(N)
    assert open_sums(sums, 3, BOUND) is Unopenable.OUT_OF_BOUND


@pytest.mark.parametrize("value", [-BOUND, BOUND])
def test_the_bound_itself_is_within_it_and_one_more_is_not(value: int) -> None:
    secret = np.full(N, value, np.int32)
    sums = key_sums(split(secret, range(4), 3, Seed(os.urandom(32)), b""), range(4))
    assert opened(open_sums(sums, 3, BOUND)).secret.tolist() == secret.tolist()
    assert open_sums(sums, 3, BOUND - 1) is Unopenable.OUT_OF_BOUND


@given(deals(), seeds)
def test_fewer_sums_than_the_threshold_open_nothing(
    deal: tuple[list[int], int], seed: Seed
) -> None:
    holders, threshold = deal
    sums = key_sums(split(np.zeros(N, np.int32), holders, threshold, seed, b""), holders)
    some = {j: sums[j] for j in holders[: threshold - 1]}
    assert open_sums(some, threshold, BOUND) is Unopenable.TOO_FEW


def test_impossible_openings_are_refused() -> None:
    with pytest.raises(ConfigError):
        open_sums({-1: np.zeros(N, np.uint32)}, 1, BOUND)
    with pytest.raises(ConfigError):
        open_sums({0: np.zeros(N, np.uint32)}, 0, BOUND)


def test_the_largest_committee_opens_with_ten_wrong_sums() -> None:
    size, threshold, degree = 64, 43, 64
    secret = np.arange(-32, 32, dtype=np.int32)
    dealing = split(secret, range(size), threshold, Seed(os.urandom(32)), b"")
    sums = key_sums(dealing, range(size))
    liars = tuple(range(3, 63, 6))
    for liar in liars:
        sums[liar] = random_elements(degree)
    result = opened(open_sums(sums, threshold, BOUND))
    assert result.wrong == liars
    assert result.secret.tolist() == secret.tolist()


@given(st.lists(elements, min_size=1, max_size=5), st.integers(0, 3), st.data())
def test_decoding_finds_the_nearest_polynomial_or_none(
    coefficients: list[int], most: int, data: st.DataObject
) -> None:
    points = list(range(1, len(coefficients) + 2 * most + 1))
    values = [value(coefficients, x) for x in points]
    wrong = data.draw(st.sets(st.sampled_from(range(len(points))), max_size=most + 1))
    for place in wrong:
        values[place] = (values[place] + data.draw(st.integers(1, PRIME - 1))) % PRIME
    found = wrong_places(points, values, len(coefficients))
    if len(wrong) <= most:
        assert found == wrong
    else:
        assert found is None or (found != wrong and len(found) <= most)


@given(st.integers(1, 6), st.integers(0, 6), st.integers(1, 4))
def test_values_of_a_polynomial_of_higher_degree_are_near_no_other(
    threshold: int, more: int, excess: int
) -> None:
    points = range(1, threshold + more + 1)
    values = [pow(x, threshold + excess - 1, PRIME) for x in points]
    found = wrong_places(points, values, threshold)
    assert (found is None) == (more > 0)


# ---------------------------------------------------------------------------- bytes


@given(st.lists(elements, min_size=1, max_size=100))
def test_packed_elements_come_back_at_31_bits_each(row: list[int]) -> None:
    data = pack_elements(np.array(row, np.uint32))
    assert data == pack(np.array(row, np.uint32), 31)
    number = sum(element << 31 * place for place, element in enumerate(row))
    assert data == number.to_bytes((31 * len(row) + 7) // 8, "little")
    assert parse_elements(data, len(row)).tolist() == row


@given(st.lists(elements, min_size=1, max_size=100), st.data())
def test_an_element_that_is_p_is_refused(row: list[int], data: st.DataObject) -> None:
    row[data.draw(st.integers(0, len(row) - 1))] = PRIME
    with pytest.raises(MalformedMessage):
        parse_elements(pack(np.array(row, np.uint32), 31), len(row))


@pytest.mark.parametrize("count", [1, 18, 31, 33, 34])
def test_stray_bits_behind_the_last_element_are_refused(count: int) -> None:
    data = pack_elements(np.ones(count, np.uint32))
    assert parse_elements(data, count).tolist() == [1] * count
    for bit in range(31 * count % 8, 8):
        with pytest.raises(MalformedMessage):
            parse_elements(data[:-1] + bytes([data[-1] | 1 << bit]), count)


@given(st.binary(max_size=80), st.integers(1, 20))
def test_bytes_that_are_no_share_are_refused_by_one_error(data: bytes, count: int) -> None:
    try:
        assert pack_elements(parse_elements(data, count)) == data
    except MalformedMessage:
        number = int.from_bytes(data, "little")
        whole = all(number >> 31 * place & PRIME != PRIME for place in range(count))
        assert len(data) != (31 * count + 7) // 8 or number >> 31 * count or not whole


@given(st.binary(max_size=80) | st.binary(min_size=32, max_size=32), st.integers(1, 4))
def test_bytes_that_are_no_degree_check_are_refused_by_one_error(data: bytes, count: int) -> None:
    try:
        assert encode_check(parse_check(data, count)) == data
    except MalformedMessage:
        words = [int.from_bytes(data[k : k + 4], "little") for k in range(0, len(data), 4)]
        assert len(data) != 16 * count or max(words) >= PRIME


@pytest.mark.parametrize("element", [PRIME, PRIME + 1, 2**32 - 1])
def test_a_degree_check_with_an_element_from_p_upwards_is_refused(element: int) -> None:
    data = encode_check(np.full((2, CHECKS), PRIME - 1, np.uint32))
    assert (parse_check(data, 2) == PRIME - 1).all()
    with pytest.raises(MalformedMessage):
        parse_check(data[:-4] + element.to_bytes(4, "little"), 2)


# ---------------------------------------------------------------------------- the field


@settings(max_examples=30)
@given(st.integers(0, 9), st.sampled_from([1, 7, 1023, 1024, 1025, 2049]), st.integers(1, 3), seeds)
def test_products_are_those_of_pythons_integers(
    inner: int, width: int, count: int, seed: Seed
) -> None:
    matrix, rows = np.empty((count, inner), np.uint32), np.empty((inner, width), np.uint32)
    stream = Keystream(stream_key(seed, label="test", context=b"", purpose="rows", vector=0))
    uniform(stream, matrix.reshape(-1))
    uniform(stream, rows.reshape(-1))
    expected = matrix.astype(object) @ rows.astype(object) % PRIME if inner else 0
    assert (product(matrix, rows) == expected).all()


def test_a_word_that_is_p_is_passed_over_and_made_up_for_from_the_next_chunk() -> None:
    """One word in 2^31 is: this seed, found by search, has one at place 21,029 of chunk 0."""
    place, seed = 21_029, Seed((14_849).to_bytes(32))
    key = stream_key(seed, label="rejection", context=b"", purpose="test", vector=0)
    cipher = AES.new(key.expose(), AES.MODE_CTR, nonce=bytes(12), initial_value=2)
    words = np.frombuffer(cipher.encrypt(bytes(4 * place + 40)), "<u4") & PRIME
    assert words[place] == PRIME
    out = np.empty(place + 10, np.uint32)
    uniform(Keystream(key), out)
    cipher = AES.new(key.expose(), AES.MODE_CTR, nonce=(1).to_bytes(12), initial_value=2)
    last = int.from_bytes(cipher.encrypt(bytes(4)), "little") & PRIME
    assert out.tolist() == [*words[:place].tolist(), *words[place + 1 :].tolist(), last]


@pytest.mark.parametrize("inner", range(1, 14))
def test_the_largest_elements_do_not_overflow(inner: int) -> None:
    ones = np.full((3, inner), PRIME - 1, np.uint32)
    assert (product(ones, ones.T[:, :2]) == inner).all()
    long = np.full((2, 8192), PRIME - 1, np.uint32)
    assert (field.inner_products(long, long[:1]) == 8192).all()


@given(st.lists(elements, max_size=8))
def test_a_product_that_is_a_multiple_of_p_is_zero(row: list[int]) -> None:
    whole = np.array([[*row, -sum(row) % PRIME]], np.uint32)
    ones = np.ones((whole.shape[1], 3), np.uint32)
    assert product(whole, ones).tolist() == [[0, 0, 0]]
    assert field.inner_products(whole, ones.T[:1].copy()).tolist() == [[0]]


@given(st.lists(elements, min_size=1, max_size=6), st.data())
def test_lagranges_weights_carry_values_anywhere(
    coefficients: list[int], data: st.DataObject
) -> None:
    draw = st.lists(elements, min_size=len(coefficients), max_size=9, unique=True)
    points, targets = data.draw(draw), data.draw(st.lists(elements, max_size=4))
    weights = lagrange(points, targets).astype(object)
    values = np.array([value(coefficients, x) for x in points], object)
    assert (weights @ values % PRIME).tolist() == [value(coefficients, x) for x in targets]


def test_centred_elements_are_those_nearest_to_zero() -> None:
    row = np.array([0, 1, PRIME // 2, PRIME // 2 + 1, PRIME - 1], np.uint32)
    assert centred(row).tolist() == [0, 1, PRIME // 2, -(PRIME // 2), -1]
    assert canonical(centred(row)).tolist() == row.tolist()


_IN_PYTHON = """
import hashlib
import numpy as np
from secagg.ckks import sharing
from secagg.secret import Seed

secret = np.arange(-8, 8, dtype=np.int32)
dealing = sharing.split(secret, range(8), 5, Seed(bytes(32)), b"")
rho = sharing.challenge(b"", 0, [], 16)
check = sharing.check_polynomial(dealing, rho)
assert sharing.holds(dealing.shares[3], 3, rho, check)
sums = {j: sharing.add_shares([share]) for j, share in enumerate(dealing.shares)}
sums = {j: sharing.parse_elements(sharing.pack_elements(row), 16) for j, row in sums.items()}
sums[2][0] ^= 1
opened = sharing.open_sums(sums, 5, 8)
assert opened.wrong == (2,) and (opened.secret == secret).all()
print(hashlib.sha256(dealing.shares.tobytes() + check.tobytes()).hexdigest())
"""


def test_kernels_that_are_not_compiled_compute_the_same_without_warnings() -> None:
    printed = {
        subprocess.run(
            [sys.executable, "-W", "error", "-c", _IN_PYTHON],
            env=os.environ | {"NUMBA_DISABLE_JIT": disable},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for disable in "01"
    }
    assert len(printed) == 1


def test_a_dealing_and_a_prepared_key_cannot_be_pickled_or_copied() -> None:
    dealing = Dealing(np.zeros((1, 12), np.uint32), np.zeros((1, 12), np.uint32))
    prime = 12289  # 1 mod 16
    key = ring(8, (prime,)).factor(np.ones((1, 8), np.uint32))
    for secret in (dealing, key):
        for leave in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="copied or pickled"):
                leave(secret)
