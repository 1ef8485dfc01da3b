"""The public polynomials are what their format says, by another implementation of it."""

from __future__ import annotations

import hashlib
import hmac
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

pytest.importorskip("numba")

from secagg.canonical import Writer
from secagg.ckks.ntt import Residues
from secagg.ckks.parameters import Parameters
from secagg.ckks.public import PublicPolynomials

CONTEXT = bytes(range(32))
SIZES = (30, 29, 22, 18)


def expanded(context: bytes, number: int, degree: int, primes: tuple[int, ...]) -> Residues:
    out = np.empty((len(primes), degree), np.uint32)
    PublicPolynomials(context, degree, primes).expand(number, out)
    return out


def independent(
    context: bytes, number: int, degree: int, primes: tuple[int, ...]
) -> list[list[int]]:
    """The format as it is described: RFC 5869 by hmac, CTR by another library, word by word."""
    aes = pytest.importorskip("Crypto.Cipher.AES")
    pseudorandom = hmac.new(bytes(32), context, hashlib.sha256).digest()
    info = Writer().tag("secagg/1 ckks").tag("public_polynomials").finish()
    key = hmac.new(pseudorandom, info + b"\x01", hashlib.sha256).digest()
    start = (number << 32) + 2
    cipher = aes.new(key, aes.MODE_CTR, nonce=b"", initial_value=start.to_bytes(16))
    planes: list[list[int]] = []
    for prime in primes:
        found: list[int] = []
        while len(found) < degree:
            word = int.from_bytes(cipher.encrypt(bytes(4)), "little")
            if (value := word % (1 << prime.bit_length())) < prime:
                found.append(value)
        planes.append(found)
    return planes


@pytest.mark.parametrize("number", [0, 1, 2**32 - 1])
def test_every_plane_is_what_the_format_says(number: int) -> None:
    primes = Parameters(2048, SIZES).primes
    wanted = independent(CONTEXT, number, 2048, primes)
    assert expanded(CONTEXT, number, 2048, primes).tolist() == wanted


@pytest.mark.parametrize("degree", [8, 63, 64, 65, 1000])
@pytest.mark.parametrize("primes", [(17, 257), ((1 << 29) + 11,), (1009, 17, 1021, (1 << 30) - 35)])
def test_half_of_the_words_may_be_dropped_and_a_second_draw_goes_on(
    primes: tuple[int, ...], degree: int
) -> None:
    ours = PublicPolynomials(CONTEXT, degree, primes)
    wanted = independent(CONTEXT, 7, degree, primes)
    for first_draw in ours._draw, 1, 100, degree:
        ours._draw = first_draw
        ours._spare.clear()
        for _ in range(2):  # the second time with the room that was enough
            out = np.empty((len(primes), degree), np.uint32)
            ours.expand(7, out)
            assert out.tolist() == wanted


@pytest.mark.parametrize("plane", range(len(SIZES)))
def test_residues_are_below_the_prime_and_spread_evenly(plane: int) -> None:
    primes = Parameters(8192, SIZES).primes
    ours = PublicPolynomials(CONTEXT, 8192, primes)
    drawn = []
    for number in range(16):
        out = np.empty((len(primes), 8192), np.uint32)
        ours.expand(number, out)
        drawn.append(out[plane].astype(np.uint64))
    values = np.concatenate(drawn)
    assert int(values.max()) < primes[plane]
    counts = np.bincount((values * np.uint64(256) // np.uint64(primes[plane])).astype(int))
    expected = len(values) / 256
    chi_square = float(((counts - expected) ** 2 / expected).sum())
    assert 255 - 6 * 22.6 < chi_square < 255 + 6 * 22.6  # 255 degrees of freedom, 6 deviations


def test_contexts_numbers_and_planes_have_nothing_in_common() -> None:
    prime = Parameters(2048, (30,)).primes[0]
    planes = [
        plane
        for context in (CONTEXT, bytes(32))
        for number in (0, 1, 256)
        for plane in expanded(context, number, 2048, (prime, prime))
    ]
    for i, one in enumerate(planes):
        for other in planes[:i]:
            assert np.count_nonzero(one == other) < 4


def test_threads_may_share_the_polynomials_of_a_round() -> None:
    primes = Parameters(2048, SIZES).primes
    ours = PublicPolynomials(CONTEXT, 2048, primes)
    outs = np.empty((32, len(primes), 2048), np.uint32)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ours.expand, range(32), outs))
    for number, out in enumerate(outs):
        assert np.array_equal(out, expanded(CONTEXT, number, 2048, primes))
