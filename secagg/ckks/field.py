"""Arithmetic modulo p = 2^31 - 1 on whole vectors: the field in which ckks keys are shared.

p is a Mersenne number: 2^31 = 1, so a 64-bit number is reduced by adding its upper bits to its
lower 31. Elements are uint32 below p. Kernels run along a vector's coefficients and reduce sums
lazily; each inner loop gets slices that are contiguous, else it compiles to one number at a time.

Deliberately not here: anything that knows what is shared (sharing.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate
from operator import mul
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secagg.ckks.jit import kernel
from secagg.prg import CHUNK_BYTES, Keystream

PRIME = 2**31 - 1
ELEMENT_BITS = 31

Elements = NDArray[np.uint32]
_Sums = NDArray[np.uint64]

_P = np.uint64(PRIME)
_BITS = np.uint64(ELEMENT_BITS)
_BLOCK = 1024  # its accumulators take 8 KiB: they stay in the first cache
_CHUNK_WORDS = CHUNK_BYTES // 4


def canonical(values: NDArray[Any]) -> Elements:
    """`values` modulo p, for signed or unsigned integers of any size."""
    reduced: Elements = (values % values.dtype.type(PRIME)).astype(np.uint32)
    return reduced


def centred(elements: Elements) -> NDArray[np.int32]:
    """The representative of each element in -(p - 1)/2 .. (p - 1)/2."""
    signed = elements.view(np.int32)
    return np.where(signed > PRIME // 2, signed - PRIME, signed)


def uniform(stream: Keystream, out: Elements) -> None:
    """Fill a contiguous (m,) with uniform elements, by rejection from a keystream.

    From each chunk, in order, as many little-endian 32-bit words are read as elements are missing
    (a chunk has 65,536); a word counts by its low 31 bits and is passed over if they are p.
    """
    done, chunk = 0, 0
    while done < len(out):
        words = out[done : done + _CHUNK_WORDS]
        stream.fill(chunk, words)
        words &= np.uint32(PRIME)
        accepted = words != PRIME
        if not accepted.all():
            words = words[accepted]
            out[done : done + len(words)] = words
        done, chunk = done + len(words), chunk + 1


def powers(points: Sequence[int], count: int) -> Elements:
    """(points, count): x^0 .. x^(count - 1) for each x."""
    rows = [list(accumulate([x] * (count - 1), _times, initial=1)) for x in points]
    return np.array(rows, np.uint32).reshape(len(points), count)


def lagrange(points: Sequence[int], targets: Sequence[int]) -> Elements:
    """(targets, points): weights that carry a polynomial's values at `points` to each target.

    Right for polynomials of degree below len(points); `points` differ modulo p.
    """
    inverses = [pow(_product(x - y for y in points if y != x), -1, PRIME) for x in points]
    rows = [
        [inverse * product % PRIME for inverse, product in zip(inverses, products, strict=True)]
        for products in (_products_but_one([target - x for x in points]) for target in targets)
    ]
    return np.array(rows, np.uint32).reshape(len(targets), len(points))


def product(matrix: Elements, rows: Elements) -> Elements:
    """The matrix product: (m, t) by (t, w) gives (m, w)."""
    out = np.empty((len(matrix), rows.shape[1]), np.uint32)
    _multiply(np.ascontiguousarray(matrix), np.ascontiguousarray(rows), out)
    return out


def inner_products(rows: Elements, weights: Elements) -> Elements:
    """(m, s): each of m rows' first w elements with each of the s vectors of `weights` (s, w)."""
    out = np.empty((len(rows), len(weights)), np.uint32)
    _combine(np.ascontiguousarray(rows), np.ascontiguousarray(weights), out)
    return out


@kernel
def squeeze(elements: Elements, words: Elements) -> None:
    """Bit-packing: of 32 elements, each of 31 words gets what is left of one and the next's start.

    `elements`: (32 g,), `words`: (31 g,).
    """
    for group in range(len(words) // 31):
        wide, tight = elements[32 * group : 32 * group + 32], words[31 * group : 31 * group + 31]
        for place in range(31):
            low = wide[place] >> np.uint32(place)
            tight[place] = np.uint32(low | wide[place + 1] << np.uint32(31 - place))


@kernel
def spread(words: Elements, elements: Elements) -> None:
    """The inverse of `squeeze`; elements may come out as p."""
    for group in range(len(words) // 31):
        wide, tight = elements[32 * group : 32 * group + 32], words[31 * group : 31 * group + 31]
        wide[0], wide[31] = tight[0] & np.uint32(PRIME), tight[30] >> np.uint32(1)
        for place in range(1, 31):
            low = tight[place - 1] >> np.uint32(32 - place)
            wide[place] = np.uint32((low | tight[place] << np.uint32(place)) & np.uint32(PRIME))


def _times(left: int, right: int) -> int:
    return left * right % PRIME


def _product(factors: Iterable[int]) -> int:
    result = 1
    for factor in factors:
        result = result * factor % PRIME
    return result


def _products_but_one(factors: Sequence[int]) -> list[int]:
    """For each factor, the product of all others."""
    before = accumulate(factors[:-1], _times, initial=1)
    after = [*accumulate(factors[:0:-1], _times, initial=1)][::-1]
    return list(map(mul, before, after))


@kernel
def _multiply(matrix: Elements, rows: Elements, out: Elements) -> None:
    count, width = rows.shape
    whole = count - count % 4
    room = np.empty(_BLOCK, np.uint64)
    for start in range(0, width, _BLOCK):
        stop = min(start + _BLOCK, width)
        sums = room[: stop - start]
        for target in range(len(matrix)):
            sums[:] = np.uint64(0)
            for row in range(0, whole, 4):
                _add_four(
                    sums,
                    matrix[target, row : row + 4],
                    rows[row, start:stop],
                    rows[row + 1, start:stop],
                    rows[row + 2, start:stop],
                    rows[row + 3, start:stop],
                )
            for row in range(whole, count):
                _add_one(sums, np.uint64(matrix[target, row]), rows[row, start:stop])
            _reduce(sums, out[target, start:stop])


@kernel
def _add_four(
    sums: _Sums, factors: Elements, a: Elements, b: Elements, c: Elements, d: Elements
) -> None:
    """Four products of elements and what was left of others are below 2^64."""
    by_a, by_b = np.uint64(factors[0]), np.uint64(factors[1])
    by_c, by_d = np.uint64(factors[2]), np.uint64(factors[3])
    for place in range(len(sums)):
        value = sums[place] + by_a * np.uint64(a[place]) + by_b * np.uint64(b[place])
        value += by_c * np.uint64(c[place]) + by_d * np.uint64(d[place])
        sums[place] = (value & _P) + (value >> _BITS)


@kernel
def _add_one(sums: _Sums, factor: np.uint64, row: Elements) -> None:
    for place in range(len(sums)):
        value = sums[place] + factor * np.uint64(row[place])
        sums[place] = (value & _P) + (value >> _BITS)


@kernel
def _reduce(sums: _Sums, out: Elements) -> None:
    for place in range(len(sums)):
        value = (sums[place] & _P) + (sums[place] >> _BITS)
        out[place] = np.uint32(value - _P if value >= _P else value)


@kernel
def _combine(rows: Elements, weights: Elements, out: Elements) -> None:
    width = weights.shape[1]
    for row in range(len(rows)):
        for which in range(len(weights)):
            left, right, total = rows[row, :width], weights[which], np.uint64(0)
            for place in range(width):
                value = np.uint64(left[place]) * np.uint64(right[place])
                total += (value & _P) + (value >> _BITS)  # below 2^32 each
            out[row, which] = np.uint32(total % _P)
