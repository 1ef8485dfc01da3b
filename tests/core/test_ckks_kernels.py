"""The compiled loops of scheme `ckks` on small rings, against integers without a line of theirs.

`make coverage` runs this file a second time as ordinary Python (NUMBA_DISABLE_JIT=1): coverage
does not see what numba has compiled. So everything here is small, and every branch of a kernel is
taken. What rings of a plan's size do is in test_ckks_ntt.py, test_ckks_residues.py and others.
"""

import math
from itertools import product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from secagg.ckks import field, ntt, residues
from secagg.ckks.public import PublicPolynomials
from secagg.ckks.slots import DitherStream, slot_encoder
from secagg.errors import MalformedMessage
from secagg.prg import Keystream
from secagg.secret import Seed
from tests.core import independent
from tests.core import independent_ckks as other

PRIMES = (12289, 7681)
"""1 modulo 512; the first one is 1 modulo 4096."""
WIRE = residues.wire(16, (769, 193), (10, 8))


def numbers(seed: int, low: int, high: int, *shape: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(low, high, shape)


def random_planes(seed: int, degree: int, primes: tuple[int, ...]) -> NDArray[np.uint32]:
    return np.stack([numbers(seed + q, 0, q, degree).astype(np.uint32) for q in primes])


# ---------------------------------------------------------------------------- the transform


@pytest.mark.parametrize("degree", [8, 16, 32, 64, 128, 256, 512, 1024])
def test_a_transform_has_the_values_at_all_roots_and_back(degree: int) -> None:
    """Every way through the stages: each number of them from three to ten."""
    primes = PRIMES if degree <= 256 else PRIMES[:1]
    ring = ntt.ring(degree, primes)
    planes = random_planes(degree, degree, primes)
    values = planes.copy()
    ring.forward(values)
    assert values.tolist() == [
        other.ntt(plane.tolist(), prime) for plane, prime in zip(planes, primes, strict=True)
    ]
    ring.inverse(values)
    assert (values == planes).all()


@pytest.mark.parametrize("negative", [False, True])
def test_a_product_is_added_modulo_every_prime(negative: bool) -> None:
    ring = ntt.ring(16, PRIMES)
    total, a, b = (random_planes(seed, 16, PRIMES) for seed in (1, 2, 3))
    b[:, 3] = 0
    expected = [
        [(int(x) + (-1 if negative else 1) * int(y) * int(z)) % q for x, y, z in zip(*rows)]  # noqa: B905
        for q, *rows in zip(PRIMES, total, a, b, strict=True)
    ]
    ring.multiply_add(total, a, (ring.negative_factor if negative else ring.factor)(b))
    assert total.tolist() == expected


# ---------------------------------------------------------------------------- the wire


def test_leaves_add_up_modulo_every_prime_and_are_taken_out_again() -> None:
    moduli = np.array([[769], [193]], np.uint32)
    first, second = (random_planes(seed, 16, (769, 193)) for seed in (4, 5))
    total = first.copy()
    leaf = WIRE.pack(second)
    assert leaf == other.pack_planes(second.tolist(), (10, 8))
    WIRE.add(total, leaf)
    assert (total == (first + second) % moduli).all()
    WIRE.subtract(total, leaf)
    assert (total == first).all()


@pytest.mark.parametrize(("plane", "place"), [*product((0, 1), (0, 7, 8, 15))])
def test_a_residue_that_is_its_prime_is_refused_wherever_it_stands(plane: int, place: int) -> None:
    """C44."""
    total, one = np.zeros((2, 16), np.uint32), random_planes(6, 16, (769, 193))
    one[plane, place] = (769, 193)[plane]
    with pytest.raises(MalformedMessage, match=f"residue {place} of plane {plane} "):
        WIRE.add(total, WIRE.pack(one))
    assert not total.any()


# ---------------------------------------------------------------------------- digits


@pytest.mark.parametrize("most", [1 << 9, 1 << 31])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_digits_are_encoded_as_one_integer(most: int, count: int) -> None:
    """The quick way for small values, and the one for all that 32 bits hold."""
    primes = (1073692673, 1073643521, 1073479681)
    values = numbers(count, -most, most, count, 24).astype(np.int32)
    error = numbers(7, -51, 52, 24).astype(np.int8)
    out = np.empty((3, 24), np.uint32)
    residues.digits(primes, 20, count, 9).encode(values, error, out)
    for column in range(24):
        number = int(error[column])
        number += sum(int(v) << 9 + 20 * k for k, v in enumerate(values[:, column]))
        assert [int(x) % q for x, q in zip(out[:, column], primes, strict=True)] == [
            number % q for q in primes
        ]


@pytest.mark.parametrize("primes", [(1073692673, 1073643521, 1073479681), (193, 769, 12289, 7681)])
def test_digits_are_read_from_any_residues(primes: tuple[int, ...]) -> None:
    """Those of honest sums and any others; what is above the digits is counted."""
    bits, count, margin = (25, 3, 9) if len(primes) == 3 else (14, 2, 7)
    found = residues.digits(primes, bits, count, margin)
    planes = random_planes(8, 20, primes)
    planes[:, :4] = numbers(9, 0, 190, 4).astype(np.uint32)  # small integers: nothing above
    decoded = found.decode(planes)
    below, overflows = other.bias(count, bits, margin), 0
    for column in range(20):
        rest = other.together(planes[:, column].tolist(), primes, below)
        error = other.centred(rest, margin)
        assert decoded.noise[column] == error
        rest = rest - error >> margin
        for k in range(count):
            value = other.centred(rest, bits)
            assert decoded.values[k, column] == value
            rest = rest - value >> bits
        overflows += rest != 0
    assert decoded.overflows == overflows > 0


# ---------------------------------------------------------------------------- what is expanded


@pytest.mark.parametrize("degree", [8, 64, 200])
@pytest.mark.parametrize("primes", [(257, 12289), (1073692673, 17)])
def test_a_public_polynomial_is_what_is_left_of_the_keystream(
    degree: int, primes: tuple[int, ...]
) -> None:
    """Runs without a dropped word, with some, and with half of them; and a second draw."""
    out = np.empty((2, degree), np.uint32)
    public = PublicPolynomials(bytes(32), degree, primes)
    public._draw = degree  # too few for two planes
    public.expand(5, out)
    assert out.tolist() == other.public_polynomial(bytes(32), 5, degree, primes)


def test_slots_are_reduced_modulo_every_prime() -> None:
    primes, half = PRIMES, 8
    error = np.arange(-8, 8)
    out = np.empty((2, 16), np.uint32)
    ring = ntt.ring(16, primes)
    slot_encoder(16, primes).encode(np.full(half, 3.0), 1.0, error, out)
    ring.inverse(out)
    constant = np.array([3] + [0] * 15) + error
    assert out.tolist() == [(constant % q).tolist() for q in primes]


def test_dithers_are_box_and_mullers_of_the_keystream() -> None:
    seed, out = bytes(range(32)), np.empty(64)
    DitherStream(Seed(seed), context=b"round", degree=64).write(3, out)
    key = independent.stream_key(seed, "secagg/ckks-dither", b"round", "dither", 0)
    words = [word >> 11 for word in independent.words(independent.keystream(key, 3, 512), 8)]
    for place in range(0, 64, 2):
        radius = 2 * math.sqrt(-2 * math.log((words[place] + 1) / 2**53))
        turn = 2 * math.pi * words[place + 1] / 2**53
        assert out[place] == pytest.approx(radius * math.cos(turn), abs=1e-12)
        assert out[place + 1] == pytest.approx(radius * math.sin(turn), abs=1e-12)


# ---------------------------------------------------------------------------- the field


class Chosen(Keystream):
    """Chunks of words that a test has chosen."""

    def __init__(self, *chunks: list[int]) -> None:
        self.chunks = chunks

    def fill(self, chunk: int, out: NDArray[np.unsignedinteger[Any]]) -> None:
        out[:] = self.chunks[chunk][: len(out)]


def test_a_word_whose_low_bits_are_the_prime_is_no_element() -> None:
    """It is passed over, and what is missing comes from the next chunk."""
    out, top = np.empty(4, np.uint32), 1 << 31
    field.uniform(Chosen([7, field.PRIME, top | 8, top | field.PRIME], [9, top, 11, 12]), out)
    assert out.tolist() == [7, 8, 9, 0]


@pytest.mark.parametrize("rows", [1, 3, 4, 5, 9])
@pytest.mark.parametrize("width", [1, 31, 1025])
def test_products_in_the_field_are_those_of_integers(rows: int, width: int) -> None:
    matrix, values = numbers(10, 0, field.PRIME, 2, rows), numbers(11, 0, field.PRIME, rows, width)
    matrix[0, :] = values[:, 0] = field.PRIME - 1
    found = field.product(matrix.astype(np.uint32), values.astype(np.uint32))
    for target in range(2):
        for place in {0, width // 2, width - 1}:
            total = sum(int(a) * int(b) for a, b in zip(matrix[target], values[:, place]))  # noqa: B905
            assert int(found[target, place]) == total % field.PRIME


def test_inner_products_in_the_field_are_those_of_integers() -> None:
    rows, weights = numbers(12, 0, field.PRIME, 3, 40), numbers(13, 0, field.PRIME, 2, 36)
    found = field.inner_products(rows.astype(np.uint32), weights.astype(np.uint32))
    assert found.tolist() == [
        [sum(int(a) * int(b) for a, b in zip(row, one)) % field.PRIME for one in weights]  # noqa: B905
        for row in rows
    ]


def test_elements_are_packed_and_unpacked_at_31_bits() -> None:
    elements = numbers(14, 0, field.PRIME, 64).astype(np.uint32)
    words, back = np.empty(62, np.uint32), np.empty(64, np.uint32)
    field.squeeze(elements, words)
    assert words.astype("<u4").tobytes() == other.pack(elements.tolist(), 31)
    field.spread(words, back)
    assert (back == elements).all()
